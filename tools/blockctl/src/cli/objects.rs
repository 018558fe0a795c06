//! `blockctl apply`, `get`, `describe`, `diff` and `delete`

use crate::objects::Kind;
use blockd_api::{CredentialName, VolumeName};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

pub const APPLY_HELP: &str = "\
A file holds objects, as YAML documents or as JSON: BackupLocation, SchedulePolicy, Rule, VolumeBackup, VolumeBackupSchedule, \
VolumeRestore and VolumeClone. What is there already and is as the file says stays as it is, so that a file can be applied \
again. Backups, restores and clones are made once for each name: the name of a backup is kept with it in the store, that of a \
restore or clone is the new volume. Backups that other hosts made in the same place are not meant by a name: a restore reaches \
them by `cloudSnapID`. Secrets are best given as `file: PATH` (from where the file is) or `env: NAME`; they are \
not compared: a location whose secrets alone changed is `unchanged` and keeps the old ones. What tasks are making already is `under way`, \
a restore that was stopped or failed is `resumed`, and one whose backup is only being made is `waiting`: the rest is done, and the exit \
status is 6; with --wait it is waited for. Fields that mean something in a cluster only are ignored, with a warning that names them.

Examples:
  blockctl apply -f backups.yaml
  blockctl apply -f backups.yaml --dry-run
  kubectl get backuplocation mysql -o yaml | blockctl apply -f -";

pub const GET_HELP: &str = "\
What was made by other commands is shown as well, schedules without a name by their UUID; of backups those of this host (all: \
`blockctl cloudsnap list`). What is printed as YAML can be applied \
again.

Examples:
  blockctl get backuplocations
  blockctl get VolumeBackupSchedule nightly -o yaml
  blockctl -j get vb";

pub const DESCRIBE_HELP: &str = "\
Examples:
  blockctl describe VolumeBackupSchedule nightly";

pub const DIFF_HELP: &str = "\
The exit status is 0 if nothing would change, and 1 if something would. Secrets are not compared.

Examples:
  blockctl diff -f backups.yaml";

pub const DELETE_HELP: &str = "\
Without their object, backups stay in the store unless it says `reclaimPolicy: Delete`; one that is named here is deleted. \
If there are several of the name, `--location` and `--volume` say which, or the id in the place of the name, which also reaches \
those that other hosts stored. \
Volumes that restores and clones made stay: see `blockctl volume delete`. A rule that volumes or groups have goes only by an \
object that names all of them.

Examples:
  blockctl delete -f backups.yaml
  blockctl delete VolumeBackupSchedule nightly
  blockctl delete VolumeBackup before-upgrade --location offsite --volume pgdata";

/// Where objects are read from.
#[derive(Debug, Args)]
pub struct FileArg {
    /// File with objects, YAML or JSON; - for stdin
    #[arg(short, long = "filename", visible_alias = "file", value_name = "FILE", required = true)]
    pub file: Vec<PathBuf>,
}

/// `apply`
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// Which objects.
    #[command(flatten)]
    pub from: FileArg,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until what was started is done
    #[arg(long)]
    pub wait: bool,
}

/// `diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Which objects.
    #[command(flatten)]
    pub from: FileArg,
}

/// How objects are printed.
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
    /// Kind of the objects, its plural or its initials
    pub kind: Kind,
    /// Name of one of them
    pub name: Option<String>,
    /// How they are printed
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// `describe`
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// Kind of the object
    pub kind: Kind,
    /// Its name
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
    /// Its name; of a backup its id as well
    pub name: Option<String>,
    /// Only the backup in this location
    #[arg(long, value_name = "LOCATION", requires = "name")]
    pub location: Option<CredentialName>,
    /// Only the backup of this volume
    #[arg(long, value_name = "VOLUME", requires = "name")]
    pub volume: Option<VolumeName>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}
