//! Listing of all local and cloud snapshots for a mount.
//!
//! Stores are listed on access, at most once per configured interval, and again after each backup and
//! deletion of this daemon. An access waits up to 1.5 s for the new listings; of a slower store it shows the
//! last known listing until the new one arrives.

use super::{
    browser::Browser,
    images::LocalImage,
    stores::{ListRequest, ListedSnapshot, Stores},
};
use blockd_api::CredentialRef;
use blockd_catalog::DbManifestCache;
use blockd_cloud::{CloudSnapshotId, Manifest, ManifestFilter, ManifestKey};
use blockd_engine::error::ServiceError;
use blockd_extent::{BlockSource, SnapshotId, VolumeId};
use blockd_fuse::{Catalog, SnapshotEntry, SnapshotKey};
use jiff::Timestamp;
use parking_lot::{Condvar, Mutex};
use std::{
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant, SystemTime},
};
use tokio::runtime::Handle;
use uuid::Uuid;

/// Timeout of an access that waits for new listings.
const LISTING_TIMEOUT: Duration = Duration::from_millis(1500);
/// Minimum interval between listings of local snapshots.
const LOCAL_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Default)]
struct ListingState {
    entries: Arc<Vec<SnapshotEntry>>,
    local: Vec<SnapshotEntry>,
    cloud: Vec<SnapshotEntry>,
    stores: Stores,
    /// Time of the last store requests.
    cloud_at: Option<Instant>,
    local_at: Option<Instant>,
    /// The set of stores to list is being determined.
    beginning: bool,
    /// An access has waited for the first listings.
    has_waited: bool,
}

/// Listing of stores, shown in a mount.
pub(super) struct SharedListing {
    browser: Weak<Browser>,
    credentials: Vec<CredentialRef>,
    refresh: Duration,
    state: Mutex<ListingState>,
    changed: Condvar,
}

/// Snapshot catalog of one mount.
pub(super) struct BrowseCatalog {
    shared: Arc<SharedListing>,
    runtime: Handle,
}

fn not_found() -> io::Error {
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

/// Snapshot that a key refers to.
enum KeyTarget {
    Cloud(Uuid, CloudSnapshotId),
    Local(VolumeId, SnapshotId),
}

fn local_key(volume: VolumeId, snapshot: SnapshotId) -> SnapshotKey {
    SnapshotKey(format!("local:{volume}:{snapshot}").into())
}

fn target(key: &SnapshotKey) -> Option<KeyTarget> {
    let (kind, rest) = key.0.split_once(':')?;
    let (first, second) = rest.split_once(':')?;
    match kind {
        "cloud" => Some(KeyTarget::Cloud(first.parse().ok()?, second.parse().ok()?)),
        _ => Some(KeyTarget::Local(first.parse().ok()?, second.parse().ok()?)),
    }
}

fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::from(time)
}

impl BrowseCatalog {
    /// Creates the catalog of the local snapshots and of the cloud snapshots of these credentials; of all
    /// credentials if empty.
    pub fn new(browser: &Arc<Browser>, credentials: Vec<CredentialRef>, runtime: Handle) -> Self {
        let shared = SharedListing {
            browser: Arc::downgrade(browser),
            credentials,
            refresh: Duration::from_millis(browser.host.settings.browse.refresh_ms),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        let shared = Arc::new(shared);
        browser.browse.listings.lock().push(Arc::downgrade(&shared));
        Self { shared, runtime }
    }

    fn browser(&self) -> io::Result<Arc<Browser>> {
        self.shared.browser.upgrade().ok_or_else(not_found)
    }
}

impl SharedListing {
    /// Lists all stores without a pending request concurrently. A listing is shown when it arrives, and the
    /// last known one until then.
    async fn list(&self, browser: &Browser) {
        let rows = browser.repositories.credential_rows().await;
        let begun = {
            let mut state = self.state.lock();
            state.beginning = false;
            let rows = match rows {
                Ok(rows) => rows,
                Err(error) => {
                    tracing::warn!(%error, "reading the credentials failed; stores are not listed");
                    self.changed.notify_all();
                    return;
                }
            };
            let wanted = |row: &blockd_catalog::CredentialRow| {
                let is = |wanted: &CredentialRef| match wanted {
                    CredentialRef::Id(uuid) => row.uuid == *uuid,
                    CredentialRef::Name(name) => row.name == *name,
                };
                self.credentials.is_empty() || self.credentials.iter().any(is)
            };
            let wanted = rows.into_iter().filter(wanted).map(|row| (row.uuid, row.name.to_string()));
            state.stores.begin(wanted)
        };
        let first: Vec<&ListRequest> = begun.iter().filter(|request| request.is_first).collect();
        for request in &first {
            let known = DbManifestCache::new(Arc::clone(&browser.db), request.credential).all();
            let known = known.unwrap_or_else(|error| {
                tracing::warn!(%error, "reading cached manifests failed; they are not shown");
                Vec::new()
            });
            let known =
                known.iter().map(|manifest| ListedSnapshot::of(request.credential, manifest)).collect();
            self.state.lock().stores.remember(request, known);
        }
        if !first.is_empty() {
            self.publish_cloud(browser);
        }
        let each = begun.iter().map(|request| async move {
            let listed = list_store(browser, request.credential).await.map_err(|error| {
                tracing::warn!(%error, credential = %request.credential, "listing the store failed; its last known snapshots are shown");
                error.to_string()
            });
            self.state.lock().stores.end(request, listed);
            self.publish_cloud(browser);
        });
        futures::future::join_all(each).await;
        // Wakes waiting accesses even if no store was listed.
        self.changed.notify_all();
    }

    /// Merges the known listings of all stores.
    fn publish_cloud(&self, browser: &Browser) {
        let mut state = self.state.lock();
        let local = |name: &str| browser.registry.by_name(name).map(|entry| (browser.host.cluster, entry.id));
        let cloud = state.stores.entries(local);
        let changed = state.cloud != cloud;
        state.cloud = cloud;
        self.publish(browser, &mut state, changed);
        self.changed.notify_all();
    }

    /// Rebuilds the combined listing if it changed; an unchanged list must stay the same `Arc`.
    fn publish(&self, browser: &Browser, state: &mut ListingState, cloud_changed: bool) {
        let local = local_entries(browser);
        state.local_at = Some(Instant::now());
        if cloud_changed || state.local != local {
            state.entries = Arc::new(local.iter().chain(&state.cloud).cloned().collect());
            state.local = local;
        }
    }

    /// Invalidates the listing of a store: the next access waits for a new one.
    pub fn renew(&self, credential: Uuid) {
        let mut state = self.state.lock();
        state.stores.renew(credential);
        state.cloud_at = None;
        state.local_at = None;
    }
}

async fn list_store(browser: &Browser, credential: Uuid) -> Result<Vec<ListedSnapshot>, ServiceError> {
    let listed = async {
        let (repository, _) = browser.repositories.task_repository(credential).await?;
        let catalog = DbManifestCache::new(Arc::clone(&browser.db), credential);
        Ok::<_, ServiceError>(repository.list_manifests(&ManifestFilter::default(), &catalog).await?)
    };
    let listed =
        blockd_engine::repositories::preflight::in_reader_time(&browser.host.settings, listed).await?;
    let whole = listed.into_iter().filter_map(|item| item.manifest.ok());
    Ok(whole.map(|manifest| ListedSnapshot::of(credential, &manifest)).collect())
}

fn local_entries(browser: &Browser) -> Vec<SnapshotEntry> {
    let mut entries = Vec::new();
    for volume in browser.registry.all() {
        entries.extend(volume.snapshots().iter().map(|point| SnapshotEntry {
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
        let Ok(browser) = self.browser() else { return Arc::default() };
        let shared = &self.shared;
        let mut state = shared.state.lock();
        let due = state.cloud_at.is_none_or(|at| at.elapsed() >= shared.refresh);
        let begins = due && !state.beginning;
        // All accesses during the first listings wait for them.
        let since = if state.has_waited { state.stores.next() } else { 0 };
        if begins {
            state.beginning = true;
            state.cloud_at = Some(Instant::now());
            let (shared, browser) = (Arc::clone(shared), Arc::clone(&browser));
            let runtime = self.runtime.clone();
            self.runtime.spawn_blocking(move || runtime.block_on(shared.list(&browser)));
        }
        if begins || !state.has_waited {
            let deadline = Instant::now() + LISTING_TIMEOUT;
            let is_done = |state: &ListingState| !state.beginning && state.stores.is_complete(since);
            while !is_done(&state) && !shared.changed.wait_until(&mut state, deadline).timed_out() {}
            // The next access does not wait for a slow store again.
            state.has_waited = true;
        }
        if state.local_at.is_none_or(|at| at.elapsed() >= LOCAL_INTERVAL) {
            shared.publish(&browser, &mut state, false);
        }
        Arc::clone(&state.entries)
    }

    fn unlisted(&self) -> Option<String> {
        self.shared.state.lock().stores.unlisted()
    }

    fn open(&self, key: &SnapshotKey) -> io::Result<Arc<dyn BlockSource>> {
        let browser = self.browser()?;
        match target(key).ok_or_else(not_found)? {
            KeyTarget::Cloud(credential, id) => {
                let opened = browser.open_of_credential(&self.runtime, credential, &id);
                let (snapshot, _) = opened.map_err(|error| {
                    tracing::warn!(%error, snapshot = %id, "opening a cloud snapshot failed");
                    service_error(&error)
                })?;
                Ok(Arc::new(snapshot))
            }
            KeyTarget::Local(volume, snapshot) => {
                let entry = browser.registry.by_id(volume).ok_or_else(not_found)?;
                let points = entry.snapshots();
                let point = points.iter().find(|point| point.id == snapshot).ok_or_else(not_found)?;
                let image = Arc::new(LocalImage::new(entry, snapshot, point.size_bytes));
                browser.browse.local.lock().push(Arc::downgrade(&image));
                Ok(image)
            }
        }
    }

    fn manifest_json(&self, key: &SnapshotKey) -> io::Result<Vec<u8>> {
        let browser = self.browser()?;
        let mut json = match target(key).ok_or_else(not_found)? {
            KeyTarget::Cloud(credential, id) => {
                let catalog = DbManifestCache::new(Arc::clone(&browser.db), credential);
                let known = blockd_cloud::ManifestCache::load(&catalog, &id.manifest_key());
                let manifest = match known {
                    Some(manifest) => manifest,
                    None => {
                        let opened = browser.open_of_credential(&self.runtime, credential, &id);
                        Manifest::clone(&opened.map_err(|error| service_error(&error))?.1)
                    }
                };
                serde_json::to_vec_pretty(&manifest)?
            }
            KeyTarget::Local(volume, snapshot) => {
                let entry = browser.registry.by_id(volume).ok_or_else(not_found)?;
                let points = entry.snapshots();
                let point = points.iter().find(|point| point.id == snapshot).ok_or_else(not_found)?;
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
