//! All snapshots of this host and of its stores, for whoever looks at a mount.
//!
//! Stores are asked only when somebody looks, and not more often than the configuration says. Who looks waits a
//! moment for a new list; if a store takes longer, the old one is shown, and the new one when it is there.

use super::images::{CloudImage, LocalImage};
use crate::{core::Core, db::Catalog as ManifestCatalog, error::ServiceError};
use blockd_api::CredentialRef;
use blockd_cloud::{BackupType, CloudsnapId, Manifest, ManifestFilter};
use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use blockd_fuse::{Catalog, Image, SnapshotEntry, SnapshotKey};
use jiff::Timestamp;
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};
use tokio::runtime::Handle;
use uuid::Uuid;

/// How long whoever looks waits for a new list.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How often this host's own snapshots are listed anew.
const LOCAL_EVERY: Duration = Duration::from_millis(250);

#[derive(Default)]
struct State {
    entries: Arc<Vec<SnapshotEntry>>,
    local: Vec<SnapshotEntry>,
    cloud: Vec<SnapshotEntry>,
    cloud_at: Option<Instant>,
    local_at: Option<Instant>,
    refreshing: bool,
    /// How many lists of the stores there were.
    rounds: u64,
}

struct Shared {
    core: Weak<Core>,
    credentials: Vec<CredentialRef>,
    refresh: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

/// What is shown in one mount.
pub(super) struct BrowseCatalog {
    shared: Arc<Shared>,
    runtime: Handle,
}

fn gone() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn service_error(error: &ServiceError) -> io::Error {
    let api = error.to_api();
    let kind = match api.code.http_status() {
        404 => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, api.message)
}

/// What a key stands for.
enum Source {
    Cloud(Uuid, CloudsnapId),
    Local(VolumeId, SnapshotId),
}

fn cloud_key(credential: Uuid, id: &CloudsnapId) -> SnapshotKey {
    SnapshotKey(format!("cloud:{credential}:{id}").into())
}

fn local_key(volume: VolumeId, snapshot: SnapshotId) -> SnapshotKey {
    SnapshotKey(format!("local:{volume}:{snapshot}").into())
}

fn source(key: &SnapshotKey) -> Option<Source> {
    let (kind, rest) = key.0.split_once(':')?;
    let (first, second) = rest.split_once(':')?;
    match kind {
        "cloud" => Some(Source::Cloud(first.parse().ok()?, second.parse().ok()?)),
        _ => Some(Source::Local(first.parse().ok()?, second.parse().ok()?)),
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::from(time)
}

impl BrowseCatalog {
    /// The snapshots of this host, and of the stores of these credentials; of all stores if none is named.
    pub fn new(core: &Arc<Core>, credentials: Vec<CredentialRef>, runtime: Handle) -> Self {
        let shared = Shared {
            core: Arc::downgrade(core),
            credentials,
            refresh: Duration::from_millis(core.config.browse.refresh_ms),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        Self { shared: Arc::new(shared), runtime }
    }

    fn core(&self) -> io::Result<Arc<Core>> {
        self.shared.core.upgrade().ok_or_else(gone)
    }
}

impl Shared {
    /// Lists the stores.
    async fn cloud(&self, core: &Core) -> Vec<SnapshotEntry> {
        let rows = match core.credential_rows().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "the credentials cannot be read");
                return self.state.lock().cloud.clone();
            }
        };
        let wanted = |row: &crate::db::CredentialRow| {
            let is = |wanted: &CredentialRef| match wanted {
                CredentialRef::Id(uuid) => row.uuid == *uuid,
                CredentialRef::Name(name) => row.name == *name,
            };
            self.credentials.is_empty() || self.credentials.iter().any(is)
        };
        let mut found: Vec<(Uuid, Manifest)> = Vec::new();
        let mut seen = BTreeSet::new();
        let mut kept = Vec::new();
        for row in rows.into_iter().filter(wanted) {
            match list_store(core, row.uuid).await {
                Ok(manifests) => {
                    // Two credentials may lead to one place.
                    found.extend(
                        manifests
                            .into_iter()
                            .filter(|m| seen.insert(m.id()))
                            .map(|manifest| (row.uuid, manifest)),
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, credential = %row.name, "the store cannot be listed: what was there is shown");
                    let prefix = format!("cloud:{}:", row.uuid);
                    let state = self.state.lock();
                    kept.extend(state.cloud.iter().filter(|entry| entry.key.0.starts_with(&prefix)).cloned());
                }
            }
        }
        let mut entries = cloud_entries(core, &found);
        entries.extend(kept);
        entries
    }

    /// Puts a list together, if there is anything new in it: it may be long, and this is done often.
    fn publish(&self, core: &Core, state: &mut State, cloud_changed: bool) {
        let local = local_entries(core);
        state.local_at = Some(Instant::now());
        if cloud_changed || state.local != local {
            state.entries = Arc::new(local.iter().chain(&state.cloud).cloned().collect());
            state.local = local;
        }
    }
}

async fn list_store(core: &Core, credential: Uuid) -> Result<Vec<Manifest>, ServiceError> {
    let (repository, _) = core.task_repository(credential).await?;
    let catalog = ManifestCatalog::new(Arc::clone(&core.db), credential);
    let everything = ManifestFilter::default();
    let listed = repository.list_manifests(&everything, &catalog);
    let listed = super::in_time(&core.config, listed).await?;
    Ok(listed.into_iter().filter_map(|item| item.manifest.ok()).collect())
}

/// The directory of each volume: its name, and where several have that name, its id behind it, except for one of this host.
fn volume_dirs(core: &Core, found: &[(Uuid, Manifest)]) -> HashMap<(Uuid, VolumeId), String> {
    let mut names: BTreeMap<&str, BTreeSet<(Uuid, VolumeId)>> = BTreeMap::new();
    for (_, manifest) in found {
        names.entry(&manifest.volume_name).or_default().insert((manifest.cluster, manifest.volume));
    }
    let mut dirs = HashMap::new();
    for (name, volumes) in names {
        let local = core.registry.by_name(name).map(|entry| (core.cluster, entry.id));
        let alone = volumes.len() == 1 && local.is_none_or(|local| volumes.contains(&local));
        for volume in volumes {
            let plain = alone || local == Some(volume);
            dirs.insert(volume, if plain { name.to_owned() } else { format!("{name}@{}", volume.1) });
        }
    }
    dirs
}

fn cloud_entries(core: &Core, found: &[(Uuid, Manifest)]) -> Vec<SnapshotEntry> {
    let dirs = volume_dirs(core, found);
    let entry = |(credential, manifest): &(Uuid, Manifest)| {
        let id = manifest.id();
        let volume = dirs.get(&(manifest.cluster, manifest.volume));
        let suffix = if manifest.backup_type == BackupType::Incremental { "-incr" } else { "" };
        let blocks: u64 = manifest.deltas().map(|delta| delta.data_blocks).sum();
        SnapshotEntry {
            key: cloud_key(*credential, &id),
            volume: volume.cloned().unwrap_or_else(|| manifest.volume_name.clone()),
            id: format!("{}{suffix}", manifest.snapshot),
            created: system_time(manifest.created),
            size_bytes: manifest.size_bytes,
            data_bytes: blocks.saturating_mul(BLOCK_SIZE_BYTES).min(manifest.size_bytes),
        }
    };
    found.iter().map(entry).collect()
}

fn local_entries(core: &Core) -> Vec<SnapshotEntry> {
    let mut entries = Vec::new();
    for volume in core.registry.all() {
        entries.extend(volume.snapshots().into_iter().map(|point| SnapshotEntry {
            key: local_key(volume.id, point.id),
            volume: volume.name.to_string(),
            id: format!("local-{}", point.id),
            created: system_time(point.created),
            size_bytes: point.size_bytes,
            data_bytes: point.size_bytes,
        }));
    }
    entries
}

impl Catalog for BrowseCatalog {
    fn snapshots(&self) -> Arc<Vec<SnapshotEntry>> {
        let Ok(core) = self.core() else { return Arc::default() };
        let shared = &self.shared;
        let mut state = shared.state.lock();
        let due = state.cloud_at.is_none_or(|at| at.elapsed() >= shared.refresh);
        let begins = due && !state.refreshing;
        if begins {
            state.refreshing = true;
            let (shared, core) = (Arc::clone(shared), Arc::clone(&core));
            let runtime = self.runtime.clone();
            self.runtime.spawn_blocking(move || {
                let cloud = runtime.block_on(shared.cloud(&core));
                let mut state = shared.state.lock();
                let changed = state.cloud != cloud;
                state.cloud = cloud;
                state.cloud_at = Some(Instant::now());
                state.refreshing = false;
                state.rounds += 1;
                shared.publish(&core, &mut state, changed);
                shared.changed.notify_all();
            });
        }
        if begins || (due && state.rounds == 0) {
            let round = state.rounds;
            let until = Instant::now() + PATIENCE;
            while state.rounds == round && !shared.changed.wait_until(&mut state, until).timed_out() {}
            // Whoever comes next does not wait for a slow store again.
            state.cloud_at = state.cloud_at.or(Some(Instant::now()));
        }
        if state.local_at.is_none_or(|at| at.elapsed() >= LOCAL_EVERY) {
            shared.publish(&core, &mut state, false);
        }
        Arc::clone(&state.entries)
    }

    fn open(&self, key: &SnapshotKey) -> io::Result<Arc<dyn Image>> {
        let core = self.core()?;
        match source(key).ok_or_else(gone)? {
            Source::Cloud(credential, id) => {
                let opened = core.open_of_credential(&self.runtime, credential, &id);
                let (snapshot, _) = opened.map_err(|error| {
                    tracing::warn!(%error, snapshot = %id, "a cloud snapshot cannot be opened");
                    service_error(&error)
                })?;
                Ok(Arc::new(CloudImage(snapshot)))
            }
            Source::Local(volume, snapshot) => {
                let entry = core.registry.by_id(volume).ok_or_else(gone)?;
                let points = entry.snapshots();
                let point = points.iter().find(|point| point.id == snapshot).ok_or_else(gone)?;
                let image = Arc::new(LocalImage::new(entry, snapshot, point.size_bytes));
                core.browse.local.lock().push(Arc::downgrade(&image));
                Ok(image)
            }
        }
    }

    fn manifest_json(&self, key: &SnapshotKey) -> io::Result<Vec<u8>> {
        let core = self.core()?;
        let mut json = match source(key).ok_or_else(gone)? {
            Source::Cloud(credential, id) => {
                let catalog = ManifestCatalog::new(Arc::clone(&core.db), credential);
                let known = blockd_cloud::ManifestCache::load(&catalog, &id.manifest_key());
                let manifest = match known {
                    Some(manifest) => manifest,
                    None => {
                        let opened = core.open_of_credential(&self.runtime, credential, &id);
                        Manifest::clone(&opened.map_err(|error| service_error(&error))?.1)
                    }
                };
                serde_json::to_vec_pretty(&manifest)?
            }
            Source::Local(volume, snapshot) => {
                let entry = core.registry.by_id(volume).ok_or_else(gone)?;
                let points = entry.snapshots();
                let point = points.iter().find(|point| point.id == snapshot).ok_or_else(gone)?;
                serde_json::to_vec_pretty(&serde_json::json!({
                    "volume": entry.id.to_string(),
                    "volume_name": entry.name,
                    "snapshot": point.id.to_string(),
                    "snapshot_name": point.name,
                    "created": point.created,
                    "size_bytes": point.size_bytes,
                }))?
            }
        };
        json.push(b'\n');
        Ok(json)
    }
}
