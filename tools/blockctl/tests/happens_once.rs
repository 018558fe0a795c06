//! A restore happens once: its volumes are known by their labels, and tasks tell only the progress.

use crate::{
    plans::{backup, labelled, run_on, with_volumes},
    support::{Fake, TASK, fail, list, ok, reply, snap, task, volume},
};
use serde_json::{Value, json};

/// Specification of a restore into the volume `acc`.
pub const INTO_ACC: &str = "backupLocation: nas, backupName: good, destinationVolume: acc";
/// The same for an existing volume.
pub const REPLACING: &str =
    "backupLocation: nas, backupName: good, destinationVolume: acc, replacePolicy: Delete";
/// Another task.
const OTHER_TASK: &str = "4f4f0a67-e12a-4d35-81ad-985657757352";

/// Labels of a volume that the object `rr` restored, of a cloud snapshot.
pub fn of_rr(suffix: &str) -> Value {
    json!({ "restored-by": "rr", "restored-from": snap(suffix) })
}

/// Returns a restore task of the volume 1, of a cloud snapshot.
fn restore_task(state: &str, suffix: &str, is_resumable: bool) -> Value {
    let mut made = task(state, 1);
    (made["volumeId"], made["volumeName"]) = (json!("1"), json!("acc"));
    (made["cloudSnapshotId"], made["resumable"]) = (json!(snap(suffix)), json!(is_resumable));
    made
}

/// Returns an in-place restore task of the volume 1, and the labels that it sets at its end.
pub fn in_place_task(state: &str, suffix: &str, labels: Value) -> Value {
    let is_over = !["Restore-Pending", "Restore-Active"].contains(&state);
    let mut made = restore_task(state, suffix, is_over);
    made["labels"] = labels;
    made
}

/// Returns a document with another value of a field.
fn json_with(mut document: Value, field: &str, value: Value) -> Value {
    document[field] = value;
    document
}

/// Returns the result of the object `rr`, which `diff` and a dry run have in common.
pub fn planned(fake: &Fake, spec: &str) -> String {
    let result = |command: &str| {
        let shown = run_on(fake, command, &[("VolumeRestore", "rr", spec)]).json();
        shown["items"][0]["result"].as_str().unwrap_or_else(|| panic!("{shown:#}")).to_owned()
    };
    let (differs, tried) = (result("-j diff"), result("-j apply --dry-run"));
    assert_eq!(tried, if differs == "refused" { "failed" } else { &differs }, "{spec}");
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    differs
}

/// The volume `db` and its backup `good`.
pub fn db() -> (Value, Value) {
    (volume("59", "db"), backup("59-61", "good", ("59", "db")))
}

#[test]
fn half_done_restore_into_a_volume_is_resumed() {
    let (db, good) = db();
    for state in ["Restore-Stopped", "Restore-Failed"] {
        let tasks = [in_place_task(state, "59-61", of_rr("59-61"))];
        let fake =
            with_volumes(&[labelled("1", "acc", json!({})), db.clone()], std::slice::from_ref(&good), &tasks);
        assert_eq!(planned(&fake, REPLACING), "resumed");
        assert_eq!(fake.run("get vr -o name").stdout, "VolumeRestore/rr\n", "{state}");
        let ran = run_on(&fake, "apply", &[("VolumeRestore", "rr", REPLACING)]);
        assert_eq!(fake.changes(), [format!("POST /v1/tasks/{TASK}/resume")], "{ran:?}");
    }
}

#[test]
fn half_done_restore_of_another_origin_is_refused() {
    let (db, good) = db();
    let listed = [good, backup("59-70", "other", ("59", "db"))];
    let of_other = json!({ "restored-by": "other", "restored-from": snap("59-61") });
    // By a command, another object, and the object before its backup was changed.
    for (suffix, labels) in [("59-61", json!({})), ("59-61", of_other), ("59-70", of_rr("59-70"))] {
        for (state, action) in [("Restore-Active", "status"), ("Restore-Stopped", "resume")] {
            let tasks = [in_place_task(state, suffix, labels.clone())];
            let volumes = [labelled("1", "acc", json!({})), db.clone()];
            let fake = with_volumes(&volumes, &listed, &tasks);
            for spec in [INTO_ACC, REPLACING] {
                assert_eq!(planned(&fake, spec), "refused", "{labels} {state} {spec}");
            }
            let ran = run_on(&fake, "apply", &[("VolumeRestore", "rr", REPLACING)]);
            let hint = format!("hint: `blockctl cloudsnap {action} --name {TASK}`");
            assert!(ran.stderr.contains(&hint), "{ran:?}");
            assert!(fake.changes().is_empty(), "{:?}", fake.changes());
        }
    }
}

#[test]
fn restore_that_wrote_nothing_did_not_happen() {
    let (db, good) = db();
    for state in ["Restore-Stopped", "Restore-Failed"] {
        let tasks = [json_with(in_place_task(state, "59-61", of_rr("59-61")), "resumable", json!(false))];
        let fake =
            with_volumes(&[labelled("1", "acc", json!({})), db.clone()], std::slice::from_ref(&good), &tasks);
        assert_eq!(planned(&fake, REPLACING), "created", "{state}");
        assert_eq!(fake.run("get vr -o name").stdout, "", "{state}");
    }
}

#[test]
fn restore_by_a_command_is_none_of_the_object() {
    let (db, good) = db();
    // The daemon forgets tasks.
    for tasks in [vec![restore_task("Restore-Done", "59-61", false)], Vec::new()] {
        let fake =
            with_volumes(&[labelled("1", "acc", json!({})), db.clone()], std::slice::from_ref(&good), &tasks);
        assert_eq!(planned(&fake, REPLACING), "created", "{tasks:?}");
        assert_eq!(planned(&fake, INTO_ACC), "unchanged", "{tasks:?}");
    }
}

#[test]
fn restore_by_a_command_into_a_made_volume_is_kept() {
    let (db, good) = db();
    let listed = [good, backup("59-70", "other", ("59", "db"))];
    // Before the first write, and after it.
    for labels in [of_rr("59-61"), json!({ "restored-by": "rr" })] {
        for (state, suffix) in
            [("Restore-Active", "59-70"), ("Restore-Stopped", "59-70"), ("Restore-Stopped", "59-61")]
        {
            let tasks = [in_place_task(state, suffix, json!({}))];
            for name in ["acc", "moved"] {
                let volumes = [labelled("1", name, labels.clone()), db.clone()];
                let fake = with_volumes(&volumes, &listed, &tasks);
                for spec in [INTO_ACC, REPLACING] {
                    assert_eq!(planned(&fake, spec), "unchanged", "{labels} {state} {name} {spec}");
                }
            }
        }
    }
}

#[test]
fn other_restore_blocks_only_a_replacement_of_its_volume() {
    let good = backup("59-61", "good", ("59", "db"));
    let all = |policy: &str| {
        format!("backupLocation: nas, backupName: good, namespaceMapping: {{}}, replacePolicy: {policy}")
    };
    let (keeping, replacing) = (all("Retain"), all("Delete"));
    let by_other = json!({ "restored-by": "other", "restored-from": snap("59-61") });
    let hydration = |state: &str| restore_task(state, "59-61", state == "Restore-Stopped");
    for (state, labels, task, results) in [
        // The new volume of another object, and a lazy one.
        ("restoring", &by_other, hydration("Restore-Active"), ["refused", "refused", "unchanged", "refused"]),
        (
            "restoring",
            &by_other,
            hydration("Restore-Stopped"),
            ["refused", "refused", "unchanged", "refused"],
        ),
        ("up", &by_other, hydration("Restore-Active"), ["unchanged", "refused", "unchanged", "refused"]),
        // A lazy volume by a command.
        ("up", &json!({}), hydration("Restore-Active"), ["unchanged", "refused", "unchanged", "refused"]),
        ("up", &json!({}), hydration("Restore-Stopped"), ["unchanged", "created", "unchanged", "created"]),
    ] {
        for (spec, result) in
            [INTO_ACC, REPLACING, keeping.as_str(), replacing.as_str()].into_iter().zip(results)
        {
            let mut target = labelled("1", "acc", labels.clone());
            target["state"] = json!(state);
            let (source, mut task) = (if spec.contains("acc") { "db" } else { "acc" }, task.clone());
            task["labels"] = Value::Null;
            let mut stored = good.clone();
            stored["volumeName"] = json!(source);
            let fake = with_volumes(&[target], std::slice::from_ref(&stored), &[task]);
            assert_eq!(planned(&fake, spec), result, "{state} {labels} {spec}");
        }
    }
}

#[test]
fn stopped_hydration_is_told_by_the_label_of_its_content() {
    let (db, good) = db();
    let failed = json_with(in_place_task("Restore-Failed", "59-61", json!({})), "resumable", json!(false));
    let tasks = [failed, restore_task("Restore-Stopped", "59-61", true)];
    // A restore by a command replaced the content in the second case, and wrote nothing in the first.
    for (labels, result) in [(of_rr("59-61"), "resumed"), (json!({ "restored-by": "rr" }), "unchanged")] {
        let volumes = [labelled("1", "acc", labels), db.clone()];
        let fake = with_volumes(&volumes, std::slice::from_ref(&good), &tasks);
        for spec in [INTO_ACC, REPLACING] {
            assert_eq!(planned(&fake, spec), result, "{spec}");
        }
    }
}

#[test]
fn kept_content_is_told_with_the_way_to_restore_again() {
    let (db, good) = db();
    let volumes = [labelled("1", "acc", json!({ "restored-by": "rr" })), db];
    let fake = with_volumes(&volumes, std::slice::from_ref(&good), &[]);
    let note = "note: VolumeRestore/rr: volume acc has other content since this restore, and is kept; to restore into it again: \
                `blockctl delete VolumeRestore rr`, then apply this with `replacePolicy: Delete`\n";
    for spec in [INTO_ACC, REPLACING] {
        assert_eq!(run_on(&fake, "apply", &[("VolumeRestore", "rr", spec)]).stderr, note);
    }
}

/// Returns the backup `good` of a volume in the namespace `shop`.
pub fn of_shop(suffix: &str, volume: (&str, &str)) -> Value {
    let mut found = backup(suffix, "good", volume);
    found["labels"] = json!({ "namespace": "shop" });
    found
}

#[test]
fn restore_of_all_volumes_is_not_repeated() {
    let spec = "backupLocation: nas, backupName: good, namespaceMapping: {shop: dev}, replacePolicy: Delete";
    let renamed = volume("59", "db");
    let wal = || (labelled("2", "wal-dev", of_rr("60-61")), of_shop("60-61", ("60", "wal")));
    let replaced = json!({ "restored-by": "rr" });
    let made = |name: &str, labels: &Value| labelled("1", name, labels.clone());
    for (volumes, backups, result) in [
        // The backup was made again after its volume or the new one was renamed.
        (vec![made("data-dev", &of_rr("59-61"))], vec![of_shop("59-62", ("59", "data"))], "unchanged"),
        (vec![made("moved", &of_rr("59-61"))], vec![of_shop("59-62", ("59", "data"))], "unchanged"),
        (vec![made("moved", &replaced)], vec![of_shop("59-62", ("59", "data"))], "unchanged"),
        // It has more volumes than before.
        (
            vec![made("data-dev", &of_rr("59-61"))],
            vec![of_shop("59-62", ("59", "data")), of_shop("60-62", ("60", "wal"))],
            "unchanged",
        ),
        // One of its cloud snapshots is the same.
        (
            vec![made("moved", &of_rr("59-61")), wal().0],
            vec![of_shop("59-62", ("59", "data")), wal().1],
            "unchanged",
        ),
        // The content of a renamed volume was replaced.
        (
            vec![made("moved", &replaced), wal().0],
            vec![of_shop("59-61", ("59", "data")), wal().1],
            "unchanged",
        ),
        // The content of a volume was replaced.
        (
            vec![made("db-dev", &replaced), wal().0],
            vec![of_shop("59-61", ("59", "db")), wal().1],
            "unchanged",
        ),
        // The content of a volume was replaced, and another one is missing.
        (vec![made("db-dev", &replaced)], vec![of_shop("59-61", ("59", "data")), wal().1], "created"),
        // A volume of the same backup is missing.
        (vec![wal().0], vec![of_shop("59-61", ("59", "data")), wal().1], "created"),
    ] {
        let volumes = [volumes, vec![renamed.clone()]].concat();
        let fake = with_volumes(&volumes, &backups, &[]);
        assert_eq!(planned(&fake, spec), result, "{volumes:#?} {backups:#?}");
    }
}

#[test]
fn restore_of_all_volumes_awaits_those_of_a_running_backup() {
    let volumes = [labelled("1", "db-dev", of_rr("59-61")), volume("59", "db"), wal_of_shop()];
    let spec = "backupLocation: nas, backupName: good, namespaceMapping: {shop: dev}";
    let backup_task = |state: &str| {
        let mut one = task(state, 1);
        (one["volumeId"], one["volumeName"], one["name"]) = (json!("60"), json!("wal"), json!("good"));
        (one["cloudSnapshotId"], one["resumable"]) = (json!(null), json!(state == "Backup-Stopped"));
        one
    };
    let stored = [of_shop("59-61", ("59", "db"))];
    let fake = with_volumes(&volumes, &stored, &[backup_task("Backup-Active")]);
    assert_eq!(planned(&fake, spec), "waiting");
    // The call resumes the backup.
    let fake = with_volumes(&volumes, &stored, &[backup_task("Backup-Stopped")]);
    let objects =
        [("VolumeBackup", "good", "backupLocation: nas, volume: [db, wal]"), ("VolumeRestore", "rr", spec)];
    for command in ["-j diff", "-j apply --dry-run"] {
        let shown = run_on(&fake, command, &objects).json();
        assert_eq!(shown["items"][0]["result"], "resumed", "{shown:#}");
        assert_eq!(shown["items"][1]["result"], "created", "{shown:#}");
    }
}

#[test]
fn restore_without_a_cloud_snapshot_starts_nothing() {
    let mut stopped = task("Backup-Stopped", 1);
    (stopped["volumeId"], stopped["volumeName"], stopped["name"]) =
        (json!("60"), json!("wal"), json!("good"));
    (stopped["cloudSnapshotId"], stopped["resumable"]) = (json!(null), json!(true));
    let volumes = [volume("59", "db"), wal_of_shop()];
    // The resumed backup fails again.
    let fake = with_volumes(&volumes, &[of_shop("59-61", ("59", "db"))], &[stopped]);
    let restore = "backupLocation: nas, backupName: good, namespaceMapping: {shop: dev}";
    let objects = [
        ("VolumeBackup", "good", "backupLocation: nas, volume: [db, wal]"),
        ("VolumeRestore", "rr", restore),
    ];
    let ran = run_on(&fake, "apply", &objects);
    assert_eq!(fake.changes(), [format!("POST /v1/tasks/{TASK}/resume")], "{ran:?}");
    assert!(ran.stderr.contains("the cloud snapshot of volume wal-dev is not made yet"), "{ran:?}");
}

/// The volume `wal` in the namespace `shop`.
fn wal_of_shop() -> Value {
    labelled("60", "wal", json!({ "namespace": "shop" }))
}

#[test]
fn restore_of_a_backup_of_the_call_keeps_existing_volumes() {
    let coming = ("VolumeBackup", "new", "backupLocation: nas, volume: wal");
    let spec = "backupLocation: nas, backupName: new, destinationVolume: acc";
    let all = "backupLocation: nas, backupName: new, namespaceMapping: {}";
    for (labels, spec, result) in [
        (json!({}), spec, "unchanged"),
        (json!({ "restored-by": "other", "restored-from": snap("59-61") }), spec, "refused"),
        (json!({}), all, "unchanged"),
    ] {
        let fake = with_volumes(&[labelled("1", "acc", labels), wal_of_shop()], &[], &[]);
        let shown = run_on(&fake, "-j diff", &[coming, ("VolumeRestore", "rr", spec)]).json();
        assert_eq!(shown["items"][1]["result"], result, "{shown:#}");
    }
}

#[test]
fn volumes_of_an_expired_backup_are_warned_about() {
    let listed = [backup("60-70", "good", ("60", "wal"))];
    let fake = with_volumes(&[labelled("1", "acc", of_rr("59-61")), volume("60", "wal")], &listed, &[]);
    assert_eq!(planned(&fake, REPLACING), "unchanged");
    let ran = run_on(&fake, "diff", &[("VolumeRestore", "rr", REPLACING)]);
    let words = format!("VolumeRestore/rr has volume acc of cloud snapshot {}", snap("59-61"));
    assert!(ran.stderr.contains(&words), "{ran:?}");
}

#[test]
fn finished_restore_outlives_names_of_its_source() {
    // The volume was `a`, then `b` when it was restored, and is `c` or deleted.
    let spec = |volume: &str| {
        format!(
            "backupLocation: nas, backupName: good, sourceVolume: {volume}, destinationVolume: acc, replacePolicy: Delete"
        )
    };
    let listed = [backup("59-61", "good", ("59", "a")), backup("60-61", "good", ("60", "other"))];
    for now in [Some("c"), None] {
        let made = labelled("1", "acc", of_rr("59-61"));
        let volumes: Vec<Value> = now.map(|name| volume("59", name)).into_iter().chain([made]).collect();
        let fake = with_volumes(&volumes, &listed, &[]);
        assert_eq!(planned(&fake, &spec("b")), "unchanged", "{now:?}");
        assert_eq!(planned(&fake, &spec("other")), "created", "{now:?}");
    }
}

#[test]
fn renamed_other_volume_is_not_the_source_of_a_finished_restore() {
    let listed = [backup("59-61", "good", ("59", "x1")), backup("60-61", "good", ("60", "x2"))];
    let volumes = [labelled("1", "acc", of_rr("59-61")), volume("59", "old"), volume("60", "src")];
    let fake = with_volumes(&volumes, &listed, &[]);
    assert_eq!(planned(&fake, &format!("{REPLACING}, sourceVolume: src")), "unchanged");
}

#[test]
fn volumes_of_an_earlier_specification_do_not_count() {
    let volumes = [labelled("1", "v1", of_rr("59-61")), labelled("2", "acc", of_rr("59-62"))];
    let fake = with_volumes(&volumes, &[backup("59-61", "earlier", ("59", "db"))], &[]);
    assert_eq!(planned(&fake, INTO_ACC), "unchanged");
}

#[test]
fn origin_in_another_location_is_that_of_another_backup() {
    let listed = |found: &[Value]| {
        ok(
            json!({ "items": found, "next": null, "damaged": [], "failedCredentials": [], "total": found.len() }),
        )
    };
    let nas = reply("GET /v1/credentials/nas");
    let mut two = nas.clone();
    (two["name"], two["credentialId"]) = (json!("two"), json!("bf563a4d-afd7-48df-90f7-8e8f9414ff77"));
    let mut earlier = backup("59-61", "earlier", ("59", "db"));
    earlier["credentialName"] = json!("two");
    for command in ["-j diff", "-j apply --dry-run"] {
        let fake = Fake::with_defaults(vec![
            ("GET /v1/volumes", ok(list(json!([labelled("1", "acc", of_rr("59-61")), volume("59", "db")])))),
            ("GET /v1/tasks", ok(list(json!([])))),
            ("GET /v1/schedules", ok(list(json!([])))),
            ("GET /v1/credentials", ok(list(json!([nas, two])))),
            ("GET /v1/cloudsnaps", listed(&[backup("59-70", "good", ("59", "db"))])),
            ("GET /v1/cloudsnaps", listed(&[earlier.clone()])),
        ]);
        let shown = run_on(&fake, command, &[("VolumeRestore", "rr", REPLACING)]).json();
        assert_eq!(shown["items"][0]["result"], "created", "{shown:#}");
    }
}

#[test]
fn restore_of_all_volumes_needs_the_list_of_its_location() {
    let fake = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([labelled("1", "acc", of_rr("59-61"))])))),
        ("GET /v1/tasks", ok(list(json!([])))),
        ("GET /v1/schedules", ok(list(json!([])))),
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/cloudsnaps", fail(503, "store_unavailable", "no answer")),
    ]);
    assert_eq!(planned(&fake, "backupLocation: nas, backupName: good, namespaceMapping: {}"), "refused");
    // The volume of a restore of one is known.
    assert_eq!(planned(&fake, INTO_ACC), "unchanged");
}

#[test]
fn running_tasks_beside_resumed_ones_are_reported() {
    let with_id = |mut task: Value, id: &str, volume: (&str, &str)| {
        (task["taskId"], task["volumeId"], task["volumeName"]) =
            (json!(id), json!(volume.0), json!(volume.1));
        task
    };
    let (stopped, running) = (
        with_id(restore_task("Restore-Stopped", "59-61", true), TASK, ("1", "db-dev")),
        with_id(restore_task("Restore-Active", "60-61", false), OTHER_TASK, ("2", "wal-dev")),
    );
    let backups = [of_shop("59-61", ("59", "db")), of_shop("60-61", ("60", "wal"))];
    let volumes = [labelled("1", "db-dev", of_rr("59-61")), labelled("2", "wal-dev", of_rr("60-61"))];
    let restores = with_volumes(&volumes, &backups, &[running, stopped]);
    let restore =
        ("VolumeRestore", "rr", "backupLocation: nas, backupName: good, namespaceMapping: {shop: dev}");

    let of_backup = |state: &str, id: &str, volume: (&str, &str)| {
        let mut one = with_id(task(state, 1), id, volume);
        (one["name"], one["cloudSnapshotId"], one["resumable"]) =
            (json!("good"), json!(null), json!(state == "Backup-Stopped"));
        one
    };
    let tasks = [
        of_backup("Backup-Active", OTHER_TASK, ("60", "wal")),
        of_backup("Backup-Stopped", TASK, ("59", "db")),
    ];
    let backups = with_volumes(&[volume("59", "db"), volume("60", "wal")], &[], &tasks);
    let backup = ("VolumeBackup", "good", "backupLocation: nas, volume: [db, wal]");
    for (fake, object) in [(restores, restore), (backups, backup)] {
        let shown = run_on(&fake, "-j apply", &[object]).json();
        let item = &shown["items"][0];
        assert_eq!(
            (&item["result"], &item["taskIds"]),
            (&json!("resumed"), &json!([TASK, OTHER_TASK])),
            "{shown:#}"
        );
        assert_eq!(fake.changes(), [format!("POST /v1/tasks/{TASK}/resume")]);
    }
}

#[test]
fn backup_of_a_volume_renamed_meanwhile_is_awaited() {
    let mut running = task("Backup-Active", 1);
    (running["name"], running["cloudSnapshotId"]) = (json!("good"), json!(null));
    (running["volumeId"], running["volumeName"]) = (json!("59"), json!("before"));
    let fake = with_volumes(&[volume("59", "db"), volume("60", "before")], &[], &[running]);
    let spec = |volume: &str| {
        format!("backupLocation: nas, backupName: good, sourceVolume: {volume}, destinationVolume: acc")
    };
    assert_eq!(planned(&fake, &spec("db")), "waiting");
    assert_eq!(planned(&fake, &spec("before")), "refused");
}
