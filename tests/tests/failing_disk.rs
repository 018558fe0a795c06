//! Full and failing disks below a running daemon: clients get the errno of the disk, flushed writes are kept,
//! and no failed flush is acknowledged.

use crate::harness::{
    Bed, Daemon, MIB, Nbd, Rng, assert_same,
    fault::FailingDisk,
    nbd::{Failure, command, errno, flag, refused},
    process::{both, die_with_parent},
    wait_for, wait_until,
};
use std::process::Command;

/// Returns the libnbd error of the last of these Python calls; `none` after success.
fn libnbd_errno(daemon: &Daemon, calls: &str) -> String {
    let script = format!(
        "import nbd, errno\nh = nbd.NBD()\nh.connect_uri({:?})\ntry:\n    {calls}\n    print('none')\n\
         except nbd.Error as error:\n    print(error.errno or errno.errorcode.get(error.errnum))\n",
        daemon.uri("vol")
    );
    let mut command = Command::new("/usr/bin/python3");
    let output = die_with_parent(command.args(["-c", &script])).output().expect("Debian's python3");
    assert!(output.status.success(), "install the Debian package python3-libnbd: {}", both(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Starts a daemon with a failing disk and the volume `vol`. Returns the id of the volume as well.
fn daemon_on_failing_disk(bed: &Bed) -> (FailingDisk, Daemon, String) {
    let disk = FailingDisk::build(bed.dir());
    let daemon = disk.under(bed.daemon("a")).start();
    daemon.ctl().create_volume("vol", "8MiB");
    let id = daemon.ctl().volume_id("vol");
    (disk, daemon, id)
}

fn write(client: &mut Nbd, flags: u16, offset: u64, data: &[u8]) -> Result<(), Failure> {
    client.call(command::WRITE, flags, offset, data.len() as u64, data)
}

#[test]
fn failed_sync_stops_the_volume_until_a_restart() {
    let bed = Bed::new();
    let (disk, daemon, volume) = daemon_on_failing_disk(&bed);
    daemon.ctl().create_volume("other", "1MiB");
    let flushed = Rng::fixed(6).bytes(2 * MIB);
    let (mut one, mut two, mut other) = (daemon.nbd("vol"), daemon.nbd("vol"), daemon.nbd("other"));
    one.write_long(0, &flushed);
    one.flush();

    disk.fail("fdatasync", errno::EIO, &volume);
    write(&mut one, 0, 4 * MIB, &[1; 4096]).expect("the write is not synced yet");
    assert_eq!(refused(one.try_flush()), errno::EIO);
    // After a failed sync the kernel drops the pages, and the next sync succeeds without them.
    disk.heal();
    for (client, name) in [(&mut one, "the same connection"), (&mut two, "another one")] {
        assert_eq!(refused(client.try_flush()), errno::EIO, "FLUSH on {name}");
        assert_eq!(refused(write(client, flag::FUA, 0, &[2; 4096])), errno::EIO, "FUA on {name}");
    }
    for calls in
        ["h.flush()", "h.pwrite(bytes(4096), 0, nbd.CMD_FLAG_FUA)", "h.zero(4096, 0, nbd.CMD_FLAG_FUA)"]
    {
        assert_eq!(libnbd_errno(&daemon, calls), "EIO", "{calls} on a new connection");
    }
    let shown = daemon.ctl().volume("vol");
    let list = daemon.ctl().json(&["volume", "list"]);
    let listed = list["items"].as_array().unwrap().iter().find(|volume| volume["name"] == "vol").unwrap();
    for volume in [&shown, listed] {
        assert_eq!(volume["state"], "failed", "{volume:#}");
        let reason = volume["stateReason"].as_str().unwrap_or_default();
        assert!(reason.contains("sync") && reason.contains("Input/output error"), "{volume:#}");
    }
    // Another volume on the same disk is up.
    other.write(0, &[3; 4096]);
    other.flush();
    assert_eq!(daemon.ctl().volume("other")["state"], "up");

    let daemon = daemon.kill().start();
    assert_eq!(daemon.ctl().volume("vol")["state"], "up");
    let mut client = daemon.nbd("vol");
    let kept = client.read(0, flushed.len() as u64);
    assert_same("data flushed before", &kept, &flushed);
    client.write(0, &[4; 4096]);
    assert_eq!(refused(client.try_flush()), errno::EIO, "the client may have survived the loss");
    client.flush();
    assert_same("after the restart", &client.read(0, 4096), &[4; 4096]);
    assert_same("the other volume", &daemon.nbd("other").read(0, 4096), &[3; 4096]);
    client.close();
    let _ = daemon.stop();
}

#[test]
fn requests_waiting_for_the_disk_get_the_sync_error() {
    let bed = Bed::new();
    let disk = FailingDisk::build(bed.dir());
    let daemon = disk.under(bed.daemon("a")).start();
    let data = [7; 4096];
    let requests = [
        ("flush", command::FLUSH, 0, 0, &[][..]),
        ("write", command::WRITE, flag::FUA, 4096, &data),
        ("trim", command::TRIM, flag::FUA, 4096, &[]),
        ("zeroes", command::WRITE_ZEROES, flag::FUA, 4096, &[]),
        ("kept-zeroes", command::WRITE_ZEROES, flag::FUA | flag::NO_HOLE, 4096, &[]),
        ("fast-zeroes", command::WRITE_ZEROES, flag::FUA | flag::FAST_ZERO, 4096, &[]),
    ];
    for (name, command, flags, len, payload) in requests {
        daemon.ctl().create_volume(name, "1MiB");
        let volume = daemon.ctl().volume_id(name);
        let mut client = daemon.nbd(name);
        client.write(0, &[1; 8192]);
        disk.fail("fdatasync", errno::EIO, &volume);
        // The first request that waits for the sync gets the error.
        assert_eq!(refused(client.call(command, flags, 0, len, payload)), errno::EIO, "{name}");
        disk.heal();
        assert_eq!(refused(client.try_flush()), errno::EIO, "after {name}");
        assert_eq!(daemon.ctl().volume(name)["state"], "failed", "after {name}");
    }
    drop(daemon.kill());
}

#[test]
fn discarded_writes_fail_the_first_flush_of_each_connection() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    daemon.ctl().create_volume("vol", "8MiB");
    daemon.ctl().create_volume("other", "8MiB");
    let volume = daemon.ctl().volume_id("vol");
    let mut client = daemon.nbd("vol");
    client.write(0, &[1; 4096]);
    client.flush();
    client.write(8192, &[2; 4096]);
    let dir = daemon.seen_data_dir().join("volumes").join(volume);
    let setup = daemon.kill();
    // The page cache still has the write; without the map, the daemon cannot find it.
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "map") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let daemon = setup.start();
    let (mut one, mut two) = (daemon.nbd("vol"), daemon.nbd("vol"));
    assert_same("the last flush", &one.read(0, 12288), &[vec![1; 4096], vec![0; 8192]].concat());
    assert_eq!(refused(one.try_flush()), errno::EIO);
    one.try_flush().expect("the client got the error");
    assert_eq!(refused(write(&mut two, flag::FUA, 0, &[3; 4096])), errno::EIO);
    write(&mut two, flag::FUA, 0, &[3; 4096]).expect("the client got the error");
    daemon.nbd("other").try_flush().expect("no write of the other volume was lost");

    let shown = daemon.ctl().volume("vol");
    assert_eq!(shown["discardedWrites"]["clients"], "all", "{shown:#}");
    let status = daemon.ctl().json(&["status"]);
    let problem = &status["problems"][0];
    assert_eq!(problem["kind"], "discarded-writes", "{status:#}");
    let events = daemon.ctl().json(&["events"]);
    assert!(events.to_string().contains("writes-discarded"), "{events:#}");

    daemon.ctl().run(&["volume", "update", "vol", "--acknowledge-discarded-writes"]);
    assert!(daemon.ctl().volume("vol")["discardedWrites"].is_null());
    let status = daemon.ctl().json(&["status"]);
    // The event stays for a day.
    let problems = status["problems"].as_array().into_iter().flatten();
    assert!(problems.into_iter().all(|problem| problem["kind"] == "event"), "{status:#}");
    daemon.nbd("vol").try_flush().expect("the loss was acknowledged");
    let daemon = daemon.kill().start();
    daemon.nbd("vol").try_flush().expect("the loss was acknowledged");
    let _ = daemon.stop();
}

#[test]
fn failed_map_sync_at_start_fails_its_volume_only() {
    let bed = Bed::new();
    let (disk, daemon, volume) = daemon_on_failing_disk(&bed);
    daemon.ctl().create_volume("other", "8MiB");
    let mut client = daemon.nbd("vol");
    client.write(0, &[1; 4096]);
    client.flush();
    client.write(8192, &[2; 4096]);
    drop(client);
    let setup = daemon.kill();
    disk.fail("fdatasync", errno::EIO, &format!("{volume}/layer-0000000000000001.map"));
    let daemon = setup.start();
    assert_eq!(daemon.ctl().volume("vol")["state"], "failed");
    daemon.nbd("other").write(0, &[3; 4096]);
    disk.heal();
    let daemon = daemon.kill().start();
    let mut client = daemon.nbd("vol");
    assert_same("the last flush", &client.read(0, 12288), &[vec![1; 4096], vec![0; 8192]].concat());
    assert_eq!(refused(client.try_flush()), errno::EIO);
    let _ = daemon.stop();
}

#[test]
fn failed_write_is_reported_and_the_volume_continues() {
    let bed = Bed::new();
    let (disk, daemon, volume) = daemon_on_failing_disk(&bed);
    let mut client = daemon.nbd("vol");
    client.write(0, &[1; 8192]);
    client.flush();
    let map = format!("{volume}/layer-0000000000000001.map");
    let errors = [(errno::EIO, "EIO"), (errno::ENOSPC, "ENOSPC")];
    let failures = errors.map(|error| [&volume, &map].map(|part| (error, part)));
    for (nth, ((code, name), part)) in (1..).zip(failures.into_iter().flatten()) {
        // The map does not have these blocks yet.
        let at = nth * MIB;
        disk.fail("pwrite", code, part);
        assert_eq!(refused(write(&mut client, 0, at, &[2; 65536])), code, "{part}");
        assert_eq!(libnbd_errno(&daemon, &format!("h.pwrite(bytes([5]) * 4096, {at})")), name, "{part}");
        disk.heal();
        assert_same("data from before", &client.read(0, 8192), &[1; 8192]);
        client.write(at, &[3; 65536]);
        client.flush();
        assert_same("data written after the failure", &client.read(at, 65536), &[3; 65536]);
    }
    assert_eq!(daemon.ctl().volume("vol")["state"], "up");
    client.close();
    let setup = daemon.stop();
    let daemon = setup.start();
    assert_same("after a restart", &daemon.nbd("vol").read(MIB, 65536), &[3; 65536]);
    let _ = daemon.stop();
}

/// Fills the data directory's filesystem with another file, up to this granularity.
fn fill(daemon: &Daemon, granularity: u64) -> std::path::PathBuf {
    let other = daemon.seen_data_dir().join("others");
    let mut room = 64 * MIB;
    let file = std::fs::File::create(&other).unwrap();
    while room >= granularity {
        let at = file.metadata().unwrap().len();
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, room) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOSPC) => room /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    other
}

#[test]
fn full_disk_lets_snapshots_be_deleted_and_merged() {
    let bed = Bed::new();
    let setup = bed.daemon("a");
    let data = setup.data_dir();
    let daemon = setup.tmpfs(&data, 48 * MIB).start();
    let ctl = daemon.ctl();
    ctl.create_volume("vol", "64MiB");
    let mut client = daemon.nbd("vol");
    let content = Rng::fixed(7).bytes(8 * MIB);
    for (seed, name) in [(8, "old"), (7, "new")] {
        client.write_long(0, &Rng::fixed(seed).bytes(8 * MIB));
        client.flush();
        ctl.json(&["snapshot", "create", "vol", "--name", name]);
    }
    fill(&daemon, 4096);
    let more = Rng::fixed(9).bytes(4 * MIB);
    assert_eq!(refused(write(&mut client, 0, 32 * MIB, &more[..1 << 20])), errno::ENOSPC);
    ctl.json(&["snapshot", "delete", "vol@old"]);
    wait_until("the merge", || ctl.volume("vol")["layers"] == 2);
    // The daemon refills its reserve first.
    wait_for("room", || write(&mut client, 0, 32 * MIB, &more[..1 << 20]).ok());
    client.write_long(32 * MIB, &more);
    client.flush();
    assert_same("the snapshot's content", &client.read(0, 8 * MIB), &content);
    assert_same("the new content", &client.read(32 * MIB, 4 * MIB), &more);
    client.close();
    let _ = daemon.stop();
}

#[test]
fn full_disk_lets_volumes_be_deleted() {
    let bed = Bed::new();
    let setup = bed.daemon("a");
    let data = setup.data_dir();
    let daemon = setup.tmpfs(&data, 48 * MIB).start();
    let ctl = daemon.ctl();
    for name in ["vol", "kept"] {
        ctl.create_volume(name, "64MiB");
    }
    let mut client = daemon.nbd("vol");
    client.write_long(0, &Rng::fixed(7).bytes(8 * MIB));
    client.flush();
    client.close();
    fill(&daemon, 4096);
    let mut kept = daemon.nbd("kept");
    let more = Rng::fixed(9).bytes(1 << 20);
    assert_eq!(refused(write(&mut kept, 0, 0, &more)), errno::ENOSPC);
    ctl.json(&["volume", "delete", "vol"]);
    wait_for("room", || write(&mut kept, 0, 0, &more).ok());
    kept.close();
    let _ = daemon.stop();
}

#[test]
fn full_disk_lets_cloud_snapshots_be_deleted() {
    let bed = Bed::new();
    let setup = bed.daemon("a");
    let data = setup.data_dir();
    let daemon = setup.tmpfs(&data, 48 * MIB).start();
    let store = bed.store("store");
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), None);
    ctl.create_volume("vol", "8MiB");
    let backup = ctl.backup("vol");
    fill(&daemon, 4096);
    let refused = ctl.document(&["volume", "create", "other", "--size", "8MiB"]).1;
    assert_eq!(refused["error"]["code"], "no_space", "{refused:#}");
    assert_eq!(ctl.done_cloudsnaps(), [backup.snap()]);
    let doctor = ctl.document(&["doctor"]).1;
    let location = doctor["items"].as_array().unwrap().iter().find(|one| one["check"] == "location");
    assert_ne!(location.unwrap()["status"], "failed", "{doctor:#}");
    ctl.json(&["cloudsnap", "delete", backup.snap(), "--wait"]);
    assert_eq!(ctl.done_cloudsnaps(), Vec::<String>::new());
    let _ = daemon.stop();
}

#[test]
fn restore_without_space_fails_and_leaves_no_volume() {
    let bed = Bed::new();
    let setup = bed.daemon("a");
    let data = setup.data_dir();
    let daemon = setup.tmpfs(&data, 48 * MIB).start();
    let store = bed.store("store");
    let other = bed.daemon("b").start();
    other.ctl().add_local("nas", store.dir(), None);
    daemon.ctl().add_local("nas", store.dir(), None);
    other.ctl().create_volume("large", "64MiB");
    other.nbd("large").write_long(0, &Rng::fixed(8).bytes(64 * MIB));
    let error = daemon.ctl().restore_fails(other.ctl().backup("large").snap(), "large");
    assert_eq!(error["code"], "no_space", "{error:#}");
    let _ = (daemon.stop(), other.stop());
}

#[test]
fn full_disk_refuses_writes_until_space_is_free() {
    let bed = Bed::new();
    let setup = bed.daemon("a");
    let data = setup.data_dir();
    let daemon = setup.tmpfs(&data, 48 * MIB).start();
    daemon.ctl().create_volume("vol", "64MiB");
    let content = Rng::fixed(7).bytes(8 * MIB);
    let mut client = daemon.nbd("vol");
    client.write_long(0, &content);
    client.flush();
    let other = fill(&daemon, 65536);
    let full =
        (8..64).find_map(|nth| write(&mut client, 0, nth * MIB, &content[..1 << 20]).err().map(|e| (nth, e)));
    let (nth, failure) = full.expect("the disk is full");
    assert_eq!(refused::<()>(Err(failure)), errno::ENOSPC);
    let calls = format!("h.pwrite(bytes([9]) * 1048576, {})", nth * MIB);
    assert_eq!(libnbd_errno(&daemon, &calls), "ENOSPC");
    assert_same("flushed data", &client.read(0, content.len() as u64), &content);
    client.flush();
    assert_eq!(daemon.ctl().volume("vol")["state"], "up", "a full disk failed the volume");

    // Trimmed space is writable.
    assert!(client.call(command::TRIM, 0, 4 * MIB, 4 * MIB, &[]).is_ok());
    wait_for("room after the trim", || write(&mut client, 0, 4 * MIB, &content[4 << 20..]).ok());
    std::fs::remove_file(&other).unwrap();
    // On a busy machine the kernel frees the space with a delay.
    for (nth, chunk) in (16..).zip(content.chunks(1 << 20)) {
        wait_for("room", || write(&mut client, 0, nth * MIB, chunk).ok());
    }
    client.flush();
    assert_eq!(libnbd_errno(&daemon, &calls), "none");
    assert_same("data written after the deletion", &client.read(16 * MIB, content.len() as u64), &content);
    assert_same("data flushed before", &client.read(0, content.len() as u64), &content);
    client.close();
    let _ = daemon.stop();
}
