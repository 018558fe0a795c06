//! Tests of operation: events, group backups, and the support bundle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{BLOCK, Bed, Nbd, wait_for};
use serde_json::Value;

#[test]
fn group_backup_raises_events_and_bundle_has_no_secret() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").env("PLANTED", "planted-in-the-environment").start();
    let (ctl, near, far) = (daemon.ctl(), bed.store("near"), bed.store("far"));
    ctl.add_local("near", near.dir(), Some("planted-passphrase-of-near"));
    ctl.add_local("far", far.dir(), Some("planted-passphrase-of-far"));
    for name in ["db", "wal"] {
        ctl.json(&["volume", "create", name, "--size", "8MiB", "--group", "shop"]);
        let mut client = Nbd::open(&daemon.nbd_socket(), name);
        client.write(0, &vec![7; BLOCK as usize]);
    }
    let ended = ctl.json(&["cs", "bg", "--group", "shop", "--cred-id", "near", "--cred-id", "far", "--wait"]);
    let ended = ended.as_array().unwrap();
    assert_eq!(ended.len(), 4);
    assert!(ended.iter().all(|task| task["error"].is_null()), "{ended:?}");
    let started = ctl.json(&["cloudsnap", "backup-group", "--volumes", "db,wal", "--cred-id", "far"]);
    let group = started["groupId"].as_str().unwrap().to_owned();
    let tasks = wait_for("the backups of the group to end", || {
        let tasks = ctl.json(&["cloudsnap", "status", "--name", &group]);
        let is_done = |task: &Value| task["state"] == "Backup-Done";
        tasks.as_array().unwrap().iter().all(is_done).then_some(tasks)
    });
    assert_eq!(tasks.as_array().unwrap().len(), 2);

    let events = ctl.json(&["events"])["events"].clone();
    let done = events.as_array().unwrap().iter().filter(|event| event["kind"] == "backup-done");
    assert_eq!(done.count(), 6, "{events}");
    assert_eq!(ctl.json(&["events", "--errors"])["events"], Value::Array(vec![]));

    let path = bed.store("bundle").dir().join("bundle.json");
    let path = path.to_str().unwrap();
    ctl.json(&["support-bundle", "--output", path]);
    let text = std::fs::read_to_string(path).unwrap();
    assert!(!text.contains("planted"), "{text}");
    // Not the key that seals secrets either, however it might be written.
    let key = std::fs::read(daemon.seen_data_dir().join("secret.key")).unwrap();
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(key.len() >= 32 && !text.contains(&hex[..32]));
    let bundle: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(bundle["volumes"]["volumes"].as_array().unwrap().len(), 2);
    assert!(bundle["metrics"].as_str().unwrap().contains("blockd_volume_up{volume=\"db\"} 1"));
    for part in
        ["status", "snapshots", "credentials", "tasks", "schedules", "policies", "runs", "events", "mounts"]
    {
        assert!(bundle[part].is_object() && bundle[part]["error"].is_null(), "{part}: {}", bundle[part]);
    }
    ctl.fails(&["support-bundle", "--output", path], 1);
}

/// Returns the lines of the command log.
fn lines(path: &std::path::Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn group_rule_runs_and_is_resumed_after_a_kill() {
    let bed = Bed::new();
    let mut daemon = bed.daemon("a").start();
    let (ctl, store) = (daemon.ctl(), bed.store("nas"));
    ctl.add_local("nas", store.dir(), None);
    for name in ["db", "wal"] {
        ctl.json(&["volume", "create", name, "--size", "8MiB", "--group", "shop"]);
    }
    let (log, gate) = (store.dir().with_extension("log"), store.dir().with_extension("gate"));
    let note = format!("echo $BLOCKD_PHASE $BLOCKD_VOLUMES $BLOCKD_TAKEN >> {}", log.display());
    // It takes as long as the gate is there.
    let pre = format!("{note}; echo planted; while test -e {}; do sleep 0.05; done", gate.display());
    ctl.json(&["rule", "create", "hold", "--pre-command", &pre, "--post-command", &note, "--timeout", "2m"]);
    ctl.json(&["rule", "assign", "hold", "--group", "shop"]);
    let rules = ctl.json(&["rule", "list"]);
    assert_eq!(rules["rules"][0]["groups"][0], "shop");
    ctl.fails(&["rule", "delete", "hold"], 5);
    ctl.fails(&["rule", "inspect", "nobody"], 4);
    ctl.fails(&["cloudsnap", "backup", "db", "--rule", "nobody"], 4);

    // Killed while the command before runs: the one after runs, and then the backup is made with both.
    std::fs::write(&gate, "").unwrap();
    let started = ctl.json(&["cloudsnap", "backup-group", "--group", "shop"]);
    wait_for("the command before", || (lines(&log) == ["pre db wal"]).then_some(()));
    let killed = daemon.kill();
    std::fs::remove_file(&gate).unwrap();
    daemon = killed.start();
    let group = started["groupId"].as_str().unwrap();
    let tasks = wait_for("the backups of the group to end", || {
        let tasks = ctl.json(&["cloudsnap", "status", "--name", group]);
        let is_done = |task: &Value| task["state"] == "Backup-Done";
        tasks.as_array().unwrap().iter().all(is_done).then_some(tasks)
    });
    assert_eq!(lines(&log), ["pre db wal", "post db wal unknown", "pre db wal", "post db wal yes"]);
    let step = &tasks[0]["quiesce"]["steps"][0];
    assert_eq!((&step["rule"], &step["exitStatus"]), (&"hold".into(), &0.into()), "{tasks:#}");
    assert_eq!(step["output"], "planted\n");
    let shown = ctl.run(&["cloudsnap", "status", "--name", group]).stdout;
    assert!(shown.contains("pre-command") && shown.contains("hold") && shown.contains("planted"), "{shown}");

    // What fails afterwards is seen, and the backup is there.
    ctl.json(&["rule", "update", "hold", "--post-command", "echo planted; exit 5"]);
    ctl.json(&["cs", "bg", "--group", "shop", "--wait"]);
    assert_eq!(ctl.done_cloudsnaps().len(), 4);
    let events = ctl.json(&["events", "--errors"])["events"].clone();
    let failed: Vec<&Value> = events.as_array().unwrap().iter().collect();
    assert!(failed.len() == 1 && failed[0]["kind"] == "rule-failed", "{events:#}");
    let message = failed[0]["message"].as_str().unwrap();
    assert!(message.contains("the post-command of rule hold failed (exit status 5)"), "{message}");
    // What fails before stops it, unless it is not to.
    let pre = ["rule", "update", "hold", "--post-command", "", "--pre-command", "exit 6"];
    ctl.json(&pre);
    ctl.fails(&["cloudsnap", "backup", "db", "--wait"], 1);
    ctl.json(&["cloudsnap", "backup", "db", "--no-rule", "--wait"]);
    ctl.json(&["rule", "update", "hold", "--on-failure", "continue"]);
    ctl.json(&["cloudsnap", "backup", "db", "--wait"]);
    assert_eq!(ctl.done_cloudsnaps().len(), 6);

    let path = bed.store("bundle").dir().join("bundle.json");
    ctl.json(&["support-bundle", "--output", path.to_str().unwrap()]);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("planted") && text.contains("rule-failed"), "{text}");
    ctl.json(&["rule", "unassign", "hold", "--group", "shop"]);
    ctl.json(&["rule", "delete", "hold"]);

    // It is wanted most when there is no daemon.
    let stopped = daemon.stop();
    std::fs::remove_file(&path).unwrap();
    let made = ctl.run(&["support-bundle", "--output", path.to_str().unwrap()]);
    assert!(made.stderr.contains("has only what this host says"), "{made:?}");
    let bundle: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert!(bundle["status"]["error"].is_string() && bundle["host"]["kernel"].is_string(), "{bundle:#}");
    assert!(bundle["host"]["dataDir"]["availableBytes"].is_u64(), "{bundle:#}");
    drop(stopped);
}
