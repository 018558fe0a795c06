//! Space reserve. A separate process: while the reserve is released, all volumes of the process refuse writes
//! that need space.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use blockd_extent::{BlockIndex, SnapshotId, VolumeId};
use blockd_volume::{Reserve, RestoreTarget, Volume, VolumeErrorKind};
use std::sync::Arc;

#[test]
fn released_reserve_refuses_new_blocks_until_it_is_refilled() {
    let dir = tempfile::tempdir().unwrap();
    let reserve = Arc::new(Reserve::open(dir.path()).unwrap());
    let volume = Volume::create(&dir.path().join("v"), VolumeId::from_u64(5), 1 << 20).unwrap();
    volume.write(0, &[1; 4096], false).unwrap();
    let overwritten = Volume::create(&dir.path().join("o"), VolumeId::from_u64(6), 1 << 20).unwrap();
    overwritten.write(0, &[1; 4096], false).unwrap();
    overwritten.freeze(SnapshotId::from_u64(2)).unwrap();
    overwritten.write(0, &[2; 4096], false).unwrap();
    let restored = RestoreTarget::create(&dir.path().join("r"), VolumeId::from_u64(7), 1 << 20).unwrap();
    let file = dir.path().join("space.reserve");
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    assert!(blocks() > 0);
    let first = reserve.release().unwrap();
    let second = reserve.release().unwrap();
    assert_eq!(blocks(), 0);
    for refused in [volume.write(4096, &[2; 4096], false), volume.try_write(4096, &[2; 4096]).map(drop)] {
        assert_eq!(refused.unwrap_err().kind(), VolumeErrorKind::NoSpace);
    }
    volume.write(0, &[3; 4096], true).unwrap();
    volume.write(100, &[3; 10], false).unwrap();
    volume.trim(0, 4096, false).unwrap();
    // A copy-up, a block with freed space, and zeroing that keeps space need space, too.
    let bytes_written = || volume.stats().bytes_written;
    let before = bytes_written();
    for refused in [
        volume.write(8200, &[2; 10], false),
        volume.write(0, &[3; 4096], false),
        volume.write_zeroes(16384, 8192, true, false),
        volume.write_zeroes_fast(16384, 8192, true, false),
    ] {
        assert_eq!(refused.unwrap_err().kind(), VolumeErrorKind::NoSpace);
    }
    assert_eq!((bytes_written(), volume.stats().head_dirty_bytes), (before, 4096));
    volume.write_zeroes(16384, 8192, false, false).unwrap();
    let roll_back = || overwritten.roll_back(SnapshotId::from_u64(2), &|| true).map(drop);
    for refused in [restored.write_blocks(BlockIndex(0), &[7; 4096]), roll_back()] {
        assert_eq!(refused.unwrap_err().kind(), VolumeErrorKind::NoSpace);
    }
    volume.freeze(SnapshotId::from_u64(1)).unwrap();
    volume.delete_snapshot(SnapshotId::from_u64(1)).unwrap();
    assert_eq!(volume.failure(), None);
    drop(first);
    assert!(!reserve.refill() && blocks() == 0, "refilled while an operation uses the space");
    drop(second);
    // The next operation starts before the refill.
    let third = reserve.release().expect("space that was not refilled");
    assert!(!reserve.refill() && blocks() == 0);
    drop(third);
    assert!(reserve.refill() && blocks() > 0);
    volume.write(4096, &[2; 4096], false).unwrap();
    restored.write_blocks(BlockIndex(0), &[7; 4096]).unwrap();
    roll_back().unwrap();
}
