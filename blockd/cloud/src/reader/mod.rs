//! Reading a snapshot: each block comes from the newest delta that says anything about it.
//!
//! The deltas are asked newest first, each for what is left after those above it, page by page; so no page
//! and no pack is read twice, and nothing is read that is not visible, apart from small gaps.

mod random;

pub use random::CachedSnapshot;

use crate::{
    CloudError, CloudSnapshotId, Manifest, Repository,
    backup::cpu_threads,
    cache::Lru,
    damage::{Damage, DamageList},
    fetch::{BlockSink, DeltaReader, FetchJob},
    frame::BLOCK,
    index::Page,
    progress::Progress,
    repository::run_blocking,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use blockd_store::Work;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::try_join_all};
use parking_lot::Mutex;
use std::{io, sync::Arc};
use tokio::sync::{Semaphore, mpsc};

/// Most memory that pages are kept in.
const PAGE_CACHE_BYTES: u64 = 64 << 20;
/// Most memory that whole small indexes are kept in.
const INDEX_KEEP_BYTES: u64 = 16 << 20;
/// Frames that one thread opens at a time: 4 MiB of blocks.
const CHUNK_FRAMES: usize = 32;
/// Roots that are read at once when a snapshot is opened.
const OPEN_CONCURRENCY: usize = 8;
/// Stretches of the volume that are worked out at once; index pages do not cross their borders.
const REGION_BLOCKS: u64 = crate::plan::PAGE_SPAN_BLOCKS;

/// A snapshot, open for reading. Clones share it.
#[derive(Clone)]
pub struct SnapshotReader {
    inner: Arc<Inner>,
}

struct Inner {
    id: CloudSnapshotId,
    size_bytes: u64,
    /// Newest first.
    deltas: Vec<Arc<DeltaReader>>,
    pages: Mutex<Lru<(usize, usize), Arc<Page>>>,
    cores: Arc<Semaphore>,
    work: Work,
}

/// Totals of a bulk read.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct FetchTotals {
    pub requests: u64,
    pub blocks: u64,
}

/// Blocks that have been given away, all that are not zero.
pub(crate) type Settled = Arc<dyn Fn(&[Extent]) -> Result<(), CloudError> + Send + Sync>;

/// Parameters of a bulk read.
#[derive(Default)]
pub(crate) struct BulkRead<'a> {
    pub progress: Option<&'a Progress>,
    /// Blocks that are left out.
    pub skip: Option<&'a BlockSet>,
    /// Told, on threads that may block, of blocks that have been given away.
    pub settled: Option<Settled>,
    /// Takes down what is damaged; without it the first damage ends the read.
    pub damage: Option<&'a Arc<DamageList>>,
    /// Of a pack that was cut, or lost its header, what can be had is had frame by frame; only where damage
    /// is taken down.
    pub by_frame: bool,
}

impl SnapshotReader {
    /// Opens a snapshot: reads the roots of its deltas' indexes and checks them against the manifest.
    ///
    /// # Errors
    /// [`CloudError::Damaged`]; [`CloudError::UnknownKey`]; errors of the store.
    pub async fn open(repo: &Repository, manifest: &Manifest) -> Result<Self, CloudError> {
        Self::open_with(repo, manifest, 0).await
    }

    pub(crate) async fn open_with(
        repo: &Repository,
        manifest: &Manifest,
        threads: usize,
    ) -> Result<Self, CloudError> {
        // What may be kept is shared out before, because the roots are read side by side.
        let share = INDEX_KEEP_BYTES / (manifest.chain.len() as u64 + 1);
        let deltas: Vec<_> = manifest.deltas().cloned().collect();
        let opened = futures::stream::iter(deltas).map(|delta| async move {
            let mut keep = share;
            DeltaReader::open(repo, &delta, &mut keep).await.map(Arc::new)
        });
        let deltas: Vec<_> = opened.buffered(OPEN_CONCURRENCY).try_collect().await?;
        Ok(Self {
            inner: Arc::new(Inner {
                id: manifest.id(),
                size_bytes: manifest.size_bytes,
                deltas,
                pages: Mutex::new(Lru::new(PAGE_CACHE_BYTES)),
                cores: Arc::new(Semaphore::new(cpu_threads(threads))),
                work: repo.work().clone(),
            }),
        })
    }

    /// Returns the snapshot's id.
    pub fn id(&self) -> CloudSnapshotId {
        self.inner.id
    }

    /// The volume's size at that time.
    pub fn size_bytes(&self) -> u64 {
        self.inner.size_bytes
    }

    /// Reads at most 32 MiB of blocks; those beyond the end of the volume are zero.
    ///
    /// # Errors
    /// [`CloudError::Damaged`] with the damage and the lost blocks; errors of the store.
    pub async fn read_blocks(&self, extent: Extent) -> Result<Vec<u8>, CloudError> {
        const MOST: u64 = (32 << 20) / BLOCK_SIZE_BYTES;
        if extent.len_blocks > MOST {
            return Err(CloudError::InvalidRequest {
                what: format!("at most {MOST} blocks are read at once, {} were asked for", extent.len_blocks),
            });
        }
        let out = Arc::new(Mutex::new(vec![0; extent.len_bytes() as usize]));
        let sink = {
            let out = out.clone();
            move |start: BlockIndex, data: &[u8]| {
                let from = (start.0 - extent.start.0) as usize * BLOCK;
                out.lock()[from..from + data.len()].copy_from_slice(data);
                Ok(())
            }
        };
        self.read_into(extent, Arc::new(sink), 4, None).await?;
        let bytes = std::mem::take(&mut *out.lock());
        Ok(bytes)
    }

    /// Passes the non-zero blocks of an extent to `take`, unordered and on several threads, which may still
    /// run after a cancellation. Damaged frames, and blocks behind a damaged index page, are skipped and
    /// reported.
    ///
    /// # Errors
    /// Those of the store and of `take`.
    pub async fn read_sound_blocks_to(
        &self,
        extent: Extent,
        take: impl Fn(BlockIndex, &[u8]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Damage, CloudError> {
        let sink = move |start: BlockIndex, data: &[u8]| {
            take(start, data).map_err(|source| CloudError::WriteVolume { start, source })
        };
        let damage = Arc::new(DamageList::default());
        let what = BulkRead { damage: Some(&damage), by_frame: true, ..BulkRead::default() };
        self.read_in_bulk(extent, Arc::new(sink), 4, &what).await?;
        Ok(damage.take())
    }

    /// Returns the blocks of an extent that may have data: those of [`data_blocks`](Self::data_blocks), and
    /// those behind a damaged index page.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn possible_data_blocks(&self, extent: Extent) -> Result<BlockSet, CloudError> {
        let damage = Arc::new(DamageList::default());
        let what = BulkRead { damage: Some(&damage), ..BulkRead::default() };
        let mut found = BlockSet::new();
        let mut pages = self.visible(extent, &what);
        while let Some(page) = pages.next().await? {
            found.union_with(&page.visible);
        }
        found.union_with(&damage.take().blocks);
        Ok(found)
    }

    /// The blocks of a stretch of the volume that hold data, as far as the index tells; all others are zero.
    ///
    /// # Errors
    /// Those of [`read_blocks`](Self::read_blocks).
    pub async fn data_blocks(&self, extent: Extent) -> Result<BlockSet, CloudError> {
        let mut found = BlockSet::new();
        let what = BulkRead::default();
        let mut pages = self.visible(extent, &what);
        while let Some(page) = pages.next().await? {
            found.union_with(&page.visible);
        }
        Ok(found)
    }

    /// Gives every block of a stretch that is not zero to the sink, in no particular order.
    pub(crate) async fn read_into(
        &self,
        extent: Extent,
        sink: Arc<BlockSink>,
        concurrency: usize,
        progress: Option<&Progress>,
    ) -> Result<FetchTotals, CloudError> {
        let what = BulkRead { progress, ..BulkRead::default() };
        self.read_in_bulk(extent, sink, concurrency, &what).await
    }

    /// [`read_into`](Self::read_into) with skipped damage and totals.
    pub(crate) async fn read_in_bulk(
        &self,
        extent: Extent,
        sink: Arc<BlockSink>,
        concurrency: usize,
        what: &BulkRead<'_>,
    ) -> Result<FetchTotals, CloudError> {
        let progress = what.progress;
        // The planner runs ahead of the requests by no more than this many.
        let (send, receive) = mpsc::channel::<(Arc<DeltaReader>, FetchJob)>(4);
        let plan = async move {
            let mut pages = self.visible(extent, what);
            while let Some(VisiblePage { delta, number, page, visible }) = pages.next().await? {
                let jobs = delta.jobs(number, &page, &visible);
                if let Some(progress) = progress {
                    // Blocks that are hidden by newer ones, or zero, are not moved.
                    let moved: u64 = jobs.iter().map(FetchJob::wanted_blocks).sum();
                    // Those that are in place count as processed already.
                    let in_place = what.skip.map_or(0, |skip| {
                        let mut in_place = page.data.clone();
                        in_place.intersect_with(skip);
                        in_place.len_blocks()
                    });
                    let listed = page.data.len_blocks();
                    progress.spared(listed.saturating_sub(moved + in_place) * BLOCK_SIZE_BYTES);
                }
                for job in jobs {
                    // The other half only goes away with this one.
                    let _ = send.send((Arc::clone(&delta), job)).await;
                }
            }
            Ok(())
        };
        let jobs = futures::stream::unfold(receive, |mut receive| async move {
            let job = receive.recv().await?;
            Some((job, receive))
        });
        let fetch = jobs
            .map(|(delta, job)| self.fetch_one(delta, job, sink.clone(), what).boxed())
            .buffer_unordered(concurrency.max(1))
            .try_fold(FetchTotals::default(), |totals, blocks| async move {
                Ok(FetchTotals { requests: totals.requests + 1, blocks: totals.blocks + blocks })
            });
        let ((), totals) = futures::try_join!(plan, fetch)?;
        Ok(totals)
    }

    async fn fetch_one(
        &self,
        delta: Arc<DeltaReader>,
        job: FetchJob,
        sink: Arc<BlockSink>,
        what: &BulkRead<'_>,
    ) -> Result<u64, CloudError> {
        match (delta.fetch(&job).await, what.damage) {
            (Err(CloudError::Damaged { .. }), Some(damage)) if what.by_frame && job.frames.len() > 1 => {
                let (pack_no, mut blocks) = (job.pack_no(), 0);
                for frame in job.frames {
                    let alone = FetchJob::alone(pack_no, frame);
                    match delta.fetch(&alone).await {
                        Err(error @ CloudError::Damaged { .. }) => damage.add(error, alone.wanted()),
                        fetched => {
                            blocks += self.open_fetched(&delta, alone, fetched?, &sink, what).await?;
                        }
                    }
                }
                Ok(blocks)
            }
            (Err(error @ CloudError::Damaged { .. }), Some(damage)) => {
                damage.add(error, job.wanted());
                Ok(0)
            }
            (fetched, _) => self.open_fetched(&delta, job, fetched?, &sink, what).await,
        }
    }

    /// Opens the frames of a job, and gives their blocks away.
    async fn open_fetched(
        &self,
        delta: &Arc<DeltaReader>,
        job: FetchJob,
        (start, fetched): (u32, Bytes),
        sink: &Arc<BlockSink>,
        what: &BulkRead<'_>,
    ) -> Result<u64, CloudError> {
        let blocks = job.wanted_blocks();
        let chunks = job.frames.chunks(CHUNK_FRAMES).map(|frames| {
            let (delta, fetched, sink) = (delta.clone(), fetched.clone(), sink.clone());
            let (frames, cores) = (frames.to_vec(), self.inner.cores.clone());
            let (damage, work) = (what.damage.cloned(), self.inner.work.clone());
            async move {
                let core = cores.acquire_owned().await;
                let opened = work.run(move || {
                    match damage {
                        None => delta.decode(&frames, start, &fetched, &*sink),
                        // One by one, so that a damaged frame takes no other one along.
                        Some(damage) => frames.iter().try_for_each(|frame| {
                            let one = std::slice::from_ref(frame);
                            match delta.decode(one, start, &fetched, &*sink) {
                                Err(error @ CloudError::Damaged { .. }) => {
                                    damage.add(error, frame.wanted());
                                    Ok(())
                                }
                                result => result,
                            }
                        }),
                    }
                });
                let opened = opened.await;
                drop(core);
                opened?
            }
        });
        try_join_all(chunks.collect::<Vec<_>>()).await?;
        if let Some(settled) = &what.settled {
            let extents = match what.damage {
                None => job.wanted().collect(),
                Some(damage) => damage.sound(job.wanted()),
            };
            let settled = settled.clone();
            run_blocking(move || settled(&extents)).await?;
        }
        if let Some(progress) = what.progress {
            progress.processed(blocks * BLOCK_SIZE_BYTES);
        }
        Ok(blocks)
    }

    /// Returns a walk over the pages of all deltas, with the data blocks that are visible in each.
    pub(crate) fn visible<'a>(&'a self, extent: Extent, what: &'a BulkRead<'a>) -> VisiblePages<'a> {
        let whole = extent.intersection(Extent::whole(self.inner.size_bytes));
        VisiblePages {
            reader: self,
            what,
            next_start: whole.start.0,
            end: whole.end().0,
            region: Extent::between(whole.start, whole.start),
            left: BlockSet::new(),
            level: 0,
            pages: 0..0,
        }
    }

    async fn page(&self, level: usize, number: usize) -> Result<Option<Arc<Page>>, CloudError> {
        if let Some(page) = self.inner.pages.lock().get(&(level, number)) {
            return Ok(Some(page.clone()));
        }
        let Some(page) = self.inner.deltas[level].page(number).await? else { return Ok(None) };
        let page = Arc::new(page);
        self.inner.pages.lock().insert((level, number), page.clone(), page.heap_bytes as u64);
        Ok(Some(page))
    }
}

/// A page of a delta with the blocks that no newer delta hides.
pub(crate) struct VisiblePage {
    pub delta: Arc<DeltaReader>,
    pub number: usize,
    pub page: Arc<Page>,
    pub visible: BlockSet,
}

/// Walk over the pages of all deltas, region by region, from the newest delta down.
pub(crate) struct VisiblePages<'a> {
    reader: &'a SnapshotReader,
    what: &'a BulkRead<'a>,
    /// First block of the next region.
    next_start: u64,
    end: u64,
    region: Extent,
    /// Blocks of the region that no page has yet.
    left: BlockSet,
    /// Next delta.
    level: usize,
    /// Pages of the current delta in the region.
    pages: std::ops::Range<usize>,
}

impl VisiblePages<'_> {
    /// Returns the next page; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<VisiblePage>, CloudError> {
        loop {
            let Some(number) = self.pages.next() else {
                if !self.next_delta() {
                    return Ok(None);
                }
                continue;
            };
            let level = self.level - 1;
            let delta = &self.reader.inner.deltas[level];
            let page = match (self.reader.page(level, number).await, self.what.damage) {
                (Err(error @ CloudError::Damaged { .. }), Some(damage)) => {
                    // The blocks of a damaged page are lost, and so are those that it may hide.
                    let range = delta.root.pages.get(number).map_or(self.region, |page| page.range);
                    let lost: Vec<_> = self.left.extents_in(range).collect();
                    damage.add(error, lost);
                    self.left.remove_extent(range);
                    continue;
                }
                (page, _) => page?,
            };
            let Some(page) = page else { continue };
            let mut visible = page.data.clone();
            visible.intersect_with(&self.left);
            self.left.subtract(&page.data);
            self.left.subtract(&page.zero);
            return Ok(Some(VisiblePage { delta: Arc::clone(delta), number, page, visible }));
        }
    }

    /// Enters the next delta of the region, or the newest one of the next region; false at the end.
    fn next_delta(&mut self) -> bool {
        if self.left.is_empty() || self.level == self.reader.inner.deltas.len() {
            if self.next_start >= self.end {
                return false;
            }
            let end = ((self.next_start / REGION_BLOCKS + 1) * REGION_BLOCKS).min(self.end);
            self.region = Extent::between(BlockIndex(self.next_start), BlockIndex(end));
            self.next_start = end;
            self.left = BlockSet::from_iter([self.region]);
            if let Some(skip) = self.what.skip {
                self.left.subtract(&skip.slice(self.region));
            }
            self.level = 0;
            if self.reader.inner.deltas.is_empty() {
                return true;
            }
        }
        let delta = &self.reader.inner.deltas[self.level];
        self.pages = delta.root.pages_in(self.region);
        self.level += 1;
        true
    }
}
