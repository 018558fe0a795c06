//! Listings of the objects of many deltas.

use crate::{CloudError, Repository, manifest::Delta, names::DeltaId};
use std::collections::BTreeMap;

/// Number of deltas of a volume from which on all its objects are listed at once. A page has 1,000 objects,
/// and most deltas have few.
const MANY_DELTAS: usize = 8;
/// Maximum number of objects of these deltas: the volume may have as many that are not needed.
const MAX_OBJECTS: u64 = 64 << 10;

/// Lengths of objects by their keys.
type Lens = BTreeMap<String, u64>;

/// Listings of deltas: one for each, or one for all of a volume.
pub(crate) struct DeltaListings {
    /// Number of deltas, and of their objects, by the prefix of the volume.
    wanted: BTreeMap<String, (usize, u64)>,
    /// Volume that was listed last.
    listed: Option<(String, Lens)>,
}

impl DeltaListings {
    /// Plans the listings of these deltas.
    pub fn of<'a>(deltas: impl Iterator<Item = &'a Delta>) -> Self {
        let mut wanted: BTreeMap<String, (usize, u64)> = BTreeMap::new();
        for delta in deltas {
            let (deltas, objects) = wanted.entry(delta.id().volume_prefix()).or_default();
            *deltas += 1;
            *objects += 1 + u64::from(delta.pack_count);
        }
        Self { wanted, listed: None }
    }

    /// Returns the objects of a delta with their lengths. Deltas of a volume should follow each other.
    ///
    /// # Errors
    /// Errors of the store.
    pub async fn lens(&mut self, repo: &Repository, id: &DeltaId) -> Result<Lens, CloudError> {
        let (volume, prefix) = (id.volume_prefix(), id.prefix());
        let wanted = self.wanted.get(&volume);
        if wanted.is_none_or(|(deltas, objects)| *deltas < MANY_DELTAS || *objects > MAX_OBJECTS) {
            return list(repo, &prefix).await;
        }
        let all = match self.listed.take().filter(|(listed, _)| *listed == volume) {
            Some((_, all)) => all,
            None => list(repo, &volume).await?,
        };
        let of_delta = all.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let lens = of_delta.map(|(key, len_bytes)| (key.clone(), *len_bytes)).collect();
        self.listed = Some((volume, all));
        Ok(lens)
    }
}

async fn list(repo: &Repository, prefix: &str) -> Result<Lens, CloudError> {
    let listed = repo.store().list(prefix).await?;
    Ok(listed.into_iter().map(|object| (object.key, object.size_bytes)).collect())
}
