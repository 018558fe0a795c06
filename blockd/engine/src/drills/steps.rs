//! Steps of a drill on the content of its image.

use super::{
    clone_server::CloneHost,
    external_check::{self, Checked},
    image::DrillImage,
    layout::Reference,
    probe::EXTERNAL_JOURNAL,
    sample::{Random, Sample},
};
use crate::error::ServiceError;
use blockd_cloud::{DrillOutcome, DrillReport, DrillStage, MAX_DRILL_ITEMS};
use blockd_ext4::{ExtError, Filesystem, JournalState, check::Limits};
use blockd_extent::{BlockSet, BlockSource};
use blockd_fuse::inside::{self, FoundFilesystem};
use std::{io, ops::ControlFlow, sync::Arc, time::Instant};

/// Limits of the check of a filesystem. One that reaches them names it in its note.
const CHECK_LIMITS: Limits = Limits { memory_bytes: 128 << 20, read_bytes: 64 << 30 };

/// Result of the steps.
pub(super) struct Examined {
    pub report: DrillReport,
    /// Unreadable blocks, if an object is damaged; empty if all are.
    pub damage: Option<BlockSet>,
}

/// Steps of a drill. `F` is called before each.
pub(super) struct Steps<F> {
    pub image: Arc<DrillImage>,
    /// Start of the drill.
    pub started: Instant,
    pub report: DrillReport,
    /// Number and total bytes of the files to read.
    pub files: u32,
    pub files_bytes: u64,
    /// Filesystems that were found before.
    pub reference: Option<Reference>,
    /// Some of them may be missing.
    pub accept_layout: bool,
    /// Place of clones for checks by other programs.
    pub clone_host: CloneHost,
    pub before: F,
}

/// Opened filesystems with their descriptions.
type Opened = Vec<(String, Filesystem)>;

impl<F: FnMut(DrillStage) -> Result<(), ServiceError>> Steps<F> {
    /// Makes the steps from the first byte to the sample of files.
    ///
    /// # Errors
    /// The drill is stopped, or the store fails: the drill has no result.
    pub fn run(mut self) -> Result<Examined, ServiceError> {
        (self.before)(DrillStage::FirstByte)?;
        let mut first = [0; 512];
        let len = first.len().min(usize::try_from(self.image.size_bytes()).unwrap_or(usize::MAX));
        if let Err(error) = self.image.read_at(0, &mut first[..len]) {
            return self.failed(DrillStage::FirstByte, &error);
        }
        self.end(DrillStage::FirstByte, DrillOutcome::Passed, "");
        (self.before)(DrillStage::Layout)?;
        let image: Arc<dyn BlockSource> = Arc::clone(&self.image) as _;
        let found = match inside::filesystems(&image) {
            Ok(found) => found,
            Err(error) => return self.failed(DrillStage::Layout, &error),
        };
        self.layout(&found);
        (self.before)(DrillStage::Mount)?;
        let opened = match self.mount(&found) {
            Ok(opened) => opened,
            Err(error) => return self.failed(DrillStage::Mount, &error),
        };
        (self.before)(DrillStage::Check)?;
        if let Err(error) = self.check(&found, &opened) {
            return self.failed(DrillStage::Check, &error);
        }
        (self.before)(DrillStage::Files)?;
        if let Err(error) = self.read_files(&opened) {
            return self.failed(DrillStage::Files, &error);
        }
        Ok(Examined { report: self.report, damage: None })
    }

    fn layout(&mut self, found: &[FoundFilesystem]) {
        let (outcome, mut note) = match found.len() {
            0 => (DrillOutcome::Skipped, "no known filesystem".to_owned()),
            1 => (DrillOutcome::Passed, "1 filesystem".to_owned()),
            count => (DrillOutcome::Passed, format!("{count} filesystems")),
        };
        let missing = self.reference.as_ref().map_or_else(Vec::new, |before| before.missing(found));
        let is_failed = !missing.is_empty() && !self.accept_layout;
        for one in missing {
            match is_failed {
                true => self.find(&one),
                false => note = format!("{note}; accepted: {one}"),
            }
        }
        self.end(DrillStage::Layout, if is_failed { DrillOutcome::Failed } else { outcome }, &note);
    }

    fn end(&mut self, stage: DrillStage, outcome: DrillOutcome, note: &str) {
        self.report.end(stage, outcome, self.started.elapsed(), note);
    }

    fn find(&mut self, finding: &str) {
        self.report.find(finding);
    }

    /// Ends the drill with a step that could not read the image.
    fn failed(mut self, stage: DrillStage, error: &io::Error) -> Result<Examined, ServiceError> {
        let (finding, damage) = match self.image.failure() {
            Some(failure) => failure.finding()?,
            None => (error.to_string(), None),
        };
        self.find(&finding);
        self.end(stage, DrillOutcome::Failed, "");
        Ok(Examined { report: self.report, damage })
    }

    /// Returns the error of a filesystem, unless the image could not be read.
    fn of_content(&self, error: ExtError) -> io::Result<ExtError> {
        match self.image.failure() {
            Some(_) => Err(io::Error::other(error)),
            None => Ok(error),
        }
    }

    fn mount(&mut self, found: &[FoundFilesystem]) -> io::Result<Opened> {
        let (mut opened, mut notes, mut is_failed) = (Vec::new(), Vec::new(), false);
        for one in found {
            let on = one.partition.map_or_else(String::new, |number| format!(" on partition {number}"));
            if let Some(other) = one.other {
                self.add_filesystem(format!("{other}{on}"));
                notes.push(format!("{other}{on} is not read"));
                continue;
            }
            match one.open() {
                Ok(filesystem) => {
                    let name = format!("an {} filesystem{on}", filesystem.version());
                    if let JournalState::Replayed { transactions, .. } = filesystem.info().journal {
                        notes.push(format!("journal{on} replayed ({transactions} transactions)"));
                    }
                    self.add_filesystem(name.clone());
                    opened.push((name, filesystem));
                }
                Err(error) => {
                    let name = format!("an ext2, ext3 or ext4 filesystem{on}");
                    let error = self.of_content(error)?;
                    self.add_filesystem(name.clone());
                    if let ExtError::Unsupported { .. } = error {
                        notes.push(match one.has_external_journal {
                            true => format!("{name} is not checked: {EXTERNAL_JOURNAL}"),
                            false => format!("{name} is not read: {error}"),
                        });
                    } else {
                        is_failed = true;
                        self.find(&format!("{name}: {error}"));
                    }
                }
            }
        }
        let outcome = match (is_failed, opened.is_empty()) {
            (true, _) => DrillOutcome::Failed,
            (false, true) => DrillOutcome::Skipped,
            (false, false) => DrillOutcome::Passed,
        };
        if notes.is_empty() && outcome == DrillOutcome::Skipped {
            notes.push("no known filesystem".into());
        }
        self.end(DrillStage::Mount, outcome, &notes.join("; "));
        Ok(opened)
    }

    fn add_filesystem(&mut self, name: String) {
        if self.report.filesystems.len() < MAX_DRILL_ITEMS {
            self.report.filesystems.push(name);
        }
    }

    /// Checks XFS and btrfs by the programs of the host. Returns true if one was checked.
    fn check_externally(
        &mut self,
        found: &[FoundFilesystem],
        notes: &mut Vec<String>,
        is_failed: &mut bool,
    ) -> io::Result<bool> {
        let mut is_checked = false;
        for one in found {
            let checked = external_check::check(&self.clone_host, &self.image, one);
            if self.image.failure().is_some() {
                return Err(io::Error::other("the clone could not be read"));
            }
            let name = one.other.unwrap_or_default();
            match checked {
                None => {}
                Some(Checked::Skipped(reason)) => notes.push(format!("{name} is not checked: {reason}")),
                Some(Checked::Sound(note)) => {
                    is_checked = true;
                    notes.push(note);
                }
                Some(Checked::Unsound(findings)) => {
                    (is_checked, *is_failed) = (true, true);
                    findings.iter().for_each(|finding| self.find(&format!("{name}: {finding}")));
                }
            }
        }
        Ok(is_checked)
    }

    fn check(&mut self, found: &[FoundFilesystem], opened: &Opened) -> io::Result<()> {
        let (mut notes, mut is_failed) = (Vec::new(), false);
        let is_checked = self.check_externally(found, &mut notes, &mut is_failed)?;
        if opened.is_empty() && !is_checked {
            if notes.is_empty() {
                // The step `mount` has the reason.
                notes.extend(self.report.steps.last().map(|step| step.note.clone()));
            }
            self.end(DrillStage::Check, DrillOutcome::Skipped, &notes.join("; "));
            return Ok(());
        }
        let image = Arc::clone(&self.image);
        let mut go_on = |_| if image.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        for (name, filesystem) in opened {
            let report = match filesystem.check(CHECK_LIMITS, &mut go_on) {
                Ok(report) => report,
                Err(error) => {
                    let error = self.of_content(error)?;
                    is_failed = true;
                    self.find(&format!("{name}: {error}"));
                    continue;
                }
            };
            notes.push(format!("{} inodes, {} directories", report.inodes, report.directories));
            notes.extend(report.unchecked.iter().map(|part| format!("not checked: {part}")));
            is_failed |= !report.is_sound();
            report.findings.iter().for_each(|finding| self.find(&format!("{name}: {finding}")));
            self.report.findings_total += report.more_findings;
        }
        let outcome = if is_failed { DrillOutcome::Failed } else { DrillOutcome::Passed };
        self.end(DrillStage::Check, outcome, &notes.join("; "));
        Ok(())
    }

    fn read_files(&mut self, opened: &Opened) -> io::Result<()> {
        if opened.is_empty() {
            self.end(DrillStage::Files, DrillOutcome::Skipped, "no filesystem was opened");
            return Ok(());
        }
        let mut sample = Sample::new(Random::new(self.report.seed), self.files, self.files_bytes);
        let filesystems: Vec<_> = opened.iter().map(|(_, filesystem)| filesystem).collect();
        let read = sample.read(&filesystems);
        (self.report.files, self.report.files_bytes) = (sample.files, sample.bytes);
        let outcome = match read {
            Ok(()) => DrillOutcome::Passed,
            Err((filesystem, error)) => {
                let error = self.of_content(error)?;
                let name = opened.get(filesystem).map_or("", |(name, _)| name.as_str());
                self.find(&format!("{name}: {error}"));
                DrillOutcome::Failed
            }
        };
        let note = format!("{} files, {} bytes", self.report.files, self.report.files_bytes);
        self.end(DrillStage::Files, outcome, &note);
        Ok(())
    }
}
