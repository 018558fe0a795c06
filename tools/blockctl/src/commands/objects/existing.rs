//! Resources of the daemon in the form of objects.

use super::{
    backup_groups::BackupGroup,
    found::{Found, one_or_all},
    resources::{ResourceSet, schedule_name},
    status::{
        Condition, LocationStatus, PolicyStatus, RuleStatus, ScheduleStatus, SnapshotMember, SnapshotSpec,
        SnapshotStatus,
    },
};
use crate::{
    commands::schedules::{called, kept, selected},
    objects::{
        Kind, NAMESPACE, backup::Backup, hook::Hook, location::view_of, policy::Rules,
        schedule::ScheduleSpec, view,
    },
};
use blockd_api::{
    credentials::Credential,
    rules::HookRule,
    schedules::{Policy, Schedule, SelectedVolumes},
    snapshots::Snapshot,
    volumes::Volume,
};
use blockd_schedule::Retention;
use serde_json::{Value, json};
use std::{collections::BTreeSet, iter};

impl ResourceSet {
    /// Returns the objects of a kind.
    pub fn of(&self, kind: Kind) -> Vec<Found> {
        let mut all: Vec<Found> = match kind {
            Kind::BackupLocation => self.credentials.iter().map(|one| self.location(one)).collect(),
            Kind::SchedulePolicy => self.policies.iter().map(|one| self.policy(one)).collect(),
            Kind::Rule => self.rules.iter().map(|one| self.found_rule(one)).collect(),
            Kind::VolumeSnapshot => self.snapshot_objects(),
            Kind::VolumeBackup => BackupGroup::all(self).iter().map(|group| group.found(self)).collect(),
            Kind::VolumeBackupSchedule => self.schedules.iter().map(|one| self.found_schedule(one)).collect(),
            Kind::RestoreDrill => self.drills.iter().map(|one| self.found_drill(one)).collect(),
            Kind::VolumeRestore => self.restores(),
            Kind::VolumeClone => self.clones(),
        };
        for one in all.iter_mut().filter(|one| !one.is_of_other_host) {
            let volumes = self.volumes.iter().filter(|volume| one.volumes.contains(volume.name.as_str()));
            let labels = volumes.map(|volume| &volume.labels).chain(iter::once(&one.labels));
            let namespaces: Vec<_> = labels.filter_map(|labels| labels.as_map().get(NAMESPACE)).collect();
            one.namespaces.extend(namespaces.into_iter().cloned());
        }
        all
    }

    /// Returns the object of a kind and name.
    pub fn find(&self, kind: Kind, name: &str) -> Option<Found> {
        self.of(kind).into_iter().find(|found| found.name == name)
    }

    /// Returns the names of volumes with a property, and of the volumes of schedules with one.
    fn users(
        &self,
        is_user: impl Fn(&Volume) -> bool,
        is_used_by: impl Fn(&Schedule) -> bool,
    ) -> BTreeSet<String> {
        let schedules = self.schedules.iter().filter(|one| is_used_by(one));
        let specs: Vec<_> = schedules.filter_map(|one| self.schedule_spec(one)).collect();
        let scheduled = specs.iter().flat_map(|spec| self.members(spec.backup()));
        let volumes = self.volumes.iter().filter(|volume| is_user(volume));
        volumes.chain(scheduled).map(|volume| volume.name.to_string()).collect()
    }

    fn location(&self, one: &Credential) -> Found {
        let status = json!(LocationStatus {
            credential_id: one.credential_id,
            created_at: one.created_at,
            authentication: one.store.auth.clone(),
            conditional_put: one.conditional_put,
            write_bytes_per_second: one.write_bytes_per_second,
        });
        let has_backup =
            |volume: &Volume| volume.last_backups.iter().any(|last| last.credential_id == one.credential_id);
        let volumes = self.users(has_backup, |schedule| schedule.credential_ids.contains(&one.credential_id));
        let found = Found::new(Kind::BackupLocation, one.name.to_string(), view_of(one), status);
        Found { volumes, labels: one.labels.clone(), ..found }
    }

    fn policy(&self, one: &Policy) -> Found {
        let whens: Vec<String> = one.rules.iter().map(|rule| rule.when.to_string()).collect();
        let retains = one.rules.iter().filter_map(|rule| rule.retain.as_ref());
        let retains: Vec<String> = retains.map(ToString::to_string).collect();
        let retain = (!retains.is_empty()).then(|| retains.join(", "));
        let status = json!(PolicyStatus { schedule: whens.join(", "), retain });
        let volumes = self.users(|_| false, |schedule| schedule.policy_name.as_ref() == Some(&one.name));
        let body = view(&Rules::of(&one.rules));
        let found = Found::new(Kind::SchedulePolicy, one.name.to_string(), body, status);
        Found { volumes, labels: one.labels.clone(), ..found }
    }

    fn found_rule(&self, one: &HookRule) -> Found {
        let groups = one.groups.iter().map(|group| format!("group {group}"));
        let targets: Vec<String> = one.volume_names.iter().map(ToString::to_string).chain(groups).collect();
        let (schedule_ids, problem) = (one.schedule_ids.clone(), one.problem.clone());
        let status = json!(RuleStatus { schedule_ids, problem, assigned_to: targets });
        let is_target = |volume: &Volume| {
            one.volume_names.contains(&volume.name)
                || volume.group.as_ref().is_some_and(|group| one.groups.contains(group))
        };
        let volumes = self.users(is_target, |schedule| one.schedule_ids.contains(&schedule.schedule_id));
        let found = Found::new(Kind::Rule, one.name.to_string(), view(&Hook::of(one)), status);
        Found { volumes, labels: one.labels.clone(), ..found }
    }

    fn found_schedule(&self, one: &Schedule) -> Found {
        // The schedule of a deleted volume has no content that could be applied.
        let spec = self.schedule_spec(one);
        let kept = Some(kept(one, &self.policies, Retention::to_string));
        let body = spec.as_ref().map(view);
        self.found_of(Kind::VolumeBackupSchedule, one, spec.as_ref().map(ScheduleSpec::backup), body, kept)
    }

    fn found_drill(&self, one: &Schedule) -> Found {
        let spec = self.drill_spec(one);
        let body = spec.as_ref().map(view);
        let selection = spec.map(|spec| spec.selection());
        self.found_of(Kind::RestoreDrill, one, selection.as_ref(), body, None)
    }

    fn found_of(
        &self,
        kind: Kind,
        one: &Schedule,
        selection: Option<&Backup>,
        body: Option<Value>,
        kept: Option<String>,
    ) -> Found {
        let members = selection.into_iter().flat_map(|selection| self.members(selection));
        let volumes = members.map(|volume| volume.name.to_string()).collect();
        let condition =
            |kind: &str, status| Condition { kind: kind.to_owned(), status, ..Condition::default() };
        let status = ScheduleStatus {
            schedule_id: one.schedule_id,
            created_at: one.created_at,
            next_run_at: one.next_run_at,
            last_run_at: one.last_run_at,
            state: if one.paused { "paused" } else { "active" }.to_owned(),
            selected: match &one.selector {
                SelectedVolumes { volume_name: None, volume_id: Some(id), .. } => format!("volume {id}"),
                selector => selected(selector),
            },
            credential_names: one.credential_names.clone(),
            schedule: one.schedule.clone(),
            kept,
            conditions: vec![condition("Active", !one.paused), condition("Covering", !one.without_volume)],
        };
        let gone = "is of a volume or location that is gone: it cannot be applied";
        let obstacle = body.is_none().then_some(gone);
        let found = Found::new(kind, schedule_name(one), body.unwrap_or(Value::Null), json!(status));
        Found { volumes, obstacle, shown: called(one), labels: one.labels.clone(), ..found }
    }

    /// Returns the local snapshots, those of one name together.
    fn snapshot_objects(&self) -> Vec<Found> {
        let mut groups: Vec<(&str, Vec<&Snapshot>)> = Vec::new();
        for one in &self.snapshots {
            match groups.iter_mut().find(|(name, _)| *name == one.name.as_str()) {
                Some((_, group)) => group.push(one),
                None => groups.push((one.name.as_str(), vec![one])),
            }
        }
        let member = |one: &&Snapshot| SnapshotMember {
            volume_name: one.volume_name.clone(),
            snapshot_id: one.snapshot_id,
            state: one.state,
        };
        let object = |(name, group): (&str, Vec<&Snapshot>)| {
            let volumes: BTreeSet<String> = group.iter().map(|one| one.volume_name.to_string()).collect();
            let status = json!(SnapshotStatus {
                created_at: group.iter().map(|one| one.created_at).min(),
                volume_count: volumes.len(),
                volumes: group.iter().map(member).collect(),
            });
            let body = json!(SnapshotSpec { volume: one_or_all(&volumes) });
            Found { volumes, ..Found::new(Kind::VolumeSnapshot, name.to_owned(), body, status) }
        };
        groups.into_iter().map(object).collect()
    }
}
