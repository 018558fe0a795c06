//! Cloud snapshots on the command line: an id, a unique prefix of it, a name, or a point of a volume.

pub mod points;

use crate::{
    backup_names::{MIN_HOST_DIGITS, without_host},
    failure::Failure,
    output::Context,
    table::short_time,
    volume_point::{LATEST, VolumePoint},
};
use blockd_api::{
    ApiError, CredentialRef, ErrorCode, ObjectName, VolumeRef,
    cloudsnaps::{
        CloudSnapshotId, Cloudsnap, CloudsnapList, CloudsnapStatus, FailedCredential, ListCloudsnaps,
    },
    first_names, operations,
};
use points::{Owner, State, newest};
use std::{collections::BTreeSet, fmt, str::FromStr};
use uuid::Uuid;

/// Minimum length of a prefix: shorter ones match by accident.
const MIN_LEN: usize = 6;
/// Maximum digits of an incomplete number; longer ones are complete.
const MAX_DIGITS: usize = 15;

/// Reference to a cloud snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapRef {
    /// Id, prefix of it or of its parts, or name of a backup.
    Text(String),
    /// Point in time of a volume.
    Point(VolumePoint),
}

/// Text that is none of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{given:?} names no cloud snapshot: expected <cluster uuid>/<volume id>-<snapshot id>[-incr], a prefix of this id or of its part after the / of at least {MIN_LEN} characters, the name of a backup, alone or as HOST/NAME, VOLUME@latest, or VOLUME@TIME such as db@2026-11-20T21:00"
)]
pub struct BadSnapRef {
    given: String,
}

impl FromStr for SnapRef {
    type Err = BadSnapRef;

    fn from_str(text: &str) -> Result<Self, BadSnapRef> {
        let bad = || BadSnapRef { given: text.to_owned() };
        if text.contains('@') {
            return text.parse().map(Self::Point).map_err(|_| bad());
        }
        let is_known = |c: char| c.is_ascii_hexdigit() || "-/incr".contains(c);
        let plain = without_ellipsis(text);
        let is_id = plain.chars().any(|c| c.is_ascii_alphanumeric()) && plain.chars().all(is_known);
        let is_id = is_id || behind_cluster_name(&plain).is_some_and(|rest| rest.chars().all(is_known));
        let of_host = text.split_once('/').filter(|(host, _)| is_host(host)).map(|(_, name)| name);
        match is_id || of_host.unwrap_or(text).parse::<ObjectName>().is_ok() {
            true => Ok(Self::Text(text.to_owned())),
            false => Err(bad()),
        }
    }
}

impl fmt::Display for SnapRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Point(point) => point.fmt(f),
        }
    }
}

/// Removes the marks of an elided middle, as in messages.
fn without_ellipsis(text: &str) -> String {
    text.replace(['…', '*'], "").replace("...", "").to_ascii_lowercase()
}

/// Returns true for the first digits of the id of a host.
fn is_host(text: &str) -> bool {
    text.len() >= MIN_HOST_DIGITS && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-')
}

/// Returns the part of an id behind the name of a cluster, which `pxctl` shows in place of its UUID.
fn behind_cluster_name(text: &str) -> Option<&str> {
    let (cluster, rest) = text.split_once('/')?;
    let is_uuid_prefix = cluster.chars().enumerate().all(|(nth, c)| match nth {
        8 | 13 | 18 | 23 => c == '-',
        _ => c.is_ascii_hexdigit(),
    });
    (!is_uuid_prefix && cluster.parse::<ObjectName>().is_ok() && !rest.is_empty()).then_some(rest)
}

/// Returns false if the number of the snapshot may be a prefix.
fn has_whole_numbers(id: &CloudSnapshotId) -> bool {
    id.incremental || id.snapshot.to_string().len() > MAX_DIGITS
}

impl SnapRef {
    /// Returns the id if it is complete.
    pub fn whole(&self) -> Option<CloudSnapshotId> {
        let Self::Text(text) = self else { return None };
        without_ellipsis(text).parse().ok().filter(has_whole_numbers)
    }

    /// Returns true if the text has complete numbers behind the name of a cluster.
    pub fn is_whole_but_cluster(&self) -> bool {
        let Self::Text(text) = self else { return false };
        let text = without_ellipsis(text);
        let rest = behind_cluster_name(&text).unwrap_or_default();
        format!("{}/{rest}", Uuid::nil()).parse().is_ok_and(|id| has_whole_numbers(&id))
    }

    /// Returns the id if the text is one, complete or not.
    pub fn as_id(&self) -> Option<CloudSnapshotId> {
        match self {
            Self::Text(text) => text.to_ascii_lowercase().parse().ok(),
            Self::Point(..) => None,
        }
    }

    /// Returns the volume that the text names, for options that add the point in time.
    pub fn volume(&self) -> Option<VolumeRef> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Point(..) => None,
        }
    }

    /// Returns the newest point of the volume with this name.
    pub fn newest(&self) -> Option<Self> {
        let VolumeRef::Name(name) = self.volume()? else { return None };
        format!("{name}@{LATEST}").parse().ok()
    }

    /// Returns true if it is a prefix of the id, of the part behind the `/`, of the snapshot's number, or of
    /// each part.
    pub fn is_of(&self, id: &str) -> bool {
        let Self::Text(text) = self else { return false };
        let text = without_ellipsis(text);
        let text = behind_cluster_name(&text).unwrap_or(&text);
        let Some((cluster, rest)) = id.split_once('/') else { return false };
        let Some((volume, snapshot)) = rest.split_once('-') else { return false };
        if text == id || text == rest {
            return true;
        }
        if text.chars().filter(char::is_ascii_alphanumeric).count() < MIN_LEN {
            return false;
        }
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

    /// Resolves to one cloud snapshot; of the copies of one point in time at several locations, to the
    /// preferred one.
    ///
    /// # Errors
    /// None or several points match, or a location cannot be listed. A complete id needs no list.
    pub async fn resolve(
        &self,
        context: &Context<'_>,
        cred_id: Option<&CredentialRef>,
    ) -> Result<CloudSnapshotId, Failure> {
        self.preferred_copy(context, cred_id, Owner::Any, State::Restorable).await
    }

    /// Resolves as [`Self::resolve`], but a point in time also selects damaged cloud snapshots.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn resolve_in(
        &self,
        state: State,
        context: &Context<'_>,
        cred_id: Option<&CredentialRef>,
    ) -> Result<CloudSnapshotId, Failure> {
        self.preferred_copy(context, cred_id, Owner::Any, state).await
    }

    /// Resolves as [`Self::resolve`] to one cloud snapshot that overwrites a volume: the name of a volume of
    /// this host never selects a backup of another volume.
    ///
    /// # Errors
    /// As [`Self::resolve`], or only other volumes have backups of this name.
    pub async fn resolve_own(
        &self,
        context: &Context<'_>,
        cred_id: Option<&CredentialRef>,
    ) -> Result<CloudSnapshotId, Failure> {
        self.preferred_copy(context, cred_id, Owner::Present, State::Restorable).await
    }

    /// Resolves as [`Self::resolve`], to all copies of the point in time.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn resolve_copies(&self, context: &Context<'_>) -> Result<Vec<CloudSnapshotId>, Failure> {
        Ok(self.copies(context, None, Owner::Any, State::Restorable).await?.0)
    }

    async fn preferred_copy(
        &self,
        context: &Context<'_>,
        cred_id: Option<&CredentialRef>,
        owner: Owner,
        state: State,
    ) -> Result<CloudSnapshotId, Failure> {
        let (copies, list) = self.copies(context, cred_id, owner, state).await?;
        let default = match is_one_location(&copies, &list) {
            true => None,
            false => default_credential(context).await?,
        };
        preferred(&copies, default, &list, state)
    }

    /// Resolves as [`Self::resolve`] to one cloud snapshot; of copies at several locations only to that of
    /// the default credential.
    ///
    /// # Errors
    /// As [`Self::resolve`], or several locations have copies, and none is the default.
    pub async fn resolve_at_default(
        &self,
        context: &Context<'_>,
        cred_id: Option<&CredentialRef>,
    ) -> Result<CloudSnapshotId, Failure> {
        let (copies, list) = self.copies(context, cred_id, Owner::Any, State::Restorable).await?;
        if is_one_location(&copies, &list) {
            return preferred(&copies, None, &list, State::Restorable);
        }
        let default = default_credential(context).await?;
        let entries = list.list.items.iter().filter(|one| Some(one.credential_id) == default);
        let ids: BTreeSet<_> = entries.map(|one| one.cloud_snapshot_id).collect();
        let at_default: Vec<_> = copies.iter().copied().filter(|id| ids.contains(id)).collect();
        if at_default.is_empty() {
            return Err(ambiguous(self, &copies, true, &list));
        }
        preferred(&at_default, default, &list, State::Restorable)
    }

    /// Resolves as [`Self::resolve_own`] to one cloud snapshot that a command changes or deletes, without
    /// copies at other locations.
    ///
    /// # Errors
    /// As [`Self::resolve_own`], or the point in time has copies at several locations.
    pub async fn resolve_only(
        &self,
        context: &Context<'_>,
        cred_id: Option<&CredentialRef>,
    ) -> Result<CloudSnapshotId, Failure> {
        let (copies, list) = self.copies(context, cred_id, Owner::Present, State::Restorable).await?;
        match is_one_location(&copies, &list) {
            true => preferred(&copies, None, &list, State::Restorable),
            false => Err(ambiguous(self, &copies, true, &list)),
        }
    }

    /// Returns the copies of one point in time, and the list that they are from.
    async fn copies(
        &self,
        context: &Context<'_>,
        cred_id: Option<&CredentialRef>,
        owner: Owner,
        state: State,
    ) -> Result<(Vec<CloudSnapshotId>, CloudsnapList), Failure> {
        if let Some(id) = self.whole() {
            return Ok((vec![id], CloudsnapList::default()));
        }
        let as_given = self.as_id();
        let volume = match self {
            Self::Text(_) => None,
            Self::Point(point) => Some(point.volume.clone()),
        };
        let query = ListCloudsnaps { credential: cred_id.cloned(), volume, ..ListCloudsnaps::default() };
        let list = match (context.client.call(operations::LIST_CLOUDSNAPS, &query).await, as_given) {
            (Ok(list), _) => list,
            // The daemon's error is more specific.
            (Err(_), Some(id)) => return Ok((vec![id], CloudsnapList::default())),
            (Err(error), None) => return Err(error.into()),
        };
        if let Some(id) = as_given.filter(|id| ids(&list).contains(id)) {
            return Ok((vec![id], list));
        }
        // One that cannot be listed may have a newer backup, or another one with this name or prefix.
        if let Some(failed) = list.failed_credentials.first() {
            return Err(not_searched(self, failed));
        }
        let copies = match self {
            Self::Text(text) => self.matching(text, &list)?,
            Self::Point(point) => newest(context, point, &list, owner, state).await?,
        };
        Ok((copies, list))
    }

    /// Finds the cloud snapshots with this id prefix or name, which must be copies of one point in time.
    fn matching(&self, text: &str, list: &CloudsnapList) -> Result<Vec<CloudSnapshotId>, Failure> {
        let is_named = |one: &&Cloudsnap| {
            let name = without_host(text, one.cloud_snapshot_id.cluster);
            one.name.as_deref().is_some_and(|own| own == text || Some(own) == name)
        };
        let by_name: BTreeSet<_> =
            list.list.items.iter().filter(is_named).map(|one| one.cloud_snapshot_id).collect();
        let by_id: BTreeSet<_> = ids(list).into_iter().filter(|id| self.is_of(&id.to_string())).collect();
        let found: Vec<CloudSnapshotId> = by_id.union(&by_name).copied().collect();
        match found.as_slice() {
            [] => Err(not_found(text, list)),
            [_] => Ok(found),
            several if is_one_point(several, list) => Ok(found),
            several => Err(ambiguous(self, several, by_id.is_empty(), list)),
        }
    }
}

/// Returns true for copies of one point in time of a volume at several locations.
fn is_one_point(found: &[CloudSnapshotId], list: &CloudsnapList) -> bool {
    let point = |id: &CloudSnapshotId| {
        let entry = list.list.items.iter().find(|one| one.cloud_snapshot_id == *id);
        entry.map(|one| (id.cluster, one.volume_id, one.created_at))
    };
    let points: BTreeSet<_> = found.iter().map(point).collect();
    // One with an unreadable manifest has no point.
    points.len() == 1 && !points.contains(&None)
}

/// Returns true if the copies are at one location, or there is only one.
fn is_one_location(copies: &[CloudSnapshotId], list: &CloudsnapList) -> bool {
    copies.len() == 1 || credentials_of(copies, list).len() == 1
}

/// Returns the credentials whose locations have the copies.
fn credentials_of(copies: &[CloudSnapshotId], list: &CloudsnapList) -> BTreeSet<Uuid> {
    let entries = list.list.items.iter().filter(|one| copies.contains(&one.cloud_snapshot_id));
    entries.map(|one| one.credential_id).collect()
}

async fn default_credential(context: &Context<'_>) -> Result<Option<Uuid>, Failure> {
    let credentials = context.client.call(operations::LIST_CREDENTIALS, &()).await?.items;
    Ok(credentials.into_iter().find(|one| one.is_default).map(|one| one.credential_id))
}

/// Selects a copy of one point in time: a readable one, or for a repair a damaged one; if possible that of
/// the default credential, otherwise the newest.
fn preferred(
    copies: &[CloudSnapshotId],
    default: Option<Uuid>,
    list: &CloudsnapList,
    state: State,
) -> Result<CloudSnapshotId, Failure> {
    let rank = |id: &&CloudSnapshotId| {
        let entries = list.list.items.iter().filter(|one| one.cloud_snapshot_id == **id);
        let rank = |one: &Cloudsnap| {
            let is_readable = one.status == CloudsnapStatus::Done;
            (
                is_readable != (state == State::DamagedFirst),
                Some(one.credential_id) == default,
                one.completed_at,
            )
        };
        (entries.map(rank).max(), **id)
    };
    let found = copies.iter().max_by_key(rank).copied();
    found.ok_or_else(|| Failure::usage("no cloud snapshot matches"))
}

/// Returns the ids of a list, also of damaged cloud snapshots.
fn ids(list: &CloudsnapList) -> BTreeSet<CloudSnapshotId> {
    let damaged = list.damaged.iter().filter_map(|one| one.cloud_snapshot_id.parse().ok());
    list.list.items.iter().map(|one| one.cloud_snapshot_id).chain(damaged).collect()
}

/// Reports a location without which a reference cannot be resolved.
fn not_searched(snap: &SnapRef, failed: &FailedCredential) -> Failure {
    let message = format!(
        "search for {snap} failed at backup location {}: {}",
        failed.credential_name, failed.error.message
    );
    let hint = "give a complete id, or --cred-id with the only location to search";
    ApiError::new(failed.error.code, message).with_hint(hint).into()
}

/// Reports an unknown name; the name of a volume lacks its point in time.
fn not_found(text: &str, list: &CloudsnapList) -> Failure {
    let is_volume = list.list.items.iter().any(|one| one.volume_name == text);
    let is_short = text.len() < MIN_LEN && text.chars().all(|c| c.is_ascii_hexdigit());
    let hint = match (is_volume, is_short) {
        (true, _) => format!("{text} is a volume: name a point of it, {text}@{LATEST} or {text}@TIME"),
        (false, true) => format!("a prefix of an id needs at least {MIN_LEN} characters"),
        (false, false) => "blockctl cloudsnap list".to_owned(),
    };
    let message = format!("there is no cloud snapshot with the id, id prefix or name {text}");
    ApiError::new(ErrorCode::CloudsnapNotFound, message).with_hint(hint).into()
}

/// Reports several matches: of a name, or of an id prefix.
fn ambiguous(snap: &SnapRef, found: &[CloudSnapshotId], is_name: bool, list: &CloudsnapList) -> Failure {
    let line = |id: &CloudSnapshotId| {
        let entry = list.list.items.iter().find(|one| one.cloud_snapshot_id == *id);
        let of = entry.map(|one| {
            format!(" ({}, {}, at {})", one.volume_name, short_time(one.created_at), one.credential_name)
        });
        format!("{id}{}", of.unwrap_or_default())
    };
    let text = snap.to_string();
    let hint = match behind_cluster_name(&text) {
        _ if is_name => "give one of these ids, or --cred-id if they are at different locations",
        Some(_) => "give the UUID of the cluster, as in these ids, in place of its name",
        None => "give a longer prefix",
    };
    Failure::usage(format!(
        "{} cloud snapshots match {text}: {}",
        found.len(),
        match is_name {
            // There is no other way to name one of them.
            true => found.iter().map(line).collect::<Vec<_>>().join(", "),
            false => first_names(found.iter().map(line)),
        }
    ))
    .with_hint(hint)
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
            "pqr9-cl1/1819154262174038911-4745512035340000001-incr",
            "pqr9-cl1/1819154262174038911-47455",
        ] {
            let snap: SnapRef = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert!(snap.is_of(ID), "{text}");
        }
        for text in
            ["592d4b", "95d7-481e", "1819155", "591d/4745512", "181915-18", "591d4b67/x", "591d4", "7"]
        {
            assert!(!text.parse::<SnapRef>().is_ok_and(|snap| snap.is_of(ID)), "{text}");
        }
        assert!("f44a/backup".parse::<SnapRef>().is_ok() && "x/backup".parse::<SnapRef>().is_err());
        for text in ["", "../../etc", "a b", "db@", "db@x", "@latest", "db@2026-02-30"] {
            assert!(text.parse::<SnapRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn complete_id_needs_no_request() {
        let whole = |text: &str| text.parse::<SnapRef>().unwrap().whole().is_some();
        assert!(whole(ID) && whole(ID.strip_suffix("-incr").unwrap()));
        assert!(whole("591d4b67-95d7-481e-aec5-14223ac55170/59-61-incr"));
        assert!(!whole("591d4b67-95d7-481e-aec5-14223ac55170/1819154262174038911-4745512035340"));
        assert!(!whole("db@latest"));
    }

    #[test]
    fn names_may_be_those_of_volumes() {
        let parse = |text: &str| text.parse::<SnapRef>().unwrap();
        assert_eq!(parse("before-upgrade").volume(), Some("before-upgrade".parse().unwrap()));
        assert_eq!(parse("db@latest").volume(), None);
    }
}
