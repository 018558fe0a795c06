//! Writer of the index of a delta, page by page, from the journal.
//!
//! Memory holds one page and the unsent bytes; a long index is sent with a multipart upload while it is being
//! built.

use crate::{
    CloudError,
    cipher::{Domain, TAG_LEN_BYTES},
    index::{MAX_PAGE_LEN, MAX_ROOT_LEN, Page, PageRef, Root, encode_page},
    job::Job,
    manifest::IndexRef,
    names::ObjectKind,
    pack::{OBJECT_HEADER_LEN, object_header},
    plan::{PACK_FRAMES, PageSpan},
};
use blockd_extent::{BlockSet, Extent};
use blockd_store::PART_LEN_BYTES;
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Index length in bytes from which the upload is multipart.
const MAX_SINGLE_PUT: usize = 64 << 20;

/// Stored index.
pub(crate) struct StoredIndex {
    pub reference: IndexRef,
    /// Total bytes of all packs.
    pub packs_len_bytes: u64,
}

/// Stores the index of a backup, after all its packs.
pub(crate) async fn write_index(job: &Arc<Job>) -> Result<StoredIndex, CloudError> {
    let delta = job.spec.delta_id();
    let mut upload = IndexUpload {
        job: job.clone(),
        object: delta.index_key(),
        buffer: object_header(ObjectKind::Index, &job.key, &delta).to_vec(),
        sent_bytes: 0,
        upload: None,
    };
    let result = upload.write().await;
    if let (Err(_), Some((id, _))) = (&result, &upload.upload) {
        let _ = job.store.multipart_abort(&upload.object, id).await;
    }
    result
}

struct IndexUpload {
    job: Arc<Job>,
    object: String,
    buffer: Vec<u8>,
    sent_bytes: u64,
    upload: Option<(String, Vec<String>)>,
}

impl IndexUpload {
    fn position(&self) -> u64 {
        self.sent_bytes + self.buffer.len() as u64
    }

    async fn write(&mut self) -> Result<StoredIndex, CloudError> {
        let layout = &self.job.clone().layout;
        let mut pages = Vec::with_capacity(layout.pages.len());
        // Carried across pages, because a pack may continue on the next page.
        let mut packs = PackLengths::default();
        for (number, span) in layout.pages.iter().enumerate() {
            let (job, span, mut lengths) = (self.job.clone(), *span, packs);
            let work = job.work.clone();
            let seal = move || {
                let sealed = seal_page(&job, number as u64, &span, &mut lengths)?;
                Ok::<_, CloudError>((sealed, lengths))
            };
            let (sealed, lengths) = work.run(seal).await??;
            assert!(lengths.total >= packs.total, "packs do not shrink");
            packs = lengths;
            pages.push(page_ref(&span, &sealed, self.position()));
            self.append(&sealed).await?;
        }
        let root = Root {
            size_bytes: self.job.spec.size_bytes,
            frames: layout.frames,
            data_blocks: layout.data_blocks,
            zero_blocks: self.job.spec.zero.len_blocks(),
            reference_blocks: layout.reference_blocks,
            pack_count: layout.pack_count,
            sources: self.job.spec.references.source_ids().to_vec(),
            pages,
        };
        let parsed = root;
        let mut root = parsed.encode();
        assert!(Root::parse(&root) == Ok(parsed), "the root of the index does not decode to itself");
        let plain_len = root.len() as u64;
        assert!(plain_len <= MAX_ROOT_LEN, "no reader accepts a root of {plain_len} bytes");
        self.job.sealer.seal(Domain::IndexRoot, 0, plain_len, &mut root, 0);
        let root_offset_bytes = self.position();
        self.append(&root).await?;
        let len_bytes = self.position();
        assert_eq!(root_offset_bytes + root.len() as u64, len_bytes, "the root is the end of the index");
        self.finish().await?;
        Ok(StoredIndex {
            reference: IndexRef {
                len_bytes,
                root_offset_bytes,
                root_len_bytes: root.len() as u64,
                root_sha256: Sha256::digest(&root).into(),
            },
            packs_len_bytes: packs.total,
        })
    }

    async fn append(&mut self, bytes: &[u8]) -> Result<(), CloudError> {
        self.buffer.extend_from_slice(bytes);
        if self.upload.is_none() && self.buffer.len() > MAX_SINGLE_PUT {
            let id = self.job.store.multipart_start(&self.object).await?;
            self.upload = Some((id, Vec::new()));
        }
        while self.upload.is_some() && self.buffer.len() > PART_LEN_BYTES {
            let rest = self.buffer.split_off(PART_LEN_BYTES);
            let part = std::mem::replace(&mut self.buffer, rest);
            self.send(part).await?;
        }
        Ok(())
    }

    async fn send(&mut self, part: Vec<u8>) -> Result<(), CloudError> {
        let Some((id, tags)) = &mut self.upload else { return Ok(()) };
        assert!((1..=PART_LEN_BYTES).contains(&part.len()), "a part of {} bytes", part.len());
        self.sent_bytes += part.len() as u64;
        let tag = self.job.store.multipart_put(&self.object, id, tags.len() as u32, part.into()).await?;
        tags.push(tag);
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), CloudError> {
        let rest = std::mem::take(&mut self.buffer);
        if self.upload.is_none() {
            return self.job.put(&self.object, rest.into()).await;
        }
        let last_at = self.sent_bytes;
        self.send(rest.clone()).await?;
        if let Some((id, tags)) = &self.upload
            && let Err(error) = self.job.store.multipart_complete(&self.object, id, tags).await
            && !self.is_complete(last_at, &rest).await
        {
            return Err(error.into());
        }
        self.upload = None;
        Ok(())
    }

    /// Returns true if the multipart upload was completed although the response was lost and the store no
    /// longer knows the upload. The last part contains the root with the tags of all pages.
    async fn is_complete(&self, last_at: u64, last: &[u8]) -> bool {
        let found = self.job.store.get_range(&self.object, last_at, last.len() as u64).await;
        found.is_ok_and(|found| found[..] == *last)
    }
}

/// Positions of frames in packs.
#[derive(Clone, Copy, Default)]
struct PackLengths {
    /// Stored bytes of the preceding frames of the next frame's pack.
    open: u64,
    /// Stored bytes of all objects, headers included.
    total: u64,
}

/// Returns the reference to a page stored at an offset.
fn page_ref(span: &PageSpan, sealed: &[u8], offset_bytes: u64) -> PageRef {
    PageRef {
        range: span.range,
        frame_base: span.frame_base,
        data_blocks: span.data_blocks as u32,
        reference_blocks: span.reference_blocks as u32,
        sealed_len: sealed.len() as u32,
        offset_bytes,
        tag: sealed.last_chunk().copied().unwrap_or_default(),
    }
}

/// Returns a sealed page; no bytes if the page is empty.
fn seal_page(
    job: &Job,
    number: u64,
    span: &PageSpan,
    lengths: &mut PackLengths,
) -> Result<Vec<u8>, CloudError> {
    let (mut data, mut zero) = (within(&job.spec.data, span.range), within(&job.spec.zero, span.range));
    let references = job.spec.references.within(span.range);
    if data.is_empty() && zero.is_empty() && references.is_empty() {
        return Ok(Vec::new());
    }
    data.optimize();
    zero.optimize();
    let frames = span.frame_base..span.frame_base + span.frames();
    let lens = frame_lens(job, frames.clone())?;
    if frames.start.is_multiple_of(PACK_FRAMES) {
        lengths.open = 0;
    }
    let first_offset_bytes = OBJECT_HEADER_LEN as u64 + lengths.open;
    for (frame, len) in frames.zip(&lens) {
        if frame.is_multiple_of(PACK_FRAMES) {
            lengths.open = 0;
        }
        if lengths.open == 0 && *len > 0 {
            lengths.total += OBJECT_HEADER_LEN as u64;
        }
        lengths.open += u64::from(*len);
        lengths.total += u64::from(*len);
    }
    let mut page = encode_page(&data, &zero, &references, first_offset_bytes as u32, &lens);
    let sources = job.spec.references.source_ids().len();
    let stored = Page::parse(&page, &page_ref(span, &page, OBJECT_HEADER_LEN as u64), sources);
    assert!(
        stored.is_ok_and(|stored| stored.data == data
            && stored.zero == zero
            && stored.references == references
            && stored.frames.iter().map(|frame| frame.len_bytes).eq(lens.iter().copied())),
        "page {number} of the index does not decode to itself"
    );
    assert!(page.len() as u64 + TAG_LEN_BYTES as u64 <= MAX_PAGE_LEN, "no reader accepts page {number}");
    let plain_len = page.len() as u64;
    job.sealer.seal(Domain::IndexPage, number, plain_len, &mut page, 0);
    Ok(page)
}

/// Returns the stored lengths of frames from the journal.
fn frame_lens(job: &Job, frames: std::ops::Range<u64>) -> Result<Vec<u32>, CloudError> {
    let mut lens = Vec::with_capacity((frames.end - frames.start) as usize);
    let mut next = frames.start;
    while next < frames.end {
        let pack_no = (next / PACK_FRAMES) as u32;
        let (first, end) = job.layout.pack_frames(pack_no);
        let recorded = job.recorder.journal().frame_lens(pack_no)?;
        let recorded = recorded.filter(|lens| lens.len() as u64 == end - first).ok_or_else(|| {
            let detail = format!("it has no record of pack {pack_no}");
            CloudError::Internal { what: "the backup journal", detail }
        })?;
        let until = end.min(frames.end);
        lens.extend_from_slice(&recorded[(next - first) as usize..(until - first) as usize]);
        assert!(until > next, "pack {pack_no} ends before frame {next}");
        next = until;
    }
    assert_eq!(lens.len() as u64, frames.end - frames.start, "the journal has a length for each frame");
    Ok(lens)
}

/// Returns the blocks of a set that are in a range.
fn within(set: &BlockSet, range: Extent) -> BlockSet {
    // An intersection works on whole containers; copying single extents would take long for a fragmented
    // terabyte.
    let mut out = BlockSet::from_iter([range]);
    out.intersect_with(set);
    out
}
