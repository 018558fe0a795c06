//! `blockctl support-bundle`: diagnostics without secrets.
//!
//! It is needed most when the daemon does not answer: each part is collected independently, and the host's
//! part, with the daemon's log, needs no daemon.

mod clean;
mod host;

use self::host::BundledConfig;
use super::events::BundleArgs;
use crate::{
    failure::{Exit, Failure},
    output::Context,
};
use blockd_api::{
    Client, Document, List,
    browse::BrowseMount,
    credentials::Credential,
    events::{Event, ListEvents, MAX_EVENTS},
    operations,
    rules::HookRule,
    schedules::{ListRuns, Policy, Run, ScheduleList},
    snapshots::{ListSnapshots, Snapshot},
    status::Status,
    tasks::{ListTasks, Task},
    volumes::{ListVolumes, Volume},
};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Maximum number of schedule runs in a bundle.
const MAX_RUNS: u32 = 1_000;

/// Part of a bundle, or the reason for its absence.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Part<T> {
    /// Content.
    Found(T),
    /// It could not be collected.
    Failed {
        /// Cause.
        error: String,
    },
}

impl<T, E: ToString> From<Result<T, E>> for Part<T> {
    fn from(found: Result<T, E>) -> Self {
        found.map_or_else(|error| Self::Failed { error: error.to_string() }, Self::Found)
    }
}

/// Support bundle: state of host and daemon without secrets, which are replaced by `(removed)`.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// Time of the collection.
    created_at: Timestamp,
    /// Version of `blockctl`.
    blockctl_version: String,
    /// Parts of this host; not of a remote daemon.
    #[serde(flatten)]
    local: Option<LocalParts>,
    /// Status of the daemon.
    status: Part<Status>,
    /// Other parts of a daemon that replies.
    #[serde(flatten)]
    daemon: Option<DaemonParts>,
}

/// Parts of the host.
#[derive(Debug, Serialize, JsonSchema)]
struct LocalParts {
    /// Files of the host by path, and the space at the data directory.
    host: BTreeMap<String, String>,
    /// Configuration of the daemon.
    config: BundledConfig,
    /// Newest lines of the daemon's log by field; null if none were requested.
    log: Option<Part<Vec<Map<String, Value>>>>,
}

/// Parts of the daemon besides its status.
#[derive(Debug, Serialize, JsonSchema)]
struct DaemonParts {
    volumes: Part<List<Volume>>,
    snapshots: Part<List<Snapshot>>,
    credentials: Part<List<Credential>>,
    tasks: Part<List<Task>>,
    schedules: Part<ScheduleList>,
    policies: Part<List<Policy>>,
    runs: Part<List<Run>>,
    events: Part<List<Event>>,
    mounts: Part<List<BrowseMount>>,
    /// Metrics as text.
    metrics: Part<String>,
    rules: Part<List<HookRule>>,
}

/// Document of a bundle that is written to a file.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BundleWritten {
    /// The file.
    path: PathBuf,
    /// The daemon replied.
    daemon: bool,
}

/// Runs `support-bundle`.
pub async fn run(context: &Context<'_>, args: BundleArgs) -> Exit {
    let client = &context.client;
    let is_stdout = args.output.as_os_str() == "-";
    if is_stdout && io::stdout().is_terminal() {
        return Err(Failure::usage("a support bundle is long, and stdout is a terminal")
            .with_hint("name a file (--output FILE), or send it somewhere (--output - > FILE)"));
    }
    let created_at = Timestamp::now();
    let mut local = None;
    if let Some(socket) = client.endpoint().socket() {
        let data_dir = socket.parent().unwrap_or(socket).to_owned();
        // All read the host only and can block.
        let config = args.config.clone();
        let collect = move || LocalParts {
            host: host::describe(&data_dir),
            config: host::config(&config),
            log: host::journal(args.log_lines).map(Part::from),
        };
        local = tokio::task::spawn_blocking(collect).await.ok();
    }
    let status = client.call(operations::GET_STATUS, &()).await;
    if let Err(error) = &status {
        context.output.note(format!("warning: {error}: the bundle describes only this host"));
    }
    let is_there = status.is_ok();
    let daemon = if is_there { Some(ask_daemon(client).await) } else { None };
    let blockctl_version = env!("CARGO_PKG_VERSION").to_owned();
    let bundle = Bundle { created_at, blockctl_version, local, status: status.into(), daemon };
    let mut bundle = serde_json::to_value(bundle).map_err(Failure::stdout)?;
    clean::clean(&mut bundle);
    if is_stdout {
        return context.output.document(&bundle);
    }
    write(&args.output, &bundle).map_err(|source| Failure::write(&args.output, source))?;
    let line = format!("Support bundle written to {}", args.output.display());
    context.output.tell(&BundleWritten { path: args.output, daemon: is_there }, || line)
}

/// Collects the daemon's parts.
async fn ask_daemon(client: &Client) -> DaemonParts {
    let runs = ListRuns { max: Some(MAX_RUNS), ..ListRuns::default() };
    let events = ListEvents { max: Some(MAX_EVENTS), ..ListEvents::default() };
    DaemonParts {
        volumes: client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await.into(),
        snapshots: client.call(operations::LIST_SNAPSHOTS, &ListSnapshots::default()).await.into(),
        credentials: client.call(operations::LIST_CREDENTIALS, &()).await.into(),
        tasks: client.call(operations::LIST_TASKS, &ListTasks::default()).await.into(),
        schedules: client.call(operations::LIST_SCHEDULES, &()).await.into(),
        policies: client.call(operations::LIST_POLICIES, &()).await.into(),
        runs: client.call(operations::LIST_RUNS, &runs).await.into(),
        events: client.call(operations::LIST_EVENTS, &events).await.into(),
        mounts: client.call(operations::LIST_MOUNTS, &()).await.into(),
        metrics: client.call(operations::GET_METRICS, &()).await.into(),
        rules: client.call(operations::LIST_RULES, &()).await.into(),
    }
}

fn write(path: &Path, bundle: &Value) -> std::io::Result<()> {
    let mut text = serde_json::to_vec_pretty(&Document::new(bundle))?;
    text.push(b'\n');
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(&text).and_then(|()| file.sync_all());
    if written.is_err() {
        // A partial file is useless and would block the next attempt.
        let _ = std::fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bundle_to_existing_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle");
        write(&path, &json!({})).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert!(write(&path, &json!({ "a": 1 })).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\n  \"schemaVersion\": 1\n}\n");
    }
}
