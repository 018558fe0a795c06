//! `--wait`: progress, end and interruption.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::{
    process::Stdio,
    time::{Duration, Instant},
};
use support::{Fake, Ran, Reply, TASK, fail, ok, snap, task};

const BACKUP: &str = "POST /v1/cloudsnaps/backup";
const ONE_TASK: &str = "GET /v1/tasks/3f4f0a67-e12a-4d35-81ad-985657757352";

fn started() -> (&'static str, Reply) {
    (BACKUP, ok(json!({ "task": TASK })))
}

#[test]
fn wait_follows_task_to_its_end() {
    let script = || {
        Fake::start(vec![
            started(),
            (ONE_TASK, ok(task("Backup-Pending", 4))),
            (ONE_TASK, ok(task("Backup-Active", 7))),
            (ONE_TASK, ok(task("Backup-Done", 9))),
        ])
    };
    let fake = script();
    let ran = fake.run("cs backup vol --wait");
    assert_eq!(ran.status, 0);
    assert_eq!(
        ran.stdout,
        format!(
            "Cloudsnap backup started successfully with id: {TASK}\n\
             Cloudsnap backup completed: {} (incremental, 400.6 MiB processed, 1 MiB uploaded, 9 requests, freeze 42 µs, 17.46s)\n",
            snap("59-61-incr")
        )
    );
    assert_eq!(ran.stderr, "Backup-Pending: uploading 25% (100.1 MiB of 400.6 MiB)\n");
    let polls: Vec<_> = fake.seen().into_iter().skip(1).map(|seen| seen.line).collect();
    let address = ONE_TASK;
    assert_eq!(
        polls,
        [
            address.to_owned(),
            format!("{address}?sinceVersion=4&waitMs=2000"),
            format!("{address}?sinceVersion=7&waitMs=2000")
        ]
    );

    let ran = script().run("-j cs backup vol --wait");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!((&ran.json()["state"], &ran.json()["requests"]["put"]), (&json!("Backup-Done"), &json!(8)));
}

#[test]
fn tasks_are_watched_until_none_is_under_way() {
    const TASKS: &str = "GET /v1/tasks";
    let tasks = |state: &str, version| ok(json!({ "tasks": [task(state, version)] }));
    let script = vec![
        (TASKS, tasks("Backup-Active", 4)),
        (TASKS, tasks("Backup-Active", 7)),
        (TASKS, tasks("Backup-Done", 9)),
    ];
    let fake = Fake::start(script);
    let ran = fake.run("cs status --name 3f4f --watch");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let tables: Vec<&str> = ran.stdout.split("\n\n").collect();
    assert_eq!(tables.len(), 3, "{ran:?}");
    assert!(tables[0].contains("ETA") && tables[1].contains("Backup-Active"), "{ran:?}");
    assert!(!tables[2].contains("ETA") && tables[2].contains("Backup-Done"), "{ran:?}");
    assert!(!ran.stdout.contains('\u{1b}'), "{ran:?}");
    let ran = fake.run("-j cs status --watch");
    assert_eq!(ran.status, 2, "{ran:?}");
    assert!(ran.json()["error"]["message"].as_str().unwrap().contains("top -j"), "{ran:?}");
}

#[test]
fn watching_waits_for_a_daemon_that_restarts() {
    const TASKS: &str = "GET /v1/tasks";
    let tasks = |state: &str, version| ok(json!({ "tasks": [task(state, version)] }));
    let fake = Fake::start(vec![
        (TASKS, tasks("Backup-Active", 4)),
        (TASKS, Reply::Close),
        (TASKS, fail(503, "shutting_down", "blockd is stopping")),
        (TASKS, tasks("Backup-Done", 9)),
    ]);
    let ran = fake.run("cs status --watch");
    assert_eq!(ran.status, 0, "{ran:?}");
    assert_eq!(ran.stderr.matches("waiting for it to come back").count(), 1, "{ran:?}");
    assert!(ran.stdout.ends_with('\n') && ran.stdout.contains("Backup-Done"), "{ran:?}");
    // A daemon that never ran is not waited for.
    assert_eq!(Fake::start(vec![(TASKS, Reply::Close)]).run("cs status --watch").status, 3);
}

#[test]
fn watch_ends_at_ctrl_c_in_each_phase() {
    const TASKS: &str = "GET /v1/tasks";
    let active = || ok(json!({ "tasks": [task("Backup-Active", 4)] }));
    // More than the capacity of a pipe.
    let many: Vec<_> = (0..2_000).map(|_| task("Backup-Active", 4)).collect();
    for (script, asked) in [
        (vec![(TASKS, Reply::Hold)], 1),
        (vec![(TASKS, active()), (TASKS, Reply::Hold)], 2),
        (vec![(TASKS, active()), (TASKS, Reply::Close)], 3),
        (vec![(TASKS, ok(json!({ "tasks": many })))], 1),
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
            // The pipe is not read meanwhile.
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
fn wait_exits_with_status_of_task() {
    let script = || Fake::start(vec![started(), (ONE_TASK, ok(task("Backup-Failed", 4)))]);
    let ran = script().run("cs backup vol --wait");
    assert_eq!(ran.status, 1);
    assert_eq!(
        ran.stderr,
        "error: Cloudsnap backup failed: the directory /srv is full\nhint: make room there\n"
    );
    let ran = script().run("cs backup vol --wait -j");
    assert_eq!((ran.status, ran.stderr.as_str()), (1, ""));
    assert_eq!(ran.json()["error"]["code"], "store_full");
}

#[test]
fn restores_and_deletes_are_followed_too() {
    let fake = Fake::start(vec![
        ("POST /v1/cloudsnaps/restore", ok(json!({ "task": TASK, "volumeId": "59", "volume": "vol" }))),
        ("POST /v1/cloudsnaps/delete", ok(json!({ "task": TASK }))),
        ("GET /v1/tasks", ok(json!({ "tasks": [task("Delete-Active", 1)] }))),
        (ONE_TASK, ok(task("Restore-Done", 1))),
        (ONE_TASK, ok(task("Delete-Done", 1))),
    ]);
    let ran = fake.run(&format!("cs restore -s {} -v vol --wait", snap("1-2")));
    assert!(ran.stdout.contains("\nCloudsnap restore completed: volume vol (400.6 MiB processed"), "{ran:?}");
    let ran = fake.run(&format!("cs delete -s {} --wait", snap("1-2")));
    assert!(ran.stdout.contains("\nCloudsnap deleted successfully: 2e4d"), "{ran:?}");
    let ran = fake.run("cs status --name 3f4f --wait");
    assert!(ran.status == 0 && ran.stdout.starts_with("Cloudsnap deleted successfully"), "{ran:?}");
    assert_eq!(fake.run("cs status --wait").status, 2);
}

#[test]
fn wait_survives_daemon_restart() {
    let fake = Fake::start(vec![
        started(),
        (ONE_TASK, ok(task("Backup-Active", 50))),
        (ONE_TASK, Reply::Close),
        (ONE_TASK, fail(503, "shutting_down", "blockd is stopping")),
        (ONE_TASK, ok(task("Backup-Done", 3))),
    ]);
    let ran = fake.run("cs backup vol --wait");
    assert_eq!(ran.status, 0);
    assert_eq!(ran.stderr.matches("waiting for it to come back").count(), 1, "{}", ran.stderr);
    assert_eq!(
        fake.seen().last().unwrap().line,
        ONE_TASK,
        "versions of before the restart are not relied on"
    );
}

#[test]
fn deleted_task_ends_wait() {
    let fake = Fake::start(vec![started(), (ONE_TASK, fail(404, "task_not_found", "no such task"))]);
    let ran = fake.run("cs backup vol --wait -j");
    assert_eq!((ran.status, &ran.json()["error"]["code"]), (4, &json!("task_not_found")));
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
            assert!(ran.stderr.contains("goes on") && ran.stderr.contains(&look), "{ran:?}");
        } else {
            assert_eq!((&ran.json()["error"]["code"], ran.stderr.as_str()), (&json!("interrupted"), ""));
            assert!(ran.json()["error"]["hint"].as_str().unwrap().contains(&look));
        }
    }
}
