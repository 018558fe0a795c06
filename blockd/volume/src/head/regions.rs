//! Region locks of a head, which make copy-up, zeroing and large writes exclusive.
//!
//! A write of one system call locks its regions shared: the inode lock of the file orders such writes. A
//! larger write takes several calls and locks exclusively. Otherwise, after a client timed out and repeated
//! its write on another connection, the rest of the first write could overwrite data that was written after
//! the repeated write was acknowledged. Copy-up and zeroing lock exclusively, because they access a block's
//! state and data in several steps. A region is 1 MiB; regions share 256 locks.

use blockd_extent::{BLOCK_SHIFT, Extent};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

const REGION_SHIFT: u32 = 20 - BLOCK_SHIFT;
const STRIPES: u64 = 256;

pub(crate) struct Regions {
    stripes: Box<[RwLock<()>]>,
}

/// Locked regions, unlocked on drop.
pub(crate) enum RegionGuards<G> {
    One { _guard: G },
    Many { _guards: Vec<G> },
}

impl Regions {
    pub(crate) fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| RwLock::new(())).collect() }
    }

    pub(crate) fn shared(&self, extent: Extent) -> RegionGuards<RwLockReadGuard<'_, ()>> {
        self.lock(extent, |stripe| Some(stripe.read())).unwrap_or(RegionGuards::Many { _guards: Vec::new() })
    }

    pub(crate) fn try_shared(&self, extent: Extent) -> Option<RegionGuards<RwLockReadGuard<'_, ()>>> {
        self.lock(extent, RwLock::try_read)
    }

    pub(crate) fn exclusive(&self, extent: Extent) -> RegionGuards<RwLockWriteGuard<'_, ()>> {
        self.lock(extent, |stripe| Some(stripe.write())).unwrap_or(RegionGuards::Many { _guards: Vec::new() })
    }

    pub(crate) fn try_exclusive(&self, extent: Extent) -> Option<RegionGuards<RwLockWriteGuard<'_, ()>>> {
        self.lock(extent, RwLock::try_write)
    }

    /// Locks stripes in ascending order, each once, which avoids deadlocks.
    fn lock<'a, G>(
        &'a self,
        extent: Extent,
        take: impl Fn(&'a RwLock<()>) -> Option<G>,
    ) -> Option<RegionGuards<G>> {
        let first = extent.start.0 >> REGION_SHIFT;
        let last = extent.end().0.saturating_sub(1).max(extent.start.0) >> REGION_SHIFT;
        let (low, high) = (first % STRIPES, last % STRIPES);
        debug_assert!(first <= last, "regions ascend");
        if first == last {
            return Some(RegionGuards::One { _guard: take(&self.stripes[low as usize])? });
        }
        let touched = |stripe: u64| {
            last - first >= STRIPES - 1
                || if low <= high { (low..=high).contains(&stripe) } else { stripe >= low || stripe <= high }
        };
        let guards = (0..STRIPES)
            .filter(|&stripe| touched(stripe))
            .map(|stripe| take(&self.stripes[stripe as usize]))
            .collect::<Option<Vec<G>>>()?;
        assert!(guards.len() > 1, "several regions have several locks");
        Some(RegionGuards::Many { _guards: guards })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_extent::BlockIndex;

    #[test]
    fn overlapping_regions_exclude_and_distant_ones_do_not() {
        let regions = Regions::new();
        let mib = |start: u64, len: u64| Extent::new(BlockIndex(start << REGION_SHIFT), len << REGION_SHIFT);
        {
            let _alone = regions.exclusive(mib(254, 4));
            for inside in [254, 255, 256, 257] {
                assert!(regions.try_shared(mib(inside, 1)).is_none(), "{inside}");
            }
            for outside in [253, 258, 100] {
                assert!(regions.try_shared(mib(outside, 1)).is_some(), "{outside}");
            }
            assert!(regions.try_shared(mib(0, 1000)).is_none());
        }
        let _reader = regions.shared(mib(0, 1000));
        assert!(regions.try_shared(mib(7, 1)).is_some());
    }
}
