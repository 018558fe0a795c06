//! Errors of cloud operations.
//!
//! Every error names the object, the offset and the affected blocks, says whether a retry can help, and never
//! contains a secret.

use crate::CloudSnapshotId;
use blockd_extent::{BlockIndex, Extent};
use blockd_store::{Lost, StoreError};
use std::{io, path::PathBuf};
use uuid::Uuid;

/// Errors of this crate's operations; [`StoreError`] has those of stores.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloudError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object was altered or moved.
    #[error("object {key} is damaged at byte {offset_bytes}: {what}{}", affected(*.blocks))]
    Damaged {
        /// Key of the object.
        key: String,
        /// Offset of the damaged part.
        offset_bytes: u64,
        /// Violation.
        what: String,
        /// Lost blocks, if known.
        blocks: Option<Extent>,
    },
    /// The passphrase opens no key slot.
    #[error("wrong passphrase for the repository at {store}: none of its {slots} key slots opens with it")]
    WrongPassphrase {
        /// Store.
        store: String,
        /// Number of encrypted key slots.
        slots: usize,
    },
    /// A passphrase is required.
    #[error("the repository at {store} is encrypted: give its passphrase")]
    EncryptedRepository {
        /// Store.
        store: String,
    },
    /// A passphrase was given for an unencrypted repository.
    #[error(
        "the repository at {store} is not encrypted: open it without a passphrase, or use another bucket or directory"
    )]
    PlainRepository {
        /// Store.
        store: String,
    },
    /// Too many key slots.
    #[error(
        "the repository at {store} has {found} key slots where at most {most} are expected: remove foreign objects below blockd/keys/"
    )]
    TooManyKeys {
        /// Store.
        store: String,
        /// Number found.
        found: usize,
        /// Maximum.
        most: usize,
    },
    /// No tried key slot opened, and some were not tried.
    #[error(
        "opening failed on {store}: no key slot opened, and {left_out} were not tried, because they are too many or cost too much memory or time; remove foreign objects below blockd/keys/ and blockd/keys-copy/"
    )]
    KeySlotsLeftOut {
        /// Store.
        store: String,
        /// Number of slots that were not tried.
        left_out: usize,
    },
    /// The slot of the key of new backups is missing.
    #[error(
        "{store} is not the repository of these credentials: {key} is missing; check that the disk is mounted and the bucket is the right one. Without this object no other host can restore the cloud snapshots"
    )]
    KeySlotMissing {
        /// Store.
        store: String,
        /// Object of the slot.
        key: String,
    },
    /// There are snapshots but no key slots.
    #[error(
        "{store} holds cloud snapshots but no key slot: the objects below blockd/keys/ were deleted or not copied; put them back: the snapshots cannot be decrypted without them"
    )]
    KeySlotsGone {
        /// Store.
        store: String,
    },
    /// The key that this host writes under did not open.
    #[error(
        "writing failed on {store}: the slot of key {write_key}, which this host writes under, is missing or damaged; restores continue to work. Put the slot back; or make a new key (`blockctl credentials rekey --new-data-key`); or write under key {newest}, the newest that is left (`blockctl credentials rekey --accept-key {newest}`)"
    )]
    WriteKeyMissing {
        /// Store.
        store: String,
        /// Id of the key.
        write_key: Uuid,
        /// Id of the newest key that opened.
        newest: Uuid,
    },
    /// A key is newer than the one that this host writes under, and this host did not make it.
    #[error(
        "writing failed on {store}: key {newest} is newer than key {write_key}, which this host writes under, and was not made by this host; restores continue to work. If another host made it, accept it (`blockctl credentials rekey --accept-key {newest}`); if not, make a new key (`blockctl credentials rekey --new-data-key`)"
    )]
    WriteKeyNotNewest {
        /// Store.
        store: String,
        /// Id of the key that this host writes under.
        write_key: Uuid,
        /// Id of the newest key that opened.
        newest: Uuid,
    },
    /// An object uses an unknown key.
    #[error(
        "{object} was encrypted with key {key_id}, which is not among the opened keys: open the repository again with the passphrase of that key"
    )]
    UnknownKey {
        /// Key of the object.
        object: String,
        /// Id of the data key.
        key_id: Uuid,
    },
    /// An object has an unsupported version.
    #[error(
        "{object} has format version {found}, this program reads version {supported}: use a newer program"
    )]
    UnsupportedVersion {
        /// Key of the object.
        object: String,
        /// Version found.
        found: u16,
        /// Supported version.
        supported: u16,
    },
    /// A proof cannot be used, so that the cloud snapshot counts as if it did not exist.
    #[error("proof of a cloud snapshot ignored: {0}")]
    ProofIgnored(Box<CloudError>),
    /// The cloud snapshot does not exist.
    #[error("there is no cloud snapshot {id} at {store}")]
    SnapshotNotFound {
        /// Id.
        id: CloudSnapshotId,
        /// Store.
        store: String,
    },
    /// Invalid request.
    #[error("{what}")]
    InvalidRequest {
        /// Violation and expectation.
        what: String,
    },
    /// An object of the snapshot exists with other content.
    #[error(
        "{key} exists with other content, perhaps from a copy of this daemon that makes the same backup: start the backup again, which gives it a new id"
    )]
    Conflict {
        /// Key of the object.
        key: String,
    },
    /// The packs that a resumed backup stored cannot be stored again with equal content.
    #[error(
        "resume failed on the backup: {found}, because the journal of the backup was lost or damaged, or a copy of this daemon makes the same backup: start a new backup, which gets a new id and includes the same blocks"
    )]
    JournalLost {
        /// Observation that shows the loss.
        found: String,
    },
    /// The base of a backup, or another snapshot that names its sources, was deleted during the backup.
    #[error("cloud snapshot {needed} was deleted during the backup that needs it: start a new backup")]
    NeededDeleted {
        /// The base or the other snapshot.
        needed: CloudSnapshotId,
    },
    /// Content that a backup references was found damaged before its commit.
    #[error(
        "backup failed on cloud snapshot {id}: content that it references was found damaged meanwhile; resume the backup, which stores that content again"
    )]
    SourceDamaged {
        /// Snapshot; it was not committed.
        id: CloudSnapshotId,
    },
    /// A snapshot was committed, but the state of its base is unknown: deltas may be gone.
    #[error(
        "cloud snapshot {id} is in the store; its base {base} could not be checked yet: {source}; resume the backup when the store responds"
    )]
    BaseUnknown {
        /// Snapshot; listed, but may lack deltas.
        id: CloudSnapshotId,
        /// Base.
        base: CloudSnapshotId,
        /// Error of the check.
        source: Box<CloudError>,
    },
    /// A snapshot was committed without its base, and its manifest could not be deleted.
    #[error(
        "cloud snapshot {id} is in the store, its base {base} was deleted, and its manifest could not be deleted yet: {source}; resume the backup when the store responds"
    )]
    CommitNotUndone {
        /// Snapshot; listed, but may lack deltas.
        id: CloudSnapshotId,
        /// Base.
        base: CloudSnapshotId,
        /// Error of the deletion.
        source: Box<CloudError>,
    },
    /// Another host deleted the snapshot while its commit was uncertain.
    #[error(
        "cloud snapshot {id} was deleted from another host while it was being committed ({object} is gone): start the backup again"
    )]
    DeletedConcurrently {
        /// Snapshot; it does not exist.
        id: CloudSnapshotId,
        /// First missing object.
        object: String,
    },
    /// A manifest of the same volume cannot be read, so that the snapshot may be the last one that can be
    /// restored.
    #[error(
        "delete failed on cloud snapshot {id}: {key} of the same volume cannot be read, so {id} may be the last backup that can be restored: {source}"
    )]
    SiblingUnreadable {
        /// Snapshot, which is not deleted.
        id: CloudSnapshotId,
        /// Key of the manifest that cannot be read.
        key: String,
        /// Cause.
        source: Box<CloudError>,
    },
    /// Lazy volumes of other hosts need the snapshot.
    #[error("delete refused on cloud snapshot {id}: it is leased by {holders}")]
    Leased {
        /// Snapshot, which is not deleted.
        id: CloudSnapshotId,
        /// The lazy volumes.
        holders: String,
    },
    /// The clocks of this host and of the store differ, so that ages and dates are unreliable.
    #[error(
        "clock check failed on {store}: the clock of this host differs from the store's by {ahead_s} s (positive: this host is ahead); nothing is deleted"
    )]
    ClockDiffers {
        /// Store.
        store: String,
        /// Lead of this host's clock, in seconds.
        ahead_s: i64,
    },
    /// The store's time is unknown.
    #[error("clock check failed on {store}: {cause}; nothing is deleted")]
    ClockUnknown {
        /// Store.
        store: String,
        /// Cause.
        cause: ClockUnknownCause,
    },
    /// The store lists more deltas than a garbage collection holds in memory.
    #[error(
        "garbage collection failed on {store}: it lists objects of more than {max} deltas; nothing is deleted"
    )]
    TooManyDeltas {
        /// Store.
        store: String,
        /// Maximum number of deltas.
        max: usize,
    },
    /// A garbage collection exceeded its time limit.
    #[error("garbage collection failed on {store}: it did not end within {hours} hours")]
    CollectionTimeout {
        /// Store.
        store: String,
        /// Time limit.
        hours: u64,
    },
    /// Snapshots were deleted during each listing of the store.
    #[error(
        "cloud snapshots at {store} were deleted during each of {listings} listings, so that the referenced objects are unknown: try again"
    )]
    Unsettled {
        /// Store.
        store: String,
        /// Number of listings.
        listings: u32,
    },
    /// A backup exceeded its lifetime.
    #[error(
        "backup {id} expired: it started at {started}, and objects of an uncommitted backup count as garbage after 7 days; start it again"
    )]
    Expired {
        /// Intended snapshot.
        id: CloudSnapshotId,
        /// Start.
        started: jiff::Timestamp,
    },
    /// Blocks of the volume could not be read.
    #[error("read failed on the volume ({extents}, for pack {pack_no}): {source}")]
    ReadVolume {
        /// Pack.
        pack_no: u32,
        /// Extents.
        extents: String,
        /// Cause.
        source: io::Error,
    },
    /// Blocks of the volume could not be read for a comparison.
    #[error("comparison failed on the volume from block {start} on: {source}")]
    CompareVolume {
        /// First block of the comparison.
        start: BlockIndex,
        /// Cause.
        source: io::Error,
    },
    /// Restored blocks could not be written.
    #[error("write failed on block {start} of the restored volume: {source}")]
    WriteVolume {
        /// First block of the write.
        start: BlockIndex,
        /// Cause.
        source: io::Error,
    },
    /// The backup journal failed.
    #[error("{what} failed on backup journal {}: {source}", path.display())]
    Journal {
        /// File.
        path: PathBuf,
        /// Operation.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The backup journal belongs to another backup.
    #[error("backup journal {} belongs to another backup or its header is damaged: remove it to restart the backup", path.display())]
    ForeignJournal {
        /// File.
        path: PathBuf,
    },
    /// The read cache failed.
    #[error("{what} failed on cache directory {}: {source}", path.display())]
    Cache {
        /// Directory.
        path: PathBuf,
        /// Operation.
        what: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
    /// A worker thread died, or the system has no randomness.
    #[error("{what} failed: {detail}")]
    Internal {
        /// Description.
        what: &'static str,
        /// Cause.
        detail: String,
    },
}

/// Reason why a store's time is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClockUnknownCause {
    /// Listings lack a new object for some seconds.
    #[error("a new object is not listed within some seconds")]
    NotListed,
    /// Listings have no times.
    #[error("its listings have no modification times")]
    NoTime,
    /// The store has no space for a small object, and its response has no date.
    #[error("the store is full and its response has no date")]
    NoRoom,
}

fn affected(blocks: Option<Extent>) -> String {
    blocks.map_or_else(String::new, |blocks| format!(" ({blocks} cannot be read)"))
}

impl From<Lost> for CloudError {
    fn from(lost: Lost) -> Self {
        Self::worker(&lost)
    }
}

impl CloudError {
    /// Returns true if a retry can succeed without repair.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::ProofIgnored(error) => error.is_retryable(),
            Self::ReadVolume { source, .. }
            | Self::CompareVolume { source, .. }
            | Self::WriteVolume { source, .. }
            | Self::Journal { source, .. } => {
                matches!(source.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut)
            }
            Self::Internal { .. }
            | Self::Unsettled { .. }
            | Self::SourceDamaged { .. }
            | Self::BaseUnknown { .. }
            | Self::CommitNotUndone { .. } => true,
            _ => false,
        }
    }

    pub(crate) fn damaged(key: &str, offset_bytes: u64, what: impl Into<String>) -> Self {
        Self::Damaged { key: key.to_owned(), offset_bytes, what: what.into(), blocks: None }
    }

    pub(crate) fn with_blocks(mut self, extent: Extent) -> Self {
        if let Self::Damaged { blocks, .. } = &mut self {
            *blocks = Some(extent);
        }
        self
    }

    pub(crate) fn worker(error: &dyn std::fmt::Display) -> Self {
        Self::Internal { what: "worker thread", detail: error.to_string() }
    }

    /// A missing or short object is damage if authenticated data names it.
    pub(crate) fn missing_is_damage(error: StoreError, offset_bytes: u64) -> Self {
        use blockd_store::StoreErrorKind as Kind;
        match error.kind {
            Kind::NotFound => Self::damaged(&error.key, offset_bytes, "the object is missing"),
            Kind::ShortBody | Kind::RangeBeyondEnd => Self::damaged(
                &error.key,
                offset_bytes,
                "the object is shorter than it was written (truncated)",
            ),
            _ => Self::Store(error),
        }
    }
}

/// Returns random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], CloudError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| CloudError::Internal {
        what: "reading randomness from the system",
        detail: e.to_string(),
    })?;
    Ok(bytes)
}
