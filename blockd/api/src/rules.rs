//! Rules: what is done around a freeze, under a name that volumes, groups and schedules refer to.
//!
//! What is done around a freeze is said by the request for it, or else by its schedule's rule, or else by the
//! rules of its volumes: each has its own, or else that of its group. Of several volumes that are frozen
//! together, each rule of any of them is followed once.

use crate::{GroupName, RuleName, VolumeName, VolumeRef, quiesce::Quiesce};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Body of `POST /v1/rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CreateRule {
    /// Its name.
    pub name: RuleName,
    /// What is done.
    pub quiesce: Quiesce,
}

/// Body of `PATCH /v1/rules/{rule}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpdateRule {
    /// What is done from now on, in place of all that was.
    pub quiesce: Quiesce,
}

/// Body of `POST /v1/rules/{rule}/assign` and `unassign`: one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleTarget {
    /// A volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeRef>,
    /// A group of volumes, those that come to it later included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupName>,
}

/// A rule, and what has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookRule {
    /// Its name.
    pub name: RuleName,
    /// What is done.
    pub quiesce: Quiesce,
    /// The volumes that have it as their own.
    #[serde(default)]
    pub volumes: Vec<VolumeName>,
    /// The groups that have it.
    #[serde(default)]
    pub groups: Vec<GroupName>,
    /// The schedules that have it.
    #[serde(default)]
    pub schedules: Vec<Uuid>,
    /// Why its commands cannot be run, as the daemon found when it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Reply to `GET /v1/rules`, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleList {
    /// The rules.
    pub rules: Vec<HookRule>,
}

impl crate::Client {
    /// Makes a rule.
    pub async fn create_rule(&self, request: &CreateRule) -> Result<HookRule, crate::ClientError> {
        self.post(crate::paths::RULES, request, crate::client::CALL_TIMEOUT).await
    }

    /// The rules.
    pub async fn list_rules(&self) -> Result<RuleList, crate::ClientError> {
        self.get(crate::paths::RULES, crate::client::CALL_TIMEOUT).await
    }

    /// One rule.
    pub async fn rule(&self, name: &RuleName) -> Result<HookRule, crate::ClientError> {
        self.get(&crate::paths::rule(name), crate::client::CALL_TIMEOUT).await
    }

    /// Has a rule say something else, for all that have it.
    pub async fn update_rule(
        &self,
        name: &RuleName,
        request: &UpdateRule,
    ) -> Result<HookRule, crate::ClientError> {
        let address = crate::paths::rule(name);
        self.send(hyper::Method::PATCH, &address, request, crate::client::CALL_TIMEOUT).await
    }

    /// Deletes a rule that nothing has.
    pub async fn delete_rule(&self, name: &RuleName) -> Result<crate::Deleted, crate::ClientError> {
        self.delete(&crate::paths::rule(name)).await
    }

    /// Gives a rule to a volume or a group, in place of the one that it has.
    pub async fn assign_rule(
        &self,
        name: &RuleName,
        target: &RuleTarget,
    ) -> Result<HookRule, crate::ClientError> {
        self.post(&crate::paths::rule_assign(name), target, crate::client::CALL_TIMEOUT).await
    }

    /// Relieves a volume or a group of a rule.
    pub async fn unassign_rule(
        &self,
        name: &RuleName,
        target: &RuleTarget,
    ) -> Result<HookRule, crate::ClientError> {
        self.post(&crate::paths::rule_unassign(name), target, crate::client::CALL_TIMEOUT).await
    }
}
