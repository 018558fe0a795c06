//! Creation, opening and deletion of volumes, and acknowledgement of discarded writes.
//!
//! An open removes all files, but no directories, that `volume.meta` does not reference: garbage of
//! interrupted freezes, merges and deletions. It finishes interrupted freezes.

use crate::{
    error::{IoContext, VolumeError},
    head::Head,
    head::discarded::{self, DiscardedWrites},
    head::volume_dir::{OpenOptions, VolumeDir},
    io::files,
    io::storage,
    layer::damage::DamageList,
    layer::data::LayerData,
    layer::data_files::DataFiles,
    layer::set::{LayerSet, SetIdentity},
    layer::stack::{FrozenLayer, Layer, Stack},
    lazy::base::LazyBase,
    merge::note::MergeNote,
    meta::{self, LayerEntry, Meta},
    volume::Volume,
};
use blockd_extent::{BlockSet, Epoch, Extent, VolumeId};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

impl Volume {
    /// Creates and opens an empty volume in a new directory; durable when the call returns.
    ///
    /// # Errors
    /// The size is not a positive multiple of 4096 up to 64 TiB, the directory exists, or the filesystem
    /// fails.
    pub fn create(dir: &Path, id: VolumeId, size_bytes: u64) -> Result<Arc<Self>, VolumeError> {
        meta::check_size(size_bytes).map_err(VolumeError::InvalidInput)?;
        storage::create_dir(dir).during("create", dir)?;
        let first = Epoch(1);
        let volume_dir = VolumeDir { path: dir, volume: id, size_bytes };
        let made = Head::create(volume_dir, first).and_then(|head| {
            let meta = Meta::new(id, vec![LayerEntry::head(first, size_bytes)]);
            meta.store(dir)?;
            sync_parent(dir)?;
            Ok(Self::assemble(dir.to_owned(), meta, Stack::default().below(Arc::new(head))))
        });
        if made.is_err() {
            let _ = storage::remove_dir_all(dir);
        }
        made
    }

    /// Opens an existing volume.
    ///
    /// # Errors
    /// A file is missing, damaged or of a newer format, or the filesystem fails; the error names the file.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Arc<Self>, VolumeError> {
        let meta = Meta::load(dir)?;
        // Renames by the previous process, including that of the directory, may not be durable; the following
        // steps depend on them.
        files::sync_dir(dir)?;
        sync_parent(dir)?;
        remove_unreferenced_files(dir, &meta)?;
        let volume_dir =
            |entry: &LayerEntry| VolumeDir { path: dir, volume: meta.volume, size_bytes: entry.size_bytes };
        // Recovery truncates torn logs and syncs, which destroys evidence for `Salvage`. So all other checks
        // that can fail the open come first.
        let mut frozen = meta
            .layers
            .iter()
            .filter(|entry| !entry.open)
            .map(|entry| Ok(Layer::Frozen(Arc::new(load_frozen(volume_dir(entry), *entry)?))))
            .collect::<Result<Vec<_>, VolumeError>>()?
            .into_iter();
        DiscardedWrites::load(dir)?;
        for entry in meta.layers.iter().filter(|entry| entry.open) {
            Head::check_recoverable(volume_dir(entry), entry.file)?;
        }
        let layers = meta
            .layers
            .iter()
            .filter_map(|entry| match entry.open {
                true => {
                    let head = Head::recover(volume_dir(entry), entry.file, options);
                    Some(head.map(|head| Layer::Open(Arc::new(head))))
                }
                false => frozen.next().map(Ok),
            })
            .collect::<Result<Vec<_>, VolumeError>>()?;
        assert!(frozen.next().is_none(), "each frozen layer is in the stack");
        let note = MergeNote::load(dir, &meta);
        let volume = Self::assemble(dir.to_owned(), meta, Stack::new(layers, &Stack::default()));
        *volume.merging.lock() = note;
        *volume.discarded.lock() = DiscardedWrites::load(dir)?;
        let finished = volume.finish_open_layers(&mut volume.admin.lock());
        if let Err(error) = finished {
            tracing::warn!(volume = %volume.id, %error, "freeze failed on an open layer of an interrupted freeze: will be retried");
        }
        Ok(volume)
    }

    /// Deletes a volume's directory. Renames it first, so that the rest of an interrupted deletion cannot be
    /// opened.
    ///
    /// # Errors
    /// The filesystem fails; another call resumes the deletion.
    pub fn delete_files(dir: &Path) -> Result<(), VolumeError> {
        let renamed = sibling(dir, "deleted");
        match storage::rename(dir, &renamed) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => {
                other.during("rename", dir)?;
                sync_parent(dir)?;
            }
        }
        match storage::remove_dir_all(&renamed) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => {
                other.during("remove", &renamed)?;
                sync_parent(dir)
            }
        }
    }

    /// Returns the record of discarded writes, unless an administrator has acknowledged it.
    pub fn discarded_writes(&self) -> Option<DiscardedWrites> {
        *self.discarded.lock()
    }

    /// Removes the record of discarded writes, durably.
    ///
    /// # Errors
    /// The filesystem fails; the record stays.
    pub fn acknowledge_discarded_writes(&self) -> Result<(), VolumeError> {
        let mut discarded = self.discarded.lock();
        if discarded.is_some() {
            files::remove_if_exists(&discarded::path(self.dir()))?;
            files::sync_dir(self.dir())?;
            *discarded = None;
        }
        Ok(())
    }
}

/// Returns the sibling `<dir>.<suffix>` of a directory.
pub(crate) fn sibling(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

pub(crate) fn sync_parent(dir: &Path) -> Result<(), VolumeError> {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => files::sync_dir(parent),
        _ => files::sync_dir(Path::new(".")),
    }
}

fn load_frozen(volume_dir: VolumeDir<'_>, entry: LayerEntry) -> Result<FrozenLayer, VolumeError> {
    if entry.lazy {
        return load_lazy(volume_dir, entry);
    }
    assert!(!entry.open, "an open layer has no set file");
    let data = DataFiles::open(&files::data_path(volume_dir.path, entry.file), volume_dir.size_bytes)?;
    let set = LayerSet::load(volume_dir.path, SetIdentity::of(volume_dir.volume, &entry))?;
    let mut data = LayerData::from(data);
    if let Some(damage) = DamageList::load(volume_dir.path, volume_dir.volume, entry.file)? {
        data = data.with_damage(Arc::new(damage));
    }
    Ok(FrozenLayer::new(&entry, data, set).with_bounded_memory())
}

/// Loads a lazy base, which holds every block for the layers above.
pub(crate) fn load_lazy(volume_dir: VolumeDir<'_>, entry: LayerEntry) -> Result<FrozenLayer, VolumeError> {
    assert!(entry.lazy && !entry.open, "a lazy base is not the head");
    let base = LazyBase::open(volume_dir, entry.file)?;
    let data = DataFiles::open(&files::data_path(volume_dir.path, entry.file), volume_dir.size_bytes)?;
    let held = BlockSet::from_iter([Extent::whole(volume_dir.size_bytes)]);
    Ok(FrozenLayer::new(&entry, LayerData::lazy_over(data, base), LayerSet { held, ..LayerSet::default() }))
}

/// Returns the files of the directory that `volume.meta` does not reference: never committed, or replaced.
pub(crate) fn unreferenced_files(dir: &Path, meta: &Meta) -> Result<Vec<PathBuf>, VolumeError> {
    let mut referenced: HashSet<PathBuf> = HashSet::from([dir.join(files::META), discarded::path(dir)]);
    for layer in &meta.layers {
        referenced.extend(DataFiles::paths(&files::data_path(dir, layer.file), layer.size_bytes));
        if layer.open {
            referenced.insert(files::map_path(dir, layer.file));
            referenced.insert(files::log_path(dir, layer.file));
            continue;
        }
        referenced.insert(files::sums_path(dir, layer.file));
        referenced.insert(files::damaged_path(dir, layer.file));
        if layer.lazy {
            referenced.insert(files::log_path(dir, layer.file));
        } else {
            referenced.insert(files::set_path(dir, layer.file, layer.generation));
        }
    }
    if MergeNote::load(dir, meta).is_some() {
        referenced.insert(MergeNote::path(dir));
    }
    referenced.extend(meta.intervals.iter().map(|&epoch| files::set_path(dir, epoch, 0)));
    let mut unreferenced = Vec::new();
    for entry in std::fs::read_dir(dir).during("list", dir)? {
        let entry = entry.during("list", dir)?;
        let path = entry.path();
        if entry.file_type().during("stat", &path)?.is_dir() {
            // Not created by blockd, but by backup tools or administrators (`lost+found`).
            tracing::warn!(volume = %meta.volume, path = %path.display(), "ignoring a foreign directory in the directory of a volume");
        } else if !referenced.contains(&path) {
            unreferenced.push(path);
        }
    }
    Ok(unreferenced)
}

fn remove_unreferenced_files(dir: &Path, meta: &Meta) -> Result<(), VolumeError> {
    for path in unreferenced_files(dir, meta)? {
        tracing::debug!(file = %path.display(), "removing an unreferenced file");
        files::remove_if_exists(&path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_directory_in_a_volume_directory_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("v");
        let volume = Volume::create(&dir, VolumeId::from_u64(5), 1 << 20).unwrap();
        volume.write(0, &[7; 4096], true).unwrap();
        volume.close().unwrap();
        drop(volume);
        let made = dir.join("lost+found");
        std::fs::create_dir_all(made.join("inside")).unwrap();
        std::fs::write(dir.join("leftover"), b"x").unwrap();
        let volume = Volume::open(&dir, &OpenOptions::default()).unwrap();
        let mut found = [0; 4096];
        volume.read(0, &mut found).unwrap();
        assert_eq!(found, [7; 4096]);
        assert!(made.join("inside").exists() && !dir.join("leftover").exists());
        assert_eq!(volume.check().findings, Vec::<String>::new());
    }
}
