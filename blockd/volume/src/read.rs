//! Reads: each block comes from the topmost layer that holds it.

use crate::{
    error::VolumeError,
    layer::data::LayerData,
    layer::stack::{Source, Stack},
    volume::Volume,
};
use blockd_extent::Extent;
use std::sync::{Arc, atomic::Ordering};

/// Kind of content of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Data, in the buffer.
    Data,
    /// Zeroes, known from the block sets; the buffer is unchanged.
    Zeroes,
}

impl Volume {
    /// Reads the volume at `offset_bytes` into `buf`.
    ///
    /// # Errors
    /// The range is not inside the volume, the volume is closed, or the disk fails.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        if self.read_or_zeroes(offset_bytes, buf)? == Content::Zeroes {
            buf.fill(0);
        }
        Ok(())
    }

    /// Reads like [`read`](Self::read), but leaves `buf` unchanged for a range without data.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_or_zeroes(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Content, VolumeError> {
        let content = self.read_with(offset_bytes, buf, from_disk)?;
        // Reads from the disk are always complete.
        Ok(content.unwrap_or(Content::Data))
    }

    /// Reads like [`read_or_zeroes`](Self::read_or_zeroes), from memory only. Returns `None`, with `buf` in
    /// an unspecified state, if disk I/O or a fetch is needed.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn try_read_or_zeroes(
        &self,
        offset_bytes: u64,
        buf: &mut [u8],
    ) -> Result<Option<Content>, VolumeError> {
        self.read_with(offset_bytes, buf, from_memory)
    }

    fn read_with(
        &self,
        offset_bytes: u64,
        buf: &mut [u8],
        fetch: impl FnMut(&LayerData, u64, &mut [u8]) -> Result<bool, VolumeError>,
    ) -> Result<Option<Content>, VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, buf.len() as u64)?;
        let content = read_stack(&self.current(), Start::Top, offset_bytes, buf, fetch)?;
        if content.is_some() {
            self.counters.reads.fetch_add(1, Ordering::Relaxed);
            self.counters.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        }
        Ok(content)
    }
}

/// Reads from a layer; may wait for the disk.
pub(crate) fn from_disk(data: &LayerData, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, VolumeError> {
    data.read(offset_bytes, buf).map(|()| true)
}

/// Reads from a layer's page cache; returns false if that does not suffice.
pub(crate) fn from_memory(data: &LayerData, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, VolumeError> {
    data.try_read(offset_bytes, buf)
}

/// Layer at which a read starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Top,
    BelowHead,
}

/// Reads from the layers of a stack into `buf`. Returns `None` if a call of `fetch` returned false. Leaves
/// `buf` unchanged if the range has no data.
pub(crate) fn read_stack(
    stack: &Stack,
    start: Start,
    offset_bytes: u64,
    buf: &mut [u8],
    mut fetch: impl FnMut(&LayerData, u64, &mut [u8]) -> Result<bool, VolumeError>,
) -> Result<Option<Content>, VolumeError> {
    let end = offset_bytes + buf.len() as u64;
    let mut complete = true;
    let mut content = Content::Zeroes;
    let range = Extent::touching(offset_bytes, end - offset_bytes);
    let mut next = range.start;
    let mut copy = |extent: Extent, source: Source<'_>| {
        debug_assert!(extent.start == next && !extent.is_empty(), "sources are contiguous");
        next = extent.end();
        // The first and last block can be partial.
        let from = extent.offset_bytes().max(offset_bytes);
        let to = (extent.offset_bytes() + extent.len_bytes()).min(end);
        if source.is_some() && content == Content::Zeroes {
            content = Content::Data;
            buf[..(from - offset_bytes) as usize].fill(0);
        }
        let part = &mut buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize];
        match source {
            None if content == Content::Zeroes => {}
            None => part.fill(0),
            Some(data) if complete => complete = fetch(data, from, part)?,
            Some(_) => {}
        }
        Ok::<(), VolumeError>(())
    };
    match start {
        Start::Top => stack.resolve(range, &mut copy)?,
        Start::BelowHead => stack.resolve_below_head(range, &mut copy)?,
    }
    assert!(next == range.end(), "each byte of a read has a source");
    Ok(complete.then_some(content))
}

/// Part of a list of extents with one source, and its position in the buffer.
pub(crate) struct ReadPart {
    pub(crate) data: Arc<LayerData>,
    pub(crate) offset_bytes: u64,
    pub(crate) at: usize,
    pub(crate) len_bytes: usize,
}

/// Splits extents, stored consecutively in `buf`, into parts to read; fills zeroes into `buf`.
pub(crate) fn plan_reads(
    stack: &Stack,
    extents: &[Extent],
    buf: &mut [u8],
) -> Result<Vec<ReadPart>, VolumeError> {
    let mut parts: Vec<ReadPart> = Vec::with_capacity(extents.len());
    let mut at = 0;
    for &extent in extents {
        let end = at + extent.len_bytes() as usize;
        assert!(end <= buf.len(), "the buffer holds all extents");
        stack.resolve(extent, &mut |part, source| {
            let len_bytes = part.len_bytes() as usize;
            match source {
                None => buf[at..at + len_bytes].fill(0),
                Some(data) => {
                    parts.push(ReadPart {
                        data: data.clone(),
                        offset_bytes: part.offset_bytes(),
                        at,
                        len_bytes,
                    });
                }
            }
            at += len_bytes;
            Ok::<(), VolumeError>(())
        })?;
        assert!(at == end, "each block of an extent has a source");
    }
    Ok(parts)
}
