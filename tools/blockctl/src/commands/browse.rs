//! `blockctl browse …`
//!
//! The mount is made here, by `fusermount3` as the current user, and handed to the daemon. It has the right
//! owner and namespace, and the daemon needs no right to mount.

use crate::{
    failure::{Exit, Failure},
    output::Context,
    table::{Table, or_dash, short_time},
};
use blockd_api::{
    ApiError, ClientError, CredentialRef, ErrorCode,
    browse::{HandMount, UnmountBrowse, Unmounted},
    operations,
};
use blockd_fuse::{BrowseMountPoint, FuseError, UnservedMount, find_mount, resolve, unmount};
use clap::{Args, Subcommand};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{sleep, timeout};

const MOUNT_HELP: &str = "\
DIR contains a directory for each volume and snapshot, local and in the cloud:
DIR/VOLUME/TIME-ID/disk.img, manifest.json, and files/ with the files of an ext2, ext3 or ext4 \
filesystem, or files/p1/… for each partition. DIR/VOLUME/latest is a link to the newest. \
Everything is read-only and fetched on read.

The mount is made by fusermount3 (Debian package fuse3) as the current user and handed to the \
daemon of this host through its socket; the daemon needs no privileges for it. Only the current \
user can see it, not even root, unless --allow-other is given. After a restart of the daemon, \
mount again.

Examples:
  blockctl browse mount ~/snapshots
  blockctl browse mount /srv/snapshots --allow-other
  blockctl browse mount /mnt/snapshots --cred-id nas --cred-id offsite";

const UMOUNT_HELP: &str = "\
Users unmount their own mounts, whether or not the daemon runs; root unmounts all.

Examples:
  blockctl browse umount ~/snapshots
  blockctl browse umount ~/snapshots --force";

const LIST_HELP: &str = "\
Examples:
  blockctl browse list
  blockctl -j browse list";

/// Subcommands of `browse`.
#[derive(Debug, Subcommand)]
pub enum BrowseCommand {
    /// Mount all snapshots, read-only
    #[command(after_help = MOUNT_HELP)]
    Mount(MountArgs),
    /// Unmount
    #[command(visible_alias = "unmount", after_help = UMOUNT_HELP)]
    Umount(UmountArgs),
    /// List mounts
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List,
}

/// `browse mount`
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Empty directory; created if missing
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Only cloud snapshots of this credential; may be repeated
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Vec<CredentialRef>,
    /// Allow other users, by the files' modes and owners; needs root or `user_allow_other` in /etc/fuse.conf
    #[arg(long)]
    pub allow_other: bool,
}

/// `browse umount`
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Mount point
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Unmount although files are open; reads of them fail
    #[arg(short, long)]
    pub force: bool,
}

/// Timeout for the daemon to notice an unmount.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(1);
const NOTICE_PAUSE: Duration = Duration::from_millis(20);

pub async fn run(context: &Context<'_>, command: BrowseCommand) -> Exit {
    match command {
        BrowseCommand::Mount(args) => mount(context, args).await,
        BrowseCommand::Umount(args) => umount(context, args).await,
        BrowseCommand::List => list(context).await,
    }
}

/// Returns the absolute path: the daemon has another working directory.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let is_plain = |path: &Path| path.to_str().is_some_and(|text| !text.chars().any(char::is_control));
    match std::path::absolute(path) {
        Ok(path) if is_plain(&path) => Ok(path),
        Ok(path) => Err(Failure::usage(format!(
            "{path:?} cannot be named: choose a directory without control characters, in UTF-8"
        ))),
        Err(error) => Err(Failure::usage(format!("{} is no directory: {error}", path.display()))),
    }
}

/// Converts a local error to the form of the daemon's errors.
fn refused(error: &FuseError) -> Failure {
    let code = match error {
        FuseError::Busy { .. } => ErrorCode::DeviceInUse,
        FuseError::NotEmpty { .. } | FuseError::Mountpoint { .. } | FuseError::Mounted { .. } => {
            ErrorCode::InvalidRequest
        }
        FuseError::Mount { .. } | FuseError::Refused { .. } | FuseError::Unmount { .. } => {
            ErrorCode::NotPermitted
        }
        _ => ErrorCode::Internal,
    };
    ApiError::new(code, error.to_string()).into()
}

async fn mount(context: &Context<'_>, args: MountArgs) -> Exit {
    let dir = absolute(&args.dir)?;
    if context.client.endpoint().socket().is_none() {
        return Err(Failure::usage(format!(
            "a mount is created on the daemon's own host and passed through its unix socket, which is not possible at {}",
            context.client.endpoint()
        )));
    }
    // Without a daemon the mount would be dead.
    context.client.call(operations::LIST_MOUNTS, &()).await?;
    let is_new = !dir.exists();
    let mut unserved = UnservedMount::make(&dir, args.allow_other).map_err(|error| refused(&error))?;
    let request = HandMount {
        mountpoint: unserved.mountpoint().to_owned(),
        credentials: args.cred_id,
        allow_other: args.allow_other,
    };
    let Some(descriptor) = unserved.take_descriptor() else {
        return Err(Failure::usage(format!("{} was handed over already", dir.display())));
    };
    let mount = context.client.hand_mount(&request, descriptor).await?;
    unserved.keep();
    if is_new && !context.output.is_json() {
        context.output.note(format!("note: created the directory {}", dir.display()));
    }
    context.output.tell(&mount, || format!("Snapshots mounted at {}", mount.mountpoint.display()))
}

/// Finds the mount at a directory if this user may unmount it. Reads no entry of it: its daemon may be gone.
fn find_own(dir: &Path) -> Result<Option<BrowseMountPoint>, Failure> {
    let found = |path: &Path| {
        find_mount(path).map_err(|error| Failure::usage(format!("reading the mount table failed: {error}")))
    };
    let mut seen = found(&resolve(dir))?;
    // The directory may be a symbolic link to a mount.
    if seen.is_none()
        && let Ok(path) = dir.canonicalize()
    {
        seen = found(&path)?;
    }
    let user = rustix::process::getuid();
    Ok(seen.filter(|seen| user.is_root() || seen.uid == user.as_raw()))
}

/// Waits until the daemon no longer lists a mount. Open files can delay that.
async fn notice(context: &Context<'_>, gone: &BrowseMountPoint) {
    let lists = async || {
        let list = context.client.call(operations::LIST_MOUNTS, &()).await.ok()?;
        let is_it = |uid: Option<u32>| uid.is_none_or(|uid| uid == gone.uid);
        list.items.iter().any(|mount| mount.mountpoint == gone.mountpoint && is_it(mount.uid)).then_some(())
    };
    let noticed = async {
        while lists().await.is_some() {
            sleep(NOTICE_PAUSE).await;
        }
    };
    // The mount itself is already gone.
    let _ = timeout(NOTICE_TIMEOUT, noticed).await;
}

async fn umount(context: &Context<'_>, args: UmountArgs) -> Exit {
    let dir = absolute(&args.dir)?;
    let is_here = context.client.endpoint().socket().is_some();
    let own = if is_here { find_own(&dir)? } else { None };
    let gone = match own {
        Some(own) => {
            unmount(&own.mountpoint, args.force).map_err(|error| refused(&error))?;
            notice(context, &own).await;
            Unmounted { mountpoint: own.mountpoint }
        }
        // The daemon may have made it in its own mount namespace.
        None => {
            let request = UnmountBrowse { mountpoint: dir, force: args.force };
            match context.client.call(operations::UNMOUNT, &request).await {
                // Mounts made by the daemon ended with it.
                Err(ClientError::SocketMissing { .. } | ClientError::Refused { .. }) => {
                    let dir = request.mountpoint.display();
                    let message = format!("no snapshots are mounted at {dir}, and blockd is not running");
                    return Err(ApiError::new(ErrorCode::MountNotFound, message).into());
                }
                unmounted => unmounted?,
            }
        }
    };
    context.output.tell(&gone, || format!("Snapshots no longer mounted at {}", gone.mountpoint.display()))
}

async fn list(context: &Context<'_>) -> Exit {
    let list = context.client.call(operations::LIST_MOUNTS, &()).await?;
    context.output.list(&list, "mounts", || {
        let rows = list.items.iter().map(|mount| {
            let credentials: Vec<String> = mount.credentials.iter().map(ToString::to_string).collect();
            let credentials = if credentials.is_empty() { "all".to_owned() } else { credentials.join(",") };
            let mountpoint = mount.mountpoint.display().to_string();
            [credentials, or_dash(mount.uid), short_time(mount.mounted_at), mountpoint]
        });
        Table::of("CREDENTIALS|UID|SINCE|MOUNTPOINT", rows).fit("CREDENTIALS").with_text()
    })
}
