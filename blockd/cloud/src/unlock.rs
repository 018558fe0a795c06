//! Opening of a repository: selection, order and unlocking of its key slots.

use crate::{
    CloudError, KdfParams, KnownKeys, OpenOptions, Repository,
    cipher::EncryptionMode,
    keys::{DataKey, KeySlot, create_slot},
    names::{KEYS_PREFIX, MANIFESTS_PREFIX},
    repository::{SlotMemory, run_blocking, seconds_since_1970},
    slot_limits::{self, UnlockBudget},
    slots::{self, SlotCheck, StoredSlot},
};
use blockd_store::BlobStore;
use std::{cmp::Reverse, sync::Arc};
use zeroize::Zeroizing;

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
        open(store, passphrase, &KnownKeys::default(), Some(options)).await
    }

    /// Opens an existing repository and never creates one: an unmounted disk looks like an empty directory.
    /// The slots in `known` open the repository and are restored if both copies in the store are missing.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`CloudError::KeySlotMissing`] if there is no repository.
    pub async fn open_existing(
        store: Arc<dyn BlobStore>,
        passphrase: Option<&str>,
        known: &KnownKeys,
    ) -> Result<Self, CloudError> {
        open(store, passphrase, known, None).await
    }
}

/// Opens the repository in a store; creates a missing one if `create` is given.
///
/// # Errors
/// Those of [`Repository::open`] and [`Repository::open_existing`].
async fn open(
    store: Arc<dyn BlobStore>,
    passphrase: Option<&str>,
    known: &KnownKeys,
    create: Option<&OpenOptions>,
) -> Result<Repository, CloudError> {
    if passphrase == Some("") {
        return Err(CloudError::InvalidRequest {
            what: "the passphrase is empty: give a passphrase, or omit it".into(),
        });
    }
    let listed = slots::list_ids(&*store).await?;
    if listed.is_empty() {
        let is_empty = store.list(MANIFESTS_PREFIX).await?.is_empty();
        match create {
            Some(options) if is_empty => return create_repository(store, passphrase, options.kdf).await,
            None if is_empty => {
                let (store, key) = (store.describe().to_owned(), format!("{KEYS_PREFIX}*"));
                return Err(CloudError::KeySlotMissing { store, key });
            }
            _ if known.slots.is_empty() => {
                return Err(CloudError::KeySlotsGone { store: store.describe().to_owned() });
            }
            _ => {}
        }
    }
    let (ids, left_out) = slot_limits::select(&listed, known);
    if left_out > 0 {
        tracing::warn!(store = store.describe(), left_out, "too many key slots: some were not read");
    }
    let stored = slots::read_all(&*store, ids).await?;
    let (opened, stored) = open_slots(&*store, stored, left_out, known, passphrase).await?;
    complete(store, opened, &stored, known).await
}

/// A key and the slot that opened it.
pub(crate) type Opened = (DataKey, KeySlot);

/// Repairs the slots of the opened keys and creates the repository from them.
pub(crate) async fn complete(
    store: Arc<dyn BlobStore>,
    mut opened: Vec<Opened>,
    stored: &[StoredSlot],
    known: &KnownKeys,
) -> Result<Repository, CloudError> {
    assert!(!opened.is_empty(), "a repository without a key");
    debug_assert!(opened.iter().all(|(key, slot)| slot.is_of(key)), "a key with the slot of another");
    // The newest first: a host without a pinned key writes under it.
    opened.sort_by_key(|(key, slot)| Reverse((slot.created_unix_s, key.key_id())));
    let (keys, of_keys): (Vec<DataKey>, Vec<KeySlot>) = opened.into_iter().unzip();
    let pinned = known.write_key;
    let known = |key: &DataKey| known.slots.iter().find(|slot| slot.key_id == key.key_id());
    let remembered = keys.iter().zip(&of_keys).map(|(key, slot)| known(key).unwrap_or(slot).clone());
    let memory = SlotMemory { remembered: remembered.collect(), findings: Vec::new() };
    let repository = Repository::opened(store, keys, memory, pinned);
    for stored in stored {
        match repository.keys().iter().find(|key| key.key_id() == stored.key_id) {
            Some(key) => {
                let check = SlotCheck::of(stored, key, known(key));
                repository.repair(&check).await?;
            }
            None if stored.variants().next().is_none() => {
                tracing::warn!(key_id = %stored.key_id, "key slot is damaged in both copies");
            }
            None => {}
        }
    }
    Ok(repository)
}

/// Creates a repository: a data key and its slot.
async fn create_repository(
    store: Arc<dyn BlobStore>,
    passphrase: Option<&str>,
    kdf: KdfParams,
) -> Result<Repository, CloudError> {
    let passphrase = passphrase.map(|text| Zeroizing::new(text.to_owned()));
    let created = seconds_since_1970();
    let made = move || create_slot(passphrase.as_ref().map(|text| text.as_str()), kdf, created);
    let (key, bytes) = run_blocking(made).await?;
    let slot = KeySlot::from_saved(&bytes)?;
    assert!(slot.is_of(&key), "the slot of a new repository does not hold its key");
    slots::put_new(&*store, &slot).await?;
    let memory = SlotMemory { remembered: vec![slot], findings: Vec::new() };
    Ok(Repository::opened(store, vec![key], memory, None))
}

/// Candidate slots of one key in the order in which they are tried: the remembered one first, because an
/// attacker cannot choose its parameters.
pub(crate) struct Candidates {
    pub slots: Vec<KeySlot>,
    /// Stored slots.
    in_store: Vec<KeySlot>,
}

impl Candidates {
    pub fn of(stored: &StoredSlot, known: &KnownKeys, budget: &mut UnlockBudget) -> Self {
        let in_store: Vec<KeySlot> = stored.variants().cloned().collect();
        let mut slots: Vec<KeySlot> =
            known.slots.iter().filter(|slot| slot.key_id == stored.key_id).cloned().collect();
        for slot in &in_store {
            let is_plain = slot.mode != EncryptionMode::Aes256GcmSiv;
            if slots.first() != Some(slot) && (is_plain || budget.take(slot)) {
                slots.push(slot.clone());
            }
        }
        debug_assert!(slots.iter().chain(&in_store).all(|slot| slot.key_id == stored.key_id));
        Self { slots, in_store }
    }

    pub fn is_encrypted(&self) -> bool {
        self.slots.iter().any(|slot| slot.mode == EncryptionMode::Aes256GcmSiv)
    }

    /// Returns true if an opened slot is outdated: the store has only later slots, of another passphrase.
    fn is_outdated(&self, key: &DataKey, slot: &KeySlot) -> bool {
        let mut genuine = self.in_store.iter().filter(|stored| stored.is_of(key)).peekable();
        genuine.peek().is_some() && genuine.all(|stored| stored.generation > slot.generation)
    }

    /// Opens the first slot that the passphrase opens. Runs Argon2id for each, so it takes long.
    pub fn open(&self, passphrase: &str) -> Result<Option<Opened>, CloudError> {
        for slot in self.slots.iter().filter(|slot| slot.mode == EncryptionMode::Aes256GcmSiv) {
            match slot.open(passphrase)? {
                Some(key) if !self.is_outdated(&key, slot) => return Ok(Some((key, slot.clone()))),
                _ => {}
            }
        }
        Ok(None)
    }

    fn open_plain(&self) -> Option<Opened> {
        self.slots.iter().find_map(|slot| Some((slot.open_plain()?, slot.clone())))
    }
}

/// Opens all slots that the passphrase opens.
async fn open_slots(
    store: &dyn BlobStore,
    stored: Vec<StoredSlot>,
    left_out: usize,
    known: &KnownKeys,
    passphrase: Option<&str>,
) -> Result<(Vec<Opened>, Vec<StoredSlot>), CloudError> {
    let mut budget = UnlockBudget::new(known);
    let candidates: Vec<Candidates> =
        stored.iter().map(|stored| Candidates::of(stored, known, &mut budget)).collect();
    let left_out = left_out + budget.left_out;
    let encrypted = candidates.iter().filter(|one| one.is_encrypted()).count();
    let describe = || store.describe().to_owned();
    let opened: Vec<Opened> = match passphrase {
        // A plain slot beside an encrypted one is not trusted: any writer of the bucket can add one.
        None if encrypted > 0 => return Err(CloudError::EncryptedRepository { store: describe() }),
        None => candidates.iter().filter_map(Candidates::open_plain).collect(),
        Some(passphrase) => {
            let passphrase = Zeroizing::new(passphrase.to_owned());
            run_blocking(move || {
                let opened = candidates.iter().map(|one| one.open(&passphrase));
                Ok(opened.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
            })
            .await?
        }
    };
    if !opened.is_empty() {
        return Ok((opened, stored));
    }
    let is_lost = |stored: &StoredSlot| stored.variants().next().is_none();
    Err(match stored.into_iter().filter(is_lost).find_map(StoredSlot::error) {
        Some(error) => error,
        None if left_out > 0 => CloudError::KeySlotsLeftOut { store: describe(), left_out },
        None if encrypted == 0 => CloudError::PlainRepository { store: describe() },
        None => CloudError::WrongPassphrase { store: describe(), slots: encrypted },
    })
}
