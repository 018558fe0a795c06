//! Block sets of a frozen layer: its held blocks, and the zeroes among them.
//!
//! A set file never changes. It is written when the layer is frozen (generation 0) and after each merge into
//! the layer (the next generation). Generation 0 is also the interval set, the blocks dirtied in the layer's
//! epoch, and may outlive the layer.
//!
//! # File
//!
//! All integers little-endian: magic `BLKDSET1`, version u32 (1), generation u32, volume id u64, file epoch
//! u64, blocks of the volume u64, length of the held set u64, length of the zero set u64, then the two
//! encoded sets, then xxh3-64 of everything before it.

use crate::{
    error::{IoContext, VolumeError},
    io::files,
    io::record::{check_version, seal, unseal, word_at},
    io::storage,
    meta::LayerEntry,
};
use blockd_extent::{BlockSet, Epoch, VolumeId};
use std::path::Path;

const MAGIC: &[u8; 8] = b"BLKDSET1";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;
const BLOCKS_AT: usize = 32;

/// Block sets of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerSet {
    /// All blocks that the layer holds.
    pub(crate) held: BlockSet,
    /// Held blocks that are zeroes, without data.
    pub(crate) zero: BlockSet,
}

/// Identity of a set file.
#[derive(Clone, Copy)]
pub(crate) struct SetIdentity {
    pub(crate) volume: VolumeId,
    pub(crate) file: Epoch,
    pub(crate) generation: u32,
    /// Blocks of the volume when the set was written.
    pub(crate) blocks: u64,
}

impl SetIdentity {
    /// Returns the identity of the set of a frozen layer.
    pub(crate) fn of(volume: VolumeId, layer: &LayerEntry) -> Self {
        Self { volume, file: layer.file, generation: layer.generation, blocks: layer.blocks() }
    }
}

impl LayerSet {
    pub(crate) fn encode(&self, id: SetIdentity) -> Vec<u8> {
        assert!(self.held.last().is_none_or(|last| last.0 < id.blocks), "a layer holds blocks of the volume");
        debug_assert!(self.is_consistent(), "zeroes are held");
        let (held, zero) = (self.held.to_bytes(), self.zero.to_bytes());
        let mut out = Vec::with_capacity(HEADER_BYTES + held.len() + zero.len() + 8);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&id.generation.to_le_bytes());
        out.extend_from_slice(&id.volume.as_u64().to_le_bytes());
        out.extend_from_slice(&id.file.0.to_le_bytes());
        out.extend_from_slice(&id.blocks.to_le_bytes());
        out.extend_from_slice(&(held.len() as u64).to_le_bytes());
        out.extend_from_slice(&(zero.len() as u64).to_le_bytes());
        assert!(out.len() == HEADER_BYTES, "the header has its length");
        out.extend_from_slice(&held);
        out.extend_from_slice(&zero);
        let out = seal(out);
        debug_assert!(Self::decode(&out, id).as_ref() == Ok(self), "a set reads back");
        out
    }

    /// Decodes the file; the error is the failed check.
    pub(crate) fn decode(bytes: &[u8], id: SetIdentity) -> Result<Self, String> {
        if bytes.len() < HEADER_BYTES + 8 {
            return Err("file is truncated".into());
        }
        let body = unseal(bytes).ok_or("checksum mismatch")?;
        let word = |at| word_at(body, at);
        let identity = [id.volume.as_u64(), id.file.0, id.blocks];
        if &body[..8] != MAGIC
            || [word(16), word(24), word(32)] != identity
            || body[12..16] != id.generation.to_le_bytes()
        {
            return Err("header does not match the layer".into());
        }
        let held_len = usize::try_from(word(40)).map_err(|_| "section lengths are invalid")?;
        let zero_len = usize::try_from(word(48)).map_err(|_| "section lengths are invalid")?;
        let sets = &body[HEADER_BYTES..];
        if held_len.checked_add(zero_len) != Some(sets.len()) {
            return Err("section lengths are invalid".into());
        }
        let read = |raw: &[u8]| BlockSet::from_bytes(raw).map_err(|error| error.to_string());
        let set = Self { held: read(&sets[..held_len])?, zero: read(&sets[held_len..])? };
        let inside = set.held.last().is_none_or(|last| last.0 < id.blocks);
        if !inside || !set.is_consistent() {
            return Err("block sets are inconsistent".into());
        }
        Ok(set)
    }

    pub(crate) fn store(&self, dir: &Path, id: SetIdentity) -> Result<(), VolumeError> {
        files::write_whole(&files::set_path(dir, id.file, id.generation), &self.encode(id))
    }

    pub(crate) fn load(dir: &Path, id: SetIdentity) -> Result<Self, VolumeError> {
        Self::load_with(dir, id, |_| id)
    }

    /// Loads a set that may have been written when the volume had fewer blocks than `id` has.
    pub(crate) fn load_of_any_size(dir: &Path, id: SetIdentity) -> Result<Self, VolumeError> {
        Self::load_with(dir, id, |bytes| SetIdentity {
            blocks: word_at(bytes, BLOCKS_AT).min(id.blocks),
            ..id
        })
    }

    fn load_with(
        dir: &Path,
        id: SetIdentity,
        identity: impl FnOnce(&[u8]) -> SetIdentity,
    ) -> Result<Self, VolumeError> {
        let path = files::set_path(dir, id.file, id.generation);
        let bytes = storage::read(&path).during("read", &path)?;
        check_version(&path, &bytes, MAGIC, VERSION)?;
        Self::decode(&bytes, identity(&bytes)).map_err(|what| VolumeError::Damaged { path, what })
    }

    /// Merges the sets of an upper layer into this one; the upper layer takes precedence.
    pub(crate) fn cover_with(&mut self, above: &Self) {
        self.zero.subtract(&above.held);
        self.zero.union_with(&above.zero);
        self.held.union_with(&above.held);
        debug_assert!(self.is_consistent(), "zeroes are held");
    }

    /// Returns true if each zero block is held; for assertions.
    pub(crate) fn is_consistent(&self) -> bool {
        let mut outside = self.zero.clone();
        outside.subtract(&self.held);
        outside.is_empty()
    }

    /// Returns the bytes of the blocks with data.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.held.len_bytes().saturating_sub(self.zero.len_bytes())
    }

    /// Returns the blocks with data.
    pub(crate) fn data(&self) -> BlockSet {
        let mut data = self.held.clone();
        data.subtract(&self.zero);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::{BlockIndex, Extent};

    const ID: SetIdentity = SetIdentity {
        volume: VolumeId::from_u64(0x0102_0304),
        file: Epoch(5),
        generation: 2,
        blocks: 1 << 20,
    };

    fn example() -> LayerSet {
        LayerSet {
            held: BlockSet::from_iter([Extent::new(BlockIndex(1), 3), Extent::new(BlockIndex(70_000), 1)]),
            zero: BlockSet::from_iter([Extent::new(BlockIndex(2), 1)]),
        }
    }

    #[test]
    fn flipped_bits_and_truncations_are_detected() {
        let bytes = example().encode(ID);
        assert_eq!(LayerSet::decode(&bytes, ID), Ok(example()));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(LayerSet::decode(&bad, ID).is_err(), "byte {at}");
            assert!(LayerSet::decode(&bytes[..at], ID).is_err(), "cut at {at}");
        }
        assert!(LayerSet::decode(&bytes, SetIdentity { generation: 3, ..ID }).is_err());
    }

    #[test]
    fn set_of_grown_volume_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        example().store(dir.path(), ID).unwrap();
        let grown = SetIdentity { blocks: ID.blocks * 2, ..ID };
        assert_eq!(LayerSet::load_of_any_size(dir.path(), grown).unwrap(), example());
        assert!(LayerSet::load(dir.path(), grown).is_err());
        let shrunk = SetIdentity { blocks: ID.blocks / 2, ..ID };
        assert!(LayerSet::load_of_any_size(dir.path(), shrunk).is_err());
    }

    #[test]
    fn golden_file_round_trips() {
        let golden = include_bytes!("../../tests/golden/layer-v1.set");
        assert_eq!(LayerSet::decode(golden, ID), Ok(example()));
        assert_eq!(example().encode(ID), golden);
    }

    #[test]
    fn upper_layer_takes_precedence() {
        let mut below = example();
        let above = LayerSet {
            held: BlockSet::from_iter([Extent::new(BlockIndex(2), 2)]),
            zero: BlockSet::from_iter([Extent::new(BlockIndex(3), 1)]),
        };
        below.cover_with(&above);
        assert_eq!(below.held, example().held);
        assert_eq!(below.zero, above.zero);
    }
}
