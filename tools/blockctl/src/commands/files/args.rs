//! `blockctl cloudsnap catalog`, `cat`, `cp` and `diff`: the files inside cloud snapshots.

use crate::{cloudsnap_ref::SnapRef, commands::arguments::CredentialArg};
use clap::Args;
use std::{ffi::OsString, path::PathBuf};

/// Help of `cloudsnap catalog`.
pub const CATALOG_HELP: &str = "\
Lists files of an ext2, ext3 or ext4 filesystem; those of a partitioned disk are below /p1, /p2, … \
Bytes of invalid UTF-8, control characters and % are printed as % and two digits; cat and cp \
accept these with --escaped.

Examples:
  blockctl cloudsnap catalog --snap ID
  blockctl cloudsnap catalog --snap ID --path /etc --depth 1
  blockctl -j cs catalog --snap ID --output files.json";

/// Help of `cloudsnap cat`.
pub const CAT_HELP: &str = "\
Long holes are not fetched; they stay holes if standard output is a file that is not opened for \
append.

Examples:
  blockctl cloudsnap cat --snap ID /etc/fstab
  blockctl cs cat --snap ID /p1/var/log/syslog | less";

/// Help of `cloudsnap cp`.
pub const CP_HELP: &str = "\
Directories are copied recursively, symbolic links as links, with modes and times, and as root \
with owners, without set-user-ID bits. Hard links stay hard links. Devices, pipes and sockets are \
skipped. Existing files are never replaced unless --overwrite is given; --skip-existing continues \
an interrupted copy, as no file gets its name before it is complete. Holes are neither fetched nor \
written. The extended attributes user.* and access lists are copied; those that the destination \
rejects are listed.

Examples:
  blockctl cloudsnap cp --snap ID /etc/fstab .
  blockctl cs cp --snap ID /home/ann /home/bob restored/";

/// Help of `cloudsnap diff`.
pub const DIFF_HELP: &str = "\
+ is in the second only, - in the first only, M differs. Files with equal length, time, mode and \
owner count as equal, unless --content is given: it compares contents and extended attributes, \
with access lists and capabilities (\"attributes\").

Examples:
  blockctl cloudsnap diff ID-1 ID-2 --files
  blockctl -j cs diff ID-1 ID-2 --files --path /etc";

/// `cloudsnap catalog`
#[derive(Debug, Args)]
pub struct CatalogArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
    /// Path inside the snapshot
    #[arg(short, long, value_name = "PATH", default_value = "/")]
    pub path: OsString,
    /// Maximum depth of the listing
    #[arg(short, long, value_name = "N")]
    pub depth: Option<u32>,
    /// Output file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// `cloudsnap cat`
#[derive(Debug, Args)]
pub struct CatArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
    /// Paths of the files
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<OsString>,
    /// Paths are escaped as by `catalog`: % and two digits are a byte
    #[arg(long)]
    pub escaped: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// `cloudsnap cp`
#[derive(Debug, Args)]
pub struct CpArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
    /// Files and directories in the snapshot
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<OsString>,
    /// Destination: a directory, or a new name for a single file
    #[arg(value_name = "TO", required = true)]
    pub to: PathBuf,
    /// Paths are escaped as by `catalog`: % and two digits are a byte
    #[arg(long)]
    pub escaped: bool,
    /// Skip existing files
    #[arg(long, conflicts_with = "overwrite")]
    pub skip_existing: bool,
    /// Replace existing files and links
    #[arg(long)]
    pub overwrite: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// `cloudsnap diff`
#[derive(Debug, Args)]
pub struct DiffFilesArgs {
    /// Id of the first cloud snapshot
    #[arg(value_name = "ID-1")]
    pub from: SnapRef,
    /// Id of the second cloud snapshot
    #[arg(value_name = "ID-2")]
    pub to: SnapRef,
    /// List changed files
    #[arg(long, required = true)]
    pub files: bool,
    /// Only below this path
    #[arg(short, long, value_name = "PATH", default_value = "/")]
    pub path: OsString,
    /// Compare content and extended attributes, not only metadata
    #[arg(long)]
    pub content: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}
