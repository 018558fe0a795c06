//! Integers of untrusted bytes. Reads beyond the end return zero, so that an insufficient length check
//! results in a wrong value instead of a panic.

macro_rules! number {
    ($name:ident, $kind:ty, $from:ident, $doc:literal) => {
        #[doc = $doc]
        pub(crate) fn $name(bytes: &[u8], at: usize) -> $kind {
            bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| <$kind>::$from(*chunk))
        }
    };
}

number!(le16, u16, from_le_bytes, "Returns the little-endian `u16` at a byte offset.");
number!(le32, u32, from_le_bytes, "Returns the little-endian `u32` at a byte offset.");
number!(
    be16,
    u16,
    from_be_bytes,
    "Returns the big-endian `u16` at a byte offset; the journal is big-endian."
);
number!(be32, u32, from_be_bytes, "Returns the big-endian `u32` at a byte offset.");
number!(be64, u64, from_be_bytes, "Returns the big-endian `u64` at a byte offset.");

/// Joins the high and the low half of a number.
pub(crate) fn join(high: impl Into<u64>, low: u32) -> u64 {
    high.into() << 32 | u64::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_the_end_are_zero() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!((le16(&bytes, 6), le32(&bytes, 1)), (0x0807, 0x0504_0302));
        assert_eq!((be16(&bytes, 0), be32(&bytes, 4)), (0x0102, 0x0506_0708));
        assert_eq!(be64(&bytes, 0), 0x0102_0304_0506_0708);
        assert_eq!((le16(&bytes, 7), le32(&bytes, 100), be64(&bytes, 1)), (0, 0, 0), "beyond the end");
        assert_eq!(join(2u16, 5), 0x2_0000_0005);
    }
}
