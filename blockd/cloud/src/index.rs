//! Index of a delta: pages map blocks to frames; the root locates the pages.
//!
//! A page covers one extent of the volume and is read independently of other pages: the first read of a 1 TiB
//! snapshot fetches some hundred kilobytes of index, not tens of megabytes.

use crate::{
    cipher::TAG_LEN_BYTES,
    frame::{BLOCK, FRAME_BLOCKS, MAX_STORED_LEN, MIN_STORED_LEN},
    pack::OBJECT_HEADER_LEN,
    plan::{PACK_FRAMES, PAGE_BLOCKS, PAGE_SPAN_BLOCKS},
};
use blockd_extent::{BlockIndex, BlockSet, Extent, MAX_VOLUME_BYTES};

/// Maximum length of a page in bytes: twice the worst case of the block sets of 1 TiB.
pub(crate) const MAX_PAGE_LEN: u64 = 80 << 20;
/// Maximum length of a root in bytes: twice that of a full 64 TiB volume.
pub(crate) const MAX_ROOT_LEN: u64 = 16 << 20;
const ROOT_HEAD_LEN: usize = 56;
const ROOT_ENTRY_LEN: usize = 56;
const PAGE_HEAD_LEN: usize = 16;

/// Reader of little-endian numbers.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or("the data is truncated")?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or("the data is truncated")?;
        self.rest = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, &'static str> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

/// Reference to a page in the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRef {
    /// Extent of the volume that the page covers.
    pub range: Extent,
    /// Number of its first frame.
    pub frame_base: u64,
    /// Number of its data blocks.
    pub data_blocks: u32,
    /// Stored length in bytes; 0 for an empty page, which is not stored.
    pub sealed_len: u32,
    /// Offset in the index, in bytes.
    pub offset_bytes: u64,
    /// Authentication tag.
    pub tag: [u8; TAG_LEN_BYTES],
}

impl PageRef {
    pub fn frames(&self) -> u64 {
        u64::from(self.data_blocks).div_ceil(FRAME_BLOCKS as u64)
    }
}

/// Root of an index.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Root {
    pub size_bytes: u64,
    pub frames: u64,
    pub data_blocks: u64,
    pub zero_blocks: u64,
    pub pack_count: u32,
    pub pages: Vec<PageRef>,
}

impl Root {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ROOT_HEAD_LEN + self.pages.len() * ROOT_ENTRY_LEN);
        out.extend_from_slice(&self.size_bytes.to_le_bytes());
        for number in [BLOCK as u32, FRAME_BLOCKS as u32, PACK_FRAMES as u32, self.pages.len() as u32] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.frames, self.data_blocks, self.zero_blocks] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.pack_count.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        debug_assert_eq!(out.len(), ROOT_HEAD_LEN);
        for page in &self.pages {
            for number in [page.range.start.0, page.range.end().0, page.frame_base] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&page.data_blocks.to_le_bytes());
            out.extend_from_slice(&page.sealed_len.to_le_bytes());
            out.extend_from_slice(&page.offset_bytes.to_le_bytes());
            out.extend_from_slice(&page.tag);
        }
        debug_assert_eq!(out.len(), ROOT_HEAD_LEN + self.pages.len() * ROOT_ENTRY_LEN);
        out
    }

    /// Decodes a root and checks that its pages tile the volume and that their counts are consistent.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut cursor = Cursor { rest: bytes };
        let size_bytes = cursor.u64()?;
        let sizes = [cursor.u32()?, cursor.u32()?, cursor.u32()?];
        let page_count = cursor.u32()?;
        let (frames, data_blocks, zero_blocks) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
        let pack_count = cursor.u32()?;
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
            return Err("the size of the volume is out of bounds");
        }
        if sizes != [BLOCK as u32, FRAME_BLOCKS as u32, PACK_FRAMES as u32] || cursor.u32()? != 0 {
            return Err("the sizes of blocks, frames and packs are not those of this version");
        }
        if page_count as usize != cursor.rest.len() / ROOT_ENTRY_LEN
            || !cursor.rest.len().is_multiple_of(ROOT_ENTRY_LEN)
        {
            return Err("the number of pages does not fit the length");
        }
        let mut pages = Vec::with_capacity(page_count as usize);
        let (mut next_block, mut next_frame, mut blocks) = (0, 0, 0);
        let mut next_offset = OBJECT_HEADER_LEN as u64;
        for _ in 0..page_count {
            let (lo, hi, frame_base) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
            let (page_blocks, sealed_len) = (cursor.u32()?, cursor.u32()?);
            let offset_bytes = cursor.u64()?;
            let page = PageRef {
                range: Extent::between(BlockIndex(lo), BlockIndex(hi)),
                frame_base,
                data_blocks: page_blocks,
                sealed_len,
                offset_bytes,
                tag: cursor.array()?,
            };
            if lo != next_block || hi <= lo || lo / PAGE_SPAN_BLOCKS != (hi - 1) / PAGE_SPAN_BLOCKS {
                return Err("the pages do not tile the volume");
            }
            if frame_base != next_frame || u64::from(page_blocks) > PAGE_BLOCKS.min(hi - lo) {
                return Err("the frames of the pages do not add up");
            }
            let empty_len = sealed_len == 0 && page_blocks == 0;
            let some_len =
                sealed_len as usize >= PAGE_HEAD_LEN + TAG_LEN_BYTES && u64::from(sealed_len) <= MAX_PAGE_LEN;
            if offset_bytes != next_offset || !(empty_len || some_len) {
                return Err("the pages do not follow one another");
            }
            next_block = hi;
            next_frame += page.frames();
            next_offset += u64::from(sealed_len);
            blocks += u64::from(page_blocks);
            pages.push(page);
        }
        debug_assert!(cursor.rest.is_empty(), "the number of pages was checked against the length");
        if next_block != Extent::whole(size_bytes).end().0 {
            return Err("the pages do not tile the volume");
        }
        if (next_frame, blocks) != (frames, data_blocks)
            || u64::from(pack_count) != frames.div_ceil(PACK_FRAMES)
            || zero_blocks > next_block
        {
            return Err("the frames of the pages do not add up");
        }
        Ok(Self { size_bytes, frames, data_blocks, zero_blocks, pack_count, pages })
    }

    /// Returns the numbers of the pages that overlap an extent.
    pub fn pages_in(&self, range: Extent) -> std::ops::Range<usize> {
        let first = self.pages.partition_point(|page| page.range.end() <= range.start);
        let end = self.pages.partition_point(|page| page.range.start < range.end());
        first..end.max(first)
    }
}

/// Location of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FramePlace {
    pub offset_bytes: u32,
    pub len_bytes: u32,
}

/// Decoded page of an index.
#[derive(Debug)]
pub(crate) struct Page {
    /// Blocks whose content is in the delta's frames.
    pub data: BlockSet,
    /// Blocks that became zero.
    pub zero: BlockSet,
    /// Locations of the frames, in order.
    pub frames: Vec<FramePlace>,
    /// Approximate heap size in bytes.
    pub heap_bytes: usize,
}

/// Encodes a page. `first_offset_bytes` is the offset of its first frame in the pack.
pub(crate) fn encode_page(
    data: &BlockSet,
    zero: &BlockSet,
    first_offset_bytes: u32,
    lens: &[u32],
) -> Vec<u8> {
    assert_eq!(lens.len() as u64, data.len_blocks().div_ceil(FRAME_BLOCKS as u64), "a length for each frame");
    let (data, zero) = (data.to_bytes(), zero.to_bytes());
    let mut out =
        Vec::with_capacity(PAGE_HEAD_LEN + data.len() + zero.len() + lens.len() * 4 + TAG_LEN_BYTES);
    for number in [data.len() as u32, zero.len() as u32, lens.len() as u32, first_offset_bytes] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&data);
    out.extend_from_slice(&zero);
    for len in lens {
        out.extend_from_slice(&len.to_le_bytes());
    }
    out
}

impl Page {
    /// Decodes a page and checks it against its reference in the root.
    pub fn parse(bytes: &[u8], page: &PageRef) -> Result<Self, &'static str> {
        let mut cursor = Cursor { rest: bytes };
        let (data_len, zero_len, count, first_offset) =
            (cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let mut set = |len: u32| {
            let set =
                BlockSet::from_bytes(cursor.take(len as usize)?).map_err(|_| "its block set is not valid")?;
            let above = set.first().is_none_or(|first| first >= page.range.start);
            let below = set.last().is_none_or(|last| last < page.range.end());
            if above && below {
                Ok(set)
            } else {
                Err("its block set reaches beyond its stretch of the volume")
            }
        };
        let (data, zero) = (set(data_len)?, set(zero_len)?);
        let mut both = data.clone();
        both.intersect_with(&zero);
        if !both.is_empty() {
            return Err("blocks are both data and zero");
        }
        if data.len_blocks() != u64::from(page.data_blocks) || u64::from(count) != page.frames() {
            return Err("the number of its blocks or frames differs from the root");
        }
        let most = (PACK_FRAMES as usize * MAX_STORED_LEN + OBJECT_HEADER_LEN) as u32;
        let starts_pack = page.frame_base.is_multiple_of(PACK_FRAMES);
        if first_offset < OBJECT_HEADER_LEN as u32
            || first_offset > most
            || (starts_pack && first_offset != OBJECT_HEADER_LEN as u32)
        {
            return Err("the place of its first frame is out of bounds");
        }
        let mut offset_bytes = first_offset;
        let mut frames = Vec::with_capacity(page.frames() as usize);
        for frame in page.frame_base..page.frame_base + page.frames() {
            if frame.is_multiple_of(PACK_FRAMES) {
                offset_bytes = OBJECT_HEADER_LEN as u32;
            }
            let len_bytes = cursor.u32()?;
            if len_bytes != 0 && !(MIN_STORED_LEN..=MAX_STORED_LEN).contains(&(len_bytes as usize)) {
                return Err("the length of a frame is out of bounds");
            }
            frames.push(FramePlace { offset_bytes, len_bytes });
            // Cannot overflow: at most 2 * 256 frames of 128 KiB.
            offset_bytes += len_bytes;
        }
        if !cursor.rest.is_empty() {
            return Err("there are bytes after its end");
        }
        assert_eq!(frames.len(), count as usize, "each frame has a location");
        let heap_bytes = bytes.len() + frames.len() * size_of::<FramePlace>();
        Ok(Self { data, zero, frames, heap_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Layout;
    use proptest::prelude::*;

    fn root(data: &BlockSet, size_bytes: u64) -> Root {
        let layout = Layout::new(data, size_bytes).unwrap();
        let mut offset_bytes = OBJECT_HEADER_LEN as u64;
        let pages = layout.pages.iter().map(|page| {
            let sealed_len = if page.data_blocks == 0 { 0 } else { 100 };
            let out = PageRef {
                range: page.range,
                frame_base: page.frame_base,
                data_blocks: page.data_blocks as u32,
                sealed_len,
                offset_bytes,
                tag: [7; 16],
            };
            offset_bytes += u64::from(sealed_len);
            out
        });
        let pages = pages.collect();
        Root {
            size_bytes,
            frames: layout.frames,
            data_blocks: layout.data_blocks,
            zero_blocks: 5,
            pack_count: layout.pack_count,
            pages,
        }
    }

    fn data(runs: &[(u64, u64)]) -> BlockSet {
        runs.iter().map(|(start, len)| Extent::new(BlockIndex(*start), *len)).collect()
    }

    #[test]
    fn roots_round_trip_and_locate_their_pages() {
        let root = root(&data(&[(0, 300_000), (PAGE_SPAN_BLOCKS * 2, 5)]), 3 << 40);
        let back = Root::parse(&root.encode()).unwrap();
        assert_eq!(back, root);
        assert_eq!(root.pages.len(), 5);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(0), 1)), 0..1);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(131_071), 2)), 0..2);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(PAGE_SPAN_BLOCKS), 1)), 3..4);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(PAGE_SPAN_BLOCKS * 9), 1)), 5..5);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(0), 0)), 0..0);
    }

    fn page() -> (Vec<u8>, PageRef) {
        let set = data(&[(100, 70)]);
        let bytes = encode_page(&set, &data(&[(10, 5)]), 64, &[500, 0, 22]);
        let page = PageRef {
            range: Extent::new(BlockIndex(5), 1000),
            frame_base: 255,
            data_blocks: 70,
            sealed_len: 0,
            offset_bytes: 64,
            tag: [0; 16],
        };
        (bytes, page)
    }

    #[test]
    fn pages_locate_frames() {
        let (bytes, place) = page();
        let page = Page::parse(&bytes, &place).unwrap();
        let places: Vec<_> = page.frames.iter().map(|f| (f.offset_bytes, f.len_bytes)).collect();
        // Frame 256 begins a pack.
        assert_eq!(places, [(64, 500), (64, 0), (64, 22)]);
        assert!(Page::parse(&bytes, &PageRef { data_blocks: 71, ..place }).is_err());
        assert!(Page::parse(&bytes, &PageRef { range: Extent::new(BlockIndex(11), 900), ..place }).is_err());
        assert!(Page::parse(&bytes[..bytes.len() - 1], &place).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
            let (mut bytes, place) = page();
            let i = at.index(bytes.len());
            bytes[i] ^= 1 << bit;
            let _ = Page::parse(&bytes, &place);
            let _ = Page::parse(&bytes[..cut.index(bytes.len())], &place);
            let mut bytes = root(&data(&[(0, 300_000)]), 3 << 40).encode();
            let i = at.index(bytes.len());
            bytes[i] ^= 1 << bit;
            let _ = Root::parse(&bytes);
            let _ = Root::parse(&bytes[..cut.index(bytes.len())]);
        }
    }
}
