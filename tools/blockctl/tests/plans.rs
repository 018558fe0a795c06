//! Plans of backups and restores: what they refuse, leave and report.

use crate::support::{Fake, Ran, cloudsnap, list, ok, reply, snap, task, volume};
use serde_json::{Value, json};

/// Returns a cloud snapshot of a volume: suffix of the id, name of the backup, id and name of the volume.
fn backup(suffix: &str, name: &str, volume: (&str, &str)) -> Value {
    let mut found = cloudsnap(suffix);
    (found["name"], found["volumeId"], found["volumeName"]) = (json!(name), json!(volume.0), json!(volume.1));
    found
}

/// Starts a daemon with volumes, cloud snapshots in the location `nas`, and tasks.
fn daemon(volumes: &[(&str, &str)], backups: &[Value], tasks: &[Value]) -> Fake {
    let volumes: Vec<Value> = volumes.iter().map(|(id, name)| volume(id, name)).collect();
    let listed = json!({
        "items": backups, "next": null, "damaged": [], "failedCredentials": [], "total": backups.len()
    });
    Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!(volumes)))),
        ("GET /v1/tasks", ok(list(json!(tasks)))),
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/cloudsnaps", ok(listed)),
    ])
}

/// Runs a command on a file with objects: kinds, names and contents.
fn run_on(fake: &Fake, command: &str, objects: &[(&str, &str, &str)]) -> Ran {
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
    // A backup may be deleted after its restore, and its volume renamed.
    for (listed, spec) in [
        (vec![good], "backupName: good"),
        (vec![backup("59-61", "good", ("59", "was"))], "backupName: good, sourceVolume: was"),
        (Vec::new(), "backupName: good"),
    ] {
        let ran = of(&daemon(&volumes, &listed, &[restored.clone()]), "apply", spec);
        assert_eq!((ran.status, ran.stdout.as_str()), (0, "VolumeRestore/rr unchanged\n"), "{ran:?}");
    }
    // Another object makes the backup.
    let fake = daemon(&volumes, &[], &[]);
    let both = [
        ("VolumeBackup", "nosuch", "backupLocation: nas, volume: acc"),
        ("VolumeRestore", "rr", "backupLocation: nas, backupName: nosuch"),
    ];
    let ran = run_on(&fake, "apply --dry-run", &both);
    assert!(ran.status == 0 && ran.stdout.contains("VolumeRestore/rr created (dry run)"), "{ran:?}");
}
