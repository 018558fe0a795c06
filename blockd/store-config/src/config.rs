//! Configuration of a store.

use crate::{
    AzureAccess, AzureAuth, AzureConfig, GoogleAccess, GoogleConfig, InvalidConfig, ProviderKind, S3Access,
    S3Config, Secret, SecretChange, SecretInput, SecretRef, SwiftAccess, SwiftAuth, SwiftConfig,
    settings::required_secret,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Provider, location and authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum StoreConfig {
    /// Directory of the daemon's host.
    Local {
        /// Absolute path of the mount point.
        path: PathBuf,
    },
    /// S3 bucket.
    S3(S3Config),
    /// Azure Blob Storage container.
    Azure(AzureConfig),
    /// Google Cloud Storage bucket.
    Google(GoogleConfig),
    /// OpenStack Swift container.
    Swift(SwiftConfig),
}

/// Part of a configuration that an update can replace, by provider; the provider itself cannot change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum StoreAccess {
    /// S3.
    S3(S3Access),
    /// Azure Blob Storage.
    Azure(AzureAccess),
    /// Google Cloud Storage.
    Google(GoogleAccess),
    /// OpenStack Swift. Users and tokens do not replace each other.
    Swift(SwiftAccess),
}

/// Returns the setting and the field of the secret that the chosen authentication needs.
macro_rules! secret_field {
    ($config:expr $(, $mut:tt)?) => {
        match $config {
            StoreConfig::S3(s3) if !s3.access.use_iam => {
                Some(("s3-secret-key", &$($mut)? s3.access.secret_key))
            }
            StoreConfig::Azure(azure) => match &$($mut)? azure.access.auth {
                AzureAuth::AccountKey { key } => Some(("azure-account-key", key)),
                AzureAuth::Sas { token } => Some(("azure-sas-token", token)),
                AzureAuth::ManagedIdentity { .. } => None,
            },
            StoreConfig::Google(google) if !google.access.use_iam => {
                Some(("google-json-key", &$($mut)? google.access.json_key))
            }
            StoreConfig::Swift(SwiftConfig { auth: SwiftAuth::Token { .. }, access, .. }) => {
                Some(("swift-token", &$($mut)? access.token))
            }
            StoreConfig::Swift(swift) => Some(("swift-key", &$($mut)? swift.access.key)),
            StoreConfig::Local { .. } | StoreConfig::S3(_) | StoreConfig::Google(_) => None,
        }
    };
}

impl StoreConfig {
    /// Returns the provider.
    pub fn kind(&self) -> ProviderKind {
        match self {
            Self::Local { .. } => ProviderKind::Local,
            Self::S3(_) => ProviderKind::S3,
            Self::Azure(_) => ProviderKind::Azure,
            Self::Google(_) => ProviderKind::Google,
            Self::Swift(_) => ProviderKind::Swift,
        }
    }

    /// Returns the secret, if the configuration has it.
    pub fn secret(&self) -> Option<&SecretInput> {
        secret_field!(self).and_then(|(_, secret)| secret.as_ref())
    }

    /// Returns the reference to the secret, if it is external.
    pub fn reference(&self) -> Option<&SecretRef> {
        self.secret().and_then(SecretInput::reference)
    }

    /// Removes the value of the secret, which is sealed and stored separately; a reference stays.
    pub fn take_secret_value(&mut self) -> Option<Secret> {
        let (_, secret) = secret_field!(self, mut)?;
        secret.take_if(|secret| secret.value().is_some()).and_then(|secret| secret.value().cloned())
    }

    /// Returns true if any field has the value of a secret, also one that the authentication does not use.
    pub fn has_secret_value(&self) -> bool {
        let secrets: [Option<&SecretInput>; 2] = match self {
            Self::Local { .. } => [None, None],
            Self::S3(s3) => [s3.access.secret_key.as_ref(), None],
            Self::Azure(azure) => match &azure.access.auth {
                AzureAuth::AccountKey { key: secret } | AzureAuth::Sas { token: secret } => {
                    [secret.as_ref(), None]
                }
                AzureAuth::ManagedIdentity { .. } => [None, None],
            },
            Self::Google(google) => [google.access.json_key.as_ref(), None],
            Self::Swift(swift) => [swift.access.key.as_ref(), swift.access.token.as_ref()],
        };
        secrets.into_iter().flatten().any(|secret| secret.value().is_some())
    }

    /// Returns the configuration with the value of its secret, for a client.
    #[must_use]
    pub fn with_secret_value(mut self, value: Option<&str>) -> Self {
        if let Some((_, secret)) = secret_field!(&mut self, mut) {
            *secret = value.map(|value| Secret::new(value.to_owned()).into());
        }
        self
    }

    /// Sets the name of a bucket that has none and can be created; returns true if it did.
    pub fn name_bucket(&mut self, name: &str) -> bool {
        let bucket = match self {
            Self::S3(s3) => &mut s3.bucket,
            Self::Azure(azure) => &mut azure.container,
            Self::Google(google) if google.project.is_some() => &mut google.bucket,
            _ => return false,
        };
        let is_unnamed = bucket.is_empty();
        if is_unnamed {
            name.clone_into(bucket);
        }
        is_unnamed
    }

    /// Checks a new configuration, which has its secret.
    ///
    /// # Errors
    /// A setting is missing, or contradicts another one.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        match self {
            Self::Local { .. } => {}
            Self::S3(s3) => s3.check()?,
            Self::Azure(azure) => azure.check()?,
            Self::Google(google) => google.check()?,
            Self::Swift(swift) => swift.check()?,
        }
        match secret_field!(self) {
            Some((setting, secret)) => required_secret(setting, secret.as_ref()),
            None => Ok(()),
        }
    }

    /// Replaces the given parts of the access; the others stay.
    ///
    /// # Errors
    /// A setting belongs to another provider, is missing, or contradicts another one.
    pub fn update(&mut self, access: StoreAccess) -> Result<SecretChange, InvalidConfig> {
        let kind = self.kind();
        match (&mut *self, access) {
            (Self::S3(s3), StoreAccess::S3(access)) => s3.access.update(access),
            (Self::Azure(azure), StoreAccess::Azure(access)) => azure.access.update(access),
            (Self::Google(google), StoreAccess::Google(access)) => google.access.update(access),
            (Self::Swift(swift), StoreAccess::Swift(access)) => swift.update(access),
            (
                _,
                other @ (StoreAccess::S3(_)
                | StoreAccess::Azure(_)
                | StoreAccess::Google(_)
                | StoreAccess::Swift(_)),
            ) => {
                let message = format!(
                    "settings of {} are given for a credential of {kind}: create another credential for another location",
                    other.kind()
                );
                Err(InvalidConfig::new(message, &[]))
            }
        }
    }
}

impl StoreAccess {
    /// Returns the provider.
    pub fn kind(&self) -> ProviderKind {
        match self {
            Self::S3(_) => ProviderKind::S3,
            Self::Azure(_) => ProviderKind::Azure,
            Self::Google(_) => ProviderKind::Google,
            Self::Swift(_) => ProviderKind::Swift,
        }
    }
}
