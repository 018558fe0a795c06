//! Schedules as a user of `blockctl` has them: made, run, looked at, across a kill of the daemon.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{BLOCK, Bed, Nbd, time_of_another_half_day, wait_for};
use serde_json::Value;

#[test]
fn schedule_of_a_label_retains_and_survives_a_kill() {
    let bed = Bed::new();
    let mut daemon = bed.daemon("a").start();
    let (ctl, store) = (daemon.ctl(), bed.store("s"));
    ctl.add_local("nas", store.dir(), None);
    for name in ["db", "wal"] {
        ctl.json(&["volume", "create", name, "--size", "8MiB", "--label", "app=shop"]);
    }
    ctl.json(&[
        "sched-policy",
        "create",
        "gold",
        "--weekly",
        "Thursday@10:13PM,5",
        "--time-zone",
        "Europe/Berlin",
    ]);
    let time = time_of_another_half_day();
    let made = ctl.json(&[
        "cloudsnap",
        "schedules",
        "create",
        "--label",
        "app=shop",
        "--daily",
        &time,
        "--policy",
        "gold",
        "--max",
        "2",
    ]);
    let schedule = format!("daily @{time}, weekly Thursday@22:13 Europe/Berlin");
    assert_eq!(made["schedule"], schedule.as_str());
    let uuid = made["uuid"].as_str().unwrap().to_owned();
    let runs = || -> Vec<Value> {
        ctl.json(&["cloudsnap", "history", "--uuid", &uuid])["runs"].as_array().unwrap().clone()
    };
    let in_state = |state: &str| runs().iter().filter(|run| run["state"] == state).count();
    for round in 1..=3usize {
        let mut client = Nbd::open(&daemon.nbd_socket(), "db");
        client.write(0, &vec![round as u8; BLOCK as usize]);
        drop(client);
        let begun = ctl.json(&["cloudsnap", "schedules", "run-now", "--uuid", &uuid[..8]]);
        assert_eq!(begun["runs"].as_array().unwrap().len(), 2);
        if round == 2 {
            daemon = daemon.kill().start();
        }
        wait_for("the runs to end", || (in_state("done") + in_state("expired") == 2 * round).then_some(()));
    }
    wait_for("what is not kept to be gone", || {
        (in_state("expired") == 2 && ctl.done_cloudsnaps().len() == 4).then_some(())
    });
    let plan = ctl.json(&["cloudsnap", "schedules", "retention", "--uuid", &uuid]);
    let kept = plan["cloudsnaps"].as_array().unwrap();
    assert_eq!(kept.len(), 4);
    assert!(kept.iter().all(|judged| judged["verdict"]["keep"].is_array()), "{plan}");

    let error = ctl.fails(&["cloudsnap", "schedules", "create", "db", "--cron", "0 0 31 2 *"], 2);
    assert!(error.to_string().contains("never comes"), "{error}");
    ctl.fails(&["sched-policy", "delete", "gold"], 5);
    ctl.json(&["cloudsnap", "schedules", "pause", "--uuid", &uuid]);
    let list = ctl.json(&["cloudsnap", "schedules", "list"]);
    assert_eq!(
        (&list["schedules"][0]["paused"], &list["schedules"][0]["nextRun"]),
        (&Value::Bool(true), &Value::Null)
    );
    ctl.json(&["cloudsnap", "schedules", "delete", "--uuid", &uuid]);
    ctl.json(&["sched-policy", "delete", "gold"]);
    assert_eq!(ctl.done_cloudsnaps().len(), 4);
    drop(daemon);
}

#[test]
fn three_copies_are_kept_each_in_its_own_way_through_a_kill() {
    let bed = Bed::new();
    let mut daemon = bed.daemon("a").start();
    let (ctl, near, far) = (daemon.ctl(), bed.store("near"), bed.store("far"));
    ctl.add_local("near", near.dir(), None);
    ctl.add_local("far", far.dir(), None);
    ctl.json(&["volume", "create", "db", "--size", "8MiB"]);
    ctl.json(&["snapshot", "create", "db", "--name", "mine"]);
    let time = time_of_another_half_day();
    let create = ["cloudsnap", "schedules", "create", "db", "--daily", &time];
    let copies = ["--local-keep-last", "2", "--cred-id", "near", "--max", "1"];
    let other = ["--cred-id", "far", "--keep-at", "far:last=3"];
    let made = ctl.json(&[&create[..], &copies, &other].concat());
    let uuid = made["uuid"].as_str().unwrap().to_owned();
    for round in 1..=4 {
        let mut client = Nbd::open(&daemon.nbd_socket(), "db");
        client.write(0, &vec![round; BLOCK as usize]);
        drop(client);
        ctl.json(&["cloudsnap", "schedules", "run-now", "--uuid", &uuid]);
        if round == 2 {
            daemon = daemon.kill().start();
        }
        wait_for("the runs to end", || {
            let told = ctl.json(&["cloudsnap", "history", "--uuid", &uuid]);
            let runs = told["runs"].as_array().unwrap();
            let is_over = |run: &Value| run["state"] == "done" || run["state"] == "expired";
            (runs.len() == 3 * usize::from(round) && runs.iter().all(is_over)).then_some(())
        });
    }
    let kept = || -> Vec<u64> {
        let list = ctl.json(&["cloudsnap", "schedules", "list"]);
        let copies = list["schedules"][0]["copies"].as_array().unwrap().clone();
        copies.iter().map(|copy| copy["kept"].as_u64().unwrap()).collect()
    };
    wait_for("what is not kept to be gone", || (kept() == [2, 1, 3]).then_some(()));
    let snapshots = ctl.json(&["snapshot", "list", "db"]);
    let names: Vec<&str> =
        snapshots.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| name.starts_with("sched-")).count(), 2, "{names:?}");
    assert!(names.contains(&"mine"), "{names:?}");
    let shown = ctl.run(&["cloudsnap", "schedules", "list"]).stdout;
    assert!(shown.contains("local: 2 of last=2, near: 1, far: 3 of last=3"), "{shown}");
    let shown = ctl.run(&["cloudsnap", "schedules", "retention", "--uuid", &uuid]).stdout;
    assert!(
        shown.contains("sched-") && shown.contains("far") && shown.contains("the last good one"),
        "{shown}"
    );

    // The schedule goes, and what it made stays.
    ctl.json(&["cloudsnap", "schedules", "delete", "--uuid", &uuid]);
    let shown = ctl.run(&["cloudsnap", "schedules", "retention", "--uuid", &uuid]).stdout;
    assert_eq!(shown.matches("its schedule is gone").count(), 6, "{shown}");
    // No place at all is needed for local snapshots.
    let local = ctl.json(&["cs", "sched", "create", "db", "--periodic", "15", "--local-keep-last", "96"]);
    assert_eq!(local["credentials"].as_array().map(Vec::len), Some(0));
    ctl.fails(&["cs", "sched", "create", "db", "--daily", "1:00", "--local-keep-last", "9", "--max", "3"], 2);
    drop(daemon);
}
