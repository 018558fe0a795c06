//! Clients: a directory, and the servers of four protocols.

mod azure;
mod bucket;
mod classify;
mod direct;
mod endpoint;
mod google;
mod http;
mod local;
mod s3;
mod sts;
mod swift;

pub use azure::{AzureAccess, AzureOptions};
pub use bucket::BucketStore;
pub use direct::ALIGNMENT_BYTES;
pub use google::{GoogleAccess, GoogleOptions};
pub use http::HttpOptions;
pub use local::LocalStore;
pub use s3::{S3Access, S3Options};
pub use sts::S3Role;
pub use swift::{SwiftAccess, SwiftOptions, SwiftStore};
