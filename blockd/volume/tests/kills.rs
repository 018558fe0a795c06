//! Process crashes at each call: the next process finds all answered writes, and a power cut after its next
//! flush loses none of them.

use crate::sim::{BLOCKS, ID, SCRIPT, Sim, Step, seed_of_test};
use crate::support::{content, open, open_after_power_loss, snapshot_content};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, SnapshotId};
use blockd_volume::{ClosedVolume, OpenOptions, Recovery, RestoreTarget, VolumeError};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Opens the volume in the next process of the same boot.
fn reopen(sim: &mut Sim) -> Result<(), VolumeError> {
    crash(sim);
    sim.open(Recovery::Auto, false)
}

/// Crashes the process.
fn crash(sim: &mut Sim) {
    sim.volume = None;
    sim.disk.restart_process();
}

/// Writes, flushes, cuts the power and checks the volume.
fn flush_and_cut_power(sim: &mut Sim) {
    sim.apply(Step::Write { start: 11, len: 30, fua: false }).unwrap();
    sim.apply(Step::Flush).unwrap();
    sim.cut_power();
    sim.open(Recovery::AfterPowerLoss, true).unwrap();
    sim.resolve();
    sim.check();
    sim.check_for_leaks();
}

/// Runs the script and crashes the process right before the call with this number; returns the number of
/// calls.
fn crash_before(call: u64, seed: u64) -> u64 {
    let mut sim = Sim::new(seed);
    sim.disk.cut_power_before(call);
    sim.run_script(
        SCRIPT,
        |_, _| {},
        reopen,
        |sim| {
            reopen(sim).unwrap();
            sim.resolve();
            sim.check();
            flush_and_cut_power(sim);
        },
    )
}

#[test]
fn process_crash_at_any_call_leaves_consistent_state() {
    let name = "process_crash_at_any_call_leaves_consistent_state";
    let seed = seed_of_test(name);
    let calls = crash_before(u64::MAX, seed);
    for call in 0..calls {
        let seed = seed.wrapping_add(call);
        let result = catch_unwind(|| crash_before(call, seed));
        assert!(result.is_ok(), "crash before call {call} of {calls}, seed {seed}");
    }
    eprintln!("{name}: {calls} calls");
}

/// Checks the closed volume twice, as starts do: opens it and closes it again.
fn check_twice(sim: &Sim) -> Option<()> {
    for _ in 0..2 {
        let options = OpenOptions { serves_remote: true, ..OpenOptions::default() };
        let volume = ClosedVolume::read(&sim.dir(), &options).ok()?.open().ok()?;
        volume.close().ok()?;
    }
    Some(())
}

#[test]
fn crash_during_check_of_closed_volume_loses_nothing() {
    let seed = seed_of_test("crash_during_check_of_closed_volume_loses_nothing");
    let calls = crash_at_each_call(seed, |call, seed| {
        let mut sim = Sim::new(seed);
        sim.create(BLOCKS).unwrap();
        sim.apply(Step::Write { start: 0, len: 40, fua: true }).unwrap();
        sim.apply(Step::Freeze(1)).unwrap();
        sim.apply(Step::Write { start: 3, len: 21, fua: true }).unwrap();
        sim.apply(Step::Write { start: 20, len: 30, fua: false }).unwrap();
        crash(&mut sim);
        let before = sim.disk.operations().len() as u64;
        sim.disk.cut_power_before(before + call);
        let is_done = check_twice(&sim).is_some();
        let calls = sim.disk.operations().len() as u64 - before;
        reopen(&mut sim).unwrap();
        sim.resolve();
        sim.check();
        flush_and_cut_power(&mut sim);
        is_done.then_some(calls)
    });
    assert!(calls > 20, "a check has few calls: {calls}");
}

/// Number of runs per call.
const DRAWS: u64 = 4;
/// Content of a restore or clone.
const CONTENT: [u8; BLOCK_SIZE_BYTES as usize] = [7; BLOCK_SIZE_BYTES as usize];

/// Crashes the creation of a volume by a rename at each call: a volume that the next process finds must
/// survive a power cut.
fn crash_creations(name: &str, create: impl Fn(&Sim) -> Option<()>) {
    let seed = seed_of_test(name);
    let found = std::cell::Cell::new(0);
    crash_at_each_call(seed, |call, seed| {
        let (exists, calls) = crash_creation(call, seed, &create);
        found.set(found.get() + u64::from(exists));
        calls
    });
    assert!(found.get() > DRAWS, "no crash between the rename and the end");
}

/// Runs an operation several times with a crash before each of its calls; it returns the number of its
/// calls if it completed. Returns the lowest of these numbers.
fn crash_at_each_call(seed: u64, run: impl Fn(u64, u64) -> Option<u64>) -> u64 {
    let mut calls = u64::MAX;
    for (call, draw) in (0..).flat_map(|call| (0..DRAWS).map(move |draw| (call, draw))) {
        if call > calls {
            break;
        }
        let seed = seed.wrapping_add(call * DRAWS + draw);
        let completed = catch_unwind(AssertUnwindSafe(|| run(call, seed)))
            .unwrap_or_else(|_| panic!("crash before call {call}, seed {seed}"));
        calls = completed.map_or(calls, |completed| completed.min(calls));
    }
    calls
}

/// Crashes a creation before a call; returns true if the volume exists afterwards, and the number of calls
/// if the creation completed.
fn crash_creation(call: u64, seed: u64, create: impl Fn(&Sim) -> Option<()>) -> (bool, Option<u64>) {
    let mut sim = Sim::new(seed);
    sim.create(BLOCKS).unwrap();
    sim.volume().write(0, &CONTENT, false).unwrap();
    sim.volume().freeze(SnapshotId::from_u64(1)).unwrap();
    let before = sim.disk.operations().len() as u64;
    sim.disk.cut_power_before(before + call);
    let is_done = create(&sim).is_some();
    let calls = sim.disk.operations().len() as u64 - before;
    crash(&mut sim);
    let exists = new_dir(&sim).exists();
    assert!(exists || !is_done);
    if exists {
        let volume = open(&new_dir(&sim));
        volume.write(BLOCK_SIZE_BYTES, &CONTENT, true).unwrap();
        drop(volume);
        sim.cut_power();
        let volume = open_after_power_loss(&new_dir(&sim));
        let mut bytes = [0; 2 * BLOCK_SIZE_BYTES as usize];
        volume.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7), "flushed data was lost");
    }
    (exists, is_done.then_some(calls))
}

fn new_dir(sim: &Sim) -> std::path::PathBuf {
    sim.disk_root().join("new")
}

#[test]
fn restored_volume_found_after_crash_is_kept() {
    crash_creations("restored_volume_found_after_crash_is_kept", |sim| {
        let target = RestoreTarget::create(&new_dir(sim), ID, 4 * BLOCK_SIZE_BYTES).ok()?;
        target.write_blocks(BlockIndex(0), &CONTENT).ok()?;
        target.finish().ok().map(|_| ())
    });
}

#[test]
fn clone_found_after_crash_is_kept() {
    crash_creations("clone_found_after_crash_is_kept", |sim| {
        sim.volume().clone_to(SnapshotId::from_u64(1), &new_dir(sim), ID).ok().map(|_| ())
    });
}

/// Crashes a rollback before a call: the volume has its old or its new content, and keeps it. Returns the
/// number of calls if the rollback completed.
fn crash_rollback(call: u64, seed: u64) -> Option<u64> {
    const BLOCK: u64 = BLOCK_SIZE_BYTES;
    let mut sim = Sim::new(seed);
    sim.create(BLOCKS).unwrap();
    let write = |sim: &Sim, block: u64, fill: u8, blocks: u64| {
        sim.volume().write(block * BLOCK, &vec![fill; (blocks * BLOCK) as usize], false).unwrap();
    };
    let snapshot = SnapshotId::from_u64(1);
    write(&sim, 0, 1, 6);
    sim.volume().freeze(snapshot).unwrap();
    let at_snapshot = content(sim.volume());
    write(&sim, 4, 2, 6);
    sim.volume().freeze(SnapshotId::from_u64(2)).unwrap();
    sim.volume().grow((BLOCKS + 4) * BLOCK).unwrap();
    sim.volume().trim(0, 2 * BLOCK, false).unwrap();
    write(&sim, BLOCKS, 3, 2);
    let before = content(sim.volume());
    let mut after = at_snapshot.clone();
    after.resize(before.len(), 0);

    let first = sim.disk.operations().len() as u64;
    sim.disk.cut_power_before(first + call);
    let is_done = sim.volume().roll_back(snapshot, &|| true).is_ok();
    let calls = sim.disk.operations().len() as u64 - first;
    crash(&mut sim);
    let volume = open(&sim.dir());
    let mut found = content(&volume);
    assert!(found == after || (found == before && !is_done), "neither the old nor the new content");
    volume.write(7 * BLOCK, &[9; BLOCK as usize], true).unwrap();
    found[7 * BLOCK as usize..8 * BLOCK as usize].fill(9);
    drop(volume);
    sim.cut_power();
    let volume = open_after_power_loss(&sim.dir());
    assert!(content(&volume) == found, "flushed data was lost");
    assert!(snapshot_content(&volume, snapshot) == at_snapshot, "the snapshot changed");
    is_done.then_some(calls)
}

#[test]
fn rollback_interrupted_by_crash_is_done_or_not() {
    let seed = seed_of_test("rollback_interrupted_by_crash_is_done_or_not");
    let calls = crash_at_each_call(seed, crash_rollback);
    assert!(calls > 20, "a rollback of {calls} calls");
}
