//! Failed backups of schedules, which the daemon resumes with their point in time.

use super::*;
use blockd_api::{
    schedules::{CreateSchedule, Run, RunState, Schedule, Selector},
    tasks::StopTask,
};
use blockd_engine::error::ServiceError;
use blockd_schedule::Retention;
use blockd_testkit::store::{Fault, FaultStore};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::BTreeSet,
    future::Future,
    task::{Context, Waker},
};

impl Host {
    /// Returns a host whose store fails on request, and gives up a request after the first failure.
    pub(super) async fn with_faults() -> (Self, Arc<FaultStore>) {
        Self::with_faults_and(|_| ()).await
    }

    async fn with_faults_and(change: impl FnOnce(&mut Config)) -> (Self, Arc<FaultStore>) {
        let mut host = Self::new().await;
        host.stop().await;
        let mut config = Config { store_attempts: 1, ..config(host.dir.path()) };
        change(&mut config);
        host.daemon = Some(Daemon::start(config, false).await.unwrap());
        let credential = host.create_credential().await;
        host.call_at(VALIDATE_CREDENTIAL, &blockd_api::CredentialRef::Id(credential), &()).await;
        let mut opened = host.engine().repositories.opened.lock();
        let (repository, _) = opened.get_mut(&credential).unwrap();
        let faults = Arc::new(FaultStore::new(Arc::clone(repository.store())));
        *repository = repository.with_store(faults.clone());
        drop(opened);
        (host, faults)
    }

    async fn scheduled(&self, selector: Selector) -> Schedule {
        let request = CreateSchedule {
            selector,
            rules: vec![rule(NEVER)],
            retain: Retention::max(3).unwrap(),
            ..CreateSchedule::default()
        };
        self.call(CREATE_SCHEDULE, &request).await
    }

    /// Waits until all runs are in a state.
    async fn all_runs(&self, state: RunState) -> Vec<Run> {
        eventually(async || {
            let runs = self.runs().await;
            if runs.iter().all(|run| run.state == state) { Ok(runs) } else { Err(runs) }
        })
        .await
    }

    async fn pass_at(&self, now: Timestamp) -> Result<Option<Timestamp>, ServiceError> {
        self.engine().schedule_runner.clone().scheduler_pass(now).await
    }

    async fn kinds_of_events(&self) -> Vec<String> {
        self.events_since(0, 0).await.into_iter().map(|event| event.kind).collect()
    }
}

fn later(at: Timestamp) -> Timestamp {
    at + SignedDuration::from_hours(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scheduled_backup_resumes_after_an_outage() {
    let (mut host, faults) = Host::with_faults().await;
    let volume = host.create_volume("v").await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 100_000);
    let schedule = host.scheduled(select_volume("v")).await;
    faults.fail_all(Fault::RetryAfter(0));
    host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
    let first = host.all_runs(RunState::Retrying).await.remove(0);
    let pause = first.retry_at.unwrap().duration_since(Timestamp::now());
    assert!((0..=60).contains(&pause.as_secs()), "{first:?}");
    assert!(first.reason.unwrap().contains("overloaded"));
    let frozen = model.clone();
    model.write(&volume, 4_000, 2, 100_000);
    drop(volume);

    // It fails again: a longer pause, and no second event. The next pass of the daemon is a minute away.
    host.pass_at(later(first.started_at)).await.unwrap();
    let again = eventually(async || {
        let run = host.runs().await.remove(0);
        if run.state == RunState::Retrying && run.retries == 1 { Ok(run) } else { Err(run) }
    })
    .await;
    let pause = again.retry_at.unwrap().duration_since(Timestamp::now());
    assert!((50..=120).contains(&pause.as_secs()), "{again:?}");
    assert_eq!(host.kinds_of_events().await, ["backup-retrying"]);
    // No task failed for good, which is an alert.
    let failed = "blockd_tasks_finished_total{kind=\"backup\",state=\"failed\"} 0";
    assert!(host.metrics_text().await.contains(failed));

    // A restart keeps its state.
    faults.heal();
    host.restart().await;
    host.pass_at(later(again.started_at)).await.unwrap();
    let runs = host.all_runs(RunState::Done).await;
    assert_eq!((runs.len(), runs[0].retries, runs[0].retry_at, &runs[0].reason), (1, 2, None, &None));
    assert_eq!(runs[0].task_id, first.task_id);
    assert_eq!(host.kinds_of_events().await, ["backup-retrying", "backup-done"]);
    let snap = runs[0].cloud_snapshot_id.unwrap().to_string();
    frozen.assert_is(&*host.restore(&snap, "copy").await);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_that_is_given_up_counts_as_failed() {
    let (mut host, faults) = Host::with_faults().await;
    host.create_volume("v").await;
    let schedule = host.scheduled(select_volume("v")).await;
    faults.fail_all(Fault::BeforeApply);
    host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
    let run = host.all_runs(RunState::Retrying).await.remove(0);
    host.call_at(DELETE_SCHEDULE, &schedule.schedule_id, &()).await;
    host.pass_at(later(run.started_at)).await.unwrap();
    host.all_runs(RunState::Failed).await;
    let failed = "blockd_tasks_finished_total{kind=\"backup\",state=\"failed\"} 1\n";
    assert!(host.metrics_text().await.contains(failed));
    host.stop().await;
}

/// A stop at the moment of a failure, before or after that is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_of_a_backup_that_fails_is_final() {
    for (step, stage) in [("task failed", TaskStage::Failed), ("task end stored", TaskStage::Stopped)] {
        let (mut host, faults) = Host::with_faults().await;
        host.create_volume("v").await;
        let schedule = host.scheduled(select_volume("v")).await;
        faults.fail_all(Fault::BeforeApply);
        let (stops, stopped) = std::sync::mpsc::channel();
        let engine = Arc::clone(host.engine());
        host.act_at(step, move |_| {
            let task = engine.tasks.running().remove(0).id;
            let mut stop = Box::pin(async move { engine.runner.stop_task(task, StopTask::default()).await });
            let mut context = Context::from_waker(Waker::noop());
            assert!(stop.as_mut().poll(&mut context).is_pending(), "it waits for the end of the task");
            stops.send(tokio::spawn(stop)).unwrap();
        });
        host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        let stop = eventually(async || stopped.try_recv()).await;
        assert_eq!(stop.await.unwrap().unwrap().state.stage, stage, "{step}");
        faults.heal();
        let run = eventually(async || {
            host.pass_at(Timestamp::now()).await.unwrap();
            let run = host.runs().await.remove(0);
            if run.state == RunState::Active { Err(run) } else { Ok(run) }
        })
        .await;
        host.pass_at(later(run.started_at)).await.unwrap();
        let run = host.runs().await.remove(0);
        assert_eq!((run.state, run.retries, run.retry_at), (RunState::Failed, 0, None), "{step}");
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_of_a_group_resume_with_one_point_in_time() {
    let (mut host, faults) = Host::with_faults().await;
    host.grouped_volumes().await;
    let schedule = host.scheduled(select_group("shop")).await;
    faults.fail_all(Fault::BeforeApply);
    host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
    let waiting = host.all_runs(RunState::Retrying).await;
    assert_eq!(waiting.len(), 3);
    faults.heal();
    // `task_concurrency` is that of scheduled backups: two resume at first.
    eventually(async || {
        host.pass_at(later(waiting[0].started_at)).await.unwrap();
        let runs = host.runs().await;
        if runs.iter().all(|run| run.state == RunState::Done) { Ok(()) } else { Err(runs) }
    })
    .await;
    let points: BTreeSet<_> = host.list().await.into_iter().map(|entry| entry.created_at).collect();
    assert_eq!(points.len(), 1, "{points:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cause_that_a_retry_cannot_help_fails_the_run() {
    let (mut host, faults) = Host::with_faults().await;
    host.create_volume("v").await;
    let schedule = host.scheduled(select_volume("v")).await;
    faults.fail_all(Fault::Unauthorized);
    host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
    let run = host.settled().await.remove(0);
    assert_eq!((run.state, run.retry_at), (RunState::Failed, None), "{run:?}");
    assert_eq!(host.kinds_of_events().await, ["backup-failed"]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_resumption_takes_no_slot_of_others() {
    let (mut host, faults) = Host::with_faults_and(|config| config.task_concurrency = 1).await;
    let mut waiting = Vec::new();
    faults.fail_all(Fault::BeforeApply);
    for name in ["v", "w"] {
        host.create_volume(name).await;
        let schedule = host.scheduled(select_volume(name)).await;
        host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
        waiting = host.all_runs(RunState::Retrying).await;
    }
    faults.heal();
    // Another task works on `v`, which is the first to resume.
    let of_v = waiting.iter().find(|run| run.volume_name.as_ref().unwrap().as_str() == "v").unwrap();
    let mut busy = host.engine().tasks.task_row(of_v.task_id.unwrap()).await.unwrap();
    (busy.id, busy.state) = (Uuid::new_v4(), TaskStage::Active);
    host.engine().db.transaction(|tx| busy.put(tx)).unwrap();
    let runs = eventually(async || {
        host.pass_at(later(waiting[0].started_at)).await.unwrap();
        let runs = host.runs().await;
        if runs.iter().any(|run| run.state == RunState::Done) { Ok(runs) } else { Err(runs) }
    })
    .await;
    let run = runs.iter().find(|run| run.run_id == of_v.run_id).unwrap();
    assert_eq!((run.state, run.retries), (RunState::Retrying, 0));
    assert!(run.reason.as_ref().unwrap().contains("conflicts with it"), "{run:?}");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_of_a_retrying_backup_ends_its_run() {
    let (mut host, faults) = Host::with_faults().await;
    host.create_volume("v").await;
    let schedule = host.scheduled(select_volume("v")).await;
    faults.fail_all(Fault::BeforeApply);
    host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
    let run = host.all_runs(RunState::Retrying).await.remove(0);
    let task = run.task_id.unwrap();
    let stopped = host.call_at(STOP_TASK, &task, &StopTask::default()).await;
    assert_eq!((stopped.state.stage, stopped.resumable), (TaskStage::Stopped, true));
    faults.heal();
    host.pass_at(later(run.started_at)).await.unwrap();
    let run = host.all_runs(RunState::Failed).await.remove(0);
    assert!(run.reason.unwrap().contains("was stopped"));
    assert_eq!((run.retry_at, run.cloud_snapshot_id), (None, None));
    assert_eq!(host.kinds_of_events().await, ["backup-retrying", "backup-stopped"]);
    host.call_at(RESUME_TASK, &task, &()).await;
    host.all_runs(RunState::Done).await;
    host.stop().await;
}
