use super::*;
use crate::{
    filesystems::{FreezerError, Thawed},
    marker::{Post, lock, lock_path, make_lock, remove},
};
use parking_lot::Mutex;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use std::fs::File;

/// Fake filesystem with a foreign freeze, which ends after a number of polls.
#[derive(Default)]
struct ReleaseFreezer {
    calls: Mutex<Vec<String>>,
    frozen: Mutex<bool>,
    busy_for: Mutex<usize>,
    fails: bool,
    /// Errors of the next freezes, in reverse order.
    refusals: Mutex<Vec<FreezerError>>,
}

impl ReleaseFreezer {
    fn note(&self, what: &str, mount: &Path) {
        self.calls.lock().push(format!("{what} {}", mount.file_name().unwrap().display()));
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock())
    }
}

impl Freezer for ReleaseFreezer {
    fn sync(&self, _: &Mounted) -> Result<(), FreezerError> {
        Ok(())
    }
    fn freeze(&self, mount: &Mounted) -> Result<(), FreezerError> {
        self.note("freeze", &mount.path);
        if let Some(refusal) = self.refusals.lock().pop() {
            return Err(refusal);
        }
        let mut busy_for = self.busy_for.lock();
        if *busy_for == 0 {
            *self.frozen.lock() = true;
            return Ok(());
        }
        *busy_for -= 1;
        if *busy_for == 0 {
            *self.frozen.lock() = true;
        }
        Err(FreezerError::Call(Errno::BUSY.into()))
    }
    fn thaw(&self, mount: &Mounted) -> Result<Thawed, FreezerError> {
        self.note("thaw", &mount.path);
        if self.fails {
            return Err(FreezerError::Call(io::ErrorKind::PermissionDenied.into()));
        }
        Ok(if std::mem::take(&mut *self.frozen.lock()) { Thawed::Now } else { Thawed::Before })
    }
}

fn marker(dir: &Path, names: &[&str]) -> Marker {
    let mounts = names.iter().map(|name| {
        std::fs::create_dir_all(dir.join(name)).unwrap();
        Mounted::at(dir.join(name)).unwrap()
    });
    Marker { mounts: mounts.collect(), ..Marker::default() }
}

fn post(command: String) -> Post {
    Post { command, timeout_s: 600, ..Post::default() }
}

fn is_removed(dir: &Path) -> bool {
    std::fs::read_dir(marker::dir(dir)).unwrap().count() == 0
}

#[test]
fn next_start_resumes_quiesced_applications_once() {
    let dir = tempfile::tempdir().unwrap();
    let resumed = dir.path().join("resumed");
    let post = |command: &str| Post {
        command: format!("{command} >> {}", resumed.display()),
        timeout_s: 600,
        env: vec![("BLOCKD_SNAPSHOT".into(), "monday".into())],
        ..Post::default()
    };
    let posts = vec![post("echo $BLOCKD_SNAPSHOT"), post("echo second")];
    let marker = Marker { posts, ..marker(dir.path(), &["a", "b"]) };
    marker.write(dir.path()).unwrap();
    let fake = ReleaseFreezer { frozen: Mutex::new(true), ..ReleaseFreezer::default() };
    release_among(dir.path(), &fake, &Vec::new, &mut |_| {}, || {});
    release_among(dir.path(), &fake, &Vec::new, &mut |_| {}, || {});
    assert_eq!(fake.calls(), ["thaw b", "thaw a", "freeze a", "thaw a"]);
    assert!(!*fake.frozen.lock() && is_removed(dir.path()));
    assert_eq!(std::fs::read_to_string(&resumed).unwrap(), "monday\nsecond\n");
}

/// A restart in between runs the rest of them.
#[test]
fn post_commands_run_once_each_despite_failures() {
    let dir = tempfile::tempdir().unwrap();
    let resumed = dir.path().join("resumed");
    let told = format!(">> {}", resumed.display());
    let posts = ["one", "two; exit 3", "three"];
    let posts = posts.map(|what| post(format!("exec {told}; echo {what}"))).to_vec();
    let mut marker = Marker { posts, ..marker(dir.path(), &[]) };
    let path = marker.write(dir.path()).unwrap();
    let mut errors = Vec::new();
    marker.run_posts(&path, None, |step| errors.push(step.error));
    assert_eq!(errors, [None, Some("exit status 3".to_owned()), None]);
    let again = || std::fs::read_to_string(&resumed).unwrap();
    assert_eq!(again(), "one\ntwo\nthree\n");
    let mut open = false;
    release_among(dir.path(), &ReleaseFreezer::default(), &Vec::new, &mut |_| panic!("again"), || {
        open = true;
    });
    assert!(open && is_removed(dir.path()));
}

#[test]
fn marker_lock_is_empty_and_held_through_all_post_commands() {
    let dir = tempfile::tempdir().unwrap();
    // Descriptor 4 is the lock: its holder reads the link.
    let posts = vec![post("cat <&4".to_owned()), post("cat <&4".to_owned())];
    let mut marker = Marker { posts, ..marker(dir.path(), &[]) };
    let path = marker.write(dir.path()).unwrap();
    let held = lock(&path).unwrap();
    marker.run_posts(&path, Some(&held), |step| {
        assert_eq!((step.error, step.output), (None, None));
        let other = File::open(lock_path(&path)).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err(), "it is not locked");
    });
    remove(&path);
    assert!(is_removed(dir.path()));
    // A lock without a marker is removed by the next start.
    make_lock(&lock_path(&path)).unwrap();
    release_among(dir.path(), &ReleaseFreezer::default(), &Vec::new, &mut |_| {}, || {});
    assert!(is_removed(dir.path()));
}

/// No other process thaws it: the freezing process was killed, which takes effect at the end of its call.
#[test]
fn pending_freeze_is_awaited_and_thawed() {
    let dir = tempfile::tempdir().unwrap();
    marker(dir.path(), &["a"]).write(dir.path()).unwrap();
    let fake = ReleaseFreezer { busy_for: Mutex::new(2), ..ReleaseFreezer::default() };
    release_among(dir.path(), &fake, &Vec::new, &mut |_| {}, || {});
    assert_eq!(fake.calls(), ["thaw a", "freeze a", "thaw a", "freeze a", "thaw a"]);
    assert!(!*fake.frozen.lock() && is_removed(dir.path()));
}

/// Another process may be freezing it nevertheless.
#[test]
fn missing_holder_leaves_the_filesystem_state_unknown() {
    let dir = tempfile::tempdir().unwrap();
    marker(dir.path(), &["a"]).write(dir.path()).unwrap();
    let refusals = vec![FreezerError::HolderGone, FreezerError::NoHolder(Errno::AGAIN.into())];
    let fake = ReleaseFreezer { refusals: Mutex::new(refusals), ..ReleaseFreezer::default() };
    release_among(dir.path(), &fake, &Vec::new, &mut |_| {}, || {});
    assert_eq!(fake.calls(), ["thaw a", "freeze a", "freeze a", "freeze a", "thaw a"]);
    assert!(is_removed(dir.path()));
}

#[test]
fn only_one_that_cannot_be_frozen_at_all_needs_no_marker() {
    for (errno, removed) in [
        (Errno::OPNOTSUPP, true),
        (Errno::NOTTY, true),
        (Errno::NOENT, true),
        (Errno::NOMEM, false),
        (Errno::IO, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        marker(dir.path(), &["a"]).write(dir.path()).unwrap();
        let refusals = Mutex::new(vec![FreezerError::Call(errno.into())]);
        let fake = ReleaseFreezer { refusals, ..ReleaseFreezer::default() };
        release_among(dir.path(), &fake, &Vec::new, &mut |_| {}, || {});
        assert_eq!(is_removed(dir.path()), removed, "{errno}");
    }
}

#[test]
fn resume_does_not_wait_for_a_blocked_filesystem() {
    let dir = tempfile::tempdir().unwrap();
    let resumed = dir.path().join("resumed");
    for name in ["a", "b"] {
        let posts = vec![post(format!("echo >> {}", resumed.display()))];
        Marker { posts, ..marker(dir.path(), &[name]) }.write(dir.path()).unwrap();
    }
    let fake = ReleaseFreezer { busy_for: Mutex::new(3), ..ReleaseFreezer::default() };
    release_among(dir.path(), &fake, &Vec::new, &mut |_| {}, || {});
    let calls = fake.calls();
    assert!(calls[..2].iter().all(|call| call.starts_with("thaw")), "{calls:?}");
    assert!(is_removed(dir.path()));
    assert_eq!(std::fs::read_to_string(resumed).unwrap(), "\n\n");
}

/// Fake whose thaws hang until they are released.
struct Hanging(Mutex<mpsc::Receiver<()>>);

impl Freezer for Hanging {
    fn sync(&self, _: &Mounted) -> Result<(), FreezerError> {
        Ok(())
    }
    fn freeze(&self, _: &Mounted) -> Result<(), FreezerError> {
        Ok(())
    }
    fn thaw(&self, _: &Mounted) -> Result<Thawed, FreezerError> {
        let _ = self.0.lock().recv_timeout(Duration::from_secs(60));
        Ok(Thawed::Now)
    }
}

#[test]
fn hanging_thaw_delays_no_commands_and_no_freezes() {
    let dir = tempfile::tempdir().unwrap();
    let resumed = dir.path().join("resumed");
    let posts = vec![post(format!("echo >> {}", resumed.display()))];
    Marker { posts, ..marker(dir.path(), &["a"]) }.write(dir.path()).unwrap();
    let (go, told) = mpsc::channel();
    let (began, mut failures) = (Instant::now(), Vec::new());
    let mut ended = |step: QuiesceStep| failures.extend(step.failure());
    release_among(dir.path(), &Hanging(Mutex::new(told)), &Vec::new, &mut ended, || {
        assert!(began.elapsed() < Duration::from_secs(40), "it waited for the thaw");
        assert!(resumed.exists() && !is_removed(dir.path()));
        go.send(()).unwrap();
    });
    assert!(failures.len() == 1 && failures[0].contains("no response"), "{failures:?}");
    assert!(is_removed(dir.path()));
}

#[test]
fn other_filesystem_at_the_mount_point_is_not_thawed() {
    let dir = tempfile::tempdir().unwrap();
    let mut marker = marker(dir.path(), &["a", "gone"]);
    marker.mounts[0].device += 1;
    std::fs::remove_dir(dir.path().join("gone")).unwrap();
    marker.write(dir.path()).unwrap();
    let fake = ReleaseFreezer::default();
    release_among(dir.path(), &fake, &Vec::new, &mut |_| {}, || {});
    assert_eq!(fake.calls(), Vec::<String>::new());
    assert!(is_removed(dir.path()));
}

#[test]
fn failed_thaw_of_a_marker_is_retried() {
    let dir = tempfile::tempdir().unwrap();
    marker(dir.path(), &["stuck"]).write(dir.path()).unwrap();
    std::fs::write(dir.path().join("quiesce/broken.json"), "{").unwrap();
    let fake = ReleaseFreezer { fails: true, ..ReleaseFreezer::default() };
    release_among(dir.path(), &fake, &Vec::new, &mut |_| {}, || {});
    release_among(dir.path(), &fake, &Vec::new, &mut |_| {}, || {});
    assert_eq!(fake.calls(), ["thaw stuck", "thaw stuck"]);
}

/// Returns a mount of the filesystem of a directory.
fn mount_at(mount: &Mounted, place: &Path) -> Mount {
    Mount {
        id: 36,
        device: (rustix::fs::major(mount.device), rustix::fs::minor(mount.device)),
        mount_point: place.to_owned(),
        kind: "ext4".into(),
        source: "/dev/x".into(),
        super_options: Vec::new(),
    }
}

/// A filesystem hidden at its path is thawed at another mount point.
#[test]
fn hidden_filesystem_is_thawed_at_another_mount_point() {
    let dir = tempfile::tempdir().unwrap();
    let mut marker = marker(dir.path(), &["a", "b"]);
    let b = marker.mounts.pop().unwrap();
    marker.mounts[0].path = "/proc".into();
    marker.write(dir.path()).unwrap();
    let fake = ReleaseFreezer { frozen: Mutex::new(true), ..ReleaseFreezer::default() };
    let mounts = vec![mount_at(&b, Path::new("/proc")), mount_at(&b, &b.path)];
    release_among(dir.path(), &fake, &|| mounts.clone(), &mut |_| {}, || {});
    assert_eq!(fake.calls(), ["thaw b"]);
    assert!(!*fake.frozen.lock() && is_removed(dir.path()));
}

/// The freezing process may be gone: the filesystem is thawed when it can be reached.
#[test]
fn hidden_filesystem_is_thawed_when_it_becomes_reachable() {
    let dir = tempfile::tempdir().unwrap();
    let mut marker = marker(dir.path(), &["a", "b"]);
    let b = marker.mounts.pop().unwrap();
    marker.mounts[0].path = "/proc".into();
    marker.write(dir.path()).unwrap();
    let fake =
        ReleaseFreezer { frozen: Mutex::new(true), busy_for: Mutex::new(1), ..ReleaseFreezer::default() };
    let looks = std::cell::Cell::new(0);
    let mounts = || {
        looks.set(looks.get() + 1);
        let mut mounts = vec![mount_at(&b, Path::new("/proc"))];
        mounts.extend((looks.get() > 3).then(|| mount_at(&b, &b.path)));
        mounts
    };
    release_among(dir.path(), &fake, &mounts, &mut |_| {}, || {});
    assert!(looks.get() > 3);
    assert_eq!(fake.calls(), ["freeze b", "thaw b"]);
    assert!(!*fake.frozen.lock() && is_removed(dir.path()));
}

#[test]
fn late_thaw_completes_in_the_background() {
    let dir = tempfile::tempdir().unwrap();
    // The post-command ran before.
    let marker = marker(dir.path(), &["a"]);
    let path = marker.write(dir.path()).unwrap();
    let fake = Arc::new(ReleaseFreezer { busy_for: Mutex::new(1), ..ReleaseFreezer::default() });
    release_later(path, &marker, Arc::clone(&fake) as Arc<dyn Freezer>);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_removed(dir.path()) {
        assert!(Instant::now() < deadline, "never thawed: {:?}", fake.calls());
        std::thread::yield_now();
    }
    assert_eq!(fake.calls(), ["freeze a", "thaw a"]);
    assert!(!*fake.frozen.lock());
}
