//! Tests of lazy restore: volumes are usable at once, survive outages and crashes, and are complete in the
//! end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{
    BLOCK, Bed, Ctl, Daemon, MIB, Nbd, Rng, Store, TIMEOUT, assert_same,
    crash::Region,
    fio::Fio,
    nbd::{Failure, command, errno},
    process::must_run,
    wait_for,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

/// Size of the filesystem; the space after it is for writers.
const FILES: u64 = 48 * MIB;
const SIZE: u64 = 80 * MIB;

/// A volume with a real file system in it, backed up.
struct Origin {
    bed: Bed,
    store: Store,
    snap: String,
    content: Vec<u8>,
}

/// Some hundred files, of all sizes.
fn make_files(dir: &Path, rng: &mut Rng) {
    for n in 0..300 {
        let folder = dir.join(format!("d{}", n % 17));
        fs::create_dir_all(&folder).unwrap();
        let len = if rng.one_in(10) { rng.between(1, MIB) } else { rng.between(0, 20_000) };
        fs::write(folder.join(format!("f{n}")), rng.bytes(len)).unwrap();
    }
}

impl Origin {
    fn new(rng: &mut Rng) -> Self {
        let bed = Bed::new();
        let store = bed.store("store");
        let (tree, image) = (bed.path("tree"), bed.path("image"));
        make_files(&tree, rng);
        fs::File::create(&image).unwrap().set_len(FILES).unwrap();
        let (tree, path) = (tree.to_str().unwrap(), image.to_str().unwrap());
        // Inodes in use in every group, and each group's beside its blocks.
        let layout = ["-b", "1024", "-O", "^flex_bg,^resize_inode", "-N", "384"];
        must_run("mke2fs", &[&["-q", "-t", "ext4"], &layout[..], &["-d", tree, path]].concat());
        let mut content = fs::read(&image).unwrap();
        content.resize(SIZE as usize, 0);
        let daemon = bed.daemon("a").start();
        let ctl = daemon.ctl();
        ctl.add_local("nas", store.dir(), Some("passphrase"));
        ctl.create_volume("vol", &format!("{SIZE}B"));
        let mut client = daemon.nbd("vol");
        client.write_long(0, &content[..FILES as usize]);
        client.close();
        let snap = ctl.backup("vol").snap().to_owned();
        Self { bed, store, snap, content }
    }

    /// A daemon that has never seen the volume.
    fn fresh(&self, config: &[&str]) -> Daemon {
        let setup = config.iter().fold(self.bed.daemon("b"), |setup, line| setup.config(line));
        let daemon = setup.start();
        daemon.ctl().add_local("nas", self.store.dir(), Some("passphrase"));
        daemon
    }

    /// Blocks with data that are not fetched together with the first one or with each other.
    fn all_places(&self) -> Vec<u64> {
        let units = (MIB..FILES).step_by(256 << 10);
        let has_data = |offset: u64| {
            let block = &self.content[offset as usize..][..BLOCK as usize];
            block.iter().any(|&byte| byte != 0)
        };
        units.filter(|&offset| has_data(offset)).collect()
    }

    /// The first of them.
    fn places(&self) -> Vec<u64> {
        let mut places = self.all_places();
        places.truncate(40);
        assert!(places.len() > 20, "there are few files: {}", places.len());
        places
    }

    fn gone(&self) -> PathBuf {
        self.bed.path("store-gone")
    }

    fn take_store_away(&self) {
        fs::rename(self.store.dir(), self.gone()).unwrap();
    }

    fn bring_store_back(&self) {
        fs::rename(self.gone(), self.store.dir()).unwrap();
    }

    /// The file system in a volume is sound, and what was backed up.
    fn check_files(&self, daemon: &Daemon, volume: &str) {
        let mut client = daemon.nbd(volume);
        let found = client.read(0, FILES);
        client.close();
        assert_same("the file system", &found, &self.content[..FILES as usize]);
        let image = self.bed.path("checked");
        fs::write(&image, found).unwrap();
        must_run("e2fsck", &["-fn", image.to_str().unwrap()]);
    }
}

fn lazy(ctl: &Ctl, snap: &str, volume: &str, flags: &[&str]) -> String {
    let mut args = vec!["cloudsnap", "restore", "--snap", snap, "--volume", volume, "--lazy"];
    args.extend(flags);
    ctl.json(&args)["task"].as_str().expect("the task that hydrates it").to_owned()
}

fn clone(ctl: &Ctl, snap: &str, volume: &str, flags: &[&str]) {
    let mut args = vec!["cloudsnap", "clone", "--snap", snap, "--volume", volume];
    args.extend(flags);
    assert!(ctl.json(&args)["task"].is_null());
}

fn done_bytes(ctl: &Ctl, volume: &str) -> u64 {
    ctl.volume(volume)["hydration"]["doneBytes"].as_u64().unwrap_or(SIZE)
}

/// Reads from the filesystem until the connection breaks or it is stopped.
fn read_files(socket: &Path, content: &[u8], rng: &mut Rng, stop: &AtomicBool, count: &AtomicU64) {
    let Ok(mut client) = Nbd::try_open(socket, "now") else { return };
    while !stop.load(Ordering::SeqCst) {
        let len = if rng.one_in(4) { rng.between(1, 200_000) } else { BLOCK };
        let offset = rng.below(FILES - len);
        match client.try_read(offset, len) {
            Ok(found) => {
                let wanted = &content[offset as usize..][..len as usize];
                assert!(found == wanted, "{len} bytes at {offset} are not what was backed up");
                count.fetch_add(1, Ordering::SeqCst);
            }
            Err(Failure::Broken(_)) => return,
            Err(Failure::Refused(errno)) => panic!("a read was refused with {errno} though reads stall"),
        }
    }
}

#[test]
fn used_while_it_hydrates_the_store_fails_and_the_daemon_dies() {
    const WRITERS: u64 = 2;
    let mut rng = Rng::of_test("used_while_it_hydrates_the_store_fails_and_the_daemon_dies");
    let origin = Origin::new(&mut rng);
    // Slow enough to be at it all the time.
    let slow = "hydration_limit_bytes_per_s = 4194304";
    let daemon = origin.fresh(&[slow]);
    let asked = Instant::now();
    let task = lazy(&daemon.ctl(), &origin.snap, "now", &[]);
    let took = asked.elapsed();
    assert!(took < TIMEOUT, "the volume was there after {took:?}");
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
    Fio::start(origin.bed.dir(), &daemon.uri("now"), &fio_args).wait().must_succeed();
    let region = (72 * MIB - FILES) / WRITERS;
    let mut regions: Vec<Region> =
        (0..WRITERS).map(|nth| Region::new(FILES + nth * region, region)).collect();
    let mut setup = daemon.kill();
    for round in 0..4 {
        let daemon = setup.start();
        let ctl = daemon.ctl();
        let state = ctl.task(&task);
        assert!(!state.state().ends_with("-Failed"), "{state:?}");
        let mut client = daemon.nbd("now");
        regions.iter_mut().for_each(|region| region.check(&mut client));
        client.close();
        let (writes, reads, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let socket = daemon.nbd_socket();
        let until = rng.between(100, 800);
        setup = std::thread::scope(|scope| {
            for region in &mut regions {
                let mut rng = Rng::fixed(rng.next_u64());
                let (socket, writes) = (&socket, &writes);
                scope.spawn(move || region.write_until_broken(socket, "now", &mut rng, writes));
            }
            for _ in 0..2 {
                let mut rng = Rng::fixed(rng.next_u64());
                let (socket, reads, stop, content) = (&socket, &reads, &stop, &origin.content);
                scope.spawn(move || read_files(socket, content, &mut rng, stop, reads));
            }
            wait_for("some writes", || (writes.load(Ordering::SeqCst) > until / 2).then_some(()));
            wait_for("some reads", || (reads.load(Ordering::SeqCst) > 10).then_some(()));
            if round % 2 == 0 {
                origin.take_store_away();
                let before = writes.load(Ordering::SeqCst);
                // Writes of whole blocks continue while readers wait.
                wait_for("writes without a store", || {
                    (writes.load(Ordering::SeqCst) > before + 50).then_some(())
                });
            } else {
                ctl.json(&["snapshot", "create", "now"]);
            }
            wait_for("the writes", || (writes.load(Ordering::SeqCst) >= until).then_some(()));
            stop.store(true, Ordering::SeqCst);
            let setup = daemon.kill();
            if round % 2 == 0 {
                origin.bring_store_back();
            }
            setup
        });
    }
    let daemon = setup.start();
    let ctl = daemon.ctl();
    let ended = ctl.wait_task(&task);
    assert_eq!(ended.state(), "Restore-Done", "{ended:?}");
    assert!(ctl.volume("now")["hydration"].is_null());
    // It needs its store no more.
    origin.take_store_away();
    let mut client = daemon.nbd("now");
    regions.iter_mut().for_each(|region| region.check(&mut client));
    client.close();
    origin.check_files(&daemon, "now");
    let check = ctl.json(&["volume", "check", "now"]);
    assert_eq!(check["sound"], true, "{check:#}");
    let daemon = daemon.stop().start();
    origin.check_files(&daemon, "now");
}

#[test]
fn backup_of_a_lazy_volume_uploads_written_blocks_only() {
    let mut rng = Rng::of_test("backup_of_a_lazy_volume_uploads_written_blocks_only");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    clone(&ctl, &origin.snap, "copy", &[]);
    assert_eq!(ctl.volume("copy")["hydration"]["doneBytes"], 0);
    let mut content = origin.content.clone();
    let mut client = daemon.nbd("copy");
    for (offset, len) in [(0, 1000), (MIB, BLOCK), (5 * MIB + 10, 3 * BLOCK)] {
        let data = rng.bytes(len);
        client.write(offset, &data);
        content[offset as usize..][..data.len()].copy_from_slice(&data);
    }
    client.close();
    let task = ctl.backup("copy");
    assert!(task.is_incremental(), "{task:?}");
    // One block, one, and four that three blocks' worth of bytes touch.
    assert_eq!(task.number("bytesDirty"), 6 * BLOCK);
    assert!(task.number("bytesUploaded") < 8 * BLOCK + 16_384, "{task:?}");
    assert!(done_bytes(&ctl, "copy") < SIZE / 4, "a backup fetched the volume");
    let of_copy = task.snap().to_owned();
    // Of one that fetches all of it, a full one.
    let full = ctl.backup_with("copy", &["--full"]);
    ctl.restore(full.snap(), "full");
    assert_same("a full backup of a lazy volume", &daemon.content("full"), &content);

    let error = ctl.fails(&["cloudsnap", "delete", "--snap", &origin.snap], 5);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("volume copy") && message.contains("delete the volume first"), "{error:#}");
    assert!(!message.contains("hydrated"), "a clone never is: {error:#}");
    let error = ctl.fails(&["credentials", "delete", "nas"], 5);
    assert!(error["message"].as_str().unwrap().contains("copy"), "{error:#}");
    ctl.json(&["volume", "delete", "copy"]);
    ctl.json(&["cloudsnap", "delete", "--snap", &origin.snap, "--wait"]);
    // What the incremental builds on is of another volume, and still there.
    ctl.restore(&of_copy, "again");
    assert_same("an incremental on another volume's snapshot", &daemon.content("again"), &content);
    // On yet another host, from the store and the passphrase alone.
    drop(daemon);
    let other = origin.bed.daemon("c").start();
    other.ctl().add_local("nas", origin.store.dir(), Some("passphrase"));
    let task = lazy(&other.ctl(), &of_copy, "there", &[]);
    assert_eq!(other.ctl().wait_task(&task).state(), "Restore-Done");
    assert_same("restored lazily elsewhere", &other.content("there"), &content);
}

/// A block of a volume whose reads wait for the store for a moment only, which may be too short on a busy
/// machine.
fn read_in_the_end(client: &mut Nbd, at: u64) -> Vec<u8> {
    wait_for("a read that does not fail", || match client.try_read(at, BLOCK) {
        Err(Failure::Refused(errno::EIO)) => None,
        other => Some(other.expect("a read")),
    })
}

#[test]
fn outage_fails_or_blocks_reads_of_a_lazy_volume() {
    let mut rng = Rng::of_test("outage_fails_or_blocks_reads_of_a_lazy_volume");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&["lazy_error_ms = 1000", "nbd_workers = 2"]);
    let ctl = daemon.ctl();
    clone(&ctl, &origin.snap, "fails", &["--on-store-loss", "error"]);
    clone(&ctl, &origin.snap, "waits", &[]);
    for volume in ["fails", "waits"] {
        let mut client = daemon.nbd(volume);
        let found = read_in_the_end(&mut client, 0);
        assert_same("the beginning", &found, &origin.content[..BLOCK as usize]);
        client.close();
    }
    origin.take_store_away();
    let places = origin.places();
    let far = places[0];
    let mut client = daemon.nbd("fails");
    let asked = Instant::now();
    match client.try_read(far, BLOCK) {
        Err(Failure::Refused(errno::EIO)) => {}
        other => panic!("a read without a store: {other:?}"),
    }
    assert!(asked.elapsed() < TIMEOUT, "it took {:?}", asked.elapsed());
    client.read(0, BLOCK);
    client.write(far, &[7; BLOCK as usize]);
    assert_eq!(client.read(far, BLOCK), [7; BLOCK as usize]);
    client.flush();

    // More readers than the daemon has threads, and everything else goes on, on the same connection.
    let mut waiting = daemon.nbd("waits");
    let cookies: Vec<u64> =
        places.iter().map(|&at| waiting.start(command::READ, 0, at, BLOCK, &[]).unwrap()).collect();
    waiting.call(command::WRITE, 0, 0, BLOCK, &[9; BLOCK as usize]).expect("a write while reads wait");
    waiting.call(command::FLUSH, 0, 0, 0, &[]).expect("a flush while reads wait");
    ctl.json(&["snapshot", "create", "waits"]);
    wait_for("reads that wait", || {
        (ctl.volume("waits")["hydration"]["waiting"].as_u64() >= Some(cookies.len() as u64)).then_some(())
    });
    origin.bring_store_back();
    for _ in &cookies {
        let (errno, cookie) = waiting.reply().unwrap();
        assert_eq!(errno, 0);
        let n = cookies.iter().position(|known| *known == cookie).unwrap();
        let offset = places[n] as usize;
        let found = waiting.receive(BLOCK as usize).unwrap();
        assert!(found == origin.content[offset..][..BLOCK as usize], "read {n}");
    }
    waiting.close();
    // It recovers by itself.
    let found = read_in_the_end(&mut client, places[9]);
    assert!(found == origin.content[places[9] as usize..][..BLOCK as usize]);
    client.close();
    // Stop and delete are not blocked.
    ctl.json(&["volume", "delete", "fails"]);
    drop(daemon.stop());
}

#[test]
fn snapshots_and_clones_of_a_lazy_volume_keep_content() {
    let mut rng = Rng::of_test("snapshots_and_clones_of_a_lazy_volume_are_what_they_were");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    clone(&ctl, &origin.snap, "copy", &[]);
    ctl.json(&["snapshot", "create", "copy", "--name", "first"]);
    let mut client = daemon.nbd("copy");
    client.write(3 * MIB + 77, &rng.bytes(9000));
    client.close();
    ctl.json(&["volume", "clone", "trial", "--from", "copy@first"]);
    assert!(ctl.volume("trial")["hydration"].is_object());
    assert_same("a snapshot of a lazy volume", &daemon.content("copy@first"), &origin.content);
    // A group of lazy volumes, a growth, and a rollback.
    ctl.json(&["volume", "resize", "copy", "--size", &format!("{}B", SIZE + MIB)]);
    ctl.json(&["snapshot", "restore", "copy", "--snapshot", "first"]);
    let mut back = origin.content.clone();
    back.resize((SIZE + MIB) as usize, 0);
    assert_same("rolled back", &daemon.content("copy"), &back);
    ctl.json(&["volume", "delete", "copy"]);
    let daemon = daemon.kill().start();
    assert_same("a clone of a lazy volume", &daemon.content("trial"), &origin.content);
    let error = daemon.ctl().fails(&["cloudsnap", "delete", "--snap", &origin.snap], 5);
    assert!(error["message"].as_str().unwrap().contains("volume trial"), "{error:#}");
}

#[test]
fn in_place_restore_fetches_differing_blocks_only() {
    let mut rng = Rng::of_test("in_place_restore_fetches_differing_blocks_only");
    let origin = Origin::new(&mut rng);
    // Where the volume was backed up, its block sets say what differs.
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
    let error = ctl.fails(&["cloudsnap", "restore", "--snap", &origin.snap, "--in-place", "vol"], 5);
    assert!(error["message"].as_str().unwrap().contains("1 NBD connection"), "{error:#}");
    client.close();
    let task = in_place(&origin.snap, &[]);
    assert_same("what went back", &daemon.content("vol"), &origin.content);
    let total = task["bytesTotal"].as_u64().unwrap();
    assert!(total > 0 && total <= 40 * 4 * BLOCK, "{task:#}");
    // What it was before is a snapshot.
    let list = ctl.json(&["snapshot", "list", "vol"]);
    let name = list[0]["name"].as_str().unwrap_or_else(|| panic!("{list:#}")).to_owned();
    assert_same("what it was before", &daemon.content(&format!("vol@{name}")), &content);
    // The next backup knows what went back.
    let task = ctl.backup("vol");
    assert!(task.is_incremental(), "{task:?}");
    ctl.restore(task.snap(), "again");
    assert_same("backed up after going back", &daemon.content("again"), &origin.content);
    drop(daemon);

    // Elsewhere, everything is compared, and what is the same stays as it is.
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    ctl.create_volume("vol", &format!("{}B", SIZE + MIB));
    let mut client = daemon.nbd("vol");
    client.write_long(0, &origin.content[..FILES as usize]);
    client.write(7 * MIB, &rng.bytes(MIB));
    client.write(SIZE + 5, b"beyond the end of the cloud snapshot");
    client.close();
    let args = ["cloudsnap", "restore", "--snap", &origin.snap, "--in-place", "vol", "--discard", "--wait"];
    ctl.json(&args);
    let mut wanted = origin.content.clone();
    wanted.resize((SIZE + MIB) as usize, 0);
    assert_same("what went back elsewhere", &daemon.content("vol"), &wanted);
    assert_eq!(ctl.json(&["snapshot", "list", "vol"]).as_array().map(Vec::len), Some(0));
    assert!(ctl.volume("vol")["dirtyBytes"].as_u64().unwrap() <= MIB + 4 * BLOCK);
}

#[test]
fn hydrating_volume_can_be_deleted() {
    let mut rng = Rng::of_test("hydrating_volume_can_be_deleted");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    // It would take minutes.
    limit_download(&ctl, Some("64KiB"));
    let task = lazy(&ctl, &origin.snap, "now", &[]);
    wait_for("the hydration to begin", || (done_bytes(&ctl, "now") > 0).then_some(()));
    ctl.json(&["volume", "delete", "now"]);
    limit_download(&ctl, None);
    assert_eq!(ctl.wait_task(&task).state(), "Restore-Failed");
    ctl.json(&["cloudsnap", "delete", "--snap", &origin.snap, "--wait"]);
    drop(daemon.stop());
}

/// From now on the store gives so much a second, or as much as it can.
fn limit_download(ctl: &Ctl, bytes_per_s: Option<&str>) {
    ctl.json(&["credentials", "limit", "nas", "--limit-download", bytes_per_s.unwrap_or("none")]);
}

/// Waits until a hydration has fetched so much since it began.
fn wait_for_fetched(ctl: &Ctl, volume: &str, bytes: u64) {
    // What need not be fetched counts as done from the beginning.
    let began = wait_for("the hydration to begin", || Some(done_bytes(ctl, volume)).filter(|&done| done > 0));
    wait_for("what is fetched first", || (done_bytes(ctl, volume) >= began + bytes).then_some(()));
    assert!(done_bytes(ctl, volume) < SIZE - 8 * MIB, "all of it is there");
}

#[test]
fn filesystem_metadata_is_fetched_before_files() {
    let mut rng = Rng::of_test("filesystem_metadata_is_fetched_before_files");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&["hydration_limit_bytes_per_s = 1048576"]);
    let ctl = daemon.ctl();
    // Slow enough that the files are missing for half a minute.
    limit_download(&ctl, Some("512KiB"));
    let image = origin.bed.path("origin");
    fs::write(&image, &origin.content).unwrap();
    let said = must_run("dumpe2fs", &[image.to_str().unwrap()]);
    let number = |name: &str| -> u64 {
        let at = said.rfind(name).unwrap_or_else(|| panic!("{name} in {said}")) + name.len();
        let digits: String = said[at..].trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    // Of the last group, which lies behind most files.
    let (block, table) = (number("Block size:"), number("Inode table at "));
    lazy(&ctl, &origin.snap, "now", &["--on-store-loss", "error"]);
    // One fetch of 4 MiB may be in flight before the metadata is located; in block order the last inodes
    // follow after 16 MiB.
    wait_for_fetched(&ctl, "now", 9 * MIB);
    origin.take_store_away();
    let mut client = daemon.nbd("now");
    let found = client.try_read(table * block, BLOCK).expect("inodes are there before files");
    assert!(found == origin.content[(table * block) as usize..][..BLOCK as usize]);
    client.close();
    origin.bring_store_back();
}

/// Every pack of a store.
fn packs(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(packs(&path));
        } else if path.to_str().unwrap().contains("/pack-") {
            found.push(path);
        }
    }
    found
}

/// Damages all packs in the middle and behind it, where a hydration comes late; what they were.
fn damage(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let whole: Vec<_> = packs(dir).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    assert!(!whole.is_empty());
    for (path, bytes) in &whole {
        let mut damaged = bytes.clone();
        for eighths in [4, 6, 7] {
            let place = bytes.len() * eighths / 8;
            damaged[place..(place + 100).min(bytes.len())].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        fs::write(path, damaged).unwrap();
    }
    whole
}

/// Size of a frame.
const FRAME: u64 = 128 << 10;

#[test]
fn damaged_frame_fails_only_its_blocks_of_a_lazy_volume() {
    let mut rng = Rng::of_test("damaged_frame_fails_only_its_blocks_of_a_lazy_volume");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    clone(&ctl, &origin.snap, "now", &[]);
    // One byte of one frame, far from the header of its pack.
    let path = packs(origin.store.dir()).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    let path = path.unwrap();
    let whole = vec![(path.clone(), fs::read(&path).unwrap())];
    let mut damaged = whole[0].1.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&path, damaged).unwrap();
    let mut client = daemon.nbd("now");
    let mut lost = vec![];
    for offset in (0..FILES).step_by(BLOCK as usize) {
        match client.try_read(offset, BLOCK) {
            Ok(found) => assert!(found == origin.content[offset as usize..][..BLOCK as usize], "{offset}"),
            Err(Failure::Refused(errno::EIO)) => lost.push(offset),
            Err(other) => panic!("a read at {offset}: {other:?}"),
        }
    }
    client.close();
    assert!(!lost.is_empty() && lost.len() as u64 <= FRAME / BLOCK, "{} blocks: {lost:?}", lost.len());
    mend(&whole);
    origin.check_files(&daemon, "now");
}

#[test]
fn deleted_base_of_a_lazy_volume_is_reported() {
    let mut rng = Rng::of_test("deleted_base_of_a_lazy_volume_is_reported");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    clone(&ctl, &origin.snap, "copy", &[]);
    let other = origin.bed.daemon("a").start();
    other.ctl().json(&["cloudsnap", "delete", "--snap", &origin.snap, "--wait"]);
    let mut client = daemon.nbd("copy");
    match client.try_read(origin.places()[0], BLOCK) {
        Err(Failure::Refused(errno::EIO)) => {}
        other => panic!("a read of what was deleted: {other:?}"),
    }
    client.close();
    let log = daemon.log();
    assert!(log.contains(&format!("cloud snapshot {} was deleted from", origin.snap)), "{log}");
}

fn mend(whole: &[(PathBuf, Vec<u8>)]) {
    for (path, bytes) in whole {
        fs::write(path, bytes).unwrap();
    }
}

#[test]
fn failed_in_place_restore_fences_clients_until_resumed() {
    let mut rng = Rng::of_test("failed_in_place_restore_fences_clients_until_resumed");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    ctl.create_volume("vol", &format!("{SIZE}B"));
    let whole = damage(origin.store.dir());
    let args = ["cloudsnap", "restore", "--snap", &origin.snap, "--in-place", "vol"];
    let limited = [&args[..], &["--limit-download", "100MiB"]].concat();
    let task = ctl.json(&limited)["task"].as_str().unwrap().to_owned();
    let failed = ctl.wait_task(&task);
    assert_eq!(failed.state(), "Restore-Failed", "{failed:?}");
    assert!(format!("{failed:?}").contains("mixture"), "{failed:?}");
    // The next daemon knows it, too.
    let daemon = daemon.stop().start();
    let ctl = daemon.ctl();
    let error = ctl.fails(&["volume", "delete", "vol"], 5);
    assert!(error["message"].as_str().unwrap().contains("in part"), "{error:#}");
    let resume = format!("blockctl cloudsnap resume --name {task}");
    let listed = ctl.run(&["volume", "list"]).stdout;
    assert!(listed.contains(&format!("up - restored in part: resume it, `{resume}`")), "{listed}");
    assert_eq!(ctl.volume("vol")["goingBack"]["inPart"], true);
    let Err(refused) = Nbd::try_open(&daemon.nbd_socket(), "vol") else { panic!("a mixture is served") };
    assert!(format!("{refused:?}").contains(&resume), "{refused:?}");
    let error = ctl.fails(&["cloudsnap", "backup", "vol"], 5);
    assert!(error["message"].as_str().unwrap().contains("partially restored"), "{error:#}");
    let error = ctl.fails(&args, 5);
    assert!(error["message"].as_str().unwrap().contains("resume"), "{error:#}");
    mend(&whole);
    ctl.json(&["cloudsnap", "resume", "--name", &task]);
    let done = ctl.wait_task(&task);
    assert_eq!(done.state(), "Restore-Done", "{done:?}");
    assert_same("what went back", &daemon.content("vol"), &origin.content);
    assert!(ctl.volume("vol")["goingBack"].is_null());
}

#[test]
fn stopped_or_failed_hydration_resumes() {
    let mut rng = Rng::of_test("stopped_or_failed_hydration_resumes");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&["hydration_limit_bytes_per_s = 1048576"]);
    let ctl = daemon.ctl();
    // So slow that it is stopped long before its end, however late the request comes.
    limit_download(&ctl, Some("64KiB"));
    let task = lazy(&ctl, &origin.snap, "now", &[]);
    wait_for("the hydration to begin", || (done_bytes(&ctl, "now") > 0).then_some(()));
    let stopped = ctl.json(&["cloudsnap", "stop", "--name", &task]);
    assert_eq!(stopped["resumable"], true, "{stopped:#}");
    // Stopped is stopped, across restarts too.
    drop(daemon.stop());
    let daemon = origin.bed.daemon("b").config("hydration_limit_bytes_per_s = 16777216").start();
    let ctl = daemon.ctl();
    assert_eq!(ctl.wait_task(&task).state(), "Restore-Stopped");
    assert!(!ctl.volume("now")["hydration"].is_null());
    limit_download(&ctl, None);
    let whole = damage(origin.store.dir());
    ctl.json(&["cloudsnap", "resume", "--name", &task]);
    let failed = ctl.wait_task(&task);
    assert_eq!(failed.state(), "Restore-Failed", "{failed:?}");
    // All but the damaged frames came: one or two of 128 KiB in each of three places.
    let most_lost = whole.len() as u64 * 3 * 2 * FRAME;
    let missing = SIZE - done_bytes(&ctl, "now");
    assert!(missing > 0 && missing <= most_lost, "{missing} bytes did not come");
    assert!(format!("{failed:?}").contains(&format!("{missing} bytes of the cloud snapshot")), "{failed:?}");
    mend(&whole);
    let daemon = daemon.stop().start();
    wait_for("the hydration", || daemon.ctl().volume("now")["hydration"].is_null().then_some(()));
    origin.check_files(&daemon, "now");
}
