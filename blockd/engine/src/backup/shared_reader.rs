//! Reader of a frozen snapshot for several backups: one reads from disk, the others get the data from memory
//! while they keep up.

use crate::volume_io::to_io;
use blockd_extent::{BlockSource, Extent, SnapshotId};
use blockd_volume::{Content, SnapshotView, VolumeError};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
};

/// Maximum number of shared reads, of up to 4 MiB each.
const MAX_KEPT: usize = 16;

/// Snapshots with readers.
#[derive(Default)]
pub struct Readers {
    open: Mutex<HashMap<SnapshotId, (usize, Arc<SharedView>)>>,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").field("open", &self.open.lock().len()).finish()
    }
}

/// Data of a read, once it is complete.
type Filled = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

struct SharedView {
    size_bytes: u64,
    /// Dropped with the last backup, not with the last thread.
    view: RwLock<Option<SnapshotView>>,
    kept: Mutex<VecDeque<(Vec<Extent>, Filled)>>,
}

/// Reader of one backup.
pub(crate) struct SharedReader {
    readers: Arc<Readers>,
    snapshot: SnapshotId,
    point: Arc<SharedView>,
}

impl Readers {
    /// Opens a snapshot, or joins its readers.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn join(
        self: &Arc<Self>,
        snapshot: SnapshotId,
        open: impl FnOnce() -> Result<SnapshotView, VolumeError>,
    ) -> Result<SharedReader, VolumeError> {
        let mut all = self.open.lock();
        let point = match all.get_mut(&snapshot) {
            Some((users, point)) => {
                *users += 1;
                Arc::clone(point)
            }
            None => {
                let (view, kept) = (open()?, Mutex::default());
                let size_bytes = view.size_bytes();
                let point = Arc::new(SharedView { size_bytes, view: RwLock::new(Some(view)), kept });
                all.insert(snapshot, (1, Arc::clone(&point)));
                point
            }
        };
        Ok(SharedReader { readers: Arc::clone(self), snapshot, point })
    }

    fn is_shared(&self, snapshot: SnapshotId) -> bool {
        self.open.lock().get(&snapshot).is_some_and(|(users, _)| *users > 1)
    }
}

impl SharedReader {
    /// Closes this reader; the last one closes the snapshot.
    pub(crate) fn close(&self) {
        let mut all = self.readers.open.lock();
        let Some((users, _)) = all.get_mut(&self.snapshot) else { return };
        *users -= 1;
        if *users == 1 {
            // The last reader reads directly.
            self.point.kept.lock().clear();
        }
        if *users == 0 {
            all.remove(&self.snapshot);
            drop(all);
            *self.point.view.write() = None;
            self.point.kept.lock().clear();
        }
    }
}

impl SharedView {
    fn read<T>(&self, read: impl FnOnce(&SnapshotView) -> Result<T, VolumeError>) -> io::Result<T> {
        let view = self.view.read();
        let view = view.as_ref().ok_or_else(|| io::Error::other("the backup has ended"))?;
        read(view).map_err(to_io)
    }

    /// Returns the slot that shares the read of these extents; the first reader that locks it fills it.
    fn slot(&self, extents: &[Extent]) -> Filled {
        let mut kept = self.kept.lock();
        if let Some((_, filled)) = kept.iter().find(|(other, _)| other == extents) {
            return Arc::clone(filled);
        }
        let filled = Filled::default();
        kept.push_back((extents.to_vec(), Arc::clone(&filled)));
        if kept.len() > MAX_KEPT {
            kept.pop_front();
        }
        filled
    }
}

impl BlockSource for SharedReader {
    fn size_bytes(&self) -> u64 {
        self.point.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.point.read(|view| view.read(offset_bytes, buf))? == Content::Zeroes {
            buf.fill(0);
        }
        Ok(())
    }

    fn may_wait(&self) -> bool {
        self.point.view.read().as_ref().is_some_and(SnapshotView::is_lazy)
    }

    fn read_extents(&self, extents: &[Extent], buf: &mut [u8]) -> io::Result<()> {
        if !self.readers.is_shared(self.snapshot) {
            return self.point.read(|view| view.read_extents(extents, buf));
        }
        let slot = self.point.slot(extents);
        // Readers that arrive during the read wait here.
        let mut filled = slot.lock();
        match &*filled {
            Some(bytes) if bytes.len() == buf.len() => buf.copy_from_slice(bytes),
            _ => {
                self.point.read(|view| view.read_extents(extents, buf))?;
                *filled = Some(Arc::new(buf.to_vec()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{BlockIndex, VolumeId};
    use blockd_volume::Volume;

    #[test]
    fn shared_reader_reads_once_and_closes_with_the_last_user() {
        let folder = tempfile::tempdir().unwrap();
        let volume = Volume::create(&folder.path().join("1"), VolumeId::from_u64(1), 1 << 20).unwrap();
        volume.write(0, &[7; 8192], false).unwrap();
        let snapshot = SnapshotId::from_u64(5);
        volume.freeze(snapshot).unwrap();
        let readers = Arc::new(Readers::default());
        let one = readers.join(snapshot, || volume.view(snapshot)).unwrap();
        let two = readers.join(snapshot, || panic!("it is open")).unwrap();
        let extents = [Extent::new(BlockIndex(0), 2)];
        let mut buf = vec![0; 8192];
        one.read_extents(&extents, &mut buf).unwrap();
        assert_eq!(buf, [7; 8192]);
        // Checked by removing the source.
        *one.point.view.write() = None;
        buf.fill(0);
        two.read_extents(&extents, &mut buf).unwrap();
        assert_eq!(buf, [7; 8192]);
        assert!(two.read_extents(&[Extent::new(BlockIndex(9), 2)], &mut buf).is_err());
        *one.point.view.write() = Some(volume.view(snapshot).unwrap());
        one.close();
        two.read_extents(&[Extent::new(BlockIndex(1), 1)], &mut buf[..4096]).unwrap();
        two.close();
        assert!(two.read_extents(&extents, &mut buf).is_err());
        volume.delete_snapshot(snapshot).unwrap();
    }
}
