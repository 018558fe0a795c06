//! Elements shared by the file formats of a volume: little-endian integers, versions, and a final checksum.

use crate::error::VolumeError;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// Length of the checksum, in bytes.
const SUM_BYTES: usize = 8;

/// Appends the checksum of everything before it.
pub(crate) fn seal(mut record: Vec<u8>) -> Vec<u8> {
    let sum = xxh3_64(&record);
    record.extend_from_slice(&sum.to_le_bytes());
    debug_assert!(unseal(&record).is_some(), "a sealed record is whole");
    record
}

/// Returns the record before the checksum, if the checksum is valid.
pub(crate) fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
    (sum == xxh3_64(body).to_le_bytes()).then_some(body)
}

/// Returns the u64 at an offset; zero beyond the end.
pub(crate) fn word_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|raw| raw.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Returns the u32 at an offset; zero beyond the end.
pub(crate) fn half_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|raw| raw.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Returns an error for a file with this magic and a newer version in bytes 8 to 11.
pub(crate) fn check_version(
    path: &Path,
    bytes: &[u8],
    magic: &[u8; 8],
    known: u32,
) -> Result<(), VolumeError> {
    let found = half_at(bytes, 8);
    match bytes.starts_with(magic) && found > known {
        true => Err(VolumeError::NewerFormat { path: path.to_owned(), found, known }),
        false => Ok(()),
    }
}
