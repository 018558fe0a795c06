//! Random changes of files, which use each kind of metadata of a filesystem.

use super::{
    filesystem::{ExportFile, Filesystem, Mount},
    load::start_recorder,
    recorder::Recording,
};
use crate::harness::Rng;
use rustix::fs::{FallocateFlags, XattrFlags};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
};

const MAX_LEN_BYTES: u64 = 200_000;
/// Files that are deleted while they are open.
const MAX_HELD: usize = 4;
/// Steps for each sync, on average.
const STEPS_PER_SYNC: u64 = 4;

/// Records random steps in the empty directory `dir`. The thread must have its own mount namespace.
pub fn record(filesystem: Filesystem, dir: &Path, steps: u64, rng: &mut Rng) -> Recording {
    let recorder = start_recorder(filesystem, dir);
    let disk = ExportFile::of(&recorder.uri(), &dir.join("fuse"));
    let root = dir.join("files");
    let mount = Mount::of(&disk.path(), &root).expect("the filesystem on the recorded disk");
    let mut held = Vec::new();
    for _ in 0..steps {
        match step(&root, rng, &mut held) {
            Err(error) if is_expected(&error) => {}
            done => done.expect("a change of files"),
        }
        if rng.one_in(STEPS_PER_SYNC) {
            let synced = File::open(&root).and_then(|root| Ok(rustix::fs::syncfs(root)?));
            synced.expect("sync the filesystem");
        }
    }
    drop(held);
    mount.end().expect("unmount the recorded disk");
    drop(disk);
    recorder.end()
}

/// Returns true for errors of steps on files that do not exist, or exist already.
fn is_expected(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | AlreadyExists | DirectoryNotEmpty | NotADirectory | IsADirectory)
}

fn step(root: &Path, rng: &mut Rng, held: &mut Vec<File>) -> io::Result<()> {
    let dir = |rng: &mut Rng| root.join(format!("dir-{}", rng.below(4)));
    let file = |rng: &mut Rng| -> PathBuf { dir(rng).join(format!("file-{}", rng.below(12))) };
    let path = file(rng);
    let open = || File::options().write(true).open(&path);
    let (at, len) = (rng.below(MAX_LEN_BYTES), rng.below(MAX_LEN_BYTES));
    match rng.below(20) {
        0..=2 => fs::create_dir(dir(rng)),
        3..=7 => fs::write(&path, rng.bytes(len)),
        8 => open()?.write_all_at(&rng.bytes(len / 10), at),
        9 => open()?.set_len(len),
        10 => Ok(rustix::fs::fallocate(open()?, FallocateFlags::empty(), at, len + 1)?),
        11 => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(open()?, flags, at, len + 1)?)
        }
        12 => fs::rename(&path, file(rng)),
        13 => fs::hard_link(&path, file(rng)),
        14 => symlink("target/".repeat(1 + rng.below(60) as usize), file(rng)),
        15 => {
            let value = rng.bytes(1 + at / 250);
            Ok(rustix::fs::setxattr(&path, "user.value", &value, XattrFlags::empty())?)
        }
        16 | 17 => many(&dir(rng), rng),
        18 => {
            held.push(File::open(&path)?);
            fs::remove_file(&path)?;
            held.drain(..held.len().saturating_sub(MAX_HELD));
            Ok(())
        }
        _ => delete_dir(&dir(rng), held),
    }
}

/// Creates files until the directory has a hash tree, or deletes them.
fn many(dir: &Path, rng: &mut Rng) -> io::Result<()> {
    for number in 0..80 {
        let path = dir.join(format!("{}-{number}", "long name ".repeat(10)));
        if rng.one_in(3) {
            // It may not exist.
            let _ = fs::remove_file(&path);
        } else {
            File::create(&path)?;
        }
    }
    Ok(())
}

/// Deletes a directory that is held open.
fn delete_dir(dir: &Path, held: &mut Vec<File>) -> io::Result<()> {
    let open = File::open(dir)?;
    fs::remove_dir_all(dir)?;
    held.push(open);
    Ok(())
}
