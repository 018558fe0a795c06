//! A real S3 server: rotation of its keys, and network faults.

use crate::harness::{
    Bed, Ctl, Daemon, MIB, Rng, assert_no_secret_in_files, assert_same,
    proxy::{Fault, Proxy, Request},
    put_program, put_secret,
    seaweed::{self, Seaweed},
    servers, wait_for,
};
use std::{io::Write, net::SocketAddr, os::unix::fs::OpenOptionsExt};

const PASSPHRASE: &str = "planted-passphrase-0c77";

fn add(ctl: &Ctl, name: &str, endpoint: SocketAddr) {
    let passphrase = [("--encryption-passphrase", PASSPHRASE)];
    let (code, document) = Seaweed::reached_at(endpoint).add_credentials(ctl, name, &passphrase);
    assert_eq!(code, 0, "{document:#}");
}

/// The daemon reads the secret key from its file when needed and stores no copy.
#[test]
fn secret_key_file_opens_the_bucket_and_is_not_stored() {
    if servers::is_switched_off("S3") {
        return;
    }
    let mut rng = Rng::of_test("secret_key_file_opens_the_bucket_and_is_not_stored");
    let bed = Bed::new();
    let server = Seaweed::start(&bed.path("weed"));
    let dir = bed.path("secrets");
    std::fs::create_dir(&dir).unwrap();
    let key = dir.join("s3");
    let put = |text: &str| {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&key);
        file.and_then(|mut file| file.write_all(text.as_bytes())).unwrap();
    };
    put("another one");
    let config = format!("store_attempts = 3\n[secrets]\nfile_dir = \"{}\"\ncache_s = 1", dir.display());
    let daemon = bed.daemon("a").config(&config).start();
    let ctl = daemon.ctl();
    let (endpoint, from) = (server.address().to_string(), format!("file:{}", key.display()));
    let create = [
        "credentials",
        "create",
        "s3",
        "--provider",
        "s3",
        "--s3-disable-ssl",
        "--s3-endpoint",
        &endpoint,
        "--s3-access-key",
        seaweed::ACCESS_KEY,
        "--s3-secret-key-from",
        &from,
        "--bucket",
        servers::BUCKET,
    ];
    assert_eq!(ctl.fails(&create, 1)["code"], "store_unauthorized");
    // Editors add a newline.
    put(&format!("{}\n", seaweed::SECRET_KEY));
    let made = ctl.json(&create);
    assert_eq!(made["storeKeyFrom"], from.as_str(), "{made:#}");

    ctl.create_volume("vol", "8MiB");
    let content = rng.bytes(8 * MIB);
    let mut client = daemon.nbd("vol");
    client.write_long(0, &content);
    client.close();
    let backup = ctl.backup("vol");
    ctl.restore(backup.snap(), "again");
    assert_same("again", &daemon.content("again"), &content);

    // The daemon reads the file again and does not use the old key.
    put("another one");
    assert_eq!(ctl.fails(&["credentials", "validate", "s3"], 1)["code"], "store_unauthorized");
    put(seaweed::SECRET_KEY);
    let daemon = daemon.stop().start();
    let ctl = daemon.ctl();
    assert!(ctl.backup("vol").is_incremental());
    assert_eq!(ctl.done_cloudsnaps().len(), 2);
    let uuid = made["credentialId"].as_str().unwrap();
    assert_eq!(
        ctl.json(&["credentials", "inspect", &uuid[..8]])["name"],
        "s3",
        "a UUID prefix does not locate the credentials"
    );

    assert_no_secret_in_files(&daemon.stop().data_dir(), &[seaweed::SECRET_KEY]);
}

/// Creates the volume `vol` with random content, enough for this number of packs. Returns the content.
fn create_filled_volume(ctl: &Ctl, daemon: &Daemon, rng: &mut Rng, packs: u64) -> Vec<u8> {
    ctl.create_volume("vol", &format!("{}MiB", packs * 32));
    let content = rng.bytes(packs * 32 * MIB);
    let mut client = daemon.nbd("vol");
    client.write_long(0, &content);
    client.close();
    content
}

#[test]
fn network_faults_are_survived() {
    if servers::is_switched_off("S3") {
        return;
    }
    let mut rng = Rng::of_test("network_faults_are_survived");
    let bed = Bed::new();
    let server = Seaweed::start(&bed.path("weed"));
    let proxy = Proxy::start(server.address());
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    add(&ctl, "s3", proxy.address());
    let content = create_filled_volume(&ctl, &daemon, &mut rng, 2);
    // PUT requests fail before or after their execution, the manifest's included.
    proxy.inject(|request, nth| match (request.method.as_str(), nth % 3) {
        ("PUT", 0) => Some(Fault::Unavailable),
        ("PUT", 1) => Some(Fault::LostReply),
        _ => None,
    });
    let task = ctl.backup("vol");
    proxy.inject(|request, _| {
        (request.method == "PUT" && request.path.contains("/manifests/")).then_some(Fault::LostReply)
    });
    daemon.nbd("vol").write(0, &content[MIB as usize..MIB as usize + 4096]);
    let wanted = daemon.content("vol");
    // The reply to the commit is always lost: the listing must match the result of the task.
    let (code, document) = ctl.document(&["cloudsnap", "backup", "vol", "--wait"]);
    let document = &document["items"][0];
    proxy.inject(|_, _| None);
    let listed = ctl.done_cloudsnaps();
    assert_eq!(listed.len() == 2, code == 0, "task: {document:#}, list: {listed:?}");
    proxy.inject(|request, nth| match (request.method.as_str(), nth % 4) {
        ("GET", 0) => Some(Fault::CutReply),
        ("GET", 1) => Some(Fault::Unavailable),
        _ => None,
    });
    ctl.restore(task.snap(), "again");
    assert_same("restored volume", &daemon.content("again"), &content);
    // The store always fails: the backup fails with the reason, and the next one includes its changes.
    proxy.inject(|request, _| (request.method == "PUT").then_some(Fault::Unavailable));
    drop(ctl);
    let daemon = daemon.stop().config("store_attempts = 2").start();
    let ctl = daemon.ctl();
    let before = ctl.volume("vol")["lastBackups"].clone();
    let (code, document) = ctl.document(&["cloudsnap", "backup", "vol", "--wait"]);
    let document = &document["items"][0];
    assert_eq!((code, &document["state"]), (1, &"Backup-Failed".into()), "{document:#}");
    assert!(
        document["error"]["message"].as_str().unwrap().contains(&proxy.address().to_string()),
        "{document:#}"
    );
    assert_eq!(ctl.volume("vol")["lastBackups"], before);
    proxy.inject(|_, _| None);
    let last = ctl.backup("vol");
    ctl.restore(last.snap(), "last");
    assert_same("the last backup", &daemon.content("last"), &wanted);
}

/// Two servers of one store: the first one dies during a backup.
#[test]
fn second_server_takes_over_during_a_backup() {
    if servers::is_switched_off("S3") {
        return;
    }
    let mut rng = Rng::of_test("second_server_takes_over_during_a_backup");
    let bed = Bed::new();
    let second = Seaweed::start(&bed.path("weed"));
    let mut first = second.start_gateway();
    let passphrase = [("--encryption-passphrase", PASSPHRASE)];
    let servers = Seaweed::reached_at_any(&[first.address(), second.address()]);
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let (code, document) = servers.add_credentials(&ctl, "s3", &passphrase);
    assert_eq!(code, 0, "{document:#}");
    let content = create_filled_volume(&ctl, &daemon, &mut rng, 4);
    // Slow enough that most of the backup follows the death of the server.
    let id = ctl.start_backup_with("vol", &["--limit-upload", "16MiB"]);
    wait_for("the first uploads", || (ctl.task(&id).number("uploadedBytes") >= 8 * MIB).then_some(()));
    first.kill();
    let task = ctl.wait_task(&id);
    assert_eq!(task.state(), "Backup-Done", "{task:?}");
    let log = daemon.log();
    assert!(log.contains("server of the store does not respond; using the next one"), "{log}");
    ctl.restore(task.snap(), "again");
    assert_same("restored volume", &daemon.content("again"), &content);

    // A host that never saw the first server.
    let other = bed.daemon("b").start();
    let ctl = other.ctl();
    let (code, document) = servers.add_credentials(&ctl, "s3", &passphrase);
    assert_eq!(code, 0, "{document:#}");
    ctl.restore(task.snap(), "elsewhere");
    assert_same("volume of the other host", &other.content("elsewhere"), &content);
    for daemon in [&daemon, &other] {
        assert!(!daemon.log().contains("planted"), "{}", daemon.log());
    }
}

fn is_pack(request: &Request) -> bool {
    request.method == "PUT" && request.path.contains("/pack-")
}

const UPDATE: [&str; 3] = ["credentials", "update", "s3"];
const NEW: (&str, &str) = ("secondadmin", "planted-s3-second-secret-93ad");

/// Checks that a wrong key is refused with its flag and that the daemon keeps the old one.
fn assert_wrong_key_changes_nothing(ctl: &Ctl) {
    let before = ctl.json(&["credentials", "inspect", "s3"]);
    let wrong = ["--s3-access-key", NEW.0, "--s3-secret-key", "planted-wrong"];
    let error = ctl.fails(&[&UPDATE[..], &wrong].concat(), 1);
    assert_eq!(error["code"], "store_unauthorized", "{error:#}");
    assert!(error["message"].as_str().unwrap().contains("nothing was changed"), "{error:#}");
    assert!(error["hint"].as_str().unwrap().contains("--s3-secret-key"), "{error:#}");
    assert_eq!(ctl.json(&["credentials", "inspect", "s3"]), before);
    ctl.fails(&[&UPDATE[..], &["--bucket", "other"]].concat(), 2);
}

#[test]
fn access_key_is_rotated_during_a_backup() {
    if servers::is_switched_off("S3") {
        return;
    }
    let mut rng = Rng::of_test("access_key_is_rotated_during_a_backup");
    let bed = Bed::new();
    let server = Seaweed::start(&bed.path("weed"));
    let proxy = Proxy::start(server.address());
    let secrets = bed.path("secrets");
    std::fs::create_dir(&secrets).unwrap();
    // The daemon retries held requests for longer than the server takes to restart.
    let table = format!("upload_concurrency = 2\nstore_attempts = 30\n[secrets]\nfile_dir = {secrets:?}");
    let daemon = bed.daemon("a").config(&table).start();
    let ctl = daemon.ctl();
    add(&ctl, "s3", proxy.address());
    // These credentials keep the old key, to show its revocation.
    add(&ctl, "old", server.address());
    let mut content = create_filled_volume(&ctl, &daemon, &mut rng, 2);
    ctl.backup_with("vol", &["--cred-id", "s3"]);
    assert_wrong_key_changes_nothing(&ctl);
    let mut write = |content: &mut [u8], at: u64, len_bytes: u64| {
        let bytes = rng.bytes(len_bytes);
        content[at as usize..][..bytes.len()].copy_from_slice(&bytes);
        let mut client = daemon.nbd("vol");
        client.write_long(at, &bytes);
        client.close();
    };
    write(&mut content, 0, MIB);
    let second = ctl.backup_with("vol", &["--cred-id", "s3"]);
    assert!(second.is_incremental());

    // The key changes during a backup whose request reaches the server after the revocation of the old key.
    write(&mut content, 0, 40 * MIB);
    server.accept_also(&[NEW]);
    let file = bed.path("new-key");
    put_secret(&file, NEW.1);
    proxy.inject(|request, _| is_pack(request).then_some(Fault::Hold));
    let task = ctl.start_backup_with("vol", &["--cred-id", "s3"]);
    proxy.wait_for_held(1);
    let with_file = ["--s3-access-key", NEW.0, "--s3-secret-key-file", file.to_str().unwrap()];
    let updated = wait_for("the server to accept the new key", || {
        let (code, document) = ctl.document(&[&UPDATE[..], &with_file].concat());
        (code == 0).then_some(document)
    });
    assert_eq!(updated["accessKey"], NEW.0, "{updated:#}");
    let _server = server.accept_only(&[NEW]);
    let error = ctl.fails(&["credentials", "validate", "old"], 1);
    assert_eq!(error["code"], "store_unauthorized", "{error:#}");
    ctl.json(&["credentials", "delete", "old"]);
    proxy.release();
    let task = ctl.wait_task(&task);
    assert_eq!((task.state(), task.is_incremental()), ("Backup-Done", true), "{task:?}");
    ctl.json(&["credentials", "validate", "s3"]);

    // The key moves to an external secret; after a restart backups are incremental.
    let reference = format!("command:{}", secrets.join("key").display());
    put_program(&secrets.join("key"), &format!("echo {}", NEW.1));
    let updated = ctl.json(&[&UPDATE[..], &["--s3-secret-key-from", &reference]].concat());
    assert_eq!(updated["storeKeyFrom"], reference, "{updated:#}");
    let daemon = daemon.stop().start();
    let ctl = daemon.ctl();
    daemon.nbd("vol").write_long(0, &content[MIB as usize..2 * MIB as usize]);
    content.copy_within(MIB as usize..2 * MIB as usize, 0);
    let last = ctl.backup_with("vol", &["--cred-id", "s3"]);
    assert!(last.is_incremental());
    ctl.restore(last.snap(), "again");
    assert_same("restored volume", &daemon.content("again"), &content);
    assert!(!daemon.log().contains("planted"), "{}", daemon.log());
}
