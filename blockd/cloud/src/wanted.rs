//! Wanted frames of a delta, and the requests that read them.

use crate::{
    frame::FRAME_BLOCKS,
    index::{Page, PageRef},
    pack::OBJECT_HEADER_LEN,
    plan::PACK_FRAMES,
    references::displaced_extent,
};
use blockd_extent::{BlockIndex, Extent};

/// Maximum gap that is read to merge two requests.
pub(crate) const MAX_GAP: u32 = 512 << 10;

/// Wanted frame and its blocks.
#[derive(Clone, Debug)]
pub(crate) struct WantedFrame {
    ordinal: u64,
    /// Number of blocks.
    pub blocks: usize,
    pub offset_bytes: u32,
    len_bytes: u32,
    runs: Vec<WantedRun>,
}

/// Consecutive wanted blocks of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WantedRun {
    /// Position of the first one in the frame.
    pub position: u32,
    /// Blocks of the volume.
    pub extent: Extent,
    /// Distance to the blocks of the frame's delta, for blocks that refer to it.
    pub displacement: i64,
}

impl WantedFrame {
    fn end(&self) -> u32 {
        self.offset_bytes + self.len_bytes
    }

    /// Returns its number in the delta.
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// Returns its offset in the pack and its stored length.
    pub fn place(&self) -> (u64, u64) {
        (self.offset_bytes.into(), self.len_bytes.into())
    }

    /// Returns the wanted parts.
    pub fn runs(&self) -> &[WantedRun] {
        &self.runs
    }

    /// Returns the frame with the blocks that refer to the wanted ones.
    pub fn referenced_from(mut self, displacement: i64) -> Self {
        for run in &mut self.runs {
            // Always present: the page with the references was checked.
            run.extent = displaced_extent(run.extent, -displacement).unwrap_or(run.extent);
            run.displacement = displacement;
        }
        self
    }

    /// Returns its wanted blocks, each with its displacement.
    pub fn displacements(&self) -> impl Iterator<Item = (Extent, i64)> + '_ {
        self.runs.iter().map(|run| (run.extent, run.displacement))
    }

    /// Returns its bytes among those fetched from `start` on.
    pub fn stored<'a>(&self, start: u32, fetched: &'a [u8]) -> Option<&'a [u8]> {
        let from = self.offset_bytes.checked_sub(start)? as usize;
        fetched.get(from..from + self.len_bytes as usize)
    }

    pub(crate) fn extent(&self) -> Extent {
        hull(self.wanted())
    }

    /// Returns its wanted blocks.
    pub fn wanted(&self) -> impl Iterator<Item = Extent> + '_ {
        self.runs.iter().map(|run| run.extent)
    }

    pub fn wanted_blocks(&self) -> u64 {
        self.runs.iter().map(|run| run.extent.len_blocks).sum()
    }
}

/// Frames of a pack read with one request.
#[derive(Clone, Debug)]
pub(crate) struct FetchJob {
    pack_no: u32,
    pub frames: Vec<WantedFrame>,
}

/// Splits extents, each with its rank among the data blocks of the page, by frame. Frames of zeroes are
/// skipped.
pub(crate) fn cut(
    place: &PageRef,
    page: &Page,
    runs: impl Iterator<Item = (u64, Extent)>,
) -> Vec<WantedFrame> {
    let mut frames: Vec<WantedFrame> = Vec::new();
    let frame_blocks = FRAME_BLOCKS as u64;
    for (rank, piece) in runs {
        debug_assert!(rank + piece.len_blocks <= place.data_blocks.into(), "{piece} at rank {rank}");
        let mut at = piece.start.0;
        while at < piece.end().0 {
            let here = rank + (at - piece.start.0);
            let (frame, position) = (here / frame_blocks, here % frame_blocks);
            let len = (frame_blocks - position).min(piece.end().0 - at);
            let extent = Extent::new(BlockIndex(at), len);
            let run = WantedRun { position: position as u32, extent, displacement: 0 };
            at += len;
            let ordinal = place.frame_base + frame;
            debug_assert!(frames.last().is_none_or(|last| last.ordinal <= ordinal), "frames are ascending");
            match frames.last_mut() {
                Some(last) if last.ordinal == ordinal => last.runs.push(run),
                _ => {
                    // Always present: the decoder checks that the page has a location for each frame.
                    let Some(stored) = page.frames.get(frame as usize) else { continue };
                    let below = frame * frame_blocks;
                    frames.push(WantedFrame {
                        ordinal,
                        blocks: (u64::from(place.data_blocks) - below).min(frame_blocks) as usize,
                        offset_bytes: stored.offset_bytes,
                        len_bytes: stored.len_bytes,
                        runs: vec![run],
                    });
                }
            }
        }
    }
    frames.retain(|frame| frame.len_bytes > 0);
    debug_assert!(frames.iter().all(|frame| frame.wanted_blocks() <= frame.blocks as u64));
    frames
}

/// Merges ascending frames of one delta; a frame of both has the wanted blocks of both.
pub(crate) fn merge_frames(one: Vec<WantedFrame>, other: Vec<WantedFrame>) -> Vec<WantedFrame> {
    if one.is_empty() {
        return other;
    }
    let mut all = one;
    all.extend(other);
    all.sort_by_key(WantedFrame::ordinal);
    all.dedup_by(|next, kept| {
        let is_same = next.ordinal == kept.ordinal;
        if is_same {
            kept.runs.append(&mut next.runs);
        }
        is_same
    });
    all
}

fn hull(extents: impl Iterator<Item = Extent>) -> Extent {
    let ends = extents.map(|extent| (extent.start, extent.end()));
    let ends = ends.reduce(|(start, end), other| (start.min(other.0), end.max(other.1)));
    ends.map_or(Extent::new(BlockIndex(0), 0), |(start, end)| Extent::between(start, end))
}

/// Groups neighbouring frames into requests, ascending.
pub(crate) fn group(frames: Vec<WantedFrame>, max_gap: u32, max_len: u32) -> Vec<FetchJob> {
    let mut jobs: Vec<FetchJob> = Vec::new();
    for frame in frames {
        let pack_no = (frame.ordinal / PACK_FRAMES) as u32;
        debug_assert!(
            jobs.last().is_none_or(|job| (job.pack_no, job.end()) <= (pack_no, frame.offset_bytes)),
            "frames are ascending"
        );
        match jobs.last_mut() {
            Some(job)
                if job.pack_no == pack_no
                    && frame.offset_bytes - job.end() <= max_gap
                    && frame.end() - job.start() <= max_len =>
            {
                job.frames.push(frame);
            }
            _ => jobs.push(FetchJob { pack_no, frames: vec![frame] }),
        }
    }
    jobs
}

impl FetchJob {
    /// Returns the request for one frame.
    pub fn alone(pack_no: u32, frame: WantedFrame) -> Self {
        debug_assert_eq!(frame.ordinal / PACK_FRAMES, u64::from(pack_no), "a frame of another pack");
        Self { pack_no, frames: vec![frame] }
    }

    pub fn pack_no(&self) -> u32 {
        self.pack_no
    }

    /// Returns the start of the request: the header, if the first frame of the pack is wanted.
    pub fn start(&self) -> u32 {
        match self.frames.first() {
            Some(frame) if frame.offset_bytes > OBJECT_HEADER_LEN as u32 => frame.offset_bytes,
            _ => 0,
        }
    }

    /// Returns the end of the last frame in the pack.
    pub fn end(&self) -> u32 {
        self.frames.last().map_or(0, WantedFrame::end)
    }

    /// Returns the end of the last frame of each chunk in the pack.
    pub fn chunk_ends(&self, chunk_frames: usize) -> impl Iterator<Item = u32> + '_ {
        self.frames.chunks(chunk_frames).filter_map(|chunk| chunk.last().map(WantedFrame::end))
    }

    pub fn extent(&self) -> Extent {
        hull(self.wanted())
    }

    /// Returns the wanted blocks, each with its displacement.
    pub fn runs(&self) -> impl Iterator<Item = (Extent, i64)> + '_ {
        self.frames.iter().flat_map(WantedFrame::displacements)
    }

    /// Returns the wanted blocks.
    pub fn wanted(&self) -> impl Iterator<Item = Extent> + '_ {
        self.frames.iter().flat_map(WantedFrame::wanted)
    }

    pub fn wanted_blocks(&self) -> u64 {
        self.frames.iter().map(WantedFrame::wanted_blocks).sum()
    }
}
