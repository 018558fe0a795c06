//! Tests of damage: it is named, no wrong data is returned, and no incomplete backup counts as Done.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{
    Bed, Ctl, Daemon, KIB, MIB, Nbd, Rng, Setup, Store, Task, assert_same,
    nbd::{Failure, command, errno},
    ports::Refusing,
    store, wait_for,
};
use serde_json::Value;

fn message(error: &Value) -> String {
    format!("{} {}", error["message"].as_str().unwrap(), error["hint"].as_str().unwrap_or_default())
}

fn assert_names(error: &Value, parts: &[&str]) {
    for part in parts {
        assert!(message(error).contains(part), "the error does not name {part:?}: {error:#}");
    }
}

/// A daemon, a store, and two cloud snapshots of a volume: a full one of two packs, and an incremental on it.
struct Damaged {
    _bed: Bed,
    daemon: Daemon,
    store: Store,
    passphrase: Option<&'static str>,
    full: Task,
    incremental: Task,
    content: Vec<u8>,
}

impl Damaged {
    fn new(passphrase: Option<&'static str>) -> Self {
        let bed = Bed::new();
        let store = bed.store("store");
        let daemon = bed.daemon("a").config("store_attempts = 1").start();
        let ctl = daemon.ctl();
        ctl.add_local("nas", store.dir(), passphrase);
        ctl.create_volume("vol", "36MiB");
        let mut rng = Rng::fixed(7);
        let mut client = daemon.nbd("vol");
        client.write_long(0, &rng.bytes(34 * MIB));
        let full = ctl.backup("vol");
        // The incremental covers nothing of the first pack, and some of the second.
        client.write_long(33 * MIB, &rng.bytes(3 * MIB));
        let incremental = ctl.backup("vol");
        assert!(incremental.is_incremental());
        let content = client.read_all();
        client.close();
        Self { _bed: bed, daemon, store, passphrase, full, incremental, content }
    }

    fn ctl(&self) -> Ctl {
        self.daemon.ctl()
    }

    /// Makes the daemon forget what it knows of the store.
    fn forget(&self) {
        self.ctl().json(&["credentials", "delete", "nas"]);
        self.ctl().add_local("nas", self.store.dir(), self.passphrase);
    }

    /// Everything is as it was before the damage.
    fn assert_whole(&self) {
        self.forget();
        self.ctl().restore(self.incremental.snap(), "whole");
        assert_same("undamaged", &self.daemon.content("whole"), &self.content);
        self.ctl().json(&["volume", "delete", "whole"]);
    }

    /// A restore of this cloud snapshot fails, and names this object.
    fn restore_names(&self, task: &Task, key: &str) {
        self.restore_names_one(task, &[key]);
    }

    /// The same where several are damaged: which one is met first is open.
    fn restore_names_one(&self, task: &Task, keys: &[&str]) {
        let error = self.ctl().restore_fails(task.snap(), "broken");
        let named = keys.iter().any(|key| message(&error).contains(key));
        assert!(named, "the error names none of {keys:?}: {error:#}");
        assert_eq!(error["code"], "cloudsnap_damaged", "{error:#}");
    }
}

/// Bits all over an object: in its head, its middle, and its end.
fn places(content: &[u8], rng: &mut Rng) -> Vec<u64> {
    let bits = content.len() as u64 * 8;
    let mut places: Vec<u64> =
        [0, 8 * 9, 8 * 13, 8 * 30, 8 * 63 + 7, 8 * 64, 8 * 90].into_iter().filter(|at| *at < bits).collect();
    places.extend([bits / 2, bits - 8 * 20, bits - 1]);
    places.extend((0..3).map(|_| rng.below(bits)));
    places
}

fn every_kind_of_object(test: &str, passphrase: Option<&'static str>) {
    let mut rng = Rng::of_test(test);
    let damaged = Damaged::new(passphrase);
    let store = &damaged.store;
    let full = store.data_of(damaged.full.snap());
    let incremental = store.data_of(damaged.incremental.snap());
    assert_eq!((full.len(), incremental.len()), (3, 2), "packs and index: {full:?} {incremental:?}");
    for (key, victim) in full
        .iter()
        .map(|key| (key, &damaged.full))
        .chain(incremental.iter().map(|key| (key, &damaged.incremental)))
    {
        let whole = store.read(key);
        for bit in places(&whole, &mut rng) {
            store.flip(key, bit);
            eprintln!("bit {bit} of {key}");
            damaged.restore_names(victim, key);
            store.replace(key, &whole);
        }
    }
    // What the full one holds is needed by the incremental.
    let whole = store.read(&full[0]);
    store.flip(&full[0], 8 * 5_000_000);
    damaged.restore_names(&damaged.incremental, &full[0]);
    store.replace(&full[0], &whole);

    for (victim, other) in [(&damaged.full, &damaged.incremental), (&damaged.incremental, &damaged.full)] {
        let key = store.manifest(victim.snap());
        let whole = store.read(&key);
        for bit in places(&whole, &mut rng) {
            store.flip(&key, bit);
            eprintln!("bit {bit} of {key}");
            damaged.forget();
            assert!(
                !damaged.ctl().done_cloudsnaps().iter().any(|id| id == victim.snap()),
                "listed as Done: {key}"
            );
            for (asked, status) in [(victim, "Damaged"), (other, "Done")] {
                let list = damaged.ctl().json(&["cloudsnap", "list", "-i", asked.snap()]);
                assert_eq!(list.as_array().map(Vec::len), Some(1), "only what was asked for: {list:#}");
                assert_eq!((&list[0]["ID"], &list[0]["Status"]), (&asked.snap().into(), &status.into()));
            }
            let error = damaged.ctl().restore_fails(victim.snap(), "broken");
            assert_names(&error, &[victim.snap()]);
            store.replace(&key, &whole);
        }
    }
    damaged.forget();
    let keys = [store.keys("blockd/keys/"), store.keys("blockd/keys-copy/")].concat();
    assert_eq!(keys.len(), 2, "{keys:?}");
    let whole = store.read(&keys[0]);
    damaged.ctl().json(&["credentials", "delete", "nas"]);
    let dir = store.dir().to_str().unwrap();
    let mut args = vec!["credentials", "create", "nas", "--provider", "local", "--path", dir];
    args.extend(passphrase.map(|text| ["--encryption-passphrase", text]).into_iter().flatten());
    for bit in places(&whole, &mut rng) {
        eprintln!("bit {bit} of {keys:?}");
        for key in &keys {
            store.flip(key, bit);
            damaged.ctl().json(&args);
            assert_eq!(store.read(key), whole, "{key} is not repaired from the other copy");
            damaged.ctl().json(&["credentials", "delete", "nas"]);
        }
        keys.iter().for_each(|key| store.flip(key, bit));
        let error = damaged.ctl().fails(&args, 1);
        assert_names(&error, &[store::name(&keys[0])]);
        let left = [store.keys("blockd/keys/"), store.keys("blockd/keys-copy/")].concat();
        assert_eq!(left, keys, "a new key in place of a damaged one");
        keys.iter().for_each(|key| store.replace(key, &whole));
    }
    damaged.ctl().add_local("nas", store.dir(), passphrase);
    damaged.assert_whole();
}

#[test]
fn flipped_bit_in_an_encrypted_object_is_detected() {
    every_kind_of_object("flipped_bit_in_an_encrypted_object_is_detected", Some("passphrase"));
}

#[test]
fn flipped_bit_in_a_plain_object_is_detected() {
    every_kind_of_object("flipped_bit_in_a_plain_object_is_detected", None);
}

#[test]
fn truncated_missing_and_swapped_objects() {
    for passphrase in [Some("passphrase"), None] {
        let damaged = Damaged::new(passphrase);
        let store = &damaged.store;
        let full = store.data_of(damaged.full.snap());
        let incremental = store.data_of(damaged.incremental.snap());
        for (key, victim) in [
            (&full[0], &damaged.full),
            (&full[1], &damaged.full),
            (&full[2], &damaged.full),
            (&incremental[1], &damaged.incremental),
        ] {
            let whole = store.read(key);
            for len in [0, 1, 63, 64, whole.len() / 2, whole.len() - 1] {
                store.replace(key, &whole[..len]);
                eprintln!("{key} cut to {len} bytes");
                damaged.restore_names(victim, key);
            }
            std::fs::remove_file(store.path(key)).unwrap();
            eprintln!("{key} is missing");
            damaged.restore_names(victim, key);
            std::fs::write(store.path(key), whole).unwrap();
        }
        let manifests = [store.manifest(damaged.full.snap()), store.manifest(damaged.incremental.snap())];
        for len in [0, 7, 40, 100] {
            let whole = store.read(&manifests[0]);
            store.replace(&manifests[0], &whole[..len]);
            damaged.forget();
            assert_eq!(damaged.ctl().done_cloudsnaps(), [damaged.incremental.snap()]);
            damaged.ctl().restore_fails(damaged.full.snap(), "broken");
            store.replace(&manifests[0], &whole);
        }
        // Two packs of one snapshot, packs and indexes of two snapshots, two manifests.
        for (one, other) in [(&full[0], &full[1]), (&full[1], &incremental[0]), (&full[2], &incremental[1])] {
            let (a, b) = (store.read(one), store.read(other));
            store.replace(one, &b);
            store.replace(other, &a);
            eprintln!("{one} and {other} are swapped");
            damaged.restore_names_one(&damaged.full, &[one, other]);
            store.replace(one, &a);
            store.replace(other, &b);
        }
        let (a, b) = (store.read(&manifests[0]), store.read(&manifests[1]));
        store.replace(&manifests[0], &b);
        store.replace(&manifests[1], &a);
        damaged.forget();
        assert_eq!(
            damaged.ctl().done_cloudsnaps(),
            Vec::<String>::new(),
            "manifests in each other's place are listed"
        );
        for task in [&damaged.full, &damaged.incremental] {
            let error = damaged.ctl().restore_fails(task.snap(), "broken");
            assert_names(&error, &[task.snap()]);
        }
        store.replace(&manifests[0], &a);
        store.replace(&manifests[1], &b);
        damaged.assert_whole();
    }
}

#[test]
fn passphrases() {
    let bed = Bed::new();
    let (store, plain) = (bed.store("store"), bed.store("plain"));
    let first = bed.daemon("a").start();
    first.ctl().add_local("nas", store.dir(), Some("the right one"));
    first.ctl().create_volume("vol", "1MiB");
    first.ctl().backup("vol");
    first.ctl().add_local("plain", plain.dir(), None);

    let daemon = bed.daemon("b").start();
    let ctl = daemon.ctl();
    let create = |dir: &Store, more: &[&str], code: &str| {
        let dir = dir.dir().to_str().unwrap();
        let mut args = vec!["credentials", "create", "nas", "--provider", "local", "--path", dir];
        args.extend(more);
        let error = ctl.fails(&args, 1);
        assert_eq!(error["code"], code, "{error:#}");
        assert_eq!(
            ctl.json(&["credentials", "list"]).as_array().unwrap().len(),
            0,
            "credentials that do not work are kept"
        );
        error
    };
    let error = create(&store, &["--encryption-passphrase", "the wrong one"], "wrong_passphrase");
    assert!(!message(&error).contains("the wrong one"), "{error:#}");
    create(&store, &[], "passphrase_required");
    create(&plain, &["--encryption-passphrase", "needless"], "repository_not_encrypted");
    ctl.add_local("nas", store.dir(), Some("the right one"));
    assert_eq!(ctl.done_cloudsnaps().len(), 1);
}

#[test]
fn stores_that_are_not_there() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").config("store_attempts = 2").start();
    let ctl = daemon.ctl();
    let missing = bed.path("missing");
    let missing = missing.to_str().unwrap();
    let error = ctl.fails(&["credentials", "create", "nas", "--provider", "local", "--path", missing], 1);
    assert_eq!(error["code"], "bucket_missing", "{error:#}");
    assert_names(&error, &[missing]);
    let closed = Refusing::new();
    let endpoint = closed.address().to_string();
    let s3 = [
        "credentials",
        "create",
        "s3",
        "--provider",
        "s3",
        "--s3-endpoint",
        &endpoint,
        "--s3-access-key",
        "k",
        "--s3-secret-key",
        "planted-secret",
        "--bucket",
        "b",
        "--s3-disable-ssl",
    ];
    let error = ctl.fails(&s3, 1);
    assert_eq!(error["code"], "store_unreachable", "{error:#}");
    assert_names(&error, &[&endpoint]);
    assert!(!message(&error).contains("planted-secret"));
    assert_eq!(ctl.json(&["credentials", "list"]).as_array().unwrap().len(), 0);

    // A store that goes away after its credentials were made, and comes back.
    let store = bed.store("store");
    ctl.add_local("nas", store.dir(), None);
    ctl.create_volume("vol", "1MiB");
    daemon.nbd("vol").write(0, &[1; 4096]);
    let full = ctl.backup("vol");
    daemon.nbd("vol").write(8192, &[2; 4096]);
    let away = bed.path("away");
    std::fs::rename(store.dir(), &away).unwrap();
    let (code, document) = ctl.document(&["cloudsnap", "backup", "vol", "--wait"]);
    assert_eq!((code, &document["state"]), (1, &"Backup-Failed".into()), "{document:#}");
    assert_eq!(document["error"]["code"], "bucket_missing", "{document:#}");
    assert_names(&document["error"], &[store.dir().to_str().unwrap()]);
    assert_eq!(ctl.fails(&["credentials", "validate", "nas"], 1)["code"], "bucket_missing");
    std::fs::rename(&away, store.dir()).unwrap();
    assert_eq!(ctl.done_cloudsnaps(), [full.snap()], "a backup that failed is listed");
    assert!(
        ctl.json(&["snapshot", "list"]).as_array().unwrap().is_empty(),
        "a snapshot of a failed backup is left"
    );
    // What the failed one should have carried is still dirty.
    let next = ctl.backup("vol");
    assert_eq!((next.is_incremental(), next.number("bytesDirty")), (true, 4096));
    ctl.restore(next.snap(), "again");
    assert_same("the next one", &daemon.content("again"), &daemon.content("vol"));
}

#[test]
fn full_store_fails_the_backup_and_resumes() {
    let mut rng = Rng::of_test("full_store_fails_the_backup_and_resumes");
    let bed = Bed::new();
    let small = bed.path("small");
    let daemon = bed.daemon("a").config("store_attempts = 2").tmpfs(&small, 24 * MIB).start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", &small, None);
    ctl.create_volume("vol", "64MiB");
    let mut client = daemon.nbd("vol");
    client.write_long(0, &rng.bytes(48 * MIB));
    let (code, document) = ctl.document(&["cloudsnap", "backup", "vol", "--wait"]);
    assert_eq!((code, &document["state"]), (1, &"Backup-Failed".into()), "{document:#}");
    assert_eq!(document["error"]["code"], "store_full", "{document:#}");
    assert_names(&document["error"], &[small.to_str().unwrap()]);
    assert_eq!(ctl.done_cloudsnaps(), Vec::<String>::new());
    assert!(
        ctl.json(&["snapshot", "list"]).as_array().unwrap().is_empty(),
        "a snapshot of a failed backup is left"
    );
    // With less to carry there is room, when what is left of the failed one is out of the way.
    client.zero(0, 46 * MIB);
    let seen = std::path::PathBuf::from(format!("/proc/{}/root", daemon.pid()))
        .join(small.strip_prefix("/").unwrap());
    let left = Store::create(&seen);
    for key in left.keys("blockd/data/") {
        std::fs::remove_file(left.path(&key)).unwrap();
    }
    let task = ctl.backup("vol");
    ctl.restore(task.snap(), "again");
    assert_same("what was restored", &daemon.content("again"), &client.read_all());
}

fn write_until_full(client: &mut Nbd, rng: &mut Rng, content: &mut [u8]) -> u32 {
    for (nth, piece) in content.chunks_mut(MIB as usize).enumerate() {
        let data = rng.bytes(MIB);
        match client.call(command::WRITE, 0, nth as u64 * MIB, MIB, &data) {
            Ok(()) => piece.copy_from_slice(&data),
            Err(Failure::Refused(errno)) => return errno,
            Err(Failure::Broken(error)) => panic!("the connection broke: {error}"),
        }
    }
    0
}

#[test]
fn full_data_directory_is_reported() {
    let mut rng = Rng::of_test("full_data_directory_is_reported");
    let bed = Bed::new();
    let store = bed.store("store");
    let home = bed.path("a");
    let daemon = bed.daemon("a").tmpfs(&home.join("data"), 48 * MIB).start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), None);
    ctl.create_volume("vol", "96MiB");
    let mut client = daemon.nbd("vol");
    let mut content = vec![0; 96 * MIB as usize];
    assert_eq!(
        write_until_full(&mut client, &mut rng, &mut content),
        errno::ENOSPC,
        "a full disk must be reported as such"
    );
    let acknowledged =
        content.chunks(MIB as usize).take_while(|piece| piece.iter().any(|byte| *byte != 0)).count() as u64;
    assert!(acknowledged >= 16, "only {acknowledged} MiB of 48 could be used");
    assert_same(
        "what was acknowledged",
        &client.read(0, acknowledged * MIB),
        &content[..(acknowledged * MIB) as usize],
    );
    ctl.json(&["status"]);
    // Space that is given back can be used again; on a busy machine the kernel needs a moment for that.
    client.trim(0, 96 * MIB);
    wait_for("room", || client.call(command::WRITE, 0, 0, 4096, &[5; 4096]).ok());
    client.flush();
    assert_same("after the trim", &client.read(0, 8192), &[[5; 4096], [0; 4096]].concat());
    let snap = wait_for("a backup with room", || {
        let (code, document) = ctl.document(&["cloudsnap", "backup", "vol", "--wait"]);
        (code == 0).then(|| Task(document).snap().to_owned())
    });
    assert_eq!(ctl.done_cloudsnaps(), [snap]);
    // A restore that does not fit fails with an error and leaves the rest unchanged.
    let other = bed.daemon("b").start();
    other.ctl().add_local("nas", store.dir(), None);
    other.ctl().create_volume("large", "64MiB");
    other.nbd("large").write_long(0, &rng.bytes(64 * MIB));
    let large = other.ctl().backup_with("large", &[]);
    let error = ctl.restore_fails(large.snap(), "large");
    assert_eq!(error["code"], "no_space", "{error:#}");
    assert_same("the volume beside it", &client.read(0, 4096), &[5; 4096]);
    client.write(MIB, &[6; 4096]);
}

/// A volume of three layers, in pieces of 64 KiB, and what two of its points hold.
struct Layers {
    name: &'static str,
    now: Vec<u8>,
    first: Vec<u8>,
}

const PIECE: u64 = 64 * KIB;

impl Layers {
    /// The first holds pieces 0 to 31, the second 8 to 15 and 40 to 47, and the head 12 and 13.
    fn make(daemon: &Daemon, name: &'static str, rng: &mut Rng) -> Self {
        let ctl = daemon.ctl();
        ctl.create_volume(name, "4MiB");
        let mut client = daemon.nbd(name);
        client.write_long(0, &rng.bytes(32 * PIECE));
        ctl.json(&["snapshot", "create", name, "--name", "first"]);
        let first = client.read_all();
        for piece in [8, 40] {
            client.write(piece * PIECE, &rng.bytes(8 * PIECE));
        }
        ctl.json(&["snapshot", "create", name, "--name", "second"]);
        client.write(12 * PIECE, &rng.bytes(2 * PIECE));
        client.flush();
        let now = client.read_all();
        client.close();
        Self { name, now, first }
    }

    /// Exports a point; what can be read of it is what it held. Returns the pieces that cannot be read.
    fn lost(&self, setup: &Setup, point: Option<&str>, expected: &[u8]) -> Vec<u64> {
        let image = setup.data_dir().with_file_name("image");
        let image_arg = image.to_str().unwrap();
        let mut args = vec!["--check-volumes", self.name, "--export", image_arg, "--json"];
        args.extend(point.map(|name| ["--snapshot", name]).into_iter().flatten());
        let (code, said, error) = setup.check(&args);
        assert_eq!(code, 1, "{said}{error}");
        let report: Value = serde_json::from_str(&said).unwrap();
        let exported = &report["volumes"][0]["exported"];
        let number = |range: &Value, field: &str| range[field].as_u64().unwrap();
        let mut lost = Vec::new();
        for range in exported["unreadable"].as_array().unwrap() {
            assert!(!range["why"].as_str().unwrap().is_empty(), "{report:#}");
            let start = number(range, "offsetBytes");
            lost.extend(start / PIECE..(start + number(range, "lengthBytes")) / PIECE);
        }
        assert_eq!(number(exported, "unreadableBytes"), lost.len() as u64 * PIECE);
        let mut held = expected.to_vec();
        for &piece in &lost {
            held[(piece * PIECE) as usize..][..PIECE as usize].fill(0);
        }
        assert_same(&format!("{} {point:?}", self.name), &std::fs::read(&image).unwrap(), &held);
        std::fs::remove_file(image).unwrap();
        lost
    }
}

/// Returns the files of a volume's directory.
fn files_of(daemon: &std::path::Path, id: &str) -> std::path::PathBuf {
    daemon.join("volumes").join(id)
}

fn alter(path: &std::path::Path, at: usize, bits: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= bits;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_volume_is_refused_and_salvageable() {
    let mut rng = Rng::of_test("damaged_volume_is_refused_and_what_can_be_read_is_exported");
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let names = ["sound", "missing", "short", "bit", "set", "meta", "lost"];
    let volumes = names.map(|name| Layers::make(&daemon, name, &mut rng));
    let ids = names.map(|name| daemon.ctl().volume(name)["id"].to_string().replace('"', ""));
    let data_dir = daemon.seen_data_dir();
    let setup = daemon.stop();
    let file = |nth: usize, name: &str| files_of(&data_dir, &ids[nth]).join(name);
    let layer = |number: u32, end: &str| format!("layer-{number:016x}.{end}");
    std::fs::remove_file(file(1, &layer(2, "data"))).unwrap();
    let short = std::fs::File::options().write(true).open(file(2, &layer(1, "data"))).unwrap();
    short.set_len(20 * PIECE + 1).unwrap();
    alter(&file(3, &layer(2, "g0.set")), 60, 4);
    alter(&file(4, &layer(2, "g0.set")), 60, 5);
    alter(&file(5, "volume.meta"), 33, 64);
    alter(&file(6, "volume.meta"), 33, 65);

    let daemon = setup.start();
    let ctl = daemon.ctl();
    let culprits = [layer(2, "data"), layer(1, "data"), layer(2, "g0.set"), layer(2, "g0.set")];
    let culprits = culprits.into_iter().chain(["volume.meta".to_owned(), "volume.meta".to_owned()]);
    for (volume, culprit) in volumes[1..].iter().zip(culprits) {
        let shown = ctl.volume(volume.name);
        assert_eq!(shown["state"], "failed", "{shown:#}");
        assert!(shown["stateReason"].as_str().unwrap().contains(&culprit), "{shown:#}");
        let refused = Nbd::try_open(&daemon.nbd_socket(), volume.name).map(drop).unwrap_err();
        assert!(refused.to_string().contains(&culprit), "{refused}");
        let error = ctl.fails(&["snapshot", "create", volume.name], 1);
        assert_names(&error, &[&culprit, "blockd --check-volumes"]);
    }
    // The rest is served.
    assert_same("the sound volume", &daemon.content("sound"), &volumes[0].now);
    let setup = daemon.stop();

    let [_, missing, short, bit, set, meta, lost] = &volumes;
    let pieces = |ranges: &[std::ops::Range<u64>]| ranges.iter().cloned().flatten().collect::<Vec<_>>();
    assert_eq!(missing.lost(&setup, None, &missing.now), pieces(&[8..12, 14..16, 40..48]));
    assert_eq!(missing.lost(&setup, Some("first"), &missing.first), pieces(&[]));
    assert_eq!(short.lost(&setup, None, &short.now), pieces(&[20..26, 26..32]));
    assert_eq!(short.lost(&setup, Some("first"), &short.first), pieces(&[20..26, 26..32]));
    // One bit can be put right. Where that is not enough, only what lies above the layer is certain.
    assert_eq!(bit.lost(&setup, None, &bit.now), pieces(&[]));
    assert_eq!(set.lost(&setup, None, &set.now), pieces(&[0..12, 14..64]));
    assert_eq!(set.lost(&setup, Some("first"), &set.first), pieces(&[]));
    assert_eq!(meta.lost(&setup, None, &meta.now), pieces(&[]));
    let image = bed.path("image");
    let refused = |args: &[&str], word: &str| {
        let args = [args, &["--export", image.to_str().unwrap()]].concat();
        let (code, said, error) = setup.check(&args);
        assert!(code == 3 && error.contains(word), "{code} {said}{error}");
    };
    refused(&["--check-volumes", lost.name], "volume.meta");
    refused(&["--check-volumes", "set", "--snapshot", "never"], "no snapshot never");
    refused(&["--check-volumes", "set", "bit"], "exactly one volume");
    std::fs::write(&image, "mine").unwrap();
    refused(&["--check-volumes", "sound"], "File exists");
    assert_eq!(std::fs::read(&image).unwrap(), b"mine");

    // Nothing was changed: without the damage it is the volume that it was.
    alter(&file(4, &layer(2, "g0.set")), 60, 5);
    let daemon = setup.start();
    assert_same("the mended volume", &daemon.content("set"), &set.now);
}
