//! Objects in files: applied, applied again, looked at, changed, deleted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{Bed, Ctl, MIB, Rng};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

const PASSPHRASE: &str = "correct horse battery";

/// The example, in a directory with what it wants.
fn example(dir: &Path) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/objects.yaml");
    fs::create_dir_all(dir.join("backups")).unwrap();
    fs::write(dir.join("passphrase"), PASSPHRASE).unwrap();
    fs::read_to_string(source).unwrap()
}

/// Returns the results as `KIND/NAME RESULT`.
fn results(document: &Value) -> Vec<String> {
    let objects = document["objects"].as_array().unwrap_or_else(|| panic!("{document:#}"));
    objects
        .iter()
        .map(|one| {
            let word = |name: &str| one[name].as_str().unwrap_or_else(|| panic!("{document:#}")).to_owned();
            format!("{}/{} {}", word("kind"), word("name"), word("result"))
        })
        .collect()
}

fn get(ctl: &Ctl, kind: &str) -> Vec<Value> {
    ctl.json(&["get", kind])["items"].as_array().unwrap().clone()
}

#[test]
fn file_is_applied_once_changed_and_deleted() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let dir = bed.store("objects").dir().to_owned();
    let text = example(&dir);
    let file = dir.join("objects.yaml");
    fs::write(&file, &text).unwrap();
    let file = file.to_str().unwrap();
    ctl.create_volume("pgdata", "8MiB");

    // Nothing is done yet.
    let (code, planned) = ctl.document(&["diff", "-f", file]);
    assert_eq!((code, results(&planned).len()), (1, 8), "{planned:#}");
    ctl.json(&["apply", "-f", file, "--dry-run"]);
    assert!(get(&ctl, "backuplocations").is_empty() && get(&ctl, "sp").is_empty());

    let applied = ctl.json(&["apply", "-f", file, "--wait"]);
    assert_eq!(
        results(&applied),
        [
            "BackupLocation/local-backups created",
            "SchedulePolicy/gold created",
            "Rule/flush created",
            "VolumeBackup/before-upgrade started",
            "VolumeBackupSchedule/shop created",
            "VolumeBackupSchedule/pgdata-nights created",
            "VolumeRestore/pgdata-restored started",
            "VolumeClone/pgdata-test created",
        ]
    );
    let again = results(&ctl.json(&["apply", "-f", file, "--wait"]));
    assert!(again.iter().all(|line| line.ends_with(" unchanged")), "{again:?}");
    assert_eq!(ctl.document(&["diff", "-f", file]).0, 0);

    // What there is can be applied as it is shown, and has no secrets.
    for kind in ["bl", "sp", "rules", "vb", "vbs", "vr", "vc"] {
        let shown = ctl.run(&["get", kind, "-o", "yaml"]);
        assert!(shown.code == 0 && !shown.stdout.contains(PASSPHRASE), "{shown:?}");
        let copy = dir.join(format!("{kind}.yaml"));
        fs::write(&copy, &shown.stdout).unwrap();
        let same = results(&ctl.json(&["apply", "-f", copy.to_str().unwrap()]));
        assert!(!same.is_empty() && same.iter().all(|line| line.ends_with(" unchanged")), "{same:?}");
        let table = ctl.run(&["get", kind]);
        assert!(table.stdout.starts_with("NAME "), "{table:?}");
    }
    assert_eq!(ctl.json(&["rule", "inspect", "flush"])["volumes"][0], "pgdata");
    let nights = ctl.json(&["get", "vbs", "pgdata-nights"]);
    assert_eq!(nights["spec"]["retainAt"][0]["retain"]["monthly"], 12, "{nights:#}");
    let described = ctl.run(&["describe", "VolumeBackup", "before-upgrade"]);
    assert!(described.stdout.contains("cloudSnapID: "), "{described:?}");

    // Others made these.
    ctl.json(&["sched-policy", "create", "by-hand", "--daily", "01:00,3"]);
    ctl.json(&["cloudsnap", "schedules", "create", "pgdata", "--policy", "by-hand"]);
    ctl.backup("pgdata");
    assert_eq!((get(&ctl, "sp").len(), get(&ctl, "vbs").len(), get(&ctl, "vb").len()), (2, 3, 2));

    // Another number and a pause are changes; another place is none.
    let changed = text.replace("retain: 7", "retain: 9").replace("  jitterSeconds: 60", "  suspend: true");
    let changed = changed
        .replace("volumes: [pgdata]", "groups: [shop]\n  volumes: []")
        .replace("monthly: 12", "monthly: 6");
    fs::write(file, &changed).unwrap();
    let differs = ctl.run(&["diff", "-f", file]);
    assert_eq!(differs.code, 1, "{differs:?}");
    for line in ["-   policy.daily.retain: 7", "+   policy.daily.retain: 9", "+   spec.suspend: true"] {
        assert!(differs.stdout.lines().any(|one| one == line), "{line}: {differs:?}");
    }
    let done = results(&ctl.json(&["apply", "-f", file]));
    let configured: Vec<_> = done.iter().filter(|line| line.ends_with(" configured")).collect();
    assert_eq!(
        configured,
        [
            "SchedulePolicy/gold configured",
            "Rule/flush configured",
            "VolumeBackupSchedule/shop configured",
            "VolumeBackupSchedule/pgdata-nights configured",
        ]
    );
    let flush = ctl.json(&["get", "rule", "flush"]);
    assert_eq!(
        (flush["spec"]["volumes"].as_array().unwrap().len(), &flush["spec"]["groups"][0]),
        (0, &"shop".into())
    );
    let shop = ctl.json(&["get", "vbs", "shop"]);
    assert_eq!((&shop["spec"]["suspend"], &shop["spec"]["jitterSeconds"]), (&true.into(), &0.into()));
    assert_eq!(ctl.document(&["diff", "-f", file]).0, 0);

    fs::write(file, changed.replace("path: backups", "path: elsewhere")).unwrap();
    let error = ctl.fails(&["apply", "-f", file], 5);
    assert!(error["message"].as_str().unwrap().contains("location.path cannot be changed"), "{error}");
    fs::write(file, changed.replace("date: 14", "date: 32").replace("app: shop", "app: [shop]")).unwrap();
    let error = ctl.fails(&["apply", "-f", file], 2);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(": policy: monthly: ") && message.contains(".selectors.app: "), "{message}");
    assert_eq!(ctl.fails(&["get", "vbs", "nobody"], 4)["code"], "schedule_not_found");

    // What needs others goes first, and what holds data stays.
    fs::write(file, &changed).unwrap();
    ctl.json(&["delete", "VolumeBackup", "before-upgrade"]);
    let uuid = get(&ctl, "vbs")[2]["metadata"]["name"].as_str().unwrap().to_owned();
    ctl.json(&["delete", "vbs", &uuid]);
    assert_eq!(
        results(&ctl.json(&["delete", "-f", file])),
        [
            "VolumeClone/pgdata-test kept as a volume",
            "VolumeRestore/pgdata-restored kept as a volume",
            "VolumeBackupSchedule/shop deleted",
            "VolumeBackupSchedule/pgdata-nights deleted",
            "VolumeBackup/before-upgrade not there",
            "Rule/flush deleted",
            "SchedulePolicy/gold deleted",
            "BackupLocation/local-backups deleted",
        ]
    );
    let volumes = ctl.run(&["volume", "list"]).stdout;
    assert!(volumes.contains("pgdata-restored") && volumes.contains("pgdata-test"), "{volumes}");
    assert_eq!(ctl.fails(&["delete", "SchedulePolicy", "gold"], 4)["code"], "policy_not_found");
    drop(daemon);
}

/// A file of objects, and its path.
fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A location at a directory.
fn location(name: &str, dir: &Path) -> String {
    let dir = dir.to_str().unwrap();
    format!(
        "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {{name: {name}}}\nlocation: {{type: local, path: {dir}}}\n---\n"
    )
}

/// Returns an object in one line.
fn object(kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: blockd/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n---\n")
}

#[test]
fn object_name_belongs_to_its_host() {
    let bed = Bed::new();
    let (a, b) = (bed.daemon("a").start(), bed.daemon("b").start());
    let (a, b) = (a.ctl(), b.ctl());
    let dir = bed.store("shared").dir().to_owned();
    let place = location("vault", &dir);
    let backup =
        object("VolumeBackup", "before", "backupLocation: vault, volume: pgdata, reclaimPolicy: Delete");
    let backup = file(bed.dir(), "backup.yaml", &(place + &backup));
    let restore = object("VolumeRestore", "back", "backupLocation: vault, backupName: before");
    let restore = file(bed.dir(), "restore.yaml", &restore);
    for ctl in [&a, &b] {
        ctl.create_volume("pgdata", "8MiB");
        ctl.add_local("vault", &dir, None);
    }
    let started = ["BackupLocation/vault unchanged", "VolumeBackup/before started"];
    assert_eq!(results(&a.json(&["apply", "-f", &backup, "--wait"])), started);
    let of_a = a.done_cloudsnaps().remove(0);

    // What the other host stored is not what the name means here.
    assert!(get(&b, "vb").is_empty());
    assert_eq!(b.fails(&["apply", "-f", &restore], 4)["code"], "cloudsnap_not_found");
    b.fails(&["delete", "VolumeBackup", "before"], 4);
    let kept = ["VolumeBackup/before not there", "BackupLocation/vault deleted"];
    assert_eq!(results(&b.json(&["delete", "-f", &backup])), kept);
    b.add_local("vault", &dir, None);
    assert_eq!(a.done_cloudsnaps(), [of_a.as_str()]);
    assert_eq!(results(&b.json(&["apply", "-f", &backup, "--wait"])), started);
    b.json(&["apply", "-f", &restore, "--wait"]);
    let source = b.json(&["get", "vr", "back"])["status"]["cloudSnapID"].clone();
    assert!(source.is_string() && source != of_a.as_str(), "{source}");

    // Its id is.
    let spec = format!("backupLocation: vault, cloudSnapID: {of_a}");
    let foreign = file(bed.dir(), "foreign.yaml", &object("VolumeRestore", "foreign", &spec));
    b.json(&["apply", "-f", &foreign, "--wait"]);
    assert_eq!(b.json(&["describe", "vb", &of_a])["items"][0]["status"]["cloudSnapID"], of_a.as_str());

    // Each takes back its own.
    b.json(&["delete", "VolumeBackup", "before"]);
    assert_eq!(a.done_cloudsnaps(), [of_a.as_str()]);
    b.json(&["delete", "VolumeBackup", &of_a]);
    assert!(a.done_cloudsnaps().is_empty());
}

#[test]
fn ambiguous_backup_name_deletes_none() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let store = bed.store("one");
    for name in ["here", "again"] {
        ctl.add_local(name, store.dir(), None);
    }
    for volume in ["db", "log"] {
        ctl.json(&["volume", "create", volume, "--size", "8MiB", "--label", "app=shop"]);
    }
    let both = object("VolumeBackup", "before", "backupLocation: here, selectors: {app: shop}");
    let both = file(bed.dir(), "both.yaml", &both);
    ctl.json(&["apply", "-f", &both, "--wait"]);
    let mine = "backupLocation: here, volume: db, reclaimPolicy: Delete";
    let mine = file(bed.dir(), "mine.yaml", &object("VolumeBackup", "before", mine));

    let error = ctl.fails(&["delete", "VolumeBackup", "before"], 2);
    let message = error["message"].as_str().unwrap();
    assert!(ctl.done_cloudsnaps().iter().all(|id| message.contains(id.as_str())), "{message}");
    assert!(message.contains("--volume") && message.contains("--location"), "{message}");
    assert_eq!(ctl.done_cloudsnaps().len(), 2);

    // Each location that leads to it shows it, and an object of either is done.
    assert_eq!(get(&ctl, "vb").len(), 4);
    for place in ["here", "again"] {
        let spec = format!("backupLocation: {place}, volume: db");
        let same = file(bed.dir(), "same.yaml", &object("VolumeBackup", "before", &spec));
        assert_eq!(results(&ctl.json(&["apply", "-f", &same])), ["VolumeBackup/before unchanged"]);
    }

    // An object deletes what is of its volume; another volume of the same name has none.
    assert_eq!(results(&ctl.json(&["delete", "-f", &mine])), ["VolumeBackup/before deleted"]);
    let left = ctl.json(&["cloudsnap", "list"]);
    assert_eq!((left.as_array().unwrap().len(), &left[0]["SrcVolumeName"]), (1, &"log".into()), "{left:#}");
    ctl.json(&["volume", "delete", "log"]);
    ctl.create_volume("log", "8MiB");
    let log = "backupLocation: here, volume: log, reclaimPolicy: Delete";
    let log = file(bed.dir(), "log.yaml", &object("VolumeBackup", "before", log));
    assert_eq!(results(&ctl.json(&["delete", "-f", &log])), ["VolumeBackup/before not there"]);
    assert_eq!(results(&ctl.json(&["apply", "-f", &log, "--wait"])), ["VolumeBackup/before started"]);
    let error = ctl.fails(&["delete", "VolumeBackup", "before", "--volume", "log"], 2);
    assert!(error["message"].as_str().unwrap().contains(" of log in "), "{error}");
    ctl.json(&["delete", "VolumeBackup", left[0]["ID"].as_str().unwrap(), "--location", "again"]);
    ctl.json(&["delete", "VolumeBackup", "before", "--volume", "log"]);
    assert!(ctl.done_cloudsnaps().is_empty());

    // Who comes to a group later is backed up later.
    for (volume, count) in [("one", 2), ("two", 1)] {
        ctl.json(&["volume", "create", volume, "--size", "8MiB", "--label", "app=shop"]);
        let applied = ctl.json(&["apply", "-f", &both, "--wait"]);
        assert_eq!(applied["objects"][0]["tasks"].as_array().unwrap().len(), count, "{applied:#}");
        assert_eq!(results(&ctl.json(&["apply", "-f", &both])), ["VolumeBackup/before unchanged"]);
    }
}

#[test]
fn clone_starts_with_current_content() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.create_volume("db", "8MiB");
    // A foreign volume, which is not used.
    ctl.json(&["snapshot", "create", "db", "--name", "clone-test"]);
    let clone = file(bed.dir(), "clone.yaml", &object("VolumeClone", "test", "sourceVolume: db"));
    let mut origins = vec!["clone-test".to_owned()];
    for _ in 0..2 {
        assert_eq!(results(&ctl.json(&["apply", "-f", &clone])), ["VolumeClone/test created"]);
        assert_eq!(results(&ctl.json(&["apply", "-f", &clone])), ["VolumeClone/test unchanged"]);
        let origin = ctl.json(&["get", "vc", "test"])["spec"]["snapshot"].as_str().unwrap().to_owned();
        assert!(!origins.contains(&origin), "{origin} is one of {origins:?}");
        ctl.json(&["snapshot", "inspect", &format!("db@{origin}")]);
        origins.push(origin);
        ctl.json(&["volume", "delete", "test"]);
    }
    // Who names one gets it.
    let named = object("VolumeClone", "test", "sourceVolume: db, snapshot: clone-test");
    let named = file(bed.dir(), "named.yaml", &named);
    ctl.json(&["apply", "-f", &named]);
    assert_eq!(ctl.json(&["get", "vc", "test"])["spec"]["snapshot"], "clone-test");
    drop(daemon);
}

#[test]
fn running_tasks_are_awaited_and_stopped_ones_resume() {
    let mut rng = Rng::of_test("running_tasks_are_awaited_and_stopped_ones_resume");
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let store = bed.store("one");
    let dir = store.dir().to_str().unwrap();
    // At this rate no task ends during the test.
    for (name, limit) in [("up", "--limit-upload"), ("down", "--limit-download")] {
        ctl.json(&["credentials", "create", name, "--provider", "local", "--path", dir, limit, "1KiB"]);
    }
    ctl.add_local("fast", store.dir(), None);
    ctl.create_volume("vol", "64MiB");
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(48 * MIB));
    client.close();
    let apply = |path: &str, result: &str| -> String {
        let applied = ctl.json(&["apply", "-f", path]);
        assert!(results(&applied)[0].ends_with(&format!(" {result}")), "{applied:#}");
        applied["objects"][0]["tasks"][0].as_str().unwrap().to_owned()
    };

    let backup = object("VolumeBackup", "slow", "backupLocation: up, volume: vol, reclaimPolicy: Delete");
    let backup = file(bed.dir(), "backup.yaml", &backup);
    let task = apply(&backup, "started");
    assert_eq!(apply(&backup, "under way"), task);
    assert_eq!(ctl.document(&["diff", "-f", &backup]).0, 0);
    for args in [["delete", "vb", "slow"], ["delete", "-f", backup.as_str()]] {
        assert_eq!(ctl.fails(&args, 5)["code"], "cloudsnap_not_done");
    }
    ctl.json(&["cloudsnap", "stop", "--name", &task]);
    assert_eq!(results(&ctl.json(&["delete", "-f", &backup])), ["VolumeBackup/slow deleted"]);
    ctl.fails(&["cloudsnap", "resume", "--name", &task], 5);
    assert_eq!(results(&ctl.json(&["delete", "-f", &backup])), ["VolumeBackup/slow not there"]);

    let full = ctl.backup_with("vol", &["--cred-id", "fast"]);
    let spec = format!("backupLocation: down, cloudSnapID: {}", full.snap());
    let restore = file(bed.dir(), "restore.yaml", &object("VolumeRestore", "copy", &spec));
    let task = apply(&restore, "started");
    assert_eq!(apply(&restore, "under way"), task);
    ctl.json(&["cloudsnap", "stop", "--name", &task]);
    let (code, differs) = ctl.document(&["diff", "-f", &restore]);
    assert_eq!((code, results(&differs)), (1, vec!["VolumeRestore/copy resumed".to_owned()]));
    assert_eq!(apply(&restore, "resumed"), task);
    assert_eq!(apply(&restore, "under way"), task);
    ctl.json(&["cloudsnap", "stop", "--name", &task, "--discard"]);
}

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
    assert_eq!(get(&ctl, "bl").len(), 2, "its location is not gone");
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

    // What does not open it changes nothing, nor does another place.
    let error = ctl.fails(&["apply", "-f", &apply(store.dir(), &from(&wrong))], 1);
    assert!(
        error["code"] == "wrong_passphrase" && error["message"].to_string().contains("nothing was changed"),
        "{error}"
    );
    let error = ctl.fails(&["apply", "-f", &apply(dir.dir(), &from(&wrong))], 5);
    assert!(
        error["message"].to_string().contains("location.path cannot be changed, as backups lie"),
        "{error}"
    );
    assert_eq!(kept(), format!("file:{right}"));
    // And back.
    assert_eq!(result(&apply(store.dir(), &here)), ["BackupLocation/nas configured"]);
    assert!(kept().is_null());
    assert_eq!(result(&apply(store.dir(), &here)), ["BackupLocation/nas unchanged"]);
    ctl.backup("vol");
    let _ = daemon.stop();
}

#[test]
fn restore_of_a_running_backup_waits_and_the_rest_applies() {
    let mut rng = Rng::of_test("restore_of_a_running_backup_waits_and_the_rest_applies");
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let store = bed.store("one");
    let dir = store.dir().to_str().unwrap();
    // At this rate no task ends during the test.
    let slow = ["--path", dir, "--limit-upload", "1KiB", "--limit-download", "1GiB"];
    ctl.json(&[["credentials", "create", "nas", "--provider", "local"].as_slice(), &slow].concat());
    ctl.create_volume("vol", "8MiB");
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(4 * MIB));
    client.close();
    let text = object("VolumeBackup", "bk1", "backupLocation: nas, volume: vol")
        + &object("VolumeRestore", "rest1", "backupLocation: nas, backupName: bk1")
        + &object("VolumeClone", "copy", "sourceVolume: vol");
    let all = file(bed.dir(), "all.yaml", &text);
    let (code, applied) = ctl.document(&["apply", "-f", &all]);
    assert_eq!(
        (code, results(&applied)),
        (
            6,
            vec![
                "VolumeBackup/bk1 started".to_owned(),
                "VolumeRestore/rest1 waiting".to_owned(),
                "VolumeClone/copy created".to_owned()
            ]
        )
    );
    assert_eq!(applied["objects"][1]["waitsFor"], "VolumeBackup/bk1");
    let ran = ctl.run(&["apply", "-f", &all]);
    assert!(
        ran.code == 6 && ran.stdout.contains("VolumeRestore/rest1 waiting for VolumeBackup/bk1"),
        "{ran:?}"
    );
    let (code, differs) = ctl.document(&["diff", "-f", &all]);
    assert_eq!((code, results(&differs)[1].as_str()), (1, "VolumeRestore/rest1 waiting"));

    // One limit is lifted, and the other one stays.
    let limited = ctl.json(&["credentials", "limit", "nas", "--limit-upload", "none"]);
    assert!(limited["limitUploadBytesPerS"].is_null() && limited["limitDownloadBytesPerS"] == 1u64 << 30);
    ctl.fails(&["credentials", "limit", "nas"], 2);
    let restore = object("VolumeRestore", "rest1", "backupLocation: nas, backupName: bk1");
    let restore = file(bed.dir(), "restore.yaml", &restore);
    assert_eq!(results(&ctl.json(&["apply", "-f", &restore, "--wait"])), ["VolumeRestore/rest1 started"]);
    let again = results(&ctl.json(&["apply", "-f", &all]));
    assert!(again.iter().all(|line| line.ends_with(" unchanged")), "{again:?}");
}

#[test]
fn file_can_be_applied_concurrently() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let store = bed.store("one");
    ctl.create_volume("vol", "8MiB");
    let policy = "apiVersion: blockd/v1\nkind: SchedulePolicy\nmetadata: {name: gold}\npolicy: {daily: {time: '22:14', retain: 7}, weekly: {day: Sunday, time: '1:00', retain: 5}}\n---\n";
    let text = location("nas", store.dir())
        + policy
        + &object("Rule", "flush", "preCommand: sync, volumes: [vol]")
        + &object(
            "VolumeBackupSchedule",
            "nightly",
            "schedulePolicyName: gold, template: {spec: {backupLocation: nas, volume: vol}}",
        )
        + &object("VolumeClone", "copy", "sourceVolume: vol");
    let all = file(bed.dir(), "all.yaml", &text);
    let applied: Vec<Vec<String>> = std::thread::scope(|scope| {
        let one = || results(&ctl.json(&["apply", "-f", &all]));
        let all: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for kind in 0..5 {
        let created = applied.iter().filter(|results| results[kind].ends_with(" created")).count();
        assert_eq!(created, 1, "{applied:?}");
    }
    assert!(results(&ctl.json(&["apply", "-f", &all])).iter().all(|line| line.ends_with(" unchanged")));

    // What keeps how many is said where the schedule itself does not say it.
    let listed = ctl.run(&["cloudsnap", "schedules", "list"]).stdout;
    assert!(listed.contains("7/5 by policy"), "{listed}");
    let shown = ctl.json(&["get", "vbs", "nightly"]);
    assert!(shown["spec"].get("retain").is_none() && shown["status"]["kept"] == "7/5 by policy", "{shown:#}");

    // A run that is asked for is waited for, and the beginning of what it made is enough to find it.
    let uuid = shown["status"]["uuid"].as_str().unwrap();
    let ran = ctl.json(&["cloudsnap", "schedules", "run-now", &uuid[..8], "--wait"]);
    assert_eq!(ran["runs"][0]["state"], "done", "{ran:#}");
    let id = ran["runs"][0]["cloudsnap"].as_str().unwrap();
    let (cluster, rest) = id.split_once('/').unwrap();
    for text in
        [&id[..9], &rest[..8], &format!("{}…/{}…", &cluster[..4], &rest[..6]), id.trim_end_matches("-incr")]
    {
        assert_eq!(ctl.json(&["cloudsnap", "inspect", text])["ID"], id, "{text}");
    }
    assert_eq!(ctl.json(&["cloudsnap", "list", "-i", &rest[..8]])[0]["ID"], id);
    ctl.fails(&["cloudsnap", "inspect", "0123456789abcdef0"], 4);
    assert_eq!(ctl.run(&["cloudsnap", "delete", "--snap", &id[..9]]).code, 2);
    ctl.json(&["cloudsnap", "restore", "--snap", &rest[..8], "--volume", "back", "--wait"]);

    // Backups without a name are left out of what can be applied, which can be.
    let nameless = ctl.backup("vol");
    let named = object("VolumeBackup", "named", "backupLocation: nas, volume: vol");
    ctl.json(&["apply", "--wait", "-f", &file(bed.dir(), "named.yaml", &named)]);
    let ran = ctl.run(&["get", "vb", "-o", "yaml"]);
    assert!(
        ran.code == 0 && ran.stderr.contains(nameless.snap()) && ran.stderr.contains("left out"),
        "{ran:?}"
    );
    let shown = file(bed.dir(), "shown.yaml", &ran.stdout);
    let again = results(&ctl.json(&["apply", "-f", &shown]));
    assert!(again.contains(&"VolumeBackup/named unchanged".to_owned()), "{again:?}");
    assert!(again.iter().all(|line| line.ends_with(" unchanged")), "{again:?}");
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
    let warnings: Vec<&str> = applied["objects"][0]["warnings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one.as_str().unwrap())
        .collect();
    for name in ["spec.databaseName", "spec.local.volumeSource", "spec.resources"] {
        assert!(warnings.iter().any(|warning| warning.contains(name)), "{name}: {warnings:?}");
    }
    let ran = ctl.run(&["apply", "-f", &pasted("prefix: demo")]);
    assert!(
        ran.stdout.contains("unchanged") && ran.stderr.contains("spec.databaseName: this is ignored"),
        "{ran:?}"
    );
    assert!(dir.join("demo/blockd").is_dir());
    let shown = ctl.json(&["get", "bl", "nas"]);
    assert_eq!(shown["location"]["prefix"], "demo");
    let listed = ctl.run(&["credentials", "list"]).stdout;
    assert!(listed.contains(&format!("{}/demo", dir.display())), "{listed}");
    // Another prefix, or none, is another place.
    for prefix in ["prefix: other", ""] {
        let error = ctl.fails(&["apply", "-f", &pasted(prefix)], 5);
        assert!(error["message"].as_str().unwrap().contains("location.prefix"), "{error}");
    }
    ctl.create_volume("vol", "8MiB");
    let task = ctl.backup("vol");
    ctl.json(&["cloudsnap", "restore", "--snap", task.snap(), "--volume", "back", "--no-labels", "--wait"]);
    ctl.json(&["credentials", "create", "whole", "--provider", "local", "--path", dir.to_str().unwrap()]);
    assert_eq!(ctl.done_cloudsnaps().len(), 1, "what lies below a prefix is not in the whole");
    ctl.fails(&["cloudsnap", "inspect", task.snap(), "--cred-id", "whole"], 4);
    ctl.json(&["cloudsnap", "verify", "--snap", task.snap(), "--wait"]);
    ctl.json(&["cloudsnap", "delete", "--snap", task.snap(), "--wait"]);
}
