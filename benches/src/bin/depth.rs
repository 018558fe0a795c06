//! Random reads of 4 KiB from volumes of 1, 8, 64 and 512 frozen layers below an empty head, compared with
//! the same reads from as many plain files with the same blocks: the cost of depth, and the kernel's share of
//! it. The volumes alternate, so that other load affects all of them.
//!
//! `run` is the length of extents in a layer, in blocks. With 1, adjacent blocks are in different layers: the
//! worst case, also for the kernel, whose page cache then has one page in each node. 64 blocks (256 KiB) are
//! typical.
//!
//! `first reads` are those of blocks that were not read since the volume was opened or frozen, whose layer
//! must be searched.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::{OpenOptions, Volume};
use std::{
    fs::File,
    hint::black_box,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = (256 << 20) / BLOCK;
const DEPTHS: [u64; 4] = [1, 8, 64, 512];
const RUNS: [u64; 2] = [1, 64];
const ROUNDS: usize = 21;
const READS_PER_PASS: u64 = 20_000;
/// Step of a scattered order of all blocks: odd, and so coprime to their number, a power of two.
const STRIDE: u64 = 40_503;

/// Temporary directory.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Deep {
    layers: u64,
    run: u64,
    volume: Arc<Volume>,
    files: Vec<File>,
    next: u64,
    first: Vec<Duration>,
    later: Vec<Duration>,
    plain: Vec<Duration>,
}

impl Deep {
    fn new(dir: &Path, layers: u64, run: u64) -> Self {
        let volume =
            Volume::create(&dir.join(format!("v{layers}-{run}")), VolumeId::from_u64(layers), BLOCKS * BLOCK)
                .unwrap();
        let mut files = Vec::new();
        for layer in 0..layers {
            let path = dir.join(format!("plain-{layers}-{run}-{layer}"));
            let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
            file.set_len(BLOCKS * BLOCK).unwrap();
            for block in (0..BLOCKS).filter(|block| block / run % layers == layer) {
                volume.write(block * BLOCK, &[layer as u8 | 1; BLOCK as usize], false).unwrap();
                file.write_all_at(&[layer as u8 | 1; BLOCK as usize], block * BLOCK).unwrap();
            }
            volume.freeze(SnapshotId::from_u64(layer + 1)).unwrap();
            file.sync_all().unwrap();
            files.push(file);
        }
        assert_eq!(volume.stats().layers, layers + 1);
        Self { layers, run, volume, files, next: 0, first: vec![], later: vec![], plain: vec![] }
    }

    /// Reads the next blocks twice, and from the plain files.
    fn pass(&mut self) {
        let mut buf = [0; BLOCK as usize];
        let start = self.next;
        let blocks = || (start..start + READS_PER_PASS).map(|nth| nth * STRIDE % BLOCKS);
        // This drops the cached locations of blocks.
        self.volume.close().unwrap();
        self.volume = Volume::open(self.volume.dir(), &OpenOptions::default()).unwrap();
        for times in [&mut self.first, &mut self.later] {
            let began = Instant::now();
            blocks().for_each(|block| self.volume.read(block * BLOCK, &mut buf).unwrap());
            times.push(began.elapsed());
        }
        // As above, the second pass counts.
        for times in [None, Some(&mut self.plain)] {
            let began = Instant::now();
            for block in blocks() {
                let file = &self.files[(block / self.run % self.layers) as usize];
                file.read_exact_at(&mut buf, block * BLOCK).unwrap();
            }
            times.into_iter().for_each(|times| times.push(began.elapsed()));
        }
        black_box(&buf);
        self.next += READS_PER_PASS;
    }
}

/// Returns the median duration of a read, in nanoseconds.
fn median_ns(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64 / READS_PER_PASS as f64
}

fn main() {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = Scratch(parent.join(format!("blockd-depth-{}", std::process::id())));
    std::fs::create_dir(&dir.0).unwrap();
    let kinds = RUNS.iter().flat_map(|&run| DEPTHS.map(|layers| (layers, run)));
    let mut volumes: Vec<Deep> = kinds.map(|(layers, run)| Deep::new(&dir.0, layers, run)).collect();
    for _ in 0..ROUNDS {
        volumes.iter_mut().for_each(Deep::pass);
    }
    println!("4 KiB random reads, {ROUNDS} interleaved rounds of {READS_PER_PASS} reads, medians");
    println!("run  layers  first reads  later reads  of one layer  plain files  of one file  tracking");
    let mut one = None;
    for deep in &mut volumes {
        let (first, later) = (median_ns(&mut deep.first), median_ns(&mut deep.later));
        let plain = median_ns(&mut deep.plain);
        if deep.layers == 1 {
            one = Some((later, plain));
        }
        let (one_later, one_plain) = one.unwrap_or((later, plain));
        println!(
            "{:3}  {:6}  {first:8.0} ns  {later:8.0} ns  {:12.2}  {plain:8.0} ns  {:11.2}  {:4.1} MiB",
            deep.run,
            deep.layers,
            one_later / later,
            one_plain / plain,
            deep.volume.stats().tracking_bytes as f64 / f64::from(1 << 20),
        );
    }
}
