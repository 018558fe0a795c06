//! `blockctl cloudsnap backup-group`

use super::args::StartArgs;
use crate::{
    commands::{Context, counted},
    failure::Failure,
};
use blockd_api::{GroupName, LabelSelector, VolumeRef, cloudsnaps::StartGroupBackup, operations};
use clap::Args;

pub const BACKUP_GROUP_HELP: &str = "\
All volumes are frozen behind one write barrier, or no backup is made. Each volume's backup to \
each location is a task of its own. Pre-commands run before the barrier, post-commands after it.

Examples:
  blockctl cloudsnap backup-group --group shop
  blockctl cs bg --label app=mysql --cred-id nas --cred-id offsite --wait
  blockctl -j cs backup-group --volumes vol1,vol2";

/// `cloudsnap backup-group`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true))]
pub struct BackupGroupArgs {
    /// Volumes of this group
    #[arg(short, long, value_name = "GROUP", group = "which")]
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
    /// Options of the tasks.
    #[command(flatten)]
    pub start: StartArgs,
}

pub async fn run(context: &Context<'_>, args: BackupGroupArgs) -> Result<u8, Failure> {
    let BackupGroupArgs { group, label, volumes, start } = args;
    let mut places = start.cred_id.into_iter();
    let (cred_id, also) = (places.next(), places.collect());
    let request = StartGroupBackup {
        group,
        label,
        volumes,
        cred_id,
        also,
        limits: start.limits.limits(),
        options: start.backup.options(),
        hooks: start.hooks.options()?,
    };
    let started = context.client.call(operations::START_GROUP_BACKUP, &request).await?;
    let line = format!(
        "Group Cloudsnap backup started successfully with groupID:{} ({})",
        started.group_id,
        counted(started.members.len() as u64, "volume")
    );
    let mut lines = vec![line];
    for member in &started.members {
        let ids = member.tasks.iter().map(|task| format!("  {}: {task}", member.volume));
        lines.extend(ids);
    }
    let tasks = started.members.iter().flat_map(|member| member.tasks.iter().copied()).collect();
    super::report_group_start(context, tasks, &started, &lines, start.wait.wait).await
}
