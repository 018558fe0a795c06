//! Cloning: a new volume that begins as what another one was at a snapshot, at once and without copying data.
//!
//! The clone's frozen layers are those of the snapshot. Their data files are hard links, so that parent and
//! clone may go in any order and the space is free when the last one lets go; the sets are written anew, as
//! the clone's own. It is built beside the folder that it will have and becomes a volume by one rename. From
//! then on nobody writes to a file that two volumes read: a merge asks first.

use crate::{
    error::{IoContext, VolumeError},
    files,
    head::{Head, Place},
    layer_set::SetIdentity,
    lazy_base::LazyBase,
    meta::{LayerEntry, Meta},
    open::{OpenOptions, sibling, sync_parent},
    restore::RestoreTarget,
    stack::Layer,
    storage,
    view::SnapshotView,
    volume::Volume,
};
use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use std::{path::Path, sync::Arc};

impl Volume {
    /// Makes a volume in a new folder of the same filesystem that begins as what this one was at a snapshot;
    /// it survives a power cut when the call returns. Writable, with no snapshots and nothing dirty; its
    /// first backup is a full one. Both may be changed and deleted afterwards, in any order, and so may the
    /// snapshot.
    ///
    /// # Errors
    /// If there is no such snapshot, the folder exists, files cannot be shared there, or the disk is full or
    /// fails; there is no clone then.
    pub fn clone_to(&self, snapshot: SnapshotId, dir: &Path, id: VolumeId) -> Result<Arc<Self>, VolumeError> {
        // While a file gets its second name, nobody may write to it because it had only one.
        let _no_merge = self.keep_merges_out();
        self.check_usable()?;
        if dir.exists() {
            return Err(VolumeError::Busy(format!("{} exists already", dir.display())));
        }
        let view = self.view(snapshot)?;
        RestoreTarget::discard(dir)?;
        let building = sibling(dir, "restoring");
        let made = build(&view, &building, id).and_then(|()| {
            storage::rename(&building, dir).during("rename", &building)?;
            sync_parent(dir)?;
            let clone = Self::open(dir, &OpenOptions::default())?;
            if let Some(source) = view.stack.lazy().and_then(|base| base.source()) {
                clone.set_lazy_source(source);
            }
            Ok(clone)
        });
        if made.is_err() {
            // Whoever is told of a failure must be able to begin again.
            let _ = storage::rename(dir, &building);
            let _ = RestoreTarget::discard(dir);
        }
        made
    }
}

/// Makes all files of a clone, complete and synced.
fn build(view: &SnapshotView, building: &Path, id: VolumeId) -> Result<(), VolumeError> {
    storage::create_dir(building).during("create", building)?;
    let size_bytes = view.size_bytes();
    let head = view.epoch().next();
    let mut layers =
        vec![LayerEntry { epoch: head, file: head, generation: 0, open: true, lazy: false, size_bytes }];
    for layer in view.stack.layers() {
        // A snapshot's layers are frozen, all of them.
        let Layer::Frozen(layer) = layer else { continue };
        layer.data.link_to(&files::data_path(building, layer.file))?;
        let blocks = layer.size_bytes / BLOCK_SIZE_BYTES;
        match layer.data.lazy() {
            // Both fill the shared file from the source, each as far as its own log says, and both with the
            // same.
            Some(base) => {
                let place = Place { dir: building, volume: id, size_bytes: layer.size_bytes };
                LazyBase::create_log(place, layer.file, &base.logged())?;
            }
            None => {
                let identity = SetIdentity { volume: id, file: layer.file, generation: 0, blocks };
                layer.set.store(building, identity)?;
            }
        }
        layers.push(LayerEntry {
            epoch: layer.epoch,
            file: layer.file,
            generation: 0,
            open: false,
            lazy: layer.data.lazy().is_some(),
            size_bytes: layer.size_bytes,
        });
    }
    drop(Head::create(Place { dir: building, volume: id, size_bytes }, head)?);
    let meta = Meta {
        volume: id,
        size_bytes,
        next_epoch: head.next(),
        layers,
        snapshots: vec![],
        intervals: vec![],
    };
    // Also makes the names durable: it syncs the folder.
    meta.store(building)
}
