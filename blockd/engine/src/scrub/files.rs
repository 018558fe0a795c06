//! Names of files with damaged blocks, in ext2, ext3 and ext4, also in partitions.
//!
//! The search walks the filesystem of the first snapshot that has the blocks, or that of the volume. Its time
//! and result are bounded.

use blockd_api::browse::FilePath;
use blockd_cloud::CancelToken;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent, SnapshotId};
use blockd_fuse::inside;
use blockd_volume::{Content, SnapshotView, Volume, VolumeError};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Maximum number of named files.
const MAX_FILES: usize = 100;
/// Maximum time of a search.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Maximum number of damaged blocks, and of extents of them, whose files are searched.
const MAX_BLOCKS: usize = 4096;
const MAX_EXTENTS: usize = 256;

/// Point in time of a volume.
enum Point {
    Snapshot(SnapshotView),
    Live(Arc<Volume>),
}

impl Point {
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

/// Returns the files with damaged blocks of each extent. Blocks; empty lists if no filesystem is known.
pub(super) fn name_files(
    volume: &Arc<Volume>,
    snapshot: Option<SnapshotId>,
    extents: &[Extent],
    cancel: &CancelToken,
) -> Vec<Vec<FilePath>> {
    let mut files = vec![Vec::new(); extents.len()];
    let point = match snapshot.map(|snapshot| volume.view(snapshot)) {
        Some(Ok(view)) => Point::Snapshot(view),
        Some(Err(_)) => return files,
        None => Point::Live(Arc::clone(volume)),
    };
    let damaged = visible(&point, extents);
    let image: Arc<dyn BlockSource> = Arc::new(point);
    let end = Instant::now() + MAX_TIME;
    let mut may_continue = || Instant::now() < end && !cancel.is_cancelled();
    for found in inside::filesystems(&image).unwrap_or_default() {
        let start = found.offset_bytes();
        let parts = damaged.iter().filter(|(_, extent)| extent.offset_bytes() >= start);
        let (owners, ranges): (Vec<_>, Vec<_>) = parts
            .map(|(owner, extent)| {
                let at = extent.offset_bytes() - start;
                (*owner, at..at + extent.len_bytes())
            })
            .unzip();
        if ranges.is_empty() || found.other.is_some() {
            continue;
        }
        let Ok(filesystem) = found.open() else { continue };
        let room = MAX_FILES.saturating_sub(files.iter().map(Vec::len).sum());
        let dir = found.partition.map(|number| format!("/p{number}")).unwrap_or_default();
        for (index, path) in filesystem.users_of(&ranges, room, &mut may_continue).found {
            let path = FilePath::from_bytes([dir.as_bytes(), path.as_slice()].concat());
            let of: &mut Vec<FilePath> = &mut files[owners[index]];
            if !of.contains(&path) {
                of.push(path);
            }
        }
    }
    files
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
    visible.truncate(MAX_EXTENTS);
    visible
}
