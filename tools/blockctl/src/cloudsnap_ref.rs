//! Ids of cloud snapshots on the command line: whole, or a prefix for reading commands.

use crate::{failure::Failure, output::Context};
use blockd_api::{
    ApiError, CredentialRef, ErrorCode,
    cloudsnaps::{CloudSnapshotId, ListCloudsnaps},
    operations,
};
use std::{fmt, str::FromStr};

/// Minimum length of a prefix: shorter ones match by accident.
const MIN_LEN: usize = 6;
/// Maximum digits of an incomplete number; longer ones are complete.
const MAX_DIGITS: usize = 15;
/// Maximum number of ids in an ambiguity message.
const MAX_NAMED: usize = 3;

/// Id, or a prefix of it or of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapRef(String);

/// Text that is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} is not the id of a cloud snapshot: expected <cluster uuid>/<volume id>-<snapshot id>[-incr], as `cloudsnap list` shows it, or a prefix of the id, or of its part after the /, of at least {MIN_LEN} characters"
)]
pub struct BadSnapRef {
    given: String,
}

impl FromStr for SnapRef {
    type Err = BadSnapRef;

    fn from_str(text: &str) -> Result<Self, BadSnapRef> {
        // The middle may be elided, as messages do.
        let plain = text.replace(['…', '*'], "").replace("...", "").to_ascii_lowercase();
        let is_known = |c: char| c.is_ascii_hexdigit() || "-/incr".contains(c);
        let len = plain.chars().filter(char::is_ascii_alphanumeric).count();
        let is_long = len >= MIN_LEN && plain.chars().all(is_known);
        match is_long || plain.parse::<CloudSnapshotId>().is_ok() {
            true => Ok(Self(plain)),
            false => Err(BadSnapRef { given: text.to_owned() }),
        }
    }
}

impl fmt::Display for SnapRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl SnapRef {
    /// Returns the id if it is complete.
    fn whole(&self) -> Option<CloudSnapshotId> {
        let id: CloudSnapshotId = self.0.parse().ok()?;
        (id.incremental || id.snapshot.to_string().len() > MAX_DIGITS).then_some(id)
    }

    /// Returns true if it is a prefix of the id, of the part behind the `/`, of the snapshot's number, or of
    /// each part.
    fn is_of(&self, id: &str) -> bool {
        let text = self.0.as_str();
        let Some((cluster, rest)) = id.split_once('/') else { return false };
        let Some((volume, snapshot)) = rest.split_once('-') else { return false };
        if id.starts_with(text) || rest.starts_with(text) || snapshot.starts_with(text) {
            return true;
        }
        let (has_cluster, has_rest) = match text.split_once('/') {
            Some((begin, rest)) => (cluster.starts_with(begin), rest),
            // Without a `/`, dashes of the UUID would be taken for the separator of the numbers.
            None => (text.split('-').count() == 2, text),
        };
        let (of_volume, of_snapshot) = has_rest.split_once('-').unwrap_or((has_rest, ""));
        has_cluster && volume.starts_with(of_volume) && snapshot.starts_with(of_snapshot)
    }

    /// Resolves to one cloud snapshot.
    ///
    /// # Errors
    /// None or several match.
    pub async fn resolve(
        &self,
        context: &Context<'_>,
        cred_id: Option<&CredentialRef>,
    ) -> Result<CloudSnapshotId, Failure> {
        if let Some(id) = self.whole() {
            return Ok(id);
        }
        let query = ListCloudsnaps { credential: cred_id.cloned(), ..ListCloudsnaps::default() };
        let as_given = self.0.parse::<CloudSnapshotId>().ok();
        let list = match (context.client.call(operations::LIST_CLOUDSNAPS, &query).await, as_given) {
            (Ok(list), _) => list,
            // The daemon's error is more specific.
            (Err(_), Some(id)) => return Ok(id),
            (Err(error), None) => return Err(error.into()),
        };
        let damaged = list.damaged.iter().filter_map(|one| one.cloud_snapshot_id.parse().ok());
        let readable = list.list.items.iter().map(|one| one.cloud_snapshot_id);
        let all: Vec<CloudSnapshotId> = readable.chain(damaged).collect();
        if let Some(id) = as_given.filter(|id| all.contains(id)) {
            return Ok(id);
        }
        let mut found: Vec<String> =
            all.iter().map(CloudSnapshotId::to_string).filter(|id| self.is_of(id)).collect();
        found.sort_unstable();
        found.dedup();
        match found.as_slice() {
            [only] => only.parse().map_err(|error: blockd_api::cloudsnaps::BadCloudSnapshotId| {
                Failure::usage(error.to_string())
            }),
            [] => {
                let message = format!("there is no cloud snapshot with the id or id prefix {self}");
                Err(ApiError::new(ErrorCode::CloudsnapNotFound, message).into())
            }
            several => {
                let named: Vec<&str> = several.iter().take(MAX_NAMED).map(String::as_str).collect();
                let more = if several.len() > MAX_NAMED { ", …" } else { "" };
                Err(Failure::usage(format!(
                    "{} cloud snapshots match {self}: give a longer prefix ({}{more})",
                    several.len(),
                    named.join(", ")
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "591d4b67-95d7-481e-aec5-14223ac55170/1819154262174038911-4745512035340000001-incr";

    #[test]
    fn prefixes_of_all_parts_are_accepted() {
        for text in [
            ID,
            "591d4b",
            "591d4b67-95d7",
            "591d4b67-95d7-481e-aec5-14223ac55170/1819154262174038911-4745512035340",
            "591d…/1819154262174038911-4745512035340",
            "591D4B67…",
            "591d…/1819…-4745…",
            "1819154",
            "1819154262174038911-4745",
            "1819-47",
            "4745512035",
            "4745512035340000001-incr",
        ] {
            let snap: SnapRef = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert!(snap.is_of(ID), "{text}");
        }
        for text in ["592d4b", "95d7-481e", "1819155", "591d/4745512", "181915-18", "591d4b67/x"] {
            assert!(!text.parse::<SnapRef>().is_ok_and(|snap| snap.is_of(ID)), "{text}");
        }
        for text in ["", "591d4", "59/-1", "nonsense", "7", "../../etc"] {
            assert!(text.parse::<SnapRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn complete_id_needs_no_request() {
        let whole = |text: &str| text.parse::<SnapRef>().unwrap().whole().is_some();
        assert!(whole(ID) && whole(ID.strip_suffix("-incr").unwrap()));
        assert!(whole("591d4b67-95d7-481e-aec5-14223ac55170/59-61-incr"));
        assert!(!whole("591d4b67-95d7-481e-aec5-14223ac55170/1819154262174038911-4745512035340"));
    }
}
