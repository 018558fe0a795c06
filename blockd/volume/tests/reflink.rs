//! Merges on XFS with and without shared extents.
//!
//! The tests need root, loop devices and `mkfs.xfs`; without them they are skipped with a message.

use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::{OpenOptions, Volume, VolumeErrorKind};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const MIB: u64 = 1 << 20;
/// Minimum size for `mkfs.xfs`.
const FILESYSTEM_BYTES: u64 = 300 * MIB;

/// Mounted XFS image; unmounted on drop.
struct Xfs {
    root: tempfile::TempDir,
}

impl Xfs {
    /// Creates and mounts the image; prints the reason and returns `None` if that fails.
    fn mount(reflink: bool) -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(FILESYSTEM_BYTES).unwrap();
        std::fs::create_dir(root.path().join("mnt")).unwrap();
        let reflink = format!("reflink={}", u8::from(reflink));
        let fs = Self { root };
        let image = image.to_str().unwrap();
        let mounted = run("mkfs.xfs", &["-q", "-m", &reflink, image])
            .and_then(|()| run("mount", &["-o", "loop", image, fs.dir().to_str().unwrap()]));
        match mounted {
            Ok(()) => Some(fs),
            Err(error) => {
                eprintln!("skipped: mount of an XFS image failed: {error}");
                None
            }
        }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    fn free_bytes(&self) -> u64 {
        let found = rustix::fs::statvfs(self.dir()).unwrap();
        found.f_bavail * found.f_frsize
    }

    /// Fills the filesystem up to this free space.
    fn fill_up_to(&self, free_bytes: u64) {
        let filler = std::fs::File::create(self.dir().join("filler")).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&filler, flags, 0, self.free_bytes() - free_bytes).unwrap();
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        let _ = run("umount", &[self.dir().to_str().unwrap()]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Creates a volume with a lower layer of 64 MiB and an upper one of 80 other MiB: a merge goes up, because
/// it copies less.
fn volume_in(dir: &Path) -> std::sync::Arc<Volume> {
    let volume = Volume::create(&dir.join("v"), VolumeId::from_u64(3), 256 * MIB).unwrap();
    fill(&volume, 0, 64, 1);
    volume.freeze(SnapshotId::from_u64(1)).unwrap();
    fill(&volume, 64, 80, 2);
    volume.freeze(SnapshotId::from_u64(2)).unwrap();
    volume.delete_snapshot(SnapshotId::from_u64(1)).unwrap();
    volume
}

fn mebibyte(number: u64, round: u64) -> Vec<u8> {
    (0..MIB / 8).flat_map(|word| (number << 40 | word << 8 | round).to_le_bytes()).collect()
}

fn fill(volume: &Volume, start_mib: u64, len_mib: u64, round: u64) {
    for number in start_mib..start_mib + len_mib {
        volume.write(number * MIB, &mebibyte(number, round), false).unwrap();
    }
}

fn check(volume: &Volume) {
    let mut found = vec![0; MIB as usize];
    for number in 0..144 {
        volume.read(number * MIB, &mut found).unwrap();
        assert!(found == mebibyte(number, if number < 64 { 1 } else { 2 }), "MiB {number}");
    }
}

#[test]
fn merge_shares_extents_without_space() {
    let Some(xfs) = Xfs::mount(true) else { return };
    let volume = volume_in(&xfs.dir());
    xfs.fill_up_to(24 * MIB);
    let copied = std::cell::Cell::new(0);
    let merged = volume.merge_next(&|bytes| {
        copied.set(copied.get() + bytes);
        true
    });
    assert!(merged.unwrap());
    // A shared extent counts like the minimum length for sharing.
    assert!((1..=MIB).contains(&copied.get()), "{} bytes", copied.get());
    check(&volume);
    // The removal of the source's file leaves the target as the only user of the extents.
    volume.close().unwrap();
    drop(volume);
    let volume = Volume::open(&xfs.dir().join("v"), &OpenOptions::default()).unwrap();
    check(&volume);
    // A write to a formerly shared extent.
    fill(&volume, 3, 1, 9);
    volume.flush().unwrap();
    let rolled_back = volume.roll_back(SnapshotId::from_u64(2), &|| true).unwrap();
    assert_eq!(rolled_back.changed_blocks, 256);
    check(&volume);
}

#[test]
fn merge_without_shared_extents_needs_space() {
    let Some(xfs) = Xfs::mount(false) else { return };
    let volume = volume_in(&xfs.dir());
    xfs.fill_up_to(24 * MIB);
    let error = volume.merge_next(&|_| true).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::NoSpace, "{error}");
    check(&volume);
    std::fs::remove_file(xfs.dir().join("filler")).unwrap();
    assert!(volume.merge_next(&|_| true).unwrap());
    check(&volume);
}
