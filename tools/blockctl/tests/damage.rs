//! Damaged cloud snapshots in `status`, and the ends of failed restores.

use crate::support::{Fake, Reply, cloudsnap, list, ok, reply, snap, task, volume};
use serde_json::{Value, json};

const STATUS: &str = "GET /v1/status";
/// Time of the events; recent, as it is in the future.
const FOUND: &str = "2126-01-01T12:00:00Z";
const LATER: &str = "2126-01-01T13:00:00Z";

fn event(id: u64, kind: &str, snapshot: &str) -> Value {
    json!({
        "eventId": id, "occurredAt": FOUND, "severity": if kind.ends_with("-done") { "info" } else { "error" },
        "kind": kind, "volumeName": "old", "credentialName": "nas", "taskId": null, "cloudSnapshotId": snapshot,
        "message": format!("{kind} of {snapshot}")
    })
}

/// Returns the actions of the problems of events.
fn actions(events: &[Value], tasks: &[Value]) -> Vec<String> {
    let replies: Vec<(&str, Reply)> =
        vec![("GET /v1/events", ok(list(json!(events)))), ("GET /v1/tasks", ok(list(json!(tasks))))];
    let status = Fake::with_defaults(replies).run("-j status --check").json();
    let problems = status["problems"].as_array().unwrap().iter();
    let of_events = problems.filter(|one| one["kind"] == "event");
    of_events.map(|one| one["action"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn failed_drill_stays_behind_a_later_verification() {
    let proof = json!({ "provenAt": "2024-01-17T03:00:00Z", "kind": "full", "sound": true, "host": "db1", "version": "1.2.3" });
    for (proof, passed, unchecked, text) in [
        (&proof, false, false, "d full, drill failed"),
        (&Value::Null, false, false, "  drill failed"),
        (&Value::Null, true, true, "d drill, not checked"),
        (&Value::Null, true, false, "d drill"),
        (&proof, true, true, "d full"),
    ] {
        let mut one = cloudsnap("59-61");
        one["lastProof"] = proof.clone();
        one["lastDrill"] = json!({
            "drillId": "00000000-0000-0000-0000-000000000002", "endedAt": "2024-01-16T03:00:00Z", "passed": passed,
            "unchecked": unchecked, "host": "db1", "version": "1.2.3",
        });
        let listed =
            json!({ "items": [one], "next": null, "damaged": [], "failedCredentials": [], "total": 1 });
        let shown = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(listed))]).run("cs list").stdout;
        assert!(shown.trim_end().ends_with(text), "{shown}");
    }
}

#[test]
fn damage_in_the_status_fails_its_check_and_doctor() {
    let id = snap("59-61");
    let mut status = reply(STATUS);
    let run = |status: &Value, line: &str| {
        let replies = [
            ("GET /v1/volumes", list(json!([volume("59", "db")]))),
            ("GET /v1/schedules", json!({ "items": [], "next": null, "unreadable": [] })),
            ("GET /v1/schedule-runs", list(json!([]))),
            ("GET /v1/tasks", list(json!([]))),
            ("GET /v1/events", list(json!([event(1, "damage-found", &id)]))),
            (STATUS, status.clone()),
        ];
        let fake = Fake::with_defaults(replies.map(|(request, body)| (request, ok(body))).into());
        let problems = fake.run(line).json();
        let key = if line.ends_with("doctor") { "items" } else { "problems" };
        let problems = problems[key].as_array().unwrap().iter();
        let of_damage =
            |one: &&Value| one["kind"] == "damage" || one["check"] == "proof" && one["status"] == "failed";
        let found: Vec<_> = problems.filter(of_damage).map(|one| one["action"].clone()).collect();
        let asked = fake.seen().iter().any(|request| request.line == "GET /v1/cloudsnaps");
        (found, asked)
    };
    for line in ["-j status --check", "-j doctor"] {
        assert_eq!(run(&status, line).0, Vec::<Value>::new(), "{line}");
    }
    status["damagedCloudsnaps"] = json!([{
        "cloudSnapshotId": id, "volumeName": "db", "credentialId": "00000000-0000-0000-0000-000000000002",
        "credentialName": "nas", "foundAt": "2019-01-01T12:00:00Z", "kind": "full", "host": "db1", "action": "cure it"
    }]);
    assert_eq!(run(&status, "-j status --check"), (vec![json!("cure it")], false), "no store is asked");
    assert_eq!(run(&status, "-j doctor").0, ["cure it"]);
}

#[test]
fn failed_restore_ends_with_one_of_its_cloud_snapshot() {
    let failed = [event(1, "restore-failed", &snap("59-61"))];
    for (suffix, reported) in [("59-61", 0), ("59-62", 1)] {
        let mut done = task("Restore-Done", 1);
        (done["type"], done["volumeName"]) = (json!("restore"), json!("re2"));
        (done["cloudSnapshotId"], done["completedAt"]) = (json!(snap(suffix)), json!(LATER));
        assert_eq!(actions(&failed, &[done]).len(), reported, "{suffix}");
    }
}

#[test]
fn name_that_begins_the_id_of_another_task_is_refused() {
    const OTHER: &str = "ac9cca8c-e12a-4d35-81ad-985657757352";
    let (mut own, mut other) = (task("Backup-Active", 1), task("Backup-Active", 1));
    own["volumeName"] = json!("ac9c");
    (other["taskId"], other["volumeName"]) = (json!(OTHER), json!("db"));
    for command in ["cloudsnap stop ac9c", "cloudsnap stop ac9c --discard --yes"] {
        let fake = Fake::with_defaults(vec![
            ("GET /v1/tasks", ok(list(json!([other])))),
            ("GET /v1/tasks", ok(list(json!([own, other])))),
        ]);
        let ran = fake.run(command);
        let names_both = [OTHER, own["taskId"].as_str().unwrap()].iter().all(|id| ran.stderr.contains(id));
        assert!(ran.status == 2 && names_both && ran.stderr.contains("several match"), "{ran:?}");
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
}

#[test]
fn latest_of_damaged_backups_names_the_damage() {
    let times = ["2026-11-20T20:59:10Z", "2026-11-20T21:00:30Z", "2026-11-21T21:00:30Z"];
    let entries: Vec<Value> = ["59-61", "59-62-incr", "59-63-incr"]
        .iter()
        .zip(times)
        .map(|(suffix, created)| {
            let mut entry = cloudsnap(suffix);
            (entry["cloudSnapshotId"], entry["volumeId"]) = (json!(snap(suffix)), json!("59"));
            (entry["volumeName"], entry["createdAt"]) = (json!("db"), json!(created));
            (entry["credentialName"], entry["status"]) = (json!("nas"), json!("Damaged"));
            entry["lastProof"] = json!({
                "provenAt": FOUND, "kind": "full", "sound": false, "host": "db1", "version": "1.2.3"
            });
            entry
        })
        .collect();
    let list = json!({ "items": entries, "next": null, "damaged": [], "failedCredentials": [], "total": 3 });
    let fake = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(list))]);
    let damaged = i32::from(blockd_api::ErrorCode::CloudsnapDamaged.exit_status());
    for (line, id) in [
        ("cs restore db --at 2026-11-20T21:00", snap("59-62-incr")),
        ("cs verify db@latest", snap("59-63-incr")),
    ] {
        let ran = fake.run(line);
        let cause = format!("cloud snapshot {id} is damaged");
        let ways = ["repair", "restore"].map(|way| format!("blockctl cloudsnap {way} {id} "));
        assert_eq!(ran.status, damaged, "{line} {ran:?}");
        assert!(ran.stderr.contains(&cause) && ways.iter().all(|way| ran.stderr.contains(way)), "{ran:?}");
    }
    fake.run("cs inspect db@latest");
    let inspected = fake.seen().pop().unwrap();
    assert!(inspected.line.contains("/v1/cloudsnaps/inspect"), "{inspected:?}");
}

/// The newest intact one is older, and a copy of the newest at another location is intact.
#[test]
fn repair_of_latest_selects_the_newest_damaged_copy() {
    let entry = |suffix: &str, created: &str, status: &str, location: &str| {
        let mut entry = cloudsnap(suffix);
        (entry["cloudSnapshotId"], entry["volumeId"]) = (json!(snap(suffix)), json!("59"));
        (entry["volumeName"], entry["createdAt"]) = (json!("db"), json!(created));
        (entry["credentialName"], entry["status"]) = (json!(location), json!(status));
        entry
    };
    const NEWEST: &str = "2026-11-21T21:00:30Z";
    let entries = [
        entry("59-61", "2026-11-20T20:59:10Z", "Done", "nas"),
        entry("59-62", NEWEST, "Damaged", "nas"),
        entry("59-63", NEWEST, "Done", "s3"),
    ];
    let damaged = |created: &str| {
        let credential = "00000000-0000-0000-0000-000000000002";
        json!([{ "cloudSnapshotId": snap("59-64"), "status": "Damaged", "credentialId": credential, "credentialName": "nas", "createdAt": created, "reason": "" }])
    };
    for (damaged, expected) in [
        (json!([]), "59-62"),
        (damaged("2026-11-20T21:00:00Z"), "59-62"),
        (damaged("2026-11-21T21:00:31Z"), "59-64"),
    ] {
        let list = json!({ "items": entries, "next": null, "damaged": damaged, "failedCredentials": [], "total": 3 });
        let fake = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(list))]);
        let ran = fake.run("cs repair db@latest");
        let sent = fake.seen().pop().unwrap();
        assert_eq!(sent.body["cloudSnapshotId"], snap(expected), "{ran:?}");
    }
}

/// Another host made it under a data key that this one lacks.
#[test]
fn latest_names_a_later_one_that_it_skips() {
    let mut entry = cloudsnap("59-61");
    (entry["cloudSnapshotId"], entry["volumeId"]) = (json!(snap("59-61")), json!("59"));
    (entry["completedAt"], entry["volumeName"]) = (json!("2026-11-20T21:00:00Z"), json!("db"));
    for (stored, skipped) in [("2026-11-20T20:59:59Z", 0), ("2026-11-20T21:00:01Z", 1)] {
        let unreadable = json!({
            "cloudSnapshotId": snap("59-64"), "status": "Unreadable", "credentialId": entry["credentialId"],
            "credentialName": "nas", "storedAt": stored, "reason": "unknown key", "hint": "load the key"
        });
        let list = json!({ "items": [entry], "next": null, "damaged": [unreadable], "failedCredentials": [], "total": 1 });
        let fake = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(list))]);
        let ran = fake.run("cs verify db@latest");
        let warning = format!("a later one, {}, is skipped (Unreadable)", snap("59-64"));
        assert_eq!((ran.status, ran.stderr.matches(&warning).count()), (0, skipped), "{ran:?}");
        let listed = fake.run("cs list");
        assert!(
            listed.stdout.contains("Unreadable") && listed.stderr.contains("hint: load the key"),
            "{listed:?}"
        );
    }
}
