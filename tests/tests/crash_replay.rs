//! Power cuts under a real filesystem: see `blockd_tests::replay`. Skipped where filesystems cannot be mounted.
//!
//! A few states of each filesystem, drawn anew in each run. `tools/crash-replay` replays every flush and more, by
//! `BLOCKD_REPLAY_STATES` (how many states, or `all`) and `BLOCKD_REPLAY_STEPS` (how long the recorded life is).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{
    Rng,
    replay::{
        filesystem::{Filesystem, missing, private_mounts},
        load::{Life, Omission, record},
        recorder::{Recording, Survivors},
        verify::verify,
    },
};
use std::path::Path;

/// States of a filesystem unless told otherwise.
const FEW_STATES: usize = 10;
const FEW_STEPS: u64 = 60;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a decimal number"))
}

/// Runs in a thread with mounts of its own, or says why not.
fn with_mounts(name: &str, act: impl FnOnce(&Path, &mut Rng) + Send) {
    if let Some(what) = missing() {
        eprintln!("=== {name} is SKIPPED: it wants {what} ===");
        return;
    }
    let act = || {
        let mut rng = Rng::of_test(name);
        private_mounts();
        // In memory where there is such a place.
        let mut builder = tempfile::Builder::new();
        let dir = builder.prefix("bt").tempdir_in("/dev/shm").or_else(|_| builder.tempdir());
        act(dir.expect("a temporary directory").path(), &mut rng);
    };
    if let Err(panic) = std::thread::scope(|scope| scope.spawn(act).join()) {
        std::panic::resume_unwind(panic);
    }
}

/// Where the power is cut: right after each flush, and once between each two where there is anything between.
fn all_cuts(recording: &Recording, rng: &mut Rng) -> Vec<(usize, Survivors)> {
    let mut cuts = Vec::new();
    let mut last = 0;
    for boundary in recording.flush_boundaries() {
        if boundary - 1 > last {
            let kinds = [Survivors::All, Survivors::Requests, Survivors::Pages, Survivors::Sectors];
            cuts.push((
                rng.between(last as u64 + 1, boundary as u64 - 1) as usize,
                kinds[rng.below(4) as usize],
            ));
        }
        cuts.push((boundary, Survivors::All));
        last = boundary;
    }
    cuts
}

/// Looks at some states; the first that is wrong, and after how many. `keep` is where the disk is kept then.
fn look(life: &Life, most: usize, dir: &Path, keep: &Path, rng: &mut Rng) -> Result<usize, String> {
    let mut cuts = all_cuts(&life.recording, rng);
    while cuts.len() > most {
        cuts.remove(rng.below(cuts.len() as u64) as usize);
    }
    let mut replay = life.recording.replay();
    for (nth, &(cut, survivors)) in cuts.iter().enumerate() {
        let image = replay.cut(cut, survivors, rng);
        if let Err(what) = verify(&life.volumes, cut, &image, dir) {
            let volatile = replay.volatile(cut);
            image.store(keep).expect("keep the disk");
            return Err(format!(
                "state {nth}: the power was cut at request {cut} of {}, {survivors:?} of the {volatile} requests that no flush covers are \
                 there: {what}\nThe disk is kept in {}",
                life.recording.len(),
                keep.display()
            ));
        }
        if (nth + 1).is_multiple_of(50) {
            eprintln!("  {} of {} states are sound", nth + 1, cuts.len());
        }
    }
    Ok(cuts.len())
}

fn kept(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.img"))
}

fn replay(name: &str, filesystem: Filesystem) {
    with_mounts(name, |dir, rng| {
        let most = match std::env::var("BLOCKD_REPLAY_STATES").as_deref() {
            Ok("all") => usize::MAX,
            Ok(text) => text.parse().expect("a decimal number, or all"),
            Err(_) => FEW_STATES,
        };
        let steps = number("BLOCKD_REPLAY_STEPS", FEW_STEPS);
        let life = record(filesystem, dir, steps, rng.next_u64(), None);
        let flushes = life.recording.flush_boundaries().len();
        eprintln!(
            "{name}: {} requests of the disk, {flushes} of them flushes, by {:?}",
            life.recording.len(),
            life.steps
        );
        assert!(flushes > 0, "the filesystem never flushed its disk");
        match look(&life, most, dir, &kept(name), rng) {
            Ok(count) => eprintln!("{name}: {count} states are sound"),
            Err(what) => panic!("{what}"),
        }
    });
}

#[test]
fn whatever_a_power_cut_leaves_of_ext4_the_volumes_stand() {
    replay("whatever_a_power_cut_leaves_of_ext4_the_volumes_stand", Filesystem::Ext4);
}

#[test]
fn whatever_a_power_cut_leaves_of_xfs_the_volumes_stand() {
    replay("whatever_a_power_cut_leaves_of_xfs_the_volumes_stand", Filesystem::Xfs);
}

/// A test that finds nothing proves nothing.
#[test]
fn a_sync_that_is_left_out_is_found() {
    let name = "a_sync_that_is_left_out_is_found";
    with_mounts(name, |dir, rng| {
        for part in [".data", ".log"] {
            let dir = dir.join(&part[1..]);
            std::fs::create_dir(&dir).unwrap();
            let omission = Omission { operation: "fdatasync", part };
            let life = record(Filesystem::Ext4, &dir, FEW_STEPS, rng.next_u64(), Some(omission));
            match look(&life, 100, &dir, &kept(name), rng) {
                Ok(count) => panic!("{omission:?} was not found in {count} states"),
                Err(what) => eprintln!("{omission:?}: {}", what.lines().next().unwrap_or_default()),
            }
        }
    });
}
