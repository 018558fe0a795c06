//! Quiescing of applications and filesystems around a freeze.
//!
//! The pre-commands run first, part after part. When the volumes' new heads are ready, the filesystems are
//! frozen, the write barrier passes, and the filesystems are thawed. The post-commands run last, in reverse
//! order. Everything is resumed after any failure, by the next start of the daemon if necessary; until then
//! no other freeze quiesces. Freezes with commands for the same volumes or of the same rules run one after
//! the other: otherwise the post-command of one could resume what another has just quiesced.

mod command;
mod deadline;
mod failures;
mod filesystems;
mod holder;
mod kernel;
mod marker;
mod parts;
mod users;

use crate::{
    core::Core,
    db::{Db, DbError, NewEvent},
    error::ServiceError,
    keyed_locks::{KeyedGuard, KeyedLocks},
    snapshots::FreezeFailed,
};
use blockd_api::{
    ErrorCode, VolumeName,
    events::Severity,
    quiesce::{QuiesceKind, QuiesceReport, QuiesceStep},
};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::{GroupFrozen, Volume, freeze_group_with};
use command::Hook;
use filesystems::{Filesystems, FreezeTarget, Freezer};
use holder::HolderProcess;
pub use holder::hold_filesystem;
use jiff::Timestamp;
use marker::{Marker, Mounted};
pub use parts::Part;
use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
pub(crate) use users::{UserRefused, try_user};

/// Maximum time of a filesystem freeze. The write barrier takes less than a thousandth of it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Volumes with the ids of their new snapshots.
pub(crate) type Members = Vec<(Arc<Volume>, SnapshotId)>;

/// Admission of quiesce operations.
#[derive(Debug)]
pub(crate) struct QuiesceState {
    /// Cause.
    pub(crate) failures: failures::Failures,
    locks: KeyedLocks,
    /// True once everything that an earlier daemon quiesced has been resumed.
    is_settled: watch::Sender<bool>,
    /// Number of running quiesce operations.
    under_way: Arc<watch::Sender<usize>>,
}

/// Guard of a running quiesce operation.
struct ActiveOperations(Arc<watch::Sender<usize>>);

impl Drop for ActiveOperations {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Default for QuiesceState {
    fn default() -> Self {
        let under_way = Arc::new(watch::channel(0).0);
        let is_settled = watch::channel(true).0;
        Self { failures: failures::Failures::default(), locks: KeyedLocks::default(), is_settled, under_way }
    }
}

impl QuiesceState {
    /// Waits for exclusive use of these volumes and rules.
    pub(crate) async fn turn(
        &self,
        quiesce_rules: &[Part],
        volumes: impl Iterator<Item = VolumeId>,
    ) -> Option<KeyedGuard> {
        if quiesce_rules.is_empty() {
            return None;
        }
        // The sender lives as long as `self`.
        let _ = self.is_settled.subscribe().wait_for(|is_settled| *is_settled).await;
        let rules =
            quiesce_rules.iter().filter_map(|part| part.rule.as_ref()).map(|rule| format!("rule {rule}"));
        Some(self.locks.take(rules.chain(volumes.map(|volume| format!("volume {volume}")))).await)
    }

    /// Waits for the end of all quiesce operations; returns false after the time limit.
    pub(crate) async fn ended(&self, time_limit: Duration) -> bool {
        let mut under_way = self.under_way.subscribe();
        tokio::time::timeout(time_limit, under_way.wait_for(|count| *count == 0)).await.is_ok()
    }
}

/// Quiesce operation.
pub(crate) struct QuiesceOperation {
    parts: Vec<Part>,
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
    tells_all: bool,
    /// Cancellation of the pre-commands.
    stopping: Option<CancellationToken>,
    _under_way: Option<ActiveOperations>,
}

fn refused(message: impl Into<String>) -> ServiceError {
    ServiceError::refused(ErrorCode::QuiesceFailed, message)
}

/// Removes duplicates by path. A filesystem is required if any part requires it.
fn each_once(mut wanted: Vec<FreezeTarget>) -> Vec<FreezeTarget> {
    wanted.sort_unstable_by(|a, b| a.mount.path.cmp(&b.mount.path).then(b.must_rest.cmp(&a.must_rest)));
    wanted.dedup_by(|a, b| a.mount == b.mount);
    wanted
}

/// Returns the failed step of a freeze without filesystems.
fn not_frozen(why: &ServiceError) -> QuiesceStep {
    QuiesceStep {
        kind: QuiesceKind::FreezeFs,
        target: "the filesystems".to_owned(),
        rule: None,
        started: None,
        duration_micros: 0,
        exit_status: None,
        error: Some(why.to_string()),
        output: None,
    }
}

impl QuiesceOperation {
    /// Creates a quiesce operation for mounted filesystems.
    pub(crate) fn new(
        parts: Vec<Part>,
        to_freeze: Vec<FreezeTarget>,
        env: Vec<(String, String)>,
        tells_all: bool,
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
            tells_all,
            stopping: None,
            _under_way: None,
        }
    }

    /// Cancels the pre-commands when the daemon stops; the stop waits for the post-commands.
    pub(crate) fn heed(&mut self, stopping: &CancellationToken, resting: &QuiesceState) {
        if !self.parts.is_empty() {
            self.stopping = Some(stopping.clone());
            resting.under_way.send_modify(|count| *count += 1);
            self._under_way = Some(ActiveOperations(Arc::clone(&resting.under_way)));
        }
    }

    /// Records earlier failures.
    pub(crate) fn note(&mut self, steps: Vec<QuiesceStep>) {
        self.steps.extend(steps);
    }

    /// Quiesces, freezes the volumes, and thaws. Blocks.
    pub(crate) fn freeze(
        &mut self,
        data_dir: &Path,
        members: &Members,
    ) -> Result<(GroupFrozen, Timestamp), FreezeFailed> {
        self.freeze_with(data_dir, members, Arc::new(HolderProcess::new(TIMEOUT)))
    }

    fn freeze_with(
        &mut self,
        data_dir: &Path,
        members: &Members,
        freezer: Arc<dyn Freezer>,
    ) -> Result<(GroupFrozen, Timestamp), FreezeFailed> {
        if !self.parts.is_empty() {
            let written = self.marker.write(data_dir);
            let written = written.map_err(|error| {
                refused(format!("cannot note what is brought to rest: {error}: no snapshot was taken"))
            });
            let path = written.map_err(FreezeFailed::Other)?;
            let lock = marker::lock(&path);
            self.marker_path = Some(path);
            let lock = lock.map_err(|error| {
                refused(format!("cannot lock what is noted of the rest: {error}: no snapshot was taken"))
            });
            self.lock = Some(lock.map_err(FreezeFailed::Other)?);
        }
        self.run_pre_commands().map_err(FreezeFailed::Other)?;
        let filesystems = Filesystems::new(Arc::clone(&freezer), self.to_freeze.clone(), TIMEOUT);
        filesystems.sync();
        let refs: Vec<_> = members.iter().map(|(volume, id)| (&**volume, *id)).collect();
        // The timestamp stands for the point in time of the freeze, so it is taken next to it.
        let mut now = Timestamp::UNIX_EPOCH;
        let frozen = freeze_group_with(
            &refs,
            || {
                let at_rest = filesystems.freeze();
                at_rest
                    .map_err(|error| FreezeFailed::Other(refused(format!("{error}: no snapshot was taken"))))
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
                Err(FreezeFailed::Other(refused(message)))
            }
            other => other.map(|frozen| (frozen, now)),
        }
    }

    fn run_pre_commands(&mut self) -> Result<(), ServiceError> {
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
                // The next daemon repeats all of it.
                self.steps.push(step);
                return Err(ServiceError::Stopping);
            }
            let failed = match (self.tells_all, &step.error) {
                (true, Some(error)) => Some(format!("the pre-command failed ({error})")),
                _ => step.failure(),
            };
            self.steps.push(step);
            if let Some(failed) = failed
                && part.aborts()
            {
                return Err(refused(format!("{failed}: no snapshot was taken")));
            }
        }
        Ok(())
    }

    /// Runs the post-commands. Blocks.
    pub(crate) fn end(&mut self, taken: bool) {
        let said = if taken { "yes" } else { "no" };
        for post in &mut self.marker.posts {
            post.env.push((marker::TAKEN.to_owned(), said.to_owned()));
        }
        let Some(path) = self.marker_path.take() else { return };
        let steps = &mut self.steps;
        self.marker.run_posts(&path, self.lock.as_ref(), |step| steps.push(step));
        match self.stuck.take() {
            None => marker::remove(&path),
            Some(freezer) => marker::release_later(path, &self.marker, freezer),
        }
    }

    /// Returns the report; `None` without quiesce options.
    pub(crate) fn report(&self) -> Option<QuiesceReport> {
        (!self.parts.is_empty()).then(|| QuiesceReport { steps: self.steps.clone() })
    }
}

/// Quiesce operation on its way back to the caller, which a stop may have cancelled.
pub(crate) struct Returned(Option<QuiesceOperation>);

impl Returned {
    pub(crate) fn new(rest: QuiesceOperation) -> Self {
        Self(Some(rest))
    }

    pub(crate) fn take(mut self) -> Option<QuiesceOperation> {
        self.0.take()
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        if let Some(rest) = &mut self.0 {
            rest.end(false);
        }
    }
}

/// Returns true for the step of a filesystem that was thawed early.
fn is_early(step: &QuiesceStep) -> bool {
    step.error.as_deref() == Some(filesystems::TOO_EARLY)
}

/// Returns events for the failed steps of these volumes.
pub(crate) fn events_of_failures<'a>(
    steps: impl Iterator<Item = &'a QuiesceStep>,
    volumes: &[VolumeName],
    taken: bool,
) -> Vec<NewEvent> {
    let names: Vec<&str> = volumes.iter().map(VolumeName::as_str).collect();
    let of = if names.is_empty() { String::new() } else { format!(" of {}", names.join(", ")) };
    let event = |step: &QuiesceStep| {
        let failure = step.failure()?;
        let what = match (step.kind, taken) {
            (QuiesceKind::PreCommand | QuiesceKind::FreezeFs, false) => "no snapshot was taken",
            (QuiesceKind::PreCommand | QuiesceKind::FreezeFs, true) => "the snapshot was taken all the same",
            (QuiesceKind::ThawFs, false) if is_early(step) => "no snapshot was taken",
            (QuiesceKind::ThawFs, true) if is_early(step) => "the snapshot was taken all the same",
            _ => "the application may still be quiesced",
        };
        let message = format!("around a freeze{of}, {failure}: {what}");
        let event = NewEvent::new(Timestamp::now(), Severity::Error, "rule-failed", message);
        let volume = volumes.first().filter(|_| volumes.len() == 1).cloned();
        Some(NewEvent { volume, ..event })
    };
    steps.filter_map(event).collect()
}

impl Core {
    /// Returns the filesystems that these parts freeze, and the failures of optional ones. A filesystem is
    /// required if any part requires it.
    ///
    /// # Errors
    /// See [`filesystems_of`](Self::filesystems_of), for required filesystems.
    pub(crate) fn filesystems_for(
        &self,
        quiesce_rules: &[Part],
        members: &Members,
    ) -> Result<(Vec<FreezeTarget>, Vec<QuiesceStep>), ServiceError> {
        let (mut wanted, mut failed) = (Vec::new(), Vec::new());
        for part in quiesce_rules.iter().filter(|part| part.quiesce.freeze_fs) {
            let is_its = |(volume, _): &&(Arc<Volume>, SnapshotId)| part.volumes.contains(&volume.id());
            match self.filesystems_of(&members.iter().filter(is_its).cloned().collect()) {
                Ok(found) => {
                    let must_rest = part.aborts();
                    wanted.extend(found.into_iter().map(|mount| FreezeTarget { mount, must_rest }));
                }
                Err(error) if part.aborts() => return Err(error),
                Err(error) => failed.push(QuiesceStep { rule: part.rule.clone(), ..not_frozen(&error) }),
            }
        }
        Ok((each_once(wanted), failed))
    }

    /// Returns the filesystems mounted from the devices of these volumes.
    ///
    /// # Errors
    /// There are none, one cannot be reached, or one holds the daemon's own data, which would deadlock.
    pub(crate) fn filesystems_of(&self, members: &Members) -> Result<Vec<Mounted>, ServiceError> {
        let found: Vec<_> =
            members.iter().flat_map(|(volume, _)| self.attachments.filesystems(volume.id())).collect();
        if found.is_empty() {
            return Err(refused(
                "no filesystem of these volumes is mounted on this host: leave --freeze-fs away, or mount it first",
            ));
        }
        let own = std::fs::metadata(&self.data_dir).map(|found| found.dev());
        let mut mounts = Vec::with_capacity(found.len());
        for place in found {
            let path = place.path.display().to_string();
            if place.is_hidden {
                let message = format!(
                    "something else is mounted over the filesystem at {path}, which cannot be reached: leave --freeze-fs away"
                );
                return Err(refused(message));
            }
            let mount = Mounted::at(place.path)
                .map_err(|error| refused(format!("cannot look at the filesystem at {path}: {error}")))?;
            if own.as_ref().is_ok_and(|own| *own == mount.device) {
                let message = format!(
                    "blockd's own data is on the filesystem at {path}, and blockd would wait for itself: leave --freeze-fs away"
                );
                return Err(refused(message));
            }
            mounts.push(mount);
        }
        Ok(mounts)
    }

    /// Resumes, in the background, what an earlier daemon left quiesced. The volumes must be served already:
    /// a filesystem writes when it is thawed.
    pub(crate) fn release_quiesced(self: &Arc<Self>) {
        if !marker::is_something_left(&self.data_dir) {
            return;
        }
        let _ = self.resting.is_settled.send_replace(false);
        let core = Arc::clone(self);
        let work = move || {
            let settled = || {
                let _ = core.resting.is_settled.send_replace(true);
            };
            let mut ended = |step: QuiesceStep| {
                core.resting.failures.note(std::iter::once(&step));
                store_events(&core.db, &events_of_failures(std::iter::once(&step), &[], false));
                core.events.wake();
            };
            marker::release(&core.data_dir, &HolderProcess::new(TIMEOUT), &mut ended, settled);
        };
        if let Err(error) = std::thread::Builder::new().name("thaw".into()).spawn(work) {
            tracing::error!(%error, "filesystems that were left frozen are not thawed");
            let _ = self.resting.is_settled.send_replace(true);
        }
    }
}

/// Stores events in a transaction of their own.
fn store_events(db: &Db, events: &[NewEvent]) {
    let stored = |tx: &rusqlite::Transaction<'_>| -> Result<(), DbError> {
        events.iter().try_for_each(|event| event.insert(tx))
    };
    if let Err(error) = db.transaction(stored) {
        tracing::warn!(%error, "the events of what failed are not kept");
    }
}

#[cfg(test)]
mod tests {
    use super::{
        filesystems::{FreezerError, Thawed},
        *,
    };
    use blockd_api::quiesce::{OnFailure, Quiesce};
    use parking_lot::Mutex;
    use std::io;

    /// Fake filesystem that writes dirty data to its volume when it is frozen.
    struct Double {
        volume: Arc<Volume>,
        calls: Mutex<Vec<&'static str>>,
        /// Mount that does not freeze.
        fails: Option<&'static str>,
    }

    impl Freezer for Double {
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

        fn double(&self, fails: bool) -> Arc<Double> {
            let (volume, calls) = (self.members[0].0.clone(), Mutex::default());
            Arc::new(Double { volume, calls, fails: fails.then_some("/mnt") })
        }

        /// Creates an operation whose commands record their order and the result of the snapshot.
        fn rest(&self, pre: &str) -> QuiesceOperation {
            self.rest_of(vec![self.part("", pre)])
        }

        fn rest_of(&self, parts: Vec<Part>) -> QuiesceOperation {
            let must_rest = parts.iter().any(Part::aborts);
            let mount = Mounted { path: "/mnt".into(), device: 1 };
            QuiesceOperation::new(parts, vec![FreezeTarget { mount, must_rest }], Vec::new(), true)
        }

        fn part(&self, name: &str, pre: &str) -> Part {
            let log = self.dir.path().join("log").display().to_string();
            let quiesce = Quiesce {
                freeze_fs: true,
                pre_command: Some(format!("echo ${{BLOCKD_RULE}}$BLOCKD_PHASE >> {log}; {pre}")),
                post_command: Some(format!("echo ${{BLOCKD_RULE}}$BLOCKD_PHASE $BLOCKD_TAKEN >> {log}")),
                command_timeout_s: Some(600),
                ..Quiesce::default()
            };
            Part { rule: name.parse().ok(), quiesce, volumes: vec![VolumeId::from_u64(1)] }
        }

        fn log(&self) -> String {
            std::fs::read_to_string(self.dir.path().join("log")).unwrap()
        }

        fn markers(&self) -> usize {
            let entries = std::fs::read_dir(self.dir.path().join("quiesce")).unwrap().flatten();
            entries.filter(|entry| entry.path().extension().is_none_or(|of| of != "lock")).count()
        }
    }

    fn kinds(rest: &QuiesceOperation) -> Vec<String> {
        rest.report().unwrap().steps.iter().map(|step| step.kind.to_string()).collect()
    }

    #[test]
    fn snapshot_has_writes_of_the_freeze_and_none_after_the_thaw() {
        let host = Host::new();
        let mut rest = host.rest("true");
        let double = host.double(false);
        assert!(rest.freeze_with(host.dir.path(), &host.members, double.clone()).is_ok());
        assert_eq!((host.log().as_str(), host.markers()), ("pre\n", 1));
        rest.end(true);
        assert_eq!((host.log().as_str(), host.markers()), ("pre\npost yes\n", 0));
        assert_eq!(*double.calls.lock(), ["freeze", "thaw"]);
        assert_eq!(kinds(&rest), ["pre-command", "freeze-fs", "thaw-fs", "post-command"]);
        assert!(rest.report().unwrap().steps.iter().all(|step| step.error.is_none()));
        let mut content = vec![0; 4096];
        let whole = [blockd_extent::Extent::new(blockd_extent::BlockIndex(0), 1)];
        let (volume, id) = &host.members[0];
        volume.view(*id).unwrap().read_extents(&whole, &mut content).unwrap();
        assert_eq!(content, [1; 4096]);
    }

    #[test]
    fn failed_pre_command_aborts_and_the_post_command_runs() {
        let host = Host::new();
        let mut rest = host.rest("echo cannot lock >&2; exit 4");
        let double = host.double(false);
        let Err(FreezeFailed::Other(error)) =
            rest.freeze_with(host.dir.path(), &host.members, double.clone())
        else {
            panic!("it was frozen")
        };
        let message = error.to_string();
        assert!(
            message.contains("pre-command failed (exit status 4: cannot lock): no snapshot"),
            "{message}"
        );
        rest.end(false);
        assert_eq!((host.log().as_str(), host.markers()), ("pre\npost no\n", 0));
        assert!(double.calls.lock().is_empty() && host.members[0].0.snapshots().is_empty());
        assert_eq!(kinds(&rest), ["pre-command", "post-command"]);
    }

    #[test]
    fn rules_run_in_order_and_resume_in_reverse_order() {
        let host = Host::new();
        let mut rest =
            host.rest_of(vec![host.part("a", "true"), host.part("b", "exit 2"), host.part("c", "true")]);
        assert!(rest.freeze_with(host.dir.path(), &host.members, host.double(false)).is_err());
        rest.end(false);
        // The application whose pre-command did not run is resumed as well: it may have been quiesced before.
        assert_eq!(host.log(), "apre\nbpre\ncpost no\nbpost no\napost no\n");
        assert_eq!(host.markers(), 0);
        let failures: Vec<String> = rest.report().unwrap().failures().collect();
        assert_eq!(failures, ["the pre-command of rule b failed (exit status 2)"]);
    }

    #[test]
    fn optional_failure_is_reported_and_the_snapshot_taken() {
        let host = Host::new();
        let mut part = host.part("a", "exit 2");
        part.quiesce.on_failure = OnFailure::Continue;
        let mut rest = host.rest_of(vec![part]);
        assert!(rest.freeze_with(host.dir.path(), &host.members, host.double(true)).is_ok());
        rest.end(true);
        assert_eq!(host.members[0].0.snapshots().len(), 1);
        assert_eq!((host.log().as_str(), host.markers()), ("apre\napost yes\n", 0));
        let report = rest.report().unwrap();
        let volumes = ["v".parse().unwrap()];
        let events = events_of_failures(report.steps.iter(), &volumes, true);
        let told: Vec<&str> = events.iter().map(|event| event.message.as_str()).collect();
        assert_eq!(
            told[0],
            "around a freeze of v, the pre-command of rule a failed (exit status 2): the snapshot was taken all the same"
        );
        assert!(told.len() == 2 && told[1].contains("the freeze of /mnt failed"), "{told:?}");
    }

    #[test]
    fn volumes_of_a_group_have_their_own_failure_policy() {
        let host = Host::new();
        let mount = |path: &str| Mounted { path: path.into(), device: 1 };
        let of = |path: &str, must_rest| FreezeTarget { mount: mount(path), must_rest };
        let mut may = host.part("may", "true");
        may.quiesce.on_failure = OnFailure::Continue;
        let parts = || vec![may.clone(), host.part("must", "true")];
        for (bad_must_rest, taken) in [(false, true), (true, false)] {
            let to_freeze = vec![of("/good", !bad_must_rest), of("/bad", bad_must_rest)];
            let mut rest = QuiesceOperation::new(parts(), to_freeze, Vec::new(), true);
            let (volume, calls) = (host.members[0].0.clone(), Mutex::default());
            let double = Arc::new(Double { volume, calls, fails: Some("/bad") });
            let members = vec![(host.members[0].0.clone(), SnapshotId::from_u64(8 + u64::from(taken)))];
            assert_eq!(rest.freeze_with(host.dir.path(), &members, double.clone()).is_ok(), taken);
            rest.end(taken);
            // The other filesystem is frozen nevertheless.
            let mut calls = double.calls.lock().clone();
            calls.sort_unstable();
            assert_eq!(calls, ["freeze", "freeze", "thaw"], "{bad_must_rest}");
        }
        let both = each_once(vec![of("/b", false), of("/a", false), of("/b", true), of("/b", false)]);
        assert_eq!(both, [of("/a", false), of("/b", true)]);
    }

    #[tokio::test]
    async fn quiesce_waits_for_the_recovery_of_an_earlier_daemon() {
        let resting = QuiesceState::default();
        let host = Host::new();
        let quiesce_rules = [host.part("a", "true")];
        let volume = || [VolumeId::from_u64(1)].into_iter();
        resting.is_settled.send_replace(false);
        assert!(resting.turn(&[], volume()).await.is_none());
        let mut turn = Box::pin(resting.turn(&quiesce_rules, volume()));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut turn).await.is_err());
        resting.is_settled.send_replace(true);
        let turn = turn.await;
        let mut other = Box::pin(resting.turn(&quiesce_rules, [VolumeId::from_u64(2)].into_iter()));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut other).await.is_err());
        drop(turn);
        other.await;
    }

    #[test]
    fn failed_filesystem_freeze_aborts_the_snapshot() {
        let host = Host::new();
        let mut rest = host.rest("true");
        let Err(FreezeFailed::Other(error)) =
            rest.freeze_with(host.dir.path(), &host.members, host.double(true))
        else {
            panic!("it was frozen")
        };
        assert_eq!(error.to_api().code, ErrorCode::QuiesceFailed);
        assert!(error.to_string().starts_with("cannot freeze the filesystem at /mnt: "), "{error}");
        rest.end(false);
        assert!(host.members[0].0.snapshots().is_empty());
        assert_eq!(kinds(&rest), ["pre-command", "freeze-fs", "post-command"]);
    }

    #[test]
    fn failed_volume_freeze_thaws_the_filesystems() {
        let host = Host::new();
        host.members[0].0.freeze(host.members[0].1).unwrap();
        let mut rest = host.rest("true");
        let double = host.double(false);
        assert!(rest.freeze_with(host.dir.path(), &host.members, double.clone()).is_err());
        // The id is taken, which fails before any freeze.
        assert!(double.calls.lock().is_empty());
        // The old head cannot be finished, which fails after the freeze.
        let in_the_way = host.members[0].0.dir().join("layer-0000000000000002.g0.set");
        std::fs::create_dir(&in_the_way).unwrap();
        let members = vec![(host.members[0].0.clone(), SnapshotId::from_u64(8))];
        assert!(host.rest("true").freeze_with(host.dir.path(), &members, double.clone()).is_err());
        assert_eq!(*double.calls.lock(), ["freeze", "thaw"]);
    }
}
