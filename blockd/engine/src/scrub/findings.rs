//! Findings of a scrub: damaged extents of layers, with the files that have them.

use crate::{
    error::ServiceError,
    scrub::files::name_files,
    tasks::priority::{on_thread, set_background_reader},
    volumes::registry::VolumeEntry,
};
use blockd_api::tasks::DamageFinding;
use blockd_cloud::CancelToken;
use blockd_extent::{BlockSet, Extent};
use blockd_volume::{LayerDamage, Volume};
use std::sync::Arc;

/// Maximum number of listed damaged extents.
pub(super) const MAX_FINDINGS: usize = 100;

/// Describes the damaged extents of a layer; names the files of the first ones, unless the task is cancelled.
pub(super) async fn findings_of(
    volume: &Arc<Volume>,
    entry: &VolumeEntry,
    damage: &LayerDamage,
    cancel: &CancelToken,
) -> Result<Vec<DamageFinding>, ServiceError> {
    let snapshot = entry.snapshots().iter().find(|point| point.epoch >= damage.epoch).map(|point| point.id);
    let of = snapshot.map_or_else(|| "no snapshot".to_owned(), |id| format!("snapshot {id}"));
    let mut checksums = damage.blocks.clone();
    checksums.subtract(&damage.unreadable);
    let describe = |blocks: &BlockSet, cause: &str| -> Vec<(Extent, DamageFinding)> {
        let finding = |extent: Extent| DamageFinding {
            object: format!("layer {} of volume {}", damage.file, entry.name),
            offset_bytes: extent.offset_bytes(),
            cause: format!("{} bytes {cause}; the first snapshot with them: {of}", extent.len_bytes()),
            affects: vec![],
            files: vec![],
        };
        blocks.extents().map(|extent| (extent, finding(extent))).collect()
    };
    let mut findings = describe(&damage.unreadable, "cannot be read");
    findings.extend(describe(&checksums, "differ from their checksum"));
    findings.sort_by_key(|(extent, _)| *extent);
    let extents: Vec<_> = findings.iter().take(MAX_FINDINGS).map(|(extent, _)| *extent).collect();
    let (volume, is_over) = (Arc::clone(volume), cancel.clone());
    let search = move || name_files(&volume, snapshot, &extents, &is_over);
    let files = tokio::select! {
        files = on_thread("scrub", set_background_reader, search) => files?,
        // The thread ends after its current read, which may hang on the disk.
        () = cancel.cancelled() => vec![],
    };
    for ((_, finding), files) in findings.iter_mut().zip(files) {
        finding.files = files;
    }
    Ok(findings.into_iter().map(|(_, finding)| finding).collect())
}
