//! Planted bugs, which tests must find.

/// Bug that is active only on a test's disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Bug {
    /// A flush logs blocks whose data was never synced.
    NoDataSync,
    /// A flush logs blocks before it syncs their data.
    LogBeforeData,
    /// A flush does not sync the log.
    NoLogSync,
    /// A rename is not made durable by a sync of the directory.
    NoDirSync,
    /// A file is renamed into place without a sync.
    NoFileSync,
    /// A freeze commits an old head that was not synced.
    FreezeWithoutSync,
    /// A freeze or growth lets writes enter a head that `volume.meta` does not name yet.
    HeadNotCommitted,
    /// A merge drops the zeroes of the upper layer.
    MergeForgetsZeroes,
    /// A merge is committed before copied data is synced.
    MergeWithoutSync,
    /// The progress of a merge is stored before copied data is synced.
    NoteBeforeSync,
    /// The live map is believed after a power cut.
    MapBelieved,
    /// A merge removes merged files before its commit.
    RemoveBeforeCommit,
    /// A failed sync of the live map is ignored.
    MapErrorForgotten,
    /// After a failed sync of data, the next one is trusted.
    FailedSyncForgotten,
    /// The log of a lazy base names blocks whose data was never synced.
    HydrationLoggedBeforeSync,
    /// A lazy base is declared complete before its data is synced.
    HydrationEndsUnsynced,
    /// A partially fetched lazy base is declared complete.
    HydrationEndsEarly,
}

#[cfg(feature = "testing")]
impl Bug {
    /// Bugs found by power cuts.
    pub const FOUND_BY_POWER_CUTS: [Self; 12] = [
        Self::NoDataSync,
        Self::LogBeforeData,
        Self::NoLogSync,
        Self::NoDirSync,
        Self::NoFileSync,
        Self::FreezeWithoutSync,
        Self::HeadNotCommitted,
        Self::MergeForgetsZeroes,
        Self::MergeWithoutSync,
        Self::NoteBeforeSync,
        Self::MapBelieved,
        Self::RemoveBeforeCommit,
    ];

    /// Bugs found by power cuts in volumes with a lazy base.
    pub const FOUND_IN_LAZY_VOLUMES: [Self; 3] =
        [Self::HydrationLoggedBeforeSync, Self::HydrationEndsUnsynced, Self::HydrationEndsEarly];
}
