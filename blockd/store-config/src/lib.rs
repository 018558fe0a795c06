//! Description of backup locations: one [`StoreConfig`] for the command line, requests, the database and the
//! clients of object stores.
//!
//! A configuration has the secret of its store as a value (in requests and clients), as a reference, or not
//! at all: the database keeps values sealed in a column of their own. [`StoreView`] is the configuration
//! without secrets, as replies have it, and [`StoreAccess`] the part of it that an update can replace.
//!
//! A crate of its own, because the control API and the clients of object stores both use it: the API must not
//! depend on those clients, nor they on its HTTP stack.

mod azure;
mod compression;
mod config;
mod deduplication;
mod google;
mod s3;
#[cfg(feature = "schema")]
mod schema;
mod secret;
mod secret_ref;
mod settings;
mod swift;
#[cfg(test)]
mod tests;
mod view;

pub use azure::{AzureAccess, AzureAuth, AzureConfig};
pub use compression::{BadCompression, Compression, CompressionLevel, MAX_ZSTD_LEVEL};
pub use config::{StoreAccess, StoreConfig};
pub use deduplication::{BadDeduplication, Deduplication};
pub use google::{GoogleAccess, GoogleConfig};
pub use s3::{AssumedRole, S3Access, S3Config};
pub use secret::Secret;
pub use secret_ref::{MAX_SECRET_REF_BYTES, SecretInput, SecretRef, SecretRefError};
pub use settings::{InvalidConfig, ProviderKind, SecretChange};
pub use swift::{SwiftAccess, SwiftAuth, SwiftConfig};
pub use view::{S3View, StoreView};
