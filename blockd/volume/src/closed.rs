//! Volume of an earlier process that is not open yet.
//!
//! Only `volume.meta` and the headers of live maps have been read, and no file was changed. Recovery, with
//! everything that it reads, is deferred to [`ClosedVolume::open`], which is [`Volume::open`]: to the
//! files, the process has not started before. So the state has no block sets that could be taken for empty
//! ones, and the argument of `DURABILITY.md` for a start holds for each volume at its open.

use crate::{
    error::VolumeError,
    head::discarded,
    head::live_map::LiveMap,
    head::volume_dir::Identity,
    head::volume_dir::OpenOptions,
    io::files,
    io::storage,
    meta::{LayerEntry, Meta},
    volume::Volume,
};
use blockd_extent::{Epoch, SnapshotId, VolumeId};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Volume that is not open.
#[derive(Clone, Debug)]
pub struct ClosedVolume {
    dir: PathBuf,
    options: OpenOptions,
    id: VolumeId,
    size_bytes: u64,
    snapshots: Vec<ClosedSnapshot>,
    may_merge: bool,
    may_have_loss: bool,
}

/// Snapshot of a volume that is not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedSnapshot {
    /// Id.
    pub id: SnapshotId,
    /// Last epoch of the snapshot.
    pub epoch: Epoch,
    /// Size of the volume at that time, in bytes.
    pub size_bytes: u64,
}

impl ClosedVolume {
    /// Reads the metadata, read-only.
    ///
    /// The file is of one commit, but the name of the newest one may not be durable before the open: callers
    /// that record the content elsewhere open the volume first.
    ///
    /// # Errors
    /// The file is missing, unreadable, damaged, or of a newer format.
    pub fn read(dir: &Path, options: &OpenOptions) -> Result<Self, VolumeError> {
        let meta = Meta::load(dir)?;
        let size_of =
            |epoch| meta.layers.iter().find(|layer| layer.epoch == epoch).map(|found| found.size_bytes);
        let snapshots = meta.snapshots.iter().map(|entry| ClosedSnapshot {
            id: entry.id,
            epoch: entry.epoch,
            size_bytes: size_of(entry.epoch).unwrap_or(meta.size_bytes),
        });
        Ok(Self {
            dir: dir.to_owned(),
            options: *options,
            id: meta.volume,
            size_bytes: meta.size_bytes,
            snapshots: snapshots.collect(),
            may_merge: may_merge(&meta),
            may_have_loss: may_have_loss(dir, &meta),
        })
    }

    /// Opens the volume.
    ///
    /// # Errors
    /// The errors of [`Volume::open`], or the directory has another volume by now.
    pub fn open(&self) -> Result<Arc<Volume>, VolumeError> {
        let volume = Volume::open(&self.dir, &self.options)?;
        if volume.id() != self.id || volume.size_bytes() != self.size_bytes {
            let what = format!("volume.meta was replaced by that of volume {} while blockd ran", volume.id());
            return Err(VolumeError::Damaged { path: self.dir.clone(), what });
        }
        Ok(volume)
    }

    /// Returns the volume's id.
    pub fn id(&self) -> VolumeId {
        self.id
    }

    /// Returns the size, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the snapshots.
    pub fn snapshots(&self) -> &[ClosedSnapshot] {
        &self.snapshots
    }

    /// Returns true if layers may be mergeable: they are unless both are shared with other volumes.
    pub fn may_merge(&self) -> bool {
        self.may_merge
    }

    /// Returns true if a loss of acknowledged writes is recorded, or will probably be by an open. After a
    /// reboot it is unknown.
    pub fn may_have_loss(&self) -> bool {
        self.may_have_loss
    }
}

fn may_have_loss(dir: &Path, meta: &Meta) -> bool {
    let shows_loss = |layer: &LayerEntry| {
        let identity = Identity { volume: meta.volume, epoch: layer.file, blocks: layer.blocks() };
        LiveMap::may_show_loss(&files::map_path(dir, layer.file), identity)
    };
    storage::metadata(&discarded::path(dir)).is_ok()
        || meta.layers.iter().filter(|layer| layer.open).any(shows_loss)
}

/// Returns true if a frozen layer below another one is no snapshot.
fn may_merge(meta: &Meta) -> bool {
    let is_lower = |pair: &[LayerEntry]| {
        let [upper, lower] = pair else { return false };
        !upper.open
            && !lower.open
            && !lower.lazy
            && meta.snapshots.iter().all(|kept| kept.epoch != lower.epoch)
    };
    meta.layers.windows(2).any(is_lower)
}
