//! Backups, once each.

use super::{Fields, exec_rule, reclaim_policy, selectors};
use blockd_api::{
    CredentialName, GroupName, LabelSelector, ObjectName, RuleName, VolumeName, cloudsnaps::StartGroupBackup,
};
use serde_json::{Map, Value, json};

/// Which volumes.
#[derive(Clone, Debug, PartialEq)]
pub enum Volumes {
    /// One.
    One(VolumeName),
    /// All of a group.
    Group(GroupName),
    /// All that have these labels.
    Label(LabelSelector),
}

impl Volumes {
    /// Takes one of `volume`, `group` and `selectors`.
    pub fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let given = ["volume", "group", "selectors"].iter().filter(|name| fields.has(name)).count();
        if given != 1 {
            let line = fields.line;
            fields.wrong(line, "volume", "one of volume, group and selectors is expected");
        }
        if let Some(line) = fields.peek("namespaces").map(|node| node.line) {
            let _ = fields.node("namespaces");
            fields.wrong(
                line,
                "namespaces",
                "there are none here: name a volume, a group, or labels of volumes in selectors",
            );
        }
        let volume = fields.parsed("volume").map(Self::One);
        let group = fields.parsed("group").map(Self::Group);
        let label = selectors(fields).map(Self::Label);
        volume.or(group).or(label).filter(|_| given == 1)
    }

    /// Adds it to what is shown.
    pub fn show(&self, view: &mut Map<String, Value>) {
        match self {
            Self::One(volume) => view.insert("volume".to_owned(), volume.as_str().into()),
            Self::Group(group) => view.insert("group".to_owned(), group.as_str().into()),
            Self::Label(label) => view.insert("selectors".to_owned(), json!(label.labels())),
        };
    }
}

/// A backup.
#[derive(Clone, Debug, PartialEq)]
pub struct Backup {
    /// Of what.
    pub volumes: Volumes,
    /// Where to.
    pub location: CredentialName,
    /// Make it a full one.
    pub full: bool,
    /// What it made goes with it.
    pub reclaim: bool,
    /// A rule that is followed around the freeze.
    pub rule: Option<RuleName>,
}

impl Backup {
    /// As it is written.
    pub fn view(&self) -> Value {
        let mut view = Map::new();
        view.insert("backupLocation".to_owned(), self.location.as_str().into());
        self.volumes.show(&mut view);
        view.into()
    }

    /// What starts it.
    pub fn request(&self, name: &ObjectName) -> StartGroupBackup {
        let mut request = StartGroupBackup {
            full: self.full,
            cred_id: Some(blockd_api::CredentialRef::Name(self.location.clone())),
            name: Some(name.clone()),
            rule: self.rule.clone(),
            ..StartGroupBackup::default()
        };
        match &self.volumes {
            Volumes::One(volume) => request.volumes.push(blockd_api::VolumeRef::Name(volume.clone())),
            Volumes::Group(group) => request.group = Some(group.clone()),
            Volumes::Label(label) => request.label = Some(label.clone()),
        }
        request
    }
}

/// Reads what is below `spec`.
pub fn read(fields: &mut Fields<'_>) -> Option<Backup> {
    if !fields.has("spec") {
        fields.missing("spec");
    }
    let mut spec = fields.fields("spec")?;
    let volumes = Volumes::read(&mut spec);
    let location = spec.required("backupLocation");
    let full = spec.flag("full").unwrap_or(false);
    let rule = exec_rule(&mut spec);
    let reclaim = reclaim_policy(&mut spec, true);
    spec.finish();
    Some(Backup { volumes: volumes?, location: location?, full, reclaim, rule })
}
