//! Quota of user mounts: each takes threads for as long as its user keeps it.

use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};

/// Maximum number of mounts, per user and in total.
const MAX_PER_USER: usize = 16;
const MAX_TOTAL: usize = 64;

/// Mounts in use, by user.
#[derive(Clone, Default)]
pub(super) struct MountQuota(Arc<Mutex<HashMap<u32, usize>>>);

/// One mount of the quota, released on drop.
pub(super) struct MountSlot {
    quota: MountQuota,
    uid: u32,
}

impl MountQuota {
    /// Takes one mount of the quota for a user; `None` if it is exhausted.
    pub fn take(&self, uid: u32) -> Option<MountSlot> {
        let mut taken = self.0.lock();
        let (by_user, total) = (taken.get(&uid).copied().unwrap_or(0), taken.values().sum::<usize>());
        if by_user >= MAX_PER_USER || total >= MAX_TOTAL {
            return None;
        }
        taken.insert(uid, by_user + 1);
        Some(MountSlot { quota: self.clone(), uid })
    }
}

impl Drop for MountSlot {
    fn drop(&mut self) {
        let mut taken = self.quota.0.lock();
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
    fn mount_quota_bounds_each_user_and_the_total() {
        let quota = MountQuota::default();
        let mut taken: Vec<MountSlot> = (0..MAX_PER_USER).map(|_| quota.take(7).unwrap()).collect();
        assert!(quota.take(7).is_none());
        let others = (0..).map_while(|number| quota.take(100 + number));
        taken.extend(others);
        assert_eq!(taken.len(), MAX_TOTAL);
        taken.remove(0);
        assert!(quota.take(7).is_some());
        taken.clear();
        assert!(quota.0.lock().is_empty());
    }
}
