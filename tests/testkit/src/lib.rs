//! Test support that uses only the public API of the crates: it needs no code in their `src`.

mod block_set;
pub mod cloud;
mod corpus;
pub mod ext4;
mod image;
mod nbd;
mod rng;
pub mod store;
mod volume;

pub use block_set::block_set;
pub use corpus::replay;
pub use image::Image;
pub use nbd::nbd;
pub use rng::Rng;
pub use volume::volume_files;
