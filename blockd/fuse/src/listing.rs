//! The list of snapshots as directories.

use crate::{
    SnapshotEntry, SnapshotKey,
    names::{escape, time_name},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

/// Snapshots of one volume.
#[derive(Default)]
pub(crate) struct VolumeDir {
    /// Indexes of the snapshots by directory name, which sorts by time.
    pub snapshots: BTreeMap<Arc<str>, usize>,
    /// Directory name of the newest snapshot.
    pub latest: Option<Arc<str>>,
}

/// List of the catalog, grouped into directories.
pub(crate) struct Listing {
    entries: Arc<Vec<SnapshotEntry>>,
    pub volumes: BTreeMap<Arc<str>, VolumeDir>,
    by_key: HashMap<SnapshotKey, usize>,
}

impl Listing {
    pub fn new(entries: Arc<Vec<SnapshotEntry>>) -> Self {
        let mut volumes: BTreeMap<Arc<str>, VolumeDir> = BTreeMap::new();
        let mut by_key = HashMap::with_capacity(entries.len());
        let mut newest: HashMap<Arc<str>, SystemTime> = HashMap::new();
        for (index, entry) in entries.iter().enumerate() {
            let volume: Arc<str> = escape(&entry.volume).into();
            let name = format!("{}-{}", time_name(entry.created), escape(&entry.id));
            let name: Arc<str> = name.into();
            by_key.insert(entry.key.clone(), index);
            let dir = volumes.entry(volume.clone()).or_default();
            let is_newest = newest
                .get(&volume)
                .is_none_or(|at| (*at, dir.latest.as_ref()) <= (entry.created, Some(&name)));
            if is_newest {
                newest.insert(volume, entry.created);
                dir.latest = Some(name.clone());
            }
            dir.snapshots.insert(name, index);
        }
        Self { entries, volumes, by_key }
    }

    /// Returns true if the listing was built from this list.
    pub fn is_of(&self, entries: &Arc<Vec<SnapshotEntry>>) -> bool {
        Arc::ptr_eq(&self.entries, entries)
    }

    pub fn entry(&self, index: usize) -> &SnapshotEntry {
        &self.entries[index]
    }

    pub fn find(&self, key: &SnapshotKey) -> Option<&SnapshotEntry> {
        self.by_key.get(key).map(|index| &self.entries[*index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn entry(volume: &str, id: &str, millis: u64) -> SnapshotEntry {
        SnapshotEntry {
            key: SnapshotKey(format!("{volume}/{id}").into()),
            volume: volume.into(),
            id: id.into(),
            created: UNIX_EPOCH + Duration::from_millis(millis),
            size_bytes: 1,
            data_bytes: 1,
        }
    }

    #[test]
    fn snapshots_sort_by_time_and_latest_is_the_newest() {
        let entries = vec![
            entry("a", "2", 86_400_000),
            entry("a", "9", 60_000),
            entry("../b", "1/x", 5000),
            entry("a", "1", 60_001),
        ];
        let listing = Listing::new(Arc::new(entries));
        let names: Vec<&str> = listing.volumes.keys().map(|name| &**name).collect();
        assert_eq!(names, ["%2E.%2Fb", "a"]);
        let volume = &listing.volumes["a"];
        let names: Vec<&str> = volume.snapshots.keys().map(|name| &**name).collect();
        assert_eq!(
            names,
            ["19700101T000100.000000Z-9", "19700101T000100.001000Z-1", "19700102T000000.000000Z-2"]
        );
        assert_eq!(volume.latest.as_deref(), Some("19700102T000000.000000Z-2"));
        assert_eq!(listing.volumes["%2E.%2Fb"].latest.as_deref(), Some("19700101T000005.000000Z-1%2Fx"));
        assert_eq!(listing.find(&SnapshotKey("a/9".into())).map(|entry| entry.id.as_str()), Some("9"));
    }
}
