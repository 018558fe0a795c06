//! Header of a map file: identity of the head, and the boot and mount in which the map is valid.

use crate::{
    error::{IoContext, VolumeError},
    head::mount::{may_be_corrupted, may_be_same, mount_number},
    head::volume_dir::Identity,
    io::record::{check_version, word_at},
    io::storage::File,
};
use std::{num::NonZeroU64, path::Path};

const MAGIC: &[u8; 8] = b"BLKDMAP1";
const VERSION: u32 = 1;
/// Bytes of the header; the bitmap follows.
pub(super) const HEADER_BYTES: u64 = 4096;
/// Bytes of the header that are read: all fields and part of the zeroes after them.
pub(super) const HEADER_READ_BYTES: usize = 128;
pub(super) const CLEAN_AT: usize = 12;
pub(super) const VOLUME_AT: usize = 16;
pub(super) const BOOT_ID_AT: usize = 40;
pub(super) const BOOT_ID_BYTES: usize = 36;
pub(super) const MOUNT_AT: usize = 80;
/// Maximum number of bits in which a corrupted boot id differs; ids of two boots differ in more.
const MAX_ALTERED_BITS: u32 = 8;

/// Returns the id of this boot of the kernel.
pub(super) fn boot_id() -> Result<String, VolumeError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(std::fs::read_to_string(path).during("read", path)?.trim().to_owned())
}

/// Reason for rejecting a map.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("map is missing, or its header is not that of this head")]
    NotOurs,
    #[error("creation was interrupted")]
    Unfinished,
    #[error("map was written in another boot")]
    OtherBoot,
    #[error("filesystem was unmounted since the map was written")]
    OtherMount,
    #[error("option --after-power-loss is set")]
    PowerLoss,
    #[error("read failed on the header: {0}")]
    Unreadable(std::io::Error),
    #[error("writeback failed: {0}")]
    WritebackFailed(std::io::Error),
}

impl Rejection {
    /// Returns true if every later start rejects the map, too.
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
    /// Composes the header of a map of this head and mount, invalid until it has a boot id.
    pub(super) fn compose(identity: Identity, file: &File) -> Vec<u8> {
        let mut header = vec![0u8; HEADER_BYTES as usize];
        header[..BOOT_ID_AT].copy_from_slice(&identity_of(identity));
        debug_assert!(header[BOOT_ID_AT..].iter().all(|byte| *byte == 0), "a new header has no boot id");
        let mount = mount_number(file).map_or(0, NonZeroU64::get);
        header[MOUNT_AT..MOUNT_AT + 8].copy_from_slice(&mount.to_le_bytes());
        header
    }

    /// Returns an error for a map of a newer format, whose other fields are unknown.
    pub(super) fn check_version(&self, path: &Path) -> Result<(), VolumeError> {
        check_version(path, &self.0, MAGIC, VERSION)
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

    /// Returns true if the volume was closed cleanly.
    pub(super) fn is_clean(&self) -> bool {
        self.0[CLEAN_AT] == 1
    }

    /// Returns the reason for rejecting the map, or `None` if it belongs to this head, was written in this
    /// boot, and its filesystem was not unmounted since.
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
        } else if !may_be_same(self.mount(), mount_number(file)) {
            Some(Rejection::OtherMount)
        } else {
            None
        })
    }

    /// Returns a defect of the header, or `None` for a well-formed header of this or an earlier boot
    /// and mount.
    ///
    /// A boot id or mount number that differs from the current one in few bits counts as corrupted.
    pub(super) fn defect(
        &self,
        identity: Identity,
        file: &File,
    ) -> Result<Option<&'static str>, VolumeError> {
        let is_zero = |range: std::ops::Range<usize>| self.0[range].iter().all(|byte| *byte == 0);
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
        let now = boot_id()?;
        let differing = self.boot().iter().zip(now.as_bytes()).map(|(one, other)| (one ^ other).count_ones());
        if !self.has_identity(identity)
            || self.0[CLEAN_AT] > 1
            || !(is_zero(CLEAN_AT + 1..VOLUME_AT) && is_zero(76..MOUNT_AT) && is_zero(88..HEADER_READ_BYTES))
        {
            return Ok(Some("header does not match the head"));
        }
        if self.boot().iter().all(|byte| *byte == 0) {
            return Ok(Some("creation was interrupted"));
        }
        if !self.boot().iter().all(is_hex) {
            return Ok(Some("boot id is malformed"));
        }
        Ok(match differing.sum() {
            0 => match (self.mount(), mount_number(file)) {
                (Some(stored), Some(current)) if stored != current && may_be_corrupted(stored, current) => {
                    Some("mount number may be corrupted")
                }
                _ => None,
            },
            1..=MAX_ALTERED_BITS => Some("boot id is corrupted"),
            _ => None,
        })
    }
}

/// Returns the header up to the boot id, without the clean mark.
fn identity_of(identity: Identity) -> [u8; BOOT_ID_AT] {
    let mut header = [0; BOOT_ID_AT];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&identity.volume.as_u64().to_le_bytes());
    header[24..32].copy_from_slice(&identity.epoch.0.to_le_bytes());
    header[32..40].copy_from_slice(&identity.blocks.to_le_bytes());
    header
}
