//! `blockctl cloudsnap …`

mod backup;
pub mod drill;
pub mod list;
pub mod maintenance;
mod marks;
pub mod pxctl;
mod repair;
pub mod restore;
pub mod retire;
pub mod snapshots;
mod status;
mod task_ref;

pub use task_ref::newest_task;

use super::{
    credentials::{self, args::CredentialsCommand},
    files::{self, args as file_args, copy},
    schedules::{
        self,
        args::{HISTORY_HELP, HistoryArgs, SchedulesCommand},
    },
};
use crate::{failure::Exit, output::Context};
use clap::Subcommand;

/// Subcommands of `cloudsnap`.
#[derive(Debug, Subcommand)]
pub enum CloudsnapCommand {
    /// Back up a volume
    #[command(after_help = backup::BACKUP_HELP)]
    Backup(Box<backup::BackupArgs>),
    /// Back up a consistency group
    #[command(visible_alias = "bg", after_help = backup::BACKUP_GROUP_HELP)]
    BackupGroup(Box<backup::BackupGroupArgs>),
    /// List cloud snapshots
    #[command(visible_alias = "l", after_help = list::LIST_HELP)]
    List(Box<list::ListArgs>),
    /// Show a cloud snapshot in detail
    #[command(after_help = snapshots::INSPECT_HELP)]
    Inspect(snapshots::InspectArgs),
    /// Show tasks: backups, restores, deletes
    #[command(after_help = status::STATUS_HELP)]
    Status(status::StatusArgs),
    /// Restore a cloud snapshot
    #[command(visible_alias = "r", after_help = restore::RESTORE_HELP)]
    Restore(restore::RestoreArgs),
    /// Create a volume that fetches data on read
    #[command(after_help = restore::CLONE_HELP)]
    Clone(restore::CloneArgs),
    /// Delete cloud snapshots permanently
    #[command(after_help = snapshots::DELETE_HELP)]
    Delete(snapshots::DeleteArgs),
    /// Stop a task
    #[command(after_help = maintenance::STOP_HELP)]
    Stop(maintenance::StopArgs),
    /// Resume a stopped or failed task
    #[command(after_help = maintenance::RESUME_HELP)]
    Resume(maintenance::ResumeArgs),
    /// Change the limits of a running task
    #[command(after_help = maintenance::LIMIT_HELP)]
    Limit(maintenance::LimitArgs),
    /// Pin a cloud snapshot against retention and expiry
    #[command(after_help = marks::PIN_HELP)]
    Pin(marks::PinArgs),
    /// Unpin a cloud snapshot
    #[command(after_help = marks::UNPIN_HELP)]
    Unpin(marks::PinArgs),
    /// Set the expiry date of a cloud snapshot
    #[command(after_help = marks::EXPIRE_HELP)]
    Expire(marks::ExpireArgs),
    /// Verify cloud snapshots
    #[command(after_help = maintenance::VERIFY_HELP)]
    Verify(maintenance::VerifyArgs),
    /// Repair a damaged cloud snapshot
    #[command(after_help = repair::REPAIR_HELP)]
    Repair(repair::RepairArgs),
    /// Test restores and measure their times
    #[command(subcommand)]
    Drill(drill::DrillCommand),
    /// Delete orphaned objects of interrupted backups
    #[command(after_help = maintenance::GC_HELP)]
    Gc(maintenance::GcArgs),
    /// List files of a cloud snapshot
    #[command(after_help = file_args::CATALOG_HELP)]
    Catalog(file_args::CatalogArgs),
    /// Write files of a cloud snapshot to stdout
    #[command(after_help = file_args::CAT_HELP)]
    Cat(file_args::CatArgs),
    /// Copy files out of a cloud snapshot
    #[command(after_help = file_args::CP_HELP)]
    Cp(file_args::CpArgs),
    /// Compare two cloud snapshots
    #[command(after_help = file_args::DIFF_HELP)]
    Diff(file_args::DiffFilesArgs),
    /// Manage backup schedules
    #[command(subcommand, visible_alias = "sched")]
    Schedules(SchedulesCommand),
    /// Alias of `credentials`
    #[command(subcommand, hide = true)]
    Credentials(CredentialsCommand),
    /// List schedule runs and their results
    #[command(after_help = HISTORY_HELP)]
    History(HistoryArgs),
}

pub async fn run(context: &Context<'_>, command: CloudsnapCommand) -> Exit {
    match command {
        CloudsnapCommand::Backup(args) => backup::backup(context, *args).await,
        CloudsnapCommand::BackupGroup(args) => backup::backup_group(context, *args).await,
        CloudsnapCommand::List(args) => list::list(context, *args).await,
        CloudsnapCommand::Inspect(args) => snapshots::inspect(context, args).await,
        CloudsnapCommand::Status(args) => status::run(context, args).await,
        CloudsnapCommand::Restore(args) => restore::restore(context, args).await,
        CloudsnapCommand::Clone(args) => restore::clone(context, args).await,
        CloudsnapCommand::Delete(args) => snapshots::delete(context, args).await,
        CloudsnapCommand::Stop(args) => maintenance::stop(context, args).await,
        CloudsnapCommand::Resume(args) => maintenance::resume(context, args).await,
        CloudsnapCommand::Limit(args) => maintenance::limit(context, args).await,
        CloudsnapCommand::Pin(args) => marks::pin(context, args, true).await,
        CloudsnapCommand::Unpin(args) => marks::pin(context, args, false).await,
        CloudsnapCommand::Expire(args) => marks::expire(context, args).await,
        CloudsnapCommand::Verify(args) => maintenance::verify(context, args).await,
        CloudsnapCommand::Repair(args) => repair::repair(context, args).await,
        CloudsnapCommand::Drill(command) => drill::run(context, command).await,
        CloudsnapCommand::Gc(args) => maintenance::gc(context, args).await,
        CloudsnapCommand::Catalog(args) => files::catalog(context, args).await,
        CloudsnapCommand::Cat(args) => files::cat(context, args).await,
        CloudsnapCommand::Cp(args) => copy::run(context, args).await,
        CloudsnapCommand::Diff(args) => files::diff(context, args).await,
        CloudsnapCommand::Schedules(command) => schedules::run(context, command).await,
        CloudsnapCommand::Credentials(command) => credentials::run(context, command).await,
        CloudsnapCommand::History(args) => schedules::history(context, args).await,
    }
}
