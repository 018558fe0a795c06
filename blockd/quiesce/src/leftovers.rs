//! Resumption of what a dead daemon left quiesced: the thaw of its filesystems, then its post-commands.

use crate::{
    filesystems::Freezer,
    marker::{self, Marker, TAKEN},
    mounted::{Mounted, ThawOutcome, seen_mounts},
};
use blockd_api::quiesce::{QuiesceKind, QuiesceStep};
use blockd_files::Mount;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::Scope,
    time::{Duration, Instant},
};

/// Timeout for a filesystem whose freeze is still in progress.
const FREEZING_TIMEOUT: Duration = Duration::from_secs(600);
/// Polling interval of such a filesystem.
const FREEZING_PAUSE: Duration = Duration::from_millis(100);
/// Timeout of a thaw at the start, after which the post-commands run nevertheless: one hanging filesystem
/// must not block applications and all other freezes.
const THAW_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });

/// Thaws, in the background, filesystems that could not be thawed in time; the post-commands have run.
pub(crate) fn release_later(path: PathBuf, marker: &Marker, freezer: Arc<dyn Freezer>) {
    let ends = marker.mounts.clone().into_iter().map(|mount| (mount, ThawOutcome::NotFrozen)).collect();
    let work = move || settle(vec![Left { path, ends, late: Vec::new() }], &*freezer, &seen_mounts);
    if let Err(error) = std::thread::Builder::new().name("thaw".into()).spawn(work) {
        tracing::error!(%error, "starting the thaw thread failed: the next start of the daemon thaws the frozen filesystems");
    }
}

/// Resumes applications that a dead daemon left quiesced: thaws, then runs the post-commands and reports
/// each. Then it calls `done` and waits for filesystems that cannot be thawed yet. Blocks.
pub(crate) fn release(
    data_dir: &Path,
    freezer: &dyn Freezer,
    ended: &mut dyn FnMut(QuiesceStep),
    done: impl FnOnce(),
) {
    release_among(data_dir, freezer, &seen_mounts, ended, done);
}

fn release_among(
    data_dir: &Path,
    freezer: &dyn Freezer,
    mounts: &dyn Fn() -> Vec<Mount>,
    ended: &mut dyn FnMut(QuiesceStep),
    done: impl FnOnce(),
) {
    let entries = std::fs::read_dir(marker::dir(data_dir)).into_iter().flatten().flatten();
    std::thread::scope(|scope| {
        // Waits come last, so that they do not delay the others.
        let left = entries.filter_map(|entry| Left::release(entry.path(), freezer, &mounts(), scope, ended));
        let (prompt, late): (Vec<Left>, Vec<Left>) = left.partition(|left| left.late.is_empty());
        done();
        settle(prompt, freezer, mounts);
        for mut left in late {
            left.wait_for_thaws();
            settle(vec![left], freezer, mounts);
        }
    });
}

/// Waits for filesystems that cannot be thawed yet.
fn settle(mut left: Vec<Left>, freezer: &dyn Freezer, seen: &dyn Fn() -> Vec<Mount>) {
    let deadline = Instant::now() + FREEZING_TIMEOUT;
    loop {
        left.retain(|left| !left.is_settled());
        if left.is_empty() || Instant::now() >= deadline {
            return;
        }
        let mounts = seen();
        for (mount, end) in left.iter_mut().flat_map(|left| &mut left.ends) {
            if end.is_waited_for() {
                *end = mount.make_sure(freezer, &mounts);
            }
        }
        if left.iter().any(Left::is_waited_for) {
            std::thread::sleep(FREEZING_PAUSE);
        }
    }
}

/// Returns the step of a hanging thaw at the start.
fn hanging(mount: &Mounted) -> QuiesceStep {
    let timeout_s = THAW_TIMEOUT.as_secs();
    QuiesceStep {
        kind: QuiesceKind::ThawFs,
        target: mount.path.display().to_string(),
        rule_name: None,
        started_at: None,
        duration_micros: timeout_s * 1_000_000,
        exit_status: None,
        error: Some(format!("no response for {timeout_s} s: check the device of the filesystem")),
        output: None,
    }
}

/// Remainder of one marker.
struct Left {
    path: PathBuf,
    ends: Vec<(Mounted, ThawOutcome)>,
    /// Mounts whose thaw hangs, with the channel of its result.
    late: Vec<(Mounted, mpsc::Receiver<ThawOutcome>)>,
}

impl Left {
    /// Thaws, and runs the post-commands. A hanging thaw continues in the background.
    fn release<'scope, 'env>(
        path: PathBuf,
        freezer: &'env dyn Freezer,
        mounts: &[Mount],
        scope: &'scope Scope<'scope, 'env>,
        ended: &mut dyn FnMut(QuiesceStep),
    ) -> Option<Self> {
        if path.extension().is_none_or(|extension| extension != "json") {
            let is_lock = path.extension().is_some_and(|extension| extension == "lock");
            if !is_lock || !path.with_extension("json").exists() {
                marker::remove_file(&path);
            }
            return None;
        }
        let read = std::fs::read(&path);
        let mut quiesced: Marker = match read
            .and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from))
        {
            Ok(quiesced) => quiesced,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "reading failed on crash marker: quiesced applications and filesystems are unknown");
                return None;
            }
        };
        let (mut ends, mut late) = (Vec::new(), Vec::new());
        for mount in quiesced.mounts.iter().rev() {
            let (tell, told) = mpsc::channel();
            let (its, mounts) = (mount.clone(), mounts.to_owned());
            let thaw = move || {
                let end = its.thaw(freezer, &mounts);
                if end == ThawOutcome::Hidden {
                    tracing::error!(mount = %its.path.display(), "a filesystem may still be frozen, and another mount hides it: unmount that");
                }
                // Cannot fail: the receiver lives until the end.
                let _ = tell.send(end);
            };
            if let Err(error) = std::thread::Builder::new().name("thaw".into()).spawn_scoped(scope, thaw) {
                tracing::error!(mount = %mount.path.display(), %error, "a filesystem may still be frozen: try `fsfreeze --unfreeze`");
            }
            match told.recv_timeout(THAW_TIMEOUT) {
                Ok(end) => ends.push((mount.clone(), end)),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    ends.push((mount.clone(), ThawOutcome::Failed));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    tracing::error!(mount = %mount.path.display(), "the thaw of a filesystem hangs: resuming everything else");
                    ended(hanging(mount));
                    late.push((mount.clone(), told));
                }
            }
        }
        if !quiesced.posts.is_empty() {
            // Commands of the previous daemon hold the lock.
            let lock = marker::lock(&path);
            for env in quiesced.posts.iter_mut().map(|post| &mut post.env) {
                // The daemon died before it set the variable for all of them.
                if env.iter().all(|(name, _)| name != TAKEN) {
                    env.push((TAKEN.to_owned(), "unknown".to_owned()));
                }
            }
            let lock = lock.inspect_err(
                |error| tracing::warn!(%error, "locking failed: the post-command runs without its lock"),
            );
            quiesced.run_posts(&path, lock.as_ref().ok(), ended);
        }
        Some(Self { path, ends, late })
    }

    /// Waits for hanging thaws.
    fn wait_for_thaws(&mut self) {
        for (mount, told) in self.late.drain(..) {
            self.ends.push((mount, told.recv().unwrap_or(ThawOutcome::Failed)));
        }
    }

    fn is_waited_for(&self) -> bool {
        self.ends.iter().any(|(_, end)| end.is_waited_for())
    }

    /// Returns true if there is nothing to wait for; removes the marker if everything is resumed.
    fn is_settled(&self) -> bool {
        if self.ends.iter().all(|(_, end)| *end == ThawOutcome::Done) {
            marker::remove(&self.path);
        }
        !self.is_waited_for()
    }
}

#[cfg(test)]
mod tests;
