//! Names of volumes, snapshots and credentials, and references to them.
//!
//! A name cannot be mistaken for an id: volume and snapshot ids are all digits, credential ids are UUIDs, and
//! no name may look like either.

use crate::text::as_text;
use blockd_extent::{SnapshotId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

/// Maximum length of a name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Invalid name or reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Empty text.
    #[error("the {what} is empty: give 1 to {MAX_NAME_BYTES} characters of A-Z a-z 0-9 . _ -")]
    Empty {
        /// Kind of object.
        what: &'static str,
    },
    /// Too long.
    #[error("the {what} is {len_bytes} characters long: at most {MAX_NAME_BYTES} are allowed")]
    TooLong {
        /// Kind of object.
        what: &'static str,
        /// Length of the text in bytes.
        len_bytes: usize,
    },
    /// Invalid character.
    #[error("the {what} {given:?} has the character {found:?}: only A-Z a-z 0-9 . _ - are allowed")]
    BadCharacter {
        /// Kind of object.
        what: &'static str,
        /// Given text.
        given: String,
        /// First invalid character.
        found: char,
    },
    /// Starts with a dot, dash or underscore.
    #[error("the {what} {given:?} must begin with a letter or a digit")]
    BadStart {
        /// Kind of object.
        what: &'static str,
        /// Given text.
        given: String,
    },
    /// Could be taken for an id.
    #[error("the {what} {given:?} looks like an id: {hint}")]
    LooksLikeId {
        /// Kind of object.
        what: &'static str,
        /// Given text.
        given: String,
        /// Next action.
        hint: &'static str,
    },
    /// All digits, but not an id.
    #[error("{given:?} is not an id of a {what}: expected a decimal number from 1 to 18446744073709551615")]
    BadId {
        /// Kind of object.
        what: &'static str,
        /// Given text.
        given: String,
    },
    /// Snapshot name without its volume.
    #[error("{given:?} is not a snapshot: give its id, or VOLUME@NAME")]
    NotASnapshot {
        /// Given text.
        given: String,
    },
}

fn check_characters(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong { what, len_bytes: text.len() });
    }
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if let Some(found) = text.chars().find(|c| !allowed(c)) {
        return Err(NameError::BadCharacter { what, given: text.to_owned(), found });
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(NameError::BadStart { what, given: text.to_owned() });
    }
    Ok(())
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// Checks a name. If references also accept UUIDs, the name must not be a UUID; `uuids` is the hint for such
/// a name.
fn check_name(what: &'static str, uuids: &'static str, text: &str) -> Result<(), NameError> {
    check_characters(what, text)?;
    let looks_like_id = |hint| Err(NameError::LooksLikeId { what, given: text.to_owned(), hint });
    if all_digits(text) {
        return looks_like_id("ids are all digits, so a name needs a letter, dot, dash or underscore");
    }
    match !uuids.is_empty() && Uuid::parse_str(text).is_ok() {
        true => looks_like_id(uuids),
        false => Ok(()),
    }
}

/// Display of a reference by id or name, and its conversions.
macro_rules! id_or_name {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Self::Id(id) => id.fmt(f),
                    Self::Name(name) => name.fmt(f),
                }
            }
        }

        as_text!($name);
    };
}

macro_rules! uuid_or_name {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Uuid::parse_str(text).map(Self::Id).or_else(|_| text.parse().map(Self::Name))
            }
        }

        id_or_name!($name);
    };
    ($name:ident, or prefix of the UUID, $inner:ident) => {
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if let Ok(id) = Uuid::parse_str(text) {
                    return Ok(Self::Id(id));
                }
                // No name is all digits, but a prefix may be.
                if !text.is_empty() && all_digits(text) {
                    check_characters("prefix of an id", text)?;
                    return Ok(Self::Name($inner(text.to_owned())));
                }
                text.parse().map(Self::Name)
            }
        }

        id_or_name!($name);
    };
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $uuids:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_name($what, $uuids, text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        as_text!($name);
    };
}

name_type! {
    /// Name of a volume, and of its NBD export: 1–128 of `A-Z a-z 0-9 . _ -`, begins alphanumeric, not all
    /// digits.
    VolumeName, "volume name", ""
}

name_type! {
    /// Name of a snapshot among those of its volume; the same rules as for a volume.
    SnapshotName, "snapshot name", ""
}

name_type! {
    /// Name of a credential; the same rules as for a volume, and it must not be a UUID.
    CredentialName, "credential name", "credential ids are UUIDs, so a name must not be one"
}

name_type! {
    /// Name of a group of volumes; the same rules as for a volume, and it must not be a UUID.
    GroupName, "group name", "ids of group snapshots are UUIDs, so a name must not be one"
}

name_type! {
    /// Name of a schedule or backup; the same rules as for a volume, and it must not be a UUID.
    ObjectName, "name", "ids of schedules and tasks are UUIDs, so a name must not be one"
}

name_type! {
    /// Name of a rule; the same rules as for a volume, and it must not be a UUID.
    RuleName, "rule name", "ids of schedules and tasks are UUIDs, so a name must not be one"
}

name_type! {
    /// Name of a schedule policy; the same rules as for a volume.
    PolicyName, "policy name", ""
}

name_type! {
    /// Name of a probe of restore drills; the same rules as for a volume.
    ProbeName, "probe name", ""
}

impl SnapshotName {
    /// Returns the default name of a snapshot: `snap-20190116T215153.042Z`.
    pub fn from_time(time: Timestamp) -> Self {
        Self(format!("snap-{}", time.strftime("%Y%m%dT%H%M%S.%3fZ")))
    }

    /// Returns the name of the snapshot of the state before a rollback:
    /// `before-restore-20190116T215153.042Z`.
    pub fn before_restore(time: Timestamp) -> Self {
        Self(format!("before-restore-{}", time.strftime("%Y%m%dT%H%M%S.%3fZ")))
    }
}

/// Volume by id or name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VolumeRef {
    /// By id.
    Id(VolumeId),
    /// By name.
    Name(VolumeName),
}

impl FromStr for VolumeRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if !text.is_empty() && all_digits(text) {
            let bad = |_| NameError::BadId { what: "volume", given: text.to_owned() };
            return text.parse().map(Self::Id).map_err(bad);
        }
        text.parse().map(Self::Name)
    }
}

id_or_name!(VolumeRef);

/// Snapshot by id or as `VOLUME@NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum SnapshotRef {
    /// By id.
    Id(SnapshotId),
    /// By volume and name.
    Named {
        /// Volume.
        volume: VolumeRef,
        /// Name of the snapshot.
        name: SnapshotName,
    },
}

impl FromStr for SnapshotRef {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Some((volume, name)) = text.split_once('@') {
            return Ok(Self::Named { volume: volume.parse()?, name: name.parse()? });
        }
        if !text.is_empty() && all_digits(text) {
            let bad = |_| NameError::BadId { what: "snapshot", given: text.to_owned() };
            return text.parse().map(Self::Id).map_err(bad);
        }
        Err(NameError::NotASnapshot { given: text.to_owned() })
    }
}

impl fmt::Display for SnapshotRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Named { volume, name } => write!(f, "{volume}@{name}"),
        }
    }
}

as_text!(SnapshotRef);

/// Credential by UUID, or by a unique prefix of it or the name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CredentialRef {
    /// By UUID.
    Id(Uuid),
    /// By prefix or name.
    Name(CredentialName),
}

uuid_or_name!(CredentialRef, or prefix of the UUID, CredentialName);

/// Group snapshots by their UUID, or by the group of volumes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GroupRef {
    /// One group snapshot.
    Id(Uuid),
    /// All group snapshots of a group.
    Name(GroupName),
}

uuid_or_name!(GroupRef);

/// One group snapshot by its UUID, or by a unique prefix of it or the name of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum GroupSnapshotRef {
    /// By UUID.
    Id(Uuid),
    /// By prefix or name.
    Name(SnapshotName),
}

uuid_or_name!(GroupSnapshotRef, or prefix of the UUID, SnapshotName);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_have_rules() {
        for good in ["a", "db-1", "0a", "1.2", "A_b.c-d", "9-9", &"x".repeat(128)] {
            assert_eq!(good.parse::<VolumeName>().map(String::from).as_deref(), Ok(good));
        }
        for bad in
            ["", " a", "a b", "-a", ".a", "_a", "12", "a/b", "a@b", "ä", "a\n", "a\0", &"x".repeat(129)]
        {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?} was taken");
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad:?} was taken");
            assert!(bad.parse::<CredentialName>().is_err(), "{bad:?} was taken");
        }
        assert!("af563a4d-afd7-48df-90f7-8e8f9414ff77".parse::<CredentialName>().is_err());
        assert!("af563a4d-afd7-48df-90f7-8e8f9414ff77".parse::<VolumeName>().is_ok());
    }

    #[test]
    fn messages_name_the_valid_form() {
        let message = |text: &str| text.parse::<VolumeName>().unwrap_err().to_string();
        assert_eq!(
            message("a b"),
            "the volume name \"a b\" has the character ' ': only A-Z a-z 0-9 . _ - are allowed"
        );
        assert!(message("42").contains("looks like an id"));
        assert_eq!(
            "x".parse::<SnapshotRef>().unwrap_err().to_string(),
            "\"x\" is not a snapshot: give its id, or VOLUME@NAME"
        );
    }

    #[test]
    fn references_tell_ids_from_names() {
        assert_eq!("42".parse(), Ok(VolumeRef::Id(VolumeId::from_u64(42))));
        assert_eq!("v42".parse(), Ok(VolumeRef::Name("v42".parse().unwrap())));
        assert!("042".parse::<VolumeRef>().is_err());
        assert_eq!("7".parse(), Ok(SnapshotRef::Id(SnapshotId::from_u64(7))));
        for text in ["v@monday", "7@monday"] {
            assert_eq!(text.parse::<SnapshotRef>().unwrap().to_string(), text);
        }
        assert!("v@".parse::<SnapshotRef>().is_err() && "@s".parse::<SnapshotRef>().is_err());
        let id = "af563a4d-afd7-48df-90f7-8e8f9414ff77";
        assert_eq!(id.parse(), Ok(CredentialRef::Id(id.parse().unwrap())));
        for text in ["nas", "4070", "40702532"] {
            assert!(matches!(text.parse(), Ok(CredentialRef::Name(name)) if name.as_str() == text), "{text}");
            assert!(
                matches!(text.parse(), Ok(GroupSnapshotRef::Name(name)) if name.as_str() == text),
                "{text}"
            );
        }
        assert!("4070".parse::<GroupRef>().is_err());
        assert_eq!(id.parse(), Ok(GroupRef::Id(id.parse().unwrap())));
        assert!(matches!("shop".parse(), Ok(GroupRef::Name(_))));
        assert!(id.parse::<GroupName>().is_err());
    }

    #[test]
    fn json_is_checked_as_well() {
        assert!(serde_json::from_str::<VolumeName>("\"a/b\"").is_err());
        assert_eq!(serde_json::to_string(&"v@s".parse::<SnapshotRef>().unwrap()).unwrap(), "\"v@s\"");
    }

    #[test]
    fn default_name_is_valid() {
        let name = SnapshotName::from_time("2019-01-16T21:51:53.042Z".parse().unwrap());
        assert_eq!(name.as_str(), "snap-20190116T215153.042Z");
        assert_eq!(name.as_str().parse(), Ok(name));
    }

    proptest! {
        #[test]
        fn references_round_trip(text in "\\PC{0,20}") {
            if let Ok(volume) = text.parse::<VolumeRef>() { prop_assert_eq!(volume.to_string(), text.clone()); }
            if let Ok(snapshot) = text.parse::<SnapshotRef>() { prop_assert_eq!(snapshot.to_string(), text); }
        }
    }
}
