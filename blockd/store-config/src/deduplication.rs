//! Deduplication of backups.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Stored blocks with which a backup shares its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Deduplication {
    /// None: each backup stores all its blocks.
    Off,
    /// Those of earlier backups of the same volume.
    Volume,
    /// Those of all backups of this host in the repository.
    #[default]
    Repository,
}

/// Text that is no deduplication.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected off, volume or repository")]
pub struct BadDeduplication;

impl Deduplication {
    /// Returns true for the default.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Deduplication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Volume => "volume",
            Self::Repository => "repository",
        })
    }
}

impl FromStr for Deduplication {
    type Err = BadDeduplication;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Off, Self::Volume, Self::Repository];
        all.into_iter().find(|one| one.to_string() == text).ok_or(BadDeduplication)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deduplications_are_texts() {
        for one in [Deduplication::Off, Deduplication::Volume, Deduplication::Repository] {
            assert_eq!(one.to_string().parse(), Ok(one));
            assert_eq!(serde_json::to_string(&one).unwrap(), format!("\"{one}\""));
        }
        assert_eq!("all".parse::<Deduplication>(), Err(BadDeduplication));
    }
}
