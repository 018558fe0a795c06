//! The task that fetches the rest of a lazy volume.
//!
//! It never gives up because a store is gone: it waits and goes on. What was fetched stays, so a run that was cut off goes
//! on where it was. When all is there, the volume becomes one like any other and lets go of its cloud snapshot.

use crate::{
    core::Core,
    db::{LazyRow, TaskRow, TaskState},
    error::{ServiceError, blocking},
    registry::{EntryState, VolumeEntry},
    tasks::LiveTask,
};
use blockd_api::ErrorCode;
use blockd_volume::{Volume, VolumeError};
use futures::StreamExt;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The most that one step fetches.
const STEP_BYTES: u64 = 4 << 20;
/// Steps between two looks at how far it is.
const STEPS_AT_ONCE: u64 = 16;
/// How long to wait for what others fetch, or for a store that failed; twice as long each time, up to the second.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

pub(crate) async fn run(core: &Arc<Core>, live: &Arc<LiveTask>) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let id = row.volume.ok_or_else(|| ServiceError::Internal("a hydration without a volume".into()))?;
    let gone = || ServiceError::refused(ErrorCode::VolumeNotFound, format!("volume {id} was deleted"));
    let entry = core.registry.by_id(id).ok_or_else(gone)?;
    let volume = entry.volume()?;
    live.update(|row| {
        row.state = TaskState::Active;
        row.detail.phase = "hydrating".into();
    });
    let (before, mut pause) = (row.detail.bytes_downloaded, PAUSE);
    loop {
        let step = tokio::select! {
            step = fetch_some(core, &volume) => step,
            () = core.stopping.cancelled() => Err(ServiceError::Stopping),
        };
        show(core, live, &volume, before).await;
        if !matches!(entry.view().state, EntryState::Up(_)) {
            return Err(gone());
        }
        match step {
            Ok(true) => pause = PAUSE,
            Ok(false) => {
                if end(&volume).await? {
                    break;
                }
                wait(core, &mut pause).await?;
            }
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) if error.is_retryable() => {
                tracing::info!(volume = %id, %error, "the hydration waits");
                live.detail(|detail| {
                    detail.phase = "waiting for the store".into();
                    detail.note = Some(error.to_api().message);
                });
                wait(core, &mut pause).await?;
                live.detail(|detail| detail.phase = "hydrating".into());
            }
            Err(error) => return Err(error),
        }
    }
    finish(core, live, &entry).await
}

/// Fetches some of what is not there; `false` if nothing was left that is not on its way.
async fn fetch_some(core: &Core, volume: &Arc<Volume>) -> Result<bool, ServiceError> {
    // Others may move data while this one waits for a store.
    let _slot = core.tasks.slot(&core.stopping).await?;
    let limit = core.config.hydration_limit_bytes_per_s;
    let steps = match limit {
        0 => STEPS_AT_ONCE,
        // About a second's worth.
        limit => (limit / STEP_BYTES).clamp(1, STEPS_AT_ONCE),
    };
    let started = Instant::now();
    let fetches = futures::stream::iter(0..steps).map(|_| {
        let volume = Arc::clone(volume);
        blocking(move || volume.hydrate_next())
    });
    let concurrency = core.config.hydration_concurrency;
    let results: Vec<_> = fetches.buffer_unordered(concurrency).collect().await;
    let mut fetched_bytes = 0;
    for result in results {
        fetched_bytes += result?.unwrap_or(0);
    }
    if limit > 0 {
        let due = Duration::from_secs_f64(fetched_bytes as f64 / limit as f64);
        tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
    }
    Ok(fetched_bytes > 0)
}

async fn wait(core: &Core, pause: &mut Duration) -> Result<(), ServiceError> {
    tokio::select! {
        () = tokio::time::sleep(*pause) => {}
        () = core.stopping.cancelled() => return Err(ServiceError::Stopping),
    }
    *pause = (*pause * 2).min(LONGEST_PAUSE);
    Ok(())
}

/// Says how far it is.
async fn show(core: &Core, live: &LiveTask, volume: &Volume, downloaded_before: u64) {
    let requests = core.lazy_sources.lock().get(&volume.id()).map(|source| source.requests());
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
    core.store_progress(live).await;
}

async fn end(volume: &Arc<Volume>) -> Result<bool, ServiceError> {
    let volume = Arc::clone(volume);
    blocking(move || -> Result<bool, VolumeError> {
        match volume.end_hydration() {
            Err(error) if error.is_retryable() => {
                tracing::warn!(volume = %volume.id(), %error, "the end of the hydration waits");
                Ok(false)
            }
            other => other,
        }
    })
    .await
}

async fn finish(core: &Arc<Core>, live: &LiveTask, entry: &VolumeEntry) -> Result<TaskRow, ServiceError> {
    let id = entry.id;
    live.detail(|detail| (detail.bytes_processed, detail.note) = (detail.bytes_total, None));
    core.reached("hydration ended")?;
    let done = core.finish(live, move |tx| LazyRow::remove(tx, id)).await?;
    core.lazy_sources.lock().remove(&id);
    // Its layers can be merged with what it began as.
    core.merger.wake();
    tracing::info!(volume = %id, name = %entry.name, "the volume is hydrated");
    Ok(done)
}
