//! Index of a delta: pages map blocks to frames; the root locates the pages.
//!
//! A page covers one extent of the volume and is read independently of other pages: the first read of a 1 TiB
//! snapshot fetches some hundred kilobytes of index, not tens of megabytes.

use crate::{
    cipher::TAG_LEN_BYTES,
    frame::{BLOCK, FRAME_BLOCKS, MAX_STORED_LEN, MIN_STORED_LEN},
    names::DeltaId,
    pack::OBJECT_HEADER_LEN,
    plan::{PACK_FRAMES, PAGE_BLOCKS, PAGE_SPAN_BLOCKS},
    references::{ReferenceGroup, encode_groups, parse_groups},
};
use blockd_extent::{BlockIndex, BlockSet, Extent, MAX_VOLUME_BYTES, SnapshotId, VolumeId};
use uuid::Uuid;

/// Maximum length of a page in bytes: twice the worst case of the block sets of 1 TiB.
pub(crate) const MAX_PAGE_LEN: u64 = 80 << 20;
/// Maximum length of a root in bytes: twice that of a full 64 TiB volume.
pub(crate) const MAX_ROOT_LEN: u64 = 16 << 20;
const ROOT_HEAD_LEN: usize = 64;
const ROOT_SOURCE_LEN: usize = 32;
const ROOT_ENTRY_LEN: usize = 60;
const PAGE_HEAD_LEN: usize = 20;
/// Maximum number of sources of a delta.
pub(crate) const MAX_SOURCES: usize = 4096;

/// Reader of little-endian numbers.
pub(crate) struct Cursor<'a> {
    pub rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or("the data is truncated")?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or("the data is truncated")?;
        self.rest = rest;
        Ok(*head)
    }

    pub fn u32(&mut self) -> Result<u32, &'static str> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, &'static str> {
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
    /// Number of its reference blocks.
    pub reference_blocks: u32,
    /// Stored length in bytes; 0 for an empty page, which is not stored.
    pub sealed_len: u32,
    /// Offset in the index, in bytes.
    pub offset_bytes: u64,
    /// Authentication tag.
    pub tag: [u8; TAG_LEN_BYTES],
}

impl PageRef {
    fn parse(cursor: &mut Cursor<'_>) -> Result<Self, &'static str> {
        let (lo, hi) = (BlockIndex(cursor.u64()?), BlockIndex(cursor.u64()?));
        Ok(Self {
            range: Extent::between(lo, hi),
            frame_base: cursor.u64()?,
            data_blocks: cursor.u32()?,
            reference_blocks: cursor.u32()?,
            sealed_len: cursor.u32()?,
            offset_bytes: cursor.u64()?,
            tag: cursor.array()?,
        })
    }

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
    pub reference_blocks: u64,
    pub pack_count: u32,
    /// Deltas that the references of all pages name, ascending.
    pub sources: Vec<DeltaId>,
    pub pages: Vec<PageRef>,
}

impl Root {
    pub fn encode(&self) -> Vec<u8> {
        let len = ROOT_HEAD_LEN + self.sources.len() * ROOT_SOURCE_LEN + self.pages.len() * ROOT_ENTRY_LEN;
        let mut out = Vec::with_capacity(len);
        out.extend_from_slice(&self.size_bytes.to_le_bytes());
        for number in [BLOCK as u32, FRAME_BLOCKS as u32, PACK_FRAMES as u32, self.pages.len() as u32] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.frames, self.data_blocks, self.zero_blocks, self.reference_blocks] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.pack_count.to_le_bytes());
        out.extend_from_slice(&(self.sources.len() as u32).to_le_bytes());
        debug_assert_eq!(out.len(), ROOT_HEAD_LEN);
        for source in &self.sources {
            out.extend_from_slice(source.cluster.as_bytes());
            out.extend_from_slice(&source.volume.as_u64().to_le_bytes());
            out.extend_from_slice(&source.snapshot.as_u64().to_le_bytes());
        }
        for page in &self.pages {
            for number in [page.range.start.0, page.range.end().0, page.frame_base] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            for number in [page.data_blocks, page.reference_blocks, page.sealed_len] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&page.offset_bytes.to_le_bytes());
            out.extend_from_slice(&page.tag);
        }
        debug_assert_eq!(out.len(), len);
        out
    }

    /// Decodes a root and checks that its pages tile the volume and that their counts are consistent.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut cursor = Cursor { rest: bytes };
        let size_bytes = cursor.u64()?;
        let sizes = [cursor.u32()?, cursor.u32()?, cursor.u32()?];
        let page_count = cursor.u32()?;
        let (frames, data_blocks, zero_blocks) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
        let (reference_blocks, pack_count) = (cursor.u64()?, cursor.u32()?);
        let source_count = cursor.u32()?;
        if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES {
            return Err("the size of the volume is out of bounds");
        }
        if sizes != [BLOCK as u32, FRAME_BLOCKS as u32, PACK_FRAMES as u32] {
            return Err("the sizes of blocks, frames and packs are not those of this version");
        }
        let sources = parse_sources(&mut cursor, source_count)?;
        if page_count as usize != cursor.rest.len() / ROOT_ENTRY_LEN
            || !cursor.rest.len().is_multiple_of(ROOT_ENTRY_LEN)
        {
            return Err("the number of pages does not fit the length");
        }
        let mut pages = Vec::with_capacity(page_count as usize);
        let (mut next_block, mut next_frame, mut blocks, mut references) = (0, 0, 0, 0);
        let mut next_offset = OBJECT_HEADER_LEN as u64;
        for _ in 0..page_count {
            let page = PageRef::parse(&mut cursor)?;
            let (lo, hi) = (page.range.start.0, page.range.end().0);
            if lo != next_block || hi <= lo || lo / PAGE_SPAN_BLOCKS != (hi - 1) / PAGE_SPAN_BLOCKS {
                return Err("the pages do not tile the volume");
            }
            let mapped = u64::from(page.data_blocks) + u64::from(page.reference_blocks);
            if page.frame_base != next_frame || mapped > PAGE_BLOCKS.min(hi - lo) {
                return Err("the frames of the pages do not add up");
            }
            let sealed_len = page.sealed_len;
            let empty_len = sealed_len == 0 && mapped == 0;
            let some_len =
                sealed_len as usize >= PAGE_HEAD_LEN + TAG_LEN_BYTES && u64::from(sealed_len) <= MAX_PAGE_LEN;
            if page.offset_bytes != next_offset || !(empty_len || some_len) {
                return Err("the pages do not follow one another");
            }
            next_block = hi;
            next_frame += page.frames();
            next_offset += u64::from(sealed_len);
            blocks += u64::from(page.data_blocks);
            references += u64::from(page.reference_blocks);
            pages.push(page);
        }
        debug_assert!(cursor.rest.is_empty(), "the number of pages was checked against the length");
        if next_block != Extent::whole(size_bytes).end().0 {
            return Err("the pages do not tile the volume");
        }
        if (next_frame, blocks, references) != (frames, data_blocks, reference_blocks)
            || u64::from(pack_count) != frames.div_ceil(PACK_FRAMES)
            || zero_blocks > next_block
        {
            return Err("the frames of the pages do not add up");
        }
        Ok(Self {
            size_bytes,
            frames,
            data_blocks,
            zero_blocks,
            reference_blocks,
            pack_count,
            sources,
            pages,
        })
    }

    /// Returns the numbers of the pages that overlap an extent.
    pub fn pages_in(&self, range: Extent) -> std::ops::Range<usize> {
        let first = self.pages.partition_point(|page| page.range.end() <= range.start);
        let end = self.pages.partition_point(|page| page.range.start < range.end());
        first..end.max(first)
    }
}

fn parse_sources(cursor: &mut Cursor<'_>, count: u32) -> Result<Vec<DeltaId>, &'static str> {
    if count as usize > MAX_SOURCES {
        return Err("it has too many sources");
    }
    let mut sources: Vec<DeltaId> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let cluster = Uuid::from_bytes(cursor.array()?);
        let (volume, snapshot) = (VolumeId::from_u64(cursor.u64()?), SnapshotId::from_u64(cursor.u64()?));
        let source = DeltaId { cluster, volume, snapshot };
        if sources.last().is_some_and(|last| *last >= source) {
            return Err("its sources are not ascending");
        }
        sources.push(source);
    }
    Ok(sources)
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
    /// Blocks whose content is in other deltas, by source and displacement.
    pub references: Vec<ReferenceGroup>,
    /// Union of the references.
    pub referenced: BlockSet,
    /// Locations of the frames, in order.
    pub frames: Vec<FramePlace>,
    /// Approximate heap size in bytes.
    pub heap_bytes: usize,
}

/// Encodes a page. `first_offset_bytes` is the offset of its first frame in the pack.
pub(crate) fn encode_page(
    data: &BlockSet,
    zero: &BlockSet,
    references: &[ReferenceGroup],
    first_offset_bytes: u32,
    lens: &[u32],
) -> Vec<u8> {
    assert_eq!(lens.len() as u64, data.len_blocks().div_ceil(FRAME_BLOCKS as u64), "a length for each frame");
    let (data, zero, groups) = (data.to_bytes(), zero.to_bytes(), encode_groups(references));
    let len = PAGE_HEAD_LEN + data.len() + zero.len() + groups.len() + lens.len() * 4 + TAG_LEN_BYTES;
    let mut out = Vec::with_capacity(len);
    for number in [data.len(), zero.len(), groups.len(), lens.len(), first_offset_bytes as usize] {
        out.extend_from_slice(&(number as u32).to_le_bytes());
    }
    out.extend_from_slice(&data);
    out.extend_from_slice(&zero);
    out.extend_from_slice(&groups);
    for len in lens {
        out.extend_from_slice(&len.to_le_bytes());
    }
    out
}

impl Page {
    /// Decodes a page and checks it against its reference in the root, which has `sources` sources.
    pub fn parse(bytes: &[u8], page: &PageRef, sources: usize) -> Result<Self, &'static str> {
        let mut cursor = Cursor { rest: bytes };
        let (data_len, zero_len, references_len) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let (count, first_offset) = (cursor.u32()?, cursor.u32()?);
        let mut set = |len: u32| parse_set(cursor.take(len as usize)?, page.range);
        let (data, zero) = (set(data_len)?, set(zero_len)?);
        let references = parse_groups(cursor.take(references_len as usize)?, page.range, sources)?;
        let mut all = data.clone();
        let mut members = data.len_blocks();
        for set in std::iter::once(&zero).chain(references.iter().map(|group| &group.blocks)) {
            all.union_with(set);
            members += set.len_blocks();
        }
        if members != all.len_blocks() {
            return Err("a block is in two of its sets");
        }
        let mut referenced = all;
        referenced.subtract(&data);
        referenced.subtract(&zero);
        if data.len_blocks() != u64::from(page.data_blocks)
            || referenced.len_blocks() != u64::from(page.reference_blocks)
            || u64::from(count) != page.frames()
        {
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
            // Cannot overflow: at most 2 * 64 frames of 512 KiB.
            offset_bytes += len_bytes;
        }
        if !cursor.rest.is_empty() {
            return Err("there are bytes after its end");
        }
        assert_eq!(frames.len(), count as usize, "each frame has a location");
        let heap_bytes = bytes.len() + frames.len() * size_of::<FramePlace>();
        let heap_bytes = heap_bytes + referenced.serialized_len();
        Ok(Self { data, zero, references, referenced, frames, heap_bytes })
    }
}

/// Decodes a block set whose members must be in an extent.
pub(crate) fn parse_set(bytes: &[u8], range: Extent) -> Result<BlockSet, &'static str> {
    let set = BlockSet::from_bytes(bytes).map_err(|_| "its block set is not valid")?;
    let above = set.first().is_none_or(|first| first >= range.start);
    let below = set.last().is_none_or(|last| last < range.end());
    if above && below { Ok(set) } else { Err("its block set reaches beyond its stretch of the volume") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Layout;
    use proptest::prelude::*;

    fn root(data: &BlockSet, size_bytes: u64) -> Root {
        let layout = Layout::new(data, &BlockSet::new(), size_bytes).unwrap();
        let mut offset_bytes = OBJECT_HEADER_LEN as u64;
        let pages = layout.pages.iter().map(|page| {
            let sealed_len = if page.data_blocks == 0 { 0 } else { 100 };
            let out = PageRef {
                range: page.range,
                frame_base: page.frame_base,
                data_blocks: page.data_blocks as u32,
                reference_blocks: 0,
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
            reference_blocks: 0,
            pack_count: layout.pack_count,
            sources: [1, 2].map(source).to_vec(),
            pages,
        }
    }

    fn source(snapshot: u64) -> DeltaId {
        let volume = VolumeId::from_u64(9);
        DeltaId { cluster: Uuid::nil(), volume, snapshot: SnapshotId::from_u64(snapshot) }
    }

    fn data(runs: &[(u64, u64)]) -> BlockSet {
        runs.iter().map(|(start, len)| Extent::new(BlockIndex(*start), *len)).collect()
    }

    #[test]
    fn roots_round_trip_and_locate_their_pages() {
        let root = root(&data(&[(0, 300_000), (PAGE_SPAN_BLOCKS * 2, 5)]), 3 << 40);
        let mut back = Root::parse(&root.encode()).unwrap();
        assert_eq!(back, root);
        for sources in [vec![source(2), source(1)], vec![source(1); 2], vec![source(3); MAX_SOURCES + 1]] {
            assert!(Root::parse(&Root { sources, ..back }.encode()).is_err());
            back = Root::parse(&root.encode()).unwrap();
        }
        assert_eq!(root.pages.len(), 5);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(0), 1)), 0..1);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(131_071), 2)), 0..2);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(PAGE_SPAN_BLOCKS), 1)), 3..4);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(PAGE_SPAN_BLOCKS * 9), 1)), 5..5);
        assert_eq!(root.pages_in(Extent::new(BlockIndex(0), 0)), 0..0);
    }

    fn page() -> (Vec<u8>, PageRef) {
        let set = data(&[(100, 300)]);
        let references = [ReferenceGroup { source: 1, displacement: -3, blocks: data(&[(500, 4)]) }];
        let bytes = encode_page(&set, &data(&[(10, 5)]), &references, 64, &[500, 0, 22]);
        let page = PageRef {
            range: Extent::new(BlockIndex(5), 1000),
            frame_base: 63,
            data_blocks: 300,
            reference_blocks: 4,
            sealed_len: 0,
            offset_bytes: 64,
            tag: [0; 16],
        };
        (bytes, page)
    }

    #[test]
    fn pages_locate_frames() {
        let (bytes, place) = page();
        let page = Page::parse(&bytes, &place, 2).unwrap();
        let places: Vec<_> = page.frames.iter().map(|f| (f.offset_bytes, f.len_bytes)).collect();
        // Frame 64 begins a pack.
        assert_eq!(places, [(64, 500), (64, 0), (64, 22)]);
        assert!(Page::parse(&bytes, &PageRef { data_blocks: 301, ..place }, 2).is_err());
        assert!(
            Page::parse(&bytes, &PageRef { range: Extent::new(BlockIndex(11), 900), ..place }, 2).is_err()
        );
        assert!(Page::parse(&bytes[..bytes.len() - 1], &place, 2).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
            let (mut bytes, place) = page();
            let i = at.index(bytes.len());
            bytes[i] ^= 1 << bit;
            let _ = Page::parse(&bytes, &place, 2);
            let _ = Page::parse(&bytes[..cut.index(bytes.len())], &place, 2);
            let mut bytes = root(&data(&[(0, 300_000)]), 3 << 40).encode();
            let i = at.index(bytes.len());
            bytes[i] ^= 1 << bit;
            let _ = Root::parse(&bytes);
            let _ = Root::parse(&bytes[..cut.index(bytes.len())]);
        }
    }
}
