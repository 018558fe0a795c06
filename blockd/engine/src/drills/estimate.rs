//! Costs of a drill before it runs: those of the last drill of the volume, or of a read of all frames.

use super::{Drills, newest::GroupDrill};
use crate::{costs, error::ServiceError};
use blockd_api::{
    List,
    costs::CostEstimate,
    drills::{StartDrill, StartGroupDrill},
    format_time,
};
use blockd_catalog::{CredentialRow, DrillRow, DrillTask, TaskRow, TaskSpec};
use blockd_cloud::Manifest;
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
    /// Estimates the costs of a drill.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub async fn estimate(
        self: &Arc<Self>,
        request: &StartDrill,
    ) -> Result<List<CostEstimate>, ServiceError> {
        let (task, credential, manifest) = self.checked(request).await?;
        Ok(vec![self.estimate_of(&task, &credential, &manifest).await?].into())
    }

    /// Estimates the costs of the drills of a group, one for each volume.
    ///
    /// # Errors
    /// Those of [`start_group`](Self::start_group), or the location does not answer.
    pub async fn estimate_group(
        self: &Arc<Self>,
        request: &StartGroupDrill,
    ) -> Result<List<CostEstimate>, ServiceError> {
        let GroupDrill { task, point, credential, .. } = self.checked_group(request).await?;
        let mut all = Vec::with_capacity(point.len());
        for id in point {
            let manifest = self.repositories.preflight_manifest(credential.uuid, &id).await?;
            all.push(self.estimate_of(&task, &credential, &manifest).await?);
        }
        all.sort_by(|one, other| one.volume_name.cmp(&other.volume_name));
        Ok(all.into())
    }

    async fn estimate_of(
        &self,
        task: &DrillTask,
        credential: &CredentialRow,
        manifest: &Manifest,
    ) -> Result<CostEstimate, ServiceError> {
        let (uuid, id) = (credential.uuid, manifest.id());
        let drills = self.db.run(DrillRow::all).await?;
        let is_of = |row: &&DrillRow| {
            (row.cloudsnap.cluster, row.cloudsnap.volume) == (id.cluster, id.volume) && row.passed
        };
        let mut last = None;
        for drill in drills.iter().filter(is_of).filter(|row| row.credential == uuid) {
            if let Some(counts) = self.counts_of(drill, task).await? {
                let basis = format!("last drill of the volume, {}", format_time(drill.ended));
                last = Some((counts, basis));
                break;
            }
        }
        let (counts, basis) = match last {
            Some(found) => found,
            None => {
                let why = "this host remembers no drill of the volume with these options at the location";
                (all_frames(manifest), format!("each frame is read once: {why}"))
            }
        };
        let volume = self.registry.source_name(&id, self.host.cluster);
        Ok(costs::estimate(&self.host.settings, credential, volume, &counts, basis))
    }

    /// Returns the requests of the task of a drill, if this host remembers it and its sample and probe were
    /// those of the estimate.
    async fn counts_of(
        &self,
        drill: &DrillRow,
        estimated: &DrillTask,
    ) -> Result<Option<RequestCounts>, ServiceError> {
        let id = drill.id;
        let task = self.db.run(move |tx| TaskRow::find(tx, id)).await?;
        let is_like = |task: &TaskRow| match &task.spec {
            TaskSpec::Drill(drill) => {
                let is_same = drill.files == estimated.files && drill.probe == estimated.probe;
                is_same && drill.group.is_none()
            }
            _ => false,
        };
        Ok(task.filter(is_like).map(|task| task.detail.requests))
    }
}
