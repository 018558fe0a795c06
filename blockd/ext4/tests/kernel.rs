//! Filesystems written by the kernel: the reader returns the same as the kernel, also from a copy of a
//! mounted filesystem.
//!
//! The tests need root and a loop device, and are skipped with a message otherwise.
use crate::common::{Compare, compare, content, make, noise, open, run, tool};
use blockd_ext4::{InodeNumber, JournalState};
use rustix::fs::{FallocateFlags, XattrFlags, fallocate};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

const ALL: Compare =
    Compare { nanoseconds: true, dir_times: true, xattrs: true, owners: true, allocation: true };

/// Directory of images, in memory if possible, as they are synced often.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { memory } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
    tempfile::Builder::new().prefix("blockd-ext4-").tempdir_in(dir).unwrap()
}

/// Mounted image, unmounted on drop.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Mounts the image; `None` with a message if that is impossible.
    fn new(image: &Path, at: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let output = tool("mount").args(["-o", options]).arg(image).arg(&at).output().unwrap();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("=== SKIPPED: needs root and a loop device: {} ===", stderr.trim());
            return None;
        }
        Some(Self { at })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = tool("umount").arg(&self.at).status();
    }
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Creates structures that e2fsprogs do not: preallocated extents, punched holes, extent trees with several
/// levels, large directories, access lists.
fn fill(root: &Path, has_extents: bool) {
    fs::create_dir_all(root.join("many")).unwrap();
    for number in 0..2000 {
        File::create(root.join(format!("many/a file whose name takes some room, with the number {number}")))
            .unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    for at in [0u64, 5000, 100_000, 300_000, 1_000_000, 30_000_000] {
        sparse.write_all_at(&noise(at, 3000), at).unwrap();
    }
    sparse.set_len(40_000_123).unwrap();
    let scattered = File::create(root.join("scattered")).unwrap();
    for index in 0..1500u64 {
        scattered.write_all_at(&noise(index, 1024), index * 8192).unwrap();
        // Forces the allocation of blocks, so that the file has many extents.
        if index % 100 == 0 {
            scattered.sync_all().unwrap();
        }
    }
    if has_extents {
        // Fills blocks that are freed again, so that unwritten extents contain stale data.
        let before = root.join("before");
        fs::write(&before, noise(99, 3 << 20)).unwrap();
        File::open(&before).unwrap().sync_all().unwrap();
        fs::remove_file(&before).unwrap();
        let allocated = File::create(root.join("allocated")).unwrap();
        fallocate(&allocated, FallocateFlags::empty(), 0, 2 << 20).unwrap();
        allocated.write_all_at(&noise(5, 10_000), 500_000).unwrap();
        fallocate(&allocated, FallocateFlags::KEEP_SIZE, 2 << 20, 1 << 20).unwrap();
        let punched = File::create(root.join("punched")).unwrap();
        punched.write_all_at(&noise(6, 1 << 20), 0).unwrap();
        punched.sync_all().unwrap();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&punched, flags, 100_000, 300_000).unwrap();
        fallocate(&punched, FallocateFlags::ZERO_RANGE, 600_000, 50_000).unwrap();
    }
    for (number, (seconds, nanoseconds)) in
        [(0, 1), (2_147_483_647, 999_999_999), (4_000_000_000, 123_456_789)].into_iter().enumerate()
    {
        let file = File::create(root.join(format!("time-{number}"))).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::new(seconds, nanoseconds)).unwrap();
    }
    let with = root.join("with-xattrs");
    fs::write(&with, b"x").unwrap();
    set_xattr(&with, "user.short", b"value");
    set_xattr(&with, "user.long", &noise(8, 500));
    set_xattr(&with, "security.something", b"\0\x01");
    set_xattr(&with, "trusted.overlay", b"y");
    // In the format of `setxattr`, with a named user and a named group.
    let entries: [(u16, u16, u32); 6] =
        [(1, 6, !0), (2, 4, 1000), (4, 4, !0), (8, 6, 2000), (16, 6, !0), (32, 0, !0)];
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&permissions.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    set_xattr(&with, "system.posix_acl_access", &list);
    set_xattr(&root.join("many"), "system.posix_acl_default", &list);
    for len in [59, 60, 900] {
        std::os::unix::fs::symlink("y".repeat(len), root.join(format!("link-{len}"))).unwrap();
    }
    fs::hard_link(&with, root.join("many/again")).unwrap();
}

/// Compares data and holes by block: the kernel may report data for a hole, but no hole for data.
fn check_holes(fs: &blockd_ext4::Filesystem, root: &Path) {
    for name in ["sparse", "punched", "allocated", "scattered"] {
        let Ok(file) = File::open(root.join(name)) else { continue };
        let inode = fs.resolve(name.as_bytes()).unwrap();
        let bytes = content(fs, &inode);
        let (mut at, mut holes) = (0, 0);
        while at < inode.size_bytes {
            let extent = fs.extent_at(&inode, at).unwrap();
            assert!(extent.end_bytes > at);
            if !extent.is_data {
                holes += 1;
                assert!(
                    bytes[at as usize..extent.end_bytes as usize].iter().all(|byte| *byte == 0),
                    "{name} at {at}"
                );
                let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at));
                assert!(data.is_err() || data.is_ok_and(|data| data >= extent.end_bytes), "{name} at {at}");
            }
            at = extent.end_bytes;
        }
        assert!(holes > 0, "{name}");
    }
}

const KINDS: [(&str, &str); 5] = [
    (
        "ext4, 1k",
        "-t ext4 -b 1024 -I 256 -O has_journal,ext_attr,extents,64bit,flex_bg,metadata_csum,dir_index,extra_isize,huge_file,dir_nlink,filetype -J size=4",
    ),
    (
        "ext4, 4k, inline_data, ea_inode, large_dir",
        "-t ext4 -b 4096 -I 512 -O has_journal,ext_attr,extents,64bit,metadata_csum,metadata_csum_seed,dir_index,extra_isize,inline_data,ea_inode,large_dir,filetype -J size=4",
    ),
    (
        "ext4, 4k, bigalloc",
        "-t ext4 -b 4096 -C 16384 -I 256 -O has_journal,ext_attr,extents,64bit,metadata_csum,bigalloc,dir_index,extra_isize,filetype -J size=4",
    ),
    (
        "ext3",
        "-t ext3 -b 1024 -I 256 -O has_journal,ext_attr,dir_index,filetype,sparse_super,extra_isize -J size=4",
    ),
    ("ext2", "-t ext2 -b 2048 -I 256 -O ext_attr,dir_index,filetype,sparse_super,extra_isize"),
];

#[test]
fn files_written_by_kernel_match() {
    for (name, options) in KINDS {
        let dir = scratch();
        let image = make(dir.path(), "image", options, None, 48 << 10);
        let Some(mounted) = Mounted::new(&image, dir.path().join("at"), "loop,user_xattr,acl") else {
            return;
        };
        fill(&mounted.at, options.contains("extents"));
        if options.contains("ea_inode") {
            set_xattr(&mounted.at.join("with-xattrs"), "user.huge", &noise(9, 30_000));
        }
        drop(mounted);
        let Some(mounted) = Mounted::new(&image, dir.path().join("at"), "loop,ro,user_xattr,acl") else {
            return;
        };
        let fs = open(&image);
        assert!(matches!(fs.info().journal, JournalState::Clean | JournalState::None), "{name}");
        // Before the first read: SEEK_DATA reports unwritten extents with cached pages as data.
        check_holes(&fs, &mounted.at);
        assert!(compare(&fs, InodeNumber::ROOT, &mounted.at, ALL) > 2010, "{name}");
    }
}

#[test]
fn copy_of_mounted_filesystem_matches_kernel() {
    // With `data=journal`, the journal also contains file data. The feature `fast_commit` is off. Without
    // `noinit_itable`, the kernel would initialize inode tables while the copy is made.
    for (kind, mount) in [
        (0, "loop,noinit_itable"),
        (0, "loop,noinit_itable,data=journal"),
        (1, "loop,noinit_itable,journal_checksum"),
        (3, "loop"),
    ] {
        let options = KINDS[kind].1;
        let dir = scratch();
        let image = make(dir.path(), "image", options, None, 48 << 10);
        let Some(mounted) = Mounted::new(&image, dir.path().join("at"), mount) else { return };
        for round in 0..6u64 {
            let below = mounted.at.join(format!("round-{round}"));
            fs::create_dir(&below).unwrap();
            for number in 0..100 {
                fs::write(below.join(format!("file {number}")), noise(round, number * 100)).unwrap();
            }
            if round > 1 {
                // Freed metadata blocks become file data, which causes revocations.
                fs::remove_dir_all(mounted.at.join(format!("round-{}", round - 2))).unwrap();
            }
            rustix::fs::syncfs(File::open(&mounted.at).unwrap()).unwrap();
        }
        let copy = dir.path().join("copy");
        fs::copy(&image, &copy).unwrap();
        drop(mounted);
        let fs = open(&copy);
        assert!(
            matches!(fs.info().journal, JournalState::Replayed { damaged: false, .. }),
            "{mount}: {:?}",
            fs.info()
        );
        let replayed = dir.path().join("replayed");
        fs::copy(&copy, &replayed).unwrap();

        let Some(mounted) = Mounted::new(&replayed, dir.path().join("at"), "loop") else { return };
        assert!(compare(&fs, InodeNumber::ROOT, &mounted.at, ALL) > 200, "{mount}");
        drop(mounted);
        run(tool("e2fsck").args(["-fn"]).arg(&replayed));
    }
}
