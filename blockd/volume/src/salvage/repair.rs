//! Correction of one flipped bit in files with a checksum, by trial of each bit.
//!
//! The probability of a false match of the 64-bit checksum is at most 2^-45 for the largest file that
//! is tried.

use crate::{
    error::VolumeError,
    io::files,
    io::storage,
    layer::set::{LayerSet, SetIdentity},
    meta::Meta,
};
use std::path::Path;

/// Maximum length of a file for correction, which takes seconds at most.
const MAX_BYTES: usize = 64 << 10;
/// Maximum number of bits tried per volume: those of two files of the maximum length.
const MAX_TRIES: usize = 2 * 8 * MAX_BYTES;

/// Reader of a volume's checksummed files, with correction.
pub(super) struct Repairer {
    /// Corrected errors, one line each.
    pub(super) notes: Vec<String>,
    tries_left: usize,
}

/// Decodes a file after flipping the bit that makes it valid; `None` if there is none.
fn one_bit<T>(bytes: &mut [u8], decode: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    if bytes.len() > MAX_BYTES {
        return None;
    }
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Some(found) = decode(bytes) {
            return Some(found);
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    None
}

impl Repairer {
    pub(super) fn new() -> Self {
        Self { notes: vec![], tries_left: MAX_TRIES }
    }

    fn repair<T>(
        &mut self,
        path: &Path,
        error: VolumeError,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<T, VolumeError> {
        if !matches!(error, VolumeError::Damaged { .. } | VolumeError::NewerFormat { .. }) {
            return Err(error);
        }
        let mut bytes = storage::read(path).unwrap_or_default();
        // Too large files are not tried.
        let tries = if bytes.len() > MAX_BYTES { 0 } else { bytes.len() * 8 };
        let Some(rest) = self.tries_left.checked_sub(tries) else { return Err(error) };
        self.tries_left = rest;
        let found = one_bit(&mut bytes, decode).ok_or(error)?;
        self.notes.push(format!("{} had one flipped bit, corrected by its checksum", path.display()));
        Ok(found)
    }

    /// Loads `volume.meta`.
    pub(super) fn meta(&mut self, dir: &Path) -> Result<Meta, VolumeError> {
        let path = dir.join(files::META);
        Meta::load(dir).or_else(|error| self.repair(&path, error, |bytes| Meta::decode(bytes).ok()))
    }

    /// Loads the block sets of a frozen layer.
    pub(super) fn set(&mut self, dir: &Path, id: SetIdentity) -> Result<LayerSet, VolumeError> {
        let path = files::set_path(dir, id.file, id.generation);
        LayerSet::load(dir, id)
            .or_else(|error| self.repair(&path, error, |bytes| LayerSet::decode(bytes, id).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_flipped_bit_is_corrected() {
        let whole = include_bytes!("../../tests/golden/volume-v1.meta");
        let decode = |bytes: &[u8]| Meta::decode(bytes).ok();
        let expected = decode(whole).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bad = whole.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(one_bit(&mut bad, decode).as_ref(), Some(&expected), "bit {bit}");
        }
        let mut bad = whole.to_vec();
        bad[20] ^= 3;
        assert_eq!(one_bit(&mut bad, decode), None);
        assert_eq!(one_bit(&mut vec![0; MAX_BYTES + 1], decode), None);
    }

    #[test]
    fn number_of_tried_bits_is_limited_per_volume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![0; MAX_BYTES]).unwrap();
        let tried = std::cell::Cell::new(0);
        let mut repairer = Repairer::new();
        for _ in 0..5 {
            let damaged = VolumeError::Damaged { path: path.clone(), what: String::new() };
            let count = |_: &[u8]| {
                tried.set(tried.get() + 1);
                None::<()>
            };
            repairer.repair(&path, damaged, count).unwrap_err();
        }
        assert_eq!(tried.get(), MAX_TRIES);
        assert!(repairer.notes.is_empty());
    }
}
