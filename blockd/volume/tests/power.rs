//! Power cuts at any moment, and volumes that have to go on with what the disk has left.
//!
//! A volume leads a random life on a disk that remembers what is durable. At a random call the power is cut;
//! what was not synced survives in part, in any order, torn at sectors; and the volume is opened again and
//! lives on, several times. Scripted lives are cut at every single call. `BLOCKD_TEST_SEED` repeats one
//! random life, which a failure names; `tools/soak-volume` leads many more of them.

use crate::sim::disk::{Fault, FaultError, Lie, OpKind};
use crate::sim::{BLOCKS, LIFE, Sim, Step, assert_sticky, seed_of_test};
use blockd_volume::{Recovery, VolumeErrorKind};

use std::{
    panic::catch_unwind,
    time::{Duration, Instant},
};

/// Sectors a block.
const BLOCK: u64 = 8;
const FIRST_BLOCKS: u64 = 12;
const MAX_BLOCKS: u64 = 30;
const MAX_SNAPSHOTS: usize = 4;
/// More than one flight fetches.
const FIRST_LAZY_BLOCKS: u64 = 200;

/// The tests that lead random lives.
const WITH_CUTS: &str = "power_cut_keeps_the_volume_consistent";
const WITH_FAULTS: &str = "power_cuts_and_failing_calls_together_break_nothing";
const LAZY: &str = "lazy_volume_survives_power_cuts";

/// A random life.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Calls fail in it, too.
    faults: bool,
    /// The volume begins as what a source holds.
    lazy: bool,
    lie: Option<Lie>,
    /// Recovery that a start after a power cut gets as its option.
    recovery: Recovery,
}

const CALM: Plan = Plan { faults: false, lazy: false, lie: None, recovery: Recovery::AfterPowerLoss };

/// Draws what a volume goes through.
struct Life {
    sim: Sim,
    next_id: u64,
    plan: Plan,
}

impl Life {
    fn new(seed: u64, plan: Plan) -> Self {
        let mut sim = Sim::new(seed);
        match plan.lazy {
            true => sim.create_lazy(FIRST_LAZY_BLOCKS).unwrap(),
            false => sim.create(FIRST_BLOCKS).unwrap(),
        }
        plan.lie.into_iter().for_each(|lie| sim.plant(lie));
        Self { sim, next_id: 1, plan }
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
        if self.plan.lazy && rng.one_in(3) {
            return match rng.below(8) {
                0..=2 => Step::Read { start, len },
                3..=4 => Step::Hydrate,
                5..=6 => Step::SyncHydration,
                _ => Step::EndHydration,
            };
        }
        let snapshots: Vec<u64> = self.sim.model.snapshots.keys().copied().collect();
        match rng.below(40) {
            0..=12 => Step::Write { start, len, fua: rng.one_in(8) },
            13..=17 => Step::Trim { start, len: (len + BLOCK).min(sectors - start) },
            18..=20 => Step::Zero { start, len, no_hole: rng.one_in(3) },
            21..=23 => Step::Flush,
            24..=29 if snapshots.len() < MAX_SNAPSHOTS => {
                self.next_id += 1;
                Step::Freeze(self.next_id)
            }
            24..=32 if !snapshots.is_empty() => {
                Step::Delete(snapshots[rng.below(snapshots.len() as u64) as usize])
            }
            33..=36 => Step::Merge,
            37 => Step::Grow((sectors / BLOCK + rng.below(6)).min(MAX_BLOCKS.max(sectors / BLOCK))),
            38 if rng.one_in(2) => Step::Restart,
            38 => Step::Kill,
            _ => Step::SyncMaps,
        }
    }

    /// Lives until the power is cut in the midst of it, and comes back.
    fn generation(&mut self) {
        let steps = 1 + self.sim.rng.below(40);
        // About three calls a step; where none is hit, the power is cut between two steps.
        let cut = self.sim.rng.below(steps * 6);
        self.sim.disk.cut_power_before(self.sim.disk.operations().len() as u64 + cut);
        for _ in 0..steps {
            if self.plan.faults && self.sim.rng.one_in(3) {
                self.inject();
            }
            let step = self.draw();
            let result = self.sim.apply(step);
            if self.sim.disk.is_off() {
                break;
            }
            if let Err(error) = result {
                // A freeze that failed may have made its snapshot or not.
                let is_gone = matches!(step, Step::Delete(_)) && error.kind() == VolumeErrorKind::NotFound;
                assert!(is_gone || !self.sim.disk.failed().is_empty(), "{step:?}: {error}");
                self.recover();
                if self.sim.disk.is_off() {
                    break;
                }
            }
        }
        come_back(&mut self.sim, self.plan.recovery);
    }

    fn inject(&mut self) {
        let rng = &mut self.sim.rng;
        let error = [FaultError::Io, FaultError::NoSpace, FaultError::Quota][rng.below(3) as usize];
        let persistent = rng.one_in(3);
        let partial_bytes = rng.below(12) as usize * 512;
        let kinds = [OpKind::Write, OpKind::Sync, OpKind::SyncDir, OpKind::Rename, OpKind::Create];
        let (kinds, skip) = match rng.below(3) {
            0 => (vec![], rng.below(20)),
            _ => (vec![kinds[rng.below(kinds.len() as u64) as usize]], rng.below(4)),
        };
        let fault = Fault { kinds, persistent, partial_bytes, ..Fault::at(skip, error) };
        self.sim.disk.inject(fault);
    }

    /// After a failed call: the disk may be mended now or later; a volume that has failed is opened again.
    fn recover(&mut self) {
        let has_failed = self.sim.volume.as_ref().is_some_and(|volume| volume.failure().is_some());
        if has_failed {
            assert_sticky(self.sim.volume());
            self.sim.volume = None;
        }
        if has_failed || self.sim.volume.is_none() || self.sim.rng.one_in(2) {
            self.sim.disk.mend();
        }
        if self.sim.volume.is_none() {
            let opened = self.sim.open(Recovery::Auto, has_failed);
            if self.sim.disk.is_off() {
                return;
            }
            opened.unwrap();
            self.sim.decide();
            self.sim.disk.evict().unwrap();
        }
        self.sim.check();
    }
}

/// Cuts the power and opens what is left; the opening may be cut off, too.
fn come_back(sim: &mut Sim, recovery: Recovery) {
    sim.cut_power();
    while sim.rng.one_in(3) {
        let cut = sim.rng.below(40);
        sim.disk.cut_power_before(cut);
        let opened = sim.open(recovery, true);
        assert!(opened.is_ok() || sim.disk.is_off(), "{opened:?}", opened = opened.err());
        sim.cut_power();
    }
    sim.open(recovery, true).unwrap();
    sim.decide();
    sim.check();
    sim.check_for_leaks();
}

/// Some generations of a life.
fn live(seed: u64, plan: Plan) {
    let mut life = Life::new(seed, plan);
    for _ in 0..2 + seed % 4 {
        life.generation();
    }
}

/// Timeout of the search for a planted bug, which takes seconds on an idle machine.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Leads lives until one fails or the time is over; how many, and the seed of the one that failed.
fn live_many(first_seed: u64, most: u64, time: Duration, plan: Plan) -> (u64, Option<u64>) {
    let start = Instant::now();
    for number in 0..most {
        if start.elapsed() > time {
            return (number, None);
        }
        let seed = first_seed.wrapping_add(number);
        if catch_unwind(|| live(seed, plan)).is_err() {
            return (number, Some(seed));
        }
    }
    (most, None)
}

/// Leads lives for a test of this name.
fn live_for(name: &str, time: Duration, plan: Plan) {
    let seed = seed_of_test(name);
    if std::env::var_os("BLOCKD_TEST_SEED").is_some() {
        return live(seed, plan);
    }
    let start = Instant::now();
    let (count, failed) = live_many(seed, 300, time, plan);
    assert_eq!(failed, None, "this repeats it: BLOCKD_TEST_SEED={} {name}", failed.unwrap_or_default());
    eprintln!("{name}: {count} lives in {:?}", start.elapsed());
}

#[test]
fn power_cut_keeps_the_volume_consistent() {
    live_for(WITH_CUTS, Duration::from_secs(10), CALM);
}

#[test]
fn power_cuts_with_failing_calls_lose_no_flushed_data() {
    live_for(WITH_FAULTS, Duration::from_secs(10), Plan { faults: true, ..CALM });
}

#[test]
fn lazy_volume_survives_power_cuts() {
    live_for(LAZY, Duration::from_secs(10), Plan { lazy: true, ..CALM });
}

/// Leads the life and cuts the power right before the call with this number; how many calls it took. The disk
/// lies from the first merge on.
fn cut_before(call: u64, seed: u64, life: &[Step], lie: Option<Lie>) -> u64 {
    let mut sim = Sim::new(seed);
    sim.disk.cut_power_before(call);
    let plant = |sim: &mut Sim, step| {
        if step == Step::Merge {
            lie.into_iter().for_each(|lie| sim.plant(lie));
        }
    };
    let reopen = |sim: &mut Sim| {
        sim.cut_power();
        sim.open(Recovery::AfterPowerLoss, true)
    };
    sim.lead(life, plant, reopen, |sim| come_back(sim, Recovery::AfterPowerLoss))
}

#[test]
fn power_cut_at_any_call_of_script_leaves_old_or_new() {
    let name = "power_cut_at_any_call_of_script_leaves_old_or_new";
    let seed = seed_of_test(name);
    let draws = std::env::var("BLOCKD_SOAK_DRAWS").map_or(1, |text| text.parse().expect("a decimal number"));
    let calls = cut_before(u64::MAX, seed, LIFE, None);
    for call in 0..calls {
        for draw in 0..draws {
            let seed = seed.wrapping_add(draw * calls + call);
            let result = catch_unwind(|| cut_before(call, seed, LIFE, None));
            assert!(result.is_ok(), "cut before call {call} of {calls}, seed {seed}");
        }
    }
    eprintln!("{name}: {calls} calls, {draws} times each");
}

/// A commit that fails may stand on the disk: what comes next must not pull its files away.
#[test]
fn uncertain_commit_is_settled_before_files_are_recreated() {
    let seed = seed_of_test("uncertain_commit_is_settled_before_files_are_recreated");
    for (next, call, draw) in [Step::Freeze(1), Step::Grow(BLOCKS + 9)]
        .into_iter()
        .flat_map(|next| (0..40).flat_map(move |call| (0..4).map(move |draw| (next, call, draw))))
    {
        let mut sim = Sim::new(seed.wrapping_add(call * 4 + draw));
        sim.create(BLOCKS).unwrap();
        sim.apply(Step::Write { start: 3, len: 20, fua: true }).unwrap();
        // The names of the new head are synced; the commit that names it, and its withdrawal, are not.
        let fault = Fault { kinds: vec![OpKind::SyncDir], skip: 1, ..Fault::every(FaultError::Io) };
        sim.disk.inject(fault);
        assert!(sim.apply(next).is_err());
        sim.disk.mend();
        sim.disk.cut_power_before(sim.disk.operations().len() as u64 + call);
        let _ = sim.apply(next);
        come_back(&mut sim, Recovery::AfterPowerLoss);
    }
}

/// Much to merge, and little else.
const MERGING: &[Step] = &[
    Step::Write { start: 0, len: 24 * BLOCK, fua: false },
    Step::Freeze(1),
    Step::Write { start: 0, len: 20 * BLOCK, fua: false },
    Step::Freeze(2),
    Step::Write { start: 0, len: 1, fua: false },
    Step::Delete(1),
    Step::Merge,
];

/// Cuts the power at any call of a life that merges until a check fails; after how many lives.
fn cut_merges(first_seed: u64, lie: Lie) -> (u64, Option<u64>) {
    let start = Instant::now();
    let calls = cut_before(u64::MAX, first_seed, MERGING, None);
    let mut count = 0;
    while start.elapsed() < TIMEOUT {
        let seed = first_seed.wrapping_add(count);
        if catch_unwind(|| cut_before(count % calls, seed, MERGING, Some(lie))).is_err() {
            return (count, Some(seed));
        }
        count += 1;
    }
    (count, None)
}

/// A test that finds nothing proves nothing.
#[test]
fn disk_that_breaks_a_promise_is_noticed() {
    let seed = seed_of_test("disk_that_breaks_a_promise_is_noticed");
    let unlogged_data = Lie::SyncsLate { late: ".data", after: ".log" };
    let lying = |lie| Plan { lie: Some(lie), ..CALM };
    let plans = [
        lying(Lie::IgnoresSync(".data")),
        lying(Lie::IgnoresSync(".log")),
        lying(Lie::IgnoresSync(".meta.new")),
        lying(Lie::IgnoresSync(".set.new")),
        lying(Lie::IgnoresDirSync),
        lying(unlogged_data),
        // The live map of the boot before is believed.
        Plan { recovery: Recovery::Auto, ..CALM },
        Plan { lazy: true, ..lying(Lie::IgnoresSync(".data")) },
        Plan { lazy: true, ..lying(unlogged_data) },
    ];
    for plan in plans {
        let (count, failed) = live_many(seed, u64::MAX, TIMEOUT, plan);
        assert!(failed.is_some(), "{plan:?} was not noticed in {count} lives");
        eprintln!("{plan:?}: noticed in life {count}");
    }
    // A random life is seldom cut between two notes of one merge.
    for lie in [Lie::IgnoresSync(".data"), Lie::SyncsLate { late: ".data", after: "volume.merge" }] {
        let (count, failed) = cut_merges(seed, lie);
        assert!(failed.is_some(), "{lie:?} was not noticed in {count} lives");
        eprintln!("{lie:?} in merges: noticed in life {count}");
    }
}

/// For `tools/soak-volume`.
#[test]
#[ignore = "runs for a given time"]
fn soak() {
    let number = |name: &str, otherwise: u64| {
        std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a decimal number"))
    };
    let (most, threads) = (number("BLOCKD_SOAK_SEEDS", 10_000), number("BLOCKD_SOAK_THREADS", 1).max(1));
    let faults = std::env::var_os("BLOCKD_SOAK_FAULTS").is_some();
    let plan = Plan { faults, ..CALM };
    // The test that repeats one of these lives.
    let name = if faults { WITH_FAULTS } else { WITH_CUTS };
    let seed = seed_of_test("soak");
    let start = Instant::now();
    let each = most.div_ceil(threads);
    let results: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|thread| {
                let first = seed.wrapping_add(thread * each);
                scope.spawn(move || live_many(first, each, Duration::MAX, plan))
            })
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let count: u64 = results.iter().map(|result| result.0).sum();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("soak: {count} lives in {seconds:.1} s, {:.0} a second", count as f64 / seconds);
    for (_, failed) in results {
        assert_eq!(failed, None, "this repeats it: BLOCKD_TEST_SEED={} {name}", failed.unwrap_or_default());
    }
}
