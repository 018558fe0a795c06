//! Time zones by name.

use crate::ScheduleError;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Time zone of a schedule: UTC, or one of the IANA database (`Area/City`).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone {
    name: String,
    time_zone: TimeZone,
}

impl Zone {
    /// Returns UTC.
    pub fn utc() -> Self {
        Self { name: "UTC".into(), time_zone: TimeZone::UTC }
    }

    /// Returns the rules of the zone.
    pub fn time_zone(&self) -> &TimeZone {
        &self.time_zone
    }

    /// Returns true if a word looks like a zone: `UTC`, or letters on both sides of a slash, which no field
    /// has.
    pub(crate) fn is_meant_by(word: &str) -> bool {
        let starts = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic());
        word.eq_ignore_ascii_case("UTC")
            || word.split_once('/').is_some_and(|(area, city)| starts(area) && starts(city))
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Zone {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Zone".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A time zone: UTC, or one of the IANA database",
            "type": "string",
            "examples": ["UTC", "Europe/Berlin"]
        })
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self::utc()
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({})", self.name)
    }
}

impl FromStr for Zone {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if text.eq_ignore_ascii_case("UTC") {
            return Ok(Self::utc());
        }
        let unknown = || ScheduleError::UnknownZone { given: text.to_owned() };
        if !Self::is_meant_by(text) {
            return Err(unknown());
        }
        let time_zone = TimeZone::get(text).map_err(|_| unknown())?;
        let name = time_zone.iana_name().unwrap_or(text).to_owned();
        Ok(Self { name, time_zone })
    }
}

impl TryFrom<String> for Zone {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, ScheduleError> {
        text.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.name
    }
}
