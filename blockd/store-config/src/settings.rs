//! Provider, errors and checks that the settings of all providers share.

use crate::SecretInput;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Missing, contradictory or foreign setting. No message contains a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidConfig {
    /// Cause.
    pub message: String,
    /// Settings to check: names of the options of `blockctl credentials create`, without `--`.
    pub settings: Vec<&'static str>,
}

impl InvalidConfig {
    pub(crate) fn new(message: impl Into<String>, settings: &[&'static str]) -> Self {
        Self { message: message.into(), settings: settings.to_vec() }
    }
}

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
pub(crate) fn required<const N: usize>(settings: [(&'static str, &str); N]) -> Result<(), InvalidConfig> {
    match settings.iter().find(|(_, value)| value.trim().is_empty()) {
        Some((setting, _)) => {
            Err(InvalidConfig::new("a required setting is missing; it must not be empty", &[setting]))
        }
        None => Ok(()),
    }
}

pub(crate) fn required_secret(
    setting: &'static str,
    secret: Option<&SecretInput>,
) -> Result<(), InvalidConfig> {
    match secret {
        Some(secret) if !secret.is_blank() => Ok(()),
        _ => required([(setting, "")]),
    }
}

/// Refuses an instance identity in addition to a key.
pub(crate) fn one_identity(use_iam: bool, has_key: bool, key: &'static str) -> Result<(), InvalidConfig> {
    if use_iam && has_key {
        let message = "an instance identity and a key are both given: the identity replaces the key";
        return Err(InvalidConfig::new(message, &["use-iam", key]));
    }
    Ok(())
}
