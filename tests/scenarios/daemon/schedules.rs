//! Schedules of a running daemon, through its control socket.

use super::{Host, Model};
use blockd_api::{
    ClientError, ErrorCode,
    cloudsnaps::{BackupOptions, StartBackup},
    operations::*,
    schedules::{
        CreateSchedule, ListRuns, Policy, Rule, Run, RunState, Schedule, Selector, UpdatePolicy,
        UpdateSchedule,
    },
};
use blockd_schedule::{KeepReason, Retention, Verdict};
use std::time::Duration;

fn rule(when: &str) -> Rule {
    Rule { when: when.parse().unwrap(), retain: None }
}

fn code(error: &ClientError) -> Option<ErrorCode> {
    match error {
        ClientError::Api(error) => Some(error.code),
        _ => None,
    }
}

impl Host {
    pub(super) async fn schedule(&self, keep: u32) -> Schedule {
        let request = CreateSchedule {
            selector: Selector { volume: Some("v".parse().unwrap()), ..Selector::default() },
            rules: vec![rule("calendar 2199-01-01 00:00")],
            retain: Retention::max(keep).unwrap(),
            ..CreateSchedule::default()
        };
        self.call(CREATE_SCHEDULE, &request).await
    }

    pub(super) async fn runs(&self) -> Vec<Run> {
        self.call(LIST_RUNS, &ListRuns::default()).await.runs
    }

    /// Waits until all runs are over.
    pub(super) async fn settled(&self) -> Vec<Run> {
        for _ in 0..2400 {
            let runs = self.runs().await;
            if runs.iter().all(|run| !matches!(run.state, RunState::Queued | RunState::Active)) {
                return runs;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the runs do not end: {:?}", self.runs().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_made_kept_and_deleted_across_restarts() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.create_volume("v").await;
    let mut model = Model::new();
    let schedule = host.schedule(2).await;
    assert!(schedule.next_run.unwrap().to_string().starts_with("2199-01-01T00:00"), "{schedule:?}");
    drop(volume);
    for round in 0..4 {
        model.write(&host.volume("v"), round << 20, round, 4096);
        let begun = host.call_at(RUN_SCHEDULE, &schedule.uuid, &()).await.runs;
        assert_eq!((begun.len(), begun[0].state, begun[0].rule.clone()), (1, RunState::Queued, None));
        if round == 2 {
            // The run may be queued, begun or done by now.
            host.stop().await;
            host.start().await;
        }
        let runs = host.settled().await;
        assert!(runs.iter().all(|run| run.reason.is_none() || run.state == RunState::Expired), "{runs:?}");
    }
    // The two newest stay, in the database and in the store.
    for _ in 0..2400 {
        let expired = host.settled().await.iter().filter(|run| run.state == RunState::Expired).count();
        if expired == 2 && host.list().await.len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let states: Vec<RunState> = host.settled().await.iter().map(|run| run.state).collect();
    assert_eq!(states, [RunState::Done, RunState::Done, RunState::Expired, RunState::Expired]);
    let plan = host.call_at(PLAN_RETENTION, &schedule.uuid, &()).await.cloudsnaps;
    assert_eq!(plan[0].verdict, Verdict::Keep(vec![KeepReason::LastGood, KeepReason::Last(1)]));
    let planned: std::collections::BTreeSet<_> = plan.iter().map(|judged| judged.cloudsnap).collect();
    let stored: std::collections::BTreeSet<_> = host.list().await.iter().map(|entry| entry.id).collect();
    assert_eq!(planned, stored);
    let restored = host.restore(&plan[0].cloudsnap.to_string(), "again").await;
    let mut content = vec![0; model.0.len()];
    restored.read(0, &mut content).unwrap();
    assert!(content == model.0, "the newest backup is not what the volume was");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_schedule_is_refused_with_its_cause() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let selector = Selector { volume: Some("v".parse().unwrap()), ..Selector::default() };
    let never = CreateSchedule { selector: selector.clone(), ..CreateSchedule::default() };
    let error = host.client.call(CREATE_SCHEDULE, &never).await.unwrap_err();
    assert!(error.to_string().contains("has no rules"), "{error}");
    assert_eq!(host.call(LIST_SCHEDULES, &()).await.schedules, []);
    let unselective = CreateSchedule { rules: vec![rule("periodic 5")], ..CreateSchedule::default() };
    let error = host.client.call(CREATE_SCHEDULE, &unselective).await.unwrap_err();
    assert!(error.to_string().contains("one of volume, group and label"), "{error}");
    let gold = "gold".parse().unwrap();
    let wanting =
        CreateSchedule { policy: Some("gold".parse().unwrap()), selector, ..CreateSchedule::default() };
    let error = host.client.call(CREATE_SCHEDULE, &wanting).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::PolicyNotFound));

    let policy = Policy { name: "gold".parse().unwrap(), rules: vec![rule("daily 03:00")] };
    host.call(CREATE_POLICY, &policy).await;
    assert_eq!(
        code(&host.client.call(CREATE_POLICY, &policy).await.unwrap_err()),
        Some(ErrorCode::PolicyExists)
    );
    let schedule = host.call(CREATE_SCHEDULE, &wanting).await;
    assert_eq!(schedule.schedule, "daily @03:00");
    assert_eq!(
        code(&host.client.call_at(DELETE_POLICY, &gold, &()).await.unwrap_err()),
        Some(ErrorCode::PolicyInUse)
    );
    let other = UpdatePolicy { rules: vec![rule("weekly sun@03:00"), rule("periodic 60")] };
    host.call_at(UPDATE_POLICY, &gold, &other).await;

    let pause = UpdateSchedule { paused: Some(true), ..UpdateSchedule::default() };
    let paused = host.call_at(UPDATE_SCHEDULE, &schedule.uuid, &pause).await;
    assert_eq!((paused.next_run, paused.schedule.as_str()), (None, "weekly Sunday@03:00, periodic 60min"));
    let resume = UpdateSchedule { paused: Some(false), ..UpdateSchedule::default() };
    assert!(host.call_at(UPDATE_SCHEDULE, &schedule.uuid, &resume).await.next_run.is_some());

    // A paused schedule makes no scheduled runs; its history is available by id prefix, also after its
    // deletion.
    let asleep = CreateSchedule { paused: true, ..wanting.clone() };
    let asleep = host.call(CREATE_SCHEDULE, &asleep).await;
    assert_eq!((asleep.paused, asleep.next_run), (true, None));
    host.call_at(RUN_SCHEDULE, &asleep.uuid, &()).await;
    host.settled().await;
    host.call_at(DELETE_SCHEDULE, &asleep.uuid, &()).await;
    let told = |prefix: &str| ListRuns { schedule_prefix: Some(prefix.to_owned()), ..ListRuns::default() };
    let id = asleep.uuid.to_string();
    let runs = host.call(LIST_RUNS, &told(&id[..9].to_uppercase())).await.runs;
    assert_eq!((runs.len(), runs[0].schedule), (1, asleep.uuid));
    let other = if id.starts_with('0') { "1" } else { "0" };
    assert_eq!(host.call(LIST_RUNS, &told(other)).await.runs, []);
    let error = host.client.call(LIST_RUNS, &told("%")).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::InvalidRequest));

    host.call_at(DELETE_SCHEDULE, &schedule.uuid, &()).await;
    let error = host.client.call_at(RUN_SCHEDULE, &schedule.uuid, &()).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::ScheduleNotFound));
    host.call_at(DELETE_POLICY, &gold, &()).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedule_names_are_unique_and_backup_names_are_stored() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let named = CreateSchedule {
        name: Some("nightly".parse().unwrap()),
        selector: Selector { volume: Some("v".parse().unwrap()), ..Selector::default() },
        rules: vec![rule("daily 03:00")],
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &named).await;
    let error = host.client.call(CREATE_SCHEDULE, &named).await.unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::ScheduleExists));
    let pause = UpdateSchedule { paused: Some(true), ..UpdateSchedule::default() };
    host.call_at(UPDATE_SCHEDULE, &schedule.uuid, &pause).await;

    let name = "before-upgrade".parse().unwrap();
    let backup = StartBackup {
        options: BackupOptions { name: Some(name), ..Default::default() },
        ..StartBackup::of("v".parse().unwrap())
    };
    let task = host.call(START_BACKUP, &backup).await.task;
    assert_eq!(host.done(task).await.label, backup.options.name);
    let unnamed = host.backup("v", false).await;
    assert_eq!(unnamed.label, None);

    // Both outlive the daemon.
    host.stop().await;
    host.start().await;
    let schedules = host.call(LIST_SCHEDULES, &()).await.schedules;
    assert_eq!((&schedules[0].name, schedules[0].paused), (&named.name, true));
    let names: Vec<_> = host.list().await.into_iter().map(|entry| entry.metadata.snapshot_name).collect();
    assert_eq!(names, [Some("before-upgrade".to_owned()), Some(format!("backup-{}", unnamed.name))]);
    host.call_at(DELETE_SCHEDULE, &schedule.uuid, &()).await;
    host.call(CREATE_SCHEDULE, &named).await;
    host.stop().await;
}

/// Its time zone may be gone from this host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_schedule_does_not_block_other_backups() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let broken = host.schedule(2).await;
    let sound = host.schedule(2).await;
    host.call_at(RUN_SCHEDULE, &broken.uuid, &()).await;
    host.settled().await;
    host.sql(&format!(
        "UPDATE schedules SET spec = '{{' WHERE uuid = '{0}';
         UPDATE schedule_runs SET state = 'queued', task = NULL, cloudsnap = NULL, completed = NULL WHERE schedule = '{0}'",
        broken.uuid
    ));
    host.call_at(RUN_SCHEDULE, &sound.uuid, &()).await;
    let runs = host.settled().await;
    let of = |schedule: &Schedule| runs.iter().find(|run| run.schedule == schedule.uuid).unwrap();
    assert_eq!((of(&broken).state, of(&sound).state), (RunState::Failed, RunState::Done), "{runs:?}");
    let reason = of(&broken).reason.clone().unwrap();
    assert!(reason.starts_with("its schedule cannot be read: "), "{reason}");
    host.stop().await;
}
