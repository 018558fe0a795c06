//! An incremental costs what changed and no more, and each cloud snapshot can be deleted without harm to
//! others.

use crate::harness::{BLOCK, Bed, KIB, MIB, Rng, assert_same, process::bytes_read};
use std::collections::BTreeSet;

/// Overwrites so many distinct random blocks with incompressible data.
fn dirty(client: &mut crate::harness::Nbd, rng: &mut Rng, blocks: u64) -> u64 {
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
