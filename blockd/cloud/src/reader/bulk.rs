//! Reads of whole extents, with few requests.

use super::{
    SnapshotReader,
    references::{Jobs, PendingReferences},
    visible::VisiblePage,
};
use crate::{
    CloudError, Damage,
    buffers::Reused,
    damage::DamageList,
    fetch::{BlockSink, DeltaReader},
    frame::{BLOCK, FrameReader},
    progress::Progress,
    repository::run_blocking,
    wanted::{FetchJob, WantedFrame},
    window::Window,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use blockd_store::TransferMemory;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use std::{
    io,
    sync::{Arc, Weak},
};
use tokio::sync::mpsc::{self, UnboundedSender};

/// Frames that one thread decrypts at a time: 1 MiB of blocks, with the memory of one received piece.
const CHUNK_FRAMES: usize = 2;
/// Memory of received chunks, 25 or more. More of it does not raise the rate: chunks wait in it when the
/// store is faster than the processor.
const READ_MEMORY_BYTES: usize = 32 << 20;
/// Concurrent requests of reads other than restores.
const READ_CONCURRENCY: usize = 4;

/// Totals of a bulk read.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct FetchTotals {
    pub requests: u64,
    pub blocks: u64,
}

/// Planned requests of a bulk read.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct FetchPlan {
    pub requests: u64,
    pub bytes: u64,
}

/// Callback with extents whose nonzero blocks have all been passed to the sink.
pub(crate) type Settled = Arc<dyn Fn(&[Extent]) -> Result<(), CloudError> + Send + Sync>;

/// Parameters of a bulk read.
#[derive(Default)]
pub(crate) struct BulkRead<'a> {
    pub progress: Option<&'a Progress>,
    /// Blocks to skip.
    pub skip: Option<&'a BlockSet>,
    /// Called on threads that may block.
    pub settled: Option<Settled>,
    /// Collects damage; without it the first damage fails the read.
    pub damage: Option<&'a Arc<DamageList>>,
    /// Reads the frames of a truncated pack, or of one without a header, one by one; only with `damage`.
    pub by_frame: bool,
    /// Checks that the sources of references have their blocks, in place of reading these.
    pub check_references: bool,
    /// A reader waits for it: it shares no memory with the reads of the background.
    pub is_urgent: bool,
}

/// Memory of concurrent bulk reads of a snapshot; the last of them frees it. A lazy volume has many short
/// ones: fresh memory for each would take as long as opening its frames.
struct BulkMemory {
    /// Received chunks: each takes room from its arrival, until its blocks have been written.
    transfers: TransferMemory,
    readers: Reused<FrameReader>,
}

/// The memory of the bulk reads in flight, if any.
#[derive(Default)]
pub(super) struct SharedBulkMemory(Mutex<Weak<BulkMemory>>);

impl SharedBulkMemory {
    /// Returns the memory; it is new if no bulk read is in flight.
    fn get(&self) -> Arc<BulkMemory> {
        let mut shared = self.0.lock();
        shared.upgrade().unwrap_or_else(|| {
            let transfers = TransferMemory::new(READ_MEMORY_BYTES);
            let memory = Arc::new(BulkMemory { transfers, readers: Reused::default() });
            *shared = Arc::downgrade(&memory);
            memory
        })
    }
}

/// Limits of the requests of a bulk read.
struct Downloads {
    window: Window,
    memory: Arc<BulkMemory>,
}

impl Downloads {
    fn new(concurrency: usize, what: &BulkRead<'_>, memory: Arc<BulkMemory>) -> Self {
        let latency = what.progress.and_then(Progress::latency);
        Self { window: Window::new(concurrency, latency), memory }
    }

    /// Reads the bytes of a job; passes on those of each chunk of frames, with their offset in the pack.
    async fn fetch(
        &self,
        delta: &DeltaReader,
        job: &FetchJob,
        chunks: UnboundedSender<(u32, Bytes)>,
    ) -> Result<(), CloudError> {
        let in_flight = self.window.enter().await;
        // Cannot fail: the receiver is dropped together with this future.
        let pass = move |chunk| drop(chunks.send(chunk));
        let len_bytes = delta.fetch_chunks(job, CHUNK_FRAMES, &self.memory.transfers, pass).await?;
        in_flight.complete(len_bytes);
        Ok(())
    }
}

impl BulkRead<'_> {
    /// Records the loss of blocks, each with its displacement to the damaged delta; an error unless damage
    /// is collected.
    pub fn lose(
        &self,
        error: CloudError,
        blocks: impl IntoIterator<Item = (Extent, i64)>,
    ) -> Result<(), CloudError> {
        match self.damage {
            Some(damage) => {
                damage.add_displaced(error, blocks);
                Ok(())
            }
            None => Err(error),
        }
    }

    /// Corrects the progress by the blocks of a page that are not transferred: they are zero, or hidden by
    /// newer deltas.
    fn skip_hidden(&self, page: &VisiblePage, jobs: &[FetchJob]) {
        let Some(progress) = self.progress else { return };
        let mut listed = page.page.data.clone();
        if !self.check_references {
            listed.union_with(&page.page.referenced);
        }
        let mut follows = page.visible.clone();
        follows.subtract(&page.page.data);
        let follows = if self.check_references { 0 } else { follows.len_blocks() };
        let moved = jobs.iter().map(FetchJob::wanted_blocks).sum::<u64>() + follows;
        // Skipped blocks already count as processed.
        let in_place = self.skip.map_or(0, |skip| {
            let mut in_place = listed.clone();
            in_place.intersect_with(skip);
            in_place.len_blocks()
        });
        let listed = listed.len_blocks();
        debug_assert!(moved + in_place <= listed, "{moved} + {in_place} of {listed} blocks");
        progress.subtract_from_total(listed.saturating_sub(moved + in_place) * BLOCK_SIZE_BYTES);
    }
}

impl SnapshotReader {
    /// Reads at most 32 MiB of blocks; those beyond the end of the volume are zero.
    ///
    /// # Errors
    /// [`CloudError::Damaged`] with the damage and the lost blocks; errors of the store.
    pub async fn read_blocks(&self, extent: Extent) -> Result<Vec<u8>, CloudError> {
        const MAX_BLOCKS: u64 = (32 << 20) / BLOCK_SIZE_BYTES;
        if extent.len_blocks > MAX_BLOCKS {
            return Err(CloudError::InvalidRequest {
                what: format!("a read has at most {MAX_BLOCKS} blocks, {} were requested", extent.len_blocks),
            });
        }
        let out = Arc::new(Mutex::new(vec![0; extent.len_bytes() as usize]));
        let sink = {
            let out = out.clone();
            move |start: BlockIndex, data: &[u8]| {
                debug_assert!(start >= extent.start, "block {start} before {extent}");
                let from = (start.0 - extent.start.0) as usize * BLOCK;
                out.lock()[from..from + data.len()].copy_from_slice(data);
                Ok(())
            }
        };
        self.read_in_bulk(extent, Arc::new(sink), READ_CONCURRENCY, &BulkRead::default()).await?;
        let bytes = std::mem::take(&mut *out.lock());
        Ok(bytes)
    }

    /// Passes the non-zero blocks of an extent to `take`, unordered and on several threads, which may still
    /// run after a cancellation. Damaged frames, and blocks behind a damaged index page, are skipped and
    /// reported. An urgent read does not wait for the memory of others.
    ///
    /// # Errors
    /// Those of the store and of `take`.
    pub async fn read_sound_blocks_to(
        &self,
        extent: Extent,
        is_urgent: bool,
        take: impl Fn(BlockIndex, &[u8]) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Damage, CloudError> {
        let sink = move |start: BlockIndex, data: &[u8]| {
            take(start, data).map_err(|source| CloudError::WriteVolume { start, source })
        };
        let damage = Arc::new(DamageList::default());
        let what = BulkRead { damage: Some(&damage), by_frame: true, is_urgent, ..BulkRead::default() };
        self.read_in_bulk(extent, Arc::new(sink), READ_CONCURRENCY, &what).await?;
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
        let mut found = self.visible_blocks(extent, &what).await?;
        found.union_with(&damage.take().blocks);
        Ok(found)
    }

    /// Returns the blocks of an extent that hold data according to the index; all others are zero.
    ///
    /// # Errors
    /// Those of [`read_blocks`](Self::read_blocks).
    pub async fn data_blocks(&self, extent: Extent) -> Result<BlockSet, CloudError> {
        self.visible_blocks(extent, &BulkRead::default()).await
    }

    async fn visible_blocks(&self, extent: Extent, what: &BulkRead<'_>) -> Result<BlockSet, CloudError> {
        let mut found = BlockSet::new();
        let mut pages = self.visible(extent, what);
        while let Some(page) = pages.next().await? {
            found.union_with(&page.visible);
        }
        Ok(found)
    }

    /// Passes the non-zero blocks of an extent to the sink, in no particular order.
    pub(crate) async fn read_in_bulk(
        &self,
        extent: Extent,
        sink: Arc<BlockSink>,
        concurrency: usize,
        what: &BulkRead<'_>,
    ) -> Result<FetchTotals, CloudError> {
        // Bounds the requests planned ahead.
        let (send, receive) = mpsc::channel::<(Arc<DeltaReader>, FetchJob)>(4);
        let plan = self.plan_in_bulk(extent, what, send);
        let jobs = futures::stream::unfold(receive, |mut receive| async move {
            let job = receive.recv().await?;
            Some((job, receive))
        });
        let memory = if what.is_urgent { &self.inner.urgent_memory } else { &self.inner.bulk_memory };
        let downloads = Downloads::new(concurrency, what, memory.get());
        let fetch = jobs
            .map(|(delta, job)| self.fetch_one(delta, job, sink.clone(), what, &downloads).boxed())
            .buffer_unordered(concurrency.max(1))
            .try_fold(FetchTotals::default(), |totals, blocks| async move {
                Ok(FetchTotals { requests: totals.requests + 1, blocks: totals.blocks + blocks })
            });
        let ((), totals) = futures::try_join!(plan, fetch)?;
        Ok(totals)
    }

    /// Plans the requests of a bulk read, without sending them.
    async fn plan_in_bulk(&self, extent: Extent, what: &BulkRead<'_>, send: Jobs) -> Result<(), CloudError> {
        let mut pages = self.visible(extent, what);
        let mut references = PendingReferences::default();
        while let Some(page) = pages.next().await? {
            if let Some(complete) = references.take_if_before(&page) {
                complete.send(&self.inner, what, &send).await?;
            }
            references.add(&page);
            let mut own = page.visible.clone();
            own.intersect_with(&page.page.data);
            let jobs = page.delta.reader.jobs(page.number, &page.page, &own);
            what.skip_hidden(&page, &jobs);
            for job in jobs {
                // Cannot fail: the receiver is dropped together with this future.
                let _ = send.send((page.delta.reader.clone(), job)).await;
            }
        }
        references.send(&self.inner, what, &send).await
    }

    /// Returns the requests of a bulk read of an extent, and the bytes that they receive. Reads only pages of
    /// indexes.
    pub(crate) async fn planned_in_bulk(&self, extent: Extent) -> Result<FetchPlan, CloudError> {
        let (send, mut receive) = mpsc::channel::<(Arc<DeltaReader>, FetchJob)>(4);
        let what = BulkRead::default();
        let sum = async move {
            let mut plan = FetchPlan::default();
            while let Some((_, job)) = receive.recv().await {
                plan.requests += 1;
                plan.bytes += u64::from(job.end() - job.start());
            }
            Ok::<_, CloudError>(plan)
        };
        Ok(futures::try_join!(self.plan_in_bulk(extent, &what, send), sum)?.1)
    }

    async fn fetch_one(
        &self,
        delta: Arc<DeltaReader>,
        job: FetchJob,
        sink: Arc<BlockSink>,
        what: &BulkRead<'_>,
        downloads: &Downloads,
    ) -> Result<u64, CloudError> {
        match (self.fetch_and_open(&delta, &job, &sink, what, downloads).await, what.damage) {
            (Err(CloudError::Damaged { .. }), Some(damage)) if what.by_frame && job.frames.len() > 1 => {
                let mut blocks = 0;
                for frame in &job.frames {
                    let alone = FetchJob::alone(job.pack_no(), frame.clone());
                    match self.fetch_and_open(&delta, &alone, &sink, what, downloads).await {
                        Err(error @ CloudError::Damaged { .. }) => damage.add_displaced(error, alone.runs()),
                        opened => blocks += opened?,
                    }
                }
                Ok(blocks)
            }
            (Err(error @ CloudError::Damaged { .. }), Some(damage)) => {
                damage.add_displaced(error, job.runs());
                Ok(0)
            }
            (opened, _) => opened,
        }
    }

    /// Reads the frames of a job, decrypts them while others arrive, and passes their blocks to the sink.
    async fn fetch_and_open(
        &self,
        delta: &Arc<DeltaReader>,
        job: &FetchJob,
        sink: &Arc<BlockSink>,
        what: &BulkRead<'_>,
        downloads: &Downloads,
    ) -> Result<u64, CloudError> {
        let blocks = job.wanted_blocks();
        debug_assert!(blocks > 0, "a request for no block");
        let (pass, mut received) = mpsc::unbounded_channel::<(u32, Bytes)>();
        let open = async {
            let mut opening = FuturesUnordered::new();
            let mut chunks = job.frames.chunks(CHUNK_FRAMES);
            loop {
                tokio::select! {
                    Some(opened) = opening.next() => opened?,
                    chunk = received.recv(), if chunks.len() > 0 => {
                        // Without a chunk, the request has failed.
                        let (Some((start, fetched)), Some(frames)) = (chunk, chunks.next()) else { break };
                        delta.check_header(job, start, &fetched)?;
                        let memory = Arc::clone(&downloads.memory);
                        opening.push(self.open_chunk(delta, frames, (start, fetched), sink, what, memory));
                    }
                    else => break,
                }
            }
            Ok::<_, CloudError>(chunks.len())
        };
        let ((), missing) = futures::try_join!(downloads.fetch(delta, job, pass), open)?;
        assert_eq!(missing, 0, "a successful request passes on all chunks");
        if let Some(settled) = &what.settled {
            let extents = match what.damage {
                None => job.wanted().collect::<BlockSet>().extents().collect(),
                Some(damage) => damage.sound(job.wanted()),
            };
            debug_assert!(extents.iter().map(|extent| extent.len_blocks).sum::<u64>() <= blocks);
            let settled = settled.clone();
            run_blocking(move || settled(&extents)).await?;
        }
        if let Some(progress) = what.progress {
            progress.processed(blocks * BLOCK_SIZE_BYTES);
        }
        Ok(blocks)
    }

    /// Decrypts frames and passes their blocks to the sink.
    async fn open_chunk(
        &self,
        delta: &Arc<DeltaReader>,
        frames: &[WantedFrame],
        (start, fetched): (u32, Bytes),
        sink: &Arc<BlockSink>,
        what: &BulkRead<'_>,
        memory: Arc<BulkMemory>,
    ) -> Result<(), CloudError> {
        let (delta, frames, sink) = (delta.clone(), frames.to_vec(), sink.clone());
        let (damage, cores) = (what.damage.cloned(), self.inner.cores.clone());
        let core = cores.acquire_owned().await;
        let decode = move |reader: &mut FrameReader| {
            frames.iter().try_for_each(|frame| {
                match (delta.decode(reader, frame, start, &fetched, &*sink), &damage) {
                    // A damaged frame does not affect others.
                    (Err(error @ CloudError::Damaged { .. }), Some(damage)) => {
                        damage.add_displaced(error, frame.displacements());
                        Ok(())
                    }
                    (result, _) => result,
                }
            })
        };
        let opened = self.inner.work.run(move || memory.readers.with(decode));
        let opened = opened.await;
        drop(core);
        opened?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_reads_share_memory_that_the_last_one_frees() {
        let shared = SharedBulkMemory::default();
        let (first, second) = (shared.get(), shared.get());
        assert!(Arc::ptr_eq(&first, &second));
        drop(first);
        let freed = Arc::downgrade(&second);
        assert!(freed.ptr_eq(&Arc::downgrade(&shared.get())));
        drop(second);
        assert!(freed.upgrade().is_none());
        shared.get();
    }
}
