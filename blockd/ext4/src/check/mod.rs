//! Consistency check: a read-only comparison of all metadata of a filesystem.
//!
//! [`Filesystem::check`] reads superblock, group descriptors, bitmaps, used inodes, block maps, directories
//! and extended attributes as they are after the journal's replay, and compares them with each other. Inodes
//! that a crash left on the orphan list are no finding: recovery deletes or truncates them.
//!
//! A check never covers file contents, which have no checksums, the backups of superblock and descriptors,
//! the free counts of the superblock, which kernels and e2fsck take from the groups, the hashes of names in
//! hash tree directories, and hashes of extended attributes. [`Report::unchecked`] names the parts of this
//! filesystem that it did not cover in addition.

mod bitmaps;
mod claims;
mod directories;
mod finding;
mod groups;
mod hash_tree;
mod inodes;
mod links;
mod mapping;
mod orphans;

pub use finding::{Count, Finding, Problem, Unchecked};

use crate::{ExtError, Filesystem, InodeNumber, JournalState, Structure, features::bit, journal};
use claims::Claims;
use groups::{Groups, Special};
use inodes::{Directory, XattrUse};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::ControlFlow,
    sync::Arc,
};

/// Maximum number of findings in a report.
pub const MAX_FINDINGS: usize = 100;
/// Blocks between two calls for progress.
const BLOCKS_PER_CALL: u64 = 256;

/// Limits of a check. A check that reaches one ends there and names it in [`Report::unchecked`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Memory for block sets and inode tables, in bytes; a filesystem of 1 TiB with ten million files needs
    /// up to 150 MiB.
    pub memory_bytes: u64,
    /// Bytes read from the image, including those from the cache.
    pub read_bytes: u64,
}

impl Default for Limits {
    /// Returns 256 MiB of memory and 1 TiB of reads.
    fn default() -> Self {
        Self { memory_bytes: 256 << 20, read_bytes: 1 << 40 }
    }
}

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

/// End of a check before its last step.
enum Stop {
    Failed(ExtError),
    Limit(Unchecked),
}

/// Rest of a limit, in bytes.
struct Budget(u64);

impl Budget {
    fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    fn take(&mut self, bytes: u64) -> Result<(), Stop> {
        self.0 = self.0.checked_sub(bytes).ok_or(Stop::Limit(Unchecked::MemoryLimit))?;
        Ok(())
    }

    fn give_back(&mut self, bytes: u64) {
        self.0 += bytes;
    }
}

/// State of a check.
struct Check<'a> {
    fs: &'a Filesystem,
    special: Special,
    memory: Budget,
    max_read_bytes: u64,
    progress: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    now: Progress,
    report: Report,
    unchecked: BTreeSet<Unchecked>,
    claims: Claims,
    groups: Groups,
    /// Directories by inode number.
    directories: Vec<Directory>,
    orphans: HashSet<u32>,
    xattr_blocks: BTreeMap<u64, XattrUse>,
    /// Inodes that hold values of extended attributes, each with an inode that refers to it.
    holders: Vec<(InodeNumber, InodeNumber)>,
    /// Damage hides a part of the files: comparisons with all files would fail.
    is_incomplete: bool,
}

impl Filesystem {
    /// Checks the consistency of the filesystem. Reads as much as its metadata; calls `progress` before each
    /// group and directory, and at least every 256 blocks.
    ///
    /// # Errors
    /// [`ExtError::Cancelled`] if `progress` returned [`ControlFlow::Break`], or the image could not be read.
    /// Damage is no error.
    pub fn check(
        &self,
        limits: Limits,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Report, ExtError> {
        let mut report = Report {
            findings: Vec::new(),
            more_findings: 0,
            unchecked: vec![Unchecked::MemoryLimit],
            inodes: 0,
            directories: 0,
            read_bytes: 0,
        };
        let mut memory = Budget::new(limits.memory_bytes);
        let Ok(claims) = Claims::new(self.disk().blocks(), &mut memory) else { return Ok(report) };
        report.unchecked.clear();
        let mut check = Check {
            fs: self,
            special: Special::read(self)?,
            memory,
            max_read_bytes: limits.read_bytes,
            progress,
            now: Progress { stage: Stage::Groups, done: 0, total: 0, read_bytes: 0 },
            report,
            unchecked: BTreeSet::new(),
            claims,
            groups: Groups::default(),
            directories: Vec::new(),
            orphans: HashSet::new(),
            xattr_blocks: BTreeMap::new(),
            holders: Vec::new(),
            is_incomplete: false,
        };
        match check.run() {
            Ok(()) => {}
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Limit(limit)) => {
                check.unchecked.insert(limit);
            }
        }
        let mut report = check.report;
        report.unchecked = check.unchecked.into_iter().collect();
        report.read_bytes = check.now.read_bytes;
        Ok(report)
    }
}

impl Check<'_> {
    fn run(&mut self) -> Result<(), Stop> {
        self.note_unchecked();
        self.check_journal()?;
        if !self.check_superblock() {
            self.unchecked.insert(Unchecked::DamagedParts);
            return Ok(());
        }
        self.claim_groups()?;
        self.read_orphans()?;
        self.check_inodes()?;
        self.check_directories()?;
        if self.is_incomplete {
            self.unchecked.insert(Unchecked::DamagedParts);
        } else {
            self.check_links();
        }
        self.check_bitmaps()
    }

    fn note_unchecked(&mut self) {
        let features = self.fs.superblock().features;
        if matches!(self.fs.info().journal, JournalState::Replayed { fast_commits: true, .. }) {
            self.unchecked.insert(Unchecked::FastCommits);
        }
        if self.special.cluster_len > 1 {
            self.unchecked.insert(Unchecked::Clusters);
        }
        if features.has_ro_compat(bit::RO_COMPAT_QUOTA) {
            self.unchecked.insert(Unchecked::Quotas);
        }
    }

    fn check_journal(&mut self) -> Result<(), Stop> {
        let number = self.fs.superblock().journal_inode;
        let has_journal = self.fs.superblock().features.has_compat(bit::COMPAT_HAS_JOURNAL);
        if matches!(self.fs.info().journal, JournalState::Replayed { damaged: true, .. }) {
            self.add(Structure::Journal, Problem::Damaged { reason: "it ends with a damaged transaction" });
        }
        if has_journal && number != 0 {
            let checked = journal::check(self.fs, self.fs.disk().source(), InodeNumber(number));
            self.found(checked)?;
        }
        Ok(())
    }

    /// Adds a finding.
    fn add(&mut self, structure: Structure, problem: Problem) {
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(Finding { structure, problem });
        } else {
            self.report.more_findings += 1;
        }
    }

    /// Adds a finding about the format of a structure.
    fn add_damage(&mut self, structure: Structure, reason: &'static str) {
        self.add(structure, Problem::Damaged { reason });
    }

    /// Adds a finding about a count that differs.
    fn compare(&mut self, structure: Structure, of: Count, stored: u64, found: u64) {
        if stored != found {
            self.add(structure, Problem::WrongCount { of, stored, found });
        }
    }

    /// Returns a value of the reader; damage becomes a finding and hides files.
    fn found<T>(&mut self, result: Result<T, ExtError>) -> Result<Option<T>, Stop> {
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
    fn count_read(&mut self, bytes: u64) -> Result<(), Stop> {
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
    fn step(&mut self, stage: Stage, done: u64, total: u64) -> Result<(), Stop> {
        self.now = Progress { stage, done, total, ..self.now };
        self.call()
    }

    /// Reads a metadata block; damage is a finding.
    fn read_block(&mut self, block: u64) -> Result<Option<Arc<[u8]>>, Stop> {
        self.count_read(self.fs.disk().block_len() as u64)?;
        let bytes = self.fs.disk().block(block);
        self.found(bytes)
    }

    /// Claims blocks for a structure. Returns false, with a finding, if one is claimed already.
    fn claim(&mut self, owner: Structure, first: u64, count: u64) -> Result<bool, Stop> {
        match self.claims.claim(first..first + count, &mut self.memory)? {
            None => Ok(true),
            Some(block) => {
                self.add(owner, Problem::ClaimedTwice { block });
                Ok(false)
            }
        }
    }
}
