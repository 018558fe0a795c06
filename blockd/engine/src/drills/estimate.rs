//! Costs of a drill before it runs: those of the last drill of the volume, or an upper bound.

use super::Drills;
use crate::{costs, error::ServiceError, repositories::locate::Purpose};
use blockd_api::{
    costs::{CostEstimate, EstimateDrill},
    format_time,
};
use blockd_catalog::{DrillRow, TaskRow};
use blockd_cloud::{DrillReport, Manifest};
use blockd_store::RequestCounts;
use std::sync::Arc;

/// Length of a proof with a long report.
const PROOF_BYTES: u64 = 64 << 10;
/// Blocks of an index page, which may end earlier for each TiB of the volume.
const PAGE_BLOCKS: u64 = 131_072;
const TIB: u64 = 1 << 40;

/// Returns the requests of a drill that reads all frames, each by itself.
fn upper_bound(manifest: &Manifest) -> RequestCounts {
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

/// Returns the requests of a drill by its report, which has all reads.
fn reported(report: &DrillReport) -> RequestCounts {
    RequestCounts {
        put: 1,
        get: report.requests,
        list: 1,
        bytes_up: PROOF_BYTES,
        bytes_down: report.fetched_bytes,
        ..RequestCounts::default()
    }
}

impl Drills {
    /// Estimates the costs of a drill without a probe.
    ///
    /// # Errors
    /// There is no such cloud snapshot or credential, or the location does not answer.
    pub async fn estimate(self: &Arc<Self>, request: &EstimateDrill) -> Result<CostEstimate, ServiceError> {
        let id = request.cloud_snapshot_id;
        let wanted = request.credential.as_ref();
        let credential = self.repositories.credential_with(&id, wanted, Purpose::Read).await?;
        let uuid = credential.uuid;
        let drills = self.db.run(DrillRow::all).await?;
        let is_of = |row: &&DrillRow| {
            (row.cloudsnap.cluster, row.cloudsnap.volume) == (id.cluster, id.volume) && row.passed
        };
        let last = drills.iter().filter(is_of).find(|row| row.credential == uuid);
        let (counts, basis) = match last {
            Some(drill) => {
                let basis = format!("last drill of the volume, {}", format_time(drill.ended));
                (self.counts_of(drill).await?, basis)
            }
            None => {
                let manifest = self.repositories.preflight_manifest(uuid, &id).await?;
                (upper_bound(&manifest), "upper bound: the volume had no drill at the location".to_owned())
            }
        };
        Ok(costs::estimate(&self.host.settings, &credential, &counts, basis))
    }

    /// Returns the requests of a drill: those of its task, if this host remembers it.
    async fn counts_of(&self, drill: &DrillRow) -> Result<RequestCounts, ServiceError> {
        let id = drill.id;
        let task = self.db.run(move |tx| TaskRow::find(tx, id)).await?;
        Ok(task.map_or_else(|| reported(&drill.report), |task| task.detail.requests))
    }
}
