//! Secrets that lie elsewhere, before a task does anything: a Vault that is away for a moment is waited for, while nothing is frozen and
//! nobody waits for the task.

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
use tokio::time::Instant;

/// The first pause; each one is twice as long as the one before, up to the longest.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Waits until the secrets of a task's credential can be had, for [`wait_s`](crate::config::SecretsConfig::wait_s) at most.
///
/// # Errors
/// One cannot be had for good, or not in that time; the task is told to stop.
pub(super) async fn wait_for(core: &Core, live: &LiveTask) -> Result<(), ServiceError> {
    let credential = core.credential(Some(&CredentialRef::Id(live.view().credential))).await?;
    let until = Instant::now() + Duration::from_secs(core.config.secrets.wait_s);
    for (reference, _) in references_of(&credential) {
        let found = tokio::select! {
            found = resolve(core, live, reference, until) => found,
            () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
        };
        found.map_err(|error| unresolved(Some(&credential.name), reference, &error))?;
    }
    Ok(())
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
