//! What a store is asked before something is begun.
//!
//! A store may be silent for as long as it likes. Whoever wants something waits for its answer only so long,
//! here for all requests; then the question is dropped and nothing was begun. The same where whoever wanted
//! it has gone: what nobody waits for any more, or what somebody was told has failed, is not done when the
//! store wakes up.

use crate::{
    core::Core,
    db::Catalog,
    error::{ServiceError, blocking},
};
use blockd_api::ErrorCode;
use blockd_cloud::{CancelToken, CloudsnapId, Manifest, ManifestCache, Repository, Work, store::task_store};
use std::{future::Future, sync::Arc, time::Duration};
use uuid::Uuid;

/// How long a store is waited for that is not needed yet, because what it would say is known here.
const SOON: Duration = Duration::from_secs(3);

tokio::task_local! {
    /// Cancelled when whoever asked has gone.
    static GONE: CancelToken;
}

/// Held by whoever waits for an answer: dropped, they have gone.
pub(crate) struct Waiting(CancelToken);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Work for somebody who may go away before it has begun.
pub(crate) fn for_who_waits<F: Future>(work: F) -> (Waiting, impl Future<Output = F::Output>) {
    let gone = CancelToken::new();
    (Waiting(gone.clone()), GONE.scope(gone, work))
}

fn nobody_waits() -> ServiceError {
    ServiceError::refused(ErrorCode::TaskStopped, "whoever asked for it has gone: nothing was begun")
}

/// To be asked before something is begun: whether somebody still waits for it.
///
/// # Errors
/// Whoever asked has gone.
pub(crate) fn is_still_wanted() -> Result<(), ServiceError> {
    match GONE.try_with(CancelToken::is_cancelled) {
        Ok(true) => Err(nobody_waits()),
        // Nobody asked: it is the daemon's own wish.
        Ok(false) | Err(_) => Ok(()),
    }
}

/// Waits for a store, but only so long, and not for somebody who has gone.
pub(crate) async fn in_time<T>(
    time_limit: Duration,
    question: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    let gone = GONE.try_with(CancelToken::clone).unwrap_or_default();
    tokio::select! {
        biased;
        () = gone.cancelled() => Err(nobody_waits()),
        answer = tokio::time::timeout(time_limit, question) => answer.unwrap_or_else(|_| {
            let message = format!("the store gave no answer within {} ms; nothing was begun, try it again", time_limit.as_millis());
            Err(ServiceError::refused(ErrorCode::StoreTimeout, message))
        }),
    }
}

impl Core {
    /// Asks a store something before anything is begun.
    ///
    /// # Errors
    /// What the question met; it took too long, or whoever asked has gone.
    pub(crate) async fn ask_store<T>(
        &self,
        question: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<T, ServiceError> {
        in_time(Duration::from_millis(self.config.store_answer_ms), question).await
    }

    /// The repository of a credential, for a question that somebody waits for: it does not wait for what
    /// tasks may move.
    pub(crate) async fn asked_repository(&self, credential: Uuid) -> Result<Repository, ServiceError> {
        let (repository, _) = self.opened_repository(credential).await?;
        let (store, _) = task_store(Arc::clone(repository.store()), self.retry_policy());
        Ok(repository.with_store(store).with_work(Work::default()))
    }

    /// A manifest, from its store.
    ///
    /// # Errors
    /// There is none, it is damaged, or the store does not answer in time.
    pub(crate) async fn ask_manifest(
        &self,
        credential: Uuid,
        id: &CloudsnapId,
    ) -> Result<Manifest, ServiceError> {
        self.ask_store(Box::pin(async {
            let repository = self.asked_repository(credential).await?;
            Ok(repository.manifest(id).await?)
        }))
        .await
    }

    /// A manifest for something that can begin without its store: if that does not answer soon, the one that
    /// is known here. Manifests never change; if it was deleted meanwhile, whoever reads what it names is
    /// told so.
    ///
    /// # Errors
    /// Those of [`ask_manifest`](Self::ask_manifest).
    pub(crate) async fn manifest_to_begin_with(
        &self,
        credential: Uuid,
        id: &CloudsnapId,
    ) -> Result<Manifest, ServiceError> {
        let (catalog, key) = (Catalog::new(Arc::clone(&self.db), credential), id.manifest_key());
        let known = blocking(move || Ok::<_, ServiceError>(catalog.load(&key))).await?;
        let Some(known) = known.filter(|known| known.id() == *id) else {
            return self.ask_manifest(credential, id).await;
        };
        match tokio::time::timeout(SOON, self.ask_manifest(credential, id)).await {
            Ok(Err(error)) if error.to_api().code == ErrorCode::StoreTimeout => {}
            Ok(answer) => return answer,
            Err(_) => {}
        }
        is_still_wanted()?;
        tracing::info!(cloudsnap = %id, "the store does not answer; the manifest is known here");
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::oneshot;

    /// Does something once a store has answered.
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
    async fn what_nobody_waits_for_is_not_begun_when_the_store_wakes_up() {
        for goes in [true, false] {
            let (answer, answered) = oneshot::channel();
            let done = Arc::new(AtomicBool::new(false));
            let (waiting, work) = for_who_waits(begin(answered, Arc::clone(&done)));
            let work = tokio::spawn(work);
            tokio::task::yield_now().await;
            let waiting = (!goes).then_some(waiting);
            let _ = answer.send(());
            assert_eq!(work.await.unwrap().is_err(), goes);
            assert_eq!(done.load(Ordering::SeqCst), !goes);
            drop(waiting);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_store_is_an_error_after_a_while_and_its_answer_comes_too_late() {
        let (answer, answered) = oneshot::channel();
        let done = Arc::new(AtomicBool::new(false));
        let error = begin(answered, Arc::clone(&done)).await.unwrap_err().to_api();
        assert_eq!(error.code, ErrorCode::StoreTimeout);
        assert!(error.is_retryable() && error.message.contains("30000 ms"), "{error:?}");
        assert!(answer.send(()).is_err(), "somebody still listens");
        assert!(!done.load(Ordering::SeqCst));
    }
}
