//! `apply`, `diff` and `get` of objects: requests to the daemon and their order.

use crate::support::{Fake, Reply, cloudsnap, fail, list, ok, reply, snap, volume};
use serde_json::{Value, json};
use std::path::PathBuf;

pub fn rule(name: &str, volumes: &[&str]) -> Value {
    json!({ "name": name, "quiesce": { "preCommand": "sync" }, "volumeNames": volumes, "groups": [], "scheduleIds": [] })
}

/// Returns a daemon without locations.
pub fn world(rules: &[Value], schedules: &[Value]) -> Vec<(&'static str, Reply)> {
    vec![
        ("GET /v1/rules", ok(list(json!(rules)))),
        ("GET /v1/credentials", ok(list(json!([])))),
        ("GET /v1/sched-policies", ok(list(json!([])))),
        ("GET /v1/schedules", ok(list(json!(schedules)))),
        ("GET /v1/volumes", ok(list(json!([volume("1", "a"), volume("2", "b")])))),
        ("GET /v1/tasks", ok(list(json!([])))),
    ]
}

pub fn rules_file(dir: &tempfile::TempDir, rules: &[(&str, &str)]) -> PathBuf {
    let path = dir.path().join("rules.yaml");
    let one = |(name, volumes): &(&str, &str)| {
        format!(
            "apiVersion: blockd/v1\nkind: Rule\nmetadata: {{name: {name}}}\nspec: {{preCommand: sync, volumes: [{volumes}]}}\n"
        )
    };
    std::fs::write(&path, rules.iter().map(one).collect::<Vec<_>>().join("---\n")).unwrap();
    path
}

#[test]
fn unnamed_schedules_are_not_exported() {
    const UUID: &str = "078557a3-26c7-49b1-9822-34e6f816c2d1";
    let schedule = |name: Option<&str>, uuid: &str| {
        json!({
            "scheduleId": uuid, "name": name, "selector": { "volumeId": "1", "volumeName": "a" }, "credentialIds": [],
            "rules": [{ "when": "daily @21:00" }], "schedule": "daily @21:00", "retain": { "keepLast": 7 }, "local": { "keepLast": 3 },
            "full": false, "jitterSeconds": 0, "priority": "normal", "paused": false,
            "createdAt": "2019-01-16T21:51:53Z", "nextRunAt": null, "lastRunAt": null
        })
    };
    let schedules = [schedule(None, UUID), schedule(Some("nightly"), "178557a3-26c7-49b1-9822-34e6f816c2d1")];
    let fake = Fake::start(world(&[], &schedules));
    let ran = fake.run("get VolumeBackupSchedule -o yaml");
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stdout.contains("name: nightly") && !ran.stdout.contains(UUID), "{ran:?}");
    assert!(ran.stderr.contains(UUID) && ran.stderr.contains("left out"), "{ran:?}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.yaml");
    std::fs::write(&path, &ran.stdout).unwrap();
    let ran = fake.run(&format!("apply --dry-run -f {}", path.display()));
    assert_eq!(ran.status, 0, "{ran:?}");
    let ran = fake.run(&format!("get VolumeBackupSchedule {UUID} -o yaml"));
    assert!(ran.stdout.contains(UUID) && ran.stderr.contains("has no name"), "{ran:?}");
    // Tables of 80 columns have short ids.
    let short = &UUID[..8];
    assert!(fake.run("get VolumeBackupSchedule").stdout.contains(&format!("\n{short}  ")));
    assert!(fake.run("get VolumeBackupSchedule -o wide").stdout.contains(UUID));
    assert_eq!(fake.run(&format!("get VolumeBackupSchedule {short} -o name")).status, 0);
}

#[test]
fn partial_apply_reports_completed_objects() {
    let dir = tempfile::tempdir().unwrap();
    let path = rules_file(&dir, &[("first", ""), ("second", "a"), ("third", "")]);
    let script = || {
        let mut script = world(&[rule("second", &[])], &[]);
        script.push(("POST /v1/rules", ok(rule("first", &[]))));
        script.push(("POST /v1/rules/second/assign", fail(409, "rule_in_use", "volume a has another one")));
        script
    };
    let fake = Fake::start(script());
    let ran = fake.run(&format!("-j apply -f {}", path.display()));
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.status, &told["error"]["code"]), (5, &json!("rule_in_use")), "{ran:?}");
    let object = |name: &str, result: &str| json!({ "kind": "Rule", "name": name, "result": result });
    let all = [object("first", "created"), object("second", "failed"), object("third", "not tried")];
    assert_eq!(told["items"], json!(all), "{told:#}");
    let fake = Fake::start(script());
    let ran = fake.run(&format!("apply -f {}", path.display()));
    assert_eq!((ran.status, ran.stdout.as_str()), (5, "Rule/first created\n"), "{ran:?}");
    let words = "Rule/second failed; not tried: Rule/third\n";
    assert!(ran.stderr.contains(words) && ran.stderr.contains("error: volume a has another one"), "{ran:?}");

    // The same for removals.
    let mut script = world(&[rule("first", &[]), rule("second", &[])], &[]);
    script.push(("GET /v1/rules/first", ok(rule("first", &[]))));
    script.push(("DELETE /v1/rules/first", ok(json!({ "name": "first" }))));
    script.push(("GET /v1/rules/second", ok(rule("second", &[]))));
    script.push(("DELETE /v1/rules/second", fail(409, "rule_in_use", "no")));
    let ran = Fake::start(script).run(&format!("-j delete -f {}", path.display()));
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    let all = [object("first", "deleted"), object("second", "failed"), object("third", "not tried")];
    assert_eq!((ran.status, &told["items"]), (5, &json!(all)), "{told:#}");
}

#[test]
fn schedule_is_deleted_with_its_backups_if_its_policy_says_so() {
    const ID: &str = "078557a3-26c7-49b1-9822-34e6f816c2d1";
    let route = |method: &str, rest: &str| format!("{method} /v1/schedules/{ID}{rest}");
    let (pause, plan, delete) = (route("PATCH", ""), route("GET", "/retention"), route("DELETE", ""));
    let run = |stored: &str, line: &str, is_pinned: bool| {
        let mut schedule = reply("GET /v1/schedules")["items"][0].take();
        schedule["labels"] = json!({ "reclaim-policy": stored });
        let mut kept = reply(&plan);
        if is_pinned {
            kept["items"][2]["verdict"] = json!({ "keep": [{ "kind": "pinned" }] });
        }
        let fake = Fake::with_defaults(vec![
            ("GET /v1/schedules", ok(list(json!([schedule])))),
            (plan.as_str(), ok(kept)),
            ("GET /v1/tasks", ok(list(json!([])))),
        ]);
        let ran = fake.run(line);
        (ran, fake.changes())
    };
    let both = ["POST /v1/cloudsnaps/delete", "POST /v1/cloudsnaps/delete"];
    let all = [&[pause.as_str()][..], &both, &[delete.as_str()]].concat();
    let (ran, seen) = run("Delete", "delete VolumeBackupSchedule nightly", false);
    assert_eq!((ran.status, seen), (0, all.iter().map(ToString::to_string).collect()), "{ran:?}");
    let (ran, seen) = run("Delete", "delete VolumeBackupSchedule nightly --dry-run", false);
    assert_eq!((ran.status, seen), (0, Vec::new()), "{ran:?}");
    let (ran, seen) = run("Retain", "delete VolumeBackupSchedule nightly", false);
    assert_eq!((ran.status, seen), (0, vec![delete.clone()]), "{ran:?}");
    // Nothing is deleted if one of several cannot be.
    let (ran, seen) = run("Delete", "-j delete VolumeBackupSchedule nightly", true);
    assert_eq!((&ran.json()["error"]["code"], seen), (&json!("cloudsnap_pinned"), Vec::new()), "{ran:?}");

    // The policy of the file wins.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("schedule.yaml");
    for (policy, count) in [("Retain", 1), ("Delete", 4)] {
        let text = format!(
            "apiVersion: blockd/v1\nkind: VolumeBackupSchedule\nmetadata: {{name: nightly}}\nspec: {{schedulePolicyName: gold, template: {{spec: {{backupLocation: nas, volume: db, reclaimPolicy: {policy}}}}}}}\n"
        );
        std::fs::write(&path, text).unwrap();
        let stored = if policy == "Retain" { "Delete" } else { "Retain" };
        let (ran, seen) = run(stored, &format!("delete -f {}", path.display()), false);
        assert_eq!((ran.status, seen.len()), (0, count), "{policy}: {ran:?} {seen:?}");
    }
}

#[test]
fn schedule_has_a_reclaim_policy_beside_that_of_backups() {
    const PLAN: &str = "GET /v1/schedules/078557a3-26c7-49b1-9822-34e6f816c2d1/retention";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("schedule.yaml");
    // Labels of the schedule, policies of a file, and if the backups are deleted.
    for (own, of_backups, deletes) in [
        ("Delete", "", true),
        ("Retain", "Delete", false),
        ("Delete", "Retain", false),
        ("", "Delete", true),
        ("Delete", "Delete", true),
    ] {
        let mut schedule = reply("GET /v1/schedules")["items"][0].take();
        let stored = [("schedule-reclaim-policy", own), ("reclaim-policy", of_backups)];
        schedule["labels"] = stored.into_iter().filter(|(_, policy)| !policy.is_empty()).collect();
        (schedule["selector"], schedule["credentialIds"]) = (json!({ "all": true }), json!([]));
        schedule["retainAt"] = json!([]);
        let fake = |schedule: &Value| {
            Fake::with_defaults(vec![
                ("GET /v1/schedules", ok(list(json!([schedule])))),
                (PLAN, ok(reply(PLAN))),
                ("GET /v1/tasks", ok(list(json!([])))),
            ])
        };
        let is_deleted = |fake: &Fake| fake.changes().iter().any(|line| line == "POST /v1/cloudsnaps/delete");
        let stored = fake(&schedule);
        let shown = stored.run("get VolumeBackupSchedule nightly -o json").json();
        assert_eq!(shown["spec"]["reclaimPolicy"].as_str().unwrap_or_default(), own, "{shown:#}");
        assert_eq!(stored.run("delete VolumeBackupSchedule nightly").status, 0);
        assert_eq!(is_deleted(&stored), deletes, "{own} {of_backups}");

        // The policies of a file win over stored ones.
        let text = format!(
            "apiVersion: blockd/v1\nkind: VolumeBackupSchedule\nmetadata: {{name: nightly}}\nspec:\n  schedulePolicyName: gold\n  reclaimPolicy: {own}\n  template: {{spec: {{backupLocation: nas, volume: db, reclaimPolicy: {of_backups}}}}}\n"
        );
        std::fs::write(&path, text).unwrap();
        let other = if deletes { "Retain" } else { "Delete" };
        schedule["labels"] = json!({ "schedule-reclaim-policy": other });
        let given = fake(&schedule);
        let ran = given.run(&format!("delete -f {}", path.display()));
        assert_eq!((ran.status, is_deleted(&given)), (0, deletes), "{own} {of_backups}: {ran:?}");
    }
}

#[test]
fn object_with_a_pinned_backup_is_not_deleted_in_part() {
    let backup = |suffix: &str, (id, volume): (&str, &str), pinned: bool| {
        let mut found = cloudsnap(suffix);
        (found["volumeId"], found["volumeName"]) = (json!(id), json!(volume));
        (found["name"], found["pinned"]) = (json!("before"), json!(pinned));
        found
    };
    let (db, log) = (("59", "db"), ("60", "log"));
    let listed = |is_leased: bool| {
        let mut kept = backup("60-62", log, true);
        if is_leased {
            kept["pinnedBy"] = json!("lease");
            kept["leases"] = json!([{ "host": "db2", "volumeId": "7" }]);
        }
        let found = [backup("59-61", db, false), kept];
        ok(json!({ "items": found, "next": null, "damaged": [], "failedCredentials": [], "total": 2 }))
    };
    let fake = |is_leased| {
        Fake::with_defaults(vec![
            ("GET /v1/volumes", ok(list(json!([volume(db.0, db.1), volume(log.0, log.1)])))),
            ("GET /v1/tasks", ok(list(json!([])))),
            ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
            ("GET /v1/cloudsnaps", listed(is_leased)),
        ])
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup.yaml");
    let object = "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: before}\n\
        spec: {backupLocation: nas, selectors: {app: mysql}, reclaimPolicy: Delete}\n";
    std::fs::write(&file, object).unwrap();
    for (is_leased, dry) in [(false, ""), (false, " --dry-run"), (true, "")] {
        let fake = fake(is_leased);
        let refused = fake.run(&format!("-j delete -f {}{dry}", file.display()));
        let error = &refused.json()["error"];
        assert_eq!(refused.status, 5, "{refused:?}");
        let words = match is_leased {
            false => ["cloudsnap_pinned".to_owned(), format!("unpin --snap {}", snap("60-62"))],
            true => ["host db2, volume 7".to_owned(), format!("delete {} --force", snap("60-62"))],
        };
        assert!(words.iter().all(|words| error.to_string().contains(words)), "{error}");
        assert!(fake.changes().is_empty(), "{:?}", fake.seen());
    }
}

#[test]
fn snapshots_of_other_volumes_stay() {
    let snapshot = |id: &str, volume_id: &str, volume: &str| {
        let mut found = reply("GET /v1/snapshots")["items"][0].take();
        (found["snapshotId"], found["name"]) = (json!(id), json!("daily"));
        (found["volumeId"], found["volumeName"]) = (json!(volume_id), json!(volume));
        found
    };
    let run = |line: &str| {
        let mut script = world(&[], &[]);
        let found = [snapshot("11", "1", "a"), snapshot("12", "2", "b")];
        script.push(("GET /v1/snapshots", ok(list(json!(found)))));
        for route in ["DELETE /v1/snapshots/11", "DELETE /v1/snapshots/12"] {
            script.push((route, ok(reply("GET /v1/snapshots")["items"][0].take())));
        }
        let fake = Fake::start(script);
        (fake.run(line), fake.changes())
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot.yaml");
    let document = |volumes: &str| {
        let text = format!(
            "apiVersion: blockd/v1\nkind: VolumeSnapshot\nmetadata: {{name: daily}}\nspec: {{{volumes}}}\n"
        );
        std::fs::write(&path, text).unwrap();
        format!("delete -f {}", path.display())
    };
    let (ran, seen) = run(&document("volume: a"));
    assert_eq!(ran.stdout, "VolumeSnapshot/daily deleted: a@daily\n", "{ran:?}");
    assert_eq!(seen, ["DELETE /v1/snapshots/11"]);
    let (ran, seen) = run(&format!("{} --dry-run", document("volume: [b, a]")));
    assert_eq!(ran.stdout, "VolumeSnapshot/daily deleted: a@daily, b@daily (dry run)\n", "{ran:?}");
    assert!(seen.is_empty(), "{seen:?}");
    let (ran, seen) = run(&document("volume: c"));
    assert_eq!((ran.stdout.as_str(), seen), ("VolumeSnapshot/daily not there\n", Vec::new()), "{ran:?}");

    // By its name, a snapshot of one volume.
    let (ran, seen) = run("delete VolumeSnapshot daily");
    assert!(ran.status == 2 && seen.is_empty(), "{ran:?} {seen:?}");
    assert!(ran.stderr.contains("is ambiguous (a@daily, b@daily): add --volume"), "{ran:?}");
    let (ran, seen) = run("-j delete VolumeSnapshot daily --volume b");
    assert_eq!(ran.json()["items"][0]["snapshots"], json!(["b@daily"]), "{ran:?}");
    assert_eq!(seen, ["DELETE /v1/snapshots/12"]);
    assert_eq!(run("delete VolumeSnapshot daily --volume c").0.status, 4);
    assert_eq!(run("delete Rule pg --volume a").0.status, 2);
}

const NATIVE: &str = "apiVersion: blockd/v1";
/// Objects that name a missing one: version, kind, content, error code of the daemon, and message.
const MISSING: [(&str, &str, &str, &str, &str); 10] = [
    (
        NATIVE,
        "VolumeBackup",
        "volume: a\n  backupLocation: mysql",
        "",
        "line 6: spec.backupLocation: there is no BackupLocation/mysql",
    ),
    (
        NATIVE,
        "VolumeBackup",
        "volume: a\n  postExecRule: x",
        "",
        "line 6: spec.postExecRule: there is no Rule/x",
    ),
    (
        "apiVersion: velero.io/v1",
        "Backup",
        "ttl: 1h\n  storageLocation: x",
        "",
        "line 6: spec.storageLocation: there is no BackupLocation/x",
    ),
    (
        "apiVersion: stork.libopenstorage.org/v1alpha1",
        "ApplicationBackupSchedule",
        "schedulePolicyName: x\n  template: {spec: {backupLocation: nas}}",
        "",
        "line 5: spec.schedulePolicyName: there is no SchedulePolicy/x",
    ),
    (
        "apiVersion: stork.libopenstorage.org/v1alpha1",
        "ApplicationRestore",
        "backupLocation: nas\n  backupName: gone",
        "",
        "line 6: spec.backupName: there is no VolumeBackup/gone in BackupLocation/nas",
    ),
    (
        NATIVE,
        "VolumeClone",
        "sourceVolume: a\n  snapshot: x",
        "",
        "line 6: spec.snapshot: there is no snapshot a@x",
    ),
    (NATIVE, "Rule", "preCommand: sync\n  volumes: [x]", "", "line 6: spec.volumes: there is no volume x"),
    (NATIVE, "VolumeBackup", "backupLocation: nas\n  group: x", "", "line 6: spec.group: no volume is in"),
    (
        NATIVE,
        "VolumeBackup",
        "backupLocation: nas\n  volume: [a, x]",
        "",
        "line 6: spec.volume: there is no volume x",
    ),
    (NATIVE, "VolumeSnapshot", "volume: [a, x]", "", "line 5: spec.volume: there is no volume x"),
];

#[test]
fn missing_references_name_line_and_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.yaml");
    for (version, kind, spec, failure, words) in MISSING {
        std::fs::write(&path, format!("{version}\nkind: {kind}\nmetadata: {{name: one}}\nspec:\n  {spec}\n"))
            .unwrap();
        let mut script = vec![
            ("GET /v1/volumes", ok(list(json!([volume("1", "a"), volume("2", "b")])))),
            ("GET /v1/schedules", ok(list(json!([])))),
            ("GET /v1/tasks", ok(list(json!([])))),
            ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ];
        for route in [
            "POST /v1/cloudsnaps/backup",
            "POST /v1/cloudsnaps/backup-group",
            "POST /v1/schedules",
            "POST /v1/volumes/a/clone",
        ] {
            script.push((route, fail(404, failure, "no")));
        }
        let ran = Fake::with_defaults(script).run(&format!("apply -f {}", path.display()));
        let words = format!("error: {}: {words}", path.display());
        assert!(ran.status == 4 && ran.stderr.contains(&words), "{words}: {ran:?}");
    }
    std::fs::write(
        &path,
        "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: one}\nspec: {volume: a}\n",
    )
    .unwrap();
    let ran = Fake::start(world(&[], &[])).run(&format!("apply -f {}", path.display()));
    assert!(ran.stderr.contains("line 4: spec.backupLocation: missing: there is no location"), "{ran:?}");
}

#[test]
fn schedule_is_described_with_the_events_of_its_runs() {
    let (task, other) = (crate::support::TASK, "4f4f0a67-e12a-4d35-81ad-985657757352");
    let event = |id: u64, kind: &str, task: Option<&str>, message: &str| {
        json!({
            "eventId": id, "occurredAt": "2019-01-16T22:00:00Z", "severity": "info", "kind": kind, "volumeName": "db",
            "credentialName": "nas", "taskId": task, "message": message
        })
    };
    let mut of_backup = event(4, "delete-done", Some(other), "its backup");
    of_backup["cloudSnapshotId"] = json!(snap("59-61"));
    let events = [
        event(1, "backup-done", Some(other), "by hand"),
        event(2, "backup-done", Some(task), "its run"),
        event(3, "run-skipped", None, "a run of schedule nightly is skipped: busy"),
        of_backup,
        event(5, "run-failed", None, "a run of schedule nightly-2 failed: full"),
        event(6, "restore-done", Some(other), "a restore"),
    ];
    let mut run = reply("GET /v1/schedule-runs")["items"][0].take();
    (run["taskId"], run["cloudSnapshotId"]) = (json!(task), json!(snap("59-61")));
    let fake = Fake::with_defaults(vec![
        ("GET /v1/events", ok(list(json!(events)))),
        ("GET /v1/schedule-runs", ok(list(json!([run])))),
    ]);
    let described = fake.run("-j describe VolumeBackupSchedule nightly").json();
    let events = described["items"][0]["events"].as_array().unwrap();
    let told: Vec<_> = events.iter().map(|event| event["message"].as_str().unwrap()).collect();
    assert_eq!(
        told,
        ["its backup", "a run of schedule nightly is skipped: busy", "its run"],
        "{described:#}"
    );
}

#[test]
fn backup_under_way_is_told_apart_from_a_stored_one() {
    let mut running = crate::support::task("Backup-Active", 1);
    (running["name"], running["volumeName"]) = (json!("before"), json!("a"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup.yaml");
    let text = "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: before}\nspec: {backupLocation: nas, volume: a}\n";
    std::fs::write(&path, text).unwrap();
    let listed = json!({ "items": [], "next": null, "damaged": [], "failedCredentials": [], "total": 0 });
    let fake = Fake::with_defaults(vec![
        ("GET /v1/tasks", ok(list(json!([running])))),
        ("GET /v1/cloudsnaps", ok(listed)),
    ]);
    let ran = fake.run(&format!("delete -f {}", path.display()));
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "VolumeBackup/before still being made\n"), "{ran:?}");
}

#[test]
fn backups_of_one_snapshot_are_objects_of_their_own() {
    let backup = |suffix: &str, volume: &str, minute: u8| {
        let mut found = cloudsnap(suffix);
        (found["name"], found["volumeId"], found["volumeName"]) =
            (json!("kept"), json!(volume), json!(format!("v{volume}")));
        found["startedAt"] = json!(format!("2019-01-16T21:{minute}:00Z"));
        found["completedAt"] = json!(format!("2019-01-16T21:{minute}:05Z"));
        found
    };
    let found = [backup("1-61", "1", 10), backup("2-61", "2", 10), backup("1-62", "1", 15)];
    let listed = json!({ "items": found, "next": null, "damaged": [], "failedCredentials": [], "total": 3 });
    let fake = Fake::with_defaults(vec![
        ("GET /v1/tasks", ok(list(json!([])))),
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/cloudsnaps", ok(listed)),
    ]);
    let found = fake.run("-j get vb").json();
    let status = |nth: usize| {
        let status = &found["items"][nth]["status"];
        (status["volumeCount"].as_u64().unwrap(), status["elapsedSeconds"].as_f64().unwrap())
    };
    assert_eq!([status(0), status(1)], [(2, 5.0), (1, 5.0)], "{found:#}");
    // Only another host is named.
    assert!(found["items"][0]["status"]["clusterId"].is_null(), "{found:#}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    let apply = |source: &str| {
        let text = format!(
            "apiVersion: blockd/v1\nkind: VolumeRestore\nmetadata: {{name: back}}\nspec: {{backupName: kept{source}}}\n"
        );
        std::fs::write(&path, text).unwrap();
        fake.run(&format!("apply -f {}", path.display()))
    };
    for (source, advice) in [("", "sourceVolume or "), (", sourceVolume: v1", "")] {
        let refused = apply(source);
        let words = format!("): name its {advice}cloudSnapshotId\n");
        assert!(refused.stderr.contains(&words), "{refused:?}");
    }
    let refused = fake.run("delete vb kept --volume v1");
    assert!(refused.stderr.contains("): give the id instead of the name\n"), "{refused:?}");
}

#[test]
fn tables_of_all_kinds_fit_80_columns() {
    let long = |text: &str, len: usize| text.repeat(len / text.len());
    let mut hook = rule(&long("rule", 40), &["a", "b"]);
    hook["quiesce"] = json!({ "preCommand": long("sync; ", 120), "postCommand": long("\tsync", 90) });
    hook["volumeNames"] = json!([long("volume-a", 40), long("volume-b", 40)]);
    let mut schedule = reply("GET /v1/schedules")["items"][0].take();
    schedule["name"] = json!(long("nightly", 42));
    schedule["selector"]["volumeName"] = json!(long("volume", 42));
    let mut backup = cloudsnap("59-61");
    (backup["name"], backup["volumeName"]) = (json!(long("before", 60)), json!("db"));
    let mut credential = reply("GET /v1/credentials/nas");
    (credential["name"], credential["path"]) = (json!(long("nas", 60)), json!(long("/srv", 80)));
    let mut clone = volume("77", &long("copy", 60));
    clone["labels"] =
        json!({ "cloned-by": long("clone", 60), "cloned-from": format!("{}@x", long("db", 40)) });
    let listed =
        json!({ "items": [backup], "next": null, "damaged": [], "failedCredentials": [], "total": 1 });
    let fake = Fake::with_defaults(vec![
        ("GET /v1/rules", ok(list(json!([hook])))),
        ("GET /v1/schedules", ok(list(json!([schedule])))),
        ("GET /v1/credentials", ok(list(json!([credential])))),
        ("GET /v1/volumes", ok(list(json!([volume("9", "db"), clone])))),
        ("GET /v1/cloudsnaps", ok(listed)),
    ]);
    for kinds in ["rule", "all", "bl", "vb", "vbs", "vc", "vr", "vs", "sp"] {
        let ran = fake.run(&format!("get {kinds}"));
        let wide: Vec<&str> = ran.stdout.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(ran.status == 0 && wide.is_empty(), "{kinds}: {wide:#?}");
    }
}
