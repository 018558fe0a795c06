//! Azure Blob Storage.

use super::{
    bucket::{BucketStore, no_retries},
    endpoint::Endpoint,
    http::{HttpOptions, misconfigured},
};
use crate::StoreError;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use zeroize::Zeroizing;

/// Authentication for an Azure container.
#[derive(Clone)]
pub enum AzureAccess {
    /// A key of the storage account, in base64 as Azure shows it.
    AccountKey(Zeroizing<String>),
    /// A shared access signature: the query of a SAS URL. It needs to allow reading, writing, deleting and
    /// listing.
    SharedAccessSignature(Zeroizing<String>),
    /// The managed identity of the machine, from its metadata service.
    ManagedIdentity {
        /// Client id, if the machine has several identities.
        client_id: Option<String>,
    },
}

/// Settings of a container.
#[derive(Clone)]
pub struct AzureOptions {
    /// Name of the storage account.
    pub account: String,
    /// The container.
    pub container: String,
    /// Authentication.
    pub access: AzureAccess,
    /// `host` or `host:port` of a server that is not Azure's own; the account is then the first part of the
    /// path.
    pub endpoint: Option<String>,
    /// Plain HTTP where the endpoint names no scheme.
    pub disable_ssl: bool,
    /// HTTP options.
    pub http: HttpOptions,
}

impl std::fmt::Debug for AzureOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AzureOptions")
            .field("account", &self.account)
            .field("container", &self.container)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// Returns true for a valid name of an Azure account or container, which becomes part of URLs.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl AzureOptions {
    /// Makes a client; asks the server nothing yet.
    ///
    /// # Errors
    /// [`StoreErrorKind::Misconfigured`](crate::StoreErrorKind::Misconfigured), which says which setting is
    /// wrong.
    pub fn open(&self) -> Result<BucketStore, StoreError> {
        let wrong = |detail: String| misconfigured("Azure", &self.container, detail);
        if !is_plain_name(&self.account) {
            return Err(wrong("the account's name has up to 63 letters and digits".into()));
        }
        let special = matches!(self.container.as_str(), "$root" | "$logs" | "$web");
        if !special && !is_plain_name(&self.container) {
            return Err(wrong("the container's name has up to 63 letters, digits and '-'".into()));
        }
        let endpoint = self.endpoint.as_deref().map(|given| Endpoint::parse(given, self.disable_ssl));
        let endpoint = endpoint.transpose().map_err(wrong)?;
        let description = match &endpoint {
            Some(endpoint) => {
                format!("container {} of {} at {}", self.container, self.account, endpoint.url())
            }
            None => format!("container {} of {} at Azure", self.container, self.account),
        };
        let allow_http = endpoint.as_ref().is_some_and(|endpoint| !endpoint.tls)
            || matches!(self.access, AzureAccess::ManagedIdentity { .. });
        let mut builder = MicrosoftAzureBuilder::new()
            .with_account(&self.account)
            .with_container_name(&self.container)
            .with_retry(no_retries())
            .with_http_connector(self.http.connector(allow_http).map_err(wrong)?);
        if let Some(endpoint) = &endpoint {
            builder = builder.with_endpoint(format!("{}/{}", endpoint.url(), self.account));
        }
        // Named, so that nothing else is tried: not even the metadata service.
        builder = match &self.access {
            AzureAccess::AccountKey(key) => {
                builder.with_credential_type("access_key").with_access_key(key.trim())
            }
            AzureAccess::SharedAccessSignature(query) => builder
                .with_credential_type("sas_token")
                .with_config(AzureConfigKey::SasKey, query.trim().trim_start_matches('?')),
            AzureAccess::ManagedIdentity { client_id } => {
                let builder = builder.with_credential_type("managed_identity");
                match client_id {
                    Some(client_id) => builder.with_client_id(client_id),
                    None => builder,
                }
            }
        };
        // The library's message may repeat what it could not decode.
        let client = builder.build().map_err(|_| {
            wrong(match &self.access {
                AzureAccess::AccountKey(_) => "the account key is not base64, as Azure shows it".into(),
                AzureAccess::SharedAccessSignature(_) => {
                    "the shared access signature is not the query of a SAS URL (sv=…&sig=…)".into()
                }
                AzureAccess::ManagedIdentity { .. } => "the managed identity cannot be used like this".into(),
            })
        })?;
        Ok(BucketStore::new(client, description, None, self.http.stall_timeout))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlobStore, StoreErrorKind};

    fn options() -> AzureOptions {
        AzureOptions {
            account: "acct".into(),
            container: "backups".into(),
            access: AzureAccess::AccountKey("cGxhbnRlZA==".to_owned().into()),
            endpoint: None,
            disable_ssl: false,
            http: HttpOptions::default(),
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let refused = |change: fn(&mut AzureOptions), word: &str| {
            let mut options = options();
            change(&mut options);
            let error = options.open().err().unwrap();
            assert_eq!(error.kind, StoreErrorKind::Misconfigured);
            assert!(error.to_string().contains(word), "{error}");
            assert!(!error.to_string().contains("planted"), "{error}");
        };
        refused(|o| o.account = String::new(), "account");
        refused(|o| o.account = "a.evil.example/".into(), "account");
        refused(|o| o.container = "a/b".into(), "container");
        refused(|o| o.access = AzureAccess::AccountKey("planted%".to_owned().into()), "account key");
        refused(|o| o.endpoint = Some("ftp://x".into()), "scheme");
    }

    #[test]
    fn azure_debug_output_has_the_place_and_no_secret() {
        let store = options().open().unwrap();
        assert_eq!(store.describe(), "container backups of acct at Azure");
        let store = AzureOptions { endpoint: Some("http://h:1".into()), ..options() }.open().unwrap();
        assert_eq!(store.describe(), "container backups of acct at http://h:1");
        assert!(!format!("{:?}", options()).contains("cGxh"));
    }
}
