//! Interruption of `--wait` and `--watch`, and stops of tasks.

use crate::support::{Fake, Ran, Reply, TASK, list, ok, task};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::{
    process::Stdio,
    time::{Duration, Instant},
};

const BACKUP: &str = "POST /v1/cloudsnaps/backup";
const ONE_TASK: &str = "GET /v1/tasks/3f4f0a67-e12a-4d35-81ad-985657757352";

fn started() -> (&'static str, Reply) {
    (BACKUP, ok(list(json!([{ "taskId": TASK }]))))
}

#[test]
fn watch_ends_at_ctrl_c_in_each_phase() {
    const TASKS: &str = "GET /v1/tasks";
    let active = || ok(list(json!([task("Backup-Active", 4)])));
    // More than the capacity of a pipe.
    let many: Vec<_> = (0..2_000).map(|_| task("Backup-Active", 4)).collect();
    for (script, asked) in [
        (vec![(TASKS, Reply::Hold)], 1),
        (vec![(TASKS, active()), (TASKS, Reply::Hold)], 2),
        (vec![(TASKS, active()), (TASKS, Reply::Close)], 3),
        (vec![(TASKS, ok(list(many)))], 1),
    ] {
        for signal in [Signal::INT, Signal::TERM] {
            let fake = Fake::start(script.clone());
            let mut child = fake
                .command("cs status --watch")
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            for _ in 0..asked {
                assert_eq!(fake.arrival(), TASKS);
            }
            kill_process(Pid::from_child(&child), signal).unwrap();
            // The pipe is not read during the wait.
            let until = Instant::now() + Duration::from_secs(120);
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                if Instant::now() >= until {
                    child.kill().unwrap();
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            assert_eq!(status.code(), Some(130), "after {asked} requests, {signal:?}");
        }
    }
}

#[test]
fn ctrl_c_stops_the_waiting_and_not_the_task() {
    for flag in ["", "-j"] {
        let fake = Fake::start(vec![started(), (ONE_TASK, Reply::Hold)]);
        let child = fake
            .command(&format!("cs backup vol --wait {flag}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(fake.arrival(), BACKUP);
        // The signal handler is installed before the first request.
        assert_eq!(fake.arrival(), ONE_TASK);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.status, 130);
        let look = format!("blockctl cloudsnap status --name {TASK}");
        if flag.is_empty() {
            assert!(ran.stderr.contains("continues") && ran.stderr.contains(&look), "{ran:?}");
        } else {
            assert_eq!((&ran.json()["error"]["code"], ran.stderr.as_str()), (&json!("interrupted"), ""));
            assert!(ran.json()["error"]["hint"].as_str().unwrap().contains(&look));
        }
    }
}

#[test]
fn stop_of_a_group_stops_its_unfinished_backups() {
    const GROUP: &str = "aaaaaaaa-e12a-4d35-81ad-985657757352";
    let ids = ["11111111", "22222222", "33333333"].map(|id| format!("{id}{}", &TASK[8..]));
    let member = |id: &str, state| {
        let mut task = task(state, 1);
        (task["taskId"], task["groupId"]) = (json!(id), json!(GROUP));
        task
    };
    let tasks =
        [member(&ids[0], "Backup-Active"), member(&ids[1], "Backup-Done"), member(&ids[2], "Backup-Pending")];
    let stops =
        [&ids[0], &ids[2]].map(|id| (format!("POST /v1/tasks/{id}/stop"), member(id, "Backup-Stopped")));
    let mut replies = vec![("GET /v1/tasks", ok(list(json!(tasks))))];
    replies.extend(stops.iter().map(|(line, task)| (line.as_str(), ok(task.clone()))));
    let fake = Fake::start(replies);
    let ran = fake.run("cloudsnap stop --name aaaaaaaa");
    assert_eq!((ran.status, ran.stdout.lines().count()), (0, 2), "{ran:?}");
    let stopped: Vec<_> =
        fake.seen().into_iter().map(|seen| seen.line).filter(|line| line.contains("/stop")).collect();
    assert_eq!(stopped, stops.map(|(line, _)| line));
    // A prefix of several tasks is no group.
    let mut other = member(&ids[1], "Backup-Active");
    other["groupId"] = json!(TASK);
    let fake = Fake::start(vec![("GET /v1/tasks", ok(list(json!([tasks[0], other]))))]);
    assert_eq!(fake.run("cloudsnap stop --name aaaaaaaa").status, 2);
}
