//! The data key of new backups, pinned by each host.
//!
//! The newest key is not trusted for being the newest: who writes to the bucket could hide it, so that hosts
//! write under an older key that was stolen, or copy the slot of another repository with the same passphrase.
//! A host writes under the key that it made or accepted, and refuses to write when that one is gone or a
//! newer one appears. It goes on to read.

use crate::{
    CloudError,
    keys::{DataKey, KeySlot},
};
use std::cmp::Reverse;
use uuid::Uuid;

/// The key of new backups.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WriteKey {
    /// The time when the key was made.
    pub created_unix_s: u64,
    /// Id.
    pub key_id: Uuid,
}

/// The keys of a repository in the order of their use, and the one to write with.
#[derive(Clone, Debug)]
pub(crate) struct Writing {
    /// The key that this host made or accepted.
    pub pinned: WriteKey,
    refusal: Option<Refusal>,
}

/// The reason for which nothing is written.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    /// The pinned key did not open; the newest one that did.
    Missing(Uuid),
    /// A newer key opened, which this host neither made nor accepted.
    Newer(Uuid),
}

impl Writing {
    /// Orders keys, the pinned one first, and compares it with the others. Without a pinned one, the first
    /// key is taken.
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
