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
    io::record::{check_version, unseal, word_at},
    io::storage::File,
    io::stream::{FileReader, HashingWriter, decode_and_sum},
    meta::LayerEntry,
};
use blockd_extent::{BlockIndex, BlockSet, Epoch, Extent, VolumeId};
use std::{
    io::{self, Read, Write},
    path::Path,
};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8; 8] = b"BLKDSET1";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;
const BLOCKS_AT: usize = 32;

/// Memory of both sets above which zeroes are left out, per TiB.
const MAX_BYTES_PER_TIB: u64 = 35 << 20;
/// Size of the groups whose zeroes are left out: that of a container of a set.
const GROUP_BLOCKS: u64 = 1 << 16;
/// Maximum number of extents of zeroes in a group, if the sets are too large: 640 bytes, or 2.5 MiB per TiB.
const MAX_ZERO_EXTENTS: usize = 160;

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
    /// Writes the file's content to `out`.
    pub(crate) fn write_to(&self, id: SetIdentity, out: &mut dyn Write) -> io::Result<()> {
        assert!(self.held.last().is_none_or(|last| last.0 < id.blocks), "a layer holds blocks of the volume");
        debug_assert!(self.is_consistent(), "zeroes are held");
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(MAGIC);
        header.extend_from_slice(&VERSION.to_le_bytes());
        header.extend_from_slice(&id.generation.to_le_bytes());
        header.extend_from_slice(&id.volume.as_u64().to_le_bytes());
        header.extend_from_slice(&id.file.0.to_le_bytes());
        header.extend_from_slice(&id.blocks.to_le_bytes());
        header.extend_from_slice(&(self.held.serialized_len() as u64).to_le_bytes());
        header.extend_from_slice(&(self.zero.serialized_len() as u64).to_le_bytes());
        assert!(header.len() == HEADER_BYTES, "the header has its length");
        let mut hashing = HashingWriter::new(out, Xxh3::new());
        hashing.write_all(&header)?;
        self.held.write_to(&mut hashing)?;
        self.zero.write_to(&mut hashing)?;
        let sum = hashing.sum();
        out.write_all(&sum.to_le_bytes())
    }

    #[cfg(test)]
    pub(crate) fn encode(&self, id: SetIdentity) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_to(id, &mut out).unwrap();
        out
    }

    /// Decodes the file; the error is the failed check.
    pub(crate) fn decode(bytes: &[u8], id: SetIdentity) -> Result<Self, String> {
        if bytes.len() < HEADER_BYTES + 8 {
            return Err("file is truncated".into());
        }
        let body = unseal(bytes).ok_or("checksum mismatch")?;
        Self::decode_body(&mut &*body, body.len() as u64, id)
    }

    /// Decodes everything before the checksum, which may turn out to be wrong.
    fn decode_body(body: &mut dyn Read, len_bytes: u64, id: SetIdentity) -> Result<Self, String> {
        let mut header = [0; HEADER_BYTES];
        body.read_exact(&mut header).map_err(|_| "file is truncated")?;
        let word = |at| word_at(&header, at);
        let identity = [id.volume.as_u64(), id.file.0, id.blocks];
        if &header[..8] != MAGIC
            || [word(16), word(24), word(BLOCKS_AT)] != identity
            || header[12..16] != id.generation.to_le_bytes()
        {
            return Err("header does not match the layer".into());
        }
        let (held_bytes, zero_bytes) = (word(40), word(48));
        if held_bytes.checked_add(zero_bytes) != Some(len_bytes - HEADER_BYTES as u64) {
            return Err("section lengths are invalid".into());
        }
        let mut read = |len| BlockSet::read_from(body, len).map_err(|error| error.to_string());
        let set = Self { held: read(held_bytes)?, zero: read(zero_bytes)? };
        let inside = set.held.last().is_none_or(|last| last.0 < id.blocks);
        if !inside || !set.is_consistent() {
            return Err("block sets are inconsistent".into());
        }
        Ok(set)
    }

    pub(crate) fn store(&self, dir: &Path, id: SetIdentity) -> Result<(), VolumeError> {
        files::write_whole_with(&files::set_path(dir, id.file, id.generation), |out| self.write_to(id, out))
    }

    pub(crate) fn load(dir: &Path, id: SetIdentity) -> Result<Self, VolumeError> {
        Self::load_with(dir, id, |_| id)
    }

    /// Loads a set that may have been written when the volume had fewer blocks than `id` has.
    pub(crate) fn load_of_any_size(dir: &Path, id: SetIdentity) -> Result<Self, VolumeError> {
        Self::load_with(dir, id, |header| SetIdentity {
            blocks: word_at(header, BLOCKS_AT).min(id.blocks),
            ..id
        })
    }

    /// Hashes the file's bytes while it decodes them, so that they are never in memory as a whole.
    fn load_with(
        dir: &Path,
        id: SetIdentity,
        identity: impl FnOnce(&[u8]) -> SetIdentity,
    ) -> Result<Self, VolumeError> {
        let path = &files::set_path(dir, id.file, id.generation);
        let file = File::open_to_read(path).during("read", path)?;
        let len_bytes = file.metadata().during("read", path)?.len();
        let mut header = vec![0; len_bytes.min(HEADER_BYTES as u64) as usize];
        file.read_exact_at(&mut header, 0).during("read", path)?;
        check_version(path, &header, MAGIC, VERSION)?;
        let damaged = |what: String| VolumeError::Damaged { path: path.clone(), what };
        let Some(body_bytes) = len_bytes.checked_sub(8).filter(|len| *len >= HEADER_BYTES as u64) else {
            return Err(damaged("file is truncated".into()));
        };
        let mut expected = [0; 8];
        file.read_exact_at(&mut expected, body_bytes).during("read", path)?;
        let body = FileReader::new(&file, 0, body_bytes);
        let decode = |input: &mut dyn Read| Self::decode_body(input, body_bytes, identity(&header));
        let (decoded, sum) = decode_and_sum(body, Xxh3::new(), decode).during("read", path)?;
        if sum.to_le_bytes() != expected {
            return Err(damaged("checksum mismatch".into()));
        }
        decoded.map_err(damaged)
    }

    /// Merges the sets of an upper layer into this one; the upper layer takes precedence.
    pub(crate) fn cover_with(&mut self, above: &Self) {
        self.zero.subtract(&above.held);
        self.zero.union_with(&above.zero);
        self.held.union_with(&above.held);
        debug_assert!(self.is_consistent(), "zeroes are held");
    }

    /// Leaves out the zeroes of groups in which they are fragmented, if both sets exceed 35 MiB per TiB of
    /// these blocks; returns true if all are left. Three states of each block need up to log2(3) bits,
    /// which is 50.7 MiB per TiB; reads of an unknown zero find it in the data file.
    pub(crate) fn bound_memory(&mut self, blocks: u64) -> bool {
        let max_bytes = (MAX_BYTES_PER_TIB * blocks) >> 28;
        if self.held.heap_bytes_estimate() + self.zero.heap_bytes_estimate() <= max_bytes {
            return true;
        }
        let mut is_complete = true;
        for start in (0..blocks).step_by(GROUP_BLOCKS as usize) {
            let group = Extent::new(BlockIndex(start), GROUP_BLOCKS);
            if self.zero.extents_in(group).nth(MAX_ZERO_EXTENTS).is_some() {
                self.zero.remove_extent(group);
                is_complete = false;
            }
        }
        is_complete
    }

    /// Returns true if each zero block is held.
    pub(crate) fn is_consistent(&self) -> bool {
        self.zero.is_subset(&self.held)
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
    fn memory_of_fragmented_zeroes_is_bounded() {
        const BLOCKS: u64 = 1 << 22;
        let every = |step: usize| {
            BlockSet::from_iter((0..BLOCKS).step_by(step).map(|at| Extent::new(BlockIndex(at), 1)))
        };
        let max_bytes = ((36 << 20) * BLOCKS) >> 28;
        // Half of the written blocks are zeroes; one group has a few more.
        let mut set = LayerSet { held: every(2), zero: every(4) };
        let last = Extent::new(BlockIndex(BLOCKS - GROUP_BLOCKS), GROUP_BLOCKS);
        set.zero.remove_extent(last);
        set.zero.insert_extent(Extent::new(BlockIndex(BLOCKS - 2), 1));
        let exact = set.clone();
        assert!(set.held.heap_bytes_estimate() + set.zero.heap_bytes_estimate() > max_bytes);
        assert!(!set.bound_memory(BLOCKS));
        assert!(set.held.heap_bytes_estimate() + set.zero.heap_bytes_estimate() <= max_bytes);
        assert_eq!(set.held, exact.held);
        assert_eq!(set.zero, exact.zero.slice(last));
        // As many zeroes fit beside a set of few extents.
        let mut set =
            LayerSet { held: BlockSet::from_iter([Extent::new(BlockIndex(0), BLOCKS)]), zero: every(2) };
        assert!(set.bound_memory(BLOCKS));
        assert_eq!(set.zero, every(2));
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
