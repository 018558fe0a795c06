use super::*;
use crate::lazy::{FetchReply, SourceError};

const BLOCKS: u64 = 64;

fn base(dir: &std::path::Path) -> Arc<LazyBase> {
    let volume_dir =
        VolumeDir { path: dir, volume: VolumeId::from_u64(1), size_bytes: BLOCKS * BLOCK_SIZE_BYTES };
    drop(DataFiles::create(&files::data_path(dir, Epoch(1)), volume_dir.size_bytes).unwrap());
    LazyBase::create_log(volume_dir, Epoch(1), &BlockSet::new()).unwrap();
    LazyBase::open(volume_dir, Epoch(1)).unwrap()
}

#[test]
fn failed_sync_drops_blocks_written_during_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let extent = Extent::new(BlockIndex(0), 8);
    let data = vec![7; extent.len_bytes() as usize];
    for fails in [true, false] {
        base.in_flight.lock().launch(extent, 1, Urgency::Background);
        let (sender, receiver) = std::sync::mpsc::channel();
        assert!(base.in_flight.lock().join(extent, Box::new(move |result| sender.send(result).unwrap())));
        assert_eq!(base.in_flight.lock().next_to_start(), Some((extent, Urgency::Background)));
        let invalidations = base.in_flight.lock().invalidations;
        base.store_blocks(extent.start, &data, |_| {}).unwrap();
        if fails {
            base.in_flight.lock().invalidate_all_but(&BlockSet::new());
        }
        base.finish_fetch(extent, Ok((BlockSet::new(), invalidations)), None);
        match receiver.recv().unwrap() {
            Ok(()) => assert!(!fails),
            Err(failure) => assert!(fails && base.failed(extent.start, failure).is_retryable()),
        }
        base.write_log().unwrap();
        assert_eq!(base.has_all(&[extent]), !fails);
        assert_eq!(base.logged().contains_extent(extent), !fails);
    }
}

/// Fake source that queues requests; the test completes them.
#[derive(Default)]
struct QueuingSource(Mutex<std::collections::VecDeque<(Extent, FetchReply)>>);

impl LazySource for QueuingSource {
    fn fetch(&self, extent: Extent, _: Urgency, reply: FetchReply) {
        self.0.lock().push_back((extent, reply));
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        Ok(BlockSet::from_iter([extent]))
    }
}

#[test]
fn partial_replies_are_kept_until_completion() {
    const TWO_BLOCKS: usize = 2 * BLOCK;
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let source = Arc::new(QueuingSource::default());
    base.set_source(source.clone());
    let extent = Extent::new(BlockIndex(8), 8);
    let request = || {
        let (sender, receiver) = std::sync::mpsc::channel();
        let on_done: OnDone = Box::new(move |result| sender.send(result).unwrap());
        assert!(base.request(&[extent], on_done).is_none());
        let (requested, reply) = source.0.lock().pop_front().unwrap();
        assert!(requested.start <= extent.start && requested.end() >= extent.end());
        (reply, receiver)
    };
    // A fetch that fails midway.
    let (reply, receiver) = request();
    let late = reply.sink();
    late.put(BlockIndex(8), &[1; TWO_BLOCKS]).unwrap();
    reply.end(Err(SourceError::new("store unreachable", true)));
    assert!(receiver.recv().unwrap().is_err());
    assert!(late.put(BlockIndex(8), &[9; TWO_BLOCKS]).is_err(), "the reply is complete");
    // A fetch that returns blocks that were not requested.
    let (reply, receiver) = request();
    let sink = reply.sink();
    for (start, len) in [(u64::MAX, BLOCK), (BLOCKS, BLOCK), (8, 1), (BLOCKS - 1, TWO_BLOCKS)] {
        assert!(sink.put(BlockIndex(start), &vec![9; len]).is_err(), "{start}, {len}");
    }
    assert!(sink.has_failed());
    reply.end(Ok(()));
    let failure = receiver.recv().unwrap().unwrap_err();
    assert!(matches!(failure, FetchFailure::Source(error) if !error.is_retryable()));
    // A successful fetch, with repeated blocks and with explicit and omitted zeroes.
    let (reply, receiver) = request();
    let sink = reply.sink();
    sink.put(BlockIndex(8), &[2; TWO_BLOCKS]).unwrap();
    sink.put(BlockIndex(12), &[[3; BLOCK], [0; BLOCK]].concat()).unwrap();
    sink.put(BlockIndex(8), &[2; TWO_BLOCKS]).unwrap();
    assert!(!base.has_all(&[extent]), "the reply is incomplete");
    reply.end(Ok(()));
    assert!(receiver.recv().unwrap().is_ok());
    assert!(sink.put(BlockIndex(8), &[9; BLOCK]).is_err(), "the reply is complete");
    let data = BlockSet::from_iter([Extent::new(BlockIndex(8), 2), Extent::new(BlockIndex(12), 1)]);
    assert_eq!(base.present().0, data);
    let mut found = vec![9; extent.len_bytes() as usize];
    base.files.read(extent.offset_bytes(), &mut found).unwrap();
    let wanted: Vec<u8> = [2, 2, 0, 0, 3, 0, 0, 0].iter().flat_map(|&byte| [byte; BLOCK]).collect();
    assert!(found == wanted);
}

/// Fake source that fails synchronously.
struct FailingSource;

impl LazySource for FailingSource {
    fn fetch(&self, _: Extent, _: Urgency, reply: FetchReply) {
        reply.end(Err(SourceError::new("store unreachable", true)));
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        Ok(BlockSet::from_iter([extent]))
    }
}

#[test]
fn immediate_failure_is_not_counted_as_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    base.set_source(Arc::new(FailingSource));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Another thread starts the fetch and may end it before it is joined.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                base.start_fetches();
            }
        });
        let fetched = (0..2000).filter(|_| !matches!(base.hydrate_next(), Ok(None) | Err(_))).count();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(fetched, 0);
    });
}

#[test]
fn two_readers_in_order_share_one_budget() {
    const MIB_BLOCKS: u64 = (1 << 20) / BLOCK_SIZE_BYTES;
    let (blocks, max_blocks) = (96 * MIB_BLOCKS, 16 * MIB_BLOCKS);
    let budget = FetchBudget::new(max_blocks, 12 * MIB_BLOCKS);
    let source = Arc::new(QueuingSource::default());
    let dirs = [1, 2].map(|_| tempfile::tempdir().unwrap());
    let bases = [1, 2].map(|number: u64| {
        let dir = dirs[number as usize - 1].path();
        let size_bytes = blocks * BLOCK_SIZE_BYTES;
        let volume_dir = VolumeDir { path: dir, volume: VolumeId::from_u64(number), size_bytes };
        drop(DataFiles::create(&files::data_path(dir, Epoch(1)), size_bytes).unwrap());
        LazyBase::create_log(volume_dir, Epoch(1), &BlockSet::new()).unwrap();
        let base = LazyBase::open_within(volume_dir, Epoch(1), budget.clone()).unwrap();
        base.set_source(source.clone());
        base
    });
    let read_blocks = MIB_BLOCKS / 4;
    let mut done = [0, 0];
    let mut arrived = [true, true].map(|_| Arc::new(AtomicBool::new(true)));
    let mut max_seen = 0;
    while done.iter().any(|&done| done < blocks) {
        for (reader, base) in bases.iter().enumerate() {
            while arrived[reader].load(Ordering::Relaxed) && done[reader] < blocks {
                let extent = Extent::new(BlockIndex(done[reader]), read_blocks);
                done[reader] += read_blocks;
                arrived[reader] = Arc::new(AtomicBool::new(false));
                let flag = arrived[reader].clone();
                let on_done: OnDone = Box::new(move |result| {
                    assert!(result.is_ok());
                    flag.store(true, Ordering::Relaxed);
                });
                if let Some(on_done) = base.request(&[extent], on_done) {
                    on_done(Ok(()));
                }
            }
        }
        let active: u64 = source.0.lock().iter().map(|(extent, _)| extent.len_blocks).sum();
        assert!(active <= max_blocks, "{active} blocks in flight");
        max_seen = max_seen.max(active);
        assert!(done[0].abs_diff(done[1]) <= 24 * MIB_BLOCKS, "readers progress equally: {done:?}");
        let first = source.0.lock().pop_front();
        if let Some((extent, reply)) = first {
            reply.complete(Ok(vec![0; extent.len_bytes() as usize]));
        } else {
            assert!(done.iter().all(|&done| done == blocks), "no fetch is in flight: {done:?}");
        }
    }
    assert!(max_seen > max_blocks / 2, "{max_seen} of {max_blocks} blocks were used");
    while let Some((extent, reply)) = { source.0.lock().pop_front() } {
        reply.complete(Ok(vec![0; extent.len_bytes() as usize]));
    }
    assert!(arrived.iter().all(|arrived| arrived.load(Ordering::Relaxed)));
}

#[test]
fn hints_are_dropped_when_too_many_wait() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    // As if another thread was starting fetches: all of them are queued.
    base.in_flight.lock().is_starting = true;
    for block in 0..BLOCKS {
        base.fetch_soon(Extent::new(BlockIndex(block), 1));
    }
    assert!(base.in_flight.lock().is_background_full());
    let mut started = 0;
    while base.in_flight.lock().next_to_start().is_some() {
        started += 1;
    }
    assert!(started < BLOCKS * 3 / 4, "{started}");
}
