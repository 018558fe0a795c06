//! `blockctl cloudsnap catalog`, `cat`, `cp` and `diff`: the files inside cloud snapshots.

use crate::{
    cloudsnap_ref::SnapRef,
    commands::arguments::{CredentialArg, SnapArg},
    failure::Failure,
};
use clap::Args;
use std::{ffi::OsString, path::PathBuf};

/// Help of `cloudsnap catalog`.
pub const CATALOG_HELP: &str = "\
Lists files of an ext2, ext3 or ext4 filesystem; those of a partitioned disk are below /p1, /p2, … \
Bytes of invalid UTF-8, control characters and % are printed as % and two digits; catalog, \
cat and cp accept these with --escaped. Directories that cannot be read are named at the end, and \
the exit status is 1.

Examples:
  blockctl cloudsnap catalog db@latest
  blockctl cloudsnap catalog ID --path /etc --depth 1
  blockctl -j cs catalog --snap ID --output files.json";

/// Help of `cloudsnap cat`.
pub const CAT_HELP: &str = "\
Long holes are not fetched; they stay holes if standard output is a file that is not opened for \
append.

Examples:
  blockctl cloudsnap cat db@2026-11-20T21:00 /etc/fstab
  blockctl cs cat ID /p1/var/log/syslog | less";

/// Help of `cloudsnap cp`.
pub const CP_HELP: &str = "\
Directories are copied recursively, symbolic links as links, with modes and times, and as root \
with owners, without set-user-ID bits. Hard links stay hard links. Devices, pipes and sockets are \
skipped. Existing files are never replaced unless --overwrite is given; --skip-existing continues \
an interrupted copy, as no file gets its name before it is complete. Holes are neither fetched nor \
written. The extended attributes user.* and access lists are copied; those that the destination \
rejects are listed. What cannot be read in the snapshot is listed with the cause, the rest is \
copied, and the exit status is 1.

Examples:
  blockctl cloudsnap cp db@latest /etc/fstab .
  blockctl cs cp ID /home/ann /home/bob restored/";

/// Help of `cloudsnap diff`.
pub const DIFF_HELP: &str = "\
+ is in the second only, - in the first only, M differs. Files with equal length, time, mode and \
owner count as equal, unless --content is given: it compares contents and extended attributes, \
with access lists and capabilities (\"attributes\"). What cannot be read is named at the end, and \
the exit status is 1.

Examples:
  blockctl cloudsnap diff ID-1 ID-2
  blockctl cloudsnap diff db@2026-11-20 db@latest
  blockctl -j cs diff ID-1 ID-2 --path /etc";

/// Cloud snapshot and paths in it.
#[derive(Debug, Args)]
pub struct SnapPaths {
    /// Cloud snapshot (id, id prefix, name, VOLUME@latest or VOLUME@TIME) and paths in it
    #[arg(value_name = "ID PATH", required = true)]
    paths: Vec<OsString>,
    /// Cloud snapshot, as an option; all arguments are paths then
    #[arg(short, long, value_name = "ID")]
    snap: Option<SnapRef>,
}

impl SnapPaths {
    /// Returns the cloud snapshot and the paths.
    ///
    /// # Errors
    /// The first argument names no cloud snapshot, or there is no path.
    pub fn split(self) -> Result<(SnapRef, Vec<OsString>), Failure> {
        let (snap, paths) = match self.snap {
            Some(snap) => (snap, self.paths),
            None => {
                let mut args = self.paths.into_iter();
                let id = args.next().unwrap_or_default();
                let snap = id.to_string_lossy().parse();
                let snap = snap
                    .map_err(|error: crate::cloudsnap_ref::BadSnapRef| Failure::usage(error.to_string()))?;
                (snap, args.collect())
            }
        };
        match paths.is_empty() {
            true => Err(Failure::usage("name a path in the cloud snapshot, after its id")),
            false => Ok((snap, paths)),
        }
    }
}

/// `cloudsnap catalog`
#[derive(Debug, Args)]
pub struct CatalogArgs {
    /// Cloud snapshot.
    #[command(flatten)]
    pub snap: SnapArg,
    /// Path inside the snapshot
    #[arg(short, long, value_name = "PATH", default_value = "/")]
    pub path: OsString,
    /// Path is escaped as in the output: % and two digits are a byte
    #[arg(long)]
    pub escaped: bool,
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
#[command(override_usage = "blockctl cloudsnap cat [OPTIONS] ID PATH…")]
pub struct CatArgs {
    /// Cloud snapshot and paths of the files.
    #[command(flatten)]
    pub files: SnapPaths,
    /// Paths are escaped as by `catalog`: % and two digits are a byte
    #[arg(long)]
    pub escaped: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// `cloudsnap cp`
#[derive(Debug, Args)]
#[command(override_usage = "blockctl cloudsnap cp [OPTIONS] ID PATH… TO")]
pub struct CpArgs {
    /// Cloud snapshot and paths in it.
    #[command(flatten)]
    pub files: SnapPaths,
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
    /// First cloud snapshot
    #[arg(value_name = "ID-1")]
    pub from: SnapRef,
    /// Second cloud snapshot
    #[arg(value_name = "ID-2")]
    pub to: SnapRef,
    /// List changed files (default)
    #[arg(long)]
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
