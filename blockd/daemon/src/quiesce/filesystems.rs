//! Filesystems at rest: frozen together, thawed whatever happens.
//!
//! A frozen filesystem keeps everybody waiting who writes to it, so there are five who thaw it: the one who
//! froze it, when the barrier is passed; the end of the value that says it is frozen; a watchdog thread,
//! should both hang; the [process](super::apart) that froze it, should the daemon stand still or be gone; and
//! the next start of the daemon, told by a [marker](super::marker).

use super::{
    marker::Mounted,
    within::{share, within},
};
use blockd_api::quiesce::{QuiesceKind, QuiesceStep};
use parking_lot::{Condvar, Mutex};
use std::{
    io,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// What the kernel can do with a filesystem; something else in tests. All of it is done to that filesystem
/// alone, whatever is mounted in its place by then.
pub(crate) trait Freezer: Send + Sync {
    /// Writes back what is dirty, so that the freeze has little to wait for.
    fn sync(&self, mount: &Mounted) -> Result<(), FreezerError>;
    /// Brings the filesystem to rest: all is written, and who writes to it waits.
    fn freeze(&self, mount: &Mounted) -> Result<(), FreezerError>;
    /// Lets it go.
    fn thaw(&self, mount: &Mounted) -> Result<Thawed, FreezerError>;
}

/// How long it is waited until what is dirty is written back, of all filesystems together. What is left makes
/// the freeze take longer, which has a limit of its own.
const SYNC_TIMEOUT: Duration = Duration::from_secs(60);

/// What is said of a filesystem that was not at rest when the volumes were frozen, although it had been.
pub(super) const TOO_EARLY: &str = "it was thawed before the volumes were frozen";

/// Why a filesystem could not be synced, frozen or thawed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FreezerError {
    /// There is no process to do it, so nothing was done.
    #[error("cannot start a process for it: {0}")]
    NoHolder(#[source] io::Error),
    /// The process that was to do it is gone: it may have done it, or may be done with it later.
    #[error("the process that freezes it is gone")]
    HolderGone,
    /// The path leads to another filesystem now, which was left alone.
    #[error("another filesystem is there now")]
    Elsewhere,
    /// It was not waited for any longer; it may be done later.
    #[error("it took too long, more than {waited_ms} ms")]
    TooLong {
        /// How long it was waited for.
        waited_ms: u128,
    },
    /// The kernel does not do it.
    #[error(transparent)]
    Call(#[from] io::Error),
}

impl FreezerError {
    /// The kernel's number for it.
    pub(super) fn errno(&self) -> Option<rustix::io::Errno> {
        match self {
            Self::Call(error) => rustix::io::Errno::from_io_error(error),
            Self::NoHolder(_) | Self::HolderGone | Self::Elsewhere | Self::TooLong { .. } => None,
        }
    }
}

/// How a filesystem was found that was to be thawed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thawed {
    /// It was frozen until now.
    Now,
    /// Somebody had thawed it before.
    Before,
}

/// A filesystem that is to be at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToFreeze {
    /// Which one.
    pub(crate) mount: Mounted,
    /// There is no snapshot unless it is. Of others a failure is only told.
    pub(crate) must_rest: bool,
}

/// Filesystems that are to be at rest for a moment.
pub(crate) struct Filesystems {
    shared: Arc<Shared>,
    wanted: Vec<ToFreeze>,
    time_limit: Duration,
}

struct Shared {
    freezer: Arc<dyn Freezer>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order in which they were frozen.
    frozen: Vec<ToFreeze>,
    steps: Vec<QuiesceStep>,
    /// They are wanted no more: what is frozen from now on is thawed at once.
    ended: bool,
    /// The watchdog, or somebody else, has thawed one that had to be at rest.
    expired: bool,
    /// One could not be thawed.
    stuck: bool,
    /// So many are being frozen that are not waited for any more; each is thawed as soon as it is frozen.
    late: usize,
}

/// Why filesystems are not at rest, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotAtRest(String);

/// How it ended.
pub(crate) struct Ended {
    /// What was done.
    pub(crate) steps: Vec<QuiesceStep>,
    /// All of them are thawed.
    pub(crate) all_thawed: bool,
    /// One that had to be at rest was thawed before it was to be: nothing can be said of what was frozen
    /// meanwhile.
    pub(crate) expired: bool,
}

impl Filesystems {
    /// These filesystems, each by one of its mount points; nothing is frozen yet. Once it is, the watchdog
    /// has time_limit for so long. A third of that time is for those that may fail: one that hangs is let go
    /// by then, and those that must be at rest have the rest of it.
    pub(crate) fn new(freezer: Arc<dyn Freezer>, mut wanted: Vec<ToFreeze>, time_limit: Duration) -> Self {
        // One that may fail may also take long to do so: those that others depend on are not kept frozen for
        // it.
        wanted.sort_by_key(|one| one.must_rest);
        let shared = Shared { freezer, state: Mutex::default(), changed: Condvar::new() };
        Self { shared: Arc::new(shared), wanted, time_limit }
    }

    /// Writes back what is dirty. A failure, or one that takes too long, only makes the freeze take longer.
    pub(crate) fn sync(&self) {
        self.sync_within(SYNC_TIMEOUT);
    }

    fn sync_within(&self, time_limit: Duration) {
        let until = Instant::now() + time_limit;
        for (at, ToFreeze { mount, .. }) in self.wanted.iter().enumerate() {
            let (shared, of) = (Arc::clone(&self.shared), mount.clone());
            let work = move || shared.freezer.sync(&of);
            let left = self.wanted.len() - at;
            let began = Instant::now();
            let done = within(share(until, left), work, drop, || {});
            let error = match done {
                Ok(Some(Ok(()))) => continue,
                Ok(Some(Err(error))) => error,
                Ok(None) => too_long(began),
                Err(error) => error.into(),
            };
            tracing::debug!(mount = %mount.path.display(), %error, "not written back before the freeze");
        }
    }

    /// Brings them to rest: all that must be, and those of the others that can be in time; or none.
    ///
    /// # Errors
    /// One of those that must rest cannot be frozen; the others are thawed again.
    pub(crate) fn freeze(&self) -> Result<(), NotAtRest> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.watch() {
            return self.unless_any_must(format!("cannot start a thread that thaws: {error}"));
        }
        let began = Instant::now();
        let (until, optional_until) = (began + self.time_limit, began + self.time_limit / 3);
        let mut optional_left = self.wanted.iter().filter(|one| !one.must_rest).count();
        for one in &self.wanted {
            let ToFreeze { mount, must_rest } = one;
            // Without the lock: should this hang, the watchdog can still thaw the others.
            let began = Instant::now();
            let result = if *must_rest {
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
                    // Who was killed may have frozen it, or may yet.
                    state.stuck |= matches!(error, FreezerError::HolderGone);
                    if !must_rest && !state.ended {
                        continue;
                    }
                    self.shared.thaw(&mut state);
                    if !must_rest {
                        drop(state);
                        return self
                            .unless_any_must(format!("freezing {} took too long", mount.path.display()));
                    }
                    return Err(NotAtRest(format!(
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

    /// Freezes one. If that takes longer than until then, it is thawed again as soon as it is frozen.
    fn freeze_one(&self, mount: &Mounted, until: Instant) -> Result<(), FreezerError> {
        let (shared, of) = (Arc::clone(&self.shared), mount.clone());
        let work = move || shared.freezer.freeze(&of);
        let (shared, of) = (Arc::clone(&self.shared), mount.clone());
        let late = move |frozen: Result<(), FreezerError>| shared.let_go(&of, frozen);
        let began = Instant::now();
        let frozen = within(until, work, late, || self.shared.state.lock().late += 1)?;
        frozen.unwrap_or_else(|| Err(too_long(began)))
    }

    /// What is wrong with all of them; nothing if none of them must be at rest, but then it is told.
    fn unless_any_must(&self, what: String) -> Result<(), NotAtRest> {
        if self.wanted.iter().any(|one| one.must_rest) {
            return Err(NotAtRest(what));
        }
        let place = self.wanted.first().map_or(Path::new("the filesystems"), |one| &one.mount.path);
        let step = step(QuiesceKind::FreezeFs, place, Instant::now(), Some(what));
        self.shared.state.lock().steps.push(step);
        Ok(())
    }

    /// Lets all of them go.
    pub(crate) fn thaw(&self) {
        self.shared.thaw(&mut self.shared.state.lock());
    }

    /// What was done; nothing is frozen any more.
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
                    state.expired |= state.frozen.iter().any(|one| one.must_rest);
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
    /// Thaws one that nobody waits for any more.
    fn let_go(&self, mount: &Mounted, frozen: Result<(), FreezerError>) {
        let left = match frozen {
            Ok(()) => self.freezer.thaw(mount).err(),
            // Who was killed may have frozen it.
            Err(error @ FreezerError::HolderGone) => Some(error),
            // Nothing was done.
            Err(_) => None,
        };
        let mut state = self.state.lock();
        state.late -= 1;
        if let Some(error) = left {
            state.stuck = true;
            tracing::error!(mount = %mount.path.display(), %error, "a filesystem that took too long to freeze may be frozen: try `fsfreeze --unfreeze`");
        }
    }

    /// Thaws what is frozen, the last one first.
    fn thaw(&self, state: &mut State) {
        self.thaw_as(state, false);
    }

    /// The same, perhaps because it takes too long.
    fn thaw_as(&self, state: &mut State, too_early: bool) {
        state.ended = true;
        for ToFreeze { mount, must_rest } in std::mem::take(&mut state.frozen).into_iter().rev() {
            let began = Instant::now();
            let result = self.freezer.thaw(&mount);
            let failed = match result {
                Ok(Thawed::Now) if !too_early => None,
                // Who wrote to it since may have done so before the barrier.
                Ok(_) => {
                    state.expired |= must_rest;
                    Some(TOO_EARLY.to_owned())
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

    /// Notes what is asked of it; freezing what is called `bad` fails, and so does thawing what is called
    /// `stuck`; what is called `loose` does not stay frozen.
    #[derive(Default)]
    struct Double {
        calls: Mutex<Vec<String>>,
        /// Freezing or syncing what is called `slow` waits for this.
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

    /// What ends in `?` may fail.
    fn with(mounts: &[&str], time_limit: Duration) -> (Arc<Double>, Filesystems) {
        let double = Arc::new(Double::default());
        let wanted = |path: &&str| {
            let mount = Mounted { path: PathBuf::from(path.trim_end_matches('?')), device: 1 };
            ToFreeze { mount, must_rest: !path.ends_with('?') }
        };
        let wanted = mounts.iter().map(wanted).collect();
        (double.clone(), Filesystems::new(double, wanted, time_limit))
    }

    /// What was thawed, by name, and what went wrong with it.
    fn thaws(ended: &Ended) -> Vec<(&str, Option<&str>)> {
        let thaws = ended.steps.iter().filter(|step| step.kind == QuiesceKind::ThawFs);
        let mut found: Vec<_> = thaws.map(|step| (step.target.as_str(), step.error.as_deref())).collect();
        found.sort_unstable();
        found
    }

    const LONG: Duration = Duration::from_secs(600);

    /// Frozen, and so short of time_limit that the watchdog comes soon; on a busy machine it may come before
    /// all are frozen, and then it gets more.
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
    fn one_that_cannot_be_frozen_lets_the_others_go() {
        let (double, filesystems) = with(&["a", "bad", "c"], LONG);
        let error = filesystems.freeze().unwrap_err().to_string();
        assert!(error.starts_with("cannot freeze the filesystem at bad: "), "{error}");
        assert_eq!(double.calls(), ["freeze a", "freeze bad", "thaw a"]);
        assert!(filesystems.end().steps[1].error.is_some());
    }

    #[test]
    fn one_that_may_fail_lets_nobody_go() {
        let (double, filesystems) = with(&["a", "bad?", "c?"], LONG);
        filesystems.freeze().unwrap();
        filesystems.thaw();
        assert_eq!(double.calls(), ["freeze bad", "freeze c", "freeze a", "thaw a", "thaw c"]);
        let ended = filesystems.end();
        assert!(ended.steps[0].error.is_some() && ended.all_thawed && !ended.expired);
        // Who must be at rest still decides.
        let (double, filesystems) = with(&["bad", "c?"], LONG);
        assert!(filesystems.freeze().unwrap_err().to_string().contains("at bad: "));
        assert_eq!(double.calls(), ["freeze c", "freeze bad", "thaw c"]);
        // So does who thaws it meanwhile.
        for (mounts, expired) in [(["loose?", "a"], false), (["loose", "a?"], true)] {
            let (_, filesystems) = with(&mounts, LONG);
            filesystems.freeze().unwrap();
            let ended = filesystems.end();
            assert_eq!(ended.expired, expired);
            assert_eq!(thaws(&ended), [("a", None), ("loose", Some(TOO_EARLY))]);
        }
        // One that may fail has a part of it only, which is to be enough on a busy machine.
        let (double, filesystems) = with(&["a?"], Duration::from_secs(6));
        filesystems.freeze().unwrap();
        double.wait_for("thaw a");
        let ended = filesystems.end();
        assert!(!ended.expired);
        assert_eq!(thaws(&ended), [("a", Some(TOO_EARLY))]);
    }

    #[test]
    fn one_whose_process_was_killed_may_be_frozen_all_the_same() {
        let (double, filesystems) = with(&["a", "lost"], LONG);
        assert!(filesystems.freeze().is_err());
        assert_eq!(double.calls(), ["freeze a", "freeze lost", "thaw a"]);
        assert!(!filesystems.end().all_thawed);
    }

    #[test]
    fn whoever_forgets_to_thaw_thaws_all_the_same() {
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
    fn the_watchdog_thaws_when_nobody_does() {
        let (double, filesystems) = frozen_for_a_moment(&["a", "b"]);
        // Nobody thaws: the task hangs here.
        double.wait_for("thaw a");
        let ended = filesystems.end();
        assert!(ended.expired && ended.all_thawed);
        assert_eq!(double.calls(), ["freeze a", "freeze b", "thaw b", "thaw a"]);
    }

    #[test]
    fn the_watchdog_thaws_the_others_while_one_hangs_in_the_kernel() {
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
        // Nobody waits for it, so it is not left frozen.
        open.send(()).unwrap();
        double.wait_for("thaw slow");
        assert_eq!(double.calls(), ["freeze a", "thaw a", "freeze slow", "thaw slow"]);
    }

    #[test]
    fn one_that_may_fail_and_hangs_is_let_go_and_the_others_are_frozen() {
        let (double, filesystems) = with(&["a", "slow?", "b?"], Duration::from_secs(3));
        let (open, gate) = mpsc::channel();
        *double.gate.lock() = Some(gate);
        filesystems.freeze().unwrap();
        filesystems.thaw();
        assert_eq!(double.calls(), ["freeze b", "freeze a", "thaw a", "thaw b"]);
        let ended = filesystems.end();
        let late = ended.steps.iter().find(|step| step.target == "slow").unwrap();
        assert!(late.error.as_ref().is_some_and(|error| error.contains("took too long")), "{late:?}");
        // It may be frozen at any moment, for a moment: who thaws later is told.
        assert!(!ended.all_thawed && !ended.expired);
        open.send(()).unwrap();
        double.wait_for("thaw slow");
    }

    #[test]
    fn what_is_not_written_back_in_time_is_not_waited_for() {
        let (double, filesystems) = with(&["slow", "a"], LONG);
        let (open, gate) = mpsc::channel();
        *double.gate.lock() = Some(gate);
        filesystems.sync_within(Duration::from_secs(1));
        assert_eq!(double.calls(), ["sync a"]);
        open.send(()).unwrap();
        double.wait_for("sync slow");
    }

    #[test]
    fn one_that_somebody_else_has_thawed_is_told() {
        let (_, filesystems) = with(&["a", "loose"], LONG);
        filesystems.freeze().unwrap();
        let ended = filesystems.end();
        assert!(ended.expired && ended.all_thawed);
    }

    #[test]
    fn one_that_cannot_be_thawed_is_told_and_the_others_are_thawed() {
        let (double, filesystems) = with(&["a", "stuck"], LONG);
        filesystems.freeze().unwrap();
        let ended = filesystems.end();
        assert!(!ended.all_thawed);
        assert_eq!(double.calls().last().unwrap(), "thaw a");
    }
}
