//! Sizes of repositories, and the pages of their listings.

use crate::{bucket::PAGE_KEYS, costs::Area};

/// Number of objects in a repository.
#[derive(Clone, Copy, Default, Debug)]
pub struct Size {
    pub snapshots: u64,
    /// Packs and indexes.
    pub objects: u64,
}

impl Size {
    /// Returns the pages of a listing of an area; an empty one has one page.
    pub const fn pages(&self, area: Area) -> u64 {
        let keys = match area {
            // The background verification stores a proof of each snapshot.
            Area::Manifests | Area::Proofs => self.snapshots,
            Area::Data => self.objects,
            Area::Keys | Area::Leases | Area::Probe => 0,
        };
        let pages = keys.div_ceil(PAGE_KEYS);
        if pages == 0 { 1 } else { pages }
    }

    /// Returns the size of a repository of as many hosts.
    pub const fn times(&self, hosts: u64) -> Self {
        Self { snapshots: self.snapshots * hosts, objects: self.objects * hosts }
    }
}
