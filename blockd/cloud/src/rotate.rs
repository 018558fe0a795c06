//! Changing what protects a repository: its passphrase, and the data key of new backups.
//!
//! A new passphrase wraps the same data keys anew: what is stored stays as it is. A new data key has a slot of its own; what
//! was sealed under the older ones goes on to be read with them.

use crate::{
    CloudError, KdfParams, OpenOptions, Repository,
    error::random,
    keys::{DataKey, KeySlot, SLOT_LEN_BYTES, create_slot, encode_slot},
    names::{KEYS_PREFIX, parse_uuid},
    repository::{SLOTS_MOST, run_blocking, seconds_since_1970},
    seal::EncryptionMode,
    store::{ObjectStore, PutMode, StoreErrorKind},
};
use std::sync::Arc;
use zeroize::Zeroizing;

/// What is to be changed.
#[derive(Clone, Default)]
pub struct Rekey {
    /// The passphrase that opens the repository now.
    pub passphrase: Zeroizing<String>,
    /// The one that is to open it from now on; none if it stays.
    pub new_passphrase: Option<Zeroizing<String>>,
    /// New backups get a data key of their own.
    pub new_data_key: bool,
    /// The work that goes into the new key slots.
    pub kdf: KdfParams,
}

impl std::fmt::Debug for Rekey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rekey").field("new_data_key", &self.new_data_key).finish_non_exhaustive()
    }
}

/// What was changed.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rekeyed {
    /// Key slots that open with the new passphrase, and did not before.
    pub rewrapped: usize,
    /// Key slots that open with neither passphrase: those of somebody else, left as they are.
    pub foreign: usize,
    /// Whether there is a new data key.
    pub new_data_key: bool,
}

/// Changes the passphrase, the data key of new backups, or both, and opens the repository with what holds then. With neither, it
/// just opens it again, which finds the data keys that another host made.
///
/// Each key slot is replaced by itself. Should this be interrupted, some open with the one passphrase and some with the other;
/// the same call with the same passphrases does the rest. Other hosts go on with the data keys that they have, and
/// find a new one when they open the repository again.
///
/// # Errors
/// [`CloudError::WrongPassphrase`] if no slot opens with either; [`CloudError::PlainRepository`];
/// [`CloudError::InvalidRequest`]; whatever the store reports.
pub async fn rekey(
    store: Arc<dyn ObjectStore>,
    request: &Rekey,
) -> Result<(Repository, Rekeyed), CloudError> {
    let wanted = request.new_passphrase.as_ref().unwrap_or(&request.passphrase);
    if wanted.is_empty() || request.passphrase.is_empty() {
        return Err(CloudError::InvalidRequest { what: "the passphrase is empty: give one".into() });
    }
    let slots = slots(&*store).await?;
    let encrypted: Vec<KeySlot> =
        slots.into_iter().filter(|slot| slot.mode == EncryptionMode::Aes256GcmSiv).collect();
    let found = encrypted.len();
    if found == 0 {
        return Err(CloudError::PlainRepository { store: store.describe().to_owned() });
    }
    let mut done = Rekeyed::default();
    let mut opened = 0;
    // The new one must be the newest of those that open, whatever the clocks of hosts say.
    let mut newest = 0;
    for slot in encrypted {
        let created = slot.created_unix_s;
        let (old, new, kdf) = (request.passphrase.clone(), wanted.clone(), request.kdf);
        let changed = run_blocking(move || rewrap(&slot, &old, &new, kdf)).await?;
        match changed {
            Rewrapped::Foreign => {
                done.foreign += 1;
                continue;
            }
            Rewrapped::Already => {}
            Rewrapped::Anew(object, bytes) => {
                store.put(&object, bytes.into(), PutMode::Overwrite).await?;
                done.rewrapped += 1;
            }
        }
        opened += 1;
        newest = newest.max(created);
    }
    if opened == 0 {
        return Err(CloudError::WrongPassphrase { store: store.describe().to_owned(), slots: found });
    }
    if request.new_data_key {
        if found >= SLOTS_MOST {
            let store = store.describe().to_owned();
            return Err(CloudError::TooManyKeys { store, found: found + 1, most: SLOTS_MOST });
        }
        let (passphrase, kdf, now) =
            (wanted.clone(), request.kdf, seconds_since_1970().max(newest.saturating_add(1)));
        let made = run_blocking(move || create_slot(Some(&passphrase), kdf, now));
        let (key, slot) = made.await?;
        // Under a name that nobody else uses.
        store.put(&object_of(&key), slot.into(), PutMode::Overwrite).await?;
        done.new_data_key = true;
    }
    let repository =
        Repository::open(store, Some(wanted.as_str()), &OpenOptions { kdf: request.kdf }).await?;
    Ok((repository, done))
}

fn object_of(key: &DataKey) -> String {
    format!("{KEYS_PREFIX}{}", key.key_id())
}

/// Every key slot that is whole.
async fn slots(store: &dyn ObjectStore) -> Result<Vec<KeySlot>, CloudError> {
    let mut slots = Vec::new();
    for object in store.list(KEYS_PREFIX).await? {
        if object.key.strip_prefix(KEYS_PREFIX).and_then(parse_uuid).is_none() {
            continue;
        }
        if slots.len() >= SLOTS_MOST {
            let store = store.describe().to_owned();
            return Err(CloudError::TooManyKeys { store, found: slots.len() + 1, most: SLOTS_MOST });
        }
        match store.get(&object.key, SLOT_LEN_BYTES as u64).await {
            Ok(bytes) => match KeySlot::parse(&object.key, &bytes) {
                Ok(slot) => slots.push(slot),
                Err(error) => tracing::warn!(%error, "a key slot is damaged and stays as it is"),
            },
            Err(error) if error.kind == StoreErrorKind::TooLarge => {
                tracing::warn!(%error, "a key slot is damaged and stays as it is");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(slots)
}

enum Rewrapped {
    /// It opens with neither passphrase.
    Foreign,
    /// It opens with the new one.
    Already,
    /// The object, and what it is to hold.
    Anew(String, Vec<u8>),
}

fn rewrap(slot: &KeySlot, old: &str, new: &str, kdf: KdfParams) -> Result<Rewrapped, CloudError> {
    if slot.open(new)?.is_some() {
        return Ok(Rewrapped::Already);
    }
    let Some(key) = slot.open(old)? else { return Ok(Rewrapped::Foreign) };
    // The time stays: it says which data key is the newest.
    let bytes = encode_slot(&key, Some(new), kdf, &random()?, slot.created_unix_s)?;
    Ok(Rewrapped::Anew(object_of(&key), bytes))
}
