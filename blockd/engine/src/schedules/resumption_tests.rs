//! Tests of the resumption of failed backups.

use crate::schedules::{
    resumption,
    run_events::add_daily_run_event,
    settle, transactions,
    transactions_tests::{EngineFixture, at, rule, snap, task, volume},
};
use blockd_api::{schedules::RunState, tasks::TaskStage};
use blockd_catalog::{BackupTask, RunRow, ScheduleRow, TaskRow, TaskSpec, newest_events};
use std::collections::HashSet;
use uuid::Uuid;

/// Queues a run at an hour and lets its backup fail; returns the task.
fn failed_backup(bench: &EngineFixture, schedule: &ScheduleRow, hour: i64, retryable: bool) -> TaskRow {
    bench.fire(hour);
    let spec = BackupTask { schedule: Some(schedule.uuid), ..BackupTask::default() };
    let mut task = task(TaskSpec::Backup(spec), snap(hour.unsigned_abs()));
    task.id = Uuid::new_v4();
    task.state = TaskStage::Failed;
    task.detail.completed = Some(at(hour));
    (task.detail.resumable, task.detail.retryable) = (true, retryable);
    let run = bench.queued().remove(0);
    bench.tx(|tx| {
        transactions::record_start(tx, &run, &task)?;
        task.put(tx)?;
        resumption::insert_end_event(tx, &task, at(hour))?;
        settle::settle(tx, &HashSet::new(), at(hour)).map(drop)
    });
    task
}

fn newest_run(bench: &EngineFixture) -> RunRow {
    bench.tx(|tx| RunRow::history(tx, None, None, 1)).remove(0)
}

fn kinds_of_events(bench: &EngineFixture) -> Vec<String> {
    bench.tx(|tx| newest_events(tx, 9)).into_iter().map(|event| event.kind).collect()
}

#[test]
fn failed_run_waits_until_the_next_one_is_due() {
    let bench = EngineFixture::new();
    let mut schedule = bench.schedule(vec![rule("periodic 60", None)], 4);
    let mut task = failed_backup(&bench, &schedule, 1, true);
    let run = newest_run(&bench);
    assert_eq!((run.state, run.retries), (RunState::Retrying, 0));
    let retry_at = run.retry_at.unwrap();
    assert!((30..=60).contains(&retry_at.duration_since(at(1)).as_secs()), "{retry_at}");
    let due = |now| bench.tx(|tx| resumption::due(tx, now));
    assert_eq!(due(at(1)), (vec![], Some(retry_at)));
    assert_eq!(due(retry_at).0, std::slice::from_ref(&run));
    // It occupies no slot, and waits while its schedule is paused.
    assert_eq!(bench.tx(|tx| transactions::ready(tx, 1)).free_slots, 1);
    schedule.paused = true;
    bench.tx(|tx| schedule.put(tx));
    assert_eq!(due(retry_at), (vec![], None));
    assert_eq!(newest_run(&bench).retry_at, None);
    schedule.paused = false;
    bench.tx(|tx| schedule.put(tx));

    // A user resumes it, and it fails again.
    for (state, expected) in [(TaskStage::Active, RunState::Active), (TaskStage::Failed, RunState::Retrying)]
    {
        task.state = state;
        bench.tx(|tx| {
            task.put(tx)?;
            match state {
                TaskStage::Failed => assert!(!resumption::insert_end_event(tx, &task, at(1))?),
                _ => assert!(RunRow::record_resumption(tx, task.id)?),
            }
            settle::settle(tx, &HashSet::new(), at(1)).map(drop)
        });
        assert_eq!((newest_run(&bench).state, newest_run(&bench).retries), (expected, 1));
    }
    assert_eq!(kinds_of_events(&bench), ["backup-retrying"]);
    bench.fire(2);
    let runs = bench.tx(|tx| RunRow::history(tx, None, None, 9));
    let states: Vec<_> = runs.iter().map(|run| (run.state, run.retry_at)).collect();
    assert_eq!(states, [(RunState::Queued, None), (RunState::Failed, None)]);
    assert_eq!(kinds_of_events(&bench), ["backup-retrying", "run-failed"]);
}

#[test]
fn run_that_cannot_resume_fails_with_one_event() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 60", None)], 4);
    failed_backup(&bench, &schedule, 1, false);
    assert_eq!((newest_run(&bench).state, newest_run(&bench).retry_at), (RunState::Failed, None));
    assert_eq!(kinds_of_events(&bench), ["backup-failed"]);

    // A later backup of the volume discards it.
    let mut task = failed_backup(&bench, &schedule, 2, true);
    task.detail.resumable = false;
    bench.tx(|tx| task.put(tx).and_then(|()| settle::settle(tx, &HashSet::new(), at(2)).map(drop)));
    assert_eq!((newest_run(&bench).state, newest_run(&bench).retry_at), (RunState::Failed, None));
    assert_eq!(kinds_of_events(&bench)[1..], ["backup-retrying", "run-failed"]);

    failed_backup(&bench, &schedule, 3, true);
    bench.tx(|tx| ScheduleRow::delete(tx, schedule.uuid));
    assert_eq!(bench.tx(|tx| resumption::due(tx, at(4))), (vec![], None));
    assert_eq!(newest_run(&bench).state, RunState::Failed);
}

#[test]
fn refused_resumption_waits_and_is_no_attempt() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 60", None)], 4);
    let task = failed_backup(&bench, &schedule, 1, true);
    let run = newest_run(&bench);
    bench.tx(|tx| resumption::postpone(tx, run.clone(), "busy".into(), at(2)));
    let refused = newest_run(&bench);
    assert_eq!(
        (refused.state, refused.retries, refused.reason.as_deref()),
        (RunState::Retrying, 0, Some("busy"))
    );
    assert!((30..=60).contains(&refused.retry_at.unwrap().duration_since(at(2)).as_secs()), "{refused:?}");
    // It ends concurrently.
    let ended = RunRow { state: RunState::Failed, retry_at: None, ..refused };
    bench.tx(|tx| ended.update(tx));
    bench.tx(|tx| resumption::postpone(tx, run.clone(), "busy".into(), at(2)));
    assert!(!bench.tx(|tx| RunRow::record_resumption(tx, task.id)));
    assert_eq!(newest_run(&bench), ended);
}

#[test]
fn failure_after_the_end_of_the_run_is_an_event() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 60", None)], 4);
    let fails_again = |task: &TaskRow, hour| {
        assert!(!bench.tx(|tx| RunRow::record_resumption(tx, task.id)));
        let failed = TaskRow { state: TaskStage::Failed, ..task.clone() };
        assert!(bench.tx(|tx| failed.put(tx).and_then(|()| resumption::insert_end_event(
            tx,
            &failed,
            at(hour)
        ))));
        bench.tx(|tx| settle::settle(tx, &HashSet::new(), at(hour)).map(drop));
    };
    let mut task = failed_backup(&bench, &schedule, 1, true);
    task.state = TaskStage::Stopped;
    bench.tx(|tx| task.put(tx).and_then(|()| settle::settle(tx, &HashSet::new(), at(1)).map(drop)));
    assert_eq!((newest_run(&bench).state, newest_run(&bench).cloudsnap), (RunState::Failed, None));
    fails_again(&task, 1);
    assert_eq!(kinds_of_events(&bench), ["backup-retrying", "backup-failed"]);
    assert_eq!(newest_run(&bench).state, RunState::Failed);

    // It is given up after an attempt.
    let task = failed_backup(&bench, &schedule, 30, true);
    bench.tx(|tx| RunRow::record_resumption(tx, task.id));
    bench.tx(|tx| settle::settle(tx, &HashSet::new(), at(30)).map(drop));
    bench.fire(31);
    assert_eq!(bench.tx(|tx| RunRow::history(tx, None, None, 2))[1].cloudsnap, None);
    fails_again(&task, 31);
    assert_eq!(kinds_of_events(&bench)[3..], ["backup-retrying", "run-failed", "backup-failed"]);
}

#[test]
fn clock_set_back_delays_no_resumption() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 60", None)], 4);
    failed_backup(&bench, &schedule, 2, true);
    let run = newest_run(&bench);
    assert_eq!(bench.tx(|tx| resumption::due(tx, at(1))), (vec![run], None));
}

#[test]
fn outage_is_one_event_a_day() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 60", None)], 4);
    for hour in 1..=5 {
        failed_backup(&bench, &schedule, hour, true);
    }
    assert_eq!(kinds_of_events(&bench), ["backup-retrying", "run-failed"]);
    failed_backup(&bench, &schedule, 27, true);
    assert_eq!(kinds_of_events(&bench)[2..], ["schedule-missed", "run-failed", "backup-retrying"]);
}

/// At hours 1, 4, 7 … both rules are due.
#[test]
fn retrying_run_yields_to_its_own_rule_only() {
    for (has_progress, bytes_processed) in [(false, 0), (false, 4_096), (true, 0)] {
        let bench = EngineFixture::new();
        let schedule = bench.schedule(vec![rule("periodic 180", None), rule("periodic 60", None)], 4);
        let mut task = failed_backup(&bench, &schedule, 1, true);
        let is_kept = has_progress || bytes_processed > 0;
        (task.detail.has_progress, task.detail.bytes_processed) = (has_progress, bytes_processed);
        bench.tx(|tx| task.put(tx));
        let rare = bench.tx(|tx| RunRow::in_state(tx, RunState::Retrying)).remove(0);
        assert_eq!(rare.rule, Some(schedule.spec.rules[0].when.clone()));
        let is_retrying = || bench.tx(|tx| RunRow::in_state(tx, RunState::Retrying)) == [rare.clone()];
        // One run of the other rule waits for it.
        bench.fire(2);
        bench.fire(3);
        assert_eq!((is_retrying(), bench.queued().len()), (true, 1));
        assert!(bench.tx(|tx| transactions::ready(tx, 2)).batches.is_empty());
        assert_eq!(kinds_of_events(&bench), ["run-skipped", "backup-retrying", "run-skipped"]);
        bench.fire(4);
        // What it has transferred is not lost.
        assert_eq!((is_retrying(), bench.queued().len()), if is_kept { (true, 1) } else { (false, 2) });
        // A user asks for a new point in time.
        for run in bench.queued() {
            bench.tx(|tx| RunRow { state: RunState::Done, ..run.clone() }.update(tx));
        }
        bench.tx(|tx| transactions::run_now(tx, &schedule, &[volume()], at(5)));
        assert_eq!((is_retrying(), bench.queued().len()), (false, 1));
    }
}

#[test]
fn run_of_another_rule_starts_once_the_retrying_one_ends() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 180", None), rule("periodic 60", None)], 4);
    let mut task = failed_backup(&bench, &schedule, 1, true);
    // Also while an attempt runs, and beside a manual run.
    task.state = TaskStage::Active;
    bench.tx(|tx| RunRow::record_resumption(tx, task.id).and_then(|_| task.put(tx)));
    bench.fire(2);
    assert_eq!(bench.queued().len(), 1);
    bench.tx(|tx| transactions::run_now(tx, &schedule, &[volume()], at(2)));
    assert_eq!(bench.queued().len(), 1, "an active backup is not replaced");
    task.state = TaskStage::Done;
    bench.tx(|tx| task.put(tx).and_then(|()| settle::settle(tx, &HashSet::new(), at(3)).map(drop)));
    let ready = bench.tx(|tx| transactions::ready(tx, 2));
    assert_eq!(ready.batches.len(), 1);
    assert_eq!(ready.batches[0].runs[0].rule, Some(schedule.spec.rules[1].when.clone()));
}

#[test]
fn location_that_retries_does_not_hold_others() {
    let bench = EngineFixture::new();
    let mut schedule = bench.schedule(vec![rule("periodic 180", None), rule("periodic 60", None)], 4);
    failed_backup(&bench, &schedule, 1, true);
    let there = Uuid::from_u128(77);
    schedule.spec.credentials.push(there);
    bench.tx(|tx| schedule.put(tx));
    bench.fire(2);
    let ready = bench.tx(|tx| transactions::ready(tx, 2));
    let credentials = |runs: &[RunRow]| runs.iter().map(|run| run.credential).collect::<Vec<_>>();
    assert_eq!((bench.queued().len(), ready.batches.len()), (2, 1));
    assert_eq!(credentials(&ready.batches[0].runs), [Some(there)]);
}

#[test]
fn events_tell_locations_and_outages_apart() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 60", None)], 4);
    failed_backup(&bench, &schedule, 1, true);
    let run = newest_run(&bench);
    let skip = |run: &RunRow| {
        bench.tx(|tx| add_daily_run_event(tx, run, RunState::Skipped, ("busy", "busy"), at(1)));
        bench.tx(|tx| newest_events(tx, 1)).remove(0)
    };
    let there = RunRow { credential: Some(Uuid::from_u128(77)), ..run.clone() };
    for (run, count) in [(&run, 2), (&there, 3), (&there, 3)] {
        assert_eq!(skip(run).credential_id, run.credential);
        assert_eq!(kinds_of_events(&bench).len(), count, "{:?}", run.credential);
    }
    // The backup after the outage succeeds, and the next one fails in another outage.
    bench.fire(2);
    let done = RunRow { state: RunState::Done, ..newest_run(&bench) };
    bench.tx(|tx| done.update(tx));
    failed_backup(&bench, &schedule, 3, true);
    bench.fire(4);
    let ends = ["run-failed", "backup-retrying", "run-failed"];
    assert_eq!(kinds_of_events(&bench)[3..], ends);
}

#[test]
fn given_up_backup_is_returned_once() {
    let bench = EngineFixture::new();
    let schedule = bench.schedule(vec![rule("periodic 60", None)], 4);
    let task = failed_backup(&bench, &schedule, 1, true);
    let given_up = |hour| {
        let fire = |tx: &rusqlite::Transaction<'_>| transactions::fire(tx, &[volume()], at(hour)).map(drop);
        bench.tx(|tx| resumption::with_given_up(tx, || fire(tx))).1
    };
    assert_eq!(given_up(1), []);
    let ids: Vec<_> = given_up(2).iter().map(|task| (task.id, task.state)).collect();
    assert_eq!(ids, [(task.id, TaskStage::Failed)]);
    assert_eq!(given_up(3), []);
}

#[test]
fn later_backup_of_a_schedule_waits_for_one_that_resumes() {
    let bench = EngineFixture::new();
    let mut rare = bench.schedule(vec![rule("periodic 180", None)], 4);
    failed_backup(&bench, &rare, 1, true);
    let frequent = bench.schedule(vec![rule("periodic 60", None)], 4);
    bench.tx(|tx| frequent.set_cursor(tx, &frequent.spec.rules[0].when, at(1)));
    bench.fire(2);
    let starts = || bench.tx(|tx| transactions::ready(tx, 2)).batches.len();
    assert_eq!((bench.queued().len(), starts()), (1, 0));
    rare.paused = true;
    bench.tx(|tx| rare.put(tx));
    assert_eq!(starts(), 1, "a paused schedule resumes nothing");
    rare.paused = false;
    bench.tx(|tx| rare.put(tx));
    bench.tx(|tx| transactions::run_now(tx, &frequent, &[volume()], at(2)));
    assert_eq!(starts(), 0, "the manual run is skipped beside a queued one");
    for run in bench.queued() {
        bench.tx(|tx| RunRow { state: RunState::Done, ..run.clone() }.update(tx));
    }
    bench.tx(|tx| transactions::run_now(tx, &frequent, &[volume()], at(2)));
    assert_eq!(starts(), 1);
}
