//! Tests of the interface for scripts: exit statuses, one JSON document, names and columns, sockets, hidden
//! secrets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{Bed, Ctl, KIB, MIB, Rng, assert_same, ctl::clean, process::program, wait_for};
use serde_json::Value;
use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn data_directory_has_documented_files() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    assert_eq!(mode(&daemon.seen_data_dir()), 0o700, "the data directory");
    assert_eq!(mode(&daemon.socket()), 0o600, "the control socket");
    assert_eq!(mode(&daemon.nbd_socket()), 0o600, "the NBD socket");
    let store = bed.store("store");
    daemon.ctl().add_local("nas", store.dir(), Some("passphrase"));
    assert_eq!(mode(&daemon.seen_data_dir().join("secret.key")), 0o600, "the key of stored secrets");
    let sockets = [daemon.socket(), daemon.nbd_socket()];
    drop(daemon.stop());
    for socket in sockets {
        assert!(!socket.exists(), "{} is left after a stop", socket.display());
    }
}

#[test]
fn second_daemon_is_refused() {
    let bed = Bed::new();
    let setup = bed.daemon("a");
    let first = setup.start();
    let data_dir = first.seen_data_dir();
    let Err((status, log)) = bed.daemon("b").arg("--data-dir").arg(data_dir.to_str().unwrap()).try_start()
    else {
        panic!("two daemons on one directory")
    };
    // Given twice, the argument itself is wrong; what counts is the next one.
    assert_eq!(status.code(), Some(2), "{log}");
    let config = format!("data_dir = {:?}", data_dir.to_str().unwrap());
    let file = bed.path("second.toml");
    fs::write(&file, config).unwrap();
    let second = clean(program("blockd")).arg("--config").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains(data_dir.to_str().unwrap()) && last.contains(&first.pid().to_string()), "{said}");
    // The first one has not noticed.
    first.ctl().json(&["status"]);
    first.ctl().create_volume("vol", "1MiB");
    assert_eq!(first.nbd("vol").size_bytes(), MIB);
}

#[test]
fn daemon_command_line_is_stable() {
    let bed = Bed::new();
    let run = |args: &[&str]| {
        let output = clean(program("blockd")).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for part in ["--data-dir", "--config", "--nbd-listen", "/etc/blockd/blockd.toml", "full_every"] {
        assert!(help.contains(part), "--help does not tell of {part}");
    }
    assert_eq!(run(&["--nonsense"]).0, Some(2));
    let missing = bed.path("missing.toml");
    let (code, _, said) = run(&["--config", missing.to_str().unwrap()]);
    assert!(code != Some(0) && said.contains("missing.toml"), "{code:?} {said}");
    let bad = bed.path("bad.toml");
    fs::write(&bad, "full_evry = 3\n").unwrap();
    let (code, _, said) = run(&["--config", bad.to_str().unwrap()]);
    assert!(code == Some(2) && said.contains("full_evry"), "a key that is not known: {code:?} {said}");
    let (code, _, said) = run(&["--data-dir", &format!("{}/{}", bed.dir().display(), "x".repeat(120))]);
    assert!(code == Some(1) && said.contains("107"), "a path that is too long for sockets: {code:?} {said}");
}

#[test]
fn systemd_is_notified_when_ready() {
    let bed = Bed::new();
    let notify = bed.path("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(blockd_tests::TIMEOUT)).unwrap();
    let daemon = bed
        .daemon("a")
        .env("NOTIFY_SOCKET", notify.to_str().unwrap())
        .arg("--log-format")
        .arg("json")
        .start();
    let mut told = String::new();
    let mut hear = |wanted: &str| {
        while !told.contains(wanted) {
            let mut message = [0; 4096];
            let len =
                socket.recv(&mut message).unwrap_or_else(|error| panic!("no {wanted} but {told:?}: {error}"));
            told += std::str::from_utf8(&message[..len]).unwrap();
        }
    };
    hear("READY=1");
    for line in daemon.log().lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("not JSON ({error}): {line}"));
    }
    drop(daemon.stop());
    hear("STOPPING=1");
}

#[test]
fn exit_statuses_and_documents() {
    let bed = Bed::new();
    let absent = Ctl::new(&bed.path("absent.sock"));
    let error = absent.fails(&["status"], 3);
    assert!(error["message"].as_str().unwrap().contains("absent.sock"), "{error:#}");

    let daemon = bed.daemon("a").start();
    let store = bed.store("store");
    let ctl = daemon.ctl();
    let missing = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61";
    for args in [
        &["volume", "inspect", "none"][..],
        &["volume", "uri", "none"],
        &["volume", "delete", "none"],
        &["snapshot", "create", "none"],
        &["snapshot", "delete", "none@none"],
        &["credentials", "validate", "none"],
        &["credentials", "delete", "none"],
        &["cloudsnap", "status", "--name", "00000000"],
    ] {
        ctl.fails(args, 4);
    }
    for args in [
        &["volume", "create"][..],
        &["volume", "create", "vol", "--size", "8XB"],
        &["volume", "create", "a/b", "--size", "1MiB"],
        &["volume", "create", "vol", "--size", "65TiB"],
        &["credentials", "create", "nas", "--provider", "ftp"],
        &["cloudsnap", "restore", "--snap", "nonsense"],
        &["nonsense"],
        &["cloudsnap", "backup", "none"],
    ] {
        let (code, document) = ctl.document(args);
        // Without credentials no backup can start.
        assert!(
            code == 2 || (args.contains(&"backup") && [2, 4].contains(&code)),
            "{args:?}: {code} {document:#}"
        );
        assert!(document["error"]["message"].is_string(), "{args:?}: {document:#}");
    }
    ctl.create_volume("vol", "1MiB");
    ctl.fails(&["volume", "create", "vol", "--size", "1MiB"], 5);
    ctl.add_local("nas", store.dir(), None);
    let dir = store.dir().to_str().unwrap();
    ctl.fails(&["credentials", "create", "nas", "--provider", "local", "--path", dir], 5);
    let client = daemon.nbd("vol");
    let error = ctl.fails(&["volume", "delete", "vol"], 5);
    assert!(error["message"].as_str().unwrap().contains("connect"), "{error:#}");
    client.close();
    ctl.fails(&["cloudsnap", "inspect", missing], 4);
    let error = ctl.fails(&["cloudsnap", "list", "-i", missing], 4);
    assert!(
        error["code"] == "cloudsnap_not_found" && error["message"].as_str().unwrap().contains(missing),
        "{error:#}"
    );
    ctl.restore_fails_at_once(missing);

    // Every command has its document.
    let bundle = bed.path("bundle.json");
    for args in [
        &["status"][..],
        &["volume", "list"],
        &["volume", "uri", "vol"],
        &["snapshot", "create", "vol", "--name", "s"],
        &["snapshot", "list"],
        &["snapshot", "list", "vol"],
        &["snapshot", "delete", "vol@s"],
        &["credentials", "list"],
        &["credentials", "validate", "nas"],
        &["credentials", "inspect", "nas"],
        &["credentials", "limit", "nas", "--limit-upload", "1GiB"],
        &["cloudsnap", "list"],
        &["cs", "status"],
        &["cs", "history"],
        &["cs", "gc"],
        &["cs", "verify", "--wait"],
        &["cs", "schedules", "list"],
        &["cs", "credentials", "list"],
        &["volume", "check", "vol"],
        &["volume", "inspect", "vol"],
        &["volume", "resize", "vol", "--size", "2MiB"],
        &["volume", "update", "vol", "--label", "name=名前"],
        &["rule", "create", "settle", "--pre-command", "true"],
        &["rule", "assign", "settle", "--volume", "vol"],
        &["rule", "inspect", "settle"],
        &["rule", "list"],
        &["rule", "unassign", "settle", "--volume", "vol"],
        &["rule", "update", "settle", "--post-command", "true"],
        &["rule", "delete", "settle"],
        &["sched-policy", "create", "gold", "--daily", "01:00"],
        &["sched-policy", "inspect", "gold"],
        &["sched-policy", "update", "gold", "--daily", "02:00"],
        &["sched-policy", "list"],
        &["sched-policy", "delete", "gold"],
        &["get", "BackupLocation"],
        &["get", "VolumeClone"],
        &["describe", "BackupLocation", "nas"],
        &["browse", "list"],
        &["context", "list"],
        &["context", "unset"],
        &["events"],
        &["top", "--once"],
        &["support-bundle", "--output", bundle.to_str().unwrap()],
        &["completions", "bash"],
        &["man"],
        &["volume", "delete", "vol"],
        &["credentials", "delete", "nas"],
    ] {
        ctl.json(args);
    }
}

#[test]
fn id_prefix_is_accepted_and_a_group_id_names_its_tasks() {
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), None);
    for name in ["one", "two"] {
        ctl.json(&["volume", "create", name, "--size", "1MiB", "--group", "shop"]);
    }
    // The group's tasks are shown by its id; to stop or to wait for one of them takes more.
    let run = ctl.run(&["cs", "backup-group", "--group", "shop", "--wait"]);
    let group = run.stdout.split_once("groupID:").unwrap_or_else(|| panic!("{run:?}")).1;
    let group = &group[..13];
    assert_eq!(ctl.json(&["cs", "status", group]).as_array().unwrap().len(), 2);
    for args in [&["cs", "stop", group][..], &["cs", "status", group, "--wait"]] {
        let error = ctl.fails(args, 2);
        assert!(error["message"].as_str().unwrap().contains("2 tasks begin with"), "{error:#}");
    }

    let made = ctl.json(&["cs", "schedules", "create", "one", "--daily", "01:00", "--paused"]);
    let uuid = made["uuid"].as_str().unwrap_or_else(|| panic!("{made:#}")).to_owned();
    for id in [uuid.as_str(), &uuid[..9]] {
        for args in [
            &["resume"][..],
            &["run-now"],
            &["retention"],
            &["update", "--max", "3"],
            &["update", "--daily", "02:00"],
            &["pause"],
        ] {
            ctl.json(&[&["cs", "schedules"], args, &["--uuid", id]].concat());
        }
        assert_eq!(ctl.json(&["cs", "schedules", "list"])["schedules"][0]["paused"], true);
        assert!(!ctl.json(&["cs", "history", "--uuid", id]).is_null());
    }
    ctl.json(&["cs", "schedules", "delete", "--uuid", &uuid[..9]]);
    ctl.fails(&["cs", "schedules", "pause", "--uuid", &uuid[..9]], 4);

    // What is pinned is deleted by force only.
    let snap = ctl.backup("two").snap().to_owned();
    ctl.json(&["cs", "pin", "--snap", &snap]);
    let error = ctl.fails(&["cs", "delete", "--snap", &snap, "--wait"], 5);
    assert_eq!(error["code"], "cloudsnap_pinned", "{error:#}");
    ctl.json(&["cs", "delete", "--snap", &snap, "--force", "--wait"]);
    ctl.fails(&["cs", "list", "-i", &snap], 4);
}

#[test]
fn commands_as_people_know_them() {
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    let text = |args: &[&str]| {
        let run = ctl.run(args);
        assert_eq!(run.code, 0, "{args:?}: {run:?}");
        run.stdout
    };
    let dir = store.dir().to_str().unwrap();
    let said = text(&["credentials", "create", "nas", "--provider", "local", "--path", dir]);
    assert!(said.starts_with("Credentials created successfully, UUID:"), "{said}");
    text(&["volume", "create", "vol", "--size", "8MiB", "--label", "app=db,tier=gold"]);
    text(&["volume", "create", "other", "--size", "1GiB", "--label", "app=web"]);
    assert_eq!(ctl.json(&["volume", "list", "--label", "app=db"]).as_array().unwrap().len(), 1);
    assert_eq!(ctl.json(&["volume", "list"]).as_array().unwrap().len(), 2);
    let uri = text(&["volume", "uri", "vol"]);
    assert_eq!(uri.trim_end(), daemon.uri("vol"));
    daemon.nbd("vol").write(0, &[1; 8192]);
    let said = text(&["cloudsnap", "backup", "vol"]);
    let task = said
        .trim_end()
        .strip_prefix("Cloudsnap backup started successfully with id: ")
        .unwrap_or_else(|| panic!("{said}"));
    let task = ctl.wait_task(task);
    assert_eq!(task.state(), "Backup-Done");
    let said = text(&["cs", "backup", "--volume", "vol", "--full", "--wait"]);
    assert!(said.contains("Cloudsnap backup"), "{said}");
    let table = text(&["cloudsnap", "list"]);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["SOURCEVOLUME", "SOURCEVOLUMEID", "CLOUD-SNAP-ID", "CREATED-TIME", "TYPE", "STATUS"]);
    assert_eq!(table.lines().count(), 3, "{table}");
    let table = text(&["cloudsnap", "status"]);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(
        head,
        ["NAME", "SOURCEVOLUME", "STATE", "NODE", "BYTES-PROCESSED", "TIME-ELAPSED", "COMPLETED"]
    );

    let entry = &ctl.json(&["cs", "list", "--max", "1"])[0];
    for field in ["ID", "SrcVolumeID", "SrcVolumeName", "Timestamp", "Metadata", "Status"] {
        assert!(!entry[field].is_null(), "{field} is missing in {entry:#}");
    }
    let (cluster, rest) = entry["ID"].as_str().unwrap().split_once('/').unwrap();
    assert_eq!(
        cluster,
        ctl.json(&["status"])["clusterId"].as_str().or(ctl.json(&["status"])["cluster"].as_str()).unwrap()
    );
    assert!(rest.starts_with(entry["SrcVolumeID"].as_str().unwrap()));
    let count = |flags: &[&str]| ctl.json(&[&["cs", "list"], flags].concat()).as_array().unwrap().len();
    assert_eq!((count(&["--all"]), count(&["--cluster", cluster])), (2, 2));
    assert_eq!(count(&["--cluster", "2e4d4b67-95d7-481e-aec5-14223ac55170"]), 0);
    let src = entry["SrcVolumeID"].as_str().unwrap();
    assert_eq!((count(&["--src", src]), count(&["--src", &src[..9]]), count(&["--src", "1234"])), (2, 2, 0));
    assert_eq!((count(&["--label", "app=db"]), count(&["--label", "app=db,tier=none"])), (2, 0));
    assert_eq!(count(&["-i", entry["ID"].as_str().unwrap()]), 1);
    for field in ["bytesProcessed", "bytesUploaded", "bytesDirty", "freezeStallMicros"] {
        assert!(task.0[field].is_u64(), "{field} is missing in {:#}", task.0);
    }
    assert!(task.requests("put") >= 3, "a pack, an index and a manifest: {task:?}");
    let said = text(&["cloudsnap", "status", &task.id()[..13]]);
    assert!(said.lines().count() == 2 && said.contains(task.id()), "{said}");
    let held =
        ctl.backup_with("vol", &["--pre-command", "echo hold begin", "--post-command", "echo hold end"]);
    let said = text(&["cloudsnap", "status", held.id()]);
    let lines: Vec<&str> = said.lines().skip(2).collect();
    assert_eq!(lines[..2], ["", &format!("Around the freeze of task {}:", held.id())], "{said}");
    assert!(
        lines[2].starts_with("STEP ") && lines[3].contains("hold begin") && lines[4].contains("hold end"),
        "{said}"
    );
    let said = text(&["cloudsnap", "restore", "--snap", task.snap(), "--volume", "again"]);
    assert!(said.starts_with("Cloudsnap restore started successfully on volume: "), "{said}");
    let id = said.trim_end().rsplit("task name:").next().unwrap();
    assert_eq!(ctl.wait_task(id).state(), "Restore-Done");
    assert_same("what was restored", &daemon.content("again"), &daemon.content("vol"));
    let labels = &ctl.volume("again")["labels"];
    assert_eq!((&labels["app"], &labels["tier"]), (&"db".into(), &"gold".into()));
    assert_eq!(ctl.json(&["cs", "list", "--src", "vol"]).as_array().unwrap().len(), 3);
    assert_eq!(ctl.json(&["cs", "list", "--src", "other"]).as_array().unwrap().len(), 0);
    let error = ctl.fails(&["cs", "restore", "--snap", task.snap(), "--volume", "vol"], 5);
    assert_eq!(error["code"], "volume_exists", "{error:#}");
}

#[test]
fn single_credential_is_the_default() {
    let bed = Bed::new();
    let (one, two) = (bed.store("one"), bed.store("two"));
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.create_volume("vol", "1MiB");
    assert_eq!(ctl.fails(&["cs", "backup", "vol"], 2)["code"], "credential_required");
    ctl.add_local("one", one.dir(), None);
    let first = ctl.backup("vol");
    ctl.add_local("two", two.dir(), None);
    assert_eq!(ctl.fails(&["cs", "backup", "vol"], 2)["code"], "credential_required");
    // What is in one place only is found there.
    let found = ctl.json(&["cs", "restore", "--snap", first.snap(), "--volume", "found", "--wait"]);
    assert_eq!(found["state"], "Restore-Done");
    let second = ctl.backup_with("vol", &["--cred-id", "two"]);
    let restored =
        ctl.json(&["cs", "restore", "--snap", second.snap(), "--volume", "again", "--cr", "two", "--wait"]);
    assert_eq!(restored["state"], "Restore-Done");
    let all = ctl.json(&["cs", "list"]);
    assert_eq!(all.as_array().unwrap().len(), 2, "a list takes in every place: {all:#}");
}

#[test]
fn local_snapshots() {
    let mut rng = Rng::of_test("local_snapshots");
    let bed = Bed::new();
    let store = bed.store("store");
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), None);
    ctl.create_volume("vol", "4MiB");
    let mut client = daemon.nbd("vol");
    for nth in 0..4 {
        client.write(nth * MIB, &rng.bytes(64 * KIB));
        ctl.json(&["snapshot", "create", "vol", "--name", &format!("s{nth}")]);
    }
    let unnamed = ctl.json(&["snapshot", "create", "vol"]);
    assert!(unnamed["name"].as_str().unwrap().starts_with("snap-"), "{unnamed:#}");
    ctl.fails(&["snapshot", "create", "vol", "--name", "s1"], 5);
    assert_eq!(ctl.json(&["snapshot", "list", "vol"]).as_array().unwrap().len(), 5);
    let before = client.read_all();
    for name in ["vol@s1", "vol@s0", "vol@s3", unnamed["id"].as_str().unwrap()] {
        ctl.json(&["snapshot", "delete", name]);
    }
    let task = ctl.backup("vol");
    assert_eq!(
        task.number("bytesDirty"),
        4 * 64 * KIB,
        "snapshots of people change nothing of what a backup carries"
    );
    // One snapshot is kept: its layer and those above stay separate, all others are merged.
    wait_for("the layers to be merged", || {
        (ctl.volume("vol")["layers"].as_u64().unwrap() <= 3).then_some(())
    });
    assert_same("after the merge", &client.read_all(), &before);
    ctl.restore(task.snap(), "again");
    assert_same("what was restored", &daemon.content("again"), &before);
}

const PASSPHRASE: &str = "planted-passphrase-7f3a91";
const SECRET: &str = "planted-secret-key-c0ffee";

fn assert_free_of_secrets(what: &str, bytes: &[u8]) {
    for secret in [PASSPHRASE, SECRET] {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{secret} stands in {what}");
    }
}

fn assert_tree_is_free_of_secrets(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            assert_tree_is_free_of_secrets(&path);
        } else if let Ok(bytes) = fs::read(&path) {
            assert_free_of_secrets(&path.display().to_string(), &bytes);
        }
    }
}

#[test]
fn secrets_are_absent_from_all_output() {
    let bed = Bed::new();
    let store = bed.store("store");
    let setup = bed.daemon("a").arg("--log-level").arg("trace").config("store_attempts = 1");
    let daemon = setup.start();
    let ctl = daemon.ctl();
    // From a file, from the environment, and in a command that fails.
    let file = bed.path("passphrase");
    fs::write(&file, format!("{PASSPHRASE}\n")).unwrap();
    let dir = store.dir().to_str().unwrap();
    let mut said = String::new();
    let mut run = |ctl: &Ctl, args: &[&str], code: i32| {
        for json in [false, true] {
            let run = ctl.run(&[if json { &["-j"][..] } else { &[] }, args].concat());
            said += &run.stdout;
            said += &run.stderr;
            // The second time the credentials may be there already.
            assert!(run.code == code || (json && run.code == 5), "{args:?}: {run:?}");
        }
    };
    let local = ["credentials", "create", "nas", "--provider", "local", "--path", dir];
    run(&ctl, &[&local[..], &["--encryption-passphrase-file", file.to_str().unwrap()]].concat(), 0);
    let other = ["credentials", "create", "env", "--provider", "local", "--path", dir];
    run(&ctl.clone().env("BLOCKD_ENCRYPTION_PASSPHRASE", PASSPHRASE), &other, 0);
    let s3 = [
        "credentials",
        "create",
        "s3",
        "--provider",
        "s3",
        "--s3-endpoint",
        "127.0.0.1:9",
        "--bucket",
        "b",
        "--s3-disable-ssl",
    ];
    run(
        &ctl,
        &[
            &s3[..],
            &["--s3-access-key", "key", "--s3-secret-key", SECRET, "--encryption-passphrase", PASSPHRASE],
        ]
        .concat(),
        1,
    );
    run(&ctl.clone().env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", SECRET), &s3, 1);
    ctl.create_volume("vol", "1MiB");
    daemon.nbd("vol").write(0, &[3; 4096]);
    let flags = ["--cred-id", "nas"];
    let task = ctl.backup_with("vol", &flags);
    for args in [
        &["credentials", "list"][..],
        &["credentials", "validate", "nas"],
        &["status"],
        &["cs", "list"],
        &["cs", "status"],
        &["cs", "inspect", task.snap()],
    ] {
        run(&ctl, args, 0);
    }
    assert_free_of_secrets("the output of blockctl", said.as_bytes());
    let cmdline = fs::read(format!("/proc/{}/environ", daemon.pid())).unwrap();
    assert_free_of_secrets("the daemon's environment", &cmdline);
    assert_free_of_secrets("the log", daemon.log().as_bytes());
    let data_dir = daemon.seen_data_dir();
    drop(daemon.stop());
    assert_tree_is_free_of_secrets(&data_dir);
    assert_tree_is_free_of_secrets(store.dir());
    assert_tree_is_free_of_secrets(&bed.path("a"));
}

#[test]
fn lost_secret_key_is_reported_and_replaced() {
    let bed = Bed::new();
    let (store, other) = (bed.store("store"), bed.store("other"));
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), Some("passphrase"));
    ctl.create_volume("vol", "1MiB");
    daemon.nbd("vol").write(0, &[9; 4096]);
    ctl.backup("vol");
    let key = daemon.seen_data_dir().join("secret.key");
    let setup = daemon.stop();
    fs::remove_file(&key).unwrap();
    let daemon = setup.start();
    let ctl = daemon.ctl();
    let (code, document) = ctl.document(&["cs", "backup", "vol", "--wait"]);
    assert_eq!((code, &document["error"]["code"]), (1, &"secret_unavailable".into()), "{document:#}");
    // Everything else goes on.
    assert_same("the volume", &daemon.nbd("vol").read(0, 4096), &[9; 4096]);
    // A new key in the place of the lost one would make putting that back a loss, too.
    let path = other.dir().to_str().unwrap();
    let create = ["credentials", "create", "other", "--provider", "local", "--path", path];
    let (code, document) = ctl.document(&create);
    assert_eq!((code, &document["error"]["code"]), (1, &"secret_unavailable".into()), "{document:#}");
    ctl.json(&["credentials", "delete", "nas"]);
    ctl.add_local("other", other.dir(), Some("passphrase"));
    ctl.backup_with("vol", &["--cred-id", "other"]);
    ctl.add_local("nas", store.dir(), Some("passphrase"));
    assert_eq!(ctl.json(&["cs", "list", "--cred-id", "nas"]).as_array().unwrap().len(), 1);
}
