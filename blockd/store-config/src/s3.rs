//! S3 buckets.

use crate::{
    InvalidConfig, SecretChange, SecretInput,
    settings::{one_identity, required, required_secret},
};
use serde::{Deserialize, Serialize};

/// S3 bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3Config {
    /// `host:port` or `host` of the server. Several, separated by commas, serve the same bucket; the next one
    /// is used when one cannot be reached.
    pub endpoint: String,
    /// Region.
    pub region: String,
    /// Existing bucket. By default one named after the cluster, which a new credential creates if needed.
    #[serde(default)]
    pub bucket: String,
    /// Use plain HTTP.
    #[serde(default)]
    pub disable_ssl: bool,
    /// Address the bucket as `bucket.host`, not as `host/bucket`.
    #[serde(default)]
    pub disable_path_style: bool,
    /// Authentication and other changeable settings.
    #[serde(flatten)]
    pub access: S3Access,
}

/// Changeable settings of an S3 bucket. An update keeps omitted ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct S3Access {
    /// Id of the access key; required unless `useIam` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key: Option<String>,
    /// Secret access key; required unless `useIam` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<SecretInput>,
    /// Use the instance role instead of a key. In an update, a key replaces it again.
    pub use_iam: bool,
    /// Role to assume with the key or the instance role. In an update, an empty ARN removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<AssumedRole>,
    /// Storage class of new objects, such as `STANDARD_IA`. In an update, an empty one removes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class: Option<String>,
}

/// AWS role to assume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AssumedRole {
    /// Name, such as `arn:aws:iam::123456789012:role/backup`.
    pub arn: String,
    /// STS external ID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// STS endpoint, `host:port`, `host` or URL; by default Amazon's or the bucket's server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl S3Config {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        required([("s3-endpoint", &self.endpoint), ("s3-region", &self.region), ("bucket", &self.bucket)])?;
        let access = &self.access;
        one_identity(access.use_iam, access.has_key(), "s3-access-key")?;
        match access.use_iam {
            true => Ok(()),
            false => required([("s3-access-key", access.access_key.as_deref().unwrap_or_default())]),
        }
    }
}

impl S3Access {
    fn has_key(&self) -> bool {
        self.access_key.is_some() || self.secret_key.is_some()
    }

    pub(crate) fn update(&mut self, new: Self) -> Result<SecretChange, InvalidConfig> {
        one_identity(new.use_iam, new.has_key(), "s3-access-key")?;
        if let Some(role) = &new.role {
            self.role = Some(role.clone()).filter(|role| !role.arn.trim().is_empty());
        }
        if let Some(class) = &new.storage_class {
            self.storage_class = Some(class.clone()).filter(|class| !class.trim().is_empty());
        }
        if new.use_iam {
            (self.use_iam, self.access_key, self.secret_key) = (true, None, None);
            return Ok(SecretChange::Dropped);
        }
        if !new.has_key() {
            return Ok(SecretChange::Stays);
        }
        // The identity of the machine is replaced by a whole key only.
        if let Some(id) = new.access_key.or_else(|| self.use_iam.then(String::new)) {
            required([("s3-access-key", &id)])?;
            self.access_key = Some(id);
        }
        if new.secret_key.is_none() && !self.use_iam {
            return Ok(SecretChange::Stays);
        }
        required_secret("s3-secret-key", new.secret_key.as_ref())?;
        (self.use_iam, self.secret_key) = (false, new.secret_key);
        Ok(SecretChange::Replaced)
    }
}
