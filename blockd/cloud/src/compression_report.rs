//! Compression of a delta, as its manifest describes it.

use crate::{Compression, CompressionLevel};
use serde::{Deserialize, Serialize};

/// Compression of a delta.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CompressionReport {
    /// Compression of the request.
    pub mode: Compression,
    /// Use of each level, from the lowest.
    pub levels: Vec<LevelUse>,
}

/// Packs of one level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LevelUse {
    /// Level. Frames that it does not shorten are uncompressed.
    pub level: CompressionLevel,
    /// Number of packs.
    pub packs: u32,
    /// Bytes of their blocks, zero blocks included.
    pub data_bytes: u64,
    /// Bytes of their frames.
    pub stored_bytes: u64,
}
