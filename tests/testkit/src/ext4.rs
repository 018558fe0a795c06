//! Invariants of readable images.

use crate::Image;
use blockd_ext4::{
    FileKind, Filesystem, InodeNumber, JournalState, ReadAt,
    check::{Limits, MAX_FINDINGS},
};
use std::{error::Error, fs::File, io, ops::ControlFlow, os::unix::fs::FileExt, path::Path, sync::Arc};

/// Limits of an image: files, bytes of each, extents of each.
const MAX_FILES: usize = 60;
const MAX_FILE_LEN: usize = 100_000;
const MAX_EXTENTS: usize = 64;
/// Entries of a directory.
const MAX_ENTRIES: usize = 10_000;
/// Limits of a check, in bytes. Checks read each block of a small image a few times at most.
const CHECK_LIMITS: Limits = Limits { memory_bytes: 64 << 20, read_bytes: 64 << 20 };

/// Opens an image, checks it, and reads a limited number of reachable files; returns their number.
///
/// # Panics
/// If a property is violated.
pub fn explore(image: Vec<u8>) -> usize {
    let Ok(fs) = Filesystem::open(Arc::new(Image(image))) else { return 0 };
    let info = fs.info();
    let checked = fs.check(CHECK_LIMITS, &mut |_| ControlFlow::Continue(()));
    let max_read_bytes = 8 * info.size_bytes + (1 << 20);
    assert!(checked.is_ok_and(|report| {
        report.findings.len() <= MAX_FINDINGS && report.read_bytes <= max_read_bytes
    }));
    assert!(info.block_len_bytes.is_power_of_two());
    for range in fs.metadata(1000).iter().skip(1) {
        assert!(range.start < range.end && range.end <= info.size_bytes);
    }
    let mut left = vec![InodeNumber::ROOT];
    let mut seen = 0;
    while let Some(number) = left.pop()
        && seen < MAX_FILES
    {
        seen += 1;
        let Ok(inode) = fs.inode(number) else { continue };
        if let Ok(xattrs) = fs.xattrs(&inode) {
            assert!(xattrs.iter().all(|xattr| !xattr.name.is_empty() && !xattr.name.contains(&0)));
        }
        match inode.kind {
            FileKind::Directory => {
                for entry in fs.read_dir(&inode, MAX_ENTRIES).unwrap_or_default() {
                    assert!(!entry.name.iter().any(|byte| matches!(byte, 0 | b'/')));
                    assert!(!matches!(entry.name.as_slice(), b"" | b"." | b".."));
                    // Of two entries with the same name, the first is found.
                    assert!(fs.lookup(&inode, &entry.name).is_ok());
                    left.push(entry.inode);
                }
            }
            FileKind::Symlink => {
                if let Ok(target) = fs.read_link(&inode) {
                    assert!(!target.is_empty() && target.len() <= 4096);
                    let _ = fs.resolve(&target);
                }
            }
            FileKind::Regular => {
                let mut buf = vec![0xaa; MAX_FILE_LEN];
                let _ = fs.read(&inode, 0, &mut buf);
                let _ = fs.read(&inode, inode.size_bytes.saturating_sub(100), &mut buf);
                let mut at = 0;
                for _ in 0..MAX_EXTENTS {
                    match fs.extent_at(&inode, at) {
                        Ok(extent) if at < inode.size_bytes => {
                            assert!(extent.end_bytes > at, "an extent without progress");
                            at = extent.end_bytes;
                        }
                        _ => break,
                    }
                }
            }
            _ => assert!(fs.read(&inode, 0, &mut [0]).is_err()),
        }
    }
    seen
}

/// Image in a file.
struct ImageFile {
    file: File,
    size_bytes: u64,
}

impl ReadAt for ImageFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset_bytes)
    }
}

/// Result of a consistency check.
pub struct Checked {
    /// True if the journal needs recovery.
    pub is_replayed: bool,
    /// Texts of the findings, and of the parts that were not checked.
    pub findings: Vec<String>,
}

/// Checks the consistency of an image.
///
/// # Errors
/// The image cannot be opened or read.
pub fn check(image: &Path) -> Result<Checked, Box<dyn Error>> {
    let file = File::open(image)?;
    let size_bytes = file.metadata()?.len();
    let fs = Filesystem::open(Arc::new(ImageFile { file, size_bytes }))?;
    let report = fs.check(Limits::default(), &mut |_| ControlFlow::Continue(()))?;
    let unchecked = report.unchecked.iter().map(|part| format!("not checked: {part}"));
    Ok(Checked {
        is_replayed: matches!(fs.info().journal, JournalState::Replayed { blocks: 1.., .. }),
        findings: report.findings.iter().map(ToString::to_string).chain(unchecked).collect(),
    })
}

/// Granularity of sparse images.
const CHUNK_LEN_BYTES: usize = 1024;
/// Maximum length of an image, in chunks.
const MAX_CHUNKS: usize = 4096;

fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |two| u16::from_le_bytes(*two))
}

/// Decodes a sparse image: the number of chunks of 1 KiB; then the number, length and bytes of each chunk
/// that is not zero. Numbers and lengths have two bytes, little-endian.
fn expand(data: &[u8]) -> Vec<u8> {
    let chunks = usize::from(le16(data, 0)).min(MAX_CHUNKS);
    let mut image = vec![0; chunks * CHUNK_LEN_BYTES];
    let mut rest = data.get(2..).unwrap_or_default();
    while rest.len() >= 4 {
        let (number, len) = (le16(rest, 0), usize::from(le16(rest, 2)));
        let bytes = &rest[4..rest.len().min(4 + len.min(CHUNK_LEN_BYTES))];
        let at = usize::from(number) * CHUNK_LEN_BYTES;
        if let Some(target) = image.get_mut(at..at + bytes.len()) {
            target.copy_from_slice(bytes);
        }
        rest = &rest[4 + bytes.len()..];
    }
    image
}

/// Explores the image that `data` describes; returns the number of files seen.
///
/// # Panics
/// If a property is violated.
pub fn fuzz(data: &[u8]) -> usize {
    explore(expand(data))
}
