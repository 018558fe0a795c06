//! Memory of frozen layers of 1 TiB after the open, in the worst case: every other block is held.
//! Prints it for 1 and for 8 layers, which also have the union of their sets, and for one with zeroes
//! in half of its blocks.
//!
//! Another process creates the volume, with set files in the format of `layer/set.rs` instead of half a
//! terabyte of writes.
#![allow(clippy::unwrap_used, reason = "a failed measurement panics")]

use blockd_extent::{BlockIndex, BlockSet, SnapshotId, VolumeId};
use blockd_volume::{OpenOptions, Volume};
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use xxhash_rust::xxh3::xxh3_64;

const SIZE_BYTES: u64 = 1 << 40;
const BLOCKS: u64 = SIZE_BYTES / 4096;
const ID: VolumeId = VolumeId::from_u64(5);

fn every(step: usize) -> BlockSet {
    let mut set = BlockSet::new();
    for block in (0..BLOCKS).step_by(step) {
        set.insert(BlockIndex(block));
    }
    set
}

fn set_file(epoch: u64, held: &[u8], zero: &[u8]) -> Vec<u8> {
    let mut bytes = b"BLKDSET1".to_vec();
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    for word in [ID.as_u64(), epoch, BLOCKS, held.len() as u64, zero.len() as u64] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(held);
    bytes.extend(zero);
    let sum = xxh3_64(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

fn make(dir: &Path, layers: u64, has_zeroes: bool) {
    let volume = Volume::create(dir, ID, SIZE_BYTES).unwrap();
    for epoch in 1..=layers {
        volume.freeze(SnapshotId::from_u64(epoch)).unwrap();
    }
    volume.close().unwrap();
    let zero = if has_zeroes { every(4) } else { BlockSet::new() };
    let (held, zero) = (every(2).to_bytes(), zero.to_bytes());
    for epoch in 1..=layers {
        let path = dir.join(format!("layer-{epoch:016x}.g0.set"));
        std::fs::write(path, set_file(epoch, &held, &zero)).unwrap();
    }
}

/// Returns the anonymous memory of this process, in KiB.
fn anonymous_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", dir, layers, zeroes] => make(Path::new(dir), layers.parse().unwrap(), zeroes == "zeroes"),
        ["open", dir] => {
            let before = anonymous_kib();
            let volume = Volume::open(Path::new(dir), &OpenOptions::default()).unwrap();
            println!("{}", anonymous_kib() - before);
            volume.close().unwrap();
        }
        _ => {
            let dir = tempfile::tempdir().unwrap();
            for (layers, zeroes) in [("1", "none"), ("1", "zeroes"), ("8", "none")] {
                let dir: PathBuf = dir.path().join(format!("{layers}-{zeroes}"));
                let program = std::env::current_exe().unwrap();
                let made = Command::new(&program).arg("make").arg(&dir).args([layers, zeroes]).status();
                assert!(made.unwrap().success());
                let opened = Command::new(&program).arg("open").arg(&dir).output().unwrap();
                assert!(opened.status.success());
                let kib: f64 = String::from_utf8(opened.stdout).unwrap().trim().parse().unwrap();
                let each = kib / 1024.0 / layers.parse::<f64>().unwrap();
                println!(
                    "{layers} of 1 TiB, zeroes: {zeroes}: {:.1} MiB, {each:.1} MiB a layer",
                    kib / 1024.0
                );
            }
        }
    }
}
