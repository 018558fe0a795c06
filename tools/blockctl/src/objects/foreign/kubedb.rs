//! Snapshots of KubeDB: a location and a backup in it.

use super::native::begin;
use crate::objects::{
    Kind,
    document::{Document, Problem},
};
use serde_json::{Value, json};

pub const GROUP: &str = "kubedb.com";

/// Storage sections, the types that they name, and their fields with the name of the bucket.
const STORES: [(&str, &str, &str); 5] = [
    ("s3", "s3", "bucket"),
    ("gcs", "google", "bucket"),
    ("azure", "azure", "container"),
    ("swift", "swift", "container"),
    ("local", "local", "path"),
];
/// Label of the volumes of a database that no volume is named after.
pub const DATABASE_LABEL: &str = "app";

/// Converts a snapshot of a database.
pub fn snapshot(document: &mut Document, mut backup: Document, _: &str) -> Result<Vec<Document>, Problem> {
    let (location, place) = take_storage(document, None)?;
    backup.set("spec.backupLocation", place.into(), "spec");
    let Some(database) = document.take_text("spec.databaseName")? else {
        return Err(document.problem("spec.databaseName", "missing"));
    };
    backup.set("spec.orSelectors", json!({ DATABASE_LABEL: database }), "spec.databaseName");
    backup.set("spec.volume", database.into(), "spec.databaseName");
    Ok(vec![location, backup])
}

/// Converts the storage section of a snapshot.
pub fn location(document: &mut Document, _: Document, name: &str) -> Result<Vec<Document>, Problem> {
    Ok(vec![take_storage(document, Some(name))?.0])
}

/// Returns the location of a storage section and its name: the given one, or one after the bucket.
fn take_storage(document: &mut Document, name: Option<&str>) -> Result<(Document, String), Problem> {
    let mut given = STORES.iter().filter(|(section, ..)| document.get(&format!("spec.{section}")).is_some());
    let (Some(&(section, store, bucket)), None) = (given.next(), given.next()) else {
        let message = "one of `s3`, `gcs`, `azure`, `swift` and `local` is expected";
        return Err(document.problem("spec", message));
    };
    let within = |field: &str| format!("spec.{section}.{field}");
    let Some(path) = document.get(&within(bucket)).and_then(Value::as_str).map(str::to_owned) else {
        return Err(document.problem(&format!("spec.{section}"), format!("missing field `{bucket}`")));
    };
    let prefix = document.get(&within("prefix")).and_then(Value::as_str).unwrap_or_default().to_owned();
    let place = name.map_or_else(|| place_name(&[section, path.as_str(), prefix.as_str()]), str::to_owned);
    let mut native = begin(document, Kind::BackupLocation, &place);
    native.set("location", json!({}), "spec");
    native.set("location.type", store.into(), &format!("spec.{section}"));
    let moves = format!(
        "spec.{section}.{bucket}>location.path spec.{section}.prefix>location.prefix \
         spec.storageSecretName>location.secretConfig spec.encryptionKey>location.encryptionKey"
    );
    document.move_all(&mut native, &moves);
    if section == "s3" {
        if document.get(&within("endpoint")).is_none() {
            return Err(document.problem("spec.s3", "missing field `endpoint`"));
        }
        let moves = "spec.s3.endpoint>location.s3Config.endpoint spec.s3.region>location.s3Config.region";
        document.move_all(&mut native, moves);
        // The scheme of the endpoint decides.
        native.set_origin("location.s3Config.disableSSL", "spec.s3.endpoint");
    }
    // The same location in several snapshots is one.
    native.is_derived = name.is_none();
    Ok((native, place))
}

/// Returns a name of the parts that are not empty.
fn place_name(parts: &[&str]) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
    let words = parts.iter().map(|part| {
        let text: String = part.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
        text.trim_matches(['-', '.', '_']).to_owned()
    });
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}
