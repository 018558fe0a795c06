//! Holes and data ranges of files.

use super::{DataFiles, SEGMENT_BYTES, segment_lens};
use crate::{
    error::{IoContext, VolumeError},
    io::storage::File,
};
use std::{ops::Range, path::Path};

impl DataFiles {
    /// Returns the holes before the first `max_ranges` data ranges, ascending; all holes with fewer
    /// data ranges.
    pub(crate) fn holes(&self, size_bytes: u64, max_ranges: usize) -> Result<Vec<Range<u64>>, VolumeError> {
        let mut holes = Vec::new();
        let mut left = max_ranges;
        for ((number, segment), len) in (0u64..).zip(&self.segments).zip(segment_lens(size_bytes)) {
            let base = number * SEGMENT_BYTES;
            let mut at = 0;
            for data in data_ranges(&segment.file, &segment.path, 0..len) {
                let data = data?;
                holes.push(base + at..base + data.start);
                at = data.end;
                left = left.saturating_sub(1);
                if left == 0 {
                    return Ok(holes);
                }
            }
            assert!(at <= len, "data ends before the end of the file");
            holes.push(base + at..base + len);
        }
        Ok(holes)
    }
}

/// Returns the data ranges of a file, ascending.
pub(crate) fn data_ranges<'a>(
    file: &'a File,
    path: &'a Path,
    within: Range<u64>,
) -> impl Iterator<Item = Result<Range<u64>, VolumeError>> + 'a {
    let mut at = within.start;
    std::iter::from_fn(move || {
        if at >= within.end {
            return None;
        }
        let start = match file.seek_data(at) {
            Ok(Some(start)) if start < within.end => start,
            Ok(_) => return None,
            Err(error) => return Some(Err(error).during("seek", path)),
        };
        let end = match file.seek_hole(start) {
            Ok(end) => end.min(within.end),
            Err(error) => return Some(Err(error).during("seek", path)),
        };
        debug_assert!(at <= start && start < end, "data ranges ascend");
        at = end;
        Some(Ok(start..end))
    })
}
