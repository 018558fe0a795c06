//! Numbers in bytes from outside. What would lie behind the end reads as zero, so that a length that was
//! checked too loosely makes a wrong number and ends no process.

macro_rules! number {
    ($name:ident, $kind:ty, $from:ident, $doc:literal) => {
        #[doc = $doc]
        pub(crate) fn $name(bytes: &[u8], at: usize) -> $kind {
            bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| <$kind>::$from(*chunk))
        }
    };
}

number!(le16, u16, from_le_bytes, "Two bytes, the lowest first.");
number!(le32, u32, from_le_bytes, "Four bytes, the lowest first.");
number!(be16, u16, from_be_bytes, "Two bytes, the highest first, as in the journal.");
number!(be32, u32, from_be_bytes, "Four bytes, the highest first, as in the journal.");
number!(be64, u64, from_be_bytes, "Eight bytes, the highest first, as in the journal.");

/// A number whose halves lie in two places.
pub(crate) fn join(high: impl Into<u64>, low: u32) -> u64 {
    high.into() << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_numbers_resolve_to_their_blocks_only() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!((le16(&bytes, 6), le32(&bytes, 1)), (0x0807, 0x0504_0302));
        assert_eq!((be16(&bytes, 0), be32(&bytes, 4)), (0x0102, 0x0506_0708));
        assert_eq!(be64(&bytes, 0), 0x0102_0304_0506_0708);
        assert_eq!((le16(&bytes, 7), le32(&bytes, 100), be64(&bytes, 1)), (0, 0, 0), "behind the end");
        assert_eq!(join(2u16, 5), 0x2_0000_0005);
    }
}
