//! Schedule policies.

use super::Rule;
pub use crate::names::PolicyName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Schedule policy; body of `POST /v1/sched-policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Name.
    pub name: PolicyName,
    /// Rules.
    pub rules: Vec<Rule>,
}

/// Body of `PATCH /v1/sched-policies/{policy}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdatePolicy {
    /// New rules for all schedules of the policy.
    pub rules: Vec<Rule>,
}
