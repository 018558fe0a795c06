//! Fingerprint files of damaged deltas: they are deleted, so that no later backup refers to the content.
//!
//! Proofs do not suffice for that: damage that newer deltas hide affects no cloud snapshot, and a proof is
//! deleted with its cloud snapshot, while others still need the delta.

use crate::{data_dir::DataDir, error::ServiceError};
use blockd_cloud::{
    CloudError, CloudSnapshotId, Manifest, ManifestCache, ManifestKey, VerifyReport, fingerprint_file_name,
    fingerprint_file_of,
};
use std::{collections::BTreeSet, io};

/// Deletes the fingerprint files of the deltas that damaged objects belong to, before the damage is recorded.
/// All credentials are searched, because several may open one repository.
pub(crate) fn forget_objects<'a>(data_dir: &DataDir, objects: impl IntoIterator<Item = &'a str>) {
    forget_files(data_dir, &objects.into_iter().filter_map(fingerprint_file_of).collect());
}

/// Does the same for the damage that a verification found. If the content of a cloud snapshot differs, any of
/// its deltas may be the wrong one.
pub(crate) fn forget_reported(data_dir: &DataDir, manifests: &dyn ManifestCache, report: &VerifyReport) {
    let mut names: BTreeSet<String> =
        report.damaged_objects.iter().filter_map(|object| fingerprint_file_of(object)).collect();
    let differing = report.findings.iter().filter_map(|one| CloudSnapshotId::from_manifest_key(&one.object));
    for manifest in differing.filter_map(|id| manifests.load(&id.manifest_key())) {
        names.extend(manifest.deltas().map(fingerprint_file_name));
    }
    forget_files(data_dir, &names);
}

/// Does the same for all deltas of a cloud snapshot, if any of them may be damaged.
pub(crate) fn forget_deltas(data_dir: &DataDir, manifest: &Manifest) {
    forget_files(data_dir, &manifest.deltas().map(fingerprint_file_name).collect());
}

/// Deletes the fingerprint file of the delta whose object could not be read because it is damaged.
pub(crate) fn forget_unreadable(data_dir: &DataDir, error: &CloudError) {
    if let CloudError::Damaged { key, .. } = error {
        forget_objects(data_dir, [key.as_str()]);
    }
}

/// Does the same if that is the error of a task.
pub(crate) fn forget_failed(data_dir: &DataDir, error: &ServiceError) {
    if let ServiceError::Cloud(error) = error {
        forget_unreadable(data_dir, error);
    }
}

fn forget_files(data_dir: &DataDir, names: &BTreeSet<String>) {
    if names.is_empty() {
        return;
    }
    let Ok(of_credentials) = std::fs::read_dir(data_dir.all_fingerprints_dir()) else { return };
    for dir in of_credentials.flatten() {
        for name in names {
            let path = dir.path().join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::error!(%error, path = %path.display(), "later backups may refer to a damaged delta");
                }
                Err(_) => {}
                Ok(()) => {
                    tracing::warn!(path = %path.display(), "later backups refer to no block of a damaged delta");
                }
            }
        }
    }
}
