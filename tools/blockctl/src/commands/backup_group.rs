//! `blockctl cloudsnap backup-group`

use super::{Context, cloudsnap, counted};
use crate::{cli::backup_group::BackupGroupArgs, failure::Failure};
use blockd_api::cloudsnaps::StartGroupBackup;
use blockd_api::operations;

pub async fn run(context: &Context<'_>, args: BackupGroupArgs) -> Result<u8, Failure> {
    let mut places = args.cred_id.into_iter();
    let (cred_id, also) = (places.next(), places.collect());
    let BackupGroupArgs { group, label, volumes, limits, wait, backup, hooks, .. } = args;
    let request = StartGroupBackup {
        group,
        label,
        volumes,
        cred_id,
        also,
        limits: limits.limits(),
        options: backup.options(),
        hooks: hooks.options()?,
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
    cloudsnap::report_group_start(context, tasks, &started, &lines, wait.wait).await
}
