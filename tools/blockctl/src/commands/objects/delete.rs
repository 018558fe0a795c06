//! `blockctl delete`

use super::{
    args::DeleteArgs,
    backup_locations::locations,
    backups::{
        BackupTarget, DeleteScope, IN_STORE, delete_cloudsnap, is_listed_as, refuse_kept, snapshot_name,
    },
    record::Record,
    resources::{ResourceSet, Scope, is_open, schedule_name},
};
use crate::{
    backup_names::without_host,
    commands::cloudsnap::snapshots::refuse_kept as refuse_kept_by_daemon,
    failure::{EXIT_DONE, Exit, Failure},
    objects::{Body, Kind, Object, ReclaimPolicy, hook::Hook, read_all, volumes::with_labels},
    output::Context,
    table::counted,
};
use blockd_api::{
    ApiError, CLONED_BEFORE, CLONED_BY, CredentialRef, ErrorCode, Labels, PairsError, RuleName, SnapshotRef,
    VolumeRef,
    cloudsnaps::{CloudSnapshotId, Cloudsnap},
    operations,
    schedules::{JudgedSnapshot, Schedule, UpdateSchedule},
    snapshots::Snapshot,
    tasks::{Task, TaskOwner},
    volumes::{UpdateVolume, Volume},
};
use blockd_schedule::{KeepReason, Verdict};
use std::collections::BTreeSet;

/// Object to delete.
struct Deletion {
    kind: Kind,
    name: String,
    /// Backups to delete, if a backup was named or has `reclaimPolicy: Delete`.
    backups: Option<BackupTarget>,
    /// Volumes of local snapshots to delete.
    snapshots: Option<DeleteScope>,
    /// Backups of a schedule are deleted with it.
    reclaims: bool,
    /// Assignments to remove with a rule.
    rule: Option<Hook>,
}

impl Deletion {
    fn new(kind: Kind, name: &str) -> Self {
        Self { kind, name: name.to_owned(), backups: None, snapshots: None, reclaims: false, rule: None }
    }

    /// Returns the deletion of an object of a file. Its reclaim policy wins over the stored one. An open one
    /// named no location.
    ///
    /// # Errors
    /// Backups or snapshots of volumes that the file excludes would be deleted.
    fn of(object: Object, is_open: bool, resources: &ResourceSet) -> Result<Self, Failure> {
        let (kind, name) = (object.kind, object.name.to_string());
        let mut deletion = Self::new(kind, &name);
        match object.body {
            Body::Backup(backup) => {
                let location = backup.location().filter(|_| !is_open).cloned();
                let policy = backup.reclaim_policy.or_else(|| {
                    let mut stored = resources.backups_named(&name, location.as_ref());
                    stored.find_map(|one| ReclaimPolicy::of(&one.backup_labels))
                });
                let target = BackupTarget { name, id: None, location, scope: DeleteScope::All(backup) };
                deletion.backups = Some(target).filter(|_| policy == Some(ReclaimPolicy::Delete));
            }
            Body::Schedule(schedule) => {
                deletion.reclaims = resources.reclaims(&name, schedule.reclaim_policies());
            }
            Body::Snapshot(snapshot) => deletion.snapshots = Some(DeleteScope::All(snapshot)),
            Body::Rule(hook) => deletion.rule = Some(hook),
            _ => {}
        }
        match object.wider {
            Some(problem) if deletion.backups.is_some() || deletion.snapshots.is_some() => {
                Err(Failure::usage(format!("{}: {problem}", object.document.source.file)))
            }
            _ => Ok(deletion),
        }
    }

    /// Returns the local snapshots to delete.
    fn snapshots<'a>(&self, resources: &'a ResourceSet) -> Result<Vec<&'a Snapshot>, ApiError> {
        self.snapshots.as_ref().map_or_else(|| Ok(Vec::new()), |scope| scope.snapshots(&self.name, resources))
    }

    /// Returns the names of the local snapshots to delete.
    fn snapshot_names(&self, resources: &ResourceSet) -> Result<Vec<String>, ApiError> {
        Ok(self.snapshots(resources)?.into_iter().map(snapshot_name).collect())
    }

    /// Returns the location of the backups to delete; `None` without any.
    fn location(&self, resources: &ResourceSet) -> Result<Option<String>, Failure> {
        let Some(target) = &self.backups else { return Ok(None) };
        let (found, tasks) = target.selected(resources)?;
        Ok(locations(&found, &tasks).first().map(|name| (*name).to_owned()))
    }

    fn exists(&self, resources: &ResourceSet) -> Result<bool, Failure> {
        Ok(match (&self.backups, &self.snapshots) {
            (Some(target), _) => {
                let (found, tasks) = target.selected(resources)?;
                !found.is_empty() || !tasks.is_empty()
            }
            (None, Some(_)) => !self.snapshots(resources)?.is_empty(),
            (None, None) => {
                let is_named = || resources.labelled_by_restore(&self.name).next().is_some();
                let is_earlier = self.kind == Kind::VolumeRestore && is_named();
                is_earlier || resources.find(self.kind, &self.name).is_some()
            }
        })
    }
}

/// Deletes objects, each before those that it depends on.
pub async fn run(context: &Context<'_>, args: DeleteArgs) -> Exit {
    let (dry_run, yes) = (args.dry_run, args.yes);
    let (mut wanted, resources) = match args.object()? {
        Some((kind, name)) => {
            let name = name.to_owned();
            named(context, kind, name, args).await?
        }
        None => {
            let mut objects = read_all(&args.file)?.objects;
            let open: Vec<bool> = objects.iter().map(is_open).collect();
            let resources = ResourceSet::load_for(context, &mut objects).await?;
            let wanted = objects.into_iter().zip(open);
            let wanted = wanted.map(|(object, is_open)| Deletion::of(object, is_open, &resources));
            (wanted.collect::<Result<_, _>>()?, resources)
        }
    };
    wanted.sort_by_key(|one| std::cmp::Reverse(one.kind));
    let delete = Delete { context, resources, dry_run };
    if yes.must_ask() && !dry_run {
        let mut consequences = Vec::new();
        for one in &wanted {
            consequences.extend(delete.consequence(one).await?);
        }
        if !consequences.is_empty() {
            yes.confirm(context.output, &consequences.join("; "))?;
        }
    }
    let mut record = Record::of(wanted.iter().map(|one| (one.kind, one.name.clone())));
    let ended = delete.all(&wanted, &mut record).await;
    record.finish(context, ended)
}

/// Returns the deletion of an object on the command line.
async fn named(
    context: &Context<'_>,
    kind: Kind,
    name: String,
    args: DeleteArgs,
) -> Result<(Vec<Deletion>, ResourceSet), Failure> {
    if args.location.is_some() && kind != Kind::VolumeBackup {
        return Err(Failure::usage("--location belongs to VolumeBackup"));
    }
    if args.volume.is_some() && !matches!(kind, Kind::VolumeBackup | Kind::VolumeSnapshot) {
        return Err(Failure::usage("--volume belongs to VolumeBackup and VolumeSnapshot"));
    }
    let (id, location) = (name.parse().ok(), args.location);
    let scope = Scope { locations: location.clone().map(|location| vec![location]), id };
    let resources = ResourceSet::load_kinds(context, &[kind], &scope).await?;
    let (mut deletion, scope) = (Deletion::new(kind, &name), DeleteScope::One(args.volume));
    match kind {
        Kind::VolumeBackup => {
            let (name, location) = (resources.without_own_host(&name).to_owned(), location.clone());
            deletion.backups = Some(BackupTarget { name, id, location, scope });
        }
        Kind::VolumeSnapshot => deletion.snapshots = Some(scope),
        Kind::VolumeBackupSchedule => deletion.reclaims = resources.reclaims(&name, [None, None]),
        _ => {}
    }
    let exists = deletion.exists(&resources)?;
    // An id may be of another host, as may a name that this host lacks.
    let mut listed = resources.cloudsnaps.iter().flatten();
    let selected = listed.find(|one| match id {
        Some(id) => one.cloud_snapshot_id == id,
        None => !exists && is_listed_as(one, &deletion.name, location.as_ref()),
    });
    if let Some(one) = selected.filter(|_| id.is_none()) {
        let cluster = one.cloud_snapshot_id.cluster;
        // A name without a host is one of this host.
        if without_host(&deletion.name, cluster).is_none() {
            let host = resources.short_host(cluster);
            let hint = format!("{kind}/{host}/{} is of another host", deletion.name);
            return Err(kind.missing(&deletion.name).with_hint(hint).into());
        }
    }
    if let Some((found, here)) = selected.zip(resources.own) {
        refuse_kept_by_daemon(found, here)?;
    }
    if !exists {
        return Err(kind.missing(&deletion.name).into());
    }
    Ok((vec![deletion], resources))
}

/// Deletion of objects.
struct Delete<'a> {
    context: &'a Context<'a>,
    resources: ResourceSet,
    dry_run: bool,
}

impl Delete<'_> {
    /// Describes the loss of a deletion; `None` for an object that stays.
    async fn consequence(&self, one: &Deletion) -> Result<Option<String>, Failure> {
        let snapshots = one.snapshot_names(&self.resources)?.join(", ");
        if !snapshots.is_empty() {
            return Ok(Some(format!("{}/{} is deleted permanently ({snapshots})", one.kind, one.name)));
        }
        let (lost, interrupted) = match (&one.backups, self.resources.schedule(&one.name)) {
            (Some(target), _) => {
                let (found, tasks) = target.selected(&self.resources)?;
                (found.len(), tasks.len())
            }
            (None, Some(schedule)) if one.reclaims => (self.backups_of(schedule).await?.len(), 0),
            _ => (0, 0),
        };
        let lost = [(lost, "cloud snapshot"), (interrupted, "interrupted backup")];
        let lost = lost.into_iter().filter(|(count, _)| *count > 0);
        let lost: Vec<_> = lost.map(|(count, noun)| counted(count as u64, noun)).collect();
        let stays = matches!(one.kind, Kind::VolumeBackup | Kind::VolumeRestore | Kind::VolumeClone);
        Ok(match lost.as_slice() {
            [] if stays || !one.exists(&self.resources)? => None,
            [] => Some(format!("{}/{} is deleted", one.kind, one.name)),
            lost => {
                Some(format!("{}/{} is deleted permanently with {}", one.kind, one.name, lost.join(" and ")))
            }
        })
    }

    async fn all(&self, wanted: &[Deletion], record: &mut Record) -> Exit {
        for one in wanted {
            record.begin();
            let (result, location) = (self.one(one).await?, one.location(&self.resources)?);
            let (snapshots, volumes) = (one.snapshot_names(&self.resources)?, self.kept_volumes(one));
            let warnings = self.left(one);
            let done = record.done(result);
            done.warnings.clone_from(&warnings);
            done.snapshots.clone_from(&snapshots);
            done.volumes.clone_from(&volumes);
            done.backup_location.clone_from(&location);
            let from = location.map_or_else(String::new, |name| format!(" from BackupLocation/{name}"));
            let names = [snapshots, volumes].concat().join(", ");
            let colon = if names.is_empty() { "" } else { ": " };
            let dry = if self.dry_run { " (dry run)" } else { "" };
            if !self.context.output.is_json() {
                self.context.output.warn(&warnings);
                let line = format!("{}/{} {result}{from}{colon}{names}{dry}", one.kind, one.name);
                self.context.output.line(line)?;
            }
        }
        Ok(EXIT_DONE)
    }

    /// Returns warnings about cloud snapshots of a deleted backup that stay, and about tasks of a restore.
    fn left(&self, one: &Deletion) -> Vec<String> {
        if one.kind == Kind::VolumeRestore {
            let task = |(volume, task): (&Volume, &Task)| {
                let id = task.task_id;
                format!(
                    "VolumeRestore/{}: task {id} restores volume {}: `blockctl cloudsnap stop --name {id} --discard` abandons it",
                    one.name, volume.name
                )
            };
            return self.unfinished(&one.name).map(task).collect();
        }
        let left = one.backups.iter().flat_map(|target| target.left(&self.resources));
        let warning = |snap: &Cloudsnap| {
            let (then, now) = (snap.volume_name.as_str(), self.resources.present_name(snap));
            let volume =
                if then == now { format!("an older volume {then}") } else { format!("{now} (then {then})") };
            format!(
                "VolumeBackup/{0}: cloud snapshot {1} of {volume} stays; `blockctl delete VolumeBackup {0} --volume {then}` deletes it",
                one.name, snap.cloud_snapshot_id
            )
        };
        left.map(warning).collect()
    }

    /// Returns the volumes of a restore or clone, which stay.
    fn kept_volumes(&self, one: &Deletion) -> Vec<String> {
        let is_made = matches!(one.kind, Kind::VolumeRestore | Kind::VolumeClone);
        let found = is_made.then(|| self.resources.find(one.kind, &one.name)).flatten();
        let mut volumes: BTreeSet<String> = found.into_iter().flat_map(|found| found.volumes).collect();
        if one.kind == Kind::VolumeRestore {
            let named = self.resources.labelled_by_restore(&one.name);
            volumes.extend(named.map(|volume| volume.name.to_string()));
        }
        volumes.into_iter().collect()
    }

    /// Returns the unfinished tasks of a restore and their volumes.
    fn unfinished(&self, name: &str) -> impl Iterator<Item = (&Volume, &Task)> {
        let volumes = self.resources.volumes.iter();
        volumes.filter_map(move |volume| Some((volume, self.resources.unfinished_by(name, volume)?)))
    }

    async fn one(&self, one: &Deletion) -> Result<&'static str, Failure> {
        let (client, resources, name) = (&self.context.client, &self.resources, one.name.as_str());
        resources.refuse_hidden(one.kind)?;
        if let Some(target) = &one.backups {
            return target.delete(self.context, resources, self.dry_run).await;
        }
        if !one.exists(resources)? {
            return Ok("not there");
        }
        match one.kind {
            Kind::VolumeBackup => {
                let is_stored = resources.backups_named(name, None).next().is_some();
                let is_running = resources.under_way(name, None).next().is_some();
                return Ok(if is_running && !is_stored { "still being made" } else { IN_STORE });
            }
            Kind::VolumeClone => {
                // Only an object of this name takes its volumes back.
                let before = |labels: Labels| {
                    let before = [(CLONED_BEFORE, name.to_owned())];
                    with_labels(&labels.without(&[CLONED_BY]), before)
                };
                return self.forget(resources.cloned_by(name), before).await;
            }
            Kind::VolumeRestore if self.unfinished(name).next().is_some() => return Ok("still being made"),
            Kind::VolumeRestore => {
                let without = |labels: Labels| Ok(labels.without_restore(name));
                return self.forget(resources.labelled_by_restore(name), without).await;
            }
            Kind::VolumeBackupSchedule => self.schedule(one).await?,
            _ if self.dry_run => {}
            Kind::RestoreDrill => {
                if let Some(found) = resources.drill(name) {
                    client.call_at(operations::DELETE_SCHEDULE, &found.schedule_id, &()).await?;
                }
            }
            Kind::BackupLocation => {
                if let Some(found) = resources.credential(name) {
                    let id = CredentialRef::Id(found.credential_id);
                    client.call_at(operations::DELETE_CREDENTIAL, &id, &()).await?;
                }
            }
            Kind::SchedulePolicy => {
                if let Some(found) = resources.policies.iter().find(|policy| policy.name.as_str() == name) {
                    client.call_at(operations::DELETE_POLICY, &found.name, &()).await?;
                }
            }
            Kind::VolumeSnapshot => {
                for one in one.snapshots(resources)? {
                    let id = SnapshotRef::Id(one.snapshot_id);
                    client.call_at(operations::DELETE_SNAPSHOT, &id, &Default::default()).await?;
                }
            }
            Kind::Rule => {
                if let Some(found) = resources.rule(name) {
                    self.rule(&found.name, one.rule.as_ref()).await?;
                }
            }
        }
        Ok("deleted")
    }

    /// Removes the name of a restore or clone from the labels of its volumes, which stay: they may be in use.
    /// A restore that is applied again happens again. Its task sets the labels at its end.
    async fn forget(
        &self,
        volumes: impl Iterator<Item = &Volume>,
        without: impl Fn(Labels) -> Result<Labels, PairsError>,
    ) -> Result<&'static str, Failure> {
        let mut result = "kept on this host";
        for volume in volumes {
            result = "deleted, volumes kept";
            if !self.dry_run {
                let (client, id) = (&self.context.client, VolumeRef::Id(volume.volume_id));
                // They may have changed since the resources were loaded.
                let labels = client.call_at(operations::GET_VOLUME, &id, &()).await?.labels;
                let labels = Some(without(labels).map_err(ApiError::from)?);
                let request = UpdateVolume { labels, ..UpdateVolume::default() };
                client.call_at(operations::UPDATE_VOLUME, &id, &request).await?;
            }
        }
        Ok(result)
    }

    /// Deletes a schedule, perhaps after its backups: a repeated command continues.
    async fn schedule(&self, one: &Deletion) -> Result<(), Failure> {
        let client = &self.context.client;
        let Some(schedule) = self.resources.schedule(&one.name) else { return Ok(()) };
        let backups = if one.reclaims { self.backups_of(schedule).await? } else { Vec::new() };
        if self.dry_run {
            return Ok(());
        }
        let pause = |paused| UpdateSchedule { paused: Some(paused), ..UpdateSchedule::default() };
        if one.reclaims {
            // No run starts meanwhile.
            client.call_at(operations::UPDATE_SCHEDULE, &schedule.schedule_id, &pause(true)).await?;
        }
        let ended = self.schedule_with(schedule, backups).await;
        if ended.is_err() && one.reclaims && !schedule.paused {
            // Its volumes would lose their protection.
            let resumed =
                client.call_at(operations::UPDATE_SCHEDULE, &schedule.schedule_id, &pause(false)).await;
            if let Err(error) = resumed {
                let name = &one.name;
                let warning = format!(
                    "warning: VolumeBackupSchedule/{name} is paused now ({error}): blockctl cloudsnap schedules resume {name}"
                );
                self.context.output.note(warning);
            }
        }
        ended
    }

    /// Deletes backups, and then their schedule.
    async fn schedule_with(
        &self,
        schedule: &Schedule,
        backups: Vec<(CloudSnapshotId, CredentialRef)>,
    ) -> Result<(), Failure> {
        for (snapshot, credential) in backups {
            delete_cloudsnap(self.context, snapshot, Some(credential)).await?;
        }
        self.context.client.call_at(operations::DELETE_SCHEDULE, &schedule.schedule_id, &()).await?;
        Ok(())
    }

    /// Returns the backups of a schedule and their locations.
    ///
    /// # Errors
    /// A backup is running, pinned or in use: nothing is deleted if one of several cannot be.
    async fn backups_of(
        &self,
        schedule: &Schedule,
    ) -> Result<Vec<(CloudSnapshotId, CredentialRef)>, Failure> {
        let schedule_id = schedule.schedule_id;
        let plan = self.context.client.call_at(operations::PLAN_RETENTION, &schedule_id, &()).await?;
        let tasks = self.resources.tasks.iter();
        let tasks = tasks.filter(|task| task.owner == TaskOwner::Schedule { schedule_id });
        let object = format!("a backup of VolumeBackupSchedule/{}", schedule_name(schedule));
        let backups = || {
            let of = |one: &JudgedSnapshot| {
                Some((one.cloud_snapshot_id?, one.credential_id?, one.verdict.clone()))
            };
            plan.items.iter().filter_map(of)
        };
        let is_pinned = |verdict: Verdict| verdict.is_kept_as(KeepReason::Pinned);
        let found: Vec<_> = backups().map(|(id, _, verdict)| (id, is_pinned(verdict))).collect();
        refuse_kept(&object, &self.resources, tasks, &found)?;
        if let Some((used, ..)) = backups().find(|(.., verdict)| verdict.is_kept_as(KeepReason::InUse)) {
            let message = format!("{object} is used by a task: wait for the end of those of {used}");
            return Err(ApiError::new(ErrorCode::CloudsnapInUse, message).into());
        }
        Ok(backups().map(|(id, credential, _)| (id, CredentialRef::Id(credential))).collect())
    }

    /// Deletes a rule. If its object has all current targets, they are unassigned first.
    async fn rule(&self, name: &RuleName, hook: Option<&Hook>) -> Result<(), Failure> {
        let client = &self.context.client;
        // Targets may have been deleted since the resources were loaded.
        let current = client.call_at(operations::GET_RULE, name, &()).await?;
        let targets: Vec<_> = Hook::of(&current).targets().into_iter().flatten().flatten().collect();
        let given: Vec<_> = hook.map(Hook::targets).into_iter().flatten().flatten().flatten().collect();
        if current.schedule_ids.is_empty() && targets.iter().all(|target| given.contains(target)) {
            for target in &targets {
                client.call_at(operations::UNASSIGN_RULE, name, target).await?;
            }
        }
        client.call_at(operations::DELETE_RULE, name, &()).await?;
        Ok(())
    }
}
