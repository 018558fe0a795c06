//! Bugs that a test can turn on, to see that it would find them.

/// A bug that is there only where a test's disk has it planted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Bug {
    /// A flush names blocks in the log whose data was not synced.
    NoDataSync,
}
