//! How many mounts may be handed over: each takes threads, for as long as whoever made it likes.

use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Mounts at once, of one user and of all.
const MAX_OF_ONE: usize = 16;
const MAX_OF_ALL: usize = 64;

/// The places that are taken, by user.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<u32, usize>>>);

/// A place, free again when this is dropped.
pub(super) struct Place {
    places: Places,
    uid: u32,
}

impl Places {
    /// A place for a mount of this user, if there is one left.
    pub fn take(&self, uid: u32) -> Option<Place> {
        let mut taken = self.0.lock();
        let (of_one, of_all) = (taken.get(&uid).copied().unwrap_or(0), taken.values().sum::<usize>());
        if of_one >= MAX_OF_ONE || of_all >= MAX_OF_ALL {
            return None;
        }
        taken.insert(uid, of_one + 1);
        Some(Place { places: self.clone(), uid })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        match taken.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.uid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_one_user_nor_all_take_more_than_there_is() {
        let places = Places::default();
        let mut taken: Vec<Place> = (0..MAX_OF_ONE).map(|_| places.take(7).unwrap()).collect();
        assert!(places.take(7).is_none());
        let others = (0..).map_while(|number| places.take(100 + number));
        taken.extend(others);
        assert_eq!(taken.len(), MAX_OF_ALL);
        taken.remove(0);
        assert!(places.take(7).is_some());
        taken.clear();
        assert!(places.0.lock().is_empty());
    }
}
