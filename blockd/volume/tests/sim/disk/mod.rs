//! Simulated disk with faults, lost writes and power cuts.
//!
//! A [`Disk`] is attached to a directory. From then on every call on its files passes through it:
//! [faults](Fault) replace calls, and beside the files, which model the page cache, the disk tracks durable
//! data. A sync does not reach the kernel and makes data durable; after a [power cut](Disk::power_cut), a
//! random part of unsynced data survives in a separate directory. A [disk bug](DiskBug) proves that the
//! tests detect it.
//!
//! Model: sectors and length of a file reach the disk at any time between write and sync, in any order, but
//! never revert; a name is durable only after a sync of its directory, each name independently, and a rename
//! is atomic; after a failed sync the kernel treats dropped pages as clean, so that they read as written
//! until they are [evicted](Disk::evict).

mod crash;
mod node;
// Not a dependency: the test kit depends on this crate and many others.
#[path = "../../../../../tests/testkit/src/rng.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod rng;
mod simulated;

use blockd_volume::Op;
pub use rng::Rng;
pub use simulated::{Attached, Disk, Operation};
use std::{io, path::Path};

/// Kind of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpKind {
    CreateDir,
    Create,
    Open,
    Read,
    Write,
    SetLen,
    Reserve,
    Zero,
    Share,
    Sync,
    SyncDir,
    Rename,
    Link,
    Remove,
    RemoveTree,
}

impl OpKind {
    /// Returns true if the call can fail on a full disk.
    pub fn takes_space(self) -> bool {
        !matches!(self, Self::Open | Self::Read | Self::Remove | Self::RemoveTree)
    }

    /// Returns true for syncs of files and directories.
    pub fn is_sync(self) -> bool {
        matches!(self, Self::Sync | Self::SyncDir)
    }
}

fn kind_of(op: &Op<'_>) -> Option<OpKind> {
    Some(match op {
        Op::CreateDir => OpKind::CreateDir,
        Op::Create => OpKind::Create,
        Op::Open => OpKind::Open,
        Op::Read => OpKind::Read,
        Op::Write { .. } => OpKind::Write,
        Op::SetLen(_) => OpKind::SetLen,
        Op::Reserve => OpKind::Reserve,
        Op::Zero { .. } => OpKind::Zero,
        Op::Share { .. } => OpKind::Share,
        Op::Sync => OpKind::Sync,
        Op::SyncDir => OpKind::SyncDir,
        Op::Rename(_) => OpKind::Rename,
        Op::Link(_) => OpKind::Link,
        Op::Remove => OpKind::Remove,
        Op::RemoveTree => OpKind::RemoveTree,
        // Advice cannot fail.
        Op::DropCache(_) => return None,
    })
}

/// Error of a failed call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// Device error.
    Io,
    /// Filesystem full.
    NoSpace,
    /// Quota exceeded.
    Quota,
}

impl FaultError {
    fn error(self) -> io::Error {
        match self {
            Self::Io => rustix::io::Errno::IO,
            Self::NoSpace => rustix::io::Errno::NOSPC,
            Self::Quota => rustix::io::Errno::DQUOT,
        }
        .into()
    }
}

/// Broken promise of a disk, which the tests must detect. Texts are parts of paths.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskBug {
    /// A sync of a file succeeds without effect.
    IgnoresSync(&'static str),
    /// Names never become durable by a sync of their directory.
    IgnoresDirSync,
    /// A sync of one file takes effect right after the next sync of, or rename to, another one.
    SyncsLate {
        /// File with the delayed sync.
        late: &'static str,
        /// File whose sync, or rename to it, comes first.
        after: &'static str,
    },
    /// A failed sync of a file is reported as a success.
    HidesFailedSync(&'static str),
}

/// Injected fault.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Kinds of calls; all if empty.
    pub kinds: Vec<OpKind>,
    /// Only paths that contain this text.
    pub path_contains: String,
    /// Number of matching calls that succeed first.
    pub skip: u64,
    /// All later matching calls fail, too.
    pub persistent: bool,
    /// Returned error.
    pub error: FaultError,
    /// Bytes of a failed write that are written anyway.
    pub partial_bytes: usize,
}

impl Fault {
    /// Creates a fault of every call from now on.
    pub fn every(error: FaultError) -> Self {
        Self {
            kinds: vec![],
            path_contains: String::new(),
            skip: 0,
            persistent: true,
            error,
            partial_bytes: 0,
        }
    }

    /// Creates a fault of one call, counted from 0.
    pub fn at(number: u64, error: FaultError) -> Self {
        Self { skip: number, persistent: false, ..Self::every(error) }
    }

    fn matches(&self, kind: OpKind, path: &Path) -> bool {
        let kind_fits = if self.kinds.is_empty() {
            self.error == FaultError::Io || kind.takes_space()
        } else {
            self.kinds.contains(&kind)
        };
        kind_fits && path.to_string_lossy().contains(&self.path_contains)
    }
}
