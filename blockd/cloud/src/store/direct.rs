//! Files written past the page cache.
//!
//! What a backup stores is read again after months, if ever; in the page cache it takes the place of what guests read, and
//! the copy costs as much of a processor as sealing. Where a filesystem or the memory's place does not allow it, the
//! file is written as any other: the content is the same.
//!
//! While guests are at work it is written by small pieces, with rests between them: a disk that was given 32 MiB at once
//! makes all who come after that wait for them.

use crate::{Pace, buffers::ALIGNMENT};
use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

/// Shorter files do not pay for two more system calls.
const DIRECT_FROM_BYTES: usize = 1 << 20;
/// What is written at once while work makes way: a multiple of what memory is aligned to.
const PIECE_BYTES: usize = 512 << 10;
/// All rests within one file: they count against the time that its request has, which is a minute at least. One that ran
/// out of it would be written once more, and guests would have it all again.
const RESTS_MOST: Duration = Duration::from_secs(20);

/// What was written past the page cache.
#[derive(Debug, Default, PartialEq, Eq)]
struct Direct {
    /// From the beginning of the file.
    len_bytes: usize,
    /// In how many pieces.
    pieces: u32,
    /// And with how many rests.
    rests: u32,
    /// So long in all.
    rested: Duration,
}

impl Direct {
    fn rest(&mut self, pace: &Pace, worked: Duration) {
        let rested = pace.rest_blocking(worked, RESTS_MOST.saturating_sub(self.rested));
        self.rests += u32::from(!rested.is_zero());
        self.rested += rested;
    }
}

/// Writes the content of an empty file. It is not durable yet.
///
/// # Errors
/// The filesystem's.
pub(super) fn write_file(file: &File, content: &[u8], pace: Option<&Pace>) -> io::Result<()> {
    let is_aligned = content.as_ptr().align_offset(ALIGNMENT) == 0;
    let written = match is_aligned && content.len() >= DIRECT_FROM_BYTES {
        true => write_directly(file, &content[..content.len() / ALIGNMENT * ALIGNMENT], pace)?.len_bytes,
        false => 0,
    };
    file.write_all_at(&content[written..], written as u64)
}

/// Writes as much as can be written so, and says how much that was.
fn write_directly(file: &File, content: &[u8], pace: Option<&Pace>) -> io::Result<Direct> {
    let flags = fcntl_getfl(file)?;
    if fcntl_setfl(file, flags | OFlags::DIRECT).is_err() {
        return Ok(Direct::default());
    }
    let mut direct = Direct::default();
    let done = loop {
        // A disk that ended within a block leaves the rest to be written otherwise.
        let written = direct.len_bytes;
        if written == content.len() || !written.is_multiple_of(ALIGNMENT) {
            break Ok(());
        }
        let most = match pace {
            Some(pace) if pace.is_making_way() => PIECE_BYTES,
            _ => usize::MAX,
        };
        let left = &content[written..];
        let began = Instant::now();
        match file.write_at(&left[..left.len().min(most)], written as u64) {
            Ok(0) => break Err(ErrorKind::WriteZero.into()),
            Ok(len) => {
                direct.len_bytes += len;
                direct.pieces += 1;
                if let Some(pace) = pace {
                    direct.rest(pace, began.elapsed());
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    fcntl_setfl(file, flags)?;
    done?;
    direct.len_bytes = direct.len_bytes / ALIGNMENT * ALIGNMENT;
    Ok(direct)
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
    fn all_of_it_is_there_whatever_its_length_and_place() {
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
                write_file(&file, content, None).unwrap();
                assert!(!fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
                let mut found = Vec::new();
                file.rewind().unwrap();
                file.read_to_end(&mut found).unwrap();
                assert!(found == content, "{len} bytes");
            }
        }
    }

    #[test]
    fn while_work_makes_way_it_is_written_by_pieces_with_rests_and_whole() {
        let buffers = Arc::<Buffers>::default();
        let mut content = buffers.filled(4 * PIECE_BYTES + 4097);
        content.as_mut().iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 4096 + at) as u8);
        let pace = Pace::default();
        pace.set_making_way(true);
        pace.set_permille(500);
        let dir = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile_in(&dir).unwrap();
        write_file(&file, content.as_ref(), Some(&pace)).unwrap();
        let mut found = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut found).unwrap();
        assert!(found == content.as_ref());

        let file = tempfile::tempfile_in(&dir).unwrap();
        let whole = &content.as_ref()[..4 * PIECE_BYTES + ALIGNMENT];
        let direct = write_directly(&file, whole, Some(&pace)).unwrap();
        if direct.len_bytes == 0 {
            eprintln!("LEFT OUT: nothing is written past the page cache in {}", dir.path().display());
            return;
        }
        assert_eq!((direct.len_bytes, direct.pieces, direct.rests), (whole.len(), 5, 5));
        pace.set_making_way(false);
        let direct = write_directly(&file, whole, Some(&pace)).unwrap();
        assert_eq!((direct.len_bytes, direct.pieces, direct.rests), (whole.len(), 1, 1));
        let direct = write_directly(&file, whole, None).unwrap();
        assert_eq!((direct.pieces, direct.rests), (1, 0));
    }

    #[test]
    fn all_rests_together_leave_the_request_its_time() {
        let pace = Pace::default();
        pace.set_permille(1);
        let rested = RESTS_MOST.saturating_sub(Duration::from_millis(3));
        let mut direct = Direct { rested, ..Direct::default() };
        let began = Instant::now();
        for _ in 0..10 {
            direct.rest(&pace, Duration::from_secs(1));
        }
        assert_eq!((direct.rested, direct.rests), (RESTS_MOST, 1));
        assert!(began.elapsed() < Duration::from_secs(2), "one rest more takes two seconds");
    }

    #[test]
    fn what_a_filesystem_refuses_is_left_to_be_written_otherwise() {
        let buffers = Arc::<Buffers>::default();
        let content = buffers.filled(2 * DIRECT_FROM_BYTES);
        let file = tempfile::tempfile().unwrap();
        let knows_direct = fcntl_setfl(&file, OFlags::RDWR | OFlags::DIRECT).is_ok();
        fcntl_setfl(&file, OFlags::RDWR).unwrap();
        let written = write_directly(&file, content.as_ref(), None).unwrap().len_bytes;
        assert!(written == content.as_ref().len() || written == 0);
        assert!(written > 0 || !knows_direct || file.metadata().unwrap().len() == 0);
        // Memory that no disk takes: EINVAL at the first write.
        let aside = &content.as_ref()[8..8 + DIRECT_FROM_BYTES];
        let written = write_directly(&tempfile::tempfile().unwrap(), aside, None).unwrap().len_bytes;
        assert!(written == 0 || written == aside.len());
    }
}
