//! Sets of blocks.
//!
//! A roaring bitmap counts 32-bit members, which is 16 TiB of 4 KiB blocks; a [`BlockSet`] is up to four of
//! them side by side, which is the 64 TiB a volume may have. Its worst case, every other block of a terabyte,
//! is 32 MiB.

mod extents;

use crate::{BlockIndex, Extent, ExtentError, MAX_VOLUME_BLOCKS};
pub use extents::{ExtentsIn, GapsIn};
use roaring::RoaringBitmap;
use std::io::{self, Read, Write};

const MAX_SHARDS: usize = (MAX_VOLUME_BLOCKS >> 32) as usize;

/// Size of a bitmap container, which covers 256 MiB.
const MAX_CONTAINER_BYTES: u64 = 8 << 10;
/// Number of changes, plus some for each container, between two checks for run containers that are too long.
/// The growth in between is small beside the containers.
const CHECK_INTERVAL: u32 = 4096;
const CHECK_INTERVAL_PER_CONTAINER: u32 = 16;

/// Set of blocks of a volume.
///
/// Blocks at or above [`MAX_VOLUME_BLOCKS`] are never members: inserting one has no effect.
#[derive(Clone, Default, Debug)]
pub struct BlockSet {
    shards: Vec<RoaringBitmap>,
    /// Changes before the next check.
    changes_left: u32,
}

const fn split(block: u64) -> (usize, u32) {
    ((block >> 32) as usize, block as u32)
}

/// Splits an extent by shard; returns the shard, the first and the last member of each part.
fn shard_parts(extent: Extent) -> impl Iterator<Item = (usize, u32, u32)> {
    let start = extent.start.0;
    let end = start.saturating_add(extent.len_blocks).min(MAX_VOLUME_BLOCKS);
    let first_shard = start >> 32;
    let last_shard = if end > start { (end - 1) >> 32 } else { 0 };
    (first_shard..=last_shard).filter(move |_| end > start).map(move |shard| {
        let base = shard << 32;
        let low = start.max(base) - base;
        let high = (end - 1).min(base + u64::from(u32::MAX)) - base;
        (shard as usize, low as u32, high as u32)
    })
}

impl BlockSet {
    /// Creates an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    fn shard_mut(&mut self, shard: usize) -> &mut RoaringBitmap {
        if self.shards.len() <= shard {
            self.shards.resize_with(shard + 1, RoaringBitmap::new);
        }
        &mut self.shards[shard]
    }

    /// Counts a change of one extent.
    fn note_change(&mut self) {
        match self.changes_left.checked_sub(1) {
            Some(left) => self.changes_left = left,
            None => self.bound_runs(),
        }
    }

    /// Converts long run containers to bitmaps: roaring lets a run container, with four bytes a run, grow to
    /// sixteen times the size of a bitmap.
    fn bound_runs(&mut self) {
        self.changes_left = CHECK_INTERVAL;
        for bitmap in &mut self.shards {
            let found = bitmap.statistics();
            let more = found.n_containers.saturating_mul(CHECK_INTERVAL_PER_CONTAINER);
            self.changes_left = self.changes_left.saturating_add(more);
            if found.n_bytes_run_containers > u64::from(found.n_run_containers) * MAX_CONTAINER_BYTES {
                bitmap.optimize();
            }
        }
    }

    /// Returns true for zero blocks.
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(RoaringBitmap::is_empty)
    }

    /// Returns the number of blocks.
    pub fn len_blocks(&self) -> u64 {
        self.shards.iter().map(RoaringBitmap::len).sum()
    }

    /// Returns the length of the blocks, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_blocks() * crate::BLOCK_SIZE_BYTES
    }

    /// Adds a block; returns true if it is new.
    pub fn insert(&mut self, block: BlockIndex) -> bool {
        if block.0 >= MAX_VOLUME_BLOCKS {
            return false;
        }
        let (shard, member) = split(block.0);
        let is_new = self.shard_mut(shard).insert(member);
        self.note_change();
        is_new
    }

    /// Adds an extent.
    pub fn insert_extent(&mut self, extent: Extent) {
        for (shard, low, high) in shard_parts(extent) {
            self.shard_mut(shard).insert_range(low..=high);
        }
        self.note_change();
    }

    /// Adds the blocks of a bitmap: bit `b & 7` of byte `b / 8` is the block `b` after `start`, a multiple of
    /// 8. Ignores bytes beyond the 16 TiB of `start`.
    pub fn insert_bits(&mut self, start: BlockIndex, bits: &[u8]) {
        if start.0 >= MAX_VOLUME_BLOCKS {
            return;
        }
        let (shard, member) = split(start.0);
        let max_bytes = (u64::from(u32::MAX - member) + 1) / 8;
        let bits = bits.get(..max_bytes as usize).unwrap_or(bits);
        let mut more = RoaringBitmap::from_lsb0_bytes(member, bits);
        more.optimize();
        if !more.is_empty() {
            *self.shard_mut(shard) |= &more;
        }
        self.note_change();
    }

    /// Removes a block; returns true if it was a member.
    pub fn remove(&mut self, block: BlockIndex) -> bool {
        let (shard, member) = split(block.0);
        let was_member = self.shards.get_mut(shard).is_some_and(|bitmap| bitmap.remove(member));
        self.note_change();
        was_member
    }

    /// Removes an extent.
    pub fn remove_extent(&mut self, extent: Extent) {
        for (shard, low, high) in shard_parts(extent) {
            if let Some(bitmap) = self.shards.get_mut(shard) {
                bitmap.remove_range(low..=high);
            }
        }
        self.note_change();
    }

    /// Returns true if a block is a member.
    pub fn contains(&self, block: BlockIndex) -> bool {
        let (shard, member) = split(block.0);
        self.shards.get(shard).is_some_and(|bitmap| bitmap.contains(member))
    }

    /// Returns true if every block of an extent is a member, also for the empty extent.
    pub fn contains_extent(&self, extent: Extent) -> bool {
        extent.end().0 <= MAX_VOLUME_BLOCKS
            && shard_parts(extent).all(|(shard, low, high)| {
                self.shards.get(shard).is_some_and(|bitmap| bitmap.contains_range(low..=high))
            })
    }

    /// Returns true if every member is one of another set.
    pub fn is_subset(&self, other: &Self) -> bool {
        let empty = RoaringBitmap::new();
        let is_part = |(shard, bitmap): (usize, &RoaringBitmap)| {
            bitmap.is_subset(other.shards.get(shard).unwrap_or(&empty))
        };
        self.shards.iter().enumerate().all(is_part)
    }

    /// Returns the lowest block.
    pub fn first(&self) -> Option<BlockIndex> {
        self.shards
            .iter()
            .enumerate()
            .find_map(|(shard, bitmap)| bitmap.min().map(|member| join(shard, member)))
    }

    /// Returns the highest block.
    pub fn last(&self) -> Option<BlockIndex> {
        self.shards
            .iter()
            .enumerate()
            .rev()
            .find_map(|(shard, bitmap)| bitmap.max().map(|member| join(shard, member)))
    }

    /// Returns the number of members strictly below a block.
    pub fn rank(&self, block: BlockIndex) -> u64 {
        let (shard, member) = split(block.0);
        let below: u64 = self.shards.iter().take(shard).map(RoaringBitmap::len).sum();
        let here = match (self.shards.get(shard), member.checked_sub(1)) {
            (Some(bitmap), Some(last)) => bitmap.rank(last),
            _ => 0,
        };
        below + here
    }

    /// Returns the member with exactly `rank` members below it.
    pub fn select(&self, rank: u64) -> Option<BlockIndex> {
        let mut left = rank;
        for (shard, bitmap) in self.shards.iter().enumerate() {
            if left < bitmap.len() {
                return bitmap.select(left as u32).map(|member| join(shard, member));
            }
            left -= bitmap.len();
        }
        None
    }

    /// Returns the number of members in an extent.
    pub fn intersection_len(&self, extent: Extent) -> u64 {
        shard_parts(extent)
            .map(|(shard, low, high)| {
                self.shards.get(shard).map_or(0, |bitmap| bitmap.range_cardinality(low..=high))
            })
            .sum()
    }

    /// Returns the maximal extents, ascending.
    pub fn extents(&self) -> ExtentsIn<'_> {
        self.extents_in(Extent::new(BlockIndex(0), MAX_VOLUME_BLOCKS))
    }

    /// Returns the maximal extents inside a range, clipped to it, ascending.
    pub fn extents_in(&self, range: Extent) -> ExtentsIn<'_> {
        let end = range.end().0.min(MAX_VOLUME_BLOCKS);
        let mut runs = ExtentsIn { set: self, next: range.start.0, end, current: None };
        runs.open_shard();
        runs
    }

    /// Returns the extents of a range that are *not* in the set, ascending.
    pub fn gaps_in(&self, range: Extent) -> GapsIn<'_> {
        GapsIn { members: self.extents_in(range), next: range.start, end: range.end() }
    }

    /// Returns all members, ascending.
    pub fn blocks(&self) -> impl Iterator<Item = BlockIndex> + '_ {
        self.shards
            .iter()
            .enumerate()
            .flat_map(|(shard, bitmap)| bitmap.iter().map(move |member| join(shard, member)))
    }

    /// Adds all members of another set.
    pub fn union_with(&mut self, other: &Self) {
        for (shard, bitmap) in other.shards.iter().enumerate() {
            if !bitmap.is_empty() {
                *self.shard_mut(shard) |= bitmap;
            }
        }
        self.bound_runs();
    }

    /// Removes all members of another set.
    pub fn subtract(&mut self, other: &Self) {
        for (mine, theirs) in self.shards.iter_mut().zip(&other.shards) {
            *mine -= theirs;
        }
        self.bound_runs();
    }

    /// Keeps only members of another set.
    pub fn intersect_with(&mut self, other: &Self) {
        self.shards.truncate(other.shards.len());
        for (mine, theirs) in self.shards.iter_mut().zip(&other.shards) {
            *mine &= theirs;
        }
        self.bound_runs();
    }

    /// Returns the set of the members in a range.
    #[must_use]
    pub fn slice(&self, range: Extent) -> Self {
        let mut out = Self::new();
        for run in self.extents_in(range) {
            out.insert_extent(run);
        }
        out
    }

    /// Converts long runs to run containers, which are smaller in memory and when encoded.
    pub fn optimize(&mut self) {
        for bitmap in &mut self.shards {
            bitmap.optimize();
        }
    }

    /// Returns the length of [`to_bytes`](Self::to_bytes).
    pub fn serialized_len(&self) -> usize {
        4 + self.shards.iter().filter(|b| !b.is_empty()).map(|b| 8 + b.serialized_size()).sum::<usize>()
    }

    /// Returns the approximate memory of the set, in bytes: its encoded length.
    pub fn heap_bytes_estimate(&self) -> u64 {
        self.serialized_len() as u64
    }

    /// Encodes the set. All integers are little-endian:
    ///
    /// | bytes | content |
    /// |---|---|
    /// | 4 | number of shards, at most 4; shards without members are left out |
    /// | per shard: 4 | shard number, ascending; members are `shard << 32 + member` |
    /// | 4 | length of the bitmap in bytes |
    /// | n | bitmap in the portable format of the RoaringFormatSpec |
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.serialized_len());
        #[allow(clippy::expect_used, reason = "writing to a Vec cannot fail")]
        self.write_to(&mut out).expect("a Vec takes every byte");
        out
    }

    /// Writes the [encoding](Self::to_bytes), without building it in memory.
    ///
    /// # Errors
    /// A write fails.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let count = self.shards.iter().filter(|bitmap| !bitmap.is_empty()).count() as u32;
        out.write_all(&count.to_le_bytes())?;
        for (shard, bitmap) in self.shards.iter().enumerate() {
            if bitmap.is_empty() {
                continue;
            }
            out.write_all(&(shard as u32).to_le_bytes())?;
            out.write_all(&(bitmap.serialized_size() as u32).to_le_bytes())?;
            bitmap.serialize_into(&mut *out)?;
        }
        Ok(())
    }

    /// Decodes a set.
    ///
    /// # Errors
    /// [`ExtentError::DamagedSet`] if the encoding is truncated, has trailing bytes, shards out of order or
    /// beyond the largest volume, or an invalid bitmap.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ExtentError> {
        Self::read_from(&mut &*bytes, bytes.len() as u64)
    }

    /// Reads an encoded set of this length, without its encoding in memory.
    ///
    /// # Errors
    /// As for [`from_bytes`](Self::from_bytes); a failed read counts as the end of the input.
    pub fn read_from(input: &mut dyn Read, len_bytes: u64) -> Result<Self, ExtentError> {
        let damaged = |what, at: u64| ExtentError::DamagedSet { what, at_bytes: at as usize };
        let word = |input: &mut dyn Read, at: u64| {
            let mut raw = [0; 4];
            let is_read = at + 4 <= len_bytes && input.read_exact(&mut raw).is_ok();
            if is_read { Ok(u32::from_le_bytes(raw)) } else { Err(damaged("truncated", at)) }
        };
        let count = word(input, 0)?;
        if count as usize > MAX_SHARDS {
            return Err(damaged("too many shards", 0));
        }
        let mut set = Self::new();
        let mut at = 4;
        for _ in 0..count {
            let shard = word(input, at)? as usize;
            let len = u64::from(word(input, at + 4)?);
            if shard >= MAX_SHARDS || shard < set.shards.len() {
                return Err(damaged("shard numbers do not ascend", at));
            }
            let body = at + 8;
            if body + len > len_bytes {
                return Err(damaged("truncated", body));
            }
            let mut raw = (&mut *input).take(len);
            let bitmap =
                RoaringBitmap::deserialize_from(&mut raw).map_err(|_| damaged("invalid bitmap", body))?;
            if raw.limit() != 0 || bitmap.is_empty() {
                return Err(damaged("wrong length of a bitmap", body));
            }
            *set.shard_mut(shard) = bitmap;
            at = body + len;
        }
        if at != len_bytes {
            return Err(damaged("trailing bytes", at));
        }
        Ok(set)
    }
}

const fn join(shard: usize, member: u32) -> BlockIndex {
    BlockIndex(((shard as u64) << 32) | member as u64)
}

impl PartialEq for BlockSet {
    fn eq(&self, other: &Self) -> bool {
        let shards = self.shards.len().max(other.shards.len());
        let empty = RoaringBitmap::new();
        (0..shards).all(|shard| {
            self.shards.get(shard).unwrap_or(&empty) == other.shards.get(shard).unwrap_or(&empty)
        })
    }
}

impl Eq for BlockSet {}

impl FromIterator<Extent> for BlockSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut set = Self::new();
        for extent in extents {
            set.insert_extent(extent);
        }
        set
    }
}
