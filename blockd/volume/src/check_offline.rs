//! Read-only consistency check of a closed volume, for the errors that the next start would find.
//!
//! It reads `volume.meta`, the block sets, the logs and maps of open layers, and the lengths of the data
//! files, but no data. A live map has no checksum: recovery uses the log instead of a rejected map.

use crate::{
    Checked,
    error::VolumeError,
    head::discarded::DiscardedWrites,
    head::live_map::{Inspection, LiveMap},
    head::log::HeadLog,
    head::volume_dir::Identity,
    io::files,
    layer::damage::DamageList,
    layer::data_files::DataFiles,
    layer::set::{LayerSet, SetIdentity},
    meta::{LayerEntry, Meta},
    open::unreferenced_files,
    volume::Volume,
};
use blockd_extent::{BLOCK_SIZE_BYTES, VolumeId};
use std::path::Path;

impl Volume {
    /// Returns id and size in bytes of the volume in a directory, open or closed; `None` on any error.
    pub fn identity_of(dir: &Path) -> Option<(VolumeId, u64)> {
        Meta::load(dir).ok().map(|meta| (meta.volume, meta.size_bytes))
    }

    /// Reads id and size in bytes of the volume in a directory, open or closed.
    ///
    /// # Errors
    /// `volume.meta` is missing, unreadable, damaged, or of a newer format.
    pub fn read_identity(dir: &Path) -> Result<(VolumeId, u64), VolumeError> {
        Meta::load(dir).map(|meta| (meta.volume, meta.size_bytes))
    }

    /// Checks all metadata of a closed volume, read-only.
    ///
    /// The caller ensures that the volume stays closed. Leftovers of interrupted operations are not errors.
    pub fn check_files(dir: &Path) -> Checked {
        let mut found = Checked::default();
        let meta = match Meta::load(dir) {
            Ok(meta) => meta,
            Err(error) => {
                found.findings.push(error.to_string());
                return found;
            }
        };
        for layer in &meta.layers {
            found.layers += 1;
            let base = files::data_path(dir, layer.file);
            let links = DataFiles::check_closed(&base, layer.size_bytes, &mut found.findings);
            found.shared_layers += u64::from(links > 1);
            let tracking = match layer.open || layer.lazy {
                true => check_log(dir, &meta, layer, &mut found.leftovers),
                false => LayerSet::load(dir, SetIdentity::of(meta.volume, layer))
                    .and_then(|_| DamageList::load(dir, meta.volume, layer.file).map(drop)),
            };
            found.findings.extend(tracking.err().map(|error| error.to_string()));
            if layer.open {
                found.findings.extend(check_map(dir, &meta, layer));
            }
        }
        for &epoch in &meta.intervals {
            found.intervals += 1;
            let is_of_layer =
                |layer: &LayerEntry| !layer.open && (layer.file, layer.generation) == (epoch, 0);
            if meta.layers.iter().any(is_of_layer) {
                // Checked with its layer.
                continue;
            }
            let blocks = meta.size_bytes / BLOCK_SIZE_BYTES;
            let identity = SetIdentity { volume: meta.volume, file: epoch, generation: 0, blocks };
            let loaded = LayerSet::load_of_any_size(dir, identity);
            found.findings.extend(loaded.err().map(|error| error.to_string()));
        }
        found.findings.extend(DiscardedWrites::load(dir).err().map(|error| error.to_string()));
        match unreferenced_files(dir, &meta) {
            Err(error) => found.findings.push(error.to_string()),
            Ok(unreferenced) => found.leftovers.extend(
                unreferenced
                    .iter()
                    .map(|path| format!("{} is unreferenced; the next start removes it", path.display())),
            ),
        }
        found
    }
}

/// Returns an error if the map of an open layer is missing or damaged, so that the next start
/// discards writes, or has a newer format, so that the next start fails.
fn check_map(dir: &Path, meta: &Meta, layer: &LayerEntry) -> Option<String> {
    let path = files::map_path(dir, layer.file);
    let what = match LiveMap::inspect(&path, identity_of(meta, layer)) {
        Ok(Inspection::Trusted(_) | Inspection::Stale) => return None,
        Ok(Inspection::Suspect(what)) => what,
        Err(error @ VolumeError::NewerFormat { .. }) => return Some(error.to_string()),
        Err(error) => error.to_string(),
    };
    Some(format!("{what}; the next start discards acknowledged, unflushed writes"))
}

fn check_log(
    dir: &Path,
    meta: &Meta,
    layer: &LayerEntry,
    leftovers: &mut Vec<String>,
) -> Result<(), VolumeError> {
    let path = files::log_path(dir, layer.file);
    let torn_bytes = HeadLog::inspect(&path, identity_of(meta, layer))?.torn_bytes;
    if torn_bytes > 0 {
        let what = "bytes of a torn record, which no flush acknowledged; the next start truncates them";
        leftovers.push(format!("{} ends in {torn_bytes} {what}", path.display()));
    }
    Ok(())
}

fn identity_of(meta: &Meta, layer: &LayerEntry) -> Identity {
    Identity { volume: meta.volume, epoch: layer.file, blocks: layer.blocks() }
}
