//! Cost of a frame of 32 blocks on one core: compress and seal, and open, compared with a copy.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use blockd_cloud::{EncryptionMode, testing::FrameBench};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const FRAME_BYTES: usize = 32 * 4096;

/// Bytes that do not compress.
fn random() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(FRAME_BYTES)
    .collect()
}

/// Bytes that compress about as source code does.
fn text() -> Vec<u8> {
    include_bytes!("frame.rs")
        .iter()
        .copied()
        .zip(random())
        .map(|(a, b)| if b < 8 { b } else { a })
        .cycle()
        .take(FRAME_BYTES)
        .collect()
}

fn frames(c: &mut Criterion) {
    for (content, raw) in [("incompressible", random()), ("text", text())] {
        let mut group = c.benchmark_group(format!("frame {content}"));
        group.throughput(Throughput::Bytes(FRAME_BYTES as u64));
        group.bench_function("copy", |b| {
            let mut out = vec![0; FRAME_BYTES];
            b.iter(|| out.copy_from_slice(black_box(&raw)));
        });
        for mode in [EncryptionMode::Aes256GcmSiv, EncryptionMode::Checksummed] {
            let mut bench = FrameBench::new(mode);
            let mut out = Vec::new();
            group.bench_function(format!("seal {mode:?}"), |b| {
                b.iter(|| {
                    out.clear();
                    bench.seal(black_box(&raw), &mut out)
                });
            });
            group.bench_function(format!("open {mode:?}"), |b| {
                b.iter(|| assert!(bench.open(32, black_box(&out))));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, frames);
criterion_main!(benches);
