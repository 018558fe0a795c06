//! Names of backups in lists.

use blockd_api::cloudsnaps::CloudSnapshotId;
use uuid::Uuid;

/// Least digits of the short id of a host.
pub const MIN_HOST_DIGITS: usize = 4;
/// Digits of the number of a snapshot in tables.
const SHORT: usize = 8;

/// Returns a name as tables have it: short if it is an id.
pub fn short_name(name: &str) -> String {
    match name.parse::<CloudSnapshotId>() {
        Ok(id) => id.snapshot.to_string().chars().take(SHORT).collect(),
        Err(_) => name.to_owned(),
    }
}

/// Returns the name behind the first digits of the id of a host; `None` without those of this one.
pub fn without_host(name: &str, cluster: Uuid) -> Option<&str> {
    let (host, rest) = name.split_once('/')?;
    (host.len() >= MIN_HOST_DIGITS && cluster.to_string().starts_with(host)).then_some(rest)
}
