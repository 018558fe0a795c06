//! Restore drills: a cloud snapshot is opened as a lazy restore would, its filesystems are checked, and a
//! sample of their files is read. The report with its times and costs is the proof of the drill.
//!
//! A drill writes nothing except its proof: a journal is replayed in memory. It reads through the caches of
//! lazy reads, in memory of its own, and at the lowest priority; drills of a host run one at a time.

mod clone;
mod clone_server;
mod estimate;
mod external_check;
mod image;
mod layout;
mod newest;
pub(crate) mod probe;
pub mod probe_config;
mod probe_step;
mod sample;
mod steps;
pub(crate) mod task;
mod unresolved;

use crate::{
    cloud_snapshots::CloudSnapshots, costs::check_max_cost, error::ServiceError, host::Host, ids::random_id,
    repositories::Repositories, repositories::locate::Purpose, snapshots::Snapshots,
    tasks::requests::check_limits, tasks::runner::Runner, volumes::attachments::Attachments,
    volumes::registry::Registry,
};
use blockd_api::{
    ErrorCode, ProbeName, VolumeRef,
    drills::{
        self as api, DEFAULT_DRILL_FILES, DEFAULT_DRILL_TIMEOUT_S, ListDrills, MAX_DRILL_FILES, MAX_DRILLS,
        StartDrill,
    },
    tasks::{TaskLimits, TaskOwner, TaskStarted},
};
use blockd_catalog::{CredentialRow, Db, DbError, DrillRow, DrillTask, TaskRow, TaskSpec};
use blockd_cloud::{CloudSnapshotId, DrillStage, Manifest};
use clone_server::CloneHost;
use std::sync::Arc;

/// Requests for restore drills.
pub struct Drills {
    pub(crate) admission: Arc<crate::host::Admission>,
    pub(crate) cloud_snapshots: Arc<CloudSnapshots>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) snapshots: Arc<Snapshots>,
}

impl Drills {
    /// Starts a drill.
    ///
    /// # Errors
    /// There is no such cloud snapshot or credential, or a limit is out of range.
    pub async fn start(self: &Arc<Self>, request: &StartDrill) -> Result<TaskStarted, ServiceError> {
        let (task, credential, _) = self.checked(request).await?;
        let _admission = self.admission.lock().await;
        crate::repositories::preflight::check_cancelled()?;
        let mut row = self.row(&request.cloud_snapshot_id, &credential, task, crate::owner::current());
        let configured = row.detail.limits.limit_download_bytes_per_second;
        let asked = request.limits.limit_download_bytes_per_second;
        row.detail.limits = TaskLimits {
            limit_download_bytes_per_second: asked.into_iter().chain(configured).min(),
            ..request.limits
        };
        self.runner.store_and_launch(row, |_| Ok(())).await
    }

    /// Checks the request of a drill; returns its task, its credential and the manifest.
    async fn checked(
        &self,
        request: &StartDrill,
    ) -> Result<(DrillTask, CredentialRow, Manifest), ServiceError> {
        let id = request.cloud_snapshot_id;
        check_limits(request.limits)?;
        let task = drill_task(request.files, request.seed, request.timeout_seconds, &id.to_string())?;
        let (probe, accept_layout) = (self.checked_probe(&request.probe).await?, request.accept_layout);
        let wanted = request.credential.as_ref();
        let credential = self.repositories.credential_with(&id, wanted, Purpose::Read).await?;
        check_max_cost(&self.host.settings, &request.limits, credential.name.as_str())?;
        let manifest = self.repositories.preflight_manifest(credential.uuid, &id).await?;
        Ok((DrillTask { probe, accept_layout, ..task }, credential, manifest))
    }

    /// Returns the probe, if this daemon can run it.
    async fn checked_probe(&self, probe: &Option<ProbeName>) -> Result<Option<ProbeName>, ServiceError> {
        if let Some(name) = probe {
            probe::check(&self.host, &self.clone_host(), name).await?;
        }
        Ok(probe.clone())
    }

    fn row(
        &self,
        id: &CloudSnapshotId,
        credential: &CredentialRow,
        task: DrillTask,
        owner: TaskOwner,
    ) -> TaskRow {
        let mut row = TaskRow::new(TaskSpec::Drill(task), credential.uuid, *id, owner);
        row.detail.volume_name = self.registry.source_name(id, self.host.cluster);
        row.detail.credential_name = credential.name.to_string();
        let limit = self.host.settings.drill_limit_bytes_per_s;
        row.detail.limits.limit_download_bytes_per_second = (limit > 0).then_some(limit);
        row
    }

    fn clone_host(&self) -> CloneHost {
        CloneHost::new(&self.host, &self.attachments)
    }

    /// Returns drills, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list(&self, query: &ListDrills) -> Result<Vec<api::Drill>, ServiceError> {
        let found = self.db.run(|tx| Ok::<_, DbError>((DrillRow::all(tx)?, CredentialRow::all(tx)?)));
        let (rows, credentials) = found.await?;
        let own = self.host.cluster;
        let present = query.volume.as_ref().and_then(|volume| self.registry.find(volume).ok());
        let is_of = |row: &DrillRow, volume: &VolumeRef| {
            let is_present = present
                .as_ref()
                .is_some_and(|entry| row.cloudsnap.cluster == own && row.cloudsnap.volume == entry.id);
            is_present
                || match volume {
                    VolumeRef::Id(id) => row.cloudsnap.volume == *id,
                    VolumeRef::Name(name) => row.volume_name == name.as_str(),
                }
        };
        let prefix = query.id_prefix.as_deref().unwrap_or_default();
        let wanted = rows.iter().filter(|row| {
            row.id.to_string().starts_with(prefix)
                && query.volume.as_ref().is_none_or(|volume| is_of(row, volume))
        });
        let max = query.max.unwrap_or(MAX_DRILLS).min(MAX_DRILLS) as usize;
        Ok(wanted.take(max).map(|row| shown(row, &self.host, &credentials)).collect())
    }
}

/// Returns the task of a drill of an object, with defaults.
///
/// # Errors
/// A limit is out of range.
pub(crate) fn drill_task(
    files: Option<u32>,
    seed: Option<u32>,
    timeout_s: Option<u32>,
    object: &str,
) -> Result<DrillTask, ServiceError> {
    let files = files.unwrap_or(DEFAULT_DRILL_FILES);
    let timeout_s = timeout_s.unwrap_or(DEFAULT_DRILL_TIMEOUT_S);
    if !(1..=MAX_DRILL_FILES).contains(&files) || timeout_s == 0 {
        let message = format!(
            "drill refused on {object}: the sample has 1 to {MAX_DRILL_FILES} files, and the timeout is at least 1 second"
        );
        return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
    }
    let seed = match seed {
        Some(seed) => seed,
        // Any 32 of its bits are random.
        None => (random_id()? & u64::from(u32::MAX)) as u32,
    };
    Ok(DrillTask {
        files,
        seed,
        timeout_s,
        group: None,
        others: Vec::new(),
        probe: None,
        accept_layout: false,
    })
}

/// Converts a drill to the API.
fn shown(row: &DrillRow, host: &Host, credentials: &[CredentialRow]) -> api::Drill {
    let report = &row.report;
    let step = |step: &blockd_cloud::DrillStep| api::DrillStep {
        stage: step.stage,
        outcome: step.outcome,
        elapsed_millis: step.elapsed_ms,
        note: step.note.clone(),
    };
    let rpo_s = row.ended.duration_since(report.created).as_secs();
    api::Drill {
        drill_id: row.id,
        cloud_snapshot_id: row.cloudsnap,
        volume_name: row.volume_name.clone(),
        volume_id: row.cloudsnap.volume,
        credential_id: row.credential,
        credential_name: credentials
            .iter()
            .find(|credential| credential.uuid == row.credential)
            .map(|credential| credential.name.to_string()),
        host: row.host.clone().unwrap_or_else(|| host.node.clone()),
        version: row.version.clone(),
        created_at: report.created,
        ended_at: row.ended,
        passed: row.passed,
        unchecked: report.unchecked().map(ToOwned::to_owned),
        rpo_seconds: u64::try_from(rpo_s).unwrap_or(0),
        first_byte_millis: report.passed_after_ms(DrillStage::FirstByte),
        mounted_millis: report.passed_after_ms(DrillStage::Mount),
        probed_millis: report.passed_after_ms(DrillStage::Probe),
        steps: report.steps.iter().map(step).collect(),
        fetched_bytes: report.fetched_bytes,
        requests: report.requests,
        filesystems: report.filesystems.clone(),
        seed: report.seed,
        files: report.files,
        files_bytes: report.files_bytes,
        findings: report.findings.clone(),
        findings_total: report.findings_total,
    }
}
