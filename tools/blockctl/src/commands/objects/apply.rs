//! `blockctl apply`

use super::{
    args::ApplyArgs,
    clones::{clone_volumes, take_snapshots},
    differences::differences,
    object_plans::plan,
    overlaps::refuse_overlaps,
    plan::Plan,
    record::{Record, warn, warnings},
    resources::ResourceSet,
    restores::{Replacement, consequence, kept_volumes, start_restore, warnings_of_new},
    status::FieldChange,
};
use crate::{
    commands::credentials::note_on_default,
    failure::{EXIT_DONE, EXIT_FAILED, EXIT_WAITING, Exit, Failure},
    objects::{
        Body, Kind, Object,
        backup::Backup,
        hook::Hook,
        location::{Location, PASSPHRASE},
        location_table::{DEFAULT_MARK, LIMITS, METADATA, is_access},
        policy::Rules,
        read_all, schedule,
    },
    output::Context,
    wait::follow_before,
};
use blockd_api::{
    ByteSize, ClientError, CredentialName, CredentialRef, ErrorCode, NameError, ObjectName, RuleName,
    VolumeName, VolumeRef,
    cloudsnaps::{StartBackup, StartGroupBackup},
    credential_update::UpdateCredential,
    credentials::CreateCredential,
    format_duration, operations,
    rules::{CreateRule, RuleTarget, UpdateRule},
    schedules::{Policy, UpdatePolicy},
    tasks::{Task, TaskKind, TaskStage},
};
use std::str::FromStr;
use uuid::Uuid;

/// Result of an object.
struct Done {
    result: &'static str,
    tasks: Vec<Uuid>,
    /// Unfinished dependency.
    awaited: Option<String>,
    warnings: Vec<String>,
}

/// Maximum number of retries after a concurrent creation.
const MAX_RETRIES: usize = 4;

/// Application of the objects of some files.
struct Apply<'a> {
    context: &'a Context<'a>,
    args: &'a ApplyArgs,
    objects: &'a [Object],
    resources: ResourceSet,
    /// Tasks and cloud snapshots are older than the other resources.
    is_outdated: bool,
    /// Replacements of content that the user has confirmed.
    confirmed: Vec<Replacement>,
    record: Record,
}

/// Applies the objects in order, up to the first failure.
pub async fn run(context: &Context<'_>, args: ApplyArgs) -> Exit {
    let mut read = read_all(&args.from.file)?;
    warn(context, &read);
    let resources = ResourceSet::load_for(context, &mut read.objects).await?;
    refuse_overlaps(&read.objects, &resources)?;
    let confirmed: Vec<Replacement> =
        read.objects.iter().filter_map(|object| consequence(object, &resources)).collect();
    if !confirmed.is_empty() && !args.dry_run {
        confirmed.iter().try_for_each(|one| one.refuse_unrelated(args.yes))?;
        let texts: Vec<&str> = confirmed.iter().map(|one| one.text.as_str()).collect();
        args.yes.confirm(context.output, &texts.join("; "))?;
    }
    let record = Record::of(read.objects.iter().map(|one| (one.kind, one.name.to_string())));
    let (objects, is_outdated) = (read.objects.as_slice(), false);
    let mut apply = Apply { context, args: &args, objects, resources, is_outdated, confirmed, record };
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
            if let (Plan::Await(_, tasks), true) = (&planned, is_real && (self.args.wait || self.is_outdated))
            {
                for (index, task) in tasks.iter().enumerate().filter(|_| self.args.wait) {
                    follow_before(&context.client, *task, &tasks[index + 1..], context.output).await?;
                }
                self.reload(true).await?;
                planned = plan(object, &self.resources);
            }
            let is_change = !matches!(planned, Plan::Unchanged | Plan::Kept | Plan::Await(..));
            let kept = kept_volumes(object, &self.resources);
            let done = self.make(object, planned).await?;
            self.report(object, &done, kept)?;
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
        self.is_outdated = !is_stored;
        let loaded = (!is_stored).then(|| std::mem::take(&mut self.resources));
        self.resources = ResourceSet::reload(self.context, self.objects, loaded).await?;
        Ok(())
    }

    fn report(&mut self, object: &Object, done: &Done, kept: Vec<VolumeName>) -> Result<(), Failure> {
        let result = self.record.done(done.result);
        result.warnings = [&warnings(object), done.warnings.as_slice()].concat();
        result.task_ids.clone_from(&done.tasks);
        result.waits_for.clone_from(&done.awaited);
        result.kept_volumes.clone_from(&kept);
        if self.context.output.is_json() {
            return Ok(());
        }
        self.context.output.warn(&done.warnings);
        let tasks: Vec<String> = done.tasks.iter().map(ToString::to_string).collect();
        let more = match (self.args.dry_run, &done.awaited) {
            (true, _) => " (dry run)".to_owned(),
            (false, Some(awaited)) => format!(" for {awaited}"),
            (false, None) if tasks.is_empty() => String::new(),
            (false, None) => format!(" (task {})", tasks.join(", ")),
        };
        self.context.output.line(format!("{object} {}{more}", done.result))?;
        for volume in kept {
            let mut made = self.resources.restored_by(object);
            let text = match made.any(|one| one.name == volume) {
                true => format!(
                    "has other content since this restore, and is kept; to restore into it again: `blockctl delete {} {}`, then apply this with `{}`",
                    object.kind,
                    object.name,
                    object.replacing()
                ),
                false => format!("exists and is kept; `{}` restores into it", object.replacing()),
            };
            self.context.output.note(format!("note: {object}: volume {volume} {text}"));
        }
        Ok(())
    }

    /// Waits for tasks and reports each; false if one of them is not done.
    async fn wait(&mut self, object: &Object, tasks: &[Uuid]) -> Result<bool, Failure> {
        let output = self.context.output;
        let (mut states, mut all_done) = (Vec::new(), true);
        for (index, task) in tasks.iter().enumerate() {
            let ended = follow_before(&self.context.client, *task, &tasks[index + 1..], output).await?;
            states.push(ended.state.to_string());
            if ended.state.stage == TaskStage::Done {
                if !output.is_json() {
                    output.line(format!("{object} done: {}", outcome(&ended)))?;
                }
                continue;
            }
            all_done = false;
            let of =
                ended.volume_name.as_ref().map(|volume| format!(" of volume {volume}")).unwrap_or_default();
            let why = ended.error.map_or_else(|| "it was stopped".to_owned(), |error| error.message);
            output.note(format!("error: {object}: {}{of}: {why}", ended.state));
        }
        self.record.last().states = states;
        Ok(all_done)
    }

    /// Executes a plan. After a concurrent creation, the object is planned again.
    async fn make(&mut self, object: &Object, mut planned: Plan) -> Result<Done, Failure> {
        let replaced = consequence(object, &self.resources);
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
            let replaces = consequence(object, &self.resources);
            // Another backup of the volume is running, or the volume of a restore is another one.
            if (object.kind == Kind::VolumeBackup && matches!(planned, Plan::Create))
                || (replaces.is_some() && replaces != replaced)
            {
                return Err(error.into());
            }
        }
    }

    async fn execute(&self, object: &Object, planned: Plan) -> Result<Done, Failure> {
        let mut done =
            Done { result: planned.result(), tasks: Vec::new(), awaited: None, warnings: Vec::new() };
        let locate = |failure| match failure {
            Failure::Client(ClientError::Api(error)) => object.locate(error).into(),
            other => other,
        };
        done.warnings = match planned {
            Plan::Create => warnings_of_new(object, &self.resources),
            Plan::Unchanged | Plan::Update(_) => differences(object, &self.resources).warnings,
            _ => Vec::new(),
        };
        match planned {
            Plan::Refused(_, error) => return Err(error.into()),
            Plan::Await(awaited, _) => done.awaited = Some(awaited),
            Plan::Unchanged => note_uncompared_key(self.context, object),
            Plan::Kept => {}
            _ if self.args.dry_run => {
                self.check_location(object, &planned)?;
                done.warnings.extend(consequence(object, &self.resources).map(|one| one.text));
            }
            Plan::Wait(tasks) => done.tasks = tasks,
            Plan::Resume { ended, running } => {
                for task in &ended {
                    self.context.client.call_at(operations::RESUME_TASK, task, &()).await?;
                }
                done.tasks = [ended, running].concat();
            }
            Plan::Create => {
                self.confirm_replacement(object)?;
                done.tasks = self.put(object, None).await.map_err(locate)?;
                if matches!(object.body, Body::Backup(_) | Body::Restore(_)) {
                    done.result = "started";
                }
            }
            Plan::Update(changes) => {
                self.put(object, Some(&changes)).await.map_err(locate)?;
            }
        }
        Ok(done)
    }

    /// Asks for the confirmation of a replacement that was not known before: its backup or its volume was
    /// made meanwhile.
    fn confirm_replacement(&self, object: &Object) -> Result<(), Failure> {
        let is_new = |one: &Replacement| !self.confirmed.contains(one);
        let Some(new) = consequence(object, &self.resources).filter(is_new) else { return Ok(()) };
        new.refuse_unrelated(self.args.yes)?;
        let refused =
            |_| Failure::local("declined", EXIT_FAILED, format!("cancelled: {object} is not applied"));
        self.args.yes.confirm(self.context.output, &new.text).map_err(refused)
    }

    /// Creates the resource of an object, or changes the given fields of the existing one, and returns the
    /// started tasks. Objects that are made once are not changed.
    async fn put(&self, object: &Object, changes: Option<&[FieldChange]>) -> Result<Vec<Uuid>, Failure> {
        let (client, resources, name) = (&self.context.client, &self.resources, &object.name);
        match (&object.body, changes) {
            (Body::Location(location), changes) => {
                let put = match changes {
                    None => self.create_location(object, location).await,
                    Some(changes) => self.update_location(object, location, changes).await,
                };
                put.map_err(|failure| location.in_fields(failure, &object.document))?;
            }
            (Body::Policy(Rules(rules)), None) => {
                let (name, labels) = (parse_name(name)?, object.labels.clone());
                let policy = Policy { name, rules: rules.clone(), labels };
                client.call(operations::CREATE_POLICY, &policy).await?;
            }
            (Body::Policy(Rules(rules)), Some(_)) => {
                let request = UpdatePolicy { rules: rules.clone(), labels: Some(object.labels.clone()) };
                client.call_at(operations::UPDATE_POLICY, &parse_name(name)?, &request).await?;
            }
            (Body::Rule(hook), changes) => self.put_rule(object, hook, changes).await?,
            (Body::Schedule(schedule), None) => {
                client.call(operations::CREATE_SCHEDULE, &schedule.request(name)).await?;
            }
            (Body::Schedule(schedule), Some(_)) => {
                let found = resources.schedule(name.as_str());
                let found = found.and_then(|one| Some((one.schedule_id, resources.schedule_spec(one)?)));
                if let Some((uuid, current)) = found {
                    let request = schedule::update(&current.request(name), schedule.request(name));
                    client.call_at(operations::UPDATE_SCHEDULE, &uuid, &request).await?;
                }
            }
            (Body::Drill(drill), None) => {
                client.call(operations::CREATE_SCHEDULE, &drill.request(name)).await?;
            }
            (Body::Drill(drill), Some(_)) => {
                let found = resources.drill(name.as_str());
                let found = found.and_then(|one| Some((one.schedule_id, resources.drill_spec(one)?)));
                if let Some((uuid, current)) = found {
                    let request = schedule::update(&current.request(name), drill.request(name));
                    client.call_at(operations::UPDATE_SCHEDULE, &uuid, &request).await?;
                }
            }
            (Body::Backup(backup), _) => return self.start_backup(name, backup).await,
            (Body::Snapshot(snapshot), _) => {
                let volumes = resources.members(snapshot).map(|volume| volume.name.clone()).collect();
                take_snapshots(client, volumes, parse_name(name)?, snapshot.hooks()).await?;
            }
            (Body::Restore(restore), _) => {
                return start_restore(self.context, object, restore, resources).await;
            }
            (Body::Clone(clone), _) => clone_volumes(self.context, object, clone, resources).await?,
        }
        Ok(Vec::new())
    }

    async fn start_backup(&self, name: &ObjectName, backup: &Backup) -> Result<Vec<Uuid>, Failure> {
        let (client, resources) = (&self.context.client, &self.resources);
        let mut request = backup.request(name);
        if let [volume] = backup.volume.as_slice() {
            let StartGroupBackup { credentials, options, hooks, .. } = request;
            let volume = VolumeRef::Name(volume.clone());
            let request = StartBackup { credentials, options, hooks, ..StartBackup::of(volume) };
            let started = client.call(operations::START_BACKUP, &request).await?;
            return Ok(started.items.into_iter().map(|task| task.task_id).collect());
        }
        if backup.group.is_none() && backup.selectors.len() != 1 {
            // The daemon has no such selector.
            request.volumes =
                resources.members(backup).map(|volume| VolumeRef::Id(volume.volume_id)).collect();
        }
        let started = client.call(operations::START_GROUP_BACKUP, &request).await?;
        Ok(started.list.items.into_iter().flat_map(|member| member.task_ids).collect())
    }

    async fn create_location(&self, object: &Object, location: &Location) -> Result<(), Failure> {
        let (client, name) = (&self.context.client, parse_name(&object.name)?);
        let request = location.request(&name, &object.labels)?;
        client.call(operations::CREATE_CREDENTIAL, &request).await?;
        if location.is_default() {
            self.set_default(name).await?;
        }
        self.note_unencrypted(object, &request);
        Ok(())
    }

    fn note_unencrypted(&self, object: &Object, request: &CreateCredential) {
        if request.encryption_passphrase.is_none() {
            let cause = format!("{} is not set", object.document.written(PASSPHRASE));
            self.context.output.note(format!("note: {object}: backups are stored unencrypted: {cause}"));
        }
    }

    /// Makes the request of a location without sending it: secrets may be missing or unreadable.
    fn check_location(&self, object: &Object, planned: &Plan) -> Result<(), Failure> {
        let Body::Location(location) = &object.body else { return Ok(()) };
        let made = match (planned, self.resources.credential(object.name.as_str())) {
            (Plan::Create, _) => {
                let request = location.request(&parse_name(&object.name)?, &object.labels);
                request.map(|request| self.note_unencrypted(object, &request))
            }
            (Plan::Update(changes), Some(current)) if changes.iter().any(|one| is_access(&one.path)) => {
                location.update(current.store.provider).map(drop)
            }
            _ => Ok(()),
        };
        made.map_err(|failure| location.in_fields(failure, &object.document))
    }

    async fn set_default(&self, name: CredentialName) -> Result<(), Failure> {
        let former = note_on_default(&name, &self.resources.credentials);
        let credential = CredentialRef::Name(name);
        self.context.client.call_at(operations::SET_DEFAULT_CREDENTIAL, &credential, &()).await?;
        former.into_iter().for_each(|note| self.context.output.note(note));
        Ok(())
    }

    /// Updates a location. New access is verified first: if it fails, no field is changed.
    async fn update_location(
        &self,
        object: &Object,
        location: &Location,
        changes: &[FieldChange],
    ) -> Result<(), Failure> {
        let Some(current) = self.resources.credential(object.name.as_str()) else { return Ok(()) };
        let credential = CredentialRef::Name(current.name.clone());
        if changes.iter().any(|change| is_access(&change.path)) {
            let request = location.update(current.store.provider)?;
            self.context.client.call_at(operations::UPDATE_CREDENTIAL, &credential, &request).await?;
        }
        if changes.iter().any(|change| change.path.starts_with(METADATA)) {
            let labels = Some(object.labels.clone());
            let request = UpdateCredential { labels, ..UpdateCredential::default() };
            self.context.client.call_at(operations::UPDATE_CREDENTIAL, &credential, &request).await?;
        }
        if changes.iter().any(|change| change.path == DEFAULT_MARK) {
            self.set_default(current.name.clone()).await?;
        }
        if changes.iter().any(|change| change.path.starts_with(LIMITS)) {
            let limits = location.limits(current);
            self.context.client.call_at(operations::LIMIT_CREDENTIAL, &credential, &limits).await?;
        }
        Ok(())
    }

    /// Creates or changes a rule and assigns it to exactly its targets. Assignments come first: if one fails,
    /// no volume is without the rule that it had. Targets of another rule of the files are left to it.
    async fn put_rule(
        &self,
        object: &Object,
        hook: &Hook,
        changes: Option<&[FieldChange]>,
    ) -> Result<(), Failure> {
        let (client, resources) = (&self.context.client, &self.resources);
        let (name, labels) = (&parse_name::<RuleName>(&object.name)?, object.labels.clone());
        let quiesce = hook.quiesce().map_err(Failure::usage)?;
        let is_target =
            |change: &FieldChange| ["spec.volumes", "spec.groups"].contains(&change.path.as_str());
        match changes {
            None => {
                let request = CreateRule { name: name.clone(), quiesce, labels };
                client.call(operations::CREATE_RULE, &request).await?;
            }
            Some(changes) if !changes.iter().all(is_target) => {
                client
                    .call_at(operations::UPDATE_RULE, name, &UpdateRule { quiesce, labels: Some(labels) })
                    .await?;
            }
            Some(_) => {}
        }
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

/// Returns the result of a task as text.
fn outcome(task: &Task) -> String {
    let volume = task.volume_name.as_ref().map(|volume| format!("volume {volume}"));
    let verb = if task.state.kind == TaskKind::Restore { "restored" } else { "backed up" };
    let bytes = ByteSize::from_bytes(task.processed_bytes);
    let elapsed = format_duration(task.elapsed_seconds);
    format!("{} {verb} ({bytes} in {elapsed})", volume.unwrap_or_else(|| "volume".to_owned()))
}
