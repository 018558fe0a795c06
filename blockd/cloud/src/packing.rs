//! Pack assembly: chunks of blocks are read and sealed concurrently, and appended to their pack in order.
//!
//! Chunks are small, so that they are sealed while they are still in the CPU cache, that a task yields soon,
//! and that few bytes are in memory twice. Raw blocks, sealed frames and objects use pooled buffers.

use crate::{
    CloudError, CompressionLevel,
    adaptive::Stage,
    buffers::Buffer,
    frame::BLOCK,
    job::{Job, max_chunks},
    names::ObjectKind,
    pack::{OBJECT_HEADER_LEN, max_frames_len, object_header, seal_frames},
};
use blockd_extent::Extent;
use blockd_store::Work;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use tokio::{sync::SemaphorePermit, task::unconstrained};

/// Frames of a chunk: 2 MiB of blocks.
pub(crate) const CHUNK_FRAMES: usize = 4;

/// Assembled pack.
pub(crate) struct Pack {
    /// Size of its blocks, in bytes.
    pub raw_len_bytes: usize,
    /// Compression of its frames.
    pub level: CompressionLevel,
    /// Object; `None` if all blocks are zero.
    pub body: Option<Bytes>,
    /// Stored length of each frame.
    pub lens: Vec<u32>,
}

/// Sealed frames, concatenated, and their lengths.
struct Chunk {
    sealed: Buffer,
    lens: Vec<u32>,
}

impl Job {
    /// Reads and seals a pack; returns `None` if it is no longer wanted once there is room for it.
    ///
    /// # Errors
    /// [`CloudError::ReadVolume`].
    pub(crate) async fn build(
        self: &Arc<Self>,
        pack_no: u32,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Option<Pack>, CloudError> {
        let _building = self.packing.building.acquire().await;
        if !is_wanted() {
            return Ok(None);
        }
        // Recorded while packs in flight have the memory.
        let level = self.levels.of_pack(pack_no).await?;
        let sizes = self.layout.frame_sizes(pack_no);
        let raw_len_bytes = sizes.iter().sum::<usize>() * BLOCK;
        let mut body = self.packing.memory.reserve(OBJECT_HEADER_LEN + max_frames_len(&sizes)).await;
        // Packs in flight had the memory.
        if !is_wanted() {
            return Ok(None);
        }
        let header = object_header(ObjectKind::Pack(pack_no), &self.key, &self.spec.delta_id());
        body.appendable().extend_from_slice(&header);
        let (mut first_frame, _) = self.layout.pack_frames(pack_no);
        let mut chunks = Vec::new();
        for sizes in sizes.chunks(CHUNK_FRAMES) {
            chunks.push(self.chunk(pack_no, level, first_frame, sizes.to_vec()));
            first_frame += sizes.len() as u64;
        }
        let mut chunks = futures::stream::iter(chunks).buffered(max_chunks(self.packing.cpu_threads));
        let mut lens = Vec::with_capacity(sizes.len());
        while let Some((chunk, in_memory)) = chunks.try_next().await? {
            lens.extend_from_slice(&chunk.lens);
            // Takes less than a millisecond: in place, so that other chunks do not wait for a thread.
            body.appendable().extend_from_slice(chunk.sealed.as_ref());
            drop((chunk, in_memory));
            body.release_beyond(body.len_bytes() + max_frames_len(&sizes[lens.len()..]));
        }
        drop(chunks);
        assert_eq!(lens.len(), sizes.len(), "every frame of the pack has a length");
        let stored = lens.iter().map(|len| *len as usize).sum::<usize>();
        assert_eq!(body.len_bytes(), OBJECT_HEADER_LEN + stored, "the frames are those of the lengths");
        let body = (stored > 0).then(|| body.freeze());
        Ok(Some(Pack { raw_len_bytes, level, body, lens }))
    }

    /// Reads and seals a chunk; returns it with its permit, which ends with the append.
    async fn chunk(
        self: &Arc<Self>,
        pack_no: u32,
        level: CompressionLevel,
        first_frame: u64,
        sizes: Vec<usize>,
    ) -> Result<(Chunk, Option<SemaphorePermit<'_>>), CloudError> {
        // In the order of the chunks, as the permits return in it: tokio's budget could let a later chunk
        // take one first.
        let in_memory = unconstrained(self.packing.chunks.acquire()).await.ok();
        let raw = self.read(pack_no, first_frame, &sizes).await?;
        let _core = self.packing.cores.acquire().await;
        let _sealing = self.levels.adaptive.enter(Stage::Sealing);
        let job = self.clone();
        let chunk = self
            .work
            .run(move || {
                let mut sealed = job.packing.buffers.empty(max_frames_len(&sizes));
                let lens = job.packing.writers.with(|writer| {
                    let out = sealed.appendable();
                    seal_frames(writer, &job.sealer, level, first_frame, &sizes, raw.as_ref(), out)
                });
                Chunk { sealed, lens }
            })
            .await?;
        Ok((chunk, in_memory))
    }

    /// Reads the blocks of consecutive frames.
    async fn read(&self, pack_no: u32, first_frame: u64, sizes: &[usize]) -> Result<Buffer, CloudError> {
        let waiting_work = self.reader.may_wait().then(Work::default);
        let len_bytes = sizes.iter().sum::<usize>() * BLOCK;
        let extents =
            self.layout.frame_extents(&self.spec.data, first_frame, first_frame + sizes.len() as u64);
        let extents_len: u64 = extents.iter().map(|extent| extent.len_bytes()).sum();
        assert_eq!(extents_len, len_bytes as u64, "the extents are those of the frames");
        debug_assert!(extents.is_sorted_by(|a, b| a.end() < b.start), "extents are maximal and ascending");
        let (buffers, reader) = (Arc::clone(&self.packing.buffers), Arc::clone(&self.reader));
        let read = move || {
            let mut raw = buffers.filled(len_bytes);
            reader.read_extents(&extents, raw.as_mut()).map_err(|source| CloudError::ReadVolume {
                pack_no,
                extents: describe(&extents),
                source,
            })?;
            Ok(raw)
        };
        waiting_work.as_ref().unwrap_or(&self.work).run(read).await?
    }
}

/// Describes extents for messages: their number, start and end.
fn describe(extents: &[Extent]) -> String {
    match extents {
        [] => "no blocks".to_owned(),
        [only] => only.to_string(),
        [first, .., last] => {
            format!("{} extents from {} to {}", extents.len(), first.start, last.end())
        }
    }
}
