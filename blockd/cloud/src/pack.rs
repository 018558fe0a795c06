//! Packs: objects of up to 64 frames, and the header that packs and indexes share.
//!
//! Packs are created from the layout, independently of each other. The header identifies the delta, so that a
//! misplaced object is detected before a frame in it is decrypted.

use crate::{
    CloudError, CompressionLevel, FORMAT_VERSION,
    frame::{BLOCK, FRAME_OVERHEAD, FrameWriter},
    keys::DataKey,
    names::{DeltaId, ObjectKind},
    seal::Sealer,
};

/// Length of the header of packs and indexes, in bytes.
pub(crate) const OBJECT_HEADER_LEN: usize = 64;

/// Returns the header of an object of a delta. All fields follow from the object's key, so a reader compares
/// bytes.
pub(crate) fn object_header(kind: ObjectKind, key: &DataKey, delta: &DeltaId) -> [u8; OBJECT_HEADER_LEN] {
    let (magic, pack_no) = match kind {
        ObjectKind::Pack(pack_no) => (b"BLKDPACK", pack_no),
        ObjectKind::Index => (b"BLKDINDX", 0),
    };
    let mut header = [0; OBJECT_HEADER_LEN];
    header[..8].copy_from_slice(magic);
    header[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[10] = key.mode().byte();
    header[12..16].copy_from_slice(&pack_no.to_le_bytes());
    header[16..32].copy_from_slice(key.key_id().as_bytes());
    header[32..48].copy_from_slice(delta.cluster.as_bytes());
    header[48..56].copy_from_slice(&delta.volume.as_u64().to_le_bytes());
    header[56..].copy_from_slice(&delta.snapshot.as_u64().to_le_bytes());
    header
}

/// Checks the header of an object of a delta against the expected one. Its version is that of the manifest,
/// which was read before.
///
/// # Errors
/// [`CloudError::Damaged`].
pub(crate) fn check_object_header(
    found: &[u8],
    kind: ObjectKind,
    key: &DataKey,
    delta: &DeltaId,
    object: &str,
) -> Result<(), CloudError> {
    let expected = object_header(kind, key, delta);
    let Some(at) = expected.iter().zip(found).position(|(a, b)| a != b) else {
        return Ok(());
    };
    let what = match at {
        0..8 => "it does not begin as its kind of object does",
        8 | 9 => "its header names another version than its manifest",
        10 => "its header names another encryption mode",
        12..16 => "its header names another pack: the object was swapped",
        16..32 => "its header names another key",
        32..64 => "its header names another snapshot: the object was swapped",
        _ => "its header has a reserved byte that is not zero",
    };
    Err(CloudError::damaged(object, at as u64, what))
}

/// Returns the maximum total size of sealed frames, given their lengths in blocks.
pub(crate) fn max_frames_len(sizes: &[usize]) -> usize {
    sizes.iter().sum::<usize>() * BLOCK + sizes.len() * FRAME_OVERHEAD
}

/// Seals the frames of `raw`, numbered from `first_frame`, and appends them to `out`; `sizes` are their
/// lengths in blocks. Returns their stored lengths.
pub(crate) fn seal_frames(
    writer: &mut FrameWriter,
    sealer: &Sealer,
    level: CompressionLevel,
    first_frame: u64,
    sizes: &[usize],
    raw: &[u8],
    out: &mut Vec<u8>,
) -> Vec<u32> {
    assert_eq!(sizes.iter().sum::<usize>() * BLOCK, raw.len(), "the blocks read are those of the frames");
    let start = out.len();
    let mut rest = raw;
    let mut lens = Vec::with_capacity(sizes.len());
    for (i, blocks) in sizes.iter().enumerate() {
        let (frame, after) = rest.split_at(blocks * BLOCK);
        lens.push(writer.append(sealer, level, first_frame + i as u64, frame, out));
        rest = after;
    }
    assert_eq!(lens.iter().map(|len| *len as usize).sum::<usize>(), out.len() - start);
    debug_assert!(out.len() - start <= max_frames_len(sizes), "the buffer grew");
    lens
}
