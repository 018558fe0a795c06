//! Snapshot views: read access to a snapshot.

use crate::{
    error::{VolumeError, check_range},
    io::ring_reader::RingReader,
    layer::data::LayerData,
    layer::stack::{Layer, Stack},
    layer::sums::sum_of,
    read::{Content, ReadPart, Start, from_disk, from_memory, plan_reads, read_stack},
    volume::{OpenViews, Volume},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Epoch, Extent, SnapshotId, VolumeId};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Data of a layer, and the checksums of blocks that were read from it.
type LayerSums<'a> = (&'a LayerData, Vec<(BlockIndex, u32)>);

/// Snapshot open for reading; keeps its layers from merges until dropped.
pub struct SnapshotView {
    pub(crate) stack: Stack,
    pub(crate) volume: VolumeId,
    epoch: Epoch,
    /// Snapshots up to this one when the view was opened.
    pub(crate) points: Vec<(SnapshotId, Epoch)>,
    size_bytes: u64,
    blocks_read: AtomicU64,
    /// Idle readers.
    rings: Mutex<Vec<RingReader>>,
    open_views: Arc<OpenViews>,
}

impl Volume {
    /// Opens a snapshot for reading.
    ///
    /// # Errors
    /// The snapshot does not exist.
    pub fn view(&self, snapshot: SnapshotId) -> Result<SnapshotView, VolumeError> {
        let admin = self.admin.lock();
        let epoch = self.find_snapshot(&admin, snapshot)?.epoch;
        // Under `admin`, so that no merge selects the layer before the view is counted.
        *self.open_views.0.lock().entry(epoch).or_insert(0) += 1;
        let current = self.current();
        let layers: Vec<Layer> =
            current.layers().iter().filter(|layer| layer.epoch() <= epoch).cloned().collect();
        // The topmost layer has the size of the snapshot; the volume may have grown since.
        assert!(layers.first().is_some_and(|top| top.epoch() == epoch), "a snapshot has its own layer");
        let size_bytes = layers.first().map_or(0, Layer::size_bytes);
        for layer in &layers {
            if let Layer::Frozen(layer) = layer {
                layer.sums(&self.dir, self.id);
            }
        }
        let points = admin.snapshots.iter().map(|entry| (entry.id, entry.epoch));
        Ok(SnapshotView {
            volume: self.id,
            points: points.filter(|point| point.1 <= epoch).collect(),
            stack: Stack::new(layers, &current),
            epoch,
            size_bytes,
            blocks_read: AtomicU64::new(0),
            rings: Mutex::default(),
            open_views: self.open_views.clone(),
        })
    }
}

impl SnapshotView {
    /// Returns the size of the snapshot, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the last epoch of the snapshot.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the number of blocks requested by [`read_extents`](Self::read_extents).
    pub fn blocks_read(&self) -> u64 {
        self.blocks_read.load(Ordering::Relaxed)
    }

    /// Reads at `offset_bytes`, any alignment, into `buf`; leaves `buf` unchanged for a range without data.
    ///
    /// # Errors
    /// The range is not inside the snapshot, or the disk fails.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Content, VolumeError> {
        self.check_range(offset_bytes, buf.len() as u64)?;
        let content = read_stack(&self.stack, Start::Top, offset_bytes, buf, from_disk)?;
        Ok(content.unwrap_or(Content::Data))
    }

    /// Reads like [`read`](Self::read), from memory only. Returns `None`, with `buf` in an unspecified state,
    /// if disk I/O or a fetch is needed.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Option<Content>, VolumeError> {
        self.check_range(offset_bytes, buf.len() as u64)?;
        read_stack(&self.stack, Start::Top, offset_bytes, buf, from_memory)
    }

    pub(crate) fn check_range(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        check_range(offset_bytes, len_bytes, self.size_bytes)
    }

    /// Reads extents concurrently through io_uring, stored consecutively in `buf`. One call with many extents
    /// is faster than many calls. Each block is compared with its checksum, which its first read stores.
    ///
    /// # Errors
    /// `buf` is not exactly as long as the extents, an extent is outside of the snapshot, the disk fails, or
    /// a block is damaged ([`VolumeError::DamagedBlocks`]).
    pub fn read_extents(&self, extents: &[Extent], buf: &mut [u8]) -> Result<(), VolumeError> {
        let end_block = Extent::whole(self.size_bytes).end();
        let inside = |extent: &Extent| {
            extent.start.0.checked_add(extent.len_blocks).is_some_and(|end| end <= end_block.0)
        };
        if !extents.iter().all(inside) {
            return Err(VolumeError::InvalidInput(
                "read failed: an extent is outside of the snapshot".into(),
            ));
        }
        let wanted: u64 = extents.iter().map(|extent| extent.len_bytes()).sum();
        if wanted != buf.len() as u64 {
            let message =
                format!("read failed: buffer has {} bytes for extents of {wanted} bytes", buf.len());
            return Err(VolumeError::InvalidInput(message));
        }
        let parts = plan_reads(&self.stack, extents, buf)?;
        debug_assert!(parts.is_sorted_by(|a, b| a.at + a.len_bytes <= b.at), "reads do not overlap");
        for part in &parts {
            part.data.fetch_extents(part.offset_bytes, part.len_bytes as u64)?;
        }
        let idle = self.rings.lock().pop();
        let mut ring = idle.unwrap_or_else(RingReader::new);
        let result = ring.read(&parts, buf);
        self.rings.lock().push(ring);
        self.blocks_read.fetch_add(wanted / BLOCK_SIZE_BYTES, Ordering::Relaxed);
        result?;
        self.check_sums(&parts, buf)
    }

    /// Compares the blocks of completed reads with their checksums.
    fn check_sums(&self, parts: &[ReadPart], buf: &[u8]) -> Result<(), VolumeError> {
        let mut by_layer: HashMap<*const LayerData, LayerSums<'_>> = HashMap::new();
        for part in parts {
            let data: &LayerData = &part.data;
            // After a failed sync, a lazy base may lose a block that was read, and fetch it again.
            if data.lazy().is_some() {
                continue;
            }
            let (_, blocks) = by_layer.entry(data).or_insert_with(|| (data, Vec::new()));
            let read = buf[part.at..][..part.len_bytes].chunks_exact(BLOCK_SIZE_BYTES as usize);
            blocks.extend((part.offset_bytes / BLOCK_SIZE_BYTES..).map(BlockIndex).zip(read.map(sum_of)));
        }
        let mut damaged = Vec::new();
        for (data, mut blocks) in by_layer.into_values() {
            blocks.sort_unstable();
            damaged.extend(data.sums().map(|sums| sums.check(&blocks)).unwrap_or_default());
        }
        match damaged.iter().min() {
            None => Ok(()),
            Some(&first) => Err(VolumeError::DamagedBlocks {
                volume: self.volume,
                first,
                len_blocks: damaged.len() as u64,
            }),
        }
    }
}

impl Drop for SnapshotView {
    fn drop(&mut self) {
        let mut open_views = self.open_views.0.lock();
        if let Some(count) = open_views.get_mut(&self.epoch) {
            assert!(*count > 0, "an open view is counted");
            *count -= 1;
            if *count == 0 {
                open_views.remove(&self.epoch);
            }
        }
    }
}
