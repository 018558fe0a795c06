//! Frames: up to 128 blocks without zero blocks, compressed and sealed.
//!
//! A frame is the unit of reads: small enough for cheap access to a single block, large enough for
//! compression to find what repeats. With `zstd:3` the files of an operating system take 96 % of their bytes
//! in frames of 128 KiB; those of 1 MiB would save a further 2 %, and double what a random read transfers.

use crate::{
    cipher::{Domain, TAG_LEN_BYTES},
    codec::{Codec, Compressor, Decompressor},
    seal::Sealer,
};
use blockd_extent::BLOCK_SIZE_BYTES;
use blockd_store_config::CompressionLevel;
use parking_lot::Mutex;
use std::{iter, mem, sync::Arc};

/// Blocks of a full frame.
pub(crate) const FRAME_BLOCKS: usize = 128;
/// Bytes of a block.
pub(crate) const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
/// Length of the mask of zero blocks in bytes.
const fn mask_len(blocks: usize) -> usize {
    blocks.div_ceil(8)
}
/// Minimum stored length of a frame.
pub(crate) const MIN_STORED_LEN: usize = 1 + mask_len(1) + 1 + TAG_LEN_BYTES;
/// Maximum bytes of a frame beside its blocks.
pub(crate) const FRAME_OVERHEAD: usize = 1 + mask_len(FRAME_BLOCKS) + TAG_LEN_BYTES;
/// Maximum stored length of a frame: 128 incompressible blocks.
pub(crate) const MAX_STORED_LEN: usize = FULL_LEN_BYTES + FRAME_OVERHEAD;
/// Bytes of the blocks of a full frame.
const FULL_LEN_BYTES: usize = FRAME_BLOCKS * BLOCK;
/// Maximum number of pooled frame buffers.
const MAX_SPARE: usize = 16;

/// Writer of frames with a reused buffer.
#[derive(Default)]
pub(crate) struct FrameWriter {
    gathered: Vec<u8>,
    compressor: Compressor,
}

impl FrameWriter {
    /// Appends the frame of `raw` (whole blocks, at most 128) to `out`; returns its stored length, 0 if every
    /// block is zero.
    pub fn append(
        &mut self,
        sealer: &Sealer,
        level: CompressionLevel,
        ordinal: u64,
        raw: &[u8],
        out: &mut Vec<u8>,
    ) -> u32 {
        assert!(raw.len().is_multiple_of(BLOCK), "a frame has whole blocks");
        assert!((1..=FRAME_BLOCKS).contains(&(raw.len() / BLOCK)), "a frame has 1 to 128 blocks");
        let (mut mask, mut blocks) = (0u128, 0);
        for (i, block) in raw.chunks_exact(BLOCK).enumerate() {
            blocks += 1;
            mask |= u128::from(is_zero(block)) << i;
        }
        if mask.count_ones() == blocks {
            return 0;
        }
        let data = if mask == 0 {
            raw
        } else {
            self.gathered.clear();
            for (i, block) in raw.chunks_exact(BLOCK).enumerate() {
                if mask & (1 << i) == 0 {
                    self.gathered.extend_from_slice(block);
                }
            }
            &self.gathered
        };
        debug_assert_eq!(data.len(), (blocks - mask.count_ones()) as usize * BLOCK);
        let start = out.len();
        out.push(0);
        out.extend_from_slice(&mask.to_le_bytes()[..mask_len(raw.len() / BLOCK)]);
        out[start] = self.compressor.append(level, data, out) as u8;
        sealer.seal(Domain::Frame, ordinal, raw.len() as u64, out, start);
        let len = out.len() - start;
        assert!((MIN_STORED_LEN..=MAX_STORED_LEN).contains(&len), "no reader accepts a frame of {len} bytes");
        len as u32
    }
}

/// Reader of frames with reused buffers.
#[derive(Default)]
pub(crate) struct FrameReader {
    opened: Vec<u8>,
    data: Vec<u8>,
    decompressor: Decompressor,
}

/// Decrypted frame.
pub(crate) struct OpenFrame<'a> {
    /// Bit `i` is set if block `i` is zero.
    pub zero_mask: u128,
    /// Other blocks, consecutively.
    data: &'a [u8],
}

/// Pool of frame buffers and decompressors. Sequential reads open as many frames as they drop: clearing and
/// mapping fresh memory takes longer than filling it.
#[derive(Default)]
pub(crate) struct FrameMemory {
    spare: Mutex<Vec<Box<[u8]>>>,
    decompressors: Mutex<Vec<Decompressor>>,
}

impl FrameMemory {
    /// Returns memory with unspecified content.
    fn take(&self, len_bytes: usize) -> Box<[u8]> {
        let spare = (len_bytes == FULL_LEN_BYTES).then(|| self.spare.lock().pop()).flatten();
        let memory = spare.unwrap_or_else(|| vec![0; len_bytes].into());
        debug_assert_eq!(memory.len(), len_bytes);
        memory
    }

    /// Decompresses a payload.
    fn unpack(&self, codec: Codec, packed: &[u8], data: &mut [u8]) -> Result<(), &'static str> {
        let mut decompressor = self.decompressors.lock().pop().unwrap_or_default();
        let result = decompressor.unpack(codec, packed, data);
        let mut decompressors = self.decompressors.lock();
        if decompressors.len() < MAX_SPARE {
            decompressors.push(decompressor);
        }
        result
    }

    fn give_back(&self, memory: Box<[u8]>) {
        if memory.len() == FULL_LEN_BYTES {
            let mut spare = self.spare.lock();
            if spare.len() < MAX_SPARE {
                spare.push(memory);
            }
        }
    }
}

/// Decrypted frame that owns its memory.
pub(crate) struct OwnedFrame {
    zero_mask: u128,
    data: Box<[u8]>,
    memory: Arc<FrameMemory>,
}

impl OwnedFrame {
    /// Decrypts a frame of `blocks` blocks, destroying its stored bytes.
    ///
    /// # Errors
    /// A description of the damage.
    pub fn open(
        sealer: &Sealer,
        ordinal: u64,
        blocks: usize,
        stored: &mut [u8],
        memory: &Arc<FrameMemory>,
    ) -> Result<Self, &'static str> {
        let opened = sealer.open(Domain::Frame, ordinal, (blocks * BLOCK) as u64, stored);
        let unsealed = Unsealed::parse(opened.map(|opened| &*opened), blocks)?;
        let mut frame = Self {
            zero_mask: unsealed.zero_mask,
            data: memory.take(unsealed.data_len),
            memory: memory.clone(),
        };
        memory.unpack(unsealed.codec, unsealed.payload, &mut frame.data)?;
        Ok(frame)
    }

    /// Returns the content of block `i`; `None` if it is zero.
    pub fn block(&self, i: usize) -> Option<&[u8]> {
        OpenFrame { zero_mask: self.zero_mask, data: &self.data }.block(i)
    }

    /// Returns the memory of its blocks.
    pub fn heap_bytes(&self) -> u64 {
        self.data.len() as u64
    }
}

impl Drop for OwnedFrame {
    fn drop(&mut self) {
        self.memory.give_back(mem::take(&mut self.data));
    }
}

impl<'a> OpenFrame<'a> {
    /// Returns the content of block `i`; `None` if it is zero.
    pub fn block(&self, i: usize) -> Option<&'a [u8]> {
        debug_assert!(i < FRAME_BLOCKS, "block {i} of a frame");
        let below = (1u128 << i).wrapping_sub(1);
        let position = i - (self.zero_mask & below).count_ones() as usize;
        let is_zero = self.zero_mask & (1 << i) != 0;
        if is_zero { None } else { self.data.get(position * BLOCK..(position + 1) * BLOCK) }
    }

    /// Returns the extents of nonzero blocks among `len` blocks from block `first` on: the offset of each in
    /// them, and its content.
    pub fn nonzero(&self, first: usize, len: usize) -> impl Iterator<Item = (usize, &'a [u8])> + use<'a> {
        let (mask, data, end) = (self.zero_mask, self.data, first + len);
        debug_assert!(end <= FRAME_BLOCKS, "{len} blocks from {first} of a frame");
        let mut next = first;
        iter::from_fn(move || {
            let start = next + mask.checked_shr(next as u32)?.trailing_ones() as usize;
            if start >= end {
                return None;
            }
            next = (start + (mask >> start).trailing_zeros() as usize).min(end);
            let position = start - (mask & ((1 << start) - 1)).count_ones() as usize;
            Some((start - first, data.get(position * BLOCK..(position + next - start) * BLOCK)?))
        })
    }
}

impl FrameReader {
    /// Decrypts a frame of `blocks` blocks.
    ///
    /// # Errors
    /// A description of the damage.
    pub fn open<'a>(
        &'a mut self,
        sealer: &Sealer,
        ordinal: u64,
        blocks: usize,
        stored: &[u8],
    ) -> Result<OpenFrame<'a>, &'static str> {
        let opened =
            sealer.open_to(Domain::Frame, ordinal, (blocks * BLOCK) as u64, stored, &mut self.opened);
        let Unsealed { zero_mask, data_len, codec, payload } = Unsealed::parse(opened, blocks)?;
        if codec == Codec::Raw {
            return Ok(OpenFrame { zero_mask, data: payload });
        }
        self.data.resize(data_len, 0);
        self.decompressor.unpack(codec, payload, &mut self.data)?;
        Ok(OpenFrame { zero_mask, data: &self.data })
    }
}

/// Decrypted, compressed frame.
struct Unsealed<'a> {
    zero_mask: u128,
    /// Length of the nonzero blocks.
    data_len: usize,
    codec: Codec,
    /// As long as the blocks if it is raw.
    payload: &'a [u8],
}

impl<'a> Unsealed<'a> {
    /// Decodes a frame of `blocks` blocks; `None` does not open.
    fn parse(opened: Option<&'a [u8]>, blocks: usize) -> Result<Self, &'static str> {
        // The index was checked to have only such frames.
        assert!((1..=FRAME_BLOCKS).contains(&blocks), "a frame of {blocks} blocks");
        let frame =
            opened.ok_or("the frame does not open: it was altered, moved, or sealed with another key")?;
        let (codec, rest) = frame.split_first().ok_or("the frame has no codec")?;
        let (stored_mask, payload) =
            rest.split_at_checked(mask_len(blocks)).ok_or("the frame has no mask of zero blocks")?;
        let mut mask = [0; 16];
        mask[..stored_mask.len()].copy_from_slice(stored_mask);
        let zero_mask = u128::from_le_bytes(mask);
        if blocks < FRAME_BLOCKS && zero_mask >> blocks != 0 {
            return Err("the frame's mask names blocks that it does not have");
        }
        debug_assert!(zero_mask.count_ones() as usize <= blocks);
        let data_len = (blocks - zero_mask.count_ones() as usize) * BLOCK;
        let codec = Codec::from_byte(*codec).ok_or("the frame's codec is unknown")?;
        if codec == Codec::Raw && payload.len() != data_len {
            return Err("the frame's payload has the wrong length");
        }
        Ok(Self { zero_mask, data_len, codec, payload })
    }
}

/// Returns true if all bytes of a block are zero.
fn is_zero(block: &[u8]) -> bool {
    block.chunks_exact(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EncryptionMode, keys::DataKey, names::DeltaId};
    use blockd_extent::{SnapshotId, VolumeId};
    use proptest::prelude::*;
    use uuid::Uuid;

    const LEVELS: [CompressionLevel; 4] =
        [CompressionLevel::None, CompressionLevel::Lz4, CompressionLevel::Zstd(1), CompressionLevel::Zstd(9)];

    fn sealer(mode: EncryptionMode) -> Sealer {
        let delta = DeltaId {
            cluster: Uuid::from_u128(1),
            volume: VolumeId::from_u64(2),
            snapshot: SnapshotId::from_u64(3),
        };
        Sealer::new(&DataKey::fixed(Uuid::from_u128(4), mode, [9; 32]), &delta, &[5; 32])
    }

    fn blocks(kinds: &[u8], seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut raw = Vec::new();
        for kind in kinds {
            match kind {
                0 => raw.extend_from_slice(&[0; BLOCK]),
                1 => raw.extend_from_slice(&[b'a'; BLOCK]),
                _ => raw.extend((0..BLOCK).map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state as u8
                })),
            }
        }
        raw
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn frames_round_trip(
            kinds in prop::collection::vec(0u8..3, 1..=FRAME_BLOCKS), seed: u64, encrypted: bool,
            level in prop::sample::select(LEVELS.to_vec()),
        ) {
            let mode = if encrypted { EncryptionMode::Aes256GcmSiv } else { EncryptionMode::Checksummed };
            let sealer = sealer(mode);
            let raw = blocks(&kinds, seed);
            let mut out = b"before".to_vec();
            let len = FrameWriter::default().append(&sealer, level, 7, &raw, &mut out) as usize;
            prop_assert_eq!(out.len(), 6 + len);
            let zeroes = kinds.iter().filter(|kind| **kind == 0).count();
            if zeroes == kinds.len() {
                prop_assert_eq!(len, 0);
                return Ok(());
            }
            prop_assert!((MIN_STORED_LEN..=raw.len() - zeroes * BLOCK + 33).contains(&len));
            let mut reader = FrameReader::default();
            let frame = reader.open(&sealer, 7, kinds.len(), &out[6..]).unwrap();
            for (i, block) in raw.chunks(BLOCK).enumerate() {
                prop_assert_eq!(frame.block(i).unwrap_or(&[0; BLOCK]), block);
                prop_assert_eq!(frame.block(i).is_none(), kinds[i] == 0);
            }
            let first = seed as usize % kinds.len();
            let mut found = vec![0; raw.len() - first * BLOCK];
            let mut end = None;
            for (offset, blocks) in frame.nonzero(first, kinds.len() - first) {
                prop_assert!(end.is_none_or(|end| offset > end), "extents are maximal");
                found[offset * BLOCK..offset * BLOCK + blocks.len()].copy_from_slice(blocks);
                end = Some(offset + blocks.len() / BLOCK);
            }
            prop_assert_eq!(&found, &raw[first * BLOCK..]);
            // Into memory reused from another frame.
            let memory = Arc::<FrameMemory>::default();
            memory.give_back(vec![0xee; FULL_LEN_BYTES].into());
            let kept = OwnedFrame::open(&sealer, 7, kinds.len(), &mut out[6..], &memory).unwrap();
            for (i, block) in raw.chunks(BLOCK).enumerate() {
                prop_assert_eq!(kept.block(i).unwrap_or(&[0; BLOCK]), block);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), count in 1..=FRAME_BLOCKS, codec in 0u8..4) {
            // Validly sealed, malformed frames, as of a faulty writer.
            let sealer = sealer(EncryptionMode::Checksummed);
            if let Some(first) = bytes.first_mut() { *first = codec; }
            sealer.seal(Domain::Frame, 0, (count * BLOCK) as u64, &mut bytes, 0);
            if let Ok(frame) = FrameReader::default().open(&sealer, 0, count, &bytes) {
                for i in 0..count { let _ = frame.block(i); }
            }
        }
    }

    #[test]
    fn frame_memory_is_reused() {
        let (sealer, memory) = (sealer(EncryptionMode::Aes256GcmSiv), Arc::<FrameMemory>::default());
        let open = |kinds: &[u8]| {
            let mut stored = Vec::new();
            FrameWriter::default().append(&sealer, CompressionLevel::Lz4, 0, &blocks(kinds, 1), &mut stored);
            OwnedFrame::open(&sealer, 0, kinds.len(), &mut stored, &memory).unwrap()
        };
        let first = open(&[2; FRAME_BLOCKS]);
        let place = first.data.as_ptr();
        drop(first);
        let second = open(&[1; FRAME_BLOCKS]);
        assert_eq!(second.data.as_ptr(), place);
        assert_eq!(second.block(FRAME_BLOCKS - 1).unwrap(), [b'a'; BLOCK]);
        // Shorter ones keep their length.
        drop(open(&[2; FRAME_BLOCKS - 1]));
        assert!(memory.spare.lock().is_empty());
        let many: Vec<_> = (0..2 * MAX_SPARE).map(|_| open(&[1; FRAME_BLOCKS])).collect();
        drop(many);
        assert_eq!(memory.spare.lock().len(), MAX_SPARE);
    }

    #[test]
    fn incompressible_frame_adds_33_bytes() {
        let (sealer, raw) = (sealer(EncryptionMode::Aes256GcmSiv), blocks(&[2; FRAME_BLOCKS], 1));
        for level in LEVELS {
            let mut out = Vec::new();
            let len = FrameWriter::default().append(&sealer, level, 0, &raw, &mut out) as usize;
            assert_eq!(len, raw.len() + 33);
            assert_eq!(len, MAX_STORED_LEN);
        }
    }
}
