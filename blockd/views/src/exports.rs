//! Volumes and their snapshots as NBD exports.
//!
//! A volume's export has the volume's name; the empty name selects the only volume if there is exactly one.
//! `VOLUME@SNAPSHOT` is a read-only snapshot: by name, by id, or `latest` for the newest. Each volume has a
//! metadata context `qemu:dirty-bitmap:NAME` for each of its snapshots, and a snapshot has one for each older
//! one.
//!
//! `cloud:ID` is a read-only cloud snapshot. Cloud snapshots are not listed, which would need store requests.

use crate::{access::Access, browse::CloudExports};
use blockd_api::{ApiError, ErrorCode, format_time};
use blockd_engine::{
    metrics::Operation,
    volumes::{
        discarded::UnreportedLoss,
        registry::{Attachment, EntryState, Registry, SnapshotPoint, VolumeEntry},
    },
};
use blockd_extent::SnapshotId;
use blockd_nbd::{
    self as nbd, BlockDevice, Client, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo,
    OnFetched, Progress, StatusExtent, ZeroFlags,
    constants::{BASE_ALLOCATION, DIRTY_BITMAP_PREFIX, STATE_DIRTY, STATE_HOLE, STATE_ZERO},
};
use blockd_volume::{
    self as volume, Allocation, AllocationRun, Content, DirtyRun, SnapshotView, Volume, VolumeError,
    VolumeErrorKind,
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Instant};

/// Alias of the newest snapshot, unless a snapshot has this name.
pub const LATEST: &str = "latest";

/// Export catalog of the NBD server, backed by the registry.
#[derive(Debug, Clone)]
pub struct Exports {
    registry: Arc<Registry>,
    access: Arc<Access>,
    cloud: Option<CloudExports>,
}

impl Exports {
    /// Creates a catalog of all volumes without access control.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, access: Arc::default(), cloud: None }
    }

    /// Adds access control.
    pub fn with_access(self, access: Arc<Access>) -> Self {
        Self { access, ..self }
    }

    /// Adds the exports of cloud snapshots.
    pub fn with_cloud(self, cloud: CloudExports) -> Self {
        Self { cloud: Some(cloud), ..self }
    }

    /// Returns the cloud exports if the name has their prefix.
    fn cloud(&self, name: &str) -> Option<&CloudExports> {
        self.cloud.as_ref().filter(|_| CloudExports::has_name(name))
    }

    fn volume_entry(&self, name: &str) -> Option<Arc<VolumeEntry>> {
        if !name.is_empty() {
            return self.registry.by_name(name);
        }
        let mut all = self.registry.all();
        match (all.pop(), all.is_empty()) {
            (Some(only), true) => Some(only),
            _ => None,
        }
    }

    /// Returns true if a volume is served and the client may access it.
    fn is_visible(&self, entry: &VolumeEntry, client: &Client) -> bool {
        matches!(entry.view().state, EntryState::Up(_)) && self.access.allows(entry.name.as_str(), client)
    }
}

fn unavailable(error: ApiError) -> ExportError {
    ExportError::Unavailable { reason: error.message }
}

impl ExportCatalog for Exports {
    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        if let Some(cloud) = self.cloud(name) {
            return cloud.open(name, &self.access, client);
        }
        let (volume_name, snapshot) = split_name(name);
        let entry = self.volume_entry(volume_name).ok_or(ExportError::Unknown)?;
        self.access.check(entry.name.as_str(), client)?;
        let max_connections = self.access.max_connections(client);
        let (volume, attachment) = entry.attach_up_to(max_connections).map_err(unavailable)?;
        match snapshot {
            None => {
                let loss = UnreportedLoss::of(&volume, client);
                let points = attachment.entry().snapshots();
                Ok(Arc::new(VolumeDevice { volume, points, attachment, loss }))
            }
            Some(wanted) => open_snapshot(&volume, attachment, wanted),
        }
    }

    fn list(&self, client: &Client) -> Vec<ExportInfo> {
        self.list_part(client, 0, usize::MAX)
    }

    fn list_part(&self, client: &Client, skip: usize, max: usize) -> Vec<ExportInfo> {
        let entries = self.registry.all().into_iter();
        let visible: Vec<_> = entries.filter(|entry| self.is_visible(entry, client)).collect();
        let mut part: Vec<_> = visible.iter().skip(skip).take(max).map(|entry| volume_info(entry)).collect();
        let mut skip = skip.saturating_sub(visible.len());
        for entry in &visible {
            if part.len() >= max {
                break;
            }
            let count = entry.snapshot_count();
            if count <= skip {
                skip -= count;
                continue;
            }
            let points = entry.snapshots();
            let wanted = points.iter().skip(skip).take(max - part.len());
            part.extend(wanted.map(|point| snapshot_info(entry, point)));
            skip = 0;
        }
        part
    }

    fn describe(&self, name: &str, client: &Client) -> Option<ExportInfo> {
        if let Some(cloud) = self.cloud(name) {
            return cloud.describe(name, &self.access, client);
        }
        let (volume_name, snapshot) = split_name(name);
        let entry = self.volume_entry(volume_name).filter(|entry| self.is_visible(entry, client))?;
        match snapshot {
            None => Some(volume_info(&entry)),
            Some(wanted) => find_point(&entry.snapshots(), wanted).map(|point| snapshot_info(&entry, point)),
        }
    }
}

/// Splits an export name into the names of the volume and, if present, the snapshot.
pub fn split_name(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((volume, snapshot)) => (volume, Some(snapshot)),
        None => (name, None),
    }
}

fn volume_info(entry: &VolumeEntry) -> ExportInfo {
    ExportInfo {
        name: entry.name.to_string(),
        description: format!("volume {}", entry.id),
        size_bytes: entry.size_bytes(),
        read_only: entry.is_read_only(),
    }
}

fn snapshot_info(entry: &VolumeEntry, point: &SnapshotPoint) -> ExportInfo {
    let taken = format_time(point.created);
    ExportInfo {
        name: format!("{}@{}", entry.name, point.name),
        description: format!("snapshot {} of volume {}, taken {taken}", point.id, entry.name),
        size_bytes: point.size_bytes,
        read_only: true,
    }
}

/// Finds a snapshot by name, id or alias.
fn find_point<'a>(points: &'a [SnapshotPoint], wanted: &str) -> Option<&'a SnapshotPoint> {
    let named = points.iter().find(|point| point.name.as_str() == wanted || point.id.to_string() == wanted);
    named.or_else(|| points.last().filter(|_| wanted == LATEST))
}

fn open_snapshot(
    volume: &Volume,
    attachment: Attachment,
    wanted: &str,
) -> Result<Arc<dyn BlockDevice>, ExportError> {
    let points = attachment.entry().snapshots();
    let point = find_point(&points, wanted).ok_or(ExportError::Unknown)?;
    let view = volume.view(point.id).map_err(|error| match error.kind() {
        // Deleted since the lookup.
        VolumeErrorKind::NotFound => ExportError::Unknown,
        _ => unavailable(ApiError::new(ErrorCode::VolumeFailed, error.to_string())),
    })?;
    let older = points.iter().filter(|older| older.epoch < point.epoch).cloned().collect();
    Ok(Arc::new(SnapshotDevice { view, older, attachment }))
}

pub(crate) fn device_error(error: &VolumeError) -> DeviceError {
    let kind = match error.kind() {
        VolumeErrorKind::InvalidInput | VolumeErrorKind::NotFound => DeviceErrorKind::InvalidInput,
        VolumeErrorKind::NoSpace => DeviceErrorKind::NoSpace,
        VolumeErrorKind::Closed => DeviceErrorKind::Shutdown,
        VolumeErrorKind::Unsupported => DeviceErrorKind::NotSupported,
        _ => DeviceErrorKind::Io,
    };
    DeviceError::new(kind, error.to_string())
}

pub(crate) fn progress(content: Content) -> Progress {
    match content {
        Content::Data => Progress::Done,
        Content::Zeroes => Progress::Zeroes,
    }
}

pub(crate) fn allocation_extent(run: AllocationRun) -> StatusExtent {
    let flags = match run.allocation {
        Allocation::Data => 0,
        Allocation::Hole => STATE_HOLE | STATE_ZERO,
        Allocation::Zero => STATE_ZERO,
    };
    StatusExtent { len_bytes: run.len_bytes, flags }
}

fn dirty_extent(run: DirtyRun) -> StatusExtent {
    StatusExtent { len_bytes: run.len_bytes, flags: if run.dirty { STATE_DIRTY } else { 0 } }
}

fn contexts(points: &[SnapshotPoint]) -> Vec<String> {
    let bitmaps = points.iter().map(|point| format!("{DIRTY_BITMAP_PREFIX}{}", point.name));
    std::iter::once(BASE_ALLOCATION.to_owned()).chain(bitmaps).collect()
}

/// Returns the base snapshot of a dirty bitmap context, among the snapshots at the time of the connection.
fn snapshot_of(context: &str, points: &[SnapshotPoint]) -> Result<SnapshotId, DeviceError> {
    let name = context.strip_prefix(DIRTY_BITMAP_PREFIX);
    let point = name.and_then(|name| points.iter().find(|point| point.name.as_str() == name));
    point.map(|point| point.id).ok_or_else(|| {
        let message = format!("block status failed on {context}: the export has no such metadata context");
        DeviceError::new(DeviceErrorKind::InvalidInput, message)
    })
}

/// Volume as seen by one connection.
struct VolumeDevice {
    volume: Arc<Volume>,
    /// Snapshots at the time of the connection. If a name is deleted and reused for a later snapshot, the
    /// bitmap must not follow it: the blocks written in between would be reported clean.
    points: Arc<Vec<SnapshotPoint>>,
    attachment: Attachment,
    loss: UnreportedLoss,
}

impl VolumeDevice {
    fn entry(&self) -> &VolumeEntry {
        self.attachment.entry()
    }

    fn done<T>(&self, result: Result<T, VolumeError>) -> Result<T, DeviceError> {
        result.map_err(|error| {
            if let Some(reason) = self.volume.failure() {
                self.entry().note_fault(reason);
            }
            device_error(&error)
        })
    }

    /// Counts a request as in flight while it runs, and records its latency if it was carried out.
    fn timed<T>(
        &self,
        operation: Operation,
        is_done: impl FnOnce(&T) -> bool,
        work: impl FnOnce() -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let began = Instant::now();
        let under_way = self.entry().traffic.begin(operation, began);
        let result = work();
        drop(under_way);
        if result.as_ref().map_or(true, is_done) {
            self.entry().traffic.note(operation, began);
        }
        result
    }

    /// Fails a request that asks for durability if a loss has not been reported to its client yet.
    fn check_durable(&self, is_asked: bool) -> Result<(), DeviceError> {
        if is_asked { self.loss.report(&self.volume) } else { Ok(()) }
    }

    /// Refuses writes to a read-only volume, also for clients that connected while it was writable.
    fn check_writable(&self) -> Result<(), DeviceError> {
        if !self.entry().is_read_only() {
            return Ok(());
        }
        let message = format!("volume {} is read-only", self.entry().name);
        Err(DeviceError::new(DeviceErrorKind::Permission, message))
    }
}

fn is_done(progress: &Progress) -> bool {
    *progress != Progress::WouldBlock
}

fn always(_: &()) -> bool {
    true
}

/// Starts fetching the blocks that a request needs; `ask` calls the volume or the snapshot.
fn prefetch_async(
    access: nbd::Access,
    then: OnFetched,
    ask: impl FnOnce(volume::Access, volume::OnFetched) -> Option<volume::OnFetched>,
) -> Option<OnFetched> {
    let access = match access {
        nbd::Access::Read => volume::Access::Read,
        nbd::Access::Write => volume::Access::Write,
    };
    let then = Arc::new(Mutex::new(Some(then)));
    let kept = Arc::clone(&then);
    let told = move |result: Result<(), VolumeError>| {
        if let Some(then) = kept.lock().take() {
            then(result.map_err(|error| device_error(&error)));
        }
    };
    // The value returned is only the wrapper of the callback.
    ask(access, Box::new(told)).and_then(|_| then.lock().take())
}

impl BlockDevice for VolumeDevice {
    fn may_be_remote(&self) -> bool {
        self.volume.is_lazy()
    }

    fn source_key(&self) -> u128 {
        self.entry().id.as_u64().into()
    }

    fn prefetch_async(
        &self,
        access: nbd::Access,
        offset_bytes: u64,
        len_bytes: u64,
        then: OnFetched,
    ) -> Option<OnFetched> {
        prefetch_async(access, then, |access, then| {
            self.volume.on_fetched(access, offset_bytes, len_bytes, then)
        })
    }

    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.entry().is_read_only()
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.timed(Operation::Read, is_done, || {
            let content = self.done(self.volume.try_read_or_zeroes(offset_bytes, buf))?;
            Ok(content.map_or(Progress::WouldBlock, progress))
        })
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.timed(Operation::Read, is_done, || {
            self.done(self.volume.read_or_zeroes(offset_bytes, buf)).map(progress)
        })
    }

    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        self.check_writable()?;
        self.timed(Operation::Write, is_done, || {
            let done = self.done(self.volume.try_write(offset_bytes, data))?;
            Ok(if done { Progress::Done } else { Progress::WouldBlock })
        })
    }

    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), DeviceError> {
        self.check_writable()?;
        self.check_durable(fua)?;
        self.timed(Operation::Write, always, || self.done(self.volume.write(offset_bytes, data, fua)))
    }

    fn flush_key(&self) -> Option<u128> {
        // A loss is reported to each connection by a flush of its own. Otherwise the key is the open volume,
        // not its id: a reopened volume must not flush for connections to its predecessor.
        (!self.loss.is_pending()).then_some(Arc::as_ptr(&self.volume) as usize as u128)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.check_durable(true)?;
        self.timed(Operation::Flush, always, || self.done(self.volume.flush()))
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.check_writable()?;
        self.check_durable(fua)?;
        self.timed(Operation::Discard, always, || self.done(self.volume.trim(offset_bytes, len_bytes, fua)))
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        self.check_writable()?;
        let ZeroFlags { no_hole, fast, fua } = flags;
        self.check_durable(fua)?;
        self.timed(Operation::Discard, always, || {
            self.done(match fast {
                true => self.volume.write_zeroes_fast(offset_bytes, len_bytes, no_hole, fua),
                false => self.volume.write_zeroes(offset_bytes, len_bytes, no_hole, fua),
            })
        })
    }

    fn cache(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
        self.done(self.volume.prefetch(offset_bytes, len_bytes))
    }

    fn meta_contexts(&self) -> Vec<String> {
        contexts(&self.points)
    }

    fn block_status(
        &self,
        context: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        if context == BASE_ALLOCATION {
            let runs = self.done(self.volume.allocation(offset_bytes, len_bytes, max_extents))?;
            extents.extend(runs.into_iter().map(allocation_extent));
        } else {
            let since = snapshot_of(context, &self.points)?;
            let runs = self.done(self.volume.dirty_since(since, offset_bytes, len_bytes, max_extents))?;
            extents.extend(runs.into_iter().map(dirty_extent));
        }
        Ok(())
    }
}

/// Snapshot as seen by one connection. While it is open, the snapshot and its volume cannot be deleted.
struct SnapshotDevice {
    view: SnapshotView,
    older: Vec<SnapshotPoint>,
    attachment: Attachment,
}

impl BlockDevice for SnapshotDevice {
    fn may_be_remote(&self) -> bool {
        self.view.is_lazy()
    }

    fn source_key(&self) -> u128 {
        // The key of its volume, which has the same source.
        self.attachment.entry().id.as_u64().into()
    }

    fn prefetch_async(
        &self,
        access: nbd::Access,
        offset_bytes: u64,
        len_bytes: u64,
        then: OnFetched,
    ) -> Option<OnFetched> {
        prefetch_async(access, then, |access, then| match access {
            volume::Access::Read => self.view.on_fetched(offset_bytes, len_bytes, then),
            volume::Access::Write => Some(then),
        })
    }

    fn size_bytes(&self) -> u64 {
        self.view.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        let content = self.view.try_read(offset_bytes, buf).map_err(|error| device_error(&error))?;
        Ok(content.map_or(Progress::WouldBlock, progress))
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.view.read(offset_bytes, buf).map(progress).map_err(|error| device_error(&error))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn cache(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
        self.view.prefetch(offset_bytes, len_bytes).map_err(|error| device_error(&error))
    }

    fn meta_contexts(&self) -> Vec<String> {
        contexts(&self.older)
    }

    fn block_status(
        &self,
        context: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        if context == BASE_ALLOCATION {
            let runs = self.view.allocation(offset_bytes, len_bytes, max_extents);
            extents.extend(runs.map_err(|error| device_error(&error))?.into_iter().map(allocation_extent));
        } else {
            let since = snapshot_of(context, &self.older)?;
            let runs = self.view.dirty_since(since, offset_bytes, len_bytes, max_extents);
            extents.extend(runs.map_err(|error| device_error(&error))?.into_iter().map(dirty_extent));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_catalog::{SnapshotRow, SnapshotState, VolumeRow, VolumeState};
    use blockd_engine::volumes::registry::VolumeEntry;
    use blockd_extent::VolumeId;

    fn add(registry: &Registry, dir: &std::path::Path, number: u64, name: &str) -> Arc<VolumeEntry> {
        let id = VolumeId::from_u64(number);
        let row = VolumeRow {
            id,
            name: name.parse().unwrap(),
            size_bytes: 1 << 20,
            labels: Default::default(),
            created: jiff::Timestamp::UNIX_EPOCH,
            state: VolumeState::Up,
            read_only: false,
            group: None,
        };
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
        first.set_state(EntryState::Failed("its disk is gone".into()));
        let Err(ExportError::Unavailable { reason }) = exports.open("one", &Client::default()) else {
            panic!("a failed volume was served")
        };
        assert!(reason.contains("its disk is gone"), "{reason}");
        let names: Vec<_> = exports.list(&Client::default()).into_iter().map(|export| export.name).collect();
        assert_eq!(names, ["two"]);
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
        assert_eq!(
            (described("").as_ref(), described("two"), described("one@none")),
            (all.first(), None, None)
        );
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
        let names = |client: &Client| -> Vec<_> {
            exports.list(client).into_iter().map(|export| export.name).collect()
        };
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
        let this_hosts = [(); 3].map(|()| exports.open("one", &local).unwrap());
        drop((first, this_hosts));
        assert!(exports.open("one", &client("alice")).is_ok());
        assert!(exports.open("two", &client("bob")).is_ok(), "each volume has its own limit");
    }
}
