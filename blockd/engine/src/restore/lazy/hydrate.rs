//! Task that hydrates a lazy volume.
//!
//! An outage of the store does not fail the task: it waits and continues. Damaged blocks are skipped until
//! the others are fetched, and then the task fails. Fetched blocks stay, so an interrupted run resumes. A
//! completely hydrated volume becomes a normal one and releases its backing snapshot.

use crate::{
    error::{ServiceError, blocking},
    host::Host,
    restore::lazy::LazyVolumes,
    tasks::{LiveTask, Tasks},
    volumes::{
        merger::Wake,
        registry::{EntryState, Registry, VolumeEntry},
    },
};
use blockd_api::{ErrorCode, tasks::TaskStage};
use blockd_catalog::{LazyRow, TaskRow};
use blockd_extent::VolumeId;
use blockd_volume::{FetchFailure, Volume, VolumeError};
use futures::StreamExt;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Maximum bytes that one step fetches.
const STEP_BYTES: u64 = 4 << 20;
/// Approximate bytes per round without a bandwidth limit; each round ends with a progress update.
const ROUND_BYTES: u64 = 16 * STEP_BYTES;
/// Maximum steps per round: steps are short where scattered extents are preferred.
const MAX_STEPS: u64 = 256;
/// Pause while other fetches are in flight, or after a store error; doubled up to `LONGEST_PAUSE`.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Work of hydrations of lazy volumes.
pub struct HydrationWork {
    pub(crate) host: Arc<Host>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) merger: Arc<Wake>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) tasks: Arc<Tasks>,
}

pub(crate) async fn run(work: &Arc<HydrationWork>, live: &Arc<LiveTask>) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let id = row.volume.ok_or_else(|| ServiceError::Internal("a hydration without a volume".into()))?;
    let entry = work.registry.by_id(id).ok_or_else(|| stopped_by_deletion(live, id))?;
    refuse_if_gone(live, &entry)?;
    let volume = entry.volume()?;
    live.update(|row| {
        row.state = TaskStage::Active;
        row.detail.phase = "hydrating".into();
    });
    let (before, mut pause) = (row.detail.bytes_downloaded, PAUSE);
    crate::restore::lazy::metadata::prefer_metadata(&work.lazy, &volume);
    // Damage that an earlier run found may have been repaired since.
    volume.retry_refused();
    let source = work.lazy.lazy_sources.lock().get(&id).cloned();
    if let Some(source) = &source {
        source.recheck();
        work.lazy.end_deleted_backing(id);
    }
    let mut damage = None;
    loop {
        let step = tokio::select! {
            step = fetch_some(work, live, &volume) => step,
            () = live.cancel.cancelled() => Err(ServiceError::Stopping),
        };
        update_progress(work, live, &volume, before).await;
        refuse_if_gone(live, &entry)?;
        match step {
            Ok(true) => pause = PAUSE,
            Ok(false) => {
                if end(&volume).await? {
                    break;
                }
                let refused_bytes = volume.hydration().map_or(0, |hydration| hydration.refused_bytes);
                if refused_bytes > 0 {
                    return Err(incomplete(refused_bytes, damage));
                }
                wait(live, &mut pause).await?;
            }
            Err(error)
                if is_damage(&error) && source.as_ref().is_some_and(|source| source.deleted().is_some()) =>
            {
                return Err(error);
            }
            Err(error) if is_damage(&error) => {
                tracing::warn!(volume = %id, %error, "hydration skips damaged blocks");
                live.detail(|detail| detail.note = Some(error.to_api().message));
                damage.get_or_insert(error);
            }
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) if error.is_retryable() => {
                let phase = error.waiting_phase();
                tracing::info!(volume = %id, %error, "hydration {phase}");
                live.detail(|detail| {
                    detail.phase = phase.into();
                    detail.note = Some(error.to_api().message);
                });
                wait(live, &mut pause).await?;
                live.detail(|detail| detail.phase = "hydrating".into());
            }
            Err(error) => return Err(error),
        }
    }
    finish(work, live, &entry).await
}

/// Ends a hydration as stopped: the deletion of its volume was requested.
fn stopped_by_deletion(live: &LiveTask, id: VolumeId) -> ServiceError {
    live.stop();
    ServiceError::refused(ErrorCode::VolumeNotFound, format!("volume {id} was deleted"))
}

/// Refuses to hydrate a volume that is deleted or fails.
fn refuse_if_gone(live: &LiveTask, entry: &VolumeEntry) -> Result<(), ServiceError> {
    match entry.view().state {
        EntryState::Up(_) | EntryState::Closed(_) => Ok(()),
        EntryState::Deleting => Err(stopped_by_deletion(live, entry.id)),
        _ => {
            entry.volume()?;
            Ok(())
        }
    }
}

/// Returns the error of a hydration that skipped damaged blocks.
fn incomplete(refused_bytes: u64, damage: Option<ServiceError>) -> ServiceError {
    let message = format!("{refused_bytes} bytes of the cloud snapshot cannot be read; the rest was fetched");
    match damage.map(|damage| damage.to_api()) {
        Some(damage) => ServiceError::refused(damage.code, format!("{message}: {}", damage.message)),
        None => ServiceError::refused(ErrorCode::StoreFailed, message),
    }
}

/// Returns true for permanent damage of a part; the rest can be fetched nevertheless.
fn is_damage(error: &ServiceError) -> bool {
    match error {
        ServiceError::Volume(VolumeError::NotFetched { failure: FetchFailure::Source(error), .. }) => {
            !error.is_retryable()
        }
        _ => false,
    }
}

/// Fetches some of the missing blocks; returns false if all remaining ones are in flight already.
async fn fetch_some(
    work: &HydrationWork,
    live: &LiveTask,
    volume: &Arc<Volume>,
) -> Result<bool, ServiceError> {
    // Other tasks may move data while this one waits for a store.
    let _slot = work.tasks.slot(&live.cancel).await?;
    let limit = work.host.settings.hydration_limit_bytes_per_s;
    let (enough, most_at_once) = match limit {
        0 => (ROUND_BYTES, usize::MAX),
        // About one second of bandwidth; each step may fetch `STEP_BYTES`.
        limit => (limit.min(ROUND_BYTES), usize::try_from(limit / STEP_BYTES).unwrap_or(usize::MAX)),
    };
    let (started, so_far) = (Instant::now(), AtomicU64::new(0));
    let fetches = futures::stream::iter(0..MAX_STEPS)
        .take_while(|_| std::future::ready(so_far.load(Relaxed) < enough))
        .map(|_| {
            let (volume, so_far) = (Arc::clone(volume), &so_far);
            async move {
                let fetched = blocking(move || volume.hydrate_next()).await;
                // Without remaining blocks, no further step is started.
                let more = fetched.as_ref().map_or(0, |bytes| bytes.unwrap_or(enough));
                so_far.fetch_add(more, Relaxed);
                fetched
            }
        });
    let concurrency = work.host.settings.hydration_concurrency.clamp(1, most_at_once.max(1));
    let results: Vec<_> = fetches.buffer_unordered(concurrency).collect().await;
    let (mut fetched_bytes, mut failed) = (0, None);
    for result in results {
        match result {
            Ok(bytes) => fetched_bytes += bytes.unwrap_or(0),
            // Damage is reported once only; other errors recur.
            Err(error) if failed.is_none() || is_damage(&error) => failed = Some(error),
            Err(_) => {}
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    if limit > 0 {
        let due = Duration::from_secs_f64(fetched_bytes as f64 / limit as f64);
        tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
    }
    Ok(fetched_bytes > 0)
}

/// Pauses with exponential backoff until the task is cancelled.
pub(crate) async fn wait(live: &LiveTask, pause: &mut Duration) -> Result<(), ServiceError> {
    tokio::select! {
        () = tokio::time::sleep(*pause) => {}
        () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
    }
    *pause = (*pause * 2).min(LONGEST_PAUSE);
    Ok(())
}

/// Updates the progress of the task from the volume and its source.
async fn update_progress(work: &HydrationWork, live: &LiveTask, volume: &Volume, downloaded_before: u64) {
    let requests = work.lazy.lazy_sources.lock().get(&volume.id()).map(|source| source.requests());
    let hydration = volume.hydration();
    live.detail(|detail| {
        if let Some(hydration) = hydration {
            detail.bytes_total = hydration.total_bytes;
            detail.bytes_processed = hydration.done_bytes;
        } else {
            detail.bytes_processed = detail.bytes_total;
        }
        if let Some(requests) = requests {
            detail.bytes_downloaded = downloaded_before + requests.bytes_down;
            detail.requests = requests;
        }
    });
    work.tasks.store_progress(live).await;
}

async fn end(volume: &Arc<Volume>) -> Result<bool, ServiceError> {
    let volume = Arc::clone(volume);
    blocking(move || -> Result<bool, VolumeError> {
        match volume.end_hydration() {
            Err(error) if error.is_retryable() => {
                tracing::warn!(volume = %volume.id(), %error, "ending the hydration failed; retrying");
                Ok(false)
            }
            other => other,
        }
    })
    .await
}

async fn finish(
    work: &Arc<HydrationWork>,
    live: &LiveTask,
    entry: &VolumeEntry,
) -> Result<TaskRow, ServiceError> {
    let id = entry.id;
    live.detail(|detail| (detail.bytes_processed, detail.note) = (detail.bytes_total, None));
    work.host.failpoints.reached("hydration ended")?;
    let (credential, cloudsnap) = (live.view().credential, live.view().cloudsnap);
    let done = work.tasks.finish(live, move |tx| LazyRow::remove(tx, id)).await?;
    work.lazy.drop_source(id);
    work.lazy.leases.release(credential, cloudsnap, id);
    // Its layers can be merged with the base now.
    work.merger.wake();
    tracing::info!(volume = %id, name = %entry.name, "volume hydrated");
    Ok(done)
}
