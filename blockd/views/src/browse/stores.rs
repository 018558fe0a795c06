//! Last known listing of each store, and the state of its list requests. Stores are listed independently, so
//! that an unresponsive one does not hide the others.

use blockd_cloud::{BackupType, CloudSnapshotId, Manifest};
use blockd_extent::{BLOCK_SIZE_BYTES, VolumeId};
use blockd_fuse::{SnapshotEntry, SnapshotKey};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    time::SystemTime,
};
use uuid::Uuid;

/// Fields of a manifest that a listing shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ListedSnapshot {
    key: SnapshotKey,
    /// Cloud snapshot id, equal for copies reached through several credentials.
    id: String,
    volume: (Uuid, VolumeId),
    volume_name: String,
    snapshot: String,
    created: SystemTime,
    size_bytes: u64,
    data_bytes: u64,
}

fn cloud_key(credential: Uuid, id: &CloudSnapshotId) -> SnapshotKey {
    SnapshotKey(format!("cloud:{credential}:{id}").into())
}

impl ListedSnapshot {
    pub fn of(credential: Uuid, manifest: &Manifest) -> Self {
        let id = manifest.id();
        let suffix = if manifest.backup_type == BackupType::Incremental { "-incr" } else { "" };
        let blocks: u64 = manifest.deltas().map(|delta| delta.data_blocks).sum();
        Self {
            key: cloud_key(credential, &id),
            id: id.to_string(),
            volume: (manifest.cluster, manifest.volume),
            volume_name: manifest.description.volume_name.clone(),
            snapshot: format!("{}{suffix}", manifest.snapshot),
            created: SystemTime::from(manifest.description.created),
            size_bytes: manifest.size_bytes,
            data_bytes: blocks.saturating_mul(BLOCK_SIZE_BYTES).min(manifest.size_bytes),
        }
    }
}

/// Pending list request of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ListRequest {
    pub credential: Uuid,
    number: u64,
    /// Set if there is no listing of the store yet.
    pub is_first: bool,
}

struct StoreList {
    credential: Uuid,
    name: String,
    known: Vec<ListedSnapshot>,
    /// Number of the newest request while it is pending.
    pending: Option<u64>,
    /// Number of the newest completed request.
    completed: Option<u64>,
    /// Cause of its failure, if it failed.
    failure: Option<String>,
}

/// Listings of all stores, in the order of the requests.
#[derive(Default)]
pub(super) struct Stores {
    lists: Vec<StoreList>,
    next: u64,
}

impl Stores {
    /// Updates the set of stores, and starts a request for each store without a pending one.
    pub fn begin(&mut self, credentials: impl Iterator<Item = (Uuid, String)>) -> Vec<ListRequest> {
        let mut before = std::mem::take(&mut self.lists);
        let mut begun = Vec::new();
        for (credential, name) in credentials {
            let at = before.iter().position(|list| list.credential == credential);
            let is_first = at.is_none();
            let mut list = match at {
                Some(at) => StoreList { name, ..before.remove(at) },
                None => {
                    let (known, pending, completed, failure) = (Vec::new(), None, None, None);
                    StoreList { credential, name, known, pending, completed, failure }
                }
            };
            if list.pending.is_none() {
                list.pending = Some(self.next);
                begun.push(ListRequest { credential, number: self.next, is_first });
                self.next += 1;
            }
            self.lists.push(list);
        }
        begun
    }

    fn list(&mut self, credential: Uuid) -> Option<&mut StoreList> {
        self.lists.iter_mut().find(|list| list.credential == credential)
    }

    /// Sets the cached listing of a store, unless a request has completed since.
    pub fn remember(&mut self, request: &ListRequest, known: Vec<ListedSnapshot>) {
        if let Some(list) = self.list(request.credential)
            && list.completed.is_none()
        {
            list.known = known;
        }
    }

    /// Completes a request, unless a later one has completed already. After a failure the last known listing
    /// stays.
    pub fn end(&mut self, request: &ListRequest, result: Result<Vec<ListedSnapshot>, String>) {
        let Some(list) = self.list(request.credential) else { return };
        if list.pending == Some(request.number) {
            list.pending = None;
        }
        if list.completed > Some(request.number) {
            return;
        }
        list.completed = Some(request.number);
        match result {
            Ok(known) => (list.known, list.failure) = (known, None),
            Err(reason) => list.failure = Some(reason),
        }
    }

    /// Marks a pending request as stale after a change in the store: its response may lack that change.
    pub fn renew(&mut self, credential: Uuid) {
        if let Some(list) = self.list(credential) {
            list.pending = None;
        }
    }

    /// Returns the number of the next request.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Returns true if all requests from `since` on have completed.
    pub fn is_complete(&self, since: u64) -> bool {
        self.lists.iter().all(|list| list.pending.is_none_or(|number| number < since))
    }

    /// Returns a text about the stores that could not be listed.
    pub fn unlisted(&self) -> Option<String> {
        let mut text = String::new();
        for list in &self.lists {
            let reason = match (&list.failure, list.completed) {
                (Some(reason), _) => reason.as_str(),
                (None, None) => "no response yet",
                (None, Some(_)) => continue,
            };
            let one_line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            // Writing to a string does not fail.
            let _ = writeln!(text, "{}: {one_line}", list.name);
        }
        (!text.is_empty()).then(|| {
            format!(
                "The stores of these credentials could not be listed; their last known snapshots are shown:\n{text}"
            )
        })
    }

    /// Returns all known snapshots without duplicates: two credentials may reach the same repository. `local`
    /// returns the volume of this host with a name.
    pub fn entries(&self, local: impl Fn(&str) -> Option<(Uuid, VolumeId)>) -> Vec<SnapshotEntry> {
        let mut seen = BTreeSet::new();
        let all = self.lists.iter().flat_map(|list| &list.known);
        let found: Vec<&ListedSnapshot> = all.filter(|known| seen.insert(known.id.as_str())).collect();
        let dirs = volume_dirs(&found, local);
        let entry = |known: &&ListedSnapshot| SnapshotEntry {
            key: known.key.clone(),
            volume: dirs.get(&(known.volume, known.volume_name.as_str())).cloned().unwrap_or_default(),
            id: known.snapshot.clone(),
            created: known.created,
            size_bytes: known.size_bytes,
            data_bytes: known.data_bytes,
        };
        found.iter().map(entry).collect()
    }
}

type Volume = (Uuid, VolumeId);

/// Returns the directory name of each volume: its name, followed by its id if several volumes share the name;
/// a volume of this host keeps the plain name.
fn volume_dirs<'a>(
    found: &[&'a ListedSnapshot],
    local: impl Fn(&str) -> Option<Volume>,
) -> HashMap<(Volume, &'a str), String> {
    let mut names: BTreeMap<&str, BTreeSet<Volume>> = BTreeMap::new();
    for known in found {
        names.entry(&known.volume_name).or_default().insert(known.volume);
    }
    let mut dirs = HashMap::new();
    for (name, volumes) in names {
        let local = local(name);
        let alone = volumes.len() == 1 && local.is_none_or(|local| volumes.contains(&local));
        for volume in volumes {
            let plain = alone || local == Some(volume);
            dirs.insert((volume, name), if plain { name.to_owned() } else { format!("{name}@{}", volume.1) });
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn known(id: &str) -> ListedSnapshot {
        ListedSnapshot {
            key: SnapshotKey(id.into()),
            id: id.into(),
            volume: (Uuid::nil(), VolumeId::from_u64(1)),
            volume_name: "vol".into(),
            snapshot: id.into(),
            created: UNIX_EPOCH,
            size_bytes: 1,
            data_bytes: 1,
        }
    }

    fn ids(stores: &Stores) -> Vec<String> {
        stores.entries(|_| None).into_iter().map(|entry| entry.id).collect()
    }

    #[test]
    fn unresponsive_store_hides_no_snapshots() {
        let (slow, fast) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let names = || [(slow, "slow".to_owned()), (fast, "fast".to_owned())].into_iter();
        let mut stores = Stores::default();
        let begun = stores.begin(names());
        assert!(begun.len() == 2 && begun.iter().all(|request| request.is_first));
        stores.remember(&begun[0], vec![known("cached")]);
        assert_eq!(ids(&stores), ["cached"], "the cached listing is shown at once");
        stores.end(&begun[1], Ok(vec![known("a"), known("cached")]));
        assert_eq!(ids(&stores), ["cached", "a"], "without duplicates");
        let text = stores.unlisted().unwrap();
        assert!(text.contains("slow: no response yet\n") && !text.contains("fast"), "{text}");

        // The next round skips the store with a pending request, and does not wait for it.
        let since = stores.next();
        let again = stores.begin(names());
        assert!(again.len() == 1 && again[0].credential == fast && !again[0].is_first);
        assert!(!stores.is_complete(since));
        stores.end(&again[0], Ok(vec![known("a"), known("b")]));
        assert!(stores.is_complete(since) && !stores.is_complete(0));

        stores.end(&begun[0], Err("no\nanswer".into()));
        assert_eq!(ids(&stores), ["cached", "a", "b"]);
        assert!(stores.unlisted().unwrap().ends_with(":\nslow: no answer\n"));
        let last = stores.begin(names());
        stores.end(&last[0], Ok(Vec::new()));
        assert!(stores.unlisted().is_none());
        assert_eq!(ids(&stores), ["a", "b"]);
        // A removed credential.
        stores.begin(names().take(1));
        assert!(ids(&stores).is_empty());
    }

    #[test]
    fn stale_list_request_does_not_replace_a_newer_listing() {
        let store = Uuid::from_u128(1);
        let begin = |stores: &mut Stores| stores.begin([(store, "store".to_owned())].into_iter());
        let mut stores = Stores::default();
        let old = begin(&mut stores);
        assert!(begin(&mut stores).is_empty());
        stores.renew(store);
        let new = begin(&mut stores);
        assert_eq!(new.len(), 1, "the store is listed again");
        stores.end(&new[0], Ok(vec![known("new")]));
        stores.end(&old[0], Ok(Vec::new()));
        assert_eq!(ids(&stores), ["new"]);
    }
}
