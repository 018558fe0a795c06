//! Concurrent writers of the same blocks during freezes, merges and growth.

use crate::support::{memory_dir, merge_all, open, snapshot_content};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::Volume;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

const LANES: u64 = 8;
const LANE_BYTES: u64 = 4096 / LANES;
const BLOCKS: u64 = 8;
const FREEZES: u64 = 1500;

/// Linear congruential generator with a fixed seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Each thread writes its own part of each block. Each part must have the content of its last write; in a
/// snapshot, that of a write between the last one acknowledged before the freeze and the last one started
/// before its end.
#[test]
fn concurrent_partial_writes_of_a_block_are_kept() {
    let dir = memory_dir();
    let path = dir.path().join("v");
    let volume = Volume::create(&path, VolumeId::from_u64(1), BLOCKS * 4096).unwrap();
    let cells: Arc<Vec<[AtomicU64; 2]>> = Arc::new((0..BLOCKS * LANES).map(|_| Default::default()).collect());
    let stop = Arc::new(AtomicBool::new(false));

    let writers: Vec<_> = (0..LANES)
        .map(|lane| {
            let (volume, cells, stop) = (volume.clone(), cells.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut random = Random(lane + 1);
                for round in 1.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    let block = random.next(BLOCKS);
                    let [started, acknowledged] = &cells[(block * LANES + lane) as usize];
                    started.store(round, Ordering::SeqCst);
                    let data = round.to_le_bytes().repeat(LANE_BYTES as usize / 8);
                    let at = block * 4096 + lane * LANE_BYTES;
                    if !volume.try_write(at, &data).unwrap() {
                        volume.write(at, &data, false).unwrap();
                    }
                    acknowledged.store(round, Ordering::SeqCst);
                }
            })
        })
        .collect();

    for number in 1..=FREEZES {
        let id = SnapshotId::from_u64(number);
        let at_least: Vec<u64> = cells.iter().map(|cell| cell[1].load(Ordering::SeqCst)).collect();
        volume.freeze(id).unwrap();
        let at_most: Vec<u64> = cells.iter().map(|cell| cell[0].load(Ordering::SeqCst)).collect();
        let content = snapshot_content(&volume, id);
        for (number, lane) in content.chunks_exact(LANE_BYTES as usize).enumerate() {
            let round = u64::from_le_bytes(lane[..8].try_into().unwrap());
            assert!(lane.chunks_exact(8).all(|word| word == round.to_le_bytes()), "part {number} is torn");
            assert!((at_least[number]..=at_most[number]).contains(&round), "part {number} in snapshot {id}");
        }
        volume.delete_snapshot(id).unwrap();
        merge_all(&volume);
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().unwrap();
    }
    let check = |volume: &Volume| {
        for (number, cell) in cells.iter().enumerate() {
            let mut lane = vec![0; LANE_BYTES as usize];
            volume.read(number as u64 * LANE_BYTES, &mut lane).unwrap();
            let expected = cell[1].load(Ordering::SeqCst).to_le_bytes();
            assert!(lane.chunks_exact(8).all(|word| word == expected), "part {number} lost a write");
        }
    };
    check(&volume);
    drop(volume);
    check(&open(&path));
}

/// After a concurrent write and zeroing of a block, it has the content of one of them, also after a partial
/// write.
#[test]
fn concurrent_write_and_zeroing_leave_one_of_both() {
    const ROUNDS: u64 = 400;
    let dir = memory_dir();
    let volume = Volume::create(&dir.path().join("v"), VolumeId::from_u64(1), 8 * 4096).unwrap();
    volume.write(0, &[0xaa; 8 * 4096], false).unwrap();
    volume.freeze(SnapshotId::from_u64(1)).unwrap();
    // Both threads spin until a round starts, so that their steps interleave.
    let started = Arc::new(AtomicU64::new(0));
    let ended = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..2)
        .map(|kind| {
            let (volume, started, ended) = (volume.clone(), started.clone(), ended.clone());
            std::thread::spawn(move || {
                for round in 1..=ROUNDS {
                    while started.load(Ordering::SeqCst) < round {
                        std::hint::spin_loop();
                    }
                    // Shifts the two threads against each other, by another delay in each round.
                    for _ in 0..if kind == 0 { round % 97 } else { 0 } * 8 {
                        std::hint::spin_loop();
                    }
                    match kind {
                        0 => volume.write(4096, &[0x55; 4096], false).unwrap(),
                        _ if round % 2 == 0 => volume.trim(4096, 4096, false).unwrap(),
                        _ => volume.write_zeroes(4096, 4096, true, false).unwrap(),
                    }
                    ended.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for round in 1..=ROUNDS {
        started.store(round, Ordering::SeqCst);
        while ended.load(Ordering::SeqCst) < 2 * round {
            std::thread::yield_now();
        }
        let (mut before, mut after) = ([1; 4096], [2; 4096]);
        volume.read(4096, &mut before).unwrap();
        assert!(before == [0; 4096] || before == [0x55; 4096], "torn block in round {round}");
        volume.write(4096 + 100, b"x", false).unwrap();
        volume.read(4096, &mut after).unwrap();
        before[100] = b'x';
        assert!(before == after, "overwritten content reappeared in round {round}");
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Writes near the end of a volume that grows block by block are neither refused nor lost.
#[test]
fn writes_during_growth_are_kept() {
    const GROWTHS: u64 = 200;
    let dir = memory_dir();
    let path = dir.path().join("v");
    let volume = Volume::create(&path, VolumeId::from_u64(1), 4096).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4u64)
        .map(|lane| {
            let (volume, stop) = (volume.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut last = vec![0u64; GROWTHS as usize + 1];
                for round in 1.. {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    // One of the last three blocks.
                    let blocks = volume.size_bytes() / 4096;
                    let block = blocks - 1 - (round % 3).min(blocks - 1);
                    let data = round.to_le_bytes().repeat(128);
                    volume.write(block * 4096 + lane * 1024, &data, false).unwrap();
                    last[block as usize] = round;
                }
                last
            })
        })
        .collect();
    for number in 1..=GROWTHS {
        volume.grow((number + 1) * 4096).unwrap();
        if number % 5 == 0 {
            let id = SnapshotId::from_u64(number);
            volume.freeze(id).unwrap();
            assert_eq!(volume.view(id).unwrap().size_bytes(), (number + 1) * 4096);
            volume.delete_snapshot(id).unwrap();
            merge_all(&volume);
        }
    }
    stop.store(true, Ordering::SeqCst);
    let written: Vec<Vec<u64>> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    let check = |volume: &Volume| {
        assert_eq!(volume.size_bytes(), (GROWTHS + 1) * 4096);
        for (lane, last) in written.iter().enumerate() {
            for (block, round) in last.iter().enumerate() {
                let mut part = [0; 1024];
                volume.read(block as u64 * 4096 + lane as u64 * 1024, &mut part).unwrap();
                assert!(part.chunks_exact(8).all(|word| word == round.to_le_bytes()), "block {block}");
            }
        }
    };
    check(&volume);
    drop(volume);
    check(&open(&path));
}

/// A client may repeat a write on another connection after a timeout, while the first copy is in progress.
#[test]
fn overlapping_large_writes_do_not_interleave() {
    const LEN_BYTES: usize = 1 << 20;
    let dir = memory_dir();
    let volume = Volume::create(&dir.path().join("v"), VolumeId::from_u64(1), 4 << 20).unwrap();
    let barrier = std::sync::Barrier::new(2);
    for round in 0..100 {
        let at = round % 3 * 4096;
        std::thread::scope(|scope| {
            for byte in [1, 2] {
                let (volume, barrier) = (&volume, &barrier);
                scope.spawn(move || {
                    let data = vec![byte; LEN_BYTES];
                    barrier.wait();
                    if !volume.try_write(at, &data).unwrap() {
                        volume.write(at, &data, false).unwrap();
                    }
                });
            }
        });
        let mut found = vec![0; LEN_BYTES];
        volume.read(at, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == found[0]), "parts of both writes in round {round}");
    }
}
