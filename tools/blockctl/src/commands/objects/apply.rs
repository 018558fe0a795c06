//! `blockctl apply`

use super::{
    RESUMED, api, load, parse_name,
    plan::{Change, Plan, plan},
    read,
    record::Record,
    reload,
    resources::ResourceSet,
    show_warnings, warn,
};
use crate::{
    cli::objects::ApplyArgs,
    commands::{Context, lazy::tell_schedules},
    failure::{EXIT_DONE, EXIT_FAILED, EXIT_WAITING, Failure},
    objects::{
        Body, Kind, Object,
        backup::Backup,
        hook::Hook,
        location::{Location, is_access},
        schedule,
        volumes::{CLONED_FROM, Restore, VolumeClone},
    },
    wait::follow,
};
use blockd_api::{
    ClientError, CredentialRef, ErrorCode, Labels, ObjectName, RuleName, VolumeRef,
    cloudsnaps::{StartBackup, StartGroupBackup, StartRestore},
    lazy::{StartLazyRestore, StoreLoss},
    rules::{CreateRule, UpdateRule},
    schedules::{Policy, UpdatePolicy},
    snapshots::CreateSnapshot,
    tasks::TaskStage,
    volumes::CloneVolume,
};
use serde_json::json;
use std::collections::BTreeMap;
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

/// Applies the objects in order, up to the first failure.
pub async fn run(context: &Context<'_>, args: ApplyArgs) -> Result<u8, Failure> {
    let objects = read(&args.from)?;
    warn(context, &objects);
    let resources = load(context, &objects).await?;
    let mut record = Record::of(objects.iter().map(|one| (one.kind, one.name.to_string())));
    let ended = apply_all(context, &args, &objects, resources, &mut record).await;
    record.finish(context, ended)
}

async fn apply_all(
    context: &Context<'_>,
    args: &ApplyArgs,
    objects: &[Object],
    mut resources: ResourceSet,
    record: &mut Record,
) -> Result<u8, Failure> {
    let mut status = EXIT_DONE;
    for object in objects {
        record.begin();
        let mut planned = plan(object, &resources);
        if let (Plan::Await(_, tasks), true, false) = (&planned, args.wait, args.dry_run) {
            for task in tasks {
                follow(&context.client, *task, context.output).await?;
            }
            resources = reload(context, objects, resources, true).await?;
            planned = plan(object, &resources);
        }
        let is_change = !matches!(planned, Plan::Unchanged | Plan::Await(..));
        if matches!(planned, Plan::Unchanged) {
            note_uncompared_key(context, object);
        }
        let done = match args.dry_run {
            true => would(planned)?,
            false => make(context, object, planned, objects, &mut resources).await?,
        };
        report(context, args, object, &done, record)?;
        // The status of a failed task wins.
        if done.awaited.is_some() && status == EXIT_DONE && !args.dry_run {
            status = EXIT_WAITING;
        }
        if args.wait && !wait(context, object, &done.tasks, record).await? {
            status = EXIT_FAILED;
        }
        if is_change && !args.dry_run {
            // A new location may have backups of another host.
            let is_stored = !done.tasks.is_empty() || object.kind == Kind::BackupLocation;
            resources = reload(context, objects, resources, is_stored).await?;
        }
    }
    Ok(status)
}

fn report(
    context: &Context<'_>,
    args: &ApplyArgs,
    object: &Object,
    done: &Done,
    record: &mut Record,
) -> Result<(), Failure> {
    let document = record.done(done.result);
    show_warnings(object, document);
    if !done.tasks.is_empty() {
        document["tasks"] = json!(done.tasks);
    }
    if let Some(awaited) = &done.awaited {
        document["waitsFor"] = json!(awaited);
    }
    if context.output.is_json() {
        return Ok(());
    }
    let tasks: Vec<String> = done.tasks.iter().map(ToString::to_string).collect();
    let more = match (args.dry_run, &done.awaited) {
        (true, _) => " (dry run)".to_owned(),
        (false, Some(awaited)) => format!(" for {awaited}"),
        (false, None) if tasks.is_empty() => String::new(),
        (false, None) => format!(" (task {})", tasks.join(", ")),
    };
    context.output.line(format!("{object} {}{more}", done.result))
}

/// Warns that a key in the file cannot be compared with the stored one.
fn note_uncompared_key(context: &Context<'_>, object: &Object) {
    if matches!(&object.body, Body::Location(location) if location.gives_store_key()) {
        context.output.note(format!(
            "note: {object}: the key in the file is not compared with the one in use; if it is another one: blockctl credentials update {}",
            object.name
        ));
    }
}

/// Executes a plan. After a concurrent creation, the object is planned again.
async fn make(
    context: &Context<'_>,
    object: &Object,
    mut planned: Plan,
    objects: &[Object],
    resources: &mut ResourceSet,
) -> Result<Done, Failure> {
    let mut retries = 0;
    loop {
        let may_retry = matches!(planned, Plan::Create) && retries < MAX_RETRIES;
        let error = match execute(context, object, planned, resources).await {
            Err(Failure::Client(ClientError::Api(error))) if may_retry && is_existing(object, error.code) => {
                error
            }
            done => return done,
        };
        retries += 1;
        *resources = reload(context, objects, std::mem::take(resources), true).await?;
        planned = plan(object, resources);
        if object.kind == Kind::VolumeBackup && matches!(planned, Plan::Create) {
            // Another backup of the volume is running.
            return Err(api(error));
        }
    }
}

/// Returns true for the error of an existing object, or one in creation.
fn is_existing(object: &Object, code: ErrorCode) -> bool {
    match code {
        ErrorCode::CredentialExists
        | ErrorCode::PolicyExists
        | ErrorCode::RuleExists
        | ErrorCode::ScheduleExists
        | ErrorCode::VolumeExists => true,
        ErrorCode::VolumeInUse => object.kind == Kind::VolumeBackup,
        _ => false,
    }
}

/// Waits for tasks; false if one of them is not done.
async fn wait(
    context: &Context<'_>,
    object: &Object,
    tasks: &[Uuid],
    record: &mut Record,
) -> Result<bool, Failure> {
    let (mut states, mut all_done) = (Vec::new(), true);
    for task in tasks {
        let ended = follow(&context.client, *task, context.output).await?;
        states.push(ended.state.to_string());
        if ended.state.stage != TaskStage::Done {
            all_done = false;
            let why = ended.error.map_or_else(|| "it was stopped".to_owned(), |error| error.message);
            context.output.note(format!("error: {object}: {}: {why}", ended.state));
        }
    }
    if !states.is_empty() {
        record.last()["states"] = json!(states);
    }
    Ok(all_done)
}

/// Returns the result of a plan that is not executed.
fn would(planned: Plan) -> Result<Done, Failure> {
    let done = Done { result: planned.result(), tasks: Vec::new(), awaited: None };
    match planned {
        Plan::Await(awaited, _) => Ok(Done { awaited: Some(awaited), ..done }),
        Plan::Refused(_, error) => Err(api(error)),
        _ => Ok(done),
    }
}

async fn execute(
    context: &Context<'_>,
    object: &Object,
    planned: Plan,
    resources: &ResourceSet,
) -> Result<Done, Failure> {
    match planned {
        Plan::Wait(tasks) => Ok(Done { tasks, ..would(Plan::Wait(Vec::new()))? }),
        Plan::Resume(task) => {
            context.client.resume_task(task).await?;
            Ok(Done { result: RESUMED, tasks: vec![task], awaited: None })
        }
        Plan::Create => {
            let tasks = create(context, object, resources).await?;
            let is_task = matches!(object.body, Body::Backup(_) | Body::Restore(_));
            Ok(Done { result: if is_task { "started" } else { "created" }, tasks, awaited: None })
        }
        Plan::Update(changes) => {
            update(context, object, &changes, resources).await?;
            would(Plan::Update(changes))
        }
        planned => would(planned),
    }
}

/// Creates the resource of an object and returns its tasks.
async fn create(
    context: &Context<'_>,
    object: &Object,
    resources: &ResourceSet,
) -> Result<Vec<Uuid>, Failure> {
    let client = &context.client;
    let name = &object.name;
    match &object.body {
        Body::Location(location) => {
            client.create_credential(&location.request(&parse_name(name)?)?).await?;
        }
        Body::Policy(rules) => {
            client.create_policy(&Policy { name: parse_name(name)?, rules: rules.0.clone() }).await?;
        }
        Body::Rule(hook) => {
            let name: RuleName = parse_name(name)?;
            let quiesce = hook.quiesce().map_err(Failure::usage)?;
            client.create_rule(&CreateRule { name: name.clone(), quiesce }).await?;
            assign(context, &name, hook, resources).await?;
        }
        Body::Schedule(schedule) => {
            client.create_schedule(&schedule.request(name)).await?;
        }
        Body::Backup(backup) => return start_backup(context, name, backup, resources).await,
        Body::Restore(restore) => return start_restore(context, restore, resources).await,
        Body::Clone(clone) => clone_volume(context, clone).await?,
    }
    Ok(Vec::new())
}

async fn start_backup(
    context: &Context<'_>,
    name: &ObjectName,
    backup: &Backup,
    resources: &ResourceSet,
) -> Result<Vec<Uuid>, Failure> {
    let mut request = backup.request(name);
    if let Some(volume) = backup.selector().volume {
        let StartGroupBackup { full, cred_id, name, rule, .. } = request;
        let request = StartBackup { full, cred_id, name, rule, ..StartBackup::of(volume) };
        return Ok(vec![context.client.start_backup(&request).await?.task]);
    }
    let missing = resources.not_backed_up(name.as_str(), backup);
    if !missing.is_empty() && missing.len() < resources.members(&backup.selector()).count() {
        // The other volumes have a backup.
        request.volumes = missing.iter().map(|volume| VolumeRef::Id(volume.id)).collect();
        (request.group, request.label) = (None, None);
    }
    let started = context.client.start_group_backup(&request).await?;
    Ok(started.members.into_iter().flat_map(|member| member.tasks).collect())
}

async fn start_restore(
    context: &Context<'_>,
    restore: &Restore,
    resources: &ResourceSet,
) -> Result<Vec<Uuid>, Failure> {
    let snap = resources.source(restore).map_err(api)?;
    let (volume, skip_damaged) = (restore.destination_volume.clone(), restore.skip_damaged);
    let cred_id = Some(CredentialRef::Name(restore.location.clone()));
    let (volume, schedules, tasks) = if restore.lazy {
        let on_store_loss = StoreLoss::default();
        let request = StartLazyRestore { snap, volume, cred_id, hydrate: true, on_store_loss, labels: None };
        let started = context.client.start_lazy_restore(&request).await?;
        (started.volume, started.schedules, started.task.into_iter().collect())
    } else {
        let request = StartRestore { volume, cred_id, skip_damaged, ..StartRestore::of(snap) };
        let started = context.client.start_restore(&request).await?;
        (started.volume, started.schedules, vec![started.task])
    };
    tell_schedules(context, &volume, &schedules);
    Ok(tasks)
}

/// Clones a named snapshot, or one that is taken now.
async fn clone_volume(context: &Context<'_>, clone: &VolumeClone) -> Result<(), Failure> {
    let client = &context.client;
    let source = VolumeRef::Name(clone.source.clone());
    let (Some(snapshot_name), Some(name)) = (clone.snapshot_name(), clone.destination_volume.clone()) else {
        return Err(Failure::usage(format!("no snapshot for a clone of {} can be named", clone.source)));
    };
    let snapshot = clone.snapshot(snapshot_name.clone());
    let origin = BTreeMap::from([(CLONED_FROM.to_owned(), snapshot.to_string())]);
    let labels = Labels::try_from(origin).map_err(|error| Failure::usage(error.to_string()))?;
    if clone.snapshot.is_none() {
        let request = CreateSnapshot { name: Some(snapshot_name), ..CreateSnapshot::default() };
        client.create_snapshot(&source, &request).await?;
    }
    let request = CloneVolume { name, snapshot: snapshot.clone(), labels };
    let Err(error) = client.clone_volume(&source, &request).await else { return Ok(()) };
    if clone.snapshot.is_none()
        && let Err(left) = client.delete_snapshot(&snapshot).await
    {
        context.output.note(format!("warning: snapshot {snapshot}, taken for the clone, is left: {left}"));
    }
    Err(error.into())
}

async fn update(
    context: &Context<'_>,
    object: &Object,
    changes: &[Change],
    resources: &ResourceSet,
) -> Result<(), Failure> {
    let (client, name) = (&context.client, object.name.as_str());
    match &object.body {
        Body::Location(location) => update_location(context, name, location, changes, resources).await?,
        Body::Policy(rules) => {
            let request = UpdatePolicy { rules: rules.0.clone() };
            client.update_policy(&parse_name(&object.name)?, &request).await?;
        }
        Body::Rule(hook) => {
            let rule: RuleName = parse_name(&object.name)?;
            let quiesce = hook.quiesce().map_err(Failure::usage)?;
            let is_target = |path: &str| path == "spec.volumes" || path == "spec.groups";
            if changes.iter().any(|change| !is_target(&change.path)) {
                client.update_rule(&rule, &UpdateRule { quiesce }).await?;
            }
            assign(context, &rule, hook, resources).await?;
        }
        Body::Schedule(schedule) => {
            let found = resources.schedule(name);
            if let Some((found, current)) = found.and_then(|one| Some((one, resources.schedule_spec(one)?))) {
                let (current, wanted) = (current.request(&object.name), schedule.request(&object.name));
                client.update_schedule(found.uuid, &schedule::update(&current, wanted)).await?;
            }
        }
        // These are made once.
        Body::Backup(_) | Body::Restore(_) | Body::Clone(_) => {}
    }
    Ok(())
}

/// Updates a location. New access is verified first: if it fails, no field is changed.
async fn update_location(
    context: &Context<'_>,
    name: &str,
    location: &Location,
    changes: &[Change],
    resources: &ResourceSet,
) -> Result<(), Failure> {
    let Some(current) = resources.credential(name) else { return Ok(()) };
    let credential = CredentialRef::Name(current.name.clone());
    if changes.iter().any(|change| is_access(&change.path)) {
        let request = location.update(credential.clone(), current.provider)?;
        context.client.update_credential(&credential, &request).await?;
    }
    if changes.iter().any(|change| !is_access(&change.path)) {
        context.client.limit_credential(&credential, &location.limits(current)).await?;
    }
    Ok(())
}

/// Assigns a rule to exactly its targets. Assignments come first: if one fails, no volume is without the rule
/// that it had. Targets of another rule of the files are left to it.
async fn assign(
    context: &Context<'_>,
    name: &RuleName,
    hook: &Hook,
    resources: &ResourceSet,
) -> Result<(), Failure> {
    let current = resources.rule(name.as_str()).map(|rule| Hook::of(rule).targets()).unwrap_or_default();
    let others = resources.file_rules.iter().filter(|(other, _)| other.as_str() != name.as_str());
    let others: Vec<_> = others.flat_map(|(_, hook)| hook.targets()).flatten().flatten().collect();
    let mut removed = Vec::new();
    for (has, wanted) in current.into_iter().zip(hook.targets()) {
        let (has, Some(wanted)) = (has.unwrap_or_default(), wanted) else { continue };
        for target in wanted.iter().filter(|target| !has.contains(target)) {
            context.client.assign_rule(name, target).await?;
        }
        removed.extend(has.into_iter().filter(|target| !wanted.contains(target) && !others.contains(target)));
    }
    for target in &removed {
        context.client.unassign_rule(name, target).await?;
    }
    Ok(())
}
