//! `blockctl browse …`

use blockd_api::CredentialRef;
use clap::{Args, Subcommand};
use std::path::PathBuf;

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
