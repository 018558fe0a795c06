//! Plan of a backup: [`decide`] chooses its type by the chain, and a file keeps the plan.
//!
//! The file exists from before the first upload until the commit: a resumed backup uses the same blocks,
//! references, salt and base, so its earlier uploads remain valid.
//!
//! Layout, little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `BLKDPLAN` |
//! | 8 | 2 | version, 1 |
//! | 10 | 1 | base: 0 none, 1 a full backup, 2 an incremental one |
//! | 11 | 1 | 1 for a synthetic full backup, which has a base, otherwise 0 |
//! | 12 | 4 | number n of donors |
//! | 16 | 16 | the task |
//! | 32 | 32 | salt of the delta |
//! | 64 | 16 | cluster of the base (zero without one) |
//! | 80 | 8 | snapshot of the base (zero without one) |
//! | 88 | 8 | when the backup began, microseconds since 1970 (signed) |
//! | 96 | 8 | epoch that the freeze ended |
//! | 104 | 8 | when that was, microseconds since 1970 (signed) |
//! | 112 | 8 | length d of the set of data blocks |
//! | 120 | 8 | length z of the set of zero blocks |
//! | 128 | 8 | volume of the base, another one for a lazy volume's first backup (zero without one) |
//! | 136 | 8 | length r of the references |
//! | 144 | 8 | length u of the set of deduplicated blocks |
//! | 152 | d + z + u + r | these sets, and the references as [`blockd_cloud::References`] encodes them |
//! | … | 33 n | donors: cluster (16), volume (8), snapshot (8), 1 for an incremental or 0 |
//! | … | 8 | xxh3-64 of all before |

use crate::error::ServiceError;
use blockd_api::cloudsnaps::BackupOptions;
use blockd_catalog::{Chain, SnapshotRow};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{BlockSet, Epoch, SnapshotId, VolumeId};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"BLKDPLAN";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 152;
const DONOR_BYTES: usize = 33;

/// Reason for a full backup without a chain, which only the last backup has.
const NO_LAST_BACKUP: &str = "no last backup of the volume to this location is recorded on this host: none was made, it was deleted, or its end was unknown";

/// Type of a backup with its reason or base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision<'a> {
    /// Full backup that stores all blocks.
    Full {
        /// Reason.
        why: &'static str,
    },
    /// Full backup that references the stored content of unchanged blocks.
    Synthetic {
        /// Base.
        base: &'a Chain,
        /// Reason.
        why: &'static str,
    },
    /// Incremental backup.
    Incremental {
        /// Base.
        base: &'a Chain,
    },
}

/// Decides the type: a full backup, then `full_every - 1` incrementals, and so on. Full backups are synthetic
/// after the first one, unless `reupload` requests a new copy of all blocks.
/// `make_plan` has the reasons for a full backup that need the manifest of the base or the volume.
pub fn decide<'a>(
    chain: Option<&'a Chain>,
    options: &BackupOptions,
    full_every: u32,
    frozen: Epoch,
) -> Decision<'a> {
    let Some(base) = chain else {
        return Decision::Full { why: NO_LAST_BACKUP };
    };
    if options.full && options.reupload {
        return Decision::Full { why: "full backup with a new copy of all data requested" };
    }
    if base.epoch >= frozen {
        return Decision::Full { why: "the point in time is not later than that of the last backup" };
    }
    if options.full {
        return Decision::Synthetic { base, why: "full backup requested" };
    }
    if base.next_incremental() >= u64::from(full_every) {
        return Decision::Synthetic {
            base,
            why: "full backup due in the cycle of full and incremental backups",
        };
    }
    Decision::Incremental { base }
}

/// Plan of a backup.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Task.
    pub task: Uuid,
    /// Epoch that the freeze ended.
    pub epoch: Epoch,
    /// Time of the freeze, in microseconds.
    pub frozen: Timestamp,
    /// Base of an incremental or a synthetic full backup.
    pub base: Option<CloudSnapshotId>,
    /// The backup is full in spite of its base, which its references name.
    pub synthetic: bool,
    /// Salt of the delta's keys.
    pub salt: [u8; 32],
    /// Start time of the backup.
    pub started: Timestamp,
    /// Blocks to read.
    pub data: BlockSet,
    /// Blocks known to be zero.
    pub zero: BlockSet,
    /// Encoded [`blockd_cloud::References`]; empty without any.
    pub references: Vec<u8>,
    /// Snapshots besides the base that name sources of the references.
    pub donors: Vec<CloudSnapshotId>,
    /// Referenced blocks that may have changed since the base.
    pub deduplicated: BlockSet,
}

fn number(body: &[u8], at: usize) -> Result<u64, &'static str> {
    let bytes = body.get(at..).and_then(|rest| rest.first_chunk::<8>());
    bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or("file too short")
}

/// Returns the data, zero and deduplicated blocks, the references and the donors of a file.
fn parts(body: &[u8]) -> Result<[&[u8]; 5], &'static str> {
    const WRONG: &str = "inconsistent lengths";
    let len = |at| usize::try_from(number(body, at)?).map_err(|_| WRONG);
    let all = body.get(HEADER_BYTES..).ok_or("file too short")?;
    let (data, rest) = all.split_at_checked(len(112)?).ok_or(WRONG)?;
    let (zero, rest) = rest.split_at_checked(len(120)?).ok_or(WRONG)?;
    let (deduplicated, references) = rest.split_at_checked(len(144)?).ok_or(WRONG)?;
    let (references, donors) = references.split_at_checked(len(136)?).ok_or(WRONG)?;
    let count = u32::from_le_bytes([body[12], body[13], body[14], body[15]]) as usize;
    if donors.len() == count * DONOR_BYTES {
        Ok([data, zero, deduplicated, references, donors])
    } else {
        Err(WRONG)
    }
}

fn parse_donor(bytes: &[u8]) -> Result<CloudSnapshotId, &'static str> {
    Ok(CloudSnapshotId {
        cluster: bytes.get(..16).and_then(|id| Uuid::from_slice(id).ok()).ok_or("invalid id of a donor")?,
        volume: VolumeId::from_u64(number(bytes, 16)?),
        snapshot: SnapshotId::from_u64(number(bytes, 24)?),
        incremental: bytes.last() == Some(&1),
    })
}

fn path(dir: &Path) -> PathBuf {
    dir.join("plan")
}

/// Returns the path of the backup's journal.
pub fn journal_path(dir: &Path) -> PathBuf {
    dir.join("journal")
}

impl Plan {
    /// Returns true for the plan of this freeze: the block sets of another one do not apply.
    pub fn is_of(&self, snapshot: &SnapshotRow) -> bool {
        let frozen = (snapshot.epoch, snapshot.created.as_microsecond());
        (self.epoch, self.frozen.as_microsecond()) == frozen
    }

    /// Returns true for an incremental backup.
    pub fn is_incremental(&self) -> bool {
        self.base.is_some() && !self.synthetic
    }

    fn encode(&self) -> Vec<u8> {
        let (data, zero) = (self.data.to_bytes(), self.zero.to_bytes());
        let deduplicated = self.deduplicated.to_bytes();
        let mut bytes =
            Vec::with_capacity(HEADER_BYTES + data.len() + zero.len() + self.references.len() + 8);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(self.base.map_or(0, |base| 1 + u8::from(base.incremental)));
        bytes.push(self.synthetic.into());
        bytes.extend_from_slice(&(self.donors.len() as u32).to_le_bytes());
        bytes.extend_from_slice(self.task.as_bytes());
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(self.base.map_or(Uuid::nil(), |base| base.cluster).as_bytes());
        bytes.extend_from_slice(&self.base.map_or(0, |base| base.snapshot.as_u64()).to_le_bytes());
        bytes.extend_from_slice(&self.started.as_microsecond().to_le_bytes());
        bytes.extend_from_slice(&self.epoch.0.to_le_bytes());
        bytes.extend_from_slice(&self.frozen.as_microsecond().to_le_bytes());
        bytes.extend_from_slice(&(data.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(zero.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.base.map_or(0, |base| base.volume.as_u64()).to_le_bytes());
        bytes.extend_from_slice(&(self.references.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&(deduplicated.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&data);
        bytes.extend_from_slice(&zero);
        bytes.extend_from_slice(&deduplicated);
        bytes.extend_from_slice(&self.references);
        for donor in &self.donors {
            bytes.extend_from_slice(donor.cluster.as_bytes());
            bytes.extend_from_slice(&donor.volume.as_u64().to_le_bytes());
            bytes.extend_from_slice(&donor.snapshot.as_u64().to_le_bytes());
            bytes.push(donor.incremental.into());
        }
        bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8], task: Uuid) -> Result<Self, &'static str> {
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or("file too short")?;
        if body.len() < HEADER_BYTES || body[..8] != *MAGIC {
            return Err("not a backup plan");
        }
        if u16::from_le_bytes([body[8], body[9]]) != VERSION {
            return Err("unsupported version");
        }
        if xxh3_64(body) != u64::from_le_bytes(*sum) {
            return Err("checksum mismatch");
        }
        if body[16..32] != *task.as_bytes() {
            return Err("plan of another task");
        }
        let base = match body[10] {
            0 => None,
            kind @ (1 | 2) => Some(CloudSnapshotId {
                cluster: Uuid::from_slice(&body[64..80]).map_err(|_| "invalid id of the base")?,
                volume: VolumeId::from_u64(number(body, 128)?),
                snapshot: SnapshotId::from_u64(number(body, 80)?),
                incremental: kind == 2,
            }),
            _ => return Err("unknown backup type"),
        };
        let [data, zero, deduplicated, references, donors] = parts(body)?;
        let mut salt = [0; 32];
        salt.copy_from_slice(&body[32..64]);
        // The 8 bytes of a signed number are those of an unsigned one.
        let time = |at| {
            let micros = i64::from_le_bytes(number(body, at)?.to_le_bytes());
            Timestamp::from_microsecond(micros).map_err(|_| "invalid time")
        };
        Ok(Self {
            task,
            epoch: Epoch(number(body, 96)?),
            frozen: time(104)?,
            base,
            synthetic: body[11] == 1,
            salt,
            started: time(88)?,
            data: BlockSet::from_bytes(data).map_err(|_| "damaged set of data blocks")?,
            zero: BlockSet::from_bytes(zero).map_err(|_| "damaged set of zero blocks")?,
            references: references.to_vec(),
            donors: donors.chunks_exact(DONOR_BYTES).map(parse_donor).collect::<Result<_, _>>()?,
            deduplicated: BlockSet::from_bytes(deduplicated)
                .map_err(|_| "damaged set of deduplicated blocks")?,
        })
    }

    /// Saves the plan durably, after an empty journal: a plan without one has lost it. An existing journal
    /// is that of a damaged plan.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), ServiceError> {
        let file = |action, path: &Path, source| ServiceError::File { action, path: path.to_owned(), source };
        blockd_files::make_dir(dir).map_err(|source| file("create", dir, source))?;
        let write = |path: PathBuf, content: &[u8]| {
            blockd_files::write_atomically(&path, content).map_err(|source| file("write", &path, source))
        };
        let journal = journal_path(dir);
        if !journal.exists() {
            write(journal, &[])?;
        }
        write(path(dir), &self.encode())
    }

    /// Loads the saved plan, if it is intact. A damaged one is replaced: no commit used it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn load(dir: &Path, task: Uuid) -> Result<Option<Self>, ServiceError> {
        let path = path(dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ServiceError::File { action: "read", path, source }),
        };
        match Self::decode(&bytes, task) {
            Ok(plan) => Ok(Some(plan)),
            Err(what) => {
                tracing::warn!(path = %path.display(), what, "ignoring an unusable backup plan");
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{BlockIndex, Extent};

    fn chain(incrementals: u64) -> Chain {
        Chain {
            volume: VolumeId::from_u64(1),
            credential: Uuid::nil(),
            epoch: Epoch(5),
            cloudsnap: id(incrementals > 0),
            incrementals,
            point_in_time: Timestamp::UNIX_EPOCH,
        }
    }

    fn options(full: bool, reupload: bool) -> BackupOptions {
        BackupOptions { full, reupload, ..BackupOptions::default() }
    }

    fn id(incremental: bool) -> CloudSnapshotId {
        let snapshot = SnapshotId::from_u64(0x0102_0304_0506_0708);
        CloudSnapshotId { cluster: Uuid::from_u128(7), volume: VolumeId::from_u64(1), snapshot, incremental }
    }

    #[test]
    fn seventh_backup_is_full() {
        let mut kinds = String::new();
        let mut tip: Option<Chain> = None;
        for _ in 0..16 {
            match decide(tip.as_ref(), &options(false, false), 7, Epoch(9)) {
                Decision::Full { .. } => {
                    kinds.push('F');
                    tip = Some(chain(0));
                }
                Decision::Synthetic { .. } => {
                    kinds.push('S');
                    tip = Some(chain(0));
                }
                Decision::Incremental { base } => {
                    kinds.push('i');
                    tip = Some(chain(base.incrementals + 1));
                }
            }
        }
        assert_eq!(kinds, "FiiiiiiSiiiiiiSi");
        let decided = |options, full_every, frozen| match decide(Some(&chain(0)), options, full_every, frozen)
        {
            Decision::Full { .. } => 'F',
            Decision::Synthetic { .. } => 'S',
            Decision::Incremental { .. } => 'i',
        };
        let [usual, full, again] = [options(false, false), options(true, false), options(true, true)];
        assert_eq!(decided(&full, 7, Epoch(9)), 'S');
        assert_eq!(decided(&again, 7, Epoch(9)), 'F');
        assert_eq!(decided(&usual, 1, Epoch(9)), 'S');
        // The blocks changed since a later backup are not those of this point in time.
        [&usual, &full, &again].iter().for_each(|options| assert_eq!(decided(*options, 1, Epoch(5)), 'F'));
    }

    #[test]
    fn first_backup_of_a_lazy_volume_is_incremental() {
        let backing = Chain { volume: VolumeId::from_u64(2), ..chain(6) };
        let usual = options(false, false);
        assert!(matches!(decide(Some(&backing), &usual, 7, Epoch(9)), Decision::Incremental { .. }));
        assert!(matches!(decide(Some(&backing), &usual, 1, Epoch(9)), Decision::Synthetic { .. }));
        let own = chain(7);
        assert!(matches!(decide(Some(&own), &usual, 7, Epoch(9)), Decision::Synthetic { .. }));
    }

    fn plan() -> Plan {
        let mut data = BlockSet::new();
        data.insert_extent(Extent::new(BlockIndex(3), 70));
        let mut zero = BlockSet::new();
        zero.insert(BlockIndex(1 << 33));
        Plan {
            task: Uuid::from_u128(9),
            epoch: Epoch(0x0A0B),
            frozen: Timestamp::from_microsecond(1_699_999_999_999_999).unwrap(),
            base: Some(id(true)),
            synthetic: true,
            salt: [0xA5; 32],
            started: Timestamp::from_microsecond(1_700_000_000_000_001).unwrap(),
            data,
            zero,
            references: vec![3, 1, 4, 1, 5],
            donors: vec![id(false), id(true)],
            deduplicated: BlockSet::from_iter([Extent::new(BlockIndex(200), 9)]),
        }
    }

    #[test]
    fn stored_layout_is_stable() {
        let golden = include_bytes!("../../tests/golden/plan-v1.bin");
        // The base belongs to another volume.
        let base = CloudSnapshotId { volume: VolumeId::from_u64(2), ..id(true) };
        let plan = Plan { base: Some(base), ..plan() };
        assert_eq!(plan.encode(), golden);
        assert_eq!(Plan::decode(golden, plan.task), Ok(plan));
    }

    #[test]
    fn plan_belongs_to_one_freeze() {
        let plan = plan();
        let snapshot = SnapshotRow {
            id: SnapshotId::from_u64(1),
            volume: VolumeId::from_u64(1),
            name: "s".parse().unwrap(),
            // The row has a finer resolution than the file.
            created: plan.frozen + jiff::SignedDuration::from_nanos(700),
            state: blockd_catalog::SnapshotState::Ready,
            internal: true,
            epoch: plan.epoch,
            dirty_bytes: 0,
            freeze_stall_micros: 0,
            taken_with: None,
            quiesce: None,
            pinned: false,
        };
        assert!(plan.is_of(&snapshot));
        assert!(!plan.is_of(&SnapshotRow { epoch: Epoch(plan.epoch.0 + 1), ..snapshot.clone() }));
        assert!(!plan.is_of(&SnapshotRow { created: Timestamp::UNIX_EPOCH, ..snapshot }));
    }

    #[test]
    fn damaged_or_foreign_plan_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan();
        assert!(Plan::load(dir.path(), plan.task).unwrap().is_none());
        plan.save(dir.path()).unwrap();
        assert_eq!(Plan::load(dir.path(), plan.task).unwrap(), Some(plan.clone()));
        assert!(Plan::load(dir.path(), Uuid::nil()).unwrap().is_none());
        let good = plan.encode();
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            assert!(Plan::decode(&bad, plan.task).is_err(), "byte {byte}");
            assert!(Plan::decode(&good[..byte], plan.task).is_err(), "{byte} bytes");
        }
    }
}
