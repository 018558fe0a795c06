//! Engine of `tools/bench startup`: writes scattered blocks to the heads of all volumes of a data directory
//! that no daemon uses. To save space, all volumes share the data file of the first one; each has its own
//! tracking.

#![allow(clippy::unwrap_used, reason = "a bench that cannot measure ends with a panic")]

use blockd_volume::{OpenOptions, Volume};
use std::path::{Path, PathBuf};

const BLOCK_BYTES: u64 = 4096;
/// Step of a scattered order of blocks: odd, and so coprime to powers of two.
const STRIDE: u64 = 2_654_435_761;

/// Returns the data file of the head of a volume: the newest one.
fn head_data(dir: &Path) -> PathBuf {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "data")).max().unwrap()
}

/// Writes scattered blocks to the first part of a volume.
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
        let data = head_data(&dir);
        // Before the volume is filled: removing a fragmented file takes long on a filesystem that discards.
        if let Some(first) = &first {
            std::fs::remove_file(&data).unwrap();
            std::fs::hard_link(first, &data).unwrap();
        }
        fill(&dir, blocks, spread_bytes);
        first.get_or_insert(data);
    }
}
