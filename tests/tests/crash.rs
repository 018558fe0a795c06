//! The daemon is killed or stopped at random moments: no acknowledged write is lost, and tasks resume.

use crate::harness::{
    BLOCK, Bed, Ctl, Daemon, MIB, Rng, assert_same,
    crash::{Region, check_regions, spawn_writers},
    wait_until,
};
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns true if the daemon recovered a volume after a kill.
fn recovered(daemon: &Daemon) -> bool {
    daemon.log().contains("recovered unflushed blocks")
}

/// Restores a cloud snapshot and compares it with the current volume.
fn assert_restore_equals_volume(ctl: &Ctl, daemon: &Daemon, snap: &str, volume: &str) {
    ctl.restore(snap, "compare");
    assert_same("restored volume", &daemon.content("compare"), &daemon.content(volume));
    ctl.json(&["volume", "delete", "compare"]);
}

#[test]
fn acknowledged_writes_survive_kills() {
    let mut rng = Rng::of_test("acknowledged_writes_survive_kills");
    let bed = Bed::new();
    let store = bed.store("store");
    let mut setup = bed.daemon("a");
    const WRITERS: u64 = 3;
    const REGION: u64 = 8 * MIB;
    let mut regions: Vec<Region> = (0..WRITERS).map(|nth| Region::new(nth * REGION, REGION)).collect();
    let mut recoveries = 0;
    for round in 0..6 {
        let daemon = setup.start();
        let ctl = daemon.ctl();
        if round == 0 {
            ctl.add_local("nas", store.dir(), Some("passphrase"));
            ctl.create_volume("vol", &format!("{}MiB", WRITERS * REGION / MIB));
        } else {
            check_regions(&daemon, "vol", &mut regions);
            // A freeze just before the kill leaves nothing to recover.
            recoveries += u32::from(recovered(&daemon));
            // Interrupted backups complete.
            for task in ctl.json(&["cloudsnap", "status"])["items"].as_array().unwrap() {
                let task = ctl.wait_task(task["taskId"].as_str().unwrap());
                assert!(task.state().ends_with("-Done"), "{task:?}");
            }
            let task = ctl.backup("vol");
            assert_restore_equals_volume(&ctl, &daemon, task.snap(), "vol");
        }
        let count = AtomicU64::new(0);
        let (socket, until) = (daemon.nbd_socket(), rng.between(100, 2500));
        setup = std::thread::scope(|scope| {
            spawn_writers(scope, &mut regions, (&socket, "vol"), &mut rng, &count);
            if round % 3 == 1 {
                wait_until("some writes", || count.load(Ordering::SeqCst) > until / 2);
                ctl.json(&["snapshot", "create", "vol"]);
            }
            if round % 3 == 2 {
                wait_until("some writes", || count.load(Ordering::SeqCst) > until / 2);
                ctl.start_backup("vol");
            }
            wait_until("the writes", || count.load(Ordering::SeqCst) >= until);
            daemon.kill()
        });
    }
    check_regions(&setup.start(), "vol", &mut regions);
    assert!(recoveries > 0, "no kill left unflushed blocks");
}

#[test]
fn killed_backups_and_restores_complete_after_restart() {
    let mut rng = Rng::of_test("killed_backups_and_restores_complete_after_restart");
    let bed = Bed::new();
    let store = bed.store("store");
    let mut daemon = bed.daemon("a").start_with_volume(&store, None, "40MiB");
    for round in 0..6 {
        let mut client = daemon.nbd("vol");
        for _ in 0..rng.between(1, 12) {
            let data = rng.bytes(MIB);
            client.write(rng.below(40) * MIB, &data);
        }
        client.close();
        let ctl = daemon.ctl();
        let backup = ctl.start_backup("vol");
        // Replies of the daemon, not a clock, set the moment of the kill.
        for _ in 0..rng.below(6) {
            ctl.task(&backup);
        }
        daemon = daemon.kill().start();
        let ctl = daemon.ctl();
        let backup = ctl.wait_task(&backup);
        assert_eq!(backup.state(), "Backup-Done", "round {round}: {backup:?}");
        let listed = ctl.done_cloudsnaps();
        assert_eq!(listed.len(), round + 1, "a backup has other than one cloud snapshot");
        assert!(listed.iter().any(|id| id == backup.snap()));

        let started = ctl.json(&["cloudsnap", "restore", "--snap", backup.snap(), "--volume", "compare"]);
        let restore = started["taskId"].as_str().unwrap().to_owned();
        for _ in 0..rng.below(4) {
            ctl.task(&restore);
        }
        daemon = daemon.kill().start();
        let ctl = daemon.ctl();
        let restore = ctl.wait_task(&restore);
        assert_eq!(restore.state(), "Restore-Done", "round {round}: {restore:?}");
        assert_same("restored volume", &daemon.content("compare"), &daemon.content("vol"));
        let volumes = ctl.json(&["volume", "list"]);
        assert_eq!(volumes["items"].as_array().map(Vec::len), Some(2), "{volumes:#}");
        ctl.json(&["volume", "delete", "compare"]);
        assert!(
            ctl.json(&["snapshot", "list"])["items"].as_array().unwrap().is_empty(),
            "a snapshot of a backup is left"
        );
    }
}

#[test]
fn clean_stop_keeps_the_dirty_set_exact() {
    let mut rng = Rng::of_test("clean_stop_keeps_the_dirty_set_exact");
    let bed = Bed::new();
    let store = bed.store("store");
    let mut daemon = bed.daemon("a").start_with_volume(&store, None, "256MiB");
    for _ in 0..3 {
        daemon.ctl().backup("vol");
        let mut client = daemon.nbd("vol");
        let mut blocks = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let block = rng.below(256 * MIB / BLOCK);
            // A partial write dirties its block only.
            client.write(block * BLOCK + rng.below(BLOCK - 8), &rng.bytes(8));
            blocks.insert(block);
        }
        let dirty = blocks.len() as u64 * BLOCK;
        assert_eq!(daemon.ctl().volume("vol")["dirtyBytes"], dirty, "while it runs");
        // The stop does not wait for the connected client.
        let before = client.read_all();
        daemon = daemon.stop().start();
        drop(client);
        assert_eq!(daemon.ctl().volume("vol")["dirtyBytes"], dirty, "after the stop");
        assert!(!recovered(&daemon), "recovery after a clean stop:\n{}", daemon.log());
        assert_same("after the stop", &daemon.content("vol"), &before);
        let task = daemon.ctl().backup("vol");
        assert_eq!((task.is_incremental(), task.number("dirtyBytes")), (true, dirty));
    }
}

#[test]
fn stop_under_load_loses_no_writes() {
    let mut rng = Rng::of_test("stop_under_load_loses_no_writes");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start_with_volume(&store, None, "16MiB");
    daemon.ctl().backup("vol");
    let mut regions = [Region::new(0, 8 * MIB), Region::new(8 * MIB, 8 * MIB)];
    let (socket, count) = (daemon.nbd_socket(), AtomicU64::new(0));
    let setup = std::thread::scope(|scope| {
        spawn_writers(scope, &mut regions, (&socket, "vol"), &mut rng, &count);
        wait_until("some writes", || count.load(Ordering::SeqCst) > 500);
        daemon.stop()
    });
    let daemon = setup.start();
    check_regions(&daemon, "vol", &mut regions);
    assert!(!recovered(&daemon), "recovery after a clean stop:\n{}", daemon.log());
    let task = daemon.ctl().backup("vol");
    assert!(task.is_incremental());
    assert_restore_equals_volume(&daemon.ctl(), &daemon, task.snap(), "vol");
}

#[test]
fn stopped_backup_resumes() {
    let mut rng = Rng::of_test("stopped_backup_resumes");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").config("upload_concurrency = 1").start_with_volume(&store, None, "128MiB");
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(128 * MIB));
    let task = daemon.ctl().start_backup("vol");
    wait_until("a pack in the store", || !store.packs().is_empty());
    let setup = daemon.stop();
    drop(client);
    let daemon = setup.start();
    let ctl = daemon.ctl();
    let task = ctl.wait_task(&task);
    assert_eq!(task.state(), "Backup-Done", "{task:?}");
    assert_restore_equals_volume(&ctl, &daemon, task.snap(), "vol");
}
