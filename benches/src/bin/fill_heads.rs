//! For `tools/bench startup`: fills the heads of all volumes of a data directory, which no daemon may have open, with
//! scattered blocks. The data itself is thrown away, so that a thousand volumes take little room: only what is tracked stays.

#![allow(clippy::unwrap_used, reason = "a bench that cannot measure ends with a panic")]

use blockd_volume::{OpenOptions, Volume};
use std::{fs::File, path::Path};

const BLOCK_BYTES: u64 = 4096;
/// Odd, so that it has no divisor in common with a power of two.
const STRIDE: u64 = 2_654_435_761;

/// Writes so many blocks, spread over the first part of the volume.
fn fill(dir: &Path, blocks: u64, spread_bytes: u64) {
    let volume = Volume::open(dir, &OpenOptions::default()).unwrap();
    let places = (spread_bytes.min(volume.size_bytes()) / BLOCK_BYTES).next_power_of_two() / 2;
    for nth in 0..blocks {
        let block = nth.wrapping_mul(STRIDE) % places * 2;
        volume.write(block * BLOCK_BYTES, &[1; BLOCK_BYTES as usize], false).unwrap();
    }
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "data") {
            let file = File::options().write(true).open(path).unwrap();
            let len_bytes = file.metadata().unwrap().len();
            file.set_len(0).unwrap();
            file.set_len(len_bytes).unwrap();
        }
    }
    volume.close().unwrap();
}

fn main() {
    let mut args = std::env::args().skip(1);
    let data_dir = args.next().unwrap();
    let blocks: u64 = args.next().unwrap().parse().unwrap();
    let spread_bytes: u64 = args.next().unwrap().parse().unwrap();
    for entry in std::fs::read_dir(Path::new(&data_dir).join("volumes")).unwrap() {
        fill(&entry.unwrap().path(), blocks, spread_bytes);
    }
}
