//! Secrets: encryption of those in the database, and references to external ones.

mod command;
mod error;
mod local;
mod references;
mod sealing;
mod settings;

pub use error::ReferenceError;
pub use references::{Fingerprint, LOCAL_CACHE, References, Resolved, run_expiry};
pub use sealing::{Purpose, SYSTEMD_CREDENTIAL, Secrets, SecretsError, fill_random};
pub use settings::{SecretsConfig, SettingError};
