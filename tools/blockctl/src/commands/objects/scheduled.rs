//! Backups of schedules, which restores name by their schedule.
//!
//! The daemon names the backups of a run `SCHEDULE-YYYYMMDDhhmmss` after its scheduled time, with
//! milliseconds for a manual run. The volumes of a schedule by label have one name, and a point in time each.

use super::{
    backups::is_in_location,
    resources::{ResourceSet, backup_name},
};
use crate::{
    commands::cloudsnap::list::SCHEDULED,
    objects::{
        Body, Object,
        volumes::{Restore, RestoreSource},
    },
    table::short_uuid,
};
use blockd_api::{
    ApiError, ErrorCode, ObjectName,
    cloudsnaps::Cloudsnap,
    first_names, format_duration,
    tasks::{Task, TaskStage},
};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Digits of the time in the name of a backup, without and with milliseconds.
const TIME_DIGITS: [usize; 2] = [14, 17];

/// Returns the name of the schedule that made a backup; `None` without a name.
fn schedule_of(one: &Cloudsnap) -> Option<&str> {
    let (schedule, time) = one.name.as_deref().filter(|_| one.trigger == SCHEDULED)?.rsplit_once('-')?;
    let is_time = TIME_DIGITS.contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
    is_time.then_some(schedule)
}

impl ResourceSet {
    /// Chooses the backups of restores that name a schedule, as far as they are listed.
    pub fn choose_backups(&self, objects: &[Object]) {
        for object in objects {
            let Body::Restore(restore) = &object.body else { continue };
            let Some(RestoreSource::Schedule(schedule)) = restore.source() else { continue };
            if let Some(name) = self.backup_of(object, restore, schedule.as_str()) {
                restore.choose_backup(name);
            }
        }
    }

    /// Returns the backups of a schedule in the location of a restore.
    fn scheduled<'a>(
        &'a self,
        restore: &'a Restore,
        schedule: &'a str,
    ) -> impl Iterator<Item = &'a Cloudsnap> {
        let is_in =
            |one: &&Cloudsnap| restore.location.as_ref().is_none_or(|location| is_in_location(one, location));
        let all = self.cloudsnaps.iter().flatten().filter(is_in);
        all.filter(move |one| schedule_of(one) == Some(schedule))
    }

    /// Returns the name of the backup of a schedule for a restore: that of the volumes that it has, or the
    /// newest finished one of this host, or without any that of the only other host.
    fn backup_of(&self, object: &Object, restore: &Restore, schedule: &str) -> Option<String> {
        let made: BTreeSet<_> =
            self.restored_by(object).filter_map(|volume| self.content_by(object, volume)).collect();
        let all = || self.scheduled(restore, schedule);
        let newest = |found: &mut dyn Iterator<Item = &Cloudsnap>| {
            let named = found.map(|one| (backup_name(one), one.cloud_snapshot_id.cluster));
            let (name, cluster) = named.max()?;
            Some(match self.own == Some(cluster) {
                true => name,
                false => format!("{}/{name}", short_uuid(cluster)),
            })
        };
        let of_made = newest(&mut all().filter(|one| made.contains(&one.cloud_snapshot_id)));
        of_made.or_else(|| {
            let hosts: BTreeSet<Uuid> = all().map(|one| one.cloud_snapshot_id.cluster).collect();
            let only = (hosts.len() == 1).then(|| hosts.first().copied()).flatten();
            let host = self.own.filter(|own| hosts.contains(own)).or(only)?;
            let of_host = |one: &&Cloudsnap| one.cloud_snapshot_id.cluster == host;
            newest(&mut all().filter(of_host).filter(|one| self.is_finished(one, restore)))
        })
    }

    /// Returns true if no task has failed to make a part of a backup, or is still making it.
    fn is_finished(&self, one: &Cloudsnap, restore: &Restore) -> bool {
        if self.own != Some(one.cloud_snapshot_id.cluster) {
            return true;
        }
        let (name, location) = (backup_name(one), restore.location.as_ref());
        let is_stored = |task: &Task| {
            self.backups_named(&name, location).any(|one| task.volume_id == Some(one.volume_id))
        };
        let mut tasks = self.tasks_named(&name, location);
        tasks.all(|task| task.state.stage == TaskStage::Done || is_stored(task))
    }

    /// Describes the volumes that a chosen backup lacks and another one of its schedule has.
    pub(super) fn lacking_of_schedule(&self, restore: &Restore, found: &[&Cloudsnap]) -> Vec<String> {
        let (Some(schedule), Some(first)) = (restore.schedule(), found.first()) else { return Vec::new() };
        let is_lacking = |one: &&Cloudsnap| {
            one.cloud_snapshot_id.cluster == first.cloud_snapshot_id.cluster
                && restore.selects(&one.labels)
                && found.iter().all(|has| has.volume_id != one.volume_id)
        };
        let mut newest: BTreeMap<_, (String, &str)> = BTreeMap::new();
        for one in self.scheduled(restore, schedule.as_str()).filter(is_lacking) {
            let entry = (backup_name(one), one.volume_name.as_str());
            let known = newest.entry(one.volume_id).or_insert_with(|| entry.clone());
            *known = known.clone().max(entry);
        }
        let chosen = backup_name(first);
        let text = |(name, volume): &(String, &str)| {
            format!("{chosen} lacks volume {volume}; the newest backup of the schedule with it is {name}")
        };
        newest.values().map(text).collect()
    }

    /// Returns the error of a schedule without a backup for a restore.
    pub(super) fn no_scheduled(&self, restore: &Restore, schedule: &ObjectName) -> ApiError {
        let location = restore.location.as_ref();
        if let Some(error) = self.unlisted(&format!("VolumeBackupSchedule/{schedule}"), location) {
            return error;
        }
        let all = self.scheduled(restore, schedule.as_str());
        let hosts: BTreeSet<String> = all.map(|one| short_uuid(one.cloud_snapshot_id.cluster)).collect();
        if hosts.len() > 1 && !self.own.is_some_and(|own| hosts.contains(&short_uuid(own))) {
            let hosts = hosts.into_iter().collect::<Vec<_>>().join(", ");
            let message = format!("several hosts have backups of a schedule {schedule}: {hosts}");
            let hint = "`blockctl get VolumeBackup` lists them; `backupName: HOST/NAME` selects one";
            return ApiError::new(ErrorCode::InvalidRequest, message).with_hint(hint);
        }
        let place = location.map(|location| format!(" in BackupLocation/{location}")).unwrap_or_default();
        let message = format!("there is no finished backup of a schedule {schedule}{place}");
        let hint = match self.schedule(schedule.as_str()) {
            Some(_) => format!("`blockctl cloudsnap schedules run-now {schedule} --wait` makes one"),
            None => "`blockctl get VolumeBackup` lists the backups: `backupName` is their NAME".to_owned(),
        };
        ApiError::new(ErrorCode::CloudsnapNotFound, message).with_hint(hint)
    }

    /// Returns the way to a backup whose name does not exist: it may be that of a schedule.
    pub(super) fn hint_about_missing(&self, name: &str) -> String {
        let all = self.cloudsnaps.iter().flatten();
        match all.filter(|one| schedule_of(one) == Some(name)).map(backup_name).max() {
            Some(newest) => format!(
                "the newest backup of the schedule {name} is {newest}; `scheduleName: {name}` of a VolumeRestore or Restore selects it"
            ),
            None => "`blockctl get VolumeBackup` lists the backups: `backupName` is their NAME".to_owned(),
        }
    }
}

/// Describes the points in time of cloud snapshots, if they are several.
pub(super) fn several_points(found: &[&Cloudsnap]) -> Option<String> {
    let times = || found.iter().map(|one| one.created_at);
    let apart = times().max()?.duration_since(times().min()?);
    (!apart.is_zero()).then(|| {
        let volumes: BTreeSet<&str> = found.iter().map(|one| one.volume_name.as_str()).collect();
        let (volumes, apart) = (first_names(volumes), format_duration(apart.as_secs_f64()));
        format!("the points in time of {volumes} are up to {apart} apart: a group of volumes has one")
    })
}
