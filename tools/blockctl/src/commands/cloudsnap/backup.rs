//! `blockctl cloudsnap backup` and `backup-group`

use super::marks::expiry;
use crate::{
    commands::{arguments::WaitArg, costs, limits::TaskLimitArgs, rules::HookArgs},
    failure::Exit,
    output::Context,
    snapshot_ref::{ExportRef, volume_of},
    table::counted,
    wait::report_group_start,
};
use blockd_api::{
    Compression, CredentialRef, GroupName, GroupSnapshotRef, LabelSelector, Labels, ObjectName, VolumeRef,
    cloudsnaps::{BackupOptions, StartBackup, StartGroupBackup},
    operations,
};
use clap::Args;
use jiff::Timestamp;
use uuid::Uuid;

pub const BACKUP_HELP: &str = "\
The first backup of a volume to a location is full, the following are incremental, and every 7th \
is full again (full_every in the configuration). A full backup references unchanged data that the \
location stores, unless --reupload requests a new copy. The backup is a task of the daemon and survives \
its restart; its id is printed. Around the freeze, and never during the upload, the task runs \
--pre-command, --post-command and --freeze-fs, or --rule, or the rule of the volume (`rule create \
--help`). The local snapshot of --keep-local stays until it is deleted; a schedule keeps the newest N \
(`cloudsnap schedules create --cred-id NAME --keep-local N`).

Examples:
  blockctl cloudsnap backup db
  blockctl cloudsnap backup db --full --cred-id nas --wait
  blockctl cloudsnap backup db --full --reupload
  blockctl cloudsnap backup db --cred-id nas --cred-id offsite --wait
  blockctl cloudsnap backup db --limit-upload 10MiB
  blockctl cloudsnap backup db --dry-run
  blockctl cloudsnap backup db --max-requests 5000 --max-cost 0.50
  blockctl cloudsnap backup db@monday --wait
  blockctl cloudsnap backup db@latest --cred-id offsite
  blockctl cloudsnap backup db --keep-local
  blockctl cloudsnap backup db --name before-upgrade --label change=1742 --expires 30d
  blockctl cloudsnap backup db --pre-command 'hold begin' --post-command 'hold end' --freeze-fs
  blockctl -j cs backup --volume db --wait";

pub const BACKUP_GROUP_HELP: &str = "\
All volumes are frozen behind one write barrier, or no backup is made. Each volume's backup to \
each location is a task of its own. Pre-commands run before the barrier, post-commands after it.

Examples:
  blockctl cloudsnap backup-group shop
  blockctl cs bg --label app=mysql --cred-id nas --cred-id offsite --wait
  blockctl cs bg --snapshot-group 0f0e8b1a
  blockctl cs bg shop --dry-run
  blockctl -j cs backup-group --volumes vol1,vol2";

/// `cloudsnap backup`
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// Name or id of the volume, or its local snapshot: VOLUME@NAME, VOLUME@latest or VOLUME@TIME
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    volume: ExportRef,
    /// Labels of the backup, beside those of its volume
    #[arg(long, value_name = "K=V,…", default_value_t)]
    pub label: Labels,
    /// Estimate requests, bytes and costs, and store nothing
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Options of the tasks.
    #[command(flatten)]
    pub start: StartArgs,
}

/// `cloudsnap backup-group`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct BackupGroupArgs {
    /// Volumes of this group
    #[arg(value_name = "GROUP", group = "which")]
    pub group: Option<GroupName>,
    /// Volumes with all these labels
    #[arg(long, value_name = "K=V,…", group = "which")]
    pub label: Option<LabelSelector>,
    /// Volumes, by name or id
    #[arg(
        short,
        long,
        value_name = "VOLUME,…",
        group = "which",
        value_delimiter = ',',
        alias = "volume_ids"
    )]
    pub volumes: Vec<VolumeRef>,
    /// Back up this local group snapshot, by id, id prefix or name
    #[arg(long, value_name = "GROUP-SNAPSHOT", group = "which")]
    pub snapshot_group: Option<GroupSnapshotRef>,
    /// Labels of the backups, beside those of their volumes
    #[arg(long, value_name = "K=V,…", default_value_t)]
    pub backup_label: Labels,
    /// Estimate requests, bytes and costs, and store nothing
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Options of the tasks.
    #[command(flatten)]
    pub start: StartArgs,
}

/// Options of a backup of any number of volumes.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Name or UUID of the credential; optional if there is one; repeat to back up the same point to several
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Vec<CredentialRef>,
    /// Options of each backup.
    #[command(flatten)]
    pub backup: BackupOptionArgs,
    /// Bandwidth limits.
    #[command(flatten)]
    pub limits: TaskLimitArgs,
    /// Quiesce options.
    #[command(flatten)]
    pub hooks: HookArgs,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

/// Options of a backup, the same for one volume and for a group.
#[derive(Debug, Args)]
pub struct BackupOptionArgs {
    /// Name of the backup
    #[arg(long, value_name = "NAME")]
    pub name: Option<ObjectName>,
    /// Force a full backup, which references what is stored
    #[arg(short, long)]
    pub full: bool,
    /// Store all data again in the full backup
    #[arg(long, requires = "full")]
    pub reupload: bool,
    /// Expiry: date or time in UTC, or hours, days or weeks from now, such as 30d
    #[arg(long, value_name = "DATE", value_parser = expiry)]
    pub expires: Option<Timestamp>,
    /// Compression: auto, none, lz4 or zstd:1 to zstd:19 [default: that of the location]
    #[arg(long, value_name = "COMPRESSION")]
    pub compression: Option<Compression>,
    /// Pin the backup
    #[arg(long)]
    pub pin: bool,
    /// Keep the local snapshot after the backup, under the backup's name or the time
    #[arg(long)]
    pub keep_local: bool,
}

impl BackupOptionArgs {
    /// Returns the options of the request.
    pub fn options(self, labels: Labels) -> BackupOptions {
        let Self { full, reupload, name, expires, compression, pin: pinned, keep_local: _ } = self;
        BackupOptions { full, reupload, name, labels, pinned, expires_at: expires, compression }
    }
}

pub async fn backup(context: &Context<'_>, args: BackupArgs) -> Exit {
    let BackupArgs { volume, label, dry_run, start } = args;
    let (volume, snapshot) = match volume {
        ExportRef::Volume(volume) => (volume, None),
        ExportRef::Snapshot(snapshot) => {
            let snapshot = snapshot.resolve(context).await?;
            (volume_of(context, &snapshot).await?, Some(snapshot))
        }
    };
    let request = StartBackup {
        volume,
        snapshot,
        keep_local: start.backup.keep_local,
        credentials: start.cred_id,
        limits: start.limits.limits(),
        options: start.backup.options(label),
        hooks: start.hooks.options()?,
    };
    if dry_run {
        let estimated = context.client.call(operations::ESTIMATE_BACKUP, &request).await?;
        return costs::report(context.output, &estimated);
    }
    let started = context.client.call(operations::START_BACKUP, &request).await?;
    let tasks: Vec<Uuid> = started.items.iter().map(|task| task.task_id).collect();
    let line = |(index, task): (usize, &Uuid)| {
        let at = match request.credentials.get(index) {
            Some(location) if tasks.len() > 1 => format!(" at {location}"),
            _ => String::new(),
        };
        format!("Cloudsnap backup{at} started successfully with id: {task}")
    };
    let lines: Vec<String> = tasks.iter().enumerate().map(line).collect();
    report_group_start(context, tasks, &started, &lines, start.wait.report()).await
}

pub async fn backup_group(context: &Context<'_>, args: BackupGroupArgs) -> Exit {
    let BackupGroupArgs { group, label, volumes, snapshot_group, backup_label, dry_run, start } = args;
    let request = StartGroupBackup {
        group,
        label,
        volumes,
        snapshot_group,
        keep_local: start.backup.keep_local,
        credentials: start.cred_id,
        limits: start.limits.limits(),
        options: start.backup.options(backup_label),
        hooks: start.hooks.options()?,
    };
    if dry_run {
        let estimated = context.client.call(operations::ESTIMATE_GROUP_BACKUP, &request).await?;
        return costs::report(context.output, &estimated);
    }
    let started = context.client.call(operations::START_GROUP_BACKUP, &request).await?;
    let line = format!(
        "Group Cloudsnap backup started successfully with groupID:{} ({})",
        started.group_id,
        counted(started.list.items.len() as u64, "volume")
    );
    let mut lines = vec![line];
    for member in &started.list.items {
        let line = |(index, task): (usize, &Uuid)| match request.credentials.get(index) {
            Some(location) if member.task_ids.len() > 1 => {
                format!("  {} at {location}: {task}", member.volume_name)
            }
            _ => format!("  {}: {task}", member.volume_name),
        };
        lines.extend(member.task_ids.iter().enumerate().map(line));
    }
    let tasks = started.list.items.iter().flat_map(|member| member.task_ids.iter().copied()).collect();
    report_group_start(context, tasks, &started, &lines, start.wait.report()).await
}
