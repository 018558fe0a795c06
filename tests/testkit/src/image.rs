use blockd_extent::BlockSource;
use std::io;

/// Image in memory.
pub struct Image(pub Vec<u8>);

impl BlockSource for Image {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        buf.copy_from_slice(self.0.get(from..from + buf.len()).ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }
}

impl blockd_ext4::ReadAt for Image {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_at(offset_bytes, buf)
    }
}
