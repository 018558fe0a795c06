//! Reads of a delta: index, pages and frames, with few requests.

use crate::{
    CloudError, Repository,
    cipher::Domain,
    frame::{FrameMemory, FrameReader, OwnedFrame},
    index::{MAX_PAGE_LEN, MAX_ROOT_LEN, Page, PageRef, Root},
    keys::DataKey,
    manifest::Delta,
    names::{DeltaId, ObjectKind},
    pack::{OBJECT_HEADER_LEN, check_object_header},
    plan::PACK_FRAMES,
    references::ReferenceGroup,
    repository::{run_blocking, run_request},
    seal::Sealer,
    wanted::{FetchJob, MAX_GAP, WantedFrame, WantedRun, cut, group},
};
use blockd_extent::{BlockIndex, BlockSet};
use blockd_store::{BlobStore, Pieces, StoreError, TransferMemory};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Maximum length of an index read with one request.
const MAX_WHOLE_INDEX: u64 = 256 << 10;
/// Description of the damage of a truncated frame.
pub(crate) const NOT_WHOLE: &str = "the frame was not fetched whole";

/// Open delta.
pub(crate) struct DeltaReader {
    pub root: Root,
    id: DeltaId,
    key: DataKey,
    sealer: Sealer,
    store: Arc<dyn BlobStore>,
    /// Whole index, if small.
    index: Option<Bytes>,
}

/// Callback for decrypted blocks.
pub(crate) type BlockSink = dyn Fn(BlockIndex, &[u8]) -> Result<(), CloudError> + Send + Sync;

impl DeltaReader {
    /// Reads the root of a delta's index and checks it against the manifest.
    pub async fn open(repo: &Repository, delta: &Delta, keep: &mut u64) -> Result<Self, CloudError> {
        let id = delta.id();
        let object = id.index_key();
        let key = repo
            .find_key(delta.key_id)
            .ok_or_else(|| CloudError::UnknownKey { object: object.clone(), key_id: delta.key_id })?;
        let sealer = Sealer::new(&key, &id, &delta.salt);
        let index = &delta.index;
        if index.root_len_bytes > MAX_ROOT_LEN {
            return Err(CloudError::damaged(
                &object,
                index.root_offset_bytes,
                "its root exceeds the maximum length",
            ));
        }
        let whole = index.len_bytes <= MAX_WHOLE_INDEX;
        let first_page_is_root = index.root_offset_bytes == OBJECT_HEADER_LEN as u64;
        let start = if whole || first_page_is_root { 0 } else { index.root_offset_bytes };
        let fetched = repo
            .store()
            .get_range(&object, start, index.len_bytes - start)
            .await
            .map_err(|error| CloudError::missing_is_damage(error, start))?;
        if start == 0 {
            check_object_header(&fetched, ObjectKind::Index, &key, &id, &object)?;
        }
        let root_bytes = fetched.slice((index.root_offset_bytes - start) as usize..);
        let expected = index.root_sha256;
        let damaged = |what: &str| CloudError::damaged(&object, index.root_offset_bytes, what);
        if Sha256::digest(&root_bytes)[..] != expected {
            return Err(damaged(
                "its root is not the one that the manifest names: it was altered or replaced",
            ));
        }
        let mut root_bytes = root_bytes.to_vec();
        let plain_len = root_bytes.len().saturating_sub(crate::cipher::TAG_LEN_BYTES) as u64;
        let root = sealer.open(Domain::IndexRoot, 0, plain_len, &mut root_bytes).ok_or_else(|| {
            damaged("its root does not open: it was altered, moved, or sealed with another key")
        })?;
        let root = Root::parse(root).map_err(|what| damaged(&format!("its root is not valid: {what}")))?;
        let said = (delta.pack_count, delta.frames, delta.data_blocks, delta.zero_blocks);
        if (root.pack_count, root.frames, root.data_blocks, root.zero_blocks) != said
            || root.reference_blocks != delta.reference_blocks
        {
            return Err(damaged("its root and the manifest disagree about its blocks"));
        }
        let end =
            root.pages.last().map_or(OBJECT_HEADER_LEN as u64, |p| p.offset_bytes + u64::from(p.sealed_len));
        if end != index.root_offset_bytes {
            return Err(damaged("its pages do not end where its root begins"));
        }
        let kept = (whole && *keep >= index.len_bytes).then(|| {
            *keep -= index.len_bytes;
            fetched
        });
        debug_assert!(kept.as_ref().is_none_or(|kept| kept.len() as u64 == index.len_bytes));
        Ok(Self { root, id, key, sealer, store: repo.store().clone(), index: kept })
    }

    /// Returns the identity of the delta.
    pub fn id(&self) -> DeltaId {
        self.id
    }

    /// Returns the source of references of the delta.
    pub fn source(&self, group: &ReferenceGroup) -> DeltaId {
        // The parser of the page checked it.
        self.root.sources[group.source as usize]
    }

    /// Reads a page; `None` if it is empty.
    pub async fn page(self: &Arc<Self>, number: usize) -> Result<Option<Page>, CloudError> {
        self.page_from(&*self.store, number).await
    }

    /// Reads a [`page`](Self::page) through another view of the store.
    pub async fn page_from(
        self: &Arc<Self>,
        store: &dyn BlobStore,
        number: usize,
    ) -> Result<Option<Page>, CloudError> {
        let Some(place) = self.root.pages.get(number).copied().filter(|page| page.sealed_len > 0) else {
            return Ok(None);
        };
        assert!(u64::from(place.sealed_len) <= MAX_PAGE_LEN, "the root was checked");
        let object = self.id.index_key();
        let with_blocks = |error: CloudError| error.with_blocks(place.range);
        let len = u64::from(place.sealed_len);
        let sealed = match &self.index {
            // All pages are included: the check at the open ensures that the root follows them.
            Some(index) => index.slice(place.offset_bytes as usize..(place.offset_bytes + len) as usize),
            None => {
                // The first page is read together with the object header before it, to check the header.
                let lead =
                    if place.offset_bytes == OBJECT_HEADER_LEN as u64 { OBJECT_HEADER_LEN as u64 } else { 0 };
                let fetched = store.get_range(&object, place.offset_bytes - lead, len + lead).await;
                let fetched =
                    fetched.map_err(|e| with_blocks(CloudError::missing_is_damage(e, place.offset_bytes)))?;
                if lead > 0 {
                    check_object_header(&fetched, ObjectKind::Index, &self.key, &self.id, &object)?;
                }
                fetched.slice(lead as usize..)
            }
        };
        let reader = self.clone();
        let page = run_blocking(move || {
            reader.open_page(number, &place, &sealed).map_err(|what| {
                let what = format!("page {number} of the index is not usable: {what}");
                CloudError::damaged(&object, place.offset_bytes, what).with_blocks(place.range)
            })
        });
        Ok(Some(page.await?))
    }

    fn open_page(&self, number: usize, place: &PageRef, sealed: &[u8]) -> Result<Page, &'static str> {
        if sealed.last_chunk() != Some(&place.tag) {
            return Err("it is not the page that the root names: it was altered or replaced");
        }
        let mut sealed = sealed.to_vec();
        let plain_len = sealed.len().saturating_sub(crate::cipher::TAG_LEN_BYTES) as u64;
        let plain = self
            .sealer
            .open(Domain::IndexPage, number as u64, plain_len, &mut sealed)
            .ok_or("it does not open: it was altered, moved, or sealed with another key")?;
        Page::parse(plain, place, self.root.sources.len())
    }

    /// Returns the requests for the wanted blocks of a page. Frames of zeroes need none.
    pub fn jobs(&self, number: usize, page: &Page, wanted: &BlockSet) -> Vec<FetchJob> {
        group(self.frames_in_bulk(number, page, wanted), MAX_GAP, u32::MAX)
    }

    /// Returns the frames of many data blocks of a page. Frames of zeroes are left out.
    pub fn frames_in_bulk(&self, number: usize, page: &Page, wanted: &BlockSet) -> Vec<WantedFrame> {
        let Some(place) = self.root.pages.get(number) else { return Vec::new() };
        debug_assert!(is_subset(wanted, &page.data), "blocks that page {number} does not have");
        let mut rank = 0;
        let ranked = page.data.extents_in(place.range).flat_map(|run| {
            let below = rank;
            rank += run.len_blocks;
            wanted.extents_in(run).map(move |piece| (below + piece.start.0 - run.start.0, piece))
        });
        cut(place, page, ranked)
    }

    /// Returns the frames of some data blocks of a page. For few blocks: the cost does not depend on the
    /// page's size.
    pub fn frames_of(&self, number: usize, page: &Page, wanted: &BlockSet) -> Vec<WantedFrame> {
        let Some(place) = self.root.pages.get(number) else { return Vec::new() };
        debug_assert!(is_subset(wanted, &page.data), "blocks that page {number} does not have");
        cut(place, page, wanted.extents().map(|piece| (page.data.rank(piece.start), piece)))
    }

    /// Decrypts a frame in place, destroying its stored bytes.
    pub fn open_frame(
        &self,
        frame: &WantedFrame,
        stored: &mut [u8],
        memory: &Arc<FrameMemory>,
    ) -> Result<OwnedFrame, CloudError> {
        OwnedFrame::open(&self.sealer, frame.ordinal(), frame.blocks, stored, memory)
            .map_err(|what| self.damaged_frame(frame, what))
    }

    /// Returns the error of a damaged frame.
    pub fn damaged_frame(&self, frame: &WantedFrame, what: &str) -> CloudError {
        CloudError::damaged(&self.pack_key_of(frame), u64::from(frame.offset_bytes), what)
            .with_blocks(frame.extent())
    }

    /// Returns the object of a frame.
    pub fn pack_key_of(&self, frame: &WantedFrame) -> String {
        self.id.pack_key((frame.ordinal() / PACK_FRAMES) as u32)
    }

    /// Reads the bytes of a job; returns them with their offset in the pack.
    pub async fn fetch(&self, job: &FetchJob) -> Result<(u32, Bytes), CloudError> {
        let object = self.id.pack_key(job.pack_no());
        let (start, end) = (job.start(), job.end());
        assert!(start < end, "a request for no bytes of {object}");
        let fetched = self.store.get_range(&object, start.into(), (end - start).into()).await;
        let fetched = fetched.map_err(|error| Self::fetch_failed(job, error))?;
        self.check_header(job, start, &fetched)?;
        Ok((start, fetched))
    }

    /// Reads the bytes of a job into `memory`; passes on those of each `chunk_frames` frames, in their order,
    /// with their offset in the pack. Returns their number.
    pub async fn fetch_chunks(
        &self,
        job: &FetchJob,
        chunk_frames: usize,
        memory: &TransferMemory,
        pass: impl Fn((u32, Bytes)) + Send + Sync + 'static,
    ) -> Result<u64, CloudError> {
        let object = self.id.pack_key(job.pack_no());
        let (start, end) = (job.start(), job.end());
        assert!(start < end, "a request for no bytes of {object}");
        let ends = job.chunk_ends(chunk_frames).map(|end| u64::from(end - start)).collect();
        let pieces =
            Pieces::new(memory.clone(), ends, move |offset, content| pass((start + offset as u32, content)));
        let store = self.store.clone();
        let fetched = run_request(async move { Ok(store.get_pieces(&object, start.into(), &pieces).await) });
        fetched.await?.map_err(|error| Self::fetch_failed(job, error))?;
        Ok((end - start).into())
    }

    fn fetch_failed(job: &FetchJob, error: StoreError) -> CloudError {
        CloudError::missing_is_damage(error, job.start().into()).with_blocks(job.extent())
    }

    /// Checks the header of a pack, if the bytes fetched from `start` on have it.
    pub fn check_header(&self, job: &FetchJob, start: u32, fetched: &[u8]) -> Result<(), CloudError> {
        if start > 0 {
            return Ok(());
        }
        let object = self.id.pack_key(job.pack_no());
        check_object_header(fetched, ObjectKind::Pack(job.pack_no()), &self.key, &self.id, &object)
            .map_err(|error| error.with_blocks(job.extent()))
    }

    /// Decrypts a fetched frame and passes its wanted nonzero blocks to the sink, each extent at once.
    pub fn decode(
        &self,
        reader: &mut FrameReader,
        frame: &WantedFrame,
        start: u32,
        fetched: &[u8],
        sink: &BlockSink,
    ) -> Result<(), CloudError> {
        let damaged = |what: &str| self.damaged_frame(frame, what);
        let stored = frame.stored(start, fetched).ok_or_else(|| damaged(NOT_WHOLE))?;
        let opened = reader.open(&self.sealer, frame.ordinal(), frame.blocks, stored).map_err(damaged)?;
        for WantedRun { position, extent, .. } in frame.runs() {
            for (offset, blocks) in opened.nonzero(*position as usize, extent.len_blocks as usize) {
                sink(BlockIndex(extent.start.0 + offset as u64), blocks)?;
            }
        }
        Ok(())
    }
}

fn is_subset(set: &BlockSet, of: &BlockSet) -> bool {
    let mut other = set.clone();
    other.subtract(of);
    other.is_empty()
}
