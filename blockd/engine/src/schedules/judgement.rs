//! Retention decisions: backups and snapshots that a schedule does not keep.

use crate::schedules::{
    known_health::KnownHealth,
    transactions::{MANUAL_POOL, pool_of},
    uses::Uses,
};
use blockd_api::SnapshotName;
use blockd_catalog::{AnomalyHolds, DbError, RetentionOverride, RunRow, ScheduleRow, SnapshotRow, TaskRow};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_schedule::{Condition, Health, KeepReason, Snapshot, Verdict, decide};
use jiff::Timestamp;
use rusqlite::Transaction;
use std::collections::{BTreeMap, btree_map::Entry};
use uuid::Uuid;

/// Retention decision for a backup of a schedule.
#[derive(Clone, Debug)]
pub struct Judgement {
    pub(crate) run: RunRow,
    pub(crate) cloudsnap: CloudSnapshotId,
    pub(crate) credential: Uuid,
    pub(crate) verdict: Verdict,
    /// The rule was removed: its last retention applies.
    pub is_of_gone_rule: bool,
    /// Pin and expiry date, which were considered.
    pub mark: Option<RetentionOverride>,
}

/// Applies the retention to the backups of a schedule. Rules with their own retention, manual runs and all
/// others count separately, for each volume and location. Backups of a removed rule keep its last retention:
/// a stricter one must not apply without a user's decision.
pub fn judge(
    tx: &Transaction<'_>,
    schedule: &ScheduleRow,
    now: Timestamp,
) -> Result<Vec<Judgement>, DbError> {
    let rules = schedule.rules(tx)?;
    let of_schedule = || schedule.spec.retain.clone();
    let own = |run: &RunRow| {
        if let Some(rule) = rules.iter().find(|rule| Some(&rule.when) == run.rule.as_ref()) {
            return pool_of(rule).unwrap_or_else(|| (String::new(), of_schedule()));
        }
        let of_rule = run.pool.strip_prefix(MANUAL_POOL).filter(|when| !when.is_empty());
        let rule = rules.iter().find(|rule| of_rule.is_some_and(|when| rule.when.to_string() == when));
        let retain = rule.and_then(|rule| rule.retain.clone()).or_else(|| run.retain.clone());
        (run.pool.clone(), retain.unwrap_or_else(of_schedule))
    };
    let uses = Uses::all(tx)?;
    let mut known = BTreeMap::new();
    let marks = RetentionOverride::all(tx)?;
    let mut pools = BTreeMap::new();
    let mut runs = BTreeMap::new();
    for run in RunRow::kept(tx, schedule.uuid)? {
        let (Some(cloudsnap), Some(credential)) = (run.cloudsnap, run.credential) else { continue };
        let is_of_gone_rule = run.rule.as_ref().is_some_and(|of| rules.iter().all(|rule| rule.when != *of));
        let (pool, retain) = match schedule.spec.retain_at.get(&credential) {
            // The retention of a location has precedence over that of rules.
            Some(at) if run.rule.is_none() => (MANUAL_POOL.to_owned(), at.clone()),
            Some(at) => (String::new(), at.clone()),
            None => own(&run),
        };
        let key = (pool, cloudsnap.cluster, cloudsnap.volume, credential);
        let known = match known.entry(credential) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(KnownHealth::of(tx, credential, now)?),
        };
        let (condition, health) = known.judge(&cloudsnap, uses.condition(credential, &cloudsnap));
        let mark = marks.of(&cloudsnap, credential, now);
        let snapshot = Snapshot {
            id: run.id,
            created: run.started,
            condition,
            health,
            pinned: mark.is_some_and(|mark| mark.pinned),
            held: marks.is_held(cloudsnap.volume),
            expires: mark.and_then(|mark| mark.expires),
        };
        pools.entry(key).or_insert_with(|| (retain, Vec::new())).1.push(snapshot);
        runs.insert(run.id, (run, cloudsnap, credential, is_of_gone_rule, mark));
    }
    let mut judged = Vec::new();
    for (retain, snapshots) in pools.into_values() {
        for (id, verdict) in decide(&snapshots, &retain, now) {
            if let Some((run, cloudsnap, credential, is_of_gone_rule, mark)) = runs.remove(&id) {
                judged.push(Judgement { run, cloudsnap, credential, verdict, is_of_gone_rule, mark });
            }
        }
    }
    Ok(judged)
}

/// Retention decision for a local snapshot of a schedule.
#[derive(Clone, Debug)]
pub struct LocalJudgement {
    pub(crate) run: RunRow,
    pub(crate) snapshot: SnapshotId,
    pub(crate) name: Option<SnapshotName>,
    pub(crate) verdict: Verdict,
}

/// Applies the retention to the local snapshots of a schedule, for each volume, to manual ones separately. If
/// the schedule no longer takes any, all are kept.
pub fn judge_local(
    tx: &Transaction<'_>,
    schedule: &ScheduleRow,
    now: Timestamp,
) -> Result<Vec<LocalJudgement>, DbError> {
    let retain = schedule.spec.local.clone().unwrap_or_default();
    let holds = AnomalyHolds::all(tx)?;
    let mut volumes: BTreeMap<(bool, VolumeId), Vec<Snapshot<u64>>> = BTreeMap::new();
    let mut runs = BTreeMap::new();
    for run in RunRow::kept(tx, schedule.uuid)?.into_iter().filter(RunRow::is_local) {
        let (Some(volume), Some(id)) = (run.volume, run.snapshot) else { continue };
        let Some(row) = SnapshotRow::find_kept(tx, id)? else { continue };
        let snapshot = Snapshot {
            id: run.id,
            created: run.started,
            condition: match TaskRow::task_in_need(tx, id)? {
                Some(_) => Condition::InUse,
                None => Condition::Done,
            },
            health: Health::Unverified,
            pinned: row.pinned,
            held: holds.is_held(volume),
            expires: None,
        };
        volumes.entry((run.rule.is_none(), volume)).or_default().push(snapshot);
        runs.insert(run.id, (run, id, row.name));
    }
    let mut judged = Vec::new();
    for snapshots in volumes.into_values() {
        for (id, verdict) in decide(&snapshots, &retain, now) {
            if let Some((run, snapshot, name)) = runs.remove(&id) {
                judged.push(LocalJudgement { run, snapshot, name: Some(name), verdict });
            }
        }
    }
    Ok(judged)
}

/// Keeps all backups of a deleted schedule.
pub fn judge_deleted(
    tx: &Transaction<'_>,
    schedule: Uuid,
) -> Result<(Vec<Judgement>, Vec<LocalJudgement>), DbError> {
    let verdict = || Verdict::Keep(vec![KeepReason::ScheduleGone]);
    let (mut judged, mut local) = (Vec::new(), Vec::new());
    for run in RunRow::kept(tx, schedule)? {
        if let Some(snapshot) = run.snapshot.filter(|_| run.is_local()) {
            let name = SnapshotRow::find_kept(tx, snapshot)?.map(|row| row.name);
            local.push(LocalJudgement { run, snapshot, name, verdict: verdict() });
        } else if let (Some(cloudsnap), Some(credential)) = (run.cloudsnap, run.credential) {
            let (verdict, mark) = (verdict(), None);
            judged.push(Judgement { run, cloudsnap, credential, verdict, is_of_gone_rule: false, mark });
        }
    }
    Ok((judged, local))
}
