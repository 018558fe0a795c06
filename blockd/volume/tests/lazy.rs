//! Lazy volumes: usable at once, complete after hydration.

mod source;

use crate::sim::disk::{Disk, Fault, FaultError, OpKind, Rng};
use crate::support::{merge_all, open, snapshot_content, volume_dir};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent, SnapshotId, VolumeId};
use blockd_volume::{
    Access, Allocation, FetchReply, LazySource, SourceError, Urgency, Volume, VolumeErrorKind,
};
use parking_lot::{Condvar, Mutex};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use source::{Lazy, Memory};

const ID: VolumeId = VolumeId::from_u64(5);
const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
const BLOCKS: u64 = 3000;
const SIZE_BYTES: u64 = BLOCKS * BLOCK_SIZE_BYTES;
const TIMEOUT: Duration = Duration::from_secs(120);

fn assert_reads(volume: &Volume, expected: &[u8]) {
    let mut found = vec![0xee; expected.len()];
    volume.read(0, &mut found).unwrap();
    let first_difference = found.chunks(BLOCK).zip(expected.chunks(BLOCK)).position(|(a, b)| a != b);
    assert_eq!(first_difference, None, "first block that differs");
}

/// Requests a missing block; the receiver gets the result.
fn request(volume: &Volume, block: u64) -> mpsc::Receiver<Result<(), VolumeErrorKind>> {
    let (sender, receiver) = mpsc::channel();
    let then = Box::new(move |result: Result<(), blockd_volume::VolumeError>| {
        sender.send(result.map_err(|error| error.kind())).unwrap();
    });
    let kept = volume.prefetch_async(Access::Read, block * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES, then);
    assert!(kept.is_none(), "block {block} was present");
    receiver
}

#[test]
fn readers_time_out_independent_of_earlier_fetches() {
    // More than the maximum number of concurrent fetches.
    const MANY: u64 = 45;
    let lazy = Lazy::new(Memory::new(8));
    lazy.source.hold();
    let take_wakes = || std::mem::take(&mut lazy.source.state.lock().wakes);
    // These readers time out at the first check. Some of their blocks are not in flight.
    lazy.source.state.lock().time_limit = Some(Duration::ZERO);
    // A non-sequential order.
    let blocks: Vec<u64> = (0..MANY).map(|n| n * 17 % MANY * 64).collect();
    let expiring: Vec<_> = blocks.iter().map(|block| request(&lazy.volume, *block)).collect();
    let in_flight = lazy.source.state.lock().held.len();
    assert!((1..MANY as usize).contains(&in_flight));
    let wakes = take_wakes();
    assert_eq!(wakes.len(), 1, "one timeout check for all readers");
    assert!(expiring.iter().all(|reader| reader.try_recv().is_err()));
    wakes.into_iter().for_each(|wake| wake());
    for reader in &expiring {
        assert_eq!(reader.try_recv(), Ok(Err(VolumeErrorKind::NotFetched)));
    }
    // A reader of the same fetch with a longer limit.
    lazy.source.state.lock().time_limit = Some(Duration::from_secs(3600));
    let waiting = request(&lazy.volume, blocks[0] + 1);
    take_wakes().into_iter().for_each(|wake| wake());
    assert!(waiting.try_recv().is_err(), "the reader timed out before its limit");
    assert_eq!(take_wakes().len(), 1, "one further timeout check");
    let for_readers = lazy.source.state.lock().for_readers;
    lazy.source.release();
    assert_eq!(waiting.try_recv(), Ok(Ok(())));
    // Blocks without a waiter were not fetched.
    assert_eq!(lazy.source.state.lock().for_readers, for_readers);
    lazy.check();
}

#[test]
fn read_blocks_are_kept_and_others_fetched_once() {
    let mut lazy = Lazy::new(Memory::new(1));
    assert_eq!(lazy.source.fetched_blocks(), 0);
    let mut block = [0; BLOCK];
    lazy.volume.read(701 * BLOCK_SIZE_BYTES, &mut block).unwrap();
    assert_eq!(block[..], lazy.model[701 * BLOCK..702 * BLOCK]);
    assert_eq!(lazy.source.fetched_blocks(), 128);
    assert!(lazy.volume.try_read_or_zeroes(702 * BLOCK_SIZE_BYTES, &mut block).unwrap().is_some());
    assert!(lazy.volume.try_read_or_zeroes(1500 * BLOCK_SIZE_BYTES, &mut block).unwrap().is_none());
    lazy.check();
    // A clean stop logs all present blocks.
    lazy.reopen();
    assert_eq!(lazy.volume.hydration().unwrap().done_bytes, SIZE_BYTES);
    lazy.check();
    assert!(lazy.source.fetched.iter().all(|count| count.load(Ordering::Relaxed) <= 1));
    lazy.hydrate();
    lazy.check();
    lazy.reopen();
    assert_eq!(lazy.volume.hydration(), None);
    lazy.check();
    assert!(Volume::check_files(&lazy.dir).findings.is_empty());
}

#[test]
fn hydration_skips_known_zeroes() {
    let lazy = Lazy::new(Memory::new(2));
    let mut block = [0; BLOCK];
    lazy.volume.read(2900 * BLOCK_SIZE_BYTES, &mut block).unwrap();
    let first = lazy.volume.hydrate_next().unwrap().unwrap();
    assert!(first > 0);
    // Hydration prefers the blocks around a read to those at the start.
    assert_eq!(lazy.source.fetched[0].load(Ordering::Relaxed), 0);
    assert_eq!(lazy.source.fetched[2600].load(Ordering::Relaxed), 1);
    lazy.hydrate();
    let counts = |range: std::ops::Range<usize>| {
        lazy.source.fetched[range].iter().map(|count| count.load(Ordering::Relaxed)).max().unwrap()
    };
    assert_eq!((counts(0..2000), counts(2000..2500), counts(2500..3000)), (1, 0, 1));
    lazy.check();
    let runs = lazy.volume.allocation(1999 * BLOCK_SIZE_BYTES, 501 * BLOCK_SIZE_BYTES, 9).unwrap();
    let found: Vec<_> = runs.iter().map(|run| (run.len_bytes / BLOCK_SIZE_BYTES, run.allocation)).collect();
    // 500 known zeroes and block 2500.
    assert_eq!(found, [(1, Allocation::Data), (500, Allocation::Hole)]);
}

#[test]
fn writes_and_freezes_do_not_wait_for_the_source() {
    let mut lazy = Lazy::new(Memory::new(3));
    lazy.source.hold();
    lazy.write(8 * BLOCK, &[7; 3 * BLOCK]);
    // A partial write to a block that the head holds.
    lazy.write(9 * BLOCK + 100, b"more");
    let (sender, written) = mpsc::channel();
    let volume = lazy.volume.clone();
    let partial = std::thread::spawn(move || {
        volume.write(500 * BLOCK_SIZE_BYTES + 10, b"a part of a block", false).unwrap();
        sender.send(()).unwrap();
    });
    lazy.source.wait_for_held(1);
    // A whole block in the same region.
    lazy.write(501 * BLOCK, &[9; BLOCK]);
    assert!(!lazy.volume.try_write(502 * BLOCK_SIZE_BYTES + 1, b"x").unwrap());
    let one = SnapshotId::from_u64(1);
    assert_eq!(lazy.volume.freeze(one).unwrap().dirty_blocks, 4);
    lazy.volume.flush().unwrap();
    assert!(written.try_recv().is_err(), "the partial write did not wait for the source");
    let frozen = lazy.model.clone();
    lazy.source.release();
    written.recv_timeout(TIMEOUT).unwrap();
    partial.join().unwrap();
    let from = 500 * BLOCK + 10;
    lazy.model[from..from + 17].copy_from_slice(b"a part of a block");
    lazy.check();
    assert!(snapshot_content(&lazy.volume, one) == frozen);
    // The interval has the written blocks only.
    let epoch = lazy.volume.view(one).unwrap().epoch();
    let changes = lazy.volume.changes(Some(Volume::LAZY_BASE_EPOCH), epoch).unwrap();
    let expected = BlockSet::from_iter([Extent::new(BlockIndex(8), 3), Extent::new(BlockIndex(501), 1)]);
    assert_eq!((changes.data, changes.zero), (expected, BlockSet::new()));
}

#[test]
fn changes_of_lazy_volume_fetch_no_data() {
    let mut lazy = Lazy::new(Memory::new(4));
    lazy.write(2100 * BLOCK, &[1; BLOCK]);
    let frozen = lazy.volume.freeze(SnapshotId::from_u64(1)).unwrap();
    let changes = lazy.volume.changes(None, frozen.epoch).unwrap();
    assert_eq!(lazy.source.fetched_blocks(), 0);
    assert_eq!(changes.data.len_blocks(), BLOCKS - 500 + 1);
    let view = lazy.volume.view(SnapshotId::from_u64(1)).unwrap();
    let extents: Vec<Extent> = changes.data.extents().collect();
    let mut found = vec![0; changes.data.len_bytes() as usize];
    view.read_extents(&extents, &mut found).unwrap();
    let expected: Vec<u8> = extents
        .iter()
        .flat_map(|extent| {
            lazy.model[extent.offset_bytes() as usize..][..extent.len_bytes() as usize].to_vec()
        })
        .collect();
    assert!(found == expected);
}

#[test]
fn failing_source_fails_only_its_readers() {
    let mut lazy = Lazy::new(Memory::new(5));
    lazy.source.set_broken(true);
    lazy.write(0, &[3; BLOCK]);
    let mut block = [0; BLOCK];
    let error = lazy.volume.read(4096, &mut block).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::NotFetched);
    assert!(error.is_retryable() && error.to_string().contains("the store is unavailable"), "{error}");
    assert_eq!(lazy.volume.write(8192 + 1, b"x", false).unwrap_err().kind(), VolumeErrorKind::NotFetched);
    assert!(lazy.volume.hydrate_next().is_err());
    lazy.volume.read(0, &mut block).unwrap();
    lazy.source.set_broken(false);
    lazy.check();
    lazy.reopen();
    lazy.check();
}

#[test]
fn damage_fails_only_reads_of_damaged_blocks() {
    for seed in 0..24 {
        let mut rng = Rng::fixed(1000 + seed);
        let source = Memory::with(seed, seed % 2 == 0);
        let bad = Extent::new(BlockIndex(rng.below(1900)), 1 + rng.below(32));
        source.state.lock().bad.insert_extent(bad);
        let lazy = Lazy::new(source.clone());
        let read = |extent: Extent| {
            let mut found = vec![0xee; extent.len_bytes() as usize];
            let result = lazy.volume.read(extent.offset_bytes(), &mut found);
            let is_sound = extent.intersection(bad).is_empty();
            assert_eq!(result.is_ok(), is_sound, "{extent:?} with damage in {bad:?}: {result:?}");
            assert!(!is_sound || found == source.blocks(extent), "{extent:?}");
        };
        // Most reads are near the damage; each is repeated.
        for _ in 0..60 {
            let near = bad.start.0.saturating_sub(100) + rng.below(200);
            let start = if rng.one_in(4) { rng.below(BLOCKS - 40) } else { near };
            let extent = Extent::new(BlockIndex(start), 1 + rng.below(40));
            read(extent);
            read(extent);
        }
        lazy.volume.retry_refused();
        // Readahead may still be in flight when no block is left to request.
        let began = std::time::Instant::now();
        let hydration = loop {
            if let Err(error) = lazy.volume.hydrate_next() {
                assert!(!error.is_retryable(), "{error}");
            }
            let hydration = lazy.volume.hydration().unwrap();
            if hydration.done_bytes + hydration.refused_bytes >= SIZE_BYTES {
                break hydration;
            }
            assert!(began.elapsed() < TIMEOUT, "{hydration:?}");
        };
        assert!(!lazy.volume.end_hydration().unwrap());
        assert_eq!(hydration.refused_bytes, bad.len_bytes());
        assert_eq!(hydration.done_bytes, SIZE_BYTES - bad.len_bytes());
        for block in 0..BLOCKS {
            read(Extent::new(BlockIndex(block), 1));
        }
        source.state.lock().bad = BlockSet::new();
        lazy.volume.retry_refused();
        lazy.hydrate();
        lazy.check();
    }
}

#[test]
fn lazy_volume_without_its_source_serves_local_blocks() {
    let mut lazy = Lazy::new(Memory::new(6));
    lazy.write(77 * BLOCK, &[3; BLOCK]);
    lazy.reopen();
    let mut block = [0; BLOCK];
    lazy.volume.read(77 * BLOCK_SIZE_BYTES, &mut block).unwrap();
    assert_eq!(block, [3; BLOCK]);
    assert_eq!(lazy.volume.read(0, &mut block).unwrap_err().kind(), VolumeErrorKind::NotFetched);
    assert!(!lazy.volume.end_hydration().unwrap());
    lazy.volume.set_lazy_source(lazy.source.clone());
    lazy.check();
}

#[test]
fn lazy_volume_supports_all_volume_operations() {
    let mut lazy = Lazy::new(Memory::new(7));
    let id = SnapshotId::from_u64;
    lazy.write(5 * BLOCK + 7, &[1; 9000]);
    lazy.volume.freeze(id(1)).unwrap();
    let first = lazy.model.clone();
    lazy.write(100 * BLOCK, &[2; 20 * BLOCK]);
    lazy.volume.trim(300 * BLOCK_SIZE_BYTES, 10 * BLOCK_SIZE_BYTES, false).unwrap();
    lazy.model[300 * BLOCK..310 * BLOCK].fill(0);
    lazy.volume.freeze(id(2)).unwrap();
    let clone_dir = lazy.dir.with_file_name("clone");
    let clone = lazy.volume.clone_to(id(1), &clone_dir, VolumeId::from_u64(6)).unwrap();
    clone.write(0, &[8; BLOCK], false).unwrap();
    let mut of_clone = first.clone();
    of_clone[..BLOCK].fill(8);
    lazy.write(1000 * BLOCK, &[4; BLOCK]);
    lazy.volume.freeze(id(3)).unwrap();
    lazy.volume.grow(SIZE_BYTES + (1 << 20)).unwrap();
    lazy.model.resize(lazy.model.len() + (1 << 20), 0);
    lazy.write(SIZE_BYTES as usize + 5, b"beyond the previous end");
    lazy.volume.delete_snapshot(id(2)).unwrap();
    merge_all(&lazy.volume);
    lazy.check();
    // The clone hydrates a part; the parent hydrates completely and drops its source.
    assert!(clone.hydrate_next().unwrap().is_some());
    lazy.hydrate();
    merge_all(&lazy.volume);
    lazy.check();
    lazy.volume.roll_back(id(1), &|| true).unwrap();
    let mut rolled_back = first;
    rolled_back.resize(lazy.model.len(), 0);
    assert_reads(&lazy.volume, &rolled_back);
    lazy.volume.close().unwrap();
    Volume::delete_files(&lazy.dir).unwrap();
    assert_reads(&clone, &of_clone);
    clone.close().unwrap();
    drop(clone);
    let clone = open(&clone_dir);
    assert_reads(&clone, &of_clone);
    assert!(clone.end_hydration().unwrap());
    merge_all(&clone);
    assert_reads(&clone, &of_clone);
    assert_eq!(clone.check().findings, Vec::<String>::new());
}

#[test]
fn rollback_of_lazy_volume_fetches_overwritten_blocks() {
    let mut lazy = Lazy::new(Memory::new(8));
    lazy.volume.freeze(SnapshotId::from_u64(1)).unwrap();
    let before = lazy.model.clone();
    lazy.write(30 * BLOCK, &[6; 50 * BLOCK]);
    lazy.volume.roll_back(SnapshotId::from_u64(1), &|| true).unwrap();
    assert_reads(&lazy.volume, &before);
}

/// Process crash; `power.rs` has the power cuts.
#[test]
fn unlogged_blocks_are_fetched_again() {
    let mut lazy = Lazy::new(Memory::new(9));
    lazy.write(10 * BLOCK, &[5; BLOCK]);
    let mut half = vec![0; 1000 * BLOCK];
    lazy.volume.read(0, &mut half).unwrap();
    lazy.volume.sync_hydration().unwrap();
    let logged = lazy.volume.hydration().unwrap().done_bytes;
    lazy.check();
    let copy = lazy.dir.with_file_name("copy");
    copy_dir(&lazy.dir, &copy);
    let volume = open(&copy);
    let present = volume.hydration().unwrap().done_bytes;
    assert!(present >= logged && present < SIZE_BYTES, "{present}");
    volume.set_lazy_source(lazy.source.clone());
    assert_reads(&volume, &lazy.model);
}

/// The kernel marks pages with a failed writeback as clean and drops them.
#[test]
fn blocks_lost_by_failed_sync_are_fetched_again() {
    let source = Memory::new(12);
    let (root, dir) = volume_dir();
    let disk = Disk::attach(root.path(), 12).unwrap();
    let volume = Volume::create_lazy(&dir, ID, SIZE_BYTES, source.clone()).unwrap();
    let mut found = vec![0; 200 * BLOCK];
    volume.read(0, &mut found).unwrap();
    volume.sync_hydration().unwrap();
    let logged = volume.hydration().unwrap().done_bytes;
    volume.read(2600 * BLOCK_SIZE_BYTES, &mut found).unwrap();
    assert!(volume.hydration().unwrap().done_bytes > logged);
    disk.inject(Fault { kinds: vec![OpKind::Sync], ..Fault::at(0, FaultError::Io) });
    assert!(volume.sync_hydration().is_err());
    assert_eq!(volume.hydration().unwrap().done_bytes, logged);
    disk.clear_faults();
    disk.evict().unwrap();
    assert_reads(&volume, &source.data);
    // Guest writes are not affected.
    volume.write(0, &[1; BLOCK], true).unwrap();
    assert!(volume.hydrate_next().unwrap().is_none() && volume.end_hydration().unwrap());
    disk.evict().unwrap();
    let mut expected = source.data.clone();
    expected[..BLOCK].fill(1);
    assert_reads(&volume, &expected);
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn waiting_request_is_completed_when_blocks_arrive() {
    let lazy = Lazy::new(Memory::new(10));
    lazy.source.hold();
    let (sender, results) = mpsc::channel();
    let waits = |access, offset, len| {
        let sender = sender.clone();
        let then = Box::new(move |result: Result<(), _>| sender.send(result.is_ok()).unwrap());
        lazy.volume.prefetch_async(access, offset, len, then).is_none()
    };
    assert!(waits(Access::Read, 0, 4096));
    assert!(waits(Access::Read, 100, 1 << 20));
    assert!(!waits(Access::Write, 8192, 8192));
    assert!(waits(Access::Write, 8192, 100));
    assert!(waits(Access::Read, 4096, 100), "the request joins a fetch in flight");
    assert!(!waits(Access::Read, SIZE_BYTES, 1), "an invalid request waits");
    assert!(results.try_recv().is_err());
    lazy.source.release();
    for _ in 0..4 {
        assert!(results.recv_timeout(TIMEOUT).unwrap());
    }
    assert!(!waits(Access::Read, 0, 4096));
    lazy.source.hold();
    assert!(waits(Access::Read, 2800 * BLOCK_SIZE_BYTES, 4096));
    lazy.volume.close().unwrap();
    assert!(!results.recv_timeout(TIMEOUT).unwrap(), "a waiter of a closed volume succeeded");
    let source = Arc::downgrade(&lazy.source);
    drop(lazy);
    assert!(
        source.upgrade().is_none(),
        "reference cycle of the volume and a source with an outstanding request"
    );
}

#[test]
fn readers_writers_and_hydrators_fetch_each_block_once() {
    let mut lazy = Lazy::new(Memory::with(11, true));
    let model = Mutex::new(std::mem::take(&mut lazy.model));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (volume, model) = (&lazy.volume, &model);
            scope.spawn(move || {
                let mut rng = Rng::fixed(thread);
                let mut buf = vec![0; 40 * BLOCK];
                for _ in 0..150 {
                    let (at, len) = (rng.below(BLOCKS - 40), 1 + rng.below(40));
                    let buf = &mut buf[..len as usize * BLOCK];
                    volume.read(at * BLOCK_SIZE_BYTES, buf).unwrap();
                    // Partial writes to separate blocks of each thread.
                    let own = (rng.below(BLOCKS / 3) * 3 + thread) as usize;
                    let data = vec![rng.next_u64() as u8; 100 + rng.below(500) as usize];
                    volume.write((own * BLOCK + 77) as u64, &data, false).unwrap();
                    model.lock()[own * BLOCK + 77..][..data.len()].copy_from_slice(&data);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| while lazy.volume.hydrate_next().unwrap().is_some() {});
        }
    });
    lazy.model = model.into_inner();
    lazy.check();
    lazy.hydrate();
    lazy.check();
    for (block, count) in lazy.source.fetched.iter().enumerate() {
        assert!(count.load(Ordering::Relaxed) <= 1, "block {block}");
    }
}
