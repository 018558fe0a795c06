//! Reports of restore drills, part of their proofs.

use blockd_extent::{DrillOutcome, DrillStage};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Maximum length of a text in a report, in bytes.
pub const MAX_DRILL_TEXT_BYTES: usize = 255;
/// Maximum number of filesystems, and of findings, in a report.
pub const MAX_DRILL_ITEMS: usize = 32;

/// Step of a restore drill with its outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrillStep {
    /// Step.
    pub stage: DrillStage,
    /// Outcome.
    pub outcome: DrillOutcome,
    /// Time from the start of the drill to the end of the step, in milliseconds.
    pub elapsed_ms: u64,
    /// Details; may be empty.
    pub note: String,
}

/// Report of a restore drill.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrillReport {
    /// Point in time of the cloud snapshot.
    pub created: Timestamp,
    /// Steps, each at most once, in their order.
    pub steps: Vec<DrillStep>,
    /// Bytes fetched from the store.
    pub fetched_bytes: u64,
    /// Requests to the store.
    pub requests: u64,
    /// Filesystems, such as `ext4 on partition 1`.
    pub filesystems: Vec<String>,
    /// Seed of the sample of files.
    pub seed: u32,
    /// Files of the sample that were read in full.
    pub files: u64,
    /// Bytes of these files.
    pub files_bytes: u64,
    /// First findings.
    pub findings: Vec<String>,
    /// Number of findings, including unlisted ones.
    pub findings_total: u64,
}

impl DrillReport {
    /// Creates the report of a drill that made no step yet.
    pub fn new(created: Timestamp, seed: u32) -> Self {
        Self {
            created,
            steps: Vec::new(),
            fetched_bytes: 0,
            requests: 0,
            filesystems: Vec::new(),
            seed,
            files: 0,
            files_bytes: 0,
            findings: Vec::new(),
            findings_total: 0,
        }
    }

    /// Adds a step, with its note [shortened](drill_text).
    pub fn end(&mut self, stage: DrillStage, outcome: DrillOutcome, elapsed: Duration, note: &str) {
        let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(%stage, %outcome, elapsed_ms, note, "step of the drill ended");
        self.steps.push(DrillStep { stage, outcome, elapsed_ms, note: drill_text(note) });
    }

    /// Adds a finding, which is counted only beyond [`MAX_DRILL_ITEMS`].
    pub fn find(&mut self, finding: &str) {
        self.findings_total += 1;
        if self.findings.len() < MAX_DRILL_ITEMS {
            self.findings.push(drill_text(finding));
        }
    }

    /// Removes the step of the probe with its findings, unless an earlier step failed; then returns false.
    pub fn remove_probe(&mut self) -> bool {
        let mut before = self.steps.iter().filter(|step| step.stage != DrillStage::Probe);
        if before.any(|step| step.outcome == DrillOutcome::Failed) {
            return false;
        }
        self.steps.retain(|step| step.stage != DrillStage::Probe);
        self.findings.clear();
        self.findings_total = 0;
        true
    }

    /// Returns the time to the end of a step that passed, in milliseconds.
    pub fn passed_after_ms(&self, stage: DrillStage) -> Option<u64> {
        let passed = |step: &&DrillStep| step.stage == stage && step.outcome == DrillOutcome::Passed;
        self.steps.iter().find(passed).map(|step| step.elapsed_ms)
    }

    /// Returns the reason if the drill neither checked a filesystem nor ran a probe: it shows that blocks can
    /// be read, no more.
    pub fn unchecked(&self) -> Option<&str> {
        let is_checked = [DrillStage::Check, DrillStage::Probe]
            .into_iter()
            .any(|stage| self.passed_after_ms(stage).is_some());
        let mut steps = self.steps.iter();
        let check = steps.find(|step| step.stage == DrillStage::Check).map(|step| step.note.as_str());
        (self.is_passed() && !is_checked).then(|| check.unwrap_or_default())
    }

    /// Returns true if no step failed.
    pub fn is_passed(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != DrillOutcome::Failed)
    }

    #[cfg(test)]
    pub(crate) fn sample(created: Timestamp, passed: bool) -> Self {
        let outcome = if passed { DrillOutcome::Passed } else { DrillOutcome::Failed };
        let step = DrillStep { stage: DrillStage::Open, outcome, elapsed_ms: 5, note: "é".into() };
        Self { steps: vec![step], ..Self::new(created, u32::MAX) }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if !self.steps.is_sorted_by(|a, b| a.stage < b.stage && a.elapsed_ms <= b.elapsed_ms) {
            return Err("the steps of its drill are not in their order");
        }
        if self.filesystems.len() > MAX_DRILL_ITEMS || self.findings.len() > MAX_DRILL_ITEMS {
            return Err("its drill lists too much");
        }
        let notes = self.steps.iter().map(|step| &step.note);
        let mut texts = notes.chain(&self.filesystems).chain(&self.findings);
        match texts.all(|text| text.len() <= MAX_DRILL_TEXT_BYTES && !text.chars().any(char::is_control)) {
            true => Ok(()),
            false => Err("a text of its drill is too long or has control characters"),
        }
    }
}

/// Returns a text as it may be in a report: without control characters, and shortened.
pub fn drill_text(text: &str) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() > MAX_DRILL_TEXT_BYTES {
        while text.len() > MAX_DRILL_TEXT_BYTES - '…'.len_utf8() {
            text.pop();
        }
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stages: &[DrillStage]) -> DrillReport {
        let step = |stage: &DrillStage| DrillStep {
            stage: *stage,
            outcome: DrillOutcome::Passed,
            elapsed_ms: 10,
            note: String::new(),
        };
        DrillReport { steps: stages.iter().map(step).collect(), ..DrillReport::new(Timestamp::UNIX_EPOCH, 1) }
    }

    #[test]
    fn report_with_unordered_steps_or_long_texts_is_refused() {
        assert_eq!(report(&DrillStage::ALL).check(), Ok(()));
        assert!(report(&[DrillStage::Mount, DrillStage::Layout]).check().is_err());
        assert!(report(&[DrillStage::Open, DrillStage::Open]).check().is_err());
        let mut earlier = report(&[DrillStage::Open, DrillStage::FirstByte]);
        earlier.steps[1].elapsed_ms = 9;
        assert!(earlier.check().is_err());
        let long = "é".repeat(MAX_DRILL_TEXT_BYTES);
        for (text, is_valid) in [(long.as_str(), false), ("a\nb", false), (&drill_text(&long), true)] {
            let noted = DrillReport { findings: vec![text.to_owned()], ..report(&[]) };
            assert_eq!(noted.check().is_ok(), is_valid, "{text}");
        }
        assert_eq!(drill_text("a\nb"), "a b");
        let many = DrillReport { findings: vec![String::new(); MAX_DRILL_ITEMS + 1], ..report(&[]) };
        assert!(many.check().is_err());
    }
}
