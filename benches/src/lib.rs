//! Benchmarks live in `benches/`; run them with `cargo bench -p blockd-benches`. Here is what the engines of
//! `tools/bench` share.

pub mod histogram;
