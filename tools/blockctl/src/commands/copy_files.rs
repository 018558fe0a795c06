//! `blockctl cloudsnap cp`: copying files and trees out of a snapshot.
//!
//! What is in a snapshot was written by others. Files are made where nothing is yet, and directories that are there are
//! entered only if they are no links, so nothing is written outside of the place that was named.

use super::{
    Context, counted,
    files::{Source, typed},
};
use crate::{
    cli::files::CpArgs,
    failure::{EXIT_DONE, EXIT_FAILED, Failure},
};
use blockd_api::{
    ByteSize,
    browse::{FileKind, FilePath, SnapshotFile},
};
use serde::Serialize;
use std::{
    ffi::OsStr,
    fs::{self, File, FileTimes, OpenOptions, Permissions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{OpenOptionsExt, PermissionsExt, chown, lchown, symlink},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Zeroes as long as this become a hole.
const HOLE_BYTES: usize = 4096;

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    /// What is neither, and was left out.
    left_out: Vec<FilePath>,
}

pub async fn run(context: &Context<'_>, args: CpArgs) -> Result<u8, Failure> {
    let source = Source { context, snap: args.snap, cred_id: args.credential.cred_id };
    let into_dir = args.to.is_dir();
    if args.paths.len() > 1 && !into_dir {
        return Err(Failure::usage(format!(
            "{} is no directory: several things can only be copied into one",
            args.to.display()
        )));
    }
    let mut copied = Copied::default();
    for path in &args.paths {
        let path = typed(path);
        let file = source.list(&path, false).await?.file;
        let to = match (into_dir, path.name()) {
            (false, _) | (true, b"") => args.to.clone(),
            (true, name) => args.to.join(OsStr::from_bytes(name)),
        };
        copy_tree(&source, file, to, &mut copied).await?;
    }
    let output = context.output;
    if output.is_json() {
        output.document(&copied)?;
    } else {
        for path in &copied.left_out {
            output.note(format!("left out, as it is no file, directory or link: {path}"));
        }
        output.line(format!(
            "Copied {}, {}, {} ({})",
            counted(copied.files, "file"),
            counted(copied.links, "link"),
            if copied.directories == 1 {
                "1 directory".into()
            } else {
                format!("{} directories", copied.directories)
            },
            ByteSize::from_bytes(copied.bytes)
        ))?;
    }
    Ok(if copied.left_out.is_empty() { EXIT_DONE } else { EXIT_FAILED })
}

/// Copies one thing and what is in it. Directories get their modes and times last, when nothing is put into them any more.
async fn copy_tree(
    source: &Source<'_>,
    top: SnapshotFile,
    to: PathBuf,
    copied: &mut Copied,
) -> Result<(), Failure> {
    let mut made_dirs = Vec::new();
    let mut left = vec![(top, to)];
    while let Some((file, to)) = left.pop() {
        let failed = |source| Failure::Write { path: to.clone(), source };
        match file.kind {
            FileKind::Directory => {
                make_dir(&to).map_err(failed)?;
                copied.directories += 1;
                let entries = source.list(&file.path, true).await?.entries;
                left.extend(entries.into_iter().map(|entry| {
                    let to = to.join(OsStr::from_bytes(entry.path.name()));
                    (entry, to)
                }));
                made_dirs.push((file, to));
            }
            FileKind::Symlink => {
                let target = file.target.as_ref().map(FilePath::as_bytes).unwrap_or_default();
                symlink(OsStr::from_bytes(target), &to).map_err(failed)?;
                // Whoever is not root cannot give things away.
                let _ = lchown(&to, Some(file.uid), Some(file.gid));
                copied.links += 1;
            }
            FileKind::File => {
                copied.bytes += copy_file(source, &file, &to).await?;
                copied.files += 1;
            }
            _ => copied.left_out.push(file.path),
        }
    }
    for (file, to) in made_dirs.into_iter().rev() {
        let failed = |source| Failure::Write { path: to.clone(), source };
        let _ = chown(&to, Some(file.uid), Some(file.gid));
        let dir = File::open(&to).map_err(failed)?;
        finish(&dir, &file).map_err(failed)?;
    }
    Ok(())
}

/// Makes a directory, or takes one that is there, but never follows a link.
fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(path)?.is_dir() { Ok(()) } else { Err(error) }
        }
        made => made,
    }
}

/// The mode and the time of what is complete.
fn finish(open: &File, file: &SnapshotFile) -> io::Result<()> {
    // A program of others does not become one that runs with its owner's rights here.
    let mode = if file.kind == FileKind::File { file.mode & 0o777 } else { file.mode };
    open.set_permissions(Permissions::from_mode(mode.into()))?;
    if let Some(modified) = file.modified {
        let time = SystemTime::from(modified);
        open.set_times(FileTimes::new().set_modified(time))?;
    }
    Ok(())
}

async fn copy_file(source: &Source<'_>, file: &SnapshotFile, to: &Path) -> Result<u64, Failure> {
    let failed = |source| Failure::Write { path: to.to_owned(), source };
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(failed)?;
    let mut offset_bytes = 0;
    loop {
        let piece = source.read(&file.path, offset_bytes).await?;
        if piece.is_empty() {
            break;
        }
        offset_bytes += piece.len() as u64;
        for part in piece.chunks(HOLE_BYTES) {
            let written = if part.iter().all(|byte| *byte == 0) {
                out.seek(SeekFrom::Current(part.len() as i64)).map(drop)
            } else {
                out.write_all(part)
            };
            written.map_err(failed)?;
        }
    }
    // What ends in a hole is that long all the same.
    out.set_len(offset_bytes).map_err(failed)?;
    // Whoever is not root cannot give files away; and giving them away takes some bits of the mode.
    let _ = chown(to, Some(file.uid), Some(file.gid));
    finish(&out, file).map_err(failed)?;
    Ok(offset_bytes)
}
