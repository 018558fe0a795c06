//! Plans of backups and restores: what they refuse, leave and report.

use crate::support::{Fake, Ran, TASK, cloudsnap, fail, list, ok, reply, snap, task, volume};
use serde_json::{Value, json};

/// Returns a cloud snapshot of a volume: suffix of the id, name of the backup, id and name of the volume.
pub fn backup(suffix: &str, name: &str, volume: (&str, &str)) -> Value {
    let mut found = cloudsnap(suffix);
    (found["name"], found["volumeId"], found["volumeName"]) = (json!(name), json!(volume.0), json!(volume.1));
    found
}

/// Starts a daemon with volumes of the shop: ids and names.
pub fn daemon(volumes: &[(&str, &str)], backups: &[Value], tasks: &[Value]) -> Fake {
    let of_shop = |(id, name): &(&str, &str)| labelled(id, name, json!({ "app": "shop" }));
    with_volumes(&volumes.iter().map(of_shop).collect::<Vec<_>>(), backups, tasks)
}

/// Returns a volume with labels.
pub fn labelled(id: &str, name: &str, labels: Value) -> Value {
    let mut one = volume(id, name);
    one["labels"] = labels;
    one
}

/// Starts a daemon with volumes, cloud snapshots in the location `nas`, and tasks.
pub fn with_volumes(volumes: &[Value], backups: &[Value], tasks: &[Value]) -> Fake {
    let listed = json!({
        "items": backups, "next": null, "damaged": [], "failedCredentials": [], "total": backups.len()
    });
    Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!(volumes)))),
        ("GET /v1/tasks", ok(list(json!(tasks)))),
        ("GET /v1/schedules", ok(list(json!([])))),
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/cloudsnaps", ok(listed)),
    ])
}

/// Runs a command on a file with objects: kinds, names and contents.
pub fn run_on(fake: &Fake, command: &str, objects: &[(&str, &str, &str)]) -> Ran {
    let one = |(kind, name, spec): &(&str, &str, &str)| {
        format!("apiVersion: blockd/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.yaml");
    std::fs::write(&path, objects.iter().map(one).collect::<String>()).unwrap();
    fake.run(&format!("{command} -f {}", path.display()))
}

#[test]
fn restore_without_source_is_refused() {
    let mut restored = task("Restore-Done", 1);
    (restored["volumeId"], restored["volumeName"]) = (json!("1"), json!("acc"));
    restored["cloudSnapshotId"] = json!(snap("59-61"));
    let volumes = [("1", "acc"), ("59", "db")];
    let good = backup("59-61", "good", ("59", "db"));
    let of = |fake: &Fake, command: &str, spec: &str| {
        let spec = format!("backupLocation: nas, destinationVolume: acc, {spec}");
        run_on(fake, command, &[("VolumeRestore", "rr", &spec)])
    };
    let other = backup("60-62", "other", ("59", "db"));
    let of_db = backup("59-61", "nosuch", ("59", "db"));
    let no_backup = "line 4: spec.backupName: there is no VolumeBackup/nosuch in BackupLocation/nas";
    for (listed, tasks, spec, words) in [
        (vec![good.clone()], vec![restored.clone()], "backupName: nosuch", no_backup),
        (
            vec![good.clone(), other],
            vec![restored.clone()],
            "backupName: other, sourceVolume: gone",
            "sourceVolume",
        ),
        (vec![of_db], vec![restored.clone()], "backupName: nosuch, sourceVolume: gone", "sourceVolume"),
        // The volume is not known to be restored.
        (Vec::new(), Vec::new(), "backupName: nosuch", no_backup),
        (Vec::new(), Vec::new(), "backupName: nosuch, replacePolicy: Delete", no_backup),
    ] {
        let fake = daemon(&volumes, &listed, &tasks);
        for (command, status) in [("apply", 4), ("apply --dry-run", 4), ("diff", 1)] {
            let ran = of(&fake, command, spec);
            assert!(ran.status == status && ran.stderr.contains(words), "{command} {spec} {ran:?}");
        }
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
    let ran = of(&daemon(&volumes, &[good], &[restored]), "apply", "backupName: good");
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "VolumeRestore/rr unchanged\n"), "{ran:?}");
    // Another object makes the backup.
    let fake = daemon(&volumes, &[], &[]);
    let both = [
        ("VolumeBackup", "nosuch", "backupLocation: nas, volume: acc"),
        ("VolumeRestore", "rr", "backupLocation: nas, backupName: nosuch"),
    ];
    let ran = run_on(&fake, "apply --dry-run", &both);
    assert!(ran.status == 0 && ran.stdout.contains("VolumeRestore/rr created (dry run)"), "{ran:?}");
}

#[test]
fn backup_of_an_existing_name_gets_no_more_volumes() {
    let volumes = [("59", "db"), ("1", "acc")];
    let before = backup("59-61", "before", ("59", "db"));
    let fake = daemon(&volumes, std::slice::from_ref(&before), &[]);
    // The snapshot `monday` of the volume exists.
    for (kind, name, time) in
        [("VolumeBackup", "before", "2019-01-16T21:51Z"), ("VolumeSnapshot", "monday", "2019-01-16T21:51Z")]
    {
        let lacks = format!("{kind}/{name} of {time} lacks acc");
        let place = if kind == "VolumeBackup" { "backupLocation: nas, " } else { "" };
        let listed = format!("{place}volume: [db, acc]");
        for (command, status) in [("apply", 5), ("apply --dry-run", 5), ("diff", 1)] {
            let ran = run_on(&fake, command, &[(kind, name, &listed)]);
            let words = format!("line 4: spec.volume: {lacks}: give a new one another name");
            assert!(ran.status == status && ran.stderr.contains(&words), "{command} {ran:?}");
        }
        let selected = [(kind, name, &*format!("{place}selectors: {{app: shop}}"))];
        let ran = run_on(&fake, "apply", &selected);
        assert_eq!((ran.status, ran.stdout), (0, format!("{kind}/{name} unchanged\n")), "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("warning: {lacks} of the selected volumes")), "{}", ran.stderr);
        for command in ["-j apply", "-j diff"] {
            let shown = run_on(&fake, command, &selected).json();
            let warning = shown["items"][0]["warnings"][0].as_str().unwrap();
            assert!(warning.starts_with(&lacks), "{command} {shown:#}");
        }
    }
    // Another set of volumes would have another point in time, too.
    for (kind, name, spec) in [
        ("VolumeBackup", "before", "backupLocation: nas, volume: acc"),
        ("VolumeSnapshot", "monday", "volume: acc"),
    ] {
        let ran = run_on(&fake, "apply", &[(kind, name, spec)]);
        assert!(ran.status == 5 && ran.stderr.contains(" lacks acc: give a new one another name"), "{ran:?}");
    }
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    let others = [labelled("2", "crm", json!({ "namespace": "crm" })), volume("59", "db")];
    let fake = with_volumes(&others, std::slice::from_ref(&before), &[]);
    for (kind, name, place) in
        [("VolumeBackup", "before", "backupLocation: nas, "), ("VolumeSnapshot", "monday", "")]
    {
        let spec = format!("{place}selectors: {{namespace: crm}}");
        for (command, status) in [("apply", 5), ("apply --dry-run", 5), ("diff", 1)] {
            let ran = run_on(&fake, command, &[(kind, name, &spec)]);
            let words = format!(
                "line 4: spec.selectors: {kind}/{name} of 2019-01-16T21:51Z has none of the selected volumes (crm): give a new one another name"
            );
            assert!(ran.status == status && ran.stderr.contains(&words), "{command} {ran:?}");
        }
    }
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());

    // An interrupted backup has the point in time of the others.
    let mut stopped = task("Backup-Stopped", 1);
    (stopped["name"], stopped["volumeName"]) = (json!("before"), json!("acc"));
    (stopped["resumable"], stopped["cloudSnapshotId"]) = (json!(true), json!(null));
    let fake = daemon(&volumes, &[before], &[stopped]);
    let ran = run_on(&fake, "apply", &[("VolumeBackup", "before", "backupLocation: nas, volume: [db, acc]")]);
    let resumed = format!("VolumeBackup/before resumed (task {TASK})\n");
    assert_eq!(
        (ran.status, ran.stdout, fake.changes()),
        (0, resumed, vec![format!("POST /v1/tasks/{TASK}/resume")])
    );
}

#[test]
fn interrupted_backup_has_the_volumes_of_its_tasks() {
    let volumes = [("59", "hrv"), ("60", "lzv"), ("61", "db")];
    let stored = backup("59-61", "ig", ("59", "hrv"));
    let mut stopped = task("Backup-Stopped", 1);
    (stopped["name"], stopped["volumeName"]) = (json!("ig"), json!("lzv"));
    (stopped["resumable"], stopped["cloudSnapshotId"]) = (json!(true), json!(null));
    let fake = daemon(&volumes, &[stored], &[stopped]);
    let interrupted = ("VolumeBackup", "ig", "backupLocation: nas, volume: [lzv, hrv]");
    let restore = "backupLocation: nas, backupName: ig, sourceVolume:";
    for (of, status, words) in [
        ("lzv", 0, "VolumeRestore/back created (dry run)"),
        ("db", 4, "has no volume db: its volumes are hrv, lzv"),
    ] {
        let spec = format!("{restore} {of}");
        let ran = run_on(&fake, "apply --dry-run", &[interrupted, ("VolumeRestore", "back", &spec)]);
        assert!(ran.status == status && (ran.stdout.clone() + &ran.stderr).contains(words), "{ran:?}");
    }
    // A volume without a task is missing after the resumption.
    for (command, status) in [("diff", 1), ("apply --dry-run", 5), ("apply", 5)] {
        let spec = "backupLocation: nas, volume: [lzv, hrv, db]";
        let ran = run_on(&fake, command, &[("VolumeBackup", "ig", spec)]);
        assert!(ran.status == status && ran.stderr.contains(" lacks db: give a new one"), "{ran:?}");
    }
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
}

#[test]
fn other_expiry_of_an_existing_backup_is_a_warning() {
    let mut stored = backup("59-61", "before", ("59", "db"));
    stored["expiresAt"] = json!("2019-01-17T21:51:00Z");
    let fake = daemon(&[("59", "db")], &[stored], &[]);
    for (ttl, words) in
        [("24h", ""), ("48h", "exists and expires 2019-01-17T21:51Z; `blockctl cloudsnap expire`")]
    {
        let spec = format!("backupLocation: nas, volume: db, ttl: {ttl}");
        let ran = run_on(&fake, "apply", &[("VolumeBackup", "before", &spec)]);
        assert!(ran.status == 0 && ran.stderr.contains(words), "{ran:?}");
        assert_eq!(ran.stderr.contains("line 4: spec.ttl: ignored: "), !words.is_empty(), "{ran:?}");
    }
}

#[test]
fn deleted_backup_reports_cloud_snapshots_that_stay() {
    let backups = [backup("59-61", "before", ("59", "db")), backup("60-62", "before", ("60", "wal"))];
    let object =
        [("VolumeBackup", "before", "backupLocation: nas, volume: [db, wal], reclaimPolicy: Delete")];
    let stays = format!("cloud snapshot {} of wal2 (then wal) stays", snap("60-62"));
    let fake = daemon(&[("59", "db"), ("60", "wal2"), ("61", "wal")], &backups, &[]);
    let ran = run_on(&fake, "delete", &object);
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (0, "VolumeBackup/before deleted from BackupLocation/nas\n"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains(&stays) && ran.stderr.contains("before --volume wal`"), "{ran:?}");
    let fake = daemon(&[("60", "wal2"), ("61", "wal")], &backups[1..], &[]);
    let deleted = run_on(&fake, "-j delete", &object).json();
    assert_eq!(deleted["items"][0]["result"], "kept in the store", "{deleted:#}");
    assert!(deleted["items"][0]["warnings"][0].as_str().unwrap().contains(&stays), "{deleted:#}");
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
}

#[test]
fn failed_deletion_of_a_schedule_leaves_it_active() {
    const ID: &str = "078557a3-26c7-49b1-9822-34e6f816c2d1";
    let route = |method: &str, rest: &str| format!("{method} /v1/schedules/{ID}{rest}");
    let (change, plan) = (route("PATCH", ""), route("GET", "/retention"));
    let backups = reply(&plan);
    let newest = &backups["items"][1]["cloudSnapshotId"];
    let mut lazy = volume("7", "lazy");
    lazy["hydration"] = json!({
        "cloudSnapshotId": newest, "credentialId": "af563a4d-afd7-48df-90f7-8e8f9414ff77", "doneBytes": 0,
        "totalBytes": 4096, "inBackground": true, "onStoreLoss": "stall", "waitingRequests": 0
    });
    let mut in_use = backups.clone();
    in_use["items"][1]["verdict"] = json!({ "keep": [{ "kind": "in-use" }] });
    let run = |is_paused: bool, volumes: Vec<Value>, kept: &Value| {
        let mut schedule = reply("GET /v1/schedules")["items"][0].take();
        (schedule["labels"], schedule["paused"]) = (json!({ "reclaim-policy": "Delete" }), json!(is_paused));
        let fake = Fake::with_defaults(vec![
            ("GET /v1/schedules", ok(list(json!([schedule])))),
            (plan.as_str(), ok(kept.clone())),
            ("GET /v1/tasks", ok(list(json!([])))),
            ("GET /v1/volumes", ok(list(json!(volumes)))),
            ("POST /v1/cloudsnaps/delete", fail(409, "cloudsnap_pinned", "no")),
        ]);
        let ran = fake.run("delete VolumeBackupSchedule nightly");
        assert_eq!(ran.status, 5, "{ran:?}");
        let sent = fake.seen().into_iter().filter(|seen| !seen.line.starts_with("GET "));
        let sent = sent.map(|seen| (seen.line, seen.body["paused"].as_bool())).collect::<Vec<_>>();
        (ran.stderr, sent)
    };
    let delete = ("POST /v1/cloudsnaps/delete".to_owned(), None);
    let changed = |is_paused| (change.clone(), Some(is_paused));
    assert_eq!(run(false, Vec::new(), &backups).1, [changed(true), delete.clone(), changed(false)]);
    assert_eq!(run(true, Vec::new(), &backups).1, [changed(true), delete]);
    // Nothing is deleted if one of several cannot be.
    let (told, sent) = run(false, vec![lazy], &backups);
    assert!(
        told.contains("VolumeBackupSchedule/nightly is needed by lazy volume lazy") && sent.is_empty(),
        "{told}"
    );
    let (told, sent) = run(false, Vec::new(), &in_use);
    assert!(told.contains("is used by a task") && sent.is_empty(), "{told}");
}

#[test]
fn name_with_a_comma_is_told_as_several() {
    let ran = daemon(&[], &[], &[]).run("get vb before,after");
    let words = "there is no VolumeBackup/before,after\nhint: names are separated by spaces\n";
    assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");
}

#[test]
fn restore_of_a_missing_volume_names_the_others() {
    let backups = [backup("59-61", "before", ("59", "wal")), backup("60-62", "before", ("60", "db"))];
    let fake = daemon(&[("59", "wal2"), ("60", "db"), ("61", "wal")], &backups, &[]);
    let spec = "backupName: before, sourceVolume: wal, destinationVolume: wal, replacePolicy: Delete";
    let ran = run_on(&fake, "apply", &[("VolumeRestore", "rr", spec)]);
    let words = "line 4: spec.sourceVolume: VolumeBackup/before has no volume wal: \
        its volumes are db, wal2 (wal at the time of the backup)";
    assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");
}

#[test]
fn planned_restore_warns_about_replaced_volumes() {
    let fake = daemon(&[("59", "wal")], &[backup("59-61", "before", ("59", "wal"))], &[]);
    let object = [("VolumeRestore", "rr", "backupName: before, namespaceMapping: {}, replacePolicy: Delete")];
    let words = "VolumeRestore/rr replaces the content of volume wal, which is kept as a snapshot";
    for (command, status) in [("diff", 1), ("apply --dry-run", 0)] {
        let ran = run_on(&fake, command, &object);
        assert!(ran.status == status && ran.stderr.contains(&format!("warning: {words}")), "{ran:?}");
        let shown = run_on(&fake, &format!("-j {command}"), &object).json();
        assert_eq!(shown["items"][0]["warnings"], json!([words]), "{shown:#}");
    }
    assert!(run_on(&fake, "diff", &object).stdout.contains("replacePolicy: Delete"));
}

#[test]
fn missing_references_are_errors_of_plans() {
    let fake = daemon(&[("59", "db")], &[], &[]);
    let template = "template: {spec: {backupLocation: nas, volume: db}}";
    let by_policy = format!("schedulePolicyName: gone, {template}");
    let of_gone = "schedule: {daily: {time: '01:00'}}, template: {spec: {backupLocation: nas, volume: gone}}";
    let by_id = format!("backupLocation: nas, cloudSnapshotId: {}", snap("59-61"));
    for (kind, spec, status, words) in [
        (
            "VolumeBackup",
            "backupLocation: gone, volume: db",
            4,
            "spec.backupLocation: there is no BackupLocation/gone",
        ),
        (
            "VolumeBackup",
            "backupLocation: nas, volume: db, preExecRule: gone",
            4,
            "spec.preExecRule: there is no Rule/gone",
        ),
        ("VolumeSnapshot", "volume: db, preExecRule: gone", 4, "spec.preExecRule: there is no Rule/gone"),
        ("VolumeBackupSchedule", of_gone, 4, "spec.template.spec.volume: there is no volume gone"),
        ("VolumeClone", "sourceVolume: gone", 4, "spec.sourceVolume: there is no volume gone"),
        ("VolumeClone", "sourceVolume: db, snapshot: gone", 4, "spec.snapshot: there is no snapshot db@gone"),
        (
            "VolumeRestore",
            "backupLocation: gone, backupName: before",
            4,
            "spec.backupLocation: there is no BackupLocation/gone",
        ),
        ("VolumeRestore", &*by_id, 4, "spec.cloudSnapshotId: there is no cloud snapshot 2e4d4b67"),
        ("VolumeBackupSchedule", &*by_policy, 4, "spec.schedulePolicyName: there is no SchedulePolicy/gone"),
        ("VolumeBackup", "backupLocation: nas, volume: db, ttl: 0s", 2, "spec.ttl: a time above zero"),
    ] {
        let ran = run_on(&fake, "apply --dry-run", &[(kind, "new", spec)]);
        assert!(ran.status == status && ran.stderr.contains(&format!("line 4: {words}")), "{ran:?}");
        assert_ne!(run_on(&fake, "diff", &[(kind, "new", spec)]).status, 0);
    }
    // An object of the call is one.
    let rule = ("Rule", "gone", "preCommand: sync");
    let backup = ("VolumeBackup", "new", "backupLocation: nas, volume: db, preExecRule: gone");
    assert_eq!(run_on(&fake, "apply --dry-run", &[rule, backup]).status, 0);
    let backup = ("VolumeBackup", "new", "backupLocation: nas, volume: db");
    let restore = ("VolumeRestore", "again", "backupLocation: nas, backupName: new");
    let clone = ("VolumeClone", "copy", "sourceVolume: again");
    let ran = run_on(&fake, "apply --dry-run", &[backup, restore, clone]);
    assert_eq!(ran.status, 0, "{ran:?}");
    // The restored volume has no snapshots.
    let clone = ("VolumeClone", "copy", "sourceVolume: again, snapshot: first");
    let ran = run_on(&fake, "apply --dry-run", &[backup, restore, clone]);
    let words = "spec.snapshot: there is no snapshot again@first";
    assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");
    let snapshot = ("VolumeSnapshot", "first", "volume: db");
    let clone = ("VolumeClone", "copy", "sourceVolume: db, snapshot: first");
    assert_eq!(run_on(&fake, "apply --dry-run", &[snapshot, clone]).status, 0);
    // The backup of the call will not have the volume.
    let restore = ("VolumeRestore", "again", "backupLocation: nas, backupName: new, sourceVolume: gone");
    let ran = run_on(&fake, "apply --dry-run", &[backup, restore]);
    let words = "spec.sourceVolume: VolumeBackup/new has no volume gone: its volumes are db";
    assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");
}

#[test]
fn deletion_by_name_selects_backups_of_one_volume() {
    let interrupted = |id: &str, volume: &str, location: &str| {
        let mut stopped = task("Backup-Stopped", 1);
        (stopped["taskId"], stopped["name"]) = (json!(format!("{id}{}", &TASK[8..])), json!("vb"));
        (stopped["volumeName"], stopped["credentialName"]) = (json!(volume), json!(location));
        (stopped["resumable"], stopped["cloudSnapshotId"]) = (json!(true), json!(null));
        stopped
    };
    let at = |suffix: &str, volume: (&str, &str), location: &str| {
        let mut one = backup(suffix, "vb", volume);
        one["credentialName"] = json!(location);
        one
    };
    let (db, wal) = (("59", "db"), ("60", "wal"));
    let one = interrupted("11111111", "db", "nas");
    for (stored, tasks, advice) in [
        (vec![at("59-61", db, "nas"), at("60-62", wal, "nas")], vec![], "add --volume, or give the id"),
        (vec![at("59-61", db, "nas"), at("59-62", db, "nas2")], vec![], "add --location, or give the id"),
        (
            vec![at("59-61", db, "nas"), at("60-62", wal, "nas"), at("59-63", db, "nas2")],
            vec![],
            "add --location and --volume, or give the id",
        ),
        (vec![at("59-61", db, "nas"), at("59-62", db, "nas")], vec![], "give the id"),
        (vec![at("60-62", wal, "nas")], vec![one.clone()], "add --volume, or give the id"),
        (vec![], vec![one.clone(), interrupted("22222222", "wal", "nas")], "add --volume\n"),
    ] {
        let fake = daemon(&[db, wal], &stored, &tasks);
        let ran = fake.run("delete vb vb");
        let words = format!("): {advice}");
        assert!(ran.status == 2 && ran.stderr.contains(&words), "{advice} {ran:?}");
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
    let fake = daemon(&[db, wal], &[], &[one, interrupted("22222222", "wal", "nas")]);
    let told = fake.run("delete vb vb").stderr;
    let listed = "task 11111111-e12a-4d35-81ad-985657757352 of db in nas, task 22222222-";
    assert!(told.contains(listed), "{told}");
    let deleted = fake.run("delete vb vb --volume wal --dry-run");
    let line = "VolumeBackup/vb deleted from BackupLocation/nas (dry run)\n";
    assert_eq!((deleted.status, deleted.stdout.as_str()), (0, line));
}
