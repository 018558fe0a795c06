//! Offline check of volumes (`blockd --check-volumes`); read-only.
//!
//! The check holds the lock of the data directory, so that no daemon can start, and fails while one runs.
//! Volume names come from the database, which is only read; without it, volumes are the directories found.
//! With `--export` the readable content of one volume is written to a file ([`crate::salvage`]).

use crate::{
    lock::{DirLock, LockError},
    salvage::{ExportRequest, Exported, SalvageError, export},
};
use blockd_api::VolumeRef;
use blockd_catalog::{Db, KnownVolume, VolumeState};
use blockd_engine::data_dir::DataDir;
use blockd_extent::VolumeId;
use blockd_volume::{Checked, Volume};
use serde::Serialize;
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// Reasons why the check failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The data directory does not exist.
    #[error("no data directory {}", .0.display())]
    NoDirectory(PathBuf),
    /// A daemon is running, or the lock cannot be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A named volume does not exist.
    #[error("no volume {0} in this data directory")]
    NoSuchVolume(String),
    /// The argument is not a valid volume name.
    #[error("invalid volume name `{given}`: {why}")]
    BadName {
        /// Argument.
        given: String,
        /// Cause.
        why: String,
    },
    /// `--export` was given without exactly one volume.
    #[error("--export needs exactly one volume: --check-volumes VOLUME --export IMAGE")]
    NotOneVolume,
    /// The image was not written.
    #[error("volume {volume}: {source}")]
    Export {
        /// Volume.
        volume: String,
        /// Cause.
        source: SalvageError,
    },
    /// The report cannot be written.
    #[error("writing the report failed: {0}")]
    Output(#[from] std::io::Error),
}

impl CheckError {
    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Lock(error) if error.is_retryable())
    }
}

/// Volume to check, with its database row.
struct VolumeToCheck {
    id: VolumeId,
    name: String,
    row: Option<KnownVolume>,
}

/// Report of an offline check, serialized as JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// No problem was found.
    pub sound: bool,
    /// Cause if the database cannot be read; volumes are identified by their ids then.
    pub database_error: Option<String>,
    /// Checked volumes.
    pub volumes: Vec<CheckedVolume>,
}

/// Result for one volume.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedVolume {
    /// Id.
    pub id: VolumeId,
    /// Name, or the id if the database cannot be read.
    pub volume: String,
    /// No problem was found in this volume.
    pub sound: bool,
    /// State in which a volume is skipped: it was being created, restored or deleted, and the next start
    /// completes or undoes that.
    pub skipped: Option<&'static str>,
    /// Number of checked layers.
    pub layers: u64,
    /// Number of layers that share data with another volume.
    pub shared_layers: u64,
    /// Number of checked block sets of past epochs.
    pub intervals: u64,
    /// Problems, one line each.
    pub findings: Vec<String>,
    /// Harmless leftovers that the next start cleans up, one line each.
    pub leftovers: Vec<String>,
    /// Written image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exported: Option<Exported>,
}

/// Output format of an offline check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CheckFormat {
    /// Lines.
    Text,
    /// One JSON document.
    Json,
}

/// Checks the named volumes, or all, writes a report to `out`, and returns true if no problem was found. If
/// `request` is given, exports the volume.
///
/// # Errors
/// A daemon uses the directory, a volume does not exist, or `out` cannot be written to.
pub fn check_volumes(
    data_dir: &Path,
    named: &[String],
    request: Option<&ExportRequest>,
    format: CheckFormat,
    out: &mut dyn Write,
) -> Result<bool, CheckError> {
    let report = run_check(data_dir, named, request)?;
    match format {
        CheckFormat::Text => write_text(&report, out)?,
        CheckFormat::Json => {
            serde_json::to_writer_pretty(&mut *out, &report).map_err(std::io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(report.sound)
}

fn run_check(
    data_dir: &Path,
    named: &[String],
    request: Option<&ExportRequest>,
) -> Result<CheckReport, CheckError> {
    if request.is_some() && named.len() != 1 {
        return Err(CheckError::NotOneVolume);
    }
    if !data_dir.is_dir() {
        return Err(CheckError::NoDirectory(data_dir.to_owned()));
    }
    let _lock = DirLock::take(data_dir)?;
    let db = data_dir.join("blockd.db");
    let (known, database_error) = match Db::find_volumes(&db) {
        Ok(rows) => (rows.into_iter().map(from_row).collect(), None),
        Err(error) => (from_folders(data_dir), Some(error.to_string())),
    };
    let mut volumes: Vec<_> =
        choose(known, named)?.into_iter().map(|volume| check_volume(data_dir, volume)).collect();
    if let (Some(request), [volume]) = (request, &mut volumes[..]) {
        let names = Db::find_snapshots(&db, volume.id).unwrap_or_default();
        let exported =
            export(&DataDir::new(data_dir.to_owned()).volume_dir(volume.id), volume.id, &names, request);
        let failed = |source| CheckError::Export { volume: volume.volume.clone(), source };
        volume.exported = Some(exported.map_err(failed)?);
    }
    let sound = database_error.is_none() && volumes.iter().all(|volume| volume.sound);
    Ok(CheckReport { sound, database_error, volumes })
}

fn check_volume(data_dir: &Path, volume: VolumeToCheck) -> CheckedVolume {
    let dir = DataDir::new(data_dir.to_owned()).volume_dir(volume.id);
    let state = volume.row.as_ref().map_or(VolumeState::Up, |row| row.state);
    let mut checked = match state {
        VolumeState::Up => Volume::check_files(&dir),
        _ => Checked::default(),
    };
    if let (VolumeState::Up, Some(row), Some((id, size_bytes))) =
        (state, &volume.row, Volume::identity_of(&dir))
    {
        let findings = &mut checked.findings;
        if id != row.id {
            findings.push(format!("{} holds volume {id} instead of the recorded one", dir.display()));
        }
        if size_bytes < row.size_bytes {
            findings.push(format!(
                "{} holds a volume of {size_bytes} bytes instead of {}",
                dir.display(),
                row.size_bytes
            ));
        }
    }
    CheckedVolume {
        id: volume.id,
        volume: volume.name,
        sound: checked.findings.is_empty(),
        skipped: match state {
            VolumeState::Up => None,
            VolumeState::Creating => Some("creating"),
            VolumeState::Restoring => Some("restoring"),
            VolumeState::Deleting => Some("deleting"),
        },
        layers: checked.layers,
        shared_layers: checked.shared_layers,
        intervals: checked.intervals,
        findings: checked.findings,
        leftovers: checked.leftovers,
        exported: None,
    }
}

fn from_row(row: KnownVolume) -> VolumeToCheck {
    VolumeToCheck { id: row.id, name: row.name.to_string(), row: Some(row) }
}

fn from_folders(data_dir: &Path) -> Vec<VolumeToCheck> {
    let entries = std::fs::read_dir(data_dir.join("volumes")).into_iter().flatten().flatten();
    let mut ids: Vec<VolumeId> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    ids.sort_unstable();
    ids.into_iter().map(|id| VolumeToCheck { id, name: id.to_string(), row: None }).collect()
}

fn choose(volumes: Vec<VolumeToCheck>, named: &[String]) -> Result<Vec<VolumeToCheck>, CheckError> {
    if named.is_empty() {
        return Ok(volumes);
    }
    let mut wanted = Vec::new();
    for given in named {
        let bad = |error: &dyn std::fmt::Display| CheckError::BadName {
            given: given.clone(),
            why: error.to_string(),
        };
        let reference: VolumeRef = given.parse().map_err(|error| bad(&error))?;
        let is_meant = |volume: &&VolumeToCheck| match &reference {
            VolumeRef::Id(id) => volume.id == *id,
            VolumeRef::Name(name) => volume.name == name.as_str(),
        };
        let found = volumes.iter().find(is_meant).ok_or_else(|| CheckError::NoSuchVolume(given.clone()))?;
        wanted.push(VolumeToCheck { id: found.id, name: found.name.clone(), row: found.row.clone() });
    }
    Ok(wanted)
}

fn write_text(report: &CheckReport, out: &mut dyn Write) -> std::io::Result<()> {
    if let Some(error) = &report.database_error {
        writeln!(out, "The database cannot be read, volumes are identified by their ids: {error}")?;
    }
    for CheckedVolume { volume, skipped, layers, intervals, findings, leftovers, exported, .. } in
        &report.volumes
    {
        if let Some(state) = skipped {
            writeln!(out, "Volume {volume} was skipped ({state}): the next start completes or undoes that.")?;
            continue;
        }
        for finding in findings {
            writeln!(out, "Volume {volume}: {finding}")?;
        }
        if findings.is_empty() {
            let plural = |count: u64| if count == 1 { "" } else { "s" };
            writeln!(
                out,
                "Volume {volume} is sound: {layers} layer{}, {intervals} kept block set{}.",
                plural(*layers),
                plural(*intervals)
            )?;
        }
        for leftover in leftovers {
            writeln!(out, "Volume {volume}, left by an interruption: {leftover}")?;
        }
        if let Some(exported) = exported {
            write_exported(volume, exported, out)?;
        }
    }
    Ok(())
}

fn write_exported(volume: &str, exported: &Exported, out: &mut dyn Write) -> std::io::Result<()> {
    let Exported { image, size_bytes, data_bytes, unreadable_bytes, unreadable } = exported;
    writeln!(
        out,
        "Volume {volume}: exported to {}: {data_bytes} bytes of data; {unreadable_bytes} of {size_bytes} bytes are unreadable and zero in the image.",
        image.display()
    )?;
    for range in unreadable {
        writeln!(out, "  {} bytes at {}: {}", range.length_bytes, range.offset_bytes, range.why)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_catalog::{DbError, VolumeRow};

    const SIZE_BYTES: u64 = 1 << 20;

    fn data_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("volumes")).unwrap();
        let db = Db::open(&dir.path().join("blockd.db")).unwrap();
        for (number, name) in [(1, "good"), (2, "bad"), (3, "half")] {
            let id = VolumeId::from_u64(number);
            let state = if name == "half" { VolumeState::Creating } else { VolumeState::Up };
            let row = VolumeRow { state, ..VolumeRow::new(id, name.parse().unwrap(), SIZE_BYTES) };
            db.transaction::<_, DbError>(|tx| row.insert(tx)).unwrap();
            if state == VolumeState::Up {
                let volume =
                    Volume::create(&DataDir::new(dir.path().to_owned()).volume_dir(id), id, SIZE_BYTES)
                        .unwrap();
                volume.freeze(blockd_extent::SnapshotId::from_u64(9)).unwrap();
            }
        }
        std::fs::remove_file(dir.path().join("volumes/2/layer-0000000000000001.data")).unwrap();
        dir
    }

    fn check(dir: &Path, named: &[&str]) -> (bool, String) {
        let named: Vec<String> = named.iter().map(|&name| name.to_owned()).collect();
        let mut out = Vec::new();
        let sound = check_volumes(dir, &named, None, CheckFormat::Text, &mut out).unwrap();
        (sound, String::from_utf8(out).unwrap())
    }

    #[test]
    fn damaged_volume_is_reported_and_sound_ones_pass() {
        let dir = data_dir();
        assert_eq!(
            check(dir.path(), &["good"]),
            (true, "Volume good is sound: 2 layers, 1 kept block set.\n".to_owned())
        );
        assert_eq!(check(dir.path(), &["1"]).1, check(dir.path(), &["good"]).1);
        let (sound, text) = check(dir.path(), &[]);
        assert!(!sound);
        assert!(text.contains("Volume good is sound"), "{text}");
        assert!(text.contains("Volume bad: stat failed on"), "{text}");
        assert!(text.contains("Volume half was skipped (creating)"), "{text}");
        let none = check_volumes(dir.path(), &["never".to_owned()], None, CheckFormat::Text, &mut Vec::new())
            .unwrap_err();
        assert!(none.to_string().contains("no volume never"), "{none}");
    }

    #[test]
    fn json_report_has_the_same_findings() {
        let dir = data_dir();
        std::fs::write(dir.path().join("volumes/1/layer-00000000000000ff.data"), b"").unwrap();
        let mut out = Vec::new();
        assert!(!check_volumes(dir.path(), &[], None, CheckFormat::Json, &mut out).unwrap());
        let found: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&found["sound"], &found["databaseError"]), (&false.into(), &serde_json::Value::Null));
        let of = |name: &str| {
            let volumes = found["volumes"].as_array().unwrap();
            volumes.iter().find(|volume| volume["volume"] == name).unwrap()
        };
        let good = of("good");
        assert_eq!(
            (&good["sound"], &good["layers"], &good["intervals"]),
            (&true.into(), &2.into(), &1.into())
        );
        assert_eq!(good["leftovers"].as_array().unwrap().len(), 1, "{good}");
        let bad = of("bad");
        assert!(bad["sound"] == false && bad["findings"][0].as_str().unwrap().contains("stat failed on"));
        assert_eq!(of("half")["skipped"], "creating");
    }

    #[test]
    fn wrong_or_truncated_volume_is_reported() {
        let dir = data_dir();
        std::fs::remove_dir_all(dir.path().join("volumes/2")).unwrap();
        let other = VolumeId::from_u64(7);
        drop(Volume::create(&dir.path().join("volumes/2"), other, SIZE_BYTES / 2).unwrap());
        let (sound, text) = check(dir.path(), &["bad"]);
        assert!(!sound && text.contains("holds volume 7") && text.contains("524288 bytes"), "{text}");
    }

    #[test]
    fn unreadable_database_falls_back_to_volume_ids() {
        let dir = data_dir();
        std::fs::write(dir.path().join("blockd.db"), b"no database").unwrap();
        let (sound, text) = check(dir.path(), &["1"]);
        assert!(!sound && text.contains("Volume 1 is sound"), "{text}");
    }

    #[test]
    fn check_is_refused_while_a_daemon_holds_the_lock() {
        let dir = data_dir();
        let _lock = DirLock::take(dir.path()).unwrap();
        let error = check_volumes(dir.path(), &[], None, CheckFormat::Text, &mut Vec::new()).unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("in use"), "{error}");
        let missing =
            check_volumes(&dir.path().join("missing"), &[], None, CheckFormat::Text, &mut Vec::new())
                .unwrap_err();
        assert!(missing.to_string().contains("no data directory"), "{missing}");
    }
}
