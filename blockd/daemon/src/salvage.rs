//! `blockd --check-volumes VOLUME --export IMAGE`: writes the readable content of a damaged volume to a file.
//!
//! The image is sparse. Ranges whose content cannot be proven are zero and listed in the report; the volume's
//! directory is not changed.

use blockd_extent::{Extent, SnapshotId, VolumeId};
use blockd_volume::{Content, OpenOptions, Salvage, SalvageView, VolumeError};
use serde::Serialize;
use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Bytes copied at once.
const COPY_BYTES: u64 = 1 << 20;
/// Unreadable ranges in a report; damaged block sets of large volumes can have millions.
const MAX_REPORTED_RANGES: usize = 1 << 15;

/// An image to write.
#[derive(Clone, Debug)]
pub struct ExportRequest {
    /// The file, which must not exist.
    pub image: PathBuf,
    /// Name or id of a snapshot; `None` for the latest content.
    pub snapshot: Option<String>,
    /// Options with which the daemon would open the volume.
    pub options: OpenOptions,
}

/// Error of an export without an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SalvageError {
    /// No content can be proven, or the disk fails.
    #[error("no content of the volume can be read: {0}")]
    Volume(#[from] VolumeError),
    /// The directory holds another volume.
    #[error("the directory holds volume {found}, not {wanted}")]
    WrongVolume {
        /// Expected volume.
        wanted: VolumeId,
        /// Volume found.
        found: VolumeId,
    },
    /// The volume has no such snapshot.
    #[error("the volume has no snapshot {0}")]
    NoSuchSnapshot(String),
    /// The image cannot be written.
    #[error("cannot write {}: {source}", image.display())]
    Image {
        /// The image.
        image: PathBuf,
        /// Error of the file system.
        source: io::Error,
    },
}

/// An image that was written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Exported {
    /// The file.
    pub image: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes of data in it; the rest is zeroes.
    pub data_bytes: u64,
    /// Bytes that cannot be read and are zeroes in the image.
    pub unreadable_bytes: u64,
    /// Ranges that cannot be read, ascending; at most 32,768.
    pub unreadable: Vec<UnreadableRange>,
}

/// A range of a volume that cannot be read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnreadableRange {
    /// Offset of the first byte.
    pub offset_bytes: u64,
    /// Its length.
    pub length_bytes: u64,
    /// Cause.
    pub why: String,
}

/// Writes the readable content of a volume or snapshot to a new file. `dir` is the volume's directory,
/// `names` are its snapshots in the database.
///
/// # Errors
/// No content can be proven, there is no such snapshot, or the image cannot be written.
pub fn export(
    dir: &Path,
    id: VolumeId,
    names: &[(String, SnapshotId)],
    request: &ExportRequest,
) -> Result<Exported, SalvageError> {
    let salvage = Salvage::open(dir, &request.options)?;
    if salvage.id() != id {
        return Err(SalvageError::WrongVolume { wanted: id, found: salvage.id() });
    }
    let view = match &request.snapshot {
        None => salvage.latest(),
        Some(wanted) => {
            let named = names.iter().find(|(name, _)| name == wanted).map(|(_, id)| *id);
            let missing = || SalvageError::NoSuchSnapshot(wanted.clone());
            let id = named.or_else(|| wanted.parse().ok()).ok_or_else(missing)?;
            salvage.snapshot(id).map_err(|_| missing())?
        }
    };
    let image = &request.image;
    let failed = |source| SalvageError::Image { image: image.clone(), source };
    let file = File::options().write(true).create_new(true).mode(0o600).open(image).map_err(failed)?;
    file.set_len(view.size_bytes()).map_err(failed)?;
    copy_all(&view, &file, image)?;
    file.sync_all().map_err(failed)?;
    let whole = Extent::whole(view.size_bytes());
    let unreadable = view.unproven_in(whole).take(MAX_REPORTED_RANGES).map(|run| UnreadableRange {
        offset_bytes: run.extent.offset_bytes(),
        length_bytes: run.extent.len_bytes(),
        why: run.why.to_owned(),
    });
    Ok(Exported {
        image: image.clone(),
        size_bytes: view.size_bytes(),
        data_bytes: view.data_bytes(),
        unreadable_bytes: view.unproven_bytes(),
        unreadable: unreadable.collect(),
    })
}

fn copy_all(view: &SalvageView, file: &File, image: &Path) -> Result<(), SalvageError> {
    let whole = Extent::whole(view.size_bytes());
    let mut at = 0;
    for run in view.unproven_in(whole) {
        copy(view, file, image, at..run.extent.offset_bytes())?;
        at = run.extent.offset_bytes() + run.extent.len_bytes();
    }
    copy(view, file, image, at..view.size_bytes())
}

fn copy(
    view: &SalvageView,
    file: &File,
    image: &Path,
    range: std::ops::Range<u64>,
) -> Result<(), SalvageError> {
    let mut buf = vec![0; COPY_BYTES as usize];
    let mut at = range.start;
    while at < range.end {
        let part = &mut buf[..COPY_BYTES.min(range.end - at) as usize];
        if view.read(at, part)? == Content::Data {
            let failed = |source| SalvageError::Image { image: image.to_owned(), source };
            file.write_all_at(part, at).map_err(failed)?;
        }
        at += part.len() as u64;
    }
    Ok(())
}
