use super::*;
use std::{path::PathBuf, sync::mpsc};

/// Fake that records calls. Freezing `bad` and thawing `stuck` fail; `loose` does not stay frozen.
#[derive(Default)]
struct RecordingFreezer {
    calls: Mutex<Vec<String>>,
    /// Gate for freezing or syncing `slow`.
    gate: Mutex<Option<mpsc::Receiver<()>>>,
}

impl RecordingFreezer {
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

impl Freezer for RecordingFreezer {
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
fn with(mounts: &[&str], time_limit: Duration) -> (Arc<RecordingFreezer>, Filesystems) {
    let fake = Arc::new(RecordingFreezer::default());
    let wanted = |path: &&str| {
        let mount = Mounted { path: PathBuf::from(path.trim_end_matches('?')), device: 1 };
        FreezeTarget { mount, required: !path.ends_with('?') }
    };
    let wanted = mounts.iter().map(wanted).collect();
    (fake.clone(), Filesystems::new(fake, wanted, time_limit))
}

/// Returns the thawed mounts and their errors.
fn thaws(ended: &FreezeEnd) -> Vec<(&str, Option<&str>)> {
    let thaws = ended.steps.iter().filter(|step| step.kind == QuiesceKind::ThawFs);
    let mut found: Vec<_> = thaws.map(|step| (step.target.as_str(), step.error.as_deref())).collect();
    found.sort_unstable();
    found
}

const LONG: Duration = Duration::from_secs(600);

/// Freezes with a short time limit, so that the watchdog fires soon. On a busy machine it may fire before
/// all are frozen; then the limit is raised.
fn frozen_for_a_moment(mounts: &[&str]) -> (Arc<RecordingFreezer>, Filesystems) {
    for timeout_ms in [20, 200, 2_000] {
        let (fake, filesystems) = with(mounts, Duration::from_millis(timeout_ms));
        if filesystems.freeze().is_ok() {
            return (fake, filesystems);
        }
    }
    let (fake, filesystems) = with(mounts, Duration::from_secs(20));
    filesystems.freeze().unwrap();
    (fake, filesystems)
}

#[test]
fn all_are_synced_then_frozen_and_thawed_in_reverse_once() {
    let (fake, filesystems) = with(&["a", "b"], LONG);
    filesystems.sync();
    filesystems.freeze().unwrap();
    filesystems.thaw();
    filesystems.thaw();
    let ended = filesystems.end();
    assert_eq!(fake.calls(), ["sync a", "sync b", "freeze a", "freeze b", "thaw b", "thaw a"]);
    let steps: Vec<_> = ended.steps.iter().map(|step| format!("{} {}", step.kind, step.target)).collect();
    assert_eq!(steps, ["freeze-fs a", "freeze-fs b", "thaw-fs b", "thaw-fs a"]);
    assert!(ended.all_thawed && !ended.expired);
}

#[test]
fn failed_freeze_thaws_the_other_filesystems() {
    let (fake, filesystems) = with(&["a", "bad", "c"], LONG);
    let error = filesystems.freeze().unwrap_err().to_string();
    assert!(error.starts_with("cannot freeze the filesystem at bad: "), "{error}");
    assert_eq!(fake.calls(), ["freeze a", "freeze bad", "thaw a"]);
    assert!(filesystems.end().steps[1].error.is_some());
}

#[test]
fn failed_optional_freeze_thaws_no_other() {
    let (fake, filesystems) = with(&["a", "bad?", "c?"], LONG);
    filesystems.freeze().unwrap();
    filesystems.thaw();
    assert_eq!(fake.calls(), ["freeze bad", "freeze c", "freeze a", "thaw a", "thaw c"]);
    let ended = filesystems.end();
    assert!(ended.steps[0].error.is_some() && ended.all_thawed && !ended.expired);
    // Required filesystems still decide.
    let (fake, filesystems) = with(&["bad", "c?"], LONG);
    assert!(filesystems.freeze().unwrap_err().to_string().contains("at bad: "));
    assert_eq!(fake.calls(), ["freeze c", "freeze bad", "thaw c"]);
    // An early thaw decides as well.
    for (mounts, expired) in [(["loose?", "a"], false), (["loose", "a?"], true)] {
        let (_, filesystems) = with(&mounts, LONG);
        filesystems.freeze().unwrap();
        let ended = filesystems.end();
        assert_eq!(ended.expired, expired);
        assert_eq!(thaws(&ended), [("a", None), ("loose", Some(THAWED_EARLY))]);
    }
    // An optional filesystem has a part of the limit, which must suffice on a busy machine.
    let (fake, filesystems) = with(&["a?"], Duration::from_secs(6));
    filesystems.freeze().unwrap();
    fake.wait_for("thaw a");
    let ended = filesystems.end();
    assert!(!ended.expired);
    assert_eq!(thaws(&ended), [("a", Some(THAWED_EARLY))]);
}

#[test]
fn killed_holder_may_leave_its_filesystem_frozen() {
    let (fake, filesystems) = with(&["a", "lost"], LONG);
    assert!(filesystems.freeze().is_err());
    assert_eq!(fake.calls(), ["freeze a", "freeze lost", "thaw a"]);
    assert!(!filesystems.end().all_thawed);
}

#[test]
fn dropped_freeze_thaws() {
    let (fake, filesystems) = with(&["a"], LONG);
    filesystems.freeze().unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _filesystems = filesystems;
        panic!("in between");
    }));
    assert!(panicked.is_err());
    assert_eq!(fake.calls(), ["freeze a", "thaw a"]);
}

#[test]
fn watchdog_thaws_without_a_request() {
    let (fake, filesystems) = frozen_for_a_moment(&["a", "b"]);
    // Without a thaw: the task hangs here.
    fake.wait_for("thaw a");
    let ended = filesystems.end();
    assert!(ended.expired && ended.all_thawed);
    assert_eq!(fake.calls(), ["freeze a", "freeze b", "thaw b", "thaw a"]);
}

#[test]
fn watchdog_thaws_the_others_while_one_hangs() {
    let (fake, filesystems) = with(&["a", "slow"], Duration::from_millis(500));
    let (open, gate) = mpsc::channel();
    *fake.gate.lock() = Some(gate);
    let hanging = std::thread::spawn(move || {
        let error = filesystems.freeze().unwrap_err().to_string();
        (error, filesystems.end().all_thawed)
    });
    fake.wait_for("thaw a");
    let (error, all_thawed) = hanging.join().unwrap();
    assert!(error.contains("timeout") && !all_thawed, "{error}");
    // Without a waiting caller it must not stay frozen.
    open.send(()).unwrap();
    fake.wait_for("thaw slow");
    assert_eq!(fake.calls(), ["freeze a", "thaw a", "freeze slow", "thaw slow"]);
}

#[test]
fn hanging_optional_freeze_expires_and_others_are_frozen() {
    let (fake, filesystems) = with(&["a", "slow?", "b?"], Duration::from_secs(3));
    let (open, gate) = mpsc::channel();
    *fake.gate.lock() = Some(gate);
    filesystems.freeze().unwrap();
    filesystems.thaw();
    assert_eq!(fake.calls(), ["freeze b", "freeze a", "thaw a", "thaw b"]);
    let ended = filesystems.end();
    let late = ended.steps.iter().find(|step| step.target == "slow").unwrap();
    assert!(late.error.as_ref().is_some_and(|error| error.contains("timeout")), "{late:?}");
    // It may freeze at any moment: a later thaw reports that.
    assert!(!ended.all_thawed && !ended.expired);
    open.send(()).unwrap();
    fake.wait_for("thaw slow");
}

#[test]
fn slow_writeback_is_not_awaited() {
    let (fake, filesystems) = with(&["slow", "a"], LONG);
    let (open, gate) = mpsc::channel();
    *fake.gate.lock() = Some(gate);
    filesystems.sync_within(Duration::from_secs(1));
    assert_eq!(fake.calls(), ["sync a"]);
    open.send(()).unwrap();
    fake.wait_for("sync slow");
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
    let (fake, filesystems) = with(&["a", "stuck"], LONG);
    filesystems.freeze().unwrap();
    let ended = filesystems.end();
    assert!(!ended.all_thawed);
    assert_eq!(fake.calls().last().unwrap(), "thaw a");
}
