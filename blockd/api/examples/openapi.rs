//! Writes the description of the control API to where it is checked in: `cargo run -p blockd-api --example openapi`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json");
    std::fs::write(path, blockd_api::openapi::document_text())
}
