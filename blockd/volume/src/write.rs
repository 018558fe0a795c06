//! Writes, trims and zeroing; all go to the head.
//!
//! A partially written block that the head does not hold is first copied up from the layers below, under the
//! exclusive lock of its region. Right after a freeze an earlier write may still be in progress in the old
//! head. The copy-up waits for it; otherwise it could copy older content and lose that write. In a lazy
//! volume the block may need a fetch, which happens before the write enters the head or takes a lock, so that
//! neither a freeze nor another write waits for it.

use crate::{
    error::VolumeError,
    head::Head,
    head::live_map::BlockState,
    io::reserve,
    layer::data_files::{self, ZeroOptions},
    layer::stack::{Layer, Stack},
    read::{Start, from_disk, read_stack},
    volume::{StackGuard, Volume},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, ByteOffset, Extent};
use std::sync::atomic::Ordering;

/// Maximum length zeroed under one lock: bounds the lock time and the memory of the extent list.
const MAX_ZERO_BLOCKS: u64 = (1 << 30) / BLOCK_SIZE_BYTES;

impl Volume {
    /// Writes `data` at `offset_bytes`, any alignment. With `fua` it is durable when the call returns;
    /// otherwise it survives the death of the process, and a power cut after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// The range is not inside the volume, the volume is closed or has failed, or the disk is full or fails.
    /// Then each block of the range has its old or its new content.
    pub fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), VolumeError> {
        self.write_if(offset_bytes, data, true)?;
        if fua { self.flush() } else { Ok(()) }
    }

    /// Writes if that needs no copy-up, no fetch and no region that another request has locked; otherwise
    /// returns false without writing. The locks that are held for a few instructions (the stack, a chunk of
    /// the map, the tracked blocks) may be waited for.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<bool, VolumeError> {
        self.write_if(offset_bytes, data, false)
    }

    fn write_if(&self, offset_bytes: u64, data: &[u8], may_wait: bool) -> Result<bool, VolumeError> {
        self.check_range(offset_bytes, data.len() as u64)?;
        if data.is_empty() {
            return self.check_usable().map(|()| true);
        }
        if !self.fetch_partial_blocks(offset_bytes, data.len() as u64, may_wait)? {
            return Ok(false);
        }
        let entered = self.enter()?;
        let head = entered.head();
        let touched = Extent::touching(offset_bytes, data.len() as u64);
        self.check_space(head, touched)?;
        for edge in partial_blocks(offset_bytes, data.len() as u64) {
            if !head.holds(edge) {
                if !may_wait {
                    return Ok(false);
                }
                copy_up(entered.stack(), head, edge)?;
            }
        }
        let (_shared, _alone);
        match (data_files::is_split(offset_bytes, data.len()), may_wait) {
            (false, true) => _shared = head.regions.shared(touched),
            (true, true) => _alone = head.regions.exclusive(touched),
            (false, false) => match head.regions.try_shared(touched) {
                Some(regions) => _shared = regions,
                None => return Ok(false),
            },
            (true, false) => match head.regions.try_exclusive(touched) {
                Some(regions) => _alone = regions,
                None => return Ok(false),
            },
        }
        head.write(offset_bytes, data)?;
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_written.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(true)
    }

    /// Returns an error for a write that needs space while the space reserve is released.
    pub(crate) fn check_space(&self, head: &Head, blocks: Extent) -> Result<(), VolumeError> {
        if !reserve::is_released() || head.states(blocks).all(|(_, state)| state == BlockState::Data) {
            return Ok(());
        }
        Err(self.no_space("write"))
    }

    pub(crate) fn no_space(&self, operation: &'static str) -> VolumeError {
        reserve::no_space(operation, &self.dir)
    }

    /// Frees the space of all whole blocks of a range, which read as zeroes afterwards. Partial blocks at the
    /// ends keep their content, as the NBD protocol allows.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), VolumeError> {
        self.check_range(offset_bytes, len_bytes)?;
        self.zero_blocks(Extent::inside(offset_bytes, len_bytes), ZeroOptions::default())?;
        if fua { self.flush() } else { Ok(()) }
    }

    /// Zeroes a range of any alignment; with `no_hole` its space is kept.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.zero_range(offset_bytes, len_bytes, ZeroOptions { keep_space: no_hole, fast: false })?;
        if fua { self.flush() } else { Ok(()) }
    }

    /// Zeroes a range if that is as fast as punching a hole, independent of its content.
    ///
    /// # Errors
    /// As for [`write`](Self::write); [`VolumeErrorKind::Unsupported`](crate::VolumeErrorKind::Unsupported)
    /// if the filesystem can only write zeroes.
    pub fn write_zeroes_fast(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), VolumeError> {
        self.zero_range(offset_bytes, len_bytes, ZeroOptions { keep_space: no_hole, fast: true })?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn zero_range(&self, offset_bytes: u64, len_bytes: u64, options: ZeroOptions) -> Result<(), VolumeError> {
        self.check_range(offset_bytes, len_bytes)?;
        // First, because with `fast` it may fail.
        self.zero_blocks(Extent::inside(offset_bytes, len_bytes), options)?;
        let end = offset_bytes + len_bytes;
        for edge in partial_blocks(offset_bytes, len_bytes) {
            let from = edge.offset().0.max(offset_bytes);
            let to = (edge.offset().0 + BLOCK_SIZE_BYTES).min(end);
            assert!(
                from < to && to - from < BLOCK_SIZE_BYTES,
                "the end of a zeroed range is a partial block"
            );
            self.write_if(from, &vec![0; (to - from) as usize], true)?;
        }
        Ok(())
    }

    fn zero_blocks(&self, extent: Extent, options: ZeroOptions) -> Result<(), VolumeError> {
        let mut at = extent.start;
        while at < extent.end() {
            let end = BlockIndex(at.0 + MAX_ZERO_BLOCKS).min(extent.end());
            let part = Extent::between(at, end);
            let entered = self.enter()?;
            let head = entered.head();
            let _alone = head.regions.exclusive(part);
            if options.keep_space {
                self.check_space(head, part)?;
            }
            let marked = maybe_nonzero(&entered, part)?;
            debug_assert!(
                marked.iter().all(|zeroed| zeroed.intersection(part) == *zeroed),
                "zeroes beyond the range"
            );
            head.zero(part, &marked, options)?;
            at = end;
        }
        self.check_usable()?;
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Returns the partial blocks at the ends of a range.
pub(crate) fn partial_blocks(offset_bytes: u64, len_bytes: u64) -> impl Iterator<Item = BlockIndex> {
    let end = offset_bytes + len_bytes;
    let first = BlockIndex::containing(ByteOffset(offset_bytes));
    let last = BlockIndex::containing(ByteOffset(end.saturating_sub(1)));
    let within = |offset: u64| len_bytes > 0 && !offset.is_multiple_of(BLOCK_SIZE_BYTES);
    let first_is_partial = within(offset_bytes) || (first == last && within(end));
    let last_is_partial = within(end) && last != first;
    [(first, first_is_partial), (last, last_is_partial)].into_iter().filter(|pair| pair.1).map(|pair| pair.0)
}

/// Copies a block up into the head, unless the head holds it.
fn copy_up(stack: &Stack, head: &Head, block: BlockIndex) -> Result<(), VolumeError> {
    for layer in &stack.layers()[1..] {
        if let Layer::Open(old_head) = layer {
            old_head.writers.wait_until_done();
        }
    }
    let one = Extent::new(block, 1);
    let _alone = head.regions.exclusive(one);
    if head.holds(block) {
        return Ok(());
    }
    let mut content = [0; BLOCK_SIZE_BYTES as usize];
    // `read_stack` leaves `content` zero for a block without data.
    let found = read_stack(stack, Start::BelowHead, one.offset_bytes(), &mut content, from_disk)?;
    assert!(found.is_some(), "a block is copied up completely");
    head.write(one.offset_bytes(), &content)?;
    debug_assert!(head.holds(block), "a block that was copied up is held");
    Ok(())
}

/// Returns the extents of a range that may be nonzero or are held by the head. The others are zeroes now and
/// at the last freeze, so zeroing does not dirty them.
fn maybe_nonzero(entered: &StackGuard, range: Extent) -> Result<Vec<Extent>, VolumeError> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut add = |extent: Extent| match extents.last_mut() {
        Some(last) if last.end() == extent.start => last.len_blocks += extent.len_blocks,
        _ => extents.push(extent),
    };
    for (extent, state) in entered.head().states(range) {
        match state {
            BlockState::Data | BlockState::Zero => add(extent),
            BlockState::Absent => entered.stack().resolve_below_head(extent, &mut |below, source| {
                if source.is_some() {
                    add(below);
                }
                Ok::<(), VolumeError>(())
            })?,
        }
    }
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_blocks_of_a_range() {
        let partial = |offset, len| partial_blocks(offset, len).map(|block| block.0).collect::<Vec<_>>();
        assert!(partial(0, 4096).is_empty());
        assert_eq!(partial(0, 1), [0]);
        assert_eq!(partial(4095, 1), [0]);
        assert_eq!(partial(4095, 2), [0, 1]);
        assert_eq!(partial(100, 8092), [0]);
        assert_eq!(partial(0, 8193), [2]);
        assert_eq!(partial(1, 20_000), [0, 4]);
        assert!(partial(77, 0).is_empty());
    }
}
