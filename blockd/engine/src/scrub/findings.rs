//! Findings of a scrub: damaged extents of layers, with the files that have them.

use crate::{
    error::ServiceError,
    scrub::files::name_files,
    tasks::priority::{on_thread, set_background_reader},
    volumes::registry::VolumeEntry,
};
use blockd_api::tasks::DamageFinding;
use blockd_cloud::CancelToken;
use blockd_extent::{BlockSet, Epoch, Extent};
use blockd_volume::{LayerDamage, Volume};
use std::sync::Arc;

/// Maximum number of listed damaged extents.
pub(super) const MAX_FINDINGS: usize = 100;

/// Damaged extent of a layer with its description.
pub(super) struct Listed {
    /// Epoch that names the layer's files.
    pub(super) file: Epoch,
    pub(super) extent: Extent,
    pub(super) finding: DamageFinding,
}

impl Listed {
    /// Notes how much of the damage a repair has left.
    pub(super) fn note_repair(&mut self, left: &[LayerDamage]) {
        let mut blocks = BlockSet::from_iter([self.extent]);
        for damage in left.iter().filter(|damage| damage.file == self.file) {
            blocks.subtract(&damage.blocks);
        }
        self.finding.cause += &match blocks.len_bytes() {
            0 => "; not repaired".to_owned(),
            bytes if bytes == self.extent.len_bytes() => "; repaired".to_owned(),
            bytes => format!("; {bytes} bytes repaired"),
        };
    }
}

/// Describes the damaged extents of a layer; names the files of the first ones, unless the task is cancelled.
pub(super) async fn findings_of(
    volume: &Arc<Volume>,
    entry: &VolumeEntry,
    damage: &LayerDamage,
    cancel: &CancelToken,
) -> Result<Vec<Listed>, ServiceError> {
    let first = entry.snapshots().iter().find(|point| point.epoch >= damage.epoch).cloned();
    let snapshot = first.as_ref().map(|point| point.id);
    let of = first.map_or_else(|| "no snapshot".to_owned(), |point| format!("snapshot {}", point.name));
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
    let listed = |(extent, finding)| Listed { file: damage.file, extent, finding };
    Ok(findings.into_iter().map(listed).collect())
}
