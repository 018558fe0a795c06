//! `blockctl browse …`

use super::Context;
use crate::{
    cli::browse::{BrowseCommand, MountArgs, UmountArgs},
    failure::{EXIT_DONE, Failure},
    table::Table,
};
use blockd_api::{
    browse::{MountBrowse, UnmountBrowse},
    format_time,
};
use std::path::{Path, PathBuf};

pub async fn run(context: &Context<'_>, command: BrowseCommand) -> Result<u8, Failure> {
    match command {
        BrowseCommand::Mount(args) => mount(context, args).await,
        BrowseCommand::Umount(args) => umount(context, args).await,
        BrowseCommand::List => list(context).await,
    }?;
    Ok(EXIT_DONE)
}

/// The path as the daemon understands it, who has another working directory.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::usage(format!("{} is no directory: {error}", path.display())))
}

async fn mount(context: &Context<'_>, args: MountArgs) -> Result<(), Failure> {
    let request = MountBrowse { mountpoint: absolute(&args.dir)?, cred_ids: args.cred_id };
    let mount = context.client.mount(&request).await?;
    match context.output.is_json() {
        true => context.output.document(&mount),
        false => context.output.line(format!("Snapshots mounted at {}", mount.mountpoint.display())),
    }
}

async fn umount(context: &Context<'_>, args: UmountArgs) -> Result<(), Failure> {
    let request = UnmountBrowse { mountpoint: absolute(&args.dir)?, force: args.force };
    let gone = context.client.unmount(&request).await?;
    match context.output.is_json() {
        true => context.output.document(&gone),
        false => context.output.line(format!("Snapshots no longer mounted at {}", gone.mountpoint.display())),
    }
}

async fn list(context: &Context<'_>) -> Result<(), Failure> {
    let list = context.client.list_mounts().await?;
    if context.output.is_json() {
        return context.output.document(&list.mounts);
    }
    let mut table = Table::new(&["MOUNTPOINT", "CREDENTIALS", "SINCE"]);
    for mount in &list.mounts {
        let credentials: Vec<String> = mount.cred_ids.iter().map(ToString::to_string).collect();
        let credentials = if credentials.is_empty() { "all".to_owned() } else { credentials.join(",") };
        table.row([mount.mountpoint.display().to_string(), credentials, format_time(mount.since)]);
    }
    context.output.table(&table)
}
