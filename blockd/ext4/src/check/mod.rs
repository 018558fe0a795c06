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
mod inode_states;
mod inodes;
mod limits;
mod links;
mod mapping;
mod orphans;
mod special;
mod state;

pub use finding::{Count, Finding, Problem, Unchecked};
pub use limits::Limits;
pub use state::{MAX_FINDINGS, Progress, Report, Stage};

use crate::{ExtError, Filesystem, InodeNumber, JournalState, Structure, features::bit, journal};
use claims::Claims;
use inode_states::Groups;
use limits::{Budget, Stop};
use special::Special;
use state::Check;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ops::ControlFlow,
};

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
}
