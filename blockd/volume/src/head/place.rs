//! Directory and identity of a volume's files, and options of opening them.

use blockd_extent::{BLOCK_SIZE_BYTES, Epoch, VolumeId};
use std::path::Path;

/// Identity of the map and the log of a layer: they belong to no other one.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) volume: VolumeId,
    pub(crate) epoch: Epoch,
    pub(crate) blocks: u64,
}

/// Directory and identity of a volume's files.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) volume: VolumeId,
    pub(crate) size_bytes: u64,
}

impl Place<'_> {
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
    /// Clients of other hosts are or were served, and may survive this host.
    pub serves_remote: bool,
}

/// Kind of an unclean stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// Decided by boot id and mount: if both are unchanged, only the process died.
    #[default]
    Auto,
    /// A power cut, independent of the boot id: for a directory from an image or a disk that lost its cache.
    AfterPowerLoss,
}
