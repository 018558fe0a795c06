//! Reading a snapshot: each block comes from the newest delta that says anything about it.
//!
//! The deltas are asked newest first, each for what is left after those above it, page by page; so no page and no pack
//! is read twice, and nothing is read that is not visible, apart from small gaps.

use crate::{
    CloudError, CloudsnapId, Manifest, Repository,
    backup::cpu_threads,
    fetch::{BlockSink, DeltaReader, FetchJob},
    frame::BLOCK,
    index::Page,
    progress::Progress,
    repository::run_blocking,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use futures::{StreamExt, TryStreamExt, future::try_join_all};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::{Semaphore, mpsc};

/// Most memory that pages are kept in.
const PAGE_CACHE_BYTES: usize = 64 << 20;
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
    id: CloudsnapId,
    size_bytes: u64,
    /// Newest first.
    deltas: Vec<Arc<DeltaReader>>,
    pages: Mutex<PageCache>,
    cores: Arc<Semaphore>,
}

/// What a read of many blocks did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct FetchTotals {
    pub requests: u64,
    pub blocks: u64,
}

impl SnapshotReader {
    /// Opens a snapshot: reads the roots of its deltas' indexes and checks them against the manifest.
    ///
    /// # Errors
    /// [`CloudError::Damaged`]; [`CloudError::UnknownKey`]; whatever the store reports.
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
                pages: Mutex::default(),
                cores: Arc::new(Semaphore::new(cpu_threads(threads))),
            }),
        })
    }

    /// The snapshot.
    pub fn id(&self) -> CloudsnapId {
        self.inner.id
    }

    /// The volume's size at that time.
    pub fn size_bytes(&self) -> u64 {
        self.inner.size_bytes
    }

    /// The content of some blocks, at most 32 MiB of them; beyond the end of the volume it is zeroes.
    ///
    /// # Errors
    /// [`CloudError::Damaged`], which says what is damaged and which blocks are lost; whatever the store reports.
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

    /// The blocks of a stretch of the volume that hold data, as far as the index tells; all others are zero.
    ///
    /// # Errors
    /// Those of [`read_blocks`](Self::read_blocks).
    pub async fn data_blocks(&self, extent: Extent) -> Result<BlockSet, CloudError> {
        let mut found = BlockSet::new();
        self.visible(extent, async |_, _, _, visible| {
            found.union_with(&visible);
            Ok(())
        })
        .await?;
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
        // The planner runs ahead of the requests by no more than this many.
        let (send, receive) = mpsc::channel::<(Arc<DeltaReader>, FetchJob)>(4);
        let plan = async move {
            let send = &send;
            self.visible(extent, async |delta, number, page, visible| {
                let jobs = delta.jobs(number, &page, &visible);
                if let Some(progress) = progress {
                    // Blocks that are hidden by newer ones, or zero, are not moved.
                    let moved: u64 = jobs.iter().map(FetchJob::wanted_blocks).sum();
                    let listed = page.data.len_blocks();
                    progress.spared(listed.saturating_sub(moved) * BLOCK_SIZE_BYTES);
                }
                for job in jobs {
                    // The other half only goes away with this one.
                    let _ = send.send((delta.clone(), job)).await;
                }
                Ok(())
            })
            .await
        };
        let jobs = futures::stream::unfold(receive, |mut receive| async move {
            let job = receive.recv().await?;
            Some((job, receive))
        });
        let fetch = jobs
            .map(|(delta, job)| self.fetch_one(delta, job, sink.clone(), progress))
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
        progress: Option<&Progress>,
    ) -> Result<u64, CloudError> {
        let (start, fetched) = delta.fetch(&job).await?;
        let (pack_no, blocks) = (job.pack_no(), job.wanted_blocks());
        let chunks = job.frames.chunks(CHUNK_FRAMES).map(|frames| {
            let (delta, fetched, sink) = (delta.clone(), fetched.clone(), sink.clone());
            let (frames, cores) = (frames.to_vec(), self.inner.cores.clone());
            async move {
                let core = cores.acquire_owned().await;
                run_blocking(move || {
                    let result = delta.decode(pack_no, &frames, start, &fetched, &*sink);
                    drop(core);
                    result
                })
                .await
            }
        });
        try_join_all(chunks).await?;
        if let Some(progress) = progress {
            progress.processed(blocks * BLOCK_SIZE_BYTES);
        }
        Ok(blocks)
    }

    /// Finds, for each page of each delta, which of its data blocks are visible, and tells.
    async fn visible(
        &self,
        extent: Extent,
        mut tell: impl AsyncFnMut(&Arc<DeltaReader>, usize, Arc<Page>, BlockSet) -> Result<(), CloudError>,
    ) -> Result<(), CloudError> {
        let whole = extent.intersection(Extent::whole(self.inner.size_bytes));
        let mut start = whole.start.0;
        while start < whole.end().0 {
            let end = ((start / REGION_BLOCKS + 1) * REGION_BLOCKS).min(whole.end().0);
            let region = Extent::between(BlockIndex(start), BlockIndex(end));
            start = end;
            let mut left = BlockSet::from_iter([region]);
            for (level, delta) in self.inner.deltas.iter().enumerate() {
                for number in delta.root.pages_in(region) {
                    let Some(page) = self.page(level, number).await? else { continue };
                    let mut visible = page.data.clone();
                    visible.intersect_with(&left);
                    left.subtract(&page.data);
                    left.subtract(&page.zero);
                    tell(delta, number, page, visible).await?;
                }
                if left.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn page(&self, level: usize, number: usize) -> Result<Option<Arc<Page>>, CloudError> {
        if let Some(page) = self.inner.pages.lock().get((level, number)) {
            return Ok(Some(page));
        }
        let Some(page) = self.inner.deltas[level].page(number).await? else { return Ok(None) };
        let page = Arc::new(page);
        self.inner.pages.lock().insert((level, number), page.clone());
        Ok(Some(page))
    }
}

/// The pages that were used last, up to a number of bytes.
#[derive(Default)]
struct PageCache {
    pages: HashMap<(usize, usize), (u64, Arc<Page>)>,
    heap_bytes: usize,
    clock: u64,
}

impl PageCache {
    fn get(&mut self, at: (usize, usize)) -> Option<Arc<Page>> {
        self.clock += 1;
        let (used, page) = self.pages.get_mut(&at)?;
        *used = self.clock;
        Some(page.clone())
    }

    fn insert(&mut self, at: (usize, usize), page: Arc<Page>) {
        self.clock += 1;
        self.heap_bytes += page.heap_bytes;
        if let Some((_, before)) = self.pages.insert(at, (self.clock, page)) {
            self.heap_bytes -= before.heap_bytes;
        }
        while self.heap_bytes > PAGE_CACHE_BYTES && self.pages.len() > 1 {
            let oldest = self.pages.iter().min_by_key(|(_, (used, _))| *used).map(|(at, _)| *at);
            let Some((_, page)) = oldest.and_then(|at| self.pages.remove(&at)) else { break };
            self.heap_bytes -= page.heap_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_cache_is_bounded_and_keeps_what_is_used() {
        let page = || {
            Arc::new(Page {
                data: BlockSet::new(),
                zero: BlockSet::new(),
                frames: Vec::new(),
                heap_bytes: PAGE_CACHE_BYTES / 4,
            })
        };
        let mut cache = PageCache::default();
        for number in 0..100 {
            cache.insert((0, number), page());
            assert!(cache.get((0, 0)).is_some());
            assert!(cache.heap_bytes <= PAGE_CACHE_BYTES);
        }
        assert_eq!(cache.pages.len(), 4);
        assert!(cache.get((0, 1)).is_none() && cache.get((0, 99)).is_some());
    }
}
