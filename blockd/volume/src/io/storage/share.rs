//! Sharing of extents between two files (XFS with reflink, btrfs).

use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use std::{fs::File, io, os::fd::AsRawFd};

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
struct FileCloneRange {
    src_fd: i64,
    src_offset_bytes: u64,
    src_len_bytes: u64,
    dest_offset_bytes: u64,
}

const FICLONERANGE: Opcode = opcode::write::<FileCloneRange>(0x94, 13);

/// Shares a range of two files on disk until either is written.
pub(super) fn share_range(from: &File, to: &File, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let range = FileCloneRange {
        src_fd: from.as_raw_fd().into(),
        src_offset_bytes: offset_bytes,
        src_len_bytes: len_bytes,
        dest_offset_bytes: offset_bytes,
    };
    // SAFETY: FICLONERANGE reads a `struct file_clone_range`, whose layout `range` has, and writes to no
    // memory of this process. Both files stay open until it returns.
    unsafe {
        ioctl(to, Setter::<FICLONERANGE, _>::new(range))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcode_equals_ficlonerange() {
        assert_eq!(FICLONERANGE, 0x4020_940d);
        use std::mem::offset_of;
        let offsets = [
            offset_of!(FileCloneRange, src_fd),
            offset_of!(FileCloneRange, src_offset_bytes),
            offset_of!(FileCloneRange, src_len_bytes),
            offset_of!(FileCloneRange, dest_offset_bytes),
        ];
        assert_eq!(offsets, [0, 8, 16, 24]);
    }
}
