//! Comparison of restored content with the volume, for blocks that did not change since.

use crate::error::to_io;
use blockd_cloud::BlockCheck;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use blockd_volume::{Changes, SnapshotView};
use parking_lot::{Mutex, RwLock};
use std::io;

/// Blocks per comparison.
const CHUNK_BLOCKS: u64 = 256;

/// Snapshot of a volume and its blocks that are unchanged since the backup.
pub(crate) struct DiffBase {
    view: RwLock<Option<SnapshotView>>,
    unchanged: BlockSet,
    /// Blocks that may hold data.
    data: BlockSet,
    seen: Mutex<Comparison>,
}

/// Result of a comparison.
#[derive(Default, Debug)]
pub(crate) struct Comparison {
    /// Blocks that the verification has passed to [`BlockCheck::blocks`].
    delivered: BlockSet,
    /// Differing blocks.
    pub(crate) differing: BlockSet,
    /// Number of compared blocks.
    pub(crate) compared_blocks: u64,
}

impl DiffBase {
    /// Creates a comparison with `view`; `since` are the changes since the backup, `all` those since the
    /// volume's creation.
    pub(crate) fn new(view: SnapshotView, since: &Changes, all: Changes, size_bytes: u64) -> Self {
        let mut unchanged = BlockSet::from_iter([Extent::whole(size_bytes.min(view.size_bytes()))]);
        unchanged.subtract(&since.data);
        unchanged.subtract(&since.zero);
        Self { view: RwLock::new(Some(view)), unchanged, data: all.data, seen: Mutex::default() }
    }

    fn compare(&self, extent: Extent, expected: impl Fn(usize) -> Option<u8>) -> io::Result<()> {
        let mut own = vec![0; extent.len_bytes() as usize];
        {
            let view = self.view.read();
            let view = view.as_ref().ok_or_else(|| io::Error::other("the verification has ended"))?;
            view.read_extents(&[extent], &mut own).map_err(to_io)?;
        }
        let mut seen = self.seen.lock();
        seen.compared_blocks += extent.len_blocks;
        for (n, block) in own.chunks(BLOCK_SIZE_BYTES as usize).enumerate() {
            let from = n * BLOCK_SIZE_BYTES as usize;
            let differs =
                block.iter().enumerate().any(|(at, byte)| expected(from + at).unwrap_or(0) != *byte);
            if differs {
                seen.differing.insert(BlockIndex(extent.start.0 + n as u64));
            }
        }
        Ok(())
    }

    /// Compares the remaining blocks, which are zero in the backup, and closes the view.
    ///
    /// # Errors
    /// The volume cannot be read.
    pub(crate) fn finish(&self) -> io::Result<Comparison> {
        let mut rest = self.unchanged.clone();
        rest.intersect_with(&self.data);
        rest.subtract(&self.seen.lock().delivered);
        for extent in rest.extents() {
            let mut at = extent.start.0;
            while at < extent.end().0 {
                let len = (extent.end().0 - at).min(CHUNK_BLOCKS);
                self.compare(Extent::new(BlockIndex(at), len), |_| None)?;
                at += len;
            }
        }
        *self.view.write() = None;
        Ok(std::mem::take(&mut *self.seen.lock()))
    }
}

impl BlockCheck for DiffBase {
    fn blocks(&self, start: BlockIndex, data: &[u8]) -> io::Result<()> {
        let whole = Extent::new(start, data.len() as u64 / BLOCK_SIZE_BYTES);
        self.seen.lock().delivered.insert_extent(whole);
        for extent in self.unchanged.extents_in(whole) {
            let from = ((extent.start.0 - start.0) * BLOCK_SIZE_BYTES) as usize;
            self.compare(extent, |at| data.get(from + at).copied())?;
        }
        Ok(())
    }
}
