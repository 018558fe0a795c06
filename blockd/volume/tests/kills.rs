//! Process crashes at each call without a power cut: the next process finds all answered writes, and its
//! durable state does not depend on unsynced data.

use crate::sim::{BLOCKS, ID, LIFE, Sim, Step, seed_of_test};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, SnapshotId};
use blockd_volume::{OpenOptions, Recovery, RestoreTarget, Volume, VolumeError};
use std::panic::catch_unwind;

/// The next process of the same boot opens the volume.
fn reopen(sim: &mut Sim) -> Result<(), VolumeError> {
    sim.volume = None;
    sim.disk.go_on_without_the_process();
    sim.open(Recovery::Auto, false)
}

/// Something is written and flushed, and then the power is cut.
fn flush_and_lose_power(sim: &mut Sim) {
    sim.apply(Step::Write { start: 11, len: 30, fua: false }).unwrap();
    sim.apply(Step::Flush).unwrap();
    sim.cut_power();
    sim.open(Recovery::AfterPowerLoss, true).unwrap();
    sim.decide();
    sim.check();
    sim.check_for_leaks();
}

/// Leads the scripted life; the process dies right before the call with this number. How many calls it took.
fn die_before(call: u64, seed: u64) -> u64 {
    let mut sim = Sim::new(seed);
    sim.disk.cut_power_before(call);
    sim.lead(
        LIFE,
        |_, _| {},
        reopen,
        |sim| {
            reopen(sim).unwrap();
            sim.decide();
            sim.check();
            flush_and_lose_power(sim);
        },
    )
}

#[test]
fn process_death_at_any_call_leaves_consistent_state() {
    let name = "process_death_at_any_call_leaves_consistent_state";
    let seed = seed_of_test(name);
    let calls = die_before(u64::MAX, seed);
    for call in 0..calls {
        let seed = seed.wrapping_add(call);
        let result = catch_unwind(|| die_before(call, seed));
        assert!(result.is_ok(), "dead before call {call} of {calls}, seed {seed}");
    }
    eprintln!("{name}: {calls} calls");
}

/// Number of runs per call.
const DRAWS: u64 = 4;
/// Content of a restore or clone.
const CONTENT: [u8; BLOCK_SIZE_BYTES as usize] = [7; BLOCK_SIZE_BYTES as usize];

/// Crashes the creation of a volume that appears by a rename: if the next process finds it, a power cut must
/// not remove it.
fn die_while_a_volume_is_made(name: &str, make: impl Fn(&Sim) -> Option<()> + std::panic::RefUnwindSafe) {
    let seed = seed_of_test(name);
    let (mut found, mut calls) = (0, u64::MAX);
    for (call, draw) in (0..).flat_map(|call| (0..DRAWS).map(move |draw| (call, draw))) {
        if call > calls {
            break;
        }
        let seed = seed.wrapping_add(call * DRAWS + draw);
        let result = catch_unwind(|| die_while_making(call, seed, &make));
        let (is_there, took) = result.unwrap_or_else(|_| panic!("dead before call {call}, seed {seed}"));
        found += u64::from(is_there);
        calls = took.map_or(calls, |took| took.min(calls));
    }
    assert!(found > DRAWS, "no crash between the rename and the end");
}

/// Returns true if the volume exists after the crash, and the number of calls without a crash.
fn die_while_making(call: u64, seed: u64, make: impl Fn(&Sim) -> Option<()>) -> (bool, Option<u64>) {
    let mut sim = Sim::new(seed);
    sim.create(BLOCKS).unwrap();
    sim.volume().write(0, &CONTENT, false).unwrap();
    sim.volume().freeze(SnapshotId::from_u64(1)).unwrap();
    let before = sim.disk.operations().len() as u64;
    sim.disk.cut_power_before(before + call);
    let is_done = make(&sim).is_some();
    let took = sim.disk.operations().len() as u64 - before;
    sim.volume = None;
    sim.disk.go_on_without_the_process();
    let is_there = new_dir(&sim).exists();
    assert!(is_there || !is_done);
    if is_there {
        let volume = Volume::open(&new_dir(&sim), &OpenOptions::default()).unwrap();
        volume.write(BLOCK_SIZE_BYTES, &CONTENT, true).unwrap();
        drop(volume);
        sim.cut_power();
        let options = OpenOptions { recovery: Recovery::AfterPowerLoss, ..OpenOptions::default() };
        let volume = Volume::open(&new_dir(&sim), &options).unwrap();
        let mut bytes = [0; 2 * BLOCK_SIZE_BYTES as usize];
        volume.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 7), "what was flushed is gone");
    }
    (is_there, is_done.then_some(took))
}

fn new_dir(sim: &Sim) -> std::path::PathBuf {
    sim.disk_root().join("new")
}

#[test]
fn restored_volume_found_after_crash_is_kept() {
    die_while_a_volume_is_made("restored_volume_found_after_crash_stays", |sim| {
        let target = RestoreTarget::create(&new_dir(sim), ID, 4 * BLOCK_SIZE_BYTES).ok()?;
        target.write_blocks(BlockIndex(0), &CONTENT).ok()?;
        target.finish().ok().map(|_| ())
    });
}

#[test]
fn clone_found_after_crash_is_kept() {
    die_while_a_volume_is_made("clone_found_after_crash_stays", |sim| {
        sim.volume().clone_to(SnapshotId::from_u64(1), &new_dir(sim), ID).ok().map(|_| ())
    });
}

fn content_of(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0; volume.size_bytes() as usize];
    volume.read(0, &mut bytes).unwrap();
    bytes
}

/// Crashes a rollback before a call: the volume has its old or its new content, and keeps it. Returns the
/// number of calls without a crash.
fn die_while_rolling_back(call: u64, seed: u64) -> Option<u64> {
    const BLOCK: u64 = BLOCK_SIZE_BYTES;
    let mut sim = Sim::new(seed);
    sim.create(BLOCKS).unwrap();
    let write = |sim: &Sim, block: u64, fill: u8, blocks: u64| {
        sim.volume().write(block * BLOCK, &vec![fill; (blocks * BLOCK) as usize], false).unwrap();
    };
    let snapshot = SnapshotId::from_u64(1);
    write(&sim, 0, 1, 6);
    sim.volume().freeze(snapshot).unwrap();
    let then = content_of(sim.volume());
    write(&sim, 4, 2, 6);
    sim.volume().freeze(SnapshotId::from_u64(2)).unwrap();
    sim.volume().grow((BLOCKS + 4) * BLOCK).unwrap();
    sim.volume().trim(0, 2 * BLOCK, false).unwrap();
    write(&sim, BLOCKS, 3, 2);
    let before = content_of(sim.volume());
    let mut after = then.clone();
    after.resize(before.len(), 0);

    let first = sim.disk.operations().len() as u64;
    sim.disk.cut_power_before(first + call);
    let is_done = sim.volume().roll_back(snapshot, &|| true).is_ok();
    let took = sim.disk.operations().len() as u64 - first;
    sim.volume = None;
    sim.disk.go_on_without_the_process();
    let volume = Volume::open(&sim.dir(), &OpenOptions::default()).unwrap();
    let mut found = content_of(&volume);
    assert!(found == after || (found == before && !is_done), "neither before nor after");
    volume.write(7 * BLOCK, &[9; BLOCK as usize], true).unwrap();
    found[7 * BLOCK as usize..8 * BLOCK as usize].fill(9);
    drop(volume);
    sim.cut_power();
    let volume = Volume::open(
        &sim.dir(),
        &OpenOptions { recovery: Recovery::AfterPowerLoss, ..OpenOptions::default() },
    )
    .unwrap();
    assert!(content_of(&volume) == found, "what was flushed is gone");
    let mut frozen = vec![0; then.len()];
    volume.view(snapshot).unwrap().read(0, &mut frozen).unwrap();
    assert!(frozen == then, "a snapshot changed");
    is_done.then_some(took)
}

#[test]
fn rollback_interrupted_by_crash_is_done_or_not() {
    let seed = seed_of_test("rollback_interrupted_by_crash_is_done_or_not");
    let mut calls = u64::MAX;
    for (call, draw) in (0..).flat_map(|call| (0..DRAWS).map(move |draw| (call, draw))) {
        if call > calls {
            break;
        }
        let seed = seed.wrapping_add(call * DRAWS + draw);
        let took = catch_unwind(|| die_while_rolling_back(call, seed))
            .unwrap_or_else(|_| panic!("dead before call {call}, seed {seed}"));
        calls = took.map_or(calls, |took| took.min(calls));
    }
    assert!(calls > 20, "a rollback of {calls} calls");
}
