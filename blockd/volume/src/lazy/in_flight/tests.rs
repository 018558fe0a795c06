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

fn counting(count: &Arc<AtomicU64>) -> Then {
    let count = count.clone();
    Box::new(move |result| {
        assert!(result.is_ok());
        count.fetch_add(1, Ordering::Relaxed);
    })
}

#[test]
fn concurrent_readers_share_one_fetch() {
    let mut flights = InFlightTable::new(10_000, BlockSet::new());
    let done = Arc::new(AtomicU64::new(0));
    for _ in 0..3 {
        assert!(matches!(flights.want(&[at(70, 2)], None, counting(&done)), FetchRequest::Waits));
    }
    let (extent, urgency) = flights.next_to_start().unwrap();
    assert_eq!((extent, urgency), (at(64, 64), Urgency::Reader));
    assert!(flights.next_to_start().is_none());
    flights.landed(extent, Ok(&BlockSet::new())).into_iter().for_each(Call::make);
    assert_eq!(done.load(Ordering::Relaxed), 3);
    assert!(matches!(flights.want(&[at(64, 64)], None, counting(&done)), FetchRequest::Granted(_)));
}

/// Result seen by a waiter: none yet, present, or failed.
type Told = Arc<parking_lot::Mutex<Option<bool>>>;

fn telling() -> (Told, Then) {
    let told = Told::default();
    let kept = told.clone();
    (told, Box::new(move |result| assert_eq!(kept.lock().replace(result.is_ok()), None, "told twice")))
}

#[test]
fn late_waiter_ignores_early_failure() {
    for may_succeed in [true, false] {
        let mut flights = InFlightTable::new(10_000, BlockSet::new());
        let (first, then) = telling();
        assert!(matches!(flights.want(&[at(70, 2)], None, then), FetchRequest::Waits));
        let (extent, _) = flights.next_to_start().unwrap();
        let (late, then) = telling();
        // It also waits for a fetch of its own.
        assert!(matches!(flights.want(&[at(80, 2), at(640, 1)], None, then), FetchRequest::Waits));
        let failure = FetchFailure::from(SourceError::new("the time is over", may_succeed));
        flights.landed(extent, Err(&failure)).into_iter().for_each(Call::make);
        assert_eq!((*first.lock(), *late.lock()), (Some(false), None));
        let (other, _) = flights.next_to_start().unwrap();
        flights.landed(other, Ok(&BlockSet::new())).into_iter().for_each(Call::make);
        match may_succeed {
            true => {
                assert_eq!(*late.lock(), None, "its blocks are not there");
                assert_eq!(flights.next_to_start(), Some((extent, Urgency::Reader)));
                // This time it waited from the start.
                flights.landed(extent, Err(&failure)).into_iter().for_each(Call::make);
            }
            false => assert_eq!(flights.next_to_start(), None),
        }
        assert_eq!(*late.lock(), Some(false));
        assert_eq!((flights.waiting(), flights.next_to_start()), (0, None));
    }
}

#[test]
fn expired_waiters_are_called_and_fetches_dropped() {
    let began = Instant::now();
    let after = |ms| began + Duration::from_millis(ms);
    let mut flights = InFlightTable::new(100_000, BlockSet::new());
    let mut told = vec![];
    for number in 0..MAX_ACTIVE as u64 + 3 {
        let (one, then) = telling();
        let until = Some(after(1000 + number));
        assert!(matches!(flights.want(&[at(number * 1024, 1)], until, then), FetchRequest::Waits));
        told.push(one);
    }
    // The last but one fetch has another waiter without a timeout.
    let place = at((MAX_ACTIVE as u64 + 1) * 1024, 1);
    let (patient, then) = telling();
    assert!(matches!(flights.want(&[place], None, then), FetchRequest::Waits));
    while flights.next_to_start().is_some() {}

    assert_eq!(flights.next_poll_at(), Some(after(1000)));
    assert_eq!(flights.next_poll_at(), None, "a check is scheduled already");
    assert_eq!(flights.poll(after(999)).len(), 0);
    assert_eq!(flights.next_poll_at(), Some(after(1000)));
    flights.poll(after(1001)).into_iter().for_each(Call::make);
    assert_eq!(told.iter().filter(|one| *one.lock() == Some(false)).count(), 2);
    flights.poll(after(5000)).into_iter().for_each(Call::make);
    assert!(told.iter().all(|one| *one.lock() == Some(false)));
    assert_eq!((flights.waiting(), flights.next_poll_at()), (1, None));
    // A running fetch ends and makes room for the only requested one.
    assert_eq!(flights.landed(at(0, MISS_BLOCKS), Ok(&BlockSet::new())).len(), 0);
    let (extent, _) = flights.next_to_start().unwrap();
    assert!(!extent.intersection(place).is_empty());
    assert_eq!(*patient.lock(), None);
    flights.landed(extent, Ok(&BlockSet::new())).into_iter().for_each(Call::make);
    assert_eq!(*patient.lock(), Some(true));
    assert_eq!(flights.next_to_start(), None);
}

#[test]
fn awaited_fetches_start_first() {
    let mut flights = InFlightTable::new(100_000, BlockSet::new());
    flights.launch(at(0, 50_000), 1, Urgency::Background);
    let mut background = 0;
    while let Some((_, urgency)) = flights.next_to_start() {
        assert_eq!(urgency, Urgency::Background);
        background += 1;
    }
    assert_eq!(background, MAX_BACKGROUND);
    let done = Arc::new(AtomicU64::new(0));
    // A waiting fetch and a new one.
    for start in [40_000, 60_000] {
        assert!(matches!(flights.want(&[at(start, 1)], None, counting(&done)), FetchRequest::Waits));
        let (extent, urgency) = flights.next_to_start().unwrap();
        assert!(extent.start.0 <= start && start < extent.end().0);
        assert_eq!(urgency, Urgency::Reader);
    }
}

#[test]
fn hydration_starts_at_reads_and_completes() {
    let mut flights = InFlightTable::new(9000, BlockSet::new());
    let done = Arc::new(AtomicU64::new(0));
    assert!(matches!(flights.want(&[at(5000, 1)], None, counting(&done)), FetchRequest::Waits));
    let (extent, _) = flights.next_to_start().unwrap();
    assert_eq!(flights.landed(extent, Ok(&BlockSet::new())).len(), 1);
    let mut places = vec![];
    while let Some(next) = flights.next_in_background() {
        places.push(next.start.0);
        flights.have(next, &BlockSet::new());
    }
    assert!(flights.is_all_there());
    assert_eq!(places[..2], [4096, 5056], "{places:?}");
    assert_eq!(places[2], 0, "{places:?}");
}

#[test]
fn hydration_skips_refused_blocks() {
    let mut flights = InFlightTable::new(3000, BlockSet::new());
    flights.note_hot(BlockIndex(100));
    flights.refuse(at(0, 1024));
    let mut came = 0;
    while let Some(next) = flights.next_in_background() {
        assert!(next.start.0 >= 1024, "{next:?}");
        flights.have(next, &BlockSet::new());
        came += next.len_blocks;
    }
    assert_eq!((came, flights.refused_blocks()), (1976, 1024));
    flights.retry_refused();
    assert_eq!(flights.next_in_background(), Some(at(0, 1024)));
    assert_eq!(flights.refused_blocks(), 0);
}

proptest! {
    /// For requests in any order: fetches never overlap, and each waiter is called exactly once.
    #[test]
    fn waiters_are_called_exactly_once(steps in proptest::collection::vec((0u8..4, 0u64..5000, 1u64..700), 1..120)) {
        let mut flights = InFlightTable::new(5000, BlockSet::new());
        let told = Arc::new(AtomicU64::new(0));
        let mut asked = 0;
        let mut active: Vec<Extent> = vec![];
        let land = |flights: &mut InFlightTable, active: &mut Vec<Extent>, n: usize| {
            if active.is_empty() { return }
            let extent = active.swap_remove(n % active.len());
            for call in flights.landed(extent, Ok(&BlockSet::new())) { call.make() }
        };
        for (what, start, len) in steps {
            match what {
                0 | 1 => {
                    match flights.want(&[at(start, len.min(5000 - start))], None, counting(&told)) {
                        FetchRequest::Granted(_) | FetchRequest::Refused(_) => {}
                        FetchRequest::Waits => asked += 1,
                    }
                }
                2 => {
                    let stretch = at(start, len.min(5000 - start));
                    flights.launch(stretch, 8, Urgency::Background);
                }
                _ => land(&mut flights, &mut active, start as usize),
            }
            while let Some((extent, _)) = flights.next_to_start() {
                prop_assert!(extent.len_blocks <= MAX_FLIGHT_BLOCKS);
                prop_assert!(active.iter().all(|other| other.intersection(extent).is_empty()));
                prop_assert_eq!(flights.there.intersection_len(extent), 0);
                active.push(extent);
            }
        }
        while !active.is_empty() {
            land(&mut flights, &mut active, 0);
            while let Some((extent, _)) = flights.next_to_start() { active.push(extent) }
        }
        prop_assert_eq!(told.load(Ordering::Relaxed), asked);
        prop_assert_eq!(flights.waiting(), 0);
    }
}
