//! Cost of tracking a write: one insert into a block set.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use blockd_extent::{BlockIndex, BlockSet, Extent};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const TIB_BLOCKS: u64 = (1 << 40) / 4096;

/// Returns random block numbers, the same in every run.
fn scattered(count: u64, below: u64) -> Vec<BlockIndex> {
    let mut state = 42u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            BlockIndex((state >> 20) % below)
        })
        .collect()
}

fn insert(c: &mut Criterion) {
    let mut group = c.benchmark_group("block_set_insert");
    let blocks = scattered(100_000, TIB_BLOCKS);
    group.throughput(Throughput::Elements(blocks.len() as u64));
    group.bench_function("scattered over 1 TiB", |b| {
        b.iter_batched(
            BlockSet::new,
            |mut set| {
                for &block in &blocks {
                    set.insert(block);
                }
                set
            },
            BatchSize::LargeInput,
        );
    });
    group.bench_function("ascending", |b| {
        b.iter_batched(
            BlockSet::new,
            |mut set| {
                for block in 0..blocks.len() as u64 {
                    set.insert(BlockIndex(block));
                }
                set
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn plan(c: &mut Criterion) {
    let fragmented: BlockSet =
        scattered(1_000_000, 16 * TIB_BLOCKS).into_iter().map(|b| Extent::new(b, 1)).collect();
    c.bench_function("extents of 1,000,000 blocks scattered over 16 TiB", |b| {
        b.iter(|| black_box(&fragmented).extents().map(|extent| extent.len_blocks).sum::<u64>());
    });
}

criterion_group!(benches, insert, plan);
criterion_main!(benches);
