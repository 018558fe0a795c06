//! Frames one at a time, for benchmarks.

use crate::{
    EncryptionMode,
    frame::{FrameReader, FrameWriter},
    keys::DataKey,
    names::DeltaId,
    seal::Sealer,
};
use blockd_extent::{SnapshotId, VolumeId};
use uuid::Uuid;

/// Seals and opens frames of one delta with a fixed key.
pub struct FrameBench {
    sealer: Sealer,
    writer: FrameWriter,
    reader: FrameReader,
}

impl FrameBench {
    /// With this kind of sealing.
    pub fn new(mode: EncryptionMode) -> Self {
        let delta = DeltaId {
            cluster: Uuid::from_u128(1),
            volume: VolumeId::from_u64(2),
            snapshot: SnapshotId::from_u64(3),
        };
        let key = DataKey::fixed(Uuid::from_u128(4), mode, [9; 32]);
        Self {
            sealer: Sealer::new(&key, &delta, &[5; 32]),
            writer: FrameWriter::default(),
            reader: FrameReader::default(),
        }
    }

    /// Appends the frame of `raw`, up to 32 whole blocks, to `out`; returns its stored length.
    pub fn seal(&mut self, raw: &[u8], out: &mut Vec<u8>) -> u32 {
        self.writer.append(&self.sealer, 7, raw, out)
    }

    /// Opens a frame of this many blocks that [`seal`](Self::seal) made; says whether it opened.
    pub fn open(&mut self, blocks: usize, stored: &[u8]) -> bool {
        self.reader.open(&self.sealer, 7, blocks, stored).is_ok()
    }
}
