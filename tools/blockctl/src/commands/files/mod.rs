//! `blockctl cloudsnap catalog`, `cat` and `diff`: the files inside cloud snapshots.

pub mod args;
pub mod copied;
pub mod copy;
mod dir_handle;
mod source;
mod sparse_reader;
mod unreadable;

use crate::{
    failure::{EXIT_DONE, Exit, Failure},
    output::Context,
};
use args::{CatArgs, CatalogArgs, DiffFilesArgs};
use blockd_api::{
    Document, List,
    browse::{FileKind, FilePath, SnapshotFile, SnapshotXattr},
    cloudsnaps::CloudSnapshotId,
};
use copied::readable;
use schemars::JsonSchema;
use serde::Serialize;
use source::{FileSource, PIECE_BYTES, check_count, check_depth, typed, typed_or_escaped, with_escaped_hint};
use sparse_reader::{SparseOutput, SparseParts};
use std::{
    cmp::Ordering,
    collections::BTreeMap,
    io::{BufWriter, ErrorKind, Write},
};
use unreadable::Unreadable;

/// Formats type and mode such as `-rwxr-xr-x`.
fn mode_text(file: &SnapshotFile) -> String {
    let kind = match file.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::BlockDevice => 'b',
        FileKind::CharDevice => 'c',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        _ => '?',
    };
    let bits = file.mode;
    let mut text = String::from(kind);
    for (shift, special, (set, unset)) in
        [(6, 0o4000, ('s', 'S')), (3, 0o2000, ('s', 'S')), (0, 0o1000, ('t', 'T'))]
    {
        let here = bits >> shift;
        text.push(if here & 4 != 0 { 'r' } else { '-' });
        text.push(if here & 2 != 0 { 'w' } else { '-' });
        text.push(match (here & 1 != 0, bits & special != 0) {
            (true, true) => set,
            (false, true) => unset,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn line(file: &SnapshotFile) -> String {
    let time = file.modified_at.map_or_else(|| "-".to_owned(), |time| time.strftime("%F %T").to_string());
    let target = file.target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
    let (mode, owner) = (mode_text(file), format!("{}:{}", file.uid, file.gid));
    format!("{mode} {owner:>11} {:>14} {time:>19} {}{target}", file.size_bytes, file.path)
}

/// Visits all files below a path, directories before their entries. Returns those that cannot be read.
async fn walk(
    source: &FileSource<'_>,
    path: FilePath,
    depth: Option<u32>,
    mut tell: impl FnMut(SnapshotFile) -> Result<(), Failure>,
) -> Result<Unreadable, Failure> {
    let mut unreadable = Unreadable::default();
    let top = source.list(&path, false).await?.file;
    let mut count = 1;
    let mut left = Vec::new();
    if top.kind == FileKind::Directory && depth != Some(0) {
        left.push((path.clone(), 1));
    }
    tell(top)?;
    let from = path;
    while let Some((path, level)) = left.pop() {
        check_depth(&path)?;
        let below = source.list(&path, true).await;
        let Some(below) = unreadable.skip(&path, below)? else { continue };
        let mut dirs = Vec::new();
        for file in below.list.items {
            count += 1;
            check_count(count, &from)?;
            if file.kind == FileKind::Damaged {
                let reason = format!("read failed on {} in the snapshot: its metadata is damaged", file.path);
                unreadable.add(file.path.clone(), reason);
            }
            if file.kind == FileKind::Directory && depth.is_none_or(|depth| level < depth) {
                dirs.push((file.path.clone(), level + 1));
            }
            tell(file)?;
        }
        left.extend(dirs.into_iter().rev());
    }
    Ok(unreadable)
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CatalogDocument<'a> {
    cloud_snapshot_id: CloudSnapshotId,
    path: &'a FilePath,
    /// Files, directories before their entries.
    #[serde(flatten)]
    list: List<SnapshotFile>,
    #[serde(flatten)]
    unreadable: &'a Unreadable,
}

pub async fn catalog(context: &Context<'_>, args: CatalogArgs) -> Exit {
    let source = FileSource::new(context, &args.snap.snap, args.credential.cred_id).await?;
    let path = typed_or_escaped(&args.path, args.escaped)?;
    let explain = |error| with_escaped_hint(error, &path, args.escaped);
    let output = context.output;
    let failed = |source| match &args.output {
        Some(path) => Failure::write(path, source),
        None => Failure::stdout(source),
    };
    let mut file = match &args.output {
        Some(path) => Some(BufWriter::new(std::fs::File::create(path).map_err(failed)?)),
        None => None,
    };
    let unreadable;
    if output.is_json() {
        let mut files = Vec::new();
        let walked = walk(&source, path.clone(), args.depth, |file| {
            files.push(file);
            Ok(())
        });
        unreadable = walked.await.map_err(explain)?;
        let document = CatalogDocument {
            cloud_snapshot_id: source.snap,
            path: &path,
            list: files.into(),
            unreadable: &unreadable,
        };
        match &mut file {
            Some(file) => {
                serde_json::to_writer_pretty(&mut *file, &Document::new(&document))
                    .map_err(|error| failed(error.into()))?;
                file.write_all(b"\n").map_err(failed)?;
            }
            None => drop(output.document(&document)?),
        }
    } else {
        let walked = walk(&source, path.clone(), args.depth, |found| match &mut file {
            Some(file) => writeln!(file, "{}", line(&found)).map_err(failed),
            None => output.line(line(&found)).map(drop),
        });
        unreadable = walked.await.map_err(explain)?;
        unreadable.report(output);
    }
    if let Some(mut file) = file {
        file.flush().map_err(failed)?;
    }
    Ok(unreadable.exit_status())
}

pub async fn cat(context: &Context<'_>, args: CatArgs) -> Exit {
    if context.output.is_json() {
        return Err(Failure::usage("cat writes raw bytes, which are not JSON: omit --json"));
    }
    let (snap, paths) = args.files.split()?;
    let source = FileSource::new(context, &snap, args.credential.cred_id).await?;
    let mut stdout = SparseOutput::stdout().map_err(Failure::stdout)?;
    for path in &paths {
        let path = typed_or_escaped(path, args.escaped)?;
        let mut pieces = SparseParts::new(&source, &path);
        let explain = |error| with_escaped_hint(error, &path, args.escaped);
        while let Some(piece) = pieces.next().await.map_err(explain)? {
            match stdout.write(&piece) {
                // The reader closed the pipe, as `head` does.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(EXIT_DONE),
                written => written.map_err(Failure::stdout)?,
            }
        }
    }
    Ok(EXIT_DONE)
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ChangeKind {
    Added,
    Removed,
    Changed,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangedFile {
    change: ChangeKind,
    path: FilePath,
    kind: FileKind,
    /// Differing properties of a file that is in both.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<&'static str>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiffDocument {
    from_cloud_snapshot_id: CloudSnapshotId,
    to_cloud_snapshot_id: CloudSnapshotId,
    /// Changed files, by path.
    #[serde(flatten)]
    list: List<ChangedFile>,
    #[serde(flatten)]
    unreadable: Unreadable,
}

/// Returns the differing properties of two versions of a file.
fn differences(a: &SnapshotFile, b: &SnapshotFile) -> Vec<&'static str> {
    let mut what = Vec::new();
    if a.kind != b.kind {
        what.push("kind");
    }
    // Sizes of directories follow their entries, which are listed separately.
    if a.kind != FileKind::Directory || b.kind != FileKind::Directory {
        if a.size_bytes != b.size_bytes {
            what.push("size");
        }
        if a.modified_at != b.modified_at {
            what.push("time");
        }
    }
    if a.mode != b.mode {
        what.push("mode");
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        what.push("owner");
    }
    if a.target != b.target {
        what.push("target");
    }
    what
}

async fn same_content(a: &FileSource<'_>, b: &FileSource<'_>, path: &FilePath) -> Result<bool, Failure> {
    let mut offset_bytes = 0;
    loop {
        let left = a.read(path, offset_bytes, PIECE_BYTES).await?;
        let right = b.read(path, offset_bytes, PIECE_BYTES).await?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
        offset_bytes += left.len() as u64;
    }
}

/// Returns true if extended attributes, with access lists and capabilities, are equal. Damaged ones never
/// are.
async fn same_attributes(
    a: &FileSource<'_>,
    b: &FileSource<'_>,
    file: &SnapshotFile,
) -> Result<bool, Failure> {
    if file.kind == FileKind::Damaged {
        return Ok(true);
    }
    let (a, b) = (readable(a.xattrs(&file.path).await)?, readable(b.xattrs(&file.path).await)?);
    let by_name = |xattrs: Vec<SnapshotXattr>| {
        let pairs = xattrs.into_iter().map(|xattr| (xattr.name, xattr.value));
        pairs.collect::<BTreeMap<_, _>>()
    };
    Ok(a.zip(b).is_some_and(|(a, b)| by_name(a) == by_name(b)))
}

pub async fn diff(context: &Context<'_>, args: DiffFilesArgs) -> Exit {
    let cred_id = args.credential.cred_id;
    let from = FileSource::new(context, &args.from, cred_id.clone()).await?;
    let to = FileSource::new(context, &args.to, cred_id).await?;
    let output = context.output;
    let (mut changes, unreadable) = find_changes(&from, &to, typed(&args.path), args.content).await?;
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    if output.is_json() {
        let status = unreadable.exit_status();
        output.document(&DiffDocument {
            from_cloud_snapshot_id: from.snap,
            to_cloud_snapshot_id: to.snap,
            list: changes.into(),
            unreadable,
        })?;
        return Ok(status);
    }
    if changes.is_empty() {
        output.note(match unreadable.count {
            0 => "no changes",
            _ => "no changes in the files that can be read",
        });
    }
    for change in &changes {
        let (sign, what) = match change.change {
            ChangeKind::Added => ('+', String::new()),
            ChangeKind::Removed => ('-', String::new()),
            ChangeKind::Changed => ('M', format!(" ({})", change.differences.join(", "))),
        };
        let slash = if change.kind == FileKind::Directory { "/" } else { "" };
        output.line(format!("{sign} {}{slash}{what}", change.path))?;
    }
    unreadable.report(output);
    Ok(unreadable.exit_status())
}

/// Compares all files below a path. Returns the changed ones, and those that cannot be read in one of the
/// cloud snapshots.
async fn find_changes(
    from: &FileSource<'_>,
    to: &FileSource<'_>,
    top: FilePath,
    content: bool,
) -> Result<(Vec<ChangedFile>, Unreadable), Failure> {
    let (mut changes, mut unreadable, mut seen) = (Vec::new(), Unreadable::default(), 0);
    let mut left = vec![top.clone()];
    while let Some(path) = left.pop() {
        check_depth(&path)?;
        let listed = async { Ok((from.list(&path, true).await?, to.list(&path, true).await?)) };
        let (a, b) = match listed.await {
            // A top directory that cannot be read fails the command.
            listed if path == top => listed?,
            listed => match unreadable.skip(&path, listed)? {
                Some(both) => both,
                None => continue,
            },
        };
        let mut dirs = Vec::new();
        for pair in pairs(a.list.items, b.list.items) {
            seen += 1;
            check_count(seen, &top)?;
            let (change, file, what) = match pair {
                (Some(a), None) => (ChangeKind::Removed, a, Vec::new()),
                (None, Some(b)) => (ChangeKind::Added, b, Vec::new()),
                (Some(a), Some(b)) => {
                    let what = changed(from, to, &a, &b, content).await;
                    let what = unreadable.skip(&b.path, what)?.unwrap_or_default();
                    if a.kind == FileKind::Directory && b.kind == FileKind::Directory {
                        dirs.push(b.path.clone());
                    }
                    if what.is_empty() {
                        continue;
                    }
                    (ChangeKind::Changed, b, what)
                }
                (None, None) => continue,
            };
            changes.push(ChangedFile { change, path: file.path, kind: file.kind, differences: what });
        }
        left.extend(dirs.into_iter().rev());
    }
    Ok((changes, unreadable))
}

/// Pairs the entries of two directories, each in the order of its paths.
fn pairs(
    a: Vec<SnapshotFile>,
    b: Vec<SnapshotFile>,
) -> impl Iterator<Item = (Option<SnapshotFile>, Option<SnapshotFile>)> {
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    std::iter::from_fn(move || {
        let order = match (a.peek(), b.peek()) {
            (Some(a), Some(b)) => a.path.as_bytes().cmp(b.path.as_bytes()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        Some((a.next_if(|_| order.is_le()), b.next_if(|_| order.is_ge())))
    })
}

/// Names the differences of a file.
async fn changed(
    from: &FileSource<'_>,
    to: &FileSource<'_>,
    a: &SnapshotFile,
    b: &SnapshotFile,
    content: bool,
) -> Result<Vec<&'static str>, Failure> {
    let mut what = differences(a, b);
    let can_differ = content && what.is_empty() && b.kind == FileKind::File;
    if can_differ && !same_content(from, to, &b.path).await? {
        what.push("content");
    }
    if content && !same_attributes(from, to, b).await? {
        what.push("attributes");
    }
    Ok(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    fn file(kind: FileKind, mode: u16) -> SnapshotFile {
        SnapshotFile {
            path: FilePath::root().join(b"a"),
            kind,
            size_bytes: 5,
            mode,
            uid: 0,
            gid: 1000,
            modified_at: None,
            inode: None,
            links: None,
            target: None,
        }
    }

    #[test]
    fn printed_paths_are_accepted_escaped() {
        for name in [&b"new\nline"[..], b"100%41", b"\xff\xfe", b"plain", "\u{fc}".as_bytes()] {
            let path = FilePath::root().join(b"odd").join(name);
            let shown = path.to_string();
            assert_eq!(typed_or_escaped(OsStr::new(&shown), true).unwrap(), path, "{shown}");
            assert_eq!(typed_or_escaped(OsStr::from_bytes(path.as_bytes()), false).unwrap(), path);
        }
        assert!(typed_or_escaped(OsStr::new("/a%4"), true).is_err());
    }

    #[test]
    fn differences_of_files_are_named() {
        let a = file(FileKind::File, 0o644);
        assert!(differences(&a, &a).is_empty());
        let b = SnapshotFile { size_bytes: 6, mode: 0o600, uid: 1, ..a.clone() };
        assert_eq!(differences(&a, &b), ["size", "mode", "owner"]);
        let dir = file(FileKind::Directory, 0o755);
        assert!(differences(&dir, &SnapshotFile { size_bytes: 9, ..dir.clone() }).is_empty());
    }
}
