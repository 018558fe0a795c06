//! `init` and `doctor`.

use crate::support::{Fake, Ran, Reply, TASK, cloudsnap, fail, list, ok, reply, snap, task, volume};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::Stdio,
    sync::{Arc, Barrier, mpsc},
    thread,
    time::Duration,
};

const VALIDATE: &str = "POST /v1/credentials/nas/validate";
const CREATE: &str = "POST /v1/credentials";
const SCHEDULES: &str = "GET /v1/schedules";
const NEW_SCHEDULE: &str = "POST /v1/schedules";
const VERIFY: &str = "POST /v1/cloudsnaps/verify";

/// Replies of a daemon without locations and schedules.
fn fresh() -> Vec<(&'static str, Reply)> {
    let mut schedules = reply(SCHEDULES);
    schedules["items"] = json!([]);
    vec![
        (VALIDATE, fail(404, "credential_not_found", "there is no credential nas")),
        (SCHEDULES, ok(schedules)),
        (VERIFY, ok(json!({ "taskId": TASK }))),
        ("GET /v1/tasks/3f4f0a67-e12a-4d35-81ad-985657757352", ok(task("Verify-Done", 1))),
    ]
}

fn body_of(fake: &Fake, line: &str) -> Value {
    let seen = fake.seen();
    seen.iter().find(|one| one.line == line).unwrap_or_else(|| panic!("no {line} in {seen:?}")).body.clone()
}

#[test]
fn init_creates_location_schedule_and_verified_backups() {
    let fake = Fake::with_defaults(fresh());
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let line = format!("init nas --provider local --path /srv/b --new-recovery-key {}", key.display());
    let ran = fake.run(&line);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(
        ran.stdout.contains("copy it to another place") && ran.stdout.contains("protected and verified"),
        "{ran:?}"
    );
    let place = "Backup location n created in bucket bkt at 70.0.99.121:9010: ";
    assert!(ran.stdout.starts_with(place), "{ran:?}");
    let written = fs::read_to_string(&key).unwrap();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(body_of(&fake, CREATE)["encryptionPassphrase"], written.trim_end());
    assert!(written.len() > 64, "{written}");
    let schedule = body_of(&fake, NEW_SCHEDULE);
    assert_eq!(
        (&schedule["selector"], &schedule["retain"]["keepLast"]),
        (&json!({ "all": true }), &json!(14))
    );
    assert_eq!(schedule["rules"], json!([{ "when": "daily @02:00" }]));
    assert_eq!(body_of(&fake, VERIFY)["depth"], "full");
}

#[test]
fn init_keeps_no_recovery_key_of_a_refused_location() {
    let mut replies = fresh();
    replies.push((CREATE, fail(502, "store_unreachable", "the directory is missing")));
    let fake = Fake::with_defaults(replies);
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let line = format!("init nas --provider local --path /srv/b --new-recovery-key {}", key.display());
    let ran = fake.run(&line);
    assert!(ran.status == 1 && !key.exists(), "{ran:?}");

    // An existing file is no new key, and stays.
    fs::write(&key, "precious").unwrap();
    let ran = fake.run(&line);
    assert!(ran.status == 2 && ran.stderr.contains("give --encryption-passphrase-file"), "{ran:?}");
    assert_eq!(fs::read_to_string(&key).unwrap(), "precious");
}

#[test]
fn recovery_key_of_a_killed_init_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let options = "--provider local --path /srv/b --no-backup";
    let line = format!("init nas {options} --new-recovery-key {}", key.display());
    assert_eq!(Fake::with_defaults(fresh()).run(&line).status, 0);
    let written = fs::read_to_string(&key).unwrap();
    // The daemon has no location yet.
    let fake = Fake::with_defaults(fresh());
    let ran = fake.run(&line);
    assert!(ran.status == 0 && ran.stdout.contains("Recovery key in"), "{ran:?}");
    assert_eq!(body_of(&fake, CREATE)["encryptionPassphrase"], written.trim_end());
    // A key of another location stays.
    let mut replies = fresh();
    replies.push((CREATE, fail(422, "wrong_passphrase", "the passphrase opens no key slot")));
    let ran = Fake::with_defaults(replies).run(&line);
    assert!(ran.status != 0 && ran.stderr.contains("--encryption-passphrase-file"), "{ran:?}");
    assert_eq!(fs::read_to_string(&key).unwrap(), written);
    // The command was killed before it wrote the key.
    fs::write(&key, "").unwrap();
    assert_eq!(Fake::with_defaults(fresh()).run(&line).status, 0);
    assert_eq!(fs::read_to_string(&key).unwrap().len(), written.len());
}

#[test]
fn new_key_for_a_location_with_backups_names_the_option() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let mut replies = fresh();
    replies.push((CREATE, fail(422, "wrong_passphrase", "the passphrase opens no key slot")));
    let line = format!("init nas --provider local --path /srv/b --new-recovery-key {}", key.display());
    let ran = Fake::with_defaults(replies).run(&line);
    assert!(ran.status != 0 && ran.stderr.contains("has encrypted backups"), "{ran:?}");
    assert!(ran.stderr.contains("--encryption-passphrase-file FILE") && !key.exists(), "{ran:?}");
}

#[test]
fn recovery_key_of_a_lost_reply_is_kept_and_used() {
    const REKEY: &str = "POST /v1/credentials/af563a4d-afd7-48df-90f7-8e8f9414ff77/rekey";
    let mut replies = fresh();
    replies.push((CREATE, Reply::Close));
    let fake = Fake::with_defaults(replies);
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let line = format!(
        "init nas --provider local --path /srv/backup --no-backup --new-recovery-key {}",
        key.display()
    );
    let ran = fake.run(&line);
    assert!(ran.status == 3 && ran.stderr.contains("the recovery key stays in"), "{ran:?}");
    let written = fs::read_to_string(&key).unwrap();
    assert_eq!(body_of(&fake, CREATE)["encryptionPassphrase"], written.trim_end());

    // The daemon had created the location.
    let location = |encrypted: bool| {
        let mut found = reply(VALIDATE);
        (found["credentialId"], found["encrypted"]) =
            (json!("af563a4d-afd7-48df-90f7-8e8f9414ff77"), json!(encrypted));
        (VALIDATE, ok(found))
    };
    let rekeyed = ok(reply("POST /v1/credentials/nas/rekey"));
    let fake = Fake::with_defaults(vec![location(true), (REKEY, rekeyed), fresh().remove(1)]);
    let ran = fake.run(&line);
    assert!(ran.status == 0 && ran.stdout.contains("Recovery key in"), "{ran:?}");
    assert_eq!(body_of(&fake, REKEY)["passphrase"], written.trim_end());

    // Neither another key nor a missing file becomes the key of an existing location.
    let wrong = (REKEY, fail(422, "wrong_passphrase", "the passphrase opens no key slot"));
    let fake = Fake::with_defaults(vec![location(true), wrong]);
    for line in [&line, "init nas --no-backup --encryption-passphrase x"] {
        let ran = fake.run(line);
        assert!(ran.status == 2 && ran.stderr.contains("does not open it: the passphrase"), "{ran:?}");
    }
    let mut command = fake.command("init nas --no-backup");
    let ran = Ran::of(command.env("BLOCKD_ENCRYPTION_PASSPHRASE", "x").output().unwrap());
    let words = "and BLOCKD_ENCRYPTION_PASSPHRASE does not open it: the passphrase";
    assert!(ran.status == 2 && ran.stderr.contains(words), "{ran:?}");
    fs::remove_file(&key).unwrap();
    for (encrypted, cause) in [(true, "keeps its recovery key"), (false, "stores backups unencrypted")] {
        let fake = Fake::with_defaults(vec![location(encrypted)]);
        let ran = fake.run(&line);
        assert!(ran.status == 2 && ran.stderr.contains(cause) && !key.exists(), "{ran:?}");
    }
}

#[test]
fn init_without_terminal_names_what_is_missing() {
    let fake = Fake::with_defaults(fresh());
    let ran = fake.run("init nas");
    assert!(ran.status == 2 && ran.stderr.contains("--provider"), "{ran:?}");
    let ran = fake.run("init nas --provider local --path /srv/b");
    assert!(ran.status == 2 && ran.stderr.contains("--new-recovery-key"), "{ran:?}");
}

#[test]
fn init_uses_an_existing_location_and_schedule() {
    for options in ["", "--provider local --path /srv/backup --daily 21:00 --max 7 --keep-monthly 12"] {
        let fake = Fake::with_defaults(vec![schedule_of("selector", json!({ "all": true }))]);
        let ran = fake.run(&format!("init nas --no-backup {options}"));
        assert!(ran.status == 0 && ran.stdout.contains("nas exists in /"), "{ran:?}");
        let seen = fake.seen();
        assert!(!seen.iter().any(|one| [CREATE, NEW_SCHEDULE].contains(&one.line.as_str())), "{seen:?}");
    }
}

#[test]
fn repeated_init_backs_up_unprotected_volumes_only() {
    const RUN: &str = "POST /v1/schedules/078557a3-26c7-49b1-9822-34e6f816c2d1/run";
    let volumes = list(json!([volume("59", "db"), volume("60", "log")]));
    let protected = |id: &str, volume_id: &str| {
        let mut entry = cloudsnap(id);
        (entry["volumeId"], entry["lastProof"]) = (json!(volume_id), Value::Null);
        entry
    };
    for (entries, run, verifications) in [
        (vec![], Some(json!(["59", "60"])), 1),
        (vec![protected("59-61", "59")], Some(json!(["60"])), 2),
        (vec![protected("59-61", "59"), protected("60-62", "60")], None, 2),
    ] {
        let mut snapshots = reply("GET /v1/cloudsnaps");
        snapshots["items"] = json!(entries);
        let mut replies = fresh().split_off(2);
        replies.extend([
            schedule_of("selector", json!({ "all": true })),
            ("GET /v1/volumes", ok(volumes.clone())),
            ("GET /v1/cloudsnaps", ok(snapshots)),
        ]);
        let fake = Fake::with_defaults(replies);
        let ran = fake.run("init nas");
        assert!(ran.status == 0 && ran.stdout.contains("2 volumes protected and verified"), "{ran:?}");
        let seen = fake.seen();
        let sent = seen.iter().find(|one| one.line == RUN).map(|one| one.body["volumeIds"].clone());
        assert_eq!(sent, run);
        assert_eq!(seen.iter().filter(|one| one.line == VERIFY).count(), verifications, "{seen:?}");
    }
}

/// Returns a schedule `nas` of all volumes with another value of a field.
fn schedule_of(field: &str, value: Value) -> (&'static str, Reply) {
    let mut schedules = reply(SCHEDULES);
    let schedule = &mut schedules["items"][0];
    (schedule["name"], schedule["selector"]) = (json!("nas"), json!({ "all": true }));
    schedule[field] = value;
    (SCHEDULES, ok(schedules))
}

#[test]
fn init_refuses_an_existing_location_that_differs() {
    for (options, cause) in [
        ("--provider s3", "--provider local instead of s3"),
        ("--provider local --path /srv/other", "--path /srv/backup instead of /srv/other"),
        ("--prefix p", "--prefix - instead of p"),
        ("--s3-endpoint https://h:1/", "--s3-endpoint - instead of h:1"),
        ("--encryption-passphrase x", "stores backups unencrypted"),
        ("--limit-upload 1MiB", "--limit-upload none instead of 1MiB"),
    ] {
        let fake = Fake::with_defaults(Vec::new());
        let ran = fake.run(&format!("init nas --no-backup {options}"));
        assert!(ran.status == 2 && ran.stderr.contains(cause), "{options} {ran:?}");
    }
    for (field, value, options, cause) in [
        ("selector", json!({ "volumeId": "9" }), "", "selects 9 instead of all volumes"),
        ("credentialIds", json!([]), "", "does not back up to nas"),
        ("paused", json!(true), "", "is paused\nhint: blockctl cloudsnap schedules resume nas\n"),
        ("full", json!(false), "--daily 03:00", "other times: daily @21:00"),
        ("full", json!(false), "--max 3", "another retention"),
    ] {
        let fake = Fake::with_defaults(vec![schedule_of(field, value)]);
        let ran = fake.run(&format!("init nas --no-backup {options}"));
        assert!(ran.status == 2 && ran.stderr.contains(cause), "{field} {options} {ran:?}");
    }
}

/// Returns the status of the first check of a subject.
fn verdict<'a>(document: &'a Value, check: &str) -> &'a Value {
    let items = document["items"].as_array().unwrap();
    &items.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("{check}: {document}"))["status"]
}

#[test]
fn doctor_fails_with_a_failed_check() {
    let mut one = reply("GET /v1/credentials");
    one["items"].as_array_mut().unwrap().retain(|one| one["name"] == "nas");
    let credentials = ("GET /v1/credentials", ok(one));
    let fake = Fake::with_defaults(vec![
        credentials.clone(),
        (VALIDATE, fail(502, "store_unreachable", "nothing answers at the store")),
    ]);
    let ran = fake.run("doctor -j");
    assert_eq!(ran.status, 1, "{ran:?}");
    assert_eq!(verdict(&ran.json(), "location"), "failed");
    assert_eq!(verdict(&ran.json(), "daemon"), "ok");
}

#[test]
fn doctor_prints_each_check_as_it_ends() {
    let fake = healthy(vec![(VALIDATE, Reply::Hold)]);
    let mut child = fake.command("doctor").stdout(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
    });
    let printed = std::iter::from_fn(|| lines.recv_timeout(Duration::from_secs(20)).ok());
    let daemon = printed.into_iter().find(|line| line.contains(" daemon "));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(daemon.is_some(), "no check was printed beside a silent location");
}

#[test]
fn doctor_tests_locations_concurrently() {
    let locations = ["nas", "offsite"].map(|name| {
        let mut one = reply("GET /v1/credentials/nas");
        one["name"] = json!(name);
        one
    });
    let both = Arc::new(Barrier::new(2));
    let validated = |location: &Value| Reply::Together(Arc::clone(&both), location.clone());
    let fake = healthy(vec![
        ("GET /v1/credentials", ok(list(json!(locations)))),
        (VALIDATE, validated(&locations[0])),
        ("POST /v1/credentials/offsite/validate", validated(&locations[1])),
    ]);
    let ran = fake.run("doctor");
    let at = |name: &str| ran.stdout.find(&format!(" {name}: works"));
    assert!(at("nas").is_some() && at("nas") < at("offsite"), "{ran:?}");
}

/// Starts a daemon with schedules and without a problem of its own.
fn healthy(more: Vec<(&str, Reply)>) -> Fake {
    let mut schedules = reply(SCHEDULES);
    schedules["unreadable"] = json!([]);
    for one in schedules["items"].as_array_mut().unwrap() {
        (one["overdueAt"], one["paused"]) = (json!(null), json!(false));
    }
    let mut replies = vec![(SCHEDULES, ok(schedules))];
    for empty in ["GET /v1/volumes", "GET /v1/schedule-runs", "GET /v1/tasks", "GET /v1/events"] {
        replies.push((empty, ok(list(json!([])))));
    }
    replies.extend(more);
    Fake::with_defaults(replies)
}

#[test]
fn doctor_is_not_healthy_beside_a_failure() {
    let mut status = reply("GET /v1/status");
    status["problems"] = json!([{
        "kind": "location", "cause": "the check of backup location nas failed", "action": "remove the cause", "detectedAt": "2019-01-16T21:51:53Z"
    }]);
    let fake = healthy(vec![
        ("GET /v1/status", ok(status)),
        (VALIDATE, fail(502, "bucket_missing", "the directory is missing")),
    ]);
    let ran = fake.run("doctor");
    assert!(ran.status == 1 && !ran.stdout.contains("health"), "{ran:?}");
}

#[test]
fn doctor_shows_rights_and_schedules() {
    let mut status = reply("GET /v1/status");
    let checks = |status: &Value| {
        let found = healthy(vec![("GET /v1/status", ok(status.clone()))]).run("doctor -j").json();
        ["rights", "schedules"].map(|check| verdict(&found, check).as_str().unwrap().to_owned())
    };
    assert_eq!(checks(&status), ["ok", "ok"]);
    status["rights"]["kernelDevices"] = json!(false);
    assert_eq!(checks(&status), ["warning", "ok"]);
}

/// The validation of a location that is back ends the problem.
#[test]
fn doctor_shows_the_problems_that_its_checks_left() {
    const STATUS: &str = "GET /v1/status";
    let mut before = reply(STATUS);
    before["problems"] = json!([{
        "kind": "key-slot", "cause": "key slot of credential nas", "action": "validate it", "detectedAt": "2019-01-16T21:51:53Z"
    }]);
    let fake = Fake::with_defaults(vec![(STATUS, ok(before)), (STATUS, ok(reply(STATUS)))]);
    let ran = fake.run("doctor");
    assert!(ran.stdout.contains("nas: works") && !ran.stdout.contains("key slot"), "{ran:?}");
}

fn proof(at: &str) -> Value {
    json!({ "provenAt": at, "kind": "full", "sound": true, "host": "db1", "version": "1.2.3" })
}

#[test]
fn doctor_counts_the_snapshots_of_the_volume_itself() {
    let foreign = "7e4d4b67-95d7-481e-aec5-14223ac55170/59-61";
    let own = snap("59-61");
    for (id, volume_id, volume_name, expected) in [
        (own.as_str(), "59", "old", "blockctl cloudsnap verify"),
        (&snap("60-61"), "60", "db", "blockctl cloudsnap backup"),
        (foreign, "59", "db", "blockctl cloudsnap backup"),
    ] {
        let mut entry = cloudsnap("59-61");
        (entry["cloudSnapshotId"], entry["volumeId"], entry["volumeName"]) =
            (json!(id), json!(volume_id), json!(volume_name));
        let fake = Fake::with_defaults(vec![
            ("GET /v1/volumes", ok(list(json!([volume("59", "db")])))),
            (
                "GET /v1/cloudsnaps",
                ok(
                    json!({ "items": [entry], "next": null, "damaged": [], "failedCredentials": [], "total": 1 }),
                ),
            ),
        ]);
        let found = fake.run("doctor -j").json();
        let mut items = found["items"].as_array().unwrap().iter();
        let action = items.find(|one| one["check"] == "proof").unwrap()["action"].as_str().unwrap();
        assert!(action.starts_with(expected), "{found:#}");
    }
}

#[test]
fn doctor_and_status_show_the_same_proof() {
    let mut volumes = reply("GET /v1/volumes");
    let items = volumes["items"].as_array_mut().unwrap();
    items.truncate(1);
    items[0]["name"] = json!("vol");
    items[0]["lastBackups"][0]["lastProof"] = proof("2019-01-17T03:00:00Z");
    let mut snapshots = reply("GET /v1/cloudsnaps");
    // An older proof of one of its cloud snapshots.
    snapshots["items"][0]["lastProof"] = proof("2019-01-16T22:00:00Z");
    snapshots["items"][0]["volumeId"] = volumes["items"][0]["volumeId"].clone();
    snapshots["failedCredentials"] = json!([]);
    let fake = |snapshots: &Value| {
        Fake::with_defaults(vec![
            ("GET /v1/volumes", ok(volumes.clone())),
            ("GET /v1/cloudsnaps", ok(snapshots.clone())),
        ])
    };
    let status = fake(&snapshots).run("-j status").json();
    let protection = status["protection"].as_array().unwrap();
    let in_nas = protection.iter().find(|one| one["credentialName"] == "nas").unwrap();
    assert_eq!(in_nas["lastProof"], proof("2019-01-17T03:00:00Z"), "{status:#}");
    let checked = |snapshots: &Value| {
        let document = fake(snapshots).run("-j doctor").json();
        let items = document["items"].as_array().unwrap();
        let proof = items.iter().find(|one| one["check"] == "proof").unwrap().clone();
        let text = |name: &str| proof[name].as_str().unwrap_or_default().to_owned();
        (text("status"), text("detail"), text("action"))
    };
    let (status, detail, _) = checked(&snapshots);
    let expected = "volume vol: a backup was verified at Thu, 17 Jan 2019 03:00:00 UTC";
    assert_eq!((status.as_str(), detail.as_str()), ("ok", expected));
    // Only volumes without a schedule need one.
    snapshots["items"] = json!([]);
    let (_, _, action) = checked(&snapshots);
    assert_eq!(action, "blockctl cloudsnap backup vol");
}

#[test]
fn doctor_advises_nothing_for_excluded_volumes() {
    let none = json!({ "items": [], "next": null, "failedCredentials": [], "damaged": [], "total": 0 });
    let checks = |labels: Value| {
        let mut excluded = volume("59", "scratch");
        (excluded["labels"], excluded["lastBackups"]) = (labels, json!([]));
        let mut replies = vec![
            ("GET /v1/volumes", ok(list(json!([excluded])))),
            (SCHEDULES, ok(json!({ "items": [], "next": null, "unreadable": [] }))),
            ("GET /v1/cloudsnaps", ok(none.clone())),
        ];
        for empty in ["GET /v1/schedule-runs", "GET /v1/tasks", "GET /v1/events"] {
            replies.push((empty, ok(list(json!([])))));
        }
        Fake::with_defaults(replies).run("doctor -j").stdout
    };
    let advice = "blockctl cloudsnap schedules create";
    assert!(checks(json!({})).contains(advice));
    let shown = checks(json!({ "backup": "none" }));
    assert!(!shown.contains(advice) && !shown.contains("scratch"), "{shown}");
}

#[test]
fn doctor_without_daemon_names_the_next_action() {
    let ran = crate::support::Ran::of(crate::support::blockctl("doctor").output().unwrap());
    assert!(ran.status == 1 && ran.stdout.contains("-> start it with `blockd --data-dir DIR`"), "{ran:?}");
}

#[test]
fn doctor_reports_an_unlisted_location_once() {
    let fake = Fake::with_defaults(vec![
        (VALIDATE, fail(502, "bucket_missing", "the directory is missing")),
        ("GET /v1/cloudsnaps", fail(502, "bucket_missing", "the directory is missing")),
    ]);
    let ran = fake.run("doctor -j");
    let document = ran.json();
    let items = document["items"].as_array().unwrap().iter();
    let proofs: Vec<_> = items.filter(|one| one["check"] == "proof").map(|one| &one["detail"]).collect();
    assert_eq!(proofs, [&json!("cloud snapshots cannot be listed: the only location")]);
    assert_eq!((ran.status, verdict(&document, "location")), (1, &json!("failed")));
}
