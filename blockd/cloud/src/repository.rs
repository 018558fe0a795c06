//! A repository: a store, and the keys to what is in it.

use crate::{
    CloudError, CloudsnapId,
    keys::{DataKey, KdfParams, KeySlot, SLOT_LEN_BYTES, create_slot},
    manifest::{MANIFEST_LEN_MOST, Manifest},
    names::{KEYS_PREFIX, MANIFESTS_PREFIX, parse_uuid},
    seal::EncryptionMode,
    store::{ObjectInfo, ObjectStore, PutMode, StoreError, StoreErrorKind},
    work::Work,
};
use blockd_extent::VolumeId;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::BoxFuture};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Most key slots that are read.
pub(crate) const SLOTS_MOST: usize = 64;
/// Key slots that are asked for at once.
const SLOT_CONCURRENCY: usize = 8;
/// Manifests that are asked for at once when listing.
const READ_CONCURRENCY: usize = 16;
/// Manifests that a cache is told of at once: as many are lost to it if a listing is cut off.
const KEPT_AT_ONCE: usize = 256;
/// How often a store is listed until no snapshot is deleted meanwhile.
const SETTLING_LISTINGS_MOST: u32 = 16;
/// Listings that are made at once; there is a pause before each further one.
const LISTINGS_WITHOUT_PAUSE: u32 = 2;
/// The first pause; each is twice as long as the one before, up to the longest.
const SETTLING_PAUSE: Duration = Duration::from_millis(200);
const SETTLING_PAUSE_MOST: Duration = Duration::from_secs(10);
/// In how many listings after a pause a manifest must be that is not there, until it counts as deleted.
const MISSES_MOST: u32 = 3;

/// How a repository is opened.
#[derive(Clone, Copy, Default, Debug)]
pub struct OpenOptions {
    /// The work that goes into a key slot, should one have to be made.
    pub kdf: KdfParams,
}

/// A store whose keys are known.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn ObjectStore>,
    /// New backups use the first.
    keys: Arc<Vec<DataKey>>,
    work: Work,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("store", &self.store.describe()).field("keys", &self.keys).finish()
    }
}

impl Repository {
    /// Opens what is in a store, or begins a repository there if there is none.
    ///
    /// The passphrase's bytes are used as they are (UTF-8, not normalised).
    ///
    /// # Errors
    /// [`CloudError::WrongPassphrase`], [`CloudError::EncryptedRepository`] and [`CloudError::PlainRepository`] if the
    /// passphrase does not fit what is there; [`CloudError::Damaged`] if a key slot is damaged and no other one
    /// opens; whatever the store reports.
    pub async fn open(
        store: Arc<dyn ObjectStore>,
        passphrase: Option<&str>,
        options: &OpenOptions,
    ) -> Result<Self, CloudError> {
        Self::open_or_create(store, passphrase, Some(options)).await
    }

    /// Opens what is in a store, and makes nothing: for a store that is known to hold a repository. A disk that is not mounted is
    /// an empty directory.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`CloudError::KeySlotMissing`] if there is no repository.
    pub async fn open_existing(
        store: Arc<dyn ObjectStore>,
        passphrase: Option<&str>,
    ) -> Result<Self, CloudError> {
        Self::open_or_create(store, passphrase, None).await
    }

    async fn open_or_create(
        store: Arc<dyn ObjectStore>,
        passphrase: Option<&str>,
        create: Option<&OpenOptions>,
    ) -> Result<Self, CloudError> {
        if passphrase == Some("") {
            return Err(CloudError::InvalidRequest {
                what: "the passphrase is empty: give one, or none at all".into(),
            });
        }
        let listed: Vec<String> =
            store.list(KEYS_PREFIX).await?.into_iter().map(|object| object.key).collect();
        let slots = listed.iter().filter(|key| key.strip_prefix(KEYS_PREFIX).and_then(parse_uuid).is_some());
        let slots: Vec<&String> = slots.collect();
        if slots.len() > SLOTS_MOST {
            let store = store.describe().to_owned();
            return Err(CloudError::TooManyKeys { store, found: slots.len(), most: SLOTS_MOST });
        }
        let keys = if slots.is_empty() {
            if !store.list(MANIFESTS_PREFIX).await?.is_empty() {
                return Err(CloudError::KeySlotsGone { store: store.describe().to_owned() });
            }
            let Some(options) = create else {
                let (store, key) = (store.describe().to_owned(), format!("{KEYS_PREFIX}*"));
                return Err(CloudError::KeySlotMissing { store, key });
            };
            vec![Self::create(&*store, passphrase, options).await?]
        } else {
            Self::open_slots(&*store, &slots, passphrase).await?
        };
        Ok(Self { store, keys: Arc::new(keys), work: Work::default() })
    }

    /// Makes sure that the store is the one that was opened and that others can open what is stored there: the slot of
    /// the key that new backups use is in its place. One GET.
    ///
    /// # Errors
    /// [`CloudError::KeySlotMissing`] if it is not there; [`CloudError::Damaged`]; whatever the store reports.
    pub async fn prove_key_slot(&self) -> Result<(), CloudError> {
        let key_id = self.key().key_id();
        let object = format!("{KEYS_PREFIX}{key_id}");
        match self.store.get(&object, SLOT_LEN_BYTES as u64).await {
            Ok(bytes) if KeySlot::parse(&object, &bytes)?.key_id == key_id => Ok(()),
            Ok(_) => Err(CloudError::damaged(&object, 0, "it holds another key")),
            Err(error) if error.kind == StoreErrorKind::NotFound => {
                Err(CloudError::KeySlotMissing { store: self.store.describe().to_owned(), key: object })
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn create(
        store: &dyn ObjectStore,
        passphrase: Option<&str>,
        options: &OpenOptions,
    ) -> Result<DataKey, CloudError> {
        let passphrase = passphrase.map(|text| Zeroizing::new(text.to_owned()));
        let kdf = options.kdf;
        let created = seconds_since_1970();
        let made = move || create_slot(passphrase.as_ref().map(|text| text.as_str()), kdf, created);
        let (key, slot) = run_blocking(made).await?;
        let object = format!("{KEYS_PREFIX}{}", key.key_id());
        let slot = bytes::Bytes::from(slot);
        match create(store, &object, slot.clone()).await {
            Ok(()) => {}
            // The name is random: if it is there, an earlier attempt of this very request made it, perhaps badly.
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                if !matches!(store.get(&object, SLOT_LEN_BYTES as u64).await, Ok(there) if there == slot) {
                    store.put(&object, slot, PutMode::Overwrite).await?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(key)
    }

    async fn open_slots(
        store: &dyn ObjectStore,
        objects: &[&String],
        passphrase: Option<&str>,
    ) -> Result<Vec<DataKey>, CloudError> {
        let read = objects.iter().map(|object| async move {
            match store.get(object, SLOT_LEN_BYTES as u64).await {
                Ok(bytes) => Ok(KeySlot::parse(object, &bytes)),
                Err(error) if error.kind == StoreErrorKind::TooLarge => Ok(Err(CloudError::damaged(
                    object,
                    0,
                    format!("a key slot has {SLOT_LEN_BYTES} bytes, this has more"),
                ))),
                Err(error) => Err(CloudError::from(error)),
            }
        });
        let read: Vec<Result<KeySlot, CloudError>> =
            futures::stream::iter(read).buffered(SLOT_CONCURRENCY).try_collect().await?;
        let mut first_damage = None;
        let mut slots = Vec::new();
        for slot in read {
            match slot {
                Ok(slot) => slots.push(slot),
                Err(error) => first_damage = first_damage.or(Some(error)),
            }
        }
        // The newest first: it is used to write.
        slots.sort_by_key(|slot| std::cmp::Reverse((slot.created_unix_s, slot.key_id)));
        let encrypted = slots.iter().filter(|slot| slot.mode == EncryptionMode::Aes256GcmSiv).count();
        let store = store.describe().to_owned();
        let keys = match passphrase {
            // Where there is a single encrypted slot, a plain one proves nothing: anybody can put one there.
            None if encrypted > 0 => return Err(CloudError::EncryptedRepository { store }),
            None => slots.iter().filter_map(KeySlot::open_plain).collect(),
            Some(passphrase) => {
                let passphrase = Zeroizing::new(passphrase.to_owned());
                run_blocking(move || {
                    let encrypted = slots.iter().filter(|slot| slot.mode == EncryptionMode::Aes256GcmSiv);
                    let opened =
                        encrypted.map(|slot| slot.open(&passphrase)).collect::<Result<Vec<_>, _>>()?;
                    Ok(opened.into_iter().flatten().collect::<Vec<DataKey>>())
                })
                .await?
            }
        };
        match (keys.is_empty(), first_damage) {
            (false, damage) => {
                if let Some(error) = damage {
                    tracing::warn!(%error, "a key slot is damaged; another one was opened");
                }
                Ok(keys)
            }
            (true, Some(error)) => Err(error),
            (true, None) if encrypted == 0 => Err(CloudError::PlainRepository { store }),
            (true, None) => Err(CloudError::WrongPassphrase { store, slots: encrypted }),
        }
    }

    /// A repository whose keys were opened before. Makes no request.
    ///
    /// # Errors
    /// [`CloudError::InvalidRequest`] if there is no key, or some encrypt and some do not.
    pub fn from_saved_keys(store: Arc<dyn ObjectStore>, keys: Vec<DataKey>) -> Result<Self, CloudError> {
        let invalid = |what: &str| Err(CloudError::InvalidRequest { what: what.to_owned() });
        let Some(first) = keys.first() else {
            return invalid("no data key was saved: open the repository with its passphrase");
        };
        if keys.iter().any(|key| key.mode() != first.mode()) {
            return invalid("some of the saved keys encrypt and some do not: open the repository again");
        }
        Ok(Self { store, keys: Arc::new(keys), work: Work::default() })
    }

    /// The same repository through another view of its store, such as one that counts a task's requests.
    #[must_use]
    pub fn with_store(&self, store: Arc<dyn ObjectStore>) -> Self {
        Self { store, keys: self.keys.clone(), work: self.work.clone() }
    }

    /// The same repository, whose backups, restores and verifications have their work done that way.
    #[must_use]
    pub fn with_work(self, work: Work) -> Self {
        Self { work, ..self }
    }

    /// How the work is done.
    pub(crate) fn work(&self) -> &Work {
        &self.work
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The data keys, to be kept sealed; the first one is used for new backups.
    pub fn keys(&self) -> &[DataKey] {
        &self.keys
    }

    /// Whether what is stored is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.key().mode() == EncryptionMode::Aes256GcmSiv
    }

    pub(crate) fn key(&self) -> &DataKey {
        // Both constructors refuse an empty list.
        &self.keys[0]
    }

    pub(crate) fn find_key(&self, key_id: Uuid) -> Option<DataKey> {
        self.keys.iter().find(|key| key.key_id() == key_id).cloned()
    }

    /// Reads one snapshot's manifest.
    ///
    /// # Errors
    /// [`CloudError::SnapshotNotFound`]; [`CloudError::Damaged`]; whatever the store reports.
    pub async fn manifest(&self, id: &CloudsnapId) -> Result<Manifest, CloudError> {
        let path = id.manifest_key();
        match self.store.get(&path, MANIFEST_LEN_MOST).await {
            Ok(object) => Manifest::decode(&object, id, |key_id| self.find_key(key_id)),
            Err(error) => match error.kind {
                StoreErrorKind::NotFound => {
                    Err(CloudError::SnapshotNotFound { id: *id, store: self.store.describe().to_owned() })
                }
                StoreErrorKind::TooLarge => Err(CloudError::damaged(
                    &path,
                    0,
                    format!("it is longer than the {MANIFEST_LEN_MOST} bytes that a manifest may have"),
                )),
                _ => Err(error.into()),
            },
        }
    }

    /// Every snapshot that is there, sorted by key. One listing, and one request for each that the cache lacks. A
    /// manifest that cannot be read is listed with what is wrong with it; one that was deleted between the listing and its request is left out,
    /// so this is for showing, not for deciding what may be deleted.
    ///
    /// # Errors
    /// What the store reports of the listing.
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
        let listed = self.store.list(&prefix).await?;
        let is_wanted = |object: &ObjectInfo| {
            let id = CloudsnapId::from_manifest_key(&object.key);
            filter.volume.is_none_or(|volume| id.is_none_or(|id| id.volume == volume))
        };
        let listed: Vec<ObjectInfo> = listed.into_iter().filter(is_wanted).collect();
        Ok(self.read_all_listed(listed, cache).await.into_iter().flatten().collect())
    }

    /// Every snapshot of the store, for whoever wants to know what is needed: none that is there all the time is missing, and
    /// none that was made on one which was deleted meanwhile. At least two listings. `gone` was deleted by the caller
    /// and is left out, be it listed or not.
    ///
    /// A manifest that is gone when it is asked for named deltas that nobody has seen now; so did one that was deleted
    /// before its turn in a listing of many pages. Another snapshot may have been made on it since the listing passed that one's place, so
    /// the store is listed again, until a listing has all that the one before it had, and all of that was read. Manifests
    /// that were read and then deleted count.
    ///
    /// Where listings lag behind, one that is long deleted stays in them for a while: listings that follow are made after a pause, and
    /// what was not there after three of them counts as deleted. What was made on it was committed before, so the last of
    /// those listings has that.
    ///
    /// # Errors
    /// What the store reports of a listing; [`CloudError::Unsettled`].
    pub(crate) async fn list_for_deletion(
        &self,
        gone: Option<&CloudsnapId>,
        cache: &dyn ManifestCache,
    ) -> Result<Vec<ListedManifest>, CloudError> {
        let gone = gone.map(CloudsnapId::manifest_key);
        let mut read: BTreeMap<String, ListedManifest> = BTreeMap::new();
        let mut before: Option<Vec<String>> = None;
        let mut misses: HashMap<String, u32> = HashMap::new();
        let mut pause = SETTLING_PAUSE;
        for listing in 1..=SETTLING_LISTINGS_MOST {
            let is_spaced = listing > LISTINGS_WITHOUT_PAUSE;
            if is_spaced {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(SETTLING_PAUSE_MOST);
            }
            let mut listed = self.store.list(MANIFESTS_PREFIX).await?;
            listed.retain(|object| gone.as_ref() != Some(&object.key));
            let keys: Vec<String> = listed.iter().map(|object| object.key.clone()).collect();
            let new: Vec<_> = listed.into_iter().filter(|object| !read.contains_key(&object.key)).collect();
            let new_keys: Vec<String> = new.iter().map(|object| object.key.clone()).collect();
            let new = self.read_all_listed(new, cache).await;
            let mut vanished = false;
            for (key, found) in new_keys.into_iter().zip(new) {
                match found {
                    Some(manifest) => {
                        read.insert(key, manifest);
                    }
                    None => {
                        let misses = misses.entry(key).or_default();
                        *misses += u32::from(is_spaced);
                        vanished |= *misses < MISSES_MOST;
                    }
                }
            }
            let now: HashSet<&String> = keys.iter().collect();
            let is_gone = |key: &String| misses.get(key).is_some_and(|misses| *misses >= MISSES_MOST);
            let all_stay =
                before.is_some_and(|before| before.iter().all(|key| now.contains(key) || is_gone(key)));
            if all_stay && !vanished {
                return Ok(read.into_values().collect());
            }
            before = Some(keys);
        }
        Err(CloudError::Unsettled {
            store: self.store.describe().to_owned(),
            listings: SETTLING_LISTINGS_MOST,
        })
    }

    /// Manifests that were listed, in the same order; none for each that is gone. The cache is asked for all of them at once, and
    /// is told of many at once.
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
                let id = CloudsnapId::from_manifest_key(&object.key);
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
            found.extend(read.into_iter().map(|(_, listed, _)| listed));
        }
        found
    }

    /// A manifest that was listed, and may be known; none if it is gone.
    async fn read_listed(&self, object: &ObjectInfo, known: Option<Manifest>) -> Option<ListedManifest> {
        let key = object.key.clone();
        let Some(id) = CloudsnapId::from_manifest_key(&key) else {
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
        Some(ListedManifest { key, id: Some(id), manifest })
    }

    /// Puts a manifest, which is the commit; returns the one that is there then, and whether a single request put it, as
    /// far as `puts` counts them. Otherwise it may have been there before and been deleted since.
    pub(crate) async fn put_manifest(
        &self,
        manifest: Manifest,
        object: Bytes,
        puts: impl Fn() -> u64 + Send,
    ) -> Result<(Manifest, bool), CloudError> {
        let path = manifest.id().manifest_key();
        let mut puts_before = puts();
        let mut put = self.store.put(&path, object.clone(), PutMode::CreateIfAbsent).await;
        if matches!(&put, Err(error) if error.kind == StoreErrorKind::Unsupported) {
            // What the store refused made nothing.
            puts_before = puts();
            put = self.store.put(&path, object, PutMode::Overwrite).await;
        }
        let at_once = put.is_ok() && puts() == puts_before + 1;
        let there = match put {
            Ok(()) => Ok(manifest),
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                // An earlier attempt, or an earlier run, may have been carried out without its answer arriving.
                let found = self.manifest(&manifest.id()).await?;
                if found.delta == manifest.delta {
                    Ok(found)
                } else {
                    Err(CloudError::Conflict { key: path })
                }
            }
            // All attempts may have been carried out without an answer arriving: then it is a snapshot.
            Err(error) => match self.manifest(&manifest.id()).await {
                Ok(found) if found.delta == manifest.delta => Ok(found),
                _ => Err(error.into()),
            },
        };
        Ok((there?, at_once))
    }
}

/// The time.
pub(crate) fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Puts an object whose name nobody else uses: only if it is absent, where the store knows that.
async fn create(store: &dyn ObjectStore, key: &str, body: Bytes) -> Result<(), StoreError> {
    match store.put(key, body.clone(), PutMode::CreateIfAbsent).await {
        Err(error) if error.kind == StoreErrorKind::Unsupported => {
            store.put(key, body, PutMode::Overwrite).await
        }
        result => result,
    }
}

/// Runs what takes long away from the async threads.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CloudError> + Send + 'static,
) -> Result<T, CloudError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| CloudError::worker(&error))?
}

/// Which snapshots to list; the default is all.
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
    pub id: Option<CloudsnapId>,
    /// The manifest, or why it cannot be read.
    pub manifest: Result<Manifest, CloudError>,
}

/// Remembers manifests by key; they never change. Only manifests that were read and authenticated are stored in it.
pub trait ManifestCache: Send + Sync {
    /// What was stored under the key, whatever is there now.
    fn load(&self, key: &str) -> Option<Manifest>;
    /// What was stored under the key, if it was read from an object of this version.
    fn load_version(&self, key: &str, version: &str) -> Option<Manifest>;
    /// The same for many objects: what there is, by key. To be done in one go where that is faster, and elsewhere than on a
    /// thread of the runtime where it takes long.
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
