//! A repository: a store, and the keys to what is in it.

use crate::{
    CloudError, CloudSnapshotId, ManifestKey,
    keys::{DataKey, KdfParams, KeySlot, SLOT_LEN_BYTES},
    manifest::{MAX_MANIFEST_LEN, Manifest},
    names::MANIFESTS_PREFIX,
    seal::EncryptionMode,
    slots::{self, SlotCheck, SlotFinding, StoredSlot},
    unlock,
    write_key::{WriteKey, Writing},
};
use blockd_extent::VolumeId;
use blockd_store::{BlobStore, ObjectInfo, PutMode, StoreErrorKind, Work};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;

/// Findings about key slots that are kept until they are taken.
const MAX_SLOT_FINDINGS: usize = 64;
/// Manifests that are read to prove that a store is the right one.
const MAX_MANIFESTS_FOR_PROOF: usize = 16;
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

/// Options to open a repository.
#[derive(Clone, Copy, Default, Debug)]
pub struct OpenOptions {
    /// The work that goes into a key slot, should one have to be made.
    pub kdf: KdfParams,
}

/// A store whose keys are known.
#[derive(Clone)]
pub struct Repository {
    store: Arc<dyn BlobStore>,
    keys: Arc<Vec<DataKey>>,
    writing: Writing,
    slots: Arc<Mutex<SlotMemory>>,
    work: Work,
}

/// The key slots of a repository as they were last seen whole. Shared by all views of the repository.
#[derive(Default)]
pub(crate) struct SlotMemory {
    pub remembered: Vec<KeySlot>,
    pub findings: Vec<SlotFinding>,
}

impl SlotMemory {
    pub fn remember(&mut self, slot: KeySlot) {
        match self.remembered.iter_mut().find(|known| known.key_id == slot.key_id) {
            Some(known) => *known = slot,
            None => self.remembered.push(slot),
        }
    }

    /// Keeps findings until they are taken, up to [`MAX_SLOT_FINDINGS`].
    pub fn note(&mut self, findings: &[SlotFinding]) {
        let room = MAX_SLOT_FINDINGS.saturating_sub(self.findings.len());
        self.findings.extend(findings.iter().take(room).cloned());
    }
}

/// The facts about the keys of a repository that a host keeps: no secret is among them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct KnownKeys {
    /// The key of new backups. Without one, the newest that opens becomes it.
    pub write_key: Option<WriteKey>,
    /// Key slots as they were last seen whole.
    pub slots: Vec<KeySlot>,
}

impl KnownKeys {
    /// The ids of the keys. They are random: two repositories share none, unless one is a copy of the other.
    pub fn key_ids(&self) -> impl Iterator<Item = Uuid> {
        self.write_key.map(|key| key.key_id).into_iter().chain(self.slots.iter().map(|slot| slot.key_id))
    }

    /// Adds a slot, unless there is one of the same key.
    pub fn remember_missing(&mut self, slot: KeySlot) {
        if self.slots.iter().all(|known| known.key_id != slot.key_id) {
            self.slots.push(slot);
        }
    }

    /// The slots one after the other.
    pub fn encode_slots(&self) -> Vec<u8> {
        self.slots.iter().flat_map(|slot| *slot.bytes()).collect()
    }

    /// Reads [`encode_slots`](Self::encode_slots) back. A slot that is damaged is left out, since the store
    /// has it too.
    pub fn decode_slots(bytes: &[u8]) -> Vec<KeySlot> {
        let slots = bytes.chunks(SLOT_LEN_BYTES).filter_map(|slot| match KeySlot::from_saved(slot) {
            Ok(slot) => Some(slot),
            Err(error) => {
                tracing::warn!(%error, "a remembered key slot is damaged");
                None
            }
        });
        slots.collect()
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository").field("store", &self.store.describe()).field("keys", &self.keys).finish()
    }
}

impl Repository {
    /// Opens the repository of a store, or creates one.
    ///
    /// The passphrase is used as UTF-8 bytes, not normalised. Missing or damaged copies of key slots are
    /// rewritten, see [`take_slot_findings`](Self::take_slot_findings).
    ///
    /// # Errors
    /// [`CloudError::WrongPassphrase`], [`CloudError::EncryptedRepository`] and
    /// [`CloudError::PlainRepository`] if the passphrase does not fit the repository; [`CloudError::Damaged`]
    /// if both copies of a key slot are damaged and no other slot opens; errors of the store.
    pub async fn open(
        store: Arc<dyn BlobStore>,
        passphrase: Option<&str>,
        options: &OpenOptions,
    ) -> Result<Self, CloudError> {
        unlock::open(store, passphrase, &KnownKeys::default(), Some(options)).await
    }

    /// Opens what is in a store, and makes nothing: for a store that is known to hold a repository. A disk
    /// that is not mounted is an empty directory. `known` are the slots that this host remembers: they open
    /// the repository, and are put back, if both copies in the store are gone.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`CloudError::KeySlotMissing`] if there is no repository.
    pub async fn open_existing(
        store: Arc<dyn BlobStore>,
        passphrase: Option<&str>,
        known: &KnownKeys,
    ) -> Result<Self, CloudError> {
        unlock::open(store, passphrase, known, None).await
    }

    /// Proves that the store is the one that was opened and that other hosts can open the repository: a slot
    /// of the key of new backups is in its place. One GET if the slot is intact; otherwise it is repaired if
    /// possible.
    ///
    /// # Errors
    /// [`CloudError::KeySlotMissing`] if neither copy exists; [`CloudError::Damaged`]; errors of the store.
    pub async fn prove_key_slot(&self) -> Result<(), CloudError> {
        let key = self.key();
        let first = slots::read_copy(&*self.store, 0, key.key_id()).await?;
        let remembered = self.slots.lock().remembered.iter().find(|slot| slot.is_of(key)).cloned();
        if first
            .slot()
            .is_some_and(|slot| remembered.as_ref().is_none_or(|known| known == slot) && slot.is_of(key))
        {
            return Ok(());
        }
        let second = slots::read_copy(&*self.store, 1, key.key_id()).await?;
        let stored = StoredSlot { key_id: key.key_id(), copies: [first, second] };
        let check = SlotCheck::of(&stored, key, remembered.as_ref());
        if self.repair(&check).await?.0 {
            return Ok(());
        }
        Err(stored.error().unwrap_or_else(|| CloudError::KeySlotMissing {
            store: self.store.describe().to_owned(),
            key: slots::object_of(0, key.key_id()),
        }))
    }

    /// Checks both copies of all key slots, and repairs them if possible.
    ///
    /// # Errors
    /// Errors of the store that are not about a slot.
    pub async fn check_key_slots(&self) -> Result<Vec<SlotFinding>, CloudError> {
        let ids = self.keys.iter().map(DataKey::key_id).collect();
        let all = slots::read_all(&*self.store, ids).await?;
        let remembered = self.slots.lock().remembered.clone();
        let mut findings = Vec::new();
        for (stored, key) in all.iter().zip(self.keys.iter()) {
            let known = remembered.iter().find(|slot| slot.key_id == key.key_id());
            findings.extend(self.repair(&SlotCheck::of(stored, key, known)).await?.1);
        }
        Ok(findings)
    }

    /// Repairs a slot. Returns whether a genuine copy is in the store then, and the findings, which are kept
    /// as well.
    pub(crate) async fn repair(&self, check: &SlotCheck) -> Result<(bool, Vec<SlotFinding>), CloudError> {
        let is_place_proven = check.needs_place() && self.is_own_place().await?;
        let findings = check.repair(&*self.store, is_place_proven).await;
        let is_there = check.is_in_store || findings.iter().any(SlotFinding::is_repaired);
        let mut memory = self.slots.lock();
        if let Some(slot) = check.source.clone().filter(|_| is_there) {
            memory.remember(slot);
        }
        memory.note(&findings);
        Ok((is_there, findings))
    }

    /// Returns true if the store has an object that only a holder of a data key can have written: a key slot
    /// or a manifest. The empty directory of an unmounted disk has none.
    pub(crate) async fn is_own_place(&self) -> Result<bool, CloudError> {
        let ids = self.keys.iter().map(DataKey::key_id).collect();
        let all = slots::read_all(&*self.store, ids).await?;
        if all.iter().zip(self.keys.iter()).any(|(stored, key)| stored.genuine(key).is_some()) {
            return Ok(true);
        }
        let listed = self.store.list(MANIFESTS_PREFIX).await?;
        let ids = listed.iter().filter_map(|object| CloudSnapshotId::from_manifest_key(&object.key));
        for id in ids.take(MAX_MANIFESTS_FOR_PROOF) {
            match self.manifest(&id).await {
                Ok(_) => return Ok(true),
                Err(error @ CloudError::Store(_)) => return Err(error),
                Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Findings about key slots since the last call, on this repository or a view of it.
    pub fn take_slot_findings(&self) -> Vec<SlotFinding> {
        std::mem::take(&mut self.slots.lock().findings)
    }

    /// The facts about the keys that a host keeps for the next time; none is secret.
    pub fn known_keys(&self) -> KnownKeys {
        let slots = self.slots.lock().remembered.clone();
        KnownKeys { write_key: Some(self.writing.pinned), slots }
    }

    /// Refuses to write where the key of new backups is missing, or is not the newest that opened.
    ///
    /// # Errors
    /// [`CloudError::WriteKeyMissing`], [`CloudError::WriteKeyNotNewest`].
    pub fn check_writable(&self) -> Result<(), CloudError> {
        self.writing.check(self.store.describe())
    }

    /// A repository whose keys opened; without a pinned one, the first is used for new backups.
    pub(crate) fn opened(
        store: Arc<dyn BlobStore>,
        mut keys: Vec<DataKey>,
        memory: SlotMemory,
        pinned: Option<WriteKey>,
    ) -> Self {
        let writing = Writing::order(&mut keys, &memory.remembered, pinned);
        let slots = Arc::new(Mutex::new(memory));
        Self { store, keys: Arc::new(keys), writing, slots, work: Work::default() }
    }

    /// A repository whose keys were opened before. Makes no request.
    ///
    /// # Errors
    /// [`CloudError::InvalidRequest`] if there is no key, or some encrypt and some do not.
    pub fn from_saved_keys(
        store: Arc<dyn BlobStore>,
        keys: Vec<DataKey>,
        known: &KnownKeys,
    ) -> Result<Self, CloudError> {
        let invalid = |what: &str| Err(CloudError::InvalidRequest { what: what.to_owned() });
        let Some(first) = keys.first() else {
            return invalid("no data key was saved: open the repository with its passphrase");
        };
        if keys.iter().any(|key| key.mode() != first.mode()) {
            return invalid("some of the saved keys encrypt and some do not: open the repository again");
        }
        let is_of_key = |slot: &&KeySlot| keys.iter().any(|key| slot.is_of(key));
        let remembered = known.slots.iter().filter(is_of_key).cloned().collect();
        Ok(Self::opened(store, keys, SlotMemory { remembered, findings: Vec::new() }, known.write_key))
    }

    /// The same repository through another view of its store, such as one that counts a task's requests.
    #[must_use]
    pub fn with_store(&self, store: Arc<dyn BlobStore>) -> Self {
        Self { store, ..self.clone() }
    }

    /// The same repository, whose backups, restores and verifications have their work done that way.
    #[must_use]
    pub fn with_work(self, work: Work) -> Self {
        Self { work, ..self }
    }

    /// Returns the worker settings.
    pub(crate) fn work(&self) -> &Work {
        &self.work
    }

    /// Store.
    pub fn store(&self) -> &Arc<dyn BlobStore> {
        &self.store
    }

    /// The data keys, to be kept sealed. The first one is used for new backups, if
    /// [`check_writable`](Self::check_writable) has no objection.
    pub fn keys(&self) -> &[DataKey] {
        &self.keys
    }

    /// Returns true for an encrypted repository.
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

    /// Reads the manifest of a snapshot.
    ///
    /// # Errors
    /// [`CloudError::SnapshotNotFound`]; [`CloudError::Damaged`]; errors of the store.
    pub async fn manifest(&self, id: &CloudSnapshotId) -> Result<Manifest, CloudError> {
        let path = id.manifest_key();
        match self.store.get(&path, MAX_MANIFEST_LEN).await {
            Ok(object) => Manifest::decode(&object, id, |key_id| self.find_key(key_id)),
            Err(error) => match error.kind {
                StoreErrorKind::NotFound => {
                    Err(CloudError::SnapshotNotFound { id: *id, store: self.store.describe().to_owned() })
                }
                StoreErrorKind::TooLarge => Err(CloudError::damaged(
                    &path,
                    0,
                    format!("it is longer than the {MAX_MANIFEST_LEN} bytes that a manifest may have"),
                )),
                _ => Err(error.into()),
            },
        }
    }

    /// Every snapshot that is there, sorted by key. One listing, and one request for each that the cache
    /// lacks. A manifest that cannot be read is listed with what is wrong with it; one that was deleted
    /// between the listing and its request is left out, so this is for showing, not for deciding what may be
    /// deleted.
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
                        vanished |= *misses < MAX_MISSES;
                    }
                }
            }
            let now: HashSet<&String> = keys.iter().collect();
            let is_gone = |key: &String| misses.get(key).is_some_and(|misses| *misses >= MAX_MISSES);
            let all_stay =
                before.is_some_and(|before| before.iter().all(|key| now.contains(key) || is_gone(key)));
            if all_stay && !vanished {
                return Ok(read.into_values().collect());
            }
            before = Some(keys);
        }
        Err(CloudError::Unsettled {
            store: self.store.describe().to_owned(),
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
            found.extend(read.into_iter().map(|(_, listed, _)| listed));
        }
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
        Some(ListedManifest { key, id: Some(id), manifest })
    }

    /// Puts a manifest, which is the commit; returns the one that is there then, and whether a single request
    /// put it, as far as `puts` counts them. Otherwise it may have been there before and been deleted since.
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
                // An earlier attempt, or an earlier run, may have been carried out without its answer
                // arriving.
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

/// Runs what takes long away from the async threads.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CloudError> + Send + 'static,
) -> Result<T, CloudError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| CloudError::worker(&error))?
}

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
