//! Test support that uses only the public API of the crates: it needs no code in their `src`.

mod block_set;
mod volume;

pub use block_set::block_set;
pub use volume::volume_files;
