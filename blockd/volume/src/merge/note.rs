//! Progress note of a merge: checkpoint from which the next process resumes.
//!
//! `FORMAT.md`, "Merge", has the conditions under which it is valid.
//!
//! # File
//!
//! `volume.merge`, 72 bytes, all integers little-endian:
//!
//! | offset | content |
//! |---|---|
//! | 0 | magic `BLKDMRG1` |
//! | 8 | version u32 (1) |
//! | 12 | generation u32 of the source layer |
//! | 16 | volume id u64 |
//! | 24 | file epoch u64 of the source layer |
//! | 32 | file epoch u64 of the target layer |
//! | 40 | generation u32 of the target layer |
//! | 44 | 0 u32 |
//! | 48 | block u64: all blocks of the copy below it are durable in the target's file |
//! | 56 | 0 u64 |
//! | 64 | xxh3-64 of everything before it |

use crate::{
    error::VolumeError,
    io::files,
    io::record::{half_at, seal, unseal, word_at},
    io::storage,
    layer::stack::FrozenLayer,
    meta::{LayerEntry, Meta},
};
use blockd_extent::{BlockIndex, Epoch, VolumeId};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"BLKDMRG1";
const VERSION: u32 = 1;
const LEN_BYTES: usize = 72;
const NAME: &str = "volume.merge";

/// Version of a layer: its files and their generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LayerVersion {
    pub(crate) file: Epoch,
    pub(crate) generation: u32,
}

impl LayerVersion {
    pub(crate) fn of(layer: &FrozenLayer) -> Self {
        Self { file: layer.file, generation: layer.generation }
    }

    fn matches(self, entry: &LayerEntry) -> bool {
        !entry.open && (entry.file, entry.generation) == (self.file, self.generation)
    }
}

/// Source and target of a merge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pair {
    pub(crate) from: LayerVersion,
    pub(crate) to: LayerVersion,
}

/// Progress of a merge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MergeNote {
    pub(crate) pair: Pair,
    /// End of the copied blocks.
    pub(crate) next: BlockIndex,
}

impl MergeNote {
    fn encode(&self, volume: VolumeId) -> Vec<u8> {
        let Pair { from, to } = self.pair;
        assert!(from.file != to.file, "a merge has two layers");
        let mut out = Vec::with_capacity(LEN_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&from.generation.to_le_bytes());
        out.extend_from_slice(&volume.as_u64().to_le_bytes());
        out.extend_from_slice(&from.file.0.to_le_bytes());
        out.extend_from_slice(&to.file.0.to_le_bytes());
        out.extend_from_slice(&to.generation.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        out.extend_from_slice(&self.next.0.to_le_bytes());
        out.extend_from_slice(&0u64.to_le_bytes());
        let out = seal(out);
        assert!(out.len() == LEN_BYTES, "a note has its length");
        debug_assert!(Self::decode(&out, volume) == Some(*self), "a note reads back");
        out
    }

    /// Decodes a note; `None` unless it is a valid note of this volume.
    fn decode(bytes: &[u8], volume: VolumeId) -> Option<Self> {
        let body = unseal(bytes).filter(|_| bytes.len() == LEN_BYTES)?;
        let (word, half) = (|at| word_at(body, at), |at| half_at(body, at));
        let is_known = body.starts_with(MAGIC) && half(8) == VERSION && half(44) == 0 && word(56) == 0;
        if !is_known || word(16) != volume.as_u64() {
            return None;
        }
        let from = LayerVersion { file: Epoch(word(24)), generation: half(12) };
        let to = LayerVersion { file: Epoch(word(32)), generation: half(40) };
        Some(Self { pair: Pair { from, to }, next: BlockIndex(word(48)) })
    }

    /// Stores the note, durably. The caller has synced the data that it covers.
    pub(crate) fn store(&self, dir: &Path, volume: VolumeId) -> Result<(), VolumeError> {
        files::write_whole(&Self::path(dir), &self.encode(volume))
    }

    /// Loads the note if it is valid for two adjacent layers; an unreadable note counts as missing.
    pub(crate) fn load(dir: &Path, meta: &Meta) -> Option<Self> {
        let path = Self::path(dir);
        let bytes = match storage::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "read failed on the progress note of a merge: the merge restarts");
                return None;
            }
        };
        let fits = |note: &Self| {
            meta.layers.windows(2).any(|two| {
                let Pair { from, to } = note.pair;
                from.matches(&two[0]) && to.matches(&two[1]) || from.matches(&two[1]) && to.matches(&two[0])
            })
        };
        Self::decode(&bytes, meta.volume).filter(fits)
    }

    /// Returns the path of the note.
    pub(crate) fn path(dir: &Path) -> PathBuf {
        dir.join(NAME)
    }

    /// Removes the note durably if it exists; otherwise does no sync.
    pub(crate) fn remove_if_exists(dir: &Path) -> Result<(), VolumeError> {
        match Self::path(dir).try_exists() {
            Ok(false) => Ok(()),
            Ok(true) | Err(_) => Self::remove(dir),
        }
    }

    /// Removes the note durably.
    pub(crate) fn remove(dir: &Path) -> Result<(), VolumeError> {
        files::remove_if_exists(&Self::path(dir))?;
        files::sync_dir(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId::from_u64(0x0102_0304_0506_0708);

    fn example() -> MergeNote {
        let from = LayerVersion { file: Epoch(7), generation: 1 };
        let to = LayerVersion { file: Epoch(2), generation: 3 };
        MergeNote { pair: Pair { from, to }, next: BlockIndex(1 << 33) }
    }

    #[test]
    fn flipped_bits_and_truncations_are_detected() {
        let bytes = example().encode(VOLUME);
        assert_eq!(MergeNote::decode(&bytes, VOLUME), Some(example()));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(MergeNote::decode(&bad, VOLUME), None, "byte {at}");
            assert_eq!(MergeNote::decode(&bytes[..at], VOLUME), None, "cut at {at}");
        }
        assert_eq!(MergeNote::decode(&bytes, VolumeId::from_u64(1)), None);
    }

    #[test]
    fn golden_file_round_trips() {
        let golden = include_bytes!("../../tests/golden/merge-v1.note");
        assert_eq!(MergeNote::decode(golden, VOLUME), Some(example()));
        assert_eq!(example().encode(VOLUME), golden);
    }

    #[test]
    fn failed_stat_does_not_count_as_absence() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(MergeNote::remove_if_exists(file.path()).is_err(), "the path below a file is no directory");
        let dir = tempfile::tempdir().unwrap();
        MergeNote::remove_if_exists(dir.path()).unwrap();
    }

    #[test]
    fn note_applies_only_to_same_generations() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |epoch, file, generation, open| LayerEntry {
            epoch: Epoch(epoch),
            file: Epoch(file),
            generation,
            open,
            lazy: false,
            size_bytes: 4096,
        };
        let mut meta = Meta {
            volume: VOLUME,
            size_bytes: 4096,
            next_epoch: Epoch(10),
            layers: vec![layer(9, 9, 0, true), layer(7, 7, 1, false), layer(5, 2, 3, false)],
            snapshots: vec![],
            intervals: vec![],
        };
        assert_eq!(MergeNote::load(dir.path(), &meta), None, "no note");
        example().store(dir.path(), VOLUME).unwrap();
        assert_eq!(MergeNote::load(dir.path(), &meta), Some(example()));
        meta.layers[2].generation = 4;
        assert_eq!(MergeNote::load(dir.path(), &meta), None, "the merge was committed");
        meta.layers[2].generation = 3;
        meta.layers.insert(2, layer(6, 6, 0, false));
        assert_eq!(MergeNote::load(dir.path(), &meta), None, "the layers are not adjacent");
        MergeNote::remove(dir.path()).unwrap();
        MergeNote::remove(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
