//! Store clients: local directory, S3, Azure, Google and Swift.

mod azure;
mod bucket;
mod bucket_creation;
mod classify;
mod direct;
mod endpoint;
mod google;
mod http;
mod local;
mod s3;
mod sts;
mod swift;

pub use bucket::BucketStore;
pub use direct::ALIGNMENT_BYTES;
pub use http::HttpOptions;
pub use local::LocalStore;
pub use swift::SwiftStore;

use crate::{BlobStore, DELETE_MAX_KEYS, StoreError, StoreErrorKind, Work};
use blockd_store_config::StoreConfig;
use std::sync::Arc;

/// Creates the client of a configuration with the value of its secret, without a request. `writing` schedules
/// the writes of a directory.
///
/// # Errors
/// A setting is invalid, or a directory is missing.
pub fn open(
    config: &StoreConfig,
    http: &HttpOptions,
    writing: Option<Work>,
) -> Result<Arc<dyn BlobStore>, StoreError> {
    Ok(match config {
        StoreConfig::Local { path } => {
            let store = LocalStore::open(path)?;
            Arc::new(match writing {
                Some(writing) => store.with_work(writing),
                None => store,
            })
        }
        StoreConfig::S3(config) => s3::open_servers(config, http)?,
        StoreConfig::Azure(config) => Arc::new(azure::open(config, http)?),
        StoreConfig::Google(config) => Arc::new(google::open(config, http)?),
        StoreConfig::Swift(config) => Arc::new(swift::open(config, http)?),
    })
}

/// Returns the number of objects that one request to a store deletes.
pub const fn delete_batch_keys(config: &StoreConfig) -> usize {
    match config {
        StoreConfig::S3(_) => DELETE_MAX_KEYS,
        StoreConfig::Azure(_) => azure::BATCH_KEYS,
        StoreConfig::Google(_) | StoreConfig::Swift(_) | StoreConfig::Local { .. } => 1,
    }
}

/// Creates the bucket of a configuration with the value of its secret; returns false if it exists already.
///
/// # Errors
/// The store cannot be reached or refuses the creation; [`StoreErrorKind::Unsupported`] for directories and
/// Swift.
pub async fn create_bucket(config: &StoreConfig, http: &HttpOptions) -> Result<bool, StoreError> {
    match config {
        StoreConfig::S3(config) => s3::create_bucket(config, http).await,
        StoreConfig::Azure(config) => azure::create_container(config, http).await,
        StoreConfig::Google(config) => google::create_bucket(config, http).await,
        other => Err(StoreError::new(StoreErrorKind::Unsupported, "CREATE", "bucket", other.kind().name())),
    }
}
