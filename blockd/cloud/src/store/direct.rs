//! Files written past the page cache.
//!
//! What a backup stores is read again after months, if ever; in the page cache it takes the place of what
//! guests read, and the copy costs as much of a processor as sealing. Where a filesystem or the memory's
//! place does not allow it, the file is written as any other: the content is the same.

use crate::buffers::ALIGNMENT;
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
};

/// Shorter files do not pay for two more system calls.
const DIRECT_FROM_BYTES: usize = 1 << 20;

/// Writes the content of an empty file. It is not durable yet.
///
/// # Errors
/// The filesystem's.
pub(super) fn write_file(file: &File, content: &[u8]) -> io::Result<()> {
    let is_aligned = content.as_ptr().align_offset(ALIGNMENT) == 0;
    let written = match is_aligned && content.len() >= DIRECT_FROM_BYTES {
        true => write_directly(file, &content[..content.len() / ALIGNMENT * ALIGNMENT])?,
        false => 0,
    };
    file.write_all_at(&content[written..], written as u64)
}

/// Writes as much as can be written so, and says how much that was.
fn write_directly(file: &File, content: &[u8]) -> io::Result<usize> {
    let flags = fcntl_getfl(file)?;
    if fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(0);
    }
    let mut written = 0;
    let done = loop {
        // A disk that ended within a block leaves the rest to be written otherwise.
        if written == content.len() || !written.is_multiple_of(ALIGNMENT) {
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
    Ok(written / ALIGNMENT * ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::Buffers;
    use std::{
        io::{Read, Seek},
        sync::Arc,
    };

    #[test]
    fn direct_writes_of_any_length_and_offset_are_complete() {
        let buffers = Arc::<Buffers>::default();
        let dir = tempfile::tempdir().unwrap();
        let mib = DIRECT_FROM_BYTES;
        for len in [0, 1, mib - 1, mib, mib + 1, 3 * mib, 3 * mib + 4097] {
            let mut content = buffers.filled(len + 1);
            for (at, byte) in content.as_mut().iter_mut().enumerate() {
                *byte = (at / 4096 + at) as u8;
            }
            for content in [&content.as_ref()[..len], &content.as_ref()[1..]] {
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
        let buffers = Arc::<Buffers>::default();
        let content = buffers.filled(2 * DIRECT_FROM_BYTES);
        let file = tempfile::tempfile().unwrap();
        let knows_direct = fcntl_setfl(&file, OFlags::RDWR | OFlags::DIRECT).is_ok();
        fcntl_setfl(&file, OFlags::RDWR).unwrap();
        let written = write_directly(&file, content.as_ref()).unwrap();
        assert!(written == content.as_ref().len() || written == 0);
        assert!(written > 0 || !knows_direct || file.metadata().unwrap().len() == 0);
        // Memory that no disk takes: EINVAL at the first write.
        let aside = &content.as_ref()[8..8 + DIRECT_FROM_BYTES];
        let written = write_directly(&tempfile::tempfile().unwrap(), aside).unwrap();
        assert!(written == 0 || written == aside.len());
    }
}
