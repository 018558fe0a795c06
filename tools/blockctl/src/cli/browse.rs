//! `blockctl browse …`

use blockd_api::CredentialRef;
use clap::{Args, Subcommand};
use std::path::PathBuf;

const MOUNT_HELP: &str = "\
Below DIR there is a directory for each volume and snapshot, local ones and those in stores:
DIR/VOLUME/TIME-ID/disk.img, manifest.json, and files/ with the files of an ext2, ext3 or ext4
filesystem, or files/p1/… of each partition. DIR/VOLUME/latest leads to the newest. Everything is
read-only, and fetched when it is read.

The mount is made by fusermount3 (Debian package fuse3) as whoever runs this, and handed to the daemon,
which must be on this host, through its socket; the daemon needs no rights for it. It is for that user
alone unless --allow-other says otherwise, not for root either. When the daemon ends it is dead: mount
it again.

Examples:
  blockctl browse mount ~/snapshots
  blockctl browse mount /srv/snapshots --allow-other
  blockctl browse mount /mnt/snapshots --cred-id nas --cred-id offsite";

const UMOUNT_HELP: &str = "\
A mount of one's own is taken away whether or not the daemon runs; root takes away everybody's.

Examples:
  blockctl browse umount ~/snapshots
  blockctl browse umount ~/snapshots --force";

const LIST_HELP: &str = "\
Examples:
  blockctl browse list
  blockctl -j browse list";

/// What to do with mounts of snapshots.
#[derive(Debug, Subcommand)]
pub enum BrowseCommand {
    /// Mount all snapshots, read-only
    #[command(after_help = MOUNT_HELP)]
    Mount(MountArgs),
    /// Take a mount away
    #[command(visible_alias = "unmount", after_help = UMOUNT_HELP)]
    Umount(UmountArgs),
    /// List the mounts
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List,
}

/// `browse mount`
#[derive(Debug, Args)]
pub struct MountArgs {
    /// An empty directory; it is made if it is not there
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Show cloud snapshots of these credentials only; may be repeated
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Vec<CredentialRef>,
    /// Other users may look, too, by the modes and owners that are shown; unless root mounts, it takes
    /// `user_allow_other` in /etc/fuse.conf
    #[arg(long)]
    pub allow_other: bool,
}

/// `browse umount`
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where it is mounted
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// Also if somebody has files open there, which then give errors
    #[arg(short, long)]
    pub force: bool,
}
