//! Model of a volume, and random requests against it.

use crate::harness::{
    BLOCK, KIB, MIB, Nbd, Rng,
    nbd::{command, flag},
};

/// The expected content of a volume.
#[derive(Clone)]
pub struct Model {
    /// Every byte.
    pub bytes: Vec<u8>,
}

impl Model {
    /// A volume of zeroes.
    pub fn new(size_bytes: u64) -> Self {
        Self { bytes: vec![0; size_bytes as usize] }
    }

    fn range(&mut self, offset_bytes: u64, len_bytes: u64) -> &mut [u8] {
        &mut self.bytes[offset_bytes as usize..(offset_bytes + len_bytes) as usize]
    }

    /// Returns a random offset and length, aligned or not.
    fn random_range(&self, rng: &mut Rng) -> (u64, u64) {
        let size = self.bytes.len() as u64;
        let len = match rng.below(8) {
            0 => rng.between(1, 16),
            1 => 512 * rng.between(1, 16),
            2 => rng.between(1, BLOCK - 1),
            3 | 4 => BLOCK * rng.between(1, 8),
            5 => rng.between(BLOCK, 64 * KIB),
            6 => rng.between(64 * KIB, 256 * KIB),
            _ if rng.one_in(4) => MIB,
            _ => BLOCK,
        };
        let len = len.min(size);
        let offset = rng.between(0, size - len);
        match rng.below(4) {
            0 => (offset, len),
            1 => (offset / 512 * 512, len),
            // The end, where the last block may be partial.
            2 if rng.one_in(8) => (size - len, len),
            _ => (offset / BLOCK * BLOCK, len),
        }
    }

    /// Sends a random request and applies it to the model.
    pub fn step(&mut self, client: &mut Nbd, rng: &mut Rng) {
        let (offset, len) = self.random_range(rng);
        let fua = if rng.one_in(16) { flag::FUA } else { 0 };
        match rng.below(16) {
            0 => {
                // After a trim each byte may have its old value or zero.
                let before = self.range(offset, len).to_vec();
                client.call(command::TRIM, fua, offset, len, &[]).expect("trim");
                let after = client.read(offset, len);
                let fits = before.iter().zip(&after).all(|(old, new)| new == old || *new == 0);
                assert!(fits, "a trim of {len} bytes at {offset} wrote other content than zeroes");
                self.range(offset, len).copy_from_slice(&after);
            }
            1 | 2 => {
                let no_hole = if rng.one_in(3) { flag::NO_HOLE } else { 0 };
                client.call(command::WRITE_ZEROES, fua | no_hole, offset, len, &[]).expect("write zeroes");
                self.range(offset, len).fill(0);
            }
            3 => client.flush(),
            4 => {
                let got = client.read(offset, len);
                assert!(
                    got == *self.range(offset, len),
                    "a read of {len} bytes at {offset} returned other content than was written"
                );
            }
            kind => {
                let data = match kind {
                    5 => vec![0; len as usize],
                    6 | 7 => vec![rng.below(256) as u8; len as usize],
                    _ => rng.bytes(len),
                };
                client.call(command::WRITE, fua, offset, len, &data).expect("write");
                self.range(offset, len).copy_from_slice(&data);
            }
        }
    }
}

/// Compares content; panics with the first difference.
pub fn assert_same(what: &str, got: &[u8], wanted: &[u8]) {
    assert_eq!(got.len(), wanted.len(), "{what}: size");
    if got == wanted {
        return;
    }
    let block = BLOCK as usize;
    let differing: Vec<usize> = got
        .chunks(block)
        .zip(wanted.chunks(block))
        .enumerate()
        .filter(|(_, (g, w))| g != w)
        .map(|(nth, _)| nth)
        .collect();
    let first = differing[0] * block;
    let at = first + got[first..].iter().zip(&wanted[first..]).take_while(|(g, w)| g == w).count();
    panic!(
        "{what}: {} blocks differ, the first is {}: byte {at} is {:#04x} instead of {:#04x}",
        differing.len(),
        differing[0],
        got[at],
        wanted[at]
    );
}
