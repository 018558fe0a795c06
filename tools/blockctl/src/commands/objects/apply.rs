//! `blockctl apply`

use super::{
    RESUMED, UNDER_WAY, WAITING, about_stores, api,
    plan::{Change, Plan, credential_name, limits, members, not_backed_up, place, plan, source},
    read,
    record::Record,
    resources::{ResourceSet, Scope},
    scope_of, show_warnings, warn, world_for,
};
use crate::{
    cli::objects::ApplyArgs,
    commands::{Context, lazy::tell_schedules},
    failure::{EXIT_DONE, EXIT_FAILED, EXIT_WAITING, Failure},
    objects::{
        Body, Kind, Object,
        access::is_access,
        backup::Volumes,
        clone::{CLONED_FROM, VolumeClone},
        hook::Hook,
        location::Location,
    },
    wait::follow,
};
use blockd_api::{
    ClientError, ErrorCode, GroupName, Labels, ObjectName, RuleName, VolumeName, VolumeRef,
    cloudsnaps::{StartBackup, StartRestore},
    lazy::{StartLazyRestore, StoreLoss},
    rules::{CreateRule, RuleTarget, UpdateRule},
    schedules::{Policy, PolicyName, UpdatePolicy},
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

impl Done {
    fn only(result: &'static str) -> Self {
        Self::by(result, Vec::new())
    }

    fn by(result: &'static str, tasks: Vec<Uuid>) -> Self {
        Self { result, tasks, awaited: None }
    }

    fn started(tasks: Vec<Uuid>) -> Self {
        Self::by("started", tasks)
    }

    fn waiting(awaited: String) -> Self {
        Self { awaited: Some(awaited), ..Self::only(WAITING) }
    }
}

/// Maximum number of retries after a concurrent creation.
const MAX_LOOKS: usize = 4;

/// `apply`: the objects one after the other, up to the first that cannot be made so.
pub async fn run(context: &Context<'_>, args: ApplyArgs) -> Result<u8, Failure> {
    let objects = read(&args.from)?;
    warn(context, &objects);
    let world = world_for(context, &objects).await?;
    let mut record = Record::of(objects.iter().map(|one| (one.kind(), one.name.to_string())));
    let ended = apply_all(context, &args, objects, world, &mut record).await;
    record.finish(context, ended)
}

async fn apply_all(
    context: &Context<'_>,
    args: &ApplyArgs,
    objects: Vec<Object>,
    mut world: ResourceSet,
    record: &mut Record,
) -> Result<u8, Failure> {
    let stores = objects.iter().any(|one| about_stores(one.kind())).then(|| scope_of(&objects));
    let mut status = EXIT_DONE;
    for object in objects {
        record.begin();
        let (shown, kind) = (object.to_string(), object.kind());
        let mut planned = plan(&object, &world);
        if let (Plan::Await(_, tasks), true, false) = (&planned, args.wait, args.dry_run) {
            for task in tasks {
                follow(&context.client, *task, context.output).await?;
            }
            world = reload(context, world, stores.as_ref(), true).await?;
            planned = plan(&object, &world);
        }
        let is_change = !matches!(planned, Plan::Unchanged | Plan::Await(..));
        if matches!(planned, Plan::Unchanged) {
            tell_of_given_key(context, &object);
        }
        let done = match args.dry_run {
            true => would(planned)?,
            false => make(context, &object, planned, &mut world, stores.as_ref()).await?,
        };
        let what = match (args.dry_run, done.tasks.as_slice(), &done.awaited) {
            (true, ..) => format!("{shown} {} (dry run)", done.result),
            (false, _, Some(awaited)) => format!("{shown} {} for {awaited}", done.result),
            (false, [], None) => format!("{shown} {}", done.result),
            (false, tasks, None) => {
                let tasks: Vec<String> = tasks.iter().map(ToString::to_string).collect();
                format!("{shown} {} (task {})", done.result, tasks.join(", "))
            }
        };
        record.done(done.result, &done.tasks);
        record.add(|document| {
            show_warnings(&object, document);
            if let Some(awaited) = &done.awaited {
                document["waitsFor"] = json!(awaited);
            }
        });
        if !context.output.is_json() {
            context.output.line(what)?;
        }
        // What failed says more.
        if done.awaited.is_some() && status == EXIT_DONE && !args.dry_run {
            status = EXIT_WAITING;
        }
        if args.wait && !wait(context, &shown, &done.tasks, record).await? {
            status = EXIT_FAILED;
        }
        if is_change && !args.dry_run {
            // A new place may hold what another host stored.
            let is_stored = !done.tasks.is_empty() || kind == Kind::BackupLocation;
            world = reload(context, world, stores.as_ref(), is_stored).await?;
        }
    }
    Ok(status)
}

/// Warns that a key in the file cannot be compared with the stored one.
fn tell_of_given_key(context: &Context<'_>, object: &Object) {
    if let Body::Location(location) = &object.body
        && location.gives_store_key()
    {
        context.output.note(format!(
            "note: {object}: the key in the file is not compared with the one in use; if it is another one: blockctl credentials update {}",
            object.name
        ));
    }
}

/// Reloads the current state, including the stores after a backup.
async fn reload(
    context: &Context<'_>,
    mut world: ResourceSet,
    stores: Option<&Scope>,
    is_stored: bool,
) -> Result<ResourceSet, Failure> {
    let cloudsnaps = world.cloudsnaps.take().filter(|_| !is_stored);
    let mut now = ResourceSet { cloudsnaps, called: world.called, ..ResourceSet::load(context).await? };
    if let Some(scope) = stores {
        now.load_stores(context, scope).await?;
    }
    Ok(now)
}

/// Executes a plan. After a concurrent creation, the object is planned again.
async fn make(
    context: &Context<'_>,
    object: &Object,
    mut planned: Plan,
    world: &mut ResourceSet,
    stores: Option<&Scope>,
) -> Result<Done, Failure> {
    let mut looks = 0;
    loop {
        let may_look = matches!(planned, Plan::Create) && looks < MAX_LOOKS;
        let error = match carry_out(context, object, planned, world).await {
            Err(Failure::Client(ClientError::Api(error))) if may_look && is_there(object, error.code) => {
                error
            }
            done => return done,
        };
        looks += 1;
        *world = reload(context, std::mem::take(world), stores, true).await?;
        planned = plan(object, world);
        if object.kind() == Kind::VolumeBackup && matches!(planned, Plan::Create) {
            // What is in the way is another backup of the volume.
            return Err(api(error));
        }
    }
}

/// Returns true for the error of an existing object, or one in creation.
fn is_there(object: &Object, code: ErrorCode) -> bool {
    match code {
        ErrorCode::CredentialExists
        | ErrorCode::PolicyExists
        | ErrorCode::RuleExists
        | ErrorCode::ScheduleExists
        | ErrorCode::VolumeExists => true,
        ErrorCode::VolumeInUse => object.kind() == Kind::VolumeBackup,
        _ => false,
    }
}

/// Waits for tasks; false if one of them is not done.
async fn wait(
    context: &Context<'_>,
    shown: &str,
    tasks: &[Uuid],
    record: &mut Record,
) -> Result<bool, Failure> {
    let (mut states, mut all_done) = (Vec::new(), true);
    for task in tasks {
        let ended = follow(&context.client, *task, context.output).await?;
        states.push(ended.state.to_string());
        if ended.state.stage == TaskStage::Done {
            continue;
        }
        all_done = false;
        let why = ended.error.map_or_else(|| "it was stopped".to_owned(), |error| error.message);
        context.output.note(format!("error: {shown}: {}: {why}", ended.state));
    }
    record.ended(&states);
    Ok(all_done)
}

fn would(planned: Plan) -> Result<Done, Failure> {
    Ok(Done::only(match planned {
        Plan::Await(awaited, _) => return Ok(Done::waiting(awaited)),
        Plan::Unchanged => "unchanged",
        Plan::Wait(_) => UNDER_WAY,
        Plan::Resume(_) => RESUMED,
        Plan::Create => "created",
        Plan::Update(_) => "configured",
        Plan::Refused(_, error) => return Err(api(error)),
    }))
}

async fn carry_out(
    context: &Context<'_>,
    object: &Object,
    planned: Plan,
    world: &ResourceSet,
) -> Result<Done, Failure> {
    match planned {
        Plan::Unchanged => Ok(Done::only("unchanged")),
        Plan::Wait(tasks) => Ok(Done::by(UNDER_WAY, tasks)),
        Plan::Await(awaited, _) => Ok(Done::waiting(awaited)),
        Plan::Resume(task) => {
            context.client.resume_task(task).await?;
            Ok(Done::by(RESUMED, vec![task]))
        }
        Plan::Refused(_, error) => Err(api(error)),
        Plan::Create => create(context, object, world).await,
        Plan::Update(changes) => {
            update(context, object, &changes, world).await.map(|()| Done::only("configured"))
        }
    }
}

async fn create(context: &Context<'_>, object: &Object, world: &ResourceSet) -> Result<Done, Failure> {
    let client = &context.client;
    let name = object.name.clone();
    match &object.body {
        Body::Location(location) => {
            let request = location.request(&credential_name(&name).map_err(api)?)?;
            client.create_credential(&request).await?;
        }
        Body::Policy(rules) => {
            let request = Policy { name: policy_name(&name)?, rules: rules.to_api() };
            client.create_policy(&request).await?;
        }
        Body::Rule(hook) => {
            let name = rule_name(&name)?;
            let quiesce = hook.quiesce.clone();
            client.create_rule(&CreateRule { name: name.clone(), quiesce }).await?;
            give_rule(context, &name, hook, world).await?;
        }
        Body::Schedule(schedule) => {
            client.create_schedule(&schedule.create(&name)).await?;
        }
        Body::Backup(backup) => {
            if let Volumes::One(volume) = &backup.volumes {
                let request = StartBackup {
                    full: backup.full,
                    cred_id: Some(place(&backup.location)),
                    name: Some(name),
                    rule: backup.rule.clone(),
                    ..StartBackup::of(VolumeRef::Name(volume.clone()))
                };
                return Ok(Done::started(vec![client.start_backup(&request).await?.task]));
            }
            let mut request = backup.request(&name);
            let missing: Vec<VolumeRef> =
                not_backed_up(world, &name, backup).map(|volume| VolumeRef::Id(volume.id)).collect();
            if !missing.is_empty() && missing.len() < members(world, &backup.volumes).count() {
                // The others have theirs.
                (request.group, request.label, request.volumes) = (None, None, missing);
            }
            let started = client.start_group_backup(&request).await?;
            return Ok(Done::started(started.members.into_iter().flat_map(|member| member.tasks).collect()));
        }
        Body::Restore(restore) => {
            let (snap, cred_id) = (source(restore, world).map_err(api)?, Some(place(&restore.location)));
            let volume = Some(volume_name(restore.target())?);
            if restore.lazy {
                let request = StartLazyRestore {
                    snap,
                    volume,
                    cred_id,
                    hydrate: true,
                    on_store_loss: StoreLoss::default(),
                    labels: None,
                };
                let started = client.start_lazy_restore(&request).await?;
                tell_schedules(context, &started.volume, &started.schedules);
                return Ok(Done::started(started.task.into_iter().collect()));
            }
            let skip_damaged = restore.skip_damaged;
            let request = StartRestore { volume, cred_id, skip_damaged, ..StartRestore::of(snap) };
            let started = client.start_restore(&request).await?;
            tell_schedules(context, &started.volume, &started.schedules);
            return Ok(Done::started(vec![started.task]));
        }
        Body::Clone(clone) => {
            let target = volume_name(clone.target())?;
            clone_volume(context, clone, target).await?;
        }
    }
    Ok(Done::only("created"))
}

/// Makes a clone, of a snapshot that is taken now unless one is named.
async fn clone_volume(context: &Context<'_>, clone: &VolumeClone, name: VolumeName) -> Result<(), Failure> {
    let client = &context.client;
    let source = VolumeRef::Name(clone.source.clone());
    let no_name = || Failure::usage(format!("no snapshot for a clone of {} can be named", clone.source));
    let snapshot_name = clone.snapshot_name().ok_or_else(no_name)?;
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
    world: &ResourceSet,
) -> Result<(), Failure> {
    let client = &context.client;
    match &object.body {
        Body::Location(location) => update_location(context, &object.name, location, changes, world).await?,
        Body::Policy(rules) => {
            let request = UpdatePolicy { rules: rules.to_api() };
            client.update_policy(&policy_name(&object.name)?, &request).await?;
        }
        Body::Rule(hook) => {
            let name = rule_name(&object.name)?;
            let is = world.rule(name.as_str()).map(Hook::of);
            if is.is_none_or(|is| is.quiesce != hook.quiesce) {
                client.update_rule(&name, &UpdateRule { quiesce: hook.quiesce.clone() }).await?;
            }
            give_rule(context, &name, hook, world).await?;
        }
        Body::Schedule(schedule) => {
            let found = world.schedules.iter().find(|one| one.name.as_ref() == Some(&object.name));
            if let Some((found, is)) = found.and_then(|one| Some((one, world.scheduled(one)?))) {
                client.update_schedule(found.uuid, &schedule.update(&is)).await?;
            }
        }
        // What is made once is made or not.
        Body::Backup(_) | Body::Restore(_) | Body::Clone(_) => {}
    }
    Ok(())
}

/// Updates a location. New access is verified first: if it fails, no field is changed.
async fn update_location(
    context: &Context<'_>,
    name: &ObjectName,
    location: &Location,
    changes: &[Change],
    world: &ResourceSet,
) -> Result<(), Failure> {
    let limits = limits(world, name, location.limits());
    let place = place(&credential_name(name).map_err(api)?);
    let (access, others): (Vec<&Change>, Vec<&Change>) =
        changes.iter().partition(|change| is_access(&change.path));
    let is = world.credentials.iter().find(|one| one.name.as_str() == name.as_str());
    if let Some(is) = is.filter(|_| !access.is_empty()) {
        let request = location.update(place.clone(), is.provider)?;
        context.client.update_credential(&place, &request).await?;
    }
    if !others.is_empty() {
        context.client.limit_credential(&place, &limits).await?;
    }
    Ok(())
}

/// Has just those volumes and groups have a rule that it says. They are given it first: if that fails,
/// nothing is without the rule that it had. What another rule of the same call is to have is left to it.
async fn give_rule(
    context: &Context<'_>,
    name: &RuleName,
    hook: &Hook,
    world: &ResourceSet,
) -> Result<(), Failure> {
    let of_volume =
        |volume: &VolumeName| RuleTarget { volume: Some(VolumeRef::Name(volume.clone())), group: None };
    let of_group = |group: &GroupName| RuleTarget { volume: None, group: Some(group.clone()) };
    let (mut taken, mut given) = (Vec::new(), Vec::new());
    let is = world.rule(name.as_str());
    if let Some(should) = &hook.volumes {
        let has = is.map_or(&[][..], |rule| rule.volumes.as_slice());
        let is_others = |one: &&VolumeName| is_called_for(world, name, |hook| hook.volumes.as_deref(), *one);
        let gone = |one: &&VolumeName| !should.contains(one) && !is_others(one);
        taken.extend(has.iter().filter(gone).map(of_volume));
        given.extend(should.iter().filter(|one| !has.contains(one)).map(of_volume));
    }
    if let Some(should) = &hook.groups {
        let has = is.map_or(&[][..], |rule| rule.groups.as_slice());
        let is_others = |one: &&GroupName| is_called_for(world, name, |hook| hook.groups.as_deref(), *one);
        let gone = |one: &&GroupName| !should.contains(one) && !is_others(one);
        taken.extend(has.iter().filter(gone).map(of_group));
        given.extend(should.iter().filter(|one| !has.contains(one)).map(of_group));
    }
    for target in &given {
        context.client.assign_rule(name, target).await?;
    }
    for target in &taken {
        context.client.unassign_rule(name, target).await?;
    }
    Ok(())
}

/// Returns true if another rule of the same call has this target.
fn is_called_for<T: PartialEq>(
    world: &ResourceSet,
    name: &RuleName,
    said: impl Fn(&Hook) -> Option<&[T]>,
    one: &T,
) -> bool {
    let others = world.called.iter().filter(|(other, _)| other.as_str() != name.as_str());
    others.into_iter().any(|(_, hook)| said(hook).is_some_and(|said| said.contains(one)))
}

fn rule_name(name: &ObjectName) -> Result<RuleName, Failure> {
    name.as_str().parse().map_err(|error: blockd_api::NameError| Failure::usage(error.to_string()))
}

fn policy_name(name: &ObjectName) -> Result<PolicyName, Failure> {
    name.as_str().parse().map_err(|error: blockd_api::NameError| Failure::usage(error.to_string()))
}

fn volume_name(name: &str) -> Result<VolumeName, Failure> {
    name.parse().map_err(|error: blockd_api::NameError| Failure::usage(error.to_string()))
}
