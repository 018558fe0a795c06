//! Tests of the exports.

use super::*;
use blockd_catalog::{SnapshotRow, SnapshotState, VolumeRow};
use blockd_engine::{
    metrics::Operation,
    volumes::registry::{EntryState, VolumeEntry},
};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_nbd::{
    DeviceErrorKind, Progress, ZeroFlags,
    constants::{STATE_HOLE, STATE_ZERO},
};
use blockd_volume::{
    ClosedVolume, Op, OpenOptions, Storage, VolumeErrorKind, attach_storage, detach_storage,
};
use std::{io, path::Path};

fn add(registry: &Registry, dir: &std::path::Path, number: u64, name: &str) -> Arc<VolumeEntry> {
    let id = VolumeId::from_u64(number);
    let row = VolumeRow::new(id, name.parse().unwrap(), 1 << 20);
    let volume = Volume::create(&dir.join(name), id, 1 << 20).unwrap();
    let entry = VolumeEntry::new(&row, EntryState::Up(volume));
    registry.insert(Arc::clone(&entry));
    entry
}

#[test]
fn volume_exports_are_listed_counted_and_served() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::default());
    let exports = Exports::new(Arc::clone(&registry));
    assert!(matches!(exports.open("", &Client::default()), Err(ExportError::Unknown)));
    let first = add(&registry, dir.path(), 1, "one");
    let device = exports.open("", &Client::default()).unwrap();
    assert_eq!(first.view().connections, 1);
    device.write(1000, &[7; 3000], true).unwrap();
    let mut read = [0; 3000];
    exports.open("one", &Client::default()).unwrap().read(1000, &mut read).unwrap();
    assert_eq!(read, [7; 3000]);
    assert_eq!(device.write(1 << 20, &[1], false).unwrap_err().kind(), DeviceErrorKind::InvalidInput);
    drop(device);
    assert_eq!(first.view().connections, 0);

    add(&registry, dir.path(), 2, "two");
    assert!(matches!(exports.open("", &Client::default()), Err(ExportError::Unknown)));
    assert!(matches!(exports.open("three", &Client::default()), Err(ExportError::Unknown)));
    first.set_state(EntryState::Failed("disk removed".into()));
    let Err(ExportError::Unavailable { reason }) = exports.open("one", &Client::default()) else {
        panic!("a failed volume was served")
    };
    assert!(reason.contains("disk removed"), "{reason}");
    let names: Vec<_> = exports.list(&Client::default()).into_iter().map(|export| export.name).collect();
    assert_eq!(names, ["two"]);
}

#[test]
fn first_opens_do_not_delay_those_of_open_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::default());
    let exports = Exports::new(Arc::clone(&registry));
    let entry = add(&registry, dir.path(), 1, "one");
    assert!(!exports.is_remote("one") && !exports.is_remote("two"));
    entry.view().volume().unwrap().close().unwrap();
    let closed = ClosedVolume::read(&dir.path().join("one"), &OpenOptions::default()).unwrap();
    entry.set_state(EntryState::Closed(Arc::new(closed.into())));
    assert!(exports.is_remote("one") && exports.is_remote(""));
    drop(exports.open("one", &Client::default()).unwrap());
    assert!(!exports.is_remote("one"));
}

#[test]
fn flushes_are_shared_after_a_loss_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::default());
    let exports = Exports::new(Arc::clone(&registry));
    let entry = add(&registry, dir.path(), 1, "one");
    entry.set_state(EntryState::Failed("closed by the test".into()));
    let path = dir.path().join("one");
    let map = std::fs::read_dir(&path).unwrap().map(|file| file.unwrap().path());
    let map = map.into_iter().find(|path| path.extension().is_some_and(|end| end == "map")).unwrap();
    std::fs::remove_file(map).unwrap();
    entry.set_state(EntryState::Up(Volume::open(&path, &Default::default()).unwrap()));
    let open = || exports.open("one", &Client::default()).unwrap();
    let (first, second) = (open(), open());
    assert_eq!((first.flush_key(), second.flush_key()), (None, None));
    assert_eq!(first.flush().unwrap_err().kind(), DeviceErrorKind::Io);
    assert!(first.flush_key().is_some() && second.flush_key().is_none());
    assert_eq!(second.flush().unwrap_err().kind(), DeviceErrorKind::Io);
    assert_eq!(first.flush_key(), second.flush_key());
    first.flush().and(second.flush()).unwrap();
}

fn take(entry: &VolumeEntry, number: u64, name: &str) -> SnapshotId {
    let id = SnapshotId::from_u64(number);
    let epoch = entry.volume().unwrap().freeze(id).unwrap().epoch;
    entry.show_snapshot(&SnapshotRow {
        id,
        volume: entry.id,
        name: name.parse().unwrap(),
        created: jiff::Timestamp::UNIX_EPOCH,
        state: SnapshotState::Ready,
        internal: name.starts_with("backup-"),
        epoch,
        dirty_bytes: 0,
        freeze_stall_micros: 0,
        taken_with: None,
        quiesce: None,
        pinned: false,
    });
    id
}

fn status(device: &dyn BlockDevice, context: &str, offset_bytes: u64) -> Vec<(u64, u32)> {
    let mut extents = Vec::new();
    let len_bytes = device.size_bytes() - offset_bytes;
    device.block_status(context, offset_bytes, len_bytes, 10, &mut extents).unwrap();
    extents.into_iter().map(|extent| (extent.len_bytes, extent.flags)).collect()
}

#[test]
fn snapshot_exports_have_dirty_bitmap_contexts() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::default());
    let exports = Exports::new(Arc::clone(&registry));
    let entry = add(&registry, dir.path(), 1, "one");
    let open = |name: &str| exports.open(name, &Client::default());
    let device = open("one").unwrap();
    device.write(8192, &[7; 4096], false).unwrap();
    let first = take(&entry, 11, "first");
    device.write(0, &[8; 4096], false).unwrap();
    take(&entry, 12, "backup-x");
    take(&entry, 13, "second");
    device.trim(8192, 4096, false).unwrap();
    entry.volume().unwrap().grow(2 * MIB).unwrap();
    device.write(MIB, &[9; 4096], false).unwrap();

    let names: Vec<_> =
        exports.list(&Client::default()).into_iter().map(|e| (e.name, e.size_bytes)).collect();
    let expected = [("one", 2 * MIB), ("one@first", MIB), ("one@second", MIB)];
    assert_eq!(names, expected.map(|(name, size)| (name.to_owned(), size)));
    let all = exports.list(&Client::default());
    for max in 1..4 {
        for skip in 0..5 {
            let part: Vec<_> = all.iter().skip(skip).take(max).cloned().collect();
            assert_eq!(exports.list_part(&Client::default(), skip, max), part);
        }
    }
    let described = |name: &str| exports.describe(name, &Client::default());
    assert_eq!(described("one@first").as_ref(), all.get(1));
    assert_eq!(described("@latest").as_ref(), all.get(2));
    assert_eq!((described("").as_ref(), described("two"), described("one@none")), (all.first(), None, None));
    let contexts = ["base:allocation", "qemu:dirty-bitmap:first", "qemu:dirty-bitmap:second"];
    assert_eq!(device.meta_contexts(), contexts[..1], "a connection keeps its contexts");
    let device = open("one").unwrap();
    assert_eq!(device.meta_contexts(), contexts);
    let hole = STATE_HOLE | STATE_ZERO;
    let expected = [(4096, 0), (MIB - 4096, hole), (4096, 0), (MIB - 4096, hole)];
    assert_eq!(status(&*device, "base:allocation", 0), expected);
    let expected = [(4095, 1), (4096, 0), (4096, 1), (MIB - 12288, 0), (4096, 1), (MIB - 4096, 0)];
    assert_eq!(status(&*device, "qemu:dirty-bitmap:first", 1), expected);
    let mut extents = Vec::new();
    assert!(device.block_status("qemu:dirty-bitmap:11", 0, 1, 1, &mut extents).is_err());

    for name in ["one@11", "one@first", "@first"] {
        let snapshot = open(name).unwrap();
        assert!(snapshot.is_read_only() && snapshot.size_bytes() == MIB);
        assert_eq!(snapshot.meta_contexts(), ["base:allocation"]);
        let mut found = [1; 6];
        assert_eq!(snapshot.read(8190, &mut found).unwrap(), Progress::Done);
        assert_eq!(found, [0, 0, 7, 7, 7, 7]);
        assert_eq!(snapshot.read(100, &mut found).unwrap(), Progress::Zeroes);
        assert_eq!(snapshot.write(0, &[1], false).unwrap_err().kind(), DeviceErrorKind::Permission);
    }
    let latest = open("one@latest").unwrap();
    assert_eq!(latest.meta_contexts(), contexts[..2]);
    assert_eq!(status(&*latest, contexts[1], 0), [(4096, 1), (MIB - 4096, 0)]);
    assert!(matches!(open("one@none"), Err(ExportError::Unknown)));
    assert!(matches!(open("two@first"), Err(ExportError::Unknown)));

    // An open snapshot cannot be deleted; a deleted one has no context.
    let pinned = open("one@first").unwrap();
    let volume = entry.volume().unwrap();
    assert_eq!(volume.delete_snapshot(first).unwrap_err().kind(), VolumeErrorKind::Busy);
    drop(pinned);
    volume.delete_snapshot(first).unwrap();
    entry.hide_snapshot(first);
    assert_eq!(open("one").unwrap().meta_contexts(), [contexts[0], contexts[2]]);
    let gone = device.block_status(contexts[1], 0, MIB, 10, &mut extents).unwrap_err();
    assert_eq!(gone.kind(), DeviceErrorKind::InvalidInput);
}

#[test]
fn dirty_bitmap_of_a_recreated_snapshot_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::default());
    let exports = Exports::new(Arc::clone(&registry));
    let entry = add(&registry, dir.path(), 1, "one");
    let context = "qemu:dirty-bitmap:daily";
    let old = take(&entry, 11, "daily");
    let device = exports.open("one", &Client::default()).unwrap();
    device.write(0, &[8; 4096], false).unwrap();
    assert_eq!(status(&*device, context, 0)[0], (4096, 1));
    entry.hide_snapshot(old);
    entry.volume().unwrap().delete_snapshot(old).unwrap();
    take(&entry, 12, "daily");
    let mut extents = Vec::new();
    let refused = device.block_status(context, 0, 1 << 20, 10, &mut extents).unwrap_err();
    assert_eq!((refused.kind(), extents.len()), (DeviceErrorKind::InvalidInput, 0));
    let later = exports.open("one", &Client::default()).unwrap();
    assert_eq!(status(&*later, context, 0), [(1 << 20, 0)]);
}

#[test]
fn read_only_volume_refuses_writes_of_all_connections() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::default());
    let exports = Exports::new(Arc::clone(&registry));
    let entry = add(&registry, dir.path(), 1, "one");
    let device = exports.open("one", &Client::default()).unwrap();
    assert!(!device.is_read_only());
    device.write(0, &[7; 4096], false).unwrap();
    entry.set_read_only(true);
    assert!(exports.open("one", &Client::default()).unwrap().is_read_only());
    assert!(exports.list(&Client::default())[0].read_only);
    let refused = [
        device.write(0, &[8; 10], false),
        device.try_write(0, &[8; 10]).map(drop),
        device.trim(0, 4096, false),
        device.write_zeroes(0, 4096, ZeroFlags::default()),
    ];
    for result in refused {
        assert_eq!(result.unwrap_err().kind(), DeviceErrorKind::Permission);
    }
    device.flush().unwrap();
    let mut found = [0; 10];
    device.read(0, &mut found).unwrap();
    assert_eq!(found, [7; 10]);
    entry.set_read_only(false);
    device.write(0, &[8; 10], true).unwrap();
}

#[test]
fn exports_obey_access_lists_and_connection_limits() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::default());
    add(&registry, dir.path(), 1, "one");
    add(&registry, dir.path(), 2, "two");
    let lists = [("one".to_owned(), vec!["alice".to_owned()])].into();
    let exports = Exports::new(registry).with_access(Arc::new(Access::new(lists, 2)));
    let client = |name: &str| Client { certificate_names: vec![name.to_owned()], ..Client::default() };
    let names =
        |client: &Client| -> Vec<_> { exports.list(client).into_iter().map(|export| export.name).collect() };
    assert_eq!(names(&client("alice")), ["one", "two"]);
    assert_eq!(names(&client("bob")), ["two"]);
    assert!(matches!(exports.open("one", &client("bob")), Err(ExportError::Denied { .. })));
    let first = exports.open("one", &client("alice")).unwrap();
    let _second = exports.open("one", &client("alice")).unwrap();
    let Err(ExportError::Unavailable { reason }) = exports.open("one", &client("alice")) else {
        panic!("the connection limit was exceeded")
    };
    assert!(reason.contains("2 NBD connections"), "{reason}");
    let local = Client { is_local: true, ..Client::default() };
    let of_this_host = [(); 3].map(|()| exports.open("one", &local).unwrap());
    drop((first, of_this_host));
    assert!(exports.open("one", &client("alice")).is_ok());
    assert!(exports.open("two", &client("bob")).is_ok(), "each volume has its own limit");
}

const EOPNOTSUPP: i32 = 95;

/// Disk without support for writes and zeroing.
struct Unsupported;

impl Storage for Unsupported {
    fn file_at(&self, _: &Path) -> Option<usize> {
        None
    }

    fn perform(
        &self,
        path: &Path,
        _: Option<usize>,
        op: Op<'_>,
        kernel: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let is_data = path.extension().is_some_and(|extension| extension == "data");
        match op {
            Op::Write { .. } | Op::Zero { .. } if is_data => Err(io::Error::from_raw_os_error(EOPNOTSUPP)),
            _ => kernel(),
        }
    }
}

#[test]
fn unsupported_call_is_an_io_error_except_for_fast_zeroes() {
    let dir = tempfile::tempdir().unwrap();
    attach_storage(dir.path(), Arc::new(Unsupported));
    let registry = Arc::new(Registry::default());
    let exports = Exports::new(Arc::clone(&registry));
    let entry = add(&registry, dir.path(), 1, "one");
    let device = exports.open("one", &Client::default()).unwrap();
    let failed = |operation| DeviceErrorKind::ALL.map(|kind| entry.traffic.failed(operation, kind));
    assert_eq!(device.write(0, &[7; 4096], false).unwrap_err().kind(), DeviceErrorKind::Io);
    assert_eq!(failed(Operation::Write), [1, 0, 0, 0, 0, 0]);
    let fast = ZeroFlags { fast: true, ..ZeroFlags::default() };
    assert_eq!(device.write_zeroes(0, 4096, fast).unwrap_err().kind(), DeviceErrorKind::NotSupported);
    entry.set_read_only(true);
    assert_eq!(device.trim(0, 4096, false).unwrap_err().kind(), DeviceErrorKind::Permission);
    assert_eq!(failed(Operation::Discard), [0, 0, 0, 1, 0, 1]);
    assert_eq!(entry.traffic.counted(Operation::Discard).total(), 2, "durations include failures");
    detach_storage(dir.path());
}
