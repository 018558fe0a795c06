//! Garbage collection of deltas that no manifest references or ever will, of proofs of deleted snapshots, and
//! of leases that hold nothing.
//!
//! An abandoned backup leaves packs without a manifest. Only their age distinguishes them from those of a
//! running backup on another host: no backup commits later than [`BACKUP_LIFETIME_S`] after its start, so a
//! delta whose oldest object is older than that plus the clock tolerance belongs to no backup that can still
//! commit. The argument is in `FORMAT.md`, "Garbage".

use crate::{
    CloudError, LEASE_LIFETIME, ManifestFilter, Repository,
    backup_spec::{BACKUP_LIFETIME_S, MAX_CLOCK_SKEW_S},
    delete::objects_of,
    listing::{ManifestCache, NoCache, stored},
    manifest::{Delta, Manifest},
    names::{DATA_PREFIX, DeltaId, ManifestKey, PROBE_PREFIX, PROOFS_PREFIX, ROOT_PREFIX},
    proof::ProofId,
    repository::delete_objects,
};
use blockd_extent::{CloudSnapshotId, SnapshotId, VolumeId};
use blockd_store::{ObjectInfo, Pages};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Duration,
};
use uuid::Uuid;

/// Age at which probe objects are garbage, in seconds.
const PROBE_AGE_S: i64 = MAX_CLOCK_SKEW_S;
/// Age at which the objects of a delta without a manifest are garbage, in seconds.
const DELTA_AGE_S: i64 = BACKUP_LIFETIME_S + MAX_CLOCK_SKEW_S;
/// Age at which a lease is garbage, in seconds: it has expired, and its host does not renew it.
const LEASE_AGE_S: i64 = LEASE_LIFETIME.as_secs() + MAX_CLOCK_SKEW_S;
/// Age at which a lease of this host is garbage if no lazy volume needs its snapshot, in seconds: the volume
/// is recorded shortly after its lease is stored.
const OWN_LEASE_AGE_S: i64 = MAX_CLOCK_SKEW_S;
/// Age at which a proof without a manifest is garbage, in seconds: a lagging listing may lack the manifest.
const PROOF_AGE_S: i64 = DELTA_AGE_S;
const _: () = assert!(DELTA_AGE_S > BACKUP_LIFETIME_S && PROBE_AGE_S > 0, "running backups are no garbage");

/// Deltas or snapshots whose objects are listed and deleted in one batch.
const DELTAS_AT_ONCE: usize = 64;
/// Concurrent listings.
const LISTINGS_AT_ONCE: usize = 8;

/// Maximum number of deltas in a collection: some hundred megabytes.
const MAX_DELTAS: usize = 2_000_000;
/// Maximum number of snapshots with old proofs in a collection, in the order of their keys; proofs of others
/// stay.
const MAX_PROVEN: usize = 2_000_000;
/// Time limit of a collection in hours: a slow store with an endless listing must not delay the others.
const MAX_HOURS: u64 = 6;

/// Options of a garbage collection.
#[derive(Clone, Default, Debug)]
pub struct GarbageOptions {
    /// The time.
    pub now: Timestamp,
    /// Snapshots whose deltas stay regardless of age: those of known backups of this host.
    pub protected: BTreeSet<SnapshotId>,
    /// Installation of this host.
    pub host: Uuid,
    /// Cloud snapshots that lazy volumes of this host need; its leases of others are removed.
    pub backing: BTreeSet<CloudSnapshotId>,
}

/// Objects of an abandoned backup.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Leftover {
    /// Cluster id of the host that made it.
    pub cluster: Uuid,
    /// Volume.
    pub volume: VolumeId,
    /// The snapshot that it was to become.
    pub snapshot: SnapshotId,
    /// Number of objects.
    pub objects: u64,
    /// Total size, in bytes.
    pub len_bytes: u64,
    /// Time of the oldest object by the store's clock; `None` if the store does not report it.
    pub since: Option<Timestamp>,
}

impl Leftover {
    fn delta(&self) -> DeltaId {
        DeltaId { cluster: self.cluster, volume: self.volume, snapshot: self.snapshot }
    }
}

/// Result of a collection.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct GarbageReport {
    /// Leftovers that were deleted.
    pub garbage: Vec<Leftover>,
    /// Unreferenced objects within the grace period: running or recently abandoned backups.
    pub young: Vec<Leftover>,
    /// The volumes of manifests that cannot be read, with the reason. If there is one, nothing of any volume
    /// is deleted: a volume created from a snapshot of another one references its deltas.
    pub unknown: Vec<(Uuid, VolumeId, String)>,
    /// Number of probe objects that were deleted.
    pub probe_objects: u64,
    /// Number of proofs of deleted snapshots that were deleted.
    pub proofs: u64,
    /// Number of leases that were removed.
    pub leases: u64,
    /// Number of files or segments of unfinished uploads that were removed.
    pub unfinished: u64,
    /// Number of deleted objects, as far as the store reports.
    pub objects_deleted: u64,
    /// Keys of all manifests.
    pub manifests: BTreeSet<String>,
}

/// Deletes the objects of deltas that no manifest references or ever will; in a
/// [`DryStore`](blockd_store::DryStore) it reports what would be deleted.
///
/// Stores no object, so it needs no space in the store. Concurrent operations of this or other daemons lose
/// no objects.
///
/// # Errors
/// [`CloudError::KeySlotMissing`]; [`CloudError::TooManyDeltas`]; [`CloudError::CollectionTimeout`]; errors
/// of the store; a repeated call continues.
pub async fn collect_garbage(
    repo: &Repository,
    options: &GarbageOptions,
    cache: &dyn ManifestCache,
) -> Result<GarbageReport, CloudError> {
    let limit = Duration::from_secs(MAX_HOURS * 3600);
    match tokio::time::timeout(limit, collect(repo, options, cache)).await {
        Ok(collected) => collected,
        Err(_) => {
            let store = repo.store().describe().to_owned();
            Err(CloudError::CollectionTimeout { store, hours: MAX_HOURS })
        }
    }
}

async fn collect(
    repo: &Repository,
    options: &GarbageOptions,
    cache: &dyn ManifestCache,
) -> Result<GarbageReport, CloudError> {
    // In this order, so that the later listing includes snapshots committed in between.
    let leftovers = leftovers(repo).await?;
    let mut proven = proven_long_ago(repo, options.now).await?;
    let probes = repo.store().list(PROBE_PREFIX).await?;
    let manifests = repo.list_for_deletion(None, cache).await?;

    let mut named: BTreeSet<DeltaId> = BTreeSet::new();
    let mut unknown: BTreeMap<(Uuid, VolumeId), String> = BTreeMap::new();
    let mut report = GarbageReport::default();
    for listed in manifests {
        report.manifests.insert(listed.key.clone());
        match (listed.manifest, listed.id) {
            (Ok(manifest), _) => named.extend(manifest.deltas().map(Delta::id)),
            (Err(error), _) if error.is_retryable() => return Err(error),
            (Err(error), Some(id)) => {
                unknown.entry((id.cluster, id.volume)).or_insert_with(|| error.to_string());
            }
            // Its key is not that of a manifest, so no backup stored it and no delta depends on it.
            (Err(error), None) => {
                tracing::warn!(key = listed.key, %error, "foreign object below the manifests: skipped");
            }
        }
    }

    for (delta, leftover) in leftovers {
        if named.contains(&delta) || options.protected.contains(&delta.snapshot) {
            continue;
        }
        if unknown.is_empty() && is_garbage(leftover.since, options.now, DELTA_AGE_S) {
            report.garbage.push(leftover);
        } else {
            report.young.push(leftover);
        }
    }
    report.unknown = unknown.into_iter().map(|((cluster, volume), why)| (cluster, volume, why)).collect();
    let old = probes.into_iter().filter(|probe| is_garbage(stored(probe), options.now, PROBE_AGE_S));
    let probes: Vec<String> = old.map(|probe| probe.key).collect();
    report.probe_objects = probes.len() as u64;
    assert!(report.unknown.is_empty() || report.garbage.is_empty(), "an unreadable manifest may name them");
    for one in &report.garbage {
        assert!(!named.contains(&one.delta()), "a manifest names {:?}", one.delta());
        assert!(!options.protected.contains(&one.snapshot), "a running backup makes {}", one.snapshot);
    }
    // An unreadable manifest keeps the proofs of its own snapshot only, as none depends on another one.
    proven.retain(|id| !report.manifests.contains(&id.manifest_key()));
    // In the empty directory of an unmounted disk no manifest would reference a delta.
    repo.prove_key_slot().await?;
    report.objects_deleted = delete_objects(repo, probes.into_iter()).await?;
    for some in report.garbage.chunks(DELTAS_AT_ONCE) {
        report.objects_deleted += delete_deltas(repo, some).await?;
    }
    let before_unix_s = options.now.as_second().saturating_sub(DELTA_AGE_S);
    report.unfinished = repo.store().remove_unfinished(ROOT_PREFIX, before_unix_s, false).await?;
    // Last: an object lock or a policy may keep proofs.
    collect_proofs(repo, &Vec::from_iter(proven), options, &mut report).await?;
    collect_leases(repo, options, &mut report).await?;
    Ok(report)
}

/// Returns the totals of each delta. Reads the listing page by page and keeps no keys, as there may be
/// millions.
async fn leftovers(repo: &Repository) -> Result<BTreeMap<DeltaId, Leftover>, CloudError> {
    let mut deltas: BTreeMap<DeltaId, Leftover> = BTreeMap::new();
    let mut pages = Pages::new(&**repo.store(), DATA_PREFIX);
    while let Some(page) = pages.next().await? {
        // Skips foreign objects.
        for (delta, object) in
            page.iter().filter_map(|object| Some((DeltaId::of_object(&object.key)?, object)))
        {
            let since = stored(object);
            match deltas.entry(delta) {
                Entry::Vacant(new) => {
                    let DeltaId { cluster, volume, snapshot } = delta;
                    let (objects, len_bytes) = (1, object.size_bytes);
                    new.insert(Leftover { cluster, volume, snapshot, objects, len_bytes, since });
                }
                Entry::Occupied(found) => {
                    let found = found.into_mut();
                    found.objects += 1;
                    found.len_bytes += object.size_bytes;
                    // An object of unknown age makes the whole delta young.
                    found.since = found.since.zip(since).map(|(one, other)| one.min(other));
                }
            }
        }
        if deltas.len() > MAX_DELTAS {
            let store = repo.store().describe().to_owned();
            return Err(CloudError::TooManyDeltas { store, max: MAX_DELTAS });
        }
    }
    Ok(deltas)
}

/// Returns the snapshots with a proof of the age of garbage. Reads the listing page by page, as proofs may be
/// many.
async fn proven_long_ago(repo: &Repository, now: Timestamp) -> Result<BTreeSet<CloudSnapshotId>, CloudError> {
    let mut proven = BTreeSet::new();
    let mut pages = Pages::new(&**repo.store(), PROOFS_PREFIX);
    while let Some(page) = pages.next().await? {
        let old = page.iter().filter(|object| is_garbage(stored(object), now, PROOF_AGE_S));
        proven.extend(old.filter_map(|object| ProofId::from_key(&object.key)).map(|proof| proof.cloudsnap));
        if proven.len() > MAX_PROVEN {
            break;
        }
    }
    Ok(proven)
}

/// Deletes the old proofs of snapshots that no manifest has.
async fn collect_proofs(
    repo: &Repository,
    gone: &[CloudSnapshotId],
    options: &GarbageOptions,
    report: &mut GarbageReport,
) -> Result<(), CloudError> {
    for some in gone.chunks(DELTAS_AT_ONCE) {
        let listings = some.iter().map(|id| async move { repo.store().list(&ProofId::prefix(id)).await });
        let listings: Vec<_> = listings.collect();
        let listed: Vec<Vec<ObjectInfo>> =
            futures::stream::iter(listings).buffer_unordered(LISTINGS_AT_ONCE).try_collect().await?;
        let is_old = |object: &ObjectInfo| {
            ProofId::from_key(&object.key).is_some() && is_garbage(stored(object), options.now, PROOF_AGE_S)
        };
        let old: Vec<_> = listed.into_iter().flatten().filter(is_old).map(|object| object.key).collect();
        report.proofs += old.len() as u64;
        report.objects_deleted += delete_objects(repo, old.into_iter()).await?;
    }
    Ok(())
}

/// Removes expired leases, and those of this host that no lazy volume needs.
async fn collect_leases(
    repo: &Repository,
    options: &GarbageOptions,
    report: &mut GarbageReport,
) -> Result<(), CloudError> {
    let mut leases = repo.list_leases(&ManifestFilter::default()).await?;
    leases.retain(|lease| {
        let is_unneeded = lease.id.host == options.host && !options.backing.contains(&lease.id.cloudsnap);
        is_garbage(lease.stored, options.now, if is_unneeded { OWN_LEASE_AGE_S } else { LEASE_AGE_S })
    });
    let keys: Vec<String> = leases.into_iter().map(|lease| lease.id.key()).collect();
    report.leases = keys.len() as u64;
    report.objects_deleted += delete_objects(repo, keys.into_iter()).await?;
    Ok(())
}

/// Deletes the objects of deltas; returns their number, as far as the store reports.
async fn delete_deltas(repo: &Repository, some: &[Leftover]) -> Result<u64, CloudError> {
    let listings: Vec<_> = some.iter().map(|one| objects_of(repo, one.delta())).collect();
    let listed: Vec<_> = futures::stream::iter(listings).buffered(LISTINGS_AT_ONCE).try_collect().await?;
    delete_objects(repo, listed.into_iter().flatten()).await
}

/// Deletes the objects of a backup. The caller must **know** that no host can still commit it: its commit
/// never started, and only the calling run knew its name.
///
/// If a manifest references it or is unreadable, nothing is deleted, and a collection decides.
///
/// # Errors
/// [`CloudError::KeySlotMissing`]; errors of the store; remaining objects are garbage of a later collection.
pub async fn remove_leftovers_of(
    repo: &Repository,
    cluster: Uuid,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<u64, CloudError> {
    let delta = DeltaId { cluster, volume, snapshot };
    let objects = objects_of(repo, delta).await?;
    if objects.is_empty() {
        return Ok(0);
    }
    // Protects snapshots from a mistaken caller. Checks all volumes: one created from a snapshot of this one
    // references its deltas.
    for listed in repo.list_for_deletion(None, &NoCache).await? {
        match (listed.manifest, listed.id) {
            (Ok(manifest), _) if manifest.deltas().any(|named| named.id() == delta) => {
                tracing::warn!(
                    key = listed.key,
                    "objects of the backup are kept: a manifest references them"
                );
                return Ok(0);
            }
            (Err(error), _) if error.is_retryable() => return Err(error),
            (Err(error), Some(_)) => {
                tracing::warn!(key = listed.key, %error, "objects of the backup are kept: a manifest is unreadable");
                return Ok(0);
            }
            // Its key is not that of a manifest, so no backup stored it.
            (Ok(_), _) | (Err(_), None) => {}
        }
    }
    repo.prove_key_slot().await?;
    delete_objects(repo, objects.into_iter()).await
}

fn is_garbage(since: Option<Timestamp>, now: Timestamp, age_s: i64) -> bool {
    since.is_some_and(|since| now.as_second().saturating_sub(since.as_second()) > age_s)
}

impl Manifest {
    /// Returns true if the delta of `snapshot` is its own or in its chain.
    pub fn needs(&self, snapshot: SnapshotId) -> bool {
        self.deltas().any(|delta| delta.snapshot == snapshot)
    }
}
