//! Identification of a filesystem's mount within a boot.
//!
//! `DURABILITY.md`, "Another mount in the same boot", has the argument, and `kernel-notes/live-map.md` the
//! measurement.

use crate::io::storage::File;
use rustix::fs::{fstat, fstatfs, major, minor};
use std::{num::NonZeroU64, os::unix::fs::MetadataExt, path::Path};

const EXT4_MAGIC: u64 = 0xef53;
const XFS_MAGIC: u64 = 0x5846_5342;

/// Returns the mount number of a file's filesystem, constant while it stays mounted; `None` if unknown.
pub(crate) fn mount_number(file: &File) -> Option<NonZeroU64> {
    let name = match fstatfs(file).ok()?.f_type as u64 {
        EXT4_MAGIC => "ext4",
        XFS_MAGIC => "xfs",
        _ => return None,
    };
    let device = fstat(file).ok()?.st_dev;
    let link = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let target = std::fs::read_link(link).ok()?;
    let dir = Path::new("/sys/fs").join(name).join(target.file_name()?);
    NonZeroU64::new(std::fs::metadata(dir).ok()?.ino())
}

/// Returns true if two mount numbers may identify the same mount. An unknown number counts as the same,
/// because acknowledged writes must survive a process crash.
pub(crate) fn may_be_same(stored: Option<NonZeroU64>, current: Option<NonZeroU64>) -> bool {
    stored.is_none() || current.is_none() || stored == current
}

/// Returns true if a stored number may be a corrupted copy of the current one instead of that of an earlier
/// mount: it is larger than the current one, or differs in one bit.
pub(crate) fn may_be_corrupted(stored: NonZeroU64, current: NonZeroU64) -> bool {
    stored > current || (stored.get() ^ current.get()).is_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_known_numbers_can_differ() {
        let (one, two) = (NonZeroU64::new(1), NonZeroU64::new(2));
        for (stored, current, expected) in
            [(one, one, true), (one, two, false), (None, two, true), (one, None, true), (None, None, true)]
        {
            assert_eq!(may_be_same(stored, current), expected, "{stored:?} {current:?}");
        }
    }

    #[test]
    fn flipped_bit_is_not_another_mount() {
        let number = |number| NonZeroU64::new(number).unwrap();
        for bit in 0..64 {
            assert!(may_be_corrupted(number(0x1234 ^ 1 << bit), number(0x1234)), "bit {bit}");
        }
        assert!(may_be_corrupted(number(0x1237), number(0x1234)));
        assert!(!may_be_corrupted(number(0x1207), number(0x1234)));
    }

    #[test]
    fn files_of_one_mount_have_one_number() {
        let dir = tempfile::tempdir().unwrap();
        let number = |name: &str| mount_number(&File::create(&dir.path().join(name)).unwrap());
        assert_eq!(number("a"), number("b"));
    }
}
