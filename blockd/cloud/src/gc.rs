//! Collecting garbage: objects of deltas that no manifest names and none ever will.
//!
//! A backup that was abandoned leaves packs without a manifest. They cannot be told from those of a backup under way on
//! another host, except by their age: no backup commits later than [`BACKUP_LIFETIME_S`] after it began, so a delta
//! whose oldest object is older than that, and by what clocks may be apart, belongs to no backup that can still commit. The argument is
//! in `FORMAT.md`, "Garbage".

use crate::{
    CloudError,
    backup::{BACKUP_LIFETIME_S, CLOCK_SKEW_MOST_S},
    delete::delete_objects,
    manifest::Manifest,
    names::{DATA_PREFIX, DeltaId, PROBE_PREFIX},
    repository::{ManifestCache, NoCache, Repository},
    store::ObjectInfo,
};
use blockd_extent::{SnapshotId, VolumeId};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// How old what was made to try a store out must be to be garbage, in seconds.
const PROBE_AGE_S: i64 = CLOCK_SKEW_MOST_S;

/// How garbage is collected.
#[derive(Clone, Debug)]
pub struct GarbageOptions {
    /// The time.
    pub now: Timestamp,
    /// Only says what would be deleted.
    pub dry_run: bool,
    /// Snapshots whose deltas stay, whatever their age: those of backups that this host knows of.
    pub protected: BTreeSet<SnapshotId>,
}

/// What an abandoned backup left.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Leftover {
    /// The installation that made it.
    pub cluster: Uuid,
    /// The volume.
    pub volume: VolumeId,
    /// The snapshot that it was to become.
    pub snapshot: SnapshotId,
    /// How many objects there are.
    pub objects: u64,
    /// How long they are together.
    pub len_bytes: u64,
    /// When the first of them was stored, by the store's clock; none if the store does not say.
    pub since: Option<Timestamp>,
}

/// What was found, and what became of it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct GarbageReport {
    /// Leftovers that were deleted, or would be in a dry run.
    pub garbage: Vec<Leftover>,
    /// What no manifest names and is not old enough yet: backups under way, or abandoned lately.
    pub young: Vec<Leftover>,
    /// The volumes of manifests that cannot be read, with the reason. While there is one, nothing of any volume is deleted: a
    /// volume that began as a snapshot of another one names its deltas.
    pub unknown: Vec<(Uuid, VolumeId, String)>,
    /// Objects that were made to try the store out and were deleted, or would be in a dry run.
    pub probe_objects: u64,
    /// Objects deleted, as far as the store tells; 0 in a dry run.
    pub objects_deleted: u64,
}

/// Deletes the objects of deltas that no manifest names and none ever will.
///
/// Needs no room in the store: nothing is written. Whatever runs beside it, from this daemon or from others, loses nothing.
///
/// # Errors
/// [`CloudError::KeySlotMissing`]; whatever the store reports; calling it again goes on.
pub async fn collect_garbage(
    repo: &Repository,
    options: &GarbageOptions,
    cache: &dyn ManifestCache,
) -> Result<GarbageReport, CloudError> {
    // In this order: what is committed in between is seen by the second listing.
    let objects = repo.store().list(DATA_PREFIX).await?;
    let probes = repo.store().list(PROBE_PREFIX).await?;
    let manifests = repo.list_for_deletion(None, cache).await?;

    let mut named: BTreeSet<(Uuid, VolumeId, SnapshotId)> = BTreeSet::new();
    let mut unknown: BTreeMap<(Uuid, VolumeId), String> = BTreeMap::new();
    for listed in manifests {
        match (listed.manifest, listed.id) {
            (Ok(manifest), _) => {
                let deltas = manifest.deltas().map(|delta| (delta.cluster, delta.volume, delta.snapshot));
                named.extend(deltas);
            }
            (Err(error), _) if error.is_retryable() => return Err(error),
            (Err(error), Some(id)) => {
                unknown.entry((id.cluster, id.volume)).or_insert_with(|| error.to_string());
            }
            // Its name is no snapshot's: nothing is known of what it names, but a delta's place is in its name.
            (Err(error), None) => tracing::warn!(key = listed.key, %error, "passed over"),
        }
    }

    let mut report = GarbageReport::default();
    let mut doomed = Vec::new();
    for (delta, objects) in by_delta(objects) {
        if named.contains(&delta) || options.protected.contains(&delta.2) {
            continue;
        }
        let (cluster, volume, snapshot) = delta;
        let leftover = leftover(cluster, volume, snapshot, &objects);
        if unknown.is_empty()
            && is_garbage(leftover.since, options.now, BACKUP_LIFETIME_S + CLOCK_SKEW_MOST_S)
        {
            doomed.extend(objects.into_iter().map(|object| object.key));
            report.garbage.push(leftover);
        } else {
            report.young.push(leftover);
        }
    }
    report.unknown = unknown.into_iter().map(|((cluster, volume), why)| (cluster, volume, why)).collect();
    let old = probes.into_iter().filter(|probe| is_garbage(time(probe), options.now, PROBE_AGE_S));
    let before = doomed.len();
    doomed.extend(old.map(|probe| probe.key));
    report.probe_objects = (doomed.len() - before) as u64;
    if !options.dry_run && !doomed.is_empty() {
        // A directory whose disk was away when the manifests were listed says that nothing is needed.
        repo.prove_key_slot().await?;
        report.objects_deleted = delete_objects(repo, doomed.into_iter()).await?;
    }
    Ok(report)
}

/// Removes what one backup left of which the caller **knows** that nobody, on no host, can still commit it: it never began to, and
/// the run that made it was the only one that ever knew its name.
///
/// Nothing is removed if a manifest names it all the same, or cannot be read; a collection decides then.
///
/// # Errors
/// [`CloudError::KeySlotMissing`]; whatever the store reports; what is left then is garbage of a later collection.
pub async fn remove_leftovers_of(
    repo: &Repository,
    cluster: Uuid,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<u64, CloudError> {
    let delta = DeltaId { cluster, volume, snapshot };
    let objects = repo.store().list(&delta.prefix()).await?;
    if objects.is_empty() {
        return Ok(0);
    }
    // A caller who is wrong must not cost a snapshot. Of any volume: one that began as a snapshot of this one names its deltas.
    for listed in repo.list_for_deletion(None, &NoCache).await? {
        match (listed.manifest, listed.id) {
            (Ok(manifest), _) if manifest.deltas().any(|named| named.id() == delta) => {
                tracing::warn!(key = listed.key, "what a backup left is named by a manifest: it stays");
                return Ok(0);
            }
            (Err(error), _) if error.is_retryable() => return Err(error),
            (Err(error), Some(_)) => {
                tracing::warn!(key = listed.key, %error, "what a backup left stays: a manifest cannot be read");
                return Ok(0);
            }
            // Its name is no snapshot's, so no backup put it there.
            (Ok(_), _) | (Err(_), None) => {}
        }
    }
    repo.prove_key_slot().await?;
    delete_objects(repo, objects.into_iter().map(|object| object.key)).await
}

type Key = (Uuid, VolumeId, SnapshotId);

/// The objects of each delta. What has another name than any object of a delta is passed over.
fn by_delta(objects: Vec<ObjectInfo>) -> BTreeMap<Key, Vec<ObjectInfo>> {
    let mut deltas: BTreeMap<Key, Vec<ObjectInfo>> = BTreeMap::new();
    for object in objects {
        if let Some(delta) = DeltaId::of_object(&object.key) {
            deltas.entry((delta.cluster, delta.volume, delta.snapshot)).or_default().push(object);
        }
    }
    deltas
}

fn time(object: &ObjectInfo) -> Option<Timestamp> {
    object.modified_unix_s.and_then(|second| Timestamp::from_second(second).ok())
}

fn leftover(cluster: Uuid, volume: VolumeId, snapshot: SnapshotId, objects: &[ObjectInfo]) -> Leftover {
    // One whose age is not known makes all of them young.
    let times: Option<Vec<Timestamp>> = objects.iter().map(time).collect();
    Leftover {
        cluster,
        volume,
        snapshot,
        objects: objects.len() as u64,
        len_bytes: objects.iter().map(|object| object.size_bytes).sum(),
        since: times.and_then(|times| times.into_iter().min()),
    }
}

fn is_garbage(since: Option<Timestamp>, now: Timestamp, age_s: i64) -> bool {
    since.is_some_and(|since| now.as_second().saturating_sub(since.as_second()) > age_s)
}

impl Manifest {
    /// Whether a delta of this snapshot id is its own or in its chain.
    pub fn needs(&self, snapshot: SnapshotId) -> bool {
        self.deltas().any(|delta| delta.snapshot == snapshot)
    }
}
