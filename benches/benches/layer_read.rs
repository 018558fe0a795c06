//! Reads through 1, 4 and 16 layers, compared with a plain file: the cost of the layers.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::Volume;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{os::unix::fs::FileExt, sync::Arc};

const SIZE_BYTES: u64 = 64 << 20;
const BLOCKS: u64 = SIZE_BYTES / 4096;

/// Creates a volume whose blocks are scattered over this many layers.
fn layered(dir: &std::path::Path, layers: u64) -> Arc<Volume> {
    let volume = Volume::create(&dir.join(format!("v{layers}")), VolumeId::from_u64(1), SIZE_BYTES).unwrap();
    volume.write(0, &vec![1; SIZE_BYTES as usize], false).unwrap();
    for layer in 1..layers {
        volume.freeze(SnapshotId::from_u64(layer)).unwrap();
        for block in (layer..BLOCKS).step_by(layers as usize) {
            volume.write(block * 4096, &[layer as u8; 4096], false).unwrap();
        }
    }
    volume
}

fn reads(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let file_path = dir.path().join("file");
    std::fs::write(&file_path, vec![1; SIZE_BYTES as usize]).unwrap();
    let file = std::fs::File::open(&file_path).unwrap();
    let volumes: Vec<_> = [1, 4, 16].map(|layers| (layers, layered(dir.path(), layers))).into();
    for (name, len) in [("4 KiB", 4096usize), ("1 MiB", 1 << 20)] {
        let mut group = c.benchmark_group(format!("layer_read {name}"));
        group.throughput(Throughput::Bytes(len as u64));
        let mut buf = vec![0; len];
        let mut at = 0u64;
        let mut next = move || {
            at = (at.wrapping_mul(5).wrapping_add(12_345)) % (BLOCKS - (len as u64 / 4096));
            at * 4096
        };
        group.bench_function("plain file", |b| {
            b.iter(|| file.read_exact_at(&mut buf, next()).unwrap());
        });
        for (layers, volume) in &volumes {
            group.bench_function(format!("{layers} layers"), |b| {
                b.iter(|| volume.read(next(), &mut buf).unwrap());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, reads);
criterion_main!(benches);
