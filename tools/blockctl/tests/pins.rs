//! Requests and display of pins and expiry dates.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::{CLUSTER, Fake, TASK, cloudsnap, credential, fail, ok, snap, volume};

#[test]
fn pin_and_expiry_are_sent_and_shown() {
    let mark = |pinned: bool, expires: Value| {
        ok(json!({ "id": snap("59-61"), "pinned": pinned, "expires": expires }))
    };
    let (mut pinned, mut dated) = (cloudsnap("59-61"), cloudsnap("59-62-incr"));
    pinned["Metadata"]["pinned"] = json!("true");
    pinned["Metadata"]["expires"] = json!("Sun, 31 Jan 2027 00:00:00 UTC");
    dated["Metadata"]["expires"] = json!("Sun, 31 Jan 2027 00:00:00 UTC");
    let list = json!({
        "cloudsnaps": [pinned, dated, cloudsnap("59-63-incr")], "damaged": [], "failedCredentials": [], "total": 3,
    });
    let fake = Fake::start(vec![
        ("POST /v1/cloudsnaps/mark", mark(true, Value::Null)),
        ("POST /v1/cloudsnaps/mark", mark(false, Value::Null)),
        ("POST /v1/cloudsnaps/mark", mark(false, json!("2027-01-31T00:00:00Z"))),
        ("POST /v1/cloudsnaps/mark", mark(true, json!("2027-01-31T00:00:00Z"))),
        ("GET /v1/cloudsnaps", ok(list)),
        ("POST /v1/cloudsnaps/delete", fail(409, "cloudsnap_pinned", "it is pinned")),
        ("POST /v1/cloudsnaps/delete", ok(json!({ "task": TASK }))),
        ("POST /v1/cloudsnaps/backup", ok(json!({ "task": TASK }))),
    ]);
    let id = snap("59-61");
    let told = |line: &str| fake.run(&line.replace("ID", &id)).stdout;
    assert_eq!(told("cs pin --snap ID --cr nas"), format!("Cloudsnap {id} is pinned.\n"));
    assert_eq!(told("cs unpin --snap ID"), format!("Cloudsnap {id} is kept as rules say.\n"));
    assert_eq!(
        told("cs expire --snap ID --at 2027-01-31"),
        format!("Cloudsnap {id} expires on Sun, 31 Jan 2027 00:00:00 UTC.\n")
    );
    assert!(told("cs expire --snap ID --never").contains("is pinned; without that it would expire on"));
    let asked: Vec<Value> = fake.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(
        asked,
        [
            json!({"snap": id, "credId": "nas", "pinned": true}),
            json!({"snap": id, "credId": null, "pinned": false}),
            json!({"snap": id, "credId": null, "expires": "2027-01-31T00:00:00Z"}),
            json!({"snap": id, "credId": null, "neverExpires": true}),
        ]
    );
    let table = told("cs list");
    let kept: Vec<&str> = table.lines().map(|line| line.rsplit("   ").next().unwrap().trim()).collect();
    assert_eq!(kept, ["KEPT", "pinned", "until Sun, 31 Jan 2027 00:00:00 UTC", "-"]);

    let refused = fake.run(&format!("-j cs delete --snap {id}"));
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (5, Some("cloudsnap_pinned")));
    assert_eq!(fake.run(&format!("cs delete --force --snap {id}")).status, 0);
    assert_eq!(fake.seen().last().unwrap().body, json!({"snap": id, "credId": null, "force": true}));
    fake.run("cs backup db --expires 2027-01-31 --pin");
    let body = fake.seen().last().unwrap().body.clone();
    assert_eq!((&body["expires"], &body["pinned"]), (&json!("2027-01-31T00:00:00Z"), &json!(true)));
}

#[test]
fn object_with_a_pinned_backup_is_not_deleted_in_part() {
    let backup = |suffix: &str, volume: (&str, &str), pinned: Value| {
        let mut found = cloudsnap(suffix);
        (found["SrcVolumeID"], found["SrcVolumeName"]) = (json!(volume.0), json!(volume.1));
        (found["Metadata"]["snapshotName"], found["Metadata"]["pinned"]) = (json!("before"), pinned);
        found
    };
    let (db, log) = (("59", "db"), ("60", "log"));
    let listed = |pinned: Value| {
        let found = [backup("59-61", db, Value::Null), backup("60-62", log, pinned)];
        ok(json!({ "cloudsnaps": found, "damaged": [], "failedCredentials": [], "total": 2 }))
    };
    let counts = json!({
        "volumes": 2, "volumesFailed": 0, "snapshots": 0, "credentials": 1, "tasksActive": 0, "connections": 0
    });
    let status = json!({
        "version": "0", "clusterId": CLUSTER, "node": "host", "dataDir": "/d", "nbd": [], "uptimeSeconds": 1, "counts": counts
    });
    let fake = Fake::start(vec![
        ("GET /v1/credentials", ok(json!({ "credentials": [credential("nas", "local")] }))),
        ("GET /v1/rules", ok(json!({ "rules": [] }))),
        ("GET /v1/sched-policies", ok(json!({ "policies": [] }))),
        ("GET /v1/schedules", ok(json!({ "schedules": [] }))),
        ("GET /v1/volumes", ok(json!({ "volumes": [volume(db.0, db.1), volume(log.0, log.1)] }))),
        ("GET /v1/tasks", ok(json!({ "tasks": [] }))),
        ("GET /v1/status", ok(status)),
        ("GET /v1/cloudsnaps", listed(json!("true"))),
        ("POST /v1/cloudsnaps/delete", ok(json!({ "task": TASK }))),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup.yaml");
    let object = "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: before}\n\
        spec: {backupLocation: nas, selectors: {app: mysql}, reclaimPolicy: Delete}\n";
    std::fs::write(&file, object).unwrap();
    for dry in ["", " --dry-run"] {
        let refused = fake.run(&format!("-j delete -f {}{dry}", file.display()));
        assert_eq!(refused.status, 5, "{refused:?}");
        let error = &refused.json()["error"];
        assert_eq!(error["code"], "cloudsnap_pinned");
        let id = snap("60-62");
        assert!(error["message"].as_str().unwrap().contains(&format!("unpin --snap {id}")), "{error}");
    }
    assert!(fake.seen().iter().all(|seen| !seen.line.starts_with("POST")), "{:?}", fake.seen());
}
