//! `blockctl cloudsnap cp`: copying files and trees out of a snapshot.
//!
//! What is in a snapshot was written by others. Files are made where nothing is yet, or replace others if that is wanted, and directories that are there are
//! entered only if they are no links, so nothing is written outside of the place that was named.

use super::{
    Context, counted,
    files::{Source, check_count, check_depth, typed_or_escaped},
    in_place::{Identity, Staged},
    pieces::{Piece, Pieces},
};
use crate::{
    cli::files::CpArgs,
    failure::{EXIT_DONE, EXIT_FAILED, Failure},
};
use blockd_api::{
    ByteSize, ClientError, ErrorCode,
    browse::{FileKind, FilePath, SnapshotFile, SnapshotXattr},
};
use jiff::Timestamp;
use rustix::{
    fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, XattrFlags, fsetxattr, utimensat},
    io::Errno,
};
use serde::Serialize;
use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, DirBuilder, File, FileTimes, OpenOptions, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown, symlink},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Zeroes as long as this become a hole, also where there is none in the snapshot.
const HOLE_BYTES: usize = 4096;
/// Most refused attributes that are named; all are counted.
const REFUSED_NAMED_MOST: usize = 20;

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    files: u64,
    directories: u64,
    links: u64,
    /// More names of files that were copied.
    hard_links: u64,
    /// Files and links that were there already, and stay as they are.
    skipped: u64,
    bytes: u64,
    /// Files and directories that lack extended attributes which were to be copied: those of both numbers that follow.
    without_xattrs: u64,
    /// Files and directories with attributes that could not be set where they were copied to.
    xattrs_refused: u64,
    /// Files and directories whose attributes cannot be read in the snapshot.
    xattrs_damaged: u64,
    /// Files and directories with attributes that are never copied.
    xattrs_left_out: u64,
    /// The first attributes that could not be set, and why.
    refused_xattrs: Vec<RefusedXattr>,
    /// What is neither, and was left out.
    left_out: Vec<FilePath>,
    /// How many there are in all as far as it is known: those that are still to be copied, too.
    #[serde(skip)]
    found: usize,
    /// Where the files went that have several names, by their numbers.
    #[serde(skip)]
    named: HashMap<u64, Identity>,
}

/// An extended attribute that could not be set.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RefusedXattr {
    path: FilePath,
    name: FilePath,
    reason: String,
}

impl Copied {
    /// Notes that there are so many more to be copied, unless they are too many.
    fn note_found(&mut self, count: usize, from: &FilePath) -> Result<(), Failure> {
        self.found = self.found.saturating_add(count);
        check_count(self.found, from)
    }

    /// Notes what became of the extended attributes of a file; of those that are damaged in the snapshot nothing did.
    fn note_xattrs(&mut self, path: &FilePath, set: Option<XattrsSet>) {
        let Some(set) = set else {
            self.xattrs_damaged += 1;
            self.without_xattrs += 1;
            return;
        };
        self.xattrs_left_out += u64::from(set.left_out);
        if set.refused.is_empty() {
            return;
        }
        self.xattrs_refused += 1;
        self.without_xattrs += 1;
        let room = REFUSED_NAMED_MOST.saturating_sub(self.refused_xattrs.len());
        self.refused_xattrs.extend(set.refused.into_iter().take(room).map(|(name, error)| RefusedXattr {
            path: path.clone(),
            name: FilePath::from_bytes(name),
            reason: io::Error::from(error).to_string(),
        }));
    }

    /// What is to be said of extended attributes.
    fn xattr_notes(&self) -> Vec<String> {
        let named = self.refused_xattrs.iter();
        let mut notes: Vec<String> = named
            .map(|one| format!("{}: {} cannot be set there: {}", one.path, one.name, one.reason))
            .collect();
        let of = |count: u64| counted(count, "file");
        if self.xattrs_refused > 0 {
            let what = of(self.xattrs_refused);
            notes.push(format!(
                "extended attributes of {what} or directories could not be set where they went"
            ));
        }
        if self.xattrs_damaged > 0 {
            let what = of(self.xattrs_damaged);
            notes.push(format!("extended attributes of {what} or directories are damaged in the snapshot"));
        }
        if self.xattrs_left_out > 0 {
            let what = of(self.xattrs_left_out);
            notes.push(format!(
                "{what} or directories have extended attributes that are not copied: only user.* and access lists are"
            ));
        }
        notes
    }
}

pub async fn run(context: &Context<'_>, args: CpArgs) -> Result<u8, Failure> {
    let snap = args.snap.resolve(context, args.credential.cred_id.as_ref()).await?;
    let source = Source { context, snap, cred_id: args.credential.cred_id };
    let into_dir = args.to.is_dir();
    if args.paths.len() > 1 && !into_dir {
        return Err(Failure::usage(format!(
            "{} is no directory: several things can only be copied into one",
            args.to.display()
        )));
    }
    let mut copied = Copied::default();
    let existing = match (args.skip_existing, args.overwrite) {
        (true, _) => Existing::Skip,
        (_, true) => Existing::Replace,
        _ => Existing::Refuse,
    };
    for path in &args.paths {
        let path = typed_or_escaped(path, args.escaped)?;
        let file = source.list(&path, false).await?.file;
        let to = match (into_dir, path.name()) {
            (false, _) | (true, b"") => args.to.clone(),
            (true, name) => args.to.join(OsStr::from_bytes(name)),
        };
        copy_tree(&source, file, to, existing, &mut copied).await?;
    }
    let output = context.output;
    if output.is_json() {
        output.document(&copied)?;
    } else {
        for path in &copied.left_out {
            output.note(format!("left out, as it is no file, directory or link: {path}"));
        }
        copied.xattr_notes().iter().for_each(|note| output.note(note));
        if copied.skipped > 0 {
            output
                .note(format!("{} left as they were, being there already", counted(copied.skipped, "file")));
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

/// What becomes of files that are there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Existing {
    Refuse,
    Skip,
    Replace,
}

/// What is still to be copied, and where to.
type Queue = Vec<(SnapshotFile, PathBuf)>;

/// Puts what is in a directory at the end of a queue. It counts from then on: a directory that contains itself would fill the
/// memory long before that much is copied.
fn queue_entries(
    left: &mut Queue,
    entries: Vec<SnapshotFile>,
    to: &Path,
    from: &FilePath,
    copied: &mut Copied,
) -> Result<(), Failure> {
    copied.note_found(entries.len(), from)?;
    left.extend(entries.into_iter().map(|entry| {
        let to = to.join(OsStr::from_bytes(entry.path.name()));
        (entry, to)
    }));
    Ok(())
}

/// Copies one thing and what is in it. Directories that were made here get their modes and times last, when nothing is put
/// into them any more; those that were there keep theirs.
async fn copy_tree(
    source: &Source<'_>,
    top: SnapshotFile,
    to: PathBuf,
    existing: Existing,
    copied: &mut Copied,
) -> Result<(), Failure> {
    let mut made_dirs = Vec::new();
    let from = top.path.clone();
    copied.note_found(1, &from)?;
    let mut left: Queue = vec![(top, to)];
    while let Some((file, to)) = left.pop() {
        check_depth(&file.path)?;
        let failed = |source| Failure::Write { path: to.clone(), source };
        if existing == Existing::Skip
            && matches!(file.kind, FileKind::File | FileKind::Symlink)
            && let Ok(there) = fs::symlink_metadata(&to)
            && !there.is_dir()
        {
            copied.skipped += 1;
            continue;
        }
        if existing == Existing::Refuse
            && matches!(file.kind, FileKind::File | FileKind::Symlink)
            && fs::symlink_metadata(&to).is_ok()
        {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let replaces = existing == Existing::Replace;
        match file.kind {
            FileKind::Directory => {
                let made = make_dir(&to).map_err(failed)?;
                copied.directories += 1;
                let entries = source.list(&file.path, true).await?.entries;
                queue_entries(&mut left, entries, &to, &from, copied)?;
                made_dirs.extend(made.map(|made| (file, to, made)));
            }
            FileKind::Symlink => {
                let target = file.target.as_ref().map(FilePath::as_bytes).unwrap_or_default();
                let staged = Staged::new(&to);
                symlink(OsStr::from_bytes(target), staged.path()).map_err(failed)?;
                // Whoever is not root cannot give things away.
                let _ = lchown(staged.path(), Some(file.uid), Some(file.gid));
                if let Some(modified) = file.modified {
                    set_link_time(staged.path(), modified).map_err(failed)?;
                }
                staged.put(replaces).map_err(failed)?;
                copied.links += 1;
            }
            FileKind::File => {
                let several = file.inode.filter(|_| file.links.is_some_and(|links| links > 1));
                let first = several.and_then(|inode| copied.named.get(&inode));
                if let Some(first) = first
                    && first.link(&to, replaces).map_err(failed)?
                {
                    copied.hard_links += 1;
                    continue;
                }
                let staged = Staged::new(&to);
                copied.bytes += copy_file(source, &file, staged.path(), copied).await?;
                let identity =
                    several.map(|_| Identity::of(staged.path(), &to)).transpose().map_err(failed)?;
                staged.put(replaces).map_err(failed)?;
                if let (Some(inode), Some(identity)) = (several, identity) {
                    copied.named.insert(inode, identity);
                }
                copied.files += 1;
            }
            _ => copied.left_out.push(file.path),
        }
    }
    for (file, to, made) in made_dirs.into_iter().rev() {
        let failed = |source| Failure::Write { path: to.clone(), source };
        let xattrs = readable(source.xattrs(&file.path).await)?;
        let dir = reopen_dir(&to, made).map_err(failed)?;
        copied.note_xattrs(&file.path, xattrs.map(|xattrs| set_xattrs(&dir, &xattrs)));
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

/// The time of a link, and not of what it leads to.
fn set_link_time(path: &Path, modified: Timestamp) -> io::Result<()> {
    let time = Timespec { tv_sec: modified.as_second(), tv_nsec: modified.subsec_nanosecond().into() };
    // Before 1970, nanoseconds of a timestamp are negative.
    let time = match time.tv_nsec < 0 {
        true => Timespec { tv_sec: time.tv_sec - 1, tv_nsec: time.tv_nsec + 1_000_000_000 },
        false => time,
    };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// What names of extended attributes begin with that are copied: those of users, and lists of who may do what. Others give
/// rights, which a file of others does not get here, or are of the system that they come from.
const XATTRS_COPIED: [&[u8]; 2] = [b"user.", b"system.posix_acl_"];

/// The extended attributes of a file; none if they are damaged, for its content is worth more. That the store or the daemon
/// gives no answer is no such thing.
pub fn readable(xattrs: Result<Vec<SnapshotXattr>, Failure>) -> Result<Option<Vec<SnapshotXattr>>, Failure> {
    match xattrs {
        Ok(xattrs) => Ok(Some(xattrs)),
        Err(Failure::Client(ClientError::Api(error))) if error.code == ErrorCode::CloudsnapDamaged => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What became of the extended attributes of a file.
#[derive(Default)]
struct XattrsSet {
    /// Those that could not be set, and why.
    refused: Vec<(Vec<u8>, Errno)>,
    /// There are others, which are never copied.
    left_out: bool,
}

/// Sets extended attributes as far as they are copied.
fn set_xattrs(open: &File, xattrs: &[SnapshotXattr]) -> XattrsSet {
    let mut set = XattrsSet::default();
    for xattr in xattrs {
        let name = xattr.name.as_bytes();
        if !XATTRS_COPIED.iter().any(|prefix| name.starts_with(prefix)) {
            set.left_out = true;
        } else if let Err(error) = fsetxattr(open, name, xattr.value.as_bytes(), XattrFlags::empty()) {
            set.refused.push((name.to_vec(), error));
        }
    }
    set
}

async fn copy_file(
    source: &Source<'_>,
    file: &SnapshotFile,
    to: &Path,
    copied: &mut Copied,
) -> Result<u64, Failure> {
    let failed = |source| Failure::Write { path: to.to_owned(), source };
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(failed)?;
    let mut offset_bytes = 0;
    let mut pieces = Pieces::new(source, &file.path);
    while let Some(piece) = pieces.next().await? {
        match piece {
            Piece::Hole(len_bytes) => offset_bytes += len_bytes,
            Piece::Data(bytes) => {
                write_sparsely(&out, offset_bytes, &bytes).map_err(failed)?;
                offset_bytes += bytes.len() as u64;
            }
        }
    }
    // What ends in a hole is that long all the same.
    out.set_len(offset_bytes).map_err(failed)?;
    let xattrs = readable(source.xattrs(&file.path).await)?;
    copied.note_xattrs(&file.path, xattrs.map(|xattrs| set_xattrs(&out, &xattrs)));
    finish(&out, file).map_err(failed)?;
    Ok(offset_bytes)
}

/// Writes bytes to a place where there is nothing yet, but no long zeroes.
fn write_sparsely(out: &File, offset_bytes: u64, bytes: &[u8]) -> io::Result<()> {
    let is_zero = |part: &[u8]| part.iter().all(|byte| *byte == 0);
    let (mut from, mut at) = (0, 0);
    for part in bytes.chunks(HOLE_BYTES) {
        if is_zero(part) {
            out.write_all_at(&bytes[from..at], offset_bytes + from as u64)?;
            from = at + part.len();
        }
        at += part.len();
    }
    out.write_all_at(&bytes[from..], offset_bytes + from as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::files::FILES_MOST;

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

    #[test]
    fn what_waits_to_be_copied_counts() {
        let from = FilePath::root().join(b"dir");
        let file = |name: &[u8]| SnapshotFile {
            path: from.join(name),
            kind: FileKind::File,
            size_bytes: 0,
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: None,
            inode: None,
            links: None,
            target: None,
        };
        let mut copied = Copied { found: FILES_MOST - 2, ..Copied::default() };
        let (mut left, to) = (Queue::new(), Path::new("to"));
        queue_entries(&mut left, vec![file(b"a"), file(b"b")], to, &from, &mut copied).unwrap();
        assert_eq!(left[1].1, Path::new("to/b"));
        let refused = queue_entries(&mut left, vec![file(b"c")], to, &from, &mut copied);
        assert!(matches!(refused, Err(Failure::TooManyFiles { most: FILES_MOST, .. })), "{refused:?}");
        assert_eq!(left.len(), 2, "what is too much is not kept");
    }

    fn xattr(name: &str) -> SnapshotXattr {
        let bytes = |text: &str| FilePath::from_bytes(text.as_bytes().to_vec());
        SnapshotXattr { name: bytes(name), value: bytes("value") }
    }

    #[test]
    fn attributes_that_are_refused_damaged_or_left_out_are_told_apart() {
        let path = FilePath::root().join(b"file");
        let mut copied = Copied::default();
        // A device takes no attributes of users, whoever asks.
        let device = File::open("/dev/null").unwrap();
        copied.note_xattrs(&path, Some(set_xattrs(&device, &[])));
        assert!(copied.xattr_notes().is_empty() && copied.without_xattrs == 0, "a file without any");
        copied.note_xattrs(&path, Some(set_xattrs(&device, &[xattr("security.selinux")])));
        assert_eq!((copied.xattrs_left_out, copied.without_xattrs), (1, 0));
        copied.note_xattrs(&path, None);
        assert_eq!((copied.xattrs_damaged, copied.xattrs_refused, copied.without_xattrs), (1, 0, 1));
        for _ in 0..REFUSED_NAMED_MOST {
            copied.note_xattrs(&path, Some(set_xattrs(&device, &[xattr("user.a"), xattr("user.b")])));
        }
        assert_eq!((copied.xattrs_refused, copied.without_xattrs), (20, 21));
        let named = &copied.refused_xattrs;
        assert!(named.len() == REFUSED_NAMED_MOST && named[1].name.to_string() == "user.b");
        assert!(!named[0].reason.is_empty());
        assert_eq!(copied.xattr_notes().len(), REFUSED_NAMED_MOST + 3);
    }

    #[test]
    fn zeroes_are_not_written_and_all_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; 10 * HOLE_BYTES + 77];
        for at in [0, 1, 5, 9] {
            bytes[at * HOLE_BYTES] = 7;
        }
        for tail in [0, 9] {
            *bytes.last_mut().unwrap() = tail;
            let path = dir.path().join(format!("file {tail}"));
            let file = File::create(&path).unwrap();
            let at = 1 << 20;
            write_sparsely(&file, at, &bytes).unwrap();
            file.set_len(at + bytes.len() as u64).unwrap();
            assert!(fs::read(&path).unwrap()[at as usize..] == bytes);
            assert!(fs::metadata(&path).unwrap().blocks() * 512 <= 6 * HOLE_BYTES as u64);
        }
    }
}
