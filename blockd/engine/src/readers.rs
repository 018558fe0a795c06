//! Interface to the readers of snapshots outside of the engine.

use blockd_cloud::CacheCounters;
use blockd_extent::VolumeId;
use std::fmt::Debug;
use uuid::Uuid;

/// Open images, mounts and listings of snapshots.
pub trait SnapshotReaders: Debug + Send + Sync {
    /// Closes the idle local snapshots of a volume, so that they can be deleted.
    fn release(&self, volume: VolumeId);

    /// Invalidates the listings of a store after a snapshot was created or deleted in it.
    fn renew(&self, credential: Uuid);

    /// Closes the cloud snapshots opened through a credential.
    fn forget(&self, credential: Uuid);

    /// Returns the counters of the cache of cloud snapshots; `None` before its first use.
    fn cache_counters(&self) -> Option<CacheCounters>;
}
