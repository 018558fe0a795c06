//! Kinds of clusters that have another name here.

/// Kinds that belong to clusters, and their replacements.
const KINDS: [(&str, &str); 9] = [
    ("ApplicationBackup", "write VolumeBackup, with `volume`, `group` or `selectors` instead of namespaces"),
    (
        "ApplicationBackupSchedule",
        "write VolumeBackupSchedule, with `volume`, `group` or `selectors` instead of namespaces",
    ),
    ("ApplicationRestore", "write VolumeRestore: `backupName` makes a volume with the name of the object"),
    ("ApplicationClone", "write VolumeClone, with `sourceVolume` instead of sourceNamespace"),
    (
        "Snapshot",
        "write BackupLocation with the storage block (s3, gcs, azure, swift or local), and VolumeBackup for the backup itself",
    ),
    ("VolumeSnapshot", LOCAL_SNAPSHOTS),
    ("VolumeSnapshotSchedule", LOCAL_SNAPSHOTS),
    ("GroupVolumeSnapshot", LOCAL_SNAPSHOTS),
    (
        "Secret",
        "a secret is a directory with a file for each key (`secretConfig`, `storageSecretName`), or `file:` or `env:` instead of a value",
    ),
];
const LOCAL_SNAPSHOTS: &str = "local snapshots are made by `blockctl snapshot create`, and by the `localSnapshots` of a VolumeBackupSchedule";

/// Returns the replacement of a kind that belongs to clusters.
pub fn replacement(kind: &str) -> Option<String> {
    let (_, replacement) = KINDS.iter().find(|(name, _)| *name == kind)?;
    Some(format!("{kind} is for clusters: {replacement}"))
}
