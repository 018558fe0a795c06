//! Arguments of several commands.

use crate::{cloudsnap_ref::SnapRef, table::Width};
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
    #[arg(value_name = "ID")]
    pub snap: SnapRef,
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
    /// Task, by an id prefix, the name of its backup or volume, or its cloud snapshot, such as VOLUME@latest
    #[arg(value_parser = parse_task_or_name)]
    pub task: String,
}

/// Parses the UUID of a task, or a prefix of it.
pub fn parse_task(text: &str) -> Result<String, String> {
    parse_prefix(text, "expected the id of a task, or a prefix of one, as `cloudsnap status` shows it")
}

/// Parses the UUID of a task, or a prefix of it, the name of a backup or volume, or a cloud snapshot.
fn parse_task_or_name(text: &str) -> Result<String, String> {
    match text.parse::<SnapRef>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => parse_task(text),
    }
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
