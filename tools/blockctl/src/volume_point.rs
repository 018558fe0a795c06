//! Points in time of volumes on the command line: `VOLUME@latest` and `VOLUME@TIME`.

use crate::times::Period;
use blockd_api::VolumeRef;
use jiff::Timestamp;
use std::{fmt, str::FromStr};

/// Word for the newest point of a volume.
pub const LATEST: &str = "latest";

/// Newest point of a volume at or before a time; the newest of all without a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePoint {
    /// Volume.
    pub volume: VolumeRef,
    /// Last moment.
    pub until: Option<Timestamp>,
}

/// Text that names no point in time of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected VOLUME@latest, or VOLUME@TIME such as db@2026-11-20T21:00")]
pub struct VolumePointError;

impl VolumePoint {
    /// Returns true for a point that it may select: not after the last moment.
    pub fn includes(&self, created_at: Timestamp) -> bool {
        self.until.is_none_or(|until| created_at <= until)
    }
}

impl FromStr for VolumePoint {
    type Err = VolumePointError;

    fn from_str(text: &str) -> Result<Self, VolumePointError> {
        let (volume, point) = text.split_once('@').ok_or(VolumePointError)?;
        let until = match point {
            LATEST => None,
            time => Some(time.parse::<Period>().map_err(|_| VolumePointError)?.end),
        };
        Ok(Self { volume: volume.parse().map_err(|_| VolumePointError)?, until })
    }
}

impl fmt::Display for VolumePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            None => write!(f, "{}@{LATEST}", self.volume),
            Some(until) => write!(f, "{}@{until}", self.volume),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_parsed_and_select_by_time() {
        let parse = |text: &str| text.parse::<VolumePoint>();
        let latest = parse("db@latest").unwrap();
        assert_eq!(latest, VolumePoint { volume: "db".parse().unwrap(), until: None });
        let minute = parse("7@2026-11-20T21:00").unwrap();
        assert_eq!(minute.to_string(), "7@2026-11-20T21:00:59.999999999Z");
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(minute.includes(at("2026-11-20T21:00:59Z")) && !minute.includes(at("2026-11-20T21:01:00Z")));
        assert!(latest.includes(at("2026-11-20T21:01:00Z")));
        for text in ["", "db", "db@", "db@x", "@latest", "db@2026-02-30"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
