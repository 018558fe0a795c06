//! Kinds of objects of other systems.

/// Returns the replacement of a kind that belongs to clusters.
pub fn instead_of(kind: &str) -> Option<String> {
    let told = match kind {
        "ApplicationBackup" => {
            "write VolumeBackup, with `volume`, `group` or `selectors` in the place of namespaces"
        }
        "ApplicationBackupSchedule" => {
            "write VolumeBackupSchedule, with `volume`, `group` or `selectors` in the place of namespaces"
        }
        "ApplicationRestore" => {
            "write VolumeRestore: `backupName` makes a volume with the name of the object"
        }
        "ApplicationClone" => "write VolumeClone, with `sourceVolume` in the place of sourceNamespace",
        "Snapshot" => {
            "write BackupLocation with the storage block (s3, gcs, azure, swift or local), and VolumeBackup for the backup itself"
        }
        "VolumeSnapshot" | "VolumeSnapshotSchedule" | "GroupVolumeSnapshot" => {
            "local snapshots are made by `blockctl snapshot create`, and by the `localSnapshots` of a VolumeBackupSchedule"
        }
        "Secret" => {
            "a secret is a directory with a file for each key (`secretConfig`, `storageSecretName`), or `file:` or `env:` in the place of a value"
        }
        _ => return None,
    };
    Some(format!("{kind} is for clusters: {told}"))
}
