//! Seeded sample of files, read in full within its limits.

use blockd_ext4::{ExtError, Filesystem, Inode};
use std::collections::HashSet;

/// Attempts to find a file, for each file of the sample: inodes of directories and unused ones are drawn too.
const ATTEMPTS_PER_FILE: u64 = 256;
/// Length of a read, in bytes.
const READ_BYTES: usize = 1 << 20;

/// Random numbers of a seed (SplitMix64): the same on all hosts and in all versions.
pub(super) struct Random(u64);

impl Random {
    pub fn new(seed: u32) -> Self {
        Self(seed.into())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Sample of files.
pub(super) struct Sample {
    random: Random,
    max_files: u64,
    max_bytes: u64,
    /// Files that were read.
    pub files: u64,
    /// Bytes of data of these files.
    pub bytes: u64,
}

impl Sample {
    pub fn new(random: Random, max_files: u32, max_bytes: u64) -> Self {
        Self { random, max_files: max_files.into(), max_bytes, files: 0, bytes: 0 }
    }

    /// Reads files of the filesystems, in turn. Empty, encrypted and too large ones are skipped.
    ///
    /// # Errors
    /// A file cannot be read; with the index of its filesystem.
    pub fn read(&mut self, filesystems: &[&Filesystem]) -> Result<(), (usize, ExtError)> {
        let mut seen = HashSet::new();
        for attempt in 0..self.max_files.saturating_mul(ATTEMPTS_PER_FILE) {
            let index = (attempt % (filesystems.len().max(1)) as u64) as usize;
            let Some(filesystem) = filesystems.get(index) else { break };
            if self.files >= self.max_files || self.bytes >= self.max_bytes {
                break;
            }
            let random = self.random.next();
            let Some(inode) = filesystem.random_file(random).map_err(|error| (index, error))? else {
                continue;
            };
            let left = self.max_bytes - self.bytes;
            let is_suitable = inode.size_bytes > 0 && !inode.is_encrypted() && inode.allocated_bytes <= left;
            if is_suitable && seen.insert((index, inode.number)) {
                self.bytes += read_file(filesystem, &inode).map_err(|error| (index, error))?;
                self.files += 1;
            }
        }
        Ok(())
    }
}

/// Reads the data of a file and returns its length, without holes.
fn read_file(filesystem: &Filesystem, inode: &Inode) -> Result<u64, ExtError> {
    let mut buf = vec![0; READ_BYTES.min(usize::try_from(inode.size_bytes).unwrap_or(READ_BYTES))];
    let (mut at, mut total) = (0, 0);
    while at < inode.size_bytes {
        let extent = filesystem.extent_at(inode, at)?;
        // A damaged map must not cause a loop: each step advances.
        let end = extent.end_bytes.max(at + 1);
        while extent.is_data && at < end {
            let len = usize::try_from(end - at).unwrap_or(buf.len()).min(buf.len());
            let read = filesystem.read(inode, at, &mut buf[..len])? as u64;
            if read == 0 {
                break;
            }
            (at, total) = (at + read, total + read);
        }
        at = at.max(end);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_of_a_seed_never_changes() {
        let mut random = Random::new(0);
        // The reference values of SplitMix64.
        assert_eq!([random.next(), random.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }
}
