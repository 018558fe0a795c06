//! `blockctl cloudsnap cp`: copying files and trees out of a snapshot.
//!
//! The content of a snapshot is untrusted. Files are created where there is none, or replace others if the
//! user asks for it. Directories of the destination are held by descriptor (see
//! [`dir_handle`](super::dir_handle)), so nothing is written outside of it, even if another user renames its
//! directories or replaces them by symbolic links during the copy.

use super::{
    args::CpArgs,
    copied::{Copied, readable, set_xattrs},
    dir_handle::{DirHandle, Original, Staged, raise_open_files},
    source::{FileSource, check_depth, typed_or_escaped, with_escaped_hint},
    sparse_reader::{SparsePart, SparseParts},
    unreadable::is_of_file,
};
use crate::{
    failure::{EXIT_CONFLICT, EXIT_DONE, EXIT_FAILED, Exit, Failure},
    output::Context,
    table::counted,
};
use blockd_api::{
    ByteSize, ClientError, ErrorCode,
    browse::{FileKind, FilePath, SnapshotFile},
};
use jiff::Timestamp;
use rustix::fs::{AtFlags, FileType, Timespec, Timestamps, utimensat};
use std::{
    ffi::{OsStr, OsString},
    fs::{File, FileTimes, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, PermissionsExt, fchown},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

/// Zeroes as long as this become a hole, also where there is none in the snapshot.
const HOLE_BYTES: usize = 4096;

pub async fn run(context: &Context<'_>, args: CpArgs) -> Exit {
    let (snap, paths) = args.files.split()?;
    let source = FileSource::new(context, &snap, args.credential.cred_id).await?;
    raise_open_files();
    let (top, new_name) = open_destination(&args.to)?;
    if paths.len() > 1 && new_name.is_some() {
        return Err(Failure::usage(format!(
            "{} is not a directory: several files can only be copied into a directory",
            args.to.display()
        )));
    }
    let mut copied = Copied::default();
    let existing = match (args.skip_existing, args.overwrite) {
        (true, _) => Existing::Skip,
        (_, true) => Existing::Replace,
        _ => Existing::Refuse,
    };
    for path in &paths {
        let path = typed_or_escaped(path, args.escaped)?;
        let file = match source.list(&path, false).await {
            Err(Failure::Client(ClientError::Api(error))) if error.code == ErrorCode::CloudsnapDamaged => {
                let failure = Failure::Client(error.into());
                skip(&source, &mut copied, path, &failure);
                continue;
            }
            listed => listed.map_err(|error| with_escaped_hint(error, &path, args.escaped))?.file,
        };
        let name = match (&new_name, path.name()) {
            (Some(name), _) => Some(name.clone()),
            // The root of the snapshot is copied into the directory itself.
            (None, b"") => None,
            (None, name) => Some(OsStr::from_bytes(name).to_owned()),
        };
        let to = Destination { dir: Arc::clone(&top), name };
        TreeCopy { source: &source, top: &top, existing, copied: &mut copied }.copy(file, to).await?;
    }
    let output = context.output;
    if output.is_json() {
        output.document(&copied)?;
    } else {
        for path in &copied.left_out {
            output.note(format!("skipped, not a file, directory or link: {path}"));
        }
        copied.xattr_notes().iter().for_each(|note| output.note(note));
        if copied.skipped > 0 {
            output.note(format!("{} skipped, as they exist already", counted(copied.skipped, "file")));
        }
        output.line(format!(
            "Copied {}, {}, {} ({}){}",
            counted(copied.files, "file"),
            counted(copied.links, "link"),
            if copied.directories == 1 {
                "1 directory".into()
            } else {
                format!("{} directories", copied.directories)
            },
            ByteSize::from_bytes(copied.bytes),
            match copied.unreadable.count {
                0 => String::new(),
                count => format!("; {count} not copied, as they cannot be read"),
            }
        ))?;
    }
    Ok(if copied.left_out.is_empty() && copied.unreadable.count == 0 { EXIT_DONE } else { EXIT_FAILED })
}

/// Returns the failure of a file whose metadata cannot be read.
fn unreadable(file: &SnapshotFile, what: &str) -> Failure {
    let message = format!("read failed on {} in the snapshot: its {what} cannot be read", file.path);
    Failure::local(ErrorCode::CloudsnapDamaged.as_str(), EXIT_FAILED, message)
}

/// Counts a file that cannot be read, and prints the first ones; a document lists them instead.
fn skip(source: &FileSource<'_>, copied: &mut Copied, path: FilePath, failure: &Failure) {
    let output = source.context.output;
    if copied.unreadable.add(path, failure.to_string()) && !output.is_json() {
        output.note(format!("not copied: {failure}"));
    }
}

/// Handling of existing files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Existing {
    Refuse,
    Skip,
    Replace,
}

/// Opens the destination directory; with the new name of the copy, unless the directory itself was named.
fn open_destination(to: &Path) -> Result<(Arc<DirHandle>, Option<OsString>), Failure> {
    let failed = |source| Failure::write(to, source);
    match DirHandle::open(to) {
        Ok(dir) => return Ok((Arc::new(dir), None)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) => return Err(failed(error)),
    }
    let name = to.file_name().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let parent = DirHandle::open(to.parent().unwrap_or(Path::new(""))).map_err(failed)?;
    Ok((Arc::new(parent), Some(name.to_owned())))
}

/// Entry of a destination directory; without a name, the directory itself.
#[derive(Debug)]
struct Destination {
    dir: Arc<DirHandle>,
    name: Option<OsString>,
}

impl Destination {
    fn path(&self) -> PathBuf {
        match &self.name {
            Some(name) => self.dir.path_of(name),
            None => self.dir.path().to_owned(),
        }
    }

    /// Returns the name of a file or symbolic link, which cannot replace the directory itself.
    fn name(&self) -> io::Result<&OsStr> {
        self.name.as_deref().ok_or_else(|| io::ErrorKind::IsADirectory.into())
    }
}

/// Step of a copy. Steps are popped from the end, so only directories of one path are open at a time.
#[derive(Debug)]
enum CopyStep {
    /// Copies a file, link or directory.
    Copy(SnapshotFile, Destination),
    /// Sets the attributes of a directory that was created here, when all its entries are complete.
    Finish(SnapshotFile, Arc<DirHandle>),
}

/// Appends the entries of a directory to the steps and counts them: a directory that contains itself would
/// exhaust the memory long before that many files are copied.
fn queue_entries(
    left: &mut Vec<CopyStep>,
    entries: Vec<SnapshotFile>,
    to: &Arc<DirHandle>,
    from: &FilePath,
    copied: &mut Copied,
) -> Result<(), Failure> {
    copied.count_found(entries.len(), from)?;
    left.extend(entries.into_iter().map(|entry| {
        let name = OsStr::from_bytes(entry.path.name()).to_owned();
        CopyStep::Copy(entry, Destination { dir: Arc::clone(to), name: Some(name) })
    }));
    Ok(())
}

/// Copy of a tree.
struct TreeCopy<'a> {
    source: &'a FileSource<'a>,
    top: &'a DirHandle,
    existing: Existing,
    copied: &'a mut Copied,
}

impl TreeCopy<'_> {
    /// Copies a file, link or directory with its entries. Directories that were created here get their modes
    /// and times when their entries are complete; existing ones keep theirs.
    async fn copy(mut self, first: SnapshotFile, to: Destination) -> Result<(), Failure> {
        let from = first.path.clone();
        self.copied.count_found(1, &from)?;
        let mut left = vec![CopyStep::Copy(first, to)];
        while let Some(step) = left.pop() {
            let (file, to) = match step {
                CopyStep::Copy(file, to) => (file, to),
                CopyStep::Finish(file, dir) => {
                    self.finish_dir(&file, &dir).await?;
                    continue;
                }
            };
            check_depth(&file.path)?;
            let path = file.path.clone();
            match self.copy_one(&mut left, file, to, &from).await {
                Err(failure) if is_of_file(&failure) => skip(self.source, self.copied, path, &failure),
                done => done?,
            }
        }
        Ok(())
    }

    /// Copies a file or link, or creates a directory and appends its entries to the steps.
    async fn copy_one(
        &mut self,
        left: &mut Vec<CopyStep>,
        file: SnapshotFile,
        to: Destination,
        from: &FilePath,
    ) -> Result<(), Failure> {
        let failed = |source| Failure::write(&to.path(), source);
        match file.kind {
            FileKind::Directory => {
                // A directory that cannot be read is not created.
                let entries = self.source.list(&file.path, true).await?.list.items;
                let (dir, is_new) = match &to.name {
                    Some(name) => to.dir.make_dir(name).map(|(dir, is_new)| (Arc::new(dir), is_new)),
                    None => Ok((Arc::clone(&to.dir), false)),
                }
                .map_err(failed)?;
                self.copied.directories += 1;
                if is_new {
                    left.push(CopyStep::Finish(file, Arc::clone(&dir)));
                }
                queue_entries(left, entries, &dir, from, self.copied)?;
            }
            FileKind::File | FileKind::Symlink if self.is_skipped(&to)? => self.copied.skipped += 1,
            FileKind::Symlink => {
                let target = file.target.as_ref().ok_or_else(|| unreadable(&file, "target"))?;
                self.copy_symlink(&file, target, &to).map_err(failed)?;
            }
            FileKind::File => self.copy_file(&file, &to).await?,
            FileKind::Damaged => return Err(unreadable(&file, "inode")),
            _ => self.copied.left_out.push(file.path),
        }
        Ok(())
    }

    /// Returns true if an existing file or link is kept.
    ///
    /// # Errors
    /// The entry exists and may be neither kept nor replaced.
    fn is_skipped(&self, to: &Destination) -> Result<bool, Failure> {
        let name = to.name().map_err(|source| Failure::write(&to.path(), source))?;
        let there = to.dir.stat(name);
        match self.existing {
            Existing::Refuse if there.is_ok() => {
                let message = format!("copy failed on {}: it exists already", to.path().display());
                Err(Failure::local("file_exists", EXIT_CONFLICT, message).with_hint(
                    "--overwrite replaces existing files, --skip-existing keeps them and copies the others",
                ))
            }
            Existing::Skip => {
                Ok(there.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory))
            }
            Existing::Refuse | Existing::Replace => Ok(false),
        }
    }

    fn replaces(&self) -> bool {
        self.existing == Existing::Replace
    }

    fn copy_symlink(&mut self, file: &SnapshotFile, target: &FilePath, to: &Destination) -> io::Result<()> {
        let staged = Staged::new(&to.dir, to.name()?);
        let link = staged.create_symlink(OsStr::from_bytes(target.as_bytes()), file.uid, file.gid)?;
        if let Some(modified) = file.modified_at {
            set_link_time(&link, modified)?;
        }
        staged.put(self.replaces())?;
        self.copied.links += 1;
        Ok(())
    }

    async fn copy_file(&mut self, file: &SnapshotFile, to: &Destination) -> Result<(), Failure> {
        let failed = |source| Failure::write(&to.path(), source);
        let (name, replaces) = (to.name().map_err(failed)?, self.replaces());
        let several = file.inode.filter(|_| file.links.is_some_and(|links| links > 1));
        let original = several.and_then(|inode| self.copied.named.get(&inode));
        if let Some(original) = original
            && original.link(self.top, &to.dir, name, replaces).map_err(failed)?
        {
            self.copied.hard_links += 1;
            return Ok(());
        }
        let staged = Staged::new(&to.dir, name);
        let out = staged.create_file().map_err(failed)?;
        self.copied.bytes += copy_content(self.source, file, &out, &staged.path(), self.copied).await?;
        let original = several
            .map(|inode| Ok((inode, Original::of(&out, self.top, &to.dir, name)?)))
            .transpose()
            .map_err(failed)?;
        staged.put(replaces).map_err(failed)?;
        self.copied.named.extend(original);
        self.copied.files += 1;
        Ok(())
    }

    async fn finish_dir(&mut self, file: &SnapshotFile, dir: &DirHandle) -> Result<(), Failure> {
        let failed = |source| Failure::write(dir.path(), source);
        let xattrs = readable(self.source.xattrs(&file.path).await)?;
        let dir = dir.to_file().map_err(failed)?;
        self.copied.note_xattrs(&file.path, xattrs.map(|xattrs| set_xattrs(&dir, &xattrs)));
        finish(&dir, file).map_err(failed)
    }
}

/// Sets owner, mode and time of a complete file, by its descriptor: the name may lead to another file by now.
fn finish(open: &File, file: &SnapshotFile) -> io::Result<()> {
    // Only root can change owners, and a change clears some bits of the mode.
    let _ = fchown(open, Some(file.uid), Some(file.gid));
    // Set-user-ID bits from a snapshot are not trusted here.
    let mode = if file.kind == FileKind::File { file.mode & 0o777 } else { file.mode };
    open.set_permissions(Permissions::from_mode(mode.into()))?;
    if let Some(modified) = file.modified_at {
        let time = SystemTime::from(modified);
        open.set_times(FileTimes::new().set_modified(time))?;
    }
    Ok(())
}

/// Sets the time of a link, not of its target.
fn set_link_time(link: &OwnedFd, modified: Timestamp) -> io::Result<()> {
    let time = Timespec { tv_sec: modified.as_second(), tv_nsec: modified.subsec_nanosecond().into() };
    // Before 1970, nanoseconds of a timestamp are negative.
    let time = match time.tv_nsec < 0 {
        true => Timespec { tv_sec: time.tv_sec - 1, tv_nsec: time.tv_nsec + 1_000_000_000 },
        false => time,
    };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(link, "", &times, AtFlags::EMPTY_PATH)?)
}

/// Copies the content and the attributes of a file; `to` is for messages.
async fn copy_content(
    source: &FileSource<'_>,
    file: &SnapshotFile,
    out: &File,
    to: &Path,
    copied: &mut Copied,
) -> Result<u64, Failure> {
    let failed = |source| Failure::write(to, source);
    let mut offset_bytes = 0;
    let mut pieces = SparseParts::new(source, &file.path);
    while let Some(piece) = pieces.next().await? {
        match piece {
            SparsePart::Hole(len_bytes) => offset_bytes += len_bytes,
            SparsePart::Data(bytes) => {
                write_sparsely(out, offset_bytes, &bytes).map_err(failed)?;
                offset_bytes += bytes.len() as u64;
            }
        }
    }
    // A trailing hole still counts for the length.
    out.set_len(offset_bytes).map_err(failed)?;
    let xattrs = readable(source.xattrs(&file.path).await)?;
    copied.note_xattrs(&file.path, xattrs.map(|xattrs| set_xattrs(out, &xattrs)));
    finish(out, file).map_err(failed)?;
    Ok(offset_bytes)
}

/// Writes bytes to a hole, skipping long zeroes.
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
    use crate::commands::files::source::MAX_FILES;
    use std::{fs, os::unix::fs::MetadataExt};

    #[test]
    fn pending_copies_count_against_limit() {
        let from = FilePath::root().join(b"dir");
        let file = |name: &[u8]| SnapshotFile {
            path: from.join(name),
            kind: FileKind::File,
            size_bytes: 0,
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified_at: None,
            inode: None,
            links: None,
            target: None,
        };
        let mut copied = Copied { found: MAX_FILES - 2, ..Copied::default() };
        let at = tempfile::tempdir().unwrap();
        let (mut left, to) = (Vec::new(), Arc::new(DirHandle::open(at.path()).unwrap()));
        queue_entries(&mut left, vec![file(b"a"), file(b"b")], &to, &from, &mut copied).unwrap();
        let CopyStep::Copy(_, target) = &left[1] else { panic!("{left:?}") };
        assert_eq!(target.path(), at.path().join("b"));
        let refused = queue_entries(&mut left, vec![file(b"c")], &to, &from, &mut copied);
        assert!(matches!(refused, Err(Failure::Local { code: "too_many_files", .. })), "{refused:?}");
        assert_eq!(left.len(), 2, "entries beyond the limit are not queued");
    }

    #[test]
    fn zeroes_become_holes_and_other_bytes_are_written() {
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
