//! Quiesce operations of this daemon: filesystems on attached volumes, the release of those that an earlier
//! run left frozen, and the events of failures.

pub mod rules;

use crate::{
    error::ServiceError,
    events::EventLog,
    host::Host,
    volumes::{attachments::Attachments, registry::Registry},
};
use blockd_api::{
    ErrorCode, RuleName, VolumeName,
    events::{EventKind, Severity},
    quiesce::{QuiesceKind, QuiesceStep},
};
use blockd_catalog::{Db, DbError, NewEvent};
use blockd_extent::SnapshotId;
use blockd_quiesce::{
    Admission as QuiesceAdmission, FreezeTarget, Members, Mounted, QuiesceError, QuiescePart,
    was_thawed_early,
};
use blockd_volume::Volume;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::BTreeMap, os::unix::fs::MetadataExt, sync::Arc};

/// Quiesces applications and filesystems by the rules that apply.
pub struct Quiescer {
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) host: Arc<Host>,
    pub(crate) quiescing: Arc<QuiesceAdmission>,
    pub(crate) registry: Arc<Registry>,
    /// Rules whose commands cannot run, with the cause found at the start.
    pub(crate) rule_problems: Mutex<BTreeMap<RuleName, String>>,
}

fn refused(message: impl Into<String>) -> ServiceError {
    ServiceError::refused(ErrorCode::QuiesceFailed, message)
}

impl From<QuiesceError> for ServiceError {
    fn from(error: QuiesceError) -> Self {
        match error {
            QuiesceError::Stopping => Self::Stopping,
            other => refused(other.to_string()),
        }
    }
}

/// Returns the failed step of a freeze without filesystems.
fn not_frozen(why: &ServiceError) -> QuiesceStep {
    QuiesceStep {
        kind: QuiesceKind::FreezeFs,
        target: "the filesystems".to_owned(),
        rule_name: None,
        started_at: None,
        duration_micros: 0,
        exit_status: None,
        error: Some(why.to_string()),
        output: None,
    }
}

/// Returns events for the failed steps of these volumes.
pub fn events_of_failures<'a>(
    steps: impl Iterator<Item = &'a QuiesceStep>,
    volumes: &[VolumeName],
    taken: bool,
) -> Vec<NewEvent> {
    let names: Vec<&str> = volumes.iter().map(VolumeName::as_str).collect();
    let of = if names.is_empty() { String::new() } else { format!(" on volume {}", names.join(", ")) };
    let event = |step: &QuiesceStep| {
        let failure = step.failure()?;
        let what = match (step.kind, taken) {
            (QuiesceKind::PreCommand | QuiesceKind::FreezeFs, false) => "no snapshot was taken",
            (QuiesceKind::PreCommand | QuiesceKind::FreezeFs, true) => "the snapshot was taken nevertheless",
            (QuiesceKind::ThawFs, false) if was_thawed_early(step) => "no snapshot was taken",
            (QuiesceKind::ThawFs, true) if was_thawed_early(step) => "the snapshot was taken nevertheless",
            _ => "the application may still be quiesced",
        };
        let message = format!("quiesce failed{of}: {failure}; {what}");
        let event = NewEvent::new(Timestamp::now(), Severity::Error, EventKind::RuleFailed, message);
        let volume = volumes.first().filter(|_| volumes.len() == 1).cloned();
        Some(NewEvent { volume, ..event })
    };
    steps.filter_map(event).collect()
}

impl Quiescer {
    /// Returns the filesystems that these parts freeze, and the failures of optional ones. A filesystem is
    /// required if any part requires it.
    ///
    /// # Errors
    /// See [`filesystems_of`](Self::filesystems_of), for required filesystems.
    pub fn filesystems_for(
        &self,
        quiesce_rules: &[QuiescePart],
        members: &Members,
    ) -> Result<(Vec<FreezeTarget>, Vec<QuiesceStep>), ServiceError> {
        let (mut wanted, mut failed) = (Vec::new(), Vec::new());
        for part in quiesce_rules.iter().filter(|part| part.quiesce.freeze_fs) {
            let is_its = |(volume, _): &&(Arc<Volume>, SnapshotId)| part.volumes.contains(&volume.id());
            match self.filesystems_of(&members.iter().filter(is_its).cloned().collect()) {
                Ok(found) => {
                    let required = part.is_required();
                    wanted.extend(found.into_iter().map(|mount| FreezeTarget { mount, required }));
                }
                Err(error) if part.is_required() => return Err(error),
                Err(error) => failed.push(QuiesceStep { rule_name: part.rule.clone(), ..not_frozen(&error) }),
            }
        }
        Ok((FreezeTarget::unique(wanted), failed))
    }

    /// Returns the filesystems mounted from the devices of these volumes.
    ///
    /// # Errors
    /// There are none, one cannot be reached, or one holds the daemon's own data, which would deadlock.
    pub fn filesystems_of(&self, members: &Members) -> Result<Vec<Mounted>, ServiceError> {
        let found: Vec<_> =
            members.iter().flat_map(|(volume, _)| self.attachments.filesystems(volume.id())).collect();
        if found.is_empty() {
            return Err(refused(
                "no filesystem of these volumes is mounted on this host: mount one, or omit --freeze-fs",
            ));
        }
        let own = std::fs::metadata(&self.host.data_dir).map(|found| found.dev());
        let mut mounts = Vec::with_capacity(found.len());
        for mount_point in found {
            let path = mount_point.path.display().to_string();
            if mount_point.is_hidden {
                let message = format!(
                    "the filesystem at {path} is hidden by another mount and cannot be reached: omit --freeze-fs"
                );
                return Err(refused(message));
            }
            let mount = Mounted::at(mount_point.path)
                .map_err(|error| refused(format!("cannot open the filesystem at {path}: {error}")))?;
            if own.as_ref().is_ok_and(|own| *own == mount.device) {
                let message = format!(
                    "the filesystem at {path} holds blockd's own data, and freezing it would deadlock blockd: omit --freeze-fs"
                );
                return Err(refused(message));
            }
            mounts.push(mount);
        }
        Ok(mounts)
    }

    /// Resumes, in the background, applications and filesystems that an earlier daemon left quiesced. The
    /// volumes must be served already: a filesystem writes when it is thawed.
    pub fn release_quiesced(self: &Arc<Self>) {
        if !blockd_quiesce::is_release_due(&self.host.data_dir) {
            return;
        }
        self.quiescing.set_settled(false);
        let this = Arc::clone(self);
        let work = move || {
            let mut ended = |step: QuiesceStep| {
                this.quiescing.failures.note(std::iter::once(&step));
                store_events(&this.db, &events_of_failures(std::iter::once(&step), &[], false));
                this.events.wake();
            };
            blockd_quiesce::release(&this.host.data_dir, &mut ended, || this.quiescing.set_settled(true));
        };
        if let Err(error) = std::thread::Builder::new().name("thaw".into()).spawn(work) {
            tracing::error!(%error, "thawing filesystems of an earlier run failed");
            self.quiescing.set_settled(true);
        }
    }
}

/// Stores events in a transaction of their own.
fn store_events(db: &Db, events: &[NewEvent]) {
    let stored = |tx: &rusqlite::Transaction<'_>| -> Result<(), DbError> {
        events.iter().try_for_each(|event| event.insert(tx))
    };
    if let Err(error) = db.transaction(stored) {
        tracing::warn!(%error, "storing the events of quiesce failures failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_a_taken_snapshot_are_events() {
        let step = |kind, target: &str, rule: Option<&str>, error: &str| QuiesceStep {
            kind,
            target: target.to_owned(),
            rule_name: rule.map(|name| name.parse().unwrap()),
            started_at: None,
            duration_micros: 0,
            exit_status: None,
            error: Some(error.to_owned()),
            output: None,
        };
        let steps = [
            step(QuiesceKind::PreCommand, "x", Some("a"), "exit status 2"),
            step(QuiesceKind::FreezeFs, "/mnt", None, "not supported"),
        ];
        let events = events_of_failures(steps.iter(), &["v".parse().unwrap()], true);
        let messages: Vec<&str> = events.iter().map(|event| event.message.as_str()).collect();
        assert_eq!(
            messages[0],
            "quiesce failed on volume v: the pre-command of rule a failed (exit status 2); the snapshot was taken nevertheless"
        );
        assert!(messages.len() == 2 && messages[1].contains("the freeze of /mnt failed"), "{messages:?}");
    }
}
