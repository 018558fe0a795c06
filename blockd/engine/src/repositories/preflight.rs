//! Pre-flight store requests, bounded by a timeout and by client cancellation.
//!
//! A store may be unresponsive for any length of time. A command waits for its pre-flight requests only until
//! the timeout; then they are dropped before the operation has changed anything. The same happens when the
//! client disconnects: an operation that no client waits for, or that was reported as failed, must not start
//! when the store responds again.

use crate::{
    error::{ServiceError, blocking},
    repositories::Repositories,
};
use blockd_api::{ApiError, CredentialRef, ErrorCode};
use blockd_catalog::{CredentialRow, DbManifestCache};
use blockd_cloud::{CloudSnapshotId, Manifest, ManifestCache, ManifestKey, Repository};
use blockd_store::{
    BlobStore, DryStore, MeterStore, Request, RequestObserver, Requests, StoreErrorKind, Work,
    delete_batch_keys, task_store,
};
use parking_lot::Mutex;
use std::{future::Future, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Timeout of a pre-flight request whose response is also cached locally.
const CACHED_FALLBACK_TIMEOUT: Duration = Duration::from_secs(3);

tokio::task_local! {
    /// Cancelled when the client disconnects.
    static CLIENT_CANCEL: CancellationToken;
    /// Answers of the stores that a read waits for.
    static ANSWERS: Arc<Answers>;
}

/// Time of the last answer of a store.
struct Answers(Mutex<Instant>);

impl RequestObserver for Answers {
    fn started(&self, _: &Request<'_>) {}

    fn ended(&self, _: &Request<'_>, _: Duration, outcome: Result<u64, StoreErrorKind>) {
        if !matches!(outcome, Err(StoreErrorKind::Timeout | StoreErrorKind::Unreachable)) {
            *self.0.lock() = Instant::now();
        }
    }
}

/// Returns the store such that its answers extend the time of the read that runs; see [`while_answering`].
pub(crate) fn observed(store: Arc<dyn BlobStore>) -> Arc<dyn BlobStore> {
    match ANSWERS.try_with(Arc::clone) {
        Ok(answers) => Arc::new(MeterStore::new(store, answers)),
        Err(_) => store,
    }
}

/// Runs a read of any number of requests, until its store has not answered for the timeout. Only stores that
/// the read wraps by [`observed`] count.
async fn while_answering<T>(timeout: Duration, read: impl Future<Output = T>) -> Option<T> {
    let answers = Arc::new(Answers(Mutex::new(Instant::now())));
    let mut read = std::pin::pin!(ANSWERS.scope(Arc::clone(&answers), read));
    loop {
        let deadline = *answers.0.lock() + timeout;
        match tokio::time::timeout_at(deadline, &mut read).await {
            Ok(done) => return Some(done),
            Err(_) if *answers.0.lock() + timeout > deadline => {}
            Err(_) => return None,
        }
    }
}

/// Guard held by the request handler: dropping it cancels the work.
pub struct CancelOnDrop(CancellationToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Runs `work` so that dropping the returned guard cancels it until it has begun.
pub fn with_client_cancellation<F: Future>(work: F) -> (CancelOnDrop, impl Future<Output = F::Output>) {
    let cancel = CancellationToken::new();
    (CancelOnDrop(cancel.clone()), CLIENT_CANCEL.scope(cancel, work))
}

fn cancelled_by_client() -> ServiceError {
    ServiceError::refused(ErrorCode::TaskStopped, "request cancelled by the client; no changes were made")
}

/// Checks, before an operation begins, that its client is still connected.
///
/// # Errors
/// The client has disconnected.
pub fn check_cancelled() -> Result<(), ServiceError> {
    match CLIENT_CANCEL.try_with(CancellationToken::is_cancelled) {
        Ok(true) => Err(cancelled_by_client()),
        // Without a client it is an internal operation of the daemon.
        Ok(false) | Err(_) => Ok(()),
    }
}

/// Runs work until the client disconnects.
pub(crate) async fn until_cancelled<T>(
    work: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    let cancel = CLIENT_CANCEL.try_with(CancellationToken::clone).unwrap_or_default();
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(cancelled_by_client()),
        done = work => done,
    }
}

/// Waits for a store request until the timeout or until the client disconnects.
pub async fn in_time<T>(
    timeout: Duration,
    request: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    let cancel = CLIENT_CANCEL.try_with(CancellationToken::clone).unwrap_or_default();
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(cancelled_by_client()),
        response = tokio::time::timeout(timeout, request) => response.unwrap_or_else(|_| {
            let message = format!("the store did not respond within {} ms; no changes were made: try again", timeout.as_millis());
            Err(ServiceError::refused(ErrorCode::StoreTimeout, message))
        }),
    }
}

/// Bounds store requests by the timeout of readers.
pub async fn in_reader_time<T, E: Into<ServiceError>>(
    settings: &crate::settings::Settings,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, ServiceError> {
    let time_limit = Duration::from_millis(settings.browse.stall_timeout_ms);
    match tokio::time::timeout(time_limit, work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(ServiceError::refused(
            blockd_api::ErrorCode::StoreTimeout,
            format!("the store did not respond within {} ms", time_limit.as_millis()),
        )),
    }
}

/// Returns the error that a location does not answer.
fn silent(row: &CredentialRow, time_limit: Duration, more: &str) -> ServiceError {
    let (name, waited) = (&row.name, time_limit.as_millis());
    let message = format!("backup location {name} did not respond within {waited} ms{more}");
    let hint =
        format!("check its server and the network: `blockctl credentials inspect {name}` shows where it is");
    ServiceError::Refused(ApiError::new(ErrorCode::StoreTimeout, message).with_hint(hint))
}

impl Repositories {
    /// Sends a pre-flight request to the store of a credential.
    ///
    /// # Errors
    /// The request failed or timed out, or the client disconnected.
    pub async fn preflight<T>(
        &self,
        credential: Uuid,
        request: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        let time_limit = Duration::from_millis(self.host.settings.store_answer_ms);
        let timed_out = match in_time(time_limit, Box::pin(async { Ok(request.await) })).await {
            Ok(answer) => return answer,
            Err(error) if error.to_api().code != ErrorCode::StoreTimeout => return Err(error),
            Err(error) => error,
        };
        match self.credential(Some(&CredentialRef::Id(credential))).await {
            Ok(row) => Err(silent(&row, time_limit, "; no changes were made: try again")),
            Err(_) => Err(timed_out),
        }
    }

    /// Runs a read of a location that takes any number of requests, such as a listing, and ends it when the
    /// store leaves them unanswered for the timeout of a pre-flight request.
    ///
    /// # Errors
    /// The read fails, or the store does not answer in time.
    pub async fn while_store_answers<T>(
        &self,
        row: &CredentialRow,
        read: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        let time_limit = Duration::from_millis(self.host.settings.store_answer_ms);
        while_answering(time_limit, read).await.unwrap_or_else(|| Err(silent(row, time_limit, "")))
    }

    /// Opens the repository of a credential for pre-flight requests, which are exempt from the tasks'
    /// bandwidth limits.
    pub async fn repository_for_client(&self, credential: Uuid) -> Result<Repository, ServiceError> {
        Ok(self.counted_repository(credential, false).await?.0)
    }

    /// Returns [`repository_for_client`](Self::repository_for_client) and its counters; a dry one changes
    /// nothing in the store.
    pub(crate) async fn counted_repository(
        &self,
        credential: Uuid,
        dry: bool,
    ) -> Result<(Repository, Arc<Requests>), ServiceError> {
        let (repository, _) = self.opened_repository(credential).await?;
        let store = match dry {
            true => {
                let row = self.credential(Some(&CredentialRef::Id(credential))).await?;
                let batch_keys = delete_batch_keys(&row.store.config);
                Arc::new(DryStore::new(Arc::clone(repository.store()), batch_keys))
            }
            false => Arc::clone(repository.store()),
        };
        let (store, requests) = task_store(observed(store), self.host.settings.retry_policy());
        Ok((repository.with_store(store).with_work(Work::default()), requests))
    }

    /// Reads a manifest from its store.
    ///
    /// # Errors
    /// There is no manifest, it is damaged, or the store does not respond in time.
    pub async fn preflight_manifest(
        &self,
        credential: Uuid,
        id: &CloudSnapshotId,
    ) -> Result<Manifest, ServiceError> {
        self.preflight(
            credential,
            Box::pin(async {
                let repository = self.repository_for_client(credential).await?;
                Ok(repository.manifest(id).await?)
            }),
        )
        .await
    }

    /// Returns a manifest for an operation that can begin without its store: the cached one if the store does
    /// not respond soon. Manifests never change; if the manifest was deleted since, reads of its objects fail
    /// with that error. Also returns true if the store returned it.
    ///
    /// # Errors
    /// The errors of [`preflight_manifest`](Self::preflight_manifest).
    pub async fn manifest_or_cached(
        &self,
        credential: Uuid,
        id: &CloudSnapshotId,
    ) -> Result<(Manifest, bool), ServiceError> {
        let (manifest_cache, key) =
            (DbManifestCache::new(Arc::clone(&self.db), credential), id.manifest_key());
        let cached = blocking(move || Ok::<_, ServiceError>(manifest_cache.load(&key))).await?;
        let Some(cached) = cached.filter(|cached| cached.id() == *id) else {
            return Ok((self.preflight_manifest(credential, id).await?, true));
        };
        match tokio::time::timeout(CACHED_FALLBACK_TIMEOUT, self.preflight_manifest(credential, id)).await {
            Ok(Err(error)) if error.to_api().code == ErrorCode::StoreTimeout => {}
            Ok(answer) => return Ok((answer?, true)),
            Err(_) => {}
        }
        check_cancelled()?;
        tracing::info!(cloudsnap = %id, "the store does not respond; using the cached manifest");
        Ok((cached, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_store::Operation;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::oneshot;

    /// Fake operation that begins once a store has responded.
    async fn begin(answer: oneshot::Receiver<()>, done: Arc<AtomicBool>) -> Result<(), ServiceError> {
        in_time(Duration::from_secs(30), async {
            let _ = answer.await;
            Ok(())
        })
        .await?;
        done.store(true, Ordering::SeqCst);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn cancelled_request_does_not_begin_when_the_store_responds() {
        for goes in [true, false] {
            let (answer, answered) = oneshot::channel();
            let done = Arc::new(AtomicBool::new(false));
            let (guard, work) = with_client_cancellation(begin(answered, Arc::clone(&done)));
            let work = tokio::spawn(work);
            tokio::task::yield_now().await;
            let guard = (!goes).then_some(guard);
            let _ = answer.send(());
            assert_eq!(work.await.unwrap().is_err(), goes);
            assert_eq!(done.load(Ordering::SeqCst), !goes);
            drop(guard);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn long_read_ends_when_its_store_is_silent() {
        let timeout = Duration::from_secs(30);
        for (answers, pause_s) in [(9, 20), (0, 29), (0, 31), (9, 31)] {
            let begun = Instant::now();
            let read = while_answering(timeout, async {
                let answered = ANSWERS.get();
                for _ in 0..answers {
                    tokio::time::sleep(Duration::from_secs(pause_s)).await;
                    answered.ended(&Request::new(Operation::List, "k"), timeout, Ok(1));
                }
                tokio::time::sleep(Duration::from_secs(pause_s)).await;
            });
            let ends = pause_s <= 30;
            assert_eq!(read.await.is_some(), ends, "{answers} answers each {pause_s} s");
            assert!(ends || begun.elapsed() == timeout);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_store_times_out_and_its_late_response_is_dropped() {
        let (answer, answered) = oneshot::channel();
        let done = Arc::new(AtomicBool::new(false));
        let error = begin(answered, Arc::clone(&done)).await.unwrap_err().to_api();
        assert_eq!(error.code, ErrorCode::StoreTimeout);
        assert!(error.is_retryable() && error.message.contains("30000 ms"), "{error:?}");
        assert!(answer.send(()).is_err(), "the request is still polled");
        assert!(!done.load(Ordering::SeqCst));
    }
}
