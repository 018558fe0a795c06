//! Kinds of Velero.

use super::native::{MAPPING, Selection};
use crate::objects::{
    document::{Document, Problem},
    secret::decode_base64,
    values::parse_ttl,
};
use serde_json::{Value, json};

pub const GROUP: &str = "velero.io";

/// Field of a restore with the action on existing volumes, and its value that replaces them.
pub const EXISTING_POLICY: &str = "existingResourcePolicy";
pub const UPDATE: &str = "update";
/// Time that a backup is kept by default.
const DEFAULT_TTL: &str = "720h0m0s";

/// Warns about hooks.
fn ignore_hooks(document: &mut Document, path: &str) {
    if document.get(path).is_some() {
        let message = "ignored: hooks run in pods; write a Rule and name it in preExecRule of a VolumeBackup";
        document.warn(path, message);
        document.remove(path);
    }
}

pub fn backup(document: &mut Document, mut native: Document, _: &str) -> Result<Vec<Document>, Problem> {
    ignore_hooks(document, "spec.hooks");
    native.set_default("spec.ttl", DEFAULT_TTL.into(), "spec.ttl");
    selection(document, "spec")?.set(&mut native, "spec");
    Ok(vec![native])
}

fn selection(document: &mut Document, spec: &str) -> Result<Selection, Problem> {
    let labels = format!("{spec}.labelSelector.matchLabels");
    let namespaces = format!("{spec}.includedNamespaces");
    // The namespace of a document is that of the server.
    let has_labels = document.get(&labels).is_some_and(|given| *given != json!({}));
    if document.get(&namespaces).is_none() && !has_labels {
        document.set(&namespaces, json!([]), &namespaces);
    }
    let mut found = Selection::take(document, &namespaces, &labels)?;
    if !found.namespaces.is_empty() {
        let excluded = document.take_texts(&format!("{spec}.excludedNamespaces"))?.unwrap_or_default();
        found.namespaces.retain(|one| !excluded.contains(one));
        if found.namespaces.is_empty() {
            return Err(document.problem(&namespaces, "all of them are excluded"));
        }
    }
    Ok(found)
}

/// Volumes keep their namespaces, unless they are mapped.
pub fn restore(document: &mut Document, mut native: Document, _: &str) -> Result<Vec<Document>, Problem> {
    let volumes = selection(document, "spec")?;
    let selectors = volumes.selectors();
    if !selectors.is_empty() {
        native.set("spec.selectors", selectors.into(), &volumes.field);
    }
    document.move_all(&mut native, "spec.excludedNamespaces");
    let path = format!("spec.{EXISTING_POLICY}");
    let is_update = document.take_text(&path)?.as_deref() == Some(UPDATE);
    native.set("spec.replacePolicy", if is_update { "Delete" } else { "Retain" }.into(), &path);
    native.set_default(MAPPING, json!({}), MAPPING);
    Ok(vec![native])
}

pub fn schedule(document: &mut Document, mut native: Document, name: &str) -> Result<Vec<Document>, Problem> {
    ignore_hooks(document, "spec.template.hooks");
    let Some(cron) = document.take_text("spec.schedule")? else {
        return Err(document.problem("spec.schedule", "missing"));
    };
    let ttl = document.take_text("spec.template.ttl")?.unwrap_or_else(|| DEFAULT_TTL.to_owned());
    parse_ttl(&ttl).map_err(|error| document.problem("spec.template.ttl", error))?;
    let zoned = cron.strip_prefix("CRON_TZ=").and_then(|rest| rest.split_once(' '));
    let expression = zoned.map_or(cron.as_str(), |(_, expression)| expression);
    let rule = match (expression.strip_prefix("@every "), zoned) {
        (Some(every), _) => {
            let minutes = parse_ttl(every).map_err(|error| document.problem("spec.schedule", error))? / 60;
            json!({ "interval": { "intervalMinutes": minutes } })
        }
        (None, None) => json!({ "cron": { "expression": expression } }),
        (None, Some((zone, _))) => json!({ "cron": { "expression": expression, "timeZone": zone } }),
    };
    native.set("spec.schedule", rule, "spec.schedule");
    native.set("spec.template.spec.ttl", ttl.into(), "spec.template.ttl");
    let volumes = selection(document, "spec.template")?;
    Ok(volumes.each(native, name, "spec.template.spec"))
}

/// Converts a location. Its secret is a file of the provider.
pub fn location(document: &mut Document, mut native: Document, _: &str) -> Result<Vec<Document>, Problem> {
    let provider = document.take_text("spec.provider")?.unwrap_or_default();
    let (kind, section) = match provider.trim_start_matches("velero.io/") {
        "aws" => ("s3", "s3Config"),
        "gcp" => ("google", "googleConfig"),
        "azure" => ("azure", "azureConfig"),
        _ => return Err(document.problem("spec.provider", "`aws`, `gcp` or `azure` is expected")),
    };
    native.set_default("location", json!({}), "spec");
    native.set("location.type", kind.into(), "spec.provider");
    native.set(&format!("location.{section}"), json!({}), "spec.config");
    native.set_origin("location.caCertificate", "spec.objectStorage.caCert");
    if let Some(text) = document.take_text("spec.objectStorage.caCert")? {
        let decoded =
            decode_base64(&text).map_err(|error| document.problem("spec.objectStorage.caCert", error))?;
        native.set("location.caCertificate", json!({ "pem": decoded }), "spec.objectStorage.caCert");
    }
    if kind == "s3" {
        take_s3(document, &mut native)?;
    } else if kind == "azure" {
        let moves = "spec.config.storageAccount>location.azureConfig.storageAccountName";
        document.move_all(&mut native, moves);
    }
    let (name, key) =
        (document.take_text("spec.credential.name")?, document.take_text("spec.credential.key")?);
    let profile = document.take_text("spec.config.profile")?.unwrap_or_else(|| "default".to_owned());
    let file = json!({
        "name": name, "key": key.unwrap_or_else(|| "cloud".to_owned()), "profile": profile
    });
    native.set("location.secretConfig", file, "spec.credential");
    Ok(vec![native])
}

fn take_s3(document: &mut Document, native: &mut Document) -> Result<(), Problem> {
    document.move_all(native, "spec.config.region>location.s3Config.region");
    let region = native.get("location.s3Config.region").and_then(Value::as_str);
    let url = document.take_text("spec.config.s3Url")?;
    let endpoint = url.unwrap_or_else(|| match region {
        None | Some("us-east-1") => "s3.amazonaws.com".to_owned(),
        Some(region) => format!("s3.{region}.amazonaws.com"),
    });
    native.set("location.s3Config.endpoint", endpoint.into(), "spec.config.s3Url");
    native.set_origin("location.s3Config.disableSSL", "spec.config.s3Url");
    let is_path_style = match document.remove("spec.config.s3ForcePathStyle") {
        Some(Value::Bool(is_path_style)) => is_path_style,
        Some(Value::String(text)) => text == "true",
        _ => false,
    };
    native.set("location.s3Config.disablePathStyle", (!is_path_style).into(), "spec.config.s3ForcePathStyle");
    Ok(())
}
