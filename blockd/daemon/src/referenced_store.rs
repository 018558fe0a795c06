//! Store with an external secret. A new secret is used after it is fetched, at the latest when the store
//! refuses the old one.

use crate::{error::ServiceError, providers};
use blockd_api::SecretRef;
use blockd_catalog::StoreRow;
use blockd_secrets::{Fingerprint, ReferenceError, References, Resolved};
use blockd_store::{BlobStore, Request, Response, StoreError, StoreErrorKind, StoreFuture};
use parking_lot::Mutex;
use std::{future::Future, sync::Arc};

type Client = Arc<dyn BlobStore>;

/// Store opened with an external secret.
pub(crate) struct ReferencedStore {
    row: StoreRow,
    reference: SecretRef,
    references: Arc<References>,
    describe: String,
    /// Client with the fingerprint of its secret.
    client: Mutex<(Fingerprint, Client)>,
}

impl ReferencedStore {
    /// Opens the store with a fetched secret.
    ///
    /// # Errors
    /// A setting or the secret is invalid.
    pub fn open(
        row: StoreRow,
        reference: SecretRef,
        references: Arc<References>,
        secret: &Resolved,
    ) -> Result<Self, ServiceError> {
        let client = providers::open(&row, Some(secret.expose()), None)?;
        let describe = client.describe().to_owned();
        Ok(Self { row, reference, references, describe, client: Mutex::new((secret.fingerprint, client)) })
    }

    /// Returns the client for a secret.
    fn client_for(&self, secret: &Resolved, request: Request<'_>) -> Result<Client, StoreError> {
        let mut client = self.client.lock();
        if client.0 != secret.fingerprint {
            let opened = providers::open(&self.row, Some(secret.expose()), None);
            let opened = opened.map_err(|error| {
                request
                    .failed(StoreErrorKind::Misconfigured, &self.describe)
                    .with_detail(format!("the secret {}: {error}", self.reference))
            })?;
            *client = (secret.fingerprint, opened);
        }
        Ok(Arc::clone(&client.1))
    }

    fn failed(&self, error: &ReferenceError, request: Request<'_>) -> StoreError {
        // Temporary errors are retried.
        let kind = match error.is_retryable() {
            true => StoreErrorKind::Other,
            false => StoreErrorKind::Unauthorized,
        };
        request.failed(kind, &self.describe).with_detail(format!("the secret {}: {error}", self.reference))
    }

    async fn run<T, F>(&self, request: Request<'_>, ask: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let failed = |error: ReferenceError| self.failed(&error, request);
        let secret = self.references.resolve(&self.reference).await.map_err(failed)?;
        let result = ask(self.client_for(&secret, request)?).await;
        match &result {
            Err(error) if error.kind == StoreErrorKind::Unauthorized => {}
            _ => return result,
        }
        let used = secret.fingerprint;
        match self.references.resolve_after_refusal(&self.reference, &used).await {
            Ok(other) if other.fingerprint != used => {
                tracing::info!(reference = %self.reference, store = %self.describe, "the store refused the old secret; there is a new one");
                ask(self.client_for(&other, request)?).await
            }
            Ok(_) => result,
            Err(error) => {
                tracing::debug!(reference = %self.reference, %error, "the store refused the secret, and fetching it again failed");
                result
            }
        }
    }
}

impl blockd_store::Middleware for ReferencedStore {
    fn describe(&self) -> &str {
        &self.describe
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        Box::pin(self.run(request, ask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{
        Router,
        extract::State,
        http::{HeaderMap, StatusCode},
    };
    use blockd_api::credentials::Connection;
    use blockd_catalog::{ProviderRow, SwiftAuthRow};
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
        let row = StoreRow {
            provider: ProviderRow::Swift { container: "c".into(), auth: SwiftAuthRow::Token { storage_url } },
            connection: Connection::default(),
        };
        let resolved = references.resolve(&reference).await.unwrap();
        let store = ReferencedStore::open(row, reference, Arc::clone(&references), &resolved).unwrap();
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
        assert!(error.to_string().contains("it is not there") && !error.is_retryable(), "{error}");
        assert!(!error.to_string().contains("planted"), "{error}");
        server.abort();
    }
}
