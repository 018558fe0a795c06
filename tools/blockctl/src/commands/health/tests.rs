use super::*;
use serde_json::{Value, json};

const NOW: &str = "2026-11-22T12:00:00Z";

fn known(parts: &Value) -> Known {
    fn part<T: serde::de::DeserializeOwned>(parts: &Value, name: &str) -> Vec<T> {
        let part = parts.get(name).cloned().unwrap_or_else(|| json!([]));
        serde_json::from_value(part).unwrap()
    }
    Known {
        volumes: part(parts, "volumes"),
        schedules: ScheduleList {
            list: part(parts, "schedules").into(),
            unreadable: part(parts, "unreadable"),
        },
        drill_schedules: ScheduleList { list: part(parts, "drillSchedules").into(), unreadable: Vec::new() },
        runs: part(parts, "runs"),
        tasks: part(parts, "tasks"),
        events: part(parts, "events"),
        webhooks: part(parts, "webhooks"),
        reload_failure: parts.get("reloadFailure").map(|one| serde_json::from_value(one.clone()).unwrap()),
        problems: part(parts, "problems"),
        damaged: part(parts, "damaged"),
        anomalies: part(parts, "anomalies"),
        ..Known::default()
    }
}

fn lines(parts: &Value) -> Vec<String> {
    problems(&known(parts), NOW.parse().unwrap()).into_iter().map(|one| one.cause).collect()
}

fn run(id: u64, state: &str) -> Value {
    json!({
        "runId": id, "scheduleId": "00000000-0000-0000-0000-000000000001", "when": null, "plannedAt": NOW, "startedAt": NOW,
        "missed": 0, "volumeId": "7", "volumeName": "db", "credentialId": null, "state": state, "taskId": null,
        "cloudSnapshotId": null, "completedAt": null, "reason": "the store is full"
    })
}

fn volume(name: &str, state: &str) -> Value {
    json!({
        "volumeId": "7", "name": name, "sizeBytes": 0, "labels": {}, "createdAt": NOW, "state": state, "stateReason": "its disk is gone",
        "uri": "", "connections": 0, "dirtyBytes": 0, "allocatedBytes": 0, "snapshotCount": 0, "layers": 0,
        "io": { "reads": 0, "writes": 0, "readBytes": 0, "writtenBytes": 0, "flushes": 0 }, "lastBackups": []
    })
}

fn event(id: u64, at: &str, kind: &str) -> Value {
    json!({
        "eventId": id, "occurredAt": at, "severity": "error", "kind": kind, "volumeName": "db", "credentialName": "nas", "taskId": null,
        "message": format!("{kind} {id}")
    })
}

fn task(state: &str) -> Value {
    json!({
        "taskId": "00000000-0000-0000-0000-000000000001", "type": "backup", "cloudSnapshotId": null, "volumeId": "7",
        "volumeName": "db", "state": state, "node": "host", "owner": { "kind": "daemon" },
        "credentialId": "00000000-0000-0000-0000-000000000002", "credentialName": "nas", "phase": "", "totalBytes": 0,
        "processedBytes": 0, "uploadedBytes": 0, "downloadedBytes": 0, "dirtyBytes": 0,
        "requests": { "put": 0, "get": 0, "list": 0, "delete": 0, "head": 0 }, "freezeStallMicros": null,
        "startedAt": NOW, "completedAt": NOW, "elapsedSeconds": 1.0, "backupType": null, "error": null, "resumed": 0, "version": 1
    })
}

#[test]
fn empty_state_has_no_problems() {
    assert!(lines(&json!({})).is_empty());
}

#[test]
fn newest_run_of_existing_schedules_counts() {
    let schedule = json!([{
        "scheduleId": "00000000-0000-0000-0000-000000000001", "name": "nightly", "selector": {}, "credentialIds": [],
        "rules": [], "policyName": null, "retain": {}, "full": false, "jitterSeconds": 0, "priority": "normal",
        "paused": false, "createdAt": NOW, "nextRunAt": null, "lastRunAt": null, "schedule": ""
    }]);
    let failed =
        json!({ "schedules": schedule, "runs": [run(3, "skipped"), run(2, "failed"), run(1, "done")] });
    assert_eq!(lines(&failed), ["the newest scheduled backup of volume db failed: the store is full"]);
    let action = problems(&known(&failed), NOW.parse().unwrap()).remove(0).action;
    assert!(action.ends_with("blockctl cloudsnap schedules run-now nightly"), "{action}");
    let good = json!({ "schedules": schedule, "runs": [run(2, "done"), run(1, "failed")] });
    assert!(lines(&good).is_empty());
    assert!(lines(&json!({ "runs": [run(1, "failed")] })).is_empty());

    let mut idle = good;
    idle["schedules"][0]["withoutVolume"] = json!(true);
    idle["schedules"][0]["name"] = json!("nightly");
    assert!(lines(&idle).is_empty(), "there is no volume yet");
    idle["volumes"] = json!([volume("db", "up")]);
    assert_eq!(lines(&idle), ["schedule nightly selects no volume"]);
    idle["schedules"][0]["withoutVolume"] = json!(false);
    idle["schedules"][0]["overdueAt"] = json!("2026-11-22T11:00:00Z");
    assert_eq!(
        lines(&idle),
        ["schedule nightly is overdue since Sun, 22 Nov 2026 11:00:00 UTC: it makes no backups"]
    );
    idle["problems"] = json!([{ "kind": "data-directory", "cause": "it is full", "action": "make room", "detectedAt": NOW }]);
    assert_eq!(lines(&idle).first().unwrap(), "it is full", "the worst comes first");
}

#[test]
fn schedule_of_drills_is_reported_like_one_of_backups() {
    let mut schedule = json!({
        "scheduleId": "00000000-0000-0000-0000-000000000001", "name": "drills", "selector": {}, "credentialIds": [],
        "rules": [], "policyName": null, "retain": {}, "full": false, "jitterSeconds": 0, "priority": "normal",
        "paused": false, "createdAt": NOW, "nextRunAt": null, "lastRunAt": null, "schedule": "", "drill": {}
    });
    let failed = json!({ "drillSchedules": [schedule], "runs": [run(2, "failed"), run(1, "done")] });
    assert_eq!(lines(&failed), ["the newest scheduled drill of volume db failed: the store is full"]);
    let action = problems(&known(&failed), NOW.parse().unwrap()).remove(0).action;
    assert!(action.ends_with("blockctl cloudsnap drill schedules run-now drills"), "{action}");
    schedule["withoutVolume"] = json!(true);
    schedule["overdueAt"] = json!("2026-11-22T11:00:00Z");
    let idle = json!({ "drillSchedules": [schedule], "volumes": [volume("db", "up")] });
    assert_eq!(
        lines(&idle),
        [
            "schedule drills is overdue since Sun, 22 Nov 2026 11:00:00 UTC: it makes no drills",
            "schedule drills selects no volume"
        ]
    );
}

#[test]
fn errors_of_the_last_day_are_listed_newest_first() {
    let events = json!({ "events": [
        event(1, "2026-11-21T11:59:00Z", "run-failed"),
        event(2, "2026-11-21T12:01:00Z", "store-unreachable"),
        event(3, "2026-11-22T11:00:00Z", "run-failed"),
    ] });
    assert_eq!(lines(&events), ["run-failed 3", "store-unreachable 2"]);
}

#[test]
fn failure_is_made_good_by_the_same_volume_only() {
    let mut failed = event(1, "2026-11-22T11:00:00Z", "backup-failed");
    failed["volumeId"] = json!("7");
    for (volume, name, causes) in [("7", "renamed", 0), ("8", "db", 1)] {
        let mut done = task("Backup-Done");
        (done["volumeId"], done["volumeName"]) = (json!(volume), json!(name));
        let found = lines(&json!({ "events": [failed], "tasks": [done] }));
        assert_eq!(found.len(), causes, "{name} {found:?}");
    }
}

#[test]
fn failed_drill_or_probe_is_one_problem() {
    let mut failed = event(1, "2026-11-22T11:00:00Z", "drill-failed");
    failed["failedStep"] = json!("probe");
    let cause = "the probe sql failed on volume db at the drill of today";
    let problem = json!({ "kind": "probe", "cause": cause, "action": "", "detectedAt": NOW });
    assert_eq!(lines(&json!({ "events": [failed], "problems": [problem] })), [cause]);
    // A pass of an older point in time follows it.
    failed["failedStep"] = json!("check");
    let (mut done, mut drill) = (task("Drill-Done"), problem.clone());
    (done["completedAt"], drill["kind"]) = (json!("2026-11-23T11:00:00Z"), json!("drill"));
    assert_eq!(lines(&json!({ "events": [failed], "tasks": [done], "problems": [drill] })), [cause]);
    failed["failedStep"] = json!("probe");
    for (member, value) in [("volumeName", json!("web")), ("failedStep", json!("check"))] {
        let mut other = failed.clone();
        other[member] = value;
        assert_eq!(lines(&json!({ "events": [other], "problems": [problem] })).len(), 2, "{member}");
    }
}

#[test]
fn failed_restore_ends_with_repetition_or_deletion() {
    let mut failed = event(1, "2026-11-22T11:00:00Z", "restore-failed");
    failed["cloudSnapshotId"] = json!("c/7-1");
    let causes = |volume: &str, deleted: &str| {
        let (mut done, mut delete) = (task("Restore-Done"), event(2, NOW, "delete-done"));
        (done["volumeId"], done["volumeName"]) = (json!("9"), json!(volume));
        (delete["severity"], delete["cloudSnapshotId"]) = (json!("info"), json!(deleted));
        lines(&json!({ "events": [failed, delete], "tasks": [done] })).len()
    };
    assert_eq!([causes("other", "c/7-2"), causes("db", "c/7-2"), causes("other", "c/7-1")], [1, 0, 0]);
}

#[test]
fn failed_repair_ends_with_the_damage() {
    let snap = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61";
    let mut failed = event(1, "2026-11-22T11:00:00Z", "repair-failed");
    failed["cloudSnapshotId"] = json!(snap);
    let damaged = json!([{
        "cloudSnapshotId": snap, "volumeName": "db", "credentialId": "00000000-0000-0000-0000-000000000002",
        "credentialName": "nas", "foundAt": NOW, "kind": "full", "host": "db1", "action": "repair it"
    }]);
    let is_reported = |state: &str, damaged: &Value| {
        let mut done = task(state);
        done["cloudSnapshotId"] = json!(snap);
        let found = lines(&json!({ "events": [failed], "tasks": [done], "damaged": damaged }));
        found.contains(&"volume db: repair-failed 1".to_owned())
    };
    assert!(is_reported("Backup-Done", &damaged), "the damage is left");
    assert!(!is_reported("Repair-Done", &damaged));
    assert!(!is_reported("Backup-Done", &json!([])), "it was deleted, or verified");
}

#[test]
fn error_event_ends_with_a_later_success() {
    let of = |id: u64, kind: &str, volume: Option<&str>, credential: &str| {
        let mut event = event(id, NOW, kind);
        (event["volumeName"], event["credentialName"]) = (json!(volume), json!(credential));
        event["severity"] = json!(if kind.ends_with("-done") { "info" } else { "error" });
        event
    };
    for (kind, later, ends) in [
        ("store-unreachable", of(2, "backup-done", Some("other"), "nas"), true),
        ("store-unreachable", of(2, "backup-done", Some("db"), "s3"), false),
        ("write-key-refused", of(2, "backup-done", Some("db"), "nas"), true),
    ] {
        let events = json!({ "events": [of(1, kind, Some("db"), "nas"), later] });
        assert_eq!(lines(&events).is_empty(), ends, "{events}");
    }
    let deleted = event(1, NOW, "backing-snapshot-deleted");
    for (name, reported) in [("db", 1), ("other", 0)] {
        let parts = json!({ "events": [deleted], "volumes": [volume(name, "up")] });
        assert_eq!(lines(&parts).len(), reported, "{name}");
    }
    // The daemon reports these states itself, until they end.
    let kinds = ["data-directory-full", "key-slot-damaged", "clock-differs", "clock-unknown"];
    let states: Vec<Value> = kinds.iter().map(|kind| event(1, NOW, kind)).collect();
    assert!(lines(&json!({ "events": states })).is_empty());
}

#[test]
fn repeated_failure_of_a_task_is_reported_once() {
    const TASK: &str = "7f3c2a10-5a0e-4a6c-9d35-0d2f5f0b7a11";
    let failed = |id: u64, kind: &str, volume: &str| {
        let mut event = event(id, NOW, kind);
        (event["taskId"], event["volumeName"]) = (json!(TASK), json!(volume));
        event
    };
    let events = [
        failed(1, "scrub-failed", "db"),
        failed(2, "scrub-failed", "web"),
        failed(3, "scrub-failed", "db"),
        failed(4, "drill-failed", "db"),
    ];
    let parts = json!({ "events": events });
    assert_eq!(
        lines(&parts),
        ["volume db: drill-failed 4", "volume db: scrub-failed 3", "volume web: scrub-failed 2"]
    );
    let actions: Vec<String> =
        problems(&known(&parts), NOW.parse().unwrap()).into_iter().map(|one| one.action).collect();
    assert_eq!(
        actions[..2],
        ["blockctl cloudsnap drill inspect 7f3c2a10", "blockctl cloudsnap status --name 7f3c2a10"]
    );
}

#[test]
fn damaged_cloud_snapshots_are_listed_up_to_a_limit() {
    let snap = |nth: usize| format!("2e4d4b67-95d7-481e-aec5-14223ac55170/59-{}", 61 + nth);
    let damaged = |count: usize| -> Value {
        let one = |nth| {
            json!({
                "cloudSnapshotId": snap(nth), "volumeName": "db", "credentialId": "00000000-0000-0000-0000-000000000002",
                "credentialName": "nas", "foundAt": "2026-10-01T12:00:00Z", "kind": "full", "host": "db1", "action": "delete it"
            })
        };
        (0..count).map(one).collect()
    };
    // Its event adds no problem.
    let events = json!([event(1, NOW, "damage-found")]);
    assert!(lines(&json!({ "events": events })).is_empty());
    let cause = format!(
        "cloud snapshot {} of volume db at nas is damaged: found by a full verification on db1 at Thu, 01 Oct 2026 12:00:00 UTC",
        snap(0)
    );
    assert_eq!(lines(&json!({ "events": events, "damaged": damaged(1) })), [cause]);
    let all = lines(&json!({ "damaged": damaged(MAX_DAMAGED + 2) }));
    assert_eq!((all.len(), all.last().unwrap().as_str()), (21, "damaged beside these: 2 cloud snapshots"));
}

#[test]
fn acknowledged_anomaly_is_no_problem() {
    let events = json!([event(1, NOW, "anomaly-found")]);
    let anomaly = json!({
        "anomalyId": "7f3c2a10-5a0e-4a6c-9d35-0d2f5f0b7a11", "volumeId": "7", "volumeName": "db",
        "credentialId": "00000000-0000-0000-0000-000000000002", "credentialName": "nas",
        "cloudSnapshotId": "2e4d4b67-95d7-481e-aec5-14223ac55170/59-62",
        "lastNormalCloudSnapshotId": "591d4b67-95d7-481e-aec5-14223ac55170/1819154262174038911-4745512035340000001-incr",
        "detectedAt": NOW, "findings": [], "protecting": true
    });
    let volumes = json!([volume("db", "up")]);
    let parts = json!({ "events": events, "anomalies": [anomaly], "volumes": volumes });
    let open = problems(&known(&parts), NOW.parse().unwrap());
    let kinds: Vec<_> = open.iter().map(|one| one.kind.as_str()).collect();
    assert_eq!(kinds, ["anomaly"]);
    assert_eq!(
        open[0].action,
        "check the volume; the last normal backup is 47455120; then blockctl anomaly acknowledge 7f3c2a10"
    );
    assert!(lines(&json!({ "events": events })).is_empty());
    assert!(lines(&json!({ "anomalies": [anomaly] })).is_empty(), "its volume was deleted");
}

#[test]
fn volume_not_served_is_reported_once() {
    let degraded = event(1, NOW, "volume-degraded");
    let failed = json!([volume("db", "failed")]);
    let parts = json!({ "volumes": failed, "events": [degraded] });
    assert_eq!(lines(&parts), ["volume db is not served: its disk is gone"]);
    for volumes in [json!([volume("db", "up")]), json!([])] {
        assert!(lines(&json!({ "volumes": volumes, "events": [degraded] })).is_empty(), "{volumes}");
    }
}

#[test]
fn failed_reload_is_reported_until_success() {
    let events = json!([event(1, NOW, "reload-failed")]);
    assert!(lines(&json!({ "events": events })).is_empty());
    let parts = json!({ "events": events, "reloadFailure": { "failedAt": NOW, "cause": "no such key" } });
    let lines = lines(&parts);
    assert!(lines.len() == 1 && lines[0].ends_with(": no such key"), "{lines:?}");
}

#[test]
fn failing_webhooks_and_undelivered_events_are_reported() {
    let hook = |since: Option<&str>, undelivered: u64| {
        json!({ "webhooks": [{
            "name": "ops", "origin": "https://h", "waiting": 2, "delivered": 1, "undelivered": undelivered,
            "lastDeliveredAt": null, "firstFailedAt": since, "error": since.map(|_| "no answer within 9 ms"),
        }] })
    };
    assert_eq!(
        lines(&hook(Some("2026-11-22T11:00:00Z"), 0)),
        [
            "webhook ops has been failing since Sun, 22 Nov 2026 11:00:00 UTC: no answer within 9 ms; 2 events waiting"
        ]
    );
    assert_eq!(lines(&hook(None, 3)), ["3 events not delivered to webhook ops"]);
    assert!(lines(&hook(None, 0)).is_empty());

    // Reported until a later delivery, or for a day.
    for (undelivered, delivered, is_told) in [
        ("2026-11-22T11:00:00Z", None, true),
        ("2026-11-22T11:00:00Z", Some("2026-11-22T10:59:00Z"), true),
        ("2026-11-22T11:00:00Z", Some("2026-11-22T11:01:00Z"), false),
        ("2026-11-21T11:59:00Z", None, false),
    ] {
        let mut passing = hook(None, 2);
        passing["webhooks"][0]["lastUndeliveredAt"] = json!(undelivered);
        passing["webhooks"][0]["lastDeliveredAt"] = json!(delivered);
        assert_eq!(lines(&passing).is_empty(), !is_told, "{undelivered} {delivered:?}");
    }
}

#[test]
fn unreadable_secret_is_a_problem() {
    let parts = json!({ "unreadable": [{ "scheduleId": "x", "cause": "no such time zone" }] });
    assert_eq!(lines(&parts), ["schedule x makes no backups: no such time zone"]);
}

#[test]
fn failure_of_a_resumable_task_is_shown_once() {
    let shown = |resumable: bool| {
        let (mut failed, mut kept) = (event(1, NOW, "backup-failed"), task("Backup-Failed"));
        (failed["taskId"], kept["resumable"]) = (kept["taskId"].clone(), json!(resumable));
        kept["error"] = json!({ "code": "store_full", "message": "it is full", "hint": null });
        lines(&json!({ "tasks": [kept], "events": [failed] }))
    };
    assert_eq!(shown(true), ["backup of volume db failed, and can be resumed: it is full"]);
    assert_eq!(shown(false), ["backup-failed 1"]);
}
