//! Layers: data files, block sets, and the lookup of a block's layer.

mod cover;
pub(crate) mod damage;
pub(crate) mod data;
pub(crate) mod data_files;
mod location_cache;
pub(crate) mod medium;
pub(crate) mod set;
mod shared;
pub(crate) mod stack;
pub(crate) mod sums;
