//! Reading a volume: each block from the topmost layer that holds it.

use crate::{
    data_files::DataFiles,
    error::VolumeError,
    stack::{Source, Stack},
    volume::Volume,
};
use blockd_extent::Extent;
use std::sync::{Arc, atomic::Ordering};

impl Volume {
    /// Fills `buf` with the volume's content from `offset_bytes` on.
    ///
    /// # Errors
    /// If the range does not lie inside the volume, the volume is closed, or the disk fails.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.read_with(offset_bytes, buf, |data, at, part| data.read(at, part).map(|()| true)).map(|_| ())
    }

    /// The same from memory only: `false`, with `buf` in an unknown state, if the disk would have to be asked.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<bool, VolumeError> {
        self.read_with(offset_bytes, buf, |data, at, part| data.try_read(at, part))
    }

    fn read_with(
        &self,
        offset_bytes: u64,
        buf: &mut [u8],
        fetch: impl FnMut(&DataFiles, u64, &mut [u8]) -> Result<bool, VolumeError>,
    ) -> Result<bool, VolumeError> {
        self.check_usable()?;
        self.check_range(offset_bytes, buf.len() as u64)?;
        let complete = read_stack(&self.current(), 0, offset_bytes, buf, fetch)?;
        if complete {
            self.counters.reads.fetch_add(1, Ordering::Relaxed);
            self.counters.bytes_read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        }
        Ok(complete)
    }
}

/// Fills `buf` from the layers from number `level` down; `false` as soon as `fetch` says so.
pub(crate) fn read_stack(
    stack: &Stack,
    level: usize,
    offset_bytes: u64,
    buf: &mut [u8],
    mut fetch: impl FnMut(&DataFiles, u64, &mut [u8]) -> Result<bool, VolumeError>,
) -> Result<bool, VolumeError> {
    let end = offset_bytes + buf.len() as u64;
    let mut complete = true;
    let mut copy = |run: Extent, source: Source<'_>| {
        // The first and the last block may be wanted in part.
        let from = run.offset_bytes().max(offset_bytes);
        let to = (run.offset_bytes() + run.len_bytes()).min(end);
        let part = &mut buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize];
        match source {
            None => part.fill(0),
            Some(data) if complete => complete = fetch(data, from, part)?,
            Some(_) => {}
        }
        Ok(())
    };
    stack.resolve_from(level, Extent::touching(offset_bytes, end - offset_bytes), &mut copy)?;
    Ok(complete)
}

/// One piece of a list of extents: where it goes in the buffer and where it comes from.
pub(crate) struct Piece {
    pub(crate) data: Arc<DataFiles>,
    pub(crate) offset_bytes: u64,
    pub(crate) at: usize,
    pub(crate) len_bytes: usize,
}

/// Cuts extents, whose blocks stand one after the other in `buf`, into pieces to be read; zeroes are filled in.
pub(crate) fn plan(stack: &Stack, extents: &[Extent], buf: &mut [u8]) -> Result<Vec<Piece>, VolumeError> {
    let mut pieces: Vec<Piece> = Vec::with_capacity(extents.len());
    let mut at = 0;
    for &extent in extents {
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
            Ok(())
        })?;
    }
    Ok(pieces)
}
