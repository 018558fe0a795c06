//! Short forms of ids of cloud snapshots and local snapshots.

use blockd_api::{SnapshotId, cloudsnaps::CloudSnapshotId};
use std::collections::BTreeSet;

/// Minimum digits of a short form.
const SHORT_DIGITS: usize = 8;

/// Short forms of the ids of a list: prefixes of the snapshot numbers that match no other id of it.
pub struct ShortIds {
    /// Distinct snapshot numbers, sorted.
    snapshots: Vec<String>,
    /// Distinct volume numbers and clusters, which prefixes match as well.
    others: BTreeSet<String>,
}

impl ShortIds {
    /// Takes the ids of a list.
    pub fn new(ids: impl Iterator<Item = CloudSnapshotId> + Clone) -> Self {
        let snapshots: BTreeSet<_> = ids.clone().map(|id| id.snapshot.to_string()).collect();
        let others = ids.flat_map(|id| [id.volume.to_string(), id.cluster.to_string()]).collect();
        Self { snapshots: snapshots.into_iter().collect(), others }
    }

    /// Returns the short form of an id of the list: at least 8 digits; short numbers keep their volume.
    pub fn of(&self, id: &CloudSnapshotId) -> String {
        let number = id.snapshot.to_string();
        if number.len() < SHORT_DIGITS {
            let rest = id.to_string();
            return rest.split_once('/').map_or_else(|| rest.clone(), |(_, rest)| rest.to_owned());
        }
        let mut len = unique_len(&self.snapshots, &number);
        let is_other = |len: usize| {
            let prefix = number.get(..len).unwrap_or(&number);
            self.others.range(prefix.to_owned()..).next().is_some_and(|other| other.starts_with(prefix))
        };
        while len < number.len() && is_other(len) {
            len += 1;
        }
        number.chars().take(len).collect()
    }
}

/// Short forms of the ids of local snapshots of a list.
pub struct ShortSnapshotIds {
    /// Distinct ids, sorted.
    ids: Vec<String>,
}

impl ShortSnapshotIds {
    /// Takes the ids of a list.
    pub fn new(ids: impl Iterator<Item = SnapshotId>) -> Self {
        let ids: BTreeSet<_> = ids.map(|id| id.to_string()).collect();
        Self { ids: ids.into_iter().collect() }
    }

    /// Returns the short form of an id of the list: at least 8 digits, if it has as many.
    pub fn of(&self, id: SnapshotId) -> String {
        let number = id.to_string();
        number.chars().take(unique_len(&self.ids, &number)).collect()
    }
}

/// Returns the length of the shortest prefix of a number, of at least 8 digits, that no other number of a
/// sorted list has.
fn unique_len(sorted: &[String], number: &str) -> usize {
    let at = sorted.partition_point(|other| other.as_str() < number);
    let neighbours = [at.checked_sub(1), Some(at + 1)].into_iter().flatten();
    let neighbours = neighbours.filter_map(|nth| sorted.get(nth));
    let shared = neighbours.map(|other| shared_len(other, number)).max().unwrap_or(0);
    SHORT_DIGITS.max(shared + 1).min(number.len())
}

/// Returns the length of the common prefix of two numbers.
fn shared_len(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudsnap_ref::SnapRef;

    #[test]
    fn short_ids_are_unique_prefixes() {
        let cluster = "591d4b67-95d7-481e-aec5-14223ac55170";
        let ids: Vec<CloudSnapshotId> = [
            "47455120353-4745512035340000001-incr",
            "47455120353-4745512036340000001",
            "181915426-1819154262174038911",
            "181915426-61",
        ]
        .map(|rest| format!("{cluster}/{rest}").parse().unwrap())
        .to_vec();
        let short = ShortIds::new(ids.iter().copied());
        let all: Vec<String> = ids.iter().map(|id| short.of(id)).collect();
        assert_eq!(all, ["474551203534", "4745512036", "1819154262", "181915426-61"]);
        for (id, text) in ids.iter().zip(&all) {
            let snap: SnapRef = text.parse().unwrap();
            let found: Vec<_> = ids.iter().filter(|id| snap.is_of(&id.to_string())).collect();
            assert_eq!(found, [id], "{text}");
        }
    }

    #[test]
    fn short_forms_of_local_snapshots_are_unique() {
        let ids = ["4599742766642631545", "4599742766999999999", "59", "61"];
        let ids = ids.map(|id| id.parse::<SnapshotId>().unwrap());
        let short = ShortSnapshotIds::new(ids.into_iter());
        assert_eq!(ids.map(|id| short.of(id)), ["45997427666", "45997427669", "59", "61"]);
    }
}
