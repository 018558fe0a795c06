//! Restores of objects: their sources, their volumes and their names.

use crate::support::{CLUSTER, Fake, cloudsnap, list, ok, reply, snap, task, volume};
use serde_json::{Value, json};

pub const OTHER_CLUSTER: &str = "fe431d7d-0b42-4a4b-9496-f3e9050d0f68";

/// Starts a daemon with these volumes and a backup `before` of volumes: cluster, id, name at its time and
/// namespace.
pub fn with_backup(volumes: &[(&str, &str)], backup: &[(&str, &str, &str, &str)]) -> Fake {
    let volumes: Vec<Value> = volumes.iter().map(|(id, name)| volume(id, name)).collect();
    let one = |(cluster, id, name, namespace): &(&str, &str, &str, &str)| {
        let mut found = cloudsnap("59-61");
        found["cloudSnapshotId"] = json!(format!("{cluster}/{id}-61"));
        (found["volumeId"], found["volumeName"]) = (json!(id), json!(name));
        (found["name"], found["labels"]) = (json!("before"), json!({ "namespace": namespace }));
        found["backupLabels"] = json!({ "reclaim-policy": "Delete" });
        found
    };
    let found: Vec<Value> = backup.iter().map(one).collect();
    let total = found.len();
    let listed =
        json!({ "items": found, "next": null, "damaged": [], "failedCredentials": [], "total": total });
    Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!(volumes)))),
        ("GET /v1/tasks", ok(list(json!([])))),
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/cloudsnaps", ok(listed)),
    ])
}

/// Applies a document and returns the cloud snapshots that are restored, and the volumes: names of new ones,
/// ids of existing ones.
pub fn restored(fake: &Fake, text: &str) -> Vec<(String, String)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    std::fs::write(&path, text).unwrap();
    let ran = fake.run(&format!("apply --yes -f {}", path.display()));
    assert_eq!(ran.status, 0, "{ran:?}");
    let seen = fake.seen().into_iter().filter(|seen| !seen.line.starts_with("GET "));
    let one = |body: Value| {
        let volume = if body["volume"].is_null() { &body["volumeName"] } else { &body["volume"] };
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&body["cloudSnapshotId"]), text(volume))
    };
    seen.map(|seen| one(seen.body)).collect()
}

fn restore_document(spec: &str) -> String {
    format!(
        "apiVersion: blockd/v1\nkind: VolumeRestore\nmetadata: {{name: back}}\nspec: {{backupName: before, {spec}}}\n"
    )
}

#[test]
fn restore_finds_renamed_volumes_by_their_ids() {
    let pair = |cluster: &str, id: &str, volume: &str| (format!("{cluster}/{id}-61"), volume.to_owned());
    let own = [(CLUSTER, "1", "a", "shop"), (CLUSTER, "9", "gone", "shop")];
    let volumes = [("1", "old"), ("2", "a"), ("3", "gone")];
    let all = restore_document("namespaceMapping: {}, replacePolicy: Delete");
    let found = restored(&with_backup(&volumes, &own), &all);
    assert_eq!(found, [pair(CLUSTER, "1", "1"), pair(CLUSTER, "9", "3")]);
    let one = restore_document("sourceVolume: old, destinationVolume: new");
    assert_eq!(restored(&with_backup(&volumes, &own), &one), [pair(CLUSTER, "1", "new")]);
    // The ids of another host have no meaning here.
    let other = [(OTHER_CLUSTER, "1", "a", "shop")];
    let found = restored(&with_backup(&volumes, &other), &all);
    assert_eq!(found, [pair(OTHER_CLUSTER, "1", "2")]);
}

#[test]
fn replacing_restore_sets_its_label_with_the_start() {
    let fake = with_backup(&[("1", "a")], &[(CLUSTER, "1", "a", "shop")]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    std::fs::write(&path, restore_document("destinationVolume: a, replacePolicy: Delete")).unwrap();
    let ran = fake.run(&format!("apply -f {}", path.display()));
    assert_eq!(fake.changes(), ["POST /v1/cloudsnaps/restore-in-place"], "{ran:?}");
    let note = "note: the previous content of new is kept as snapshot new@before-restore";
    assert!(ran.stderr.contains(note), "{ran:?}");
    let sent = fake.seen().into_iter().find(|seen| seen.line.starts_with("POST ")).unwrap();
    assert_eq!(sent.body["labels"], json!({ "restored-by": "back", "restored-from": snap("1-61") }));
}

#[test]
fn unknown_source_volume_is_told_with_those_of_this_host() {
    let all = [(CLUSTER, "1", "pg", "shop"), (OTHER_CLUSTER, "7", "lzv", "shop")];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    for (backup, name, volumes) in [(&all[..], "lzv", "pg"), (&all[1..], "pg", "lzv")] {
        let spec = format!("sourceVolume: {name}, destinationVolume: new");
        std::fs::write(&path, restore_document(&spec)).unwrap();
        let ran = with_backup(&[("1", "pg")], backup).run(&format!("diff -f {}", path.display()));
        let words = format!("has no volume {name}: its volumes are {volumes}\n");
        assert!(ran.stderr.contains(&words), "{ran:?}");
    }
}

#[test]
fn replacing_restore_names_another_source_volume() {
    let volumes = [("1", "a"), ("2", "b")];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    for (cluster, destination, source) in [
        (CLUSTER, "a", ""),
        (CLUSTER, "b", " (by that of another volume, a, 4 GiB)"),
        (OTHER_CLUSTER, "a", " (by that of another volume, a of host fe431d7d, 4 GiB)"),
    ] {
        let text = restore_document(&format!("destinationVolume: {destination}, replacePolicy: Delete"));
        std::fs::write(&path, text).unwrap();
        let fake = with_backup(&volumes, &[(cluster, "1", "a", "shop")]);
        let ran = fake.run(&format!("diff -f {}", path.display()));
        let words =
            format!("replaces the content of volume {destination}{source}, which is kept as a snapshot\n");
        assert!(ran.stderr.contains(&words), "{words}{ran:?}");
    }
}

#[test]
fn kept_volumes_are_named_with_the_replacing_field() {
    let fake =
        || with_backup(&[("1", "va"), ("2", "vb")], &[(CLUSTER, "1", "va", "a"), (CLUSTER, "2", "vb", "b")]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    let stork = "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: ApplicationRestore\nmetadata: {name: back}\nspec: {backupName: before, backupLocation: nas}\n";
    let velero =
        "apiVersion: velero.io/v1\nkind: Restore\nmetadata: {name: back}\nspec: {backupName: before}\n";
    let native = restore_document("sourceVolume: vb, destinationVolume: vb");
    for (text, kept, replacing) in [
        (stork, ["va", "vb"].as_slice(), "replacePolicy: Delete"),
        (velero, &["va", "vb"], "existingResourcePolicy: update"),
        (native.as_str(), &["vb"], "replacePolicy: Delete"),
    ] {
        std::fs::write(&path, text).unwrap();
        let ran = fake().run(&format!("apply -f {}", path.display()));
        let note = |volume: &&str| {
            format!(
                "note: VolumeRestore/back: volume {volume} exists and is kept; `{replacing}` restores into it\n"
            )
        };
        let notes: String = kept.iter().map(note).collect();
        assert_eq!(
            (ran.stdout.as_str(), ran.stderr.as_str()),
            ("VolumeRestore/back unchanged\n", notes.as_str())
        );
        let ran = fake().run(&format!("-j apply -f {}", path.display()));
        assert_eq!(ran.json()["items"][0]["keptVolumes"], json!(kept), "{ran:?}");
    }
}

#[test]
fn restore_of_velero_replaces_only_selected_volumes() {
    let document = |spec: &str| {
        format!(
            "apiVersion: velero.io/v1\nkind: Restore\nmetadata: {{name: back}}\nspec: {{backupName: before, existingResourcePolicy: update, {spec}}}\n"
        )
    };
    let fake =
        || with_backup(&[("1", "va"), ("2", "vb")], &[(CLUSTER, "1", "va", "a"), (CLUSTER, "2", "vb", "b")]);
    for spec in [
        "includedNamespaces: [a]",
        "excludedNamespaces: [b]",
        "includedNamespaces: [a, b], excludedNamespaces: [b]",
        "labelSelector: {matchLabels: {namespace: a}}",
    ] {
        let found = restored(&fake(), &document(spec));
        assert_eq!(found, [(snap("1-61"), "1".to_owned())], "{spec}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("velero.yaml");
    std::fs::write(&path, document("includedNamespaces: [c]")).unwrap();
    let fake = fake();
    let ran = fake.run(&format!("apply -f {}", path.display()));
    let words = "spec.includedNamespaces: VolumeBackup/before has no volume with the selected labels";
    assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");

    // A deletion that a file limits in another way than here is refused.
    let text = "apiVersion: velero.io/v1\nkind: Backup\nmetadata: {name: before}\nspec:\n  storageLocation: nas\n  excludedNamespaces: [a]\n";
    std::fs::write(&path, text).unwrap();
    let ran = fake.run(&format!("delete -f {}", path.display()));
    let words = "line 6: spec.excludedNamespaces: not supported: the volumes that it excludes would be lost";
    assert!(ran.status == 2 && ran.stderr.contains(words), "{ran:?}");
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
}

/// Returns a list of the backup `before` of volume `a`, or of none.
fn listed(is_stored: bool) -> Value {
    let mut found = cloudsnap("59-61");
    (found["name"], found["volumeName"]) = (json!("before"), json!("a"));
    let found = if is_stored { vec![found] } else { Vec::new() };
    let total = found.len();
    json!({ "items": found, "next": null, "damaged": [], "failedCredentials": [], "total": total })
}

/// Returns the task of the backup `before` of a volume.
fn backup_task(state: &str, volume: &str) -> Value {
    let mut made = task(state, 1);
    (made["name"], made["volumeName"]) = (json!("before"), json!(volume));
    made["cloudSnapshotId"] = json!(null);
    made
}

#[test]
fn backup_that_ends_during_the_lookup_is_awaited() {
    let (running, ended) = (backup_task("Backup-Active", "a"), backup_task("Backup-Done", "a"));
    let object = |kind: &str, spec: &str| {
        format!("apiVersion: blockd/v1\nkind: {kind}\nmetadata: {{name: before}}\nspec: {spec}\n---\n")
    };
    let volume_of = "{spec: {backupLocation: nas, volume: a}}";
    let text = object("VolumeBackup", "{backupLocation: nas, volume: a}")
        + &object("VolumeBackupSchedule", &format!("{{schedulePolicyName: gold, template: {volume_of}}}"))
        + &restore_document("backupLocation: nas");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("both.yaml");
    std::fs::write(&path, text).unwrap();
    // Tasks after the start of the backup, cloud snapshots, and tasks after the creation of the schedule.
    for (tasks, is_stored, last, status) in [
        (&ended, true, &ended, 0),
        (&running, true, &ended, 0),
        (&running, false, &ended, 0),
        (&running, false, &running, 6),
    ] {
        for wait in ["", " --wait"] {
            let fake = Fake::with_defaults(vec![
                ("GET /v1/volumes", ok(list(json!([volume("59", "a")])))),
                ("GET /v1/schedules", ok(list(json!([])))),
                ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
                ("GET /v1/tasks", ok(list(json!([])))),
                ("GET /v1/tasks", ok(list(json!([tasks])))),
                ("GET /v1/tasks", ok(list(json!([last])))),
                ("GET /v1/tasks", ok(list(json!([if wait.is_empty() { last } else { &ended }])))),
                ("GET /v1/cloudsnaps", ok(listed(false))),
                ("GET /v1/cloudsnaps", ok(listed(is_stored))),
                ("GET /v1/cloudsnaps", ok(listed(true))),
            ]);
            let ran = fake.run(&format!("apply{wait} -f {}", path.display()));
            let status = if wait.is_empty() { status } else { 0 };
            let end = if status == 0 { "started" } else { "waiting" };
            let line = format!("VolumeRestore/back {end}");
            assert!(ran.status == status && ran.stdout.contains(&line), "{is_stored}{wait}: {ran:?}");
        }
    }
}

#[test]
fn restore_of_one_volume_awaits_no_other() {
    let fake = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([volume("59", "a"), volume("60", "b")])))),
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/tasks", ok(list(json!([backup_task("Backup-Active", "b")])))),
        ("GET /v1/cloudsnaps", ok(listed(true))),
    ]);
    let found = restored(&fake, &restore_document("sourceVolume: a"));
    assert_eq!(found, [(snap("59-61"), "back".to_owned())]);
}

/// Returns a volume with labels.
fn labelled(id: &str, name: &str, labels: &Value) -> Value {
    let mut found = volume(id, name);
    found["labels"] = labels.clone();
    found
}

#[test]
fn restores_and_clones_have_their_own_names() {
    let restored = |id: &str| json!({ "restored-by": "back", "restored-from": snap(&format!("{id}-61")) });
    let cloned = |of: &str| json!({ "cloned-by": "copy", "cloned-from": format!("{of}@clone-1") });
    let mut of_deleted = task("Restore-Done", 1);
    (of_deleted["volumeId"], of_deleted["volumeName"]) = (json!("99"), json!("gone"));
    let mut by_command = of_deleted.clone();
    (by_command["volumeId"], by_command["volumeName"]) = (json!("5"), json!("old-name"));
    let fake = Fake::with_defaults(vec![
        (
            "GET /v1/volumes",
            ok(list(json!([
                labelled("1", "a", &restored("11")),
                labelled("2", "b", &restored("12")),
                labelled("3", "a-copy", &cloned("a")),
                labelled("4", "b-copy", &cloned("b")),
                volume("5", "plain"),
                volume("6", "gone"),
            ]))),
        ),
        ("GET /v1/tasks", ok(list(json!([of_deleted, by_command])))),
    ]);
    let names = fake.run("get vr,vc -o name").stdout;
    assert_eq!(names, "VolumeRestore/back\nVolumeRestore/plain\nVolumeClone/copy\n");
    let found = fake.run("-j get applicationrestore back").json();
    assert_eq!(found["spec"]["destinationVolume"], json!(["a", "b"]), "{found:#}");
    assert_eq!(found["spec"]["cloudSnapshotId"], json!([snap("11-61"), snap("12-61")]));
    assert_eq!(
        (&found["status"]["doneCount"], &found["status"]["status"]),
        (&json!(2), &json!("Successful"))
    );
    let found = fake.run("-j describe applicationclone copy").json();
    assert_eq!(found["items"][0]["status"]["volumes"][1]["origin"], "b@clone-1", "{found:#}");
    let wide = fake.run("get vc -o wide").stdout;
    assert!(wide.contains("a@clone-1,b@clone-1") && wide.contains("a-copy,b-copy"), "{wide}");
    // Documents with several volumes are for reading.
    let yaml = fake.run("get vr,vc -o yaml");
    assert!(yaml.stdout.contains("name: plain") && !yaml.stdout.contains("name: back"), "{yaml:?}");
    assert!(yaml.stderr.contains("VolumeClone/copy has several volumes"), "{yaml:?}");

    let kept = fake.run("delete vc copy --dry-run").stdout;
    assert_eq!(kept, "VolumeClone/copy deleted, volumes kept: a-copy, b-copy (dry run)\n");
    let kept = fake.run("-j delete vr back --dry-run").json();
    assert_eq!(kept["items"][0]["volumes"], json!(["a", "b"]), "{kept:#}");
    assert_eq!(fake.run("delete vr gone").status, 4);
}

#[test]
fn restored_volumes_get_labels_of_their_object() {
    let listed = |labels: Value| {
        let mut found = cloudsnap("59-61");
        (found["name"], found["labels"]) = (json!("before"), labels);
        json!({ "items": [found], "next": null, "damaged": [], "failedCredentials": [], "total": 1 })
    };
    let labels = json!({ "app": "db" });
    for (spec, route) in [
        ("destinationVolume: new", "POST /v1/cloudsnaps/restore"),
        ("destinationVolume: new, lazy: true", "POST /v1/cloudsnaps/restore-lazy"),
        ("namespaceMapping: {}", "POST /v1/cloudsnaps/restore"),
    ] {
        let fake = Fake::with_defaults(vec![
            ("GET /v1/volumes", ok(list(json!([])))),
            ("GET /v1/tasks", ok(list(json!([])))),
            ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
            ("GET /v1/cloudsnaps", ok(listed(labels.clone()))),
        ]);
        restored(&fake, &restore_document(spec));
        let sent = fake.seen().into_iter().find(|seen| seen.line == route).unwrap();
        let wanted = json!({ "app": "db", "restored-by": "back", "restored-from": snap("59-61") });
        assert_eq!(sent.body["labels"], wanted, "{spec}");
    }
}

#[test]
fn replaced_content_is_not_restored_again() {
    let labels = json!({ "restored-by": "back" });
    let mut found = cloudsnap("1-61");
    (found["name"], found["volumeId"], found["volumeName"]) = (json!("before"), json!("1"), json!("a"));
    let listed =
        json!({ "items": [found], "next": null, "damaged": [], "failedCredentials": [], "total": 1 });
    for (labels, is_restored) in
        [(labels, false), (json!({ "restored-by": "other" }), true), (json!({}), true)]
    {
        let fake = Fake::with_defaults(vec![
            ("GET /v1/volumes", ok(list(json!([labelled("7", "back", &labels)])))),
            ("GET /v1/tasks", ok(list(json!([])))),
            ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
            ("GET /v1/cloudsnaps", ok(listed.clone())),
        ]);
        let lines = restored(&fake, &restore_document("replacePolicy: Delete"));
        assert_eq!(!lines.is_empty(), is_restored, "{labels}: {lines:?}");
    }
}

#[test]
fn replacing_restore_of_a_forgotten_task_is_not_repeated() {
    let origin = json!({ "restored-by": "back", "restored-from": snap("1-61") });
    let mut found = cloudsnap("1-61");
    (found["name"], found["volumeId"], found["volumeName"]) = (json!("before"), json!("1"), json!("a"));
    let listed =
        json!({ "items": [found], "next": null, "damaged": [], "failedCredentials": [], "total": 1 });
    let fake = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([labelled("7", "back", &origin)])))),
        ("GET /v1/tasks", ok(list(json!([])))),
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/cloudsnaps", ok(listed)),
    ]);
    assert_eq!(restored(&fake, &restore_document("replacePolicy: Delete")), []);
}

#[test]
fn note_on_schedules_names_no_option_of_other_commands() {
    let fake = || {
        let mut started = reply("POST /v1/cloudsnaps/restore");
        started["schedules"] =
            json!([{ "scheduleId": "078557a3-26c7-49b1-9822-34e6f816c2d1", "scheduleName": "nightly" }]);
        Fake::with_defaults(vec![
            ("GET /v1/volumes", ok(list(json!([])))),
            ("GET /v1/tasks", ok(list(json!([])))),
            ("POST /v1/cloudsnaps/restore", ok(started)),
        ])
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    let text =
        restore_document("").replace("backupName: before", &format!("cloudSnapshotId: {}", snap("59-60")));
    std::fs::write(&path, text).unwrap();
    let ran = fake().run(&format!("apply -f {}", path.display()));
    assert_eq!(ran.stderr, "note: new is backed up by the schedule nightly from now on\n", "{ran:?}");
}

#[test]
fn printed_names_of_backups_select_one_each() {
    let of = |cluster: &'static str, id: &'static str| (cluster, id, "db", "shop");
    for (backups, expected) in [
        (&[of(CLUSTER, "1")][..], &["before"][..]),
        (&[of(CLUSTER, "1"), of(OTHER_CLUSTER, "1")], &["2e4d/before", "fe43/before"]),
    ] {
        let fake = with_backup(&[("1", "db")], backups);
        let printed = fake.run("get vb -o name").stdout;
        assert_eq!(printed, expected.iter().map(|name| format!("VolumeBackup/{name}\n")).collect::<String>());
        for name in expected {
            for command in ["get", "describe"] {
                let listed = fake.run(&format!("-j {command} vb {name}")).json();
                let found = listed["items"].as_array().map_or(1, Vec::len);
                assert_eq!(found, 1, "{command} {name}: {listed}");
                let ran = fake.run(&format!("{command} VolumeBackup/{name} -j"));
                assert_eq!(ran.json(), listed, "{command} VolumeBackup/{name}: {ran:?}");
            }
        }
    }
    // Two backups of a volume with one name.
    let mut twice = ["61", "62"].map(|id| cloudsnap(&format!("1-{id}")));
    for one in &mut twice {
        (one["volumeId"], one["name"]) = (json!("1"), json!("before"));
    }
    let listed = json!({ "items": twice, "next": null, "damaged": [], "failedCredentials": [], "total": 2 });
    let fake = Fake::with_defaults(vec![
        ("GET /v1/tasks", ok(list(json!([])))),
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/cloudsnaps", ok(listed)),
    ]);
    let ids = ["61", "62"].map(|id| format!("VolumeBackup/{}\n", snap(&format!("1-{id}"))));
    assert_eq!(fake.run("get vb -o name").stdout, ids.concat());
}

#[test]
fn backups_of_other_hosts_have_one_name_in_all_lists() {
    let fake = with_backup(&[("1", "db")], &[(OTHER_CLUSTER, "7", "lzv", "shop")]);
    for line in ["get vb", "get vb -o wide", "get vb fe43/before", "get vb fe431d7d/before"] {
        let ran = fake.run(line);
        assert!(ran.status == 0 && ran.stdout.contains("\nfe43/before  "), "{line}: {ran:?}");
    }
    let hint =
        format!("was made by host fe431d7d\nhint: `blockctl cloudsnap delete {OTHER_CLUSTER}/7-61 --force`");
    let ran = fake.run("delete vb fe43/before --yes");
    assert!(ran.status == 5 && ran.stderr.contains(&hint), "{ran:?}");
    let by_object = fake.run("delete VolumeBackup/fe43/before --yes");
    assert_eq!((by_object.status, &by_object.stderr), (ran.status, &ran.stderr));
    let described = fake.run("cloudsnap inspect fe43/before");
    assert!(!described.stderr.contains("names no cloud snapshot"), "{described:?}");
    // The name alone is one of this host.
    let ran = fake.run("delete vb before --yes");
    let words = "there is no VolumeBackup/before\nhint: VolumeBackup/fe43/before is of another host\n";
    assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");
    let own = with_backup(&[("1", "db")], &[(CLUSTER, "1", "db", "shop")]);
    let ran = own.run("delete vb 2e4d/before --yes --dry-run");
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (0, "VolumeBackup/2e4d/before deleted from BackupLocation/nas (dry run)\n"),
        "{ran:?}"
    );
}

#[test]
fn name_that_no_kind_has_is_an_error() {
    let fake = with_backup(&[("1", "db")], &[(CLUSTER, "1", "db", "shop")]);
    for command in ["get", "describe"] {
        let ran = fake.run(&format!("{command} vb,vr nosuch"));
        let words = "error: there is no VolumeBackup or VolumeRestore of the name nosuch\nhint: `blockctl get VolumeBackup,VolumeRestore` lists";
        assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");
        assert_eq!(fake.run(&format!("{command} vb,vr before")).status, 0);
        assert_eq!(fake.run(&format!("{command} vb,vr nosuch before")).status, 4);
    }
}

#[test]
fn restore_is_described_with_its_own_events_at_the_end() {
    let event = |id: u64, task: &str, message: &str| {
        json!({
            "eventId": id, "occurredAt": "2019-01-16T22:00:00Z", "severity": "info", "kind": "restore-done",
            "taskId": task, "cloudSnapshotId": snap("11-61"), "message": message
        })
    };
    let mut done = task("Restore-Done", 1);
    (done["volumeId"], done["volumeName"]) = (json!("1"), json!("a"));
    done["cloudSnapshotId"] = json!(snap("11-61"));
    let labels = json!({ "restored-by": "back", "restored-from": snap("11-61") });
    let other = "4f4f0a67-e12a-4d35-81ad-985657757352";
    let events = [event(1, done["taskId"].as_str().unwrap(), "its own"), event(2, other, "another")];
    let fake = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([labelled("1", "a", &labels)])))),
        ("GET /v1/tasks", ok(list(json!([done])))),
        ("GET /v1/events", ok(list(json!(events)))),
    ]);
    let text = fake.run("describe vr back").stdout;
    let fields: Vec<&str> = text.lines().filter(|line| !line.starts_with([' ', '-'])).collect();
    assert_eq!(
        fields,
        ["apiVersion: blockd/v1", "kind: VolumeRestore", "metadata:", "spec:", "status:", "events:"]
    );
    assert!(text.contains("its own") && !text.contains("another"), "{text}");
}
