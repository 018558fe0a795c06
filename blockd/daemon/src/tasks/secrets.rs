//! The secrets of a task, before it moves data: a program that fails for a moment is waited for, while no
//! caller waits for the task. What a backup is of was frozen before that: it is of the moment for which it
//! was asked, its local copy needs no secret, and the volumes of a group do not depend on whose secret comes
//! first.

use super::LiveTask;
use crate::{
    core::Core,
    error::ServiceError,
    references::ReferenceError,
    secrets_elsewhere::{references_of, unresolved},
};
use blockd_api::{CredentialRef, SecretRef};
use blockd_cloud::{Repository, store::Requests};
use std::{sync::Arc, time::Duration};
use tokio::{sync::SemaphorePermit, time::Instant};

/// The first pause; each one is twice as long as the one before, up to the longest.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often a turn is given back because a secret is away again.
const MAX_ROUNDS: u32 = 8;

/// Waits until the secrets of a task's credential can be had, for
/// [`wait_s`](crate::config::SecretsConfig::wait_s) at most.
///
/// # Errors
/// One cannot be had for good, or not in that time; the task is told to stop.
pub(super) async fn wait_for(core: &Core, live: &LiveTask) -> Result<(), ServiceError> {
    let credential = core.credential(Some(&CredentialRef::Id(live.view().credential))).await?;
    let until = Instant::now() + Duration::from_secs(core.config.secrets.wait_s);
    for reference in references_of(&credential) {
        let found = tokio::select! {
            found = resolve(core, live, reference, until) => found,
            () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
        };
        found.map_err(|error| unresolved(Some(&credential.name), reference, &error))?;
    }
    Ok(())
}

/// A turn to move data, with the secrets at hand: a turn is not held while they are waited for, because
/// others could move theirs.
///
/// # Errors
/// Those of [`wait_for`]; the daemon stops.
pub(super) async fn slot<'a>(core: &'a Core, live: &LiveTask) -> Result<SemaphorePermit<'a>, ServiceError> {
    for _ in 1..MAX_ROUNDS {
        wait_for(core, live).await?;
        let slot = core.tasks.slot(&live.cancel).await?;
        // The turn may have come hours later.
        if !is_away(core, live).await? {
            return Ok(slot);
        }
    }
    wait_for(core, live).await?;
    core.tasks.slot(&live.cancel).await
}

/// Whether a secret cannot be had at this moment, and may be in the next.
async fn is_away(core: &Core, live: &LiveTask) -> Result<bool, ServiceError> {
    let credential = core.credential(Some(&CredentialRef::Id(live.view().credential))).await?;
    for reference in references_of(&credential) {
        if core.references.resolve(reference).await.is_err_and(|error| error.is_retryable()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The repository of a task, once its secrets can be had.
///
/// # Errors
/// Those of [`wait_for`], and of [`Core::task_repository`].
pub(super) async fn repository(
    core: &Core,
    live: &LiveTask,
) -> Result<(Repository, Arc<Requests>), ServiceError> {
    wait_for(core, live).await?;
    core.task_repository(live.view().credential).await
}

async fn resolve(
    core: &Core,
    live: &LiveTask,
    reference: &SecretRef,
    until: Instant,
) -> Result<(), ReferenceError> {
    let began = Instant::now();
    let mut phase_before = None;
    let mut pause = PAUSE;
    let mut failed: Option<ReferenceError> = None;
    let found = loop {
        let attempt = core.references.resolve(reference);
        let error = match &failed {
            // The first attempt has all the time that it takes, however short the wait is to be.
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
            let most_s = core.config.secrets.wait_s;
            tracing::warn!(%reference, %error, most_s, "the task waits for a secret");
            live.detail(|detail| detail.phase = format!("waiting for {reference}"));
            core.store_progress(live).await;
        }
        failed = Some(error);
        tokio::time::sleep_until((Instant::now() + pause).min(until)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    if let Some(phase) = phase_before {
        live.detail(|detail| detail.phase = phase);
        if found.is_ok() {
            tracing::info!(%reference, waited_s = began.elapsed().as_secs(), "the secret is there: the task goes on");
        }
    }
    found
}
