//! Stores the manifests of many cloud snapshots in a directory, for benchmarks: they can be listed but not
//! read.
//!
//! `cargo run -p blockd-testkit --example many_snapshots -- DIR VOLUMES SNAPSHOTS-OF-EACH`

use blockd_cloud::{OpenOptions, Repository};
use blockd_store::LocalStore;
use blockd_testkit::cloud::put_many_snapshots;
use std::{error::Error, sync::Arc};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, volumes, each] = args.as_slice() else {
        return Err("usage: many_snapshots DIR VOLUMES SNAPSHOTS-OF-EACH".into());
    };
    let store = Arc::new(LocalStore::open(dir)?);
    let repo = Repository::open(store, None, &OpenOptions::default()).await?;
    let len_bytes = put_many_snapshots(&repo, volumes.parse()?, each.parse()?).await?;
    println!("{len_bytes} bytes of manifests");
    Ok(())
}
