//! New volumes, each created once: restores of backups, and clones. Labels of the volumes name the object
//! that made them, and their origin.

use super::{
    document::{FieldError, Spec},
    values::{NAMESPACE, selectors, text_or_number},
};
use crate::backup_names::MIN_HOST_DIGITS;
use blockd_api::{
    CLONED_FROM, CredentialName, LabelSelector, Labels, ObjectName, PairsError, SnapshotName, SnapshotRef,
    VolumeName, VolumeRef, cloudsnaps::CloudSnapshotId,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::OnceLock};
use uuid::Uuid;

/// Prefix of snapshots that are taken for a clone.
const SNAPSHOT_PREFIX: &str = "clone-";

/// Backup of a restore.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RestoreSource<'a> {
    /// Backup with a name that lists show, and of this volume if several volumes have one.
    Backup(&'a str, Option<&'a VolumeName>),
    /// Schedule without a chosen backup: it has none, or they are not listed yet.
    Schedule(&'a ObjectName),
    /// Cloud snapshot with this id.
    Cloudsnap(CloudSnapshotId),
}

/// Action on an existing volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplacePolicy {
    /// It stays.
    #[default]
    Retain,
    /// The backup is restored into it; a local snapshot keeps the previous content.
    Delete,
}

impl ReplacePolicy {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Restore.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restore {
    /// Backup location; all by default.
    #[serde(rename = "backupLocation")]
    pub location: Option<CredentialName>,
    /// Name of a backup as lists show it, or id of a cloud snapshot.
    #[serde(rename = "backupName", default, deserialize_with = "text_or_number")]
    given_name: Option<String>,
    /// Schedule whose newest backup is restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule_name: Option<ObjectName>,
    /// Name of the backup; of a schedule, it is chosen once the backups are listed.
    #[serde(skip)]
    backup_name: OnceLock<String>,
    #[serde(rename = "cloudSnapshotId")]
    cloudsnap_id: Option<CloudSnapshotId>,
    source_volume: Option<VolumeName>,
    /// New volume, which the checks name after the object.
    pub destination_volume: Option<VolumeName>,
    /// Namespaces of the new volumes by those of the original ones; given, the restore is of all volumes of
    /// the backup.
    namespace_mapping: Option<BTreeMap<String, String>>,
    /// Labels of the volumes to restore; those with any of them.
    #[serde(default, with = "selectors", skip_serializing_if = "Vec::is_empty")]
    selectors: Vec<LabelSelector>,
    /// Values of the label `namespace` of the volumes not to restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    excluded_namespaces: Vec<String>,
    /// Action on an existing volume.
    #[serde(default, skip_serializing_if = "ReplacePolicy::is_default")]
    pub replace_policy: ReplacePolicy,
    /// The volume is available at once and fetches blocks on first access.
    #[serde(default, skip_serializing)]
    pub lazy: bool,
    /// Continue past damaged extents.
    #[serde(default, skip_serializing)]
    pub skip_damaged: bool,
}

impl Restore {
    /// Returns the backup.
    pub fn source(&self) -> Option<RestoreSource<'_>> {
        let by_name =
            self.backup_name.get().map(|name| RestoreSource::Backup(name, self.source_volume.as_ref()));
        let by_schedule = || self.schedule_name.as_ref().map(RestoreSource::Schedule);
        by_name.or_else(by_schedule).or(self.cloudsnap_id.map(RestoreSource::Cloudsnap))
    }

    /// Returns the schedule whose newest backup is restored.
    pub fn schedule(&self) -> Option<&ObjectName> {
        self.schedule_name.as_ref()
    }

    /// Returns the path of the field with the source, for messages.
    pub fn source_field(&self) -> &'static str {
        if self.schedule_name.is_some() { "spec.scheduleName" } else { "spec.backupName" }
    }

    /// Chooses the backup of the schedule, once.
    pub fn choose_backup(&self, name: String) {
        self.backup_name.get_or_init(|| name);
    }

    /// Returns true if all volumes of the backup are restored.
    pub fn is_of_all(&self) -> bool {
        self.namespace_mapping.is_some() && self.cloudsnap_id.is_none()
    }

    /// Checks the source.
    fn check_source(&mut self) -> Result<(), String> {
        let given = [self.given_name.is_some(), self.schedule_name.is_some(), self.cloudsnap_id.is_some()];
        if given.into_iter().filter(|is_given| *is_given).count() != 1 {
            return Err("one of `backupName`, `scheduleName` and `cloudSnapshotId` is expected".to_owned());
        }
        let Some(given) = &self.given_name else { return Ok(()) };
        match given.parse() {
            Ok(id) if self.namespace_mapping.is_none() => {
                (self.cloudsnap_id, self.given_name) = (Some(id), None);
                return Ok(());
            }
            // With a mapping, the volume keeps its name.
            Ok(_) => {}
            Err(_) => check_listed_name(given)?,
        }
        self.backup_name = OnceLock::from(given.clone());
        Ok(())
    }

    /// Returns true if a volume with these labels is restored.
    pub fn selects(&self, labels: &Labels) -> bool {
        let namespace = labels.as_map().get(NAMESPACE);
        let is_selected = self.selectors.is_empty() || self.selectors.iter().any(|one| labels.matches(one));
        is_selected && !namespace.is_some_and(|namespace| self.excluded_namespaces.contains(namespace))
    }

    /// Returns the new volume of a volume with these labels, and its labels.
    ///
    /// # Errors
    /// The new namespace is no label.
    pub fn destination(&self, volume: &str, labels: &Labels) -> Result<(String, Labels), PairsError> {
        let namespace = labels.as_map().get(NAMESPACE);
        let mapping = self.namespace_mapping.as_ref();
        let mapped =
            namespace.and_then(|namespace| mapping?.get(namespace)).filter(|to| Some(*to) != namespace);
        let Some(to) = mapped else { return Ok((volume.to_owned(), labels.clone())) };
        Ok((format!("{volume}-{to}"), with_labels(labels, [(NAMESPACE, to.clone())])?))
    }
}

/// Checks the name of a backup as lists show it: a name or the digits of a short id, of another host after
/// the first digits of its id.
fn check_listed_name(text: &str) -> Result<(), String> {
    let name = match text.split_once('/') {
        Some((host, name))
            if host.len() >= MIN_HOST_DIGITS
                && host.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') =>
        {
            name
        }
        _ => text,
    };
    let is_short_id = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
    if is_short_id { Ok(()) } else { name.parse::<ObjectName>().map(drop).map_err(|error| error.to_string()) }
}

/// Returns labels with others.
///
/// # Errors
/// They are too many, or one is too long.
pub fn with_labels<'a>(
    labels: &Labels,
    more: impl IntoIterator<Item = (&'a str, String)>,
) -> Result<Labels, PairsError> {
    let mut map = labels.as_map().clone();
    map.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
    Labels::try_from(map)
}

impl Spec for Restore {
    fn check(&mut self, name: &str) -> Result<(), FieldError> {
        let refused = |path: &str, message: String| Err((path.to_owned(), message));
        self.check_source().map_err(|message| ("backupName".to_owned(), message))?;
        if self.lazy && self.skip_damaged {
            return refused("skipDamaged", "a lazy volume cannot skip damaged extents".to_owned());
        }
        if self.lazy && self.replace_policy == ReplacePolicy::Delete {
            return refused("replacePolicy", "a lazy volume cannot replace another one".to_owned());
        }
        if self.is_of_all() && self.destination_volume.is_some() {
            return refused(
                "destinationVolume",
                "with `namespaceMapping` volumes keep their names".to_owned(),
            );
        }
        let is_selective = !self.selectors.is_empty() || !self.excluded_namespaces.is_empty();
        if is_selective && !self.is_of_all() {
            return refused(
                "namespaceMapping",
                "`selectors` and `excludedNamespaces` need it, such as `{}`".to_owned(),
            );
        }
        if self.is_of_all() { Ok(()) } else { name_volume(&mut self.destination_volume, name) }
    }
}

/// Clone of a volume, or of the volumes of a namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VolumeClone {
    /// Volume to clone.
    #[serde(rename = "sourceVolume")]
    pub source: Option<VolumeName>,
    /// Snapshot to clone; a new one by default.
    pub snapshot: Option<SnapshotName>,
    /// New volume, which the checks name after the object.
    pub destination_volume: Option<VolumeName>,
    /// Value of the label `namespace` of the volumes to clone.
    pub source_namespace: Option<String>,
    /// Value of the label `namespace` of the new volumes, and the end of their names.
    pub destination_namespace: Option<String>,
}

impl VolumeClone {
    /// Returns the name of the snapshot; a unique one if it is to be taken.
    pub fn snapshot_name(&self) -> Option<SnapshotName> {
        self.snapshot.clone().or_else(|| format!("{SNAPSHOT_PREFIX}{}", Uuid::new_v4()).parse().ok())
    }

    /// Returns true if a volume with this origin is the described clone of a volume.
    pub fn is_of(&self, volume: &VolumeName, origin: &str) -> bool {
        origin.split_once('@').is_some_and(|(source, snapshot)| {
            source == volume.as_str()
                && match &self.snapshot {
                    Some(wanted) => snapshot == wanted.as_str(),
                    None => snapshot.starts_with(SNAPSHOT_PREFIX),
                }
        })
    }

    /// Returns the name of the clone of a volume.
    pub fn destination(&self, volume: &VolumeName) -> Option<VolumeName> {
        match &self.destination_namespace {
            Some(namespace) => format!("{volume}-{namespace}").parse().ok(),
            None => self.destination_volume.clone(),
        }
    }
}

/// Returns a snapshot of a volume.
pub fn snapshot_of(volume: &VolumeName, name: SnapshotName) -> SnapshotRef {
    SnapshotRef::Named { volume: VolumeRef::Name(volume.clone()), name }
}

impl Spec for VolumeClone {
    fn check(&mut self, name: &str) -> Result<(), FieldError> {
        let refused = |path: &str, message: &str| Err((path.to_owned(), message.to_owned()));
        match (&self.source, &self.source_namespace, &self.destination_namespace) {
            (Some(source), None, None) => {
                if let Some(snapshot) = &self.snapshot {
                    let origin = snapshot_of(source, snapshot.clone()).to_string();
                    let labels = with_labels(&Labels::default(), [(CLONED_FROM, origin)]);
                    labels.map_err(|error| ("snapshot".to_owned(), error.to_string()))?;
                }
                name_volume(&mut self.destination_volume, name)
            }
            (None, Some(_), Some(_)) if self.snapshot.is_some() || self.destination_volume.is_some() => {
                refused("sourceNamespace", "`snapshot` and `destinationVolume` belong to `sourceVolume`")
            }
            (None, Some(source), Some(destination)) if source == destination => {
                refused("destinationNamespace", "another one than `sourceNamespace` is expected")
            }
            (None, Some(_), Some(_)) => Ok(()),
            (None, Some(_), None) => refused("destinationNamespace", "missing"),
            _ => refused("sourceVolume", "one of `sourceVolume` and `sourceNamespace` is expected"),
        }
    }
}

/// Names the new volume of an object after the object, unless it has a name.
fn name_volume(volume: &mut Option<VolumeName>, object: &str) -> Result<(), FieldError> {
    if volume.is_none() {
        let name = object.parse().map_err(|error| ("destinationVolume".to_owned(), format!("{error}")))?;
        *volume = Some(name);
    }
    Ok(())
}
