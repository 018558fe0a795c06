//! Problems that the daemon detects itself. They are kept in memory, so that they are reported even when the
//! database cannot be written.

use blockd_api::status::Problem;
use blockd_catalog::NewEvent;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// The data directory has too little free space.
pub const DATA_DIR: &str = "data-directory";

/// Kinds of problems, as shown by the API and in metric labels.
pub const KINDS: [&str; 18] = [
    DATA_DIR,
    CLOCK,
    DISCARDED_WRITES,
    RETENTION,
    GARBAGE,
    SCHEDULES,
    METRICS,
    CONTROL_SOCKET,
    CONTROL_ADDRESS,
    CREDENTIAL,
    LOCATION,
    KEY_SLOT,
    BACKING_SNAPSHOT,
    LEASE,
    PROOF,
    PROBE,
    DRILL,
    VOLUME_DAMAGE,
];
/// The clocks of this host and of a store differ, or the store's clock is unknown.
pub const CLOCK: &str = "clock";
/// A start may have discarded acknowledged writes of a volume.
pub const DISCARDED_WRITES: &str = "discarded-writes";
/// Retention is suspended for a volume, because a backup that it would keep may not be restorable.
pub const RETENTION: &str = "retention";
/// Garbage collection of a store failed, because its listing has no end.
pub const GARBAGE: &str = "garbage";
/// The schedules cannot be evaluated.
pub const SCHEDULES: &str = "schedules";
/// The metrics endpoint is not served.
pub const METRICS: &str = "metrics";
/// A control socket for a group is not served.
pub const CONTROL_SOCKET: &str = "control-socket";
/// The control API is not served over TCP.
pub const CONTROL_ADDRESS: &str = "control-address";
/// The secrets of a credential cannot be unsealed.
pub const CREDENTIAL: &str = "credential";
/// A store is not that of its credential, such as the mount point of an unmounted disk, or a requested check
/// of it failed.
pub const LOCATION: &str = "location";
/// A copy of a key slot is damaged and was not repaired.
pub const KEY_SLOT: &str = "key-slot";
/// The backing snapshot of a lazy volume was deleted by another host.
pub const BACKING_SNAPSHOT: &str = "backing-snapshot";
/// The lease of a lazy volume cannot be renewed.
pub const LEASE: &str = "lease";
/// The last proof of a volume at a location is too old.
pub const PROOF: &str = "proof";
/// A probe of a restore drill failed, and has not passed since.
pub const PROBE: &str = "probe";
/// The last restore drill of a volume at a location failed.
pub const DRILL: &str = "drill";

/// Blocks of a volume are damaged on the disk of this host, and not repaired.
pub const VOLUME_DAMAGE: &str = "volume-damage";

/// Current problems.
#[derive(Debug, Default)]
pub struct ComponentHealth {
    pub(crate) problems: Mutex<BTreeMap<(&'static str, String), Problem>>,
    /// Event that is not stored in the database yet.
    pub(crate) pending_event: Mutex<Option<NewEvent>>,
}

impl ComponentHealth {
    /// Records a problem; returns true if it is new.
    pub fn note(
        &self,
        kind: &'static str,
        of: &str,
        cause: impl Into<String>,
        action: impl Into<String>,
    ) -> bool {
        let mut problems = self.problems.lock();
        let key = (kind, of.to_owned());
        let detected_at = problems.get(&key).map_or_else(Timestamp::now, |known| known.detected_at);
        let (cause, action) = (cause.into(), action.into());
        let problem = Problem { kind: kind.to_owned(), cause, action, detected_at };
        problems.insert(key, problem).is_none()
    }

    /// Returns true if the problem is recorded with this text.
    pub fn is_noted(&self, kind: &'static str, of: &str, cause: &str) -> bool {
        self.problems.lock().get(&(kind, of.to_owned())).is_some_and(|problem| problem.cause == cause)
    }

    /// Returns true if a problem of this kind is recorded.
    pub fn has(&self, kind: &'static str, of: &str) -> bool {
        self.problems.lock().contains_key(&(kind, of.to_owned()))
    }

    /// Removes a problem; returns true if it was recorded.
    pub fn clear(&self, kind: &'static str, of: &str) -> bool {
        self.problems.lock().remove(&(kind, of.to_owned())).is_some()
    }

    /// Removes the problems of a kind that are not kept.
    pub fn retain(&self, kind: &'static str, is_kept: impl Fn(&str) -> bool) {
        self.problems.lock().retain(|(other, of), _| *other != kind || is_kept(of));
    }

    /// Returns all problems.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.lock().values().cloned().collect()
    }

    /// Returns the number of problems by kind.
    pub fn counts(&self) -> [(&'static str, usize); KINDS.len()] {
        let problems = self.problems.lock();
        KINDS.map(|kind| (kind, problems.keys().filter(|(of, _)| *of == kind).count()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_problem_is_new_only_once() {
        let health = ComponentHealth::default();
        assert!(health.note(SCHEDULES, "begin", "a", "b") && !health.note(SCHEDULES, "begin", "c", "b"));
        assert_eq!(health.problems().first().unwrap().cause, "c");
        assert!(health.counts().contains(&(SCHEDULES, 1)) && health.counts().contains(&(METRICS, 0)));
        assert!(health.clear(SCHEDULES, "begin") && !health.clear(SCHEDULES, "begin"));
        assert!(health.problems().is_empty());
    }
}
