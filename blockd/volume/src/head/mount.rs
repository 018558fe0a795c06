//! Telling one mount of a filesystem from the next one within the same boot.
//!
//! A disk that is pulled, or a loop device or a LUN that goes back to an older state, loses what the page
//! cache had, though the boot is the same. What a process leaves to the next one in the page cache is there
//! only as long as the filesystem stays mounted, so it has to be known whether it did.
//!
//! ext4 and XFS show each mounted filesystem as a folder in `/sys/fs`, which comes and goes with it. The
//! kernel counts the inode numbers of sysfs up, 64 bits of them, and never gives one out again, so the number
//! of that folder stands for the time from one mount to the last unmount. It is the same in every mount
//! namespace: a service that gets a new namespace at each start, or a bind mount, still finds the filesystem
//! that it left. (`statx` has the number of a mount, `STATX_MNT_ID_UNIQUE`, but that is another one for each
//! namespace and each bind mount.)
//!
//! Other filesystems, and systems without `/sys`, have no such number; the boot id alone decides there.

use crate::io::storage::File;
use rustix::fs::{fstat, fstatfs, major, minor};
use std::{num::NonZeroU64, os::unix::fs::MetadataExt, path::Path};

const EXT4_MAGIC: u64 = 0xef53;
const XFS_MAGIC: u64 = 0x5846_5342;

/// Returns the number of a mounted filesystem, constant while it stays mounted.
pub(crate) fn mount_number(file: &File) -> Option<NonZeroU64> {
    let name = match fstatfs(file).ok()?.f_type as u64 {
        EXT4_MAGIC => "ext4",
        XFS_MAGIC => "xfs",
        _ => return None,
    };
    let device = fstat(file).ok()?.st_dev;
    let link = format!("/sys/dev/block/{}:{}", major(device), minor(device));
    let target = std::fs::read_link(link).ok()?;
    let folder = Path::new("/sys/fs").join(name).join(target.file_name()?);
    NonZeroU64::new(std::fs::metadata(folder).ok()?.ino())
}

/// Returns true if page cache left under one number may still exist under another. Unknown counts as true:
/// acknowledged writes must survive the death of the process.
pub(crate) fn may_be_the_same(left: Option<NonZeroU64>, now: Option<NonZeroU64>) -> bool {
    left.is_none() || now.is_none() || left == now
}

/// Returns true if a differing number is an altered copy or was never given out, instead of that of an
/// earlier mount. Numbers only grow.
pub(crate) fn may_be_altered(left: NonZeroU64, now: NonZeroU64) -> bool {
    left > now || (left.get() ^ now.get()).is_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_known_numbers_can_differ() {
        let (one, two) = (NonZeroU64::new(1), NonZeroU64::new(2));
        for (left, now, expected) in
            [(one, one, true), (one, two, false), (None, two, true), (one, None, true), (None, None, true)]
        {
            assert_eq!(may_be_the_same(left, now), expected, "{left:?} {now:?}");
        }
    }

    #[test]
    fn flipped_bit_is_not_another_mount() {
        let number = |number| NonZeroU64::new(number).unwrap();
        for bit in 0..64 {
            assert!(may_be_altered(number(0x1234 ^ 1 << bit), number(0x1234)), "bit {bit}");
        }
        assert!(may_be_altered(number(0x1237), number(0x1234)));
        assert!(!may_be_altered(number(0x1207), number(0x1234)));
    }

    #[test]
    fn files_of_one_mount_have_one_number() {
        let dir = tempfile::tempdir().unwrap();
        let number = |name: &str| mount_number(&File::create(&dir.path().join(name)).unwrap());
        assert_eq!(number("a"), number("b"));
    }
}
