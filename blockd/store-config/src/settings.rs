//! Provider, errors and checks that the settings of all providers share.

use crate::SecretInput;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Missing, contradictory or foreign setting, named by its flag. No message contains a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidConfig(pub String);

/// Change of the secret of a store by an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretChange {
    /// Unchanged.
    Stays,
    /// Removed.
    Dropped,
    /// Replaced.
    Replaced,
}

/// Storage provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// Directory.
    #[default]
    Local,
    /// S3 bucket.
    S3,
    /// Azure Blob Storage container.
    Azure,
    /// Google Cloud Storage bucket.
    Google,
    /// OpenStack Swift container.
    Swift,
}

impl ProviderKind {
    /// All providers.
    pub const ALL: [Self; 5] = [Self::Local, Self::S3, Self::Azure, Self::Google, Self::Swift];

    /// Returns the name in requests and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::S3 => "s3",
            Self::Azure => "azure",
            Self::Google => "google",
            Self::Swift => "swift",
        }
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Refuses empty settings.
pub(crate) fn required<const N: usize>(settings: [(&str, &str); N]) -> Result<(), InvalidConfig> {
    match settings.iter().find(|(_, value)| value.trim().is_empty()) {
        Some((flag, _)) => Err(InvalidConfig(format!("{flag} is required and must not be empty"))),
        None => Ok(()),
    }
}

pub(crate) fn required_secret(flag: &str, secret: Option<&SecretInput>) -> Result<(), InvalidConfig> {
    match secret {
        Some(secret) if !secret.is_blank() => Ok(()),
        _ => required([(flag, "")]),
    }
}

/// Refuses an instance identity in addition to a key.
pub(crate) fn one_identity(use_iam: bool, has_key: bool, flag: &str) -> Result<(), InvalidConfig> {
    if use_iam && has_key {
        return Err(InvalidConfig(format!(
            "--use-iam and {flag} are both given: the instance identity replaces the key"
        )));
    }
    Ok(())
}
