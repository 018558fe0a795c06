//! Clones: their volumes, names and order.

use crate::{
    labels::check,
    plans::{backup, labelled, run_on, with_volumes},
    support::{Fake, list, ok, reply, snap, task, volume},
};
use serde_json::{Value, json};

/// Starts a daemon with volumes, and local snapshots of a name: ids of the volumes.
fn with_snapshots(volumes: &[Value], name: &str, of: &[&str]) -> Fake {
    let taken = |id: &&str| {
        let mut taken = reply("GET /v1/snapshots/db@monday");
        (taken["name"], taken["volumeId"]) = (json!(name), json!(id));
        taken
    };
    let created = ok(reply("POST /v1/volumes"));
    Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!(volumes)))),
        ("GET /v1/snapshots", ok(list(of.iter().map(taken).collect::<Vec<_>>()))),
        ("POST /v1/volumes/log/snapshots", ok(reply("GET /v1/snapshots/db@monday"))),
        ("POST /v1/volumes/log/clone", created),
    ])
}

/// Returns a volume that an object cloned.
fn cloned(id: &str, name: &str, by: &str, from: &str) -> Value {
    labelled(id, name, json!({ "cloned-by": by, "cloned-from": from }))
}

#[test]
fn clones_follow_their_source_through_names() {
    let volumes = [volume("59", "db"), cloned("2", "db-test", "cl", "was@clone-1")];
    let fake = with_snapshots(&volumes, "clone-1", &["59"]);
    check(&fake, ("VolumeClone", "cl", "sourceVolume: db"), None);
    // Another volume has no such snapshot, also if a snapshot of the file has the name.
    let snapshot = ("VolumeSnapshot", "snap", "volume: db");
    let clone = ("VolumeClone", "other", "sourceVolume: db-test, snapshot: snap");
    let ran = run_on(&fake, "apply --dry-run", &[snapshot, clone]);
    assert!(ran.status == 4 && ran.stderr.contains("there is no snapshot db-test@snap"), "{ran:?}");
    // The snapshot has a name.
    let volumes = [volume("59", "db"), cloned("2", "x", "cl", "was@first")];
    let fake = with_snapshots(&volumes, "first", &["59"]);
    check(&fake, ("VolumeClone", "cl", "sourceVolume: db, snapshot: first, destinationVolume: x"), None);
}

#[test]
fn clone_of_one_volume_is_none_of_another() {
    let labels = json!({ "namespace": "shop", "app": "mysql", "restored-by": "rr" });
    let of_shop = |id: &str, name: &str| labelled(id, name, labels.clone());
    let mut volumes = vec![of_shop("59", "data"), of_shop("60", "log")];
    volumes.push(cloned("1", "data-test", "cl", "data@clone-1"));
    let object = ("VolumeClone", "cl", "sourceNamespace: shop, destinationNamespace: test");
    // Both sources have the snapshot, which was taken of them together.
    let fake = with_snapshots(&volumes, "clone-1", &["59", "60"]);
    assert_eq!(run_on(&fake, "diff", &[object]).status, 1);
    let ran = run_on(&fake, "apply", &[object]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "VolumeClone/cl created\n"), "{ran:?}");
    // The missing clone has the point in time of the other one.
    assert_eq!(fake.changes(), ["POST /v1/volumes/log/clone"]);
    let sent = fake.seen().into_iter().find(|seen| seen.line.starts_with("POST ")).unwrap();
    // Its labels are those of its source, and its own origin.
    let labels =
        json!({ "app": "mysql", "namespace": "test", "cloned-by": "cl", "cloned-from": "log@clone-1" });
    assert_eq!((&sent.body["snapshot"], &sent.body["labels"]), (&json!("log@clone-1"), &labels));
    let fake = with_snapshots(&volumes, "clone-1", &["59"]);
    let words = "VolumeClone/cl: volume log has no snapshot of the point in time of data-test\nhint: delete these clones";
    for (command, status) in [("apply", 5), ("apply --dry-run", 5), ("diff", 1)] {
        let ran = run_on(&fake, command, &[object]);
        assert!(ran.status == status && ran.stderr.contains(words), "{command} {ran:?}");
    }
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    // Also that of a clone whose object was deleted.
    let mut forgotten = volumes.clone();
    forgotten[2]["labels"] = json!({ "cloned-before": "cl", "cloned-from": "data@clone-1" });
    let ran = run_on(&with_snapshots(&forgotten, "clone-1", &["59"]), "apply", &[object]);
    assert!(ran.status == 5 && ran.stderr.contains(words), "{ran:?}");
    volumes.push(cloned("2", "log-test", "cl", "log@clone-1"));
    for volumes in [&volumes[..], &volumes[1..]] {
        let fake = with_snapshots(volumes, "clone-1", &["59", "60"]);
        check(&fake, object, None);
        assert_eq!(run_on(&fake, "apply", &[object]).stderr, "");
    }
}

#[test]
fn clones_are_no_sources_of_their_own_object() {
    let labels = json!({ "cloned-by": "cl", "cloned-from": "data@clone-1", "namespace": "shop" });
    let volumes =
        [labelled("59", "data", json!({ "namespace": "shop" })), labelled("1", "data-test", labels)];
    let fake = with_snapshots(&volumes, "clone-1", &["59"]);
    check(&fake, ("VolumeClone", "cl", "sourceNamespace: shop, destinationNamespace: test"), None);
    let spec = "sourceNamespace: shop, destinationNamespace: shop";
    let ran = run_on(&fake, "apply", &[("VolumeClone", "cl", spec)]);
    let words = "line 4: spec.destinationNamespace: another one than `sourceNamespace` is expected";
    assert!(ran.status == 2 && ran.stderr.contains(words), "{ran:?}");
}

#[test]
fn clone_of_another_object_is_refused() {
    let fake =
        with_snapshots(&[volume("59", "db"), cloned("1", "x", "first", "db@clone-1")], "clone-1", &["59"]);
    let spec = "sourceVolume: db, destinationVolume: x";
    check(&fake, ("VolumeClone", "first", spec), None);
    let words = "VolumeClone/second: volume x exists and is the clone of VolumeClone/first: delete it first";
    for (command, status) in [("apply", 5), ("apply --dry-run", 5), ("diff", 1)] {
        let ran = run_on(&fake, command, &[("VolumeClone", "second", spec)]);
        assert!(ran.status == status && ran.stderr.contains(words), "{command} {ran:?}");
    }
}

#[test]
fn clone_of_a_deleted_object_is_of_its_name_only() {
    let spec = "sourceVolume: db, destinationVolume: x";
    let by_hand = json!({ "cloned-from": "db@clone-1" });
    let mut of_deleted = by_hand.clone();
    of_deleted["cloned-before"] = json!("first");
    for (labels, words) in [
        (
            of_deleted.clone(),
            "volume x exists and is the clone of a deleted VolumeClone/first: delete it first",
        ),
        (by_hand, "volume x exists and is a clone that no object made: delete it first"),
    ] {
        let fake = with_snapshots(&[volume("59", "db"), labelled("1", "x", labels)], "clone-1", &["59"]);
        for (command, status) in [("apply", 5), ("apply --dry-run", 5), ("diff", 1)] {
            let ran = run_on(&fake, command, &[("VolumeClone", "second", spec)]);
            assert!(ran.status == status && ran.stderr.contains(words), "{command} {ran:?}");
        }
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
    let fake = with_snapshots(&[volume("59", "db"), labelled("1", "x", of_deleted)], "clone-1", &["59"]);
    let ran = run_on(&fake, "apply --dry-run", &[("VolumeClone", "first", spec)]);
    assert_eq!(ran.stdout, "VolumeClone/first configured (dry run)\n", "{ran:?}");
}

#[test]
fn clones_are_applied_after_those_of_their_source() {
    let fake = with_snapshots(&[volume("59", "db")], "monday", &["59"]);
    let clone = |name, spec| ("VolumeClone", name, spec);
    let chain = [
        clone("c", "sourceVolume: b"),
        clone("b", "sourceVolume: a"),
        clone("a", "sourceVolume: db"),
        clone("all", "sourceNamespace: shop, destinationNamespace: test"),
    ];
    let ran = run_on(&fake, "apply --dry-run", &chain[..3]);
    let order =
        "VolumeClone/a created (dry run)\nVolumeClone/b created (dry run)\nVolumeClone/c created (dry run)\n";
    assert_eq!((ran.status, ran.stdout.as_str()), (0, order), "{ran:?}");
    let ran = run_on(&fake, "apply --dry-run", &chain);
    assert!(ran.stderr.contains("VolumeClone/all failed; not tried: VolumeClone/a, "), "{ran:?}");
    for circular in [
        &[clone("x", "sourceVolume: x")][..],
        &[clone("a", "sourceVolume: b"), clone("b", "sourceVolume: a")],
    ] {
        let ran = run_on(&fake, "apply --dry-run", circular);
        let words = "line 4: spec.sourceVolume: the volume would be a clone of itself";
        assert!(ran.status == 2 && ran.stderr.contains(words), "{ran:?}");
    }
}

#[test]
fn labels_without_room_are_refused() {
    let long = "x".repeat(128);
    let fake = with_snapshots(&[volume("59", &long)], &long, &["59"]);
    let spec = format!("sourceVolume: {long}, snapshot: {long}");
    let ran = run_on(&fake, "apply --dry-run", &[("VolumeClone", "cl", &spec)]);
    let words = "line 4: spec.snapshot: the value of";
    assert!(ran.status == 2 && ran.stderr.contains(words), "{ran:?}");

    let labels: serde_json::Map<_, _> = (0..63).map(|n| (format!("label-{n}"), json!("x"))).collect();
    let mut one = backup("59-61", "good", ("59", "db"));
    one["labels"] = json!(labels);
    let volumes = [volume("59", "db"), labelled("1", "full", json!(labels))];
    let words = |volume: &str| {
        format!("VolumeRestore/rr: volume {volume} with the labels of this restore: 65 labels")
    };
    for (labels, volume, more) in [(json!(labels), "new", ""), (json!({}), "full", ", replacePolicy: Delete")]
    {
        one["labels"] = labels;
        let fake = with_volumes(&volumes, std::slice::from_ref(&one), &[]);
        let spec = format!("backupLocation: nas, backupName: good, destinationVolume: {volume}{more}");
        for (command, status) in [("apply", 2), ("apply --dry-run", 2), ("diff", 1)] {
            let ran = run_on(&fake, command, &[("VolumeRestore", "rr", &spec)]);
            assert!(ran.status == status && ran.stderr.contains(&words(volume)), "{command} {ran:?}");
        }
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
}

#[test]
fn hydration_of_a_clone_is_no_restore() {
    let mut lazy = cloned("1", "copy", "cl", "db@clone-1");
    lazy["hydration"] = json!({
        "cloudSnapshotId": snap("59-61"), "credentialId": "af563a4d-afd7-48df-90f7-8e8f9414ff77", "doneBytes": 0,
        "totalBytes": 4096, "inBackground": true, "onStoreLoss": "stall", "waitingRequests": 0
    });
    let complete = cloned("1", "copy", "cl", "db@clone-1");
    for (volume, state) in
        [(&lazy, "Restore-Active"), (&lazy, "Restore-Stopped"), (&complete, "Restore-Done")]
    {
        let mut hydration = task(state, 1);
        (hydration["volumeId"], hydration["volumeName"]) = (json!("1"), json!("copy"));
        (hydration["cloudSnapshotId"], hydration["resumable"]) =
            (json!(snap("59-61")), json!(state == "Restore-Stopped"));
        let stored = backup("59-61", "good", ("59", "db"));
        let fake = with_volumes(std::slice::from_ref(volume), &[stored], &[hydration]);
        assert_eq!(fake.run("get vr,vc -o name").stdout, "VolumeClone/cl\n", "{state}");
        let spec = "backupLocation: nas, backupName: good, destinationVolume: copy, replacePolicy: Delete";
        let ran = run_on(&fake, "apply --dry-run", &[("VolumeRestore", "rr", spec)]);
        assert_eq!(ran.stdout, "VolumeRestore/rr created (dry run)\n", "{state} {ran:?}");
    }
}

#[test]
fn deleted_clone_keeps_its_volumes_and_is_not_listed() {
    let made = cloned("1", "db-test", "cl", "db@clone-1");
    let fake = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([volume("59", "db"), made])))),
        ("GET /v1/volumes/1", ok(made.clone())),
        ("PATCH /v1/volumes/1", ok(made)),
    ]);
    let ran = fake.run("delete vc cl");
    let line = "VolumeClone/cl deleted, volumes kept: db-test\n";
    assert_eq!((ran.status, ran.stdout.as_str()), (0, line), "{ran:?}");
    let sent = fake.seen().into_iter().find(|seen| seen.line.starts_with("PATCH ")).unwrap();
    assert_eq!(sent.body["labels"], json!({ "cloned-before": "cl", "cloned-from": "db@clone-1" }));
    let left = labelled("1", "db-test", sent.body["labels"].clone());
    let fake = with_snapshots(&[volume("59", "db"), left.clone()], "clone-1", &["59"]);
    assert_eq!(fake.run("get vc").stderr, "no VolumeClone\n");
    // Applied again, the object has its volume again.
    let fake = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([volume("59", "db"), left])))),
        ("GET /v1/volumes/1", ok(left.clone())),
        ("PATCH /v1/volumes/1", ok(left)),
    ]);
    let object = ("VolumeClone", "cl", "sourceVolume: db, destinationVolume: db-test");
    let ran = run_on(&fake, "diff", &[object]);
    assert!(ran.status == 1 && ran.stdout.contains("+   metadata.labels.cloned-by: \"cl\""), "{ran:?}");
    let ran = run_on(&fake, "apply --dry-run", &[object]);
    assert_eq!((ran.stdout.as_str(), fake.changes().len()), ("VolumeClone/cl configured (dry run)\n", 0));
    let ran = run_on(&fake, "apply", &[object]);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "VolumeClone/cl configured\n"), "{ran:?}");
    assert_eq!(fake.changes(), ["PATCH /v1/volumes/1"]);
    let sent = fake.seen().into_iter().find(|seen| seen.line.starts_with("PATCH ")).unwrap();
    assert_eq!(sent.body["labels"], json!({ "cloned-by": "cl", "cloned-from": "db@clone-1" }));
}

#[test]
fn clone_beside_a_namespace_is_no_member_of_it() {
    let shop = labelled("59", "log", json!({ "namespace": "shop", "app": "mysql" }));
    let fake = with_snapshots(std::slice::from_ref(&shop), "clone-1", &[]);
    let beside = ("VolumeClone", "qv", "sourceVolume: log");
    assert_eq!(run_on(&fake, "apply", &[beside]).stdout, "VolumeClone/qv created\n");
    let sent = fake.seen().into_iter().find(|seen| seen.line.ends_with("/clone")).unwrap();
    let labels = &sent.body["labels"];
    assert_eq!((&labels["app"], &labels["namespace"]), (&json!("mysql"), &Value::Null), "{labels}");
    let made = labelled("2", "qv", labels.clone());
    let of_all = cloned("3", "log-test", "all", "log@clone-1");
    let fake = with_snapshots(&[shop, made, of_all], "clone-1", &["59"]);
    let all = ("VolumeClone", "all", "sourceNamespace: shop, destinationNamespace: test");
    check(&fake, all, None);
}

#[test]
fn clone_names_the_schedules_of_its_labels() {
    let mut schedule = reply("GET /v1/schedules")["items"][0].take();
    (schedule["name"], schedule["selector"]) = (json!("shops"), json!({ "label": "app=mysql" }));
    let clone = labelled("2", "log-test", json!({ "app": "mysql", "cloned-by": "cl" }));
    let fake = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([labelled("1", "log", json!({ "app": "mysql" }))])))),
        ("GET /v1/snapshots", ok(list(json!([])))),
        ("GET /v1/schedules", ok(list(json!([schedule])))),
        ("POST /v1/volumes/log/snapshots", ok(reply("GET /v1/snapshots/db@monday"))),
        ("POST /v1/volumes/log/clone", ok(clone)),
    ]);
    let ran =
        run_on(&fake, "apply", &[("VolumeClone", "cl", "sourceVolume: log, destinationVolume: log-test")]);
    let note = "note: log-test is backed up by the schedule shops from now on\n";
    assert!(ran.status == 0 && ran.stderr.contains(note), "{ran:?}");
}
