//! Hydration of lazy volumes.

use super::*;
use crate::harness::{
    Setup,
    crash::{Region, check_regions, spawn_writers},
    fio::fio,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Size of a frame.
const FRAME: u64 = 512 << 10;

/// Reads from the filesystem until the connection breaks or `stop` is set.
fn read_files(socket: &Path, content: &[u8], rng: &mut Rng, stop: &AtomicBool, count: &AtomicU64) {
    let Ok(mut client) = Nbd::try_open(socket, "now") else { return };
    while !stop.load(Ordering::SeqCst) {
        let len = if rng.one_in(4) { rng.between(1, 200_000) } else { BLOCK };
        let offset = rng.below(FILES - len);
        match client.try_read(offset, len) {
            Ok(found) => {
                let wanted = &content[offset as usize..][..len as usize];
                assert!(found == wanted, "{len} bytes at {offset} differ from the backup");
                count.fetch_add(1, Ordering::SeqCst);
            }
            Err(Failure::Broken(_)) => return,
            Err(Failure::Refused(errno)) => {
                panic!("a read failed with {errno} instead of waiting for the store")
            }
        }
    }
}

/// Reads and writes while the volume hydrates, with a store outage on request, and kills the daemon.
fn use_and_kill(
    origin: &Origin,
    daemon: Daemon,
    regions: &mut [Region],
    rng: &mut Rng,
    loses_store: bool,
) -> Setup {
    let (writes, reads, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let socket = daemon.nbd_socket();
    let until = rng.between(100, 800);
    let setup = std::thread::scope(|scope| {
        spawn_writers(scope, regions, (&socket, "now"), rng, &writes);
        for _ in 0..2 {
            let mut rng = Rng::fixed(rng.next_u64());
            let (socket, reads, stop, content) = (&socket, &reads, &stop, &origin.content);
            scope.spawn(move || read_files(socket, content, &mut rng, stop, reads));
        }
        wait_until("some writes", || writes.load(Ordering::SeqCst) > until / 2);
        wait_until("some reads", || reads.load(Ordering::SeqCst) > 10);
        if loses_store {
            origin.disconnect_store();
            let before = writes.load(Ordering::SeqCst);
            // Writes of whole blocks complete while reads wait.
            wait_until("writes without a store", || writes.load(Ordering::SeqCst) > before + 50);
        } else {
            daemon.ctl().json(&["snapshot", "create", "now"]);
        }
        wait_until("the writes", || writes.load(Ordering::SeqCst) >= until);
        stop.store(true, Ordering::SeqCst);
        daemon.kill()
    });
    if loses_store {
        origin.reconnect_store();
    }
    setup
}

#[test]
fn lazy_volume_survives_store_loss_and_kills_while_used() {
    const WRITERS: u64 = 2;
    let mut rng = Rng::of_test("lazy_volume_survives_store_loss_and_kills_while_used");
    let origin = Origin::new(&mut rng);
    // At this rate the hydration lasts throughout the test.
    let slow = "hydration_limit_bytes_per_s = 4194304";
    let daemon = origin.fresh(&[slow]);
    let requested = Instant::now();
    let task = lazy(&daemon.ctl(), &origin.snap, "now", &[]);
    let took = requested.elapsed();
    assert!(took < TIMEOUT, "the restore took {took:?}");
    let mut first = daemon.nbd("now");
    first.write(FILES, &[1; 512]);
    first.write(FILES, &[0; 512]);
    first.close();
    let fio_args = [
        "--rw=randrw",
        "--bsrange=512-64k",
        "--bs_unaligned=0",
        "--verify=crc32c",
        "--verify_backlog=32",
        "--offset=72M",
        "--size=8M",
        "--iodepth=8",
    ];
    fio(origin.bed.dir(), &daemon.uri("now"), &fio_args);
    let region = (72 * MIB - FILES) / WRITERS;
    let mut regions: Vec<Region> =
        (0..WRITERS).map(|nth| Region::new(FILES + nth * region, region)).collect();
    let mut setup = daemon.kill();
    for round in 0..4 {
        let daemon = setup.start();
        let ctl = daemon.ctl();
        let state = ctl.task(&task);
        assert!(!state.state().ends_with("-Failed"), "{state:?}");
        check_regions(&daemon, "now", &mut regions);
        setup = use_and_kill(&origin, daemon, &mut regions, &mut rng, round % 2 == 0);
    }
    let daemon = setup.start();
    let ctl = daemon.ctl();
    let ended = ctl.wait_task(&task);
    assert_eq!(ended.state(), "Restore-Done", "{ended:?}");
    assert!(ctl.volume("now")["hydration"].is_null());
    // The hydrated volume needs no store.
    origin.disconnect_store();
    check_regions(&daemon, "now", &mut regions);
    origin.check_files(&daemon, "now");
    let check = ctl.json(&["volume", "check", "now"]);
    assert_eq!(check["sound"], true, "{check:#}");
    let daemon = daemon.stop().start();
    origin.check_files(&daemon, "now");
}

#[test]
fn hydrating_volume_can_be_deleted() {
    let mut rng = Rng::of_test("hydrating_volume_can_be_deleted");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    // The hydration would take minutes.
    limit_download(&ctl, Some("64KiB"));
    let task = lazy(&ctl, &origin.snap, "now", &[]);
    wait_until("the hydration to start", || done_bytes(&ctl, "now") > 0);
    ctl.json(&["volume", "delete", "now"]);
    limit_download(&ctl, None);
    assert_eq!(ctl.wait_task(&task).state(), "Restore-Stopped");
    ctl.json(&["cloudsnap", "delete", "--snap", &origin.snap, "--force", "--wait"]);
    drop(daemon.stop());
}

/// Waits until a hydration has fetched this number of bytes since its start.
fn wait_for_fetched(ctl: &Ctl, volume: &str, bytes: u64) {
    // Blocks that need no fetch count as done at the start.
    let start = wait_for("the hydration to start", || Some(done_bytes(ctl, volume)).filter(|&done| done > 0));
    wait_until("the first fetches", || done_bytes(ctl, volume) >= start + bytes);
    assert!(done_bytes(ctl, volume) < SIZE - 8 * MIB, "the volume is nearly hydrated");
}

#[test]
fn filesystem_metadata_is_fetched_before_files() {
    let mut rng = Rng::of_test("filesystem_metadata_is_fetched_before_files");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&["hydration_limit_bytes_per_s = 1048576"]);
    let ctl = daemon.ctl();
    // At this rate the hydration of the files takes half a minute.
    limit_download(&ctl, Some("512KiB"));
    let image = origin.bed.path("origin");
    fs::write(&image, &origin.content).unwrap();
    let output = must_run("dumpe2fs", &[image.to_str().unwrap()]);
    let number = |name: &str| -> u64 {
        let at = output.rfind(name).unwrap_or_else(|| panic!("no {name} in {output}")) + name.len();
        let digits: String = output[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    // The inode table of the last block group is behind most files.
    let (block, table) = (number("Block size:"), number("Inode table at "));
    lazy(&ctl, &origin.snap, "now", &["--on-store-loss", "error"]);
    // Fetches in block order may be in flight before the metadata is located; in that order the last inodes
    // follow after 16 MiB.
    wait_for_fetched(&ctl, "now", 14 * MIB);
    origin.disconnect_store();
    let mut client = daemon.nbd("now");
    let found = client.try_read(table * block, BLOCK).expect("an inode table before the files");
    assert!(found == origin.content[(table * block) as usize..][..BLOCK as usize]);
    client.close();
    origin.reconnect_store();
}

#[test]
fn stopped_or_failed_hydration_resumes() {
    let mut rng = Rng::of_test("stopped_or_failed_hydration_resumes");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&["hydration_limit_bytes_per_s = 1048576"]);
    let ctl = daemon.ctl();
    // At this rate the stop precedes the end of the hydration.
    limit_download(&ctl, Some("64KiB"));
    let task = lazy(&ctl, &origin.snap, "now", &[]);
    wait_until("the hydration to start", || done_bytes(&ctl, "now") > 0);
    let stopped = ctl.json(&["cloudsnap", "stop", "--name", &task]);
    assert_eq!(stopped["resumable"], true, "{stopped:#}");
    // The task stays stopped after a restart.
    drop(daemon.stop());
    let daemon = origin.bed.daemon("b").config("hydration_limit_bytes_per_s = 16777216").start();
    let ctl = daemon.ctl();
    assert_eq!(ctl.wait_task(&task).state(), "Restore-Stopped");
    assert!(!ctl.volume("now")["hydration"].is_null());
    limit_download(&ctl, None);
    let intact = damage(&origin.store);
    ctl.json(&["cloudsnap", "resume", "--name", &task]);
    let failed = ctl.wait_task(&task);
    assert_eq!(failed.state(), "Restore-Failed", "{failed:?}");
    // Only damaged frames are missing: one or two of 512 KiB at each of three offsets of a pack.
    let max_missing = intact.len() as u64 * 3 * 2 * FRAME;
    let missing = SIZE - done_bytes(&ctl, "now");
    assert!(missing > 0 && missing <= max_missing, "{missing} bytes are missing");
    assert!(format!("{failed:?}").contains(&format!("{missing} bytes of the cloud snapshot")), "{failed:?}");
    repair(&intact);
    let daemon = daemon.stop().start();
    wait_until("the hydration", || daemon.ctl().volume("now")["hydration"].is_null());
    origin.check_files(&daemon, "now");
}
