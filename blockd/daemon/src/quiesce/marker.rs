//! What a daemon leaves behind while something is at rest, for the next one to let go should it die.
//!
//! A marker is a file in `quiesce/` of the data directory, durable before the first command runs or the first filesystem is
//! frozen, and removed when all is let go.

use super::{
    Hook,
    filesystems::{Freezer, FreezerError, Thawed},
};
use crate::files;
use blockd_api::quiesce::QuiesceKind;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a filesystem is waited for that somebody is still freezing.
const FREEZING_PATIENCE: Duration = Duration::from_secs(600);
/// How often it is looked at meanwhile.
const FREEZING_PAUSE: Duration = Duration::from_millis(100);

/// What is at rest, and how it is let go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Marker {
    /// The filesystems that are frozen, or about to be.
    pub(crate) mounts: Vec<Mounted>,
    /// The command that is to run afterwards.
    pub(crate) post_command: Option<String>,
    /// How long that may take, in seconds.
    pub(crate) timeout_s: u64,
    /// What it is told.
    pub(crate) env: Vec<(String, String)>,
}

/// A filesystem that was mounted when the marker was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Mounted {
    /// One of its mount points.
    pub(crate) path: PathBuf,
    /// The number of its device, as `stat` gives it: another filesystem may lie at the path by now.
    pub(crate) device: u64,
}

impl Mounted {
    /// What is mounted there now.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(crate) fn at(path: PathBuf) -> io::Result<Self> {
        let device = std::fs::metadata(&path)?.dev();
        Ok(Self { path, device })
    }

    /// Whether it is there still.
    fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| found.dev() == self.device)
    }

    /// Thaws it, if it is frozen.
    fn thaw(&self, freezer: &dyn Freezer) -> LetGo {
        if !self.is_there() {
            return LetGo::Done;
        }
        match freezer.thaw(self) {
            Ok(Thawed::Now) => {
                tracing::warn!(mount = %self.path.display(), "thawed what was left frozen");
                LetGo::Done
            }
            Ok(Thawed::Before) => LetGo::NotFrozen,
            Err(FreezerError::Elsewhere) => LetGo::Done,
            Err(error) => {
                tracing::error!(mount = %self.path.display(), %error, "a filesystem may still be frozen: try `fsfreeze --unfreeze`");
                LetGo::Failed
            }
        }
    }

    /// The same for one that is not frozen but may soon be, by somebody who was killed while he waited for it in the kernel and will
    /// thaw nothing. Only one can be at it: who succeeds in freezing it knows that nobody else is.
    fn make_sure(&self, freezer: &dyn Freezer) -> LetGo {
        if !self.is_there() {
            return LetGo::Done;
        }
        let Err(error) = freezer.freeze(self) else { return self.thaw(freezer) };
        match (&error, error.errno()) {
            (_, Some(Errno::BUSY)) => self.thaw(freezer),
            (FreezerError::Elsewhere, _) | (_, Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOENT)) => {
                tracing::debug!(mount = %self.path.display(), %error, "cannot be frozen, so nobody else does");
                LetGo::Done
            }
            // That says nothing of the filesystem.
            (FreezerError::NoHolder(_) | FreezerError::HolderGone, _) => LetGo::NotFrozen,
            (FreezerError::Call(_), _) => {
                tracing::error!(mount = %self.path.display(), %error, "a filesystem may still become frozen: try `fsfreeze --unfreeze`");
                LetGo::Failed
            }
        }
    }
}

/// What became of a filesystem that is to be let go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LetGo {
    Done,
    NotFrozen,
    Failed,
}

fn dir(data_dir: &Path) -> PathBuf {
    data_dir.join("quiesce")
}

impl Marker {
    /// Puts it in place, durably; the path is for [`remove`].
    pub(crate) fn write(&self, data_dir: &Path) -> io::Result<PathBuf> {
        let dir = dir(data_dir);
        files::make_dir(&dir)?;
        let path = dir.join(format!("{}.json", uuid::Uuid::new_v4()));
        files::write_atomically(&path, &serde_json::to_vec(self)?)?;
        Ok(path)
    }

    fn post_hook(&self) -> Option<Hook<'_>> {
        Some(Hook {
            kind: QuiesceKind::PostCommand,
            command: self.post_command.as_deref()?,
            timeout: Duration::from_secs(self.timeout_s),
            env: &self.env,
        })
    }

    /// Runs the command after, if there is one.
    pub(crate) fn run_post_command(&self) -> Option<blockd_api::quiesce::QuiesceStep> {
        self.post_hook().map(|hook| hook.run())
    }
}

/// Removes a marker. One that stays lets go at the next start what is not at rest any more, which harms nobody.
pub(crate) fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a marker of what was at rest is left");
    }
}

/// Lets go what a daemon that died left at rest: thaws, then runs the commands after. Blocks.
pub(crate) fn let_go(data_dir: &Path, freezer: &dyn Freezer) {
    let entries = std::fs::read_dir(dir(data_dir)).into_iter().flatten().flatten();
    // Waiting comes last: what can be let go now is not kept by what cannot.
    let mut left: Vec<_> = entries.filter_map(|entry| Left::let_go(entry.path(), freezer)).collect();
    let deadline = Instant::now() + FREEZING_PATIENCE;
    loop {
        left.retain(|left| !left.is_settled());
        if left.is_empty() || Instant::now() >= deadline {
            return;
        }
        for (mount, end) in left.iter_mut().flat_map(|left| &mut left.ends) {
            if *end == LetGo::NotFrozen {
                *end = mount.make_sure(freezer);
            }
        }
        if left.iter().any(Left::is_waited_for) {
            std::thread::sleep(FREEZING_PAUSE);
        }
    }
}

/// What one marker tells of.
struct Left {
    path: PathBuf,
    ends: Vec<(Mounted, LetGo)>,
}

impl Left {
    /// Does what needs no waiting: thaws, and runs the command after.
    fn let_go(path: PathBuf, freezer: &dyn Freezer) -> Option<Self> {
        if path.extension().is_none_or(|extension| extension != "json") {
            remove(&path);
            return None;
        }
        let read = std::fs::read(&path);
        let marker: Marker =
            match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)) {
                Ok(marker) => marker,
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "it is not known what was at rest");
                    return None;
                }
            };
        let ends = marker.mounts.iter().rev().map(|mount| (mount.clone(), mount.thaw(freezer))).collect();
        if marker.run_post_command().is_some() {
            // It runs once, whatever becomes of this process while it waits.
            let rest = Marker { post_command: None, ..marker };
            if let Err(error) = serde_json::to_vec(&rest)
                .map_err(io::Error::from)
                .and_then(|bytes| files::write_atomically(&path, &bytes))
            {
                tracing::warn!(path = %path.display(), %error, "a command after may run once more");
            }
        }
        Some(Self { path, ends })
    }

    fn is_waited_for(&self) -> bool {
        self.ends.iter().any(|(_, end)| *end == LetGo::NotFrozen)
    }

    /// Whether there is nothing to wait for; the marker goes if all is let go.
    fn is_settled(&self) -> bool {
        if self.ends.iter().all(|(_, end)| *end == LetGo::Done) {
            remove(&self.path);
        }
        !self.is_waited_for()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// A filesystem that somebody else freezes all the while, and is done with after so many looks.
    #[derive(Default)]
    struct Double {
        calls: Mutex<Vec<String>>,
        frozen: Mutex<bool>,
        busy_for: Mutex<usize>,
        fails: bool,
        /// Why the next freezes fail, the last one first.
        refusals: Mutex<Vec<FreezerError>>,
    }

    impl Double {
        fn note(&self, what: &str, mount: &Path) {
            self.calls.lock().push(format!("{what} {}", mount.file_name().unwrap().display()));
        }

        fn calls(&self) -> Vec<String> {
            std::mem::take(&mut *self.calls.lock())
        }
    }

    impl Freezer for Double {
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

    fn is_removed(dir: &Path) -> bool {
        std::fs::read_dir(super::dir(dir)).unwrap().count() == 0
    }

    #[test]
    fn the_next_start_thaws_and_resumes_what_was_at_rest_and_does_so_once() {
        let dir = tempfile::tempdir().unwrap();
        let resumed = dir.path().join("resumed");
        let marker = Marker {
            post_command: Some(format!("echo $BLOCKD_SNAPSHOT >> {}", resumed.display())),
            timeout_s: 600,
            env: vec![("BLOCKD_SNAPSHOT".into(), "monday".into())],
            ..marker(dir.path(), &["a", "b"])
        };
        marker.write(dir.path()).unwrap();
        let double = Double { frozen: Mutex::new(true), ..Double::default() };
        let_go(dir.path(), &double);
        let_go(dir.path(), &double);
        assert_eq!(double.calls(), ["thaw b", "thaw a", "freeze a", "thaw a"]);
        assert!(!*double.frozen.lock() && is_removed(dir.path()));
        assert_eq!(std::fs::read_to_string(resumed).unwrap(), "monday\n");
    }

    /// Nobody else thaws it: who freezes it was killed, which he will know when he is done.
    #[test]
    fn one_that_is_still_being_frozen_is_waited_for_and_thawed() {
        let dir = tempfile::tempdir().unwrap();
        marker(dir.path(), &["a"]).write(dir.path()).unwrap();
        let double = Double { busy_for: Mutex::new(2), ..Double::default() };
        let_go(dir.path(), &double);
        assert_eq!(double.calls(), ["thaw a", "freeze a", "thaw a", "freeze a", "thaw a"]);
        assert!(!*double.frozen.lock() && is_removed(dir.path()));
    }

    /// Somebody may be freezing it all the same.
    #[test]
    fn a_process_that_cannot_be_had_says_nothing_of_the_filesystem() {
        let dir = tempfile::tempdir().unwrap();
        marker(dir.path(), &["a"]).write(dir.path()).unwrap();
        let refusals = vec![FreezerError::HolderGone, FreezerError::NoHolder(Errno::AGAIN.into())];
        let double = Double { refusals: Mutex::new(refusals), ..Double::default() };
        let_go(dir.path(), &double);
        assert_eq!(double.calls(), ["thaw a", "freeze a", "freeze a", "freeze a", "thaw a"]);
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
            let double = Double { refusals, ..Double::default() };
            let_go(dir.path(), &double);
            assert_eq!(is_removed(dir.path()), removed, "{errno}");
        }
    }

    #[test]
    fn what_can_be_let_go_does_not_wait_for_what_cannot() {
        let dir = tempfile::tempdir().unwrap();
        let resumed = dir.path().join("resumed");
        for name in ["a", "b"] {
            let post_command = Some(format!("echo >> {}", resumed.display()));
            Marker { post_command, timeout_s: 600, ..marker(dir.path(), &[name]) }.write(dir.path()).unwrap();
        }
        let double = Double { busy_for: Mutex::new(3), ..Double::default() };
        let_go(dir.path(), &double);
        let calls = double.calls();
        assert!(calls[..2].iter().all(|call| call.starts_with("thaw")), "{calls:?}");
        assert!(is_removed(dir.path()));
        assert_eq!(std::fs::read_to_string(resumed).unwrap(), "\n\n");
    }

    #[test]
    fn another_filesystem_that_lies_there_now_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let mut marker = marker(dir.path(), &["a", "gone"]);
        marker.mounts[0].device += 1;
        std::fs::remove_dir(dir.path().join("gone")).unwrap();
        marker.write(dir.path()).unwrap();
        let double = Double::default();
        let_go(dir.path(), &double);
        assert_eq!(double.calls(), Vec::<String>::new());
        assert!(is_removed(dir.path()));
    }

    #[test]
    fn what_could_not_be_thawed_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        marker(dir.path(), &["stuck"]).write(dir.path()).unwrap();
        std::fs::write(dir.path().join("quiesce/broken.json"), "{").unwrap();
        let double = Double { fails: true, ..Double::default() };
        let_go(dir.path(), &double);
        let_go(dir.path(), &double);
        assert_eq!(double.calls(), ["thaw stuck", "thaw stuck"]);
    }
}
