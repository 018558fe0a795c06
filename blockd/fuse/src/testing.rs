//! Images and catalogs in memory, for tests.

use blockd_extent::{BlockSource, DataRange};
use std::io;

/// An image in memory. Blocks of 4096 bytes that are all zero are holes.
pub(crate) struct MemoryImage {
    bytes: Vec<u8>,
}

impl MemoryImage {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    fn is_data(&self, block: usize) -> bool {
        self.bytes.chunks(4096).nth(block).is_some_and(|block| block.iter().any(|byte| *byte != 0))
    }
}

impl BlockSource for MemoryImage {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = offset_bytes as usize;
        let found = self.bytes.get(from..from + buf.len()).ok_or(io::ErrorKind::InvalidInput)?;
        buf.copy_from_slice(found);
        Ok(())
    }

    fn range_at(&self, offset_bytes: u64) -> io::Result<DataRange> {
        let mut block = offset_bytes as usize / 4096;
        let is_data = self.is_data(block);
        while block * 4096 < self.bytes.len() && self.is_data(block) == is_data {
            block += 1;
        }
        Ok(DataRange { is_data, end_bytes: (block * 4096).min(self.bytes.len()) as u64 })
    }
}
