//! Objects of other systems: the storage section of KubeDB, and kinds that have another name here.

use super::{
    document::{Document, Problem},
    location_fields::{Field, IGNORED, LocationFields, SECRET_DIR},
};
use std::path::Path;

/// Kinds that belong to clusters, and their replacements.
const KINDS: [(&str, &str); 9] = [
    (
        "ApplicationBackup",
        "write VolumeBackup, with `volume`, `group` or `selectors` in the place of namespaces",
    ),
    (
        "ApplicationBackupSchedule",
        "write VolumeBackupSchedule, with `volume`, `group` or `selectors` in the place of namespaces",
    ),
    ("ApplicationRestore", "write VolumeRestore: `backupName` makes a volume with the name of the object"),
    ("ApplicationClone", "write VolumeClone, with `sourceVolume` in the place of sourceNamespace"),
    (
        "Snapshot",
        "write BackupLocation with the storage block (s3, gcs, azure, swift or local), and VolumeBackup for the backup itself",
    ),
    ("VolumeSnapshot", LOCAL_SNAPSHOTS),
    ("VolumeSnapshotSchedule", LOCAL_SNAPSHOTS),
    ("GroupVolumeSnapshot", LOCAL_SNAPSHOTS),
    (
        "Secret",
        "a secret is a directory with a file for each key (`secretConfig`, `storageSecretName`), or `file:` or `env:` in the place of a value",
    ),
];
const LOCAL_SNAPSHOTS: &str = "local snapshots are made by `blockctl snapshot create`, and by the `localSnapshots` of a VolumeBackupSchedule";
/// Fields of the storage section of KubeDB's snapshots.
const STORAGE: &[Field] = &[
    ("storageSecretName", SECRET_DIR),
    ("*.bucket", "path"),
    ("*.container", "path"),
    ("*.path", "path"),
    ("*.prefix", "prefix"),
    ("s3.endpoint", "s3-endpoint"),
    ("s3.region", "s3-region"),
    ("*.endpoint", IGNORED),
    ("*.region", IGNORED),
    ("encryptionKey", "encryption-passphrase"),
    ("proxy", "proxy"),
    ("caCertificate", "ca-certificate"),
    ("limitUpload", "limit-upload"),
    ("limitDownload", "limit-download"),
    ("limitTimeZone", "limit-time-zone"),
];
/// Sections of stores, and their providers.
const STORES: [(&str, &str); 5] =
    [("s3", "s3"), ("gcs", "google"), ("azure", "azure"), ("swift", "swift"), ("local", "local")];
/// Fields of a storage section without a meaning outside of a cluster.
const IGNORED_FIELDS: [(&str, &str); 3] = [
    ("spec.databaseName", "a location is for all volumes; a VolumeBackup names one"),
    ("spec.resources", "blockd makes no pods; see limitUpload and limitDownload"),
    ("spec.local.volumeSource", "the directory is one of this host, and must exist"),
];

/// Returns the replacement of a kind that belongs to clusters.
pub fn replacement(kind: &str) -> Option<String> {
    let (_, replacement) = KINDS.iter().find(|(name, _)| *name == kind)?;
    Some(format!("{kind} is for clusters: {replacement}"))
}

/// Takes a storage section as a location.
pub fn storage<'a>(document: &mut Document, dir: &'a Path) -> Result<LocationFields<'a>, Problem> {
    for (path, reason) in IGNORED_FIELDS {
        document.ignore(path, reason);
    }
    let mut fields = LocationFields::take(document, "spec", STORAGE, dir)?;
    let store = |section: &String| STORES.iter().find(|(name, _)| name == section);
    if let Some(section) = fields.sections.iter().find(|section| store(section).is_none()) {
        return Err(document.problem(&format!("spec.{section}"), format!("unknown field `{section}`")));
    }
    let [section] = fields.sections.as_slice() else {
        return Err(document.problem("spec", "one of `s3`, `gcs`, `azure`, `swift` and `local` is expected"));
    };
    if section == "s3" && !fields.has("s3-endpoint") {
        return Err(document.problem("spec", "s3: missing field `endpoint`"));
    }
    if let Some((_, provider)) = store(section) {
        fields.set_provider(provider);
    }
    Ok(fields)
}
