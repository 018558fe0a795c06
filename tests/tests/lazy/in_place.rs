//! Restores in place.

use super::*;

#[test]
fn in_place_restore_fetches_differing_blocks_only() {
    let mut rng = Rng::of_test("in_place_restore_fetches_differing_blocks_only");
    let origin = Origin::new(&mut rng);
    // On the host of the backup, the block sets show the differing blocks.
    let daemon = origin.bed.daemon("a").start();
    let ctl = daemon.ctl();
    let mut content = origin.content.clone();
    let change = |rng: &mut Rng, content: &mut Vec<u8>| {
        let mut client = daemon.nbd("vol");
        for _ in 0..20 {
            let (offset, data) = (rng.below(SIZE - 10_000), rng.bytes(10_000));
            client.write(offset, &data);
            content[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        client.close();
    };
    change(&mut rng, &mut content);
    ctl.backup("vol");
    change(&mut rng, &mut content);
    let in_place = |snap: &str, flags: &[&str]| {
        let mut args = vec!["cloudsnap", "restore", "--snap", snap, "--in-place", "vol", "--wait"];
        args.extend(flags);
        ctl.json(&args)
    };
    let client = daemon.nbd("vol");
    ctl.fails_with(
        &["cloudsnap", "restore", "--snap", &origin.snap, "--in-place", "vol"],
        5,
        "1 NBD connection",
    );
    client.close();
    let task = in_place(&origin.snap, &[]);
    assert_same("restored volume", &daemon.content("vol"), &origin.content);
    let total = task["totalBytes"].as_u64().unwrap();
    assert!(total > 0 && total <= 40 * 4 * BLOCK, "{task:#}");
    // A snapshot keeps the content before the restore.
    let list = ctl.json(&["snapshot", "list", "vol"]);
    let name = list["items"][0]["name"].as_str().unwrap_or_else(|| panic!("{list:#}")).to_owned();
    assert_same("snapshot of the content before", &daemon.content(&format!("vol@{name}")), &content);
    // Changed-block tracking covers the restored blocks.
    let task = ctl.backup("vol");
    assert!(task.is_incremental(), "{task:?}");
    ctl.restore(task.snap(), "again");
    assert_same("backup after the restore", &daemon.content("again"), &origin.content);
    drop(daemon);

    // Another host compares all blocks and keeps equal ones.
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    ctl.create_volume("vol", &format!("{}B", SIZE + MIB));
    let mut client = daemon.nbd("vol");
    client.write_long(0, &origin.content[..FILES as usize]);
    client.write(7 * MIB, &rng.bytes(MIB));
    client.write(SIZE + 5, b"beyond the end of the cloud snapshot");
    client.close();
    let args = ["cloudsnap", "restore", "--snap", &origin.snap, "--in-place", "vol", "--discard", "--wait"];
    ctl.fails_with(&args, 2, "is of another volume, vol of host");
    ctl.json(&[&args[..], &["--yes"]].concat());
    let mut wanted = origin.content.clone();
    wanted.resize((SIZE + MIB) as usize, 0);
    assert_same("volume restored on another host", &daemon.content("vol"), &wanted);
    assert_eq!(ctl.json(&["snapshot", "list", "vol"])["items"].as_array().map(Vec::len), Some(0));
    assert!(ctl.volume("vol")["dirtyBytes"].as_u64().unwrap() <= MIB + 4 * BLOCK);
}

#[test]
fn failed_in_place_restore_fences_clients_until_resumed() {
    let mut rng = Rng::of_test("failed_in_place_restore_fences_clients_until_resumed");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    ctl.create_volume("vol", &format!("{SIZE}B"));
    let intact = damage(&origin.store);
    let args = ["cloudsnap", "restore", "--snap", &origin.snap, "--in-place", "vol", "--yes"];
    let limited = [&args[..], &["--limit-download", "100MiB"]].concat();
    let task = ctl.json(&limited)["taskId"].as_str().unwrap().to_owned();
    let failed = ctl.wait_task(&task);
    assert_eq!(failed.state(), "Restore-Failed", "{failed:?}");
    assert!(format!("{failed:?}").contains("mixture"), "{failed:?}");
    // The state survives a restart.
    let daemon = daemon.stop().start();
    let ctl = daemon.ctl();
    ctl.fails_with(&["volume", "delete", "vol"], 5, "partially restored");
    let resume = format!("blockctl cloudsnap resume --name {task}");
    let listed = ctl.run(&["volume", "list"]).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(listed.contains(&format!("up - restored in part: `{resume}` resumes it")), "{listed}");
    let discard = format!("`blockctl cloudsnap stop --name {task} --discard` abandons it");
    assert!(listed.contains(&discard), "{listed}");
    assert_eq!(ctl.volume("vol")["inPlaceRestore"]["isPartial"], true);
    let Err(refused) = Nbd::try_open(&daemon.nbd_socket(), "vol") else {
        panic!("a partially restored volume is served")
    };
    assert!(format!("{refused:?}").contains(&resume), "{refused:?}");
    ctl.fails_with(&["cloudsnap", "backup", "vol"], 5, "partially restored");
    ctl.fails_with(&args, 5, "resume");
    repair(&intact);
    ctl.json(&["cloudsnap", "resume", "--name", &task]);
    let done = ctl.wait_task(&task);
    assert_eq!(done.state(), "Restore-Done", "{done:?}");
    assert_same("restored volume", &daemon.content("vol"), &origin.content);
    assert!(ctl.volume("vol")["inPlaceRestore"].is_null());
}
