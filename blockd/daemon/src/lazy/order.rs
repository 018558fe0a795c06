//! What a hydration fetches first: what was read first before, and what a filesystem keeps its books in.
//!
//! The order in which a lazy volume is read is taken down and kept under the volume that its cloud snapshot is of. The next volume
//! that begins as a snapshot of that one fetches those places in that order. All of it is a hint: nothing fails if it cannot be had.

use super::CloudSource;
use crate::{
    core::Core,
    db::{DbError, LazyRow, put_read_order, read_order},
    error::{ServiceError, blocking},
    registry::EntryState,
};
use blockd_cloud::CloudsnapId;
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use blockd_fuse::{Image, ImageRun, inside};
use blockd_volume::Volume;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::VecDeque, io, sync::Arc};

/// Ranges of a filesystem's metadata that are asked for first.
const METADATA_RANGES_MOST: usize = 32_768;
/// The most places of an order that is kept; those of the last volume go before those of the ones before.
const PLACES_MOST: usize = 32_768;

/// Has the hydration of a volume begin with what was read first before, then with its filesystems' metadata.
pub(super) async fn prepare(core: &Arc<Core>, volume: &Arc<Volume>, cloudsnap: CloudsnapId) {
    match core.db.run(move |tx| read_order(tx, &cloudsnap)).await {
        Ok(order) => volume.prefer(&order),
        Err(error) => tracing::debug!(%error, "an order of reading is not known"),
    }
    let source = core.lazy_sources.lock().get(&volume.id()).cloned();
    let Some(source) = source else { return };
    let volume = Arc::clone(volume);
    // Not waited for: the store may be away, and what was preferred above is fetched meanwhile.
    tokio::task::spawn_blocking(move || {
        let size_bytes = volume.size_bytes();
        let image: Arc<dyn Image> = Arc::new(SourceImage { source, size_bytes, units: Mutex::default() });
        match inside::metadata(&image, METADATA_RANGES_MOST) {
            Ok(ranges) => {
                let extents: Vec<Extent> = ranges
                    .iter()
                    .map(|range| Extent::touching(range.start, range.end - range.start))
                    .collect();
                volume.prefer(&extents);
            }
            Err(error) => tracing::debug!(%error, "where the metadata lies is not known"),
        }
    });
}

/// Keeps the order in which a lazy volume was read since it was opened.
///
/// # Errors
/// The database fails.
pub(super) async fn keep(
    core: &Core,
    volume: &Arc<Volume>,
    cloudsnap: CloudsnapId,
) -> Result<(), ServiceError> {
    let volume = Arc::clone(volume);
    let new = blocking(move || Ok::<_, ServiceError>(volume.read_order())).await?;
    if new.is_empty() {
        return Ok(());
    }
    let store = move |tx: &rusqlite::Transaction<'_>| -> Result<(), DbError> {
        let known = read_order(tx, &cloudsnap)?;
        let merged = merge(new, &known);
        if merged == known { Ok(()) } else { put_read_order(tx, &cloudsnap, &merged, Timestamp::now()) }
    };
    Ok(core.db.run(store).await?)
}

/// What was read now, and behind it what was not read now but before.
fn merge(mut new: Vec<Extent>, known: &[Extent]) -> Vec<Extent> {
    let mut seen = BlockSet::from_iter(new.iter().copied());
    for run in known {
        let left: Vec<Extent> = seen.gaps_in(*run).collect();
        for extent in left {
            seen.insert_extent(extent);
            new.push(extent);
        }
    }
    new.truncate(PLACES_MOST);
    new
}

impl Core {
    /// Keeps the orders in which all lazy volumes were read so far.
    pub(crate) async fn keep_read_orders(&self) {
        let rows = match self.db.run(LazyRow::all).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::debug!(%error, "orders of reading are not kept");
                return;
            }
        };
        for row in rows {
            let Some(entry) = self.registry.by_id(row.volume) else { continue };
            let EntryState::Up(volume) = entry.view().state else { continue };
            if let Err(error) = keep(self, &volume, row.cloudsnap).await {
                tracing::debug!(%error, volume = %row.volume, "an order of reading is not kept");
            }
        }
    }
}

/// What is read at once of a snapshot: 256 KiB.
const UNIT_BLOCKS: u64 = (256 << 10) / BLOCK_SIZE_BYTES;
/// Units that are kept for the next read: descriptors of groups lie beside each other, bitmaps are not read.
const UNITS_KEPT: usize = 8;

/// The snapshot that a volume began as, for whoever looks for its filesystems. Not the volume: what is read of that counts as wanted
/// by a guest.
struct SourceImage {
    source: Arc<CloudSource>,
    size_bytes: u64,
    units: Mutex<VecDeque<(u64, Arc<Vec<u8>>)>>,
}

impl SourceImage {
    fn unit(&self, unit: u64) -> io::Result<Arc<Vec<u8>>> {
        let mut units = self.units.lock();
        if let Some((_, data)) = units.iter().find(|(known, _)| *known == unit) {
            return Ok(Arc::clone(data));
        }
        let extent = Extent::new(BlockIndex(unit * UNIT_BLOCKS), UNIT_BLOCKS);
        let data = Arc::new(self.source.read_blocking(extent).map_err(io::Error::other)?);
        if units.len() >= UNITS_KEPT {
            units.pop_front();
        }
        units.push_back((unit, Arc::clone(&data)));
        Ok(data)
    }
}

impl Image for SourceImage {
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

    fn run_at(&self, _: u64) -> io::Result<ImageRun> {
        Ok(ImageRun { is_data: true, end_bytes: self.size_bytes() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_now_goes_before_what_was_read_once() {
        let at = |start, len| Extent::new(BlockIndex(start), len);
        let merged = merge(vec![at(64, 64), at(256, 64)], &[at(0, 192), at(512, 64), at(256, 64)]);
        assert_eq!(merged, [at(64, 64), at(256, 64), at(0, 64), at(128, 64), at(512, 64)]);
        let again = merge(vec![at(64, 64), at(256, 64)], &merged);
        assert_eq!(again, merged);
    }
}
