#![doc = include_str!("../README.md")]

mod block;
mod block_set;
mod block_source;
mod cloud_snapshot_id;
mod drill;
mod ids;
mod nbd_device;
mod readahead;

pub use block::{
    BLOCK_SHIFT, BLOCK_SIZE_BYTES, BlockIndex, ByteOffset, Extent, MAX_VOLUME_BLOCKS, MAX_VOLUME_BYTES,
};
pub use block_set::{BlockSet, ExtentsIn, GapsIn};
pub use block_source::{BlockSource, DataRange};
pub use cloud_snapshot_id::{BadCloudSnapshotId, CloudSnapshotId};
pub use drill::{DrillOutcome, DrillStage};
pub use ids::{Epoch, SnapshotId, VolumeId};
pub use nbd_device::{NbdDevice, NbdDeviceError};
pub use readahead::{Readahead, ReadaheadLimits};

/// Invalid encoding of blocks or ids.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtentError {
    /// The encoding of a block set is damaged or truncated.
    #[error("damaged block set: {what} at byte {at_bytes}")]
    DamagedSet {
        /// Violated rule.
        what: &'static str,
        /// Offset in the encoding.
        at_bytes: usize,
    },
    /// Text that is not an id.
    #[error("{given:?} is not an id: expected a decimal number from 1 to 18446744073709551615")]
    BadId {
        /// Given text.
        given: String,
    },
}
