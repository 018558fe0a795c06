//! Set of claimed blocks.

use super::limits::{Budget, Stop};
use std::ops::Range;

/// Number of blocks of a chunk.
const CHUNK: u64 = 32_768;
const WORDS: usize = (CHUNK / 64) as usize;

/// Chunk of the set: most are empty or full.
enum Chunk {
    Empty,
    Full,
    Bits { ones: u32, words: Box<[u64; WORDS]> },
}

/// Set of claimed blocks.
pub(super) struct Claims {
    chunks: Vec<Chunk>,
    blocks: u64,
}

/// Returns the mask of the bits of a range in a word.
fn mask(from: u64, to: u64) -> u64 {
    let below = |bit: u64| if bit >= 64 { u64::MAX } else { (1 << bit) - 1 };
    below(to) & !below(from)
}

impl Claims {
    /// Creates an empty set for the blocks of a filesystem.
    pub fn new(blocks: u64, memory: &mut Budget) -> Result<Self, Stop> {
        let chunks = blocks.div_ceil(CHUNK);
        memory.take(chunks * size_of::<Chunk>() as u64)?;
        Ok(Self { chunks: (0..chunks).map(|_| Chunk::Empty).collect(), blocks })
    }

    /// Adds blocks. Returns the first one that was in the set before.
    pub fn claim(&mut self, blocks: Range<u64>, memory: &mut Budget) -> Result<Option<u64>, Stop> {
        let (mut at, mut claimed) = (blocks.start, None);
        let end = blocks.end.min(self.blocks);
        while at < end {
            let Some(chunk) = self.chunks.get_mut((at / CHUNK) as usize) else { break };
            let start = at / CHUNK * CHUNK;
            let until = end.min(start + CHUNK);
            let before = claim_in(chunk, at - start..until - start, memory)?;
            claimed = claimed.or(before.map(|bit| start + bit));
            at = until;
        }
        Ok(claimed)
    }

    /// Returns true if a block is in the set.
    pub fn contains(&self, block: u64) -> bool {
        self.run(block, block + 1).0
    }

    /// Returns true if the block `at` is in the set, and the end of the run of equal blocks before `end`.
    pub fn run(&self, at: u64, end: u64) -> (bool, u64) {
        let (first, mut at) = (self.is_set(at), at);
        while at < end {
            let start = at / CHUNK * CHUNK;
            let (is_set, until) = match self.chunks.get((at / CHUNK) as usize) {
                Some(Chunk::Full) => (true, start + CHUNK),
                Some(Chunk::Bits { words, .. }) => {
                    let bit = at - start;
                    let word = words[(bit / 64) as usize] >> (bit % 64);
                    let is_set = word & 1 == 1;
                    let len = if is_set { word.trailing_ones() } else { word.trailing_zeros() };
                    (is_set, at + u64::from(len).min(64 - bit % 64))
                }
                _ => (false, start + CHUNK),
            };
            if is_set != first {
                break;
            }
            at = until;
        }
        (first, at.min(end))
    }

    fn is_set(&self, block: u64) -> bool {
        let bit = block % CHUNK;
        match self.chunks.get((block / CHUNK) as usize) {
            Some(Chunk::Full) => true,
            Some(Chunk::Bits { words, .. }) => words[(bit / 64) as usize] >> (bit % 64) & 1 == 1,
            _ => false,
        }
    }
}

/// Adds bits to a chunk. Returns the first one that was set before.
fn claim_in(chunk: &mut Chunk, bits: Range<u64>, memory: &mut Budget) -> Result<Option<u64>, Stop> {
    if matches!(chunk, Chunk::Full) {
        return Ok(Some(bits.start));
    }
    if matches!(chunk, Chunk::Empty) {
        if bits == (0..CHUNK) {
            *chunk = Chunk::Full;
            return Ok(None);
        }
        memory.take(WORDS as u64 * 8)?;
        *chunk = Chunk::Bits { ones: 0, words: Box::new([0; WORDS]) };
    }
    let Chunk::Bits { ones, words } = chunk else { return Ok(None) };
    let mut before = None;
    for index in bits.start / 64..bits.end.div_ceil(64) {
        let word = &mut words[index as usize];
        let new = mask(bits.start.saturating_sub(index * 64), bits.end - index * 64);
        if *word & new != 0 && before.is_none() {
            before = Some(index * 64 + u64::from((*word & new).trailing_zeros()));
        }
        *ones += (new & !*word).count_ones();
        *word |= new;
    }
    if u64::from(*ones) == CHUNK {
        *chunk = Chunk::Full;
        memory.give_back(WORDS as u64 * 8);
    }
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_claimed_twice_are_found() {
        let mut memory = Budget::new(1 << 20);
        let mut claims = Claims::new(200_000, &mut memory).unwrap_or_else(|_| unreachable!());
        let mut claim = |blocks| claims.claim(blocks, &mut memory).unwrap_or_else(|_| unreachable!());
        assert_eq!(claim(100..101), None);
        assert_eq!(claim(32_760..131_100), None, "over several chunks");
        assert_eq!(claim(60..110), Some(100));
        assert_eq!(claim(131_099..131_200), Some(131_099));
        assert_eq!(claim(0..60), None);
        assert_eq!(claim(110..32_760), None);
        assert_eq!(claim(5..6), Some(5), "a chunk that became full");
        assert!(claims.contains(131_199) && !claims.contains(131_200));
        assert_eq!(claims.run(3, 200_000), (true, 131_200));
        assert_eq!(claims.run(131_200, 200_000), (false, 200_000));
        assert_eq!(claims.run(7, 70), (true, 70));
    }

    #[test]
    fn set_beyond_its_memory_is_refused() {
        let mut memory = Budget::new(5000);
        let mut claims = Claims::new(100_000, &mut memory).unwrap_or_else(|_| unreachable!());
        assert!(claims.claim(1..2, &mut memory).is_ok());
        assert!(claims.claim(40_000..40_001, &mut memory).is_err());
        assert!(Claims::new(u64::MAX / 2, &mut Budget::new(1 << 20)).is_err());
    }
}
