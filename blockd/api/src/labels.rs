//! Labels: `key=value` pairs, separated by commas as text, a map in JSON.

use crate::text::as_text;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, iter, str::FromStr};

/// Maximum number of labels.
pub const MAX_PAIRS: usize = 64;
/// Maximum length of a key, in bytes.
pub const MAX_KEY_BYTES: usize = 128;
/// Maximum length of a value, in bytes.
pub const MAX_VALUE_BYTES: usize = 256;

/// Invalid list of pairs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PairsError {
    /// A pair without `=`.
    #[error("{pair:?} is not a pair: expected key=value, several separated by commas")]
    NotAPair {
        /// Given pair.
        pair: String,
    },
    /// A pair with an empty key.
    #[error("{pair:?} has no key: expected key=value")]
    EmptyKey {
        /// Given pair.
        pair: String,
    },
    /// Duplicate key.
    #[error("the label {key:?} is given twice")]
    Twice {
        /// Key.
        key: String,
    },
    /// Key or value too long.
    #[error("the {what} of label {key:?} is {len_bytes} bytes long: at most {max_bytes} are allowed")]
    TooLong {
        /// Half of the pair.
        what: &'static str,
        /// Key.
        key: String,
        /// Length in bytes.
        len_bytes: usize,
        /// Maximum, in bytes.
        max_bytes: usize,
    },
    /// Comma, equals sign in a key, or control character.
    #[error("the label {key:?} has the character {found:?}, which labels must not contain")]
    BadCharacter {
        /// Key.
        key: String,
        /// Character.
        found: char,
    },
    /// Too many pairs.
    #[error("{count} labels are too many: at most {MAX_PAIRS} are allowed")]
    TooMany {
        /// Given number.
        count: usize,
    },
}

/// Label of a restored volume: the cloud snapshot whose content it has. The client that restores the volume
/// sets it; the daemon removes it when other content replaces this one.
pub const RESTORED_FROM: &str = "restored-from";
/// Label of a restored volume: the object that restored it.
pub const RESTORED_BY: &str = "restored-by";
/// Label of a restored volume: the objects that restored it before, the newest first, separated by colons.
/// The daemon adds one when the restore of another object replaces its content.
pub const RESTORED_BEFORE: &str = "restored-before";
/// Label of a cloned volume: `SOURCE@SNAPSHOT`.
pub const CLONED_FROM: &str = "cloned-from";
/// Label of a cloned volume: the object that cloned it.
pub const CLONED_BY: &str = "cloned-by";
/// Label of a cloned volume: the deleted object that cloned it. An object of this name takes it back.
pub const CLONED_BEFORE: &str = "cloned-before";
/// Labels on the origin of a volume. Its cloud snapshots do not have them: they are untrue for what is
/// restored from these.
pub const ORIGIN_LABELS: [&str; 6] =
    [RESTORED_FROM, RESTORED_BY, RESTORED_BEFORE, CLONED_FROM, CLONED_BY, CLONED_BEFORE];

/// Label that excludes a volume from schedules of all volumes: `backup=none`.
pub const EXCLUDED: (&str, &str) = ("backup", "none");

/// Separator of names in a label; a comma separates labels.
const SEPARATOR: &str = ":";

/// Labels of a volume, ordered by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// Returns the pairs.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Returns true if there are no labels.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns these labels with those of `over` added or replaced.
    #[must_use]
    pub fn overlaid_by(mut self, over: &Self) -> Self {
        self.0.extend(over.0.iter().map(|(key, value)| (key.clone(), value.clone())));
        self
    }

    /// Returns these labels without those of some keys.
    #[must_use]
    pub fn without(mut self, keys: &[&str]) -> Self {
        self.0.retain(|key, _| !keys.contains(&key.as_str()));
        self
    }

    /// Returns the labels of a volume whose content an in-place restore replaces, which sets `next` at its
    /// end. The object of the last restore becomes an earlier one, unless `next` names the same: a restore
    /// that is abandoned half done has not happened. A restore without an object leaves it known.
    ///
    /// # Errors
    /// The names of earlier objects are too long: without one of them, its restore would happen again.
    pub fn replaced_by(mut self, next: &Self) -> Result<Self, PairsError> {
        self.0.remove(RESTORED_FROM);
        let Some(next) = next.0.get(RESTORED_BY) else { return Ok(self) };
        if let Some(last) = self.0.remove(RESTORED_BY).filter(|last| last != next) {
            let earlier = self.restored_before().filter(|name| *name != last);
            let names: Vec<&str> = iter::once(last.as_str()).chain(earlier).collect();
            let names = names.join(SEPARATOR);
            self.0.insert(RESTORED_BEFORE.to_owned(), names);
        }
        Self::try_from(self.0)
    }

    /// Returns the names of the objects that restored a volume before the last one, the newest first.
    pub fn restored_before(&self) -> impl Iterator<Item = &str> {
        self.0.get(RESTORED_BEFORE).into_iter().flat_map(|names| names.split(SEPARATOR))
    }

    /// Returns the labels of a volume without the name of an object that restored it.
    #[must_use]
    pub fn without_restore(mut self, name: &str) -> Self {
        self.0.retain(|key, value| key != RESTORED_BY || value != name);
        let left: Vec<&str> = self.restored_before().filter(|one| *one != name).collect();
        match left.join(SEPARATOR) {
            left if left.is_empty() => self.without(&[RESTORED_BEFORE]),
            left => {
                self.0.insert(RESTORED_BEFORE.to_owned(), left);
                self
            }
        }
    }

    /// Returns true if schedules of all volumes leave out a volume with these labels.
    pub fn is_excluded(&self) -> bool {
        let (key, value) = EXCLUDED;
        self.0.get(key).is_some_and(|given| given == value)
    }

    /// Returns true if all pairs of the selector are present.
    pub fn matches(&self, selector: &LabelSelector) -> bool {
        selector.0.0.iter().all(|(key, value)| self.0.get(key) == Some(value))
    }
}

fn check_pair(key: &str, value: &str) -> Result<(), PairsError> {
    if key.is_empty() {
        return Err(PairsError::EmptyKey { pair: format!("={value}") });
    }
    for (what, text, max_bytes) in [("key", key, MAX_KEY_BYTES), ("value", value, MAX_VALUE_BYTES)] {
        if text.len() > max_bytes {
            return Err(PairsError::TooLong { what, key: key.to_owned(), len_bytes: text.len(), max_bytes });
        }
    }
    let in_key = key.chars().find(|c| *c == ',' || *c == '=' || c.is_control());
    let in_value = value.chars().find(|c| *c == ',' || c.is_control());
    match in_key.or(in_value) {
        Some(found) => Err(PairsError::BadCharacter { key: key.to_owned(), found }),
        None => Ok(()),
    }
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = PairsError;
    fn try_from(map: BTreeMap<String, String>) -> Result<Self, PairsError> {
        if map.len() > MAX_PAIRS {
            return Err(PairsError::TooMany { count: map.len() });
        }
        map.iter().try_for_each(|(key, value)| check_pair(key, value))?;
        Ok(Self(map))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0
    }
}

impl FromStr for Labels {
    type Err = PairsError;

    /// Parses `key=value,key=value`; spaces around a pair are dropped, and an empty text is no labels.
    fn from_str(text: &str) -> Result<Self, PairsError> {
        let mut map = BTreeMap::new();
        if text.trim().is_empty() {
            return Ok(Self(map));
        }
        for pair in text.split(',').map(str::trim) {
            let not_a_pair = || PairsError::NotAPair { pair: pair.to_owned() };
            let (key, value) = pair.split_once('=').ok_or_else(not_a_pair)?;
            if map.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(PairsError::Twice { key: key.to_owned() });
            }
        }
        Self::try_from(map)
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, (key, value)) in self.0.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// Required pairs of selected labels; text in a query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelSelector(Labels);

impl LabelSelector {
    /// Returns the required pairs.
    pub fn labels(&self) -> &Labels {
        &self.0
    }
}

impl FromStr for LabelSelector {
    type Err = PairsError;
    fn from_str(text: &str) -> Result<Self, PairsError> {
        text.parse().map(Self)
    }
}

as_text!(LabelSelector);

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overlaid_labels_replace_equal_keys() {
        let labels = |text: &str| text.parse::<Labels>().unwrap();
        assert_eq!(labels("a=1,b=2").overlaid_by(&labels("b=3,c=4")), labels("a=1,b=3,c=4"));
    }

    #[test]
    fn earlier_restores_of_a_volume_stay_known() {
        let labels = |text: &str| text.parse::<Labels>().unwrap();
        let next = labels("restored-by=r3,restored-from=c");
        for (was, is) in [
            ("app=db", "app=db"),
            ("restored-by=r1,restored-from=a", "restored-before=r1"),
            ("restored-before=r1,restored-by=r2,restored-from=b", "restored-before=r2:r1"),
            ("restored-before=r2:r1,restored-by=r1", "restored-before=r1:r2"),
            // It did not happen before its end.
            ("restored-before=r2:r1,restored-by=r3,restored-from=c", "restored-before=r2:r1"),
            ("restored-before=r2:r1", "restored-before=r2:r1"),
        ] {
            assert_eq!(labels(was).replaced_by(&next).unwrap(), labels(is), "{was}");
        }
        let without_object = labels("restored-by=r1,restored-from=a").replaced_by(&Labels::default());
        assert_eq!(without_object.unwrap(), labels("restored-by=r1"));
        let long = "x".repeat(128);
        let full = labels(&format!("restored-before={long},restored-by={long}2"));
        assert!(matches!(full.replaced_by(&next), Err(PairsError::TooLong { max_bytes: 256, .. })));

        let made = labels("restored-before=r2:r1,restored-by=r3,restored-from=c");
        for (name, is) in [
            ("r1", "restored-before=r2,restored-by=r3,restored-from=c"),
            ("r3", "restored-before=r2:r1,restored-from=c"),
            ("r", "restored-before=r2:r1,restored-by=r3,restored-from=c"),
        ] {
            assert_eq!(made.clone().without_restore(name), labels(is), "{name}");
        }
        assert_eq!(labels("restored-before=r1").without_restore("r1"), Labels::default());
    }

    #[test]
    fn pairs_are_parsed() {
        let labels: Labels = "app=mysql, tier=db,note=a=b,empty=".parse().unwrap();
        assert_eq!(labels.to_string(), "app=mysql,empty=,note=a=b,tier=db");
        assert!("".parse::<Labels>().unwrap().is_empty());
    }

    #[test]
    fn invalid_pair_is_refused() {
        let message = |text: &str| text.parse::<Labels>().unwrap_err().to_string();
        assert_eq!(message("app"), "\"app\" is not a pair: expected key=value, several separated by commas");
        assert_eq!(message("a=1,"), "\"\" is not a pair: expected key=value, several separated by commas");
        assert_eq!(message("=x"), "\"=x\" has no key: expected key=value");
        assert_eq!(message("a=1,a=2"), "the label \"a\" is given twice");
        assert!(message(&format!("{}=1", "k".repeat(129))).contains("at most 128"));
        let many: Vec<String> = (0..65).map(|n| format!("k{n}=v")).collect();
        assert_eq!(message(&many.join(",")), "65 labels are too many: at most 64 are allowed");
        assert!(serde_json::from_str::<Labels>("{\"a,b\":\"c\"}").is_err());
        assert!(serde_json::from_str::<Labels>("{\"a\":\"c\\u0000\"}").is_err());
    }

    #[test]
    fn selector_requires_all_pairs() {
        let labels: Labels = "app=mysql,tier=db".parse().unwrap();
        for (selector, chosen) in
            [("", true), ("app=mysql", true), ("tier=db,app=mysql", true), ("app=x", false), ("x=y", false)]
        {
            assert_eq!(labels.matches(&selector.parse().unwrap()), chosen, "{selector}");
        }
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(text in "([a-c]{1,2}=[a-z=]{0,3},?){0,4}") {
            if let Ok(labels) = text.parse::<Labels>() {
                prop_assert_eq!(&labels.to_string().parse::<Labels>().unwrap(), &labels);
                let json = serde_json::to_string(&labels).unwrap();
                prop_assert_eq!(serde_json::from_str::<Labels>(&json).unwrap(), labels);
            }
        }
    }
}
