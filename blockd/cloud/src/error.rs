//! What can go wrong between a volume and its copies in the cloud.
//!
//! Every error names the object, the place in it and the blocks that it costs, says whether a retry can help,
//! and never holds anything secret.

use crate::{CloudsnapId, store::StoreError};
use blockd_extent::{BlockIndex, Extent};
use std::{io, path::PathBuf};
use uuid::Uuid;

/// Everything that this crate's operations report, apart from what plain stores report ([`StoreError`]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloudError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An object is not what its writer wrote, or not where its writer put it.
    #[error("object {key} is damaged at byte {offset_bytes}: {what}{}", affected(*.blocks))]
    Damaged {
        /// Key of the object.
        key: String,
        /// Where the damaged piece begins in it.
        offset_bytes: u64,
        /// What does not hold.
        what: String,
        /// Blocks whose content is lost with it, if it is that narrow.
        blocks: Option<Extent>,
    },
    /// None of the key slots opens with the passphrase.
    #[error("wrong passphrase for the repository at {store}: none of its {slots} key slots opens with it")]
    WrongPassphrase {
        /// The store.
        store: String,
        /// How many encrypted key slots there are.
        slots: usize,
    },
    /// A passphrase is needed and none was given.
    #[error("the repository at {store} is encrypted: give its passphrase")]
    EncryptedRepository {
        /// The store.
        store: String,
    },
    /// A passphrase was given and the repository has none.
    #[error(
        "the repository at {store} was made without a passphrase: open it without one, or use another bucket or directory"
    )]
    PlainRepository {
        /// The store.
        store: String,
    },
    /// There are more key slots than any repository has.
    #[error(
        "the repository at {store} has {found} key slots where at most {most} are expected: remove foreign objects below blockd/keys/"
    )]
    TooManyKeys {
        /// The store.
        store: String,
        /// How many there are.
        found: usize,
        /// How many are read.
        most: usize,
    },
    /// No key slot that was tried opened, and some were not tried.
    #[error(
        "opening failed on {store}: no key slot opened, and {left_out} were not tried, because they are too many or cost too much memory or time; remove foreign objects below blockd/keys/ and blockd/keys-copy/"
    )]
    KeySlotsLeftOut {
        /// The store.
        store: String,
        /// The number of slots that were not tried.
        left_out: usize,
    },
    /// The slot of the key that backups use is not where it was put.
    #[error(
        "{store} is not what these credentials were made for: {key} is missing; is the disk mounted, is it the right bucket? Without that object no other host can restore what is stored there"
    )]
    KeySlotMissing {
        /// The store.
        store: String,
        /// The slot's object.
        key: String,
    },
    /// There are snapshots, but nothing that their keys could be had from.
    #[error(
        "{store} holds cloud snapshots but no key slot: what was below blockd/keys/ was deleted or not copied; put it back, without it they cannot be opened"
    )]
    KeySlotsGone {
        /// The store.
        store: String,
    },
    /// The key that this host writes under did not open.
    #[error(
        "writing failed on {store}: the slot of key {write_key}, which this host writes under, is missing or damaged; restores go on. Put the slot back; or make a new key (`blockctl credentials rekey --new-data-key`); or write under key {newest}, the newest that is left (`blockctl credentials rekey --accept-key {newest}`)"
    )]
    WriteKeyMissing {
        /// The store.
        store: String,
        /// Id of the key.
        write_key: Uuid,
        /// Id of the newest key that opened.
        newest: Uuid,
    },
    /// A key is newer than the one that this host writes under, and this host did not make it.
    #[error(
        "writing failed on {store}: key {newest} is newer than key {write_key}, which this host writes under, and was not made by this host; restores go on. If another host made it, accept it (`blockctl credentials rekey --accept-key {newest}`); if not, make a new key (`blockctl credentials rekey --new-data-key`)"
    )]
    WriteKeyNotNewest {
        /// The store.
        store: String,
        /// Id of the key that this host writes under.
        write_key: Uuid,
        /// Id of the newest key that opened.
        newest: Uuid,
    },
    /// An object was made with a key that this repository was not opened with.
    #[error(
        "{object} was made with key {key_id}, which is not among the opened keys: open the repository again with the passphrase it was made with"
    )]
    UnknownKey {
        /// Key of the object.
        object: String,
        /// Id of the data key.
        key_id: Uuid,
    },
    /// An object has a version that this reader does not know.
    #[error("{object} has format version {found}, this program reads version {supported}: use a newer one")]
    UnsupportedVersion {
        /// Key of the object.
        object: String,
        /// Version that it has.
        found: u16,
        /// Version that is read.
        supported: u16,
    },
    /// No such cloud snapshot.
    #[error("there is no cloud snapshot {id} at {store}")]
    SnapshotNotFound {
        /// Its id.
        id: CloudsnapId,
        /// The store.
        store: String,
    },
    /// Text that is not the id of a cloud snapshot.
    #[error(
        "{given:?} is not the id of a cloud snapshot: expected <cluster uuid>/<volume>-<snapshot>[-incr]"
    )]
    BadId {
        /// The text.
        given: String,
    },
    /// What the caller asked for makes no sense.
    #[error("{what}")]
    InvalidRequest {
        /// What is wrong and what would be right.
        what: String,
    },
    /// An object of the snapshot is there already, and holds something else.
    #[error(
        "{key} already holds something else: is a copy of this daemon making the same backup? Start the backup again, which gives it a new name"
    )]
    Conflict {
        /// Key of the object.
        key: String,
    },
    /// The snapshot that an incremental builds on was deleted while the incremental was being made.
    #[error("cloud snapshot {base} was deleted while the incremental on it was made: make a full backup")]
    BaseDeleted {
        /// The base.
        base: CloudsnapId,
    },
    /// A snapshot was committed, and nothing could be learned of the one that it builds on: its deltas may be
    /// gone.
    #[error(
        "cloud snapshot {id} is in the store; whether its base {base} still is cannot be told yet: {source}; resume the backup when the store answers"
    )]
    BaseUnknown {
        /// The snapshot; it is listed, and may lack deltas.
        id: CloudsnapId,
        /// The base.
        base: CloudsnapId,
        /// What the question met.
        source: Box<CloudError>,
    },
    /// A snapshot was committed whose base is gone, and its manifest could not be deleted.
    #[error(
        "cloud snapshot {id} is in the store, its base {base} was deleted, and it cannot be taken back yet: {source}; resume the backup when the store answers"
    )]
    NotTakenBack {
        /// The snapshot; it is listed, and may lack deltas.
        id: CloudsnapId,
        /// The base.
        base: CloudsnapId,
        /// What the deletion met.
        source: Box<CloudError>,
    },
    /// Another host deleted the snapshot while it was not known whether it had been committed.
    #[error(
        "cloud snapshot {id} was deleted from another host while it was being committed ({object} is gone): start the backup again"
    )]
    DeletedMeanwhile {
        /// The snapshot; it does not exist.
        id: CloudsnapId,
        /// The first of its objects that is not there.
        object: String,
    },
    /// A manifest of the same volume cannot be read, so that a deletion could take the last backup that
    /// restores.
    #[error(
        "delete failed on cloud snapshot {id}: {key} of the same volume cannot be read, so {id} may be the last backup that restores: {source}"
    )]
    SiblingUnreadable {
        /// The snapshot that stays.
        id: CloudsnapId,
        /// Key of the manifest that cannot be read.
        key: String,
        /// Why it cannot be read.
        source: Box<CloudError>,
    },
    /// The clocks of this host and of the store differ, so that ages and dates mean nothing.
    #[error(
        "clock check failed on {store}: the clock of this host differs from the store's by {ahead_s} s (positive: this host is ahead); nothing is deleted"
    )]
    ClockDiffers {
        /// The store.
        store: String,
        /// How far this host's clock is ahead, in seconds.
        ahead_s: i64,
    },
    /// The store's time is not known.
    #[error("clock check failed on {store}: {cause}; nothing is deleted")]
    ClockUnknown {
        /// The store.
        store: String,
        /// Why it is not known.
        cause: ClockUnknownCause,
    },
    /// More deltas are listed than a collection of garbage holds in memory.
    #[error(
        "garbage collection failed on {store}: it lists objects of more than {max} deltas; nothing is deleted"
    )]
    TooManyDeltas {
        /// The store.
        store: String,
        /// Most deltas that are held.
        max: usize,
    },
    /// A collection of garbage did not end in time.
    #[error("garbage collection failed on {store}: it did not end within {hours} hours")]
    CollectionTimeout {
        /// The store.
        store: String,
        /// The time limit.
        hours: u64,
    },
    /// Snapshots were deleted all the time while the store was being listed.
    #[error(
        "cloud snapshots at {store} were deleted during each of {listings} listings of it, so that nobody knows what the others need: try again"
    )]
    Unsettled {
        /// The store.
        store: String,
        /// How often it was listed.
        listings: u32,
    },
    /// A backup went on for longer than any may.
    #[error(
        "the backup {id} began at {started}: what it stored counts as abandoned after 7 days, so that it cannot be completed any more; start it again"
    )]
    Expired {
        /// The snapshot that it was to make.
        id: CloudsnapId,
        /// When it began.
        started: jiff::Timestamp,
    },
    /// The blocks of the volume could not be read.
    #[error("cannot read {extents} of the volume for pack {pack_no}: {source}")]
    ReadVolume {
        /// Pack that was being made.
        pack_no: u32,
        /// What was being read.
        extents: String,
        /// Why.
        source: io::Error,
    },
    /// Restored blocks could not be written.
    #[error("cannot write block {start} of the restored volume: {source}")]
    WriteVolume {
        /// First block of the write.
        start: BlockIndex,
        /// Why.
        source: io::Error,
    },
    /// The record of finished packs failed.
    #[error("backup journal {}: {what}: {source}", path.display())]
    Journal {
        /// Its file.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The record of finished packs is of another backup.
    #[error("backup journal {} is of another backup or was damaged at its head: remove it to start over", path.display())]
    ForeignJournal {
        /// Its file.
        path: PathBuf,
    },
    /// The cache of what was read failed.
    #[error("cannot {what} {} of the cache: {source}", path.display())]
    Cache {
        /// Its directory or file.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The caller cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A worker thread died or the system gave no randomness.
    #[error("{what} failed: {detail}")]
    Internal {
        /// What.
        what: &'static str,
        /// Why.
        detail: String,
    },
}

/// Reason for which a store's time is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClockUnknownCause {
    /// A new object is missing from the listings for seconds.
    #[error("a new object is not listed within some seconds")]
    NotListed,
    /// Listings have no times.
    #[error("its listings do not tell when an object was stored")]
    NoTime,
    /// The store has no room for a small object, and its refusal has no date.
    #[error("the store is full and its answer has no date")]
    NoRoom,
}

fn affected(blocks: Option<Extent>) -> String {
    blocks.map_or_else(String::new, |blocks| format!(" ({blocks} cannot be read)"))
}

impl CloudError {
    /// Whether the same request can succeed later without anybody doing anything about it.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::ReadVolume { source, .. }
            | Self::WriteVolume { source, .. }
            | Self::Journal { source, .. } => {
                matches!(source.kind(), io::ErrorKind::Interrupted | io::ErrorKind::TimedOut)
            }
            Self::Internal { .. }
            | Self::Unsettled { .. }
            | Self::BaseUnknown { .. }
            | Self::NotTakenBack { .. } => true,
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
        Self::Internal { what: "a worker thread", detail: error.to_string() }
    }

    /// A missing or short object is damage when something authenticated says that it must be there.
    pub(crate) fn missing_is_damage(error: StoreError, offset_bytes: u64) -> Self {
        use crate::store::StoreErrorKind as Kind;
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

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], CloudError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| CloudError::Internal {
        what: "reading randomness from the system",
        detail: e.to_string(),
    })?;
    Ok(bytes)
}
