//! Layers: their data files and block sets, and the lookup of the layer that holds a block.

mod cover;
pub(crate) mod data;
pub(crate) mod data_files;
mod location_cache;
pub(crate) mod set;
mod shared;
pub(crate) mod stack;
