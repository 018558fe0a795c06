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
    ByteSize, ClientError, ErrorCode,
    browse::{FileKind, FilePath, SnapshotFile, SnapshotXattr},
};
use rustix::fs::{OFlags, XattrFlags, fsetxattr};
use serde::Serialize;
use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, FileTimes, OpenOptions, Permissions},
    io::{self, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown, symlink},
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
    /// Files and directories that lack extended attributes, which whoever copies cannot set there or which are damaged.
    without_xattrs: u64,
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
        if copied.without_xattrs > 0 {
            let what = counted(copied.without_xattrs, "file");
            output.note(format!("extended attributes could not all be copied for {what} or directories"));
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

/// Copies one thing and what is in it. Directories that were made here get their modes and times last, when nothing is put
/// into them any more; those that were there keep theirs.
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
                let made = make_dir(&to).map_err(failed)?;
                copied.directories += 1;
                let entries = source.list(&file.path, true).await?.entries;
                left.extend(entries.into_iter().map(|entry| {
                    let to = to.join(OsStr::from_bytes(entry.path.name()));
                    (entry, to)
                }));
                made_dirs.extend(made.map(|made| (file, to, made)));
            }
            FileKind::Symlink => {
                let target = file.target.as_ref().map(FilePath::as_bytes).unwrap_or_default();
                symlink(OsStr::from_bytes(target), &to).map_err(failed)?;
                // Whoever is not root cannot give things away.
                let _ = lchown(&to, Some(file.uid), Some(file.gid));
                copied.links += 1;
            }
            FileKind::File => {
                copied.bytes += copy_file(source, &file, &to, copied).await?;
                copied.files += 1;
            }
            _ => copied.left_out.push(file.path),
        }
    }
    for (file, to, made) in made_dirs.into_iter().rev() {
        let failed = |source| Failure::Write { path: to.clone(), source };
        let xattrs = readable(source.xattrs(&file.path).await)?;
        let dir = reopen_dir(&to, made).map_err(failed)?;
        copied.without_xattrs += u64::from(!xattrs.is_some_and(|xattrs| set_xattrs(&dir, &xattrs)));
        finish(&dir, &file).map_err(failed)?;
    }
    Ok(())
}

/// Which directory one is, whatever its name leads to later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DirId {
    dev: u64,
    ino: u64,
}

impl DirId {
    fn of(dir: &File) -> io::Result<Self> {
        let meta = dir.metadata()?;
        Ok(Self { dev: meta.dev(), ino: meta.ino() })
    }
}

/// Makes a directory, or takes one that is there, but never follows a link; tells which one it made.
fn make_dir(path: &Path) -> io::Result<Option<DirId>> {
    // Nobody else gets at what is in it before it is complete.
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if fs::symlink_metadata(path)?.is_dir() { Ok(None) } else { Err(error) }
        }
        made => made.and_then(|()| DirId::of(&open_dir(path)?)).map(Some),
    }
}

fn open_dir(path: &Path) -> io::Result<File> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits();
    OpenOptions::new().read(true).custom_flags(flags as i32).open(path)
}

/// Opens a directory that was made before. A download takes long, and others may have put another one in its place.
fn reopen_dir(path: &Path, made: DirId) -> io::Result<File> {
    let dir = open_dir(path)?;
    if DirId::of(&dir)? != made {
        return Err(io::Error::other("it was replaced while it was filled"));
    }
    Ok(dir)
}

/// The owner, the mode and the time of what is complete. By its handle: its name may lead elsewhere by now.
fn finish(open: &File, file: &SnapshotFile) -> io::Result<()> {
    // Whoever is not root cannot give things away; and giving them away takes some bits of the mode.
    let _ = fchown(open, Some(file.uid), Some(file.gid));
    // A program of others does not become one that runs with its owner's rights here.
    let mode = if file.kind == FileKind::File { file.mode & 0o777 } else { file.mode };
    open.set_permissions(Permissions::from_mode(mode.into()))?;
    if let Some(modified) = file.modified {
        let time = SystemTime::from(modified);
        open.set_times(FileTimes::new().set_modified(time))?;
    }
    Ok(())
}

/// What names of extended attributes begin with that are copied: those of users, and lists of who may do what. Others give
/// rights, which a file of others does not get here, or are of the system that they come from.
const XATTRS_COPIED: [&[u8]; 2] = [b"user.", b"system.posix_acl_"];

/// The extended attributes of a file; none if they are damaged, for its content is worth more. That the store or the daemon
/// gives no answer is no such thing.
fn readable(xattrs: Result<Vec<SnapshotXattr>, Failure>) -> Result<Option<Vec<SnapshotXattr>>, Failure> {
    match xattrs {
        Ok(xattrs) => Ok(Some(xattrs)),
        Err(Failure::Client(ClientError::Api(error))) if error.code == ErrorCode::CloudsnapDamaged => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Sets extended attributes as far as they are copied; says whether all of these could be set.
fn set_xattrs(open: &File, xattrs: &[SnapshotXattr]) -> bool {
    let mut all = true;
    for xattr in xattrs {
        let name = xattr.name.as_bytes();
        if XATTRS_COPIED.iter().any(|prefix| name.starts_with(prefix)) {
            all &= fsetxattr(open, name, xattr.value.as_bytes(), XattrFlags::empty()).is_ok();
        }
    }
    all
}

async fn copy_file(
    source: &Source<'_>,
    file: &SnapshotFile,
    to: &Path,
    copied: &mut Copied,
) -> Result<u64, Failure> {
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
    let xattrs = readable(source.xattrs(&file.path).await)?;
    copied.without_xattrs += u64::from(!xattrs.is_some_and(|xattrs| set_xattrs(&out, &xattrs)));
    finish(&out, file).map_err(failed)?;
    Ok(offset_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_finished_only_if_it_is_the_one_that_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let (made, other) = (dir.path().join("made"), dir.path().join("other"));
        let id = make_dir(&made).unwrap().unwrap();
        assert_eq!(fs::metadata(&made).unwrap().mode() & 0o777, 0o700);
        assert_eq!(make_dir(&made).unwrap(), None, "one that is there is none of ours");
        reopen_dir(&made, id).unwrap();
        fs::rename(&made, &other).unwrap();
        symlink(&other, &made).unwrap();
        assert!(reopen_dir(&made, id).is_err(), "a link is not followed");
        assert!(make_dir(&made).is_err());
        fs::remove_file(&made).unwrap();
        make_dir(&made).unwrap();
        assert!(reopen_dir(&made, id).is_err(), "another directory in its place");
        reopen_dir(&other, id).unwrap();
    }
}
