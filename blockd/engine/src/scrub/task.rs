//! Task of a scrub: reads volumes in steps, repairs damage, and keeps its position.

use crate::{
    error::{ServiceError, blocking},
    events::EventLog,
    health::{self, ComponentHealth},
    host::Host,
    repositories::Repositories,
    tasks::{LiveTask, Tasks},
    volumes::registry::{Registry, VolumeEntry},
};
use blockd_api::{
    ErrorCode,
    events::{EventKind, Severity},
    tasks::{DamageFinding, Findings, TaskStage},
};
use blockd_catalog::{Db, NewEvent, ScrubRow, ScrubTask, TaskRow};
use blockd_cloud::CloudError;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet, Extent};
use blockd_volume::{LayerDamage, ScrubPosition, ScrubStep, Volume};
use jiff::Timestamp;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const SECONDS_PER_DAY: u64 = 24 * 3600;
/// Bytes between two stored positions.
const STORE_EVERY_BYTES: u64 = 256 << 20;
/// Maximum number of listed damaged extents.
const MAX_FINDINGS: usize = 100;

/// Work of scrubs.
pub struct ScrubWork {
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) tasks: Arc<Tasks>,
    /// Totals since the start of the daemon.
    pub(crate) totals: ScrubTotals,
}

/// Totals of scrubs since the start of the daemon, in bytes.
#[derive(Debug, Default)]
pub struct ScrubTotals {
    /// Read bytes.
    pub read: AtomicU64,
    /// Damaged bytes found.
    pub damaged: AtomicU64,
    /// Repaired bytes.
    pub repaired: AtomicU64,
}

/// Running scrub.
struct Run<'a> {
    work: &'a Arc<ScrubWork>,
    live: &'a Arc<LiveTask>,
    asked: ScrubTask,
    findings: Findings,
    /// Bytes left of the budget.
    left_bytes: u64,
}

pub(crate) async fn run(
    work: &Arc<ScrubWork>,
    live: &Arc<LiveTask>,
    asked: ScrubTask,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let entries = match row.volume {
        None => work.registry.all(),
        Some(id) => vec![
            work.registry
                .by_id(id)
                .ok_or_else(|| ServiceError::refused(ErrorCode::VolumeNotFound, "the volume was deleted"))?,
        ],
    };
    let volumes: Vec<_> =
        entries.into_iter().filter_map(|entry| Some((entry.volume().ok()?, entry))).collect();
    let total: u64 = volumes.iter().map(|(volume, _)| volume.scrub_bytes()).sum();
    let budget = asked.budget_bytes.unwrap_or(u64::MAX);
    live.update(|row| row.state = TaskStage::Active);
    live.detail(|detail| {
        detail.phase = "data".to_owned();
        (detail.bytes_total, detail.bytes_processed) = (total.min(budget), 0);
    });
    let mut run = Run { work, live, asked, findings: Findings::default(), left_bytes: budget };
    let mut remaining = 0;
    for (volume, entry) in &volumes {
        if run.left_bytes > 0 {
            run.scrub(volume, entry).await?;
        }
        if asked.repair && !volume.damage().is_empty() {
            run.repair(volume, entry).await?;
        }
        remaining += damaged_bytes(volume);
        work.report_damage(entry);
    }
    let findings = run.findings;
    live.detail(|detail| detail.findings = Some(findings));
    if remaining == 0 {
        return work.tasks.finish(live, |_| Ok(())).await;
    }
    let message = format!("{remaining} bytes are damaged on the disk and not repaired");
    Err(ServiceError::refused(ErrorCode::VolumeFailed, message))
}

/// Returns the bytes of the listed damaged blocks of a volume.
pub(crate) fn damaged_bytes(volume: &Volume) -> u64 {
    volume.damage().iter().map(|damage| damage.blocks.len_bytes()).sum()
}

impl Run<'_> {
    /// Reads a volume, to its end or that of the budget.
    async fn scrub(&mut self, volume: &Arc<Volume>, entry: &VolumeEntry) -> Result<(), ServiceError> {
        let stored = self.work.db.run(ScrubRow::all).await?.into_iter().find(|row| row.volume == entry.id);
        let is_continued = self.asked.background || self.asked.budget_bytes.is_some();
        let mut row = ScrubRow {
            volume: entry.id,
            epoch: ScrubPosition::START.epoch,
            block: ScrubPosition::START.block,
            completed: stored.and_then(|stored| stored.completed),
        };
        if let Some(stored) = stored.filter(|_| is_continued) {
            (row.epoch, row.block) = (stored.epoch, stored.block);
        }
        let mut unstored_bytes = 0;
        loop {
            self.check_cancelled(&row).await?;
            let at = ScrubPosition { epoch: row.epoch, block: row.block };
            let (started, read_from) = (Instant::now(), Arc::clone(volume));
            let step = blocking(move || read_from.scrub_step(at)).await?;
            self.note(volume, entry, &step).await?;
            let Some(next) = step.next else {
                (row.epoch, row.block) = (ScrubPosition::START.epoch, ScrubPosition::START.block);
                row.completed = Some(Timestamp::now());
                return self.store(row).await;
            };
            (row.epoch, row.block) = (next.epoch, next.block);
            unstored_bytes += step.read_bytes;
            self.left_bytes = self.left_bytes.saturating_sub(step.read_bytes);
            if self.left_bytes == 0 {
                return self.store(row).await;
            }
            if unstored_bytes >= STORE_EVERY_BYTES {
                self.store(row).await?;
                unstored_bytes = 0;
            }
            self.pause(step.read_bytes, started).await;
        }
    }

    async fn store(&self, row: ScrubRow) -> Result<(), ServiceError> {
        Ok(self.work.db.run(move |tx| row.put(tx)).await?)
    }

    /// Returns an error after a stop of the task or the daemon.
    async fn check_cancelled(&self, row: &ScrubRow) -> Result<(), ServiceError> {
        if !self.live.cancel.is_cancelled() {
            return Ok(());
        }
        self.store(*row).await?;
        Err(CloudError::Cancelled.into())
    }

    /// Waits after a step: as long as the step took, so that guests have half of the disk's time, and as long
    /// as the rate requires.
    async fn pause(&self, bytes: u64, started: Instant) {
        let took = started.elapsed();
        let own = self.live.view().detail.limits.limit_download_bytes_per_second;
        let daily = (self.work.host.settings.scrub_bytes_per_day / SECONDS_PER_DAY).max(1);
        let rate = [own, self.asked.background.then_some(daily)].into_iter().flatten().min();
        let due = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate as f64));
        tokio::select! {
            () = tokio::time::sleep(due.saturating_sub(took).max(took)) => {}
            () = self.live.cancel.cancelled() => {}
        }
    }

    /// Records the result of a step, and raises an event for new damage.
    async fn note(
        &mut self,
        volume: &Volume,
        entry: &VolumeEntry,
        step: &ScrubStep,
    ) -> Result<(), ServiceError> {
        let found: u64 = step.found.iter().map(|damage| damage.blocks.len_bytes()).sum();
        self.work.totals.read.fetch_add(step.read_bytes, Ordering::Relaxed);
        self.work.totals.damaged.fetch_add(found, Ordering::Relaxed);
        self.findings.block_bytes += step.read_bytes;
        let findings = step.found.iter().flat_map(|damage| findings_of(entry, damage));
        let findings: Vec<_> = findings.collect();
        self.findings.damage_total += findings.len() as u64;
        let room = MAX_FINDINGS.saturating_sub(self.findings.damage.len());
        let first = findings.first().cloned();
        self.findings.damage.extend(findings.into_iter().take(room));
        let listed = self.findings.clone();
        self.live.detail(|detail| {
            detail.bytes_processed += step.read_bytes;
            detail.findings = Some(listed);
        });
        let Some(first) = first else { return Ok(()) };
        let mut message = format!(
            "{found} bytes of volume {} are damaged on the disk: {} at byte {}: {}",
            entry.name, first.object, first.offset_bytes, first.cause
        );
        if step.unlisted_blocks > 0 {
            let bytes = step.unlisted_blocks * BLOCK_SIZE_BYTES;
            message.push_str(&format!("; the list is full: reads of {bytes} bytes return altered data"));
        }
        tracing::error!(volume = %volume.id(), "{message}");
        self.event(entry, Severity::Error, EventKind::VolumeDamaged, message).await?;
        self.work.report_damage(entry);
        Ok(())
    }

    /// Repairs the damage of a volume as far as cloud snapshots prove its content.
    async fn repair(&mut self, volume: &Arc<Volume>, entry: &VolumeEntry) -> Result<(), ServiceError> {
        self.live.detail(|detail| detail.phase = "repair".to_owned());
        let bytes = self.work.repair(self.live, volume, entry).await?;
        self.live.detail(|detail| detail.phase = "data".to_owned());
        if bytes == 0 {
            return Ok(());
        }
        self.findings.repaired_bytes += bytes;
        self.work.totals.repaired.fetch_add(bytes, Ordering::Relaxed);
        let message =
            format!("{bytes} damaged bytes of volume {} were repaired from cloud snapshots", entry.name);
        tracing::info!(volume = %volume.id(), "{message}");
        self.event(entry, Severity::Info, EventKind::VolumeRepaired, message).await
    }

    async fn event(
        &self,
        entry: &VolumeEntry,
        severity: Severity,
        kind: EventKind,
        message: String,
    ) -> Result<(), ServiceError> {
        let event =
            NewEvent { task: Some(self.live.id), ..NewEvent::new(Timestamp::now(), severity, kind, message) };
        let event = event.of_volume(entry.id, Some(entry.name.clone()));
        self.work.db.run(move |tx| event.insert(tx)).await?;
        self.work.events.wake();
        Ok(())
    }
}

/// Describes the damaged extents of a layer.
fn findings_of(entry: &VolumeEntry, damage: &LayerDamage) -> Vec<DamageFinding> {
    let snapshot = entry.snapshots().iter().find(|point| point.epoch >= damage.epoch).map(|point| point.id);
    let of = snapshot.map_or_else(|| "no snapshot".to_owned(), |id| format!("snapshot {id}"));
    let mut checksums = damage.blocks.clone();
    checksums.subtract(&damage.unreadable);
    let describe = |blocks: &BlockSet, cause: &str| -> Vec<DamageFinding> {
        let finding = |extent: Extent| DamageFinding {
            object: format!("layer {} of volume {}", damage.file, entry.name),
            offset_bytes: extent.offset_bytes(),
            cause: format!("{} bytes {cause}; the first snapshot with them: {of}", extent.len_bytes()),
            affects: vec![],
        };
        blocks.extents().map(finding).collect()
    };
    let mut findings = describe(&damage.unreadable, "cannot be read");
    findings.extend(describe(&checksums, "differ from their checksum"));
    findings.sort_by_key(|finding| finding.offset_bytes);
    findings
}

impl ScrubWork {
    /// Updates the reported problem of a volume.
    pub(crate) fn report_damage(&self, entry: &VolumeEntry) {
        let of = entry.id.to_string();
        let bytes = entry.volume().map_or(0, |volume| damaged_bytes(&volume));
        if bytes == 0 {
            self.health.clear(health::VOLUME_DAMAGE, &of);
            return;
        }
        let cause =
            format!("{bytes} bytes of volume {} are damaged on the disk: reads of them fail", entry.name);
        let action = format!(
            "repair them from a backup with `blockctl volume scrub {} --repair`, or write them again; replace the disk",
            entry.name
        );
        self.health.note(health::VOLUME_DAMAGE, &of, cause, action);
    }
}
