//! Table of the settings, with the ranges of numbers.

use super::error::ConfigError;
use blockd_api::ByteSize;

/// Valid values of a number.
pub(super) struct Range {
    low: u64,
    high: u64,
    /// Meaning of zero, if that is valid, too.
    zero: Option<&'static str>,
}

pub(super) fn range(low: u64, high: u64) -> Range {
    Range { low, high, zero: None }
}

pub(super) fn zero_or(zero: &'static str, low: u64, high: u64) -> Range {
    Range { low, high, zero: Some(zero) }
}

impl Range {
    pub(super) fn check(&self, key: &'static str, given: impl TryInto<u64>) -> Result<(), ConfigError> {
        let given = given.try_into().unwrap_or(u64::MAX);
        if (self.low..=self.high).contains(&given) || (self.zero.is_some() && given == 0) {
            return Ok(());
        }
        let number = |number: u64| match key.contains("bytes") && number > 0 {
            true => format!("{number} ({})", ByteSize::from_bytes(number)),
            false => number.to_string(),
        };
        let zero = self.zero.map(|meaning| format!("0 ({meaning}), or ")).unwrap_or_default();
        let wanted = format!("{zero}{} to {}", number(self.low), number(self.high));
        Err(ConfigError::Range { key, given: given.to_string(), wanted })
    }
}

/// Declares `Config`: each field has its default and, if it is a number, its range.
macro_rules! config {
    ($($(#[$attribute:meta])* $field:ident: $type:ty = $default:expr $(, $range:expr)?;)+) => {
        /// All settings.
        #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config {
            $($(#[$attribute])* pub $field: $type,)+
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl Config {
            fn check_ranges(&self) -> Result<(), ConfigError> {
                $($($range.check(stringify!($field), self.$field)?;)?)+
                Ok(())
            }
        }
    };
}

pub(super) use config;
