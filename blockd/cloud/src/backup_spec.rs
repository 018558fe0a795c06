//! Specification of a backup.

use crate::{
    CloudError, CloudSnapshotId,
    clock::MAX_CLOCK_DIFFERENCE_S,
    error::random,
    index::MAX_SOURCES,
    manifest::{Delta, MAX_CHAIN, Manifest, SnapshotDescription},
    names::DeltaId,
    references::References,
};
use blockd_extent::{BlockSet, Extent, SnapshotId, VolumeId};
use jiff::Timestamp;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Maximum time from the start of a backup to its commit, in seconds: 7 days. See `FORMAT.md`, "Garbage".
pub const BACKUP_LIFETIME_S: i64 = 7 * 24 * 3600;
/// Maximum clock difference of hosts and stores, in seconds: a day.
pub const MAX_CLOCK_SKEW_S: i64 = 24 * 3600;

/// Specification of a backup. A resumed backup must have the same one, including the salt.
#[derive(Clone, Debug)]
pub struct BackupSpec {
    /// Cluster id of the host that makes it.
    pub cluster: Uuid,
    /// Volume.
    pub volume: VolumeId,
    /// Snapshot: random id, unique among the backups of the volume.
    pub snapshot: SnapshotId,
    /// Description in the manifest.
    pub description: SnapshotDescription,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Start of the backup (of its first run, if resumed).
    pub started: Timestamp,
    /// Blocks to store: all that may hold data, or, with a base, all that may have changed to data.
    pub data: BlockSet,
    /// Blocks known to have become zero since the base; disjoint from `data`.
    pub zero: BlockSet,
    /// Base of an incremental. It may be a snapshot of another volume from which this one was created.
    pub base: Option<Manifest>,
    /// Blocks whose content other deltas, or other blocks of this one, have; disjoint from `data` and `zero`.
    pub references: References,
    /// Snapshots besides the base that name sources of the references: they must exist after the commit.
    pub donors: Vec<CloudSnapshotId>,
    /// Referenced blocks that may have changed since the base; the others did not.
    pub deduplicated: BlockSet,
    /// The backup is full: its base provides the sources of the references, and no chain.
    pub synthetic: bool,
    /// Snapshot that this one repairs; excludes a base.
    pub repair: Option<RepairedSnapshot>,
    /// Salt from [`new_delta_salt`], kept for a resume.
    pub delta_salt: [u8; 32],
}

/// Damaged snapshot of the same point in time, and the rest of its chain.
#[derive(Clone, Debug)]
pub struct RepairedSnapshot {
    /// Id.
    pub(crate) id: CloudSnapshotId,
    /// Its base.
    pub(crate) base: Option<CloudSnapshotId>,
    /// Deltas below the new one, newest first.
    pub(crate) chain: Vec<Delta>,
    /// Sources of the deltas of the chain.
    pub(crate) sources: Vec<Delta>,
    /// Snapshots that name all deltas of the chain: they must exist after the commit.
    pub(crate) owners: Vec<CloudSnapshotId>,
}

impl BackupSpec {
    /// Returns the id of the new cloud snapshot.
    pub fn id(&self) -> CloudSnapshotId {
        CloudSnapshotId {
            cluster: self.cluster,
            volume: self.volume,
            snapshot: self.snapshot,
            incremental: self.chain().next().is_some(),
        }
    }

    /// Returns the number of bytes that changed since the base; all that may have data without one.
    pub fn dirty_bytes(&self) -> u64 {
        self.data.len_bytes() + self.zero.len_bytes() + self.deduplicated.len_bytes()
    }

    /// Returns the deltas below the new one, newest first.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &Delta> {
        let repaired = self.repair.iter().flat_map(|repair| &repair.chain);
        self.chained_base().flat_map(Manifest::layers).chain(repaired)
    }

    /// Returns the deltas that references of this delta or of the chain name, without those of the chain.
    pub(crate) fn sources(&self) -> Vec<Delta> {
        let of_chain = self.chained_base().flat_map(|base| &base.sources);
        let repaired = self.repair.iter().flat_map(|repair| &repair.sources);
        let mut known: BTreeSet<DeltaId> = self.chain().map(Delta::id).collect();
        let all = self.references.sources().iter().chain(of_chain).chain(repaired);
        all.filter(|source| known.insert(source.id())).cloned().collect()
    }

    fn chained_base(&self) -> impl Iterator<Item = &Manifest> {
        self.base.iter().filter(|_| !self.synthetic)
    }

    /// Returns the snapshots that must exist after the commit: a deletion of one of them may have removed
    /// deltas of the chain, or sources.
    pub fn owners(&self) -> impl Iterator<Item = CloudSnapshotId> {
        let repaired = self.repair.iter().flat_map(|repair| repair.owners.iter().copied());
        self.base.iter().map(Manifest::id).chain(self.donors.iter().copied()).chain(repaired)
    }

    pub(crate) fn delta_id(&self) -> DeltaId {
        DeltaId { cluster: self.cluster, volume: self.volume, snapshot: self.snapshot }
    }

    /// Returns an error for a backup whose objects may be collected as garbage.
    pub(crate) fn check_age(&self, now: Timestamp) -> Result<(), CloudError> {
        let age_s = now.as_second().saturating_sub(self.started.as_second());
        // A start in the future comes from a wrong clock.
        if !(-MAX_CLOCK_SKEW_S..=BACKUP_LIFETIME_S).contains(&age_s) {
            return Err(CloudError::Expired { id: self.id(), started: self.started });
        }
        Ok(())
    }

    /// Returns true if the backup is so old that its objects must be checked after the commit.
    pub(crate) fn is_old(&self, now: Timestamp) -> bool {
        now.as_second().saturating_sub(self.started.as_second()) > MAX_CLOCK_DIFFERENCE_S
    }

    pub(crate) fn check(&self) -> Result<(), CloudError> {
        let invalid = |what: String| Err(CloudError::InvalidRequest { what });
        let end = Extent::whole(self.size_bytes).end();
        if self.zero.last().is_some_and(|last| last >= end) {
            return invalid(format!(
                "a zero block is beyond the end of a volume of {} bytes",
                self.size_bytes
            ));
        }
        let mut both = self.data.clone();
        both.intersect_with(&self.zero);
        if let Some(block) = both.first() {
            return invalid(format!("block {block} is both a data block and a zero block"));
        }
        if let Err(what) = self.references.check(self.delta_id(), &self.data, &self.zero, end) {
            return invalid(what);
        }
        if self.chain().any(|delta| delta.snapshot == self.snapshot) {
            return invalid(format!("snapshot {} cannot be its own base", self.snapshot));
        }
        if self.chain().count() > MAX_CHAIN {
            return invalid(format!("a chain has at most {MAX_CHAIN} snapshots: make a full backup"));
        }
        if self.sources().len() > MAX_SOURCES {
            return invalid(format!("a snapshot has at most {MAX_SOURCES} sources: make a full backup"));
        }
        let Some(base) = &self.base else { return Ok(()) };
        if base.size_bytes > self.size_bytes {
            return invalid(format!(
                "cloud snapshot {} is of a larger volume and cannot be the base",
                base.id()
            ));
        }
        Ok(())
    }
}

/// Creates a salt for a new delta.
///
/// # Errors
/// [`CloudError::Internal`] without system randomness.
pub fn new_delta_salt() -> Result<[u8; 32], CloudError> {
    random()
}
