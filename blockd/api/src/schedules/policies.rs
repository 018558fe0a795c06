//! Schedule policies.

use super::Rule;
use crate::Labels;
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
    /// Labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Body of `PATCH /v1/sched-policies/{policy}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdatePolicy {
    /// New rules for all schedules of the policy.
    pub rules: Vec<Rule>,
    /// New labels; they replace all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}
