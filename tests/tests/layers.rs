//! Layers: snapshot comparison, space, and rollback.

use crate::harness::{BLOCK, Bed, Ctl, MIB, Rng};

/// Returns the extents of a diff: offset, length, kind.
fn diff(ctl: &Ctl, args: &[&str]) -> Vec<(u64, u64, String)> {
    let mut all = vec!["snapshot", "diff", "vol"];
    all.extend(args);
    let document = ctl.json(&all);
    let extents = document["items"].as_array().unwrap().iter().map(|extent| {
        let number = |field: &str| extent[field].as_u64().unwrap();
        (number("offsetBytes"), number("lenBytes"), extent["kind"].as_str().unwrap().to_owned())
    });
    extents.collect()
}

/// Returns name, exclusive bytes and shared bytes of each snapshot.
fn space(ctl: &Ctl) -> Vec<(String, u64, u64)> {
    let list = ctl.json(&["snapshot", "list", "vol"]);
    let snapshots = list["items"].as_array().unwrap().iter().map(|snapshot| {
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
    let daemon = bed.daemon("a").start_with_volume(&store, None, "64MiB");
    let ctl = daemon.ctl();
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
    // The snapshot of a backup may share blocks with `bad`, but not its exclusive block.
    let bad = space(&ctl).into_iter().find(|found| found.0 == "bad").unwrap();
    assert_eq!((bad.1, bad.1 + bad.2), (BLOCK, 4 * MIB + BLOCK));

    ctl.fails_with(&["snapshot", "restore", "vol", "--snapshot", "good"], 5, "NBD connection");
    drop(client);
    ctl.wait_for_connections("vol", 0);
    ctl.fails(&["snapshot", "restore", "vol", "--snapshot", "never"], 4);
    let restored = ctl.json(&["snapshot", "restore", "vol", "--snapshot", "good"]);
    assert_eq!(
        (restored["changedBytes"].as_u64(), restored["copiedBytes"].as_u64()),
        (Some(3 * BLOCK), Some(2 * BLOCK))
    );
    let kept = restored["keptSnapshot"]["name"].as_str().unwrap().to_owned();
    assert!(kept.starts_with("before-restore-"), "{kept}");
    let mut expected = first;
    expected.resize(64 << 20, 0);
    assert!(daemon.nbd("vol").read_all() == expected);

    let task = ctl.backup("vol");
    assert!(task.is_incremental());
    ctl.restore(task.snap(), "copy");
    assert!(daemon.nbd("copy").read_all() == expected);

    // A rollback to the kept snapshot undoes the first one.
    ctl.wait_for_connections("vol", 0);
    let names = |ctl: &Ctl| space(ctl).into_iter().map(|found| found.0).collect::<Vec<_>>();
    let before = names(&ctl);
    let forward = ctl.json(&["snapshot", "restore", "vol", "--snapshot", &kept, "--discard"]);
    assert!(forward["keptSnapshot"].is_null() && names(&ctl) == before);
    assert!(daemon.nbd("vol").read_all() != expected);
    let task = ctl.backup("vol");
    assert!(task.is_incremental());
}
