//! Quiescing of applications and filesystems around a freeze.
//!
//! The pre-commands run first, part after part. When the volumes' new heads are ready, the filesystems are
//! frozen, the write barrier passes, and the filesystems are thawed. The post-commands run last, in reverse
//! order. Everything is resumed after any failure, by the next start of the daemon if necessary; until then
//! no other freeze quiesces. Freezes with commands for the same volumes or of the same rules run one after
//! the other: otherwise the post-command of one could resume what another has just quiesced.

mod admission;
mod command;
mod deadline;
mod error;
mod failures;
mod filesystems;
mod holder;
mod isolated;
mod kernel;
mod keyed_locks;
mod leftovers;
mod marker;
mod mounted;
mod operation;
mod parts;
mod users;

pub use admission::Admission;
pub use error::{FreezeError, QuiesceError};
pub use failures::Failures;
pub use filesystems::FreezeTarget;
pub use holder::hold_filesystem;
pub use isolated::{Isolated, IsolatedCommand, IsolatedDevice, IsolationError, PRIVATE_DIR, has_program};
pub use keyed_locks::{KeyedGuard, KeyedLocks};
pub use mounted::Mounted;
pub use operation::{Members, QuiesceOperation, Returned, is_release_due, release, was_thawed_early};
pub use parts::QuiescePart;
pub use users::{UserRefused, try_user};
