//! Objects of other systems: the storage section of KubeDB, and kinds that have another name here.

use super::{
    document::{Document, Problem},
    location_fields::{Dialect, IGNORED, LocationFields, SECRET_DIR},
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
/// Storage section of KubeDB's snapshots.
const STORAGE: &Dialect =
    &Dialect { root: "spec", sections: &["s3", "gcs", "azure", "swift", "local"], fields: STORAGE_FIELDS };
const STORAGE_FIELDS: &[(&str, &str)] = &[
    ("storageSecretName", SECRET_DIR),
    ("*.bucket", "path"),
    ("*.container", "path"),
    ("*.path", "path"),
    ("*.prefix", "prefix"),
    ("s3.endpoint", "s3-endpoint"),
    ("s3.region", "s3-region"),
    ("gcs.endpoint", IGNORED),
    ("gcs.region", IGNORED),
    ("azure.endpoint", IGNORED),
    ("azure.region", IGNORED),
    ("swift.endpoint", IGNORED),
    ("swift.region", IGNORED),
    ("local.endpoint", IGNORED),
    ("local.region", IGNORED),
    ("encryptionKey", "encryption-passphrase"),
    ("proxy", "proxy"),
    ("caCertificate", "ca-certificate"),
    ("limitUpload", "limit-upload"),
    ("limitDownload", "limit-download"),
    ("limitTimeZone", "limit-time-zone"),
];
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
    let mut fields = LocationFields::take(document, STORAGE, dir)?;
    let [section] = fields.sections.as_slice() else {
        return Err(document.problem("spec", "one of `s3`, `gcs`, `azure`, `swift` and `local` is expected"));
    };
    if !fields.has("path") {
        return Err(document.problem(&format!("spec.{section}"), "missing field `bucket`"));
    }
    if section == "s3" && !fields.has("s3-endpoint") {
        return Err(document.problem("spec", "s3: missing field `endpoint`"));
    }
    let provider = section.clone();
    fields.set_provider(&provider);
    Ok(fields)
}
