//! Keyed locks: one holder per key at a time.

use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
};
use tokio::sync::OwnedMutexGuard;

/// Keyed locks.
#[derive(Debug, Default)]
pub struct KeyedLocks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

/// Guard of all requested keys.
#[derive(Debug)]
pub struct KeyedGuard {
    _guards: Vec<OwnedMutexGuard<()>>,
}

impl KeyedLocks {
    fn of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock();
        if let Some(turn) = locks.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        // Unused keys are removed.
        locks.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        locks.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Waits for exclusive use of all keys.
    pub async fn take(&self, keys: impl IntoIterator<Item = String>) -> KeyedGuard {
        // Keys are taken in a fixed order, which prevents deadlocks.
        let keys: BTreeSet<String> = keys.into_iter().collect();
        let mut guards = Vec::with_capacity(keys.len());
        for key in keys {
            guards.push(self.of(&key).lock_owned().await);
        }
        KeyedGuard { _guards: guards }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn locks_of_different_keys_are_independent() {
        let locks = KeyedLocks::default();
        let keys = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let first = locks.take(keys("a b")).await;
        let other = locks.take(keys("c")).await;
        let mut third = Box::pin(locks.take(keys("c b")));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut third).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut third).await.is_err());
        drop(other);
        drop(tokio::time::timeout(Duration::from_secs(60), third).await.unwrap());
        locks.of("d");
        assert_eq!(locks.0.lock().len(), 1);
    }
}
