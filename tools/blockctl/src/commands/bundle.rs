//! `blockctl support-bundle`: what somebody needs who is to find out what is wrong, and no secrets.

use super::Context;
use crate::{
    cli::events::BundleArgs,
    failure::{EXIT_DONE, Failure},
};
use blockd_api::{
    ClientError,
    events::{ListEvents, MAX_EVENTS},
    schedules::ListRuns,
    snapshots::ListSnapshots,
    tasks::ListTasks,
    volumes::ListVolumes,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{fs::OpenOptions, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

/// Runs of schedules that are told of.
const MAX_RUNS: u32 = 1_000;
/// What stands in place of a secret.
const REMOVED: &str = "(removed)";
/// Fields with one of these in their name hold secrets. blockd sends none; this is for the day on which one slips in.
const SECRET: [&str; 8] =
    ["secret", "password", "passphrase", "token", "signature", "privatekey", "accountkey", "accesskey"];

pub async fn run(context: &Context<'_>, args: BundleArgs) -> Result<u8, Failure> {
    let client = &context.client;
    let mut parts = Map::new();
    parts.insert("made".into(), json!(Timestamp::now()));
    parts.insert("blockctl".into(), json!(env!("CARGO_PKG_VERSION")));
    let status = client.status().await?;
    parts.insert("status".into(), part(Ok(status)));
    parts.insert("volumes".into(), part(client.list_volumes(&ListVolumes::default()).await));
    parts.insert("snapshots".into(), part(client.list_snapshots(&ListSnapshots::default()).await));
    parts.insert("credentials".into(), part(client.list_credentials().await));
    parts.insert("tasks".into(), part(client.list_tasks(&ListTasks::default()).await));
    parts.insert("schedules".into(), part(client.list_schedules().await));
    parts.insert("policies".into(), part(client.list_policies().await));
    let runs = ListRuns { max: Some(MAX_RUNS), ..ListRuns::default() };
    parts.insert("runs".into(), part(client.list_runs(&runs).await));
    let events = ListEvents { max: Some(MAX_EVENTS), ..ListEvents::default() };
    parts.insert("events".into(), part(client.list_events(&events).await));
    parts.insert("mounts".into(), part(client.list_mounts().await));
    parts.insert("metrics".into(), part(client.metrics_text().await));
    let mut bundle = Value::Object(parts);
    clean(&mut bundle);
    write(&args.output, &bundle).map_err(|source| Failure::Write { path: args.output.clone(), source })?;
    let line = format!("Support bundle written to {}", args.output.display());
    match context.output.is_json() {
        true => context.output.document(&json!({ "path": args.output }))?,
        false => context.output.line(line)?,
    }
    Ok(EXIT_DONE)
}

/// A part, or why it cannot be had.
fn part<T: Serialize>(answer: Result<T, ClientError>) -> Value {
    let failed = |error: String| json!({ "error": error });
    match answer {
        Ok(answer) => serde_json::to_value(answer).unwrap_or_else(|error| failed(error.to_string())),
        Err(error) => failed(error.to_string()),
    }
}

/// Takes out whatever looks like a secret.
fn clean(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // What commands are and say may hold anything.
            let kind = fields.get("kind").and_then(Value::as_str);
            if kind.is_some_and(|kind| ["pre-command", "post-command"].contains(&kind)) {
                for name in ["target", "error", "output"] {
                    if let Some(text @ Value::String(_)) = fields.get_mut(name) {
                        *text = REMOVED.into();
                    }
                }
            }
            for (name, value) in fields {
                let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
                let name = name.to_ascii_lowercase();
                match value {
                    Value::String(text) if SECRET.iter().any(|word| name.contains(word)) => {
                        *text = REMOVED.into();
                    }
                    value => clean(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(clean),
        Value::String(text) => {
            if let Some(cleaned) = without_user(text) {
                *text = cleaned;
            }
        }
        _ => {}
    }
}

/// Addresses without the user and password before their host; none if there are none.
fn without_user(text: &str) -> Option<String> {
    let mut words = Vec::new();
    let mut found = false;
    for word in text.split(' ') {
        let parts = word.split_once("://").and_then(|(scheme, rest)| {
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let (user, _) = authority.rsplit_once('@')?;
            Some(format!("{scheme}://{REMOVED}@{}", &rest[user.len() + 1..]))
        });
        found |= parts.is_some();
        words.push(parts.unwrap_or_else(|| word.to_owned()));
    }
    found.then(|| words.join(" "))
}

fn write(path: &Path, bundle: &Value) -> std::io::Result<()> {
    let mut text = serde_json::to_vec_pretty(bundle)?;
    text.push(b'\n');
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_taken_out_wherever_it_is() {
        let mut bundle = json!({
            "credentials": [
                { "name": "nas", "s3SecretKey": "planted-1", "encryption_passphrase": "planted-2", "encryption": true },
                { "proxy": "http://me:planted-3@proxy.example:8080/x", "azure-account-key": "planted-4", "s3AccessKey": "planted-5" },
            ],
            "tasks": [{ "error": "PUT x at https://u:planted-6@s.example/b: refused", "nested": { "authToken": "planted-7" } }],
            "steps": [{ "kind": "pre-command", "target": "x -p planted-8", "error": "planted-9", "output": "planted-0", "exitStatus": 3 }],
            "volumes": [{ "name": "secretary", "labels": { "app": "mail@example" } }],
        });
        clean(&mut bundle);
        let text = bundle.to_string();
        assert!(!text.contains("planted"), "{text}");
        for kept in
            ["\"nas\"", "secretary", "proxy.example:8080/x", "mail@example", "s.example/b: refused", "true"]
        {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
    }

    #[test]
    fn a_file_that_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle");
        write(&path, &json!({})).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        assert!(write(&path, &json!({ "a": 1 })).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{}\n");
    }
}
