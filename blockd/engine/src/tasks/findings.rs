//! Findings of a verification or a restore that skips damage, limited to a readable size.

use blockd_api::tasks::{AffectedCloudsnap, ByteRange, DamageFinding, Findings};
use blockd_cloud::{Damage, VerifyReport};
use blockd_extent::{BlockSet, Extent};

/// Maximum number of listed damages.
const MAX_LISTED: usize = 100;
/// Maximum number of affected cloud snapshots and ranges per damage.
const MAX_AFFECTED: usize = 32;

fn range(extent: Extent) -> ByteRange {
    ByteRange { offset_bytes: extent.offset_bytes(), len_bytes: extent.len_bytes() }
}

fn affected(cloudsnap: &str, blocks: &BlockSet) -> AffectedCloudsnap {
    AffectedCloudsnap {
        cloudsnap: cloudsnap.to_owned(),
        lost_bytes: blocks.len_bytes(),
        ranges: blocks.extents().take(MAX_AFFECTED).map(range).collect(),
    }
}

/// Returns the findings of a verification.
pub(crate) fn of_report(report: &VerifyReport) -> Findings {
    let damaged = report.snapshots.iter().filter(|snapshot| !snapshot.is_sound());
    let damage = report.findings.iter().take(MAX_LISTED).map(|finding| DamageFinding {
        object: finding.object.clone(),
        offset_bytes: finding.offset_bytes,
        what: finding.what.clone(),
        affects: finding
            .affects
            .iter()
            .take(MAX_AFFECTED)
            .map(|one| affected(&one.id.to_string(), &one.blocks))
            .collect(),
    });
    Findings {
        snapshots: report.snapshots.len() as u64,
        damaged_snapshots: damaged.map(|snapshot| snapshot.id.to_string()).collect(),
        objects: report.objects,
        block_bytes: report.block_bytes,
        compared_bytes: 0,
        damage: damage.collect(),
        damage_total: report.findings_total,
    }
}

/// Returns the findings of a restore that skipped damage.
pub(crate) fn of_restore(cloudsnap: &str, damage: &Damage) -> Findings {
    let listed = damage.pieces.iter().take(MAX_LISTED).map(|piece| DamageFinding {
        object: piece.object.clone(),
        offset_bytes: piece.offset_bytes,
        what: piece.what.clone(),
        affects: vec![affected(cloudsnap, &piece.blocks.iter().copied().collect())],
    });
    Findings {
        snapshots: 1,
        damaged_snapshots: vec![cloudsnap.to_owned()],
        damage: listed.collect(),
        damage_total: damage.total,
        ..Findings::default()
    }
}
