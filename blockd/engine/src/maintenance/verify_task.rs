//! Verification: reads cloud snapshots and records a proof for each.
//!
//! Damage of a verified cloud snapshot fails the task with all findings; damage that only other cloud
//! snapshots have is an event. The next backup based on a damaged one uploads the damaged blocks again.

use crate::{
    backup::task,
    error::{ALTERED_BLOCKS_HINT, ServiceError, blocking, spawned},
    fingerprints,
    host::Host,
    maintenance::{
        compare::{Comparison, DiffBase},
        plan::chain_of,
        replaced::{replaced_note, replaced_ones},
    },
    proofs::{MAX_PUBLISHED_AT_ONCE, Proofs},
    repositories::{Repositories, limits::limited},
    snapshots::Snapshots,
    tasks::{
        LiveTask, Tasks,
        findings::{self, loses_more, proofs, repair_hint},
        secrets,
    },
    volumes::registry::Registry,
};
use blockd_api::{
    ApiError, ErrorCode, SnapshotName, VolumeName,
    events::{EventKind, Severity},
};
use blockd_catalog::{
    Chain, Db, DbError, DbManifestCache, NewEvent, ProofRow, SnapshotRow, SnapshotState, TaskRow, VerifyTask,
};
use blockd_cloud::{
    AffectedSnapshot, BlockCheck, CloudSnapshotId, ManifestFilter, ManifestKey, Progress, Repository,
    VerifyDepth, VerifyFinding, VerifyOptions, VerifyReport,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet};
use blockd_store::Bandwidth;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use uuid::Uuid;

const SECONDS_PER_DAY: u64 = 24 * 3600;
/// Maximum number of extents that an error names.
const MAX_NAMED_EXTENTS: usize = 8;

/// Work of verifications.
pub struct VerifyWork {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tasks: Arc<Tasks>,
}

pub(crate) async fn run(
    work: &Arc<VerifyWork>,
    live: &Arc<LiveTask>,
    what: VerifyTask,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let _slot = match what.background {
        // It must not delay a backup, and it need not wait for one.
        true => None,
        false => Some(secrets::slot(&work.tasks, live).await?),
    };
    let (repository, requests) = secrets::repository(&work.tasks, live).await?;
    let repository = live.limited(&repository, &requests);
    let repository = paced(work, repository, what);
    // Before the first read: the results are about no other location.
    let location = work.repositories.location_now(row.credential).await;
    let progress = Arc::new(Progress::new(requests));
    live.begin(Arc::clone(&progress));
    work.tasks.store_progress(live).await;
    let manifest_cache = DbManifestCache::new(Arc::clone(&work.db), row.credential);
    let ids = match what.all {
        // The bytes that prove the newest one of a chain prove all of it.
        false if what.background => {
            let (catalog, newest) = (manifest_cache.clone(), row.cloudsnap);
            blocking(move || Ok::<_, ServiceError>(chain_of(&catalog, newest)?)).await?
        }
        false => vec![row.cloudsnap],
        true => {
            let scope = ManifestFilter::default();
            let known = work.repositories.known_before(row.credential, &scope).await?;
            let listed = repository.list_manifests(&scope, &manifest_cache).await?;
            // Nothing is damaged in the empty mount point of an unmounted disk.
            if listed.is_empty() {
                work.repositories.prove_location(row.credential, &repository).await?;
            }
            let keys = listed.iter().map(|item| item.key.clone()).collect();
            work.repositories
                .forget_deleted_backups(row.credential, &repository, known, &keys, false)
                .await?;
            listed.into_iter().filter_map(|listed| listed.id).collect()
        }
    };
    let against = compared_with(work, &row, what, &repository).await?;
    let options = VerifyOptions {
        depth: what.depth,
        download_concurrency: if what.background { 1 } else { work.host.settings.download_concurrency },
        cpu_threads: if what.background { 1 } else { work.host.settings.cpu_threads },
    };
    let (check, meant) = (against.clone(), row.cloudsnap);
    let check_of = move |id: &CloudSnapshotId| {
        check.clone().filter(|_| *id == meant).map(|against| against as Arc<dyn BlockCheck>)
    };
    let (slots_of, cancel) = (repository.clone(), live.cancel.clone());
    let report = spawned(async move {
        blockd_cloud::verify(&repository, &ids, &options, &check_of, &manifest_cache, progress, &cancel).await
    })
    .await;
    let seen = finish_comparison(against, report.is_ok()).await;
    work.repositories.note_key_slots(row.credential, &slots_of).await;
    if let Ok(report) = &report {
        work.repositories.end_slot_problems(row.credential, &report.slots);
    }
    drop_own_snapshot(work, &row).await;
    let report = report?;
    if report.snapshots.is_empty() && !what.all {
        let message = format!("there is no cloud snapshot {}", row.cloudsnap);
        return Err(ServiceError::refused(ErrorCode::CloudsnapNotFound, message));
    }
    record(work, live, (what.depth, location), report, seen?, &slots_of).await
}

/// Ends the comparison with the volume; returns its result if the verification is done.
async fn finish_comparison(
    against: Option<Arc<DiffBase>>,
    done: bool,
) -> Result<Option<Comparison>, ServiceError> {
    let Some(against) = against else { return Ok(None) };
    blocking(move || -> Result<Option<Comparison>, ServiceError> {
        let seen = against.finish();
        if !done {
            return Ok(None);
        }
        seen.map(Some).map_err(|error| {
            let message = format!("comparison failed on the volume: {error}");
            ServiceError::refused(ErrorCode::VolumeFailed, message)
        })
    })
    .await
}

/// Records the findings and proofs, and ends the task. Its error is damage of a verified cloud snapshot, of
/// a key slot, or of the volume.
async fn record(
    work: &VerifyWork,
    live: &LiveTask,
    (depth, location): (VerifyDepth, Option<Uuid>),
    mut report: VerifyReport,
    seen: Option<Comparison>,
    repository: &Repository,
) -> Result<TaskRow, ServiceError> {
    let row = live.view();
    let Comparison { differing, altered, compared_blocks, .. } = seen.unwrap_or_default();
    add_differences(&mut report, row.cloudsnap, &differing);
    // Blocks that were not compared are proven as by a full verification.
    let depth =
        if altered.is_empty() || !differing.is_empty() { depth } else { depth.min(VerifyDepth::Full) };
    let credential = row.credential;
    let known = work.db.run(move |tx| ProofRow::of_repository(tx, credential)).await?;
    let known: BTreeMap<CloudSnapshotId, ProofRow> =
        known.into_iter().map(|proof| (proof.cloudsnap, proof)).collect();
    let recorded = compare_with_recorded(&mut report, &known);
    let manifests = DbManifestCache::new(Arc::clone(&work.db), credential);
    fingerprints::forget_reported(&work.host.data_dir, &manifests, &report);
    let proofs = proofs(&report, &known, (row.credential, location), depth, Timestamp::now());
    let mut found = findings::of_report(&report);
    // Blocks of the volume are compared with content that the digest covers, too.
    found.compared_bytes = recorded.max(compared_blocks * BLOCK_SIZE_BYTES);
    live.detail(|detail| detail.findings = Some(found.clone()));
    let replaced = replaced_ones(work, live, &report).await?;
    if let Some(note) = replaced_note(&replaced) {
        live.detail(|detail| detail.note = Some(note));
    }
    let is_sound = report.slots.is_empty()
        && report.snapshots.iter().all(|one| one.is_sound() || replaced.contains(&one.id));
    // A failed verification is an event of its own.
    let event = if is_sound { damage_of_others(work, &row, &report, &known) } else { None };
    let put = proofs.clone();
    let stored = work.db.run(move |tx| -> Result<(), DbError> {
        put.iter().try_for_each(|proof| proof.put(tx))?;
        event.map_or(Ok(()), |event| event.insert(tx))
    });
    stored.await?;
    publish(work, live, repository, proofs).await;
    let altered = altered_blocks(row.detail.volume_name.as_ref(), &altered);
    match (is_sound, altered) {
        (true, None) => work.tasks.finish(live, |_| Ok(())).await,
        (true, Some(what)) => {
            let volume = row.detail.volume_name.as_ref().map_or("VOLUME", VolumeName::as_str);
            let hint = ALTERED_BLOCKS_HINT.replace("VOLUME", volume);
            let error = ApiError::new(ErrorCode::VolumeFailed, what).with_hint(hint);
            Err(ServiceError::Refused(error))
        }
        (false, altered) => {
            let parts: Vec<_> = std::iter::once(summary(&report)).chain(altered).collect();
            let error = ApiError::new(ErrorCode::CloudsnapDamaged, parts.join("; "));
            let is_left = |id: &CloudSnapshotId| !replaced.contains(id);
            let hint = repair_hint(&found, is_left, &row.detail.credential_name, work.host.cluster);
            Err(ServiceError::Refused(hint.into_iter().fold(error, ApiError::with_hint)))
        }
    }
}

/// Names the blocks of a volume that do not match their checksums; `None` if there are none.
fn altered_blocks(volume: Option<&VolumeName>, altered: &BlockSet) -> Option<String> {
    let first = altered.extents().take(MAX_NAMED_EXTENTS);
    let at: Vec<_> =
        first.map(|extent| format!("{} at offset {}", extent.len_blocks, extent.offset_bytes())).collect();
    let more = if altered.extents().nth(MAX_NAMED_EXTENTS).is_some() { ", …" } else { "" };
    let what = match altered.len_blocks() {
        0 => return None,
        1 => "1 block does not match its checksum".to_owned(),
        count => format!("{count} blocks do not match their checksums"),
    };
    let volume = volume.map_or_else(|| "volume".to_owned(), |name| format!("volume {name}"));
    Some(format!("comparison failed on {volume}: {what}: {}{more}", at.join(", ")))
}

/// Publishes the first results, unless the task is stopped. The maintenance publishes the others, and those
/// that the location does not take now.
async fn publish(work: &VerifyWork, live: &LiveTask, repository: &Repository, mut proofs: Vec<ProofRow>) {
    proofs.truncate(MAX_PUBLISHED_AT_ONCE as usize);
    let credential = live.view().credential;
    tokio::select! {
        published = work.proofs.publish(repository, proofs) => {
            if let Err(error) = published {
                tracing::warn!(%credential, %error, "publishing proofs failed; maintenance tries again");
            }
        }
        () = live.cancel.cancelled() => {}
    }
}

/// Returns the event of damage that only cloud snapshots outside of the verification have; `None` if all of
/// it was known.
fn damage_of_others(
    work: &VerifyWork,
    row: &TaskRow,
    report: &VerifyReport,
    known: &BTreeMap<CloudSnapshotId, ProofRow>,
) -> Option<NewEvent> {
    let is_new = |other: &&AffectedSnapshot| {
        known.get(&other.id).is_none_or(|proof| proof.sound || loses_more(proof, &other.blocks))
    };
    let new: Vec<_> = report.others.iter().filter(is_new).collect();
    let first = new.first()?.id;
    let more = match new.len() {
        1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    let object = report.findings.iter().find(|finding| finding.affects.iter().any(|one| one.id == first));
    let cause = object.map_or_else(String::new, |finding| {
        format!(": object {} at byte {}: {}", finding.object, finding.offset_bytes, finding.what)
    });
    let message = format!("a verification of others found cloud snapshot {first}{more} damaged{cause}");
    let own_cluster = work.host.cluster;
    Some(NewEvent {
        volume_id: (first.cluster == own_cluster).then_some(first.volume),
        volume: work.registry.source_name(&first, own_cluster),
        credential_id: Some(row.credential),
        credential: Some(row.detail.credential_name.clone()),
        task: Some(row.id),
        cloudsnap: Some(first),
        ..NewEvent::new(Timestamp::now(), Severity::Error, EventKind::DamageFound, message)
    })
}

/// Describes the first damage of a verified cloud snapshot, or of a key slot if all of them are sound. It
/// searches the report, because the stored findings are limited.
fn summary(report: &VerifyReport) -> String {
    let damaged: BTreeSet<CloudSnapshotId> =
        report.snapshots.iter().filter(|one| !one.is_sound()).map(|one| one.id).collect();
    let is_meant = |finding: &&VerifyFinding| match damaged.is_empty() {
        true => finding.affects.is_empty(),
        false => finding.affects.iter().any(|one| damaged.contains(&one.id)),
    };
    let first = report.findings.iter().find(is_meant).or(report.findings.first());
    let first = first.map_or_else(String::new, |finding| {
        format!(": object {} is damaged at byte {}: {}", finding.object, finding.offset_bytes, finding.what)
    });
    match damaged.len() {
        0 => format!("no cloud snapshot is damaged, but a key slot was{first}"),
        1 if report.snapshots.len() == 1 => format!("the cloud snapshot is damaged{first}"),
        count => format!("{count} of {} cloud snapshots are damaged{first}", report.snapshots.len()),
    }
}

/// Limits a background verification to its budget.
fn paced(work: &VerifyWork, repository: Repository, what: VerifyTask) -> Repository {
    if !what.background {
        return repository;
    }
    let bytes_per_s = (work.host.settings.verify_bytes_per_day / SECONDS_PER_DAY).max(1);
    limited(&repository, Arc::new(Bandwidth::new(None, Some(bytes_per_s))))
}

/// Returns the current volume for a comparison of the blocks that did not change since the backup. They are
/// known for the newest backup of a volume only.
async fn compared_with(
    work: &Arc<VerifyWork>,
    row: &TaskRow,
    what: VerifyTask,
    repository: &Repository,
) -> Result<Option<Arc<DiffBase>>, ServiceError> {
    let (Some(volume), Some(snapshot), VerifyDepth::Deep, false) =
        (row.volume, row.snapshot, what.depth, what.all)
    else {
        return Ok(None);
    };
    let credential = row.credential;
    let chain = work.db.run(move |tx| Chain::find(tx, volume, credential)).await?;
    let Some(chain) = chain.filter(|chain| chain.cloudsnap == row.cloudsnap) else { return Ok(None) };
    let Some(entry) = work.registry.by_id(volume) else { return Ok(None) };
    let Ok(volume) = entry.volume() else { return Ok(None) };
    let size_bytes = match repository.manifest(&row.cloudsnap).await {
        Ok(manifest) => manifest.size_bytes,
        // The verification reports its problem.
        Err(_) => return Ok(None),
    };
    let rows = work.db.run(move |tx| SnapshotRow::all(tx, None)).await?;
    let frozen = match rows.into_iter().find(|row| row.id == snapshot && row.state == SnapshotState::Ready) {
        Some(frozen) => frozen,
        None => {
            let name: SnapshotName = format!("verify-{}", row.id).parse()?;
            work.snapshots.freeze(&entry, snapshot, name).await?
        }
    };
    let changes = blocking(move || -> Result<_, ServiceError> {
        let since = volume.changes(Some(chain.epoch), frozen.epoch)?;
        let all = volume.changes(None, frozen.epoch)?;
        Ok(DiffBase::new(volume.view(snapshot)?, &since, all, size_bytes))
    });
    match changes.await {
        Ok(against) => Ok(Some(Arc::new(against))),
        Err(error) => {
            tracing::warn!(%error, "comparison with the volume skipped");
            Ok(None)
        }
    }
}

/// Deletes the snapshot that was taken for the comparison.
async fn drop_own_snapshot(work: &Arc<VerifyWork>, row: &TaskRow) {
    let Some(snapshot) = row.snapshot else { return };
    let marked = work.db.run(move |tx| SnapshotRow::set_state(tx, snapshot, SnapshotState::Deleting)).await;
    if let Err(error) = marked {
        tracing::warn!(%error, "marking the snapshot of the verification for deletion failed");
        return;
    }
    if let Err(error) = task::drop_snapshot_of(&work.snapshots, row).await {
        tracing::warn!(%error, "deleting the snapshot of the verification failed; the next start retries");
    }
}

/// Adds blocks that are intact in the store but differ from the volume.
fn add_differences(report: &mut VerifyReport, id: CloudSnapshotId, differing: &BlockSet) {
    if differing.is_empty() {
        return;
    }
    report.findings_total += 1;
    report.findings.push(VerifyFinding {
        object: id.manifest_key(),
        offset_bytes: 0,
        what: format!(
            "{} blocks differ from the volume, where they are unchanged since the backup",
            differing.len_blocks()
        ),
        affects: vec![AffectedSnapshot { id, blocks: differing.clone() }],
    });
    if let Some(snapshot) = report.snapshots.iter_mut().find(|snapshot| snapshot.id == id) {
        snapshot.damaged.union_with(differing);
        snapshot.digest = None;
    }
}

/// Compares digests with the recorded ones; returns the number of compared bytes.
fn compare_with_recorded(report: &mut VerifyReport, known: &BTreeMap<CloudSnapshotId, ProofRow>) -> u64 {
    let mut compared = false;
    for snapshot in &mut report.snapshots {
        let recorded = known.get(&snapshot.id).and_then(|proof| proof.digest);
        let (Some(now), Some(before)) = (snapshot.digest, recorded) else { continue };
        compared = true;
        if now != before {
            report.findings_total += 1;
            report.findings.push(VerifyFinding {
                object: snapshot.id.manifest_key(),
                offset_bytes: 0,
                what: "the digest of its content differs from that of an earlier verification".to_owned(),
                affects: vec![AffectedSnapshot { id: snapshot.id, blocks: BlockSet::new() }],
            });
            snapshot.has_manifest = false;
        }
    }
    if compared { report.block_bytes } else { 0 }
}

#[cfg(test)]
mod tests;
