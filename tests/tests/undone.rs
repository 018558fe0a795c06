//! Tasks that are stopped, killed and taken up again through the command line; damage that is found, named
//! and healed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{Bed, Ctl, Daemon, MIB, Rng, assert_same, wait_for};
use serde_json::Value;
use std::path::Path;

const SIZE: u64 = 160 * MIB;

/// A volume full of noise.
fn fill(daemon: &Daemon, rng: &mut Rng) {
    daemon.ctl().create_volume("vol", &format!("{}MiB", SIZE / MIB));
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(SIZE));
    client.close();
}

/// Adds a location slow enough to observe a running task.
fn add_slow(ctl: &Ctl, name: &str, dir: &Path, limit: &str) {
    let dir = dir.to_str().unwrap();
    ctl.json(&["credentials", "create", name, "--provider", "local", "--path", dir, limit, "5MiB"]);
}

fn lift_limits(ctl: &Ctl, name: &str) {
    ctl.json(&["credentials", "limit", name, "--limit-upload", "none", "--limit-download", "none"]);
}

fn processed(ctl: &Ctl, task: &str, bytes: u64) {
    wait_for("some progress", || {
        let task = ctl.task(task);
        assert!(!task.is_over(), "{task:?}");
        (task.number("bytesProcessed") >= bytes).then_some(())
    });
}

#[test]
fn stopped_backup_and_killed_restore_resume() {
    let mut rng = Rng::of_test("stopped_backup_and_killed_restore_resume");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").config("upload_concurrency = 1").config("download_concurrency = 1").start();
    fill(&daemon, &mut rng);
    let ctl = daemon.ctl();
    add_slow(&ctl, "slow", store.dir(), "--limit-upload");
    let task = ctl.start_backup("vol");
    processed(&ctl, &task, 32 * MIB);
    wait_for("a pack in the store", || (!store.packs().is_empty()).then_some(()));
    let stopped = ctl.json(&["cloudsnap", "stop", "--name", &task]);
    assert_eq!((&stopped["state"], &stopped["resumable"]), (&"Backup-Stopped".into(), &true.into()));
    let sent = store.packs().len();
    assert!(sent > 0 && ctl.done_cloudsnaps().is_empty());
    // What is written now belongs to the next backup.
    let frozen = daemon.content("vol");
    let mut client = daemon.nbd("vol");
    client.write(5 * MIB, &rng.bytes(MIB));
    client.close();
    let daemon = daemon.kill().start();
    let ctl = daemon.ctl();
    assert_eq!(ctl.task(&task).state(), "Backup-Stopped", "it was not resumed");
    let garbage = ctl.json(&["cloudsnap", "gc", "--dry-run"]);
    assert_eq!(garbage["garbage"], Value::Array(Vec::new()), "{garbage:#}");
    lift_limits(&ctl, "slow");
    let resumed = ctl.json(&["cloudsnap", "resume", "--name", &task]);
    assert_eq!(resumed["resumed"], 1);
    let done = ctl.wait_task(&task);
    assert_eq!(done.state(), "Backup-Done", "{done:?}");
    let packs = SIZE.div_ceil(32 * MIB);
    assert!(done.requests("put") <= packs + 3, "packs were sent twice: {done:?}");
    ctl.fails(&["cloudsnap", "resume", "--name", &task], 5);

    let other = bed.daemon("b").config("download_concurrency = 1").start();
    let ctl = other.ctl();
    add_slow(&ctl, "slow", store.dir(), "--limit-download");
    let started = ctl.json(&["cloudsnap", "restore", "--snap", done.snap(), "--volume", "copy"]);
    let task = started["task"].as_str().unwrap().to_owned();
    // How far it is is noted every 64 MiB.
    processed(&ctl, &task, 80 * MIB);
    let other = other.kill().start();
    let ctl = other.ctl();
    lift_limits(&ctl, "slow");
    let restored = ctl.wait_task(&task);
    assert_eq!(restored.state(), "Restore-Done", "{restored:?}");
    assert!(other.log().contains("the restore goes on where it was"), "{}", other.log());
    assert_same("what was restored", &other.content("copy"), &frozen);
}

#[test]
fn damage_is_named_restored_past_and_healed_by_the_next_backup() {
    let mut rng = Rng::of_test("damage_is_named_restored_past_and_healed_by_the_next_backup");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), Some("correct horse"));
    ctl.create_volume("vol", "16MiB");
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(4 * MIB));
    client.close();
    let full = ctl.backup("vol");
    for depth in ["--quick", "--deep"] {
        let proof = ctl.json(&["cloudsnap", "verify", full.snap(), depth, "--wait"]);
        assert_eq!(proof["findings"]["damageTotal"], 0, "{proof:#}");
    }
    assert!(ctl.run(&["cloudsnap", "list"]).stdout.contains("Sound (deep, "));

    let pack = store.packs().remove(0);
    let path = store.dir().join(&pack);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = 64 + (300 << 10);
    bytes[at] ^= 0x20;
    std::fs::write(&path, &bytes).unwrap();
    let (code, found) = ctl.document(&["cloudsnap", "verify", "--wait"]);
    assert_eq!(code, 1, "{found:#}");
    let damage = &found["findings"]["damage"][0];
    assert_eq!(damage["object"], pack.as_str());
    assert_eq!(damage["affects"][0]["cloudsnap"], full.snap());
    let lost = damage["affects"][0]["lostBytes"].as_u64().unwrap();
    assert_eq!(lost, 128 << 10, "{damage:#}");
    let shown = ctl.run(&["cloudsnap", "verify", "--wait"]);
    assert!(shown.stdout.contains(&pack) && shown.stderr.contains("damaged"), "{shown:?}");
    assert!(ctl.run(&["cloudsnap", "list"]).stdout.contains("Damaged (frames, "));

    ctl.restore_fails(full.snap(), "never");
    let restore =
        ["cloudsnap", "restore", "--snap", full.snap(), "--volume", "past", "--skip-damaged", "--wait"];
    let past = ctl.json(&restore);
    assert_eq!(past["findings"]["damage"][0]["affects"][0]["lostBytes"], lost);
    let (whole, holed) = (daemon.content("vol"), daemon.content("past"));
    let offset = damage["affects"][0]["ranges"][0]["offsetBytes"].as_u64().unwrap() as usize;
    let end = offset + lost as usize;
    assert!(whole[..offset] == holed[..offset] && whole[end..] == holed[end..]);
    assert!(holed[offset..end].iter().all(|byte| *byte == 0));

    let next = ctl.backup("vol");
    assert!(next.is_incremental());
    assert_eq!(next.number("bytesDirty"), lost);
    ctl.restore(next.snap(), "healed");
    assert_same("what was restored", &daemon.content("healed"), &whole);
}

#[test]
fn changed_passphrase_opens_backups_on_another_host() {
    let mut rng = Rng::of_test("changed_passphrase_opens_backups_on_another_host");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), Some("old words"));
    ctl.create_volume("vol", "8MiB");
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(MIB));
    ctl.backup("vol");
    let new = bed.path("new");
    std::fs::write(&new, "new words\n").unwrap();
    let new = new.to_str().unwrap();
    let rekey = ["credentials", "rekey", "nas", "--encryption-passphrase"];
    ctl.fails(&[&rekey[..], &["wrong words", "--new-encryption-passphrase-file", new]].concat(), 1);
    let flags = ["old words", "--new-encryption-passphrase-file", new, "--new-data-key"];
    let rekeyed = ctl.json(&[&rekey[..], &flags].concat());
    assert_eq!((&rekeyed["rewrapped"], &rekeyed["dataKeys"]), (&1.into(), &2.into()), "{rekeyed:#}");
    client.write(MIB, &rng.bytes(4096));
    client.close();
    let next = ctl.backup("vol");
    assert!(next.is_incremental());

    let other = bed.daemon("b").start();
    let ctl = other.ctl();
    let dir = store.dir().to_str().unwrap();
    let create =
        ["credentials", "create", "nas", "--provider", "local", "--path", dir, "--encryption-passphrase"];
    ctl.fails(&[&create[..], &["old words"]].concat(), 1);
    ctl.add_local("nas", store.dir(), Some("new words"));
    assert_eq!(ctl.done_cloudsnaps().len(), 2);
    ctl.restore(next.snap(), "copy");
    assert_same("what was restored", &other.content("copy"), &daemon.content("vol"));
}
