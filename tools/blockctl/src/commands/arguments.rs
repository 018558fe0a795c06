//! Arguments of several commands.

use crate::{cloudsnap_ref::SnapRef, failure::Failure, table::Width};
use blockd_api::{CredentialRef, ObjectName};
use clap::{Args, ValueEnum};

/// Width option of a list.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct WideArg {
    /// Show all columns, with complete ids and times
    #[arg(long)]
    wide: bool,
    /// The same: -o wide
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    output: Option<ListFormat>,
}

/// Format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    /// All columns
    Wide,
}

impl WideArg {
    /// Returns the width of the table.
    pub fn width(self) -> Width {
        match self.wide || self.output == Some(ListFormat::Wide) {
            true => Width::Wide,
            false => Width::Narrow,
        }
    }
}

/// Credential option.
#[derive(Debug, Args)]
pub struct CredentialArg {
    /// Name or UUID of the credential; optional if there is one, or if only one has the cloud snapshot
    #[arg(long, visible_alias = "cr", value_name = "CREDENTIALS")]
    pub cred_id: Option<CredentialRef>,
}

/// Cloud snapshot argument.
#[derive(Debug, Args)]
pub struct SnapArg {
    /// Cloud snapshot: id, id prefix, name, VOLUME@latest or VOLUME@TIME
    #[arg(value_name = "ID", required_unless_present = "snap", conflicts_with = "snap")]
    id: Option<SnapRef>,
    /// The same, as an option
    #[arg(short, long, value_name = "ID", alias = "cloudsnap-id", short_alias = 'i')]
    snap: Option<SnapRef>,
}

impl SnapArg {
    /// Returns the cloud snapshot, from the argument or the option.
    ///
    /// # Errors
    /// Neither is given, which the parser refuses.
    pub fn snap(&self) -> Result<&SnapRef, Failure> {
        let given = self.id.as_ref().or(self.snap.as_ref());
        given.ok_or_else(|| Failure::usage("name the cloud snapshot"))
    }
}

/// Wait option.
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArg {
    /// Wait for the task and show its progress
    #[arg(long)]
    pub wait: bool,
}

impl WaitArg {
    /// Returns the width of the reported damage, with `--wait`.
    pub fn report(self) -> Option<Width> {
        self.wait.then_some(Width::Narrow)
    }
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

/// Parses the name or UUID of a schedule, or a prefix of its UUID.
pub fn parse_schedule(text: &str) -> Result<String, String> {
    match text.parse::<ObjectName>() {
        Ok(name) => Ok(name.to_string()),
        Err(_) => parse_prefix(
            text,
            "expected the name or UUID of a schedule, as `cloudsnap schedules list` shows it",
        ),
    }
}

fn parse_prefix(text: &str, expected: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let is_prefix = text.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if is_prefix && (1..=36).contains(&text.len()) { Ok(text) } else { Err(expected.to_owned()) }
}
