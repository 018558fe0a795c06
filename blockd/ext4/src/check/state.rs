//! State of a check, its progress and its report.

use super::{
    claims::Claims,
    finding::{Count, Finding, Problem, Unchecked},
    inode_states::{Directory, Groups, XattrUse},
    limits::{Budget, Stop},
    special::Special,
};
use crate::{ExtError, Filesystem, InodeNumber, Structure};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::ControlFlow,
    sync::Arc,
};

/// Maximum number of findings in a report.
pub const MAX_FINDINGS: usize = 100;
/// Blocks between two calls for progress.
const BLOCKS_PER_CALL: u64 = 256;

/// Maximum number of scattered blocks that are announced together.
pub(super) const BLOCKS_AHEAD: usize = 64;

/// Step of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Stage {
    /// Group descriptors.
    Groups,
    /// Inodes and their blocks, by group.
    Inodes,
    /// Directories.
    Directories,
    /// Bitmaps and counts, by group.
    Bitmaps,
}

/// Progress of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Current step.
    pub stage: Stage,
    /// Finished groups or directories of the step.
    pub done: u64,
    /// Groups or directories of the step.
    pub total: u64,
    /// Bytes read so far.
    pub read_bytes: u64,
}

/// Result of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Inconsistencies in the order of the check, at most [`MAX_FINDINGS`]; the same for each check of an
    /// image.
    pub findings: Vec<Finding>,
    /// Number of further findings.
    pub more_findings: u64,
    /// Parts that the check did not cover, sorted.
    pub unchecked: Vec<Unchecked>,
    /// Number of inodes in use.
    pub inodes: u64,
    /// Number of directories.
    pub directories: u64,
    /// Bytes read.
    pub read_bytes: u64,
}

impl Report {
    /// Returns true if the check has no finding. That covers no part in [`unchecked`](Self::unchecked).
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

/// State of a check.
pub(super) struct Check<'a> {
    pub fs: &'a Filesystem,
    pub special: Special,
    pub memory: Budget,
    pub max_read_bytes: u64,
    pub progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    pub now: Progress,
    pub report: Report,
    pub unchecked: BTreeSet<Unchecked>,
    pub claims: Claims,
    pub groups: Groups,
    /// Directories by inode number.
    pub directories: Vec<Directory>,
    pub orphans: HashSet<u32>,
    pub xattr_blocks: BTreeMap<u64, XattrUse>,
    /// Inodes that hold values of extended attributes, each with an inode that refers to it.
    pub holders: Vec<(InodeNumber, InodeNumber)>,
    /// Damage hides a part of the files: comparisons with all files would fail.
    pub is_incomplete: bool,
}

impl Check<'_> {
    /// Adds a finding.
    pub fn add(&mut self, structure: Structure, problem: Problem) {
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(Finding { structure, problem });
        } else {
            self.report.more_findings += 1;
        }
    }

    /// Adds a finding about the format of a structure.
    pub fn add_damage(&mut self, structure: Structure, reason: &'static str) {
        self.add(structure, Problem::Damaged { reason });
    }

    /// Adds a finding about a count that differs.
    pub fn compare(&mut self, structure: Structure, of: Count, stored: u64, found: u64) {
        if stored != found {
            self.add(structure, Problem::WrongCount { of, stored, found });
        }
    }

    /// Returns a value of the reader; damage becomes a finding and hides files.
    pub fn found<T>(&mut self, result: Result<T, ExtError>) -> Result<Option<T>, Stop> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(ExtError::Damaged { structure, reason }) => {
                self.add_damage(structure, reason);
                self.is_incomplete = true;
                Ok(None)
            }
            Err(ExtError::Unsupported { .. }) => {
                self.unchecked.insert(Unchecked::UnsupportedParts);
                self.is_incomplete = true;
                Ok(None)
            }
            Err(error) => Err(Stop::Failed(error)),
        }
    }

    /// Subtracts a read from the limit and calls for progress.
    pub fn count_read(&mut self, bytes: u64) -> Result<(), Stop> {
        let block_len = self.fs.disk().block_len() as u64;
        let per_call = BLOCKS_PER_CALL * block_len;
        let before = self.now.read_bytes / per_call;
        self.now.read_bytes = self.now.read_bytes.saturating_add(bytes);
        if self.now.read_bytes > self.max_read_bytes {
            return Err(Stop::Limit(Unchecked::ReadLimit));
        }
        if self.now.read_bytes / per_call == before { Ok(()) } else { self.call() }
    }

    fn call(&mut self) -> Result<(), Stop> {
        match (self.progress)(self.now) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Stop::Failed(ExtError::Cancelled)),
        }
    }

    /// Starts the next group or directory.
    pub fn step(&mut self, stage: Stage, done: u64, total: u64) -> Result<(), Stop> {
        self.now = Progress { stage, done, total, ..self.now };
        self.call()
    }

    /// Reads a metadata block; damage is a finding.
    pub fn read_block(&mut self, block: u64) -> Result<Option<Arc<[u8]>>, Stop> {
        self.count_read(self.fs.disk().block_len() as u64)?;
        let bytes = self.fs.disk().block(block);
        self.found(bytes)
    }

    /// Claims blocks for a structure. Returns false, with a finding, if one is claimed already.
    pub fn claim(&mut self, owner: Structure, first: u64, count: u64) -> Result<bool, Stop> {
        match self.claims.claim(first..first + count, &mut self.memory)? {
            None => Ok(true),
            Some(block) => {
                self.add(owner, Problem::ClaimedTwice { block });
                Ok(false)
            }
        }
    }
}
