//! Client of a store with an external secret. A new secret is used after it is fetched, at the latest when
//! the store refuses the old one.

use crate::repositories::stores;
use blockd_api::SecretRef;
use blockd_catalog::StoreRow;
use blockd_secrets::{Fingerprint, ReferenceError, References, Resolved};
use blockd_store::{BlobStore, ClientFuture, ClientSource, StoreErrorKind};
use parking_lot::Mutex;
use std::sync::Arc;

type Client = Arc<dyn BlobStore>;

/// Source of clients with the value of a secret reference.
pub struct ReferencedClient {
    pub(crate) row: StoreRow,
    pub(crate) reference: SecretRef,
    pub(crate) references: Arc<References>,
    /// Client with the fingerprint of its secret.
    pub client: Mutex<(Fingerprint, Client)>,
}

impl ReferencedClient {
    /// Returns the client for a secret.
    fn client_for(&self, secret: &Resolved) -> Result<Client, (StoreErrorKind, String)> {
        let mut client = self.client.lock();
        if client.0 != secret.fingerprint {
            let opened = stores::open(&self.row, Some(secret.expose()), None);
            let opened = opened.map_err(|error| {
                (StoreErrorKind::Misconfigured, format!("the secret {}: {error}", self.reference))
            })?;
            *client = (secret.fingerprint, opened);
        }
        Ok(Arc::clone(&client.1))
    }

    fn failed(&self, error: &ReferenceError) -> (StoreErrorKind, String) {
        // Temporary errors are retried.
        let kind = match error.is_retryable() {
            true => StoreErrorKind::Other,
            false => StoreErrorKind::Unauthorized,
        };
        (kind, format!("the secret {}: {error}", self.reference))
    }
}

impl ClientSource for ReferencedClient {
    fn client<'a>(&'a self, refused: Option<&'a Client>) -> ClientFuture<'a> {
        Box::pin(async move {
            let Some(refused) = refused else {
                let secret = self.references.resolve(&self.reference).await;
                return self.client_for(&*secret.map_err(|error| self.failed(&error))?);
            };
            let (used, client) = self.client.lock().clone();
            if !Arc::ptr_eq(&client, refused) {
                // A concurrent request has fetched the new secret.
                return Ok(client);
            }
            match self.references.resolve_after_refusal(&self.reference, &used).await {
                Ok(secret) if secret.fingerprint != used => {
                    tracing::info!(reference = %self.reference, store = refused.describe(), "the store refused the old secret; using the new one");
                    self.client_for(&secret)
                }
                Ok(_) => Ok(client),
                Err(error) => {
                    tracing::debug!(reference = %self.reference, %error, "the store refused the secret, and fetching it again failed");
                    Ok(client)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repositories::opening::{StoreKey, open_store};
    use axum::{
        Router,
        extract::State,
        http::{HeaderMap, StatusCode},
    };
    use blockd_api::credentials::Connection;
    use blockd_secrets::SecretsConfig;
    use std::{collections::VecDeque, os::unix::fs::PermissionsExt, path::Path};

    /// Accepted secret and received secrets.
    type Shared = Arc<Mutex<(String, VecDeque<String>)>>;

    async fn answer(State(shared): State<Shared>, headers: HeaderMap) -> (StatusCode, &'static str) {
        let token = headers.get("x-auth-token").map_or("", |value| value.to_str().unwrap()).to_owned();
        let mut shared = shared.lock();
        let is_right = token == shared.0;
        shared.1.push_back(token);
        if is_right { (StatusCode::OK, "object") } else { (StatusCode::UNAUTHORIZED, "") }
    }

    fn put(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[tokio::test]
    async fn refused_secret_is_resolved_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        put(&path, "planted-1");
        let shared: Shared = Arc::new(Mutex::new(("planted-1".to_owned(), VecDeque::new())));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let storage_url = format!("http://{}/v1/account", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

        let secrets = SecretsConfig { file_dir: dir.path().to_owned(), ..SecretsConfig::default() };
        let references = References::new(&secrets, None);
        let reference: SecretRef = format!("file:{}", path.display()).parse().unwrap();
        let config = serde_json::json!({
            "type": "swift", "container": "c", "auth": { "kind": "token", "storageUrl": storage_url },
            "token": { "from": reference }
        });
        let row =
            StoreRow { config: serde_json::from_value(config).unwrap(), connection: Connection::default() };
        let resolved = references.resolve(&reference).await.unwrap();
        let store = open_store(&row, &StoreKey::From(reference, resolved), None, &references).unwrap();
        assert_eq!(store.get("a", 100).await.unwrap(), "object");

        // A change at both ends needs no request.
        shared.lock().0 = "planted-2".to_owned();
        put(&path, "planted-2");
        assert_eq!(store.get("a", 100).await.unwrap(), "object");
        // A change at one end only: the store is asked with it once.
        shared.lock().0 = "planted-3".to_owned();
        shared.lock().1.clear();
        let error = store.get("a", 100).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::Unauthorized, "{error}");
        assert_eq!(shared.lock().1, ["planted-2"]);
        // Without a secret the store is not asked after the cached value has expired.
        std::fs::remove_file(&path).unwrap();
        tokio::time::sleep(blockd_secrets::LOCAL_CACHE).await;
        let error = store.get("a", 100).await.unwrap_err();
        assert!(error.to_string().contains("it does not exist") && !error.is_retryable(), "{error}");
        assert!(!error.to_string().contains("planted"), "{error}");
        server.abort();
    }
}
