//! Rate of each compression and AES-256-GCM-SIV over a file from memory to memory, on all cores: the upper
//! bound of a backup. It uses the codec and cipher crates directly, with the parameters of backups, so that
//! the bound excludes losses of the backup.
//!
//! `cargo bench -p blockd-benches --bench seal -- FILE` prints JSON; `tools/bench backup` compares with it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use aes_gcm_siv::{
    Aes256GcmSiv, KeyInit,
    aead::{AeadInOut, Nonce},
};
use blockd_cloud::ZstdSearch;
use std::{fs::File, io::Read, time::Instant};
use zstd_safe::{CCtx, CParameter, ResetDirective};

/// Maximum number of bytes read from the file.
const MAX_BYTES: u64 = 1 << 30;
/// Length of a frame of the cloud format.
const FRAME_BYTES: usize = 512 << 10;
const ROUNDS: usize = 3;
/// Levels of zstd; 0 is LZ4.
const LEVELS: [u8; 6] = [0, 1, 3, 4, 6, 9];

/// Compresses and encrypts each frame; returns the resulting number of bytes.
fn seal(frames: &[u8], level: u8, cipher: &Aes256GcmSiv) -> usize {
    let mut context = CCtx::create();
    let mut sealed = vec![0; lz4_flex::block::get_maximum_output_size(FRAME_BYTES)];
    let mut stored = 0;
    for (number, frame) in frames.chunks(FRAME_BYTES).enumerate() {
        let mut len = match level {
            0 => lz4_flex::block::compress_into(frame, &mut sealed).unwrap(),
            _ => {
                context.reset(ResetDirective::SessionAndParameters).unwrap();
                let search = ZstdSearch::of(level, frame);
                context.set_parameter(CParameter::CompressionLevel(search.level.into())).unwrap();
                context.set_parameter(CParameter::MinMatch(search.min_match)).unwrap();
                context.compress2(&mut sealed[..], frame).unwrap()
            }
        };
        if len >= frame.len() {
            sealed[..frame.len()].copy_from_slice(frame);
            len = frame.len();
        }
        let mut nonce = Nonce::<Aes256GcmSiv>::default();
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        let tag = cipher.encrypt_inout_detached(&nonce, b"", (&mut sealed[..len]).into()).unwrap();
        len += tag.len();
        stored += len;
    }
    stored
}

/// Seals the bytes on several threads; returns the duration in seconds and the resulting number of bytes.
fn seal_all(raw: &[u8], level: u8, cipher: &Aes256GcmSiv, threads: usize) -> (f64, usize) {
    let share = raw.len().div_ceil(threads).next_multiple_of(FRAME_BYTES);
    let began = Instant::now();
    let stored = std::thread::scope(|scope| {
        let begin = |part| scope.spawn(move || seal(part, level, cipher));
        let parts: Vec<_> = raw.chunks(share).map(begin).collect();
        parts.into_iter().map(|part| part.join().unwrap()).sum()
    });
    (began.elapsed().as_secs_f64(), stored)
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
    let cipher = Aes256GcmSiv::new(&[9; 32].into());
    for level in LEVELS {
        let rounds = (0..ROUNDS).map(|_| seal_all(&raw, level, &cipher, threads));
        let (seconds, stored) = rounds.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        let rate = raw.len() as f64 / seconds / f64::from(1 << 20);
        let name = if level == 0 { "lz4".to_owned() } else { format!("zstd:{level}") };
        let ratio = stored as f64 / raw.len() as f64;
        println!(
            r#"{{"compression": "{name}", "threads": {threads}, "mib_per_s": {rate:.0}, "stored_ratio": {ratio:.3}}}"#
        );
    }
}
