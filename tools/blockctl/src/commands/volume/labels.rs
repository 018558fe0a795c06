//! Changes of the labels of a volume.

use crate::failure::Failure;
use blockd_api::{
    Labels,
    anomalies::{ANOMALY_POLICY, AnomalyPolicy},
};
use std::collections::BTreeMap;

/// Returns the labels of several options; the last one of a key wins.
///
/// # Errors
/// They are too many.
pub fn merged(options: &[Labels]) -> Result<Labels, Failure> {
    let all = options.iter().flat_map(|labels| labels.as_map().clone()).collect::<BTreeMap<_, _>>();
    Labels::try_from(all).map_err(|error| Failure::usage(error.to_string()))
}

/// Refuses an anomaly policy beside a label that sets or removes it.
///
/// # Errors
/// Both are given.
pub fn refuse_second_policy<'a>(
    mut keys: impl Iterator<Item = &'a str>,
    policy: Option<AnomalyPolicy>,
) -> Result<(), Failure> {
    match policy.is_some() && keys.any(|key| key == ANOMALY_POLICY) {
        true => {
            Err(Failure::usage(format!("--anomaly-policy and --label {ANOMALY_POLICY} exclude each other")))
        }
        false => Ok(()),
    }
}

/// Returns the labels with that of an anomaly policy.
///
/// # Errors
/// They are too many.
pub fn with_policy(labels: Labels, policy: Option<AnomalyPolicy>) -> Result<Labels, Failure> {
    let Some(policy) = policy else { return Ok(labels) };
    let mut map = labels.as_map().clone();
    map.insert(ANOMALY_POLICY.to_owned(), policy.to_string());
    Labels::try_from(map).map_err(|error| Failure::usage(error.to_string()))
}

/// Changes of single labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelChanges(Vec<(String, Option<String>)>);

impl LabelChanges {
    /// Returns the keys of the changed labels.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }

    /// Returns labels with these changes.
    pub fn applied_to(&self, labels: &Labels) -> Result<Labels, blockd_api::PairsError> {
        let mut map = labels.as_map().clone();
        for (key, value) in &self.0 {
            match value {
                Some(value) => drop(map.insert(key.clone(), value.clone())),
                None => drop(map.remove(key)),
            }
        }
        Labels::try_from(map)
    }
}

impl std::str::FromStr for LabelChanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let change = |part: &str| match part.strip_prefix('-') {
            Some(key) if !key.is_empty() && !key.contains('=') => Ok((key.to_owned(), None)),
            Some(_) => Err(format!("{part}: expected -KEY")),
            None => {
                let pair = part.strip_prefix('+').unwrap_or(part).split_once('=');
                let (key, value) = pair.ok_or_else(|| format!("{part}: expected KEY=VALUE or -KEY"))?;
                Ok((key.to_owned(), Some(value.to_owned())))
            }
        };
        text.split(',').map(|part| change(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anomaly_policy_is_given_once() {
        let changes: LabelChanges = "tier=web,-anomaly-policy".parse().unwrap();
        assert!(refuse_second_policy(changes.keys(), Some(AnomalyPolicy::Off)).is_err());
        assert!(refuse_second_policy(changes.keys(), None).is_ok());
        assert!(refuse_second_policy(["tier"].into_iter(), Some(AnomalyPolicy::Off)).is_ok());
    }

    #[test]
    fn label_changes_keep_other_labels() {
        let labels: Labels = "app=shop,tier=db".parse().unwrap();
        for (changes, expected) in [
            ("tier=web", "app=shop,tier=web"),
            ("+zone=a,-app", "tier=db,zone=a"),
            ("-none", "app=shop,tier=db"),
            ("-app,-tier", ""),
        ] {
            let changes: LabelChanges = changes.parse().unwrap();
            assert_eq!(changes.applied_to(&labels).unwrap().to_string(), expected);
        }
        for bad in ["", "app", "-", "-app=shop", "a=b,,"] {
            assert!(bad.parse::<LabelChanges>().is_err(), "{bad}");
        }
        assert!("=x".parse::<LabelChanges>().unwrap().applied_to(&labels).is_err());
    }
}
