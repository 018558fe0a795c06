//! For `tools/bench startup`: fills the heads of all volumes of a data directory, which no daemon may have
//! open, with scattered blocks. So that a thousand volumes take little room, all of them share the data of
//! the first one: what is tracked is each volume's own, and a start finds data where blocks are held.

#![allow(clippy::unwrap_used, reason = "a bench that cannot measure ends with a panic")]

use blockd_volume::{OpenOptions, Volume};
use std::path::{Path, PathBuf};

const BLOCK_BYTES: u64 = 4096;
/// Odd, so that it has no divisor in common with a power of two.
const STRIDE: u64 = 2_654_435_761;

/// The data files of a volume's head, which are its newest.
fn head_data(dir: &Path) -> PathBuf {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "data")).max().unwrap()
}

/// Writes so many blocks, spread over the first part of the volume.
fn fill(dir: &Path, blocks: u64, spread_bytes: u64) {
    let volume = Volume::open(dir, &OpenOptions::default()).unwrap();
    let places = (spread_bytes.min(volume.size_bytes()) / BLOCK_BYTES).next_power_of_two() / 2;
    for nth in 0..blocks {
        let block = nth.wrapping_mul(STRIDE) % places * 2;
        volume.write(block * BLOCK_BYTES, &[1; BLOCK_BYTES as usize], false).unwrap();
    }
    volume.close().unwrap();
}

fn main() {
    let mut args = std::env::args().skip(1);
    let data_dir = args.next().unwrap();
    let blocks: u64 = args.next().unwrap().parse().unwrap();
    let spread_bytes: u64 = args.next().unwrap().parse().unwrap();
    let mut first: Option<PathBuf> = None;
    for entry in std::fs::read_dir(Path::new(&data_dir).join("volumes")).unwrap() {
        let dir = entry.unwrap().path();
        fill(&dir, blocks, spread_bytes);
        let data = head_data(&dir);
        match &first {
            None => first = Some(data),
            Some(first) => {
                std::fs::remove_file(&data).unwrap();
                std::fs::hard_link(first, &data).unwrap();
            }
        }
    }
}
