//! Listings of the snapshots of a repository, and caches of their manifests.

use crate::{CloudError, CloudSnapshotId, Manifest, ManifestKey, Repository, names::MANIFESTS_PREFIX};
use blockd_extent::VolumeId;
use blockd_store::ObjectInfo;
use futures::{StreamExt, future::BoxFuture};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};
use uuid::Uuid;

/// Manifests that are asked for at once when listing.
const READ_CONCURRENCY: usize = 16;
/// Manifests per write to the cache; as many are lost if a listing is interrupted.
const KEPT_AT_ONCE: usize = 256;
/// Maximum number of listings until no snapshot is deleted meanwhile.
const MAX_SETTLING_LISTINGS: u32 = 16;
/// Listings that are made at once; there is a pause before each further one.
const LISTINGS_WITHOUT_PAUSE: u32 = 2;
/// The first pause; each is twice as long as the one before, up to the longest.
const SETTLING_PAUSE: Duration = Duration::from_millis(200);
const MAX_SETTLING_PAUSE: Duration = Duration::from_secs(10);
/// In how many listings after a pause a manifest must be that is not there, until it counts as deleted.
const MAX_MISSES: u32 = 3;

/// Filter of a listing; all snapshots by default.
#[derive(Clone, Copy, Default, Debug)]
pub struct ManifestFilter {
    /// Those of one installation.
    pub cluster: Option<Uuid>,
    /// Those of one volume.
    pub volume: Option<VolumeId>,
}

/// A snapshot in a listing.
#[derive(Debug)]
pub struct ListedManifest {
    /// Key of the manifest.
    pub key: String,
    /// The snapshot's id, if the key is one's.
    pub id: Option<CloudSnapshotId>,
    /// The manifest, or why it cannot be read.
    pub manifest: Result<Manifest, CloudError>,
}

/// Remembers manifests by key; they never change. Only manifests that were read and authenticated are stored
/// in it.
pub trait ManifestCache: Send + Sync {
    /// Returns the manifest cached under the key, regardless of the store.
    fn load(&self, key: &str) -> Option<Manifest>;
    /// Returns the manifest cached under the key from this version of the object.
    fn load_version(&self, key: &str, version: &str) -> Option<Manifest>;
    /// The same for many objects: what there is, by key. To be done in one go where that is faster, and
    /// elsewhere than on a thread of the runtime where it takes long.
    fn load_versions<'a>(&'a self, objects: &'a [ObjectInfo]) -> BoxFuture<'a, HashMap<String, Manifest>> {
        let load = |object: &ObjectInfo| {
            self.load_version(&object.key, &object.version).map(|manifest| (object.key.clone(), manifest))
        };
        Box::pin(std::future::ready(objects.iter().filter_map(load).collect()))
    }
    /// Remembers a manifest that was read from an object of this version, or does not.
    fn store_version(&self, key: &str, version: &str, manifest: &Manifest);
    /// The same for many, as with [`load_versions`](Self::load_versions).
    fn store_versions<'a>(&'a self, manifests: &'a [(&'a ObjectInfo, &'a Manifest)]) -> BoxFuture<'a, ()> {
        for (object, manifest) in manifests {
            self.store_version(&object.key, &object.version, manifest);
        }
        Box::pin(std::future::ready(()))
    }
}

/// Remembers nothing.
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

/// Remembers in memory.
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
    /// Every snapshot that is there, sorted by key. One listing, and one request for each that the cache
    /// lacks. A manifest that cannot be read is listed with what is wrong with it; one that was deleted
    /// between the listing and its request is left out, so this is for showing, not for deciding what may be
    /// deleted.
    ///
    /// # Errors
    /// Properties of the listing that the store reports.
    pub async fn list_manifests(
        &self,
        filter: &ManifestFilter,
        cache: &dyn ManifestCache,
    ) -> Result<Vec<ListedManifest>, CloudError> {
        let prefix = match (filter.cluster, filter.volume) {
            (Some(cluster), Some(volume)) => format!("{MANIFESTS_PREFIX}{cluster}/{volume}-"),
            (Some(cluster), None) => format!("{MANIFESTS_PREFIX}{cluster}/"),
            (None, _) => MANIFESTS_PREFIX.to_owned(),
        };
        let listed = self.store().list(&prefix).await?;
        let is_wanted = |object: &ObjectInfo| {
            let id = CloudSnapshotId::from_manifest_key(&object.key);
            filter.volume.is_none_or(|volume| id.is_none_or(|id| id.volume == volume))
        };
        let listed: Vec<ObjectInfo> = listed.into_iter().filter(is_wanted).collect();
        Ok(self.read_all_listed(listed, cache).await.into_iter().flatten().collect())
    }

    /// Returns all snapshots of the store, to determine the needed objects: no snapshot that exists
    /// throughout is missing, and none that is based on one deleted meanwhile. At least two listings. `gone`
    /// was deleted by the caller and is skipped, listed or not.
    ///
    /// A manifest that is gone when it is read named unknown deltas; so did one that was deleted before its
    /// turn in a listing of many pages. Another snapshot may have been committed on it after the listing
    /// passed that one's position, so the store is listed again, until a listing has all manifests of the
    /// previous one, and all of them were read. Manifests that were read and then deleted count.
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

    /// Reads listed manifests in order; `None` for each missing one. The cache is read once and written in
    /// batches.
    async fn read_all_listed(
        &self,
        listed: Vec<ObjectInfo>,
        cache: &dyn ManifestCache,
    ) -> Vec<Option<ListedManifest>> {
        let mut cached = cache.load_versions(&listed).await;
        let mut found = Vec::with_capacity(listed.len());
        for part in listed.chunks(KEPT_AT_ONCE) {
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

    /// A manifest that was listed, and may be known; none if it is gone.
    async fn read_listed(&self, object: &ObjectInfo, known: Option<Manifest>) -> Option<ListedManifest> {
        let key = object.key.clone();
        let Some(id) = CloudSnapshotId::from_manifest_key(&key) else {
            let error = CloudError::damaged(&key, 0, "its name is not that of a cloud snapshot");
            return Some(ListedManifest { key, id: None, manifest: Err(error) });
        };
        let manifest = match known {
            Some(manifest) => Ok(manifest),
            None => match self.manifest(&id).await {
                Err(CloudError::SnapshotNotFound { .. }) => return None,
                read => read,
            },
        };
        debug_assert!(manifest.as_ref().map_or(true, |manifest| manifest.id() == id), "{key} is of another");
        Some(ListedManifest { key, id: Some(id), manifest })
    }
}
