//! Operation: events, group backups, the support bundle, and notification of systemd.

use crate::harness::{BLOCK, Bed, Nbd, wait_for};
use serde_json::Value;
use std::os::unix::net::UnixDatagram;

#[test]
fn group_backup_raises_events_and_bundle_has_no_secret() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").env("PLANTED", "planted-in-the-environment").start();
    let (ctl, one, two) = (daemon.ctl(), bed.store("one"), bed.store("two"));
    ctl.add_local("one", one.dir(), Some("planted-passphrase-of-one"));
    ctl.add_local("two", two.dir(), Some("planted-passphrase-of-two"));
    for name in ["db", "wal"] {
        ctl.json(&["volume", "create", name, "--size", "8MiB", "--group", "shop"]);
        let mut client = Nbd::open(&daemon.nbd_socket(), name);
        client.write(0, &vec![7; BLOCK as usize]);
    }
    let ended = ctl.json(&["cs", "bg", "--group", "shop", "--cred-id", "one", "--cred-id", "two", "--wait"]);
    let ended = ended["items"].as_array().unwrap();
    assert_eq!(ended.len(), 4);
    assert!(ended.iter().all(|task| task["error"].is_null()), "{ended:?}");
    let started = ctl.json(&["cloudsnap", "backup-group", "--volumes", "db,wal", "--cred-id", "two"]);
    let group = started["groupId"].as_str().unwrap().to_owned();
    let tasks = wait_for("the backups of the group to end", || {
        let tasks = ctl.json(&["cloudsnap", "status", "--name", &group]);
        let is_done = |task: &Value| task["state"] == "Backup-Done";
        tasks["items"].as_array().unwrap().iter().all(is_done).then_some(tasks)
    });
    assert_eq!(tasks["items"].as_array().unwrap().len(), 2);

    let events = ctl.json(&["events"])["items"].clone();
    let done = events.as_array().unwrap().iter().filter(|event| event["kind"] == "backup-done");
    assert_eq!(done.count(), 6, "{events}");
    assert_eq!(ctl.json(&["events", "--errors"])["items"], Value::Array(vec![]));

    let path = bed.store("bundle").dir().join("bundle.json");
    let path = path.to_str().unwrap();
    ctl.json(&["support-bundle", "--output", path]);
    let text = std::fs::read_to_string(path).unwrap();
    assert!(!text.contains("planted"), "{text}");
    // Nor does the bundle have the sealing key in hexadecimal.
    let key = std::fs::read(daemon.seen_data_dir().join("secret.key")).unwrap();
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(key.len() >= 32 && !text.contains(&hex[..32]));
    let bundle: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(bundle["volumes"]["items"].as_array().unwrap().len(), 2);
    assert!(bundle["metrics"].as_str().unwrap().contains("blockd_volume_up{volume=\"db\"} 1"));
    for part in
        ["status", "snapshots", "credentials", "tasks", "schedules", "policies", "runs", "events", "mounts"]
    {
        assert!(bundle[part].is_object() && bundle[part]["error"].is_null(), "{part}: {}", bundle[part]);
    }
    ctl.fails(&["support-bundle", "--output", path], 1);

    // Without a daemon the bundle describes the host.
    let stopped = daemon.stop();
    std::fs::remove_file(path).unwrap();
    let made = ctl.run(&["support-bundle", "--output", path]);
    assert!(made.stderr.contains("describes only this host"), "{made:?}");
    let bundle: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(bundle["status"]["error"].is_string(), "{bundle:#}");
    assert!(bundle["host"]["/proc/sys/kernel/osrelease"].is_string(), "{bundle:#}");
    assert!(bundle["host"]["dataDir"].as_str().unwrap().contains("bytes"), "{bundle:#}");
    drop(stopped);
}

#[test]
fn systemd_is_notified_when_ready() {
    let bed = Bed::new();
    let notify = bed.path("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(crate::harness::TIMEOUT)).unwrap();
    let daemon = bed
        .daemon("a")
        .env("NOTIFY_SOCKET", notify.to_str().unwrap())
        .arg("--log-format")
        .arg("json")
        .start();
    let mut received = String::new();
    let mut wait_for_message = |wanted: &str| {
        while !received.contains(wanted) {
            let mut message = [0; 4096];
            let len = socket
                .recv(&mut message)
                .unwrap_or_else(|error| panic!("no {wanted} in {received:?}: {error}"));
            received += std::str::from_utf8(&message[..len]).unwrap();
        }
    };
    wait_for_message("READY=1");
    for line in daemon.log().lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
    }
    drop(daemon.stop());
    wait_for_message("STOPPING=1");
}
