//! Comparison of restored content with the volume, for blocks that did not change since.

use crate::volume_io::to_io;
use blockd_cloud::BlockCheck;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use blockd_volume::{Changes, SnapshotView, VolumeErrorKind};
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
    /// Blocks of the volume that the disk altered: they do not match their checksums and are not compared.
    pub(crate) altered: BlockSet,
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

    /// Compares an extent with its expected bytes, by offset in the volume.
    fn compare<F: Fn(u64) -> Option<u8>>(&self, extent: Extent, expected: &F) -> io::Result<()> {
        let mut own = vec![0; extent.len_bytes() as usize];
        let read = match self.view.read().as_ref() {
            Some(view) => view.read_extents(&[extent], &mut own),
            None => return Err(io::Error::other("the verification has ended")),
        };
        match read {
            Err(error) if error.kind() == VolumeErrorKind::Damaged => {
                return self.compare_around_damage(extent, expected);
            }
            other => other.map_err(to_io)?,
        }
        let mut seen = self.seen.lock();
        seen.compared_blocks += extent.len_blocks;
        for (block, content) in (extent.start.0..).zip(own.chunks(BLOCK_SIZE_BYTES as usize)) {
            let offset_bytes = block * BLOCK_SIZE_BYTES;
            if (offset_bytes..).zip(content).any(|(at, byte)| expected(at).unwrap_or(0) != *byte) {
                seen.differing.insert(BlockIndex(block));
            }
        }
        Ok(())
    }

    /// Compares the blocks of an extent except the altered ones, which it finds by halving.
    fn compare_around_damage<F: Fn(u64) -> Option<u8>>(
        &self,
        extent: Extent,
        expected: &F,
    ) -> io::Result<()> {
        if extent.len_blocks == 1 {
            self.seen.lock().altered.insert(extent.start);
            return Ok(());
        }
        let middle = BlockIndex(extent.start.0 + extent.len_blocks / 2);
        self.compare(Extent::between(extent.start, middle), expected)?;
        self.compare(Extent::between(middle, extent.end()), expected)
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
                self.compare(Extent::new(BlockIndex(at), len), &|_| None)?;
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
        let expected = |at| data.get((at - whole.offset_bytes()) as usize).copied();
        for extent in self.unchanged.extents_in(whole) {
            self.compare(extent, &expected)?;
        }
        Ok(())
    }
}
