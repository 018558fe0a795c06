//! Stores the cloud snapshot of a full tebibyte in a directory, for benchmarks: a complete index and a few
//! packs. Prints its id, and the offsets of readable blocks, in bytes.
//!
//! `cargo run -p blockd-testkit --example tebibyte -- DIR`

use blockd_cloud::{OpenOptions, Repository};
use blockd_store::LocalStore;
use blockd_testkit::cloud::Tebibyte;
use std::{error::Error, sync::Arc};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: tebibyte DIR")?;
    let store = Arc::new(LocalStore::open(dir)?);
    let repo = Repository::open(store, None, &OpenOptions::default()).await?;
    let manifest = Tebibyte::put(&repo).await?;
    println!("{}", manifest.id());
    Tebibyte::places().for_each(|block| println!("{}", block.0 * blockd_extent::BLOCK_SIZE_BYTES));
    Ok(())
}
