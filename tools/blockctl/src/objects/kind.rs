//! Kinds of objects.

use blockd_api::{ApiError, ErrorCode};
use schemars::JsonSchema;
use serde::Serialize;
use std::{fmt, str::FromStr};

/// `apiVersion` of written objects.
pub const API_VERSION: &str = "blockd/v1";

/// Properties of a kind.
struct Properties {
    /// Field of the content.
    field: &'static str,
    /// Error of an object that does not exist.
    missing: ErrorCode,
    /// Names in other systems, in lower case.
    other_names: &'static str,
    /// Columns of `get` after the name, `+` before those of wide tables: titles and paths of the values.
    columns: [&'static str; 2],
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $field:literal, $missing:ident, $other_names:literal, $columns:expr;)+) => {
        /// Kind of an object; each depends at most on those before it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, JsonSchema)]
        pub enum Kind {
            $($(#[$doc])* $kind,)+
        }

        impl Kind {
            /// All kinds.
            pub const ALL: [Self; [$($field),+].len()] = [$(Self::$kind),+];

            /// Returns the kind as it is written.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($kind),)+
                }
            }

            const fn properties(self) -> Properties {
                let (field, missing, other_names, columns) = match self {
                    $(Self::$kind => ($field, ErrorCode::$missing, $other_names, $columns),)+
                };
                Properties { field, missing, other_names, columns }
            }
        }
    };
}

/// Columns of objects that tasks make.
const OF_TASKS: &str = "STAGE=status.stage STATUS=status.status VOLUMES=status.doneCount/status.volumeCount \
    RESOURCES=none CREATED=status.createdAt ELAPSED=status.elapsedSeconds +LOCATION=spec.backupLocation";

kinds! {
    /// Credential of a backup location.
    BackupLocation: "location", CredentialNotFound, "backupstoragelocation bsl",
        ["TYPE=location.type PATH=location.path/location.prefix ENCRYPTED=location.encrypted", "+UUID=status.credentialId"];
    /// Rules for several schedules.
    SchedulePolicy: "policy", PolicyNotFound, "", ["SCHEDULE=status.schedule", "+RETAIN=status.retain"];
    /// Hooks around snapshots.
    Rule: "spec", RuleNotFound, "",
        ["PRE-COMMAND=spec.preCommand POST-COMMAND=spec.postCommand OF=status.assignedTo",
        "+FREEZE-FS=spec.freezeFs +USER=spec.user +ON-FAILURE=spec.onFailure"];
    /// Local snapshot, made once.
    VolumeSnapshot: "spec", SnapshotNotFound, "groupvolumesnapshot gvs",
        ["VOLUMES=status.volumeCount CREATED=status.createdAt STATUS=status.volumes.state", "+OF=spec.volume"];
    /// Backup, made once.
    VolumeBackup: "spec", CloudsnapNotFound, "applicationbackup backup snapshot",
        [OF_TASKS, "+HOST=status.clusterId +OF=spec.volume +TYPE=status.volumes.backupType +SIZE=status.storedBytes \
        +CLOUD-SNAP-ID=status.volumes.cloudSnapshotId"];
    /// Schedule of backups.
    VolumeBackupSchedule: "spec", ScheduleNotFound, "applicationbackupschedule volumesnapshotschedule schedule",
        ["OF=status.selected LOCATION=status.credentialNames NEXT-RUN=status.nextRunAt STATUS=status.state",
        "+SCHEDULE=status.schedule +LAST-RUN=status.lastRunAt +KEPT=status.kept"];
    /// Schedule of restore drills.
    RestoreDrill: "spec", ScheduleNotFound, "",
        ["OF=status.selected LOCATION=status.credentialNames NEXT-RUN=status.nextRunAt STATUS=status.state",
        "+SCHEDULE=status.schedule +LAST-RUN=status.lastRunAt"];
    /// Volumes restored from a backup, made once.
    VolumeRestore: "spec", VolumeNotFound, "applicationrestore restore", [OF_TASKS, "+INTO=spec.destinationVolume +CLOUD-SNAP-ID=status.volumes.cloudSnapshotId"];
    /// Volumes cloned from snapshots, made once.
    VolumeClone: "spec", VolumeNotFound, "applicationclone",
        ["OF=status.volumes.origin CREATED=status.createdAt STATUS=status.volumes.state", "+INTO=spec.destinationVolume"];
}

impl Kind {
    /// Returns the field of the content.
    pub const fn field(self) -> &'static str {
        self.properties().field
    }

    /// Returns the names in other systems, in lower case.
    pub fn other_names(self) -> impl Iterator<Item = &'static str> {
        self.properties().other_names.split_whitespace()
    }

    /// Returns the columns of `get` after the name: titles and paths of the values.
    pub fn columns(self, is_wide: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
        let columns = self.properties().columns.into_iter().flat_map(str::split_whitespace);
        columns.filter_map(move |column| match column.strip_prefix('+') {
            Some(wide) => wide.split_once('=').filter(|_| is_wide),
            None => column.split_once('='),
        })
    }

    /// Returns true for objects whose labels, namespace and annotations are kept: not those that are local
    /// snapshots or volumes.
    pub const fn has_labels(self) -> bool {
        !matches!(self, Self::VolumeSnapshot | Self::VolumeRestore | Self::VolumeClone)
    }

    /// Returns the path of the fields that name volumes and locations.
    pub const fn spec(self) -> &'static str {
        if matches!(self, Self::VolumeBackupSchedule) { "spec.template.spec" } else { "spec" }
    }

    /// Returns the error of an object that does not exist.
    pub fn missing(self, name: &str) -> ApiError {
        let hint = format!("`blockctl get {self}` lists those that exist");
        ApiError::new(self.properties().missing, format!("there is no {self}/{name}")).with_hint(hint)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.text())
    }
}

impl FromStr for Kind {
    type Err = String;

    /// Parses a kind, case-insensitive, its plural, its initials, or its name in another system.
    fn from_str(text: &str) -> Result<Self, String> {
        // Of `applicationbackup.stork.libopenstorage.org`, the group is dropped.
        let word = text.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let singular = match word.strip_suffix("ies") {
            Some(stem) => format!("{stem}y"),
            None => word.strip_suffix('s').unwrap_or(&word).to_owned(),
        };
        let is_meant = |kind: &Self| {
            let name = kind.to_string();
            let initials: String = name.chars().filter(char::is_ascii_uppercase).collect();
            let (name, initials) = (name.to_ascii_lowercase(), initials.to_ascii_lowercase());
            let is_meant = |name: &str| name == word || name == singular;
            initials == word || is_meant(&name) || kind.other_names().any(is_meant)
        };
        Self::ALL.into_iter().find(is_meant).ok_or_else(|| {
            let kinds = Self::ALL.map(|kind| kind.to_string());
            let (others, last) = kinds.split_at(kinds.len() - 1);
            format!("unknown kind `{text}`: expected {} or {}", others.join(", "), last[0])
        })
    }
}
