//! `blockctl apply`, `get`, `describe`, `diff` and `delete`

use crate::{confirm::YesArg, failure::Failure, objects::Kind};
use blockd_api::{CredentialName, VolumeName};
use clap::{Args, ValueEnum};
use std::{path::PathBuf, str::FromStr};

pub const APPLY_HELP: &str = "\
A file holds objects as YAML documents or JSON: BackupLocation, SchedulePolicy, Rule, \
VolumeSnapshot, VolumeBackup, VolumeBackupSchedule, RestoreDrill, VolumeRestore and VolumeClone, or \
documents of Stork, KubeDB and Velero (docs/migration.md), whose namespaces select volumes with the \
label namespace=NAME. Of a directory, all *.yaml, *.yml and *.json files are applied. Objects that exist \
as described stay as they are, so a file can be applied repeatedly. Backups, snapshots, restores \
and clones are made once for each name. A backup that another host made in the same location is \
restored by its name too, unless this host has one of that name. Give secrets as `file: PATH` \
(relative to the file), `env: NAME` or by a Secret of the same call; they are not compared: a \
location whose secrets alone changed is `unchanged` and keeps the old ones. Objects that tasks are \
creating are `under way`, a stopped or failed restore is `resumed`, and one whose backup is still \
running is `waiting`: everything else is applied, and the exit status is 6; --wait waits. A restore \
with `replacePolicy: Delete` into an existing volume asks for confirmation on a terminal. Fields \
without a meaning on a host are ignored with a warning.

Examples:
  blockctl apply -f backups.yaml
  blockctl apply -f backups.yaml --dry-run
  blockctl apply -f secret.yaml -f location.yaml
  kubectl get backuplocation mysql -o yaml | blockctl apply -f -";

pub const GET_HELP: &str = "\
Resources made by other commands are shown too, schedules without a name by their UUID, and \
backups of other hosts as HOST/NAME. `-o name` prints names that select one object: where several \
have one, with the host or an id. Several kinds are separated by commas; `all` is each kind. \
Times are in UTC. The YAML output can be applied again.

Examples:
  blockctl get backuplocations
  blockctl get applicationbackup -n mysql-app
  blockctl get vb,vr -o wide
  blockctl get VolumeBackupSchedule nightly -o yaml
  blockctl get all -o name
  blockctl -j get vb";

pub const DESCRIBE_HELP: &str = "\
The description has the newest runs of a schedule, and the newest events of each object.

Examples:
  blockctl describe VolumeBackupSchedule nightly
  blockctl describe applicationbackup -n mysql-app";

pub const DIFF_HELP: &str = "\
The exit status is 0 without changes, 1 with changes. Secrets are not compared.

Examples:
  blockctl diff -f backups.yaml";

pub const DELETE_HELP: &str = "\
Backups stay in the store unless the object has `reclaimPolicy: Delete`, in the file or when it was \
applied: then those of a backup or a schedule are deleted with it. A backup that is named here is \
deleted. If several have the name, `--location` and `--volume` or an id select one; an id \
also selects those of other hosts. Of snapshots of one name, a file selects those of its volumes, and \
`--volume` selects one. Volumes made by restores and clones are listed and stay: see `blockctl \
volume delete`. An assigned rule is deleted only by an object that names all its volumes and groups.

Examples:
  blockctl delete -f backups.yaml
  blockctl delete VolumeBackupSchedule/nightly
  blockctl delete VolumeBackup before-upgrade --location offsite --volume pgdata";

/// File option.
#[derive(Debug, Args)]
pub struct FileArg {
    /// File or directory with objects, YAML or JSON; - for stdin
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
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

/// Output format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Wide,
    Name,
    Yaml,
    Json,
}

/// Name of all kinds together.
pub const ALL: &str = "all";

/// Kinds on the command line, or one object as `KIND/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kinds {
    pub kinds: Vec<Kind>,
    pub object: Option<String>,
}

/// Splits `KIND/NAME`; the host of `HOST/NAME` is no kind.
pub fn kind_and_name(text: &str) -> Option<(Kind, &str)> {
    let (kind, name) = text.split_once('/')?;
    Some((kind.parse().ok()?, name))
}

impl FromStr for Kinds {
    type Err = String;

    /// Parses kinds separated by commas, or `all`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == ALL {
            return Ok(Self { kinds: Kind::ALL.to_vec(), object: None });
        }
        if let Some((kind, _)) = kind_and_name(text) {
            return Ok(Self { kinds: vec![kind], object: Some(text.to_owned()) });
        }
        let mut kinds = Vec::new();
        for name in text.split(',') {
            let kind = name.parse()?;
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        Ok(Self { kinds, object: None })
    }
}

/// Objects to show.
#[derive(Debug, Args)]
pub struct Selection {
    /// Kinds, their plurals, initials or names in other systems; all for each
    #[arg(value_name = "KIND,…")]
    pub kinds: Kinds,
    /// Names of objects
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Only objects of a namespace, or that its volumes have or use
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
}

impl Selection {
    /// Adds the names and kinds of arguments `KIND/NAME`, as `get -o name` prints them.
    #[must_use]
    pub fn with_objects(mut self) -> Self {
        if let Some(first) = self.kinds.object.take() {
            self.names.insert(0, first);
            for (kind, _) in self.names.iter().filter_map(|name| kind_and_name(name)) {
                if !self.kinds.kinds.contains(&kind) {
                    self.kinds.kinds.push(kind);
                }
            }
        }
        self
    }
}

/// `get`
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Objects.
    #[command(flatten)]
    pub objects: Selection,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub output: Format,
}

/// `delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// File with objects, YAML or JSON; - for stdin
    #[arg(short, long = "filename", visible_alias = "file", value_name = "FILE", conflicts_with_all = ["kind", "name"])]
    pub file: Vec<PathBuf>,
    /// Kind of the object, or KIND/NAME
    #[arg(value_name = "KIND", required_unless_present = "file")]
    pub kind: Option<Kinds>,
    /// Name of the object, or id of a backup
    pub name: Option<String>,
    /// Only the backup in this location
    #[arg(long, value_name = "LOCATION", requires = "kind")]
    pub location: Option<CredentialName>,
    /// Only the backup or snapshot of this volume
    #[arg(long, value_name = "VOLUME", requires = "kind")]
    pub volume: Option<VolumeName>,
    /// Print the actions without carrying them out
    #[arg(long)]
    pub dry_run: bool,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

impl DeleteArgs {
    /// Returns the object that the arguments name, as `KIND NAME` or `KIND/NAME`.
    ///
    /// # Errors
    /// They name none, or several.
    pub fn object(&self) -> Result<Option<(Kind, &str)>, Failure> {
        let Some(Kinds { kinds, object }) = &self.kind else { return Ok(None) };
        match (kinds.as_slice(), object.as_deref().and_then(kind_and_name), self.name.as_deref()) {
            (_, Some(one), None) => Ok(Some(one)),
            ([kind], None, Some(name)) => Ok(Some((*kind, name))),
            _ => Err(Failure::usage("expected one object: KIND NAME or KIND/NAME")),
        }
    }
}
