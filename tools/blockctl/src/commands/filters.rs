//! Filters and order of lists.

use crate::{failure::Failure, output::Context, times::Period};
use blockd_api::{
    ClientError, ErrorCode, GroupName, ObjectName, VolumeId, VolumeName, VolumeRef, matches_wildcard,
    operations,
    volumes::{ListVolumes, Volume},
};
use clap::Args;
use jiff::Timestamp;
use std::{fmt, str::FromStr};

/// Limits of the time of an entry.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct TimeFilter {
    /// Only entries since a time (UTC) or age, such as 2026-11-20T21:00 or 7d
    #[arg(long, value_name = "TIME")]
    since: Option<Period>,
    /// Only entries until a time or age, inclusive
    #[arg(long, value_name = "TIME")]
    until: Option<Period>,
}

impl TimeFilter {
    /// Returns true if a time is within the limits.
    pub fn includes(self, at: Timestamp) -> bool {
        self.since.is_none_or(|since| at >= since.start) && self.until.is_none_or(|until| at <= until.end)
    }

    /// Returns true without limits.
    pub fn is_empty(self) -> bool {
        self.since.is_none() && self.until.is_none()
    }
}

/// Volume of a filter. Names move between volumes, ids do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeFilter {
    /// Id of the daemon's volume, or the given one; `None` for a name that the daemon no longer has.
    id: Option<VolumeId>,
    /// Current name, or the given one; `None` for the id of a deleted volume.
    name: Option<VolumeName>,
}

impl VolumeFilter {
    /// Looks up the volume of an option.
    ///
    /// # Errors
    /// The call fails; an unknown volume is no error.
    pub async fn load(context: &Context<'_>, volume: Option<&VolumeRef>) -> Result<Option<Self>, Failure> {
        let Some(wanted) = volume else { return Ok(None) };
        match context.client.call_at(operations::GET_VOLUME, wanted, &()).await {
            Ok(found) => Ok(Some(Self { id: Some(found.volume_id), name: Some(found.name) })),
            Err(ClientError::Api(error)) if error.code == ErrorCode::VolumeNotFound => {
                Ok(Some(match wanted {
                    VolumeRef::Id(id) => Self { id: Some(*id), name: None },
                    VolumeRef::Name(name) => Self { id: None, name: Some(name.clone()) },
                }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns true for an entry with this id and name of its volume. The name counts where an id is missing.
    pub fn includes(&self, id: Option<VolumeId>, name: Option<&VolumeName>) -> bool {
        match (self.id, id) {
            (Some(own), Some(id)) => own == id,
            _ => name.is_some() && self.name.as_ref() == name,
        }
    }
}

/// Tells whether an argument names a volume or a group.
///
/// # Errors
/// It names both, or the call fails.
pub async fn volume_or_group(
    context: &Context<'_>,
    target: VolumeRef,
) -> Result<(Option<VolumeRef>, Option<GroupName>), Failure> {
    let VolumeRef::Name(name) = &target else { return Ok((Some(target), None)) };
    let volumes = context.client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await?.items;
    let is_group = |one: &&Volume| one.group.as_ref().is_some_and(|group| group.as_str() == name.as_str());
    match volumes.iter().find(is_group) {
        Some(_) if volumes.iter().any(|one| one.name == *name) => {
            Err(Failure::usage(format!("{name} is the name of a volume and of a group"))
                .with_hint(format!("--volume {name} names the volume, --group {name} the group")))
        }
        Some(member) => Ok((None, member.group.clone())),
        None => Ok((Some(target), None)),
    }
}

/// Pattern of a name: `*` matches any characters, also none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.is_empty() {
            true => Err("expected a name, or a pattern such as 'db-*'".to_owned()),
            false => Ok(Self(text.to_owned())),
        }
    }
}

impl NamePattern {
    /// Returns the only name of a backup that matches, without a `*`.
    pub fn exact(&self) -> Option<ObjectName> {
        self.0.parse().ok().filter(|_| !self.0.contains('*'))
    }

    /// Returns the pattern as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true if the whole name matches.
    pub fn matches(&self, name: &str) -> bool {
        matches_wildcard(&self.0, name)
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_matches_any_characters() {
        let matches = |pattern: &str, name: &str| pattern.parse::<NamePattern>().unwrap().matches(name);
        for (pattern, name) in
            [("db", "db"), ("*", ""), ("db*", "db-1"), ("*-1", "db-1"), ("d*-*1", "db-x-1"), ("a*a", "aa")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("db", "db-1"), ("a*a", "a"), ("*b", "abc"), ("d*x*1", "db-1")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        assert!("".parse::<NamePattern>().is_err());
    }

    #[test]
    fn names_of_volumes_count_without_ids_only() {
        let id = |text: &str| text.parse::<VolumeId>().ok();
        let (id, other) = (id("7"), id("8"));
        let name = |text: &str| Some(text.parse::<VolumeName>().unwrap());
        let filter = |id, text: &str| VolumeFilter { id, name: name(text) };
        let includes = |filter: &VolumeFilter, id, text: &str| filter.includes(id, name(text).as_ref());
        let current = filter(id, "db");
        assert!(includes(&current, id, "former") && includes(&current, None, "db"));
        assert!(!includes(&current, other, "db") && !current.includes(None, None));
        let former = filter(None, "db");
        assert!(includes(&former, other, "db") && !includes(&former, other, "x"));
    }

    #[test]
    fn times_are_inclusive() {
        let filter = TimeFilter {
            since: Some("2026-11-20".parse().unwrap()),
            until: Some("2026-11-21T10:00".parse().unwrap()),
        };
        let includes = |at: &str| filter.includes(at.parse().unwrap());
        assert!(includes("2026-11-20T00:00:00Z") && includes("2026-11-21T10:00:59Z"));
        assert!(!includes("2026-11-19T23:59:59Z") && !includes("2026-11-21T10:01:00Z"));
    }
}
