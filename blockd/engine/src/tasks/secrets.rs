//! Wait of a task for its secrets, before it moves data: a failing secret program is retried, as no caller
//! waits for the task. A backup takes its snapshot before: at the requested point in time, for a local copy
//! that needs no secret, and for all volumes of a group regardless of the order of their secrets.

use crate::{
    error::ServiceError,
    repositories::references::{references_of, unresolved},
    tasks::{LiveTask, Tasks},
};
use blockd_api::{CredentialRef, SecretRef};
use blockd_cloud::Repository;
use blockd_secrets::ReferenceError;
use blockd_store::Requests;
use std::{sync::Arc, time::Duration};
use tokio::{sync::SemaphorePermit, time::Instant};

/// First pause between attempts; doubled up to `LONGEST_PAUSE`.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Maximum number of attempts to take a slot while the secrets are available.
const MAX_ROUNDS: u32 = 8;

/// Waits for the secrets of a task's credential, at most
/// [`secrets_wait_s`](crate::settings::Settings::secrets_wait_s).
///
/// # Errors
/// A secret is unavailable permanently or for this time, or the task is stopped.
pub(super) async fn wait_for(tasks: &Tasks, live: &LiveTask) -> Result<(), ServiceError> {
    let credential = tasks.repositories.credential(Some(&CredentialRef::Id(live.view().credential))).await?;
    let until = Instant::now() + Duration::from_secs(tasks.host.settings.secrets_wait_s);
    for reference in references_of(&credential) {
        let found = tokio::select! {
            found = resolve(tasks, live, reference, until) => found,
            () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
        };
        found.map_err(|error| unresolved(Some(&credential.name), reference, &error))?;
    }
    Ok(())
}

/// Takes a slot to move data, with available secrets. The slot is not held while the task waits for secrets,
/// so that other tasks can use it.
///
/// # Errors
/// Those of [`wait_for`]; a secret was unavailable again after each of `MAX_ROUNDS` waits for a slot; the
/// daemon stops.
pub(crate) async fn slot<'a>(tasks: &'a Tasks, live: &LiveTask) -> Result<SemaphorePermit<'a>, ServiceError> {
    let wait = || wait_for(tasks, live);
    slot_after(wait, || tasks.slot(&live.cancel), || unavailable_secret(tasks, live)).await
}

/// Repeats `wait` and `take` until `check` finds no unavailable secret, at most `MAX_ROUNDS` times.
async fn slot_after<S, W, T, C>(
    wait: impl Fn() -> W,
    take: impl Fn() -> T,
    check: impl Fn() -> C,
) -> Result<S, ServiceError>
where
    W: Future<Output = Result<(), ServiceError>>,
    T: Future<Output = Result<S, ServiceError>>,
    C: Future<Output = Result<Option<ServiceError>, ServiceError>>,
{
    let mut round = 1;
    loop {
        wait().await?;
        let slot = take().await?;
        // The slot may have become free hours later.
        match check().await? {
            None => return Ok(slot),
            Some(error) if round >= MAX_ROUNDS => return Err(error),
            Some(_) => round += 1,
        }
    }
}

/// Returns the error of a temporarily unavailable secret, if there is one.
async fn unavailable_secret(tasks: &Tasks, live: &LiveTask) -> Result<Option<ServiceError>, ServiceError> {
    let credential = tasks.repositories.credential(Some(&CredentialRef::Id(live.view().credential))).await?;
    for reference in references_of(&credential) {
        if let Err(error) = tasks.references.resolve(reference).await
            && error.is_retryable()
        {
            return Ok(Some(unresolved(Some(&credential.name), reference, &error)));
        }
    }
    Ok(None)
}

/// Opens the repository of a task, once its secrets are available.
///
/// # Errors
/// Those of [`wait_for`], and of
/// [`Repositories::task_repository`](crate::repositories::Repositories::task_repository).
pub(crate) async fn repository(
    tasks: &Tasks,
    live: &LiveTask,
) -> Result<(Repository, Arc<Requests>), ServiceError> {
    wait_for(tasks, live).await?;
    tasks.repositories.task_repository(live.view().credential).await
}

async fn resolve(
    tasks: &Tasks,
    live: &LiveTask,
    reference: &SecretRef,
    until: Instant,
) -> Result<(), ReferenceError> {
    let began = Instant::now();
    let mut phase_before = None;
    let mut pause = PAUSE;
    let mut failed: Option<ReferenceError> = None;
    let found = loop {
        let attempt = tasks.references.resolve(reference);
        let error = match &failed {
            // The first attempt has no timeout, regardless of the wait.
            None => attempt.await,
            Some(error) => match tokio::time::timeout_at(until, attempt).await {
                Ok(found) => found,
                Err(_) => break Err(error.clone()),
            },
        };
        let error = match error {
            Ok(_) => break Ok(()),
            Err(error) => error,
        };
        if !error.is_retryable() || Instant::now() >= until {
            break Err(error);
        }
        if phase_before.is_none() {
            phase_before = Some(live.view().detail.phase);
            let most_s = tasks.host.settings.secrets_wait_s;
            tracing::warn!(%reference, %error, most_s, "the task waits for a secret");
            live.detail(|detail| detail.phase = format!("waiting for {reference}"));
            tasks.store_progress(live).await;
        }
        failed = Some(error);
        tokio::time::sleep_until((Instant::now() + pause).min(until)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    if let Some(phase) = phase_before {
        live.detail(|detail| detail.phase = phase);
        if found.is_ok() {
            tracing::info!(%reference, waited_s = began.elapsed().as_secs(), "secret available; the task continues");
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        cell::Cell,
        future::{Ready, ready},
    };

    /// Takes slots while the secrets are unavailable in the first `failures` checks; returns the result with
    /// the number of waits.
    async fn rounds(failures: u32) -> (Result<u32, ServiceError>, u32) {
        let (waits, slots) = (Cell::new(0), Cell::new(0));
        let count = |of: &Cell<u32>| of.replace(of.get() + 1) + 1;
        let wait = || {
            count(&waits);
            ready(Ok(()))
        };
        let check = || -> Ready<Result<Option<ServiceError>, ServiceError>> {
            ready(Ok((slots.get() <= failures).then_some(ServiceError::Stopping)))
        };
        (slot_after(wait, || ready(Ok(count(&slots))), check).await, waits.get())
    }

    #[tokio::test]
    async fn slot_without_secrets_is_retried_and_then_refused() {
        assert!(matches!(rounds(0).await, (Ok(1), 1)));
        assert!(matches!(rounds(2).await, (Ok(3), 3)));
        assert!(matches!(rounds(MAX_ROUNDS - 1).await, (Ok(MAX_ROUNDS), MAX_ROUNDS)));
        assert!(matches!(rounds(MAX_ROUNDS).await, (Err(ServiceError::Stopping), MAX_ROUNDS)));
    }
}
