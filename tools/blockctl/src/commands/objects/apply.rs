//! `blockctl apply`

use super::{
    args::ApplyArgs,
    clones::clone_volumes,
    plan::{FieldChange, Plan, RESUMED, UNDER_WAY, plan},
    record::{Record, show_warnings, warn},
    resources::ResourceSet,
    restores::start_restore,
};
use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, EXIT_WAITING, Exit, Failure},
    objects::{
        Body, Kind, Object, backup::Backup, hook::Hook, location::Location, location_table::is_access,
        read_all, schedule,
    },
    output::Context,
    wait::follow,
};
use blockd_api::{
    ByteSize, ClientError, CredentialRef, ErrorCode, NameError, ObjectName, RuleName, VolumeRef,
    cloudsnaps::{StartBackup, StartGroupBackup},
    format_duration, operations,
    rules::{CreateRule, RuleTarget, UpdateRule},
    schedules::{Policy, UpdatePolicy},
    snapshots::{CreateGroupSnapshot, CreateSnapshot},
    tasks::{Task, TaskKind, TaskStage},
};
use serde_json::json;
use std::str::FromStr;
use uuid::Uuid;

/// Result of an object.
struct Done {
    result: &'static str,
    tasks: Vec<Uuid>,
    /// Unfinished dependency.
    awaited: Option<String>,
}

/// Maximum number of retries after a concurrent creation.
const MAX_RETRIES: usize = 4;

/// Application of the objects of some files.
struct Apply<'a> {
    context: &'a Context<'a>,
    args: &'a ApplyArgs,
    objects: &'a [Object],
    resources: ResourceSet,
    record: Record,
}

/// Applies the objects in order, up to the first failure.
pub async fn run(context: &Context<'_>, args: ApplyArgs) -> Exit {
    let mut read = read_all(&args.from.file)?;
    warn(context, &read);
    let resources = ResourceSet::load_for(context, &mut read.objects).await?;
    let record = Record::of(read.objects.iter().map(|one| (one.kind, one.name.to_string())));
    let mut apply = Apply { context, args: &args, objects: &read.objects, resources, record };
    let ended = apply.all().await;
    apply.record.finish(context, ended)
}

impl Apply<'_> {
    async fn all(&mut self) -> Exit {
        let (context, is_real) = (self.context, !self.args.dry_run);
        let mut status = EXIT_DONE;
        for object in self.objects {
            self.record.begin();
            let mut planned = plan(object, &self.resources);
            if let (Plan::Await(_, tasks), true, true) = (&planned, self.args.wait, is_real) {
                for task in tasks {
                    follow(&context.client, *task, context.output).await?;
                }
                self.reload(true).await?;
                planned = plan(object, &self.resources);
            }
            let is_change = !matches!(planned, Plan::Unchanged | Plan::Await(..));
            if matches!(planned, Plan::Unchanged) {
                note_uncompared_key(context, object);
            }
            let done = if is_real { self.make(object, planned).await? } else { would(planned)? };
            self.report(object, &done)?;
            // The status of a failed task wins.
            if done.awaited.is_some() && status == EXIT_DONE && is_real {
                status = EXIT_WAITING;
            }
            if self.args.wait && !self.wait(object, &done.tasks).await? {
                status = EXIT_FAILED;
            }
            if is_change && is_real {
                // A new location may have backups of another host.
                self.reload(!done.tasks.is_empty() || object.kind == Kind::BackupLocation).await?;
            }
        }
        Ok(status)
    }

    async fn reload(&mut self, is_stored: bool) -> Result<(), Failure> {
        let loaded = (!is_stored).then(|| std::mem::take(&mut self.resources));
        self.resources = ResourceSet::reload(self.context, self.objects, loaded).await?;
        Ok(())
    }

    fn report(&mut self, object: &Object, done: &Done) -> Result<(), Failure> {
        let document = self.record.done(done.result);
        show_warnings(object, document);
        if !done.tasks.is_empty() {
            document["taskIds"] = json!(done.tasks);
        }
        if let Some(awaited) = &done.awaited {
            document["waitsFor"] = json!(awaited);
        }
        if self.context.output.is_json() {
            return Ok(());
        }
        let tasks: Vec<String> = done.tasks.iter().map(ToString::to_string).collect();
        let more = match (self.args.dry_run, &done.awaited) {
            (true, _) => " (dry run)".to_owned(),
            (false, Some(awaited)) => format!(" for {awaited}"),
            (false, None) if tasks.is_empty() => String::new(),
            (false, None) => format!(" (task {})", tasks.join(", ")),
        };
        self.context.output.line(format!("{object} {}{more}", done.result)).map(drop)
    }

    /// Waits for tasks and reports each; false if one of them is not done.
    async fn wait(&mut self, object: &Object, tasks: &[Uuid]) -> Result<bool, Failure> {
        let output = self.context.output;
        let (mut states, mut all_done) = (Vec::new(), true);
        for task in tasks {
            let ended = follow(&self.context.client, *task, output).await?;
            states.push(ended.state.to_string());
            if ended.state.stage == TaskStage::Done {
                if !output.is_json() {
                    output.line(format!("{object} done: {}", told(&ended)))?;
                }
                continue;
            }
            all_done = false;
            let of =
                ended.volume_name.as_ref().map(|volume| format!(" of volume {volume}")).unwrap_or_default();
            let why = ended.error.map_or_else(|| "it was stopped".to_owned(), |error| error.message);
            output.note(format!("error: {object}: {}{of}: {why}", ended.state));
        }
        if !states.is_empty() {
            self.record.last()["states"] = json!(states);
        }
        Ok(all_done)
    }

    /// Executes a plan. After a concurrent creation, the object is planned again.
    async fn make(&mut self, object: &Object, mut planned: Plan) -> Result<Done, Failure> {
        let mut retries = 0;
        loop {
            let may_retry = matches!(planned, Plan::Create) && retries < MAX_RETRIES;
            let error = match self.execute(object, planned).await {
                Err(Failure::Client(ClientError::Api(error)))
                    if may_retry && is_existing(object, error.code) =>
                {
                    error
                }
                done => return done,
            };
            retries += 1;
            self.reload(true).await?;
            planned = plan(object, &self.resources);
            if object.kind == Kind::VolumeBackup && matches!(planned, Plan::Create) {
                // Another backup of the volume is running.
                return Err(error.into());
            }
        }
    }

    async fn execute(&self, object: &Object, planned: Plan) -> Result<Done, Failure> {
        match planned {
            Plan::Wait(tasks) => Ok(Done { result: UNDER_WAY, tasks, awaited: None }),
            Plan::Resume(tasks) => {
                for task in &tasks {
                    self.context.client.call_at(operations::RESUME_TASK, task, &()).await?;
                }
                Ok(Done { result: RESUMED, tasks, awaited: None })
            }
            Plan::Create => {
                let tasks = self.create(object).await?;
                let is_task = matches!(object.body, Body::Backup(_) | Body::Restore(_));
                Ok(Done { result: if is_task { "started" } else { "created" }, tasks, awaited: None })
            }
            Plan::Update(changes) => {
                self.update(object, &changes).await?;
                would(Plan::Update(changes))
            }
            planned => would(planned),
        }
    }

    /// Creates the resource of an object and returns its tasks.
    async fn create(&self, object: &Object) -> Result<Vec<Uuid>, Failure> {
        let (client, name) = (&self.context.client, &object.name);
        match &object.body {
            Body::Location(location) => {
                let request = location.request(&parse_name(name)?)?;
                client.call(operations::CREATE_CREDENTIAL, &request).await?;
                if request.encryption_passphrase.is_none() {
                    let cause = "location.encryptionKey is not set";
                    self.context
                        .output
                        .note(format!("note: {object}: backups are stored unencrypted: {cause}"));
                }
            }
            Body::Policy(rules) => {
                client
                    .call(
                        operations::CREATE_POLICY,
                        &Policy { name: parse_name(name)?, rules: rules.0.clone() },
                    )
                    .await?;
            }
            Body::Rule(hook) => {
                let name: RuleName = parse_name(name)?;
                let quiesce = hook.quiesce().map_err(Failure::usage)?;
                client.call(operations::CREATE_RULE, &CreateRule { name: name.clone(), quiesce }).await?;
                self.assign(&name, hook).await?;
            }
            Body::Schedule(schedule) => {
                client.call(operations::CREATE_SCHEDULE, &schedule.request(name)).await?;
            }
            Body::Backup(backup) => return self.start_backup(name, backup).await,
            Body::Snapshot(snapshot) => self.take_snapshot(name, snapshot).await?,
            Body::Restore(restore) => {
                return start_restore(self.context, object, restore, &self.resources).await;
            }
            Body::Clone(clone) => clone_volumes(self.context, clone, &self.resources).await?,
        }
        Ok(Vec::new())
    }

    async fn take_snapshot(&self, name: &ObjectName, snapshot: &Backup) -> Result<(), Failure> {
        let (client, hooks) = (&self.context.client, snapshot.hooks());
        let snapshot_name = Some(parse_name(name)?);
        let missing = self.resources.without_snapshot(name.as_str(), snapshot);
        if let [only] = missing.as_slice() {
            let request = CreateSnapshot { name: snapshot_name, hooks };
            client.call_at(operations::CREATE_SNAPSHOT, &VolumeRef::Name(only.clone()), &request).await?;
        } else {
            let volumes = missing.into_iter().map(VolumeRef::Name).collect();
            let request =
                CreateGroupSnapshot { volumes, name: snapshot_name, hooks, ..CreateGroupSnapshot::default() };
            client.call(operations::CREATE_GROUP_SNAPSHOT, &request).await?;
        }
        Ok(())
    }

    async fn start_backup(&self, name: &ObjectName, backup: &Backup) -> Result<Vec<Uuid>, Failure> {
        let (client, resources) = (&self.context.client, &self.resources);
        let mut request = backup.request(name);
        let volumes = backup.volumes();
        if let [volume] = volumes.names.as_slice() {
            let StartGroupBackup { credentials, options, hooks, .. } = request;
            let volume = VolumeRef::Name(volume.clone());
            let request = StartBackup { credentials, options, hooks, ..StartBackup::of(volume) };
            let started = client.call(operations::START_BACKUP, &request).await?;
            return Ok(started.items.into_iter().map(|task| task.task_id).collect());
        }
        let missing = resources.not_backed_up(name.as_str(), backup);
        let is_of_some = !missing.is_empty() && missing.len() < resources.members(&volumes).count();
        let is_one_selector = volumes.group.is_some() || volumes.labels.len() == 1;
        if is_of_some || !is_one_selector {
            // The other volumes have a backup, or the daemon has no such selector.
            request.volumes = missing.iter().map(|volume| VolumeRef::Id(volume.volume_id)).collect();
            (request.group, request.label) = (None, None);
        }
        let started = client.call(operations::START_GROUP_BACKUP, &request).await?;
        Ok(started.list.items.into_iter().flat_map(|member| member.task_ids).collect())
    }

    async fn update(&self, object: &Object, changes: &[FieldChange]) -> Result<(), Failure> {
        let (client, name) = (&self.context.client, object.name.as_str());
        match &object.body {
            Body::Location(location) => self.update_location(name, location, changes).await?,
            Body::Policy(rules) => {
                let request = UpdatePolicy { rules: rules.0.clone() };
                client.call_at(operations::UPDATE_POLICY, &parse_name(&object.name)?, &request).await?;
            }
            Body::Rule(hook) => {
                let rule: RuleName = parse_name(&object.name)?;
                let quiesce = hook.quiesce().map_err(Failure::usage)?;
                let is_target = |path: &str| path == "spec.volumes" || path == "spec.groups";
                if changes.iter().any(|change| !is_target(&change.path)) {
                    client.call_at(operations::UPDATE_RULE, &rule, &UpdateRule { quiesce }).await?;
                }
                self.assign(&rule, hook).await?;
            }
            Body::Schedule(schedule) => {
                let found = self.resources.schedule(name);
                let found = found.and_then(|one| Some((one.schedule_id, self.resources.schedule_spec(one)?)));
                if let Some((uuid, current)) = found {
                    let (current, wanted) = (current.request(&object.name), schedule.request(&object.name));
                    client
                        .call_at(operations::UPDATE_SCHEDULE, &uuid, &schedule::update(&current, wanted))
                        .await?;
                }
            }
            // These are made once.
            Body::Snapshot(_) | Body::Backup(_) | Body::Restore(_) | Body::Clone(_) => {}
        }
        Ok(())
    }

    /// Updates a location. New access is verified first: if it fails, no field is changed.
    async fn update_location(
        &self,
        name: &str,
        location: &Location,
        changes: &[FieldChange],
    ) -> Result<(), Failure> {
        let Some(current) = self.resources.credential(name) else { return Ok(()) };
        let credential = CredentialRef::Name(current.name.clone());
        if changes.iter().any(|change| is_access(&change.path)) {
            let request = location.update(current.store.provider)?;
            self.context.client.call_at(operations::UPDATE_CREDENTIAL, &credential, &request).await?;
        }
        if changes.iter().any(|change| !is_access(&change.path)) {
            self.context
                .client
                .call_at(operations::LIMIT_CREDENTIAL, &credential, &location.limits(current))
                .await?;
        }
        Ok(())
    }

    /// Assigns a rule to exactly its targets. Assignments come first: if one fails, no volume is without the
    /// rule that it had. Targets of another rule of the files are left to it.
    async fn assign(&self, name: &RuleName, hook: &Hook) -> Result<(), Failure> {
        let (client, resources) = (&self.context.client, &self.resources);
        let current = resources.rule(name.as_str()).map(|rule| Hook::of(rule).targets()).unwrap_or_default();
        let others = resources.file_rules.iter().filter(|(other, _)| other.as_str() != name.as_str());
        let others: Vec<_> = others.flat_map(|(_, hook)| hook.targets()).flatten().flatten().collect();
        let mut removed = Vec::new();
        for (has, wanted) in current.into_iter().zip(hook.targets()) {
            let (has, Some(wanted)) = (has.unwrap_or_default(), wanted) else { continue };
            for target in wanted.iter().filter(|target| !has.contains(target)) {
                client.call_at(operations::ASSIGN_RULE, name, target).await?;
            }
            let is_free = |target: &RuleTarget| !wanted.contains(target) && !others.contains(target);
            removed.extend(has.into_iter().filter(is_free));
        }
        for target in &removed {
            client.call_at(operations::UNASSIGN_RULE, name, target).await?;
        }
        Ok(())
    }
}

/// Converts the name of an object to that of its resource; both have the same rules.
fn parse_name<T: FromStr<Err = NameError>>(name: &ObjectName) -> Result<T, Failure> {
    name.as_str().parse().map_err(|error: NameError| Failure::usage(error.to_string()))
}

/// Warns that a key in the file cannot be compared with the stored one.
fn note_uncompared_key(context: &Context<'_>, object: &Object) {
    if matches!(&object.body, Body::Location(location) if location.gives_store_key()) {
        context.output.note(format!(
            "note: {object}: the key in the file cannot be compared with the stored one; if it differs: blockctl credentials update {}",
            object.name
        ));
    }
}

/// Returns true for the error of an existing object, or one in creation.
fn is_existing(object: &Object, code: ErrorCode) -> bool {
    match code {
        ErrorCode::CredentialExists
        | ErrorCode::PolicyExists
        | ErrorCode::RuleExists
        | ErrorCode::ScheduleExists
        | ErrorCode::SnapshotExists
        | ErrorCode::VolumeExists => true,
        ErrorCode::VolumeInUse => object.kind == Kind::VolumeBackup,
        _ => false,
    }
}

/// Returns the result of a plan that is not executed.
fn would(planned: Plan) -> Result<Done, Failure> {
    let done = Done { result: planned.result(), tasks: Vec::new(), awaited: None };
    match planned {
        Plan::Await(awaited, _) => Ok(Done { awaited: Some(awaited), ..done }),
        Plan::Refused(_, error) => Err(error.into()),
        _ => Ok(done),
    }
}

/// Returns the result of a task as text.
fn told(task: &Task) -> String {
    let volume = task.volume_name.as_ref().map(|volume| format!("volume {volume}"));
    let verb = if task.state.kind == TaskKind::Restore { "restored" } else { "backed up" };
    let bytes = ByteSize::from_bytes(task.processed_bytes);
    let elapsed = format_duration(task.elapsed_seconds);
    format!("{} {verb} ({bytes} in {elapsed})", volume.unwrap_or_else(|| "volume".to_owned()))
}
