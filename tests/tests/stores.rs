//! Backup and restore on each store, and the tests of the `object_store` library with blockd's clients:
//! SeaweedFS, Azurite, Ceph, OpenStack Swift, and an emulator of Google Cloud Storage behind a shim.

use crate::harness::{
    Bed, Ctl, Daemon, KIB, MIB, Model, Rng, Task, assert_same,
    seaweed::Seaweed,
    servers::{self, Server},
};
use blockd_store::{HttpOptions, RetryPolicy, open, task_store};
use blockd_testkit::store::{Has, deletion_suite, object_store_suite};
use serde_json::{Value, json};

const PASSPHRASE: &str = "planted-passphrase-0c77";
const SIZE: u64 = 40 * MIB;

fn add(ctl: &Ctl, server: &Server) {
    let (code, document) = server.add_credentials(ctl, "store", &[("--encryption-passphrase", PASSPHRASE)]);
    assert_eq!(code, 0, "{document:#}");
    assert_eq!(document["conditionalPut"], server.conditional_put, "{document:#}");
    let shown = ctl.json(&["credentials", "inspect", "store"]);
    assert_eq!(shown, ctl.json(&["credentials", "list"])["items"][0]);
    assert_eq!(shown["bucket"], server.value_of("--bucket"));
    assert!(!shown.to_string().contains(&server.secret), "{shown:#}");
}

fn refused(ctl: &Ctl, server: &Server, changes: &[(&str, &str)]) -> Value {
    let (code, document) = server.add_credentials(ctl, "store", changes);
    assert_eq!(code, 1, "{changes:?}: {document:#}");
    let text = document.to_string();
    assert!(!text.contains(&server.secret) && !text.contains(PASSPHRASE), "{text}");
    assert_eq!(
        ctl.json(&["credentials", "list"])["items"].as_array().unwrap().len(),
        0,
        "refused credentials were kept"
    );
    document["error"].clone()
}

/// Makes a full and incremental backups, restores them on a fresh host from the bucket, and deletes them.
fn back_up_and_restore(test: &str, bed: &Bed, server: &Server) {
    let mut rng = Rng::of_test(test);
    let daemon = bed.daemon("a").config("store_attempts = 2").start();
    let ctl = daemon.ctl();

    let (flag, value) = &server.wrong;
    let error = refused(&ctl, server, &[(*flag, value)]);
    assert_eq!(error["code"], "store_unauthorized", "{error:#}");
    assert!(
        error["hint"].as_str().is_some_and(|hint| hint.contains(flag)),
        "the hint does not name {flag}: {error:#}"
    );
    let error = refused(&ctl, server, &[("--bucket", "no-such-bucket")]);
    assert_eq!(error["code"], "bucket_missing", "{error:#}");
    assert!(error["message"].as_str().unwrap().contains("no-such-bucket"), "{error:#}");

    add(&ctl, server);
    ctl.json(&["volume", "create", "vol", "--size", "40MiB", "--label", "app=db,tier=gold"]);
    let mut client = daemon.nbd("vol");
    let mut model = Model::new(SIZE);
    model.bytes = rng.bytes(SIZE);
    client.write_long(0, &model.bytes);
    let mut snaps: Vec<(Task, Model)> = vec![(ctl.backup("vol"), model.clone())];
    for _ in 0..2 {
        for _ in 0..40 {
            model.step(&mut client, &mut rng);
        }
        if server.memcached.is_some() {
            // The daemon's token is invalid: it must request another one.
            server.forget_tokens();
        }
        let task = ctl.backup("vol");
        assert!(task.is_incremental());
        let limit = task.number("dirtyBytes") * 105 / 100 + 64 * KIB;
        assert!(task.number("uploadedBytes") <= limit, "{task:?}");
        assert_eq!((task.requests("list"), task.requests("head")), (0, 0), "{task:?}");
        snaps.push((task, model.clone()));
    }
    client.close();
    let (deleted, _) = snaps.remove(1);
    ctl.json(&["cloudsnap", "delete", "--snap", deleted.snap(), "--wait"]);
    ctl.json(&["credentials", "validate", "store"]);

    let fresh = bed.daemon("b").start();
    let other = fresh.ctl();
    let error = refused(&other, server, &[("--encryption-passphrase", "another one")]);
    assert_eq!(error["code"], "wrong_passphrase", "{error:#}");
    let error = refused(&other, server, &[]);
    assert_eq!(error["code"], "passphrase_required", "{error:#}");
    add(&other, server);
    let known: Vec<&str> = snaps.iter().map(|(task, _)| task.snap()).collect();
    assert_eq!(other.done_cloudsnaps(), known);
    assert_eq!(other.json(&["cloudsnap", "list", "--label", "app=db"])["items"].as_array().unwrap().len(), 2);
    for (nth, (task, model)) in snaps.iter().enumerate() {
        let name = format!("again-{nth}");
        other.restore(task.snap(), &name);
        assert_same(&name, &fresh.content(&name), &model.bytes);
        assert_eq!(other.volume(&name)["labels"]["tier"], "gold", "the labels are lost");
    }
    restore_lazily(&fresh, &snaps[1]);
    for (task, _) in &snaps {
        other.json(&["cloudsnap", "delete", "--snap", task.snap(), "--force", "--wait"]);
    }
    assert_eq!(other.done_cloudsnaps(), Vec::<String>::new());
    for daemon in [&daemon, &fresh] {
        assert!(!daemon.log().contains(&server.secret), "a secret is in the log");
    }
}

/// Restores a backup lazily; reads it while it hydrates, and after.
fn restore_lazily(daemon: &Daemon, (backup, model): &(Task, Model)) {
    let ctl = daemon.ctl();
    let restore = ["cloudsnap", "restore", "--snap", backup.snap(), "--volume", "lazy", "--lazy"];
    let hydration = ctl.json(&restore)["taskId"].as_str().unwrap().to_owned();
    assert_same("the lazy volume", &daemon.content("lazy"), &model.bytes);
    let ended = ctl.wait_task(&hydration);
    assert_eq!(ended.state(), "Restore-Done", "{ended:?}");
    assert_same("the hydrated volume", &daemon.content("lazy"), &model.bytes);
}

/// Runs the library's tests with blockd's client of a store. They delete all objects of the bucket.
fn run_suite(server: &Server, config: Value, parts: bool) {
    let store = open(&serde_json::from_value(config).unwrap(), &HttpOptions::default(), None).unwrap();
    // The store stack of tasks.
    let (store, requests) = task_store(store, RetryPolicy::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let at_once = runtime.block_on(deletion_suite(store.as_ref()));
    eprintln!("{at_once} of 300 objects deleted with one request");
    runtime.block_on(object_store_suite(store, Has { create_if_absent: server.conditional_put, parts }));
    eprintln!("{:?}", requests.snapshot());
}

fn s3_config(server: &Server) -> Value {
    let value = |flag| server.value_of(flag);
    let endpoint = value("--s3-endpoint");
    json!({
        "type": "s3", "endpoint": endpoint, "region": "us-east-1", "bucket": value("--bucket"),
        "accessKey": value("--s3-access-key"), "secretKey": value("--s3-secret-key"),
        "disableSsl": endpoint.starts_with("http://")
    })
}

#[test]
fn s3_backups_restore_on_a_fresh_host() {
    if servers::is_switched_off("S3") {
        return;
    }
    let bed = Bed::new();
    let weed = Seaweed::start(&bed.path("weed"));
    let server = Seaweed::reached_at(weed.address());
    back_up_and_restore("s3_backups_restore_on_a_fresh_host", &bed, &server);
    run_suite(&server, s3_config(&server), true);
}

/// Copies a data directory; both daemons continue with the same volume and store. Checks that each backup has
/// the content of its own volume.
fn back_up_from_copies(test: &str, bed: &Bed, add: &dyn Fn(&Ctl)) {
    let mut rng = Rng::of_test(test);
    let first = bed.daemon("first").start();
    let ctl = first.ctl();
    add(&ctl);
    ctl.create_volume("vol", "40MiB");
    let mut model = Model::new(SIZE);
    model.bytes = rng.bytes(SIZE);
    first.nbd("vol").write_long(0, &model.bytes);
    let mut snaps = vec![(ctl.backup("vol").snap().to_owned(), model.clone())];
    drop(ctl);
    let first = first.stop();
    let copy = bed.daemon("copy");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(first.data_dir()).arg(copy.data_dir()).status();
    assert!(copied.unwrap().success());

    let mut daemons = [(first.start(), model.clone()), (copy.start(), model)];
    for _ in 0..2 {
        let mut tasks = Vec::new();
        for (daemon, model) in &mut daemons {
            let mut client = daemon.nbd("vol");
            for _ in 0..20 {
                model.step(&mut client, &mut rng);
            }
            client.close();
            tasks.push(daemon.ctl().start_backup("vol"));
        }
        for ((daemon, model), task) in daemons.iter().zip(tasks) {
            let task = daemon.ctl().wait_task(&task);
            assert_eq!((task.state(), task.is_incremental()), ("Backup-Done", true), "{task:?}");
            snaps.push((task.snap().to_owned(), model.clone()));
        }
    }
    let fresh = bed.daemon("fresh").start();
    let ctl = fresh.ctl();
    add(&ctl);
    assert_eq!(ctl.done_cloudsnaps().len(), snaps.len());
    // One daemon deletes the common base; the other backups do not need it.
    let (deleted, _) = snaps.remove(0);
    daemons[0].0.ctl().json(&["cloudsnap", "delete", "--snap", &deleted, "--wait"]);
    for (nth, (snap, model)) in snaps.iter().enumerate() {
        let name = format!("again-{nth}");
        ctl.restore(snap, &name);
        assert_same(&name, &fresh.content(&name), &model.bytes);
    }
}

#[test]
fn copied_data_directory_keeps_backups_correct() {
    let bed = Bed::new();
    let store = bed.store("store");
    back_up_from_copies("copied_data_directory_keeps_backups_correct", &bed, &|ctl| {
        ctl.add_local("nas", store.dir(), Some(PASSPHRASE));
    });
}

#[test]
fn azure_backups_restore_on_a_fresh_host() {
    if servers::is_switched_off("AZURE") {
        return;
    }
    let bed = Bed::new();
    let server = Server::azure(&bed.path("azurite"));
    back_up_and_restore("azure_backups_restore_on_a_fresh_host", &bed, &server);
    // The container is also accessible by a shared access signature, but not by an altered one.
    let sas = Server::azure_sas();
    let daemon = bed.daemon("c").start();
    let ctl = daemon.ctl();
    let by_sas = |token: &str| {
        let changes = [
            ("--azure-account-key", ""),
            ("--azure-sas-token", token),
            ("--encryption-passphrase", PASSPHRASE),
        ];
        server.add_credentials(&ctl, "sas", &changes)
    };
    let (code, document) = by_sas(&sas.replacen("sig=", "sig=AAAA", 1));
    assert_eq!((code, &document["error"]["code"]), (1, &"store_unauthorized".into()), "{document:#}");
    assert!(!document.to_string().contains("AAAA"), "{document:#}");
    let (code, document) = by_sas(&sas);
    assert_eq!((code, &document["auth"]), (0, &"shared access signature".into()), "{document:#}");
    ctl.create_volume("vol", "1MiB");
    ctl.backup("vol");
    let config = json!({
        "type": "azure", "account": servers::AZURE_ACCOUNT, "container": servers::BUCKET,
        "auth": { "kind": "accountKey", "key": servers::AZURE_KEY },
        "endpoint": server.value_of("--azure-endpoint"), "disableSsl": true
    });
    run_suite(&server, config, true);
}

/// Runs only with a gateway.
#[test]
fn ceph_backups_restore_on_a_fresh_host() {
    if !servers::has_ceph() {
        return;
    }
    let bed = Bed::new();
    let server = Server::ceph(&bed.path("ceph"));
    back_up_and_restore("ceph_backups_restore_on_a_fresh_host", &bed, &server);
    back_up_from_copies("ceph", &bed, &|ctl| add(ctl, &server));
    run_suite(&server, s3_config(&server), true);
}

#[test]
fn swift_backups_restore_on_a_fresh_host() {
    if servers::is_switched_off("SWIFT") {
        return;
    }
    let bed = Bed::new();
    let server = Server::swift(&bed.path("swift"));
    back_up_and_restore("swift_backups_restore_on_a_fresh_host", &bed, &server);
    // Swift replaces objects without an error.
    back_up_from_copies("swift", &bed, &|ctl| add(ctl, &server));
    let config = json!({
        "type": "swift", "container": servers::BUCKET, "key": servers::SWIFT_KEY,
        "auth": { "kind": "v1", "authUrl": server.value_of("--swift-auth-url"), "user": servers::SWIFT_USER }
    });
    run_suite(&server, config, true);
}

/// Uses fake-gcs-server, an emulator of Google Cloud Storage, behind a shim.
#[test]
fn google_emulator_backups_restore_on_a_fresh_host() {
    if servers::is_switched_off("GOOGLE") {
        return;
    }
    let bed = Bed::new();
    let server = Server::google(&bed.path("google"));
    back_up_and_restore("google_emulator_backups_restore_on_a_fresh_host", &bed, &server);
    let key = std::fs::read_to_string(server.value_of("--google-json-key-file")).unwrap();
    let config = json!({
        "type": "google", "bucket": servers::BUCKET, "jsonKey": key,
        "endpoint": server.value_of("--google-endpoint"), "disableSsl": true
    });
    // The shim does not support multipart uploads.
    run_suite(&server, config, false);
}
