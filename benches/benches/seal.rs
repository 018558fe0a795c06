//! Rate at which all cores compress and seal a file from memory to memory: the upper bound of a backup.
//!
//! `cargo bench -p blockd-benches --bench seal -- FILE` prints JSON; `tools/bench backup` compares with it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use blockd_cloud::{EncryptionMode, testing::FrameBench};
use std::{
    fs::File,
    io::Read,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

const FRAME_BYTES: usize = 32 * 4096;
/// As much of the file as is read, in bytes.
const MAX_BYTES: u64 = 1 << 30;
const ROUNDS: usize = 3;

/// Seals all frames of `raw` on all cores; returns how long that took in seconds, and the stored bytes.
fn seal_all(mode: EncryptionMode, raw: &[u8], threads: usize) -> (f64, usize) {
    let frames = raw.len() / FRAME_BYTES;
    let (next, stored) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let (mut bench, mut out) = (FrameBench::new(mode), Vec::new());
                loop {
                    let frame = next.fetch_add(1, Relaxed);
                    if frame >= frames {
                        break;
                    }
                    out.clear();
                    let len = bench.seal(&raw[frame * FRAME_BYTES..][..FRAME_BYTES], &mut out);
                    stored.fetch_add(len as usize, Relaxed);
                }
            });
        }
    });
    (began.elapsed().as_secs_f64(), stored.into_inner())
}

fn main() {
    let path = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let mut raw = Vec::new();
    match path {
        Some(path) => {
            File::open(path).unwrap().take(MAX_BYTES).read_to_end(&mut raw).unwrap();
        }
        None => raw = include_bytes!("seal.rs").repeat(20_000),
    }
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    for (name, mode) in
        [("aes-256-gcm-siv", EncryptionMode::Aes256GcmSiv), ("none", EncryptionMode::Checksummed)]
    {
        let rounds = (0..ROUNDS).map(|_| seal_all(mode, &raw, threads));
        let (seconds, stored) = rounds.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        let rate = raw.len() as f64 / seconds / f64::from(1 << 20);
        let ratio = stored as f64 / raw.len() as f64;
        println!(
            r#"{{"encryption": "{name}", "threads": {threads}, "mib_per_s": {rate:.0}, "stored_ratio": {ratio:.3}}}"#
        );
    }
}
