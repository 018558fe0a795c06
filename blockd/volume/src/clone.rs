//! Clones: a new volume from a snapshot, without copying data.
//!
//! The clone has the frozen layers of the snapshot. Their data files are hard links, so source and clone can
//! be deleted in any order, and the space is freed with the last link; so are the checksums of their blocks.
//! The block sets are copied. The clone is built in a sibling of its final directory and becomes a volume by
//! one rename. No operation changes the content of a data file that two volumes read: merges check for
//! sharing first, and a repair restores the content that the block has in both.

use crate::{
    error::{IoContext, VolumeError},
    head::Head,
    head::volume_dir::OpenOptions,
    head::volume_dir::VolumeDir,
    io::files,
    io::storage,
    layer::set::SetIdentity,
    layer::stack::Layer,
    lazy::base::LazyBase,
    meta::{LayerEntry, Meta},
    open::{sibling, sync_parent},
    restore::RestoreTarget,
    view::SnapshotView,
    volume::Volume,
};
use blockd_extent::{SnapshotId, VolumeId};
use std::{path::Path, sync::Arc};

impl Volume {
    /// Clones a snapshot to a new directory of the same filesystem; durable when the call returns. The clone
    /// is writable, without snapshots and dirty blocks; its first backup is full. Source, snapshot and clone
    /// can be changed and deleted in any order.
    ///
    /// # Errors
    /// The snapshot does not exist, the directory exists, the filesystem does not support sharing, or the
    /// disk is full or fails. Then no clone exists.
    pub fn clone_to(&self, snapshot: SnapshotId, dir: &Path, id: VolumeId) -> Result<Arc<Self>, VolumeError> {
        // A merge could otherwise write to a file that gains its second link.
        let _no_merge = self.pause_merges();
        self.check_usable()?;
        if dir.exists() {
            return Err(VolumeError::Busy(format!("clone failed on {}: directory exists", dir.display())));
        }
        let view = self.view(snapshot)?;
        RestoreTarget::discard(dir)?;
        let building = sibling(dir, "restoring");
        let made = build(&view, &self.dir, &building, id).and_then(|()| {
            storage::rename(&building, dir).during("rename", &building)?;
            sync_parent(dir)?;
            let clone = Self::open(dir, &OpenOptions::default())?;
            if let Some(source) = view.stack.lazy().and_then(|base| base.source()) {
                clone.set_lazy_source(source);
            }
            Ok(clone)
        });
        if made.is_err() {
            // After a failure the caller must be able to retry.
            let _ = storage::rename(dir, &building);
            let _ = RestoreTarget::discard(dir);
        }
        made
    }
}

/// Creates all files of a clone of a volume in `dir`, complete and synced.
fn build(view: &SnapshotView, dir: &Path, building: &Path, id: VolumeId) -> Result<(), VolumeError> {
    storage::create_dir(building).during("create", building)?;
    let size_bytes = view.size_bytes();
    let head = view.epoch().next();
    let mut layers = vec![LayerEntry::head(head, size_bytes)];
    for layer in view.stack.layers() {
        assert!(matches!(layer, Layer::Frozen(_)), "all layers of a snapshot are frozen");
        let Layer::Frozen(layer) = layer else { continue };
        layer.data.link_to(&files::data_path(building, layer.file))?;
        let entry = LayerEntry { generation: 0, ..layer.entry() };
        match layer.data.lazy() {
            // Both volumes fill the shared file from the same source; each has its own log.
            Some(base) => {
                let volume_dir = VolumeDir { path: building, volume: id, size_bytes: layer.size_bytes };
                LazyBase::create_log(volume_dir, layer.file, &base.logged())?;
            }
            None => {
                let set = layer.set_with_zeroes(dir, view.volume);
                set.store(building, SetIdentity::of(id, &entry))?;
                if let Some(sums) = layer.data.sums() {
                    sums.link_to(building)?;
                }
                if let Some(damage) = layer.data.damage() {
                    damage.copy_to(building, id)?;
                }
            }
        }
        layers.push(entry);
    }
    drop(Head::create(VolumeDir { path: building, volume: id, size_bytes }, head)?);
    // Also syncs the directory, which makes the file names durable.
    Meta::new(id, layers).store(building)
}
