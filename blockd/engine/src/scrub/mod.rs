//! Scrubs: requests, and the background scrub. It reads the local data of all volumes at the rate of a daily
//! budget, the volume with the oldest complete scrub first.

mod files;
mod findings;
mod read;
mod repair;
pub mod task;

use crate::{
    error::ServiceError,
    health,
    host::Host,
    ids::random_id,
    scrub::task::ScrubWork,
    tasks::{Tasks, runner::Runner},
    volumes::registry::{Registry, VolumeEntry},
};
use blockd_api::{
    ErrorCode,
    tasks::{StartScrub, TaskKind, TaskLimits, TaskStarted},
};
use blockd_catalog::{Db, ScrubRow, ScrubTask, TaskRow, TaskSpec};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::Volume;
use jiff::{SignedDuration, Timestamp};
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;

/// Minimum time between two background scrubs of a volume, regardless of the budget.
const SCRUB_AGAIN_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// Requests of scrubs.
pub struct Scrubs {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) scrub_work: Arc<ScrubWork>,
    pub(crate) tasks: Arc<Tasks>,
}

impl Scrubs {
    /// Starts a scrub of a volume, or of all volumes.
    ///
    /// # Errors
    /// There is no such volume, it cannot be used, or the budget is zero.
    pub async fn start_scrub(&self, request: &StartScrub) -> Result<TaskStarted, ServiceError> {
        if request.budget_bytes == Some(0) || request.limit_bytes_per_second == Some(0) {
            let message = "the budget and the limit of a scrub must not be zero";
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        }
        let entry = request.volume.as_ref().map(|volume| self.registry.find(volume)).transpose()?;
        if let Some(entry) = &entry {
            entry.volume()?;
        }
        let asked =
            ScrubTask { budget_bytes: request.budget_bytes, repair: request.repair, background: false };
        self.begin(entry.as_deref(), asked, request.limit_bytes_per_second).await
    }

    async fn begin(
        &self,
        entry: Option<&VolumeEntry>,
        asked: ScrubTask,
        limit_bytes_per_s: Option<u64>,
    ) -> Result<TaskStarted, ServiceError> {
        let none = CloudSnapshotId {
            cluster: self.host.cluster,
            volume: VolumeId::from_u64(1),
            snapshot: SnapshotId::from_u64(random_id()?),
            incremental: false,
        };
        let mut row = TaskRow::new(TaskSpec::Scrub(asked), Uuid::nil(), none, crate::owner::current());
        row.volume = entry.map(|entry| entry.id);
        row.detail.volume_name = entry.map(|entry| entry.name.clone());
        row.detail.limits =
            TaskLimits { limit_download_bytes_per_second: limit_bytes_per_s, ..TaskLimits::default() };
        self.runner.store_and_launch(row, |_| Ok(())).await
    }

    /// Starts the background scrub of the volume with the oldest complete scrub, unless a scrub is running.
    ///
    /// # Errors
    /// The database fails.
    pub async fn continue_in_background(&self) -> Result<(), ServiceError> {
        if self.host.settings.scrub_bytes_per_day == 0 {
            return Ok(());
        }
        if self.tasks.unfinished_tasks().await?.iter().any(|task| task.kind() == TaskKind::Scrub) {
            return Ok(());
        }
        let rows: HashMap<VolumeId, ScrubRow> =
            self.db.run(ScrubRow::all).await?.into_iter().map(|row| (row.volume, row)).collect();
        let now = Timestamp::now();
        let before = now - SCRUB_AGAIN_AFTER;
        // A later one is of a clock that was set back since.
        let completed = |entry: &Arc<VolumeEntry>| {
            rows.get(&entry.id).and_then(|row| row.completed).filter(|at| *at <= now)
        };
        let has_data = |entry: &Arc<VolumeEntry>| {
            // A volume that is not checked yet has its turn later: this runs periodically.
            let bytes = entry.known(Volume::scrub_bytes, |content| content.scrub_bytes);
            entry.view().failure().is_none() && bytes.is_some_and(|bytes| bytes > 0)
        };
        let due = self.registry.all().into_iter();
        let next = due
            .filter(|entry| completed(entry).is_none_or(|at| at < before) && has_data(entry))
            .min_by_key(|entry| (completed(entry), entry.id));
        if let Some(entry) = next {
            let asked = ScrubTask { budget_bytes: None, repair: true, background: true };
            self.begin(Some(&entry), asked, None).await?;
        }
        Ok(())
    }

    /// Updates the reported problems of all volumes, and removes those of deleted ones.
    pub fn report_damage(&self) {
        let is_there = |id: &str| id.parse().is_ok_and(|id| self.registry.by_id(id).is_some());
        self.scrub_work.health.retain(health::VOLUME_DAMAGE, is_there);
        for entry in self.registry.all() {
            self.scrub_work.report_damage(&entry);
        }
    }
}
