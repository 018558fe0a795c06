//! Ids of volumes, snapshots and epochs.
//!
//! Volume and snapshot ids are random 64-bit numbers in decimal, so that ids of cloud snapshots have the form
//! `<cluster>/<volume>-<snapshot>` of similar systems.

use crate::ExtentError;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

macro_rules! numeric_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u64);

        impl $name {
            /// Creates an id from a number.
            pub const fn from_u64(number: u64) -> Self {
                Self(number)
            }

            /// Returns the number.
            pub const fn as_u64(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ExtentError;

            /// Parses the decimal form; zero, signs, spaces and leading zeroes are refused, so that each id
            /// has one text.
            fn from_str(text: &str) -> Result<Self, ExtentError> {
                let canonical = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
                match text.parse::<u64>() {
                    Ok(number) if canonical => Ok(Self(number)),
                    _ => Err(ExtentError::BadId { given: text.to_owned() }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ExtentError;
            fn try_from(text: String) -> Result<Self, ExtentError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "description": "A decimal number of 64 bits, above zero, without leading zeroes",
                    "type": "string",
                    "pattern": "^[1-9][0-9]{0,19}$"
                })
            }
        }
    };
}

numeric_id! {
    /// Id of a volume, on its host and in the cloud.
    VolumeId
}

numeric_id! {
    /// Id of a snapshot; a cloud snapshot has the id of its local source.
    SnapshotId
}

/// Number of a layer of a volume: incremented by each freeze, never reused.
///
/// A layer is named by the epoch in which it was the head; the blocks dirtied in an epoch are its interval
/// set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Epoch(pub u64);

impl Epoch {
    /// Returns the next epoch.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_has_one_text_form() {
        assert_eq!("590114184663672482".parse(), Ok(VolumeId::from_u64(590_114_184_663_672_482)));
        for bad in ["", "0", "01", "+1", "-1", " 1", "1 ", "x", "18446744073709551616", "1/2"] {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad:?} was accepted");
        }
    }
}
