//! What it costs to clear the map of a frozen head for the next one: freezes of a volume whose head has blocks in so many parts
//! of 128 MiB, each of which is a page of the map, and the first write to each part after that. The clearing is before the
//! barrier: writers go on meanwhile.
//!
//! A map of more than 4096 parts is not kept: the last kind shows what a new map costs instead.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench that cannot measure ends with a panic")]

use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::Volume;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

const PART_BYTES: u64 = 128 << 20;
const PARTS: [u64; 6] = [1, 64, 512, 2048, 4096, 4097];
const ROUNDS: u64 = 15;

/// A folder that goes with the run.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Kind {
    parts: u64,
    volume: Arc<Volume>,
    snapshots: u64,
    /// Of a head that takes a map over, or makes one.
    freezes: Vec<Duration>,
    writes: Vec<Duration>,
}

impl Kind {
    fn new(dir: &Path, parts: u64) -> Self {
        let size_bytes = parts * PART_BYTES;
        let volume = Volume::create(&dir.join(parts.to_string()), VolumeId::from_u64(1), size_bytes).unwrap();
        Self { parts, volume, snapshots: 0, freezes: vec![], writes: vec![] }
    }

    fn freeze(&mut self) -> Duration {
        self.snapshots += 1;
        let began = Instant::now();
        self.volume.freeze(SnapshotId::from_u64(self.snapshots)).unwrap();
        began.elapsed()
    }

    fn turn(&mut self) {
        let began = Instant::now();
        for part in 0..self.parts {
            self.volume.write(part * PART_BYTES, &[1; 4096], false).unwrap();
        }
        self.writes.push(began.elapsed() / u32::try_from(self.parts).unwrap());
        // The map with the bits is put aside, and the one after takes it.
        self.freeze();
        let took = self.freeze();
        self.freezes.push(took);
        // What lies below does not count.
        for snapshot in self.volume.snapshots() {
            self.volume.delete_snapshot(snapshot.id).unwrap();
        }
        while self.volume.merge_next(&AtomicBool::new(false)).unwrap() {}
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let parent = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = Scratch(parent.join(format!("blockd-spare-map-{}", std::process::id())));
    std::fs::create_dir(&dir.0).unwrap();
    let mut kinds = PARTS.map(|parts| Kind::new(&dir.0, parts));
    for _ in 0..ROUNDS {
        kinds.iter_mut().for_each(Kind::turn);
    }
    println!("{ROUNDS} interleaved rounds, medians");
    println!("parts  freeze that takes the map over, longest  a first write to a part");
    for kind in &mut kinds {
        let freeze = median(&mut kind.freezes);
        let longest = kind.freezes.last().unwrap();
        let write = median(&mut kind.writes);
        println!("{:5}  {freeze:30.1?}  {longest:7.1?}  {write:23.1?}", kind.parts);
    }
}
