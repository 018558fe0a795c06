use super::*;
use crate::lazy::SourceError;
use proptest::prelude::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

fn at(start: u64, len: u64) -> Extent {
    Extent::new(BlockIndex(start), len)
}

fn counting(count: &Arc<AtomicU64>) -> OnDone {
    let count = count.clone();
    Box::new(move |result| {
        assert!(result.is_ok());
        count.fetch_add(1, Ordering::Relaxed);
    })
}

#[test]
fn concurrent_readers_share_one_fetch() {
    let mut table = InFlightTable::new(10_000, BlockSet::new());
    let done = Arc::new(AtomicU64::new(0));
    for _ in 0..3 {
        assert!(matches!(table.request(&[at(70, 2)], None, counting(&done)), FetchRequest::Waiting));
    }
    let (extent, urgency) = table.next_to_start().unwrap();
    assert_eq!((extent, urgency), (at(0, MISS_BLOCKS), Urgency::Reader));
    assert!(table.next_to_start().is_none());
    table.finish_fetch(extent, Ok(&BlockSet::new())).into_iter().for_each(PendingCallback::run);
    assert_eq!(done.load(Ordering::Relaxed), 3);
    assert!(matches!(table.request(&[at(64, 64)], None, counting(&done)), FetchRequest::Present(_)));
}

/// Result of a waiter: none yet, success (true) or failure (false).
type Outcome = Arc<parking_lot::Mutex<Option<bool>>>;

fn recorder() -> (Outcome, OnDone) {
    let outcome = Outcome::default();
    let recorded = outcome.clone();
    let on_done = move |result: Result<(), FetchFailure>| {
        assert_eq!(recorded.lock().replace(result.is_ok()), None, "the callback runs once");
    };
    (outcome, Box::new(on_done))
}

#[test]
fn late_waiter_ignores_early_failure() {
    for may_succeed in [true, false] {
        let mut table = InFlightTable::new(10_000, BlockSet::new());
        let (first, on_done) = recorder();
        assert!(matches!(table.request(&[at(70, 2)], None, on_done), FetchRequest::Waiting));
        let (extent, _) = table.next_to_start().unwrap();
        let (late, on_done) = recorder();
        // It also waits for another fetch.
        assert!(matches!(table.request(&[at(80, 2), at(640, 1)], None, on_done), FetchRequest::Waiting));
        let failure = FetchFailure::from(SourceError::new("timeout", may_succeed));
        table.finish_fetch(extent, Err(&failure)).into_iter().for_each(PendingCallback::run);
        assert_eq!((*first.lock(), *late.lock()), (Some(false), None));
        let (other, _) = table.next_to_start().unwrap();
        table.finish_fetch(other, Ok(&BlockSet::new())).into_iter().for_each(PendingCallback::run);
        match may_succeed {
            true => {
                assert_eq!(*late.lock(), None, "its blocks are missing");
                assert_eq!(table.next_to_start(), Some((extent, Urgency::Reader)));
                // The waiter is not late for the second run.
                table.finish_fetch(extent, Err(&failure)).into_iter().for_each(PendingCallback::run);
            }
            false => assert_eq!(table.next_to_start(), None),
        }
        assert_eq!(*late.lock(), Some(false));
        assert_eq!((table.waiting(), table.next_to_start()), (0, None));
    }
}

#[test]
fn late_waiter_repeats_only_its_part_of_a_fetch() {
    let mut table = InFlightTable::new(10_000, BlockSet::new());
    table.launch(at(0, MAX_FETCH_BLOCKS), MISS_BLOCKS, Urgency::Background);
    let (extent, _) = table.next_to_start().unwrap();
    let (late, on_done) = recorder();
    assert!(matches!(table.request(&[at(300, 2), at(500, 20)], None, on_done), FetchRequest::Waiting));
    let failure = FetchFailure::from(SourceError::new("timeout", true));
    assert_eq!(table.finish_fetch(extent, Err(&failure)).len(), 0);
    let (retry, _) = table.next_to_start().unwrap();
    assert_eq!(retry, at(256, 3 * MISS_BLOCKS));
    table.finish_fetch(retry, Ok(&BlockSet::new())).into_iter().for_each(PendingCallback::run);
    assert_eq!((*late.lock(), table.waiting(), table.next_to_start()), (Some(true), 0, None));
}

#[test]
fn expired_waiters_are_called_and_fetches_dropped() {
    let began = Instant::now();
    let after = |ms| began + Duration::from_millis(ms);
    let mut table = InFlightTable::new(100_000, BlockSet::new());
    let mut outcomes = vec![];
    for number in 0..MAX_ACTIVE as u64 + 3 {
        let (one, on_done) = recorder();
        let deadline = Some(after(1000 + number));
        assert!(matches!(table.request(&[at(number * 1024, 1)], deadline, on_done), FetchRequest::Waiting));
        outcomes.push(one);
    }
    // The last but one fetch has another waiter without a deadline.
    let awaited = at((MAX_ACTIVE as u64 + 1) * 1024, 1);
    let (no_deadline, on_done) = recorder();
    assert!(matches!(table.request(&[awaited], None, on_done), FetchRequest::Waiting));
    while table.next_to_start().is_some() {}

    assert_eq!(table.next_check_at(), Some(after(1000)));
    assert_eq!(table.next_check_at(), None, "a check is scheduled already");
    assert_eq!(table.expire(after(999)).len(), 0);
    assert_eq!(table.next_check_at(), Some(after(1000)));
    table.expire(after(1001)).into_iter().for_each(PendingCallback::run);
    assert_eq!(outcomes.iter().filter(|one| *one.lock() == Some(false)).count(), 2);
    table.expire(after(5000)).into_iter().for_each(PendingCallback::run);
    assert!(outcomes.iter().all(|one| *one.lock() == Some(false)));
    assert_eq!((table.waiting(), table.next_check_at()), (1, None));
    // After a running fetch ends, the only awaited one can start.
    assert_eq!(table.finish_fetch(at(0, MISS_BLOCKS), Ok(&BlockSet::new())).len(), 0);
    let (extent, _) = table.next_to_start().unwrap();
    assert!(!extent.intersection(awaited).is_empty());
    assert_eq!(*no_deadline.lock(), None);
    table.finish_fetch(extent, Ok(&BlockSet::new())).into_iter().for_each(PendingCallback::run);
    assert_eq!(*no_deadline.lock(), Some(true));
    assert_eq!(table.next_to_start(), None);
}

#[test]
fn awaited_fetches_start_first() {
    let mut table = InFlightTable::new(300_000, BlockSet::new());
    table.launch(at(0, 200_000), 1, Urgency::Background);
    let mut background = 0;
    while let Some((_, urgency)) = table.next_to_start() {
        assert_eq!(urgency, Urgency::Background);
        background += 1;
    }
    assert_eq!(background, MAX_BACKGROUND);
    let done = Arc::new(AtomicU64::new(0));
    // A queued fetch and a new one.
    for start in [190_000, 250_000] {
        assert!(matches!(table.request(&[at(start, 1)], None, counting(&done)), FetchRequest::Waiting));
        let (extent, urgency) = table.next_to_start().unwrap();
        assert!(extent.start.0 <= start && start < extent.end().0);
        assert_eq!(urgency, Urgency::Reader);
    }
}

#[test]
fn readahead_has_longer_fetches_than_hydration() {
    let mut table = InFlightTable::new(100_000, BlockSet::new());
    let mut longest = 0;
    for nth in 0..64 {
        table.record_read(at(nth * 256, 256));
        while let Some((extent, _)) = table.next_to_start() {
            longest = longest.max(extent.len_blocks);
            assert_eq!(table.finish_fetch(extent, Ok(&BlockSet::new())).len(), 0);
        }
    }
    assert_eq!(longest, MAX_FETCH_BLOCKS);
    let steps = std::iter::from_fn(|| {
        let next = table.next_in_background()?;
        table.mark_present(next, &BlockSet::new());
        Some(next.len_blocks)
    });
    assert_eq!(steps.max(), Some(STEP_BLOCKS));
}

#[test]
fn hydration_starts_at_reads_and_completes() {
    let mut table = InFlightTable::new(9000, BlockSet::new());
    let done = Arc::new(AtomicU64::new(0));
    assert!(matches!(table.request(&[at(4500, 1)], None, counting(&done)), FetchRequest::Waiting));
    let (extent, _) = table.next_to_start().unwrap();
    assert_eq!(table.finish_fetch(extent, Ok(&BlockSet::new())).len(), 1);
    let mut starts = vec![];
    while let Some(next) = table.next_in_background() {
        starts.push(next.start.0);
        table.mark_present(next, &BlockSet::new());
    }
    assert!(table.is_complete());
    assert_eq!(starts[..2], [4096, 4608], "{starts:?}");
    assert_eq!(starts[2], 0, "{starts:?}");
}

#[test]
fn hydration_skips_refused_blocks() {
    let mut table = InFlightTable::new(3000, BlockSet::new());
    table.hydration_order.record_read(BlockIndex(100));
    table.refuse(at(0, 1024));
    let mut hydrated = 0;
    while let Some(next) = table.next_in_background() {
        assert!(next.start.0 >= 1024, "{next:?}");
        table.mark_present(next, &BlockSet::new());
        hydrated += next.len_blocks;
    }
    assert_eq!((hydrated, table.refused_blocks()), (1976, 1024));
    table.retry_refused();
    assert_eq!(table.next_in_background(), Some(at(0, 1024)));
    assert_eq!(table.refused_blocks(), 0);
}

proptest! {
    /// For requests in any order: fetches never overlap, and each callback runs exactly once.
    #[test]
    fn waiters_are_called_exactly_once(steps in proptest::collection::vec((0u8..4, 0u64..5000, 1u64..700), 1..120)) {
        let mut table = InFlightTable::new(5000, BlockSet::new());
        let outcomes = Arc::new(AtomicU64::new(0));
        let mut requested = 0;
        let mut active: Vec<Extent> = vec![];
        let finish = |table: &mut InFlightTable, active: &mut Vec<Extent>, n: usize| {
            if active.is_empty() { return }
            let extent = active.swap_remove(n % active.len());
            for callback in table.finish_fetch(extent, Ok(&BlockSet::new())) { callback.run() }
        };
        for (kind, start, len) in steps {
            match kind {
                0 | 1 => {
                    match table.request(&[at(start, len.min(5000 - start))], None, counting(&outcomes)) {
                        FetchRequest::Present(_) | FetchRequest::Refused(_) => {}
                        FetchRequest::Waiting => requested += 1,
                    }
                }
                2 => {
                    let extent = at(start, len.min(5000 - start));
                    table.launch(extent, 8, Urgency::Background);
                }
                _ => finish(&mut table, &mut active, start as usize),
            }
            while let Some((extent, _)) = table.next_to_start() {
                prop_assert!(extent.len_blocks <= MAX_FETCH_BLOCKS);
                prop_assert!(active.iter().all(|other| other.intersection(extent).is_empty()));
                prop_assert_eq!(table.present.intersection_len(extent), 0);
                active.push(extent);
            }
        }
        while !active.is_empty() {
            finish(&mut table, &mut active, 0);
            while let Some((extent, _)) = table.next_to_start() { active.push(extent) }
        }
        prop_assert_eq!(outcomes.load(Ordering::Relaxed), requested);
        prop_assert_eq!(table.waiting(), 0);
    }
}
