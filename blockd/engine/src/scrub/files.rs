//! Names of files with damaged blocks of layers: those of the first snapshot that has the blocks, or those of
//! the volume.

use crate::damaged_files::files_with;
use blockd_api::browse::FilePath;
use blockd_cloud::CancelToken;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent, SnapshotId};
use blockd_volume::{Content, SnapshotView, Volume, VolumeError};
use std::{io, sync::Arc};

/// Maximum number of damaged blocks whose files are searched.
const MAX_BLOCKS: usize = 4096;

/// Point in time of a volume.
enum Point {
    Snapshot(SnapshotView),
    Live(Arc<Volume>),
}

impl Point {
    /// Returns true if reads may fetch data.
    fn is_lazy(&self) -> bool {
        match self {
            Self::Live(volume) => volume.is_lazy(),
            Self::Snapshot(view) => view.is_lazy(),
        }
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        match self {
            Self::Live(volume) => volume.read(offset_bytes, buf).map(drop),
            Self::Snapshot(view) => {
                if view.read(offset_bytes, buf)? == Content::Zeroes {
                    buf.fill(0);
                }
                Ok(())
            }
        }
    }
}

impl BlockSource for Point {
    fn size_bytes(&self) -> u64 {
        match self {
            Self::Snapshot(view) => view.size_bytes(),
            Self::Live(volume) => volume.size_bytes(),
        }
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read(offset_bytes, buf).map_err(io::Error::other)
    }
}

/// Returns the files with damaged blocks of each extent. Blocks; empty lists if no filesystem is known, and
/// if reads may fetch data, which takes as long as an unreachable store stalls them.
pub(super) fn name_files(
    volume: &Arc<Volume>,
    snapshot: Option<SnapshotId>,
    extents: &[Extent],
    cancel: &CancelToken,
) -> Vec<Vec<FilePath>> {
    let point = match snapshot.map(|snapshot| volume.view(snapshot)) {
        Some(Ok(view)) => Point::Snapshot(view),
        Some(Err(_)) => return vec![Vec::new(); extents.len()],
        None => Point::Live(Arc::clone(volume)),
    };
    if point.is_lazy() {
        return vec![Vec::new(); extents.len()];
    }
    let damaged = visible(&point, extents);
    let image: Arc<dyn BlockSource> = Arc::new(point);
    files_with(&image, &damaged, extents.len(), cancel)
}

/// Returns the parts of extents whose damage the point in time has, with the index of the extent: later
/// writes may hide the rest.
fn visible(point: &Point, extents: &[Extent]) -> Vec<(usize, Extent)> {
    let mut visible = Vec::new();
    let mut left = MAX_BLOCKS;
    for (index, extent) in extents.iter().enumerate() {
        let mut blocks = BlockSet::new();
        let mut buf = [0; BLOCK_SIZE_BYTES as usize];
        for block in (extent.start.0..extent.end().0).take(left) {
            if point.read(block * BLOCK_SIZE_BYTES, &mut buf).is_err() {
                blocks.insert(BlockIndex(block));
            }
            left -= 1;
        }
        visible.extend(blocks.extents().map(|part| (index, part)));
    }
    visible
}
