//! Output of commands and their requests.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use std::sync::{Arc, Barrier};
use support::{CREDENTIAL, Fake, Ran, Reply, TASK, cloudsnap, credential, ok, snap, task, volume};

fn attachment() -> Value {
    json!({
        "device": "/dev/nbd3", "connected": true, "problem": null, "readOnly": true, "persistent": true,
        "timeoutS": 30, "deadTimeoutS": 600, "connections": 2, "blockSizeBytes": 4096,
    })
}

#[test]
fn volume_is_attached_and_detached_by_name_or_device() {
    let mut attached = volume("59", "db");
    attached["attachment"] = attachment();
    let fake = Fake::start(vec![
        ("POST /v1/volumes/db/attach", ok(attachment())),
        ("POST /v1/volumes/db/detach", ok(json!({"name": "db", "device": "/dev/nbd3"}))),
        ("POST /v1/volumes/59/detach", ok(json!({"name": "db", "device": "/dev/nbd3"}))),
        ("GET /v1/volumes/db", ok(attached.clone())),
        ("GET /v1/snapshots", ok(json!({ "snapshots": [] }))),
        ("GET /v1/volumes", ok(json!({ "volumes": [attached] }))),
    ]);
    let ran =
        fake.run("volume attach db --device /dev/nbd3 --read-only --persistent --timeout 1m --connections 2");
    assert_eq!((ran.stdout.as_str(), ran.status), ("Volume db successfully attached at /dev/nbd3.\n", 0));
    let asked = json!({
        "device": "/dev/nbd3", "readOnly": true, "persistent": true, "timeoutS": 60, "deadTimeoutS": null,
        "connections": 2, "blockSizeBytes": null,
    });
    assert_eq!(fake.seen()[0].body, asked);
    assert_eq!(fake.run("volume attach db -j").json(), attachment());
    assert_eq!(fake.run("volume attach db --connections 99").status, 2);
    assert_eq!(fake.run("volume detach db").stdout, "Volume db successfully detached from /dev/nbd3.\n");
    assert_eq!(
        fake.run("volume detach /dev/nbd3 --force").stdout,
        "Volume db successfully detached from /dev/nbd3.\n"
    );
    assert_eq!(fake.seen().last().unwrap().body, json!({"force": true}));
    let error = fake.run("volume detach /dev/nbd4 -j");
    assert_eq!((error.status, error.json()["error"]["code"].as_str()), (5, Some("volume_not_attached")));
    let device = "Device       : /dev/nbd3, read-only, persistent, 2 connections, blocks of 4096 bytes, timeout 30 s, dead timeout 600 s";
    assert!(fake.run("volume inspect db").stdout.contains(device));
}

#[test]
fn volumes_are_listed() {
    let mut failed = volume("980081626967128253", "e");
    failed["state"] = json!("failed");
    failed["stateReason"] = json!("the head is gone\u{1b}[2J");
    let mut attached = volume("56706279008755778", "NewVol");
    attached["attachment"] = attachment();
    let mut lost = volume("7", "lost");
    (lost["attachment"], lost["connections"]) = (attachment(), json!(0));
    (lost["attachment"]["connected"], lost["attachment"]["device"]) = (json!(false), Value::Null);
    let list = json!({ "volumes": [attached, failed, volume("8", "remote"), lost] });
    let fake = Fake::start(vec![("GET /v1/volumes", ok(list))]);
    let ran = fake.run("volume list --label app=mysql,x=y");
    assert_eq!(
        ran.stdout,
        "\
ID                   NAME     SIZE    USED      DIRTY    SNAPSHOTS   DEVICE      STATUS
56706279008755778    NewVol   4 GiB   1.5 GiB   40 MiB   2           /dev/nbd3   up - attached
980081626967128253   e        4 GiB   1.5 GiB   40 MiB   2           -           failed - the head is gone\\u{1b}[2J
8                    remote   4 GiB   1.5 GiB   40 MiB   2           -           up - 1 connection
7                    lost     4 GiB   1.5 GiB   40 MiB   2           -           up - detached
"
    );
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(fake.seen()[0].line, "GET /v1/volumes?label=app%3Dmysql%2Cx%3Dy");

    let colored = fake.run("volume list --color always").stdout;
    assert!(colored.contains("\u{1b}[") && colored.contains("up - attached"));
    assert!(!fake.run("volume list --color never").stdout.contains("\u{1b}"));

    let ran = fake.run("-j --color always volume list");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(ran.json()[0]["id"], "56706279008755778");
}

#[test]
fn volume_is_created_shown_and_deleted() {
    let fake = Fake::start(vec![
        ("POST /v1/volumes", ok(volume("59", "db"))),
        ("GET /v1/volumes/db", ok(volume("59", "db"))),
        ("GET /v1/snapshots", ok(json!({ "snapshots": [snapshot()] }))),
        ("DELETE /v1/volumes/db", ok(json!({"id": "59", "name": "db"}))),
    ]);
    assert_eq!(
        fake.run("volume create db --size 8GiB --label a=b").stdout,
        "Volume successfully created: 59\n"
    );
    assert_eq!(fake.seen()[0].body, json!({"name": "db", "sizeBytes": 8u64 << 30, "labels": {"a": "b"}}));
    assert_eq!(fake.run("volume uri db").stdout, "nbd+unix:///db?socket=/d/nbd.sock\n");
    assert_eq!(fake.run("volume uri db -j").json(), json!({"uri": "nbd+unix:///db?socket=/d/nbd.sock"}));
    assert_eq!(fake.run("volume delete db").stdout, "Volume db successfully deleted.\n");
    assert_eq!(fake.run("volume delete db -j").json(), json!({"id": "59", "name": "db"}));
    assert_eq!(
        fake.run("volume inspect db").stdout,
        format!(
            "\
Volume       : 59
Name         : db
Size         : 4 GiB
Read-only    : no
Labels       : app=mysql
Group        : -
Rule         : -
Created      : Wed, 16 Jan 2019 21:51:53 UTC
Status       : up - 1 connection
URI          : nbd+unix:///db?socket=/d/nbd.sock
Connections  : 1
Device       : -
Used on disk : 1.5 GiB in 3 layers
Merging      : -
Hydration    : -
Shared       : 0 B
Dirty        : 40 MiB
Snapshots    : 2
Reads        : 1, 4 KiB
Writes       : 2, 8 KiB
Flushes      : 3
Last backup  : {} to nas, Wed, 16 Jan 2019 22:27:13 UTC, 1 incremental since the last full
Snapshot     : monday, 8 KiB exclusive, 1 MiB shared
",
            snap("59-61-incr")
        )
    );
    let document = fake.run("-j volume inspect db").json();
    assert_eq!((&document["name"], &document["snapshots"]), (&json!("db"), &json!([snapshot()])));
}

#[test]
fn volume_is_resized_and_made_read_only() {
    let mut changed = volume("59", "db");
    changed["readOnly"] = json!(true);
    let fake = Fake::start(vec![("PATCH /v1/volumes/db", ok(changed))]);
    assert_eq!(fake.run("volume resize db --size 4GiB").stdout, "Volume db successfully resized to 4 GiB.\n");
    assert_eq!(fake.run("volume update db --read-only on").stdout, "Volume db is now read-only.\n");
    assert_eq!(fake.run("volume update db --read-only on -j").json()["readOnly"], true);
    let bodies: Vec<_> = fake.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies[..2], [json!({"sizeBytes": 4u64 << 30}), json!({"readOnly": true})]);
}

fn snapshot() -> Value {
    json!({
        "id": "61", "volume": "db", "volumeId": "59", "name": "monday", "created": "2019-01-16T21:51:53Z", "epoch": 3,
        "freezeStallMicros": 42, "dirtyBytes": 4096, "exclusiveBytes": 8192, "sharedBytes": 1048576, "pinned": false, "state": "ready",
        "export": "db@monday", "uri": "nbd+unix:///db%40monday?socket=/d/nbd.sock"
    })
}

#[test]
fn diff_lists_all_pages() {
    let page = |offset: u64, kind: &str, next: Option<u64>| {
        json!({
            "volume": "db", "from": "monday", "to": null, "fromSizeBytes": 1 << 20, "toSizeBytes": 2 << 20,
            "dataBytes": 8192, "zeroBytes": 4096, "nextOffsetBytes": next,
            "extents": [{"offsetBytes": offset, "lengthBytes": 8192 >> (offset >> 20), "kind": kind}],
        })
    };
    let fake = Fake::start(vec![
        ("GET /v1/volumes/db/diff", ok(page(4096, "data", Some(1 << 20)))),
        ("GET /v1/volumes/db/diff", ok(page(1 << 20, "zero", None))),
    ]);
    let ran = fake.run("snapshot diff db monday");
    let table = "OFFSET    LENGTH   KIND\n4096      8192     data\n1048576   4096     zero\n";
    assert_eq!((ran.stdout.as_str(), ran.status), (table, 0));
    assert!(ran.stderr.contains("2 extents: 8 KiB of data, 4 KiB of zeroes"), "{}", ran.stderr);
    let lines: Vec<_> = fake.seen().into_iter().map(|seen| seen.line).collect();
    let first = "GET /v1/volumes/db/diff?from=db%40monday";
    assert_eq!(
        lines,
        [first.to_owned(), "GET /v1/volumes/db/diff?from=db%40monday&offsetBytes=1048576".to_owned()]
    );
    let document = fake.run("-j snapshot diff db 61 now").json();
    assert_eq!((document["zeroBytes"].as_u64(), document["nextOffsetBytes"].is_null()), (Some(4096), true));
    fake.run("snapshot diff db other@monday 62");
    assert_eq!(fake.seen().last().unwrap().line, "GET /v1/volumes/db/diff?from=other%40monday&to=62");
    assert_eq!(fake.run("snapshot diff db").status, 2);
}

#[test]
fn running_merges_are_shown() {
    let mut merging = volume("59", "db");
    merging["merging"] = json!({"layers": 2, "doneBytes": 1 << 20, "totalBytes": 4 << 20});
    let mut waiting = merging.clone();
    waiting["merging"] = json!({"layers": 1, "doneBytes": 0, "totalBytes": 0});
    let fake = Fake::start(vec![
        ("GET /v1/volumes/db", ok(merging)),
        ("GET /v1/volumes/db", ok(waiting)),
        ("GET /v1/snapshots", ok(json!({ "snapshots": [] }))),
    ]);
    let shown = fake.run("volume inspect db").stdout;
    assert!(shown.contains("\nMerging      : 2 layers, 1 MiB of 4 MiB of the first one done\n"), "{shown}");
    let shown = fake.run("volume inspect db").stdout;
    assert!(shown.contains("\nMerging      : 1 layer\n"), "{shown}");
}

#[test]
fn slow_rollback_shows_progress() {
    let mut db = volume("59", "db");
    db["rollingBack"] = json!({"doneBytes": 1 << 20, "totalBytes": 4 << 20});
    let restored = json!({
        "volume": "db", "snapshot": "monday", "kept": null, "changedBytes": 8192, "copiedBytes": 4096
    });
    // Ends after the volume was requested.
    let both = Arc::new(Barrier::new(2));
    let fake = Fake::start(vec![
        ("POST /v1/volumes/db/rollback", Reply::Together(both.clone(), restored)),
        ("GET /v1/volumes/db", Reply::Together(both, db)),
    ]);
    let ran = fake.run("snapshot restore db --snapshot monday --discard");
    assert_eq!(ran.stderr, "Rolling back: 25% (1 MiB of 4 MiB)\n");
    assert_eq!(ran.stdout, "Volume db successfully restored to snapshot monday (8 KiB changed back).\n");
}

#[test]
fn in_place_restore_shows_progress_and_resume() {
    let with = |done: u64, total: u64, in_part: bool| {
        let mut db = volume("59", "db");
        db["goingBack"] = json!({
            "task": TASK, "cloudsnap": snap("59-61"), "doneBytes": done, "totalBytes": total, "inPart": in_part
        });
        ("GET /v1/volumes", ok(json!({ "volumes": [db] })))
    };
    let fake = Fake::start(vec![with(0, 0, false), with(12 << 20, 100 << 20, false), with(5, 10, true)]);
    for wanted in [
        "up - restoring\n".to_owned(),
        "up - restoring, 12%\n".to_owned(),
        format!("up - restored in part: resume it, `blockctl cloudsnap resume --name {TASK}`\n"),
    ] {
        let shown = fake.run("volume list").stdout;
        assert!(shown.ends_with(&wanted), "{shown}");
    }
}

#[test]
fn attributes_are_compared_with_the_content() {
    let (one, other) = (snap("59-61"), snap("59-62"));
    let file = |path: &str, kind: &str| {
        json!({
            "path": path, "kind": kind, "sizeBytes": 0, "mode": 0o755, "uid": 0, "gid": 0, "modified": null
        })
    };
    let dir = || ok(json!({"file": file("/", "directory"), "entries": [file("/su", "symlink")]}));
    let capable = |value: &str| {
        let xattrs = json!([{"name": "security.capability", "value": value}]);
        ok(json!({"file": file("/su", "symlink"), "entries": [], "xattrs": xattrs}))
    };
    let at = "GET /v1/cloudsnaps/files";
    let fake = Fake::start(vec![
        (at, dir()),
        (at, dir()),
        (at, capable("none")),
        (at, capable("all")),
        (at, dir()),
        (at, dir()),
    ]);
    let ran = fake.run(&format!("cloudsnap diff {one} {other} --files --content"));
    assert_eq!(ran.stdout, "M /su (attributes)\n", "{ran:?}");
    assert_eq!(fake.run(&format!("cloudsnap diff {one} {other} --files")).stdout, "");
}

#[test]
fn volume_is_rolled_back() {
    let restored = |kept: Option<Value>| {
        ok(json!({
            "volume": "db", "snapshot": "monday", "kept": kept, "changedBytes": 8192, "copiedBytes": 4096
        }))
    };
    let fake = Fake::start(vec![
        ("POST /v1/volumes/db/rollback", restored(Some(snapshot()))),
        ("POST /v1/volumes/db/rollback", restored(None)),
    ]);
    assert_eq!(
        fake.run("snapshot restore db --snapshot monday").stdout,
        "Volume db successfully restored to snapshot monday (8 KiB changed back; what it was before is db@monday).\n"
    );
    assert_eq!(
        fake.run("snapshot restore db --snapshot 61 --discard").stdout,
        "Volume db successfully restored to snapshot monday (8 KiB changed back).\n"
    );
    assert_eq!(fake.run("-j snapshot restore db -s monday").json()["copiedBytes"], 4096);
    let bodies: Vec<_> = fake.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(
        bodies[..2],
        [json!({"snapshot": "db@monday", "discard": false}), json!({"snapshot": "61", "discard": true})]
    );
}

#[test]
fn snapshots_are_made_listed_and_deleted() {
    let snapshot = snapshot();
    let fake = Fake::start(vec![
        ("POST /v1/volumes/db/snapshots", ok(snapshot.clone())),
        ("GET /v1/snapshots", ok(json!({ "snapshots": [snapshot] }))),
        ("DELETE /v1/snapshots/db@monday", ok(json!({"id": "61", "name": "monday"}))),
        ("GET /v1/snapshots/db@monday", ok(self::snapshot())),
    ]);
    let ran = fake.run("snapshot create db --name monday");
    assert_eq!(ran.stdout, "Snapshot successfully created: 61 (db@monday, writes held back for 42 µs)\n");
    assert_eq!(
        fake.run("snapshot list db").stdout,
        "\
ID   VOLUME   NAME     CREATED-TIME                    DIRTY   EXCLUSIVE   SHARED   FREEZE   GROUP   KEPT   STATUS
61   db       monday   Wed, 16 Jan 2019 21:51:53 UTC   4 KiB   8 KiB       1 MiB    42 µs    -       -      ready
"
    );
    assert_eq!(fake.run("snapshot delete db@monday").stdout, "Snapshot monday successfully deleted.\n");
    assert_eq!(fake.run("-j snapshot list").json()[0]["epoch"], 3);
    assert_eq!(fake.run("volume uri db@monday").stdout, "nbd+unix:///db%40monday?socket=/d/nbd.sock\n");
    let lines: Vec<_> = fake.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(
        lines,
        [
            "POST /v1/volumes/db/snapshots",
            "GET /v1/snapshots?volume=db",
            "DELETE /v1/snapshots/db@monday",
            "GET /v1/snapshots",
            "GET /v1/snapshots/db@monday"
        ]
    );
    assert_eq!(fake.seen()[0].body, json!({"name": "monday"}));
}

#[test]
fn credentials_are_listed_by_provider() {
    let both = json!({ "credentials": [credential("nas", "local"), credential("my-s3-cred", "s3")] });
    let fake = Fake::start(vec![
        ("GET /v1/credentials", ok(both)),
        ("GET /v1/credentials", ok(json!({ "credentials": [] }))),
        ("GET /v1/credentials/my-s3-cred", ok(credential("my-s3-cred", "s3"))),
        ("POST /v1/credentials/nas/validate", ok(credential("nas", "local"))),
        ("DELETE /v1/credentials/nas", ok(json!({"id": CREDENTIAL, "name": "nas"}))),
    ]);
    let ran = fake.run("cred list");
    assert_eq!(
        ran.stdout,
        "\
S3 Credentials
UUID                                   NAME         REGION      ENDPOINT           ACCESS KEY             SSL ENABLED   ENCRYPTION   BUCKET   CREATE IF ABSENT   WRITE THROUGHPUT (KBPS)
af563a4d-afd7-48df-90f7-8e8f9414ff77   my-s3-cred   us-east-1   70.0.99.121:9010   AB6R80F3SY0VW9NS6HYQ   false         true         bkt      true               1979

Local Credentials
UUID                                   NAME   PATH          ENCRYPTION   CREATE IF ABSENT   WRITE THROUGHPUT (KBPS)
af563a4d-afd7-48df-90f7-8e8f9414ff77   nas    /srv/backup   false        true               -
"
    );
    let ran = fake.run("creds list");
    assert!(ran.stdout.is_empty() && ran.stderr.contains("credentials create --help"), "{ran:?}");
    assert_eq!(fake.run("-j creds list").json(), json!([]));
    let shown = fake.run("cred inspect my-s3-cred").stdout;
    assert!(
        shown.contains("Access key") && shown.contains("Create if absent        : yes, as tried"),
        "{shown}"
    );
    assert_eq!(
        fake.run("credentials validate nas").stdout,
        format!("Credentials validated successfully, UUID:{CREDENTIAL}\n")
    );
    assert_eq!(
        fake.run("credentials delete nas").stdout,
        format!("Credentials deleted successfully, UUID:{CREDENTIAL}\n")
    );
}

#[test]
fn secrets_reach_the_daemon_only() {
    use std::{io::Write, process::Stdio};
    let fake = Fake::start(vec![("POST /v1/credentials", ok(credential("s", "s3")))]);
    let line = "cred create s --provider s3 --s3-endpoint http://h:1 --bucket b --s3-secret-key-file -";
    let mut child = fake
        .command(line)
        .env("AWS_ACCESS_KEY_ID", "AKIA")
        .env("AWS_SECRET_ACCESS_KEY", "not this one")
        .env("BLOCKD_ENCRYPTION_PASSPHRASE", "hunter3")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hunter2\n").unwrap();
    let ran = support::Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.stdout, format!("Credentials created successfully, UUID:{CREDENTIAL}\n"));
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(
        fake.seen()[0].body,
        json!({
            "name": "s",
            "provider": {
                "type": "s3", "endpoint": "h:1", "region": "us-east-1", "bucket": "b", "accessKey": "AKIA",
                "secretKey": "hunter2", "useIam": false, "disableSsl": true, "disablePathStyle": false,
                "storageClass": null
            },
            "connection": {
                "caCertificates": null, "proxy": null, "limitUploadBytesPerS": null,
                "limitDownloadBytesPerS": null
            },
            "encryptionPassphrase": "hunter3"
        })
    );
    let help =
        support::blockctl("cred create --help").env("AWS_SECRET_ACCESS_KEY", "hunter2").output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains("hunter2"));

    let ran = fake.run("cred create n --provider local --path /srv/backup");
    assert_eq!(ran.status, 0);
    let body = &fake.seen()[1].body;
    assert_eq!(body["provider"], json!({"type": "local", "path": "/srv/backup"}));
    assert_eq!(body["encryptionPassphrase"], Value::Null);
}

#[test]
fn damaged_cloudsnaps_are_listed_with_the_cause() {
    let list = json!({
        "cloudsnaps": [cloudsnap("59-60"), cloudsnap("59-61-incr")],
        "damaged": [{"id": snap("59-62-incr"), "credential": CREDENTIAL, "reason": "a bit is flipped"}],
        "failedCredentials": [], "total": 5
    });
    let partial = json!({
        "cloudsnaps": [], "damaged": [], "total": 0, "failedCredentials": [{
            "credential": CREDENTIAL, "name": "s3",
            "error": {"code": "store_unreachable", "message": "no reply from h:1", "hint": null}
        }]
    });
    let fake = Fake::start(vec![
        ("GET /v1/cloudsnaps", ok(list.clone())),
        ("GET /v1/cloudsnaps", ok(list)),
        ("GET /v1/cloudsnaps", ok(partial)),
        (
            "GET /v1/cloudsnaps",
            ok(json!({ "cloudsnaps": [], "damaged": [], "failedCredentials": [], "total": 0 })),
        ),
    ]);
    let ran = fake.run("cs list --src vol -x 2 --status failed --cred-id nas");
    assert_eq!(
        ran.stdout,
        "\
SOURCEVOLUME   SOURCEVOLUMEID   CLOUD-SNAP-ID                                     CREATED-TIME                    TYPE     STATUS
vol            59               2e4d4b67-95d7-481e-aec5-14223ac55170/59-60        Wed, 16 Jan 2019 21:51:53 UTC   Manual   Done
vol            59               2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr   Wed, 16 Jan 2019 21:51:53 UTC   Manual   Done
-              59               2e4d4b67-95d7-481e-aec5-14223ac55170/59-62-incr   -                               -        Damaged
"
    );
    assert_eq!(ran.status, 0);
    assert_eq!(
        ran.stderr,
        format!(
            "warning: {} is damaged and cannot be restored: a bit is flipped\nThe newest 2 of 5 are shown.\n",
            snap("59-62-incr")
        )
    );
    assert_eq!(fake.seen()[0].line, "GET /v1/cloudsnaps?all=false&credId=nas&max=2&src=vol&status=Failed");

    let entries = fake.run("-j cs list").json();
    let statuses: Vec<_> =
        entries.as_array().unwrap().iter().map(|entry| entry["Status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["Done", "Done", "Damaged"]);
    assert_eq!(entries[0]["Metadata"]["sizeBytes"], "2152751104");
    assert_eq!(entries[2]["Metadata"]["reason"], "a bit is flipped");

    let ran = fake.run("-j cs list");
    assert_eq!((ran.status, ran.json()), (1, json!([])));
    assert!(ran.stderr.contains("lacks what is under credentials s3: no reply from h:1"));

    let ran = fake.run("cs list");
    assert!(ran.status == 0 && ran.stdout.lines().count() == 1 && ran.stderr.is_empty(), "{ran:?}");
    assert_eq!(fake.run("cs list --all").stderr, "");
}

#[test]
fn cloudsnap_inspect_prints_all_fields() {
    let mut detail = cloudsnap("59-61-incr");
    detail["Detail"] = json!({
        "volumeSizeBytes": 4u64 << 30, "labels": {}, "snapshotName": "s", "packs": 1, "dataBlocks": 2, "zeroBlocks": 3,
        "chain": [snap("59-60")], "chainStoredBytes": 2 << 20
    });
    let fake = Fake::start(vec![("GET /v1/cloudsnaps/inspect", ok(detail.clone()))]);
    let ran = fake.run(&format!("cs inspect {} --cr nas", snap("59-61-incr")));
    assert_eq!(ran.status, 0);
    for line in [
        "Source volume  : vol (59)",
        "Stored         : 1 MiB in 1 pack",
        "Shares data of : 2e4d4b67",
        "Encrypted      : true",
    ] {
        assert!(ran.stdout.contains(line), "{line}: {}", ran.stdout);
    }
    assert_eq!(
        fake.seen()[0].line,
        "GET /v1/cloudsnaps/inspect?credId=nas&id=2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr"
    );
    assert_eq!(fake.run(&format!("-j cs inspect {}", snap("59-61-incr"))).json(), detail);
}

#[test]
fn tasks_are_started_and_their_ids_printed() {
    let fake = Fake::start(vec![
        ("POST /v1/cloudsnaps/backup", ok(json!({ "task": TASK }))),
        (
            "POST /v1/cloudsnaps/restore",
            ok(json!({ "task": TASK, "volumeId": "104172750626071399", "volume": "new" })),
        ),
        ("POST /v1/cloudsnaps/delete", ok(json!({ "task": TASK }))),
    ]);
    let id = snap("59-60");
    assert_eq!(
        fake.run("cloudsnap backup vol --full --cr nas --limit-upload 10M").stdout,
        "Cloudsnap backup started successfully with id: 3f4f0a67-e12a-4d35-81ad-985657757352\n"
    );
    assert_eq!(
        fake.run(&format!("cloudsnap restore --snap {id} --volume new")).stdout,
        "Cloudsnap restore started successfully on volume: 104172750626071399 with task name:3f4f0a67-e12a-4d35-81ad-985657757352\n"
    );
    assert_eq!(
        fake.run(&format!("cloudsnap delete --snap {id}")).stdout,
        "Cloudsnap delete started successfully with task name:3f4f0a67-e12a-4d35-81ad-985657757352\n"
    );
    assert_eq!(fake.run("-j cs backup vol").json(), json!({ "task": TASK }));
    // A short id may be a prefix, so it is looked up.
    let bodies: Vec<_> =
        fake.seen().into_iter().map(|seen| seen.body).filter(|body| !body.is_null()).collect();
    let limits =
        |upload: Option<u64>| json!({"limitUploadBytesPerS": upload, "limitDownloadBytesPerS": null});
    let of_backup = json!({"volume": "vol", "full": true, "credId": "nas", "limits": limits(Some(10 << 20))});
    assert_eq!(bodies[0], of_backup);
    let of_restore =
        json!({"snap": id, "volume": "new", "skipDamaged": false, "credId": null, "limits": limits(None)});
    assert_eq!(bodies[1], of_restore);
    assert_eq!(bodies[2], json!({"snap": id, "credId": null}));
}

#[test]
fn tasks_are_listed() {
    let tasks =
        json!({ "tasks": [task("Backup-Active", 1), task("Restore-Failed", 2), task("Backup-Done", 3)] });
    let fake = Fake::start(vec![("GET /v1/tasks", ok(tasks)), ("GET /v1/tasks", ok(json!({ "tasks": [] })))]);
    let ran = fake.run("cs status");
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        [
            "NAME",
            "SOURCEVOLUME",
            "STATE",
            "NODE",
            "BYTES-PROCESSED",
            "TIME-ELAPSED",
            "COMPLETED",
            "RATE",
            "ETA"
        ]
    );
    assert_eq!(
        lines[3],
        "3f4f0a67-e12a-4d35-81ad-985657757352   2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr   Backup-Done      host   420044800         17.46s         Wed, 16 Jan 2019 22:27:30 UTC   -           -"
    );
    assert!(lines[1].contains("Backup-Active    host   105011200         17.46s"), "{:?}", lines[1]);
    assert!(lines[1].ends_with("   5.7 MiB/s   52s"), "{:?}", lines[1]);
    // The failure is explained on request, and for an hour.
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let ran = fake.run("cs status --name 3f4f");
    assert_eq!((ran.status, ran.stdout.as_str()), (4, ""));
    assert_eq!(ran.stderr, "error: no task has an id that begins with 3f4f\n");
}

#[test]
fn status_shows_daemon() {
    let status = json!({
        "version": "0.1.0", "clusterId": support::CLUSTER, "node": "host", "dataDir": "/d",
        "nbd": ["nbd+unix:///?socket=/d/nbd.sock"], "uptimeSeconds": 3725,
        "counts": {"volumes": 3, "volumesFailed": 1, "snapshots": 2, "credentials": 1, "tasksActive": 1, "connections": 1}
    });
    let broken =
        json!({ "schedules": [], "unreadable": [{ "uuid": "x", "error": "no time zone Mars/Olympus" }] });
    let fake = Fake::start(vec![
        ("GET /v1/status", ok(status.clone())),
        ("GET /v1/volumes", ok(json!({ "volumes": [] }))),
        ("GET /v1/schedules", ok(broken)),
        ("GET /v1/schedule-runs", ok(json!({ "runs": [] }))),
        ("GET /v1/tasks", ok(json!({ "tasks": [] }))),
        ("GET /v1/events", ok(json!({ "events": [] }))),
    ]);
    assert_eq!(
        fake.run("status").stdout,
        "\
Version        : 0.1.0
Cluster        : 2e4d4b67-95d7-481e-aec5-14223ac55170
Node           : host
Data directory : /d
NBD            : nbd+unix:///?socket=/d/nbd.sock
Uptime         : 1h2m5s
Volumes        : 3 (1 failed), 1 connection
Snapshots      : 2
Credentials    : 1
Active tasks   : 1
Health         : 1 thing to be looked at
- schedule x makes no backups: no time zone Mars/Olympus
    blockctl cloudsnap schedules delete --uuid x, and make it again
"
    );
    let mut document = fake.run("status -j").json();
    assert_eq!(document["troubles"].as_array().map(Vec::len), Some(1));
    document.as_object_mut().unwrap().remove("troubles");
    assert_eq!(document, status);
}

#[test]
fn support_bundle_goes_to_stdout_or_new_file() {
    let fake = Fake::start(Vec::new());
    let ran = fake.run("support-bundle --output - --log-lines 0");
    assert!(ran.status == 0 && ran.json()["blockctl"].is_string(), "{ran:?}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle");
    std::fs::write(&path, "mine").unwrap();
    let ran = fake.run(&format!("support-bundle --log-lines 0 --output {}", path.display()));
    assert!(ran.status == 1 && ran.stderr.contains("hint: it is left as it is"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn color_option_overrides_environment() {
    let fake = Fake::start(vec![("GET /v1/tasks", ok(json!({ "tasks": [task("Backup-Done", 1)] })))]);
    let mut command = fake.command("--color always cs status");
    let ran = Ran::of(command.env("NO_COLOR", "1").output().unwrap());
    assert!(ran.stdout.contains("\u{1b}[38;5;10m") || ran.stdout.contains("\u{1b}[32m"), "{ran:?}");
}

#[test]
fn secrets_readable_by_others_are_reported() {
    use std::os::unix::fs::PermissionsExt;
    let fake = Fake::start(vec![("POST /v1/credentials", ok(credential("nas", "local")))]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("passphrase");
    std::fs::write(&path, "hunter2\n").unwrap();
    for (mode, is_told) in [(0o644, true), (0o600, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let line = format!(
            "credentials create nas --provider local --path /srv --encryption-passphrase-file {}",
            path.display()
        );
        let ran = fake.run(&line);
        assert_eq!(
            (ran.status, ran.stderr.contains("warning: others on this host can read")),
            (0, is_told),
            "{ran:?}"
        );
    }
}

#[test]
fn status_options_active_and_max_filter_tasks() {
    let fake = Fake::start(vec![(
        "GET /v1/tasks",
        ok(json!({ "tasks": [task("Backup-Failed", 1), task("Backup-Active", 1), task("Backup-Done", 1)] })),
    )]);
    let states = |line: &str| -> Vec<String> {
        let tasks = fake.run(line).json();
        tasks.as_array().unwrap().iter().map(|task| task["state"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(states("-j cs status --active"), ["Backup-Active"]);
    assert_eq!(states("-j cs status --max 2"), ["Backup-Failed", "Backup-Active"]);
    // A failure of years ago.
    assert_eq!(fake.run("cs status").stderr, "");
    assert!(fake.run("cs status --name 3f4f").stderr.contains("the directory /srv is full"));
}

#[test]
fn retention_of_zero_is_refused() {
    let fake = Fake::start(Vec::new());
    for line in [
        "cs sched create db --periodic 60 --keep-daily 0",
        "cs sched create db --periodic 60 --local-keep-daily 0",
        "cs sched create db --periodic 60 --keep-last 0",
    ] {
        let ran = fake.run(line);
        assert!(ran.status == 2 && ran.stderr.contains('0'), "{ran:?}");
    }
    assert!(fake.seen().is_empty());
}
