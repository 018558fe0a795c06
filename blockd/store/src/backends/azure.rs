//! Azure Blob Storage.

use super::{
    bucket::{BucketStore, no_retries},
    bucket_creation::BucketCreation,
    endpoint::{ServerAddress, secret_value},
    http::{HttpOptions, misconfigured},
};
use crate::StoreError;
use blockd_store_config::{AzureAccess, AzureAuth, AzureConfig};
use bytes::Bytes;
use object_store::{
    azure::{AzureAuthorizer, AzureConfigKey, MicrosoftAzure, MicrosoftAzureBuilder},
    client::HttpRequest,
};
use reqwest::Method;

/// Maximum number of deletions in a batch request.
pub(super) const BATCH_KEYS: usize = 256;

/// Returns true for a valid name of an Azure account or container, which becomes part of URLs.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Creates a client, without a request to the server.
///
/// # Errors
/// [`StoreErrorKind::Misconfigured`](crate::StoreErrorKind::Misconfigured), which names the invalid setting.
pub(super) fn open(config: &AzureConfig, http: &HttpOptions) -> Result<BucketStore, StoreError> {
    let AzureClient { client, description, .. } = AzureClient::of(config, http)?;
    let store = BucketStore::new(client.clone(), description, None, http.stall_timeout);
    Ok(store.with_batches(client, BATCH_KEYS))
}

/// Creates the container; returns false if it exists already.
///
/// # Errors
/// The store cannot be reached, or refuses the creation.
pub(super) async fn create_container(config: &AzureConfig, http: &HttpOptions) -> Result<bool, StoreError> {
    let AzureClient { client, description, url, allow_http } = AzureClient::of(config, http)?;
    let wrong = |detail: String| misconfigured("Azure", &config.container, detail);
    let creation = BucketCreation {
        provider: "Azure",
        bucket: &config.container,
        store: &description,
        client: http.client(allow_http).map_err(wrong)?,
        timeout: http.stall_timeout,
    };
    let failed = |error: object_store::Error| creation.failed(&error);
    let credential = client.credentials().get_credential().await.map_err(failed)?;
    let mut request = HttpRequest::new(Bytes::new().into());
    *request.method_mut() = Method::PUT;
    let url = format!("{url}/{}?restype=container", config.container);
    *request.uri_mut() = url.parse().map_err(|_| wrong("the endpoint is not a URL".into()))?;
    AzureAuthorizer::new(&credential, &config.account).try_authorize(&mut request).map_err(failed)?;
    creation.send(request, Bytes::new()).await
}

/// Client of a container.
struct AzureClient {
    client: MicrosoftAzure,
    /// Container and server, as in messages.
    description: String,
    /// Address of the account.
    url: String,
    allow_http: bool,
}

impl AzureClient {
    fn of(config: &AzureConfig, http: &HttpOptions) -> Result<Self, StoreError> {
        let AzureConfig { account, container, access: AzureAccess { auth }, .. } = config;
        let wrong = |detail: String| misconfigured("Azure", container, detail);
        if !is_plain_name(account) {
            return Err(wrong("the account's name has up to 63 letters and digits".into()));
        }
        let special = matches!(container.as_str(), "$root" | "$logs" | "$web");
        if !special && !is_plain_name(container) {
            return Err(wrong("the container's name has up to 63 letters, digits and '-'".into()));
        }
        let endpoint =
            config.endpoint.as_deref().map(|given| ServerAddress::parse(given, config.disable_ssl));
        let endpoint = endpoint.transpose().map_err(wrong)?;
        let server = endpoint.as_ref().map_or_else(|| "Azure".to_owned(), ServerAddress::url);
        let description = format!("container {container} of {account} at {server}");
        let allow_http = endpoint.as_ref().is_some_and(|endpoint| !endpoint.tls)
            || matches!(auth, AzureAuth::ManagedIdentity { .. });
        let mut builder = MicrosoftAzureBuilder::new()
            .with_account(account)
            .with_container_name(container)
            .with_retry(no_retries())
            .with_http_connector(http.connector(allow_http).map_err(wrong)?);
        if let Some(endpoint) = &endpoint {
            builder = builder.with_endpoint(format!("{}/{account}", endpoint.url()));
        }
        // Named explicitly, so that the library tries no other source of credentials, such as the metadata
        // service.
        builder = match auth {
            AzureAuth::AccountKey { key } => {
                builder.with_credential_type("access_key").with_access_key(secret_value(key.as_ref()).trim())
            }
            AzureAuth::Sas { token } => builder.with_credential_type("sas_token").with_config(
                AzureConfigKey::SasKey,
                secret_value(token.as_ref()).trim().trim_start_matches('?'),
            ),
            AzureAuth::ManagedIdentity { client_id } => {
                let builder = builder.with_credential_type("managed_identity");
                match client_id {
                    Some(client_id) => builder.with_client_id(client_id),
                    None => builder,
                }
            }
        };
        // The library's message may contain parts of the secret.
        let client = builder.build().map_err(|_| {
            let message = match auth {
                AzureAuth::AccountKey { .. } => "the account key is not base64, as Azure shows it",
                AzureAuth::Sas { .. } => {
                    "the shared access signature is not the query of a SAS URL (sv=…&sig=…)"
                }
                AzureAuth::ManagedIdentity { .. } => "the settings of the managed identity are invalid",
            };
            wrong(message.to_owned())
        })?;
        let url = match &endpoint {
            Some(endpoint) => format!("{}/{account}", endpoint.url()),
            None => format!("https://{account}.blob.core.windows.net"),
        };
        Ok(Self { client, description, url, allow_http })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlobStore, StoreErrorKind};
    use blockd_store_config::Secret;
    use blockd_testkit::store::{FakeHttpServer, HttpReply};

    fn with_key(key: &str) -> AzureAccess {
        AzureAccess { auth: AzureAuth::AccountKey { key: Some(Secret::new(key.to_owned()).into()) } }
    }

    fn config() -> AzureConfig {
        AzureConfig {
            account: "acct".into(),
            container: "backups".into(),
            endpoint: None,
            disable_ssl: false,
            access: with_key("cGxhbnRlZA=="),
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let refused = |change: fn(&mut AzureConfig), word: &str| {
            let mut config = config();
            change(&mut config);
            let error = open(&config, &HttpOptions::default()).err().unwrap();
            assert_eq!(error.kind, StoreErrorKind::Misconfigured);
            assert!(error.to_string().contains(word), "{error}");
            assert!(!error.to_string().contains("planted"), "{error}");
        };
        refused(|c| c.account = String::new(), "account");
        refused(|c| c.account = "a.evil.example/".into(), "account");
        refused(|c| c.container = "a/b".into(), "container");
        refused(|c| c.access = with_key("planted%"), "account key");
        refused(|c| c.endpoint = Some("ftp://x".into()), "scheme");
    }

    #[tokio::test]
    async fn read_of_an_archived_blob_fails_without_retry() {
        let body = "<Error><Code>BlobArchived</Code><Message>an archived blob</Message></Error>";
        let server = FakeHttpServer::start(move |_| HttpReply::status(409).body(body)).await;
        let at_server = AzureConfig { endpoint: Some(server.url()), ..config() };
        let store = open(&at_server, &HttpOptions::default()).unwrap();
        let error = store.get("a/b", 100).await.unwrap_err();
        assert_eq!((error.kind, error.is_retryable()), (StoreErrorKind::Archived, false), "{error}");
        assert!(error.to_string().ends_with("(BlobArchived: an archived blob)"), "{error}");
    }

    #[tokio::test]
    async fn throttled_object_of_a_batch_leaves_the_others() {
        for (first, status, throttled) in [
            ("202 Accepted", "503 Server Busy", false),
            ("202 Accepted", "412 Precondition Failed", false),
            ("503 Server Busy", "503 Server Busy", true),
        ] {
            let part = |id, status| {
                format!(
                    "--b\r\nContent-Type: application/http\r\nContent-ID: {id}\r\n\r\nHTTP/1.1 {status}\r\n\r\n\r\n"
                )
            };
            let body = format!("{}{}--b--\r\n", part(0, first), part(1, status));
            let reply =
                HttpReply::status(202).header("Content-Type", "multipart/mixed; boundary=b").body(body);
            let server = FakeHttpServer::start(move |_| reply.clone()).await;
            let at_server = AzureConfig { endpoint: Some(server.url()), ..config() };
            let store = open(&at_server, &HttpOptions::default()).unwrap();
            match store.delete_many(&["a".into(), "b".into()]).await {
                Ok(results) => assert!(!throttled && results[0].is_ok() && results[1].is_err()),
                Err(error) => assert!(throttled && error.kind == StoreErrorKind::Throttled, "{error}"),
            }
        }
    }

    #[test]
    fn azure_description_names_the_container() {
        let http = HttpOptions::default();
        let store = open(&config(), &http).unwrap();
        assert_eq!(store.describe(), "container backups of acct at Azure");
        let store = open(&AzureConfig { endpoint: Some("http://h:1".into()), ..config() }, &http).unwrap();
        assert_eq!(store.describe(), "container backups of acct at http://h:1");
    }

    #[tokio::test]
    async fn missing_container_is_created_once() {
        let xml = |status, code: &str| {
            HttpReply::status(status).body(format!("<Error><Code>{code}</Code><Message>m</Message></Error>"))
        };
        for (reply, expected) in [
            (HttpReply::status(201), Ok(true)),
            (xml(409, "ContainerAlreadyExists"), Ok(false)),
            (xml(403, "AuthorizationPermissionMismatch"), Err(StoreErrorKind::Unauthorized)),
        ] {
            let server = FakeHttpServer::start(move |_| reply.clone()).await;
            let config = AzureConfig { endpoint: Some(server.url()), ..config() };
            let created = create_container(&config, &HttpOptions::default()).await;
            assert_eq!(created.map_err(|error| error.kind), expected);
            let seen = server.seen();
            let path = "/acct/backups?restype=container";
            assert_eq!((seen.len(), seen[0].method.as_str(), seen[0].path.as_str()), (1, "PUT", path));
            assert!(seen[0].header("authorization").starts_with("SharedKey acct:"), "{:?}", seen[0]);
        }
    }
}
