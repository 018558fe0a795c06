//! Schedule requests: create, list, update, delete and run.

use crate::{
    drills::probe,
    error::ServiceError,
    host::Host,
    quiesce::{Quiescer, rules::refuse_unknown},
    repositories::Repositories,
    schedules::{
        plausibility::{self, check_rules, invalid},
        resumption,
        selection::{self, Candidate},
        transactions,
        update::updated,
        wake::Scheduler,
    },
    tasks::Tasks,
    volumes::registry::{EntryState, Registry},
};
use blockd_api::{
    ApiError, Deleted, ErrorCode, List, ObjectName, VolumeRef,
    drills::DrillOptions,
    schedules::{
        CopyState, CreateSchedule, CredentialRetention, ListRuns, MAX_HISTORY, MAX_TARGETS, PolicyName,
        RetainAt, Run, RunSchedule, RunState, Schedule, ScheduleList, SelectedVolumes, Selector,
        UnreadableSchedule, UpdateSchedule,
    },
};
use blockd_catalog::{CredentialRow, Db, DbError, LOCAL, PolicyRow, RunRow, ScheduleRow, ScheduleSpec};
use blockd_schedule::Retention;
use jiff::Timestamp;
use rusqlite::Transaction;
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// Default number of runs in a reply.
const DEFAULT_HISTORY: u32 = 100;

/// Schedules and their policies.
pub struct Schedules {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) quiescer: Arc<Quiescer>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) tasks: Arc<Tasks>,
}

pub(super) fn no_schedule(uuid: Uuid) -> ServiceError {
    ServiceError::refused(ErrorCode::ScheduleNotFound, format!("there is no schedule {uuid}"))
}

pub(super) fn no_policy(name: &PolicyName) -> ServiceError {
    ServiceError::refused(ErrorCode::PolicyNotFound, format!("there is no schedule policy {name}"))
}

fn to_api(
    tx: &Transaction<'_>,
    row: &ScheduleRow,
    volumes: &[Candidate],
    now: Timestamp,
) -> Result<Schedule, DbError> {
    let names = CredentialRow::names(tx)?;
    let whens: Vec<String> = row.rules(tx)?.iter().map(|rule| rule.when.to_string()).collect();
    let spec = &row.spec;
    let mut counts = RunRow::copies(tx, row.uuid)?;
    let copy = |location: Uuid| {
        let count = counts.remove(&location).unwrap_or_default();
        let is_local = location == LOCAL;
        let retain = if is_local { spec.local.as_ref() } else { spec.retain_at.get(&location) };
        CopyState {
            credential_id: (!is_local).then_some(location),
            credential_name: names.get(&location).cloned(),
            retain: retain.unwrap_or(&spec.retain).clone(),
            kept: count.kept,
            newest_at: count.newest,
            last_state: count.last_state,
        }
    };
    let copies = spec.locations().map(copy).collect();
    let retain_at = spec.retain_at.iter().map(|(uuid, retain)| CredentialRetention {
        credential_id: *uuid,
        credential_name: names.get(uuid).cloned(),
        retain: retain.clone(),
    });
    Ok(Schedule {
        schedule_id: row.uuid,
        name: spec.name.clone(),
        selector: selected(&spec.selector, volumes),
        credential_ids: spec.credentials.clone(),
        // The credentials of a schedule cannot be deleted.
        credential_names: spec.credentials.iter().filter_map(|uuid| names.get(uuid).cloned()).collect(),
        local: spec.local.clone(),
        retain_at: retain_at.collect(),
        copies,
        rules: spec.rules.clone(),
        policy_name: row.policy.clone(),
        retain: spec.retain.clone(),
        full: spec.full,
        reupload: spec.reupload,
        compression: spec.compression,
        jitter_seconds: spec.jitter,
        priority: spec.priority,
        rule_name: spec.rule.clone(),
        labels: spec.labels.clone(),
        drill: spec.drill.clone(),
        paused: row.paused,
        created_at: row.created,
        next_run_at: transactions::next_run(tx, row, now)?,
        last_run_at: RunRow::last_of(tx, row.uuid)?,
        overdue_at: transactions::overdue_since(tx, row, now)?,
        without_volume: selection::protects_nothing(&spec.selector, volumes),
        warnings: Vec::new(),
        schedule: whens.join(", "),
    })
}

/// Describes the volumes of a schedule, with the name of a single one.
fn selected(selector: &Selector, volumes: &[Candidate]) -> SelectedVolumes {
    let (volume_id, volume_name) = match &selector.volume {
        Some(VolumeRef::Id(id)) => {
            let known = volumes.iter().find(|volume| volume.id == *id);
            (Some(*id), known.map(|volume| volume.name.clone()))
        }
        Some(VolumeRef::Name(name)) => (None, Some(name.clone())),
        None => (None, None),
    };
    SelectedVolumes {
        volume_id,
        volume_name,
        group: selector.group.clone(),
        label: selector.label.clone(),
        all: selector.all,
    }
}

fn find(tx: &Transaction<'_>, uuid: Uuid) -> Result<ScheduleRow, ServiceError> {
    ScheduleRow::find(tx, uuid)?.ok_or_else(|| no_schedule(uuid))
}

/// Returns the commands for a schedule.
const fn command_of(spec: &ScheduleSpec) -> &'static str {
    if spec.drill.is_some() { "cloudsnap drill schedules" } else { "cloudsnap schedules" }
}

/// Refuses the name of another schedule.
fn refuse_duplicate_name(tx: &Transaction<'_>, name: Option<&ObjectName>) -> Result<(), ServiceError> {
    let Some(name) = name else { return Ok(()) };
    let rows = ScheduleRow::all(tx)?;
    let Some(existing) = rows.iter().find(|row| row.spec.name.as_ref() == Some(name)) else { return Ok(()) };
    let message = format!("schedule {name} already exists: choose another name");
    let error = ApiError::new(ErrorCode::ScheduleExists, message);
    let hint = format!("`blockctl {} update {name}` changes it", command_of(&existing.spec));
    Err(ServiceError::Refused(error.with_hint(hint)))
}

/// Stores a schedule with an existing policy; its rules start now.
fn put(
    tx: &Transaction<'_>,
    row: &ScheduleRow,
    volumes: &[Candidate],
    now: Timestamp,
) -> Result<Schedule, ServiceError> {
    if let Some(policy) = &row.policy
        && PolicyRow::find(tx, policy)?.is_none()
    {
        return Err(no_policy(policy));
    }
    refuse_unknown(tx, row.spec.rule.as_ref())?;
    plausibility::check_drills(&row.spec)?;
    plausibility::check_reupload(&row.spec)?;
    row.put(tx)?;
    let rules = row.rules(tx)?;
    if rules.is_empty() {
        return Err(invalid("the schedule has no rules: give a time, such as --daily 02:00, or --policy"));
    }
    for rule in &rules {
        if row.cursor(tx, &rule.when)?.is_none() {
            row.set_cursor(tx, &rule.when, now)?;
        }
    }
    let warnings = plausibility::warnings(&row.spec.selector, &row.spec.credentials, volumes);
    Ok(Schedule { warnings, ..to_api(tx, row, volumes, now)? })
}

impl Schedules {
    /// Refuses to delete the credential of a schedule.
    pub async fn refuse_if_scheduled(&self, credential: Uuid, name: &str) -> Result<(), ServiceError> {
        let found = self.db.run(move |tx| -> Result<_, DbError> {
            let readable = ScheduleRow::all(tx)?.into_iter();
            let of = readable
                .filter(|row| row.spec.credentials.contains(&credential))
                .map(|row| row.summary().to_string());
            let unreadable = ScheduleRow::unreadable(tx)?.into_iter();
            let of_unreadable = unreadable.filter(|(_, spec)| spec.contains(&credential.to_string()));
            let named =
                of_unreadable.map(|(key, _)| format!("{key} (which cannot be read, but can be deleted)"));
            Ok(of.chain(named).next())
        });
        let Some(schedule) = found.await? else { return Ok(()) };
        let message = format!("credential {name} is used by schedule {schedule}: delete the schedule first");
        Err(ServiceError::refused(ErrorCode::CredentialInUse, message))
    }

    /// Returns the schedules that have no volumes left after a deletion.
    ///
    /// # Errors
    /// The database fails.
    pub async fn schedules_without(&self, gone: Candidate) -> Result<Vec<String>, ServiceError> {
        let volumes = self.candidates();
        let idle = self.db.run(move |tx| -> Result<_, DbError> {
            let rows = ScheduleRow::all(tx)?.into_iter();
            let was_for = |row: &ScheduleRow| {
                let selector = &row.spec.selector;
                selection::is_selected(selector, &gone) && selection::protects_nothing(selector, &volumes)
            };
            Ok(rows.filter(was_for).collect::<Vec<_>>())
        });
        let warnings = idle.await?.into_iter().map(|row| {
            let (schedule, command) = (row.summary(), command_of(&row.spec));
            format!(
                "schedule {schedule} selects no volume now: delete it with blockctl {command} delete {schedule} if it is not needed"
            )
        });
        Ok(warnings.collect())
    }

    /// Returns the volumes that schedules may select.
    pub fn candidates(&self) -> Vec<Candidate> {
        let entries = self.registry.all().into_iter();
        let existing = entries.filter(|entry| !matches!(entry.view().state, EntryState::Deleting));
        existing
            .map(|entry| Candidate { id: entry.id, name: entry.name.clone(), tags: entry.tags() })
            .collect()
    }

    /// Returns the credentials of a new schedule.
    async fn targets(&self, request: &CreateSchedule) -> Result<Vec<Uuid>, ServiceError> {
        let mut credentials = Vec::new();
        // Local snapshots need no location.
        if request.credentials.is_empty() && request.local.is_none() {
            credentials.push(self.repositories.credential(None).await?.uuid);
        }
        for wanted in &request.credentials {
            let uuid = self.repositories.credential(Some(wanted)).await?.uuid;
            if !credentials.contains(&uuid) {
                credentials.push(uuid);
            }
        }
        if credentials.len() > MAX_TARGETS {
            let count = credentials.len();
            return Err(invalid(format!("{count} credentials are too many: give at most {MAX_TARGETS}")));
        }
        Ok(credentials)
    }

    /// Creates a schedule.
    ///
    /// # Errors
    /// It has no rules or no selector, or there is no such volume, credential or policy.
    pub async fn create_schedule(&self, request: CreateSchedule) -> Result<Schedule, ServiceError> {
        let given = &request.selector;
        let selector = match (&given.volume, &given.group, &given.label, given.all) {
            (Some(volume), None, None, false) => {
                let entry = self.registry.find(volume)?;
                // By id: another volume may get the name later.
                Selector { volume: Some(VolumeRef::Id(entry.id)), ..Selector::default() }
            }
            (None, Some(_), None, false) | (None, None, None, true) => given.clone(),
            (None, None, Some(label), false) if !label.labels().is_empty() => given.clone(),
            _ => {
                return Err(invalid(
                    "the selection of volumes is ambiguous: give exactly one of volume, group, label and all",
                ));
            }
        };
        let credentials = self.targets(&request).await?;
        let retain_at = self.retain_at(&request.retain_at, &credentials).await?;
        if let Some(rule) = &request.rule_name {
            self.quiescer.refuse_rule(rule).await?;
        }
        self.refuse_unknown_probe(request.drill.as_ref())?;
        let now = Timestamp::now();
        let row = ScheduleRow {
            uuid: Uuid::new_v4(),
            created: now,
            paused: request.paused,
            policy: request.policy_name,
            spec: ScheduleSpec {
                name: request.name,
                selector,
                credentials,
                rules: request.rules,
                retain: request.retain,
                full: request.full,
                reupload: request.reupload,
                jitter: request.jitter_seconds,
                priority: request.priority,
                local: request.local,
                retain_at,
                rule: request.rule_name,
                labels: request.labels,
                compression: request.compression,
                drill: request.drill,
            },
        };
        let volumes = self.candidates();
        let made = self.db.run(move |tx| {
            refuse_duplicate_name(tx, row.spec.name.as_ref())?;
            check_rules(&row.rules(tx)?)?;
            plausibility::refuse_never(&row.spec.rules, now)?;
            plausibility::refuse_long_jitter(&row.rules(tx)?, row.spec.jitter, now)?;
            put(tx, &row, &volumes, now)
        });
        let schedule = made.await?;
        tracing::info!(schedule = %schedule.schedule_id, when = %schedule.schedule, "schedule created");
        self.scheduler.wake();
        Ok(schedule)
    }

    /// Returns all schedules of backups, or of drills. Those that this host cannot read count as the former.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_schedules(&self, of_drills: bool) -> Result<ScheduleList, ServiceError> {
        let (now, volumes) = (Timestamp::now(), self.candidates());
        let list = self.db.run(move |tx| -> Result<_, DbError> {
            let mut list = ScheduleList::default();
            for (uuid, row) in ScheduleRow::each(tx)? {
                match row {
                    Ok(row) if row.spec.drill.is_some() != of_drills => {}
                    Ok(row) => list.list.items.push(to_api(tx, &row, &volumes, now)?),
                    Err(_) if of_drills => {}
                    Err(error) => {
                        let cause = error.to_string();
                        list.unreadable.push(UnreadableSchedule { schedule_id: uuid, cause });
                    }
                }
            }
            Ok(list)
        });
        Ok(list.await?)
    }

    /// Returns a schedule.
    ///
    /// # Errors
    /// There is no such schedule.
    pub async fn schedule(&self, uuid: Uuid) -> Result<Schedule, ServiceError> {
        let (now, volumes) = (Timestamp::now(), self.candidates());
        let found = self
            .db
            .run(move |tx| -> Result<_, ServiceError> { Ok(to_api(tx, &find(tx, uuid)?, &volumes, now)?) });
        found.await
    }

    /// Updates a schedule.
    ///
    /// # Errors
    /// There is no such schedule, or the result would be invalid.
    pub async fn update_schedule(
        &self,
        uuid: Uuid,
        request: UpdateSchedule,
    ) -> Result<Schedule, ServiceError> {
        let now = Timestamp::now();
        self.refuse_unknown_probe(request.drill.as_ref())?;
        if let Some(Some(rule)) = &request.rule_name {
            self.quiescer.refuse_rule(rule).await?;
        }
        let retain_at = match &request.retain_at {
            Some(given) => {
                let row = self.db.run(move |tx| find(tx, uuid)).await?;
                Some(self.retain_at(given, &row.spec.credentials).await?)
            }
            None => None,
        };
        let volumes = self.candidates();
        let changed = self.db.run(move |tx| {
            let row = updated(tx, find(tx, uuid)?, request, retain_at, now)?;
            put(tx, &row, &volumes, now)
        });
        let schedule = changed.await?;
        self.scheduler.wake();
        Ok(schedule)
    }

    fn refuse_unknown_probe(&self, drill: Option<&DrillOptions>) -> Result<(), ServiceError> {
        let probe = drill.and_then(|options| options.probe.as_ref());
        probe.map_or(Ok(()), |name| probe::find(&self.host, name).map(drop))
    }

    /// Deletes a schedule. Queued runs are skipped, running ones continue, and backups stay.
    ///
    /// # Errors
    /// There is no such schedule.
    pub async fn delete_schedule(&self, uuid: Uuid) -> Result<Deleted, ServiceError> {
        let now = Timestamp::now();
        let name = self
            .db
            .run(move |tx| -> Result<_, ServiceError> {
                // Also an unreadable one.
                if !ScheduleRow::exists(tx, uuid)? {
                    return Err(no_schedule(uuid));
                }
                let name = ScheduleRow::name_of(tx, uuid)?;
                let queued = RunRow::in_state(tx, RunState::Queued)?;
                for run in queued.iter().filter(|run| run.schedule == uuid) {
                    let reason = "the schedule was deleted".into();
                    transactions::end_queued(tx, run, RunState::Skipped, reason, now)?;
                }
                ScheduleRow::delete(tx, uuid)?;
                Ok(name)
            })
            .await?;
        Ok(Deleted { schedule_id: Some(uuid.to_string()), name, ..Deleted::default() })
    }

    /// Runs a schedule now, also while it is paused.
    ///
    /// # Errors
    /// There is no such schedule, or it selects none of the given volumes.
    pub async fn run_schedule(&self, uuid: Uuid, request: RunSchedule) -> Result<List<Run>, ServiceError> {
        let (now, scheduler) = (Timestamp::now(), Arc::clone(&self.scheduler));
        let mut volumes = self.candidates();
        if let Some(ids) = &request.volume_ids {
            volumes.retain(|one| ids.contains(&one.id));
        }
        let runs = self.db.run(move |tx| -> Result<_, ServiceError> {
            resumption::with_given_up(tx, || {
                // A run whose snapshot or task has ended must not block this one until the next pass.
                scheduler.settle(tx, now)?;
                let schedule = find(tx, uuid)?;
                let selector = &schedule.spec.selector;
                if request.volume_ids.is_some() && !selection::selects_any(selector, &volumes) {
                    return Err(invalid("the schedule selects none of these volumes"));
                }
                let runs = transactions::run_now(tx, &schedule, &volumes, now)?;
                let credentials = CredentialRow::names(tx)?;
                Ok(runs.iter().map(|run| run.to_api(schedule.spec.name.clone(), &credentials)).collect())
            })
        });
        let (runs, given_up): (List<Run>, _) = runs.await?;
        given_up.iter().for_each(|task| self.tasks.ended.note(task.kind(), task.state));
        self.scheduler.wake();
        Ok(runs)
    }

    /// Returns the runs of schedules, newest first.
    ///
    /// # Errors
    /// There is no such volume.
    pub async fn list_runs(&self, query: ListRuns) -> Result<List<Run>, ServiceError> {
        let volume = match &query.volume {
            // The volume may be gone: its runs are still listed.
            Some(VolumeRef::Id(id)) => Some(*id),
            Some(name) => Some(self.registry.find(name)?.id),
            None => None,
        };
        let max = query.max.unwrap_or(DEFAULT_HISTORY).min(MAX_HISTORY);
        let prefix = query.schedule_id_prefix.as_ref().map(|prefix| prefix.to_ascii_lowercase());
        if prefix.as_ref().is_some_and(|prefix| !prefix.chars().all(|c| c.is_ascii_hexdigit() || c == '-')) {
            return Err(invalid("scheduleIdPrefix is not a prefix of a schedule's id"));
        }
        let runs = self.db.run(move |tx| -> Result<_, DbError> {
            let schedule = query.schedule_id.map(|id| id.to_string()).or(prefix);
            let runs = RunRow::history(tx, schedule.as_deref(), volume, max)?;
            let mut names: BTreeMap<Uuid, ObjectName> = RunRow::deleted_schedules(tx)?.into_iter().collect();
            let schedules = ScheduleRow::all(tx)?.into_iter();
            names.extend(schedules.filter_map(|row| Some((row.uuid, row.spec.name?))));
            let credentials = CredentialRow::names(tx)?;
            Ok(runs.iter().map(|run| run.to_api(names.get(&run.schedule).cloned(), &credentials)).collect())
        });
        Ok(runs.await?)
    }

    /// Returns the retention of single locations of a schedule.
    async fn retain_at(
        &self,
        given: &[RetainAt],
        targets: &[Uuid],
    ) -> Result<BTreeMap<Uuid, Retention>, ServiceError> {
        let mut retain_at = BTreeMap::new();
        for RetainAt { credential, retain } in given {
            let credential = self.repositories.credential(Some(credential)).await?;
            if !targets.contains(&credential.uuid) {
                return Err(invalid(format!("the schedule does not back up to {}", credential.name)));
            }
            if retain_at.insert(credential.uuid, retain.clone()).is_some() {
                return Err(invalid(format!("the retention of {} is given twice", credential.name)));
            }
        }
        Ok(retain_at)
    }
}
