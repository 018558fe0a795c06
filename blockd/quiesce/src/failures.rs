//! Failure counts of quiesce steps since the start.

use blockd_api::quiesce::{QuiesceKind, QuiesceStep};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts by phase.
#[derive(Debug, Default)]
pub struct Failures([AtomicU64; PHASES.len()]);

/// Phases with their metric labels.
const PHASES: [(QuiesceKind, &str); 4] = [
    (QuiesceKind::PreCommand, "pre"),
    (QuiesceKind::FreezeFs, "freeze"),
    (QuiesceKind::ThawFs, "thaw"),
    (QuiesceKind::PostCommand, "post"),
];

impl Failures {
    /// Counts the failed steps.
    pub fn note<'a>(&self, steps: impl Iterator<Item = &'a QuiesceStep>) {
        for step in steps.filter(|step| step.error.is_some()) {
            self.note_one(step.kind);
        }
    }

    /// Counts one failure.
    pub fn note_one(&self, failed: QuiesceKind) {
        for (count, (kind, _)) in self.0.iter().zip(PHASES) {
            if kind == failed {
                count.fetch_add(1, Relaxed);
            }
        }
    }

    /// Returns the count of each phase.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().zip(PHASES).map(|(count, (_, phase))| (phase, count.load(Relaxed)))
    }
}
