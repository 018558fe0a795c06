//! Reading a snapshot.

use crate::{
    error::VolumeError,
    read::plan,
    ring_reader::RingReader,
    stack::{Layer, Stack},
    volume::{Pins, Volume},
};
use blockd_extent::{Epoch, Extent, SnapshotId};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A snapshot that is open for reading; while it lives, its layers are not merged away.
pub struct SnapshotView {
    stack: Stack,
    epoch: Epoch,
    size_bytes: u64,
    blocks_read: AtomicU64,
    /// Rings that no read is using.
    rings: Mutex<Vec<RingReader>>,
    pins: Arc<Pins>,
}

impl Volume {
    /// Opens a snapshot for reading.
    ///
    /// # Errors
    /// If there is no such snapshot.
    pub fn view(&self, snapshot: SnapshotId) -> Result<SnapshotView, VolumeError> {
        let admin = self.admin.lock();
        let epoch = self.find_snapshot(&admin, snapshot)?.epoch;
        // Under `admin`, so that no merge chooses the layer before the pin is there.
        *self.pins.0.lock().entry(epoch).or_insert(0) += 1;
        let layers: Vec<Layer> =
            self.current().layers.iter().filter(|layer| layer.epoch() <= epoch).cloned().collect();
        Ok(SnapshotView {
            stack: Stack { layers },
            epoch,
            size_bytes: self.size_bytes,
            blocks_read: AtomicU64::new(0),
            rings: Mutex::default(),
            pins: self.pins.clone(),
        })
    }
}

impl SnapshotView {
    /// The size of the volume, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The last epoch whose writes are in the snapshot.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many blocks were asked for since the view was opened.
    pub fn blocks_read(&self) -> u64 {
        self.blocks_read.load(Ordering::Relaxed)
    }

    /// Fills `buf` with the content of the extents, one after the other. Many reads are under way at once, through
    /// io_uring, so one call with many extents is better than many calls.
    ///
    /// # Errors
    /// If `buf` is not exactly as long as the extents, an extent lies outside of the volume, or the disk fails.
    pub fn read_extents(&self, extents: &[Extent], buf: &mut [u8]) -> Result<(), VolumeError> {
        let end_block = Extent::whole(self.size_bytes).end();
        let inside = |extent: &Extent| {
            extent.start.0.checked_add(extent.len_blocks).is_some_and(|end| end <= end_block.0)
        };
        if !extents.iter().all(inside) {
            return Err(VolumeError::InvalidInput("an extent lies outside of the volume".into()));
        }
        let wanted: u64 = extents.iter().map(|extent| extent.len_bytes()).sum();
        if wanted != buf.len() as u64 {
            let message = format!("the buffer has {} bytes, the extents have {wanted}", buf.len());
            return Err(VolumeError::InvalidInput(message));
        }
        let pieces = plan(&self.stack, extents, buf)?;
        let idle = self.rings.lock().pop();
        let mut ring = match idle {
            Some(ring) => ring,
            None => RingReader::new(),
        };
        let result = ring.read(&pieces, buf);
        self.rings.lock().push(ring);
        self.blocks_read.fetch_add(wanted / blockd_extent::BLOCK_SIZE_BYTES, Ordering::Relaxed);
        result
    }
}

impl Drop for SnapshotView {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock();
        if let Some(count) = pins.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.epoch);
            }
        }
    }
}
