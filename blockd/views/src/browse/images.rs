//! Snapshots of local volumes as images.

use blockd_engine::volumes::registry::{ClientGuard, VolumeEntry};
use blockd_extent::{BlockSource, DataRange, SnapshotId, VolumeId};
use blockd_volume::{Allocation, Content, SnapshotView, VolumeError, VolumeErrorKind};
use parking_lot::Mutex;
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Idle time after which a local snapshot is closed. A deletion of the snapshot or its volume closes an idle
/// one at once; a read in flight refuses the deletion.
pub(super) const IDLE: Duration = Duration::from_secs(2);

/// Open snapshot, with the connection that prevents the deletion of its volume.
struct OpenView {
    view: SnapshotView,
    _guard: ClientGuard,
}

/// Image of a local volume's snapshot, open only while it is read.
pub struct LocalImage {
    entry: Arc<VolumeEntry>,
    snapshot: SnapshotId,
    size_bytes: u64,
    open: Mutex<Option<(Arc<OpenView>, Instant)>>,
}

fn volume_error(error: &VolumeError) -> io::Error {
    let kind = match error.kind() {
        VolumeErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
        VolumeErrorKind::NotFound => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error.to_string())
}

impl LocalImage {
    pub fn new(entry: Arc<VolumeEntry>, snapshot: SnapshotId, size_bytes: u64) -> Self {
        Self { entry, snapshot, size_bytes, open: Mutex::new(None) }
    }

    pub fn volume(&self) -> VolumeId {
        self.entry.id
    }

    /// Closes the snapshot if it has been idle for `idle` and has no read in flight.
    pub fn close(&self, idle: Duration) {
        let mut open = self.open.lock();
        let is_idle =
            |(view, used): &(Arc<OpenView>, Instant)| Arc::strong_count(view) == 1 && used.elapsed() >= idle;
        if open.as_ref().is_some_and(is_idle) {
            *open = None;
        }
    }

    fn view(&self) -> io::Result<Arc<OpenView>> {
        let mut open = self.open.lock();
        if let Some((view, used)) = &mut *open {
            *used = Instant::now();
            return Ok(Arc::clone(view));
        }
        let (volume, guard) = self.entry.connect().map_err(|error| io::Error::other(error.message))?;
        let view = volume.view(self.snapshot).map_err(|error| volume_error(&error))?;
        let view = Arc::new(OpenView { view, _guard: guard });
        *open = Some((Arc::clone(&view), Instant::now()));
        Ok(view)
    }
}

impl BlockSource for LocalImage {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.view()?.view.read(offset_bytes, buf).map_err(|error| volume_error(&error))? == Content::Zeroes
        {
            buf.fill(0);
        }
        Ok(())
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<bool> {
        let read = self.view()?.view.try_read(offset_bytes, buf).map_err(|error| volume_error(&error))?;
        if read == Some(Content::Zeroes) {
            buf.fill(0);
        }
        Ok(read.is_some())
    }

    fn range_at(&self, offset_bytes: u64) -> io::Result<DataRange> {
        let len_bytes = self.size_bytes - offset_bytes;
        let extents = self.view()?.view.allocation(offset_bytes, len_bytes, 1);
        match extents.map_err(|error| volume_error(&error))?.first() {
            Some(extent) => Ok(DataRange {
                is_data: extent.allocation == Allocation::Data,
                end_bytes: offset_bytes + extent.len_bytes,
            }),
            None => Ok(DataRange { is_data: true, end_bytes: self.size_bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::browser::Browse;
    use super::*;
    use blockd_catalog::VolumeRow;
    use blockd_engine::{readers::SnapshotReaders, volumes::registry::EntryState};
    use blockd_volume::Volume;

    #[test]
    fn deletion_closes_an_idle_image_and_is_refused_during_a_read() {
        let dir = tempfile::tempdir().unwrap();
        let (id, snapshot) = (VolumeId::from_u64(1), SnapshotId::from_u64(2));
        let row = VolumeRow::new(id, "data".parse().unwrap(), 1 << 20);
        let volume = Volume::create(&dir.path().join("data"), id, 1 << 20).unwrap();
        volume.freeze(snapshot).unwrap();
        let entry = VolumeEntry::new(&row, EntryState::Up(volume));
        let image = Arc::new(LocalImage::new(Arc::clone(&entry), snapshot, 1 << 20));
        let browse = Browse::default();
        browse.local.lock().push(Arc::downgrade(&image));
        image.read_at(0, &mut [0; 4096]).unwrap();
        let in_flight = image.view().unwrap();
        // As a deletion does.
        browse.release(id);
        assert!(entry.begin_delete().err().unwrap().message.contains("1 NBD connection or browse read:"));
        drop(in_flight);
        assert!(entry.begin_delete().is_err(), "the idle image is open");
        browse.release(id);
        assert!(entry.begin_delete().is_ok());
    }
}
