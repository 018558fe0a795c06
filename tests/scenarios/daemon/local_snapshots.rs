//! Local snapshots of schedules: one freeze with the backups, and a retention of their own.

use super::{resume::DISCARD, *};
use blockd_api::{
    CredentialName, SnapshotRef,
    schedules::{
        CreateSchedule, JudgedSnapshot, ListRuns, RetainAt, Run, RunState, Schedule, UpdateSchedule,
    },
    snapshots::{DeleteSnapshot, MarkSnapshot},
    tasks::TaskLimits,
    volumes::{CloneVolume, DeleteVolume},
};
use blockd_engine::schedules::runner::Delays;
use blockd_schedule::{KeepReason, Retention, Verdict};
use jiff::Timestamp;
use std::{collections::BTreeMap, time::Duration};

impl Host {
    async fn local_schedule(&self, volume: &str, keep: u32, credentials: &[&str]) -> Schedule {
        let request = CreateSchedule {
            selector: select_volume(volume),
            credentials: credentials.iter().map(|name| name.parse().unwrap()).collect(),
            rules: vec![rule(NEVER)],
            local: Some(Retention::max(keep).unwrap()),
            ..CreateSchedule::default()
        };
        self.call(CREATE_SCHEDULE, &request).await
    }

    async fn snapshots(&self) -> Vec<Snapshot> {
        self.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.items
    }

    async fn scheduled_snapshots(&self) -> Vec<Snapshot> {
        let mut all = self.snapshots().await;
        all.retain(|snapshot| snapshot.name.as_str().starts_with("sched-"));
        all
    }

    /// Runs a schedule, and waits for the end.
    async fn ran(&self, schedule: &Schedule) -> Vec<Run> {
        self.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        self.settled().await
    }

    /// Waits for a number of scheduled snapshots.
    async fn scheduled_when(&self, count: usize) -> Vec<Snapshot> {
        eventually(async || {
            self.engine().scheduler.wake();
            let found = self.scheduled_snapshots().await;
            if found.len() == count {
                return Ok(found);
            }
            // Each wake is a pass of the scheduler.
            tokio::time::sleep(Duration::from_millis(40)).await;
            Err(found)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pinned_snapshot_stays_until_unpinned_or_forced() {
    let mut host = Host::new().await;
    host.create_volume("v").await;
    let schedule = host.local_schedule("v", 2, &[]).await;
    host.ran(&schedule).await;
    let first = host.scheduled_snapshots().await.remove(0);
    assert!(!first.pinned);
    let wanted = SnapshotRef::Id(first.snapshot_id);
    let pin = MarkSnapshot { pinned: true };
    assert!(host.call_at(MARK_SNAPSHOT, &wanted, &pin).await.pinned);
    host.restart().await;
    for _ in 0..3 {
        host.ran(&schedule).await;
    }
    let left = host.scheduled_when(3).await;
    assert!(left[0].snapshot_id == first.snapshot_id && left[0].pinned && !left[1].pinned, "{left:?}");
    let plan = host.call_at(PLAN_RETENTION, &schedule.schedule_id, &()).await;
    let pinned = plan.items.iter().find(|one| one.snapshot_id == Some(first.snapshot_id)).unwrap();
    assert_eq!(pinned.verdict, Verdict::Keep(vec![KeepReason::Pinned]));
    host.refused_at(ErrorCode::SnapshotPinned, DELETE_SNAPSHOT, &wanted, &Default::default()).await;

    // Without the pin, retention applies again.
    host.call_at(MARK_SNAPSHOT, &wanted, &MarkSnapshot { pinned: false }).await;
    assert!(host.scheduled_when(2).await.iter().all(|one| one.snapshot_id != first.snapshot_id));
    host.refused_at(ErrorCode::SnapshotNotFound, MARK_SNAPSHOT, &wanted, &pin).await;
    host.take_snapshot("v", &new_snapshot("mine")).await;
    let mine = "v@mine".parse().unwrap();
    host.call_at(MARK_SNAPSHOT, &mine, &pin).await;
    host.refused_at(ErrorCode::SnapshotPinned, DELETE_SNAPSHOT, &mine, &Default::default()).await;
    host.call_at(DELETE_SNAPSHOT, &mine, &DeleteSnapshot { force: true }).await;

    // Nor is it deleted with its volume.
    host.take_snapshot("v", &new_snapshot("mine")).await;
    host.call_at(MARK_SNAPSHOT, &mine, &pin).await;
    let volume = "v".parse().unwrap();
    let error = api_error(host.client.call_at(DELETE_VOLUME, &volume, &Default::default()).await);
    assert!(error.code == ErrorCode::SnapshotPinned && error.message.contains("(mine)"), "{error}");
    host.call_at(DELETE_VOLUME, &volume, &DeleteVolume { force: true }).await;
    host.refused_at(ErrorCode::VolumeNotFound, GET_VOLUME, &volume, &()).await;
    host.stop().await;
}

fn kept_at(credential: &str, max: u32) -> RetainAt {
    RetainAt { credential: credential.parse().unwrap(), retain: Retention::max(max).unwrap() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_share_a_freeze_and_have_their_own_retention() {
    let (mut host, other) = (Host::new().await, tempfile::tempdir().unwrap());
    host.create_credential().await;
    host.create_credential_at("offsite", other.path()).await;
    let volume = host.create_volume("v").await;
    host.take_snapshot("v", &new_snapshot("mine")).await;
    let request = CreateSchedule {
        selector: select_volume("v"),
        credentials: vec!["nas".parse().unwrap(), "offsite".parse().unwrap()],
        rules: vec![rule(NEVER)],
        retain: Retention::max(2).unwrap(),
        retain_at: vec![kept_at("offsite", 4)],
        local: Some(Retention::max(3).unwrap()),
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &request).await;
    let mut model = Model::new();
    let mut then = model.clone();
    for round in 1..=5 {
        model.write(&volume, round << 20, round, 4096);
        let runs = host.ran(&schedule).await;
        let newest: Vec<_> =
            runs.iter().take(3).map(|run| (run.state, run.local, run.reason.clone())).collect();
        assert!(
            newest.iter().all(|(state, _, reason)| *state == RunState::Done && reason.is_none()),
            "{runs:?}"
        );
        assert_eq!(newest.iter().filter(|(_, local, _)| *local).count(), 1);
        then = model.clone();
    }
    let left = host.scheduled_when(3).await;
    eventually(async || {
        let stored = host.ids().await;
        if stored.len() == 6 { Ok(()) } else { Err(stored) }
    })
    .await;
    // Each location keeps its own retention, and manual backups belong to no schedule.
    let mut stored = BTreeMap::new();
    for entry in host.list().await {
        *stored.entry(entry.credential_name.clone()).or_insert(0) += 1;
    }
    assert_eq!(stored.into_iter().collect::<Vec<_>>(), [("nas".to_owned(), 2), ("offsite".to_owned(), 4)]);
    assert_eq!(host.snapshots().await.len(), 4);
    let newest = left.last().unwrap();
    let points: Vec<_> = host.list().await.iter().map(|entry| entry.created_at).collect();
    assert!(points.contains(&newest.created_at), "{points:?} without {}", newest.created_at);
    // Its content is that of the last run.
    model.write(&volume, 0, 99, 4096);
    let clone = CloneVolume {
        name: "then".parse().unwrap(),
        snapshot: SnapshotRef::Id(newest.snapshot_id),
        labels: Default::default(),
    };
    host.call_at(CLONE_VOLUME, &"v".parse().unwrap(), &clone).await;
    then.assert_is(&host.volume("then"));

    host.assert_sorted_plan(&schedule, newest).await;
    host.restart().await;
    let schedule = host.call(LIST_SCHEDULES, &()).await.list.items.remove(0);
    let copies: Vec<_> = schedule
        .copies
        .iter()
        .map(|copy| (copy.credential_id.is_some(), copy.kept, copy.retain.keep_last, copy.last_state))
        .collect();
    let done = Some(RunState::Done);
    assert_eq!(copies, [(false, 3, 3, done), (true, 2, 2, done), (true, 4, 4, done)]);
    // Later backups are still incremental.
    let runs = host.ran(&schedule).await;
    assert!(runs.iter().filter_map(|run| run.cloud_snapshot_id).any(|id| id.incremental), "{runs:?}");

    host.assert_kept_without_schedule(&schedule).await;
    host.stop().await;
}

impl Host {
    /// Asserts that the plan has the snapshots by location and time, the local ones first.
    async fn assert_sorted_plan(&self, schedule: &Schedule, newest: &Snapshot) {
        let plan = self.call_at(PLAN_RETENTION, &schedule.schedule_id, &()).await;
        let locations: Vec<_> =
            plan.items.iter().map(|one| one.credential_name.as_ref().map(CredentialName::as_str)).collect();
        let (nas, offsite) = (Some("nas"), Some("offsite"));
        assert_eq!(locations, [None, None, None, nas, nas, offsite, offsite, offsite, offsite]);
        let is_sorted = |pair: &[JudgedSnapshot]| {
            pair[0].credential_id != pair[1].credential_id || pair[0].created_at > pair[1].created_at
        };
        assert!(plan.items.windows(2).all(is_sorted), "{plan:?}");
        for one in &plan.items {
            assert_eq!(one.volume_id, schedule.selector.volume_id);
            assert_eq!((one.local, !one.local), (one.snapshot_id.is_some(), one.cloud_snapshot_id.is_some()));
        }
        let last = &plan.items[0];
        assert_eq!(last.verdict, Verdict::Keep(vec![KeepReason::LastGood, KeepReason::Last(1)]));
        assert_eq!(
            (last.snapshot_id, last.snapshot_name.as_ref()),
            (Some(newest.snapshot_id), Some(&newest.name))
        );
    }

    /// Deletes a schedule; asserts that its backups and snapshots stay, with a reason in the plan.
    async fn assert_kept_without_schedule(&self, schedule: &Schedule) {
        let plan = self.call_at(PLAN_RETENTION, &schedule.schedule_id, &()).await;
        self.call_at(DELETE_SCHEDULE, &schedule.schedule_id, &()).await;
        let after = self.call_at(PLAN_RETENTION, &schedule.schedule_id, &()).await;
        let kept = plan.items.iter().filter(|judged| judged.local && !judged.verdict.is_delete()).count();
        let (local, cloud): (Vec<_>, Vec<_>) = after.items.iter().partition(|judged| judged.local);
        assert!(local.len() >= kept && !cloud.is_empty(), "{after:?}");
        let gone = Verdict::Keep(vec![KeepReason::ScheduleGone]);
        assert!(after.items.iter().all(|judged| judged.verdict == gone), "{after:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_snapshot_schedule_freezes_a_group_without_location() {
    let mut host = Host::new().await;
    host.grouped_volumes().await;
    let request = CreateSchedule {
        selector: select_group("shop"),
        rules: vec![rule(NEVER)],
        local: Some(Retention::max(1).unwrap()),
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &request).await;
    assert!(schedule.credential_ids.is_empty());
    for _ in 0..2 {
        let runs = host.ran(&schedule).await;
        assert!(runs.iter().all(|run| matches!(run.state, RunState::Done | RunState::Expired)), "{runs:?}");
    }
    let left = host.scheduled_when(3).await;
    assert!(left.iter().all(|snapshot| snapshot.created_at == left[0].created_at), "{left:?}");
    let group = left[0].taken_with.as_ref().unwrap();
    assert_eq!((group.members, group.group.as_ref().unwrap().as_str()), (3, "shop"));
    // A schedule without location and local snapshots protects nothing.
    let none = UpdateSchedule { local: Some(None), ..UpdateSchedule::default() };
    host.refused_at(ErrorCode::InvalidRequest, UPDATE_SCHEDULE, &schedule.schedule_id, &none).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_snapshot_survives_a_crash_at_any_step() {
    for step in ["local run started", "group frozen"] {
        let mut host = Host::new().await;
        host.create_volume("v").await;
        let schedule = host.local_schedule("v", 5, &[]).await;
        host.die_at(step);
        host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        host.die_and_start().await;
        let runs = host.settled().await;
        assert_eq!((runs.len(), runs[0].state), (1, RunState::Done), "{step}: {runs:?}");
        assert_eq!(host.scheduled_snapshots().await.len(), 1, "{step}");
        assert_eq!(host.volume("v").snapshots().len(), 1, "{step}");
        host.stop().await;
    }
    for step in ["backup accepted", "group frozen", "backup frozen", "backup planned", "backup stored"] {
        let mut host = Host::new().await;
        host.create_credential().await;
        host.create_volume("v").await;
        let schedule = host.local_schedule("v", 5, &["nas"]).await;
        host.die_at(step);
        host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        host.die_and_start().await;
        let runs = host.settled().await;
        assert!(runs.len() == 2 && runs.iter().all(|run| run.state == RunState::Done), "{step}: {runs:?}");
        let left = host.scheduled_snapshots().await;
        assert_eq!((left.len(), host.list().await.len()), (1, 1), "{step}");
        assert_eq!(host.list().await[0].created_at, left[0].created_at, "{step}");
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_snapshot_is_kept_after_a_failed_backup() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let schedule = host.local_schedule("v", 1, &["nas"]).await;
    let away = host.hide_store();
    fs::write(host.store.path(), "").unwrap();
    let runs = host.ran(&schedule).await;
    let state = |local: bool| runs.iter().find(|run| run.local == local).map(|run| run.state);
    assert_eq!((state(true), state(false)), (Some(RunState::Done), Some(RunState::Failed)), "{runs:?}");
    let first = host.scheduled_snapshots().await.remove(0);
    fs::remove_file(host.store.path()).unwrap();
    host.show_store(&away);

    // A snapshot of a resumable task cannot be deleted.
    let wanted = SnapshotRef::Id(first.snapshot_id);
    host.sql("UPDATE tasks SET state = 'stopped', detail = json_set(detail, '$.resumable', json('true'))");
    host.refused_at(ErrorCode::SnapshotInUse, DELETE_SNAPSHOT, &wanted, &Default::default()).await;
    let plan = host.call_at(PLAN_RETENTION, &schedule.schedule_id, &()).await.items;
    assert_eq!(plan[0].verdict, Verdict::Keep(vec![KeepReason::InUse]));
    // The next backup abandons the task.
    let runs = host.ran(&schedule).await;
    assert_eq!(runs.iter().filter(|run| run.state == RunState::Failed).count(), 1, "{runs:?}");
    let left = host.scheduled_when(1).await;
    assert_ne!(left[0].snapshot_id, first.snapshot_id);
    // The run of a manually deleted snapshot expires.
    host.delete_snapshot(&left[0].snapshot_id.to_string()).await;
    host.engine().schedule_runner.scheduler_pass(Timestamp::now()).await.unwrap();
    let runs = host.settled().await;
    assert!(runs.iter().filter(|run| run.local).all(|run| run.state == RunState::Expired), "{runs:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_upload_does_not_delay_local_snapshots() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.create_volume("v").await;
    Model::new().write(&volume, 0, 1, 8 << 20);
    let limits = TaskLimits { limit_upload_bytes_per_second: Some(1 << 10), ..TaskLimits::default() };
    let slow = StartBackup { limits, ..backup_of("v") };
    let task = host.call(START_BACKUP, &slow).await.items[0].task_id;
    let schedule = host.local_schedule("v", 9, &["nas"]).await;
    for round in 1..=3 {
        host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        host.scheduled_when(round).await;
    }
    let query = ListRuns { volume: Some(VolumeRef::Name("v".parse().unwrap())), ..ListRuns::default() };
    let runs = host.call(LIST_RUNS, &query).await.items;
    let waiting = runs.iter().filter(|run| !run.local && run.state == RunState::Queued).count();
    assert_eq!(waiting, 1, "{runs:?}");
    host.call_at(STOP_TASK, &task, &DISCARD).await;
    let runs = host.settled().await;
    assert!(runs.iter().any(|run| !run.local && run.state == RunState::Done), "{runs:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_run_does_not_block_a_manual_one() {
    let mut host = Host::new().await;
    host.create_volume("v").await;
    let schedule = host.local_schedule("v", 9, &[]).await;
    host.ran(&schedule).await;
    // As between the end of the snapshot and the next pass.
    host.sql("UPDATE schedule_runs SET state = 'active', completed = NULL");
    let runs = host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await.items;
    assert_eq!(runs.iter().map(|run| run.state).collect::<Vec<_>>(), [RunState::Queued]);
    assert!(host.settled().await.iter().all(|run| run.state == RunState::Done));
    host.stop().await;
}

/// Backups to an unreachable store may hold all slots.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_snapshots_are_taken_without_a_backup_slot() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    host.stop().await;
    let full = Config { task_concurrency: 0, ..config(host.dir.path()) };
    host.daemon = Some(Daemon::start(full, false).await.unwrap());
    let schedule = host.local_schedule("v", 3, &["nas"]).await;
    host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
    host.scheduled_when(1).await;
    let waits = |run: &&Run| run.state == RunState::Queued;
    assert_eq!(host.runs().await.iter().filter(waits).map(|run| run.local).collect::<Vec<_>>(), [false]);
    // The backup starts when a slot is available.
    host.restart().await;
    assert!(host.settled().await.iter().all(|run| run.state == RunState::Done), "{:?}", host.runs().await);
    assert_eq!((host.list().await.len(), host.scheduled_snapshots().await.len()), (1, 1));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_of_a_running_rollback_is_not_deleted() {
    let mut host = Host::new().await;
    host.create_volume("v").await;
    let schedule = host.local_schedule("v", 2, &[]).await;
    for _ in 0..2 {
        host.ran(&schedule).await;
    }
    let (_, mark) = host.engine().registry.by_name("v").unwrap().begin_rollback().unwrap();
    let one = UpdateSchedule { local: Some(Some(Retention::max(1).unwrap())), ..UpdateSchedule::default() };
    host.call_at(UPDATE_SCHEDULE, &schedule.schedule_id, &one).await;
    let runner = &host.engine().schedule_runner;
    runner.delete_surplus_snapshots(Timestamp::now(), &mut Delays::new()).await.unwrap();
    assert_eq!(host.scheduled_snapshots().await.len(), 2);
    drop(mark);
    host.scheduled_when(1).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newest_snapshot_of_each_volume_is_reported() {
    let host = Host::new().await;
    host.create_volume("v").await;
    host.create_volume("w").await;
    host.take_snapshot("v", &new_snapshot("first")).await;
    let second = host.take_snapshot("v", &new_snapshot("second")).await;
    let newest = async |name: &str| host.inspect_volume(name).await.last_snapshot_at;
    assert_eq!((newest("v").await, newest("w").await), (Some(second.created_at), None));
}
