//! Power cuts at any call, and recovery from the surviving data.
//!
//! A scenario runs random operations on a simulated disk. The power is cut at a random call; unsynced data
//! survives in part, in any order, torn at sectors; the volume is reopened and continues, several times.
//! Scripts are cut at each call. `BLOCKD_TEST_SEED` repeats the random scenario that a failure names;
//! `tools/soak-volume` runs many more.

use crate::sim::disk::{DiskBug, Fault, FaultError, OpKind};
use crate::sim::{BLOCKS, SCRIPT, Sim, Step, assert_sticky, seed_of_test};
use blockd_volume::{Recovery, VolumeErrorKind};

use std::{
    panic::catch_unwind,
    time::{Duration, Instant},
};

/// Sectors per block.
const BLOCK: u64 = 8;
const FIRST_BLOCKS: u64 = 12;
const MAX_BLOCKS: u64 = 30;
const MAX_SNAPSHOTS: usize = 4;
/// Enough for several fetches.
const FIRST_LAZY_BLOCKS: u64 = 200;

/// Tests with random scenarios.
const WITH_CUTS: &str = "power_cut_keeps_the_volume_consistent";
const WITH_FAULTS: &str = "power_cuts_with_failing_calls_lose_no_flushed_data";
const LAZY: &str = "lazy_volume_survives_power_cuts";

/// Options of random scenarios.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// Calls fail as well.
    faults: bool,
    /// The volume is lazy.
    lazy: bool,
    bug: Option<DiskBug>,
    /// Recovery option of a start after a power cut.
    recovery: Recovery,
}

const CUTS_ONLY: Plan = Plan { faults: false, lazy: false, bug: None, recovery: Recovery::AfterPowerLoss };

/// Random scenario.
struct Scenario {
    sim: Sim,
    next_id: u64,
    plan: Plan,
}

impl Scenario {
    fn new(seed: u64, plan: Plan) -> Self {
        let mut sim = Sim::new(seed);
        match plan.lazy {
            true => sim.create_lazy(FIRST_LAZY_BLOCKS).unwrap(),
            false => sim.create(FIRST_BLOCKS).unwrap(),
        }
        plan.bug.into_iter().for_each(|bug| sim.add_bug(bug));
        Self { sim, next_id: 1, plan }
    }

    /// Returns a random step.
    fn draw(&mut self) -> Step {
        let sectors = self.sim.model.sectors();
        let rng = &mut self.sim.rng;
        // Few positions, so that writes overlap.
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

    /// Runs steps until a power cut, and recovers.
    fn run_until_cut(&mut self) {
        let steps = 1 + self.sim.rng.below(40);
        // A step makes about three calls. A cut beyond the last call happens after the last step.
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
                // The snapshot of a failed freeze may not exist.
                let is_missing = matches!(step, Step::Delete(_)) && error.kind() == VolumeErrorKind::NotFound;
                assert!(is_missing || !self.sim.disk.failed().is_empty(), "{step:?}: {error}");
                self.recover();
                if self.sim.disk.is_off() {
                    break;
                }
            }
        }
        recover_from_cut(&mut self.sim, self.plan.recovery);
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

    /// Continues after a failed step: clears the faults now or later, and reopens a failed volume.
    fn recover(&mut self) {
        let has_failed = self.sim.volume.as_ref().is_some_and(|volume| volume.failure().is_some());
        if has_failed {
            assert_sticky(self.sim.volume());
            self.sim.volume = None;
        }
        if has_failed || self.sim.volume.is_none() || self.sim.rng.one_in(2) {
            self.sim.disk.clear_faults();
        }
        if self.sim.volume.is_none() {
            let opened = self.sim.open(Recovery::Auto, has_failed);
            if self.sim.disk.is_off() {
                return;
            }
            opened.unwrap();
            self.sim.resolve();
            self.sim.disk.evict().unwrap();
        }
        self.sim.check();
    }
}

/// Cuts the power and opens the volume; the power may be cut during the open, too.
fn recover_from_cut(sim: &mut Sim, recovery: Recovery) {
    sim.cut_power();
    while sim.rng.one_in(3) {
        let cut = sim.rng.below(40);
        sim.disk.cut_power_before(cut);
        let opened = sim.open(recovery, true);
        assert!(opened.is_ok() || sim.disk.is_off(), "{opened:?}", opened = opened.err());
        sim.cut_power();
    }
    sim.open(recovery, true).unwrap();
    sim.resolve();
    sim.check();
    sim.check_for_leaks();
}

/// Runs a scenario with several power cuts.
fn run_scenario(seed: u64, plan: Plan) {
    let mut scenario = Scenario::new(seed, plan);
    for _ in 0..2 + seed % 4 {
        scenario.run_until_cut();
    }
}

/// Timeout of the detection of a disk bug, which takes seconds on an idle machine.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Runs scenarios until one fails or the time is over; returns their number and the seed of the failed one.
fn run_scenarios(first_seed: u64, max: u64, time: Duration, plan: Plan) -> (u64, Option<u64>) {
    let start = Instant::now();
    for number in 0..max {
        if start.elapsed() > time {
            return (number, None);
        }
        let seed = first_seed.wrapping_add(number);
        if catch_unwind(|| run_scenario(seed, plan)).is_err() {
            return (number, Some(seed));
        }
    }
    (max, None)
}

/// Runs scenarios for the test of this name.
fn run_scenarios_for(name: &str, time: Duration, plan: Plan) {
    let seed = seed_of_test(name);
    if std::env::var_os("BLOCKD_TEST_SEED").is_some() {
        return run_scenario(seed, plan);
    }
    let start = Instant::now();
    let (count, failed) = run_scenarios(seed, 300, time, plan);
    assert_repeatable(failed, name);
    eprintln!("{name}: {count} scenarios in {:?}", start.elapsed());
}

/// Fails with the command that repeats a failed scenario.
fn assert_repeatable(failed: Option<u64>, test: &str) {
    let seed = failed.unwrap_or_default();
    assert_eq!(
        failed, None,
        "to repeat it: BLOCKD_TEST_SEED={seed} cargo test -p blockd-volume --test integration power::{test}"
    );
}

#[test]
fn power_cut_keeps_the_volume_consistent() {
    run_scenarios_for(WITH_CUTS, Duration::from_secs(10), CUTS_ONLY);
}

#[test]
fn power_cuts_with_failing_calls_lose_no_flushed_data() {
    run_scenarios_for(WITH_FAULTS, Duration::from_secs(10), Plan { faults: true, ..CUTS_ONLY });
}

#[test]
fn lazy_volume_survives_power_cuts() {
    run_scenarios_for(LAZY, Duration::from_secs(10), Plan { lazy: true, ..CUTS_ONLY });
}

/// Runs the script and cuts the power right before the call with this number; returns the number of calls.
/// The disk has the bug from the first merge on.
fn cut_before(call: u64, seed: u64, script: &[Step], bug: Option<DiskBug>) -> u64 {
    let mut sim = Sim::new(seed);
    sim.disk.cut_power_before(call);
    let add_bug = |sim: &mut Sim, step| {
        if step == Step::Merge {
            bug.into_iter().for_each(|bug| sim.add_bug(bug));
        }
    };
    let reopen = |sim: &mut Sim| {
        sim.cut_power();
        sim.open(Recovery::AfterPowerLoss, true)
    };
    sim.run_script(script, add_bug, reopen, |sim| recover_from_cut(sim, Recovery::AfterPowerLoss))
}

#[test]
fn power_cut_at_any_call_of_script_leaves_old_or_new() {
    let name = "power_cut_at_any_call_of_script_leaves_old_or_new";
    let seed = seed_of_test(name);
    let draws = std::env::var("BLOCKD_SOAK_DRAWS").map_or(1, |text| text.parse().expect("a decimal number"));
    let calls = cut_before(u64::MAX, seed, SCRIPT, None);
    for call in 0..calls {
        for draw in 0..draws {
            let seed = seed.wrapping_add(draw * calls + call);
            let result = catch_unwind(|| cut_before(call, seed, SCRIPT, None));
            assert!(result.is_ok(), "cut before call {call} of {calls}, seed {seed}");
        }
    }
    eprintln!("{name}: {calls} calls, {draws} times each");
}

/// A failed commit may be durable: later operations must not remove its files.
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
        // The directory sync of the new head succeeds; those of its commit and of the withdrawal fail.
        let fault = Fault { kinds: vec![OpKind::SyncDir], skip: 1, ..Fault::every(FaultError::Io) };
        sim.disk.inject(fault);
        assert!(sim.apply(next).is_err());
        sim.disk.clear_faults();
        sim.disk.cut_power_before(sim.disk.operations().len() as u64 + call);
        let _ = sim.apply(next);
        recover_from_cut(&mut sim, Recovery::AfterPowerLoss);
    }
}

/// Script that mostly merges.
const MERGE_SCRIPT: &[Step] = &[
    Step::Write { start: 0, len: 24 * BLOCK, fua: false },
    Step::Freeze(1),
    Step::Write { start: 0, len: 20 * BLOCK, fua: false },
    Step::Freeze(2),
    Step::Write { start: 0, len: 1, fua: false },
    Step::Delete(1),
    Step::Merge,
];

/// Cuts the power at each call of merges until a check fails; returns the number of runs and the failed seed.
fn cut_merges(first_seed: u64, bug: DiskBug) -> (u64, Option<u64>) {
    let start = Instant::now();
    let calls = cut_before(u64::MAX, first_seed, MERGE_SCRIPT, None);
    let mut count = 0;
    while start.elapsed() < TIMEOUT {
        let seed = first_seed.wrapping_add(count);
        if catch_unwind(|| cut_before(count % calls, seed, MERGE_SCRIPT, Some(bug))).is_err() {
            return (count, Some(seed));
        }
        count += 1;
    }
    (count, None)
}

/// Proves that the tests above detect a violated guarantee.
#[test]
fn broken_disk_promises_are_detected() {
    let seed = seed_of_test("broken_disk_promises_are_detected");
    let unlogged_data = DiskBug::SyncsLate { late: ".data", after: ".log" };
    let with_bug = |bug| Plan { bug: Some(bug), ..CUTS_ONLY };
    let plans = [
        with_bug(DiskBug::IgnoresSync(".data")),
        with_bug(DiskBug::IgnoresSync(".log")),
        with_bug(DiskBug::IgnoresSync(".meta.new")),
        with_bug(DiskBug::IgnoresSync(".set.new")),
        with_bug(DiskBug::IgnoresDirSync),
        with_bug(unlogged_data),
        // The start trusts the live map although the power was cut.
        Plan { recovery: Recovery::Auto, ..CUTS_ONLY },
        Plan { lazy: true, ..with_bug(DiskBug::IgnoresSync(".data")) },
        Plan { lazy: true, ..with_bug(unlogged_data) },
    ];
    for plan in plans {
        let (count, failed) = run_scenarios(seed, u64::MAX, TIMEOUT, plan);
        assert!(failed.is_some(), "{plan:?} was not detected in {count} scenarios");
        eprintln!("{plan:?}: detected in scenario {count}");
    }
    // A random scenario is rarely cut between two notes of one merge.
    for bug in [DiskBug::IgnoresSync(".data"), DiskBug::SyncsLate { late: ".data", after: "volume.merge" }] {
        let (count, failed) = cut_merges(seed, bug);
        assert!(failed.is_some(), "{bug:?} was not detected in {count} merges");
        eprintln!("{bug:?} in merges: detected in merge {count}");
    }
}

/// Random scenarios for `tools/soak-volume`.
#[test]
#[ignore = "runs for a given time"]
fn soak() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().map_or(default, |text| text.parse().expect("a decimal number"))
    };
    let (max, threads) = (number("BLOCKD_SOAK_SEEDS", 10_000), number("BLOCKD_SOAK_THREADS", 1).max(1));
    let faults = std::env::var_os("BLOCKD_SOAK_FAULTS").is_some();
    let plan = Plan { faults, ..CUTS_ONLY };
    // Test that repeats one of these scenarios.
    let name = if faults { WITH_FAULTS } else { WITH_CUTS };
    let seed = seed_of_test("soak");
    let start = Instant::now();
    let each = max.div_ceil(threads);
    let results: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads)
            .map(|thread| {
                let first = seed.wrapping_add(thread * each);
                scope.spawn(move || run_scenarios(first, each, Duration::MAX, plan))
            })
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let count: u64 = results.iter().map(|result| result.0).sum();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("soak: {count} scenarios in {seconds:.1} s, {:.0} per second", count as f64 / seconds);
    for (_, failed) in results {
        assert_repeatable(failed, name);
    }
}
