//! Damaged cloud snapshots that repaired ones replace: lists hide them until they are deleted.

use super::verify_task::VerifyWork;
use crate::{
    error::{ServiceError, blocking},
    tasks::LiveTask,
};
use blockd_catalog::{DbManifestCache, TaskSpec};
use blockd_cloud::{CloudSnapshotId, VerifyReport};
use std::{collections::BTreeSet, sync::Arc};

/// Returns the damaged cloud snapshots of a verification of a whole location that have a repaired one.
pub(super) async fn replaced_ones(
    work: &VerifyWork,
    live: &LiveTask,
    report: &VerifyReport,
) -> Result<BTreeSet<CloudSnapshotId>, ServiceError> {
    let row = live.view();
    if !matches!(&row.spec, TaskSpec::Verify(what) if what.all) {
        return Ok(BTreeSet::new());
    }
    let cache = DbManifestCache::new(Arc::clone(&work.db), row.credential);
    let known = blocking(move || Ok::<_, ServiceError>(cache.all()?)).await?;
    let sound: BTreeSet<_> = report.snapshots.iter().filter(|one| one.is_sound()).map(|one| one.id).collect();
    let repaired = known.iter().filter(|one| sound.contains(&one.id())).filter_map(|one| one.repairs);
    Ok(repaired.filter(|id| !sound.contains(id)).collect())
}

/// Tells how many damaged cloud snapshots are replaced.
pub(super) fn replaced_note(replaced: &BTreeSet<CloudSnapshotId>) -> Option<String> {
    match replaced.len() {
        0 => None,
        1 => Some("1 damaged cloud snapshot is replaced by a repaired one".to_owned()),
        count => Some(format!("{count} damaged cloud snapshots are replaced by repaired ones")),
    }
}
