//! Volumes as stacks of layers: writes go to the head, a freeze starts a new head, and the blocks of a layer
//! *are* the blocks that changed while it was the head.
//!
//! This crate is independent of NBD and the cloud: a volume reads, writes, flushes, trims, freezes, reports
//! changed blocks between two freezes, and merges layers that no snapshot needs. `FORMAT.md` describes the
//! files; `DURABILITY.md` argues why neither the death of the process nor a power cut breaks a guarantee.

mod block_status;
mod check;
mod check_offline;
mod clone;
mod closer;
mod copy;
mod cover;
mod data_files;
mod diff;
mod discarded;
mod error;
mod fetch_budget;
mod files;
mod flusher;
mod freeze;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod group;
mod grow;
mod head;
mod head_log;
mod hydrate;
mod in_flight;
mod intervals;
mod layer_set;
mod lazy;
mod lazy_base;
mod live_map;
mod location_cache;
mod merge;
mod merge_note;
mod meta;
mod mount;
mod open;
mod prefetch_queue;
mod read;
mod regions;
mod reserve;
mod restore;
mod ring_reader;
mod rollback;
mod salvage;
mod shared;
mod space;
mod stack;
mod storage;
#[cfg(feature = "testing")]
pub mod testing;
mod view;

mod volume;
mod waiters;
mod write;

pub use block_status::{Allocation, AllocationRun, DirtyRun};
pub use check::Checked;
pub use closer::wait_for_removed_files;
pub use diff::{Difference, DifferenceRun};
pub use discarded::{DiscardCause, DiscardedWrites, SurvivingClients};
pub use error::{VolumeError, VolumeErrorKind};
pub use freeze::{Frozen, SnapshotInfo};
#[cfg(feature = "testing")]
pub use group::freeze_one_by_one;
pub use group::{GroupError, GroupFrozen, freeze_group, freeze_group_with};
pub use hydrate::Access;
pub use intervals::Changes;
pub use lazy::{FetchFailure, FetchReply, FetchSink, Hydration, LazySource, OnFetched, SourceError, Urgency};
pub use merge::MergeStats;
pub use open::{OpenOptions, Recovery};
pub use read::Content;
pub use reserve::{Released, Reserve};
pub use restore::RestoreTarget;
pub use rollback::RolledBack;
pub use salvage::{Salvage, SalvageView, UnprovenRun};
pub use space::SnapshotSpace;
pub use view::SnapshotView;
pub use volume::{Volume, VolumeStats};
