//! Task of a scrub: reads volumes in steps, repairs damage, and keeps its position.

use crate::{
    damaged_files::first_files,
    error::ServiceError,
    events::EventLog,
    health::{self, ComponentHealth},
    host::Host,
    repositories::Repositories,
    scrub::{
        findings::{Listed, MAX_FINDINGS, findings_of},
        read::{Pace, read},
    },
    tasks::{
        LiveTask, Tasks,
        priority::{on_thread, set_background_reader},
        workers::TaskWorkers,
    },
    volumes::registry::{EntryState, Registry, VolumeEntry},
};
use blockd_api::{
    ApiError, ErrorCode,
    events::{EventKind, Severity},
    tasks::{DamageFinding, Findings, TaskStage},
};
use blockd_catalog::{Db, NewEvent, ScrubRow, ScrubTask, TaskRow};
use blockd_cloud::{CloudError, CloudSnapshotId};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet};
use blockd_volume::{LayerDamage, ScrubPosition, ScrubStep, Volume};
use jiff::Timestamp;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

const SECONDS_PER_DAY: u64 = 24 * 3600;
/// Bytes between two stored positions.
const STORE_EVERY_BYTES: u64 = 256 << 20;

/// Maximum number of repaired extents in a message.
const MAX_NAMED_REPAIRS: usize = 3;

/// Cause of damage that no cloud snapshot repairs.
const NO_SOURCE: &str = "no known cloud snapshot provably has the content of the blocks";

/// Work of scrubs.
pub struct ScrubWork {
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) task_workers: Arc<TaskWorkers>,
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
    /// Damage of the current volume, which a repair may end.
    listed: Vec<Listed>,
    /// Bytes left of the budget.
    left_bytes: u64,
    pace: Pace,
    /// Cause of damage that a repair left, of the last volume with some.
    obstacle: Option<String>,
}

pub(crate) async fn run(
    work: &Arc<ScrubWork>,
    live: &Arc<LiveTask>,
    asked: ScrubTask,
) -> Result<TaskRow, ServiceError> {
    let only = live.view().volume;
    let entries = match only {
        None => work.by_last_scrub().await?,
        Some(id) => vec![
            work.registry
                .by_id(id)
                .ok_or_else(|| ServiceError::refused(ErrorCode::VolumeNotFound, "the volume was deleted"))?,
        ],
    };
    // No volume is held before its turn: a deleted one must free its space.
    let bytes_of = |entry: &Arc<VolumeEntry>| entry.content().map_or(0, |content| content.scrub_bytes);
    let total: u64 = entries.iter().map(bytes_of).sum();
    let budget = asked.budget_bytes.unwrap_or(u64::MAX);
    live.update(|row| row.state = TaskStage::Active);
    live.detail(|detail| {
        detail.phase = "data".to_owned();
        (detail.bytes_total, detail.bytes_processed) = (total.min(budget), 0);
    });
    let pace = Pace::new(&work.task_workers);
    let mut run = Run {
        work,
        live,
        asked,
        findings: Findings::default(),
        listed: Vec::new(),
        left_bytes: budget,
        pace,
        obstacle: None,
    };
    let (mut remaining, mut failure) = (0, None);
    for entry in &entries {
        let Ok(volume) = entry.volume().inspect_err(|_| work.report_damage(entry)) else { continue };
        let scrubbed = run.scrub_and_repair(&volume, entry).await;
        // After a failure, no repair was tried.
        run.findings.damage.extend(run.listed.drain(..).map(|one| one.finding));
        work.report_damage(entry);
        match scrubbed {
            Err(error) if error.is_cancelled() => return Err(error),
            Err(error) if only.is_none() && entry.volume().is_err() => {
                tracing::info!(volume = %entry.id, %error, "a volume was deleted during its scrub");
            }
            Err(error) => {
                tracing::warn!(volume = %entry.id, %error, "scrub of a volume failed");
                failure.get_or_insert(error);
            }
            Ok(()) => remaining += damaged_bytes(&volume),
        }
    }
    let (findings, obstacle) = (run.findings, run.obstacle);
    live.detail(|detail| detail.findings = Some(findings));
    if let Some(error) = failure {
        return Err(error);
    }
    if remaining == 0 {
        return work.tasks.finish(live, |_| Ok(())).await;
    }
    let cause = obstacle.map(|obstacle| format!(": {obstacle}")).unwrap_or_default();
    let row = live.view();
    let message =
        format!("{remaining} bytes of {} are damaged on the disk and not repaired{cause}", row.object());
    let name = row.detail.volume_name.map_or_else(String::new, |name| format!(" {name}"));
    let hint = match asked.repair {
        true => "write the blocks again, or restore the files from a backup; replace the disk".to_owned(),
        false => format!("blockctl volume scrub{name} --repair --wait"),
    };
    Err(ServiceError::Refused(ApiError::new(ErrorCode::VolumeFailed, message).with_hint(hint)))
}

/// Names the first repaired extents of a volume and their sources.
fn repairs_of(entry: &VolumeEntry, repaired: &[(BlockSet, CloudSnapshotId)]) -> String {
    let extents =
        || repaired.iter().flat_map(|(blocks, from)| blocks.extents().map(move |extent| (extent, from)));
    let first = extents().take(MAX_NAMED_REPAIRS).map(|(extent, from)| {
        format!(
            "volume {} at byte {} ({} bytes) from {from}",
            entry.name,
            extent.offset_bytes(),
            extent.len_bytes()
        )
    });
    let first = first.collect::<Vec<_>>().join(", ");
    match extents().count().saturating_sub(MAX_NAMED_REPAIRS) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Returns the bytes of the listed damaged blocks of a volume.
pub(crate) fn damaged_bytes(volume: &Volume) -> u64 {
    volume.damage().iter().map(|damage| damage.blocks.len_bytes()).sum()
}

impl Run<'_> {
    async fn scrub_and_repair(
        &mut self,
        volume: &Arc<Volume>,
        entry: &VolumeEntry,
    ) -> Result<(), ServiceError> {
        let mut found = Vec::new();
        if self.left_bytes > 0 {
            self.scrub(volume, entry, &mut found).await?;
        }
        if self.asked.repair && !volume.damage().is_empty() {
            self.repair(volume, entry).await?;
        }
        self.list_known(volume, entry, &found).await?;
        let left = volume.damage();
        for mut listed in std::mem::take(&mut self.listed) {
            if self.asked.repair {
                listed.note_repair(&left);
            }
            self.findings.damage.push(listed.finding);
        }
        Ok(())
    }

    /// Reads a volume, to its end or that of the budget.
    async fn scrub(
        &mut self,
        volume: &Arc<Volume>,
        entry: &VolumeEntry,
        found: &mut Vec<LayerDamage>,
    ) -> Result<(), ServiceError> {
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
            let step = self.read(volume, at).await?;
            self.note(volume, entry, &step).await?;
            self.work.host.failpoints.reached("scrub read")?;
            found.extend(step.found);
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
            tokio::select! {
                () = tokio::time::sleep_until(self.pace.next.into()) => {}
                () = self.live.cancel.cancelled() => {}
            }
        }
    }

    /// Reads a volume on a thread of low priority, to the next report.
    async fn read(&mut self, volume: &Arc<Volume>, at: ScrubPosition) -> Result<ScrubStep, ServiceError> {
        let own = self.live.view().detail.limits.limit_download_bytes_per_second;
        let daily = (self.work.host.settings.scrub_bytes_per_day / SECONDS_PER_DAY).max(1);
        let rates = [own, self.asked.background.then_some(daily)];
        self.pace.bytes_per_second = rates.into_iter().flatten().min();
        let (volume, budget, mut pace) = (Arc::clone(volume), self.left_bytes, self.pace.clone());
        let cancel = self.live.cancel.clone();
        let work = move || (read(&volume, at, budget, &mut pace, &cancel), pace);
        let (step, pace) = on_thread("scrub", set_background_reader, work).await?;
        self.pace = pace;
        Ok(step?)
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

    /// Records the result of a step, and raises an event for new damage.
    async fn note(
        &mut self,
        volume: &Arc<Volume>,
        entry: &VolumeEntry,
        step: &ScrubStep,
    ) -> Result<(), ServiceError> {
        let found: u64 = step.found.iter().map(|damage| damage.blocks.len_bytes()).sum();
        self.work.totals.read.fetch_add(step.read_bytes, Ordering::Relaxed);
        self.work.totals.damaged.fetch_add(found, Ordering::Relaxed);
        self.findings.block_bytes += step.read_bytes;
        let findings = self.list(volume, entry, &step.found).await?;
        let mut listed = self.findings.clone();
        listed.damage.extend(self.listed.iter().map(|one| one.finding.clone()));
        self.live.detail(|detail| {
            detail.bytes_processed += step.read_bytes;
            detail.findings = Some(listed);
        });
        let Some(first) = findings.first() else { return Ok(()) };
        let mut message = format!(
            "{found} bytes of volume {} are damaged on the disk: {} at byte {}: {}",
            entry.name, first.object, first.offset_bytes, first.cause
        );
        message.push_str(&first_files(&findings));
        if step.unlisted_blocks > 0 {
            let bytes = step.unlisted_blocks * BLOCK_SIZE_BYTES;
            message.push_str(&format!("; the list is full: reads of {bytes} bytes return altered data"));
        }
        tracing::error!(volume = %volume.id(), "{message}");
        self.event(entry, Severity::Error, EventKind::VolumeDamaged, message).await?;
        self.work.report_damage(entry);
        Ok(())
    }

    /// Adds damage to the findings; returns its findings.
    async fn list(
        &mut self,
        volume: &Arc<Volume>,
        entry: &VolumeEntry,
        layers: &[LayerDamage],
    ) -> Result<Vec<DamageFinding>, ServiceError> {
        let mut found = Vec::new();
        for damage in layers {
            found.extend(findings_of(volume, entry, damage, &self.live.cancel).await?);
        }
        self.findings.damage_total += found.len() as u64;
        let findings = found.iter().map(|one| one.finding.clone()).collect();
        let room = MAX_FINDINGS.saturating_sub(self.findings.damage.len() + self.listed.len());
        self.listed.extend(found.into_iter().take(room));
        Ok(findings)
    }

    /// Adds the damage that an earlier scrub has found and that is left.
    async fn list_known(
        &mut self,
        volume: &Arc<Volume>,
        entry: &VolumeEntry,
        found: &[LayerDamage],
    ) -> Result<(), ServiceError> {
        let mut known = volume.damage();
        for damage in &mut known {
            let of_layer = found.iter().filter(|found| found.file == damage.file);
            of_layer.for_each(|found| damage.blocks.subtract(&found.blocks));
        }
        known.retain(|damage| !damage.blocks.is_empty());
        self.list(volume, entry, &known).await.map(drop)
    }

    /// Repairs the damage of a volume as far as cloud snapshots prove its content.
    async fn repair(&mut self, volume: &Arc<Volume>, entry: &VolumeEntry) -> Result<(), ServiceError> {
        self.live.detail(|detail| detail.phase = "repair".to_owned());
        let (repaired, obstacle) = self.work.repair(self.live, volume, entry).await?;
        if !volume.damage().is_empty() {
            self.obstacle = Some(obstacle.unwrap_or_else(|| NO_SOURCE.to_owned()));
        }
        self.live.detail(|detail| detail.phase = "data".to_owned());
        let bytes = repaired.iter().map(|(blocks, _)| blocks.len_bytes()).sum::<u64>();
        if bytes == 0 {
            return Ok(());
        }
        self.findings.repaired_bytes += bytes;
        self.work.totals.repaired.fetch_add(bytes, Ordering::Relaxed);
        let what = repairs_of(entry, &repaired);
        let message = format!("{bytes} damaged bytes were repaired from cloud snapshots: {what}");
        self.live.detail(|detail| {
            let before = detail.note.take().map_or_else(String::new, |note| format!("{note}; "));
            detail.note = Some(format!("{before}{what}"));
        });
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

impl ScrubWork {
    /// Returns all volumes, the one with the oldest complete scrub first, so that budgets reach each of them.
    async fn by_last_scrub(&self) -> Result<Vec<Arc<VolumeEntry>>, ServiceError> {
        let rows = self.db.run(ScrubRow::all).await?;
        let completed: HashMap<_, _> = rows.into_iter().map(|row| (row.volume, row.completed)).collect();
        let mut entries = self.registry.all();
        entries.sort_by_key(|entry| (completed.get(&entry.id).copied().flatten(), entry.id));
        Ok(entries)
    }

    /// Updates the reported problem of a volume.
    pub(crate) fn report_damage(&self, entry: &VolumeEntry) {
        let of = entry.id.to_string();
        let bytes = match entry.view().state {
            // Reported after its check.
            EntryState::Closed(closed) if closed.content().is_none() => return,
            _ => entry.known(damaged_bytes, |content| content.damaged_bytes).unwrap_or(0),
        };
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
