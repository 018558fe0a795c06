//! Compression of a delta, as its manifest describes it.
//!
//! Frames name their codec, so the report is for display only: a reader ignores the parts that it does not
//! know, and reads the snapshot.

use crate::{Compression, CompressionLevel};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// Maximum number of levels that a reader takes from a report: more than exist.
const MAX_LEVELS: usize = 32;

/// Compression of a delta.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct CompressionReport {
    /// Compression of the request; `None` if this version does not know it.
    pub mode: Option<Compression>,
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

impl<'de> Deserialize<'de> for CompressionReport {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let report = Value::deserialize(deserializer)?;
        let mode = report.get("mode").and_then(|mode| Compression::deserialize(mode).ok());
        let levels = report.get("levels").and_then(Value::as_array).into_iter().flatten();
        let levels = levels.filter_map(|used| LevelUse::deserialize(used).ok()).take(MAX_LEVELS).collect();
        Ok(Self { mode, levels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_parts_of_a_report_are_ignored() {
        let known = json!({ "level": "zstd:3", "packs": 2, "data_bytes": 10, "stored_bytes": 5 });
        let mut unknown = vec![json!("zstd:3"), json!({ "level": "zstd:3" }), json!(null), json!([[]])];
        for level in ["brotli:5", "zstd:0", "zstd:23", "zstd:999", ""] {
            unknown.push(json!({ "level": level, "packs": 1, "data_bytes": 1, "stored_bytes": 1 }));
        }
        unknown.push(json!({ "level": "lz4", "packs": -1, "data_bytes": 1, "stored_bytes": 1 }));
        let read = |value: Value| serde_json::from_value::<CompressionReport>(value).unwrap();
        for mode in [json!("brotli"), json!("zstd:23"), json!(7), json!(null)] {
            let mut levels = unknown.clone();
            levels.push(known.clone());
            let report = read(json!({ "mode": mode, "levels": levels, "dictionary": 1 }));
            assert_eq!((report.mode, report.levels.len()), (None, 1));
            assert_eq!(report.levels[0].level, CompressionLevel::Zstd(3));
            assert_eq!(read(serde_json::to_value(&report).unwrap()), report);
        }
        for value in [json!(null), json!("auto"), json!([]), json!({}), json!({ "levels": 1 })] {
            assert_eq!(read(value), CompressionReport::default());
        }
        let many = read(json!({ "mode": "auto", "levels": vec![known; 1000] }));
        assert_eq!((many.mode, many.levels.len()), (Some(Compression::Auto), MAX_LEVELS));
    }
}
