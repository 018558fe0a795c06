//! Block arithmetic, extents and block sets: the vocabulary that every other crate shares.
//!
//! A volume is an array of 4 KiB blocks; what changed, what a layer holds and what a backup carries are all
//! [`BlockSet`]s, and everything that is read or written is a list of [`Extent`]s. This crate is pure: it
//! does no I/O.

mod block;
mod block_set;
#[cfg(any(test, feature = "testing"))]
pub mod fuzzing;
mod ids;

pub use block::{
    BLOCK_SHIFT, BLOCK_SIZE_BYTES, BlockIndex, ByteOffset, Extent, MAX_VOLUME_BLOCKS, MAX_VOLUME_BYTES,
};
pub use block_set::{BlockSet, ExtentsIn, GapsIn};
pub use ids::{Epoch, SnapshotId, VolumeId};

/// What can be wrong with bytes or text that should describe blocks or ids.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtentError {
    /// An encoded block set is damaged or was cut short.
    #[error("damaged block set: {what} at byte {at_bytes}")]
    DamagedSet {
        /// What does not hold.
        what: &'static str,
        /// Where in the encoding it was found.
        at_bytes: usize,
    },
    /// Text that is not an id.
    #[error("{given:?} is not an id: expected a decimal number from 1 to 18446744073709551615")]
    BadId {
        /// The text as it was given.
        given: String,
    },
}
