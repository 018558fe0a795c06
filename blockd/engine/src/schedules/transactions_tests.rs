//! Tests of scheduler steps that the simulation does not reach.

use crate::schedules::{judgement, settle, update};
use crate::{schedules::selection::Candidate, schedules::transactions, volumes::registry::Tags};
use blockd_api::{
    ErrorCode,
    schedules::{Priority, Rule, RunState, Selector, UpdateSchedule},
    tasks::{TaskOwner, TaskStage},
};
use blockd_catalog::{
    BackupTask, Db, DbError, RestoreTask, RunRow, ScheduleRow, ScheduleSpec, TaskRow, TaskSpec,
};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_schedule::{Jitter, KeepReason, Retention, Verdict};
use jiff::Timestamp;
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};
use uuid::Uuid;

const CREDENTIAL: Uuid = Uuid::from_u128(9);

pub(super) struct EngineFixture {
    pub db: Arc<Db>,
    _dir: tempfile::TempDir,
}

pub(super) fn at(hour: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + hour * 3_600).unwrap()
}

pub(super) fn rule(when: &str, keep: Option<u32>) -> Rule {
    Rule { when: when.parse().unwrap(), retain: keep.map(|keep| Retention::max(keep).unwrap()) }
}

pub(super) fn snap(number: u64) -> CloudSnapshotId {
    let (volume, snapshot) = (VolumeId::from_u64(1), SnapshotId::from_u64(number));
    CloudSnapshotId { cluster: CREDENTIAL, volume, snapshot, incremental: false }
}

pub(super) fn volume() -> Candidate {
    let tags = Tags { labels: "app=x".parse().unwrap(), group: None };
    Candidate { id: VolumeId::from_u64(1), name: "v".parse().unwrap(), tags }
}

impl EngineFixture {
    pub fn new() -> Self {
        // In memory: each of the many commits would be synced.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let db = Arc::new(Db::open(&dir.path().join("blockd.db")).unwrap());
        Self { db, _dir: dir }
    }

    pub fn tx<R>(&self, work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<R, DbError>) -> R {
        self.db.transaction(work).unwrap()
    }

    pub fn schedule(&self, rules: Vec<Rule>, keep: u32) -> ScheduleRow {
        let spec = ScheduleSpec {
            name: None,
            selector: Selector { label: Some("app=x".parse().unwrap()), ..Selector::default() },
            credentials: vec![CREDENTIAL],
            rules,
            retain: Retention::max(keep).unwrap(),
            full: false,
            reupload: false,
            jitter: Some(Jitter { max_s: 0 }),
            priority: Priority::Normal,
            rule: None,
            labels: Default::default(),
            compression: None,
            local: None,
            retain_at: Default::default(),
            drill: None,
        };
        let row = ScheduleRow { uuid: Uuid::new_v4(), created: at(0), paused: false, policy: None, spec };
        self.tx(|tx| {
            row.put(tx)?;
            row.spec.rules.iter().try_for_each(|rule| row.set_cursor(tx, &rule.when, at(0)))
        });
        row
    }

    pub fn fire(&self, hour: i64) {
        self.tx(|tx| transactions::fire(tx, &[volume()], at(hour)).map(drop));
    }

    pub fn queued(&self) -> Vec<RunRow> {
        self.tx(|tx| RunRow::in_state(tx, RunState::Queued))
    }

    /// Completes the backups of queued runs.
    fn work(&self, number: u64) {
        for run in self.queued() {
            let done = RunRow { state: RunState::Done, cloudsnap: Some(snap(number)), ..run };
            self.tx(|tx| done.update(tx));
        }
    }

    fn deleted(&self, schedule: &ScheduleRow, hour: i64) -> Vec<u64> {
        let judged = self.tx(|tx| judgement::judge(tx, schedule, at(hour)));
        let gone = judged.iter().filter(|judgement| judgement.verdict.is_delete());
        gone.map(|judgement| judgement.cloudsnap.snapshot.as_u64()).collect()
    }
}

pub(super) fn task(spec: TaskSpec, cloudsnap: CloudSnapshotId) -> TaskRow {
    TaskRow { created: at(0), ..TaskRow::new(spec, CREDENTIAL, cloudsnap, TaskOwner::Daemon) }
}

#[test]
fn backups_of_a_deleted_rule_keep_its_retention() {
    let bench = EngineFixture::new();
    let mut schedule = bench.schedule(vec![rule("periodic 60", Some(5))], 1);
    for hour in 1..=5 {
        bench.fire(hour);
        bench.work(hour.unsigned_abs());
    }
    assert_eq!(bench.deleted(&schedule, 6), [0_u64; 0]);
    schedule.spec.rules = vec![rule("periodic 120", Some(2))];
    bench.tx(|tx| schedule.put(tx));
    assert_eq!(bench.deleted(&schedule, 6), [0_u64; 0]);
    // The retention of the rule itself applies.
    schedule.spec.rules = vec![rule("periodic 60", Some(2))];
    assert_eq!(bench.deleted(&schedule, 6), [3, 2, 1]);
}

#[test]
fn manual_runs_displace_no_scheduled_ones() {
    let bench = EngineFixture::new();
    let mut schedule = bench.schedule(vec![rule("periodic 60", None)], 2);
    for hour in 1..=3 {
        bench.fire(hour);
        bench.work(hour.unsigned_abs());
    }
    for number in 11..=14 {
        bench.tx(|tx| transactions::run_now(tx, &schedule, &[volume()], at(4)));
        bench.work(number);
    }
    let deleted = |schedule: &ScheduleRow| BTreeSet::from_iter(bench.deleted(schedule, 4));
    assert_eq!(deleted(&schedule), [1, 11, 12].into());
    // Another retention of the schedule or a location applies to both.
    schedule.spec.retain_at.insert(CREDENTIAL, Retention::max(1).unwrap());
    assert_eq!(deleted(&schedule), [1, 2, 11, 12, 13].into());
}

#[test]
fn manual_runs_keep_the_retention_of_rules_at_their_time() {
    let bench = EngineFixture::new();
    let mut schedule = bench.schedule(vec![rule("daily 00:00", Some(3))], 1);
    schedule.spec.retain = Retention::default();
    bench.tx(|tx| schedule.put(tx));
    for number in 1..=3 {
        bench.tx(|tx| transactions::run_now(tx, &schedule, &[volume()], at(0)));
        bench.work(number);
    }
    schedule.spec.rules.push(rule("periodic 60", Some(1)));
    bench.tx(|tx| schedule.put(tx));
    assert_eq!(bench.deleted(&schedule, 1), [0_u64; 0]);
    // Later ones follow the rule that is now the most frequent.
    for number in 4..=5 {
        bench.tx(|tx| transactions::run_now(tx, &schedule, &[volume()], at(1)));
        bench.work(number);
    }
    assert_eq!(bench.deleted(&schedule, 1), [4]);
    // The retention of the rule itself applies.
    schedule.spec.rules[0].retain = Some(Retention::max(2).unwrap());
    bench.tx(|tx| schedule.put(tx));
    assert_eq!(BTreeSet::from_iter(bench.deleted(&schedule, 1)), [1, 4].into());
}

#[test]
fn deleted_backups_do_not_count_and_used_ones_are_kept() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 60", None)], 2);
    for hour in 1..=4 {
        bench.fire(hour);
        bench.work(hour.unsigned_abs());
    }
    assert_eq!(bench.deleted(&schedule, 5), [2, 1]);
    let restore = TaskSpec::Restore(RestoreTask::NewVolume { skip_damaged: false });
    bench.tx(|tx| task(restore, snap(2)).put(tx));
    assert_eq!(bench.deleted(&schedule, 5), [1]);
    // A user deletes the newest: the next one takes its place.
    bench.tx(|tx| RunRow::expire(tx, CREDENTIAL, &snap(4), "gone"));
    let judged = bench.tx(|tx| judgement::judge(tx, &schedule, at(5)));
    assert_eq!(judged[0].cloudsnap, snap(3));
    assert_eq!(judged[0].verdict, Verdict::Keep(vec![KeepReason::LastGood, KeepReason::Last(1)]));
    assert_eq!(bench.deleted(&schedule, 5), [0_u64; 0]);
}

#[test]
fn refused_run_fails_at_the_next_and_a_paused_one_waits() {
    let bench = EngineFixture::new();
    let mut schedule = bench.schedule(vec![rule("periodic 60", None)], 2);
    bench.fire(1);
    let first = bench.queued().remove(0);
    bench.tx(|tx| transactions::waits(tx, &first, "the volume is in use".into()));
    bench.fire(2);
    let runs = bench.tx(|tx| RunRow::history(tx, None, None, 9));
    assert_eq!((runs[0].state, runs[1].state), (RunState::Queued, RunState::Failed));
    assert!(runs[1].reason.as_ref().unwrap().ends_with("the volume is in use"), "{runs:?}");
    // The run does not start.
    let backup = task(TaskSpec::Backup(BackupTask::default()), snap(1));
    let record_start = bench.db.transaction(|tx| transactions::record_start(tx, &first, &backup));
    assert!(matches!(record_start, Err(DbError::NotWaiting(id)) if id == first.id), "{record_start:?}");

    schedule.paused = true;
    bench.tx(|tx| schedule.put(tx));
    assert_eq!(bench.tx(|tx| transactions::ready(tx, 2)).batches, []);
    bench.work(1);
    bench.tx(|tx| transactions::run_now(tx, &schedule, &[volume()], at(3)));
    assert_eq!(bench.tx(|tx| transactions::ready(tx, 2)).batches.len(), 1);
}

#[test]
fn runs_after_a_clock_set_back_are_planned() {
    let bench = EngineFixture::new();
    bench.schedule(vec![rule("periodic 60", None)], 2);
    for hour in [1, 2, 3] {
        bench.fire(hour);
        bench.work(1);
    }
    // Once to notice it, once for the run that is due then.
    bench.fire(0);
    bench.fire(1);
    assert_eq!(bench.queued().len(), 1);
}

#[test]
fn unreadable_schedule_stops_no_other() {
    let bench = EngineFixture::new();
    let good = bench.schedule(vec![rule("periodic 60", None)], 2);
    let bad = bench.schedule(vec![rule("daily @21:00 Europe/Berlin", None)], 2);
    bench.tx(|tx| {
        let sql =
            "UPDATE schedules SET spec = replace(spec, 'Europe/Berlin', 'Mars/Olympus') WHERE uuid = ?1";
        assert_eq!(tx.execute(sql, [bad.uuid.to_string()])?, 1);
        Ok(())
    });
    bench.fire(1);
    assert_eq!(bench.queued().len(), 1);
    assert_eq!(bench.tx(ScheduleRow::all), [good]);
    let each = bench.tx(ScheduleRow::each);
    assert_eq!(each.iter().filter(|(_, row)| row.is_err()).count(), 1);
    assert!(bench.tx(|tx| ScheduleRow::exists(tx, bad.uuid)));
}

#[test]
fn schedule_of_deleted_volumes_warns_once() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 60", None)], 2);
    let fire =
        |volumes: &[Candidate], hour| bench.tx(|tx| transactions::fire(tx, volumes, at(hour)).map(drop));
    let told = || bench.tx(|tx| RunRow::history(tx, None, None, 99));
    for hour in 1..=5 {
        fire(&[], hour);
    }
    assert_eq!(
        told().iter().map(|run| (run.state, run.volume)).collect::<Vec<_>>(),
        [(RunState::Skipped, None)]
    );
    let events = bench.tx(|tx| blockd_catalog::events_after(tx, 0, 99));
    assert_eq!(events.iter().filter(|event| event.kind == "run-skipped").count(), 1, "{events:?}");
    // A manual run is answered, and once there was a volume, the warning is repeated.
    bench.tx(|tx| transactions::run_now(tx, &schedule, &[], at(6)));
    assert_eq!(told().len(), 2);
    fire(&[volume()], 7);
    bench.work(1);
    fire(&[], 8);
    fire(&[], 9);
    let states: Vec<_> = told().iter().map(|run| run.state).collect();
    assert_eq!(states, [RunState::Skipped, RunState::Done, RunState::Skipped, RunState::Skipped]);
}

#[test]
fn runs_of_deleted_schedules_are_forgotten() {
    let bench = EngineFixture::new();
    let (kept, gone) = (
        bench.schedule(vec![rule("periodic 60", None)], 9),
        bench.schedule(vec![rule("periodic 60", None)], 9),
    );
    for hour in 1..=3 {
        bench.fire(hour);
        bench.work(hour.unsigned_abs());
    }
    let of = |schedule: &ScheduleRow| {
        bench.tx(|tx| RunRow::history(tx, Some(&schedule.uuid.to_string()[..13]), None, 99)).len()
    };
    bench.tx(|tx| RunRow::prune(tx, 0));
    assert_eq!((of(&kept), of(&gone)), (3, 3), "their retention goes by it");
    bench.tx(|tx| ScheduleRow::delete(tx, gone.uuid));
    bench.tx(|tx| RunRow::prune(tx, 2));
    assert_eq!((of(&kept), of(&gone)), (3, 2));
}

#[test]
fn unstarted_run_is_overdue_after_minutes() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![Rule { when: "daily 03:00".parse().unwrap(), retain: None }], 1);
    let due = schedule.spec.rules[0].when.next_after(at(0)).unwrap();
    let overdue = |schedule: &ScheduleRow, minutes: i64| {
        let now = due + jiff::SignedDuration::from_mins(minutes);
        bench.tx(|tx| transactions::overdue_since(tx, schedule, now))
    };
    assert_eq!(overdue(&schedule, 4), None);
    assert_eq!(overdue(&schedule, 6), Some(due));
    let paused = ScheduleRow { paused: true, ..schedule };
    assert_eq!(overdue(&paused, 6), None);
}

#[test]
fn drills_do_not_stack_and_take_no_slot_of_backups() {
    let bench = EngineFixture::new();
    let mut schedule = bench.schedule(vec![rule("periodic 60", Some(1))], 1);
    (schedule.spec.retain, schedule.spec.drill) = (Retention::default(), Some(Default::default()));
    let backup =
        TaskRow { volume: Some(volume().id), ..task(TaskSpec::Backup(BackupTask::default()), snap(1)) };
    bench.tx(|tx| schedule.put(tx).and_then(|()| backup.put(tx)));
    bench.fire(4);
    let run = bench.queued().remove(0);
    assert_eq!((bench.queued().len(), run.missed), (1, 3), "one run replaces the missed ones");
    // A running backup of the volume does not delay it.
    let ready = bench.tx(|tx| transactions::ready(tx, 1));
    assert!(ready.batches.len() == 1 && !ready.batches[0].needs_upload(), "{ready:?}");
    let mut drill = task(TaskSpec::Drill(crate::drills::drill_task(None, None, None, "").unwrap()), snap(1));
    bench.tx(|tx| transactions::record_start(tx, &run, &drill).and_then(|()| drill.put(tx)));
    assert_eq!(bench.tx(|tx| transactions::ready(tx, 1)).free_slots, 1);
    bench.fire(5);
    drill.state = TaskStage::Failed;
    bench.tx(|tx| drill.put(tx));
    let settle = || bench.tx(|tx| settle::settle(tx, &HashSet::new(), at(5)).map(drop));
    settle();
    let states =
        || bench.tx(|tx| RunRow::history(tx, None, None, 9)).iter().map(|run| run.state).collect::<Vec<_>>();
    assert_eq!(states(), [RunState::Skipped, RunState::Failed]);
    // A drill makes nothing that retention keeps or deletes.
    bench.fire(6);
    let run = bench.queued().remove(0);
    let drill = TaskRow { id: Uuid::new_v4(), state: TaskStage::Done, ..drill };
    bench.tx(|tx| transactions::record_start(tx, &run, &drill).and_then(|()| drill.put(tx)));
    settle();
    assert_eq!(states()[0], RunState::Done);
    assert!(bench.tx(|tx| RunRow::kept(tx, schedule.uuid)).is_empty());
    bench.tx(|tx| RunRow::prune(tx, 1));
    assert_eq!(states(), [RunState::Done]);
}

#[test]
fn failed_drill_counts_until_its_snapshot_is_deleted() {
    let bench = EngineFixture::new();
    let mut schedule = bench.schedule(vec![rule("periodic 60", Some(1))], 1);
    (schedule.spec.retain, schedule.spec.drill) = (Retention::default(), Some(Default::default()));
    bench.tx(|tx| schedule.put(tx));
    let drilled = |minute, code, id: CloudSnapshotId| {
        bench.fire(minute);
        let run = bench.queued().remove(0);
        let spec = TaskSpec::Drill(crate::drills::drill_task(None, None, None, "").unwrap());
        let mut drill = task(spec, id);
        bench.tx(|tx| transactions::record_start(tx, &run, &drill));
        drill.state = TaskStage::Failed;
        drill.detail.error = Some(blockd_api::ApiError::new(code, "why"));
        bench.tx(|tx| drill.put(tx));
        bench.tx(|tx| settle::settle(tx, &HashSet::new(), at(minute)).map(drop));
    };
    let states = || {
        let runs = bench.tx(|tx| RunRow::history(tx, None, None, 9));
        runs.iter().map(|run| run.state).collect::<Vec<_>>()
    };
    drilled(1, ErrorCode::CloudsnapDamaged, snap(1));
    drilled(2, ErrorCode::DrillFailed, snap(2));
    drilled(3, ErrorCode::CloudsnapNotFound, snap(3));
    let (skipped, failed, expired) = (RunState::Skipped, RunState::Failed, RunState::Expired);
    assert_eq!(states(), [skipped, failed, failed], "the last one was deleted during the drill");
    bench.tx(|tx| RunRow::expire(tx, CREDENTIAL, &snap(2), "deleted"));
    assert_eq!(states(), [skipped, expired, failed]);
    bench.tx(|tx| RunRow::expire_failed(tx, CREDENTIAL, &snap(1)));
    assert_eq!(states(), [skipped, expired, expired]);
}

#[test]
fn change_before_the_delayed_start_keeps_the_run() {
    let bench = EngineFixture::new();
    let unused = bench.schedule(vec![], 1);
    bench.tx(|tx| ScheduleRow::delete(tx, unused.uuid));
    let (daily, jitter) = (rule("daily 00:00", None), Jitter { max_s: 7_200 });
    let mut schedule = unused;
    schedule.uuid = (1..).map(Uuid::from_u128).find(|uuid| jitter.delay_s(uuid.as_u128()) > 3_600).unwrap();
    (schedule.spec.rules, schedule.spec.jitter) = (vec![daily.clone()], Some(jitter));
    bench.tx(|tx| schedule.put(tx).and_then(|()| schedule.set_cursor(tx, &daily.when, at(0))));
    let both = Some(vec![daily.clone(), rule("daily 00:30", None)]);
    let paused = |paused| UpdateSchedule { paused: Some(paused), ..UpdateSchedule::default() };
    let changes = [
        vec![UpdateSchedule { rules: both, ..UpdateSchedule::default() }],
        vec![UpdateSchedule { rules: Some(vec![daily]), ..UpdateSchedule::default() }],
        vec![paused(true), paused(false)],
    ];
    // The first midnight is at hour 16, and the delay is between one and two hours.
    for (day, requests) in changes.into_iter().enumerate() {
        let midnight = 16 + 24 * day as i64;
        bench.fire(midnight - 1);
        bench.fire(midnight);
        for request in requests {
            let found = bench.tx(|tx| ScheduleRow::find(tx, schedule.uuid)).unwrap();
            let changed =
                bench.db.transaction(|tx| update::updated(tx, found, request, None, at(midnight + 1)));
            bench.tx(|tx| changed.unwrap().put(tx));
            bench.fire(midnight + 1);
        }
        assert_eq!(bench.queued(), []);
        bench.fire(midnight + 2);
        let nominal: Vec<_> = bench.queued().iter().map(|run| run.nominal).collect();
        assert_eq!(nominal, [at(midnight)]);
        bench.fire(midnight + 3);
        bench.work(1);
    }
}
