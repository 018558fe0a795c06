//! Secrets of backup locations: values and references.
//!
//! A crate of its own, because the control API and the clients of object stores both use it: the API must not
//! depend on those clients, nor they on its HTTP stack.

#[cfg(feature = "schema")]
mod schema;
mod secret;
mod secret_ref;

pub use secret::Secret;
pub use secret_ref::{MAX_SECRET_REF_BYTES, SecretInput, SecretRef, SecretRefError};
