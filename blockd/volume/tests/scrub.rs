//! Scrubs find damage on the disk, fail reads of the damaged blocks only, and repairs end that.

use crate::altered::{BLOCKS, ID, create, flip, snapshot, write};
use crate::sim::disk::{Disk, Fault, FaultError, OpKind, Rng};
use crate::support::{
    content, memory_dir, merge_all, open, open_after_power_loss, paths_in, snapshot_content, volume_dir,
};
use blockd_extent::{BlockIndex, BlockSet, Epoch, Extent, VolumeId};
use blockd_volume::{LayerDamage, Repaired, ScrubPosition, Volume, VolumeError, VolumeErrorKind};
use std::collections::BTreeMap;

fn read(volume: &Volume, block: u64) -> Result<u8, VolumeError> {
    let mut found = [0; 4096];
    volume.read(block * 4096, &mut found).map(|()| found[7])
}

fn set_of(blocks: impl IntoIterator<Item = u64>) -> BlockSet {
    blocks.into_iter().map(|block| Extent::new(BlockIndex(block), 1)).collect()
}

/// Scrubs the whole volume; returns the damage that was not listed before, and the read bytes.
fn scrub(volume: &Volume) -> (Vec<LayerDamage>, u64) {
    let (mut at, mut found, mut bytes) = (ScrubPosition::START, vec![], 0);
    loop {
        let step = volume.scrub_step(at).unwrap();
        found.extend(step.found);
        bytes += step.read_bytes;
        match step.next {
            Some(next) => at = next,
            None => return (found, bytes),
        }
    }
}

fn found_blocks(found: &[LayerDamage]) -> Vec<(u64, BlockSet)> {
    found.iter().map(|damage| (damage.epoch.0, damage.blocks.clone())).collect()
}

/// Repairs a block of the only damaged layer with a byte.
fn repair(volume: &Volume, at: u64, block: u64, byte: u8) -> Repaired {
    let file = volume.damage()[0].file;
    volume.repair(file, Epoch(at), &[(BlockIndex(block), &[byte; 4096])]).unwrap()
}

#[test]
fn damaged_block_fails_reads_until_it_is_repaired() {
    let (_root, dir) = volume_dir();
    let volume = create(&dir);
    assert_eq!(scrub(&volume), (vec![], 24 * 4096));
    assert_eq!(volume.scrub_bytes(), 24 * 4096);
    let before = content(&volume);
    assert_eq!(flip(&dir, 13, 3 * 16), 1);
    assert_eq!(found_blocks(&scrub(&volume).0), [(3, set_of([13]))]);
    let check = |volume: &Volume| {
        let error = read(volume, 13).unwrap_err();
        assert_eq!(error.kind(), VolumeErrorKind::Damaged, "{error}");
        assert_eq!((read(volume, 12).unwrap(), read(volume, 14).unwrap()), (48, 48));
        assert!(volume.try_read_or_zeroes(12 * 4096, &mut [0; 8192]).is_err());
        assert!(volume.view(snapshot(3)).unwrap().read(13 * 4096, &mut [0; 4096]).is_err());
        // An older snapshot has the block from another layer.
        volume.view(snapshot(2)).unwrap().read(13 * 4096, &mut [0; 4096]).unwrap();
        assert!(volume.write(13 * 4096 + 512, &[9; 512], false).is_err(), "a part needs the rest");
        assert_eq!(scrub(volume).0, [], "damage is found once");
    };
    check(&volume);
    volume.close().unwrap();
    drop(volume);
    let volume = open(&dir);
    check(&volume);
    assert_eq!(volume.check().findings, Vec::<String>::new());
    let wrong = repair(&volume, 3, 13, 7);
    assert_eq!((wrong.blocks, wrong.mismatched), (BlockSet::new(), set_of([13])));
    check(&volume);
    assert_eq!(repair(&volume, 3, 13, 48).blocks, set_of([13]));
    assert_eq!((content(&volume), volume.damage()), (before.clone(), vec![]));
    assert_eq!(scrub(&volume).0, []);
    drop(volume);
    assert_eq!(content(&open(&dir)), before);
}

#[test]
fn write_to_the_head_heals_the_block_for_the_head() {
    let (_root, dir) = volume_dir();
    let volume = create(&dir);
    scrub(&volume);
    assert_eq!(flip(&dir, 13, 3 * 16), 1);
    scrub(&volume);
    write(&volume, 13, 99);
    assert_eq!(read(&volume, 13).unwrap(), 99);
    assert!(volume.view(snapshot(3)).unwrap().read(13 * 4096, &mut [0; 4096]).is_err());
}

#[test]
fn block_that_reads_again_leaves_the_list() {
    let (_root, dir) = volume_dir();
    let volume = create(&dir);
    scrub(&volume);
    assert_eq!(flip(&dir, 13, 48), 1);
    scrub(&volume);
    assert_eq!(flip(&dir, 13, 48 ^ 8), 1);
    assert_eq!(scrub(&volume).0, []);
    assert_eq!((read(&volume, 13).unwrap(), volume.damage()), (48, vec![]));
}

#[test]
fn unreadable_block_is_damage_of_that_block_only() {
    let root = memory_dir();
    let disk = Disk::attach(root.path(), 1).unwrap();
    let volume = create(&root.path().join("v"));
    // The read of the extent fails, and then that of its third block.
    let fault = |skip| Fault {
        kinds: vec![OpKind::Read],
        path_contains: format!("{:016x}.data", 2),
        ..Fault::at(skip, FaultError::Io)
    };
    disk.inject(fault(0));
    disk.inject(fault(3));
    let (found, _) = scrub(&volume);
    assert_eq!(found_blocks(&found), [(2, set_of([10]))]);
    assert_eq!(found[0].unreadable, set_of([10]));
    disk.clear_faults();
    assert_eq!(read(&volume, 9).unwrap(), 32);
    assert!(read(&volume, 10).is_err());
    assert_eq!(scrub(&volume).0, [], "without a checksum it cannot be known to be sound");
    assert!(read(&volume, 10).is_err());
    assert_eq!(repair(&volume, 2, 10, 32).blocks, set_of([10]));
    assert_eq!(read(&volume, 10).unwrap(), 32);
}

#[test]
fn merge_takes_over_damaged_blocks() {
    // Snapshot 1 is merged up or down, depending on the smaller copy.
    for extra in [0, 30] {
        let (_root, dir) = volume_dir();
        let volume = Volume::create(&dir, ID, BLOCKS * 4096).unwrap();
        (0..8 + extra).for_each(|block| write(&volume, block, 16));
        volume.freeze(snapshot(1)).unwrap();
        (4..16).for_each(|block| write(&volume, block, 32));
        volume.grow(2 * BLOCKS * 4096).unwrap();
        volume.freeze(snapshot(2)).unwrap();
        scrub(&volume);
        let before = content(&volume);
        for (block, byte) in [(1, 16), (5, 16), (9, 32)] {
            assert_eq!(flip(&dir, block, byte), 1);
        }
        let found: Vec<_> = scrub(&volume).0.into_iter().map(|damage| damage.blocks).collect();
        assert_eq!(found, [set_of([1, 5]), set_of([9])]);
        volume.delete_snapshot(snapshot(1)).unwrap();
        merge_all(&volume);
        let is_listed = |volume: &Volume| {
            let damage: Vec<_> = volume.damage().into_iter().map(|damage| damage.blocks).collect();
            assert_eq!(damage, [set_of([1, 9])], "{extra}");
            assert!(read(volume, 1).is_err() && read(volume, 9).is_err());
            assert_eq!(read(volume, 5).unwrap(), 32);
        };
        is_listed(&volume);
        drop(volume);
        let volume = open(&dir);
        is_listed(&volume);
        let last = volume.damage()[0].epoch.0;
        assert_eq!(repair(&volume, last, 1, 16).blocks, set_of([1]));
        assert_eq!(repair(&volume, last, 9, 32).blocks, set_of([9]));
        assert_eq!(content(&volume), before);
    }
}

#[test]
fn clone_and_rollback_take_over_damaged_blocks() {
    let (root, dir) = volume_dir();
    let volume = create(&dir);
    scrub(&volume);
    assert_eq!(flip(&dir, 5, 16), 1);
    scrub(&volume);
    write(&volume, 5, 99);
    let clone = volume.clone_to(snapshot(3), &root.path().join("clone"), VolumeId::from_u64(8)).unwrap();
    assert!(read(&clone, 5).is_err());
    assert_eq!(read(&clone, 6).unwrap(), 16);
    volume.roll_back(snapshot(1), &|| true).unwrap();
    assert!(read(&volume, 5).is_err());
    assert_eq!(read(&volume, 6).unwrap(), 16);
    assert_eq!(repair(&volume, 1, 5, 16).blocks, set_of([5]));
    assert!(read(&volume, 5).is_err(), "the layer of the rollback has a copy");
    let copy = volume.damage()[0].clone();
    assert_eq!(volume.repairable(copy.file, Epoch(1)).unwrap(), BlockSet::new(), "it counts as dirty");
    let done = volume.repair(copy.file, copy.epoch, &[(BlockIndex(5), &[16; 4096])]).unwrap();
    assert_eq!(done.blocks, set_of([5]));
    assert_eq!(read(&volume, 5).unwrap(), 16);
    // The repaired file is also the clone's; its own scrub removes the block from its list.
    assert!(read(&clone, 5).is_err());
    scrub(&clone);
    assert_eq!((read(&clone, 5).unwrap(), clone.damage()), (16, vec![]));
}

#[test]
fn file_with_other_checksums_in_a_clone_is_not_repaired() {
    let (root, dir) = volume_dir();
    let volume = create(&dir);
    scrub(&volume);
    let clone = volume.clone_to(snapshot(3), &root.path().join("clone"), VolumeId::from_u64(8)).unwrap();
    // As after the clone of a lazy base: the clone stores the checksum of the damaged content.
    let is_sums = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "sums");
    paths_in(clone.dir()).into_iter().filter(is_sums).for_each(|path| std::fs::remove_file(path).unwrap());
    assert_eq!(flip(&dir, 5, 16), 1);
    assert!(scrub(&clone).0.is_empty());
    scrub(&volume);
    let file = volume.damage()[0].file;
    let error = volume.repair(file, Epoch(1), &[(BlockIndex(5), &[16; 4096])]).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::Busy, "{error}");
    let clone_dir = clone.dir().to_owned();
    drop(clone);
    Volume::delete_files(&clone_dir).unwrap();
    assert_eq!(repair(&volume, 1, 5, 16).blocks, set_of([5]));
}

#[test]
fn repairable_blocks_agree_with_the_history() {
    for seed in 0..40 {
        let mut rng = Rng::fixed(seed);
        let (_root, dir) = volume_dir();
        let volume = Volume::create(&dir, ID, 16 * 4096).unwrap();
        // Byte of each block at the end of each epoch.
        let (mut now, mut history) = ([0u8; 16], BTreeMap::new());
        for number in 1..=8u8 {
            for _ in 0..rng.below(6) {
                let block = rng.below(16);
                now[block as usize] = number;
                write(&volume, block, number);
            }
            let epoch = volume.freeze(snapshot(number.into())).unwrap().epoch;
            history.insert(epoch.0, now);
        }
        scrub(&volume);
        for number in 1..=8 {
            if rng.one_in(2) {
                volume.delete_snapshot(snapshot(number)).unwrap();
            }
        }
        merge_all(&volume);
        for block in 0..16 {
            assert!((1..=8).map(|byte| flip(&dir, block, byte)).sum::<usize>() < 9);
        }
        scrub(&volume);
        let mut proven = 0;
        for damage in volume.damage() {
            for (&at, then) in &history {
                let blocks = volume.repairable(damage.file, Epoch(at)).unwrap();
                for block in blocks.blocks() {
                    let own = history[&damage.epoch.0][block.0 as usize];
                    assert_eq!(then[block.0 as usize], own, "seed {seed}, block {block:?}, epoch {at}");
                }
                if at == damage.epoch.0 {
                    assert_eq!(blocks, damage.blocks, "seed {seed}: the layer's own epoch");
                }
                proven += blocks.len_blocks();
            }
        }
        assert!(proven > 0, "seed {seed}");
        for (number, point) in (1..=8).zip(history.values()) {
            let Ok(view) = volume.view(snapshot(number)) else { continue };
            for block in 0..16 {
                let mut found = [0; 4096];
                let is_zero = point[block as usize] == 0;
                assert_eq!(view.read(block * 4096, &mut found).is_ok(), is_zero, "seed {seed}");
            }
        }
    }
}

/// Scrubs and repairs a volume with three damaged blocks, and cuts the power before a call of both. Returns
/// true if the power was cut.
fn cut_power_during_repair(call: u64) -> bool {
    const DAMAGED: [u64; 3] = [12, 13, 16];
    let root = memory_dir();
    let first = root.path().join("disk-0");
    std::fs::create_dir(&first).unwrap();
    let dir = first.join("v");
    let volume = create(&dir);
    scrub(&volume);
    volume.close().unwrap();
    drop(volume);
    for block in DAMAGED {
        assert_eq!(flip(&dir, block, 48), 1);
    }
    let mut altered = [48; 4096];
    altered[99] ^= 8;
    // All files are durable on a new disk.
    let disk = Disk::attach(&first, call).unwrap();
    let volume = open(&dir);
    disk.cut_power_before(disk.operations().len() as u64 + call);
    let mut at = Some(ScrubPosition::START);
    while let Some(Ok(step)) = at.map(|at| volume.scrub_step(at)) {
        at = step.next;
    }
    // The scrub has answered.
    let is_listed = at.is_none() && !disk.is_off();
    if let Some(damage) = volume.damage().first() {
        let _ =
            volume.repair(damage.file, Epoch(3), &DAMAGED.map(|block| (BlockIndex(block), &[48; 4096][..])));
    }
    let was_cut = disk.is_off();
    drop(volume);
    let next = root.path().join("disk-1");
    disk.power_cut(&mut Rng::fixed(call), &next).unwrap();
    drop(disk);
    let _disk = Disk::attach(&next, call).unwrap();
    let volume = open_after_power_loss(&next.join("v"));
    let check = |is_listed: bool| {
        for block in DAMAGED {
            let mut found = [0; 4096];
            match volume.read(block * 4096, &mut found) {
                Ok(()) if !is_listed && found == altered => {}
                Ok(()) => assert!(found == [48; 4096], "call {call}, block {block}: {}", found[99]),
                Err(error) => assert_eq!(error.kind(), VolumeErrorKind::Damaged, "call {call}"),
            }
        }
    };
    check(is_listed);
    scrub(&volume);
    check(true);
    for damage in volume.damage() {
        let blocks: Vec<_> = damage.blocks.blocks().map(|block| (block, &[48; 4096][..])).collect();
        assert_eq!(volume.repair(damage.file, Epoch(3), &blocks).unwrap().blocks, damage.blocks);
    }
    assert_eq!(snapshot_content(&volume, snapshot(3))[12 * 4096..20 * 4096], [48; 8 * 4096]);
    was_cut
}

#[test]
fn power_cut_at_any_call_of_a_repair_serves_no_mix() {
    let calls = (0..).take_while(|&call| cut_power_during_repair(call)).count();
    assert!(calls > 20, "{calls}");
}
