//! Parts of a quiesce operation: the options of the request, or those of one or several rules.

use crate::marker::Post;
use blockd_api::{
    RuleName,
    quiesce::{DEFAULT_COMMAND_TIMEOUT_SECONDS, OnFailure, Quiesce},
};
use blockd_extent::VolumeId;
use serde::{Deserialize, Serialize};

/// Quiesce options of one rule, or of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuiescePart {
    /// Rule, if any.
    pub rule: Option<RuleName>,
    /// Options.
    pub quiesce: Quiesce,
    /// Volumes whose filesystems are frozen.
    pub volumes: Vec<VolumeId>,
}

impl QuiescePart {
    /// Returns true if a failure before the snapshot aborts it.
    pub fn is_required(&self) -> bool {
        self.quiesce.on_failure == OnFailure::Abort
    }

    pub(crate) fn timeout_s(&self) -> u64 {
        self.quiesce.command_timeout_seconds.unwrap_or(DEFAULT_COMMAND_TIMEOUT_SECONDS)
    }

    /// Returns the environment of the commands.
    pub(crate) fn env(&self, common: &[(String, String)], phase: &str) -> Vec<(String, String)> {
        let mut env = common.to_vec();
        env.push(("BLOCKD_PHASE".to_owned(), phase.to_owned()));
        if let Some(rule) = &self.rule {
            env.push(("BLOCKD_RULE".to_owned(), rule.to_string()));
        }
        env
    }

    /// Returns the post-command.
    pub(crate) fn post(&self, common: &[(String, String)]) -> Option<Post> {
        Some(Post {
            rule: self.rule.clone(),
            command: self.quiesce.post_command.clone()?,
            user: self.quiesce.user.clone(),
            timeout_s: self.timeout_s(),
            env: self.env(common, "post"),
        })
    }
}
