//! Test support that uses only the public API of the crates: it needs no code in their `src`.

mod block_set;
mod corpus;
mod nbd;
mod volume;

pub use block_set::block_set;
pub use corpus::replay;
pub use nbd::nbd;
pub use volume::volume_files;
