use super::*;
use crate::lazy::{FetchReply, SourceError};

const BLOCKS: u64 = 64;

fn base(dir: &std::path::Path) -> Arc<LazyBase> {
    let place = Place { dir, volume: VolumeId::from_u64(1), size_bytes: BLOCKS * BLOCK_SIZE_BYTES };
    drop(DataFiles::create(&files::data_path(dir, Epoch(1)), place.size_bytes).unwrap());
    LazyBase::create_log(place, Epoch(1), &BlockSet::new()).unwrap();
    LazyBase::open(place, Epoch(1)).unwrap()
}

#[test]
fn failed_sync_drops_blocks_written_during_it() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let extent = Extent::new(BlockIndex(0), 8);
    let data = vec![7; extent.len_bytes() as usize];
    for fails in [true, false] {
        base.flights.lock().launch(extent, 1, Urgency::Background);
        let (told, hears) = std::sync::mpsc::channel();
        assert!(base.flights.lock().join(extent, Box::new(move |result| told.send(result).unwrap())));
        assert_eq!(base.flights.lock().next_to_start(), Some((extent, Urgency::Background)));
        let forgets = base.flights.lock().forgets;
        base.keep(extent.start, &data, |_| {}).unwrap();
        if fails {
            base.flights.lock().forget_all_but(&BlockSet::new());
        }
        base.landed(extent, Ok((BlockSet::new(), forgets)), None);
        match hears.recv().unwrap() {
            Ok(()) => assert!(!fails),
            Err(failure) => assert!(fails && base.failed(extent.start, failure).is_retryable()),
        }
        base.write_log().unwrap();
        assert_eq!(base.has_all(&[extent]), !fails);
        assert_eq!(base.logged().contains_extent(extent), !fails);
    }
}

/// Fake source that holds requests until told to reply.
#[derive(Default)]
struct Held(Mutex<std::collections::VecDeque<(Extent, FetchReply)>>);

impl LazySource for Held {
    fn fetch(&self, extent: Extent, _: Urgency, reply: FetchReply) {
        self.0.lock().push_back((extent, reply));
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        Ok(BlockSet::from_iter([extent]))
    }
}

#[test]
fn partial_replies_are_kept_until_completion() {
    const PIECE: usize = 2 * BLOCK;
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    let source = Arc::new(Held::default());
    base.set_source(source.clone());
    let extent = Extent::new(BlockIndex(8), 8);
    let ask = || {
        let (told, hears) = std::sync::mpsc::channel();
        let then: Then = Box::new(move |result| told.send(result).unwrap());
        assert!(base.want(&[extent], then).is_none());
        let (asked, reply) = source.0.lock().pop_front().unwrap();
        assert!(asked.start <= extent.start && asked.end() >= extent.end());
        (reply, hears)
    };
    // A fetch that fails midway.
    let (reply, hears) = ask();
    let late = reply.sink();
    late.put(BlockIndex(8), &[1; PIECE]).unwrap();
    reply.end(Err(SourceError::new("the store is gone", true)));
    assert!(hears.recv().unwrap().is_err());
    assert!(late.put(BlockIndex(8), &[9; PIECE]).is_err(), "it was given up");
    // A fetch that returns too much.
    let (reply, hears) = ask();
    let sink = reply.sink();
    for (start, len) in [(u64::MAX, BLOCK), (BLOCKS, BLOCK), (8, 1), (BLOCKS - 1, PIECE)] {
        assert!(sink.put(BlockIndex(start), &vec![9; len]).is_err(), "{start}, {len}");
    }
    assert!(sink.has_failed());
    reply.end(Ok(()));
    let failure = hears.recv().unwrap().unwrap_err();
    assert!(matches!(failure, FetchFailure::Source(error) if !error.is_retryable()));
    // A fetch that arrives, partly twice, with explicit and implicit zeroes.
    let (reply, hears) = ask();
    let sink = reply.sink();
    sink.put(BlockIndex(8), &[2; PIECE]).unwrap();
    sink.put(BlockIndex(12), &[[3; BLOCK], [0; BLOCK]].concat()).unwrap();
    sink.put(BlockIndex(8), &[2; PIECE]).unwrap();
    assert!(!base.has_all(&[extent]), "it may not be all");
    reply.end(Ok(()));
    assert!(hears.recv().unwrap().is_ok());
    assert!(sink.put(BlockIndex(8), &[9; BLOCK]).is_err(), "it may have another owner by now");
    let data = BlockSet::from_iter([Extent::new(BlockIndex(8), 2), Extent::new(BlockIndex(12), 1)]);
    assert_eq!(base.present().0, data);
    let mut found = vec![9; extent.len_bytes() as usize];
    base.files.read(extent.offset_bytes(), &mut found).unwrap();
    let wanted: Vec<u8> = [2, 2, 0, 0, 3, 0, 0, 0].iter().flat_map(|&byte| [byte; BLOCK]).collect();
    assert!(found == wanted);
}

/// Fake source that refuses synchronously.
struct Refusing;

impl LazySource for Refusing {
    fn fetch(&self, _: Extent, _: Urgency, reply: FetchReply) {
        reply.end(Err(SourceError::new("the store is gone", true)));
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        Ok(BlockSet::from_iter([extent]))
    }
}

#[test]
fn immediate_failure_is_not_counted_as_fetched() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    base.set_source(Arc::new(Refusing));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Other threads start the fetch and may end it before it is joined.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                base.start_flights();
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
    let (blocks, most) = (96 * MIB_BLOCKS, 16 * MIB_BLOCKS);
    let budget = FetchBudget::new(most, 12 * MIB_BLOCKS);
    let source = Arc::new(Held::default());
    let dirs = [1, 2].map(|_| tempfile::tempdir().unwrap());
    let bases = [1, 2].map(|number: u64| {
        let dir = dirs[number as usize - 1].path();
        let size_bytes = blocks * BLOCK_SIZE_BYTES;
        let place = Place { dir, volume: VolumeId::from_u64(number), size_bytes };
        drop(DataFiles::create(&files::data_path(dir, Epoch(1)), size_bytes).unwrap());
        LazyBase::create_log(place, Epoch(1), &BlockSet::new()).unwrap();
        let base = LazyBase::open_within(place, Epoch(1), budget.clone()).unwrap();
        base.set_source(source.clone());
        base
    });
    let piece = MIB_BLOCKS / 4;
    let mut done = [0, 0];
    let mut came = [true, true].map(|_| Arc::new(AtomicBool::new(true)));
    let mut most_seen = 0;
    while done.iter().any(|&done| done < blocks) {
        for (reader, base) in bases.iter().enumerate() {
            while came[reader].load(Ordering::Relaxed) && done[reader] < blocks {
                let extent = Extent::new(BlockIndex(done[reader]), piece);
                done[reader] += piece;
                came[reader] = Arc::new(AtomicBool::new(false));
                let tells = came[reader].clone();
                let then: Then = Box::new(move |result| {
                    assert!(result.is_ok());
                    tells.store(true, Ordering::Relaxed);
                });
                if let Some(then) = base.want(&[extent], then) {
                    then(Ok(()));
                }
            }
        }
        let under_way: u64 = source.0.lock().iter().map(|(extent, _)| extent.len_blocks).sum();
        assert!(under_way <= most, "{under_way} blocks under way");
        most_seen = most_seen.max(under_way);
        assert!(done[0].abs_diff(done[1]) <= 24 * MIB_BLOCKS, "one comes before the other: {done:?}");
        let first = source.0.lock().pop_front();
        if let Some((extent, reply)) = first {
            reply.complete(Ok(vec![0; extent.len_bytes() as usize]));
        } else {
            assert!(done.iter().all(|&done| done == blocks), "nothing is under way: {done:?}");
        }
    }
    assert!(most_seen > most / 2, "{most_seen} of {most} blocks were used");
    while let Some((extent, reply)) = { source.0.lock().pop_front() } {
        reply.complete(Ok(vec![0; extent.len_bytes() as usize]));
    }
    assert!(came.iter().all(|came| came.load(Ordering::Relaxed)));
}

#[test]
fn hints_are_dropped_when_too_many_wait() {
    let dir = tempfile::tempdir().unwrap();
    let base = base(dir.path());
    // Another thread is about to start fetches, so all of them wait.
    base.flights.lock().is_starting = true;
    for block in 0..BLOCKS {
        base.fetch_soon(Extent::new(BlockIndex(block), 1));
    }
    assert!(base.flights.lock().is_background_full());
    let mut started = 0;
    while base.flights.lock().next_to_start().is_some() {
        started += 1;
    }
    assert!(started < BLOCKS * 3 / 4, "{started}");
}
