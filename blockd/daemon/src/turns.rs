//! Keyed locks: one holder per key at a time.

use parking_lot::Mutex;
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
};
use tokio::sync::OwnedMutexGuard;

/// Keyed locks.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

/// Guard of all requested keys.
#[derive(Debug)]
pub(crate) struct Turn {
    _guards: Vec<OwnedMutexGuard<()>>,
}

impl Turns {
    fn of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock();
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        // Unused keys are removed.
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::default();
        turns.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Waits for exclusive use of all keys.
    pub(crate) async fn take(&self, keys: impl IntoIterator<Item = String>) -> Turn {
        // Keys are taken in a fixed order, which prevents deadlocks.
        let keys: BTreeSet<String> = keys.into_iter().collect();
        let mut guards = Vec::with_capacity(keys.len());
        for key in keys {
            guards.push(self.of(&key).lock_owned().await);
        }
        Turn { _guards: guards }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn only_those_who_want_the_same_wait_for_each_other() {
        let turns = Turns::default();
        let keys = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let first = turns.take(keys("a b")).await;
        let other = turns.take(keys("c")).await;
        let mut third = Box::pin(turns.take(keys("c b")));
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut third).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut third).await.is_err());
        drop(other);
        drop(tokio::time::timeout(Duration::from_secs(60), third).await.unwrap());
        turns.of("d");
        assert_eq!(turns.0.lock().len(), 1);
    }
}
