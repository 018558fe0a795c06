//! Direct I/O writes of objects.
//!
//! Backups are rarely read again; in the page cache they would evict data of guests, and the copy costs as
//! much CPU time as sealing. If the filesystem or the alignment of the buffer does not allow direct I/O, the
//! write is buffered.

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

/// Alignment of buffers for direct I/O: a page, and at least the block size of any disk.
pub const ALIGNMENT_BYTES: usize = 4096;
/// Minimum length for direct I/O: shorter files do not justify two more system calls.
const DIRECT_FROM_BYTES: usize = 1 << 20;

/// Writes the content of an empty file, without syncing it.
///
/// # Errors
/// Errors of the filesystem.
pub(super) fn write_file(file: &File, content: &[u8]) -> io::Result<()> {
    let is_aligned = content.as_ptr().align_offset(ALIGNMENT_BYTES) == 0;
    let written = match is_aligned && content.len() >= DIRECT_FROM_BYTES {
        true => write_directly(file, &content[..content.len() / ALIGNMENT_BYTES * ALIGNMENT_BYTES])?,
        false => 0,
    };
    file.write_all_at(&content[written..], written as u64)
}

/// Writes as much as possible with direct I/O; returns the number of bytes written.
fn write_directly(file: &File, content: &[u8]) -> io::Result<usize> {
    let flags = fcntl_getfl(file)?;
    if fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let mut written = 0;
    let done = loop {
        // A short write that ends within a block leaves the rest to buffered I/O.
        if written == content.len() || !written.is_multiple_of(ALIGNMENT_BYTES) {
            break Ok(());
        }
        match file.write_at(&content[written..], written as u64) {
            Ok(0) => break Err(ErrorKind::WriteZero.into()),
            Ok(len) => written += len,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    fcntl_setfl(file, flags)?;
    done?;
    Ok(written / ALIGNMENT_BYTES * ALIGNMENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    /// Memory with `len_bytes` bytes from an aligned place on.
    struct Aligned {
        bytes: Vec<u8>,
        start: usize,
    }

    impl Aligned {
        fn new(len_bytes: usize) -> Self {
            let bytes = vec![0; len_bytes + ALIGNMENT_BYTES];
            let start = bytes.as_ptr().align_offset(ALIGNMENT_BYTES);
            let mut bytes = bytes;
            bytes.truncate(start + len_bytes);
            Self { bytes, start }
        }

        fn get(&mut self) -> &mut [u8] {
            &mut self.bytes[self.start..]
        }
    }

    #[test]
    fn direct_writes_of_any_length_and_offset_are_complete() {
        let dir = tempfile::tempdir().unwrap();
        let mib = DIRECT_FROM_BYTES;
        for len in [0, 1, mib - 1, mib, mib + 1, 3 * mib, 3 * mib + 4097] {
            let mut content = Aligned::new(len + 1);
            for (at, byte) in content.get().iter_mut().enumerate() {
                *byte = (at / 4096 + at) as u8;
            }
            let content = content.get();
            for content in [&content[..len], &content[1..]] {
                let mut file = tempfile::tempfile_in(&dir).unwrap();
                write_file(&file, content).unwrap();
                assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
                let mut found = Vec::new();
                file.rewind().unwrap();
                file.read_to_end(&mut found).unwrap();
                assert!(found == content, "{len} bytes");
            }
        }
    }

    #[test]
    fn refused_direct_io_falls_back_to_buffered_writes() {
        let mut content = Aligned::new(2 * DIRECT_FROM_BYTES);
        let content = content.get();
        let file = tempfile::tempfile().unwrap();
        let knows_direct = fcntl_setfl(&file, OFlags::RDWR | OFlags::DIRECT).is_ok();
        fcntl_setfl(&file, OFlags::RDWR).unwrap();
        let written = write_directly(&file, content).unwrap();
        assert!(written == content.len() || written == 0);
        assert!(written > 0 || !knows_direct || file.metadata().unwrap().len() == 0);
        // Memory that no disk takes: EINVAL at the first write.
        let aside = &content[8..8 + DIRECT_FROM_BYTES];
        let written = write_directly(&tempfile::tempfile().unwrap(), aside).unwrap();
        assert!(written == 0 || written == aside.len());
    }
}
