//! Objects in files: apply, get, describe, diff, delete.

mod foreign;
mod locations;
mod tasks;

use crate::harness::{Bed, Ctl, Daemon};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const PASSPHRASE: &str = "correct horse battery";

/// Prepares the directory of the example. Returns the example's text.
fn example(dir: &Path) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/objects.yaml");
    fs::create_dir_all(dir.join("backups")).unwrap();
    fs::write(dir.join("passphrase"), PASSPHRASE).unwrap();
    fs::read_to_string(source).unwrap()
}

/// Returns the results as `KIND/NAME RESULT`.
fn results(document: &Value) -> Vec<String> {
    let objects = document["items"].as_array().unwrap_or_else(|| panic!("{document:#}"));
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

/// A daemon with the example's objects applied.
struct Applied {
    _bed: Bed,
    daemon: Daemon,
    dir: PathBuf,
    text: String,
    file: String,
}

impl Applied {
    fn new() -> Self {
        let bed = Bed::new();
        let daemon = bed.daemon("a").start();
        let dir = bed.store("objects").dir().to_owned();
        let text = example(&dir);
        let file = file(&dir, "objects.yaml", &text);
        let ctl = daemon.ctl();
        ctl.create_volume("pgdata", "8MiB");
        let applied = ctl.json(&["apply", "-f", &file, "--wait"]);
        assert_eq!(
            results(&applied),
            [
                "BackupLocation/local-backups created",
                "SchedulePolicy/gold created",
                "Rule/flush created",
                "VolumeSnapshot/before-change created",
                "VolumeBackup/before-upgrade started",
                "VolumeBackupSchedule/shop created",
                "VolumeBackupSchedule/pgdata-nights created",
                "RestoreDrill/pgdata-drills created",
                "VolumeRestore/pgdata-restored started",
                "VolumeClone/pgdata-test created",
            ]
        );
        Self { _bed: bed, daemon, dir, text, file }
    }

    /// Changes retention, suspension and targets in the file. Returns its text.
    fn change(&self) -> String {
        let changed =
            self.text.replace("retain: 7", "retain: 9").replace("  jitterSeconds: 60", "  suspend: true");
        let changed = changed
            .replace("volumes: [pgdata]", "groups: [shop]\n  volumes: []")
            .replace("monthly: 12", "monthly: 6");
        fs::write(&self.file, &changed).unwrap();
        changed
    }
}

#[test]
fn planned_file_changes_nothing() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let dir = bed.store("objects").dir().to_owned();
    let file = file(&dir, "objects.yaml", &example(&dir));
    ctl.create_volume("pgdata", "8MiB");
    let (code, planned) = ctl.document(&["diff", "-f", &file]);
    assert_eq!((code, results(&planned).len()), (1, 10), "{planned:#}");
    ctl.json(&["apply", "-f", &file, "--dry-run"]);
    assert!(get(&ctl, "backuplocations").is_empty() && get(&ctl, "sp").is_empty());
}

#[test]
fn applied_file_is_unchanged_and_exported() {
    let applied = Applied::new();
    let (ctl, dir, file) = (applied.daemon.ctl(), &applied.dir, applied.file.as_str());
    let again = results(&ctl.json(&["apply", "-f", file, "--wait"]));
    assert!(again.iter().all(|line| line.ends_with(" unchanged")), "{again:?}");
    assert_eq!(ctl.document(&["diff", "-f", file]).0, 0);

    // Exported objects can be applied and contain no secrets.
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
    assert_eq!(ctl.json(&["rule", "inspect", "flush"])["volumeNames"][0], "pgdata");
    let nights = ctl.json(&["get", "vbs", "pgdata-nights"]);
    assert_eq!(nights["spec"]["retainAt"][0]["retain"]["monthly"], 12, "{nights:#}");
    let described = ctl.run(&["describe", "VolumeBackup", "before-upgrade"]);
    assert!(described.stdout.contains("cloudSnapshotId: "), "{described:?}");

    // Objects that `apply` did not create are listed as well.
    ctl.json(&["sched-policy", "create", "by-hand", "--daily", "01:00,3"]);
    ctl.json(&["cloudsnap", "schedules", "create", "pgdata", "--policy", "by-hand"]);
    ctl.backup("pgdata");
    assert_eq!((get(&ctl, "sp").len(), get(&ctl, "vbs").len(), get(&ctl, "vb").len()), (2, 3, 2));
}

#[test]
fn changed_file_configures_objects_or_is_refused() {
    let applied = Applied::new();
    let (ctl, file) = (applied.daemon.ctl(), applied.file.as_str());
    // Retention and suspension can be changed.
    let changed = applied.change();
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
    assert_eq!(
        (&shop["spec"]["suspend"], &shop["spec"]["jitterSeconds"]),
        (&true.into(), &serde_json::Value::Null)
    );
    assert_eq!(ctl.document(&["diff", "-f", file]).0, 0);

    fs::write(file, changed.replace("path: backups", "path: elsewhere")).unwrap();
    ctl.fails_with(&["apply", "-f", file], 5, "location.path cannot be changed");
    fs::write(file, changed.replace("date: 14", "date: 32").replace("app: shop", "app: [shop]")).unwrap();
    let error = ctl.fails(&["apply", "-f", file], 2);
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains(": policy.monthly: ") && message.contains(".selectors: labels are expected"),
        "{message}"
    );
    assert_eq!(ctl.fails(&["get", "vbs", "unknown"], 4)["code"], "schedule_not_found");
}

#[test]
fn deleted_file_keeps_volumes() {
    let applied = Applied::new();
    let (ctl, file) = (applied.daemon.ctl(), applied.file.as_str());
    let uuid =
        ctl.json(&["cloudsnap", "schedules", "create", "pgdata", "--daily", "01:00"])["scheduleId"].clone();
    ctl.json(&["delete", "VolumeBackup", "before-upgrade"]);
    ctl.json(&["delete", "vbs", uuid.as_str().unwrap()]);
    assert_eq!(
        results(&ctl.json(&["delete", "-f", file])),
        [
            "VolumeClone/pgdata-test deleted, volumes kept",
            "VolumeRestore/pgdata-restored deleted, volumes kept",
            "RestoreDrill/pgdata-drills deleted",
            "VolumeBackupSchedule/shop deleted",
            "VolumeBackupSchedule/pgdata-nights deleted",
            "VolumeBackup/before-upgrade not there",
            "VolumeSnapshot/before-change deleted",
            "Rule/flush deleted",
            "SchedulePolicy/gold deleted",
            "BackupLocation/local-backups deleted",
        ]
    );
    let volumes = ctl.run(&["volume", "list"]).stdout;
    assert!(volumes.contains("pgdata-restored") && volumes.contains("pgdata-test"), "{volumes}");
    assert_eq!(ctl.fails(&["delete", "SchedulePolicy", "gold"], 4)["code"], "policy_not_found");
}

/// Writes a file. Returns its path.
fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Returns a backup location in a directory.
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
    let vault = location("vault", &dir);
    let backup =
        object("VolumeBackup", "before", "backupLocation: vault, volume: pgdata, reclaimPolicy: Delete");
    let backup = file(bed.dir(), "backup.yaml", &(vault + &backup));
    let restore = object("VolumeRestore", "back", "backupLocation: vault, backupName: before");
    let restore = file(bed.dir(), "restore.yaml", &restore);
    for ctl in [&a, &b] {
        ctl.create_volume("pgdata", "8MiB");
        ctl.add_local("vault", &dir, None);
    }
    let started = ["BackupLocation/vault unchanged", "VolumeBackup/before started"];
    assert_eq!(results(&a.json(&["apply", "-f", &backup, "--wait"])), started);
    let of_a = a.done_cloudsnaps().remove(0);

    // Host b lists the backup of host a and restores it by its name, but neither deletes nor exports it.
    let listed = get(&b, "vb");
    assert_eq!(
        (listed.len(), &listed[0]["status"]["cloudSnapshotId"]),
        (1, &of_a.as_str().into()),
        "{listed:#?}"
    );
    let table = b.run(&["get", "vb"]).stdout;
    let is_of_a = |line: &str| line.starts_with(&of_a[..4]) && line.contains("/before ");
    assert!(table.lines().any(is_of_a), "{table}");
    let exported = b.run(&["get", "vb", "-o", "yaml"]);
    assert!(exported.stdout.trim().is_empty() && exported.stderr.contains("another host"), "{exported:?}");
    assert_eq!(results(&b.json(&["apply", "-f", &restore, "--wait"])), ["VolumeRestore/back started"]);
    assert_eq!(b.json(&["get", "vr", "back"])["status"]["cloudSnapshotId"], of_a.as_str());
    b.json(&["volume", "delete", "back"]);
    b.fails(&["delete", "VolumeBackup", "before"], 4);
    let kept = ["VolumeBackup/before not there", "BackupLocation/vault deleted"];
    assert_eq!(results(&b.json(&["delete", "-f", &backup])), kept);
    b.add_local("vault", &dir, None);
    assert_eq!(a.done_cloudsnaps(), [of_a.as_str()]);

    // An own backup of the name wins.
    assert_eq!(results(&b.json(&["apply", "-f", &backup, "--wait"])), started);
    b.json(&["apply", "-f", &restore, "--wait"]);
    let source = b.json(&["get", "vr", "back"])["status"]["cloudSnapshotId"].clone();
    assert!(source.is_string() && source != of_a.as_str(), "{source}");
    // A third host must choose.
    let c = bed.daemon("c").start();
    let c = c.ctl();
    c.add_local("vault", &dir, None);
    let error = c.fails(&["apply", "-f", &restore], 2);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("ambiguous") && message.contains(of_a.as_str()), "{message}");

    // The id refers to that backup on all hosts.
    let spec = format!("backupLocation: vault, cloudSnapshotId: {of_a}");
    let foreign = file(bed.dir(), "foreign.yaml", &object("VolumeRestore", "foreign", &spec));
    b.json(&["apply", "-f", &foreign, "--wait"]);
    assert_eq!(b.json(&["describe", "vb", &of_a])["items"][0]["status"]["cloudSnapshotId"], of_a.as_str());

    // Each host deletes its own backup by name.
    b.json(&["delete", "VolumeBackup", "before"]);
    assert_eq!(a.done_cloudsnaps(), [of_a.as_str()]);
    let error = b.fails(&["delete", "VolumeBackup", &of_a], 5);
    assert_eq!(error["code"], "cloudsnap_of_other_host");
    b.json(&["cloudsnap", "delete", "--snap", &of_a, "--force", "--wait"]);
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
    assert!(message.contains("--volume") && !message.contains("--location"), "{message}");
    assert_eq!(ctl.done_cloudsnaps().len(), 2);

    // Two credentials of one location list the backup of both volumes once; objects of both are unchanged.
    let listed = get(&ctl, "vb");
    assert_eq!((listed.len(), listed[0]["spec"]["volume"].as_array().unwrap().len()), (1, 2), "{listed:#?}");
    for name in ["here", "again"] {
        let spec = format!("backupLocation: {name}, volume: db");
        let same = file(bed.dir(), "same.yaml", &object("VolumeBackup", "before", &spec));
        assert_eq!(results(&ctl.json(&["apply", "-f", &same])), ["VolumeBackup/before unchanged"]);
    }

    // An object deletes the backup of its volume, and none of an older volume of the same name.
    assert_eq!(results(&ctl.json(&["delete", "-f", &mine])), ["VolumeBackup/before deleted"]);
    let left = ctl.json(&["cloudsnap", "list"]);
    assert_eq!(
        (left["items"].as_array().unwrap().len(), &left["items"][0]["volumeName"]),
        (1, &"log".into()),
        "{left:#}"
    );
    ctl.json(&["volume", "delete", "log"]);
    ctl.create_volume("log", "8MiB");
    let log = "backupLocation: here, volume: log, reclaimPolicy: Delete";
    let log = file(bed.dir(), "log.yaml", &object("VolumeBackup", "before", log));
    let deleted = ctl.json(&["delete", "-f", &log]);
    assert_eq!(results(&deleted), ["VolumeBackup/before kept in the store"]);
    assert!(
        deleted["items"][0]["warnings"].to_string().contains(" of an older volume log stays"),
        "{deleted:#}"
    );
    ctl.fails_with(&["apply", "-f", &log], 5, " lacks log: give a new one another name");
    let older = left["items"][0]["cloudSnapshotId"].as_str().unwrap();
    ctl.json(&["delete", "VolumeBackup", older, "--location", "again"]);
    assert_eq!(results(&ctl.json(&["apply", "-f", &log, "--wait"])), ["VolumeBackup/before started"]);
    ctl.json(&["delete", "VolumeBackup", "before", "--volume", "log"]);
    assert!(ctl.done_cloudsnaps().is_empty());

    // A volume that gets the label later is not in the backup.
    let with_label = |name: &str| {
        ctl.json(&["volume", "create", name, "--size", "8MiB", "--label", "app=shop"]);
    };
    with_label("one");
    let applied = ctl.json(&["apply", "-f", &both, "--wait"]);
    assert_eq!(applied["items"][0]["taskIds"].as_array().unwrap().len(), 2, "{applied:#}");
    with_label("two");
    let ran = ctl.run(&["apply", "-f", &both]);
    assert!(
        ran.stdout == "VolumeBackup/before unchanged\n"
            && ran.stderr.contains(" lacks two of the selected volumes"),
        "{ran:?}"
    );
}

#[test]
fn clone_starts_with_current_content() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.create_volume("db", "8MiB");
    // A user's snapshot, which the clone does not use.
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
    // A named snapshot is used.
    let named = object("VolumeClone", "test", "sourceVolume: db, snapshot: clone-test");
    let named = file(bed.dir(), "named.yaml", &named);
    ctl.json(&["apply", "-f", &named]);
    assert_eq!(ctl.json(&["get", "vc", "test"])["spec"]["snapshot"], "clone-test");
    drop(daemon);
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

    // Retention by the policy is shown for a schedule without its own.
    let listed = ctl.run(&["cloudsnap", "schedules", "list", "-o", "wide"]).stdout;
    assert!(listed.contains("7/5 by policy"), "{listed}");
    let shown = ctl.json(&["get", "vbs", "nightly"]);
    assert!(
        shown["spec"].get("retain").is_none() && shown["status"]["kept"] == "last=7/last=5 by policy",
        "{shown:#}"
    );

    // `--wait` waits for the run; a prefix of the cloud snapshot's id locates it.
    let uuid = shown["status"]["scheduleId"].as_str().unwrap();
    let ran = ctl.json(&["cloudsnap", "schedules", "run-now", &uuid[..8], "--wait"]);
    assert_eq!(ran["items"][0]["state"], "done", "{ran:#}");
    let id = ran["items"][0]["cloudSnapshotId"].as_str().unwrap();
    let (cluster, rest) = id.split_once('/').unwrap();
    for text in
        [&id[..9], &rest[..8], &format!("{}…/{}…", &cluster[..4], &rest[..6]), id.trim_end_matches("-incr")]
    {
        assert_eq!(ctl.json(&["cloudsnap", "inspect", text])["cloudSnapshotId"], id, "{text}");
    }
    assert_eq!(ctl.json(&["cloudsnap", "list", "-i", &rest[..8]])[0]["ID"], id);
    ctl.fails(&["cloudsnap", "inspect", "0123456789abcdef0"], 4);
    assert_eq!(ctl.run(&["cloudsnap", "delete", "--snap", &id[..9]]).code, 2);
    ctl.json(&["cloudsnap", "restore", "--snap", &rest[..8], "--volume", "back", "--wait"]);

    // Backups without a name are left out of the export, which can be applied.
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
