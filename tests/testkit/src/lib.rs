//! Test support that uses only the public API of the crates: it needs no code in their `src`.

mod block_set;

pub use block_set::block_set;
