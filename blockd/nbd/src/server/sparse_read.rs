//! Long reads for clients with structured replies: zero extents are sent as holes.
//!
//! The data is read to its position in the buffer and then compacted there, each chunk after its header.
//! Headers are smaller than the hole before them, and the first one uses the headroom, so data is not
//! overwritten before it is moved.

use crate::connection::buffer_pool::{Buffer, HEADROOM_BYTES};
use crate::device::{BlockDevice, DeviceError, Progress, StatusExtent};
use crate::protocol::constants::{BASE_ALLOCATION, STATE_ZERO};
use crate::protocol::reply::{ReplyMode, ReplyTo};
use crate::server::worker::Success;

/// Minimum length of a read with holes, in bytes; shorter reads are sent as one chunk.
const MIN_READ_BYTES: u64 = 32 << 10;
/// Minimum length of a hole, in bytes; shorter zero extents are sent as data.
const MIN_HOLE_BYTES: u64 = 16 << 10;
/// Maximum number of extents that one read queries; the rest of the range is sent as data.
const MAX_EXTENTS: usize = 1024;

/// Part of a read that becomes one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    start: usize,
    len: usize,
    is_hole: bool,
}

/// Reads `len_bytes` at the offset of `to` into chunks. Returns `None`, without a read, if the range has no
/// long hole or the client has no structured replies.
pub(crate) fn read_with_holes(
    device: &dyn BlockDevice,
    to: &ReplyTo,
    len_bytes: u64,
    buffer: &mut Buffer,
) -> Result<Option<Success>, DeviceError> {
    if to.mode == ReplyMode::Simple || len_bytes < MIN_READ_BYTES {
        return Ok(None);
    }
    let mut extents = Vec::new();
    device.block_status(BASE_ALLOCATION, to.offset_bytes, len_bytes, MAX_EXTENTS, &mut extents)?;
    let segments = segments(&extents, len_bytes);
    match segments[..] {
        [] | [Segment { is_hole: false, .. }] => return Ok(None),
        [Segment { is_hole: true, .. }] => return Ok(Some(Success::Zeroes)),
        _ => {}
    }
    assert!(len_bytes as usize <= buffer.capacity_bytes(), "the data of a read is within its buffer");
    for segment in segments.iter().filter(|segment| !segment.is_hole) {
        let part = &mut buffer.payload_mut()[segment.start..segment.start + segment.len];
        if device.read(to.offset_bytes + segment.start as u64, part)? == Progress::Zeroes {
            part.fill(0);
        }
    }
    let frame = buffer.framed_mut();
    let start = HEADROOM_BYTES - to.mode.data_header_len_bytes();
    let mut end = start;
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        let at = to.offset_bytes + segment.start as u64;
        let header = if segment.is_hole {
            // Reads are at most 64 MiB long.
            to.hole(at, segment.len as u32, is_last)
        } else {
            to.data(at, segment.len, is_last)
        };
        frame[end..end + header.len()].copy_from_slice(&header);
        end += header.len();
        if !segment.is_hole {
            let from = HEADROOM_BYTES + segment.start;
            assert!(end <= from, "a chunk does not overwrite unmoved data");
            frame.copy_within(from..from + segment.len, end);
            end += segment.len;
        }
    }
    Ok(Some(Success::Framed(start..end)))
}

/// Splits a read into data and long holes. The range after the last extent is data.
fn segments(extents: &[StatusExtent], len_bytes: u64) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut at = 0;
    let mut add = |at: u64, len_bytes: u64, is_hole: bool| match segments.last_mut() {
        Some(last) if last.is_hole == is_hole => last.len += len_bytes as usize,
        // Reads are at most 64 MiB long.
        _ => segments.push(Segment { start: at as usize, len: len_bytes as usize, is_hole }),
    };
    for extent in extents {
        let segment_len_bytes = extent.len_bytes.min(len_bytes - at);
        if segment_len_bytes == 0 {
            break;
        }
        let is_hole = extent.flags & STATE_ZERO != 0 && segment_len_bytes >= MIN_HOLE_BYTES;
        add(at, segment_len_bytes, is_hole);
        at += segment_len_bytes;
    }
    if at < len_bytes {
        add(at, len_bytes - at, false);
    }
    debug_assert!(
        segments.iter().map(|segment| segment.len as u64).sum::<u64>() == len_bytes,
        "the segments cover the read"
    );
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_holes_are_merged_into_data() {
        let extent = |len_bytes, flags| StatusExtent { len_bytes, flags };
        let segment = |start, len, is_hole| Segment { start, len, is_hole };
        assert_eq!(segments(&[], 100), [segment(0, 100, false)]);
        let extents =
            [extent(4096, 0), extent(8192, STATE_ZERO), extent(65536, STATE_ZERO), extent(1 << 40, 0)];
        assert_eq!(
            segments(&extents, 1 << 20),
            [segment(0, 12288, false), segment(12288, 65536, true), segment(77824, (1 << 20) - 77824, false)]
        );
        assert_eq!(segments(&[extent(1 << 40, STATE_ZERO)], 1 << 20), [segment(0, 1 << 20, true)]);
        assert_eq!(segments(&[extent(65536, 3)], 65540), [segment(0, 65536, true), segment(65536, 4, false)]);
    }
}
