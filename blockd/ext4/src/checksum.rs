//! Checksums of ext4 and its journal (section "Checksums").
//!
//! The kernel continues a CRC over several buffers and never inverts the result, so the parameters are the
//! standard ones without the final XOR.

use crc::{Algorithm, CRC_16_MODBUS, CRC_32_ISCSI, CRC_32_MPEG_2, Crc, Table};

const CRC32C_PARAMETERS: Algorithm<u32> = Algorithm { xorout: 0, residue: 0, ..CRC_32_ISCSI };
static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC32C_PARAMETERS);
static CRC32_BIG_ENDIAN: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_MPEG_2);
static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// Initial value of a checksum.
pub(crate) const START: u32 = !0;

/// Returns the CRC-32C of consecutive buffers, continued from `seed`.
pub(crate) fn crc32c(seed: u32, buffers: &[&[u8]]) -> u32 {
    // The crate `crc` expects the initial value bit-reversed.
    let mut digest = CRC32C.digest_with_initial(seed.reverse_bits());
    for buffer in buffers {
        digest.update(buffer);
    }
    digest.finalize()
}

/// Returns the CRC-32 of journals with the feature `checksum`, continued from `seed`.
pub(crate) fn crc32_big_endian(seed: u32, bytes: &[u8]) -> u32 {
    let mut digest = CRC32_BIG_ENDIAN.digest_with_initial(seed);
    digest.update(bytes);
    digest.finalize()
}

/// Returns the CRC-16 of group descriptors with the feature `gdt_csum`.
pub(crate) fn crc16(buffers: &[&[u8]]) -> u16 {
    let mut digest = CRC16.digest();
    for buffer in buffers {
        digest.update(buffer);
    }
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_check_values_when_continued() {
        // The check values of the CRC catalogue, without the final inversion.
        assert_eq!(crc32c(START, &[b"123456789"]), !0xe306_9283);
        assert_eq!(crc32_big_endian(START, b"123456789"), 0x0376_e6e7);
        assert_eq!(crc16(&[b"1234", b"56789"]), 0x4b37);
        assert_eq!(crc32c(crc32c(START, &[b"1234"]), &[b"5", b"6789"]), !0xe306_9283);
        let first = crc32_big_endian(START, b"1234");
        assert_eq!(crc32_big_endian(first, b"56789"), 0x0376_e6e7);
    }
}
