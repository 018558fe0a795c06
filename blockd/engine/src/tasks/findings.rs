//! Findings of a verification or a restore that skips damage, limited to a readable size.

use blockd_api::{
    browse::FilePath,
    tasks::{AffectedCloudsnap, ByteRange, DamageFinding, Findings, TaskKind},
};
use blockd_catalog::{DbError, Doubt, ProofRow, TaskRow};
use blockd_cloud::{
    AffectedSnapshot, CloudSnapshotId, Damage, ManifestKey, VerifiedSnapshot, VerifyDepth, VerifyReport,
};
use blockd_extent::{BlockSet, Extent};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Maximum number of listed damages.
const MAX_LISTED: usize = 100;
/// Maximum number of affected cloud snapshots and ranges per damage.
const MAX_AFFECTED: usize = 32;

fn range(extent: Extent) -> ByteRange {
    ByteRange { offset_bytes: extent.offset_bytes(), len_bytes: extent.len_bytes() }
}

pub(crate) fn affected(cloudsnap: &str, blocks: &BlockSet) -> AffectedCloudsnap {
    AffectedCloudsnap {
        cloud_snapshot_id: cloudsnap.to_owned(),
        lost_bytes: blocks.len_bytes(),
        ranges: blocks.extents().take(MAX_AFFECTED).map(range).collect(),
    }
}

/// Returns the findings of a verification.
pub(crate) fn of_report(report: &VerifyReport) -> Findings {
    let damaged = report.snapshots.iter().filter(|snapshot| !snapshot.is_sound());
    let verified: BTreeSet<_> = report.snapshots.iter().map(|snapshot| snapshot.id).collect();
    // The verified ones come first, because the others may be cut.
    let by_request = |affects: &[AffectedSnapshot]| {
        let (first, others): (Vec<_>, Vec<_>) = affects.iter().partition(|one| verified.contains(&one.id));
        let listed = first.into_iter().chain(others).take(MAX_AFFECTED);
        listed.map(|one| affected(&one.id.to_string(), &one.blocks)).collect()
    };
    let damage = report.findings.iter().take(MAX_LISTED).map(|finding| DamageFinding {
        object: finding.object.clone(),
        offset_bytes: finding.offset_bytes,
        cause: finding.what.clone(),
        affects: by_request(&finding.affects),
        files: Vec::new(),
    });
    Findings {
        snapshots: report.snapshots.len() as u64,
        damaged_snapshots: damaged.map(|snapshot| snapshot.id.to_string()).collect(),
        objects: report.objects,
        block_bytes: report.block_bytes,
        compared_bytes: 0,
        repaired_bytes: 0,
        damage: damage.collect(),
        damage_total: report.findings_total,
    }
}

/// Adds the lost blocks of a damaged cloud snapshot that a repair has no source for, and their files.
pub(crate) fn unrecovered(
    findings: &mut Findings,
    cloudsnap: &CloudSnapshotId,
    blocks: &BlockSet,
    files: Vec<FilePath>,
) {
    let id = cloudsnap.to_string();
    findings.damaged_snapshots.push(id.clone());
    findings.damage_total += 1;
    if findings.damage.len() < MAX_LISTED {
        findings.damage.push(DamageFinding {
            object: cloudsnap.manifest_key(),
            offset_bytes: 0,
            cause: "no source has these blocks of its point in time".to_owned(),
            affects: vec![affected(&id, blocks)],
            files,
        });
    }
}

/// Returns the next action for the first damaged cloud snapshot of a verification that is left.
pub(crate) fn repair_hint(
    found: &Findings,
    is_left: impl Fn(&CloudSnapshotId) -> bool,
    location: &str,
    own: Uuid,
) -> Option<String> {
    let damaged = found.damaged_snapshots.iter().filter_map(|id| id.parse::<CloudSnapshotId>().ok());
    let id = damaged.into_iter().find(is_left)?;
    let on = if id.cluster == own { "" } else { " on its own host" };
    Some(format!("blockctl cloudsnap repair {id} --cred-id {location}{on}"))
}

/// Returns the findings of a restore that skipped damage.
pub(crate) fn of_restore(cloudsnap: &str, damage: &Damage) -> Findings {
    let listed = damage.parts.iter().take(MAX_LISTED).map(|part| DamageFinding {
        object: part.object.clone(),
        offset_bytes: part.offset_bytes,
        cause: part.what.clone(),
        affects: vec![affected(cloudsnap, &part.blocks.iter().copied().collect())],
        files: Vec::new(),
    });
    Findings {
        snapshots: 1,
        damaged_snapshots: vec![cloudsnap.to_owned()],
        damage: listed.collect(),
        damage_total: damage.total,
        ..Findings::default()
    }
}

/// Returns true for a cloud snapshot that may be listed but incomplete: it is no base for a backup.
///
/// # Errors
/// The database fails.
pub fn is_in_doubt(tx: &rusqlite::Transaction<'_>, id: &CloudSnapshotId) -> Result<bool, DbError> {
    if Doubt::is_of(tx, id)? {
        return Ok(true);
    }
    let tasks = TaskRow::unfinished(tx)?.into_iter().chain(TaskRow::resumable(tx)?);
    Ok(tasks.into_iter().any(|task| {
        let name = (task.cloudsnap.cluster, task.cloudsnap.volume, task.cloudsnap.snapshot);
        task.kind() == TaskKind::Backup && name == (id.cluster, id.volume, id.snapshot)
    }))
}

/// Returns the proof of each cloud snapshot at a credential and the location that was read, including others
/// that the damage affects.
pub(crate) fn proofs(
    report: &VerifyReport,
    known: &BTreeMap<CloudSnapshotId, ProofRow>,
    (credential, location): (Uuid, Option<Uuid>),
    depth: VerifyDepth,
    now: Timestamp,
) -> Vec<ProofRow> {
    let of = |snapshot: &VerifiedSnapshot| ProofRow {
        credential,
        cloudsnap: snapshot.id,
        verified: now,
        depth,
        sound: snapshot.is_sound(),
        damaged: snapshot.damaged.clone(),
        digest: snapshot.digest,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        location,
    };
    let mut proofs: BTreeMap<CloudSnapshotId, ProofRow> =
        report.snapshots.iter().map(|snapshot| (snapshot.id, of(snapshot))).collect();
    for affected in report.findings.iter().flat_map(|finding| &finding.affects).chain(&report.others) {
        if report.snapshots.iter().any(|snapshot| snapshot.id == affected.id) {
            continue;
        }
        let proof = proofs.entry(affected.id).or_insert_with(|| ProofRow {
            credential,
            cloudsnap: affected.id,
            verified: now,
            depth,
            sound: false,
            damaged: known.get(&affected.id).map(|proof| proof.damaged.clone()).unwrap_or_default(),
            digest: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            location,
        });
        if !known.get(&affected.id).is_some_and(ProofRow::is_total_loss) {
            proof.damaged.union_with(&affected.blocks);
        }
    }
    proofs.into_iter().filter_map(|(id, proof)| proof.after(known.get(&id))).collect()
}

/// Returns true if these blocks are more than what is recorded as lost.
pub(crate) fn loses_more(proof: &ProofRow, blocks: &BlockSet) -> bool {
    !blocks.is_subset(&proof.lost_blocks())
}
