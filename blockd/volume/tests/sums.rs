//! Damage of data on the disk is found by the checksums of a layer's blocks.

use crate::altered::{BLOCKS, ID, create, flip, snapshot, write};
use crate::support::{merge_all, open, paths_in, volume_dir};
use blockd_extent::{BlockIndex, Extent, VolumeId};
use blockd_volume::{SnapshotView, Volume, VolumeError, VolumeErrorKind};
use std::sync::atomic::{AtomicU64, Ordering};

fn read(view: &SnapshotView) -> Result<Vec<u8>, VolumeError> {
    let mut content = vec![0; view.size_bytes() as usize];
    view.read_extents(&[Extent::whole(view.size_bytes())], &mut content).map(|()| content)
}

fn damaged_block(result: Result<Vec<u8>, VolumeError>) -> Option<(u64, u64)> {
    match result {
        Ok(_) => None,
        Err(error) => {
            assert_eq!(error.kind(), VolumeErrorKind::Damaged);
            assert!(!error.is_retryable());
            match error {
                VolumeError::DamagedBlocks { volume, first, len_blocks } => {
                    assert_eq!(volume, ID);
                    Some((first.0, len_blocks))
                }
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn flipped_bit_fails_reads_of_its_block_only() {
    let (_root, dir) = volume_dir();
    let volume = create(&dir);
    let before = read(&volume.view(snapshot(3)).unwrap()).unwrap();
    assert_eq!(flip(&dir, 13, 3 * 16), 1);
    let view = volume.view(snapshot(3)).unwrap();
    assert_eq!(damaged_block(read(&view)), Some((13, 1)));
    let mut rest = vec![0; 13 * 4096];
    view.read_extents(&[Extent::new(BlockIndex(0), 13)], &mut rest).unwrap();
    assert_eq!(rest, before[..13 * 4096]);
    // An older snapshot has the block from another layer.
    read(&volume.view(snapshot(2)).unwrap()).unwrap();
    drop(view);
    volume.close().unwrap();
    drop(volume);
    let volume = open(&dir);
    assert_eq!(volume.check().findings, Vec::<String>::new());
    assert_eq!(damaged_block(read(&volume.view(snapshot(3)).unwrap())), Some((13, 1)));
}

#[test]
fn merged_layer_keeps_its_checksums() {
    // Snapshot 1 is merged up or down, depending on the smaller copy.
    for extra in [0, 30] {
        let (_root, dir) = volume_dir();
        let volume = Volume::create(&dir, ID, BLOCKS * 4096).unwrap();
        for block in 0..8 + extra {
            write(&volume, block, 16);
        }
        volume.freeze(snapshot(1)).unwrap();
        for block in 4..16 {
            write(&volume, block, 32);
        }
        volume.grow(2 * BLOCKS * 4096).unwrap();
        volume.freeze(snapshot(2)).unwrap();
        read(&volume.view(snapshot(1)).unwrap()).unwrap();
        let before = read(&volume.view(snapshot(2)).unwrap()).unwrap();
        volume.delete_snapshot(snapshot(1)).unwrap();
        merge_all(&volume);
        let is_sums = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "sums");
        assert_eq!(paths_in(&dir).into_iter().filter(is_sums).count(), 1, "{:?}", paths_in(&dir));
        assert_eq!((flip(&dir, 1, 16), flip(&dir, 9, 32)), (1, 1));
        assert_eq!(damaged_block(read(&volume.view(snapshot(2)).unwrap())), Some((1, 2)), "{extra}");
        assert_eq!((flip(&dir, 1, 16 ^ 8), flip(&dir, 9, 32 ^ 8)), (1, 1));
        assert_eq!(read(&volume.view(snapshot(2)).unwrap()).unwrap(), before);
    }
}

/// The checks between parts of the checksums stop a merge, too. The parts are 1 GiB of content.
#[test]
fn merge_stopped_at_any_step_keeps_its_checksums() {
    let gib = (1 << 30) / 4096;
    let distant = [3, 2 * gib, 4 * gib];
    // Merges down, then up.
    for lower_is_large in [true, false] {
        let mut stops = 0;
        loop {
            let (_root, dir) = volume_dir();
            let volume = Volume::create(&dir, ID, 5 << 30).unwrap();
            let write_all = |number: u8, count: u64| {
                distant.iter().for_each(|at| (0..count).for_each(|n| write(&volume, at + n, number * 16)));
                volume.freeze(snapshot(number.into())).unwrap();
                let view = volume.view(snapshot(number.into())).unwrap();
                let extents = distant.map(|at| Extent::new(BlockIndex(at), 8));
                view.read_extents(&extents, &mut [0; 3 * 8 * 4096]).unwrap();
            };
            write_all(1, if lower_is_large { 8 } else { 3 });
            write_all(2, if lower_is_large { 2 } else { 1 });
            volume.delete_snapshot(snapshot(1)).unwrap();
            let calls = AtomicU64::new(0);
            let is_merged = volume.merge_next(&|_| calls.fetch_add(1, Ordering::Relaxed) != stops).unwrap();
            assert_eq!(is_merged, calls.into_inner() <= stops);
            merge_all(&volume);
            let view = volume.view(snapshot(2)).unwrap();
            for at in distant {
                for (block, byte) in [(at, 32), (at + 2, 16)] {
                    let extent = Extent::new(BlockIndex(block), 1);
                    view.read_extents(&[extent], &mut [0; 4096]).unwrap();
                    assert_eq!(flip(&dir, block, byte), 1);
                    let read = view.read_extents(&[extent], &mut [0; 4096]);
                    assert_eq!(read.unwrap_err().kind(), VolumeErrorKind::Damaged, "{stops} {block}");
                }
            }
            if is_merged {
                break;
            }
            stops += 1;
        }
        assert!(stops >= 9, "{stops} checks: three parts are forgotten, copied and taken");
    }
}

#[test]
fn rolled_back_block_keeps_its_checksum() {
    let (_root, dir) = volume_dir();
    let volume = create(&dir);
    read(&volume.view(snapshot(1)).unwrap()).unwrap();
    for block in 4..8 {
        write(&volume, block, 99);
    }
    assert_eq!(flip(&dir, 5, 16), 1);
    volume.roll_back(snapshot(1), &|| true).unwrap();
    volume.freeze(snapshot(9)).unwrap();
    assert_eq!(damaged_block(read(&volume.view(snapshot(9)).unwrap())), Some((5, 1)));
}

#[test]
fn clone_shares_the_checksums_of_shared_files() {
    let (root, dir) = volume_dir();
    let volume = create(&dir);
    read(&volume.view(snapshot(3)).unwrap()).unwrap();
    let clone = volume.clone_to(snapshot(3), &root.path().join("clone"), VolumeId::from_u64(8)).unwrap();
    write(&clone, 13, 99);
    clone.freeze(snapshot(1)).unwrap();
    // Damage before the first read of the clone; it has its own block 13.
    assert_eq!((flip(&dir, 13, 3 * 16), flip(&dir, 5, 16)), (1, 1));
    let damaged = read(&clone.view(snapshot(1)).unwrap()).unwrap_err();
    assert!(
        matches!(damaged, VolumeError::DamagedBlocks { volume, first, len_blocks: 1 }
            if (volume.as_u64(), first.0) == (8, 5)),
        "{damaged}"
    );
    drop(volume);
    Volume::delete_files(&dir).unwrap();
    read(&clone.view(snapshot(1)).unwrap()).unwrap_err();
}
