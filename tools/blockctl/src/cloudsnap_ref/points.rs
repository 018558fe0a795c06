//! Points in time of volumes: `VOLUME@latest` and `VOLUME@TIME`.

use crate::{
    failure::Failure,
    output::Context,
    table::{counted, short_time, short_uuid},
    volume_point::VolumePoint,
};
use blockd_api::{
    ApiError, ClientError, ErrorCode, VolumeId, VolumeRef,
    cloudsnaps::{CloudSnapshotId, Cloudsnap, CloudsnapList, CloudsnapStatus},
    first_names, operations,
};
use jiff::Timestamp;
use std::collections::BTreeSet;
use uuid::Uuid;

/// Volumes whose backups the name of a volume may select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Any volume that has the name or had it, if the present one has no backups.
    Any,
    /// The volume that has the name on this host now, if there is one.
    Present,
}

/// States of the cloud snapshots that a point in time may select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not known to be damaged.
    Restorable,
    /// Also damaged ones.
    Any,
    /// As [`Self::Any`]; of several copies, a damaged one.
    DamagedFirst,
}

/// Returns the volumes of cloud snapshots, each with its host.
fn sources(all: &[&Cloudsnap]) -> BTreeSet<(Uuid, VolumeId)> {
    all.iter().map(|one| (one.cloud_snapshot_id.cluster, one.volume_id)).collect()
}

/// Returns the newest cloud snapshot of each volume.
fn newest_of_each<'a>(all: &[&'a Cloudsnap]) -> Vec<&'a Cloudsnap> {
    let newest = |(cluster, volume)| {
        let own =
            all.iter().filter(move |one| one.cloud_snapshot_id.cluster == cluster && one.volume_id == volume);
        own.copied().max_by_key(|one| one.created_at)
    };
    sources(all).into_iter().filter_map(newest).collect()
}

/// Reports a name that several volumes have, or had before they were renamed or deleted.
fn several_sources(volume: &VolumeRef, all: &[&Cloudsnap]) -> Failure {
    let found = newest_of_each(all);
    let hosts: BTreeSet<Uuid> = found.iter().map(|one| one.cloud_snapshot_id.cluster).collect();
    let named = found.iter().map(|one| format!("{} ({})", one.cloud_snapshot_id, short_time(one.created_at)));
    let (count, who) = match hosts.len() {
        1 => (found.len(), "volumes named"),
        hosts => (hosts, "hosts have backups of a volume"),
    };
    let has = if hosts.len() == 1 { " have backups" } else { "" };
    Failure::usage(format!("{count} {who} {volume}{has}: {}", first_names(named)))
        .with_hint("give one of these ids")
}

/// Returns the backups that count for a name: those of the volume that has it now, otherwise those of this
/// host, otherwise all.
async fn eligible<'a>(
    context: &Context<'_>,
    volume: &VolumeRef,
    all: &'a [Cloudsnap],
    owner: Owner,
) -> Result<Vec<&'a Cloudsnap>, Failure> {
    let mut eligible: Vec<&Cloudsnap> = all.iter().collect();
    if eligible.is_empty() || (sources(&eligible).len() == 1 && owner == Owner::Any) {
        return Ok(eligible);
    }
    let here = context.client.call(operations::GET_STATUS, &()).await?.cluster_id;
    let present = match context.client.call_at(operations::GET_VOLUME, volume, &()).await {
        Ok(found) => Some((here, found.volume_id)),
        Err(ClientError::Api(error)) if error.code == ErrorCode::VolumeNotFound => None,
        Err(error) => return Err(error.into()),
    };
    let is_here = |one: &&Cloudsnap| one.cloud_snapshot_id.cluster == here;
    let is_present = |one: &&Cloudsnap| present == Some((one.cloud_snapshot_id.cluster, one.volume_id));
    if eligible.iter().any(is_present) || (owner == Owner::Present && present.is_some()) {
        eligible.retain(is_present);
    } else if eligible.iter().any(is_here) {
        eligible.retain(is_here);
    }
    Ok(eligible)
}

/// Returns the copies of the newest cloud snapshot that a point in time selects.
///
/// # Errors
/// None of those that count, or several volumes have one.
pub(super) async fn newest(
    context: &Context<'_>,
    point: &VolumePoint,
    list: &CloudsnapList,
    owner: Owner,
    state: State,
) -> Result<Vec<CloudSnapshotId>, Failure> {
    let all = &list.list.items[..];
    let eligible = eligible(context, &point.volume, all, owner).await?;
    let counts = |one: &Cloudsnap| state != State::Restorable || one.status == CloudsnapStatus::Done;
    let is_wanted = |one: &&Cloudsnap| counts(one) && point.includes(one.created_at);
    let wanted: Vec<&Cloudsnap> = eligible.iter().copied().filter(is_wanted).collect();
    if sources(&wanted).len() > 1 {
        return Err(several_sources(&point.volume, &wanted));
    }
    let mut found: Vec<_> = wanted.iter().map(|one| (one.created_at, one.cloud_snapshot_id)).collect();
    if state != State::Restorable {
        found.extend(unreadable(point, list, &sources(&eligible)));
    }
    let newest = found.iter().map(|(created_at, _)| *created_at).max();
    let copies: BTreeSet<CloudSnapshotId> =
        found.into_iter().filter(|(at, _)| Some(*at) == newest).map(|(_, id)| id).collect();
    let Some(newest) = newest else { return Err(none(point, all, &eligible)) };
    if state == State::Restorable {
        let since =
            wanted.iter().filter(|one| one.created_at == newest).filter_map(|one| one.completed_at).max();
        for (id, status) in skipped(point, list, &eligible, newest, since.unwrap_or(newest)) {
            context.output.note(format!(
                "warning: {point} is the cloud snapshot of {}: a later one, {id}, is skipped ({status})",
                short_time(newest)
            ));
        }
    }
    Ok(copies.into_iter().collect())
}

/// Returns the later cloud snapshots that are not restorable, the unreadable ones by their time in the store.
fn skipped(
    point: &VolumePoint,
    list: &CloudsnapList,
    eligible: &[&Cloudsnap],
    newest: Timestamp,
    since: Timestamp,
) -> Vec<(String, CloudsnapStatus)> {
    let volumes = sources(eligible);
    let is_later = |one: &&&Cloudsnap| one.created_at > newest && point.includes(one.created_at);
    let damaged = eligible.iter().filter(is_later).map(|one| (one.cloud_snapshot_id.to_string(), one.status));
    let unreadable = list.damaged.iter().filter(|one| {
        let id: Option<CloudSnapshotId> = one.cloud_snapshot_id.parse().ok();
        let is_later = match one.created_at {
            Some(created_at) => created_at > newest && point.includes(created_at),
            None => one.stored_at.is_some_and(|stored_at| stored_at > since && point.includes(stored_at)),
        };
        is_later && id.is_some_and(|id| volumes.contains(&(id.cluster, id.volume)))
    });
    damaged.chain(unreadable.map(|one| (one.cloud_snapshot_id.clone(), one.status))).collect()
}

/// Returns the cloud snapshots of these volumes, or of the listed ones if there are none, whose manifest is
/// damaged and whose point in time this host knows.
fn unreadable(
    point: &VolumePoint,
    list: &CloudsnapList,
    volumes: &BTreeSet<(Uuid, VolumeId)>,
) -> Vec<(Timestamp, CloudSnapshotId)> {
    let is_of = |id: &CloudSnapshotId| volumes.is_empty() || volumes.contains(&(id.cluster, id.volume));
    let known = list.damaged.iter().filter_map(|one| {
        let created_at = one.created_at.filter(|at| point.includes(*at))?;
        Some((created_at, one.cloud_snapshot_id.parse().ok()?))
    });
    known.filter(|(_, id)| is_of(id)).collect()
}

/// Reports that no eligible cloud snapshot can be restored, and which other volumes of the name have some.
fn none(point: &VolumePoint, all: &[Cloudsnap], eligible: &[&Cloudsnap]) -> Failure {
    let (volume, until) = (&point.volume, point.until);
    let own = sources(eligible);
    let is_other = |one: &&Cloudsnap| !own.contains(&(one.cloud_snapshot_id.cluster, one.volume_id));
    let others: Vec<&Cloudsnap> = all.iter().filter(is_other).collect();
    let limit = until.map(|until| format!(" at or before {}", short_time(until))).unwrap_or_default();
    let mut message = format!("volume {volume} has no restorable cloud snapshot{limit}");
    let is_damaged =
        |one: &&&Cloudsnap| one.status == CloudsnapStatus::Damaged && point.includes(one.created_at);
    if let Some(damaged) = eligible.iter().filter(is_damaged).max_by_key(|one| one.created_at) {
        let id = damaged.cloud_snapshot_id;
        let hint = format!(
            "`blockctl cloudsnap repair {id} --wait` repairs it; `blockctl cloudsnap restore {id} --skip-damaged` restores what can be read"
        );
        message += &format!(": cloud snapshot {id} is damaged");
        return ApiError::new(ErrorCode::CloudsnapDamaged, message).with_hint(hint).into();
    }
    let oldest = eligible.iter().map(|one| one.created_at).min().filter(|_| until.is_some());
    let mut hints: Vec<String> =
        oldest.iter().map(|oldest| format!("its oldest is of {}", short_time(*oldest))).collect();
    if !others.is_empty() {
        let count = counted(others.len() as u64, "cloud snapshot");
        message += &format!("; other volumes that had this name have {count}");
        let named = |one: &&Cloudsnap| {
            let (id, time) = (one.volume_id, short_time(one.created_at));
            format!("{id} (host {}, newest {time})", short_uuid(one.cloud_snapshot_id.cluster))
        };
        hints.push(format!(
            "give the id of one: `blockctl cloudsnap list --src ID` lists those of volume {}",
            first_names(newest_of_each(&others).iter().map(named))
        ));
    }
    if hints.is_empty() {
        hints.push(format!("blockctl cloudsnap list --src {volume}"));
    }
    let hint = hints.join("; ");
    ApiError::new(ErrorCode::CloudsnapNotFound, message).with_hint(hint).into()
}
