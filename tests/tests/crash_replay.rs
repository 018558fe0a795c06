//! Power cuts under a real filesystem: see `crate::harness::replay`. Skipped where filesystems cannot be
//! mounted.
//!
//! A few states of each filesystem, drawn again in each run. `tools/crash-replay` replays every flush and
//! more, by `BLOCKD_REPLAY_STATES` (how many states, or `all`) and `BLOCKD_REPLAY_STEPS` (how long the
//! recorded life is).

use crate::harness::{
    Rng,
    replay::{
        backups,
        filesystem::{Filesystem, hide_mount_numbers, with_mounts},
        image::Image,
        load::{Files, Life, Omission, record},
        recorder::{Recording, Survivors},
        verify::verify,
    },
};
use std::path::Path;

/// States of a filesystem unless told otherwise.
const FEW_STATES: usize = 10;
const FEW_STEPS: u64 = 60;
/// Steps of a life for each of its backups.
const STEPS_PER_BACKUP: u64 = 15;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().expect("a decimal number"))
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

/// Some of them, in the same order.
fn some_cuts(recording: &Recording, most: usize, rng: &mut Rng) -> Vec<(usize, Survivors)> {
    let mut cuts = all_cuts(recording, rng);
    while cuts.len() > most {
        cuts.remove(rng.below(cuts.len() as u64) as usize);
    }
    cuts
}

/// Looks at what these cuts leave; what is wrong first. `keep` is where the disk is kept then.
fn look(
    life: &Life,
    cuts: &[(usize, Survivors)],
    dir: &Path,
    keep: &Path,
    rng: &mut Rng,
) -> Result<usize, String> {
    look_at(&life.recording, cuts, keep, rng, |cut, image| verify(&life.volumes, cut, image, dir))
}

fn look_at(
    recording: &Recording,
    cuts: &[(usize, Survivors)],
    keep: &Path,
    rng: &mut Rng,
    verify: impl Fn(usize, &Image) -> Result<(), String>,
) -> Result<usize, String> {
    let mut replay = recording.replay();
    for (nth, &(cut, survivors)) in cuts.iter().enumerate() {
        let image = replay.cut(cut, survivors, rng);
        if let Err(what) = verify(cut, &image) {
            let volatile = replay.volatile(cut);
            image.store(keep).expect("keep the disk");
            return Err(format!(
                "state {nth}: the power was cut at request {cut} of {}, {survivors:?} of the {volatile} requests that no flush covers are \
                 there: {what}\nThe disk is kept in {}",
                recording.len(),
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

fn most_states() -> usize {
    match std::env::var("BLOCKD_REPLAY_STATES").as_deref() {
        Ok("all") => usize::MAX,
        Ok(text) => text.parse().expect("a decimal number, or all"),
        Err(_) => FEW_STATES,
    }
}

fn replay(name: &str, filesystem: Filesystem) {
    with_mounts(name, filesystem, |dir, rng| {
        let most = most_states();
        let steps = number("BLOCKD_REPLAY_STEPS", FEW_STEPS);
        let life = record(filesystem, dir, steps, rng.next_u64(), None);
        let flushes = life.recording.flush_boundaries().len();
        eprintln!(
            "{name}: {} requests of the disk, {flushes} of them flushes, by {:?}",
            life.recording.len(),
            life.steps
        );
        assert!(flushes > 0, "the filesystem never flushed its disk");
        let cuts = some_cuts(&life.recording, most, rng);
        match look(&life, &cuts, dir, &kept(name), rng) {
            Ok(count) => eprintln!("{name}: {count} states are sound"),
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

/// The same for a life of backups, from where there is something to back up.
fn look_at_backups(
    life: &backups::BackupLife,
    most: usize,
    dir: &Path,
    keep: &Path,
    rng: &mut Rng,
) -> Result<usize, String> {
    let cuts = backup_cuts(life, most, rng);
    look_at(&life.recording, &cuts, keep, rng, |cut, image| life.verify(cut, image, dir))
}

/// So many cuts at the most, after there is something to back up.
fn backup_cuts(life: &backups::BackupLife, most: usize, rng: &mut Rng) -> Vec<(usize, Survivors)> {
    let mut cuts = all_cuts(&life.recording, rng);
    cuts.retain(|(cut, _)| *cut >= life.ready);
    while cuts.len() > most {
        cuts.remove(rng.below(cuts.len() as u64) as usize);
    }
    cuts
}

fn replay_backups(name: &str, filesystem: Filesystem) {
    with_mounts(name, filesystem, |dir, rng| {
        let backups = number("BLOCKD_REPLAY_STEPS", FEW_STEPS).div_ceil(STEPS_PER_BACKUP);
        let life = backups::record(filesystem, dir, backups, rng.next_u64(), None);
        eprintln!(
            "{name}: {} requests of the disk, {} of them flushes, {backups} backups, {} changes of the store",
            life.recording.len(),
            life.recording.flush_boundaries().len(),
            life.store.changes()
        );
        match look_at_backups(&life, most_states(), dir, &kept(name), rng) {
            Ok(count) => eprintln!("{name}: after {count} power cuts the next backups were right"),
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
        let life = backups::record(Filesystem::Xfs, dir, 4, rng.next_u64(), Some(omission));
        let expected = [backups::FORGOTTEN, backups::WRONG, backups::DIFFERS];
        // What else is met on the way, such as a database that does not open, proves nothing: it is looked
        // on.
        let mut others = Vec::new();
        let mut found = None;
        let cuts = backup_cuts(&life, 100, rng);
        for (nth, cut) in cuts.iter().enumerate() {
            let one = std::slice::from_ref(cut);
            let looked =
                look_at(&life.recording, one, &kept(name), rng, |cut, image| life.verify(cut, image, dir));
            let Err(what) = looked else { continue };
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
                "{omission:?} was not found in {} states, but {others_count} others: {:?}",
                cuts.len(),
                others.first()
            ),
        }
    });
}

/// A test that finds nothing proves nothing.
#[test]
fn omitted_sync_is_detected() {
    let name = "omitted_sync_is_detected";
    with_mounts(name, Filesystem::Ext4, |dir, rng| {
        let omissions = [
            (Filesystem::Ext4, Omission { operation: "fdatasync", files: Files::With(".data") }),
            (Filesystem::Ext4, Omission { operation: "fdatasync", files: Files::With(".log") }),
            (Filesystem::Xfs, Omission { operation: "fsync", files: Files::With("volumes/") }),
            // Of a group's snapshot, one member is durable and the other is not.
            (Filesystem::Xfs, Omission { operation: "fsync", files: Files::OfPeer }),
        ];
        for (nth, (filesystem, omission)) in omissions.into_iter().enumerate() {
            let dir = dir.join(nth.to_string());
            std::fs::create_dir(&dir).unwrap();
            let life = record(filesystem, &dir, FEW_STEPS, rng.next_u64(), Some(omission));
            let cuts = some_cuts(&life.recording, 100, rng);
            match look(&life, &cuts, &dir, &kept(name), rng) {
                Ok(count) => panic!("{omission:?} was not found in {count} states"),
                Err(what) => eprintln!("{omission:?}: {}", what.lines().next().unwrap_or_default()),
            }
        }
    });
}

/// A live map trusted after a power cut claims missing data: the daemon would do that if it could not detect
/// the remount.
#[test]
fn trusted_map_after_a_power_cut_is_detected() {
    let name = "trusted_map_after_a_power_cut_is_detected";
    with_mounts(name, Filesystem::Ext4, |dir, rng| {
        let life = record(Filesystem::Ext4, dir, 2 * FEW_STEPS, rng.next_u64(), None);
        let cuts: Vec<_> = life.early_maps.iter().map(|&cut| (cut, Survivors::All)).collect();
        let sound = look(&life, &cuts, dir, &kept(name), rng);
        sound.unwrap_or_else(|what| panic!("as it should be: {what}"));
        hide_mount_numbers();
        match look(&life, &cuts, dir, &kept(name), rng) {
            Ok(count) => panic!("it was not found in {count} states"),
            Err(what) => eprintln!("{}", what.lines().next().unwrap_or_default()),
        }
    });
}
