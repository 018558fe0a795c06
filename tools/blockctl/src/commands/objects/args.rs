//! `blockctl apply`, `get`, `describe`, `diff` and `delete`

use crate::objects::Kind;
use blockd_api::{CredentialName, VolumeName};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

pub const APPLY_HELP: &str = "\
A file holds objects as YAML documents or JSON: BackupLocation, SchedulePolicy, Rule, \
VolumeBackup, VolumeBackupSchedule, VolumeRestore and VolumeClone. Objects that exist as described \
stay as they are, so a file can be applied repeatedly. Backups, restores and clones are made once \
for each name: that of a backup is stored with it, that of a restore or clone is the new volume. A \
name does not select backups that other hosts made in the same location: a restore selects them by \
`cloudSnapshotId`. Give secrets as `file: PATH` (relative to the file) or `env: NAME`; they are not \
compared: a location whose secrets alone changed is `unchanged` and keeps the old ones. Objects \
that tasks are creating are `under way`, a stopped or failed restore is `resumed`, and one whose \
backup is still running is `waiting`: everything else is applied, and the exit status is 6; --wait \
waits. Fields without a meaning outside of a cluster are ignored with a warning.

Examples:
  blockctl apply -f backups.yaml
  blockctl apply -f backups.yaml --dry-run
  kubectl get backuplocation mysql -o yaml | blockctl apply -f -";

pub const GET_HELP: &str = "\
Resources made by other commands are shown too, schedules without a name by their UUID, and \
backups of this host (`blockctl cloudsnap list` shows all). The YAML output can be applied again.

Examples:
  blockctl get backuplocations
  blockctl get VolumeBackupSchedule nightly -o yaml
  blockctl -j get vb";

pub const DESCRIBE_HELP: &str = "\
Examples:
  blockctl describe VolumeBackupSchedule nightly";

pub const DIFF_HELP: &str = "\
The exit status is 0 without changes, 1 with changes. Secrets are not compared.

Examples:
  blockctl diff -f backups.yaml";

pub const DELETE_HELP: &str = "\
Backups stay in the store unless the object has `reclaimPolicy: Delete`; a backup that is named \
here is deleted. If several have the name, `--location` and `--volume` or an id select one; an id \
also selects those of other hosts. Volumes made by restores and clones stay: see `blockctl volume \
delete`. An assigned rule is deleted only by an object that names all its volumes and groups.

Examples:
  blockctl delete -f backups.yaml
  blockctl delete VolumeBackupSchedule nightly
  blockctl delete VolumeBackup before-upgrade --location offsite --volume pgdata";

/// File option.
#[derive(Debug, Args)]
pub struct FileArg {
    /// File with objects, YAML or JSON; - for stdin
    #[arg(short, long = "filename", visible_alias = "file", value_name = "FILE", required = true)]
    pub file: Vec<PathBuf>,
}

/// `apply`
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// File option.
    #[command(flatten)]
    pub from: FileArg,
    /// Print the actions without carrying them out
    #[arg(long)]
    pub dry_run: bool,
    /// Wait for started tasks
    #[arg(long)]
    pub wait: bool,
}

/// `diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// File option.
    #[command(flatten)]
    pub from: FileArg,
}

/// Output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Yaml,
    Json,
}

/// `get`
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Kind, its plural or its initials
    pub kind: Kind,
    /// Name of an object
    pub name: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// `describe`
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// Kind of the object
    pub kind: Kind,
    /// Name of the object
    pub name: String,
}

/// `delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// File with objects, YAML or JSON; - for stdin
    #[arg(short, long = "filename", visible_alias = "file", value_name = "FILE", conflicts_with_all = ["kind", "name"])]
    pub file: Vec<PathBuf>,
    /// Kind of the object
    #[arg(required_unless_present = "file", requires = "name")]
    pub kind: Option<Kind>,
    /// Name of the object, or id of a backup
    pub name: Option<String>,
    /// Only the backup in this location
    #[arg(long, value_name = "LOCATION", requires = "name")]
    pub location: Option<CredentialName>,
    /// Only the backup of this volume
    #[arg(long, value_name = "VOLUME", requires = "name")]
    pub volume: Option<VolumeName>,
    /// Print the actions without carrying them out
    #[arg(long)]
    pub dry_run: bool,
}
