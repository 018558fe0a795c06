//! What is to be done around one freeze: that of the request, or that of one or several rules.

use super::marker::Post;
use blockd_api::{
    RuleName,
    quiesce::{DEFAULT_COMMAND_TIMEOUT_S, OnFailure, Quiesce},
};
use blockd_extent::VolumeId;
use serde::{Deserialize, Serialize};

/// What one rule, or the request itself, wants done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The rule.
    pub rule: Option<RuleName>,
    /// What it says.
    pub quiesce: Quiesce,
    /// Because of which volumes: the filesystems of these are frozen, if any are.
    pub volumes: Vec<VolumeId>,
}

impl Part {
    /// A failure before the snapshot means that there is none.
    pub(super) fn aborts(&self) -> bool {
        self.quiesce.on_failure == OnFailure::Abort
    }

    pub(super) fn timeout_s(&self) -> u64 {
        self.quiesce.command_timeout_s.unwrap_or(DEFAULT_COMMAND_TIMEOUT_S)
    }

    /// What its commands are told.
    pub(super) fn env(&self, common: &[(String, String)], phase: &str) -> Vec<(String, String)> {
        let mut env = common.to_vec();
        env.push(("BLOCKD_PHASE".to_owned(), phase.to_owned()));
        if let Some(rule) = &self.rule {
            env.push(("BLOCKD_RULE".to_owned(), rule.to_string()));
        }
        env
    }

    /// Its command after.
    pub(super) fn post(&self, common: &[(String, String)]) -> Option<Post> {
        Some(Post {
            rule: self.rule.clone(),
            command: self.quiesce.post_command.clone()?,
            user: self.quiesce.user.clone(),
            timeout_s: self.timeout_s(),
            env: self.env(common, "post"),
        })
    }
}
