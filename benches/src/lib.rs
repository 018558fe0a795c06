//! Code shared by the engines of `tools/bench`. The Criterion benchmarks are in `benches/`: `cargo bench -p
//! blockd-benches`.

pub mod histogram;
