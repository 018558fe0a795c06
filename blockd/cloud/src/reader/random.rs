//! Random reads through the caches, with few round trips.

use super::{Inner, SnapshotReader, run::FrameRun};
use crate::{
    CloudError,
    cache::{
        CacheShared, INDEX_CONCURRENCY, SharedDelta,
        frames::{Claim, FrameResult, Obligation, Wait},
    },
    frame::{BLOCK, OwnedFrame},
    wanted::WantedFrame,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, DataRange, Extent};
use blockd_store::StoreErrorKind;
use futures::{StreamExt, TryStreamExt};
use std::{io, ops::Range, sync::Arc};

/// Extent of the volume with its data blocks.
type DataAround = (Extent, Arc<BlockSet>);

/// Frames of one delta needed by a read.
pub(super) type Wanted = (Arc<SharedDelta>, Vec<WantedFrame>);

/// Frames to fetch, with their obligations.
type FramesToFetch = Vec<(WantedFrame, Obligation)>;

/// Threads that load the frames of one readahead from disk.
const DISK_THREADS: usize = 4;
/// Minimum number of frames per thread.
const MIN_FRAMES_PER_THREAD: usize = 4;

/// Maximum number of extents, with at most one page per delta, whose pages one status request loads.
const MAX_STATUS_RUNS: usize = 16;

/// Source of a frame needed by a read.
enum FrameSource {
    Ready(Arc<OwnedFrame>),
    /// Fetched for this read.
    Mine(Wait),
    /// Already in flight for another read.
    Theirs(Wait),
}

impl SnapshotReader {
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), Arc<CloudError>> {
        let extent = self.touched(offset_bytes, buf.len())?;
        let plan = match self.ready_plan(extent) {
            Some(plan) => plan,
            None => self.inner.runtime.block_on(self.plan(extent))?,
        };
        self.inner.read_ahead(extent);
        clear_gaps(plan.iter().flat_map(|(_, frames)| frames), extent, buf);
        for (delta, frame, source) in self.inner.claim(plan, true) {
            let opened = match source {
                FrameSource::Ready(opened) => opened,
                source => self.inner.runtime.block_on(self.inner.opened(&delta, &frame, source))?,
            };
            copy(&frame, &opened, offset_bytes, buf);
        }
        Ok(())
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, Arc<CloudError>> {
        let extent = self.touched(offset_bytes, buf.len())?;
        let Some(plan) = self.ready_plan(extent) else { return Ok(false) };
        let mut found = Vec::new();
        for (delta, frames) in plan {
            for frame in frames {
                let key = (delta.number, frame.ordinal());
                let Some(opened) = self.inner.cache.frames.ready(key) else { return Ok(false) };
                found.push((frame, opened));
            }
        }
        self.inner.read_ahead(extent);
        clear_gaps(found.iter().map(|(frame, _)| frame), extent, buf);
        found.iter().for_each(|(frame, opened)| copy(frame, opened, offset_bytes, buf));
        Ok(true)
    }

    /// Returns a fetch of the frames of a range into memory; `None` if no frame is missing, or the range is
    /// invalid.
    pub fn fetch_missing(
        &self,
        offset_bytes: u64,
        len: usize,
    ) -> Option<impl Future<Output = io::Result<()>> + Send + use<>> {
        let extent = self.touched(offset_bytes, len).ok().filter(|extent| !self.is_in_memory(*extent))?;
        let reader = self.clone();
        Some(async move { reader.fetch(extent).await.map_err(shared_to_io) })
    }

    /// Returns a fetch of the index pages at the start of a range into memory, for
    /// [`try_range_at`](Self::try_range_at). `None` if no page is missing, or the range is invalid.
    pub fn fetch_missing_index(
        &self,
        offset_bytes: u64,
        len: usize,
    ) -> Option<impl Future<Output = io::Result<()>> + Send + use<>> {
        let extent = self.touched(offset_bytes, len).ok()?;
        let runs = self.inner.stretches(extent).take(MAX_STATUS_RUNS);
        let missing: Vec<Extent> = runs.filter(|run| self.inner.ready_layers(*run).is_none()).collect();
        let inner = (!missing.is_empty()).then(|| self.inner.clone())?;
        Some(async move {
            for run in missing {
                inner.load_layers(run).await.map_err(shared_to_io)?;
            }
            Ok(())
        })
    }

    /// Returns what [`range_at`](BlockSource::range_at) does, without waiting; `None` if an index page is not
    /// in memory.
    ///
    /// # Errors
    /// The byte is not inside the snapshot.
    pub fn try_range_at(&self, offset_bytes: u64) -> io::Result<Option<DataRange>> {
        let from = self.touched(offset_bytes, 1).map_err(shared_to_io)?.start;
        Ok(self.ready_data_around(from).map(|around| self.range_from(from, &around)))
    }

    fn is_in_memory(&self, extent: Extent) -> bool {
        let Some(plan) = self.ready_plan(extent) else { return false };
        plan.iter().all(|(delta, frames)| {
            frames
                .iter()
                .all(|frame| self.inner.cache.frames.ready((delta.number, frame.ordinal())).is_some())
        })
    }

    async fn fetch(&self, extent: Extent) -> Result<(), Arc<CloudError>> {
        let plan = match self.ready_plan(extent) {
            Some(plan) => plan,
            None => self.plan(extent).await?,
        };
        for (delta, frame, source) in self.inner.claim(plan, false) {
            self.inner.opened(&delta, &frame, source).await?;
        }
        Ok(())
    }

    fn touched(&self, offset_bytes: u64, len: usize) -> Result<Extent, Arc<CloudError>> {
        match offset_bytes.checked_add(len as u64) {
            Some(end) if end <= self.inner.size_bytes => Ok(Extent::touching(offset_bytes, len as u64)),
            _ => Err(Arc::new(CloudError::InvalidRequest {
                what: format!(
                    "{len} bytes at offset {offset_bytes} do not lie inside a snapshot of {} bytes",
                    self.inner.size_bytes
                ),
            })),
        }
    }

    /// Returns the data blocks around a block; `None` if an index page is not in memory. The last result is
    /// cached for sequential queries.
    fn ready_data_around(&self, block: BlockIndex) -> Option<DataAround> {
        let known = self.inner.map.lock().clone();
        known
            .filter(|(range, _)| range.start <= block && block < range.end())
            .or_else(|| Some(self.data_of(&self.inner.ready_layers(self.inner.frame_run_at(block))?)))
    }

    fn data_of(&self, run: &FrameRun) -> DataAround {
        let mut data = BlockSet::new();
        run.visible(|_, _, _, visible| data.union_with(&visible));
        let around = (run.range, Arc::new(data));
        *self.inner.map.lock() = Some(around.clone());
        around
    }

    /// Returns the range that starts with a block, among the data around it.
    fn range_from(&self, from: BlockIndex, (range, data): &DataAround) -> DataRange {
        debug_assert!(range.start <= from && from < range.end(), "block {from} outside of {range}");
        let (is_data, end) = match data.extents_in(Extent::between(from, range.end())).next() {
            Some(extent) if extent.start == from => (true, extent.end()),
            Some(extent) => (false, extent.start),
            None => (false, range.end()),
        };
        DataRange { is_data, end_bytes: (end.0 * BLOCK_SIZE_BYTES).min(self.inner.size_bytes) }
    }

    /// Plans a read, fetching pages from the store.
    async fn plan(&self, extent: Extent) -> Result<Vec<Wanted>, Arc<CloudError>> {
        let mut plan = Vec::new();
        for range in self.inner.stretches(extent) {
            self.inner.add_to_plan(&self.inner.load(range).await?, &mut plan);
        }
        Ok(plan)
    }

    /// Plans a read if all pages are in memory.
    fn ready_plan(&self, extent: Extent) -> Option<Vec<Wanted>> {
        let mut plan = Vec::new();
        for range in self.inner.stretches(extent) {
            self.inner.add_to_plan(&self.inner.ready(range)?, &mut plan);
        }
        Some(plan)
    }
}

/// Reads at any alignment. Must not be called on a thread of the runtime, except
/// [`try_read_at`](BlockSource::try_read_at), which reads from memory only.
impl BlockSource for SnapshotReader {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read(offset_bytes, buf).map_err(shared_to_io)
    }

    fn try_read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<bool> {
        self.try_read(offset_bytes, buf).map_err(shared_to_io)
    }

    /// The range may end early at the boundary of an index page.
    fn range_at(&self, offset_bytes: u64) -> io::Result<DataRange> {
        let from = self.touched(offset_bytes, 1).map_err(shared_to_io)?.start;
        let around = match self.ready_data_around(from) {
            Some(around) => around,
            None => {
                let load = self.inner.load_layers(self.inner.frame_run_at(from));
                self.data_of(&self.inner.runtime.block_on(load).map_err(shared_to_io)?)
            }
        };
        Ok(self.range_from(from, &around))
    }

    fn will_need(&self, ranges: &[Range<u64>]) {
        let whole = Extent::whole(self.inner.size_bytes);
        let touched = ranges.iter().map(|range| Extent::touching(range.start, range.end - range.start));
        let blocks: BlockSet = touched.map(|extent| extent.intersection(whole)).collect();
        let inner = self.inner.clone();
        self.inner.runtime.spawn(async move { inner.prefetch(&blocks).await });
    }

    fn may_wait(&self) -> bool {
        true
    }
}

/// Converts an error of a read, which stays its source. A store that does not serve a read is no damage: the
/// kind is `TimedOut` if a retry can help, otherwise `NotConnected`.
fn shared_to_io(error: Arc<CloudError>) -> io::Error {
    let kind = match &*error {
        CloudError::InvalidRequest { .. } => io::ErrorKind::InvalidInput,
        CloudError::Store(error) if error.kind == StoreErrorKind::NotFound => io::ErrorKind::Other,
        error if error.is_retryable() => io::ErrorKind::TimedOut,
        CloudError::Store(_) => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl Inner {
    /// Returns the extent around a block in which each delta has at most one page.
    fn frame_run_at(&self, block: BlockIndex) -> Extent {
        let (mut start, mut end) = (BlockIndex(0), Extent::whole(self.size_bytes).end());
        for delta in &self.deltas {
            let root = &delta.reader.root;
            match root.pages.get(root.pages_in(Extent::new(block, 1)).start) {
                Some(page) => {
                    start = start.max(page.range.start);
                    end = end.min(page.range.end());
                }
                // The volume was smaller when this delta was created.
                None => start = start.max(root.pages.last().map_or(start, |page| page.range.end())),
            }
        }
        Extent::between(start, end)
    }

    pub(super) fn stretches(&self, extent: Extent) -> impl Iterator<Item = Extent> + '_ {
        let (mut from, end) = (extent.start, extent.end());
        std::iter::from_fn(move || {
            let until = (from < end).then(|| self.frame_run_at(from).end().min(end))?;
            assert!(until > from, "no page covers block {from}");
            let range = Extent::between(from, until);
            from = until;
            Some(range)
        })
    }

    /// Returns the page of each delta for an extent.
    fn pages_of(&self, range: Extent) -> impl Iterator<Item = (usize, usize)> + '_ {
        let levels = self.deltas.iter().enumerate();
        levels.filter_map(move |(level, delta)| {
            let pages = delta.reader.root.pages_in(range);
            debug_assert!(pages.len() <= 1, "{} pages of a delta in {range}", pages.len());
            pages.start.lt(&pages.end).then_some((level, pages.start))
        })
    }

    pub(super) fn ready(&self, range: Extent) -> Option<FrameRun> {
        let mut run = self.ready_layers(range)?;
        run.referenced = self.ready_references(&run)?;
        Some(run)
    }

    fn ready_layers(&self, range: Extent) -> Option<FrameRun> {
        let mut pages = Vec::new();
        for (level, number) in self.pages_of(range) {
            if let Some(page) = self.cache.ready_page(&self.deltas[level], number)? {
                pages.push((level, number, page));
            }
        }
        Some(FrameRun { range, pages, referenced: Vec::new() })
    }

    /// Loads the pages of an extent for all layers, then those of the sources that its references name.
    pub(super) async fn load(&self, range: Extent) -> Result<FrameRun, Arc<CloudError>> {
        let mut run = self.load_layers(range).await?;
        run.referenced = self.load_references(&run).await.map_err(|error| self.failed(error))?;
        Ok(run)
    }

    fn failed(&self, error: CloudError) -> Arc<CloudError> {
        tracing::warn!(%error, snapshot = %self.id, "read failed on cloud snapshot");
        Arc::new(error)
    }

    /// Loads the pages of an extent concurrently for all layers: their relevance is known only afterwards.
    async fn load_layers(&self, range: Extent) -> Result<FrameRun, Arc<CloudError>> {
        let pages = futures::stream::iter(self.pages_of(range).collect::<Vec<_>>())
            .map(|(level, number)| async move {
                let page = self.cache.page(&self.deltas[level], number).await?;
                Ok::<_, CloudError>(page.map(|page| (level, number, page)))
            })
            .buffered(INDEX_CONCURRENCY)
            .try_filter_map(|page| async move { Ok(page) });
        match pages.try_collect().await {
            Ok(pages) => Ok(FrameRun { range, pages, referenced: Vec::new() }),
            Err(error) => Err(self.failed(error)),
        }
    }

    pub(super) fn add_to_plan(&self, stretch: &FrameRun, plan: &mut Vec<Wanted>) {
        stretch.visible(|level, number, page, mut visible| {
            if !page.references.is_empty() {
                visible.subtract(&page.referenced);
            }
            let delta = &self.deltas[level];
            plan.push((Arc::clone(delta), delta.reader.frames_of(number, page, &visible)));
        });
        plan.extend(stretch.referenced.iter().map(|found| (Arc::clone(&found.delta), found.frames())));
    }

    /// Requests all frames of a plan and returns their sources. With `here`, frames in the disk cache are
    /// read on this thread.
    fn claim(&self, plan: Vec<Wanted>, here: bool) -> Vec<(Arc<SharedDelta>, WantedFrame, FrameSource)> {
        let mut sources = Vec::new();
        for (delta, frames) in plan {
            let mut mine: Vec<(WantedFrame, Obligation)> = Vec::new();
            for frame in frames {
                let source = match self.cache.frames.claim((delta.number, frame.ordinal())) {
                    Claim::Ready(opened) => FrameSource::Ready(opened),
                    Claim::Wait(wait) => FrameSource::Theirs(wait),
                    Claim::Mine(flight, wait) => {
                        mine.push((frame.clone(), flight));
                        FrameSource::Mine(wait)
                    }
                };
                sources.push((Arc::clone(&delta), frame, source));
            }
            if mine.is_empty() {
                continue;
            }
            debug_assert!(mine.is_sorted_by(|(a, _), (b, _)| a.ordinal() < b.ordinal()), "a frame twice");
            if here {
                let missing = self.cache.fetch_from_disk(&delta, mine);
                self.cache.fetch(&self.runtime, &delta, missing, &self.cache.fetches);
            } else {
                self.fetch_frames(&delta, mine, false);
            }
        }
        sources
    }

    /// Waits for a frame. A fetch that started before the read and failed is repeated: the store may be
    /// available again.
    async fn opened(
        &self,
        delta: &Arc<SharedDelta>,
        frame: &WantedFrame,
        source: FrameSource,
    ) -> FrameResult {
        let error = match source {
            FrameSource::Ready(opened) => return Ok(opened),
            FrameSource::Mine(wait) => return wait.done().await,
            FrameSource::Theirs(wait) => match wait.done().await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            },
        };
        match self.claim(vec![(Arc::clone(delta), vec![frame.clone()])], false).pop() {
            Some((_, _, FrameSource::Ready(opened))) => Ok(opened),
            Some((_, _, FrameSource::Mine(wait) | FrameSource::Theirs(wait))) => wait.done().await,
            None => Err(error),
        }
    }

    /// Fetches frames in the background, from disk or store.
    pub(super) fn fetch_frames(
        &self,
        delta: &Arc<SharedDelta>,
        mine: Vec<(WantedFrame, Obligation)>,
        ahead: bool,
    ) {
        let (shared, delta, runtime) = (self.cache.clone(), delta.clone(), self.runtime.clone());
        self.runtime.spawn(async move {
            let missing = match &shared.disk {
                None => mine,
                Some(_) => load_from_disk(&shared, &delta, mine).await,
            };
            let limit = if ahead { &shared.ahead } else { &shared.fetches };
            shared.fetch(&runtime, &delta, missing, limit);
        });
    }
}

/// Loads frames from the disk cache and returns the missing ones, ascending. Several threads do it, because
/// decryption takes longer than reading: a sequential reader gets the throughput of more than one core.
async fn load_from_disk(
    shared: &Arc<CacheShared>,
    delta: &Arc<SharedDelta>,
    mut mine: FramesToFetch,
) -> FramesToFetch {
    let each = mine.len().div_ceil(DISK_THREADS).max(MIN_FRAMES_PER_THREAD);
    let mut loads = Vec::with_capacity(DISK_THREADS);
    while !mine.is_empty() {
        let rest = mine.split_off(mine.len().min(each));
        let part = std::mem::replace(&mut mine, rest);
        let (shared, delta) = (shared.clone(), delta.clone());
        loads.push(tokio::task::spawn_blocking(move || shared.fetch_from_disk(&delta, part)));
    }
    let mut missing = Vec::new();
    for load in loads {
        // After a panic the dropped obligations fail their waiters.
        missing.extend(load.await.unwrap_or_default());
    }
    missing
}

/// Zeroes the buffer of a read, unless the frames contain all blocks: then [`copy`] fills it.
fn clear_gaps<'a>(frames: impl Iterator<Item = &'a WantedFrame>, extent: Extent, buf: &mut [u8]) {
    // Each block is wanted from at most one frame.
    let wanted: u64 = frames.map(WantedFrame::wanted_blocks).sum();
    debug_assert!(wanted <= extent.len_blocks, "{wanted} blocks of {extent}");
    if wanted < extent.len_blocks {
        buf.fill(0);
    }
}

/// Copies the wanted blocks of a frame, including zeroes, into the buffer of a read at `offset_bytes`.
fn copy(frame: &WantedFrame, opened: &OwnedFrame, offset_bytes: u64, buf: &mut [u8]) {
    let end_bytes = offset_bytes + buf.len() as u64;
    for run in frame.runs() {
        let extent = run.extent;
        for i in 0..extent.len_blocks {
            let at = (extent.start.0 + i) * BLOCK_SIZE_BYTES;
            let (from, to) = (at.max(offset_bytes), (at + BLOCK as u64).min(end_bytes));
            if from >= to {
                continue;
            }
            let out = &mut buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize];
            match opened.block(run.position as usize + i as usize) {
                Some(block) => out.copy_from_slice(&block[(from - at) as usize..(to - at) as usize]),
                None => out.fill(0),
            }
        }
    }
}
