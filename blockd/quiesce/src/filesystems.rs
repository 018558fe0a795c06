//! Filesystem freezes: all filesystems together, with a thaw in every case.
//!
//! A frozen filesystem blocks all its writers, so there are five ways to thaw it: the freezing thread after
//! the barrier; the destructor of the guard; a watchdog thread if both hang; the [holder
//! process](crate::holder) if the daemon hangs or dies; and the next start of the daemon, from a
//! [marker](crate::marker).

use crate::{
    deadline::{share, with_deadline},
    marker::Mounted,
};
use blockd_api::quiesce::{QuiesceKind, QuiesceStep};
use parking_lot::{Condvar, Mutex};
use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Kernel operations on a filesystem, or a fake in tests. They affect this filesystem only, also if another
/// one was mounted over it.
pub(crate) trait Freezer: Send + Sync {
    /// Writes back dirty data, which shortens the freeze.
    fn sync(&self, mount: &Mounted) -> Result<(), FreezerError>;
    /// Freezes the filesystem: all data is written, and writers block.
    fn freeze(&self, mount: &Mounted) -> Result<(), FreezerError>;
    /// Thaws the filesystem.
    fn thaw(&self, mount: &Mounted) -> Result<Thawed, FreezerError>;
}

/// Timeout for the writeback of all filesystems. Remaining dirty data prolongs the freeze, which has its own
/// timeout.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);

/// Message for a filesystem that was thawed before the volumes were frozen.
pub(crate) const THAWED_EARLY: &str = "it was thawed before the volumes were frozen";

/// Error of a sync, freeze or thaw.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezerError {
    /// No holder process could be started; nothing was done.
    #[error("cannot start a process for it: {0}")]
    NoHolder(#[source] io::Error),
    /// The holder process died: the operation may be done, or may complete later.
    #[error("the process that freezes it is gone")]
    HolderGone,
    /// Another filesystem is mounted at the path; it was left alone.
    #[error("another filesystem is there now")]
    Elsewhere,
    /// Timeout; the operation may complete later.
    #[error("it took too long, more than {waited_ms} ms")]
    TooLong {
        /// Time waited, in milliseconds.
        waited_ms: u128,
    },
    /// The kernel refused the call.
    #[error(transparent)]
    Call(#[from] io::Error),
}

impl FreezerError {
    /// Returns the kernel's error number.
    pub(crate) fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Self::Call(error) => rustix::io::Errno::from_io_error(error),
            Self::NoHolder(_) | Self::HolderGone | Self::Elsewhere | Self::TooLong { .. } => None,
        }
    }
}

/// State of a filesystem before a thaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thawed {
    /// Frozen until now.
    Now,
    /// Already thawed.
    Before,
}

/// Filesystem to freeze.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreezeTarget {
    /// Mount.
    pub mount: Mounted,
    /// A failure aborts the snapshot; failures of others are only reported.
    pub required: bool,
}

impl FreezeTarget {
    /// Removes duplicates by path. A filesystem is required if any of its duplicates is.
    pub fn unique(mut targets: Vec<Self>) -> Vec<Self> {
        targets.sort_unstable_by(|a, b| a.mount.path.cmp(&b.mount.path).then(b.required.cmp(&a.required)));
        targets.dedup_by(|a, b| a.mount == b.mount);
        targets
    }
}

/// Filesystems of one freeze.
pub(crate) struct Filesystems {
    shared: Arc<Shared>,
    wanted: Vec<FreezeTarget>,
    time_limit: Duration,
}

struct Shared {
    freezer: Arc<dyn Freezer>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Frozen filesystems in freeze order.
    frozen: Vec<FreezeTarget>,
    steps: Vec<QuiesceStep>,
    /// The freeze has ended: filesystems frozen from now on are thawed at once.
    ended: bool,
    /// A required filesystem was thawed early, by the watchdog or another process.
    expired: bool,
    /// A filesystem could not be thawed.
    stuck: bool,
    /// Number of freezes past their deadline; each is thawed on completion.
    late: usize,
}

/// Cause of a failed freeze, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct QuiesceFailed(String);

/// Result of a freeze.
pub(crate) struct Ended {
    /// Steps.
    pub(crate) steps: Vec<QuiesceStep>,
    /// All filesystems are thawed.
    pub(crate) all_thawed: bool,
    /// A required filesystem was thawed early: the snapshot may be inconsistent.
    pub(crate) expired: bool,
}

impl Filesystems {
    /// Creates a freeze of filesystems, each by one of its mount points; nothing is frozen yet. The watchdog
    /// thaws everything after the time limit. Optional filesystems get a third of it: one that hangs is given
    /// up by then, and the required ones have the rest.
    pub(crate) fn new(
        freezer: Arc<dyn Freezer>,
        mut wanted: Vec<FreezeTarget>,
        time_limit: Duration,
    ) -> Self {
        // An optional filesystem may take long to fail: required ones do not stay frozen for it.
        wanted.sort_by_key(|one| one.required);
        let shared = Shared { freezer, state: Mutex::default(), changed: Condvar::new() };
        Self { shared: Arc::new(shared), wanted, time_limit }
    }

    /// Writes back dirty data. A failure or timeout only prolongs the freeze.
    pub(crate) fn sync(&self) {
        self.sync_within(SYNC_TIMEOUT);
    }

    fn sync_within(&self, time_limit: Duration) {
        let until = Instant::now() + time_limit;
        for (at, FreezeTarget { mount, .. }) in self.wanted.iter().enumerate() {
            let (shared, of) = (Arc::clone(&self.shared), mount.clone());
            let work = move || shared.freezer.sync(&of);
            let left = self.wanted.len() - at;
            let began = Instant::now();
            let done = with_deadline(share(until, left), work, drop, || {});
            let error = match done {
                Ok(Some(Ok(()))) => continue,
                Ok(Some(Err(error))) => error,
                Ok(None) => too_long(began),
                Err(error) => error.into(),
            };
            tracing::debug!(mount = %mount.path.display(), %error, "not written back before the freeze");
        }
    }

    /// Freezes all required filesystems, and the optional ones that freeze in time.
    ///
    /// # Errors
    /// A required filesystem cannot be frozen; the others are thawed again.
    pub(crate) fn freeze(&self) -> Result<(), QuiesceFailed> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.watch() {
            return self.unless_any_must(format!("cannot start a thread that thaws: {error}"));
        }
        let began = Instant::now();
        let (until, optional_until) = (began + self.time_limit, began + self.time_limit / 3);
        let mut optional_left = self.wanted.iter().filter(|one| !one.required).count();
        for one in &self.wanted {
            let FreezeTarget { mount, required } = one;
            // Without the lock: if this hangs, the watchdog can still thaw the others.
            let began = Instant::now();
            let result = if *required {
                self.freeze_one(mount, until)
            } else {
                optional_left -= 1;
                self.freeze_one(mount, share(optional_until, optional_left + 1))
            };
            let mut state = self.shared.state.lock();
            state.steps.push(step(
                QuiesceKind::FreezeFs,
                &mount.path,
                began,
                result.as_ref().err().map(ToString::to_string),
            ));
            match result {
                Ok(()) => state.frozen.push(one.clone()),
                Err(error) => {
                    // The killed process may have frozen it, or may still do so.
                    state.stuck |= matches!(error, FreezerError::HolderGone);
                    if !required && !state.ended {
                        continue;
                    }
                    self.shared.thaw(&mut state);
                    if !required {
                        drop(state);
                        return self
                            .unless_any_must(format!("freezing {} took too long", mount.path.display()));
                    }
                    return Err(QuiesceFailed(format!(
                        "cannot freeze the filesystem at {}: {error}",
                        mount.path.display()
                    )));
                }
            }
            if state.ended {
                self.shared.thaw(&mut state);
                drop(state);
                return self.unless_any_must(format!("freezing {} took too long", mount.path.display()));
            }
        }
        Ok(())
    }

    /// Freezes a filesystem. A freeze that completes after the deadline is thawed at once.
    fn freeze_one(&self, mount: &Mounted, until: Instant) -> Result<(), FreezerError> {
        let (shared, of) = (Arc::clone(&self.shared), mount.clone());
        let work = move || shared.freezer.freeze(&of);
        let (shared, of) = (Arc::clone(&self.shared), mount.clone());
        let late = move |frozen: Result<(), FreezerError>| shared.release(&of, frozen);
        let began = Instant::now();
        let frozen = with_deadline(until, work, late, || self.shared.state.lock().late += 1)?;
        frozen.unwrap_or_else(|| Err(too_long(began)))
    }

    /// Returns the error if a filesystem is required, and reports it otherwise.
    fn unless_any_must(&self, what: String) -> Result<(), QuiesceFailed> {
        if self.wanted.iter().any(|one| one.required) {
            return Err(QuiesceFailed(what));
        }
        let place = self.wanted.first().map_or(Path::new("the filesystems"), |one| &one.mount.path);
        let step = step(QuiesceKind::FreezeFs, place, Instant::now(), Some(what));
        self.shared.state.lock().steps.push(step);
        Ok(())
    }

    /// Thaws all filesystems.
    pub(crate) fn thaw(&self) {
        self.shared.thaw(&mut self.shared.state.lock());
    }

    /// Thaws all filesystems and returns the result.
    pub(crate) fn end(self) -> Ended {
        self.thaw();
        let mut state = self.shared.state.lock();
        let steps = std::mem::take(&mut state.steps);
        Ended { steps, all_thawed: !state.stuck && state.late == 0, expired: state.expired }
    }

    fn watch(&self) -> io::Result<()> {
        let (shared, time_limit) = (Arc::clone(&self.shared), self.time_limit);
        let watchdog = move || {
            let deadline = Instant::now() + time_limit;
            let mut state = shared.state.lock();
            while !state.ended {
                if shared.changed.wait_until(&mut state, deadline).timed_out() && !state.ended {
                    tracing::error!("filesystems were frozen for too long and are thawed");
                    state.expired |= state.frozen.iter().any(|one| one.required);
                    shared.thaw_as(&mut state, true);
                }
            }
        };
        std::thread::Builder::new().name("thaw-watchdog".into()).spawn(watchdog).map(drop)
    }
}

impl Drop for Filesystems {
    fn drop(&mut self) {
        self.thaw();
    }
}

impl Shared {
    /// Thaws a filesystem whose freeze completed late.
    fn release(&self, mount: &Mounted, frozen: Result<(), FreezerError>) {
        let left = match frozen {
            Ok(()) => self.freezer.thaw(mount).err(),
            // The killed process may have frozen it.
            Err(error @ FreezerError::HolderGone) => Some(error),
            // No operation took place.
            Err(_) => None,
        };
        let mut state = self.state.lock();
        state.late -= 1;
        if let Some(error) = left {
            state.stuck = true;
            tracing::error!(mount = %mount.path.display(), %error, "a filesystem that took too long to freeze may be frozen: try `fsfreeze --unfreeze`");
        }
    }

    /// Thaws the frozen filesystems in reverse order.
    fn thaw(&self, state: &mut State) {
        self.thaw_as(state, false);
    }

    /// Thaws the frozen filesystems, with a cause if it is too early.
    fn thaw_as(&self, state: &mut State, too_early: bool) {
        state.ended = true;
        for FreezeTarget { mount, required } in std::mem::take(&mut state.frozen).into_iter().rev() {
            let began = Instant::now();
            let result = self.freezer.thaw(&mount);
            let failed = match result {
                Ok(Thawed::Now) if !too_early => None,
                // A writer may have written before the barrier.
                Ok(_) => {
                    state.expired |= required;
                    Some(THAWED_EARLY.to_owned())
                }
                Err(error) => {
                    tracing::error!(mount = %mount.path.display(), %error, "a filesystem cannot be thawed: try `fsfreeze --unfreeze`");
                    state.stuck = true;
                    Some(error.to_string())
                }
            };
            state.steps.push(step(QuiesceKind::ThawFs, &mount.path, began, failed));
        }
        self.changed.notify_all();
    }
}

fn too_long(began: Instant) -> FreezerError {
    FreezerError::TooLong { waited_ms: began.elapsed().as_millis() }
}

fn step(kind: QuiesceKind, mount: &Path, began: Instant, error: Option<String>) -> QuiesceStep {
    QuiesceStep {
        kind,
        target: mount.display().to_string(),
        rule: None,
        started: None,
        duration_micros: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        exit_status: None,
        error,
        output: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{path::PathBuf, sync::mpsc};

    /// Fake that records calls. Freezing `bad` and thawing `stuck` fail; `loose` does not stay frozen.
    #[derive(Default)]
    struct Double {
        calls: Mutex<Vec<String>>,
        /// Gate for freezing or syncing `slow`.
        gate: Mutex<Option<mpsc::Receiver<()>>>,
    }

    impl Double {
        fn note(&self, what: &str, mount: &Mounted, fails: &str) -> Result<(), FreezerError> {
            self.calls.lock().push(format!("{what} {}", mount.path.display()));
            match mount.path.to_str() == Some(fails) {
                true => Err(FreezerError::Call(io::ErrorKind::PermissionDenied.into())),
                false => Ok(()),
            }
        }

        fn pass(&self, mount: &Mounted) {
            if mount.path.to_str() == Some("slow") {
                let gate = self.gate.lock().take();
                gate.into_iter().for_each(|gate| gate.recv().unwrap());
            }
        }

        fn calls(&self) -> Vec<String> {
            self.calls.lock().clone()
        }

        fn wait_for(&self, call: &str) {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !self.calls().iter().any(|found| found == call) {
                assert!(Instant::now() < deadline, "never: {call}, but {:?}", self.calls());
                std::thread::yield_now();
            }
        }
    }

    impl Freezer for Double {
        fn sync(&self, mount: &Mounted) -> Result<(), FreezerError> {
            self.pass(mount);
            self.note("sync", mount, "")
        }

        fn freeze(&self, mount: &Mounted) -> Result<(), FreezerError> {
            self.pass(mount);
            self.note("freeze", mount, "bad")?;
            if mount.path.to_str() == Some("lost") { Err(FreezerError::HolderGone) } else { Ok(()) }
        }

        fn thaw(&self, mount: &Mounted) -> Result<Thawed, FreezerError> {
            self.note("thaw", mount, "stuck")?;
            Ok(if mount.path.to_str() == Some("loose") { Thawed::Before } else { Thawed::Now })
        }
    }

    /// Mounts that end in `?` are optional.
    fn with(mounts: &[&str], time_limit: Duration) -> (Arc<Double>, Filesystems) {
        let double = Arc::new(Double::default());
        let wanted = |path: &&str| {
            let mount = Mounted { path: PathBuf::from(path.trim_end_matches('?')), device: 1 };
            FreezeTarget { mount, required: !path.ends_with('?') }
        };
        let wanted = mounts.iter().map(wanted).collect();
        (double.clone(), Filesystems::new(double, wanted, time_limit))
    }

    /// Returns the thawed mounts and their errors.
    fn thaws(ended: &Ended) -> Vec<(&str, Option<&str>)> {
        let thaws = ended.steps.iter().filter(|step| step.kind == QuiesceKind::ThawFs);
        let mut found: Vec<_> = thaws.map(|step| (step.target.as_str(), step.error.as_deref())).collect();
        found.sort_unstable();
        found
    }

    const LONG: Duration = Duration::from_secs(600);

    /// Freezes with a short time limit, so that the watchdog fires soon. On a busy machine it may fire before
    /// all are frozen; then the limit is raised.
    fn frozen_for_a_moment(mounts: &[&str]) -> (Arc<Double>, Filesystems) {
        for timeout_ms in [20, 200, 2_000] {
            let (double, filesystems) = with(mounts, Duration::from_millis(timeout_ms));
            if filesystems.freeze().is_ok() {
                return (double, filesystems);
            }
        }
        let (double, filesystems) = with(mounts, Duration::from_secs(20));
        filesystems.freeze().unwrap();
        (double, filesystems)
    }

    #[test]
    fn all_are_synced_then_frozen_and_thawed_in_reverse_once() {
        let (double, filesystems) = with(&["a", "b"], LONG);
        filesystems.sync();
        filesystems.freeze().unwrap();
        filesystems.thaw();
        filesystems.thaw();
        let ended = filesystems.end();
        assert_eq!(double.calls(), ["sync a", "sync b", "freeze a", "freeze b", "thaw b", "thaw a"]);
        let steps: Vec<_> = ended.steps.iter().map(|step| format!("{} {}", step.kind, step.target)).collect();
        assert_eq!(steps, ["freeze-fs a", "freeze-fs b", "thaw-fs b", "thaw-fs a"]);
        assert!(ended.all_thawed && !ended.expired);
    }

    #[test]
    fn failed_freeze_thaws_the_other_filesystems() {
        let (double, filesystems) = with(&["a", "bad", "c"], LONG);
        let error = filesystems.freeze().unwrap_err().to_string();
        assert!(error.starts_with("cannot freeze the filesystem at bad: "), "{error}");
        assert_eq!(double.calls(), ["freeze a", "freeze bad", "thaw a"]);
        assert!(filesystems.end().steps[1].error.is_some());
    }

    #[test]
    fn failed_optional_freeze_thaws_no_other() {
        let (double, filesystems) = with(&["a", "bad?", "c?"], LONG);
        filesystems.freeze().unwrap();
        filesystems.thaw();
        assert_eq!(double.calls(), ["freeze bad", "freeze c", "freeze a", "thaw a", "thaw c"]);
        let ended = filesystems.end();
        assert!(ended.steps[0].error.is_some() && ended.all_thawed && !ended.expired);
        // Required filesystems still decide.
        let (double, filesystems) = with(&["bad", "c?"], LONG);
        assert!(filesystems.freeze().unwrap_err().to_string().contains("at bad: "));
        assert_eq!(double.calls(), ["freeze c", "freeze bad", "thaw c"]);
        // An early thaw decides as well.
        for (mounts, expired) in [(["loose?", "a"], false), (["loose", "a?"], true)] {
            let (_, filesystems) = with(&mounts, LONG);
            filesystems.freeze().unwrap();
            let ended = filesystems.end();
            assert_eq!(ended.expired, expired);
            assert_eq!(thaws(&ended), [("a", None), ("loose", Some(THAWED_EARLY))]);
        }
        // An optional filesystem has a part of the limit, which must suffice on a busy machine.
        let (double, filesystems) = with(&["a?"], Duration::from_secs(6));
        filesystems.freeze().unwrap();
        double.wait_for("thaw a");
        let ended = filesystems.end();
        assert!(!ended.expired);
        assert_eq!(thaws(&ended), [("a", Some(THAWED_EARLY))]);
    }

    #[test]
    fn killed_holder_may_leave_its_filesystem_frozen() {
        let (double, filesystems) = with(&["a", "lost"], LONG);
        assert!(filesystems.freeze().is_err());
        assert_eq!(double.calls(), ["freeze a", "freeze lost", "thaw a"]);
        assert!(!filesystems.end().all_thawed);
    }

    #[test]
    fn dropped_freeze_thaws() {
        let (double, filesystems) = with(&["a"], LONG);
        filesystems.freeze().unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _filesystems = filesystems;
            panic!("in between");
        }));
        assert!(panicked.is_err());
        assert_eq!(double.calls(), ["freeze a", "thaw a"]);
    }

    #[test]
    fn watchdog_thaws_without_a_request() {
        let (double, filesystems) = frozen_for_a_moment(&["a", "b"]);
        // Without a thaw: the task hangs here.
        double.wait_for("thaw a");
        let ended = filesystems.end();
        assert!(ended.expired && ended.all_thawed);
        assert_eq!(double.calls(), ["freeze a", "freeze b", "thaw b", "thaw a"]);
    }

    #[test]
    fn watchdog_thaws_the_others_while_one_hangs() {
        let (double, filesystems) = with(&["a", "slow"], Duration::from_millis(500));
        let (open, gate) = mpsc::channel();
        *double.gate.lock() = Some(gate);
        let hanging = std::thread::spawn(move || {
            let error = filesystems.freeze().unwrap_err().to_string();
            (error, filesystems.end().all_thawed)
        });
        double.wait_for("thaw a");
        let (error, all_thawed) = hanging.join().unwrap();
        assert!(error.contains("took too long") && !all_thawed, "{error}");
        // Without a waiting caller it must not stay frozen.
        open.send(()).unwrap();
        double.wait_for("thaw slow");
        assert_eq!(double.calls(), ["freeze a", "thaw a", "freeze slow", "thaw slow"]);
    }

    #[test]
    fn hanging_optional_freeze_is_given_up_and_others_are_frozen() {
        let (double, filesystems) = with(&["a", "slow?", "b?"], Duration::from_secs(3));
        let (open, gate) = mpsc::channel();
        *double.gate.lock() = Some(gate);
        filesystems.freeze().unwrap();
        filesystems.thaw();
        assert_eq!(double.calls(), ["freeze b", "freeze a", "thaw a", "thaw b"]);
        let ended = filesystems.end();
        let late = ended.steps.iter().find(|step| step.target == "slow").unwrap();
        assert!(late.error.as_ref().is_some_and(|error| error.contains("took too long")), "{late:?}");
        // It may freeze at any moment: a later thaw reports that.
        assert!(!ended.all_thawed && !ended.expired);
        open.send(()).unwrap();
        double.wait_for("thaw slow");
    }

    #[test]
    fn slow_writeback_is_not_awaited() {
        let (double, filesystems) = with(&["slow", "a"], LONG);
        let (open, gate) = mpsc::channel();
        *double.gate.lock() = Some(gate);
        filesystems.sync_within(Duration::from_secs(1));
        assert_eq!(double.calls(), ["sync a"]);
        open.send(()).unwrap();
        double.wait_for("sync slow");
    }

    #[test]
    fn foreign_thaw_is_reported() {
        let (_, filesystems) = with(&["a", "loose"], LONG);
        filesystems.freeze().unwrap();
        let ended = filesystems.end();
        assert!(ended.expired && ended.all_thawed);
    }

    #[test]
    fn failed_thaw_is_reported_and_the_others_are_thawed() {
        let (double, filesystems) = with(&["a", "stuck"], LONG);
        filesystems.freeze().unwrap();
        let ended = filesystems.end();
        assert!(!ended.all_thawed);
        assert_eq!(double.calls().last().unwrap(), "thaw a");
    }
}
