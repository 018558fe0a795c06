//! What a daemon leaves behind while something is at rest, for the next one to let go should it die.
//!
//! A marker is a file in `quiesce/` of the data directory, durable before the first command runs or the first filesystem is
//! frozen, and removed when all is let go.

use super::{Hook, filesystems::Freezer};
use crate::files;
use blockd_api::quiesce::QuiesceKind;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// What is at rest, and how it is let go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Marker {
    /// Mount points of the filesystems that are frozen, or about to be.
    pub(crate) mounts: Vec<PathBuf>,
    /// The command that is to run afterwards.
    pub(crate) post_command: Option<String>,
    /// How long that may take, in seconds.
    pub(crate) timeout_s: u64,
    /// What it is told.
    pub(crate) env: Vec<(String, String)>,
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
    for path in entries.map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "json") {
            remove(&path);
            continue;
        }
        let marker: Marker = match std::fs::read(&path)
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from))
        {
            Ok(marker) => marker,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "it is not known what was at rest");
                continue;
            }
        };
        let mut all = true;
        for mount in marker.mounts.iter().rev() {
            match freezer.thaw(mount) {
                Ok(()) => tracing::warn!(mount = %mount.display(), "thawed what was left frozen"),
                Err(error) => {
                    all &= error.kind() == io::ErrorKind::NotFound;
                    tracing::error!(mount = %mount.display(), %error, "a filesystem may still be frozen: try `fsfreeze --unfreeze`");
                }
            }
        }
        marker.run_post_command();
        if all {
            remove(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Double(Mutex<Vec<PathBuf>>);

    impl Freezer for Double {
        fn sync(&self, _: &Path) -> io::Result<()> {
            Ok(())
        }
        fn freeze(&self, _: &Path) -> io::Result<()> {
            panic!("nothing is frozen at a start")
        }
        fn thaw(&self, mount: &Path) -> io::Result<()> {
            self.0.lock().push(mount.to_owned());
            match mount.to_str() {
                Some("stuck") => Err(io::ErrorKind::PermissionDenied.into()),
                _ => Ok(()),
            }
        }
    }

    #[test]
    fn the_next_start_thaws_and_resumes_what_was_at_rest_and_does_so_once() {
        let dir = tempfile::tempdir().unwrap();
        let resumed = dir.path().join("resumed");
        let marker = Marker {
            mounts: vec!["/a".into(), "/b".into()],
            post_command: Some(format!("echo $BLOCKD_SNAPSHOT >> {}", resumed.display())),
            timeout_s: 600,
            env: vec![("BLOCKD_SNAPSHOT".into(), "monday".into())],
        };
        marker.write(dir.path()).unwrap();
        let double = Double::default();
        let_go(dir.path(), &double);
        let_go(dir.path(), &double);
        assert_eq!(*double.0.lock(), [Path::new("/b"), Path::new("/a")]);
        assert_eq!(std::fs::read_to_string(resumed).unwrap(), "monday\n");
    }

    #[test]
    fn what_could_not_be_thawed_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let marker = Marker { mounts: vec!["stuck".into()], ..Marker::default() };
        marker.write(dir.path()).unwrap();
        std::fs::write(dir.path().join("quiesce/broken.json"), "{").unwrap();
        let double = Double::default();
        let_go(dir.path(), &double);
        let_go(dir.path(), &double);
        assert_eq!(double.0.lock().len(), 2);
    }
}
