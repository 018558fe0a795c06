//! Schedules of a running daemon, through its control socket.

use super::*;
use blockd_api::schedules::{
    CreateSchedule, ListRuns, Policy, Run, RunSchedule, RunState, Schedule, Selector, UpdatePolicy,
    UpdateSchedule,
};
use blockd_schedule::{KeepReason, Retention, Verdict};
use std::collections::BTreeSet;

impl Host {
    /// Creates a schedule of the volume `v` that runs only on request.
    pub(super) async fn schedule(&self, keep: u32) -> Schedule {
        let request = CreateSchedule {
            selector: select_volume("v"),
            rules: vec![rule(NEVER)],
            retain: Retention::max(keep).unwrap(),
            ..CreateSchedule::default()
        };
        self.call(CREATE_SCHEDULE, &request).await
    }

    pub(super) async fn runs(&self) -> Vec<Run> {
        self.call(LIST_RUNS, &ListRuns::default()).await.items
    }

    /// Waits for the end of all runs.
    pub(super) async fn settled(&self) -> Vec<Run> {
        eventually(async || {
            let runs = self.runs().await;
            let is_over = |run: &Run| !matches!(run.state, RunState::Queued | RunState::Active);
            if runs.iter().all(is_over) { Ok(runs) } else { Err(runs) }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_made_kept_and_deleted_across_restarts() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.create_volume("v").await;
    let mut model = Model::new();
    let schedule = host.schedule(2).await;
    assert!(schedule.next_run_at.unwrap().to_string().starts_with("2199-01-01T00:00"), "{schedule:?}");
    drop(volume);
    for round in 0..4 {
        model.write(&host.volume("v"), round << 20, round, 4096);
        let started = host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await.items;
        assert_eq!((started.len(), started[0].state, started[0].when.clone()), (1, RunState::Queued, None));
        if round == 2 {
            // The run may be queued, active or done.
            host.restart().await;
        }
        let runs = host.settled().await;
        assert!(runs.iter().all(|run| run.reason.is_none() || run.state == RunState::Expired), "{runs:?}");
    }
    // The two newest are kept, in the database and in the store.
    let expected = [RunState::Done, RunState::Done, RunState::Expired, RunState::Expired];
    eventually(async || {
        let states: Vec<_> = host.settled().await.iter().map(|run| run.state).collect();
        let stored = host.ids().await;
        if states == expected && stored.len() == 2 { Ok(()) } else { Err((states, stored)) }
    })
    .await;
    let plan = host.call_at(PLAN_RETENTION, &schedule.schedule_id, &()).await.items;
    assert_eq!(plan[0].verdict, Verdict::Keep(vec![KeepReason::LastGood, KeepReason::Last(1)]));
    let planned: BTreeSet<_> = plan.iter().filter_map(|judged| judged.cloud_snapshot_id).collect();
    let stored: BTreeSet<_> = host.list().await.iter().map(|entry| entry.cloud_snapshot_id).collect();
    assert_eq!(planned, stored);
    model.assert_is(&*host.restore(&plan[0].cloud_snapshot_id.unwrap().to_string(), "again").await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_schedule_is_refused_with_its_cause() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let ruleless = CreateSchedule { selector: select_volume("v"), ..CreateSchedule::default() };
    let error = host.client.call(CREATE_SCHEDULE, &ruleless).await.unwrap_err();
    assert!(error.to_string().contains("has no rules"), "{error}");
    assert_eq!(host.call(LIST_SCHEDULES, &()).await.list.items, []);
    let unselective = CreateSchedule { rules: vec![rule("periodic 5")], ..CreateSchedule::default() };
    let error = host.client.call(CREATE_SCHEDULE, &unselective).await.unwrap_err();
    assert!(error.to_string().contains("one of volume, group, label and all"), "{error}");
    let gold = "gold".parse().unwrap();
    let by_policy = CreateSchedule { policy_name: Some("gold".parse().unwrap()), ..ruleless };
    host.refused(ErrorCode::PolicyNotFound, CREATE_SCHEDULE, &by_policy).await;

    let policy = Policy {
        name: "gold".parse().unwrap(),
        rules: vec![rule("daily 03:00")],
        labels: "tier=gold".parse().unwrap(),
    };
    host.call(CREATE_POLICY, &policy).await;
    host.refused(ErrorCode::PolicyExists, CREATE_POLICY, &policy).await;
    let schedule = host.call(CREATE_SCHEDULE, &by_policy).await;
    assert_eq!(schedule.schedule, "daily @03:00");
    host.refused_at(ErrorCode::PolicyInUse, DELETE_POLICY, &gold, &()).await;
    let other = UpdatePolicy { rules: vec![rule("weekly sun@03:00"), rule("periodic 60")], labels: None };
    // Labels stay unless they are given.
    let updated = host.call_at(UPDATE_POLICY, &gold, &other).await;
    assert_eq!((updated.rules.len(), &updated.labels), (2, &policy.labels));
    let labels = Some("tier=silver".parse().unwrap());
    let updated = host.call_at(UPDATE_POLICY, &gold, &UpdatePolicy { labels: labels.clone(), ..other }).await;
    assert_eq!(Some(updated.labels), labels);

    let pause = UpdateSchedule { paused: Some(true), ..UpdateSchedule::default() };
    let paused = host.call_at(UPDATE_SCHEDULE, &schedule.schedule_id, &pause).await;
    assert_eq!((paused.next_run_at, paused.schedule.as_str()), (None, "weekly Sunday@03:00, periodic 60min"));
    let resume = UpdateSchedule { paused: Some(false), ..UpdateSchedule::default() };
    assert!(host.call_at(UPDATE_SCHEDULE, &schedule.schedule_id, &resume).await.next_run_at.is_some());

    // A paused schedule makes no scheduled runs; its history is available by id prefix, with its name, also
    // after its deletion.
    let name = Some("nightly".parse().unwrap());
    let paused = CreateSchedule { paused: true, name: name.clone(), ..by_policy };
    let paused = host.call(CREATE_SCHEDULE, &paused).await;
    assert_eq!((paused.paused, paused.next_run_at), (true, None));
    host.call_at(RUN_SCHEDULE, &paused.schedule_id, &Default::default()).await;
    host.settled().await;
    host.call_at(DELETE_SCHEDULE, &paused.schedule_id, &()).await;
    let by_prefix =
        |prefix: &str| ListRuns { schedule_id_prefix: Some(prefix.to_owned()), ..ListRuns::default() };
    let id = paused.schedule_id.to_string();
    let runs = host.call(LIST_RUNS, &by_prefix(&id[..9].to_uppercase())).await.items;
    assert_eq!((runs.len(), runs[0].schedule_id, &runs[0].schedule_name), (1, paused.schedule_id, &name));
    // Ids of credentials have their names beside them.
    let location = runs[0].credential_name.as_ref();
    assert!(location.is_some() && paused.credential_names.first() == location, "{paused:?}");
    assert_eq!(paused.copies[0].credential_name.as_ref(), location);
    let other = if id.starts_with('0') { "1" } else { "0" };
    assert_eq!(host.call(LIST_RUNS, &by_prefix(other)).await.items, []);
    host.refused(ErrorCode::InvalidRequest, LIST_RUNS, &by_prefix("%")).await;

    host.call_at(DELETE_SCHEDULE, &schedule.schedule_id, &()).await;
    host.refused_at(ErrorCode::ScheduleNotFound, RUN_SCHEDULE, &schedule.schedule_id, &Default::default())
        .await;
    host.call_at(DELETE_POLICY, &gold, &()).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_of_a_schedule_have_its_labels() {
    let host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let request = CreateSchedule {
        selector: select_volume("v"),
        rules: vec![rule(NEVER)],
        labels: "tier=gold".parse().unwrap(),
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &request).await;
    assert_eq!(schedule.labels, request.labels);
    host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
    host.settled().await;
    let update = UpdateSchedule { labels: Some("tier=silver".parse().unwrap()), ..UpdateSchedule::default() };
    host.call_at(UPDATE_SCHEDULE, &schedule.schedule_id, &update).await;
    host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
    host.settled().await;
    let labels = host.list().await.into_iter().map(|entry| entry.backup_labels.to_string());
    assert_eq!(labels.collect::<BTreeSet<_>>(), ["tier=gold", "tier=silver"].map(str::to_owned).into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_of_a_run_have_one_name_and_each_run_another() {
    let mut host = Host::new().await;
    host.create_credential().await;
    for name in ["a", "b"] {
        host.create_volume(name).await;
    }
    let named = |name: &str| CreateSchedule {
        name: Some(name.parse().unwrap()),
        selector: Selector { all: true, ..Selector::default() },
        rules: vec![rule(NEVER)],
        retain: Retention::max(2).unwrap(),
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &named("nightly")).await.schedule_id;
    let mut names = Vec::new();
    for _ in 0..3 {
        let planned =
            host.call_at(RUN_SCHEDULE, &schedule, &RunSchedule::default()).await.items[0].planned_at;
        names.push(Some(format!("nightly-{}", planned.strftime("%Y%m%d%H%M%S%3f"))));
        host.settled().await;
    }
    // Retention keeps the backups of the last two runs.
    let expected: BTreeSet<_> =
        names[1..].iter().flat_map(|name| ["a", "b"].map(|of| (name.clone(), of.to_owned()))).collect();
    eventually(async || {
        let stored: BTreeSet<_> =
            host.list().await.into_iter().map(|one| (one.name, one.volume_name)).collect();
        if stored == expected { Ok(()) } else { Err(stored) }
    })
    .await;

    let long = host.call(CREATE_SCHEDULE, &named(&"x".repeat(120))).await.schedule_id;
    host.call_at(RUN_SCHEDULE, &long, &RunSchedule::default()).await;
    let runs = host.settled().await;
    assert!(
        runs.iter().filter(|run| run.schedule_id == long).all(|run| run.state == RunState::Done),
        "{runs:?}"
    );
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_of_some_volumes_leaves_the_others() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("a").await;
    let id = host.create_volume("b").await.id();
    let request = CreateSchedule {
        selector: Selector { all: true, ..Selector::default() },
        rules: vec![rule(NEVER)],
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &request).await.schedule_id;
    let none = RunSchedule { volume_ids: Some(Vec::new()) };
    host.refused_at(ErrorCode::InvalidRequest, RUN_SCHEDULE, &schedule, &none).await;
    let only = RunSchedule { volume_ids: Some(vec![id]) };
    let runs = host.call_at(RUN_SCHEDULE, &schedule, &only).await.items;
    assert_eq!(runs.iter().map(|run| run.volume_id).collect::<Vec<_>>(), [Some(id)]);
    assert_eq!(host.call_at(RUN_SCHEDULE, &schedule, &RunSchedule::default()).await.items.len(), 2);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedule_names_are_unique_and_backup_names_are_stored() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let named = CreateSchedule {
        name: Some("nightly".parse().unwrap()),
        selector: select_volume("v"),
        rules: vec![rule("daily 03:00")],
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &named).await;
    host.refused(ErrorCode::ScheduleExists, CREATE_SCHEDULE, &named).await;
    let pause = UpdateSchedule { paused: Some(true), ..UpdateSchedule::default() };
    host.call_at(UPDATE_SCHEDULE, &schedule.schedule_id, &pause).await;

    let name = "before-upgrade".parse().unwrap();
    let labels = "change=1742,tier=gold".parse().unwrap();
    let options = BackupOptions { name: Some(name), labels, ..Default::default() };
    let backup = StartBackup { options, ..backup_of("v") };
    assert_eq!(host.run_backup(&backup).await.name, backup.options.name);
    let unnamed = host.backup("v", false).await;
    assert_eq!(unnamed.name, None);

    // Both survive a restart.
    host.restart().await;
    let schedules = host.call(LIST_SCHEDULES, &()).await.list.items;
    assert_eq!((&schedules[0].name, schedules[0].paused), (&named.name, true));
    let names: Vec<_> = host.list().await.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [Some("before-upgrade".to_owned()), Some(format!("backup-{}", unnamed.task_id))]);
    // A label of the backup hides one of the volume, which has app=mysql,tier=db.
    for (label, name, count) in [
        ("change=1742,app=mysql", None, 1),
        ("tier=gold", None, 1),
        ("tier=db", None, 1),
        ("app=mysql", None, 2),
        ("app=mysql", Some("before-upgrade"), 1),
        ("tier=db", Some("before-upgrade"), 0),
    ] {
        let name = name.map(|name| name.parse().unwrap());
        let query = ListCloudsnaps { label: Some(label.parse().unwrap()), name, ..Default::default() };
        let found = host.call(LIST_CLOUDSNAPS, &query).await.list.items;
        assert_eq!(found.len(), count, "{query:?}");
    }
    let first = host.list().await.remove(0);
    assert_eq!(first.backup_labels, backup.options.labels);
    assert_eq!(first.labels.to_string(), "app=mysql,tier=db");
    host.call_at(DELETE_SCHEDULE, &schedule.schedule_id, &()).await;
    host.call(CREATE_SCHEDULE, &named).await;
    host.stop().await;
}

/// A schedule is unreadable if this host lacks its time zone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_schedule_does_not_block_other_backups() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let broken = host.schedule(2).await;
    let sound = host.schedule(2).await;
    host.call_at(RUN_SCHEDULE, &broken.schedule_id, &Default::default()).await;
    host.settled().await;
    host.sql(&format!(
        "UPDATE schedules SET spec = '{{' WHERE uuid = '{0}';
         UPDATE schedule_runs SET state = 'queued', task = NULL, cloudsnap = NULL, completed = NULL WHERE schedule = '{0}'",
        broken.schedule_id
    ));
    host.call_at(RUN_SCHEDULE, &sound.schedule_id, &Default::default()).await;
    let runs = host.settled().await;
    let of = |schedule: &Schedule| runs.iter().find(|run| run.schedule_id == schedule.schedule_id).unwrap();
    assert_eq!((of(&broken).state, of(&sound).state), (RunState::Failed, RunState::Done), "{runs:?}");
    let reason = of(&broken).reason.clone().unwrap();
    assert!(reason.starts_with("its schedule cannot be read: "), "{reason}");
    host.stop().await;
}
