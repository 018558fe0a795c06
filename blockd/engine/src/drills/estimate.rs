//! Costs of a drill before it runs: those of the last drill of the volume, or of a read of all frames.

use super::Drills;
use crate::{costs, error::ServiceError, repositories::locate::Purpose};
use blockd_api::{
    List,
    costs::{CostEstimate, EstimateDrill, EstimateGroupDrill},
    drills::DEFAULT_DRILL_FILES,
    format_time,
};
use blockd_catalog::{CredentialRow, DrillRow, TaskRow, TaskSpec};
use blockd_cloud::{CloudSnapshotId, Manifest};
use blockd_store::RequestCounts;
use std::sync::Arc;

/// Length of a proof with a long report.
const PROOF_BYTES: u64 = 64 << 10;
/// Blocks of an index page, which may end earlier for each TiB of the volume.
const PAGE_BLOCKS: u64 = 131_072;
const TIB: u64 = 1 << 40;

/// Returns the requests of a drill that reads all frames, each by itself.
fn all_frames(manifest: &Manifest) -> RequestCounts {
    let deltas = || manifest.deltas();
    let frames: u64 = deltas().map(|delta| delta.frames).sum();
    let pages: u64 = deltas()
        .map(|delta| {
            2 + (delta.data_blocks + delta.reference_blocks) / PAGE_BLOCKS + manifest.size_bytes / TIB
        })
        .sum();
    RequestCounts {
        put: 1,
        get: 1 + pages + frames,
        list: 1,
        bytes_up: PROOF_BYTES,
        bytes_down: PROOF_BYTES
            + deltas().map(|delta| delta.stored_bytes + delta.index.len_bytes).sum::<u64>(),
        ..RequestCounts::default()
    }
}

impl Drills {
    /// Estimates the costs of a drill with default options.
    ///
    /// # Errors
    /// There is no such cloud snapshot or credential, or the location does not answer.
    pub async fn estimate(
        self: &Arc<Self>,
        request: &EstimateDrill,
    ) -> Result<List<CostEstimate>, ServiceError> {
        let id = request.cloud_snapshot_id;
        let wanted = request.credential.as_ref();
        let credential = self.repositories.credential_with(&id, wanted, Purpose::Read).await?;
        Ok(vec![self.estimate_of(id, &credential).await?].into())
    }

    /// Estimates the costs of the drills of a group with default options, one for each volume.
    ///
    /// # Errors
    /// The group has no volume; no point in time is complete at the location, or it does not answer.
    pub async fn estimate_group(
        self: &Arc<Self>,
        request: &EstimateGroupDrill,
    ) -> Result<List<CostEstimate>, ServiceError> {
        let (_, point, credential) =
            self.newest_of_group(&request.group, request.credential.as_ref()).await?;
        let mut all = Vec::with_capacity(point.len());
        for id in point {
            all.push(self.estimate_of(id, &credential).await?);
        }
        all.sort_by(|one, other| one.volume_name.cmp(&other.volume_name));
        Ok(all.into())
    }

    async fn estimate_of(
        &self,
        id: CloudSnapshotId,
        credential: &CredentialRow,
    ) -> Result<CostEstimate, ServiceError> {
        let uuid = credential.uuid;
        let drills = self.db.run(DrillRow::all).await?;
        let is_of = |row: &&DrillRow| {
            (row.cloudsnap.cluster, row.cloudsnap.volume) == (id.cluster, id.volume) && row.passed
        };
        let mut last = None;
        for drill in drills.iter().filter(is_of).filter(|row| row.credential == uuid) {
            if let Some(counts) = self.counts_of(drill).await? {
                let basis = format!("last drill of the volume, {}", format_time(drill.ended));
                last = Some((counts, basis));
                break;
            }
        }
        let (counts, basis) = match last {
            Some(found) => found,
            None => {
                let manifest = self.repositories.preflight_manifest(uuid, &id).await?;
                let why = "this host remembers no drill of the volume with default options at the location";
                (all_frames(&manifest), format!("each frame is read once: {why}"))
            }
        };
        let volume = self.registry.source_name(&id, self.host.cluster);
        Ok(costs::estimate(&self.host.settings, credential, volume, &counts, basis))
    }

    /// Returns the requests of the task of a drill, if this host remembers it and it had the options of the
    /// estimate.
    async fn counts_of(&self, drill: &DrillRow) -> Result<Option<RequestCounts>, ServiceError> {
        let id = drill.id;
        let task = self.db.run(move |tx| TaskRow::find(tx, id)).await?;
        let is_like = |task: &TaskRow| match &task.spec {
            TaskSpec::Drill(drill) => {
                drill.files == DEFAULT_DRILL_FILES && drill.probe.is_none() && drill.group.is_none()
            }
            _ => false,
        };
        Ok(task.filter(is_like).map(|task| task.detail.requests))
    }
}
