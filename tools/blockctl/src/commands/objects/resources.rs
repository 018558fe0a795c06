//! Resources of the daemon.

use crate::{
    commands::cloudsnap::list::given_name,
    failure::Failure,
    objects::{
        Body, Kind, Object, ReclaimPolicy,
        backup::Backup,
        drill::DrillSpec,
        hook::Hook,
        resolve,
        schedule::{ScheduleSpec, stored_reclaim_policies},
    },
    output::Context,
};
use blockd_api::{
    ApiError, ClientError, CredentialName, CredentialRef, ErrorCode, ObjectName, VolumeName,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, ListCloudsnaps},
    credentials::Credential,
    operations,
    rules::HookRule,
    schedules::{Policy, Schedule},
    snapshots::{ListSnapshots, Snapshot},
    tasks::{ListTasks, Task},
    volumes::{ListVolumes, Volume},
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Resources of the daemon.
#[derive(Debug, Default)]
pub struct ResourceSet {
    pub credentials: Vec<Credential>,
    pub policies: Vec<Policy>,
    pub rules: Vec<HookRule>,
    /// Error if rules are hidden: they are for admins only.
    pub rules_hidden: Option<ApiError>,
    pub schedules: Vec<Schedule>,
    /// Schedules of drills, if they are needed.
    pub drills: Vec<Schedule>,
    pub volumes: Vec<Volume>,
    pub tasks: Vec<Task>,
    /// Backups of all hosts, once for each location.
    pub cloudsnaps: Option<Vec<Cloudsnap>>,
    /// Cluster of this daemon, once cloud snapshots are loaded.
    pub own: Option<Uuid>,
    /// Local snapshots, if they are needed.
    pub snapshots: Vec<Snapshot>,
    /// Rules of the files of this command.
    pub file_rules: Vec<(ObjectName, Hook)>,
    /// Backups of the files of this command.
    pub file_backups: Vec<(ObjectName, Backup)>,
    /// Local snapshots of the files of this command.
    pub file_snapshots: Vec<(ObjectName, Backup)>,
    /// Volumes that restores and clones of the files of this command make; `None` for several.
    pub file_volumes: Vec<Option<VolumeName>>,
    /// Kinds and names of the objects of the files of this command.
    pub file_objects: BTreeSet<(Kind, String)>,
    /// A location of the files of this command is to be the default.
    pub files_set_default: bool,
    /// Locations that cannot be listed, and the errors.
    pub unlisted: BTreeMap<String, ApiError>,
}

/// Scope of a listing.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Only these locations; all of them otherwise.
    pub locations: Option<Vec<CredentialName>>,
    /// Only this cloud snapshot.
    pub id: Option<CloudSnapshotId>,
}

impl ResourceSet {
    /// Loads the resources that objects need, and completes the objects.
    pub async fn load_for(context: &Context<'_>, objects: &mut [Object]) -> Result<Self, Failure> {
        let mut resources = Self::load(context, objects.iter().any(is_drill)).await?;
        if objects.iter().any(is_open) {
            // An existing backup may be in any location, also if a new one becomes the default.
            resources.load_stores(context, &Scope::default()).await?;
        }
        let existing = |kind, name: &str| resources.locations_of(kind, name);
        resolve(objects, &resources.volumes, &resources.credentials, &resources.policies, existing)?;
        resources.load_needed(context, objects).await?;
        Ok(resources)
    }

    /// Loads the resources that objects need again. Cloud snapshots that are loaded are not listed again, and
    /// neither are tasks: with newer tasks, a backup that ended in between would have neither a running task
    /// nor a cloud snapshot.
    pub async fn reload(
        context: &Context<'_>,
        objects: &[Object],
        loaded: Option<Self>,
    ) -> Result<Self, Failure> {
        let mut resources = Self::load(context, objects.iter().any(is_drill)).await?;
        if let Some(Self { own, cloudsnaps, unlisted, tasks, .. }) = loaded {
            resources = Self { own, cloudsnaps, unlisted, tasks, ..resources };
        }
        resources.load_needed(context, objects).await?;
        Ok(resources)
    }

    async fn load_needed(&mut self, context: &Context<'_>, objects: &[Object]) -> Result<(), Failure> {
        let (mut locations, mut needs_stores, mut needs_snapshots) = (Some(Vec::new()), false, false);
        for object in objects {
            self.file_objects.insert((object.kind, object.name.to_string()));
            match &object.body {
                Body::Location(location) => self.files_set_default |= location.is_default(),
                Body::Rule(hook) => self.file_rules.push((object.name.clone(), hook.clone())),
                Body::Backup(backup) => {
                    locations.iter_mut().for_each(|all| all.extend(backup.location().cloned()));
                    self.file_backups.push((object.name.clone(), backup.as_ref().clone()));
                    needs_stores = true;
                }
                Body::Restore(restore) => {
                    // Its volumes may be of another location, which the file does not name any more.
                    let is_new = self.restored_by(object).next().is_none();
                    match (&mut locations, &restore.location) {
                        (Some(all), Some(location)) if is_new => all.push(location.clone()),
                        _ => locations = None,
                    }
                    self.file_volumes.push(restore.destination_volume.clone());
                    needs_stores = true;
                }
                Body::Clone(clone) => {
                    self.file_volumes.push(clone.destination_volume.clone());
                    needs_snapshots = true;
                }
                Body::Snapshot(backup) => {
                    self.file_snapshots.push((object.name.clone(), backup.as_ref().clone()));
                    needs_snapshots = true;
                }
                _ => {}
            }
        }
        if needs_stores {
            self.load_stores(context, &Scope { locations, id: None }).await?;
        }
        if needs_snapshots {
            self.load_snapshots(context).await?;
        }
        self.choose_backups(objects);
        Ok(())
    }

    /// Loads the resources of kinds.
    pub async fn load_kinds(context: &Context<'_>, kinds: &[Kind], scope: &Scope) -> Result<Self, Failure> {
        let mut resources = Self::load(context, kinds.contains(&Kind::RestoreDrill)).await?;
        if kinds.contains(&Kind::VolumeBackup) {
            resources.load_stores(context, scope).await?;
        }
        if kinds.contains(&Kind::VolumeSnapshot) {
            resources.load_snapshots(context).await?;
        }
        kinds.iter().try_for_each(|kind| resources.refuse_hidden(*kind))?;
        Ok(resources)
    }

    /// Loads all resources without the content of stores.
    async fn load(context: &Context<'_>, with_drills: bool) -> Result<Self, Failure> {
        let client = &context.client;
        let drills = match with_drills {
            true => client.call(operations::LIST_DRILL_SCHEDULES, &()).await?.list.items,
            false => Vec::new(),
        };
        let (rules, rules_hidden) = match client.call(operations::LIST_RULES, &()).await {
            Ok(list) => (list.items, None),
            Err(ClientError::Api(error)) if error.code == ErrorCode::Forbidden => (Vec::new(), Some(error)),
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            rules,
            rules_hidden,
            credentials: client.call(operations::LIST_CREDENTIALS, &()).await?.items,
            policies: client.call(operations::LIST_POLICIES, &()).await?.items,
            schedules: client.call(operations::LIST_SCHEDULES, &()).await?.list.items,
            drills,
            volumes: client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await?.items,
            tasks: client.call(operations::LIST_TASKS, &ListTasks::default()).await?.items,
            ..Self::default()
        })
    }

    async fn load_snapshots(&mut self, context: &Context<'_>) -> Result<(), Failure> {
        let query = ListSnapshots::default();
        self.snapshots = context.client.call(operations::LIST_SNAPSHOTS, &query).await?.items;
        Ok(())
    }

    /// Loads the content of stores once; unreachable ones are reported.
    async fn load_stores(&mut self, context: &Context<'_>, scope: &Scope) -> Result<(), Failure> {
        if self.cloudsnaps.is_some() || self.credentials.is_empty() {
            return Ok(());
        }
        self.own = Some(context.client.call(operations::GET_STATUS, &()).await?.cluster_id);
        let mut found = Vec::new();
        for one in &self.credentials {
            if scope.locations.as_ref().is_some_and(|wanted| !wanted.contains(&one.name)) {
                continue;
            }
            // Separate requests for each credential: a listing of all shows a cloud snapshot of a location
            // once, even if two credentials have it.
            let query = ListCloudsnaps {
                credential: Some(CredentialRef::Id(one.credential_id)),
                cloud_snapshot_id: scope.id,
                ..ListCloudsnaps::default()
            };
            match context.client.call(operations::LIST_CLOUDSNAPS, &query).await {
                Ok(list) => found.extend(list.list.items),
                Err(ClientError::Api(error)) => {
                    context.output.note(format!("warning: BackupLocation/{}: {}", one.name, error.message));
                    self.unlisted.insert(one.name.to_string(), error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.cloudsnaps = Some(found);
        Ok(())
    }

    /// Refuses a hidden kind.
    pub fn refuse_hidden(&self, kind: Kind) -> Result<(), Failure> {
        match &self.rules_hidden {
            Some(error) if kind == Kind::Rule => Err(error.clone().into()),
            _ => Ok(()),
        }
    }

    /// Returns the rule of a name.
    pub fn rule(&self, name: &str) -> Option<&HookRule> {
        self.rules.iter().find(|rule| rule.name.as_str() == name)
    }

    /// Returns the volume of a name.
    pub fn volume(&self, name: &VolumeName) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.name == *name)
    }

    /// Returns the credential of a location.
    pub fn credential(&self, name: &str) -> Option<&Credential> {
        self.credentials.iter().find(|one| one.name.as_str() == name)
    }

    /// Returns the schedule of a name.
    pub fn schedule(&self, name: &str) -> Option<&Schedule> {
        self.schedules.iter().find(|one| schedule_name(one) == name)
    }

    /// Returns the schedule of drills of a name.
    pub fn drill(&self, name: &str) -> Option<&Schedule> {
        self.drills.iter().find(|one| schedule_name(one) == name)
    }

    /// Returns the locations of an existing backup or schedule, those of a schedule in its order. A backup
    /// that no location lists may be in one that cannot be listed: its plan reports that.
    fn locations_of(&self, kind: Kind, name: &str) -> Vec<CredentialName> {
        if kind != Kind::VolumeBackup {
            let schedule = if kind == Kind::RestoreDrill { self.drill(name) } else { self.schedule(name) };
            let ids = schedule.into_iter().flat_map(|schedule| &schedule.credential_ids);
            return ids.filter_map(|id| self.location_name(id)).collect();
        }
        let named = |is_it: &dyn Fn(&Credential) -> bool| -> Vec<CredentialName> {
            self.credentials.iter().filter(|one| is_it(one)).map(|one| one.name.clone()).collect()
        };
        let found = named(&|one| self.backed_up_at(name, Some(&one.name)).is_some());
        if found.is_empty() { named(&|one| self.unlisted.contains_key(one.name.as_str())) } else { found }
    }

    fn location_name(&self, wanted: &Uuid) -> Option<CredentialName> {
        self.credentials.iter().find(|one| one.credential_id == *wanted).map(|one| one.name.clone())
    }

    /// Returns true if the backups of a schedule are deleted with it. Given policies of the schedule and of
    /// its backups win over the stored ones.
    pub fn reclaims(&self, name: &str, given: [Option<ReclaimPolicy>; 2]) -> bool {
        let stored = || self.schedule(name).map(|one| stored_reclaim_policies(&one.labels));
        let is_given = given.iter().any(Option::is_some);
        let policies = if is_given { given } else { stored().unwrap_or_default() };
        policies.contains(&Some(ReclaimPolicy::Delete)) && !policies.contains(&Some(ReclaimPolicy::Retain))
    }

    /// Converts a schedule; `None` if it refers to a missing volume or location.
    pub fn schedule_spec(&self, one: &Schedule) -> Option<ScheduleSpec> {
        ScheduleSpec::of(one, |wanted| self.location_name(wanted))
    }

    /// Converts a schedule of drills; `None` if it refers to a missing volume or location.
    pub fn drill_spec(&self, one: &Schedule) -> Option<DrillSpec> {
        DrillSpec::of(one, |wanted| self.location_name(wanted))
    }
}

/// Returns true for a backup whose document names no location.
pub fn is_open(object: &Object) -> bool {
    matches!(&object.body, Body::Backup(backup) if backup.location().is_none())
}

fn is_drill(object: &Object) -> bool {
    object.kind == Kind::RestoreDrill
}

/// Returns the name of a schedule, or its id.
pub fn schedule_name(one: &Schedule) -> String {
    one.name.as_ref().map_or_else(|| one.schedule_id.to_string(), ToString::to_string)
}

/// Returns the name of a backup, or its id if the daemon generated the name.
pub fn backup_name(one: &Cloudsnap) -> String {
    given_name(one).map_or_else(|| one.cloud_snapshot_id.to_string(), ToOwned::to_owned)
}
