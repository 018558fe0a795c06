//! Restores and clones are the volumes whose labels name them.

use crate::{
    objects::{rule, world},
    plans::{backup, labelled, run_on, with_volumes},
    support::{Fake, list, ok, reply, snap, task, volume},
};
use serde_json::{Value, json};

/// Labels of a volume that the object `rr` restored.
fn of_rr() -> Value {
    json!({ "restored-by": "rr", "restored-from": snap("59-61") })
}

/// Returns a restore task of a volume.
fn restore_task(state: &str, volume: (&str, &str)) -> Value {
    let mut made = task(state, 1);
    (made["volumeId"], made["volumeName"]) = (json!(volume.0), json!(volume.1));
    made["cloudSnapshotId"] = json!(snap("59-61"));
    made
}

/// Runs `apply` and `diff` and checks the result: unchanged, or an error of apply.
pub fn check(fake: &Fake, object: (&str, &str, &str), error: Option<&str>) {
    let (kind, name, _) = object;
    for command in ["apply", "apply --dry-run", "diff"] {
        let ran = run_on(fake, command, &[object]);
        match error {
            Some(words) => {
                let status = if command == "diff" { 1 } else { 4 };
                assert!(ran.status == status && ran.stderr.contains(words), "{command} {object:?} {ran:?}");
            }
            None => {
                // The file names other volumes.
                let status = i32::from(command == "diff" && ran.stderr.contains(" and makes no "));
                let told = command == "diff" || ran.stdout.starts_with(&format!("{kind}/{name} unchanged"));
                assert!(ran.status == status && told, "{command} {object:?} {ran:?}");
            }
        }
    }
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
}

#[test]
fn finished_restore_outlives_its_backup() {
    let volumes = || vec![labelled("1", "acc", of_rr()), volume("59", "db")];
    let deleted = with_volumes(&volumes(), &[], &[]);
    for spec in [
        "backupName: good, destinationVolume: acc",
        "backupName: good, destinationVolume: acc, replacePolicy: Delete",
        "backupName: good, namespaceMapping: {}",
    ] {
        let spec = format!("backupLocation: nas, {spec}");
        check(&deleted, ("VolumeRestore", "rr", &spec), None);
        // The volume is no restore of another object.
        let error = Some("spec.backupName: there is no VolumeBackup/good in BackupLocation/nas");
        check(&deleted, ("VolumeRestore", "zz", &spec), error);
        // The volume has another origin, which is listed.
        let other = with_volumes(&volumes(), &[backup("59-61", "other", ("59", "db"))], &[]);
        check(&other, ("VolumeRestore", "rr", &spec), error);
    }
    // The volume of the backup had another name.
    let renamed = with_volumes(&volumes(), &[backup("59-61", "good", ("59", "was"))], &[]);
    let spec = "backupLocation: nas, backupName: good, sourceVolume: was, destinationVolume: acc";
    check(&renamed, ("VolumeRestore", "rr", spec), None);
}

#[test]
fn renamed_volumes_stay_those_of_their_object() {
    let cloned = |object: &str| json!({ "cloned-by": object, "cloned-from": "db@clone-1" });
    let volumes =
        vec![volume("59", "db"), labelled("1", "moved", of_rr()), labelled("2", "moved-clone", cloned("cl"))];
    let fake = with_volumes(&volumes, &[backup("59-61", "good", ("59", "db"))], &[]);
    for spec in
        ["destinationVolume: acc", "destinationVolume: db, replacePolicy: Delete", "namespaceMapping: {}"]
    {
        let spec = format!("backupLocation: nas, backupName: good, {spec}");
        check(&fake, ("VolumeRestore", "rr", &spec), None);
    }
    check(&fake, ("VolumeClone", "cl", "sourceVolume: db"), None);
    let warning = |kind: &str, name: &str, spec: &str| {
        let ran = run_on(&fake, "apply", &[(kind, name, spec)]);
        assert_eq!(run_on(&fake, "diff", &[(kind, name, spec)]).stderr, ran.stderr);
        ran.stderr
    };
    assert_eq!(
        warning("VolumeRestore", "rr", "backupLocation: nas, backupName: good, destinationVolume: acc"),
        "warning: VolumeRestore/rr has volume moved and makes no acc: give a new one another name\n"
    );
    // The name of the file is the present one.
    let present = "backupLocation: nas, backupName: good, destinationVolume: moved";
    assert_eq!(
        (
            run_on(&fake, "diff", &[("VolumeRestore", "rr", present)]).status,
            warning("VolumeRestore", "rr", present).as_str()
        ),
        (0, "")
    );
    assert_eq!(run_on(&fake, "diff", &[("VolumeClone", "cl", "sourceVolume: db")]).status, 1);
    assert_eq!(
        warning("VolumeClone", "cl", "sourceVolume: db"),
        "warning: VolumeClone/cl has volume moved-clone and makes no cl: give a new one another name\n"
    );
    // A clone of a namespace without volumes.
    let namespace = "sourceNamespace: gone, destinationNamespace: test";
    check(&fake, ("VolumeClone", "cl", namespace), None);
    check(&fake, ("VolumeClone", "other", namespace), Some("no volume has the label namespace=gone"));
}

#[test]
fn volume_with_replaced_content_is_no_restore() {
    let volumes = || vec![labelled("1", "acc", json!({ "restored-by": "rr" }))];
    let mut stopped = restore_task("Restore-Stopped", ("1", "acc"));
    stopped["resumable"] = json!(true);
    for (task, names) in [(restore_task("Restore-Done", ("1", "acc")), ""), (stopped, "VolumeRestore/rr\n")] {
        let fake = with_volumes(&volumes(), &[backup("59-61", "good", ("59", "db"))], &[task]);
        assert_eq!(fake.run("get vr -o name").stdout, names);
        let status = if names.is_empty() { 4 } else { 0 };
        assert_eq!([fake.run("get vr rr").status, fake.run("delete vr rr").status], [status; 2]);
        if names.is_empty() {
            // It is not restored again.
            for spec in ["", ", replacePolicy: Delete"] {
                let spec = format!("backupLocation: nas, backupName: good, destinationVolume: acc{spec}");
                check(&fake, ("VolumeRestore", "rr", &spec), None);
            }
        }
    }
    let gone = with_volumes(&volumes(), &[], &[]);
    let spec = "backupLocation: nas, backupName: good, destinationVolume: acc, replacePolicy: Delete";
    check(&gone, ("VolumeRestore", "rr", spec), None);
}

#[test]
fn restore_is_not_repeated_when_its_backup_is_made_again() {
    // The backup of the label is gone; another one has the name.
    let again = [backup("59-62", "good", ("59", "db"))];
    for (volume_name, labels) in
        [("acc", of_rr()), ("moved", of_rr()), ("moved", json!({ "restored-by": "rr" }))]
    {
        let volumes = [labelled("1", volume_name, labels), volume("59", "db")];
        for spec in ["", ", replacePolicy: Delete"] {
            let spec = format!("backupLocation: nas, backupName: good, destinationVolume: acc{spec}");
            check(&with_volumes(&volumes, &again, &[]), ("VolumeRestore", "rr", &spec), None);
            check(&with_volumes(&volumes, &[], &[]), ("VolumeRestore", "rr", &spec), None);
        }
    }
}

#[test]
fn two_restores_of_one_volume_are_refused() {
    let fake = with_volumes(&[volume("59", "db")], &[], &[]);
    let spec = "backupLocation: nas, backupName: good, destinationVolume: db, replacePolicy: Delete";
    let ran = run_on(&fake, "apply", &[("VolumeRestore", "a", spec), ("VolumeRestore", "b", spec)]);
    let words = "line 6: VolumeRestore/b and VolumeRestore/a, in ";
    assert!(ran.status == 2 && ran.stderr.contains(words), "{ran:?}");
}

#[test]
fn schedule_of_a_volume_that_a_restore_makes_is_refused() {
    let fake = with_volumes(&[volume("59", "db")], &[backup("59-61", "good", ("59", "db"))], &[]);
    let restore = ("VolumeRestore", "rr", "backupLocation: nas, backupName: good, destinationVolume: acc");
    let schedule = "schedule: {daily: {time: '01:00'}}, template: {spec: {backupLocation: nas, volume: acc}}";
    let ran = run_on(&fake, "apply --dry-run", &[("VolumeBackupSchedule", "s", schedule), restore]);
    let hint = "hint: `blockctl volume list` shows the volumes";
    let words = ["spec.template.spec.volume: there is no volume acc", hint];
    assert!(ran.status == 4 && words.iter().all(|words| ran.stderr.contains(words)), "{ran:?}");
}

#[test]
fn exported_objects_can_be_applied() {
    let volumes = vec![labelled("1", "acc", of_rr()), volume("60", "db"), volume("61", "wal")];
    let backups = [
        backup("59-61", "older", ("59", "db")),
        backup("61-62", "good", ("61", "wal")),
        backup("59-63", "gone", ("59", "x")),
    ];
    let mut lost = task("Backup-Stopped", 1);
    (lost["name"], lost["volumeName"], lost["credentialName"]) = (json!("lost"), json!("wal"), json!(null));
    let fake = with_volumes(&volumes, &backups, &[lost]);
    let exported = fake.run("get vb,vr -o yaml");
    assert_eq!(exported.status, 0, "{exported:?}");
    for (name, why) in [("older", "is of an older volume"), ("lost", "was to go to a location that is gone")]
    {
        let words = format!("warning: VolumeBackup/{name} {why}");
        assert!(exported.stderr.contains(&words), "{exported:?}");
    }
    assert!(!exported.stdout.contains("backupLocation: \"-\""), "{exported:?}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.yaml");
    std::fs::write(&path, exported.stdout).unwrap();
    let ran = fake.run(&format!("apply -f {}", path.display()));
    let lines = "VolumeBackup/good unchanged\nVolumeBackup/gone unchanged\nVolumeRestore/rr unchanged\n";
    assert_eq!((ran.status, ran.stdout.as_str()), (0, lines), "{ran:?}");
}

#[test]
fn ambiguous_source_names_the_fields_that_select_one() {
    let at = |mut one: Value, location: &str| {
        one["credentialName"] = json!(location);
        one
    };
    let one = |suffix: &str, volume: (&str, &str), location: &str| at(backup(suffix, "cp", volume), location);
    let (db, wal) = (("59", "db"), ("60", "wal"));
    for (found, spec, fields) in [
        (vec![one("59-61", db, "nas"), one("59-62", db, "nas2")], "", "backupLocation\n"),
        (vec![one("59-61", db, "nas"), one("59-62", db, "nas")], "", "cloudSnapshotId\n"),
        (vec![one("59-61", db, "nas"), one("60-62", wal, "nas")], "", "sourceVolume or cloudSnapshotId\n"),
        (
            vec![one("59-61", db, "nas"), one("59-62", db, "nas2")],
            ", namespaceMapping: {}",
            "backupLocation\n",
        ),
    ] {
        let fake = with_volumes(&[volume("59", "db"), volume("60", "wal")], &found, &[]);
        let spec = format!("backupName: cp{spec}");
        let ran = run_on(&fake, "apply", &[("VolumeRestore", "rr", &spec)]);
        let start = "line 4: spec.backupName: VolumeBackup/cp is ambiguous (";
        let end = format!("): name its {fields}");
        assert!(ran.status == 2 && ran.stderr.contains(start) && ran.stderr.contains(&end), "{ran:?}");
    }
}

#[test]
fn namespaces_select_objects_that_their_volumes_have_or_use() {
    let mut volumes = ["shop", "web"].map(|name| labelled("59", name, json!({ "namespace": name })));
    (volumes[1]["volumeId"], volumes[1]["lastBackups"]) = (json!("60"), json!([]));
    let mut credentials = reply("GET /v1/credentials");
    let mut credentials = [credentials["items"][0].take(), credentials["items"][1].take()];
    credentials[1]["credentialId"] = json!("bf563a4d-afd7-48df-90f7-8e8f9414ff77");
    let mut schedule = reply("GET /v1/schedules")["items"][1].take();
    (schedule["name"], schedule["selector"]) =
        (json!("hourly"), json!({ "volumeId": "59", "volumeName": "shop" }));
    let mut schedules = list(json!([schedule]));
    schedules["unreadable"] = json!([]);
    let mut rule = reply("GET /v1/rules")["items"][0].take();
    (rule["volumeNames"], rule["groups"], rule["scheduleIds"]) = (json!(["web"]), json!([]), json!([]));
    let fake = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!(volumes)))),
        ("GET /v1/credentials", ok(list(json!(credentials)))),
        ("GET /v1/schedules", ok(schedules)),
        ("GET /v1/rules", ok(list(json!([rule])))),
    ]);
    let kinds = "bl,sp,rule,vbs";
    for (namespace, expected) in [
        ("shop", "BackupLocation/nas SchedulePolicy/gold VolumeBackupSchedule/hourly"),
        ("web", "Rule/pg"),
        ("none", ""),
    ] {
        let ran = fake.run(&format!("get {kinds} -n {namespace} -o name"));
        assert_eq!(ran.stdout.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{ran:?}");
    }
}

#[test]
fn removal_of_all_labels_keeps_those_of_restores() {
    let of_rr = json!({ "restored-by": "rr", "restored-from": snap("59-61") });
    let mut before = of_rr.clone();
    before["app"] = json!("shop");
    for (line, expected) in [
        ("volume update db --no-labels", of_rr),
        ("volume update db --label -restored-by,-restored-from,-app", json!({})),
        ("volume update db -l a=1 -l -app,b=2 -l a=3", json!({ "a": "3", "b": "2" })),
    ] {
        let is_changed = line.contains("-l a=1");
        let labels = if is_changed { json!({ "app": "shop" }) } else { before.clone() };
        let (asked, answer) = (labelled("59", "db", labels), labelled("59", "db", expected.clone()));
        let fake = Fake::with_defaults(vec![
            ("GET /v1/volumes/db", ok(asked)),
            ("PATCH /v1/volumes/db", ok(answer)),
        ]);
        assert_eq!(fake.run(line).status, 0);
        assert_eq!(sent(&fake, "PATCH ")["labels"], expected, "{line}");
    }
    let fake = Fake::with_defaults(vec![]);
    assert_eq!(fake.run("volume create x --size 4MiB -l a=1 -l b=2,a=3").status, 0);
    assert_eq!(sent(&fake, "POST ")["labels"], json!({ "a": "3", "b": "2" }));
}

/// Returns the body of the first request of a method.
fn sent(fake: &Fake, method: &str) -> Value {
    fake.seen().into_iter().find(|seen| seen.line.starts_with(method)).unwrap().body
}

/// Locations, policies and rules keep the metadata of their documents as labels.
#[test]
fn metadata_of_resources_is_kept_and_compared() {
    const TEXT: &str = "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: METADATA\nlocation: {type: local, path: /srv/x}\n---\n\
        apiVersion: blockd/v1\nkind: SchedulePolicy\nmetadata: METADATA\npolicy: {interval: {intervalMinutes: 60}}\n---\n\
        apiVersion: blockd/v1\nkind: Rule\nmetadata: METADATA\nspec: {preCommand: sync}\n";
    let labels = json!({ "annotation/team": "dba", "app": "db", "namespace": "shop" });
    let mut location = reply("GET /v1/credentials/nas");
    (location["name"], location["path"], location["provider"]) =
        (json!("x"), json!("/srv/x"), json!("local"));
    (location["prefix"], location["limitUploadBytesPerSecond"]) = (json!(null), json!(null));
    let made = || {
        let policy = json!({ "name": "x", "rules": [{ "when": "periodic 60min" }] });
        let mut all = [location.clone(), policy, rule("x", &[])];
        all.iter_mut().for_each(|one| one["labels"] = labels.clone());
        all
    };
    let daemon = |existing: Option<[Value; 3]>| {
        let lines = ["GET /v1/credentials", "GET /v1/sched-policies", "GET /v1/rules"];
        let mut script = world(&[], &[]);
        script.retain(|(line, _)| !lines.contains(line));
        let lists = existing.map_or([json!([]), json!([]), json!([])], |all| all.map(|one| json!([one])));
        script.extend(lines.into_iter().zip(lists.map(|one| ok(list(one)))));
        let changes = ["POST /v1/credentials", "POST /v1/sched-policies", "POST /v1/rules"];
        let updates = ["PATCH /v1/credentials/x", "PATCH /v1/sched-policies/x", "PATCH /v1/rules/x"];
        for (index, line) in changes.into_iter().chain(updates).enumerate() {
            script.push((line, ok(made()[index % 3].clone())));
        }
        Fake::start(script)
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.yaml");
    let run = |fake: &Fake, command: &str, metadata: &str| {
        std::fs::write(&path, TEXT.replace("METADATA", metadata)).unwrap();
        let ran = fake.run(&format!("{command} -f {}", path.display()));
        let changes = fake.seen().into_iter().filter(|seen| !seen.line.starts_with("GET "));
        (ran, changes.map(|seen| seen.body["labels"].clone()).collect::<Vec<_>>())
    };
    let all = "{name: x, namespace: shop, labels: {app: db}, annotations: {team: dba}}";
    let (ran, sent) = run(&daemon(None), "apply", all);
    assert!(ran.status == 0 && sent == vec![labels.clone(); 3], "{sent:?} {ran:?}");
    // Unchanged, changed and removed ones.
    let (ran, sent) = run(&daemon(Some(made())), "diff", all);
    assert!(ran.status == 0 && ran.stdout.is_empty() && sent.is_empty(), "{ran:?}");
    for (metadata, labels) in
        [("{name: x, namespace: shop}", json!({ "namespace": "shop" })), ("{name: x}", json!({}))]
    {
        let (ran, sent) = run(&daemon(Some(made())), "apply", metadata);
        assert!(ran.status == 0 && sent == vec![labels; 3], "{sent:?} {ran:?}");
    }
    // What is shown can be applied, and is selected by its namespace.
    let fake = daemon(Some(made()));
    let shown = fake.run("get bsl,sp,rule -n shop -o yaml").stdout;
    std::fs::write(&path, &shown).unwrap();
    let ran = fake.run(&format!("diff -f {}", path.display()));
    assert!(
        ran.status == 0 && ran.stdout.is_empty() && shown.matches("team: dba").count() == 3,
        "{shown} {ran:?}"
    );
    assert_eq!(fake.run("get bsl,sp,rule -n other -o name").stdout, "");
}
