use super::*;
use crate::volumes::registry::{Registry, VolumeEntry};
use blockd_catalog::VolumeRow;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::OpenOptions;
use std::{
    io,
    path::{Path, PathBuf},
};

const ID: VolumeId = VolumeId::from_u64(7);
const SIZE_BYTES: u64 = 1 << 20;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    /// Returns the files of a volume with one snapshot and two written blocks, one before and one after it.
    fn new() -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        let volume = Volume::create(&files.path(), ID, SIZE_BYTES).unwrap();
        volume.write(0, &[1; 4096], false).unwrap();
        volume.freeze(SnapshotId::from_u64(1)).unwrap();
        volume.write(8192, &[2; 4096], false).unwrap();
        files
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("7")
    }

    fn entry(&self) -> Arc<VolumeEntry> {
        let closed = ClosedVolume::read(&self.path(), &OpenOptions::default()).unwrap();
        let row = VolumeRow::new(ID, "data".parse().unwrap(), SIZE_BYTES);
        VolumeEntry::new(&row, EntryState::Closed(Arc::new(closed.into())))
    }

    /// Alters a byte of the only block set.
    fn damage_set(&self) {
        let mut names = std::fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        let path = names.find(|path| path.extension().is_some_and(|end| end == "set")).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[60] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
}

fn content_of(volume: &Volume) -> Vec<u8> {
    let mut bytes = vec![0; 3 * 4096];
    volume.read(0, &mut bytes).unwrap();
    bytes.iter().step_by(4096).copied().collect()
}

#[test]
fn concurrent_first_uses_open_the_volume_once() {
    let files = Files::new();
    for _ in 0..20 {
        let entry = files.entry();
        assert!(entry.view().volume().is_none() && entry.view().is_up());
        let found: Vec<_> = std::thread::scope(|scope| {
            let users: Vec<_> = (0..8)
                .map(|number| {
                    let entry = &entry;
                    scope.spawn(move || {
                        if number % 4 == 3 {
                            entry.check_closed();
                        }
                        entry.connect().unwrap().0
                    })
                })
                .collect();
            users.into_iter().map(|user| user.join().unwrap()).collect()
        });
        assert!(found.iter().all(|volume| Arc::ptr_eq(volume, &found[0])));
        assert_eq!(content_of(&found[0]), [1, 0, 2]);
        entry.shut_down().unwrap();
    }
}

#[test]
fn checked_volume_is_closed_and_known() {
    let files = Files::new();
    let entry = files.entry();
    assert!(entry.known(Content::of, |content| *content).is_none(), "an unread volume is not shown as empty");
    let content = entry.content().unwrap();
    assert_eq!((content.stats.head_dirty_bytes, content.stats.layers), (4096, 2));
    assert_eq!((content.stats.snapshots, content.scrub_bytes), (1, 4096));
    assert!(matches!(entry.view().state, EntryState::Closed(_)));
    assert_eq!(entry.check_closed(), CheckOutcome::NotNeeded);
    assert_eq!(content_of(&entry.volume().unwrap()), [1, 0, 2]);
    let opened = entry.content().unwrap();
    assert_eq!((opened.stats.head_dirty_bytes, opened.scrub_bytes), (4096, 4096));
    assert!(content.stats.tracking_bytes == 0 && opened.stats.tracking_bytes > 0);
}

#[test]
fn damaged_set_is_found_without_use() {
    let files = Files::new();
    files.damage_set();
    let entry = files.entry();
    assert!(entry.view().failure().is_none());
    assert_eq!(entry.check_closed(), CheckOutcome::Failed);
    let view = entry.view();
    assert!(view.failure().unwrap().contains(".set is damaged: checksum mismatch"), "{:?}", view.failure());
    assert!(entry.volume().is_err() && entry.content().is_none());
}

#[test]
fn damaged_set_fails_the_first_use() {
    let files = Files::new();
    files.damage_set();
    let entry = files.entry();
    let error = entry.connect().err().unwrap();
    assert!(error.message.contains(".set is damaged"), "{}", error.message);
    assert!(entry.view().failure().is_some());
}

#[test]
fn volume_with_mergeable_layers_stays_open() {
    let files = Files::new();
    let volume = Volume::open(&files.path(), &OpenOptions::default()).unwrap();
    volume.freeze(SnapshotId::from_u64(2)).unwrap();
    volume.delete_snapshot(SnapshotId::from_u64(1)).unwrap();
    drop(volume);
    let entry = files.entry();
    assert_eq!(entry.check_closed(), CheckOutcome::Open);
    assert_eq!(entry.view().volume().unwrap().stats().merge.layers, 1);
}

#[test]
fn volume_with_discarded_writes_stays_open() {
    let files = Files::new();
    // As after a failed writeback: the head's unflushed block is gone.
    let mut names = std::fs::read_dir(files.path()).unwrap().map(|entry| entry.unwrap().path());
    let map = names.find(|path| path.extension().is_some_and(|end| end == "map")).unwrap();
    std::fs::remove_file(map).unwrap();
    let entry = files.entry();
    assert_eq!(entry.check_closed(), CheckOutcome::Open);
    assert!(entry.view().volume().unwrap().discarded_writes().is_some());
}

/// Moves the only block set away; a directory is in its place.
fn hide_set(dir: &Path) -> (PathBuf, PathBuf) {
    let mut names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let set = names.find(|path| path.extension().is_some_and(|end| end == "set")).unwrap();
    let hidden = dir.parent().unwrap().join("hidden");
    std::fs::rename(&set, &hidden).unwrap();
    std::fs::create_dir(&set).unwrap();
    (set, hidden)
}

#[test]
fn volume_whose_close_fails_stays_open() {
    let files = Files::new();
    let entry = files.entry();
    let full = |_: &Volume| {
        let source = io::Error::from_raw_os_error(28);
        Err(VolumeError::Io { operation: "append", path: PathBuf::from("1.map"), source })
    };
    assert_eq!(entry.check_closed_with(full), CheckOutcome::Open);
    assert_eq!(content_of(&entry.volume().unwrap()), [1, 0, 2]);
}

#[test]
fn failed_open_of_an_intact_volume_is_repeated() {
    for is_checked in [false, true] {
        let files = Files::new();
        let entry = files.entry();
        let (set, hidden) = hide_set(&files.path());
        if is_checked {
            assert_eq!(entry.check_closed(), CheckOutcome::Failed);
        }
        let error = entry.volume().err().unwrap();
        assert_eq!(error.code, ErrorCode::VolumeFailed);
        assert!(error.message.contains("cannot be opened: "), "{}", error.message);
        let view = entry.view();
        assert!(view.failure().is_some() && !view.is_up());
        std::fs::remove_dir(&set).unwrap();
        std::fs::rename(&hidden, &set).unwrap();
        if is_checked {
            assert_eq!(entry.check_closed(), CheckOutcome::Closed);
            assert!(entry.view().is_up() && entry.view().volume().is_none());
        }
        assert_eq!(content_of(&entry.volume().unwrap()), [1, 0, 2]);
        assert!(entry.view().is_up());
    }
}

#[test]
fn stopping_daemon_opens_no_volume() {
    let files = Files::new();
    let registry = Registry::default();
    registry.insert(files.entry());
    let entry = registry.by_name("data").unwrap();
    entry.shut_down().unwrap();
    let error = entry.volume().err().unwrap();
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::ShuttingDown, "the daemon is stopping"));
}

#[tokio::test(flavor = "multi_thread")]
async fn first_use_on_a_runtime_thread_opens_the_volume() {
    let files = Files::new();
    let entry = files.entry();
    let task = tokio::spawn(async move { entry.volume().map(|volume| content_of(&volume)) });
    assert_eq!(task.await.unwrap().unwrap(), [1, 0, 2]);
}
