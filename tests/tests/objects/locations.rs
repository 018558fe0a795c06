//! Backup locations as objects.

use super::*;

#[test]
fn unlistable_location_is_an_error() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let store = bed.store("one");
    ctl.add_local("other", bed.store("other").dir(), None);
    ctl.create_volume("vol", "8MiB");
    let backup = object("VolumeBackup", "old", "backupLocation: nas, volume: vol, reclaimPolicy: Delete");
    let text = location("nas", store.dir()) + &backup;
    let all = file(bed.dir(), "all.yaml", &text);
    ctl.json(&["apply", "-f", &all, "--wait"]);
    let restore = object("VolumeRestore", "copy", "backupLocation: nas, backupName: old");
    let restore = file(bed.dir(), "restore.yaml", &restore);

    let away = bed.path("away");
    fs::rename(store.dir(), &away).unwrap();
    for args in [
        ["apply", "-f", all.as_str()].as_slice(),
        &["apply", "-f", &restore],
        &["delete", "-f", &all],
        &["delete", "VolumeBackup", "old"],
    ] {
        let error = ctl.fails(args, 1);
        assert_eq!(error["code"], "bucket_missing", "{args:?}: {error}");
        assert!(
            error["message"].as_str().unwrap().contains("BackupLocation/nas cannot be listed"),
            "{error}"
        );
    }
    assert_eq!(get(&ctl, "bl").len(), 2, "the location was deleted");
    ctl.fails(&["delete", "VolumeBackup", "old", "--location", "other"], 4);
    fs::rename(&away, store.dir()).unwrap();
    assert_eq!(ctl.done_cloudsnaps().len(), 1);
    let deleted = ["VolumeBackup/old deleted", "BackupLocation/nas deleted"];
    assert_eq!(results(&ctl.json(&["delete", "-f", &all])), deleted);
}

#[test]
fn location_passphrase_reference_is_applied_in_place() {
    let bed = Bed::new();
    let (store, dir) = (bed.store("store"), bed.store("objects"));
    let secrets = bed.path("secrets");
    fs::create_dir(&secrets).unwrap();
    let put = |name: &str, text: &str| {
        let path = secrets.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (put("right", PASSPHRASE), put("wrong", "another one"));
    let daemon = bed.daemon("a").config(&format!("[secrets]\nfile_dir = {secrets:?}")).start();
    let ctl = daemon.ctl();
    ctl.create_volume("vol", "1MiB");
    let apply = |path: &Path, key: &str| {
        let text = format!(
            "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {{name: nas}}\nlocation: {{type: local, path: {path:?}, encryptionKey: {key}}}\n"
        );
        file(dir.dir(), "nas.yaml", &text)
    };
    let result = |file: &str| results(&ctl.json(&["apply", "-f", file]));
    let from = |path: &str| format!("{{from: 'file:{path}'}}");
    let here = format!("{{file: {right}}}");
    assert_eq!(result(&apply(store.dir(), &here)), ["BackupLocation/nas created"]);
    ctl.backup("vol");
    let there = apply(store.dir(), &from(&right));
    let (code, planned) = ctl.document(&["diff", "-f", &there]);
    assert_eq!(
        (code, results(&planned)),
        (1, vec!["BackupLocation/nas configured".to_owned()]),
        "{planned:#}"
    );
    assert_eq!(result(&there), ["BackupLocation/nas configured"]);
    let kept = || ctl.json(&["credentials", "inspect", "nas"])["encryptionKeyFrom"].clone();
    assert_eq!(kept(), format!("file:{right}"));
    assert_eq!(result(&there), ["BackupLocation/nas unchanged"]);
    ctl.backup("vol");

    // A wrong passphrase and another path change nothing.
    let error = ctl.fails(&["apply", "-f", &apply(store.dir(), &from(&wrong))], 1);
    assert!(
        error["code"] == "wrong_passphrase" && error["message"].to_string().contains("nothing was changed"),
        "{error}"
    );
    let error = ctl.fails(&["apply", "-f", &apply(dir.dir(), &from(&wrong))], 5);
    assert!(
        error["message"].to_string().contains("location.path cannot be changed: give another"),
        "{error}"
    );
    assert_eq!(kept(), format!("file:{right}"));
    // The change can be reverted.
    assert_eq!(result(&apply(store.dir(), &here)), ["BackupLocation/nas configured"]);
    assert!(kept().is_null());
    assert_eq!(result(&apply(store.dir(), &here)), ["BackupLocation/nas unchanged"]);
    ctl.backup("vol");
    let _ = daemon.stop();
}

#[test]
fn prefix_is_part_of_a_location_and_ignored_fields_warn() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let dir = bed.store("one").dir().to_owned();
    let pasted = |prefix: &str| {
        let text = format!(
            "apiVersion: kubedb.com/v1alpha1\nkind: BackupLocation\nmetadata: {{name: nas, uid: x, resourceVersion: '1'}}\nspec:\n  databaseName: db\n  local:\n    path: {}\n    {prefix}\n    volumeSource: {{emptyDir: {{}}}}\n  resources: {{}}\n",
            dir.display()
        );
        file(bed.dir(), "pasted.yaml", &text)
    };
    let applied = ctl.json(&["apply", "-f", &pasted("prefix: demo")]);
    assert_eq!(results(&applied), ["BackupLocation/nas created"]);
    let warnings: Vec<&str> =
        applied["items"][0]["warnings"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    for name in ["spec.databaseName", "spec.local.volumeSource", "spec.resources"] {
        assert!(warnings.iter().any(|warning| warning.contains(name)), "{name}: {warnings:?}");
    }
    let ran = ctl.run(&["apply", "-f", &pasted("prefix: demo")]);
    assert!(
        ran.stdout.contains("unchanged") && ran.stderr.contains("ignored without a meaning on a host: "),
        "{ran:?}"
    );
    assert!(dir.join("demo/blockd").is_dir());
    let shown = ctl.json(&["get", "bl", "nas"]);
    assert_eq!(shown["location"]["prefix"], "demo");
    let listed = ctl.run(&["credentials", "list"]).stdout;
    assert!(listed.contains(&format!("{}/demo", dir.display())), "{listed}");
    // The prefix cannot be changed or removed.
    for prefix in ["prefix: other", ""] {
        ctl.fails_with(&["apply", "-f", &pasted(prefix)], 5, "spec.local.prefix");
    }
    ctl.create_volume("vol", "8MiB");
    let task = ctl.backup("vol");
    ctl.json(&["cloudsnap", "restore", "--snap", task.snap(), "--volume", "back", "--no-labels", "--wait"]);
    ctl.json(&["credentials", "create", "whole", "--provider", "local", "--path", dir.to_str().unwrap()]);
    assert_eq!(ctl.done_cloudsnaps().len(), 1, "a location without a prefix lists snapshots below a prefix");
    ctl.fails(&["cloudsnap", "inspect", task.snap(), "--cred-id", "whole"], 4);
    ctl.json(&["cloudsnap", "verify", "--snap", task.snap(), "--wait"]);
    ctl.json(&["cloudsnap", "delete", "--snap", task.snap(), "--wait"]);
}
