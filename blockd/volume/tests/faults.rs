//! Fault injection: each call on a volume's files fails, once or permanently, during a script.
//!
//! A run without faults counts the calls; then the script runs again for each of them on a disk that fails
//! this call, or all calls from it on until two steps have failed. After any failure: no panic, an error that
//! names the file, no lost answered write, and the step can be repeated once the faults are cleared.

use crate::sim::disk::{DiskBug, Fault, FaultError, OpKind, Operation, Rng};
use crate::sim::{BLOCKS, ID, SCRIPT, Sim, Step, assert_sticky, seed_of_test};
use crate::support::{content, names_in};
use blockd_extent::{BlockIndex, SnapshotId};
use blockd_volume::{Recovery, RestoreTarget, Volume, VolumeError, VolumeErrorKind};
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
struct FaultRun {
    fault: Option<(u64, FaultError)>,
    persistent: bool,
    /// Cuts the power after a failed sync; otherwise the process restarts.
    cut_power: bool,
    seed: u64,
    bug: Option<DiskBug>,
}

impl FaultRun {
    /// Runs the script and returns its calls.
    fn run_script(self) -> Vec<Operation> {
        let mut sim = Sim::new(self.seed);
        if let Some(bug) = self.bug {
            sim.add_bug(bug);
        }
        if let Some((number, error)) = self.fault {
            let partial_bytes = sim.rng.below(12) as usize * 512;
            let fault = Fault { persistent: self.persistent, partial_bytes, ..Fault::at(number, error) };
            sim.disk.inject(fault);
        }
        let mut failures = 0;
        while let Err(error) = sim.create(BLOCKS) {
            self.failed(&mut sim, &error, &mut failures);
            if sim.dir().exists() {
                sim.disk.bypass(|| Volume::delete_files(&sim.dir())).unwrap();
            }
        }
        for &step in SCRIPT {
            while let Err(error) = sim.apply(step) {
                let is_deleted = matches!(step, Step::Delete(_)) && error.kind() == VolumeErrorKind::NotFound;
                if is_deleted {
                    break;
                }
                self.failed(&mut sim, &error, &mut failures);
                self.reopen(&mut sim, &mut failures);
            }
            // Until its fault, a run equals the one without, which checks each step.
            if self.fault.is_none() || failures > 0 || !sim.disk.failed().is_empty() {
                self.check(&mut sim);
            }
        }
        sim.disk.clear_faults();
        let operations = sim.disk.operations();
        sim.check();
        self.finish(&mut sim);
        operations
    }

    /// Checks the error of a failed step and clears the faults when they are due to end.
    fn failed(self, sim: &mut Sim, error: &VolumeError, failures: &mut u64) {
        assert!(!sim.disk.failed().is_empty(), "{error}");
        let message = error.to_string();
        let names_a_file = message.contains(&*sim.disk_root().to_string_lossy());
        assert!(names_a_file || error.kind() == VolumeErrorKind::Failed, "{message}");
        *failures += 1;
        assert!(*failures < 20, "the step fails again without faults: {message}");
        if !self.persistent || *failures >= 2 {
            let failed_calls = sim.disk.clear_faults();
            let is_full = self.fault.is_some_and(|(_, error)| error != FaultError::Io);
            if is_full && !failed_calls.iter().any(|call| call.kind.is_sync()) {
                assert_eq!(error.kind(), VolumeErrorKind::NoSpace, "{message}");
                let failure = sim.volume.as_ref().and_then(|volume| volume.failure());
                assert_eq!(failure, None, "a full disk stopped the volume");
            }
        }
    }

    /// Reopens a volume that has failed or could not be opened.
    fn reopen(self, sim: &mut Sim, failures: &mut u64) {
        let has_failed = sim.volume.as_ref().is_some_and(|volume| volume.failure().is_some());
        if has_failed {
            assert_sticky(sim.volume());
            assert!(sim.volume().close().is_err(), "a failed volume was closed cleanly");
            sim.disk.clear_faults();
            if self.cut_power {
                sim.cut_power();
                sim.open(Recovery::AfterPowerLoss, true).unwrap();
            } else {
                sim.volume = None;
                sim.open(Recovery::Auto, true).unwrap();
            }
            sim.resolve();
        }
        while sim.volume.is_none() {
            match sim.open(Recovery::Auto, false) {
                Ok(()) => sim.resolve(),
                Err(error) => self.failed(sim, &error, failures),
            }
        }
        self.check(sim);
    }

    /// Compares the volume with the model, also after an eviction of clean pages.
    fn check(self, sim: &mut Sim) {
        if sim.volume().failure().is_none() {
            sim.observe();
            sim.disk.evict().unwrap();
            sim.check();
        }
    }

    /// Checks that flushed writes survive a power cut and that the volume works afterwards.
    fn finish(self, sim: &mut Sim) {
        if sim.volume().failure().is_some() {
            self.reopen(sim, &mut 0);
        }
        sim.apply(Step::Flush).unwrap();
        sim.cut_power();
        sim.open(Recovery::AfterPowerLoss, true).unwrap();
        sim.resolve();
        sim.check();
        sim.check_for_leaks();
        let rest = [
            Step::Write { start: 5, len: 20, fua: false },
            Step::Freeze(50),
            Step::Write { start: 5, len: 3, fua: false },
            Step::Delete(50),
            Step::Freeze(51),
            Step::Merge,
            Step::Restart,
        ];
        for step in rest {
            sim.apply(step).unwrap();
            sim.check();
        }
        sim.check_for_leaks();
    }
}

/// Fails each call in turn; panics with the calls that broke a guarantee.
fn fail_each_call(name: &str, error: FaultError, persistent: bool) {
    let seed = seed_of_test(name);
    let without_fault = FaultRun { fault: None, persistent, cut_power: false, seed, bug: None };
    let calls = without_fault.run_script();
    // For one of six seeds the filesystem shares extents, and notes do not split them.
    assert!(seed % 6 != 5 || calls.iter().any(|call| call.kind == OpKind::Share), "no extent was shared");
    let calls = calls.iter().filter(|call| error == FaultError::Io || call.kind.takes_space()).count() as u64;
    let mut rng = Rng::fixed(seed);
    let mut failed = Vec::new();
    let thorough = std::env::var_os("BLOCKD_SOAK_DRAWS").is_some();
    for number in 0..calls {
        // One of both, drawn at random, except in a soak test.
        let ends = if thorough { vec![false, true] } else { vec![rng.one_in(2)] };
        for cut_power in ends {
            let run = FaultRun { fault: Some((number, error)), cut_power, ..without_fault };
            if std::panic::catch_unwind(|| run.run_script()).is_err() {
                eprintln!("failed: {run:?}");
                failed.push((number, cut_power));
            }
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {calls} calls broke a guarantee (call, power cut): {failed:?}",
        failed.len()
    );
}

#[test]
fn single_failed_call_loses_no_data() {
    fail_each_call("single_failed_call_loses_no_data", FaultError::Io, false);
}

#[test]
fn persistently_failing_disk_loses_no_data() {
    fail_each_call("persistently_failing_disk_loses_no_data", FaultError::Io, true);
}

#[test]
fn full_disk_in_one_call_loses_no_data() {
    fail_each_call("full_disk_in_one_call_loses_no_data", FaultError::NoSpace, false);
}

#[test]
fn full_disk_loses_no_data_and_volume_resumes() {
    fail_each_call("full_disk_loses_no_data_and_volume_resumes", FaultError::Quota, true);
}

/// Proves that the tests above detect a violated guarantee.
#[test]
fn hidden_failed_sync_is_detected() {
    let seed = seed_of_test("hidden_failed_sync_is_detected");
    let run = FaultRun { fault: None, persistent: false, cut_power: true, seed, bug: None };
    let hides = |end| Some(DiskBug::HidesFailedSync(end));
    assert!(is_detected(FaultRun { bug: hides(".data"), ..run }, "data"));
    assert!(is_detected(FaultRun { bug: hides(".map"), cut_power: false, ..run }, "map"));
}

/// Fails each sync of files with this extension in turn; returns true if a run detects it.
fn is_detected(run: FaultRun, extension: &str) -> bool {
    let calls = run.run_script();
    let matches = |call: &Operation| call.path.extension().is_some_and(|end| end == extension);
    let syncs = (0..).zip(&calls).filter(|(_, call)| call.kind == OpKind::Sync && matches(call));
    let syncs: Vec<u64> = syncs.map(|(number, _)| number).collect();
    // The effect of a failed sync is random: it may lose nothing.
    (0..30).any(|draw| {
        syncs.iter().any(|&number| {
            let seed = run.seed.wrapping_add(draw);
            let faulty = FaultRun { fault: Some((number, FaultError::Io)), seed, ..run };
            std::panic::catch_unwind(|| faulty.run_script()).is_err()
        })
    })
}

/// Creates a volume whose head has one flushed and one unflushed block above a frozen layer with both.
fn with_unflushed_block(name: &str) -> Sim {
    let mut sim = Sim::new(seed_of_test(name));
    sim.create(BLOCKS).unwrap();
    sim.apply(Step::Write { start: 0, len: 16, fua: false }).unwrap();
    sim.apply(Step::Freeze(1)).unwrap();
    sim.apply(Step::Write { start: 0, len: 8, fua: true }).unwrap();
    sim.apply(Step::Write { start: 8, len: 8, fua: false }).unwrap();
    sim
}

fn fail_map(sim: &Sim, kind: OpKind, persistent: bool) {
    let fault = Fault { path_contains: ".map".into(), persistent, ..Fault::every(FaultError::Io) };
    sim.disk.inject(Fault { kinds: vec![kind], ..fault });
}

#[test]
fn map_is_rewritten_after_a_writeback_error() {
    let mut sim = with_unflushed_block("map_is_rewritten_after_a_writeback_error");
    fail_map(&sim, OpKind::Sync, false);
    sim.volume().sync_maps().unwrap();
    assert_eq!(sim.disk.clear_faults().len(), 1);
    sim.disk.evict().unwrap();
    sim.apply(Step::Kill).unwrap();
    sim.check();
}

#[test]
fn map_failing_persistently_stops_the_volume() {
    let mut sim = with_unflushed_block("map_failing_persistently_stops_the_volume");
    fail_map(&sim, OpKind::Sync, true);
    sim.volume().sync_maps().unwrap_err();
    assert_sticky(sim.volume());
    sim.disk.clear_faults();
    sim.volume = None;
    sim.open(Recovery::Auto, true).unwrap();
    sim.resolve();
    sim.check();
}

#[test]
fn map_with_a_writeback_error_at_a_start_is_rejected() {
    let mut sim = with_unflushed_block("map_with_a_writeback_error_at_a_start_is_rejected");
    sim.volume = None;
    fail_map(&sim, OpKind::Sync, false);
    sim.open(Recovery::Auto, false).unwrap();
    assert_eq!(sim.disk.clear_faults().len(), 1);
    sim.disk.evict().unwrap();
    // In the model the flushed block is new, and the other one has its content at the freeze.
    sim.resolve();
    sim.check();
}

#[test]
fn map_with_unreadable_bits_fails_the_start_only() {
    let mut sim = with_unflushed_block("map_with_unreadable_bits_fails_the_start_only");
    sim.volume = None;
    // After three reads of the header.
    let fault = Fault { path_contains: ".map".into(), ..Fault::at(3, FaultError::Io) };
    sim.disk.inject(Fault { kinds: vec![OpKind::Read], ..fault });
    let error = sim.open(Recovery::Auto, false).unwrap_err();
    assert!(error.kind() == VolumeErrorKind::Io && error.to_string().contains(".map"), "{error}");
    sim.disk.clear_faults();
    sim.apply(Step::Kill).unwrap();
    sim.check();
}

fn restore(sim: &Sim) -> Result<Arc<Volume>, VolumeError> {
    let target = RestoreTarget::create(&sim.dir(), ID, BLOCKS * 4096)?;
    target.write_blocks(BlockIndex(2), &[7; 8192])?;
    target.write_blocks(BlockIndex(9), &[8; 4096])?;
    target.finish()
}

fn assert_restored(volume: &Volume) {
    let mut expected = vec![0; (BLOCKS * 4096) as usize];
    expected[8192..16384].fill(7);
    expected[9 * 4096..10 * 4096].fill(8);
    assert!(content(volume) == expected);
    assert_eq!(volume.stats().head_dirty_bytes, 0);
}

fn calls_of_a_restore(seed: u64) -> u64 {
    let sim = Sim::new(seed);
    restore(&sim).unwrap();
    sim.disk.operations().len() as u64
}

#[test]
fn failed_restore_leaves_no_volume_and_can_be_retried() {
    let seed = seed_of_test("failed_restore_leaves_no_volume_and_can_be_retried");
    for (number, error, persistent) in (0..calls_of_a_restore(seed)).flat_map(|number| {
        [FaultError::Io, FaultError::NoSpace].into_iter().flat_map(move |error| {
            [false, true].into_iter().map(move |persistent| (number, error, persistent))
        })
    }) {
        let mut sim = Sim::new(seed);
        sim.disk.inject(Fault { persistent, ..Fault::at(number, error) });
        let result = restore(&sim);
        sim.disk.clear_faults();
        if let Err(error) = result {
            assert!(error.to_string().contains("disk-0"), "{error}");
            // The removal of files fails, too, on a persistently failing disk.
            if sim.dir().exists() {
                assert!(persistent, "call {number}: a failed restore left a volume: {error}");
                Volume::delete_files(&sim.dir()).unwrap();
            }
            restore(&sim).unwrap();
        }
        sim.cut_power();
        sim.open(Recovery::AfterPowerLoss, false).unwrap();
        assert_restored(sim.volume());
        sim.check_for_leaks();
    }
}

#[test]
fn interrupted_restore_leaves_all_or_nothing() {
    let seed = seed_of_test("interrupted_restore_leaves_all_or_nothing");
    for (call, draw) in (0..calls_of_a_restore(seed)).flat_map(|call| (0..4).map(move |draw| (call, draw))) {
        let mut sim = Sim::new(seed.wrapping_add(call * 4 + draw));
        sim.disk.cut_power_before(call);
        // The restore succeeds if only its last, optional calls fail.
        let _ = restore(&sim);
        assert!(sim.disk.is_off());
        sim.cut_power();
        if sim.dir().exists() {
            sim.open(Recovery::AfterPowerLoss, true).unwrap();
            assert_restored(sim.volume());
        } else {
            assert_restored(&restore(&sim).unwrap());
        }
    }
}

/// The kernel reports a writeback error once. A failed open that received it must not leave a trusted map.
#[test]
fn failed_open_with_lost_data_leaves_no_trusted_map() {
    let seed = seed_of_test("failed_open_with_lost_data_leaves_no_trusted_map");
    for draw in 0..16 {
        let mut sim = Sim::new(seed.wrapping_add(draw));
        sim.create(BLOCKS).unwrap();
        sim.apply(Step::Write { start: 0, len: 80, fua: false }).unwrap();
        // A block that the new head holds without its data reads as zeroes.
        sim.apply(Step::Freeze(1)).unwrap();
        sim.apply(Step::Write { start: 8, len: 64, fua: false }).unwrap();
        sim.volume = None;
        let data = Fault { path_contains: ".data".into(), ..Fault::every(FaultError::Io) };
        sim.disk.inject(Fault { kinds: vec![OpKind::Sync], ..data });
        sim.disk.inject(Fault { kinds: vec![OpKind::Remove], ..Fault::every(FaultError::Io) });
        assert!(sim.open(Recovery::Auto, false).is_err());
        sim.disk.clear_faults();
        sim.open(Recovery::Auto, false).unwrap();
        sim.resolve();
        sim.disk.evict().unwrap();
        sim.check();
    }
}

#[test]
fn failed_close_can_be_retried() {
    let mut sim = Sim::new(seed_of_test("failed_close_can_be_retried"));
    sim.create(BLOCKS).unwrap();
    sim.apply(Step::Write { start: 0, len: 40, fua: false }).unwrap();
    let log = Fault { path_contains: ".log".into(), ..Fault::every(FaultError::NoSpace) };
    sim.disk.inject(log);
    for _ in 0..2 {
        assert_eq!(sim.volume().close().unwrap_err().kind(), VolumeErrorKind::NoSpace);
    }
    sim.disk.clear_faults();
    sim.volume().close().unwrap();
    sim.model.flush();
    sim.cut_power();
    sim.open(Recovery::AfterPowerLoss, true).unwrap();
    sim.resolve();
    sim.check();
}

#[test]
fn failed_creation_leaves_nothing() {
    let sim = Sim::new(seed_of_test("failed_creation_leaves_nothing"));
    sim.disk.inject(Fault { path_contains: ".log".into(), ..Fault::every(FaultError::NoSpace) });
    let error = Volume::create(&sim.dir(), ID, 4096).err().unwrap();
    assert_eq!(error.kind(), VolumeErrorKind::NoSpace);
    assert!(names_in(sim.dir().parent().unwrap()).is_empty());
}

#[test]
fn snapshot_view_reports_read_errors() {
    let mut sim = Sim::new(seed_of_test("snapshot_view_reports_read_errors"));
    sim.create(BLOCKS).unwrap();
    sim.apply(Step::Write { start: 0, len: 64, fua: false }).unwrap();
    sim.apply(Step::Freeze(1)).unwrap();
    let view = sim.volume().view(SnapshotId::from_u64(1)).unwrap();
    sim.disk.inject(Fault::every(FaultError::Io));
    let extents = [0, 2, 4].map(|start| blockd_extent::Extent::new(BlockIndex(start), 1));
    let error = view.read_extents(&extents, &mut [0; 3 * 4096]).unwrap_err();
    assert!(error.to_string().contains(".data"), "{error}");
    sim.disk.clear_faults();
    view.read_extents(&extents, &mut [0; 3 * 4096]).unwrap();
    drop(view);
    sim.check();
}
