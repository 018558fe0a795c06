//! Cloud format: snapshots of volumes in object stores.
//!
//! A snapshot owns one delta (its changed blocks in frames, packs and an index) and a manifest, which
//! references that delta and all those below it; storing the manifest last commits the snapshot. `FORMAT.md`
//! defines the format byte for byte; volumes are known here only as block sets, readers and writers.

mod adaptive;
mod backup;
mod backup_spec;
mod buffers;
mod cache;
mod changed;
mod cipher;
mod clock;
mod codec;
mod commit;
mod compression_report;
mod damage;
mod dedup;
mod delete;
mod delta_listings;
mod drill;
mod error;
mod estimate;
mod fetch;
mod frame;
mod gc;
#[cfg(test)]
mod golden;
mod index;
mod index_writer;
mod job;
mod journal;
mod keys;
mod lease;
mod listing;
mod manifest;
mod names;
mod pack;
mod packing;
mod plan;
mod progress;
mod proof;
mod reader;
mod references;
mod repair;
mod repository;
mod restore;
mod rotate;
mod seal;
mod sealed_json;
mod slot_limits;
mod slots;
mod synthetic;
mod unlock;
mod verify;
mod wanted;
mod window;
mod write_key;

pub use backup::{TRANSFER_MEMORY_BYTES, UploadOptions, backup};
pub use backup_spec::{BACKUP_LIFETIME_S, BackupSpec, MAX_CLOCK_SKEW_S, RepairedSnapshot, new_delta_salt};
pub use blockd_extent::{CloudSnapshotId, DrillOutcome, DrillStage};
pub use blockd_store_config::{Compression, CompressionLevel};
pub use cache::{CacheCounters, CacheOptions, SnapshotCache};
pub use changed::changed_blocks;
pub use cipher::EncryptionMode;
pub use clock::{CLOCK_CHECK, MAX_CLOCK_DIFFERENCE_S, check_clock};
pub use codec::ZstdSearch;
pub use commit::check_base;
pub use compression_report::{CompressionReport, LevelUse};
pub use damage::{Damage, DamagedPart, MAX_DAMAGE_DESCRIBED};
pub use dedup::{
    DedupRequest, DedupSource, Deduplicated, FingerprintKey, dedup_sources, deduplicate,
    fingerprint_file_name, fingerprint_file_of, parse_fingerprint_file,
};
pub use delete::{DeleteMode, DeleteReport, delete_damaged, delete_snapshot, delete_with_manifest};
pub use drill::{DrillReport, DrillStep, MAX_DRILL_ITEMS, MAX_DRILL_TEXT_BYTES, drill_text};
pub use error::{ClockUnknownCause, CloudError};
pub use estimate::{BackupEstimate, estimate_backup, estimate_read};
pub use gc::{GarbageOptions, GarbageReport, Leftover, collect_garbage, remove_leftovers_of};
pub use journal::{BackupJournal, FileJournal, JournalBinding, MemoryJournal};
pub use keys::{DataKey, KdfParams, KeySlot};
pub use lease::{LEASE_LIFETIME, Lease, LeaseHolder, LeaseId, ListedLease};
pub use listing::{ListedManifest, ManifestCache, ManifestFilter, MemoryCache, NoCache};
pub use manifest::{BackupType, Delta, IndexRef, Manifest, SnapshotDescription};
pub use names::ManifestKey;
pub use progress::{CancelToken, Phase, Progress, ProgressSnapshot};
pub use proof::{ListedProof, MAX_PROOF_AHEAD, Proof, ProofId, ProofKind, location_id};
pub use reader::SnapshotReader;
pub use references::References;
pub use repair::{Repair, RepairSource, check_repaired, differing_blocks};
pub use repository::{KnownKeys, OpenOptions, Repository};
pub use restore::{BlockWriter, RestoreOptions, RestoreRequest, RestoreSummary, restore};
pub use rotate::{Rekey, Rekeyed, rekey};
pub use slots::{SlotFinding, SlotRepair};
pub use synthetic::{Unchanged, unchanged_since};
pub use verify::{
    AffectedSnapshot, BlockCheck, VerifiedSnapshot, VerifyDepth, VerifyFinding, VerifyOptions, VerifyReport,
    verify, verify_manifests,
};
pub use write_key::WriteKey;

/// Version of the format.
pub const FORMAT_VERSION: u16 = 1;
