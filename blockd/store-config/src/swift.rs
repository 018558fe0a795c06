//! OpenStack Swift.

use crate::{
    InvalidConfig, SecretChange, SecretInput,
    settings::{required, required_secret},
};
use serde::{Deserialize, Serialize};

/// OpenStack Swift container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SwiftConfig {
    /// Existing container.
    pub container: String,
    /// User, or account of a token.
    pub auth: SwiftAuth,
    /// Secret.
    #[serde(flatten)]
    pub access: SwiftAccess,
}

/// Changeable settings of a Swift container: the key of a user, or a token. Only one of them is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SwiftAccess {
    /// Key or password of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretInput>,
    /// Token, without a user; valid until it expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretInput>,
}

/// Swift authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum SwiftAuth {
    /// Auth v1.
    V1 {
        /// URL of the auth service, such as `https://HOST/auth/v1.0`.
        auth_url: String,
        /// User, often `ACCOUNT:USER`.
        user: String,
    },
    /// Keystone v2.
    V2 {
        /// URL of Keystone, such as `https://HOST:5000/v2.0`.
        auth_url: String,
        /// User.
        user: String,
        /// Name of the tenant.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tenant_name: Option<String>,
        /// Id of the tenant.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tenant_id: Option<String>,
        /// Region; by default the first of the catalog.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<String>,
    },
    /// Keystone v3.
    V3 {
        /// URL of Keystone, such as `https://HOST:5000/v3`.
        auth_url: String,
        /// User.
        user: String,
        /// Domain of the user.
        user_domain: String,
        /// Project.
        project: String,
        /// Domain of the project.
        project_domain: String,
        /// Region; by default the first of the catalog.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<String>,
    },
    /// Token, instead of a user.
    Token {
        /// URL of the account.
        storage_url: String,
    },
}

impl SwiftAuth {
    /// Returns the URL of the auth service, or of the account of a token.
    pub fn url(&self) -> &str {
        match self {
            Self::V1 { auth_url, .. } | Self::V2 { auth_url, .. } | Self::V3 { auth_url, .. } => auth_url,
            Self::Token { storage_url } => storage_url,
        }
    }

    /// Returns the URL to change.
    pub fn url_mut(&mut self) -> &mut String {
        match self {
            Self::V1 { auth_url, .. } | Self::V2 { auth_url, .. } | Self::V3 { auth_url, .. } => auth_url,
            Self::Token { storage_url } => storage_url,
        }
    }
}

impl SwiftConfig {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        required([("bucket", &self.container)])?;
        match &self.auth {
            SwiftAuth::V1 { auth_url, user } | SwiftAuth::V2 { auth_url, user, .. } => {
                required([("swift-auth-url", auth_url), ("swift-user", user)])?;
            }
            SwiftAuth::V3 { auth_url, user, user_domain, project, project_domain, region: _ } => required([
                ("swift-auth-url", auth_url),
                ("swift-user", user),
                ("swift-user-domain-name", user_domain),
                ("swift-project-name", project),
                ("swift-project-domain-name", project_domain),
            ])?,
            SwiftAuth::Token { storage_url } => required([("swift-storage-url", storage_url)])?,
        }
        self.check_foreign_secret(&self.access)
    }

    /// Refuses the secret of the other authentication method.
    fn check_foreign_secret(&self, access: &SwiftAccess) -> Result<(), InvalidConfig> {
        let message = match (matches!(self.auth, SwiftAuth::Token { .. }), access) {
            (true, SwiftAccess { key: Some(_), .. }) => {
                "a key requires a user, but this credential has a token: give another token"
            }
            (false, SwiftAccess { token: Some(_), .. }) => {
                "a token replaces a user, but this credential has a user: give its key, or create another credential"
            }
            _ => return Ok(()),
        };
        Err(InvalidConfig::new(message, &["swift-key", "swift-token"]))
    }

    pub(crate) fn update(&mut self, new: SwiftAccess) -> Result<SecretChange, InvalidConfig> {
        self.check_foreign_secret(&new)?;
        match self.auth {
            SwiftAuth::Token { .. } => required_secret("swift-token", new.token.as_ref())?,
            _ => required_secret("swift-key", new.key.as_ref())?,
        }
        self.access = new;
        Ok(SecretChange::Replaced)
    }
}
