//! Bugs that a test can turn on, to see that it would find them.

/// A bug that is there only where a test's disk has it planted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Bug {
    /// A flush names blocks in the log whose data was never synced.
    NoDataSync,
    /// A flush names blocks in the log first and syncs their data then.
    LogBeforeData,
    /// A flush does not sync the log.
    NoLogSync,
    /// A file that was renamed into place is not synced in its folder.
    NoDirSync,
    /// A file is renamed into place without having been synced.
    NoFileSync,
    /// A freeze declares an old head frozen that was not synced.
    FreezeWithoutSync,
    /// A freeze or growth lets writes enter a head that `volume.meta` does not name yet.
    HeadNotCommitted,
    /// A merge takes in the data of the upper layer and forgets its zeroes.
    MergeForgetsZeroes,
    /// A merge is committed without the data that was copied being synced.
    MergeWithoutSync,
    /// How far a merge is gets written down before what it has copied is synced.
    NoteBeforeSync,
    /// The live map is believed after a power cut.
    MapBelieved,
    /// A merge removes the files of the layers that it merged before the new ones are committed.
    RemoveBeforeCommit,
    /// A failed sync of the live map is ignored.
    MapErrorForgotten,
    /// After a failed sync of data, the next one is believed.
    FailedSyncForgotten,
    /// The log of a lazy base names blocks whose data was never synced.
    HydrationLoggedBeforeSync,
    /// A lazy base is declared complete without its data being synced.
    HydrationEndsUnsynced,
    /// A lazy base that was fetched in part is declared complete.
    HydrationEndsEarly,
}

#[cfg(feature = "testing")]
impl Bug {
    /// Those that a power cut brings to light.
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

    /// Those that a power cut brings to light in a volume with a lazy base.
    pub const FOUND_IN_LAZY_VOLUMES: [Self; 3] =
        [Self::HydrationLoggedBeforeSync, Self::HydrationEndsUnsynced, Self::HydrationEndsEarly];
}
