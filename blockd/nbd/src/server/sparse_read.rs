//! Long reads for clients with structured replies: zeroes are sent as holes.
//!
//! The data is read to its normal position and then compacted in the same buffer, each chunk after its own
//! header. A header is smaller than the hole before it, and the first one uses the buffer's headroom, so no
//! unmoved data is overwritten.

use crate::connection::buffer_pool::{Buffer, HEADROOM_BYTES};
use crate::device::{BlockDevice, DeviceError, Progress, StatusExtent};
use crate::protocol::constants::{BASE_ALLOCATION, STATE_ZERO};
use crate::protocol::reply::{ReplyMode, ReplyTo};
use crate::server::worker::Success;

/// Shorter reads are answered in one piece.
const MIN_READ_BYTES: u64 = 32 << 10;
/// Shorter runs of zeroes are sent as data.
const MIN_HOLE_BYTES: u64 = 16 << 10;
/// As far as holes are looked for in one read.
const MAX_EXTENTS: usize = 1024;

/// A piece of a read: where it begins in the payload, and how long it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: usize,
    len: usize,
    is_hole: bool,
}

/// Reads `len_bytes` from `to`'s offset on into chunks, if there are holes worth telling of; `None` if there
/// are not, or the client would not understand: then nothing was read.
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
    let pieces = pieces(&extents, len_bytes);
    match pieces[..] {
        [] | [Piece { is_hole: false, .. }] => return Ok(None),
        [Piece { is_hole: true, .. }] => return Ok(Some(Success::Zeroes)),
        _ => {}
    }
    assert!(len_bytes as usize <= buffer.capacity_bytes(), "the data of a read lies in its buffer");
    for piece in pieces.iter().filter(|piece| !piece.is_hole) {
        let part = &mut buffer.payload_mut()[piece.start..piece.start + piece.len];
        if device.read(to.offset_bytes + piece.start as u64, part)? == Progress::Zeroes {
            part.fill(0);
        }
    }
    let frame = buffer.framed_mut();
    let start = HEADROOM_BYTES - to.mode.data_header_len_bytes();
    let mut end = start;
    for (index, piece) in pieces.iter().enumerate() {
        let is_last = index + 1 == pieces.len();
        let at = to.offset_bytes + piece.start as u64;
        let header = if piece.is_hole {
            // No read is longer than 64 MiB.
            to.hole(at, piece.len as u32, is_last)
        } else {
            to.data(at, piece.len, is_last)
        };
        frame[end..end + header.len()].copy_from_slice(&header);
        end += header.len();
        if !piece.is_hole {
            let from = HEADROOM_BYTES + piece.start;
            assert!(end <= from, "a chunk must not overwrite data that is not moved yet");
            frame.copy_within(from..from + piece.len, end);
            end += piece.len;
        }
    }
    Ok(Some(Success::Framed(start..end)))
}

/// Cuts a read into data and holes that are worth it. What the extents do not cover is data.
fn pieces(extents: &[StatusExtent], len_bytes: u64) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut at = 0;
    let mut add = |at: u64, len_bytes: u64, is_hole: bool| match pieces.last_mut() {
        Some(last) if last.is_hole == is_hole => last.len += len_bytes as usize,
        // No read is longer than 64 MiB.
        _ => pieces.push(Piece { start: at as usize, len: len_bytes as usize, is_hole }),
    };
    for extent in extents {
        let piece_len_bytes = extent.len_bytes.min(len_bytes - at);
        if piece_len_bytes == 0 {
            break;
        }
        let is_hole = extent.flags & STATE_ZERO != 0 && piece_len_bytes >= MIN_HOLE_BYTES;
        add(at, piece_len_bytes, is_hole);
        at += piece_len_bytes;
    }
    if at < len_bytes {
        add(at, len_bytes - at, false);
    }
    debug_assert!(pieces.iter().map(|piece| piece.len as u64).sum::<u64>() == len_bytes, "all of the read");
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_read() {
        let extent = |len_bytes, flags| StatusExtent { len_bytes, flags };
        let piece = |start, len, is_hole| Piece { start, len, is_hole };
        assert_eq!(pieces(&[], 100), [piece(0, 100, false)]);
        let extents =
            [extent(4096, 0), extent(8192, STATE_ZERO), extent(65536, STATE_ZERO), extent(1 << 40, 0)];
        assert_eq!(
            pieces(&extents, 1 << 20),
            [piece(0, 12288, false), piece(12288, 65536, true), piece(77824, (1 << 20) - 77824, false)]
        );
        assert_eq!(pieces(&[extent(1 << 40, STATE_ZERO)], 1 << 20), [piece(0, 1 << 20, true)]);
        assert_eq!(pieces(&[extent(65536, 3)], 65540), [piece(0, 65536, true), piece(65536, 4, false)]);
    }
}
