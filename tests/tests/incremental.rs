//! An incremental costs what changed and no more, and each cloud snapshot can be deleted without harm to
//! others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{BLOCK, Bed, KIB, MIB, Model, Rng, Task, assert_same, process::bytes_read};
use std::collections::BTreeSet;

/// Overwrites so many distinct random blocks with incompressible data.
fn dirty(client: &mut blockd_tests::Nbd, rng: &mut Rng, blocks: u64) -> u64 {
    let in_volume = client.size_bytes() / BLOCK;
    let mut chosen = BTreeSet::new();
    while (chosen.len() as u64) < blocks {
        chosen.insert(rng.below(in_volume));
    }
    for block in &chosen {
        let data = rng.bytes(BLOCK);
        client.write(block * BLOCK, &data);
    }
    blocks * BLOCK
}

#[test]
fn incremental_reads_and_uploads_dirty_extents_only() {
    let mut rng = Rng::of_test("incremental_reads_and_uploads_dirty_extents_only");
    let bed = Bed::on_disk();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), Some("passphrase"));
    const SIZE: u64 = 192 * MIB;
    ctl.create_volume("vol", "192MiB");
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(SIZE));
    client.flush();
    daemon.drop_caches();
    let before = bytes_read(daemon.pid());
    let full = ctl.backup("vol");
    assert!(!full.is_incremental());
    let by_full = bytes_read(daemon.pid()) - before;
    assert!(by_full >= SIZE, "the meter does not see what a backup reads: {by_full} bytes for {SIZE}");

    for blocks in [1, 10, 1000, 0] {
        let bytes = dirty(&mut client, &mut rng, blocks);
        let stored_before = store.len_bytes();
        daemon.drop_caches();
        let read_before = bytes_read(daemon.pid());
        let task = ctl.backup("vol");
        let read = bytes_read(daemon.pid()) - read_before;
        let stored = store.len_bytes() - stored_before;
        assert!(task.is_incremental(), "{task:?}");
        assert_eq!(task.number("bytesDirty"), bytes, "{blocks} blocks: tracking is exact");
        assert_eq!(task.number("bytesProcessed"), bytes, "{blocks} blocks");
        let limit = bytes * 105 / 100 + 64 * KIB;
        let uploaded = task.number("bytesUploaded");
        assert!(uploaded <= limit, "{blocks} blocks: {uploaded} bytes were uploaded, more than {limit}");
        assert!(stored <= limit, "{blocks} blocks: {stored} bytes were stored, more than {limit}");
        // Both ways of counting may see the same read, and tasks, catalog and manifests are read as well.
        let most = 2 * bytes + 8 * MIB;
        assert!(
            read <= most,
            "{blocks} blocks: {read} bytes were read, more than {most}: is the volume scanned?"
        );
        assert_eq!(
            (task.requests("list"), task.requests("head")),
            (0, 0),
            "a backup lists and asks for nothing"
        );
        assert!(task.requests("put") <= 4, "{blocks} blocks: {task:?}");
    }
    let last = ctl.backup("vol");
    let now = client.read_all();
    ctl.restore(last.snap(), "again");
    assert_same("the last one restored", &daemon.content("again"), &now);
}

#[test]
fn zeroes_cost_nothing() {
    let mut rng = Rng::of_test("zeroes_cost_nothing");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), None);
    ctl.create_volume("vol", "256MiB");
    let mut client = daemon.nbd("vol");
    // Never written: a full backup of nothing.
    let empty = ctl.backup("vol");
    assert!(empty.number("bytesUploaded") <= 64 * KIB, "{empty:?}");
    // Zeroes that were written as data, and data that was trimmed or zeroed.
    client.write_long(0, &vec![0; 64 * MIB as usize]);
    client.write_long(64 * MIB, &rng.bytes(32 * MIB));
    client.zero(64 * MIB, 16 * MIB);
    client.trim(80 * MIB, 16 * MIB);
    let content = client.read_all();
    let zeroes = content.iter().all(|byte| *byte == 0);
    assert!(zeroes, "zeroed and trimmed blocks read as zeroes");
    let task = ctl.backup("vol");
    assert!(task.is_incremental());
    assert!(task.number("bytesUploaded") <= 64 * KIB, "zeroes were uploaded: {task:?}");
    let full = ctl.backup_with("vol", &["--full"]);
    assert!(full.number("bytesUploaded") <= 64 * KIB, "zeroes were uploaded: {full:?}");
    // Blocks that were data in the snapshot before read as zeroes in the next one.
    client.write_long(100 * MIB, &rng.bytes(4 * MIB));
    let with_data = ctl.backup("vol");
    let data = client.read_all();
    client.zero(100 * MIB, 4 * MIB);
    let zeroed = ctl.backup("vol");
    assert!(zeroed.number("bytesUploaded") <= 64 * KIB, "zeroes were uploaded: {zeroed:?}");
    ctl.restore(zeroed.snap(), "zeroed");
    assert_same("after zeroing", &daemon.content("zeroed"), &client.read_all());
    ctl.restore(with_data.snap(), "data");
    assert_same("before zeroing", &daemon.content("data"), &data);
    let sparse = ctl.volume("zeroed");
    let allocated = sparse["allocatedBytes"].as_u64().unwrap();
    assert!(allocated <= 4 * MIB, "a restore of zeroes takes {allocated} bytes");
}

#[test]
fn sixteen_tebibytes_with_few_blocks() {
    let mut rng = Rng::of_test("sixteen_tebibytes_with_few_blocks");
    let bed = Bed::on_disk();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), Some("passphrase"));
    ctl.create_volume("huge", "16TiB");
    let mut client = daemon.nbd("huge");
    let size = client.size_bytes();
    assert_eq!(size, 16 << 40);
    let mut places: Vec<u64> = (0..40).map(|_| rng.below(size / BLOCK) * BLOCK).collect();
    places.extend([0, size - BLOCK, 1 << 40, (1 << 40) - BLOCK, (8 << 40) + BLOCK]);
    places.sort_unstable();
    places.dedup();
    let mut contents: Vec<(u64, Vec<u8>)> = Vec::new();
    for place in &places {
        let data = rng.bytes(BLOCK);
        client.write(*place, &data);
        contents.push((*place, data));
    }
    daemon.drop_caches();
    let read_before = bytes_read(daemon.pid());
    let full = ctl.backup("huge");
    assert_eq!(full.number("bytesDirty"), places.len() as u64 * BLOCK);
    assert_eq!(full.number("bytesProcessed"), places.len() as u64 * BLOCK);
    assert!(full.number("bytesUploaded") <= places.len() as u64 * BLOCK * 105 / 100 + 64 * KIB, "{full:?}");
    let (at, data) = &mut contents[3];
    *data = rng.bytes(BLOCK);
    client.write(*at, data);
    let incremental = ctl.backup("huge");
    assert_eq!((incremental.is_incremental(), incremental.number("bytesDirty")), (true, BLOCK));
    assert!(incremental.number("bytesUploaded") <= BLOCK + 64 * KIB, "{incremental:?}");
    let read = bytes_read(daemon.pid()) - read_before;
    assert!(read <= 32 * MIB, "two backups of a few blocks read {read} bytes");
    ctl.restore(incremental.snap(), "again");
    let mut restored = daemon.nbd("again");
    for (place, data) in &contents {
        assert_same(&format!("the block at {place}"), &restored.read(*place, BLOCK), data);
        let beside = if *place >= BLOCK { place - BLOCK } else { place + BLOCK };
        if !places.contains(&beside) {
            assert_same(
                "a block that was never written",
                &restored.read(beside, BLOCK),
                &[0; BLOCK as usize],
            );
        }
    }
    let allocated = ctl.volume("again")["allocatedBytes"].as_u64().unwrap();
    assert!(allocated <= 8 * MIB, "{allocated} bytes are allocated for a few blocks");
}

#[test]
fn full_backup_policy_is_followed() {
    let mut rng = Rng::of_test("full_backup_policy_is_followed");
    let bed = Bed::new();
    let (store, other) = (bed.store("store"), bed.store("other"));
    let daemon = bed.daemon("a").config("full_every = 3").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), None);
    ctl.create_volume("vol", "8MiB");
    let mut client = daemon.nbd("vol");
    let mut next = |flags: &[&str]| {
        dirty(&mut client, &mut rng, 1);
        ctl.backup_with("vol", flags).is_incremental()
    };
    let kinds: Vec<bool> = (0..7).map(|_| next(&[])).collect();
    assert_eq!(
        kinds,
        [false, true, true, false, true, true, false],
        "every 3rd is full, as the setting says"
    );
    assert!(next(&[]) && !next(&["--full"]), "--full makes a full one at will");
    assert_eq!([next(&[]), next(&[]), next(&[])], [true, true, false], "and the count restarts");
    // Another place has a chain of its own.
    ctl.add_local("other", other.dir(), None);
    assert!(!next(&["--cred-id", "other"]), "the first one to a place is full");
    assert!(next(&["--cred-id", "other"]) && next(&["--cred-id", "nas"]));
    let ids: Vec<String> = ctl
        .json(&["cloudsnap", "list", "--cred-id", "nas"])
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["ID"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 13);
    assert_eq!(ids.iter().filter(|id| id.ends_with("-incr")).count(), 8, "{ids:?}");
}

#[test]
fn any_cloud_snapshot_can_be_deleted() {
    let mut rng = Rng::of_test("any_cloud_snapshot_can_be_deleted");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), Some("passphrase"));
    const SIZE: u64 = 6 * MIB;
    ctl.create_volume("vol", "6MiB");
    let mut client = daemon.nbd("vol");
    let mut model = Model::new(SIZE);
    let mut snaps: Vec<(Task, Model)> = Vec::new();
    for _ in 0..5 {
        for _ in 0..40 {
            model.step(&mut client, &mut rng);
        }
        snaps.push((ctl.backup("vol"), model.clone()));
    }
    // The first, one in the middle, the last.
    for nth in [0, 1, 2] {
        let (gone, _) = snaps.remove(nth);
        ctl.json(&["cloudsnap", "delete", "--snap", gone.snap(), "--wait"]);
        ctl.fails(&["cloudsnap", "inspect", gone.snap()], 4);
        ctl.restore_fails_at_once(gone.snap());
        let known: Vec<&str> = snaps.iter().map(|(task, _)| task.snap()).collect();
        assert_eq!(ctl.done_cloudsnaps(), known);
        for (task, model) in &snaps {
            ctl.restore(task.snap(), "again");
            assert_same("what was left", &daemon.content("again"), &model.bytes);
            ctl.json(&["volume", "delete", "again"]);
        }
    }
    // The newest one is gone, so the next cannot build on it.
    model.step(&mut client, &mut rng);
    let next = ctl.backup("vol");
    assert!(!next.is_incremental(), "an incremental on a snapshot that was deleted");
    ctl.restore(next.snap(), "next");
    assert_same("the next one", &daemon.content("next"), &model.bytes);
    snaps.push((next, model));
    for (task, _) in snaps {
        ctl.json(&["cloudsnap", "delete", "--snap", task.snap(), "--wait"]);
    }
    assert_eq!(store.keys("blockd/data/"), Vec::<String>::new(), "deleted data stays in the store");
    assert_eq!(store.keys("blockd/manifests/"), Vec::<String>::new());
}
