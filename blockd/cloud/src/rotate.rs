//! Rotation of a repository's passphrase and of the data key of new backups.
//!
//! A new passphrase wraps the same data keys: stored objects stay unchanged. A new data key has its own slot;
//! objects sealed with older keys are still read with them.

use crate::{
    CloudError, KdfParams, KnownKeys, Repository,
    error::random,
    keys::{DataKey, KeySlot, SlotTimes, create_slot, encode_slot},
    names::KEYS_PREFIX,
    repository::{run_blocking, seconds_since_1970},
    slot_limits::{self, MAX_SLOTS, UnlockBudget},
    slots::{self, StoredSlot},
    unlock::{self, Candidates, Opened},
    write_key::WriteKey,
};
use blockd_store::BlobStore;
use std::sync::Arc;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Rotation request.
#[derive(Clone, Default)]
pub struct Rekey {
    /// Current passphrase.
    pub passphrase: Zeroizing<String>,
    /// New passphrase; `None` to keep the current one.
    pub new_passphrase: Option<Zeroizing<String>>,
    /// Creates a new data key for new backups.
    pub new_data_key: bool,
    /// Key of another host to accept for new backups. It must be the newest.
    pub accept_key: Option<Uuid>,
    /// Cost parameters of new key slots.
    pub kdf: KdfParams,
    /// Keys and slots that this host remembers.
    pub known: KnownKeys,
}

impl std::fmt::Debug for Rekey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rekey").field("new_data_key", &self.new_data_key).finish_non_exhaustive()
    }
}

/// Result of a rotation.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rekeyed {
    /// Number of key slots that were rewrapped with the new passphrase.
    pub rewrapped: usize,
    /// Number of foreign key slots, which open with neither passphrase and stay unchanged.
    pub foreign: usize,
    /// A new data key was created.
    pub new_data_key: bool,
}

/// Rotates the passphrase, the data key of new backups, or both, and opens the repository with the result.
/// With neither, it only reopens the repository, which finds data keys of other hosts.
///
/// All slots are opened before the first one is written. Each copy of a slot is replaced separately, so that
/// at any time each slot opens with one of the two passphrases; after an interruption the same call with the
/// same passphrases completes the rotation. Other hosts continue with their data keys, find a new one when
/// they reopen the repository, and use it for writes once it is accepted there.
///
/// # Errors
/// [`CloudError::WrongPassphrase`] if no slot opens with either; [`CloudError::PlainRepository`];
/// [`CloudError::InvalidRequest`], also if the accepted key is not the newest; errors of the store.
pub async fn rekey(store: Arc<dyn BlobStore>, request: &Rekey) -> Result<(Repository, Rekeyed), CloudError> {
    let wanted = request.new_passphrase.as_ref().unwrap_or(&request.passphrase);
    if wanted.is_empty() || request.passphrase.is_empty() {
        return Err(CloudError::InvalidRequest { what: "the passphrase is empty: give one".into() });
    }
    let listed = slots::list_ids(&*store).await?;
    let is_empty = listed.is_empty();
    let (ids, left_out) = slot_limits::select(&listed, &request.known);
    let found = ids.len() + left_out + usize::from(request.new_data_key);
    // Other hosts would not read a slot beyond the limit.
    if request.new_data_key && found > MAX_SLOTS {
        let store = store.describe().to_owned();
        return Err(CloudError::TooManyKeys { store, found, most: MAX_SLOTS });
    }
    let stored = slots::read_all(&*store, ids).await?;
    let (mut unlocked, foreign) = unlock(&*store, &stored, request).await?;
    // An unmounted disk looks like an empty directory.
    if is_empty && !holds_manifests_of(&store, &unlocked).await? {
        let (store, key) = (store.describe().to_owned(), format!("{KEYS_PREFIX}*"));
        return Err(CloudError::KeySlotMissing { store, key });
    }
    let mut write_key = accepted(&unlocked, request)?.or(request.known.write_key);
    let mut done = Rekeyed { foreign, ..Rekeyed::default() };
    // The new key must be the newest of those that open, regardless of the hosts' clocks.
    let newest = unlocked.iter().map(|one| one.slot.created_unix_s).max().unwrap_or_default();
    let Some(next) = newest.checked_add(1) else {
        let what = "a key slot has the maximum creation time: no key can be newer".to_owned();
        return Err(CloudError::InvalidRequest { what });
    };
    if request.new_passphrase.is_some() {
        for one in &mut unlocked {
            done.rewrapped += usize::from(rewrap(&*store, one, wanted, request.kdf).await?);
        }
    }
    let mut opened: Vec<Opened> = unlocked.into_iter().map(|one| (one.key, one.slot)).collect();
    if request.new_data_key {
        let (passphrase, kdf, now) = (wanted.clone(), request.kdf, seconds_since_1970().max(next));
        let (key, bytes) = run_blocking(move || create_slot(Some(&passphrase), kdf, now)).await?;
        let slot = KeySlot::from_saved(&bytes)?;
        assert!(slot.is_of(&key) && slot.created_unix_s > newest, "the new key is not the newest");
        slots::put_new(&*store, &slot).await?;
        write_key = Some(WriteKey { created_unix_s: slot.created_unix_s, key_id: slot.key_id });
        opened.push((key, slot));
        done.new_data_key = true;
    }
    // Reads the slots again, so that the replaced ones are not findings.
    let stored = slots::read_all(&*store, opened.iter().map(|(key, _)| key.key_id()).collect()).await?;
    let known = KnownKeys { write_key, slots: opened.iter().map(|(_, slot)| slot.clone()).collect() };
    Ok((unlock::complete(store, opened, &stored, &known).await?, done))
}

/// Opened slot with its stored copies.
struct Unlocked<'a> {
    key: DataKey,
    slot: KeySlot,
    stored: &'a StoredSlot,
    /// The new or only passphrase opened it.
    is_wanted: bool,
}

/// Opens all slots with the new or the current passphrase. Also returns the number of slots that open with
/// neither.
async fn unlock<'a>(
    store: &dyn BlobStore,
    stored: &'a [StoredSlot],
    request: &Rekey,
) -> Result<(Vec<Unlocked<'a>>, usize), CloudError> {
    let mut budget = UnlockBudget::new(&request.known);
    let candidates =
        stored.iter().map(|stored| (stored, Candidates::of(stored, &request.known, &mut budget)));
    let encrypted: Vec<_> = candidates.filter(|(_, one)| one.is_encrypted()).collect();
    let found = encrypted.len();
    if found == 0 {
        return Err(CloudError::PlainRepository { store: store.describe().to_owned() });
    }
    let mut unlocked = Vec::new();
    for (stored, candidates) in encrypted {
        let (old, new) = (request.passphrase.clone(), request.new_passphrase.clone());
        let opens = run_blocking(move || {
            if let Some(opened) = new.map_or(Ok(None), |new| candidates.open(&new))? {
                return Ok(Some((opened, true)));
            }
            Ok(candidates.open(&old)?.map(|opened| (opened, false)))
        });
        if let Some(((key, slot), is_wanted)) = opens.await? {
            unlocked.push(Unlocked { key, slot, stored, is_wanted });
        }
    }
    if unlocked.is_empty() {
        return Err(CloudError::WrongPassphrase { store: store.describe().to_owned(), slots: found });
    }
    assert!((1..=found).contains(&unlocked.len()), "{} of {found} slots opened", unlocked.len());
    let foreign = found - unlocked.len();
    Ok((unlocked, foreign))
}

/// Returns the key that the request accepts.
fn accepted(unlocked: &[Unlocked<'_>], request: &Rekey) -> Result<Option<WriteKey>, CloudError> {
    let Some(wanted) = request.accept_key else { return Ok(None) };
    let keys = unlocked.iter().map(|one| &one.slot);
    let newest = keys.map(|slot| WriteKey { created_unix_s: slot.created_unix_s, key_id: slot.key_id }).max();
    let invalid = |what: String| Err(CloudError::InvalidRequest { what });
    match newest {
        _ if request.new_data_key => invalid("accept a key or make a new one, not both".to_owned()),
        Some(newest) if newest.key_id != wanted => {
            invalid(format!("key {wanted} is not the newest that opens: that is key {}", newest.key_id))
        }
        newest => Ok(newest),
    }
}

/// Returns true if a store without key slots is the right one nevertheless.
async fn holds_manifests_of(
    store: &Arc<dyn BlobStore>,
    unlocked: &[Unlocked<'_>],
) -> Result<bool, CloudError> {
    let keys = unlocked.iter().map(|one| one.key.clone()).collect();
    Repository::from_saved_keys(Arc::clone(store), keys, &KnownKeys::default())?.is_own_place().await
}

/// Rewraps both copies of a slot so that only the new passphrase opens them. Returns true if a copy was
/// written.
async fn rewrap(
    store: &dyn BlobStore,
    one: &mut Unlocked<'_>,
    passphrase: &Zeroizing<String>,
    kdf: KdfParams,
) -> Result<bool, CloudError> {
    let genuine = one.stored.variants().filter(|slot| slot.is_of(&one.key));
    let last = genuine.map(|slot| slot.generation).max().unwrap_or(0).max(one.slot.generation);
    if !one.is_wanted || one.slot.generation < last {
        // Keeps the time, which determines the newest data key.
        let times = SlotTimes { created_unix_s: one.slot.created_unix_s, generation: last.saturating_add(1) };
        let (key, passphrase) = (one.key.clone(), passphrase.clone());
        let wrap = move || encode_slot(&key, Some(&passphrase), kdf, &random()?, times);
        one.slot = KeySlot::from_saved(&run_blocking(wrap).await?)?;
    }
    assert!(one.slot.is_of(&one.key), "a slot that does not hold its key");
    debug_assert!(one.slot.generation >= last, "a slot of an earlier generation replaces a later one");
    slots::replace(store, one.stored, &one.slot).await
}
