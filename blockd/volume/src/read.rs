//! Reads: each block comes from the topmost layer that holds it.

use crate::{
    error::VolumeError,
    layer::data::LayerData,
    layer::stack::{Source, Stack},
    volume::Volume,
};
use blockd_extent::Extent;
use std::sync::{Arc, atomic::Ordering};

/// Content of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Data, in the buffer.
    Data,
    /// Only zeroes, known without reading data; the buffer is unchanged.
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

    /// Reads like [`read`](Self::read), but only reports a range without data and leaves `buf` unchanged.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn read_or_zeroes(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Content, VolumeError> {
        let content = self.read_with(offset_bytes, buf, from_disk)?;
        // Reads from the disk are always complete.
        Ok(content.unwrap_or(Content::Data))
    }

    /// Runs [`read_or_zeroes`](Self::read_or_zeroes) from memory only; `None`, with `buf` in an unspecified
    /// state, if the disk would be needed.
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

/// Reads from a layer, waiting for the disk.
pub(crate) fn from_disk(data: &LayerData, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, VolumeError> {
    data.read(offset_bytes, buf).map(|()| true)
}

/// Reads from a layer's page cache.
pub(crate) fn from_memory(data: &LayerData, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, VolumeError> {
    data.try_read(offset_bytes, buf)
}

/// Start of a read in a stack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Top,
    BelowHead,
}

/// Reads from the layers of a stack into `buf`; `None` as soon as `fetch` returns it. A buffer of zeroes only
/// is left unchanged.
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
    let mut copy = |run: Extent, source: Source<'_>| {
        debug_assert!(run.start == next && !run.is_empty(), "sources come in order and without gaps");
        next = run.end();
        // The first and last block can be partial.
        let from = run.offset_bytes().max(offset_bytes);
        let to = (run.offset_bytes() + run.len_bytes()).min(end);
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

/// Part of a list of extents: its position in the buffer and its source.
pub(crate) struct Piece {
    pub(crate) data: Arc<LayerData>,
    pub(crate) offset_bytes: u64,
    pub(crate) at: usize,
    pub(crate) len_bytes: usize,
}

/// Splits extents, stored consecutively in `buf`, into parts to read; zeroes are filled in.
pub(crate) fn plan(stack: &Stack, extents: &[Extent], buf: &mut [u8]) -> Result<Vec<Piece>, VolumeError> {
    let mut pieces: Vec<Piece> = Vec::with_capacity(extents.len());
    let mut at = 0;
    for &extent in extents {
        let end = at + extent.len_bytes() as usize;
        assert!(end <= buf.len(), "the buffer holds all extents");
        stack.resolve(extent, &mut |run, source| {
            let len_bytes = run.len_bytes() as usize;
            match source {
                None => buf[at..at + len_bytes].fill(0),
                Some(data) => {
                    pieces.push(Piece {
                        data: data.clone(),
                        offset_bytes: run.offset_bytes(),
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
    Ok(pieces)
}
