//! Names of a volume's files, and atomic writes of small files.
//!
//! | file | content |
//! |---|---|
//! | `volume.meta` | layers and snapshots ([`crate::meta`]); unreferenced files are garbage |
//! | `layer-<file>.data` (`.data.1`, …) | a layer's data, sparse, with the offsets of the volume |
//! | `layer-<file>.map` | open layers: [`crate::head::live_map`] |
//! | `layer-<file>.log` | open layers and the lazy base: [`crate::head::log`] |
//! | `layer-<file>.g<n>.set` | frozen layers: [`crate::layer::set`], generation n; 0 is the interval set |
//! | `layer-<file>.sums` | frozen layers: checksums of their blocks ([`crate::layer::sums`]) |
//! | `layer-<file>.damaged` | frozen layers: their damaged blocks ([`crate::layer::damage`]) |
//! | `volume.merge` | progress note of a merge: [`crate::merge::note`] |
//! | `volume.discarded` | record of discarded writes: [`crate::head::discarded`] |
//!
//! `<file>` is the epoch that created the layer's files, as 16 hexadecimal digits.

use crate::{
    error::{IoContext, VolumeError},
    io::storage::{self, File},
    io::stream::FileWriter,
};
use blockd_extent::Epoch;
use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

pub(crate) const META: &str = "volume.meta";

pub(crate) fn data_path(dir: &Path, file: Epoch) -> PathBuf {
    dir.join(format!("layer-{:016x}.data", file.0))
}

pub(crate) fn map_path(dir: &Path, file: Epoch) -> PathBuf {
    dir.join(format!("layer-{:016x}.map", file.0))
}

pub(crate) fn log_path(dir: &Path, file: Epoch) -> PathBuf {
    dir.join(format!("layer-{:016x}.log", file.0))
}

pub(crate) fn set_path(dir: &Path, file: Epoch, generation: u32) -> PathBuf {
    dir.join(format!("layer-{:016x}.g{generation}.set", file.0))
}

pub(crate) fn sums_path(dir: &Path, file: Epoch) -> PathBuf {
    dir.join(format!("layer-{:016x}.sums", file.0))
}

pub(crate) fn damaged_path(dir: &Path, file: Epoch) -> PathBuf {
    dir.join(format!("layer-{:016x}.damaged", file.0))
}

/// Syncs a directory: makes created, renamed and removed names durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), VolumeError> {
    storage::sync_dir(dir).during("sync", dir)
}

/// Removes a file if it exists.
pub(crate) fn remove_if_exists(path: &Path) -> Result<(), VolumeError> {
    match storage::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).during("remove", path),
        _ => Ok(()),
    }
}

/// Replaces a file atomically: writes and syncs a temporary file, renames it, and syncs the directory.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), VolumeError> {
    write_whole_with(path, |out| out.write_all(bytes))
}

/// [`write_whole`] with content that is not built in memory.
pub(crate) fn write_whole_with(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), VolumeError> {
    let mut new_name = path.as_os_str().to_owned();
    new_name.push(".new");
    let new_path = PathBuf::from(new_name);
    let file = File::create(&new_path).during("create", &new_path)?;
    let mut out = FileWriter::new(&file, 0);
    write(&mut out).and_then(|()| out.finish()).during("write", &new_path)?;
    file.sync_all().during("sync", &new_path)?;
    storage::rename(&new_path, path).during("rename", &new_path)?;
    match path.parent() {
        Some(dir) => sync_dir(dir),
        None => Ok(()),
    }
}
