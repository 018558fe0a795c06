//! Absence of secrets from output, logs and files.

use crate::harness::{Bed, Ctl, assert_no_secret_in_files};
use std::fs;

const PASSPHRASE: &str = "planted-passphrase-7f3a91";
const SECRET: &str = "planted-secret-key-c0ffee";

fn assert_free_of_secrets(what: &str, bytes: &[u8]) {
    for secret in [PASSPHRASE, SECRET] {
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{what} contains {secret}");
    }
}

#[test]
fn secrets_are_absent_from_all_output() {
    let bed = Bed::new();
    let store = bed.store("store");
    let setup = bed.daemon("a").arg("--log-level").arg("trace").config("store_attempts = 1");
    let daemon = setup.start();
    let ctl = daemon.ctl();
    // The passphrase comes from a file, from the environment, and from a failing command.
    let file = bed.path("passphrase");
    fs::write(&file, format!("{PASSPHRASE}\n")).unwrap();
    let dir = store.dir().to_str().unwrap();
    let mut output = String::new();
    let mut run = |ctl: &Ctl, args: &[&str], code: i32| {
        for json in [false, true] {
            let run = ctl.run(&[if json { &["-j"][..] } else { &[] }, args].concat());
            output += &run.stdout;
            output += &run.stderr;
            // On the second run the credentials may exist.
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
    assert_free_of_secrets("the output of blockctl", output.as_bytes());
    let environment = fs::read(format!("/proc/{}/environ", daemon.pid())).unwrap();
    assert_free_of_secrets("the daemon's environment", &environment);
    assert_free_of_secrets("the log", daemon.log().as_bytes());
    drop(daemon.stop());
    // The home of the daemon includes its data directory.
    for dir in [store.dir(), &bed.path("a")] {
        assert_no_secret_in_files(dir, &[PASSPHRASE, SECRET]);
    }
}
