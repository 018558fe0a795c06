//! Header of a map's file: the head that the map belongs to, and the boot and mount in which it is valid.

use super::boot_id;
use crate::{
    error::VolumeError,
    head::mount::{may_be_altered, may_be_the_same, mount_number},
    head::place::Identity,
    io::record::word_at,
    io::storage::File,
};
use std::num::NonZeroU64;

const MAGIC: &[u8; 8] = b"BLKDMAP1";
const VERSION: u32 = 1;
/// Bytes of the header; the bitmap follows.
pub(super) const HEADER_BYTES: u64 = 4096;
/// Bytes of the header that are read: all fields, and some of the zeroes behind them.
pub(super) const HEADER_READ_BYTES: usize = 128;
pub(super) const CLEAN_AT: usize = 12;
pub(super) const VOLUME_AT: usize = 16;
pub(super) const BOOT_ID_AT: usize = 40;
pub(super) const BOOT_ID_BYTES: usize = 36;
pub(super) const MOUNT_AT: usize = 80;
/// Maximum number of differing bits of an altered boot id; two boots differ in more.
const MAX_ALTERED_BITS: u32 = 8;

/// Reason to reject a map.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("it is missing, or its header is not that of this head")]
    NotOurs,
    #[error("an earlier process died while it created it")]
    Unfinished,
    #[error("another boot of the kernel wrote it")]
    OtherBoot,
    #[error("the filesystem was unmounted since it was written")]
    OtherMount,
    #[error("the start was given --after-power-loss")]
    PowerLoss,
    #[error("its header cannot be read: {0}")]
    Unreadable(std::io::Error),
    #[error("the kernel could not write it to the disk: {0}")]
    WritebackFailed(std::io::Error),
}

impl Rejection {
    /// Returns whether no later start can believe the map either.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::NotOurs | Self::Unfinished | Self::OtherBoot | Self::OtherMount => true,
            Self::PowerLoss | Self::Unreadable(_) | Self::WritebackFailed(_) => false,
        }
    }
}

/// Header as read.
pub(super) struct Header(pub(super) [u8; HEADER_READ_BYTES]);

impl Header {
    /// Composes the header of a map of this head and mount; no boot owns it yet.
    pub(super) fn compose(identity: Identity, file: &File) -> Vec<u8> {
        let mut header = vec![0u8; HEADER_BYTES as usize];
        header[..BOOT_ID_AT].copy_from_slice(&identity_of(identity));
        debug_assert!(header[BOOT_ID_AT..].iter().all(|byte| *byte == 0), "no boot owns a new map");
        let mount = mount_number(file).map_or(0, NonZeroU64::get);
        header[MOUNT_AT..MOUNT_AT + 8].copy_from_slice(&mount.to_le_bytes());
        header
    }

    fn mount(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(word_at(&self.0, MOUNT_AT))
    }

    fn boot(&self) -> &[u8] {
        &self.0[BOOT_ID_AT..BOOT_ID_AT + BOOT_ID_BYTES]
    }

    fn has_identity(&self, identity: Identity) -> bool {
        let expected = identity_of(identity);
        self.0[..CLEAN_AT] == expected[..CLEAN_AT] && self.0[VOLUME_AT..BOOT_ID_AT] == expected[VOLUME_AT..]
    }

    /// Returns whether the volume was closed cleanly.
    pub(super) fn is_clean(&self) -> bool {
        self.0[CLEAN_AT] == 1
    }

    /// Returns why the map is not to be believed, unless it is of this head, was written in this boot, and
    /// its filesystem was mounted ever since.
    pub(super) fn rejection(
        &self,
        identity: Identity,
        file: &File,
    ) -> Result<Option<Rejection>, VolumeError> {
        let boot = boot_id()?;
        Ok(if !self.has_identity(identity) {
            Some(Rejection::NotOurs)
        } else if self.boot().iter().all(|byte| *byte == 0) {
            Some(Rejection::Unfinished)
        } else if !self.boot().iter().eq(boot.as_bytes()) {
            Some(Rejection::OtherBoot)
        } else if !may_be_the_same(self.mount(), mount_number(file)) {
            Some(Rejection::OtherMount)
        } else {
            None
        })
    }

    /// Returns why a header that names another boot or mount than this one may be altered instead.
    pub(super) fn doubt(&self, identity: Identity, file: &File) -> Result<Option<&'static str>, VolumeError> {
        let is_zero = |range: std::ops::Range<usize>| self.0[range].iter().all(|byte| *byte == 0);
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
        let now = boot_id()?;
        let differing = self.boot().iter().zip(now.as_bytes()).map(|(one, other)| (one ^ other).count_ones());
        if !self.has_identity(identity)
            || self.0[CLEAN_AT] > 1
            || !(is_zero(CLEAN_AT + 1..VOLUME_AT) && is_zero(76..MOUNT_AT) && is_zero(88..HEADER_READ_BYTES))
        {
            return Ok(Some("its header is not that of this head's map"));
        }
        if self.boot().iter().all(|byte| *byte == 0) {
            return Ok(Some("it was not finished"));
        }
        if !self.boot().iter().all(is_hex) {
            return Ok(Some("its boot id is none"));
        }
        // Two boots differ in far more bits.
        Ok(match differing.sum() {
            0 => match (self.mount(), mount_number(file)) {
                (Some(left), Some(now)) if left != now && may_be_altered(left, now) => {
                    Some("the number of its mount is none that an earlier mount had for certain")
                }
                _ => None,
            },
            1..=MAX_ALTERED_BITS => Some("its boot id is altered"),
            _ => None,
        })
    }
}

/// Returns the header up to the boot id, of a map that is not closed.
fn identity_of(identity: Identity) -> [u8; BOOT_ID_AT] {
    let mut header = [0; BOOT_ID_AT];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&identity.volume.as_u64().to_le_bytes());
    header[24..32].copy_from_slice(&identity.epoch.0.to_le_bytes());
    header[32..40].copy_from_slice(&identity.blocks.to_le_bytes());
    header
}
