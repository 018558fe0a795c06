//! Record of acknowledged writes that a start may have discarded.

use crate::sim::disk::{Disk, Fault, FaultError, OpKind, Rng};
use crate::support::{paths_in, volume_dir};
use blockd_extent::VolumeId;
use blockd_volume::{DiscardCause, OpenOptions, Recovery, SurvivingClients, Volume, VolumeErrorKind};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

const BOOT_ID_AT: u64 = 40;
const MOUNT_AT: u64 = 80;
const SIZE_BYTES: u64 = 64 * 4096;

fn create(dir: &Path) -> Arc<Volume> {
    let volume = Volume::create(dir, VolumeId::from_u64(3), SIZE_BYTES).unwrap();
    volume.write(0, &[1; 4096], true).unwrap();
    volume.write(0, &[2; 4096], false).unwrap();
    volume.write(8192, &[2; 4096], false).unwrap();
    volume
}

fn open(dir: &Path, serves_remote: bool) -> Arc<Volume> {
    Volume::open(dir, &OpenOptions { serves_remote, ..OpenOptions::default() }).unwrap()
}

fn map(dir: &Path) -> PathBuf {
    paths_in(dir).into_iter().find(|path| path.extension().is_some_and(|end| end == "map")).unwrap()
}

fn alter(dir: &Path, offset_bytes: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(map(dir)).unwrap();
    file.write_all_at(bytes, offset_bytes).unwrap();
}

/// Makes the map that of another boot.
fn set_other_boot(dir: &Path) {
    alter(dir, BOOT_ID_AT, b"01234567-89ab-cdef-0123-456789abcdef");
}

fn found(volume: &Volume) -> Option<(SurvivingClients, DiscardCause)> {
    volume.discarded_writes().map(|loss| (loss.clients, loss.cause))
}

#[test]
fn start_after_a_process_crash_records_no_loss() {
    let (_root, dir) = volume_dir();
    drop(create(&dir));
    assert_eq!(found(&open(&dir, true)), None);
}

#[test]
fn start_without_the_map_records_a_loss_until_acknowledged() {
    let (_root, dir) = volume_dir();
    drop(create(&dir));
    std::fs::remove_file(map(&dir)).unwrap();
    let lost = Some((SurvivingClients::All, DiscardCause::MapMissing));
    let volume = open(&dir, false);
    assert_eq!(found(&volume), lost);
    volume.close().unwrap();
    let volume = open(&dir, false);
    assert_eq!(found(&volume), lost, "a clean stop removed the record");
    volume.acknowledge_discarded_writes().unwrap();
    assert_eq!(found(&volume), None);
    drop(volume);
    assert_eq!(found(&open(&dir, false)), None);
}

#[test]
fn start_in_another_boot_records_a_loss_for_remote_clients() {
    for (serves_remote, expected) in
        [(true, Some((SurvivingClients::Remote, DiscardCause::OtherBoot))), (false, None)]
    {
        let (_root, dir) = volume_dir();
        drop(create(&dir));
        set_other_boot(&dir);
        assert_eq!(found(&open(&dir, serves_remote)), expected);
    }
}

#[test]
fn start_in_another_mount_records_a_loss_for_all_clients() {
    let (_root, dir) = volume_dir();
    drop(create(&dir));
    alter(&dir, MOUNT_AT, &u64::MAX.to_le_bytes());
    // Filesystems without a mount number cannot be distinguished.
    let loss = found(&open(&dir, false));
    assert!(loss.is_none_or(|loss| loss == (SurvivingClients::All, DiscardCause::OtherMount)), "{loss:?}");
}

#[test]
fn start_after_a_clean_stop_records_no_loss_in_any_boot() {
    let (_root, dir) = volume_dir();
    create(&dir).close().unwrap();
    set_other_boot(&dir);
    let volume = open(&dir, true);
    assert_eq!(found(&volume), None);
    volume.close().unwrap();
    let options = OpenOptions { recovery: Recovery::AfterPowerLoss, serves_remote: true };
    assert_eq!(found(&Volume::open(&dir, &options).unwrap()), None);
}

#[test]
fn start_with_a_failed_writeback_records_a_loss() {
    for end in [".map", ".data"] {
        let (root, dir) = volume_dir();
        let disk = Disk::attach(root.path(), 1).unwrap();
        drop(create(&dir));
        let fault = Fault { path_contains: end.into(), ..Fault::at(0, FaultError::Io) };
        disk.inject(Fault { kinds: vec![OpKind::Sync], ..fault });
        let loss = found(&open(&dir, false));
        assert_eq!(loss, Some((SurvivingClients::All, DiscardCause::WritebackFailed)), "{end}");
    }
}

#[test]
fn newer_map_or_record_is_refused_without_a_change() {
    for end in ["map", "discarded"] {
        let (_root, dir) = volume_dir();
        drop(create(&dir));
        let file = match end {
            "map" => map(&dir),
            _ => {
                std::fs::remove_file(map(&dir)).unwrap();
                drop(open(&dir, false));
                dir.join("volume.discarded")
            }
        };
        set_other_boot(&dir);
        File::options().write(true).open(&file).unwrap().write_all_at(&[2], 8).unwrap();
        let content =
            || -> Vec<_> { paths_in(&dir).into_iter().map(|path| std::fs::read(path).unwrap()).collect() };
        let before = content();
        let error = Volume::open(&dir, &OpenOptions::default()).err().unwrap().to_string();
        let expected = format!("open failed on {}: format version 2 is newer than 1", file.display());
        assert!(error.starts_with(&expected), "{error}");
        assert!(content() == before, "{end}: a refused start changed a file");
        let findings = Volume::check_files(&dir).findings;
        assert_eq!(findings, [error], "{end}");
    }
}

/// The first start fails to sync the removal of the mark of a clean stop: the kernel treats the page as
/// clean, and the disk keeps the mark.
#[test]
fn stale_mark_of_a_clean_stop_hides_no_loss() {
    for seed in 0..8 {
        let (root, dir) = volume_dir();
        create(&dir).close().unwrap();
        let disk = Disk::attach(root.path(), seed).unwrap();
        let fault = Fault { path_contains: ".map".into(), ..Fault::at(1, FaultError::Io) };
        disk.inject(Fault { kinds: vec![OpKind::Sync], ..fault });
        assert!(Volume::open(&dir, &OpenOptions::default()).is_err());
        let volume = open(&dir, true);
        volume.write(0, &[3; 4096], false).unwrap();
        let survived = tempfile::tempdir().unwrap();
        let survived = survived.path().join("disk");
        disk.power_cut(&mut Rng::fixed(seed), &survived).unwrap();
        let dir = survived.join("v");
        set_other_boot(&dir);
        let loss = found(&open(&dir, true));
        assert_eq!(loss, Some((SurvivingClients::Remote, DiscardCause::OtherBoot)), "seed {seed}");
    }
}

#[test]
fn map_on_a_full_disk_is_written_later() {
    let (root, dir) = volume_dir();
    let disk = Disk::attach(root.path(), 1).unwrap();
    let volume = create(&dir);
    let full = Fault { path_contains: ".map".into(), ..Fault::every(FaultError::NoSpace) };
    disk.inject(Fault { kinds: vec![OpKind::Sync], ..full });
    for _ in 0..2 {
        assert_eq!(volume.sync_maps().unwrap_err().kind(), VolumeErrorKind::NoSpace);
        volume.write(4096, &[3; 4096], true).unwrap();
    }
    disk.clear_faults();
    disk.evict().unwrap();
    volume.sync_maps().unwrap();
    volume.write(0, &[4; 4096], false).unwrap();
    drop(volume);
    let volume = open(&dir, true);
    assert_eq!(found(&volume), None);
    let mut content = [0; 4096];
    volume.read(8192, &mut content).unwrap();
    assert_eq!(content, [2; 4096]);
}

/// Crashes a start of a prepared volume before each of its calls, with this fault; the next start must find
/// this loss.
fn crash_at_each_call(
    prepare: impl Fn(&Path),
    fault: Option<&Fault>,
    serves_remote: bool,
    loss: Option<(SurvivingClients, DiscardCause)>,
) {
    for call in 0.. {
        let (root, dir) = volume_dir();
        prepare(&dir);
        let disk = Disk::attach(root.path(), 1).unwrap();
        disk.cut_power_before(call);
        if let Some(fault) = fault {
            disk.inject(fault.clone());
        }
        let opened = Volume::open(&dir, &OpenOptions::default());
        if opened.is_ok() && !disk.is_off() {
            assert!(call > 10, "a start with {call} calls");
            return;
        }
        drop(opened);
        disk.clear_faults();
        disk.restart_process();
        assert_eq!(found(&open(&dir, serves_remote)), loss, "call {call}");
    }
}

#[test]
fn start_crashed_at_any_call_keeps_loss_record_exact() {
    let closed = |dir: &Path| {
        create(dir).close().unwrap();
        set_other_boot(dir);
    };
    crash_at_each_call(closed, None, true, None);
    let without_map = |dir: &Path| {
        drop(create(dir));
        std::fs::remove_file(map(dir)).unwrap();
    };
    crash_at_each_call(without_map, None, false, Some((SurvivingClients::All, DiscardCause::MapMissing)));
}

/// The failed sync makes the start replace the map. A start that finds no map records a loss.
#[test]
fn failed_sync_after_a_clean_stop_records_no_loss() {
    for end in [".map", ".data"] {
        let fault = Fault { path_contains: end.into(), ..Fault::at(0, FaultError::Io) };
        let fault = Fault { kinds: vec![OpKind::Sync], ..fault };
        crash_at_each_call(|dir| create(dir).close().unwrap(), Some(&fault), true, None);
    }
}
