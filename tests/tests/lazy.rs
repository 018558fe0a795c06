//! Lazy restore: volumes are usable at once, survive outages and crashes, and hydrate completely.

mod hydration;
mod in_place;

use crate::harness::{
    BLOCK, Bed, Ctl, Daemon, MIB, Nbd, Rng, Store, TIMEOUT, assert_same,
    nbd::{Failure, command, errno, refused},
    process::must_run,
    wait_for, wait_until,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// Size of the filesystem; the space after it is for writers.
const FILES: u64 = 48 * MIB;
const SIZE: u64 = 80 * MIB;

/// A backup of a volume with a real filesystem.
struct Origin {
    bed: Bed,
    store: Store,
    snap: String,
    content: Vec<u8>,
}

/// Creates 300 files of different sizes.
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
        // Every block group has used inodes, in its own inode table.
        let layout = ["-b", "1024", "-O", "^flex_bg,^resize_inode", "-N", "384"];
        must_run("mke2fs", &[&["-q", "-t", "ext4"], &layout[..], &["-d", tree, path]].concat());
        let mut content = fs::read(&image).unwrap();
        content.resize(SIZE as usize, 0);
        let daemon = bed.daemon("a").start_with_volume(&store, Some("passphrase"), &format!("{SIZE}B"));
        let mut client = daemon.nbd("vol");
        client.write_long(0, &content[..FILES as usize]);
        client.close();
        let snap = daemon.ctl().backup("vol").snap().to_owned();
        Self { bed, store, snap, content }
    }

    /// Starts a daemon without the volume.
    fn fresh(&self, config: &[&str]) -> Daemon {
        let setup = config.iter().fold(self.bed.daemon("b"), |setup, line| setup.config(line));
        let daemon = setup.start();
        daemon.ctl().add_local("nas", self.store.dir(), Some("passphrase"));
        daemon
    }

    /// Returns the offsets of blocks with data in separate fetch units.
    fn all_data_offsets(&self) -> Vec<u64> {
        let units = (MIB..FILES).step_by(512 << 10);
        let has_data = |offset: u64| {
            let block = &self.content[offset as usize..][..BLOCK as usize];
            block.iter().any(|&byte| byte != 0)
        };
        units.filter(|&offset| has_data(offset)).collect()
    }

    /// Returns at most 40 of these offsets.
    fn data_offsets(&self) -> Vec<u64> {
        let mut offsets = self.all_data_offsets();
        offsets.truncate(40);
        assert!(offsets.len() > 20, "too few files: {}", offsets.len());
        offsets
    }

    fn disconnected_store(&self) -> PathBuf {
        self.bed.path("store-gone")
    }

    fn disconnect_store(&self) {
        fs::rename(self.store.dir(), self.disconnected_store()).unwrap();
    }

    fn reconnect_store(&self) {
        fs::rename(self.disconnected_store(), self.store.dir()).unwrap();
    }

    /// Checks that the filesystem in a volume is consistent and equals the backup.
    fn check_files(&self, daemon: &Daemon, volume: &str) {
        let mut client = daemon.nbd(volume);
        let found = client.read(0, FILES);
        client.close();
        assert_same("the filesystem", &found, &self.content[..FILES as usize]);
        let image = self.bed.path("checked");
        fs::write(&image, found).unwrap();
        must_run("e2fsck", &["-fn", image.to_str().unwrap()]);
    }
}

fn lazy(ctl: &Ctl, snap: &str, volume: &str, flags: &[&str]) -> String {
    let mut args = vec!["cloudsnap", "restore", "--snap", snap, "--volume", volume, "--lazy"];
    args.extend(flags);
    ctl.json(&args)["taskId"].as_str().expect("the task that hydrates it").to_owned()
}

fn clone(ctl: &Ctl, snap: &str, volume: &str, flags: &[&str]) {
    let mut args = vec!["cloudsnap", "clone", "--snap", snap, "--volume", volume];
    args.extend(flags);
    assert!(ctl.json(&args)["taskId"].is_null());
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
    // The writes touch one, one and four blocks.
    assert_eq!(task.number("dirtyBytes"), 6 * BLOCK);
    assert!(task.number("uploadedBytes") < 8 * BLOCK + 16_384, "{task:?}");
    assert!(done_bytes(&ctl, "copy") < SIZE / 4, "a backup fetched the volume");
    let of_copy = task.snap().to_owned();
    // A full backup that stores all data fetches the whole volume.
    let full = ctl.backup_with("copy", &["--full", "--reupload"]);
    ctl.restore(full.snap(), "full");
    assert_same("a full backup of a lazy volume", &daemon.content("full"), &content);

    let error = ctl.fails(&["cloudsnap", "delete", "--snap", &origin.snap, "--force"], 5);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("volume copy") && message.contains("delete the volume first"), "{error:#}");
    assert!(!message.contains("hydrated"), "a clone does not hydrate: {error:#}");
    ctl.fails_with(&["credentials", "delete", "nas"], 5, "copy");
    ctl.json(&["volume", "delete", "copy"]);
    ctl.json(&["cloudsnap", "delete", "--snap", &origin.snap, "--force", "--wait"]);
    // The incremental backup needs the deleted snapshot's data, which are kept.
    ctl.restore(&of_copy, "again");
    assert_same("an incremental on another volume's snapshot", &daemon.content("again"), &content);
    // Another host needs only the store and the passphrase.
    drop(daemon);
    let other = origin.bed.daemon("c").start();
    other.ctl().add_local("nas", origin.store.dir(), Some("passphrase"));
    let task = lazy(&other.ctl(), &of_copy, "remote", &[]);
    assert_eq!(other.ctl().wait_task(&task).state(), "Restore-Done");
    assert_same("restored lazily on another host", &other.content("remote"), &content);
}

/// Reads a block, with retries: on a busy machine the volume's short timeout may expire.
fn read_with_retries(client: &mut Nbd, at: u64) -> Vec<u8> {
    wait_for("a successful read", || match client.try_read(at, BLOCK) {
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
        let found = read_with_retries(&mut client, 0);
        assert_same("the first block", &found, &origin.content[..BLOCK as usize]);
        client.close();
    }
    origin.disconnect_store();
    let offsets = origin.data_offsets();
    let first = offsets[0];
    let mut client = daemon.nbd("fails");
    let sent = Instant::now();
    assert_eq!(refused(client.try_read(first, BLOCK)), errno::EIO, "a read without a store");
    assert!(sent.elapsed() < TIMEOUT, "the read took {:?}", sent.elapsed());
    client.read(0, BLOCK);
    client.write(first, &[7; BLOCK as usize]);
    assert_eq!(client.read(first, BLOCK), [7; BLOCK as usize]);
    client.flush();

    // More reads wait than the daemon has threads; other requests of the connection are served.
    let mut waiting = daemon.nbd("waits");
    let cookies: Vec<u64> =
        offsets.iter().map(|&at| waiting.start(command::READ, 0, at, BLOCK, &[]).unwrap()).collect();
    waiting.call(command::WRITE, 0, 0, BLOCK, &[9; BLOCK as usize]).expect("a write while reads wait");
    waiting.call(command::FLUSH, 0, 0, 0, &[]).expect("a flush while reads wait");
    ctl.json(&["snapshot", "create", "waits"]);
    wait_until("waiting reads", || {
        ctl.volume("waits")["hydration"]["waitingRequests"].as_u64() >= Some(cookies.len() as u64)
    });
    origin.reconnect_store();
    for _ in &cookies {
        let (errno, cookie) = waiting.reply().unwrap();
        assert_eq!(errno, 0);
        let n = cookies.iter().position(|known| *known == cookie).unwrap();
        let offset = offsets[n] as usize;
        let found = waiting.receive(BLOCK as usize).unwrap();
        assert!(found == origin.content[offset..][..BLOCK as usize], "read {n}");
    }
    waiting.close();
    // The volume recovers.
    let found = read_with_retries(&mut client, offsets[9]);
    assert!(found == origin.content[offsets[9] as usize..][..BLOCK as usize]);
    client.close();
    // Deletion and stop do not wait for the store.
    ctl.json(&["volume", "delete", "fails"]);
    drop(daemon.stop());
}

/// Sets the download limit of the store, or removes it.
fn limit_download(ctl: &Ctl, bytes_per_s: Option<&str>) {
    ctl.json(&["credentials", "limit", "nas", "--limit-download", bytes_per_s.unwrap_or("none")]);
}

/// Damages all packs at and after their middle, where a hydration comes late. Returns their content before.
fn damage(store: &Store) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = store.packs().into_iter().map(|key| store.path(&key));
    let intact: Vec<_> = paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    assert!(!intact.is_empty());
    for (path, bytes) in &intact {
        let mut damaged = bytes.clone();
        for eighths in [4, 6, 7] {
            let at = bytes.len() * eighths / 8;
            damaged[at..(at + 100).min(bytes.len())].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        fs::write(path, damaged).unwrap();
    }
    intact
}

#[test]
fn deleted_base_of_a_lazy_volume_is_reported() {
    let mut rng = Rng::of_test("deleted_base_of_a_lazy_volume_is_reported");
    let origin = Origin::new(&mut rng);
    let daemon = origin.fresh(&[]);
    let ctl = daemon.ctl();
    clone(&ctl, &origin.snap, "copy", &[]);
    let other = origin.bed.daemon("a").start();
    other.ctl().json(&["cloudsnap", "delete", "--snap", &origin.snap, "--force", "--wait"]);
    let mut client = daemon.nbd("copy");
    assert_eq!(
        refused(client.try_read(origin.data_offsets()[0], BLOCK)),
        errno::EIO,
        "a read of deleted data"
    );
    client.close();
    let log = daemon.log();
    assert!(log.contains(&format!("cloud snapshot {} was deleted from", origin.snap)), "{log}");
}

fn repair(intact: &[(PathBuf, Vec<u8>)]) {
    for (path, bytes) in intact {
        fs::write(path, bytes).unwrap();
    }
}
