//! Directory and identity of a volume's files, and options of opening them.

use blockd_extent::{BLOCK_SIZE_BYTES, Epoch, VolumeId};
use std::path::Path;

/// Identity in the headers of a layer's map and log; ties the files to their layer.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) volume: VolumeId,
    pub(crate) epoch: Epoch,
    pub(crate) blocks: u64,
}

/// Directory and identity of a volume's files.
#[derive(Clone, Copy)]
pub(crate) struct VolumeDir<'a> {
    pub(crate) path: &'a Path,
    pub(crate) volume: VolumeId,
    pub(crate) size_bytes: u64,
}

impl VolumeDir<'_> {
    pub(crate) fn blocks(&self) -> u64 {
        self.size_bytes / BLOCK_SIZE_BYTES
    }

    pub(crate) fn identity(&self, epoch: Epoch) -> Identity {
        Identity { volume: self.volume, epoch, blocks: self.blocks() }
    }
}

/// Options of opening a volume.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Recovery after an unclean stop.
    pub recovery: Recovery,
    /// True if clients on other hosts are or were served: they can survive a crash of this host.
    pub serves_remote: bool,
}

/// Kind of an unclean stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// Detected by boot id and mount: if both are unchanged, only the process died.
    #[default]
    Auto,
    /// Power loss, independent of the boot id: for a directory from an image or a disk that lost its cache.
    AfterPowerLoss,
}
