//! Secrets that lie elsewhere: in OpenBao, with a token and as a role, and in credentials of systemd.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use blockd_tests::{
    Bed, Ctl, MIB, PATIENCE, Rng, assert_same, servers,
    vault::{Vault, put_secret},
    wait_for,
};
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};

const PASSPHRASE: &str = "planted-passphrase-in-the-vault-91c4";
const REFERENCE: &str = "vault:secret/blockd/nas#passphrase";

/// Longer than a secret is used without being asked for.
fn outlast_the_cache() {
    std::thread::sleep(Duration::from_millis(2_100));
}

/// Files below a directory in which a text is.
fn files_with(dir: &Path, text: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_with(&path, text, found);
        } else if kind.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
}

fn create(ctl: &Ctl, store: &Path, reference: &str) -> Value {
    let store = store.to_str().unwrap();
    ctl.json(&[
        "credentials",
        "create",
        "nas",
        "--provider",
        "local",
        "--path",
        store,
        "--encryption-passphrase-from",
        reference,
    ])
}

/// A backup that must not succeed: what is said of why.
fn backup_fails(ctl: &Ctl) -> String {
    let (code, document) = ctl.document(&["cloudsnap", "backup", "vol", "--wait"]);
    assert_eq!(code, 1, "{document:#}");
    let text = document.to_string();
    assert!(!text.contains("planted"), "{text}");
    text
}

#[test]
fn a_passphrase_in_openbao_never_rests_on_the_host() {
    if servers::is_switched_off("VAULT") {
        return;
    }
    let bed = Bed::new();
    let vault = Vault::start(&bed.path("bao"));
    vault.put("blockd/nas", &json!({ "passphrase": PASSPHRASE }));
    let token_file = bed.path("token");
    let token = vault.token("1h");
    put_secret(&token_file, &token);
    let store = bed.path("store");
    std::fs::create_dir(&store).unwrap();
    let tables = format!(
        "[secrets]\ncache_s = 2\nwait_s = 1\n[vault]\naddress = \"{}\"\ntoken_file = \"{}\"\ntimeout_ms = 60000",
        vault.url(),
        token_file.display()
    );
    let daemon = bed.daemon("a").config(&tables).start();
    let ctl = daemon.ctl();

    let error = ctl.fails(&["secrets", "check", "vault:secret/blockd/nas#pass"], 4);
    assert!(error["message"].as_str().unwrap().contains("there are passphrase"), "{error:#}");
    let error = ctl.fails(&["secrets", "check", "vault:secret/other#pass"], 1);
    assert!(error["message"].as_str().unwrap().contains("policy with `read`"), "{error:#}");
    assert_eq!(ctl.json(&["secrets", "check", REFERENCE])["version"], 1);
    let made = create(&ctl, &store, REFERENCE);
    assert_eq!((&made["encryptionKeyFrom"], &made["encryption"]), (&json!(REFERENCE), &json!(true)));
    assert_eq!(ctl.json(&["credentials", "inspect", "nas"]), made);
    assert!(ctl.run(&["credentials", "inspect", "nas"]).stdout.contains(REFERENCE));

    ctl.create_volume("vol", "8MiB");
    let mut content = Rng::of_test("vault").bytes(8 * MIB);
    daemon.nbd("vol").write_long(0, &content);
    let first = ctl.backup("vol");
    let daemon = daemon.stop().start();
    let ctl = daemon.ctl();
    content[..4096].fill(7);
    daemon.nbd("vol").write_long(0, &content[..4096]);
    let second = ctl.backup("vol");
    assert!(second.is_incremental());
    ctl.restore(second.snap(), "again");
    assert_same("again", &daemon.content("again"), &content);

    let list = ctl.json(&["secrets", "list"]);
    let used_by = &list[0]["usedBy"][0];
    assert_eq!((&list[0]["reference"], &list[0]["resolvable"]), (&json!(REFERENCE), &json!(true)));
    assert_eq!(
        (&used_by["credential"], &used_by["purpose"]),
        (&json!("nas"), &json!("encryptionPassphrase"))
    );
    let status = ctl.json(&["secrets", "status"]);
    assert_eq!(
        (&status["vault"]["state"], &status["vault"]["tokenRenewable"]),
        (&json!("ready"), &json!(true))
    );
    assert!(status["vault"]["tokenValidUntil"].is_string(), "{status:#}");

    // The token is taken back: it is said what to do, and where.
    vault.revoke(&token);
    outlast_the_cache();
    let text = backup_fails(&ctl);
    assert!(text.contains("refused the token (403): renew it in ") && text.contains("/token"), "{text}");
    assert_eq!(ctl.fails(&["credentials", "validate", "nas"], 1)["code"], "secret_unavailable");
    let list = ctl.json(&["secrets", "list"]);
    assert!(list[0]["resolvable"] == false && list[0]["error"].is_string(), "{list:#}");
    let (code, status) = ctl.document(&["secrets", "status"]);
    assert_eq!((code, &status["vault"]["state"]), (1, &json!("refused")), "{status:#}");
    let other_token = vault.token("1h");
    put_secret(&token_file, &other_token);
    ctl.json(&["credentials", "validate", "nas"]);
    ctl.backup("vol");

    // What is no passphrase of this repository is none, wherever it comes from; and so is what is away.
    vault.put("blockd/nas", &json!({ "passphrase": "planted-other-passphrase" }));
    outlast_the_cache();
    assert_eq!(ctl.fails(&["credentials", "validate", "nas"], 1)["code"], "wrong_passphrase");
    // What is open is used on, and that is said.
    ctl.backup("vol");
    assert!(daemon.log().contains("the passphrase was changed where it lies"));
    vault.put("blockd/nas", &json!({ "passphrase": PASSPHRASE }));
    ctl.json(&["credentials", "validate", "nas"]);
    let bundle = bed.path("bundle.json");
    ctl.json(&["support-bundle", "--output", bundle.to_str().unwrap()]);

    // A sealed one keeps nobody from starting, nor from what needs no secret.
    vault.seal();
    let daemon = daemon.stop().start();
    let ctl = daemon.ctl();
    assert_same("vol", &daemon.content("vol"), &content);
    assert!(backup_fails(&ctl).contains("is sealed"));
    let error = ctl.fails(&["credentials", "validate", "nas"], 1);
    assert_eq!(error["code"], "secret_unreachable", "{error:#}");
    let (code, status) = ctl.document(&["secrets", "status"]);
    assert_eq!((code, &status["vault"]["state"]), (1, &json!("sealed")), "{status:#}");
    let log = daemon.log();
    drop(vault);
    assert!(backup_fails(&ctl).contains("cannot be reached"));
    let data_dir = daemon.seen_data_dir();
    let _ = daemon.stop();

    for secret in [PASSPHRASE, "planted-other-passphrase", &token, &other_token] {
        let mut found = Vec::new();
        for dir in [&data_dir, &bed.path("a"), &store] {
            files_with(dir, secret, &mut found);
        }
        assert!(found.is_empty(), "{secret} is in {found:?}");
        let bundle = std::fs::read_to_string(&bundle).unwrap();
        assert!(!bundle.contains(secret) && !log.contains(secret));
        assert!(bundle.contains(REFERENCE), "whoever reads it wants to know where it lies");
    }
    assert!(!data_dir.join("secret.key").exists(), "nothing was sealed");

    // Another host needs the bucket, and the passphrase from wherever it has it.
    let other = bed.daemon("b").start();
    let ctl = other.ctl();
    ctl.add_local("nas", &store, Some(PASSPHRASE));
    ctl.restore(first.snap(), "elsewhere");
    ctl.restore(second.snap(), "later");
    assert_same("later", &other.content("later"), &content);
}

#[test]
fn a_role_logs_in_again_and_a_passphrase_can_move() {
    if servers::is_switched_off("VAULT") {
        return;
    }
    let bed = Bed::new();
    let vault = Vault::start(&bed.path("bao"));
    vault.put("blockd/nas", &json!({ "passphrase": PASSPHRASE }));
    // Its tokens end soon, however often they are renewed, and not while they are used.
    let (role_id, secret_id) = vault.role("8s", "9s");
    let credentials = bed.path("credentials");
    std::fs::create_dir(&credentials).unwrap();
    put_secret(&credentials.join("bao-secret-id"), &secret_id);
    put_secret(&credentials.join("nas"), "planted-moved-passphrase");
    let store = bed.path("store");
    std::fs::create_dir(&store).unwrap();
    let tables = format!(
        "[secrets]\ncache_s = 1\n[vault]\naddress = \"{}\"\nrole_id = \"{role_id}\"\nsecret_id_credential = \"bao-secret-id\"",
        vault.url()
    );
    let setup = bed.daemon("a").env("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap()).config(&tables);
    let daemon = setup.start();
    let ctl = daemon.ctl();
    create(&ctl, &store, REFERENCE);
    ctl.create_volume("vol", "4MiB");
    for nth in 0..3 {
        daemon.nbd("vol").write_long(0, &vec![nth; 4096]);
        ctl.backup("vol");
        std::thread::sleep(Duration::from_secs(9));
    }
    assert_eq!(ctl.json(&["secrets", "status"])["vault"]["auth"], "AppRole");
    let error = ctl.fails(&["secrets", "check", "systemd:bao-secret-id"], 1);
    assert!(error["message"].as_str().unwrap().contains("blockd's own"), "{error:#}");

    // From the Vault into a credential of systemd, and with a restart between.
    let moved = ["credentials", "rekey", "nas", "--new-encryption-passphrase-from", "systemd:nas"];
    ctl.json(&moved);
    assert_eq!(ctl.json(&["credentials", "inspect", "nas"])["encryptionKeyFrom"], "systemd:nas");
    drop(vault);
    let daemon = daemon.stop().start();
    let ctl = daemon.ctl();
    daemon.nbd("vol").write_long(0, &vec![9; 4096]);
    let last = ctl.backup("vol");
    // And from there to this host, which keeps the keys sealed from then on.
    let file = bed.path("passphrase");
    put_secret(&file, PASSPHRASE);
    ctl.json(&["credentials", "rekey", "nas", "--new-encryption-passphrase-file", file.to_str().unwrap()]);
    std::fs::remove_dir_all(&credentials).unwrap();
    let daemon = daemon.stop().start();
    let ctl = daemon.ctl();
    assert_eq!(ctl.json(&["credentials", "inspect", "nas"])["encryptionKeyFrom"], Value::Null);
    ctl.restore(last.snap(), "again");
    assert_eq!(daemon.content("again")[..4096], vec![9; 4096][..]);
    assert!(!daemon.log().contains("planted"));
}

#[test]
fn a_vault_that_is_away_for_a_moment_fails_no_backup() {
    if servers::is_switched_off("VAULT") {
        return;
    }
    let bed = Bed::new();
    let mut vault = Vault::start(&bed.path("bao"));
    vault.put("blockd/nas", &json!({ "passphrase": PASSPHRASE }));
    let token_file = bed.path("token");
    put_secret(&token_file, vault.lasting_token());
    let store = bed.path("store");
    std::fs::create_dir(&store).unwrap();
    let tables = format!(
        "[secrets]\ncache_s = 1\nwait_s = 600\n[vault]\naddress = \"{}\"\ntoken_file = \"{}\"\ntimeout_ms = 60000\nattempts = 1",
        vault.url(),
        token_file.display()
    );
    let daemon = bed.daemon("a").config(&tables).start();
    let ctl = daemon.ctl();
    create(&ctl, &store, REFERENCE);
    ctl.create_volume("vol", "8MiB");
    let content = Rng::of_test("away").bytes(8 * MIB);
    daemon.nbd("vol").write_long(0, &content);

    // Away as the backup starts: what it is of is frozen, and it waits and says for what.
    vault.kill();
    outlast_the_cache();
    let task = ctl.start_backup("vol");
    let waits =
        |id: &str| Some(ctl.task(id)).filter(|task| task.text("phase").starts_with("waiting for vault:"));
    let shown = wait_for("the backup to wait", || waits(&task));
    assert_eq!((shown.text("phase"), shown.is_frozen()), (&*format!("waiting for {REFERENCE}"), true));
    assert!(daemon.log().contains("the task waits for a secret"));
    // What is written meanwhile is not in it.
    daemon.nbd("vol").write_long(0, &vec![0; 4096]);
    vault.start_again();
    vault.put("blockd/nas", &json!({ "passphrase": PASSPHRASE }));
    let done = ctl.wait_task(&task);
    assert_eq!(done.state(), "Backup-Done", "{done:?}");
    ctl.json(&["cloudsnap", "restore", "--snap", done.snap(), "--volume", "then", "--wait"]);
    assert!(daemon.nbd("then").read(0, 4096) == content[..4096]);

    // One that waits can be stopped, at once and for good.
    vault.kill();
    outlast_the_cache();
    let task = ctl.start_backup("vol");
    wait_for("the backup to wait", || waits(&task));
    ctl.json(&["cloudsnap", "stop", "--name", &task]);
    let stopped = ctl.wait_task(&task);
    assert_eq!(stopped.state(), "Backup-Stopped", "{stopped:?}");

    // What does not pass by itself is not waited for.
    vault.start_again();
    vault.put("blockd/nas", &json!({ "passphrase": PASSPHRASE }));
    put_secret(&token_file, "planted-wrong-token");
    outlast_the_cache();
    let began = Instant::now();
    let text = backup_fails(&ctl);
    assert!(text.contains("refused the token (403): renew it in ") && text.contains("/token"), "{text}");
    assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
}
