//! Volumes as stacks of layers: writes go to the head, a freeze starts a new head, and the block set of a
//! layer *is* the set of blocks dirtied while it was the head.
//!
//! This crate is independent of NBD and the cloud. A volume reads, writes, flushes, trims, freezes, reports
//! changed blocks between two freezes, and merges layers that no snapshot needs. `FORMAT.md` describes the
//! files; `DURABILITY.md` argues why neither a process crash nor a power cut breaks a guarantee.

mod block_status;
mod check;
mod check_offline;
mod clone;
mod closed;
mod diff;
mod error;
mod freeze;
mod grow;
mod head;
mod io;
mod layer;
mod lazy;
mod merge;
mod meta;
mod open;
mod read;
mod restore;
mod rollback;
mod salvage;
mod scrub;
mod space;
mod view;
mod volume;
mod write;

pub use block_status::{Allocation, AllocationExtent, DirtyExtent};
pub use check::Checked;
pub use closed::{ClosedSnapshot, ClosedVolume};
pub use diff::{Difference, DifferenceExtent};
pub use error::{VolumeError, VolumeErrorKind};
pub use freeze::group::{GroupError, GroupFrozen, freeze_group, freeze_group_with};
pub use freeze::intervals::Changes;
pub use freeze::{Frozen, SnapshotInfo};
pub use head::discarded::{DiscardCause, DiscardedWrites, SurvivingClients};
pub use head::volume_dir::{OpenOptions, Recovery};
pub use io::closer::wait_for_removed_files;
pub use io::reserve::{Released, Reserve};
pub use io::storage::{Op, Storage, attach_storage, detach_storage};
pub use lazy::hydrate::Access;
pub use lazy::{FetchFailure, FetchReply, FetchSink, Hydration, LazySource, OnFetched, SourceError, Urgency};
pub use read::Content;
pub use restore::RestoreTarget;
pub use rollback::RolledBack;
pub use salvage::{Salvage, SalvageView, UnprovenExtent};
pub use scrub::{LayerDamage, Repaired, ScrubPosition, ScrubStep};
pub use space::SnapshotSpace;
pub use view::SnapshotView;
pub use volume::{MergeStats, Volume, VolumeStats};
