//! `blockctl cloudsnap backup-group`

use super::{cloudsnap::WaitArg, limits::TaskLimitArgs, pins::BackupOptionArgs, rules::HookArgs};
use blockd_api::{CredentialRef, GroupName, LabelSelector, VolumeRef};
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
    /// Name or UUID of the credential; optional if there is one; repeat to back up the same point to several
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Vec<CredentialRef>,
    /// Options of each backup.
    #[command(flatten)]
    pub backup: BackupOptionArgs,
    /// Bandwidth limits of each task.
    #[command(flatten)]
    pub limits: TaskLimitArgs,
    /// Quiesce options.
    #[command(flatten)]
    pub hooks: HookArgs,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}
