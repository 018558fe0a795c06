//! Plans of changes that make a resource match its object.

use super::status::FieldChange;
use crate::objects::{Object, location_table::METADATA};
use blockd_api::{ApiError, ErrorCode};
use serde_json::Value;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Plan of an object.
#[derive(Debug)]
pub enum Plan {
    /// The resource matches.
    Unchanged,
    /// A restore keeps an existing volume that it did not make, or whose content was replaced since.
    Kept,
    /// These tasks are making it.
    Wait(Vec<Uuid>),
    /// A named dependency is being made by these tasks.
    Await(String, Vec<Uuid>),
    /// Resume tasks that ended early, beside those that run.
    Resume { ended: Vec<Uuid>, running: Vec<Uuid> },
    /// Create the resource.
    Create,
    /// Change these fields.
    Update(Vec<FieldChange>),
    /// The changes are impossible.
    Refused(Vec<FieldChange>, ApiError),
}

impl Plan {
    /// Returns the result of the plan.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Unchanged | Self::Kept => "unchanged",
            Self::Wait(_) => "under way",
            Self::Await(..) => "waiting",
            Self::Resume { .. } => "resumed",
            Self::Create => "created",
            Self::Update(_) => "configured",
            Self::Refused(..) => "refused",
        }
    }

    /// Returns the changes.
    pub fn changes(&self) -> &[FieldChange] {
        match self {
            Self::Update(changes) | Self::Refused(changes, _) => changes,
            _ => &[],
        }
    }

    /// Returns the refusal of an object.
    pub fn refused(object: &Object, code: ErrorCode, cause: &str) -> Self {
        Self::Refused(Vec::new(), ApiError::new(code, format!("{object}: {cause}")))
    }
}

/// Returns the fields that differ. With `given_only`, fields that are not given may have any value.
pub fn changes(is: &Value, should: &Value, given_only: bool) -> Vec<FieldChange> {
    compare("", Some(is), Some(should), given_only)
}

fn compare(path: &str, is: Option<&Value>, should: Option<&Value>, given_only: bool) -> Vec<FieldChange> {
    // Another or a missing prefix is another location; labels are all those of the file.
    let may_differ = path != "location.prefix" && !path.starts_with(METADATA);
    if is == should || (given_only && should.is_none() && may_differ) {
        return Vec::new();
    }
    // The daemon does not report limits that are `none`.
    if path.starts_with("location.limit") && is.is_none() && should.is_some_and(|should| should == "none") {
        return Vec::new();
    }
    let (Some(Value::Object(has)), Some(Value::Object(wants))) = (is, should) else {
        return vec![FieldChange { path: path.to_owned(), is: is.cloned(), should: should.cloned() }];
    };
    let names: BTreeSet<&String> = has.keys().chain(wants.keys()).collect();
    let inner = |name: &String| {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        compare(&path, has.get(name), wants.get(name), given_only)
    };
    names.into_iter().flat_map(inner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_listed_by_path() {
        let is = json!({ "a": { "b": 1, "c": [1, 2], "d": 4 }, "e": 5 });
        let should = json!({ "a": { "b": 1, "c": [1, 3] }, "f": 6 });
        let paths = |given_only| -> Vec<String> {
            changes(&is, &should, given_only).into_iter().map(|change| change.path).collect()
        };
        assert_eq!(paths(false), ["a.c", "a.d", "e", "f"]);
        assert_eq!(paths(true), ["a.c", "f"]);
        assert!(changes(&is, &is, false).is_empty());
    }
}
