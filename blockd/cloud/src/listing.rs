//! Listings of the snapshots of a repository, and caches of their manifests.

use crate::{CloudError, CloudSnapshotId, Manifest, ManifestKey, Repository, names::MANIFESTS_PREFIX};
use blockd_extent::VolumeId;
use blockd_store::ObjectInfo;
use futures::{StreamExt, future::BoxFuture};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};
use uuid::Uuid;

/// Concurrent reads of manifests.
const READ_CONCURRENCY: usize = 16;
/// Manifests per write to the cache; an interrupted listing loses at most as many.
const CACHE_BATCH: usize = 256;
/// Maximum number of listings until one completes without a concurrent deletion.
const MAX_SETTLING_LISTINGS: u32 = 16;
/// Number of listings without a pause; one precedes each further listing.
const LISTINGS_WITHOUT_PAUSE: u32 = 2;
/// First pause; it doubles up to the maximum.
const SETTLING_PAUSE: Duration = Duration::from_millis(200);
const MAX_SETTLING_PAUSE: Duration = Duration::from_secs(10);
/// Number of spaced listings after which a listed but missing manifest counts as deleted.
const MAX_MISSES: u32 = 3;

/// Filter of a listing; all snapshots by default.
#[derive(Clone, Copy, Default, Debug)]
pub struct ManifestFilter {
    /// Cluster id of the host.
    pub cluster: Option<Uuid>,
    /// Volume.
    pub volume: Option<VolumeId>,
}

impl ManifestFilter {
    /// Returns the longest prefix of the wanted keys below `root`.
    pub(crate) fn prefix(&self, root: &str) -> String {
        match (self.cluster, self.volume) {
            (Some(cluster), Some(volume)) => format!("{root}{cluster}/{volume}-"),
            (Some(cluster), None) => format!("{root}{cluster}/"),
            (None, _) => root.to_owned(),
        }
    }

    /// Returns true for a wanted snapshot of a key with the prefix.
    pub(crate) fn includes(&self, id: &CloudSnapshotId) -> bool {
        self.volume.is_none_or(|volume| id.volume == volume)
    }
}

/// Listed snapshot.
#[derive(Debug)]
pub struct ListedManifest {
    /// Key of the manifest.
    pub key: String,
    /// Id; `None` if the key is not that of a manifest.
    pub id: Option<CloudSnapshotId>,
    /// Manifest, or the reason why it cannot be read.
    pub manifest: Result<Manifest, CloudError>,
    /// Time of the object by the store's clock; `None` if the store does not report it.
    pub stored: Option<Timestamp>,
}

/// Returns the time of an object by the store's clock; `None` if the store does not report it.
pub(crate) fn stored(object: &ObjectInfo) -> Option<Timestamp> {
    object.modified_unix_s.and_then(|second| Timestamp::from_second(second).ok())
}

/// Cache of manifests by key; manifests never change. Holds only authenticated manifests.
pub trait ManifestCache: Send + Sync {
    /// Returns the manifest cached under the key, regardless of the store.
    fn load(&self, key: &str) -> Option<Manifest>;
    /// Returns the manifest cached under the key from this version of the object.
    fn load_version(&self, key: &str, version: &str) -> Option<Manifest>;
    /// Returns the cached manifests of many objects by key. Implementations should batch the lookup and must
    /// not block the runtime.
    fn load_versions<'a>(&'a self, objects: &'a [ObjectInfo]) -> BoxFuture<'a, HashMap<String, Manifest>> {
        let load = |object: &ObjectInfo| {
            self.load_version(&object.key, &object.version).map(|manifest| (object.key.clone(), manifest))
        };
        Box::pin(std::future::ready(objects.iter().filter_map(load).collect()))
    }
    /// Caches a manifest that was read from this version of the object; best effort.
    fn store_version(&self, key: &str, version: &str, manifest: &Manifest);
    /// Caches many manifests, like [`load_versions`](Self::load_versions).
    fn store_versions<'a>(&'a self, manifests: &'a [(&'a ObjectInfo, &'a Manifest)]) -> BoxFuture<'a, ()> {
        for (object, manifest) in manifests {
            self.store_version(&object.key, &object.version, manifest);
        }
        Box::pin(std::future::ready(()))
    }
}

/// Cache without content.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoCache;

impl ManifestCache for NoCache {
    fn load(&self, _key: &str) -> Option<Manifest> {
        None
    }
    fn load_version(&self, _key: &str, _version: &str) -> Option<Manifest> {
        None
    }
    fn store_version(&self, _key: &str, _version: &str, _manifest: &Manifest) {}
}

/// Cache in memory.
#[derive(Default, Debug)]
pub struct MemoryCache {
    manifests: Mutex<HashMap<String, (String, Manifest)>>,
}

impl ManifestCache for MemoryCache {
    fn load(&self, key: &str) -> Option<Manifest> {
        self.manifests.lock().get(key).map(|(_, manifest)| manifest.clone())
    }
    fn load_version(&self, key: &str, version: &str) -> Option<Manifest> {
        let manifests = self.manifests.lock();
        manifests.get(key).filter(|(stored, _)| stored == version).map(|(_, manifest)| manifest.clone())
    }
    fn store_version(&self, key: &str, version: &str, manifest: &Manifest) {
        self.manifests.lock().insert(key.to_owned(), (version.to_owned(), manifest.clone()));
    }
}

impl Repository {
    /// Lists the snapshots, sorted by key. One listing, and one request for each manifest that is not cached.
    /// An unreadable manifest is listed with its error; one that was deleted between the listing and its
    /// request is omitted, so the result is for display and must not decide about deletions.
    ///
    /// # Errors
    /// Errors of the listing.
    pub async fn list_manifests(
        &self,
        filter: &ManifestFilter,
        cache: &dyn ManifestCache,
    ) -> Result<Vec<ListedManifest>, CloudError> {
        let listed = self.store().list(&filter.prefix(MANIFESTS_PREFIX)).await?;
        let is_wanted = |object: &ObjectInfo| {
            CloudSnapshotId::from_manifest_key(&object.key).is_none_or(|id| filter.includes(&id))
        };
        let listed: Vec<ObjectInfo> = listed.into_iter().filter(is_wanted).collect();
        Ok(self.read_all_listed(listed, cache).await.into_iter().flatten().collect())
    }

    /// Returns all snapshots of the store, to determine the referenced objects: no snapshot that exists
    /// throughout is missing, and none that is based on a concurrently deleted one. At least two listings.
    /// `gone` was deleted by the caller and is skipped.
    ///
    /// A manifest that was deleted before it was listed or read referenced unknown deltas. A snapshot based
    /// on it may have been committed after the listing passed its position. So the store is listed again,
    /// until a listing has all manifests of the previous one and all of them were read. Manifests that were
    /// read and then deleted count.
    ///
    /// Lagging listings show a deleted manifest for a while: later listings follow after a pause, and a
    /// manifest that is missing after three of them counts as deleted. A snapshot based on it was committed
    /// before, so the last of those listings has it.
    ///
    /// # Errors
    /// Errors of a listing; [`CloudError::Unsettled`].
    pub(crate) async fn list_for_deletion(
        &self,
        gone: Option<&CloudSnapshotId>,
        cache: &dyn ManifestCache,
    ) -> Result<Vec<ListedManifest>, CloudError> {
        let gone = gone.map(CloudSnapshotId::manifest_key);
        let mut read: BTreeMap<String, ListedManifest> = BTreeMap::new();
        let mut before: Option<Vec<String>> = None;
        let mut misses: HashMap<String, u32> = HashMap::new();
        let mut pause = SETTLING_PAUSE;
        for listing in 1..=MAX_SETTLING_LISTINGS {
            let is_spaced = listing > LISTINGS_WITHOUT_PAUSE;
            if is_spaced {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_SETTLING_PAUSE);
            }
            let mut listed = self.store().list(MANIFESTS_PREFIX).await?;
            listed.retain(|object| gone.as_ref() != Some(&object.key));
            let keys: Vec<String> = listed.iter().map(|object| object.key.clone()).collect();
            let new: Vec<_> = listed.into_iter().filter(|object| !read.contains_key(&object.key)).collect();
            let new_keys: Vec<String> = new.iter().map(|object| object.key.clone()).collect();
            let new = self.read_all_listed(new, cache).await;
            assert_eq!(new_keys.len(), new.len(), "an answer for each listed manifest");
            let mut vanished = false;
            for (key, found) in new_keys.into_iter().zip(new) {
                match found {
                    Some(manifest) => {
                        read.insert(key, manifest);
                    }
                    None => {
                        let misses = misses.entry(key).or_default();
                        *misses += u32::from(is_spaced);
                        vanished |= *misses < MAX_MISSES;
                    }
                }
            }
            let now: HashSet<&String> = keys.iter().collect();
            let is_gone = |key: &String| misses.get(key).is_some_and(|misses| *misses >= MAX_MISSES);
            let all_stay =
                before.is_some_and(|before| before.iter().all(|key| now.contains(key) || is_gone(key)));
            if all_stay && !vanished {
                debug_assert!(
                    keys.iter().all(|key| read.contains_key(key) || is_gone(key)),
                    "unread manifests"
                );
                return Ok(read.into_values().collect());
            }
            before = Some(keys);
        }
        Err(CloudError::Unsettled {
            store: self.store().describe().to_owned(),
            listings: MAX_SETTLING_LISTINGS,
        })
    }

    /// Reads listed manifests in order; `None` for each missing one. Reads the cache once and writes it in
    /// batches.
    async fn read_all_listed(
        &self,
        listed: Vec<ObjectInfo>,
        cache: &dyn ManifestCache,
    ) -> Vec<Option<ListedManifest>> {
        let mut cached = cache.load_versions(&listed).await;
        let mut found = Vec::with_capacity(listed.len());
        for part in listed.chunks(CACHE_BATCH) {
            let mut read = Vec::with_capacity(part.len());
            for object in part {
                let id = CloudSnapshotId::from_manifest_key(&object.key);
                let known = cached.remove(&object.key).filter(|known| Some(known.id()) == id);
                read.push(async move {
                    let is_new = known.is_none();
                    (object, self.read_listed(object, known).await, is_new)
                });
            }
            let read: Vec<_> = futures::stream::iter(read).buffered(READ_CONCURRENCY).collect().await;
            let new: Vec<(&ObjectInfo, &Manifest)> = read
                .iter()
                .filter_map(|(object, listed, is_new)| {
                    let manifest = listed.as_ref()?.manifest.as_ref().ok()?;
                    is_new.then_some((*object, manifest))
                })
                .collect();
            if !new.is_empty() {
                cache.store_versions(&new).await;
            }
            debug_assert!(read.iter().zip(part).all(|((object, ..), listed)| object.key == listed.key));
            found.extend(read.into_iter().map(|(_, listed, _)| listed));
        }
        assert_eq!(found.len(), listed.len(), "an answer for each listed manifest");
        found
    }

    /// Reads a listed manifest unless it is known; `None` if it was deleted.
    async fn read_listed(&self, object: &ObjectInfo, known: Option<Manifest>) -> Option<ListedManifest> {
        let (key, stored) = (object.key.clone(), stored(object));
        let Some(id) = CloudSnapshotId::from_manifest_key(&key) else {
            let error = CloudError::damaged(&key, 0, "its name is not that of a cloud snapshot");
            return Some(ListedManifest { key, id: None, manifest: Err(error), stored });
        };
        let manifest = match known {
            Some(manifest) => Ok(manifest),
            None => match self.manifest(&id).await {
                Err(CloudError::SnapshotNotFound { .. }) => return None,
                read => read,
            },
        };
        debug_assert!(manifest.as_ref().map_or(true, |manifest| manifest.id() == id), "{key} is of another");
        Some(ListedManifest { key, id: Some(id), manifest, stored })
    }
}
