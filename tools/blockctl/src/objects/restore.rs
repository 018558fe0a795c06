//! Restores, once each: the new volume is what tells that it was done.

use super::Fields;
use blockd_api::{CredentialName, ObjectName, VolumeName, cloudsnaps::CloudsnapId};
use serde_json::{Map, Value};

/// Which backup.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The one of this name, of this volume if there are several.
    Backup(ObjectName, Option<VolumeName>),
    /// This one.
    Cloudsnap(CloudsnapId),
}

/// A restore.
#[derive(Clone, Debug, PartialEq)]
pub struct Restore {
    /// What is restored.
    pub source: Source,
    /// Where it is.
    pub location: CredentialName,
    /// The new volume, if it is called otherwise than the object.
    pub volume: Option<VolumeName>,
    /// The volume is there at once, and fetches what is read.
    pub lazy: bool,
    /// Go on past what is damaged.
    pub skip_damaged: bool,
}

impl Restore {
    /// What the new volume is called.
    pub fn target<'a>(&'a self, name: &'a ObjectName) -> &'a str {
        self.volume.as_ref().map_or(name.as_str(), VolumeName::as_str)
    }

    /// As it is written.
    pub fn view(&self, name: &ObjectName) -> Value {
        let mut view = Map::new();
        view.insert("backupLocation".to_owned(), self.location.as_str().into());
        view.insert("destinationVolume".to_owned(), self.target(name).into());
        match &self.source {
            Source::Backup(backup, volume) => {
                view.insert("backupName".to_owned(), backup.as_str().into());
                if let Some(volume) = volume {
                    view.insert("sourceVolume".to_owned(), volume.as_str().into());
                }
            }
            Source::Cloudsnap(id) => drop(view.insert("cloudSnapID".to_owned(), id.to_string().into())),
        }
        view.into()
    }
}

/// Reads what is below `spec`.
pub fn read(fields: &mut Fields<'_>) -> Option<Restore> {
    if !fields.has("spec") {
        fields.missing("spec");
    }
    let mut spec = fields.fields("spec")?;
    let line = spec.line;
    let (has_name, has_id) = (spec.has("backupName"), spec.has("cloudSnapID"));
    let (backup, id) = (spec.parsed("backupName"), spec.parsed("cloudSnapID"));
    let source_volume = spec.parsed("sourceVolume");
    let source = match (has_name, has_id) {
        (true, false) => backup.map(|backup| Source::Backup(backup, source_volume)),
        (false, true) => id.map(Source::Cloudsnap),
        _ => {
            spec.wrong(line, "backupName", "one of backupName and cloudSnapID is expected");
            None
        }
    };
    let location = spec.required("backupLocation");
    let volume = spec.parsed("destinationVolume");
    match spec.text("replacePolicy").as_deref() {
        None | Some("Retain") => {}
        Some("Delete") => spec.wrong(
            line,
            "replacePolicy",
            "a volume that is there is not replaced by an object: see `blockctl cloudsnap restore --in-place`",
        ),
        Some(other) => spec.wrong(line, "replacePolicy", format!("{other:?} is not Retain")),
    }
    let lazy = spec.flag("lazy").unwrap_or(false);
    let skip_damaged = spec.flag("skipDamaged").unwrap_or(false);
    if lazy && skip_damaged {
        spec.wrong(line, "skipDamaged", "a lazy volume cannot go on past what is damaged");
    }
    spec.finish();
    Some(Restore { source: source?, location: location?, volume, lazy, skip_damaged })
}
