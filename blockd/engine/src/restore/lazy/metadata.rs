//! Hydration of filesystem metadata first. This is a hint: nothing fails without it.

use crate::restore::lazy::{CloudSource, LazyVolumes};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSource, Extent};
use blockd_fuse::inside;
use blockd_volume::Volume;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    io,
    ops::Range,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Maximum number of metadata ranges that are fetched first.
const MAX_METADATA_RANGES: usize = 32_768;

/// Searches the filesystem metadata of a volume in the background, and makes its hydration fetch it first.
pub(crate) fn prefer_metadata(lazy: &Arc<LazyVolumes>, volume: &Arc<Volume>) {
    let source = lazy.lazy_sources.lock().get(&volume.id()).cloned();
    let Some(source) = source else { return };
    let (volume, stopping) = (Arc::downgrade(volume), lazy.host.stopping.clone());
    // In the background: the store may be unreachable.
    tokio::spawn(async move {
        // Few at a time: each blocks a thread and needs other threads to complete.
        let Ok(permit) = SEARCHES.acquire().await else { return };
        let search = tokio::task::spawn_blocking(move || {
            let Some(size_bytes) = volume.upgrade().map(|volume| volume.size_bytes()) else { return };
            let (units, left) = (Mutex::default(), AtomicU64::new(MAX_UNITS));
            let image: Arc<dyn BlockSource> =
                Arc::new(SourceImage { source, volume: volume.clone(), stopping, size_bytes, units, left });
            match inside::metadata(&image, MAX_METADATA_RANGES) {
                Ok(ranges) => {
                    let extent = |range: &Range<u64>| Extent::touching(range.start, range.end - range.start);
                    if let Some(volume) = volume.upgrade() {
                        volume.prefer(&ranges.iter().map(extent).collect::<Vec<_>>());
                    }
                }
                Err(error) => tracing::debug!(%error, "locating the filesystem metadata failed"),
            }
        });
        let _ = search.await;
        drop(permit);
    });
}

/// Blocks per read of a snapshot: 512 KiB, a frame.
const UNIT_BLOCKS: u64 = (512 << 10) / BLOCK_SIZE_BYTES;
/// Maximum number of units read to find metadata, 64 MiB: a hostile image may scatter it.
const MAX_UNITS: u64 = 128;
/// Timeout of a unit.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum number of concurrent searches.
static SEARCHES: Semaphore = Semaphore::const_new(2);
/// Number of cached units: group descriptors are adjacent, and bitmaps are not read.
const UNITS_KEPT: usize = 8;

/// Backing snapshot of a volume, for the filesystem search. Reads of the volume itself would count as guest
/// reads.
struct SourceImage {
    source: Arc<CloudSource>,
    /// The search ends with the volume.
    volume: Weak<Volume>,
    stopping: CancellationToken,
    size_bytes: u64,
    units: Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>,
    /// Number of units that may still be read.
    left: AtomicU64,
}

impl SourceImage {
    fn unit(&self, unit: u64) -> io::Result<Arc<Vec<u8>>> {
        let mut units = self.units.lock();
        if let Some((_, data)) = units.iter().find(|(known, _)| *known == unit) {
            return Ok(Arc::clone(data));
        }
        let is_wanted = self.volume.upgrade().is_some_and(|volume| volume.is_lazy());
        let has_some_left = self.left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok();
        if !is_wanted || !has_some_left || self.stopping.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let extent = Extent::new(BlockIndex(unit * UNIT_BLOCKS), UNIT_BLOCKS);
        let data = Arc::new(self.source.read_blocking(extent, TIMEOUT).map_err(io::Error::other)?);
        if units.len() >= UNITS_KEPT {
            units.pop_front();
        }
        units.push_back((unit, Arc::clone(&data)));
        Ok(data)
    }
}

impl BlockSource for SourceImage {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        const UNIT_BYTES: u64 = UNIT_BLOCKS * BLOCK_SIZE_BYTES;
        let (mut at, mut rest) = (offset_bytes, buf);
        while !rest.is_empty() {
            let within = (at % UNIT_BYTES) as usize;
            let data = self.unit(at / UNIT_BYTES)?;
            let len = rest.len().min(data.len().saturating_sub(within));
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, behind) = rest.split_at_mut(len);
            now.copy_from_slice(&data[within..within + len]);
            (at, rest) = (at + len as u64, behind);
        }
        Ok(())
    }
}
