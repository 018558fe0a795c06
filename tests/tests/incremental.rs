//! Incremental backups read and upload dirty blocks only, on large volumes too; full backups follow the
//! policy.

use crate::harness::{BLOCK, Bed, KIB, MIB, Nbd, Rng, assert_same, process::bytes_read};
use std::collections::BTreeSet;

/// Overwrites distinct random blocks with incompressible data. Returns their size in bytes.
fn dirty(client: &mut Nbd, rng: &mut Rng, blocks: u64) -> u64 {
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
    const SIZE: u64 = 192 * MIB;
    let daemon = bed.daemon("a").start_with_volume(&store, Some("passphrase"), "192MiB");
    let ctl = daemon.ctl();
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(SIZE));
    client.flush();
    daemon.drop_caches();
    let before = bytes_read(daemon.pid());
    let full = ctl.backup("vol");
    assert!(!full.is_incremental());
    let by_full = bytes_read(daemon.pid()) - before;
    assert!(by_full >= SIZE, "{by_full} bytes were counted for a full backup of {SIZE}");

    for blocks in [1, 10, 1000, 0] {
        let bytes = dirty(&mut client, &mut rng, blocks);
        let stored_before = store.len_bytes();
        daemon.drop_caches();
        let read_before = bytes_read(daemon.pid());
        let task = ctl.backup("vol");
        let read = bytes_read(daemon.pid()) - read_before;
        let stored = store.len_bytes() - stored_before;
        assert!(task.is_incremental(), "{task:?}");
        assert_eq!(task.number("dirtyBytes"), bytes, "{blocks} blocks: tracking is not exact");
        assert_eq!(task.number("processedBytes"), bytes, "{blocks} blocks");
        let limit = bytes * 105 / 100 + 64 * KIB;
        let uploaded = task.number("uploadedBytes");
        assert!(uploaded <= limit, "{blocks} blocks: {uploaded} bytes were uploaded, more than {limit}");
        assert!(stored <= limit, "{blocks} blocks: {stored} bytes were stored, more than {limit}");
        // Both counters may count a read; the daemon also reads tasks, catalog and manifests.
        let limit = 2 * bytes + 8 * MIB;
        assert!(read <= limit, "{blocks} blocks: {read} bytes were read, more than {limit}");
        assert_eq!(
            (task.requests("list"), task.requests("head")),
            (0, 0),
            "list and head requests of a backup"
        );
        assert!(task.requests("put") <= 4, "{blocks} blocks: {task:?}");
    }
    let last = ctl.backup("vol");
    let now = client.read_all();
    ctl.restore(last.snap(), "again");
    assert_same("the last backup restored", &daemon.content("again"), &now);
}

#[test]
fn sparse_16_tib_volume_backs_up_written_blocks_only() {
    let mut rng = Rng::of_test("sparse_16_tib_volume_backs_up_written_blocks_only");
    let bed = Bed::on_disk();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), Some("passphrase"));
    ctl.create_volume("huge", "16TiB");
    let mut client = daemon.nbd("huge");
    let size = client.size_bytes();
    assert_eq!(size, 16 << 40);
    let mut offsets: Vec<u64> = (0..40).map(|_| rng.below(size / BLOCK) * BLOCK).collect();
    offsets.extend([0, size - BLOCK, 1 << 40, (1 << 40) - BLOCK, (8 << 40) + BLOCK]);
    offsets.sort_unstable();
    offsets.dedup();
    let mut contents: Vec<(u64, Vec<u8>)> = Vec::new();
    for offset in &offsets {
        let data = rng.bytes(BLOCK);
        client.write(*offset, &data);
        contents.push((*offset, data));
    }
    daemon.drop_caches();
    let read_before = bytes_read(daemon.pid());
    let full = ctl.backup("huge");
    assert_eq!(full.number("dirtyBytes"), offsets.len() as u64 * BLOCK);
    assert_eq!(full.number("processedBytes"), offsets.len() as u64 * BLOCK);
    assert!(full.number("uploadedBytes") <= offsets.len() as u64 * BLOCK * 105 / 100 + 64 * KIB, "{full:?}");
    let (at, data) = &mut contents[3];
    *data = rng.bytes(BLOCK);
    client.write(*at, data);
    let incremental = ctl.backup("huge");
    assert_eq!((incremental.is_incremental(), incremental.number("dirtyBytes")), (true, BLOCK));
    assert!(incremental.number("uploadedBytes") <= BLOCK + 64 * KIB, "{incremental:?}");
    let read = bytes_read(daemon.pid()) - read_before;
    assert!(read <= 32 * MIB, "two backups of a few blocks read {read} bytes");
    ctl.restore(incremental.snap(), "again");
    let mut restored = daemon.nbd("again");
    for (offset, data) in &contents {
        assert_same(&format!("the block at {offset}"), &restored.read(*offset, BLOCK), data);
        let neighbour = if *offset >= BLOCK { offset - BLOCK } else { offset + BLOCK };
        if !offsets.contains(&neighbour) {
            assert_same(
                "a block that was never written",
                &restored.read(neighbour, BLOCK),
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
    let daemon = bed.daemon("a").config("full_every = 3").start_with_volume(&store, None, "8MiB");
    let ctl = daemon.ctl();
    let mut client = daemon.nbd("vol");
    let mut next = |flags: &[&str]| {
        dirty(&mut client, &mut rng, 1);
        ctl.backup_with("vol", flags).is_incremental()
    };
    let kinds: Vec<bool> = (0..7).map(|_| next(&[])).collect();
    assert_eq!(kinds, [false, true, true, false, true, true, false], "every 3rd backup is full");
    assert!(next(&[]) && !next(&["--full"]), "--full makes a full backup");
    assert_eq!([next(&[]), next(&[]), next(&[])], [true, true, false], "the count restarts after --full");
    // Each backup location has its own chain.
    ctl.add_local("other", other.dir(), None);
    assert!(!next(&["--cred-id", "other"]), "the first backup to a location is full");
    assert!(next(&["--cred-id", "other"]) && next(&["--cred-id", "nas"]));
    let ids: Vec<String> = ctl.json(&["cloudsnap", "list", "--cred-id", "nas"])["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["cloudSnapshotId"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 13);
    assert_eq!(ids.iter().filter(|id| id.ends_with("-incr")).count(), 8, "{ids:?}");
}
