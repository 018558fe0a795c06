//! Tests of layers: snapshot comparison, space, and rollback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{BLOCK, Bed, Ctl, MIB, Rng, wait_for};

/// The extents of a diff: offset, length, kind.
fn diff(ctl: &Ctl, args: &[&str]) -> Vec<(u64, u64, String)> {
    let mut all = vec!["snapshot", "diff", "vol"];
    all.extend(args);
    let document = ctl.json(&all);
    let extents = document["extents"].as_array().unwrap().iter().map(|extent| {
        let number = |field: &str| extent[field].as_u64().unwrap();
        (number("offsetBytes"), number("lengthBytes"), extent["kind"].as_str().unwrap().to_owned())
    });
    extents.collect()
}

fn space(ctl: &Ctl) -> Vec<(String, u64, u64)> {
    let list = ctl.json(&["snapshot", "list", "vol"]);
    let snapshots = list.as_array().unwrap().iter().map(|snapshot| {
        let number = |field: &str| snapshot[field].as_u64().unwrap();
        let name = snapshot["name"].as_str().unwrap().to_owned();
        (name, number("exclusiveBytes"), number("sharedBytes"))
    });
    snapshots.collect()
}

#[test]
fn rolled_back_volume_has_a_correct_next_backup() {
    let mut rng = Rng::of_test("rolled_back_volume_has_a_correct_next_backup");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), None);
    ctl.create_volume("vol", "64MiB");
    let mut client = daemon.nbd("vol");
    let first = rng.bytes(4 * MIB);
    client.write_long(0, &first);
    client.flush();
    ctl.json(&["snapshot", "create", "vol", "--name", "good"]);
    assert!(!ctl.backup("vol").is_incremental());
    client.write(MIB, &rng.bytes(2 * BLOCK));
    client.write(8 * MIB, &rng.bytes(BLOCK));
    ctl.json(&["snapshot", "create", "vol", "--name", "bad"]);
    client.write(8 * MIB, &rng.bytes(BLOCK));
    client.flush();
    let data = |offset, blocks: u64| (offset, blocks * BLOCK, "data".to_owned());
    assert_eq!(diff(&ctl, &["good", "bad"]), [data(MIB, 2), data(8 * MIB, 1)]);
    assert_eq!(diff(&ctl, &["bad"]), [data(8 * MIB, 1)]);
    assert_eq!(diff(&ctl, &["bad", "now"]), diff(&ctl, &["bad"]));
    for (export, uri) in [("vol", daemon.uri("vol")), ("vol@good", daemon.uri("vol%40good"))] {
        assert_eq!(ctl.json(&["volume", "uri", export])["uri"].as_str(), Some(&*uri));
    }
    assert_eq!(ctl.json(&["snapshot", "inspect", "vol@good"])["export"], "vol@good");
    ctl.fails(&["volume", "uri", "vol@never"], 4);
    ctl.fails(&["snapshot", "diff", "vol", "bad", "good"], 2);
    ctl.fails(&["snapshot", "diff", "vol", "never"], 4);
    // A backup may keep a snapshot of its own of the same content: what is exclusive to `bad` is not shared
    // with it.
    let bad = space(&ctl).into_iter().find(|found| found.0 == "bad").unwrap();
    assert_eq!((bad.1, bad.1 + bad.2), (BLOCK, 4 * MIB + BLOCK));

    let refused = ctl.fails(&["snapshot", "restore", "vol", "--snapshot", "good"], 5);
    assert!(refused["message"].as_str().unwrap().contains("NBD connection"), "{refused:#}");
    drop(client);
    wait_for("the end of the connection", || (ctl.volume("vol")["connections"] == 0).then_some(()));
    ctl.fails(&["snapshot", "restore", "vol", "--snapshot", "never"], 4);
    let restored = ctl.json(&["snapshot", "restore", "vol", "--snapshot", "good"]);
    assert_eq!(
        (restored["changedBytes"].as_u64(), restored["copiedBytes"].as_u64()),
        (Some(3 * BLOCK), Some(2 * BLOCK))
    );
    let kept = restored["kept"]["name"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("before-restore-"), "{kept}");
    let mut expected = first;
    expected.resize(64 << 20, 0);
    assert!(daemon.nbd("vol").read_all() == expected);

    let task = ctl.backup("vol");
    assert!(task.is_incremental());
    ctl.restore(task.snap(), "copy");
    assert!(daemon.nbd("copy").read_all() == expected);

    // And forward again.
    wait_for("the end of the connection", || (ctl.volume("vol")["connections"] == 0).then_some(()));
    let names = |ctl: &Ctl| space(ctl).into_iter().map(|found| found.0).collect::<Vec<_>>();
    let before = names(&ctl);
    let forward = ctl.json(&["snapshot", "restore", "vol", "--snapshot", &kept, "--discard"]);
    assert!(forward["kept"].is_null() && names(&ctl) == before);
    assert!(daemon.nbd("vol").read_all() != expected);
    let task = ctl.backup("vol");
    assert!(task.is_incremental());
}

#[test]
fn clone_is_immediate_and_outlives_its_parent() {
    let mut rng = Rng::of_test("clone_is_immediate_and_outlives_its_parent");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), None);
    ctl.create_volume("vol", "16MiB");
    let first = rng.bytes(4 * MIB);
    let mut client = daemon.nbd("vol");
    client.write_long(0, &first);
    ctl.json(&["snapshot", "create", "vol", "--name", "s"]);
    client.write(0, &rng.bytes(BLOCK));
    client.flush();
    drop(client);
    ctl.json(&["volume", "clone", "copy", "--from", "vol@s", "--label", "app=test"]);
    ctl.fails(&["volume", "clone", "copy", "--from", "vol@s"], 5);
    ctl.fails(&["volume", "clone", "other", "--from", "vol@never"], 4);
    let copy = ctl.volume("copy");
    assert_eq!((copy["dirtyBytes"].as_u64(), copy["sharedBytes"].as_u64()), (Some(0), Some(4 * MIB)));
    let mut client = daemon.nbd("copy");
    assert!(client.read(0, 4 * MIB) == first);
    let own = rng.bytes(2 * BLOCK);
    client.write(MIB, &own);
    client.flush();
    drop(client);
    for name in ["vol", "copy"] {
        let checked = ctl.json(&["volume", "check", name]);
        assert_eq!(
            (&checked["sound"], &checked["findings"]),
            (&true.into(), &serde_json::json!([])),
            "{checked:#}"
        );
    }
    ctl.json(&["snapshot", "delete", "vol@s"]);
    wait_for("the end of all connections", || (ctl.volume("vol")["connections"] == 0).then_some(()));
    ctl.json(&["volume", "delete", "vol"]);
    let mut expected = first;
    expected.resize(16 << 20, 0);
    expected[MIB as usize..][..own.len()].copy_from_slice(&own);
    assert!(daemon.nbd("copy").read_all() == expected);
    assert_eq!(ctl.volume("copy")["sharedBytes"].as_u64(), Some(0));
    assert!(!ctl.backup("copy").is_incremental());
    let daemon = daemon.stop().start();
    assert!(daemon.nbd("copy").read_all() == expected);
}

/// Returns the progress and total of the running merge; `None` without one.
fn merging(ctl: &Ctl) -> Option<(u64, u64)> {
    let volume = ctl.volume("vol");
    let number = |field: &str| volume["merging"][field].as_u64();
    number("layers").map(|_| (number("doneBytes").unwrap(), number("totalBytes").unwrap()))
}

/// The daemon is killed in the middle of a merge: the next one goes on by itself, and not from the start.
#[test]
fn merge_resumes_after_a_kill() {
    const LOWER: u64 = 128 * MIB;
    let mut rng = Rng::of_test("merge_resumes_after_a_kill");
    let bed = Bed::new();
    // Twenty seconds for the merge, but where the filesystem shares extents.
    let slow = |bytes_per_s: u64| bed.daemon("a").config(&format!("merge_limit_bytes_per_s = {bytes_per_s}"));
    let daemon = slow(6 * MIB).start();
    let ctl = daemon.ctl();
    ctl.create_volume("vol", "320MiB");
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(LOWER));
    ctl.json(&["snapshot", "create", "vol", "--name", "old"]);
    client.write_long(160 * MIB, &rng.bytes(LOWER + MIB));
    client.write(8 * MIB, &rng.bytes(BLOCK));
    ctl.json(&["snapshot", "create", "vol", "--name", "new"]);
    let expected = client.read_all();
    drop(client);
    assert_eq!(merging(&ctl), None);
    ctl.json(&["snapshot", "delete", "vol@old"]);
    let total = LOWER - BLOCK;
    let seen = wait_for("half of the merge", || match merging(&ctl) {
        Some((done, _)) if done < 68 * MIB => None,
        found => Some(found),
    });
    drop(daemon.kill());
    // Slow enough to be observed in progress.
    let daemon = slow(MIB).start();
    let ctl = daemon.ctl();
    match seen {
        None => {
            eprintln!("the filesystem shares extents: the merge was over before anything could be killed");
        }
        Some(seen) => {
            assert_eq!(seen.1, total);
            let again = wait_for("the merge to go on", || merging(&ctl).filter(|found| found.1 > 0));
            assert!(again.0 >= 64 * MIB && again.1 == total, "{again:?}");
        }
    }
    drop(daemon.kill());
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    wait_for("the end of the merge", || merging(&ctl).is_none().then_some(()));
    assert_eq!(ctl.volume("vol")["layers"], 2);
    assert!(daemon.nbd("vol").read_all() == expected);
    assert_eq!(ctl.json(&["volume", "check", "vol"])["sound"], true);
}
