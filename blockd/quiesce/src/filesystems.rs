//! Freeze of several filesystems with a guaranteed thaw.
//!
//! A frozen filesystem blocks all its writers, so there are five ways to thaw it: the freezing thread after
//! the barrier; the destructor of the guard; a watchdog thread if both hang; the [holder
//! process](crate::holder) if the daemon hangs or dies; and the next start of the daemon, from a
//! [marker](crate::marker).

use crate::{
    deadline::{share, with_deadline},
    mounted::Mounted,
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
    #[error("starting its holder process failed: {0}")]
    NoHolder(#[source] io::Error),
    /// The holder process died: the operation may be done, or may complete later.
    #[error("its holder process died")]
    HolderGone,
    /// Another filesystem is mounted at the path; nothing was done.
    #[error("another filesystem is mounted there")]
    OtherFilesystem,
    /// Timeout; the operation may complete later.
    #[error("timeout after {waited_ms} ms")]
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
            Self::NoHolder(_) | Self::HolderGone | Self::OtherFilesystem | Self::TooLong { .. } => None,
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
    shared: Arc<SharedFreeze>,
    wanted: Vec<FreezeTarget>,
    time_limit: Duration,
}

struct SharedFreeze {
    freezer: Arc<dyn Freezer>,
    state: Mutex<FreezeState>,
    changed: Condvar,
}

#[derive(Default)]
struct FreezeState {
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
pub(crate) struct FreezeEnd {
    /// Steps.
    pub(crate) steps: Vec<QuiesceStep>,
    /// All filesystems are thawed.
    pub(crate) all_thawed: bool,
    /// A required filesystem was thawed early: the snapshot may be inconsistent.
    pub(crate) expired: bool,
}

impl Filesystems {
    /// Creates a freeze of filesystems, each by one of its mount points; nothing is frozen yet. The watchdog
    /// thaws everything after the time limit. Optional filesystems get a third of it, so that a hanging one
    /// leaves time for the required ones.
    pub(crate) fn new(
        freezer: Arc<dyn Freezer>,
        mut wanted: Vec<FreezeTarget>,
        time_limit: Duration,
    ) -> Self {
        // Optional filesystems first: required ones must not stay frozen while an optional one fails slowly.
        wanted.sort_by_key(|one| one.required);
        let shared = SharedFreeze { freezer, state: Mutex::default(), changed: Condvar::new() };
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
            tracing::debug!(mount = %mount.path.display(), %error, "writeback failed on filesystem: its freeze takes longer");
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
            return self.unless_any_must(format!("starting the watchdog thread failed: {error}"));
        }
        let began = Instant::now();
        let (until, optional_until) = (began + self.time_limit, began + self.time_limit / 3);
        let mut optional_left = self.wanted.iter().filter(|one| !one.required).count();
        for one in &self.wanted {
            let FreezeTarget { mount, required } = one;
            // Not under the lock, so that the watchdog can thaw the others if this call hangs.
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
                    // The dead holder process may have frozen it, or may still do so.
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
    pub(crate) fn end(self) -> FreezeEnd {
        self.thaw();
        let mut state = self.shared.state.lock();
        let steps = std::mem::take(&mut state.steps);
        FreezeEnd { steps, all_thawed: !state.stuck && state.late == 0, expired: state.expired }
    }

    fn watch(&self) -> io::Result<()> {
        let (shared, time_limit) = (Arc::clone(&self.shared), self.time_limit);
        let watchdog = move || {
            let deadline = Instant::now() + time_limit;
            let mut state = shared.state.lock();
            while !state.ended {
                if shared.changed.wait_until(&mut state, deadline).timed_out() && !state.ended {
                    tracing::error!("filesystems were frozen for too long: thawing them");
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

impl SharedFreeze {
    /// Thaws a filesystem whose freeze completed late.
    fn release(&self, mount: &Mounted, frozen: Result<(), FreezerError>) {
        let left = match frozen {
            Ok(()) => self.freezer.thaw(mount).err(),
            // The dead holder process may have frozen it.
            Err(error @ FreezerError::HolderGone) => Some(error),
            // No operation took place.
            Err(_) => None,
        };
        let mut state = self.state.lock();
        state.late -= 1;
        if let Some(error) = left {
            state.stuck = true;
            tracing::error!(mount = %mount.path.display(), %error, "thaw failed on filesystem after a late freeze: try `fsfreeze --unfreeze`");
        }
    }

    /// Thaws the frozen filesystems in reverse order.
    fn thaw(&self, state: &mut FreezeState) {
        self.thaw_as(state, false);
    }

    /// Thaws the frozen filesystems; reports it as a failure if `too_early`.
    fn thaw_as(&self, state: &mut FreezeState, too_early: bool) {
        state.ended = true;
        for FreezeTarget { mount, required } in std::mem::take(&mut state.frozen).into_iter().rev() {
            let began = Instant::now();
            let result = self.freezer.thaw(&mount);
            let failed = match result {
                Ok(Thawed::Now) if !too_early => None,
                // Applications may have written before the write barrier.
                Ok(_) => {
                    state.expired |= required;
                    Some(THAWED_EARLY.to_owned())
                }
                Err(error) => {
                    tracing::error!(mount = %mount.path.display(), %error, "thaw failed on filesystem: try `fsfreeze --unfreeze`");
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
        rule_name: None,
        started_at: None,
        duration_micros: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
        exit_status: None,
        error,
        output: None,
    }
}

#[cfg(test)]
mod tests;
