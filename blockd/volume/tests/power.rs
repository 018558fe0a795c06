//! Power cuts at any moment, and volumes that have to go on with what the disk has left.
//!
//! A volume leads a random life on a disk that remembers what is durable. At a random call the power is cut; what was not
//! synced survives in part, in any order, torn at sectors; and the volume is opened again and lives on, several times.
//! Scripted lives are cut at every single call. `BLOCKD_TEST_SEED` repeats one random life, which a failure names;
//! `tools/soak-volume` leads many more of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod sim;

use blockd_volume::{Recovery, testing::Bug};
use sim::{Sim, Step, seed_of_test};
use std::{
    panic::catch_unwind,
    time::{Duration, Instant},
};

/// Sectors a block.
const BLOCK: u64 = 8;
const BLOCKS: u64 = 12;
const MOST_BLOCKS: u64 = 30;
const MOST_SNAPSHOTS: usize = 4;

/// Draws what a volume goes through.
struct Life {
    sim: Sim,
    next_id: u64,
}

impl Life {
    fn new(seed: u64, bugs: &[Bug]) -> Self {
        let mut sim = Sim::new(seed);
        for &bug in bugs {
            sim.plant(bug);
        }
        sim.create(BLOCKS).unwrap();
        Self { sim, next_id: 1 }
    }

    fn draw(&mut self) -> Step {
        let sectors = self.sim.model.sectors();
        let rng = &mut self.sim.rng;
        // Few places, so that writes meet each other.
        let whole = rng.one_in(2);
        let start = match whole {
            true => rng.below(sectors / BLOCK) * BLOCK,
            false => rng.below(sectors),
        };
        let len = match rng.below(4) {
            0 => 1,
            1 => 1 + rng.below(7),
            2 => BLOCK,
            _ => 1 + rng.below(5 * BLOCK),
        };
        let len = len.min(sectors - start);
        let snapshots: Vec<u64> = self.sim.model.snapshots.keys().copied().collect();
        match rng.below(40) {
            0..=15 => Step::Write { start, len, fua: rng.one_in(8) },
            16..=19 => Step::Trim { start, len: (len + BLOCK).min(sectors - start) },
            20..=22 => Step::Zero { start, len, no_hole: rng.one_in(3) },
            23..=26 => Step::Flush,
            27..=30 if snapshots.len() < MOST_SNAPSHOTS => {
                self.next_id += 1;
                Step::Freeze(self.next_id)
            }
            27..=32 if !snapshots.is_empty() => {
                Step::Delete(snapshots[rng.below(snapshots.len() as u64) as usize])
            }
            33..=35 => Step::Merge,
            36 => Step::Grow((sectors / BLOCK + rng.below(6)).min(MOST_BLOCKS)),
            37 => Step::Restart,
            38 => Step::Kill,
            _ => Step::Flush,
        }
    }

    /// Lives until the power is cut in the midst of it, and comes back.
    fn generation(&mut self) {
        let steps = 1 + self.sim.rng.below(24);
        // About three calls a step; where none is hit, the power is cut between two steps.
        let cut = self.sim.rng.below(steps * 6);
        self.sim.disk.cut_power_before(self.sim.disk.operations().len() as u64 + cut);
        for _ in 0..steps {
            let step = self.draw();
            if let Err(error) = self.sim.apply(step) {
                assert!(self.sim.disk.is_off(), "{step:?}: {error}");
                break;
            }
            if self.sim.disk.is_off() {
                break;
            }
        }
        self.come_back();
    }

    /// Cuts the power and opens what is left; the opening may be cut off, too.
    fn come_back(&mut self) {
        self.sim.cut_power();
        if self.sim.rng.one_in(3) {
            let cut = self.sim.rng.below(30);
            self.sim.disk.cut_power_before(cut);
            let opened = self.sim.open(Recovery::AfterPowerLoss, true);
            assert!(opened.is_ok() || self.sim.disk.is_off(), "{opened:?}", opened = opened.err());
            self.sim.cut_power();
        }
        self.sim.open(Recovery::AfterPowerLoss, true).unwrap();
        self.sim.decide();
        self.sim.check();
        self.sim.check_for_leaks();
    }
}

/// Some generations of a life.
fn live(seed: u64, bugs: &[Bug]) {
    let mut life = Life::new(seed, bugs);
    for _ in 0..2 + seed % 4 {
        life.generation();
    }
}

/// Leads lives until one fails or the time is over; how many, and the seed of the one that failed.
fn live_many(first_seed: u64, most: u64, time: Duration, bugs: &[Bug]) -> (u64, Option<u64>) {
    let start = Instant::now();
    for number in 0..most {
        if start.elapsed() > time {
            return (number, None);
        }
        let seed = first_seed.wrapping_add(number);
        if catch_unwind(|| live(seed, bugs)).is_err() {
            return (number, Some(seed));
        }
    }
    (most, None)
}

#[test]
fn whatever_a_power_cut_leaves_the_volume_stands() {
    let name = "whatever_a_power_cut_leaves_the_volume_stands";
    let seed = seed_of_test(name);
    if std::env::var_os("BLOCKD_TEST_SEED").is_some() {
        return live(seed, &[]);
    }
    let start = Instant::now();
    let (count, failed) = live_many(seed, 400, Duration::from_secs(15), &[]);
    assert_eq!(failed, None, "repeat this life with BLOCKD_TEST_SEED={}", failed.unwrap_or_default());
    eprintln!("{name}: {count} lives in {:?}", start.elapsed());
}

/// A test that finds nothing proves nothing.
#[test]
fn each_planted_bug_is_found() {
    let seed = seed_of_test("each_planted_bug_is_found");
    for bug in Bug::FOUND_BY_POWER_CUTS {
        let start = Instant::now();
        let (count, failed) = live_many(seed, 300, Duration::from_secs(30), &[bug]);
        assert!(failed.is_some(), "{bug:?} was not found in {count} lives");
        eprintln!("{bug:?}: found in life {count}, after {:?}", start.elapsed());
    }
}

/// For `tools/soak-volume`.
#[test]
#[ignore = "takes as long as it is told to"]
fn soak() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a decimal number"))
    };
    let (most, threads) = (number("BLOCKD_SOAK_SEEDS", 10_000), number("BLOCKD_SOAK_THREADS", 1).max(1));
    let seed = seed_of_test("soak");
    let start = Instant::now();
    let each = most.div_ceil(threads);
    let results: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|thread| {
                let first = seed.wrapping_add(thread * each);
                scope.spawn(move || live_many(first, each, Duration::MAX, &[]))
            })
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let count: u64 = results.iter().map(|result| result.0).sum();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("soak: {count} lives in {seconds:.1} s, {:.0} a second", count as f64 / seconds);
    for (_, failed) in results {
        assert_eq!(failed, None, "repeat this life with BLOCKD_TEST_SEED={}", failed.unwrap_or_default());
    }
}
