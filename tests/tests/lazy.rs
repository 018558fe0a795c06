//! Tests of lazy restore: volumes are usable at once, survive outages and crashes, and are complete in the
//! end.

mod hydration;
mod in_place;

use crate::harness::{
    BLOCK, Bed, Ctl, Daemon, MIB, Nbd, Rng, Store, TIMEOUT, assert_same,
    nbd::{Failure, command, errno},
    process::must_run,
    wait_for,
};
use std::{
    fs,
    path::{Path, PathBuf},
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

/// From now on the store gives so much a second, or as much as it can.
fn limit_download(ctl: &Ctl, bytes_per_s: Option<&str>) {
    ctl.json(&["credentials", "limit", "nas", "--limit-download", bytes_per_s.unwrap_or("none")]);
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
