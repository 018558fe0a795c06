//! Class of a block's content.

use blockd_extent::BLOCK_SIZE_BYTES;

/// Threshold for the sum of the squared byte counts of a 4 KiB block.
///
/// Random bytes give 4096 + 4096 × 4095 / 256 ≈ 69,600 with a standard deviation of about 360. Executables,
/// text, base64 and database pages give more than 200,000, as does everything that a compressor shrinks by
/// more than a few percent.
const MAX_SQUARES: u64 = 80_000;

/// Class of a block's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BlockClass {
    /// Zero bytes only, or discarded.
    Zero,
    /// Data with redundancy.
    Compressible,
    /// Data that looks random: compressed or encrypted.
    Incompressible,
}

impl BlockClass {
    /// Returns the class of a block.
    pub fn of(block: &[u8]) -> Self {
        debug_assert_eq!(block.len() as u64, BLOCK_SIZE_BYTES);
        // Separate tables: equal neighbours do not wait for each other's counter.
        let mut counts = [[0u16; 256]; 4];
        let (chunks, rest) = block.as_chunks::<4>();
        for chunk in chunks {
            for (table, byte) in counts.iter_mut().zip(chunk) {
                table[usize::from(*byte)] += 1;
            }
        }
        for byte in rest {
            counts[0][usize::from(*byte)] += 1;
        }
        let [a, b, c, d] = &counts;
        let totals = a.iter().zip(b).zip(c).zip(d).map(|(((a, b), c), d)| u64::from(a + b + c + d));
        let (mut squares, mut zeros) = (0, None);
        for total in totals {
            zeros.get_or_insert(total);
            squares += total * total;
        }
        match squares {
            _ if zeros == Some(block.len() as u64) => Self::Zero,
            0..=MAX_SQUARES => Self::Incompressible,
            _ => Self::Compressible,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns pseudorandom bytes (xorshift64*).
    fn random(seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d)
        };
        (0..BLOCK_SIZE_BYTES / 8).flat_map(|_| next().to_le_bytes()).collect()
    }

    #[test]
    fn zero_block_is_zero() {
        assert_eq!(BlockClass::of(&[0; 4096]), BlockClass::Zero);
        assert_eq!(BlockClass::of(&[1; 4096]), BlockClass::Compressible);
    }

    #[test]
    fn random_blocks_are_incompressible() {
        for seed in 1..2000 {
            assert_eq!(BlockClass::of(&random(seed * 7919)), BlockClass::Incompressible, "seed {seed}");
        }
    }

    #[test]
    fn text_base64_and_half_random_are_compressible() {
        let text: Vec<u8> =
            b"the daemon serves volumes over NBD. ".iter().copied().cycle().take(4096).collect();
        assert_eq!(BlockClass::of(&text), BlockClass::Compressible);
        let base64: Vec<u8> = random(3).iter().map(|byte| b'0' + byte % 64).collect();
        assert_eq!(BlockClass::of(&base64), BlockClass::Compressible);
        let mut half = random(5);
        half[..1024].fill(0);
        assert_eq!(BlockClass::of(&half), BlockClass::Compressible);
    }
}
