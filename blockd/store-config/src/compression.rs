//! Compression of backups.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{fmt, str::FromStr};

/// Highest level of zstd: higher ones gain nothing on the 512 KiB of a frame.
pub const MAX_ZSTD_LEVEL: u8 = 19;
/// Level of zstd without a number.
const DEFAULT_ZSTD_LEVEL: u8 = 3;

/// Compression level of stored blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CompressionLevel {
    /// Stored uncompressed.
    None,
    /// lz4, block format.
    Lz4,
    /// zstd, with a level from 1 to [`MAX_ZSTD_LEVEL`].
    Zstd(u8),
}

/// Compression of the backups of a location.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Compression {
    /// Level that follows the bottleneck of each backup, which is the store or the CPU.
    #[default]
    Auto,
    /// Always the same level.
    Fixed(CompressionLevel),
}

/// Text that is no compression.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected auto, none, lz4, zstd or zstd:LEVEL with a level from 1 to {MAX_ZSTD_LEVEL}")]
pub struct BadCompression;

impl fmt::Display for CompressionLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Lz4 => f.write_str("lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

impl FromStr for CompressionLevel {
    type Err = BadCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd(DEFAULT_ZSTD_LEVEL)),
            _ => {
                let number = text.strip_prefix("zstd:").ok_or(BadCompression)?;
                let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
                let level = number.parse().ok().filter(|level| (1..=MAX_ZSTD_LEVEL).contains(level));
                level.filter(|_| is_number).map(Self::Zstd).ok_or(BadCompression)
            }
        }
    }
}

impl Compression {
    /// Returns true for the default.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(level) => level.fmt(f),
        }
    }
}

impl FromStr for Compression {
    type Err = BadCompression;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Fixed) }
    }
}

macro_rules! text_form {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

text_form!(CompressionLevel);
text_form!(Compression);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressions_are_texts() {
        let levels = [CompressionLevel::None, CompressionLevel::Lz4].into_iter();
        let levels = levels.chain((1..=MAX_ZSTD_LEVEL).map(CompressionLevel::Zstd)).map(Compression::Fixed);
        for compression in levels.chain([Compression::Auto]) {
            assert_eq!(compression.to_string().parse(), Ok(compression));
            let json = serde_json::to_string(&compression).unwrap();
            assert_eq!(serde_json::from_str::<Compression>(&json).unwrap(), compression);
        }
        assert_eq!("zstd".parse(), Ok(CompressionLevel::Zstd(3)));
        for wrong in ["", "gzip", "zstd:", "zstd:0", "zstd:20", "zstd:+3", "zstd:300", "lz4:1", "Auto"] {
            assert_eq!(wrong.parse::<Compression>(), Err(BadCompression), "{wrong}");
        }
        assert_eq!("auto".parse::<CompressionLevel>(), Err(BadCompression));
    }
}
