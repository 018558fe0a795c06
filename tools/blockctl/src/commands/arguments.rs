//! Arguments of several commands.

use blockd_api::CredentialRef;
use clap::Args;

/// Credential option.
#[derive(Debug, Args)]
pub struct CredentialArg {
    /// Name or UUID of the credential; optional if there is one, or if only one has the cloud snapshot
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Option<CredentialRef>,
}

/// Wait option.
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArg {
    /// Wait for the task and show its progress
    #[arg(long)]
    pub wait: bool,
}

/// Task argument.
#[derive(Debug, Args)]
pub struct TaskArg {
    /// Task, by an id prefix
    #[arg(value_name = "TASK", required_unless_present = "name", conflicts_with = "name", value_parser = parse_task)]
    task: Option<String>,
    /// The same, as an option
    #[arg(short, long, value_name = "TASK", value_parser = parse_task)]
    name: Option<String>,
}

impl TaskArg {
    /// Returns the id prefix, from the argument or the option; the parser requires one.
    pub fn name(&self) -> Option<&str> {
        self.task.as_deref().or(self.name.as_deref())
    }
}

/// Parses the UUID of a task, or a prefix of it.
pub fn parse_task(text: &str) -> Result<String, String> {
    parse_prefix(text, "expected the id of a task, or a prefix of one, as `cloudsnap status` shows it")
}

/// Parses the UUID of a schedule, or a prefix of it.
pub fn parse_uuid(text: &str) -> Result<String, String> {
    parse_prefix(text, "expected the UUID of a schedule, as `cloudsnap schedules list` shows it")
}

fn parse_prefix(text: &str, expected: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let is_prefix = text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if is_prefix && (1..=36).contains(&text.len()) { Ok(text) } else { Err(expected.to_owned()) }
}
