//! `blockctl cloudsnap catalog`, `cat`, `cp` and `diff`: the files inside cloud snapshots.

use super::cloudsnap::CredentialArg;
use crate::snap::SnapRef;
use clap::Args;
use std::{ffi::OsString, path::PathBuf};

/// Help of `cloudsnap catalog`.
pub const CATALOG_HELP: &str = "\
The files of an ext2, ext3 or ext4 filesystem; those of a partitioned disk are below /p1, /p2, …
Bytes of names that are no text, control characters and % are shown as % and two digits;
cat and cp take them like that with --escaped.

Examples:
  blockctl cloudsnap catalog --snap ID
  blockctl cloudsnap catalog --snap ID --path /etc --depth 1
  blockctl -j cs catalog --snap ID --output files.json";

/// Help of `cloudsnap cat`.
pub const CAT_HELP: &str = "\
Long holes are not fetched; where standard output is a file that is not appended to, they stay holes in it.

Examples:
  blockctl cloudsnap cat --snap ID /etc/fstab
  blockctl cs cat --snap ID /p1/var/log/syslog | less";

/// Help of `cloudsnap cp`.
pub const CP_HELP: &str = "\
Directories are copied with all that is in them, links as links, with modes and times, and with
owners where this is root, without set-user-ID bits. Several names of one file stay that. Devices,
pipes and sockets are left out. Nothing that is there already is replaced, unless --overwrite says so; with
--skip-existing a copy that broke off goes on, as no file has its name before it is complete. Holes are neither fetched nor written. Of extended attributes, user.* and access lists are copied; those
that the destination refuses are named.

Examples:
  blockctl cloudsnap cp --snap ID /etc/fstab .
  blockctl cs cp --snap ID /home/ann /home/bob restored/";

/// Help of `cloudsnap diff`.
pub const DIFF_HELP: &str = "\
+ is only in the second one, - only in the first one, M is in both and differs. A file whose
length, time, mode and owner are the same counts as the same, unless --content is given: then what is
in files is compared, and their extended attributes, with access lists and capabilities (\"attributes\").

Examples:
  blockctl cloudsnap diff ID-1 ID-2 --files
  blockctl -j cs diff ID-1 ID-2 --files --path /etc";

/// `cloudsnap catalog`
#[derive(Debug, Args)]
pub struct CatalogArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
    /// List what is here
    #[arg(short, long, value_name = "PATH", default_value = "/")]
    pub path: OsString,
    /// List directories within directories only so deep
    #[arg(short, long, value_name = "N")]
    pub depth: Option<u32>,
    /// Write the list to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Where it is kept.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// `cloudsnap cat`
#[derive(Debug, Args)]
pub struct CatArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
    /// The files
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<OsString>,
    /// The paths are as `catalog` shows them: % and two digits stand for a byte
    #[arg(long)]
    pub escaped: bool,
    /// Where it is kept.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// `cloudsnap cp`
#[derive(Debug, Args)]
pub struct CpArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
    /// The files and directories in the snapshot
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<OsString>,
    /// Where they go: a directory, or a new name for a single one
    #[arg(value_name = "TO", required = true)]
    pub to: PathBuf,
    /// The paths in the snapshot are as `catalog` shows them: % and two digits stand for a byte
    #[arg(long)]
    pub escaped: bool,
    /// Leave what is there already as it is, and copy the rest
    #[arg(long, conflicts_with = "overwrite")]
    pub skip_existing: bool,
    /// Replace files and links that are there already
    #[arg(long)]
    pub overwrite: bool,
    /// Where it is kept.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// `cloudsnap diff`
#[derive(Debug, Args)]
pub struct DiffFilesArgs {
    /// Id of the first cloud snapshot
    #[arg(value_name = "ID-1")]
    pub from: SnapRef,
    /// Id of the second one
    #[arg(value_name = "ID-2")]
    pub to: SnapRef,
    /// Say which files changed
    #[arg(long, required = true)]
    pub files: bool,
    /// Look only at what is here
    #[arg(short, long, value_name = "PATH", default_value = "/")]
    pub path: OsString,
    /// Compare what is in files that look the same, and the extended attributes of all
    #[arg(long)]
    pub content: bool,
    /// Where they are kept.
    #[command(flatten)]
    pub credential: CredentialArg,
}
