//! Requests with defaults, and helpers on replies, files and points in time.

use super::SIZE_BYTES;
use blockd_api::{
    ApiError, ClientError, ErrorCode,
    cloudsnaps::{CloudSnapshotId, MarkCloudsnap, StartBackup, StartDelete, StartRestore},
    credentials::RekeyCredential,
    lazy::{StartInPlace, StartLazyRestore},
    schedules::{Rule, Selector},
    snapshots::CreateSnapshot,
    tasks::TaskLimits,
    volumes::CreateVolume,
};
use jiff::{SignedDuration, Timestamp};
use std::{
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Timeout of conditions that a daemon reaches in the background.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Schedule rule without a run.
pub(crate) const NEVER: &str = "calendar 2199-01-01 00:00";

pub(crate) fn new_volume(name: &str) -> CreateVolume {
    let labels = Default::default();
    CreateVolume { name: name.parse().unwrap(), size_bytes: SIZE_BYTES, labels, group: None }
}

pub(crate) fn new_snapshot(name: &str) -> CreateSnapshot {
    CreateSnapshot { name: Some(name.parse().unwrap()), ..CreateSnapshot::default() }
}

pub(crate) fn backup_of(volume: &str) -> StartBackup {
    StartBackup::of(volume.parse().unwrap())
}

/// Returns a request for one backup in each of several locations.
pub(crate) fn backup_to(volume: &str, credentials: &[&str]) -> StartBackup {
    let credentials = credentials.iter().map(|name| name.parse().unwrap());
    StartBackup { credentials: credentials.collect(), ..backup_of(volume) }
}

pub(crate) fn restore_of(snap: &str) -> StartRestore {
    StartRestore::of(snap.parse().unwrap())
}

/// Returns a request for a restore to a new volume of this name.
pub(crate) fn restore_as(snap: &str, name: &str) -> StartRestore {
    StartRestore { volume_name: Some(name.parse().unwrap()), ..restore_of(snap) }
}

/// Returns a request for a lazy volume that is not hydrated.
pub(crate) fn lazy_restore(snap: &str) -> StartLazyRestore {
    StartLazyRestore {
        cloud_snapshot_id: snap.parse().unwrap(),
        volume_name: None,
        credential: None,
        hydrate: false,
        on_store_loss: Default::default(),
        labels: None,
    }
}

pub(crate) fn in_place_restore(snap: &str, volume: &str) -> StartInPlace {
    StartInPlace {
        cloud_snapshot_id: snap.parse().unwrap(),
        volume: volume.parse().unwrap(),
        credential: None,
        discard: false,
        labels: Default::default(),
        limits: TaskLimits::default(),
    }
}

pub(crate) fn delete_of(snap: &str) -> StartDelete {
    StartDelete::of(snap.parse().unwrap())
}

/// Returns a request that changes neither the pin nor the expiry date.
pub(crate) fn mark_of(snap: &str) -> MarkCloudsnap {
    MarkCloudsnap {
        cloud_snapshot_id: snap.parse().unwrap(),
        credential: None,
        pinned: None,
        expires_at: None,
        never_expires: false,
        force: false,
    }
}

/// Returns a request for a new data key; the credential refers to its passphrase.
pub(crate) fn new_data_key() -> RekeyCredential {
    RekeyCredential { passphrase: None, new_passphrase: None, new_data_key: true, accept_key: None }
}

pub(crate) fn select_volume(name: &str) -> Selector {
    Selector { volume: Some(name.parse().unwrap()), ..Selector::default() }
}

pub(crate) fn select_group(name: &str) -> Selector {
    Selector { group: Some(name.parse().unwrap()), ..Selector::default() }
}

pub(crate) fn select_label(label: &str) -> Selector {
    Selector { label: Some(label.parse().unwrap()), ..Selector::default() }
}

pub(crate) fn rule(when: &str) -> Rule {
    Rule { when: when.parse().unwrap(), retain: None }
}

pub(crate) fn snap_id(snap: &str) -> CloudSnapshotId {
    snap.parse().unwrap()
}

pub(crate) fn tomorrow() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24)
}

/// Returns a time after [`tomorrow`].
pub(crate) fn later() -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(25)
}

/// Returns the error of a refused request.
pub(crate) fn api_error<T: Debug>(result: Result<T, ClientError>) -> ApiError {
    match result.unwrap_err() {
        ClientError::Api(error) => {
            assert!(!error.message.contains('\n'), "{}", error.message);
            error
        }
        other => panic!("{other}"),
    }
}

pub(crate) fn api_code<T: Debug>(result: Result<T, ClientError>) -> ErrorCode {
    api_error(result).code
}

/// Repeats an attempt until it succeeds.
pub(crate) async fn eventually<T, E: Debug>(mut attempt: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match attempt().await {
            Ok(found) => return found,
            Err(found) => assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {found:?}"),
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Returns content that differs from block to block and compresses badly.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Returns all files below a directory.
pub(crate) fn walk(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.path().is_dir() {
            true => walk(&entry.path()),
            false => vec![entry.path().display().to_string()],
        })
        .collect()
}

/// Flips a bit of a file.
pub(crate) fn flip_bit(path: impl AsRef<Path>, offset: usize) {
    let mut bytes = fs::read(&path).unwrap();
    bytes[offset] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
}

/// Flips a bit in the middle of a file.
pub(crate) fn damage(path: impl AsRef<Path>) {
    let len = fs::metadata(&path).unwrap().len() as usize;
    flip_bit(path, len / 2);
}

/// Moves a file or directory aside; returns its new path.
pub(crate) fn move_away(path: &Path) -> PathBuf {
    let away = path.with_extension("away");
    fs::rename(path, &away).unwrap();
    away
}
