//! Data key of new backups, pinned by each host.
//!
//! Hosts do not simply write under the newest key: an attacker with write access to the bucket could hide
//! that key, so that hosts write under an older, stolen one, or copy the slot of another repository with the
//! same passphrase. A host writes under the key that it created or accepted, and refuses to write when that
//! one is missing or a newer one appears. Reads continue.

use crate::{
    CloudError,
    keys::{DataKey, KeySlot},
};
use std::cmp::Reverse;
use uuid::Uuid;

/// Key of new backups.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WriteKey {
    /// Creation time.
    pub created_unix_s: u64,
    /// Id.
    pub key_id: Uuid,
}

/// Key that this host writes under.
#[derive(Clone, Debug)]
pub(crate) struct Writing {
    /// Key that this host created or accepted.
    pub pinned: WriteKey,
    refusal: Option<Refusal>,
}

/// Reason to refuse writes.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// The pinned key did not open; the newest key that did.
    Missing(Uuid),
    /// A newer key opened, which this host neither created nor accepted.
    Newer(Uuid),
}

impl Writing {
    /// Orders keys, the pinned one first, and compares it with the others. Without a pinned one, the first
    /// key is pinned.
    pub fn order(keys: &mut [DataKey], slots: &[KeySlot], pinned: Option<WriteKey>) -> Self {
        let of = |key: &DataKey| {
            let slot = slots.iter().find(|slot| slot.key_id == key.key_id());
            let known = pinned.filter(|pinned| pinned.key_id == key.key_id());
            let created_unix_s =
                slot.map(|slot| slot.created_unix_s).or(known.map(|known| known.created_unix_s));
            WriteKey { created_unix_s: created_unix_s.unwrap_or_default(), key_id: key.key_id() }
        };
        let Some(pinned) = pinned else {
            // Never empty: all constructors of repositories refuse that.
            let pinned = keys.first().map(of);
            return Self {
                pinned: pinned.unwrap_or(WriteKey { created_unix_s: 0, key_id: Uuid::nil() }),
                refusal: None,
            };
        };
        let newest = keys.iter().map(of).max();
        let has_pinned = keys.iter().any(|key| key.key_id() == pinned.key_id);
        let refusal = match newest {
            Some(newest) if !has_pinned => Some(Refusal::Missing(newest.key_id)),
            Some(newest) if newest.key_id != pinned.key_id && newest > pinned => {
                Some(Refusal::Newer(newest.key_id))
            }
            _ => None,
        };
        // Keys that this host did not accept come last.
        keys.sort_by_key(|key| {
            let key = of(key);
            (key.key_id != pinned.key_id, key > pinned, Reverse(key))
        });
        debug_assert_eq!(keys.first().is_some_and(|first| first.key_id() == pinned.key_id), has_pinned);
        debug_assert!(has_pinned || refusal.is_some() || newest.is_none(), "written with another key");
        Self { pinned, refusal }
    }

    /// Refuses to write unless the pinned key is the newest that opened.
    ///
    /// # Errors
    /// [`CloudError::WriteKeyMissing`], [`CloudError::WriteKeyNotNewest`].
    pub fn check(&self, store: &str) -> Result<(), CloudError> {
        let (store, write_key) = (store.to_owned(), self.pinned.key_id);
        match self.refusal {
            None => Ok(()),
            Some(Refusal::Missing(newest)) => Err(CloudError::WriteKeyMissing { store, write_key, newest }),
            Some(Refusal::Newer(newest)) => Err(CloudError::WriteKeyNotNewest { store, write_key, newest }),
        }
    }
}
