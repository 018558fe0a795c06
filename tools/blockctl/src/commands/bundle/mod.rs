//! `blockctl support-bundle`: diagnostics without secrets.
//!
//! It is needed most when the daemon does not answer: each part is collected independently, and the host's
//! part, with the daemon's log, needs no daemon.

mod clean;
mod host;

use super::events::BundleArgs;
use crate::{
    failure::{Exit, Failure},
    output::Context,
};
use blockd_api::{
    Client, ClientError, Document,
    events::{ListEvents, MAX_EVENTS},
    operations,
    schedules::ListRuns,
    snapshots::ListSnapshots,
    tasks::ListTasks,
    volumes::ListVolumes,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{
    fs::OpenOptions,
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Maximum number of schedule runs in a bundle.
const MAX_RUNS: u32 = 1_000;
pub async fn run(context: &Context<'_>, args: BundleArgs) -> Exit {
    let client = &context.client;
    let is_stdout = args.output.as_os_str() == "-";
    if is_stdout && io::stdout().is_terminal() {
        return Err(Failure::Usage {
            message: "a support bundle is long, and stdout is a terminal".to_owned(),
            hint: Some("name a file (--output FILE), or send it somewhere (--output - > FILE)".to_owned()),
        });
    }
    let mut parts = Map::new();
    parts.insert("createdAt".into(), json!(Timestamp::now()));
    parts.insert("blockctlVersion".into(), json!(env!("CARGO_PKG_VERSION")));
    if let Some(socket) = client.endpoint().socket() {
        let data_dir = socket.parent().unwrap_or(socket).to_owned();
        // Both read the host only and can block.
        let config = args.config.clone();
        let told = tokio::task::spawn_blocking(move || {
            (host::describe(&data_dir), host::config(&config), host::journal(args.log_lines))
        });
        if let Ok((host, config, log)) = told.await {
            parts.insert("host".into(), host);
            parts.insert("config".into(), config);
            parts.insert("log".into(), log);
        }
    }
    let status = client.call(operations::GET_STATUS, &()).await;
    if let Err(error) = &status {
        context.output.note(format!("warning: {error}: the bundle describes only this host"));
    }
    let is_there = status.is_ok();
    parts.insert("status".into(), part(status));
    if is_there {
        ask_daemon(client, &mut parts).await;
    }
    let mut bundle = Value::Object(parts);
    clean::clean(&mut bundle);
    if is_stdout {
        return context.output.document(&bundle);
    }
    write(&args.output, &bundle).map_err(|source| Failure::Write { path: args.output.clone(), source })?;
    let line = format!("Support bundle written to {}", args.output.display());
    context.output.tell(&json!({ "path": args.output, "daemon": is_there }), || line)
}

/// Collects the daemon's parts.
async fn ask_daemon(client: &Client, parts: &mut Map<String, Value>) {
    parts
        .insert("volumes".into(), part(client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await));
    parts.insert(
        "snapshots".into(),
        part(client.call(operations::LIST_SNAPSHOTS, &ListSnapshots::default()).await),
    );
    parts.insert("credentials".into(), part(client.call(operations::LIST_CREDENTIALS, &()).await));
    parts.insert("tasks".into(), part(client.call(operations::LIST_TASKS, &ListTasks::default()).await));
    parts.insert("schedules".into(), part(client.call(operations::LIST_SCHEDULES, &()).await));
    parts.insert("policies".into(), part(client.call(operations::LIST_POLICIES, &()).await));
    let runs = ListRuns { max: Some(MAX_RUNS), ..ListRuns::default() };
    parts.insert("runs".into(), part(client.call(operations::LIST_RUNS, &runs).await));
    let events = ListEvents { max: Some(MAX_EVENTS), ..ListEvents::default() };
    parts.insert("events".into(), part(client.call(operations::LIST_EVENTS, &events).await));
    parts.insert("mounts".into(), part(client.call(operations::LIST_MOUNTS, &()).await));
    parts.insert("metrics".into(), part(client.call(operations::GET_METRICS, &()).await));
    parts.insert("rules".into(), part(client.call(operations::LIST_RULES, &()).await));
}

/// Converts a part, or the reason for its absence.
fn part<T: Serialize>(answer: Result<T, ClientError>) -> Value {
    let failed = |error: String| json!({ "error": error });
    match answer {
        Ok(answer) => serde_json::to_value(answer).unwrap_or_else(|error| failed(error.to_string())),
        Err(error) => failed(error.to_string()),
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
