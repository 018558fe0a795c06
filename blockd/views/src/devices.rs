//! Volumes and their snapshots as block devices of one connection.

use blockd_engine::{
    metrics::Operation,
    volumes::{
        discarded::UnreportedLoss,
        registry::{ClientGuard, SnapshotPoint, VolumeEntry},
    },
};
use blockd_extent::SnapshotId;
use blockd_nbd::{
    self as nbd, BlockDevice, DeviceError, DeviceErrorKind, OnFetched, Progress, StatusExtent, ZeroFlags,
    constants::{BASE_ALLOCATION, DIRTY_BITMAP_PREFIX, STATE_DIRTY, STATE_HOLE, STATE_ZERO},
};
use blockd_volume::{
    self as volume, Allocation, AllocationExtent, Content, DirtyExtent, SnapshotView, Volume, VolumeError,
    VolumeErrorKind,
};
use parking_lot::Mutex;
use std::{sync::Arc, time::Instant};

fn device_error(error: &VolumeError) -> DeviceError {
    let kind = match error.kind() {
        // Bitmaps end with the snapshot or the block sets that they need.
        VolumeErrorKind::InvalidInput | VolumeErrorKind::NotFound | VolumeErrorKind::IntervalsGone => {
            DeviceErrorKind::InvalidInput
        }
        VolumeErrorKind::NoSpace => DeviceErrorKind::NoSpace,
        VolumeErrorKind::Closed => DeviceErrorKind::Shutdown,
        VolumeErrorKind::Io
        | VolumeErrorKind::Damaged
        | VolumeErrorKind::Busy
        | VolumeErrorKind::Failed
        | VolumeErrorKind::Unsupported
        | VolumeErrorKind::NotFetched => DeviceErrorKind::Io,
    };
    DeviceError::new(kind, error.to_string())
}

/// Converts the error of a fast zeroing, the only request that a client expects to be unsupported.
fn fast_zero_error(error: &VolumeError) -> DeviceError {
    match error.kind() {
        VolumeErrorKind::Unsupported => DeviceError::new(DeviceErrorKind::NotSupported, error.to_string()),
        _ => device_error(error),
    }
}

fn done<T>(result: Result<T, VolumeError>) -> Result<T, DeviceError> {
    result.map_err(|error| device_error(&error))
}

pub(crate) fn progress(content: Content) -> Progress {
    match content {
        Content::Data => Progress::Done,
        Content::Zeroes => Progress::Zeroes,
    }
}

pub(crate) fn allocation_extent(extent: AllocationExtent) -> StatusExtent {
    let flags = match extent.allocation {
        Allocation::Data => 0,
        Allocation::Hole => STATE_HOLE | STATE_ZERO,
        Allocation::Zero => STATE_ZERO,
    };
    StatusExtent { len_bytes: extent.len_bytes, flags }
}

fn dirty_extent(extent: DirtyExtent) -> StatusExtent {
    StatusExtent { len_bytes: extent.len_bytes, flags: if extent.dirty { STATE_DIRTY } else { 0 } }
}

pub(crate) fn contexts(points: &[SnapshotPoint]) -> Vec<String> {
    let bitmaps = points.iter().map(|point| format!("{DIRTY_BITMAP_PREFIX}{}", point.name));
    std::iter::once(BASE_ALLOCATION.to_owned()).chain(bitmaps).collect()
}

/// Returns the base snapshot of a dirty bitmap context, among the snapshots at the time of the connection.
pub(crate) fn snapshot_of(context: &str, points: &[SnapshotPoint]) -> Result<SnapshotId, DeviceError> {
    let name = context.strip_prefix(DIRTY_BITMAP_PREFIX);
    let point = name.and_then(|name| points.iter().find(|point| point.name.as_str() == name));
    point.map(|point| point.id).ok_or_else(|| {
        let message = format!("block status failed on {context}: the export has no such metadata context");
        DeviceError::new(DeviceErrorKind::InvalidInput, message)
    })
}

/// Volume as seen by one connection.
pub(crate) struct VolumeDevice {
    pub(crate) volume: Arc<Volume>,
    /// Snapshots at the time of the connection. If a name is deleted and reused for a later snapshot, the
    /// bitmap must not follow it: the blocks written in between would be reported clean.
    pub(crate) points: Arc<Vec<SnapshotPoint>>,
    pub(crate) guard: ClientGuard,
    pub(crate) loss: UnreportedLoss,
}

impl VolumeDevice {
    fn entry(&self) -> &VolumeEntry {
        self.guard.entry()
    }

    /// Counts a request as in flight while it runs, and records its latency and error if it has ended.
    fn execute<T>(
        &self,
        operation: Operation,
        is_done: impl FnOnce(&T) -> bool,
        work: impl FnOnce() -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let start = Instant::now();
        let in_flight = self.entry().traffic.begin(operation);
        let result = work();
        drop(in_flight);
        if let Err(error) = &result {
            self.entry().traffic.note_failure(operation, error.kind());
        }
        if result.as_ref().map_or(true, is_done) {
            self.entry().traffic.note(operation, start);
        }
        result
    }

    /// Fails a flush or FUA request if a data loss has not been reported to the client yet.
    fn check_durable(&self, is_durable: bool) -> Result<(), DeviceError> {
        if is_durable { self.loss.report(&self.volume) } else { Ok(()) }
    }

    /// Refuses writes to a read-only volume, also for clients that connected while it was writable.
    fn check_writable(&self) -> Result<(), DeviceError> {
        if !self.entry().is_read_only() {
            return Ok(());
        }
        let message = format!("write failed on volume {}: the volume is read-only", self.entry().name);
        Err(DeviceError::new(DeviceErrorKind::Permission, message))
    }
}

fn is_done(progress: &Progress) -> bool {
    *progress != Progress::WouldBlock
}

fn always(_: &()) -> bool {
    true
}

/// Starts fetching the missing blocks of a request; `fetch` calls the volume or the snapshot, and a failure
/// ends the request. Returns the callback if no block is missing.
fn prefetch_async(
    access: nbd::Access,
    then: OnFetched,
    note_failure: impl FnOnce(DeviceErrorKind) + Send + 'static,
    fetch: impl FnOnce(volume::Access, volume::OnFetched) -> Option<volume::OnFetched>,
) -> Option<OnFetched> {
    let access = match access {
        nbd::Access::Read => volume::Access::Read,
        nbd::Access::Write => volume::Access::Write,
        // The maps of a volume's layers are local.
        nbd::Access::Status => return Some(then),
    };
    let then = Arc::new(Mutex::new(Some(then)));
    let shared = Arc::clone(&then);
    let on_fetched = move |result: Result<(), VolumeError>| {
        let result = done(result);
        if let Err(error) = &result {
            note_failure(error.kind());
        }
        if let Some(then) = shared.lock().take() {
            then(result);
        }
    };
    // `fetch` returns the wrapper; the caller gets its own callback.
    fetch(access, Box::new(on_fetched)).and_then(|_| then.lock().take())
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
        let entry = Arc::clone(self.guard.entry());
        let operation = if access == nbd::Access::Write { Operation::Write } else { Operation::Read };
        let note_failure = move |kind| entry.traffic.note_failure(operation, kind);
        prefetch_async(access, then, note_failure, |access, then| {
            self.volume.prefetch_async(access, offset_bytes, len_bytes, then)
        })
    }

    fn size_bytes(&self) -> u64 {
        self.volume.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.entry().is_read_only()
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.execute(Operation::Read, is_done, || {
            let content = done(self.volume.try_read_or_zeroes(offset_bytes, buf))?;
            Ok(content.map_or(Progress::WouldBlock, progress))
        })
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.execute(Operation::Read, is_done, || {
            done(self.volume.read_or_zeroes(offset_bytes, buf)).map(progress)
        })
    }

    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        self.execute(Operation::Write, is_done, || {
            self.check_writable()?;
            let done = done(self.volume.try_write(offset_bytes, data))?;
            Ok(if done { Progress::Done } else { Progress::WouldBlock })
        })
    }

    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), DeviceError> {
        self.execute(Operation::Write, always, || {
            self.check_writable()?;
            self.check_durable(fua)?;
            done(self.volume.write(offset_bytes, data, fua))
        })
    }

    fn flush_key(&self) -> Option<u128> {
        // A pending loss is reported to each connection by a separate flush. The key is the address of the
        // open volume, not its id: a flush of a reopened volume does not cover connections to its
        // predecessor.
        (!self.loss.is_pending()).then_some(Arc::as_ptr(&self.volume) as usize as u128)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.execute(Operation::Flush, always, || {
            self.check_durable(true)?;
            done(self.volume.flush())
        })
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.execute(Operation::Discard, always, || {
            self.check_writable()?;
            self.check_durable(fua)?;
            done(self.volume.trim(offset_bytes, len_bytes, fua))
        })
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        let ZeroFlags { no_hole, fast, fua } = flags;
        self.execute(Operation::Discard, always, || {
            self.check_writable()?;
            self.check_durable(fua)?;
            if fast {
                let zeroed = self.volume.write_zeroes_fast(offset_bytes, len_bytes, no_hole, fua);
                zeroed.map_err(|error| fast_zero_error(&error))
            } else {
                done(self.volume.write_zeroes(offset_bytes, len_bytes, no_hole, fua))
            }
        })
    }

    fn cache(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
        done(self.volume.will_need(offset_bytes, len_bytes))
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
            let found = done(self.volume.allocation(offset_bytes, len_bytes, max_extents))?;
            extents.extend(found.into_iter().map(allocation_extent));
        } else {
            let since = snapshot_of(context, &self.points)?;
            let found = done(self.volume.dirty_since(since, offset_bytes, len_bytes, max_extents))?;
            extents.extend(found.into_iter().map(dirty_extent));
        }
        Ok(())
    }
}

/// Snapshot as seen by one connection. While it is open, the snapshot and its volume cannot be deleted.
pub(crate) struct SnapshotDevice {
    pub(crate) view: SnapshotView,
    pub(crate) older: Vec<SnapshotPoint>,
    pub(crate) guard: ClientGuard,
}

impl BlockDevice for SnapshotDevice {
    fn may_be_remote(&self) -> bool {
        self.view.is_lazy()
    }

    fn source_key(&self) -> u128 {
        // The key of its volume, which has the same source.
        self.guard.entry().id.as_u64().into()
    }

    fn prefetch_async(
        &self,
        access: nbd::Access,
        offset_bytes: u64,
        len_bytes: u64,
        then: OnFetched,
    ) -> Option<OnFetched> {
        prefetch_async(
            access,
            then,
            |_| {},
            |access, then| match access {
                volume::Access::Read => self.view.prefetch_async(offset_bytes, len_bytes, then),
                volume::Access::Write => Some(then),
            },
        )
    }

    fn size_bytes(&self) -> u64 {
        self.view.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        let content = done(self.view.try_read(offset_bytes, buf))?;
        Ok(content.map_or(Progress::WouldBlock, progress))
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        done(self.view.read(offset_bytes, buf)).map(progress)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn cache(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
        done(self.view.will_need(offset_bytes, len_bytes))
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
            let found = self.view.allocation(offset_bytes, len_bytes, max_extents);
            extents.extend(done(found)?.into_iter().map(allocation_extent));
        } else {
            let since = snapshot_of(context, &self.older)?;
            let found = self.view.dirty_since(since, offset_bytes, len_bytes, max_extents);
            extents.extend(done(found)?.into_iter().map(dirty_extent));
        }
        Ok(())
    }
}
