//! Objects whose tasks are running.

use super::*;
use crate::harness::{MIB, Rng};

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
        applied["items"][0]["taskIds"][0].as_str().unwrap().to_owned()
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
    let spec = format!("backupLocation: down, cloudSnapshotId: {}", full.snap());
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
    assert_eq!(applied["items"][1]["waitsFor"], "VolumeBackup/bk1");
    let ran = ctl.run(&["apply", "-f", &all]);
    assert!(
        ran.code == 6 && ran.stdout.contains("VolumeRestore/rest1 waiting for VolumeBackup/bk1"),
        "{ran:?}"
    );
    let (code, differs) = ctl.document(&["diff", "-f", &all]);
    assert_eq!((code, results(&differs)[1].as_str()), (1, "VolumeRestore/rest1 waiting"));

    // One limit is removed, and the other one stays.
    let limited = ctl.json(&["credentials", "limit", "nas", "--limit-upload", "none"]);
    assert!(
        limited["limitUploadBytesPerSecond"].is_null()
            && limited["limitDownloadBytesPerSecond"] == 1u64 << 30
    );
    ctl.fails(&["credentials", "limit", "nas"], 2);
    let restore = object("VolumeRestore", "rest1", "backupLocation: nas, backupName: bk1");
    let restore = file(bed.dir(), "restore.yaml", &restore);
    assert_eq!(results(&ctl.json(&["apply", "-f", &restore, "--wait"])), ["VolumeRestore/rest1 started"]);
    let again = results(&ctl.json(&["apply", "-f", &all]));
    assert!(again.iter().all(|line| line.ends_with(" unchanged")), "{again:?}");
}
