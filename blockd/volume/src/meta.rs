//! `volume.meta`: the layers and snapshots of a volume, replaced as a whole at each commit.
//!
//! # File
//!
//! All integers little-endian.
//!
//! | bytes | content |
//! |---|---|
//! | 0–7 | magic `BLKDVOL1` |
//! | 8–11 | version, 1 |
//! | 12–15 | zero |
//! | 16–23 | volume id |
//! | 24–31 | size in bytes, which is the size of the topmost layer |
//! | 32–39 | epoch that the next freeze starts, at most 2^63 - 1 |
//! | 40–43 | number of layers |
//! | 44–47 | number of snapshots |
//! | 48–51 | number of kept intervals |
//! | 52–55 | zero |
//! | 32 per layer, top first | epoch u64, file epoch u64, generation u32, state u32, size in bytes u64 |
//! | 32 per snapshot | id u64, epoch u64, creation time (unix ms) u64, stall in ns u64 |
//! | 8 per interval | epoch u64; its set is generation 0 of the layer created in that epoch |
//! | 8 | xxh3-64 of everything before it |
//!
//! States: 0 open, with a map and a log; 1 frozen, with a set; 2 lazy, with a log.
//!
//! A snapshot consists of the layer with its epoch and all layers below, and has that layer's size. The
//! epochs of layers descend. Sizes never ascend, because a volume only grows. The topmost open layer is the
//! head; open layers below it are former heads of an unfinished freeze or growth. Only the bottom layer can
//! be lazy ([`crate::lazy::base`]).

use crate::{
    error::{IoContext, VolumeError},
    io::files,
    io::record::{check_version, seal, unseal},
    io::storage,
};
use blockd_extent::{BLOCK_SIZE_BYTES, Epoch, MAX_VOLUME_BYTES, SnapshotId, VolumeId};
use std::path::Path;

const MAGIC: &[u8; 8] = b"BLKDVOL1";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;

/// Maximum next epoch, far above what freezes reach, so that epochs never overflow.
const MAX_EPOCH: Epoch = Epoch(u64::MAX >> 1);

/// Content of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) volume: VolumeId,
    pub(crate) size_bytes: u64,
    pub(crate) next_epoch: Epoch,
    /// Layers, top first.
    pub(crate) layers: Vec<LayerEntry>,
    pub(crate) snapshots: Vec<SnapshotEntry>,
    /// Epochs whose interval sets are kept, ascending.
    pub(crate) intervals: Vec<Epoch>,
}

/// Entry of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerEntry {
    /// Last epoch whose writes are in the layer.
    pub(crate) epoch: Epoch,
    /// Epoch that names the layer's files.
    pub(crate) file: Epoch,
    pub(crate) generation: u32,
    pub(crate) open: bool,
    /// True for a lazy base: it holds every block and fetches missing ones.
    pub(crate) lazy: bool,
    /// Size of the volume while the layer was its head.
    pub(crate) size_bytes: u64,
}

/// Entry of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotEntry {
    pub(crate) id: SnapshotId,
    pub(crate) epoch: Epoch,
    pub(crate) created_unix_ms: u64,
    pub(crate) stall_ns: u64,
}

impl LayerEntry {
    /// Returns the entry of a new head.
    pub(crate) fn head(epoch: Epoch, size_bytes: u64) -> Self {
        Self { epoch, file: epoch, generation: 0, open: true, lazy: false, size_bytes }
    }

    /// Returns the entry of a frozen layer that was never merged.
    pub(crate) fn frozen(epoch: Epoch, size_bytes: u64) -> Self {
        Self { open: false, ..Self::head(epoch, size_bytes) }
    }

    /// Returns the number of blocks of the volume while the layer was its head.
    pub(crate) fn blocks(&self) -> u64 {
        self.size_bytes / BLOCK_SIZE_BYTES
    }
}

impl Meta {
    /// Creates the metadata of a new volume with these layers, top first, and no snapshots.
    pub(crate) fn new(volume: VolumeId, layers: Vec<LayerEntry>) -> Self {
        assert!(layers.first().is_some_and(|head| head.open), "the topmost layer of a volume is its head");
        let (size_bytes, epoch) = layers.first().map_or((0, Epoch(0)), |head| (head.size_bytes, head.epoch));
        Self { volume, size_bytes, next_epoch: epoch.next(), layers, snapshots: vec![], intervals: vec![] }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(MAGIC);
        let mut word = |value: u64| out.extend_from_slice(&value.to_le_bytes());
        word(u64::from(VERSION));
        word(self.volume.as_u64());
        word(self.size_bytes);
        word(self.next_epoch.0);
        word(self.layers.len() as u64 | (self.snapshots.len() as u64) << 32);
        word(self.intervals.len() as u64);
        for layer in &self.layers {
            word(layer.epoch.0);
            word(layer.file.0);
            let state = u64::from(!layer.open) + u64::from(layer.lazy);
            word(u64::from(layer.generation) | state << 32);
            word(layer.size_bytes);
        }
        for snapshot in &self.snapshots {
            word(snapshot.id.as_u64());
            word(snapshot.epoch.0);
            word(snapshot.created_unix_ms);
            word(snapshot.stall_ns);
        }
        for interval in &self.intervals {
            word(interval.0);
        }
        let entries = 4 * (self.layers.len() + self.snapshots.len()) + self.intervals.len();
        assert!(out.len() == HEADER_BYTES + 8 * entries, "each entry has its length");
        seal(out)
    }

    /// Decodes the file; the error is the failed check.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < HEADER_BYTES + 8 || !bytes.len().is_multiple_of(8) {
            return Err("file is truncated".into());
        }
        let body = unseal(bytes).ok_or("checksum mismatch")?;
        let mut words = body.as_chunks().0.iter().copied().map(u64::from_le_bytes);
        let mut word = || words.next().ok_or("file is truncated");
        if word()?.to_le_bytes() != *MAGIC {
            return Err("magic is not that of a volume".into());
        }
        let version = word()?;
        if version != u64::from(VERSION) {
            return Err(format!("version {version} is invalid"));
        }
        let volume = VolumeId::from_u64(word()?);
        let size_bytes = word()?;
        let next_epoch = Epoch(word()?);
        let counts = word()?;
        let (layer_count, snapshot_count) = (counts & u64::from(u32::MAX), counts >> 32);
        let interval_count = word()?;
        let mut meta =
            Self { volume, size_bytes, next_epoch, layers: vec![], snapshots: vec![], intervals: vec![] };
        for _ in 0..layer_count {
            let (epoch, file, rest, size_bytes) = (Epoch(word()?), Epoch(word()?), word()?, word()?);
            let (generation, state) = (rest as u32, rest >> 32);
            if state > 2 {
                return Err(format!("layer state {state} is invalid"));
            }
            let (open, lazy) = (state == 0, state == 2);
            meta.layers.push(LayerEntry { epoch, file, generation, open, lazy, size_bytes });
        }
        for _ in 0..snapshot_count {
            meta.snapshots.push(SnapshotEntry {
                id: SnapshotId::from_u64(word()?),
                epoch: Epoch(word()?),
                created_unix_ms: word()?,
                stall_ns: word()?,
            });
        }
        for _ in 0..interval_count {
            meta.intervals.push(Epoch(word()?));
        }
        if word().is_ok() {
            return Err("file length does not match the counts".into());
        }
        meta.check()?;
        Ok(meta)
    }

    /// Checks the consistency of the entries; the error is the failed check.
    fn check(&self) -> Result<(), String> {
        check_size(self.size_bytes)?;
        let descending = self.layers.windows(2).all(|pair| pair[0].epoch > pair[1].epoch);
        let head = self.layers.first().ok_or("head is missing")?;
        if !descending || !head.open || head.epoch >= self.next_epoch {
            return Err("layers are out of order".into());
        }
        if self.next_epoch > MAX_EPOCH {
            return Err(format!("next epoch {} is too large", self.next_epoch));
        }
        let (_, above) = self.layers.split_last().ok_or("head is missing")?;
        if above.iter().any(|layer| layer.lazy) {
            return Err("a layer above the bottom is lazy".into());
        }
        let descending_sizes = self.layers.windows(2).all(|pair| pair[0].size_bytes >= pair[1].size_bytes);
        if !descending_sizes || head.size_bytes != self.size_bytes {
            return Err("layer sizes are inconsistent".into());
        }
        self.layers.iter().try_for_each(|layer| check_size(layer.size_bytes))?;
        let frozen = |epoch| self.layers.iter().any(|layer| layer.epoch == epoch && !layer.open);
        match self.snapshots.iter().find(|snapshot| !frozen(snapshot.epoch)) {
            Some(orphan) => Err(format!("snapshot {} has no layer", orphan.id)),
            None => Ok(()),
        }
    }

    pub(crate) fn store(&self, dir: &Path) -> Result<(), VolumeError> {
        // Otherwise the next start fails with `Damaged`.
        assert!(self.check().is_ok(), "committed metadata is consistent");
        assert!(self.intervals.is_sorted(), "intervals ascend");
        assert!(
            self.intervals.last().is_none_or(|last| *last < self.next_epoch),
            "intervals are of ended epochs"
        );
        debug_assert!(Self::decode(&self.encode()).as_ref() == Ok(self), "committed metadata reads back");
        files::write_whole(&dir.join(files::META), &self.encode())
    }

    pub(crate) fn load(dir: &Path) -> Result<Self, VolumeError> {
        let path = dir.join(files::META);
        let bytes = storage::read(&path).during("read", &path)?;
        check_version(&path, &bytes, MAGIC, VERSION)?;
        Self::decode(&bytes).map_err(|what| VolumeError::Damaged { path, what })
    }
}

/// Returns an error unless a size is a positive multiple of the block size, up to 64 TiB.
pub(crate) fn check_size(size_bytes: u64) -> Result<(), String> {
    if size_bytes == 0 || size_bytes > MAX_VOLUME_BYTES || !size_bytes.is_multiple_of(BLOCK_SIZE_BYTES) {
        return Err(format!(
            "volume size must be a positive multiple of 4096 bytes up to 64 TiB, not {size_bytes} bytes: give it in GiB, MiB or KiB"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn example() -> Meta {
        let layer = |epoch, file, generation, open| LayerEntry {
            epoch: Epoch(epoch),
            file: Epoch(file),
            generation,
            open,
            lazy: false,
            size_bytes: 8 << 30,
        };
        Meta {
            volume: VolumeId::from_u64(590_114_184_663_672_482),
            size_bytes: 8 << 30,
            next_epoch: Epoch(9),
            layers: vec![layer(8, 8, 0, true), layer(7, 7, 0, true), layer(5, 2, 3, false)],
            snapshots: vec![SnapshotEntry {
                id: SnapshotId::from_u64(619_248_560_586_769_719),
                epoch: Epoch(5),
                created_unix_ms: 1_795_000_000_000,
                stall_ns: 1234,
            }],
            intervals: vec![Epoch(4), Epoch(5)],
        }
    }

    #[test]
    fn flipped_bits_and_truncations_are_detected() {
        let bytes = lazy().encode();
        assert_eq!(Meta::decode(&bytes), Ok(lazy()));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Meta::decode(&bad).is_err(), "byte {at}");
            assert!(Meta::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn golden_file_round_trips() {
        let golden = include_bytes!("../tests/golden/volume-v1.meta");
        assert_eq!(Meta::decode(golden), Ok(lazy()));
        assert_eq!(lazy().encode(), golden);
    }

    fn grown() -> Meta {
        let mut meta = example();
        meta.layers[1].size_bytes = 4 << 30;
        meta.layers[2].size_bytes = 4096;
        meta
    }

    fn lazy() -> Meta {
        let mut meta = grown();
        meta.layers[2].lazy = true;
        meta
    }

    #[test]
    fn growing_layer_sizes_are_checked() {
        assert_eq!(Meta::decode(&grown().encode()), Ok(grown()));
        let mut shrunk = grown();
        shrunk.layers[2].size_bytes = 5 << 30;
        assert!(Meta::decode(&shrunk.encode()).unwrap_err().contains("layer sizes"));
        let mut odd = grown();
        odd.layers[2].size_bytes = 4097;
        assert!(Meta::decode(&odd.encode()).is_err());
    }

    #[test]
    fn lazy_layer_above_the_bottom_is_refused() {
        let mut wrong = lazy();
        wrong.layers[1].open = false;
        wrong.layers[1].lazy = true;
        assert!(Meta::decode(&wrong.encode()).unwrap_err().contains("bottom"));
    }

    #[test]
    fn inconsistent_entries_are_refused() {
        let mut no_layer = example();
        no_layer.snapshots[0].epoch = Epoch(6);
        assert!(Meta::decode(&no_layer.encode()).unwrap_err().contains("has no layer"));
        let mut disorder = example();
        disorder.layers.swap(1, 2);
        assert!(Meta::decode(&disorder.encode()).is_err());
        let overflowing = Meta { next_epoch: Epoch(u64::MAX), ..example() };
        assert!(Meta::decode(&overflowing.encode()).unwrap_err().contains("next epoch"));
    }
}
