//! Bringing applications and filesystems to rest around a freeze.
//!
//! The command before runs first; then, when the volumes' new heads are ready, the filesystems are frozen, the barrier is
//! passed, and they are thawed; the command after runs last. What was brought to rest is let go whatever fails, by the
//! next start of the daemon if need be.

mod apart;
mod command;
mod filesystems;
mod kernel;
mod marker;

use crate::{core::Core, error::ServiceError, snapshots::FreezeFailed};
use apart::Apart;
pub use apart::hold_filesystem;
use blockd_api::{
    ErrorCode,
    quiesce::{DEFAULT_COMMAND_TIMEOUT_S, Quiesce, QuiesceKind, QuiesceReport, QuiesceStep},
};
use blockd_extent::SnapshotId;
use blockd_volume::{GroupFrozen, Volume, freeze_group_around};
use command::Hook;
use filesystems::{Filesystems, Freezer};
use jiff::Timestamp;
use marker::{Marker, Mounted};
use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long filesystems are frozen at most. The barrier takes less than a thousandth of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Volumes, and the snapshots that they get.
pub(crate) type Members = Vec<(Arc<Volume>, SnapshotId)>;

/// What is done around one freeze.
pub(crate) struct Rest {
    quiesce: Quiesce,
    marker: Marker,
    marker_path: Option<PathBuf>,
    /// Held while commands run, and by them.
    lock: Option<File>,
    steps: Vec<QuiesceStep>,
    /// What is to thaw, if not all are thawed.
    stuck: Option<Arc<dyn Freezer>>,
}

fn refused(message: impl Into<String>) -> ServiceError {
    ServiceError::refused(ErrorCode::QuiesceFailed, message)
}

impl Rest {
    /// What is asked for, for filesystems that are mounted here.
    pub(crate) fn new(quiesce: Quiesce, mounts: Vec<Mounted>, env: Vec<(String, String)>) -> Self {
        let marker = Marker {
            mounts,
            post_command: quiesce.post_command.clone(),
            timeout_s: quiesce.command_timeout_s.unwrap_or(DEFAULT_COMMAND_TIMEOUT_S),
            env,
        };
        Self { quiesce, marker, marker_path: None, lock: None, steps: Vec::new(), stuck: None }
    }

    /// Brings to rest, freezes, and thaws. Blocks.
    pub(crate) fn freeze(
        &mut self,
        data_dir: &Path,
        members: &Members,
    ) -> Result<(GroupFrozen, Timestamp), FreezeFailed> {
        self.freeze_with(data_dir, members, Arc::new(Apart::new(PATIENCE)))
    }

    fn freeze_with(
        &mut self,
        data_dir: &Path,
        members: &Members,
        freezer: Arc<dyn Freezer>,
    ) -> Result<(GroupFrozen, Timestamp), FreezeFailed> {
        if !self.quiesce.is_nothing() {
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
        self.run_pre_command().map_err(FreezeFailed::Other)?;
        let filesystems = Filesystems::new(Arc::clone(&freezer), self.marker.mounts.clone(), PATIENCE);
        filesystems.sync();
        let refs: Vec<_> = members.iter().map(|(volume, id)| (&**volume, *id)).collect();
        // The time stands for the instant of the freeze, so it is taken beside it.
        let mut now = Timestamp::UNIX_EPOCH;
        let frozen = freeze_group_around(
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

    fn run_pre_command(&mut self) -> Result<(), ServiceError> {
        let Some(command) = &self.quiesce.pre_command else { return Ok(()) };
        let timeout = Duration::from_secs(self.marker.timeout_s);
        let (kind, env, lock) = (QuiesceKind::PreCommand, &self.marker.env, self.lock.as_ref());
        let step = Hook { kind, command, timeout, env, lock }.run();
        let failed = step.error.clone();
        self.steps.push(step);
        match failed {
            None => Ok(()),
            Some(error) => Err(refused(format!("the pre-command failed ({error}): no snapshot was taken"))),
        }
    }

    /// Runs the command after. Blocks.
    pub(crate) fn end(&mut self, taken: bool) {
        let said = if taken { "yes" } else { "no" };
        self.marker.env.push(("BLOCKD_TAKEN".to_owned(), said.to_owned()));
        self.steps.extend(self.marker.run_post_command(self.lock.as_ref()));
        match (self.marker_path.take(), self.stuck.take()) {
            (Some(path), None) => marker::remove(&path),
            (Some(path), Some(freezer)) => marker::let_go_later(path, &self.marker, freezer),
            (None, _) => {}
        }
    }

    /// What was done so far; `None` if nothing was asked for.
    pub(crate) fn report(&self) -> Option<QuiesceReport> {
        (!self.quiesce.is_nothing()).then(|| QuiesceReport { steps: self.steps.clone() })
    }
}

impl Core {
    /// The filesystems that are mounted from these volumes' devices.
    ///
    /// # Errors
    /// There are none, or one of them cannot be reached; or the daemon's own data is on one, which would wait for itself.
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

    /// Lets go, apart from the caller, what an earlier daemon left at rest. Volumes must be served already: a filesystem
    /// writes when it is thawed.
    pub(crate) fn let_go_of_what_is_at_rest(&self) {
        let data_dir = self.data_dir.clone();
        let work = move || marker::let_go(&data_dir, &Apart::new(PATIENCE));
        if let Err(error) = std::thread::Builder::new().name("thaw".into()).spawn(work) {
            tracing::error!(%error, "filesystems that were left frozen are not thawed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        filesystems::{FreezerError, Thawed},
        *,
    };
    use blockd_extent::VolumeId;
    use parking_lot::Mutex;
    use std::io;

    /// A filesystem that writes what it holds back into its volume when it is frozen.
    struct Double {
        volume: Arc<Volume>,
        calls: Mutex<Vec<&'static str>>,
        fails: bool,
    }

    impl Freezer for Double {
        fn sync(&self, _: &Mounted) -> Result<(), FreezerError> {
            Ok(())
        }
        fn freeze(&self, _: &Mounted) -> Result<(), FreezerError> {
            self.calls.lock().push("freeze");
            if self.fails {
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
            Arc::new(Double { volume: self.members[0].0.clone(), calls: Mutex::default(), fails })
        }

        /// Commands that note their turn, and what is said of the snapshot.
        fn rest(&self, pre: &str) -> Rest {
            let log = self.dir.path().join("log").display().to_string();
            let quiesce = Quiesce {
                freeze_fs: true,
                pre_command: Some(format!("echo pre >> {log}; {pre}")),
                post_command: Some(format!("echo post $BLOCKD_TAKEN >> {log}")),
                command_timeout_s: Some(600),
            };
            Rest::new(quiesce, vec![Mounted { path: "/mnt".into(), device: 1 }], Vec::new())
        }

        fn log(&self) -> String {
            std::fs::read_to_string(self.dir.path().join("log")).unwrap()
        }

        fn markers(&self) -> usize {
            std::fs::read_dir(self.dir.path().join("quiesce")).unwrap().count()
        }
    }

    fn kinds(rest: &Rest) -> Vec<String> {
        rest.report().unwrap().steps.iter().map(|step| step.kind.to_string()).collect()
    }

    #[test]
    fn the_snapshot_has_what_the_freeze_wrote_and_not_what_came_after_the_thaw() {
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
    fn a_command_that_fails_stops_the_snapshot_and_the_other_one_runs_all_the_same() {
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
    fn a_filesystem_that_cannot_be_frozen_stops_the_snapshot() {
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
    fn what_was_frozen_is_thawed_when_the_freeze_of_the_volumes_fails() {
        let host = Host::new();
        host.members[0].0.freeze(host.members[0].1).unwrap();
        let mut rest = host.rest("true");
        let double = host.double(false);
        assert!(rest.freeze_with(host.dir.path(), &host.members, double.clone()).is_err());
        // The id is taken, which shows before anything is frozen.
        assert!(double.calls.lock().is_empty());
        // The old head cannot be finished, which shows after.
        let in_the_way = host.members[0].0.dir().join("layer-0000000000000002.g0.set");
        std::fs::create_dir(&in_the_way).unwrap();
        let members = vec![(host.members[0].0.clone(), SnapshotId::from_u64(8))];
        assert!(host.rest("true").freeze_with(host.dir.path(), &members, double.clone()).is_err());
        assert_eq!(*double.calls.lock(), ["freeze", "thaw"]);
    }
}
