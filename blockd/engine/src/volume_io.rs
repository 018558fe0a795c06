//! Errors of volumes as I/O errors.

use blockd_volume::{VolumeError, VolumeErrorKind};
use std::io;

/// Converts a volume error to an I/O error; the kinds of a full disk and of damage are kept.
pub(crate) fn to_io(error: VolumeError) -> io::Error {
    let kind = match error.kind() {
        VolumeErrorKind::NoSpace => io::ErrorKind::StorageFull,
        VolumeErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
        VolumeErrorKind::Damaged => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
