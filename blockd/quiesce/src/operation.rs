//! Quiesced freeze: pre-commands, filesystem freezes and the write barrier, resumed in reverse order.

use crate::{
    admission::{Admission, RunningGuard},
    command::Hook,
    error::{FreezeError, QuiesceError},
    filesystems::{Filesystems, FreezeTarget, Freezer, THAWED_EARLY},
    holder::HolderProcess,
    leftovers,
    marker::{self, Marker},
    parts::QuiescePart,
};
use blockd_api::quiesce::{QuiesceKind, QuiesceReport, QuiesceStep};
use blockd_extent::SnapshotId;
use blockd_volume::{GroupFrozen, Volume, freeze_group_with};
use jiff::Timestamp;
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Maximum time of a filesystem freeze. The write barrier takes less than a thousandth of it.
pub(crate) const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// Volumes with the ids of their new snapshots.
pub type Members = Vec<(Arc<Volume>, SnapshotId)>;

/// Quiesce operation.
pub struct QuiesceOperation {
    parts: Vec<QuiescePart>,
    to_freeze: Vec<FreezeTarget>,
    /// Environment of all commands.
    env: Vec<(String, String)>,
    marker: Marker,
    marker_path: Option<PathBuf>,
    /// Lock held by the daemon and the commands.
    lock: Option<File>,
    steps: Vec<QuiesceStep>,
    /// Freezer for filesystems that are not thawed yet.
    stuck: Option<Arc<dyn Freezer>>,
    /// Error messages may contain the output of commands.
    reports_output: bool,
    /// Cancellation of the pre-commands.
    stopping: Option<CancellationToken>,
    _running: Option<RunningGuard>,
}

impl QuiesceOperation {
    /// Creates a quiesce operation for mounted filesystems.
    pub fn new(
        parts: Vec<QuiescePart>,
        to_freeze: Vec<FreezeTarget>,
        env: Vec<(String, String)>,
        reports_output: bool,
    ) -> Self {
        let posts = parts.iter().rev().filter_map(|part| part.post(&env)).collect();
        let mounts = to_freeze.iter().map(|one| one.mount.clone()).collect();
        let marker = Marker { mounts, posts };
        let (steps, stuck) = (Vec::new(), None);
        Self {
            parts,
            to_freeze,
            env,
            marker,
            marker_path: None,
            lock: None,
            steps,
            stuck,
            reports_output,
            stopping: None,
            _running: None,
        }
    }

    /// Cancels the pre-commands when the daemon stops; the stop waits for the post-commands.
    pub fn stop_with(&mut self, stopping: &CancellationToken, admission: &Admission) {
        if !self.parts.is_empty() {
            self.stopping = Some(stopping.clone());
            self._running = Some(admission.running());
        }
    }

    /// Adds steps that failed before this operation.
    pub fn add_steps(&mut self, steps: Vec<QuiesceStep>) {
        self.steps.extend(steps);
    }

    /// Quiesces, freezes the volumes, and thaws; returns the point in time. Blocks.
    ///
    /// # Errors
    /// A required command or filesystem failed, a volume failed, or the daemon stops: there is no snapshot.
    pub fn freeze(
        &mut self,
        data_dir: &Path,
        members: &Members,
    ) -> Result<(GroupFrozen, Timestamp), FreezeError> {
        self.freeze_with(data_dir, members, Arc::new(HolderProcess::new(FREEZE_TIMEOUT)))
    }

    fn freeze_with(
        &mut self,
        data_dir: &Path,
        members: &Members,
        freezer: Arc<dyn Freezer>,
    ) -> Result<(GroupFrozen, Timestamp), FreezeError> {
        if !self.parts.is_empty() {
            let written = self.marker.write(data_dir);
            let path = written.map_err(|error| {
                QuiesceError::failed(format!(
                    "writing the crash marker failed: {error}: no snapshot was taken"
                ))
            })?;
            let lock = marker::lock(&path);
            self.marker_path = Some(path);
            self.lock = Some(lock.map_err(|error| {
                QuiesceError::failed(format!(
                    "locking the crash marker failed: {error}: no snapshot was taken"
                ))
            })?);
        }
        self.run_pre_commands()?;
        let filesystems = Filesystems::new(Arc::clone(&freezer), self.to_freeze.clone(), FREEZE_TIMEOUT);
        filesystems.sync();
        let refs: Vec<_> = members.iter().map(|(volume, id)| (&**volume, *id)).collect();
        // Taken as close to the freeze as possible, because it is the snapshot's point in time.
        let mut now = Timestamp::UNIX_EPOCH;
        let frozen = freeze_group_with(
            &refs,
            || {
                let frozen = filesystems.freeze();
                frozen.map_err(|error| QuiesceError::failed(format!("{error}: no snapshot was taken")).into())
            },
            || {
                now = Timestamp::now();
                filesystems.thaw();
            },
        );
        let ended = filesystems.end();
        self.steps.extend(ended.steps);
        self.stuck = (!ended.all_thawed).then_some(freezer);
        match frozen {
            Ok(_) if ended.expired => {
                let message =
                    "the filesystems had to be thawed before the volumes were frozen: no snapshot was taken";
                Err(QuiesceError::failed(message).into())
            }
            other => other.map(|frozen| (frozen, now)),
        }
    }

    fn run_pre_commands(&mut self) -> Result<(), QuiesceError> {
        for part in &self.parts {
            let Some(command) = &part.quiesce.pre_command else { continue };
            let env = part.env(&self.env, "pre");
            let hook = Hook {
                kind: QuiesceKind::PreCommand,
                rule: part.rule.as_ref(),
                command,
                user: part.quiesce.user.as_deref(),
                timeout: Duration::from_secs(part.timeout_s()),
                env: &env,
                lock: self.lock.as_ref(),
                stopping: self.stopping.as_ref(),
            };
            let step = hook.run();
            if self.stopping.as_ref().is_some_and(CancellationToken::is_cancelled) {
                // The next daemon runs the post-commands.
                self.steps.push(step);
                return Err(QuiesceError::Stopping);
            }
            let failed = match (self.reports_output, &step.error) {
                (true, Some(error)) => Some(format!("the pre-command failed ({error})")),
                _ => step.failure(),
            };
            self.steps.push(step);
            if let Some(failed) = failed
                && part.is_required()
            {
                return Err(QuiesceError::failed(format!("{failed}: no snapshot was taken")));
            }
        }
        Ok(())
    }

    /// Runs the post-commands; their environment says if the snapshot was taken. Blocks.
    pub fn resume(&mut self, taken: bool) {
        let said = if taken { "yes" } else { "no" };
        for post in &mut self.marker.posts {
            post.env.push((marker::TAKEN.to_owned(), said.to_owned()));
        }
        let Some(path) = self.marker_path.take() else { return };
        let steps = &mut self.steps;
        self.marker.run_posts(&path, self.lock.as_ref(), |step| steps.push(step));
        match self.stuck.take() {
            None => marker::remove(&path),
            Some(freezer) => leftovers::release_later(path, &self.marker, freezer),
        }
    }

    /// Returns the report; `None` without quiesce options.
    pub fn report(&self) -> Option<QuiesceReport> {
        (!self.parts.is_empty()).then(|| QuiesceReport { steps: self.steps.clone() })
    }
}

/// Quiesce operation returned to a caller that may have been cancelled.
pub struct Returned(Option<QuiesceOperation>);

impl Returned {
    /// Wraps an operation.
    pub fn new(operation: QuiesceOperation) -> Self {
        Self(Some(operation))
    }

    /// Returns the operation; without this call, the drop resumes everything.
    pub fn take(mut self) -> Option<QuiesceOperation> {
        self.0.take()
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        if let Some(operation) = &mut self.0 {
            operation.resume(false);
        }
    }
}

/// Returns true for the step of a filesystem that was thawed before the volumes were frozen.
pub fn was_thawed_early(step: &QuiesceStep) -> bool {
    step.error.as_deref() == Some(THAWED_EARLY)
}

/// Returns true if an earlier daemon left something quiesced.
pub fn is_release_due(data_dir: &Path) -> bool {
    marker::is_something_left(data_dir)
}

/// Resumes everything that an earlier daemon left quiesced; `settled` is called once new operations may run,
/// `ended` after each step. Blocks.
pub fn release(data_dir: &Path, ended: &mut dyn FnMut(QuiesceStep), settled: impl FnOnce()) {
    leftovers::release(data_dir, &HolderProcess::new(FREEZE_TIMEOUT), ended, settled);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        filesystems::{FreezerError, Thawed},
        mounted::Mounted,
    };
    use blockd_api::quiesce::{OnFailure, Quiesce};
    use blockd_extent::VolumeId;
    use parking_lot::Mutex;
    use std::io;

    /// Fake filesystem that writes dirty data to its volume when it is frozen.
    struct FakeFreezer {
        volume: Arc<Volume>,
        calls: Mutex<Vec<&'static str>>,
        /// Mount that does not freeze.
        fails: Option<&'static str>,
    }

    impl Freezer for FakeFreezer {
        fn sync(&self, _: &Mounted) -> Result<(), FreezerError> {
            Ok(())
        }
        fn freeze(&self, mount: &Mounted) -> Result<(), FreezerError> {
            self.calls.lock().push("freeze");
            if self.fails.is_some_and(|fails| mount.path == Path::new(fails)) {
                return Err(FreezerError::Call(io::ErrorKind::Unsupported.into()));
            }
            Ok(self.volume.write(0, &[1; 4096], true).map_err(io::Error::other)?)
        }
        fn thaw(&self, _: &Mounted) -> Result<Thawed, FreezerError> {
            self.calls.lock().push("thaw");
            self.volume.write(0, &[2; 4096], false).map_err(io::Error::other)?;
            Ok(Thawed::Now)
        }
    }

    struct Host {
        dir: tempfile::TempDir,
        members: Members,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let volume = Volume::create(&dir.path().join("v"), VolumeId::from_u64(1), 1 << 20).unwrap();
            Self { members: vec![(volume, SnapshotId::from_u64(7))], dir }
        }

        fn fake(&self, fails: bool) -> Arc<FakeFreezer> {
            let (volume, calls) = (self.members[0].0.clone(), Mutex::default());
            Arc::new(FakeFreezer { volume, calls, fails: fails.then_some("/mnt") })
        }

        /// Creates an operation whose commands record their order and the result of the snapshot.
        fn operation(&self, pre: &str) -> QuiesceOperation {
            self.operation_of(vec![self.part("", pre)])
        }

        fn operation_of(&self, parts: Vec<QuiescePart>) -> QuiesceOperation {
            let required = parts.iter().any(QuiescePart::is_required);
            let mount = Mounted { path: "/mnt".into(), device: 1 };
            QuiesceOperation::new(parts, vec![FreezeTarget { mount, required }], Vec::new(), true)
        }

        fn part(&self, name: &str, pre: &str) -> QuiescePart {
            let log = self.dir.path().join("log").display().to_string();
            let quiesce = Quiesce {
                freeze_fs: true,
                pre_command: Some(format!("echo ${{BLOCKD_RULE}}$BLOCKD_PHASE >> {log}; {pre}")),
                post_command: Some(format!("echo ${{BLOCKD_RULE}}$BLOCKD_PHASE $BLOCKD_TAKEN >> {log}")),
                command_timeout_seconds: Some(600),
                ..Quiesce::default()
            };
            QuiescePart { rule: name.parse().ok(), quiesce, volumes: vec![VolumeId::from_u64(1)] }
        }

        fn log(&self) -> String {
            std::fs::read_to_string(self.dir.path().join("log")).unwrap()
        }

        fn markers(&self) -> usize {
            let entries = std::fs::read_dir(self.dir.path().join("quiesce")).unwrap().flatten();
            entries.filter(|entry| entry.path().extension().is_none_or(|of| of != "lock")).count()
        }
    }

    fn kinds(operation: &QuiesceOperation) -> Vec<String> {
        operation.report().unwrap().steps.iter().map(|step| step.kind.to_string()).collect()
    }

    #[test]
    fn snapshot_has_writes_of_the_freeze_and_none_after_the_thaw() {
        let host = Host::new();
        let mut operation = host.operation("true");
        let fake = host.fake(false);
        assert!(operation.freeze_with(host.dir.path(), &host.members, fake.clone()).is_ok());
        assert_eq!((host.log().as_str(), host.markers()), ("pre\n", 1));
        operation.resume(true);
        assert_eq!((host.log().as_str(), host.markers()), ("pre\npost yes\n", 0));
        assert_eq!(*fake.calls.lock(), ["freeze", "thaw"]);
        assert_eq!(kinds(&operation), ["pre-command", "freeze-fs", "thaw-fs", "post-command"]);
        assert!(operation.report().unwrap().steps.iter().all(|step| step.error.is_none()));
        let mut content = vec![0; 4096];
        let whole = [blockd_extent::Extent::new(blockd_extent::BlockIndex(0), 1)];
        let (volume, id) = &host.members[0];
        volume.view(*id).unwrap().read_extents(&whole, &mut content).unwrap();
        assert_eq!(content, [1; 4096]);
    }

    #[test]
    fn failed_pre_command_aborts_and_the_post_command_runs() {
        let host = Host::new();
        let mut operation = host.operation("echo cannot lock >&2; exit 4");
        let fake = host.fake(false);
        let Err(FreezeError::Quiesce(error)) =
            operation.freeze_with(host.dir.path(), &host.members, fake.clone())
        else {
            panic!("it was frozen")
        };
        let message = error.to_string();
        assert!(
            message.contains("pre-command failed (exit status 4: cannot lock): no snapshot"),
            "{message}"
        );
        operation.resume(false);
        assert_eq!((host.log().as_str(), host.markers()), ("pre\npost no\n", 0));
        assert!(fake.calls.lock().is_empty() && host.members[0].0.snapshots().is_empty());
        assert_eq!(kinds(&operation), ["pre-command", "post-command"]);
    }

    #[test]
    fn rules_run_in_order_and_resume_in_reverse_order() {
        let host = Host::new();
        let mut operation =
            host.operation_of(vec![host.part("a", "true"), host.part("b", "exit 2"), host.part("c", "true")]);
        assert!(operation.freeze_with(host.dir.path(), &host.members, host.fake(false)).is_err());
        operation.resume(false);
        // The application whose pre-command did not run is resumed as well: it may have been quiesced before.
        assert_eq!(host.log(), "apre\nbpre\ncpost no\nbpost no\napost no\n");
        assert_eq!(host.markers(), 0);
        let failures: Vec<String> = operation.report().unwrap().failures().collect();
        assert_eq!(failures, ["the pre-command of rule b failed (exit status 2)"]);
    }

    #[test]
    fn optional_failure_is_reported_and_the_snapshot_taken() {
        let host = Host::new();
        let mut part = host.part("a", "exit 2");
        part.quiesce.on_failure = OnFailure::Continue;
        let mut operation = host.operation_of(vec![part]);
        assert!(operation.freeze_with(host.dir.path(), &host.members, host.fake(true)).is_ok());
        operation.resume(true);
        assert_eq!(host.members[0].0.snapshots().len(), 1);
        assert_eq!((host.log().as_str(), host.markers()), ("apre\napost yes\n", 0));
        let failures: Vec<String> = operation.report().unwrap().failures().collect();
        assert_eq!(failures[0], "the pre-command of rule a failed (exit status 2)");
        assert!(failures.len() == 2 && failures[1].contains("the freeze of /mnt failed"), "{failures:?}");
    }

    #[test]
    fn volumes_of_a_group_have_their_own_failure_policy() {
        let host = Host::new();
        let mount = |path: &str| Mounted { path: path.into(), device: 1 };
        let of = |path: &str, required| FreezeTarget { mount: mount(path), required };
        let mut may = host.part("may", "true");
        may.quiesce.on_failure = OnFailure::Continue;
        let parts = || vec![may.clone(), host.part("must", "true")];
        for (bad_required, taken) in [(false, true), (true, false)] {
            let to_freeze = vec![of("/good", !bad_required), of("/bad", bad_required)];
            let mut operation = QuiesceOperation::new(parts(), to_freeze, Vec::new(), true);
            let (volume, calls) = (host.members[0].0.clone(), Mutex::default());
            let fake = Arc::new(FakeFreezer { volume, calls, fails: Some("/bad") });
            let members = vec![(host.members[0].0.clone(), SnapshotId::from_u64(8 + u64::from(taken)))];
            assert_eq!(operation.freeze_with(host.dir.path(), &members, fake.clone()).is_ok(), taken);
            operation.resume(taken);
            // The other filesystem is frozen nevertheless.
            let mut calls = fake.calls.lock().clone();
            calls.sort_unstable();
            assert_eq!(calls, ["freeze", "freeze", "thaw"], "{bad_required}");
        }
        let both =
            FreezeTarget::unique(vec![of("/b", false), of("/a", false), of("/b", true), of("/b", false)]);
        assert_eq!(both, [of("/a", false), of("/b", true)]);
    }

    #[test]
    fn failed_filesystem_freeze_aborts_the_snapshot() {
        let host = Host::new();
        let mut operation = host.operation("true");
        let Err(FreezeError::Quiesce(error)) =
            operation.freeze_with(host.dir.path(), &host.members, host.fake(true))
        else {
            panic!("it was frozen")
        };
        assert!(error.to_string().starts_with("cannot freeze the filesystem at /mnt: "), "{error}");
        operation.resume(false);
        assert!(host.members[0].0.snapshots().is_empty());
        assert_eq!(kinds(&operation), ["pre-command", "freeze-fs", "post-command"]);
    }

    #[test]
    fn failed_volume_freeze_thaws_the_filesystems() {
        let host = Host::new();
        host.members[0].0.freeze(host.members[0].1).unwrap();
        let mut operation = host.operation("true");
        let fake = host.fake(false);
        assert!(operation.freeze_with(host.dir.path(), &host.members, fake.clone()).is_err());
        // The id is taken, which fails before any freeze.
        assert!(fake.calls.lock().is_empty());
        // The old head cannot be finished, which fails after the freeze.
        let in_the_way = host.members[0].0.dir().join("layer-0000000000000002.g0.set");
        std::fs::create_dir(&in_the_way).unwrap();
        let members = vec![(host.members[0].0.clone(), SnapshotId::from_u64(8))];
        assert!(host.operation("true").freeze_with(host.dir.path(), &members, fake.clone()).is_err());
        assert_eq!(*fake.calls.lock(), ["freeze", "thaw"]);
    }
}
