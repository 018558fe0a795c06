//! Power cuts under real filesystems: see `crate::harness::replay`. Skipped where filesystems cannot be
//! mounted.
//!
//! Each run replays a few random states of each filesystem. `tools/crash-replay` replays every flush: it sets
//! `BLOCKD_REPLAY_STATES` (number of states, or `all`) and `BLOCKD_REPLAY_STEPS` (steps of the workload).

use crate::harness::{
    Rng,
    replay::{
        backups, files,
        filesystem::{Filesystem, hide_mount_numbers, with_mounts},
        image::Image,
        load::{Files, Omission, Workload, record},
        recorder::{Recording, Survivors},
        verify::verify,
    },
};
use blockd_testkit::ext4;
use std::{cell::Cell, path::Path};

/// Default number of states of a filesystem.
const DEFAULT_STATES: usize = 10;
/// Default number of steps of a workload.
const DEFAULT_STEPS: u64 = 60;
/// Steps for each backup of a workload of backups.
const STEPS_PER_BACKUP: u64 = 15;

/// Changes of files for each step, and states for each state: both are faster than those of a daemon.
const FILE_STEPS: u64 = 5;
const FILE_STATES: usize = 5;

fn steps() -> u64 {
    std::env::var("BLOCKD_REPLAY_STEPS")
        .ok()
        .map_or(DEFAULT_STEPS, |text| text.parse().expect("a decimal number"))
}

/// Returns the positions of power cuts: after each flush, and once between each two flushes with requests in
/// between.
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

/// Returns at most `limit` random cuts from position `first` on, in order.
fn some_cuts(recording: &Recording, first: usize, limit: usize, rng: &mut Rng) -> Vec<(usize, Survivors)> {
    let mut cuts = all_cuts(recording, rng);
    cuts.retain(|(cut, _)| *cut >= first);
    while cuts.len() > limit {
        cuts.remove(rng.below(cuts.len() as u64) as usize);
    }
    cuts
}

/// Verifies the states after these cuts. Returns their number or the first finding, whose disk is stored at
/// `keep`.
fn verify_cuts(
    workload: &Workload,
    cuts: &[(usize, Survivors)],
    dir: &Path,
    keep: &Path,
    rng: &mut Rng,
) -> Result<usize, String> {
    verify_each(&workload.recording, cuts, keep, rng, |cut, image| verify(&workload.volumes, cut, image, dir))
}

fn verify_each(
    recording: &Recording,
    cuts: &[(usize, Survivors)],
    keep: &Path,
    rng: &mut Rng,
    verify: impl Fn(usize, &Image) -> Result<(), String>,
) -> Result<usize, String> {
    let mut replay = recording.replay();
    for (nth, &(cut, survivors)) in cuts.iter().enumerate() {
        let image = replay.cut(cut, survivors, rng);
        if let Err(finding) = verify(cut, &image) {
            let volatile = replay.volatile(cut);
            image.store(keep).expect("store the disk");
            return Err(format!(
                "state {nth}: power cut at request {cut} of {}, {survivors:?} of the {volatile} unflushed requests \
                 survived: {finding}\nThe disk is in {}",
                recording.len(),
                keep.display()
            ));
        }
        if (nth + 1).is_multiple_of(50) {
            eprintln!("  {} of {} states verified", nth + 1, cuts.len());
        }
    }
    Ok(cuts.len())
}

fn kept(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.img"))
}

fn max_states() -> usize {
    match std::env::var("BLOCKD_REPLAY_STATES").as_deref() {
        Ok("all") => usize::MAX,
        Ok(text) => text.parse().expect("a decimal number, or all"),
        Err(_) => DEFAULT_STATES,
    }
}

fn replay(name: &str, filesystem: Filesystem) {
    with_mounts(name, filesystem, |dir, rng| {
        let workload = record(filesystem, dir, steps(), rng.next_u64(), None);
        let flushes = workload.recording.flush_boundaries().len();
        eprintln!(
            "{name}: {} requests of the disk, {flushes} of them flushes, by {:?}",
            workload.recording.len(),
            workload.steps
        );
        assert!(flushes > 0, "the filesystem never flushed its disk");
        let cuts = some_cuts(&workload.recording, 0, max_states(), rng);
        match verify_cuts(&workload, &cuts, dir, &kept(name), rng) {
            Ok(count) => eprintln!("{name}: {count} states verified"),
            Err(what) => panic!("{what}"),
        }
    });
}

#[test]
fn power_cut_on_ext4_keeps_volumes_consistent() {
    replay("power_cut_on_ext4_keeps_volumes_consistent", Filesystem::Ext4);
}

#[test]
fn power_cut_on_xfs_keeps_volumes_consistent() {
    replay("power_cut_on_xfs_keeps_volumes_consistent", Filesystem::Xfs);
}

#[test]
fn power_cut_on_ext4_leaves_no_findings() {
    let name = "power_cut_on_ext4_leaves_no_findings";
    with_mounts(name, Filesystem::Ext4, |dir, rng| {
        let recording = files::record(Filesystem::Ext4, dir, FILE_STEPS * steps(), rng);
        let cuts = some_cuts(&recording, 0, max_states().saturating_mul(FILE_STATES), rng);
        let path = dir.join("image");
        let replayed = Cell::new(0);
        let checked = verify_each(&recording, &cuts, &kept(name), rng, |_, image| {
            image.store(&path).map_err(|error| error.to_string())?;
            let checked = ext4::check(&path).map_err(|error| error.to_string())?;
            replayed.set(replayed.get() + u64::from(checked.is_replayed));
            if checked.findings.is_empty() { Ok(()) } else { Err(checked.findings.join("\n")) }
        });
        match checked {
            Ok(count) => eprintln!("{name}: {count} states, {} with a replayed journal", replayed.get()),
            Err(what) => panic!("{what}"),
        }
        assert!(replayed.get() > 0, "no state has a journal that needs recovery");
    });
}

fn replay_backups(name: &str, filesystem: Filesystem) {
    with_mounts(name, filesystem, |dir, rng| {
        let backups = steps().div_ceil(STEPS_PER_BACKUP);
        let workload = backups::record(filesystem, dir, backups, rng.next_u64(), None);
        eprintln!(
            "{name}: {} requests of the disk, {} of them flushes, {backups} backups, {} changes of the store",
            workload.recording.len(),
            workload.recording.flush_boundaries().len(),
            workload.store.changes()
        );
        let cuts = some_cuts(&workload.recording, workload.ready, max_states(), rng);
        let verify = |cut, image: &Image| workload.verify(cut, image, dir);
        match verify_each(&workload.recording, &cuts, &kept(name), rng, verify) {
            Ok(count) => eprintln!("{name}: after {count} power cuts the next backups are correct"),
            Err(what) => panic!("{what}"),
        }
    });
}

#[test]
fn power_cut_on_ext4_keeps_the_next_backup_correct() {
    replay_backups("power_cut_on_ext4_keeps_the_next_backup_correct", Filesystem::Ext4);
}

#[test]
fn power_cut_on_xfs_keeps_the_next_backup_correct() {
    replay_backups("power_cut_on_xfs_keeps_the_next_backup_correct", Filesystem::Xfs);
}

/// The chain must be durable before the block sets of the older backup are removed.
#[test]
fn early_done_state_of_a_backup_is_detected() {
    let name = "early_done_state_of_a_backup_is_detected";
    with_mounts(name, Filesystem::Xfs, |dir, rng| {
        let omission = Omission { operation: "fsync", files: Files::With("blockd.db") };
        let workload = backups::record(Filesystem::Xfs, dir, 4, rng.next_u64(), Some(omission));
        let expected = [backups::FORGOTTEN, backups::WRONG, backups::DIFFERS];
        // Other findings, such as a database that does not open, prove nothing.
        let mut others = Vec::new();
        let mut found = None;
        let cuts = some_cuts(&workload.recording, workload.ready, 100, rng);
        for (nth, cut) in cuts.iter().enumerate() {
            let one = std::slice::from_ref(cut);
            let verify = |cut, image: &Image| workload.verify(cut, image, dir);
            let verified = verify_each(&workload.recording, one, &kept(name), rng, verify);
            let Err(what) = verified else { continue };
            let first = what.lines().next().unwrap_or_default().to_owned();
            match expected.iter().any(|expected| first.contains(expected)) {
                true => {
                    found = Some((nth, first));
                    break;
                }
                false => others.push(first),
            }
        }
        let others_count = others.len();
        match found {
            Some((nth, first)) => {
                eprintln!("{omission:?}: in state {nth}, after {others_count} other findings: {first}");
            }
            None => panic!(
                "{omission:?} was not found in {} states; {others_count} other findings: {:?}",
                cuts.len(),
                others.first()
            ),
        }
    });
}

/// Checks that the replay finds known faults.
#[test]
fn omitted_sync_is_detected() {
    let name = "omitted_sync_is_detected";
    with_mounts(name, Filesystem::Ext4, |dir, rng| {
        let omissions = [
            (Filesystem::Ext4, Omission { operation: "fdatasync", files: Files::With(".data") }),
            (Filesystem::Ext4, Omission { operation: "fdatasync", files: Files::With(".log") }),
            (Filesystem::Xfs, Omission { operation: "fsync", files: Files::With("volumes/") }),
            // A group snapshot is durable for one member only.
            (Filesystem::Xfs, Omission { operation: "fsync", files: Files::OfPeer }),
        ];
        for (nth, (filesystem, omission)) in omissions.into_iter().enumerate() {
            let dir = dir.join(nth.to_string());
            std::fs::create_dir(&dir).unwrap();
            let workload = record(filesystem, &dir, DEFAULT_STEPS, rng.next_u64(), Some(omission));
            let cuts = some_cuts(&workload.recording, 0, 100, rng);
            match verify_cuts(&workload, &cuts, &dir, &kept(name), rng) {
                Ok(count) => panic!("{omission:?} was not found in {count} states"),
                Err(what) => eprintln!("{omission:?}: {}", what.lines().next().unwrap_or_default()),
            }
        }
    });
}

/// Hides the remount from the daemon, which then trusts a live map that claims missing data.
#[test]
fn trusted_map_after_a_power_cut_is_detected() {
    let name = "trusted_map_after_a_power_cut_is_detected";
    with_mounts(name, Filesystem::Ext4, |dir, rng| {
        let workload = record(Filesystem::Ext4, dir, 2 * DEFAULT_STEPS, rng.next_u64(), None);
        let cuts: Vec<_> = workload.early_maps.iter().map(|&cut| (cut, Survivors::All)).collect();
        let verified = verify_cuts(&workload, &cuts, dir, &kept(name), rng);
        verified.unwrap_or_else(|what| panic!("with a detectable remount: {what}"));
        hide_mount_numbers();
        match verify_cuts(&workload, &cuts, dir, &kept(name), rng) {
            Ok(count) => panic!("the trusted map was not found in {count} states"),
            Err(what) => eprintln!("{}", what.lines().next().unwrap_or_default()),
        }
    });
}
