//! Exit statuses and streams of failures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use serde_json::json;
use std::os::unix::net::UnixListener;
use support::{Fake, Ran, Reply, blockctl, fail, ok};

fn run(line: &str) -> Ran {
    Ran::of(blockctl(line).output().unwrap())
}

#[test]
fn errors_of_the_daemon_have_their_exit_status() {
    for (status, code, exit) in [
        (404, "volume_not_found", 4),
        (409, "volume_in_use", 5),
        (400, "invalid_request", 2),
        (502, "store_unreachable", 1),
        (503, "shutting_down", 3),
        (500, "internal", 1),
        (418, "of_next_year", 1),
    ] {
        let fake = Fake::start(vec![("DELETE /v1/volumes/db", fail(status, code, "no volume \"db\""))]);
        let ran = fake.run("volume delete db");
        assert_eq!((ran.status, ran.stdout.as_str()), (exit, ""), "{code}");
        assert_eq!(ran.stderr, "error: no volume \"db\"\n");
        let ran = fake.run("volume delete db --json");
        assert_eq!((ran.status, ran.stderr.as_str()), (exit, ""), "{code}");
        assert_eq!(ran.json()["error"]["message"], "no volume \"db\"");
    }
}

#[test]
fn missing_daemon_exits_with_3() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none.sock");
    let refused = dir.path().join("refused.sock");
    drop(UnixListener::bind(&refused).unwrap());
    for (socket, words) in [(missing, "the socket does not exist"), (refused, "it is not running")] {
        let ran = Ran::of(blockctl("volume list --socket").arg(&socket).output().unwrap());
        assert_eq!((ran.status, ran.stdout.as_str()), (3, ""));
        assert!(ran.stderr.contains(words) && ran.stderr.contains(socket.to_str().unwrap()), "{ran:?}");
        assert!(ran.stderr.contains("--socket or BLOCKD_SOCKET"), "{ran:?}");
        let ran = Ran::of(blockctl("volume list -j --socket").arg(&socket).output().unwrap());
        assert_eq!((ran.status, &ran.json()["error"]["code"]), (3, &json!("unreachable")));
        assert!(ran.stderr.is_empty());
    }
}

#[test]
fn daemon_death_in_mid_request_exits_with_3() {
    let fake = Fake::start(vec![("GET /v1/volumes", Reply::Close)]);
    let ran = fake.run("volume list");
    assert_eq!((ran.status, ran.stdout.as_str()), (3, ""));
    assert!(ran.stderr.contains("broke during GET /v1/volumes"), "{ran:?}");
    assert_eq!(fake.run("volume list -j").json()["error"]["code"], "connection_lost");
}

#[test]
fn malformed_reply_is_reported() {
    let fake = Fake::start(vec![("GET /v1/volumes", ok(json!({ "volume": 7 })))]);
    let ran = fake.run("volume list");
    assert_eq!(ran.status, 1);
    assert!(ran.stderr.contains("GET /v1/volumes") && ran.stderr.contains("same version"), "{}", ran.stderr);
}

#[test]
fn usage_errors_are_exit_status_2() {
    for line in [
        "volume create db",
        "nonsense",
        "volume",
        "cs backup",
        "volume list --colour",
        "cred create n --provider local",
    ] {
        let ran = run(line);
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{line}");
        assert!(!ran.stderr.is_empty(), "{line}");
        let ran = run(&format!("-j {line}"));
        assert_eq!((ran.status, ran.stderr.as_str()), (2, ""), "{line}");
        assert_eq!(ran.json()["error"]["code"], "usage", "{line}");
        assert!(!ran.json()["error"]["message"].as_str().unwrap().contains('\n'), "{line}");
    }
}

#[test]
fn cluster_commands_are_refused_with_reason() {
    for (line, words) in [
        ("secrets kvdb login", "blockctl has no secrets: secrets belong to credentials"),
        ("cs list --migration", "cloudsnap list has no --migration: nothing is migrated"),
    ] {
        let ran = run(line);
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{line}");
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(words), "{ran:?}");
        let document = run(&format!("-j {line}")).json();
        assert!(document["error"]["message"].as_str().unwrap().contains(words), "{document}");
    }
}

#[test]
fn help_is_a_result() {
    for line in ["--help", "volume --help", "cs backup -h", "--version", "help cs list"] {
        let ran = run(line);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{line}");
        assert!(!ran.stdout.is_empty() && !ran.stdout.contains('\u{1b}'), "{line}");
    }
    assert!(run("--help").stdout.contains("3    the daemon cannot be reached"));
}

#[test]
fn closed_pipe_is_no_error() {
    let fake = Fake::start(vec![("GET /v1/volumes", ok(json!({ "volumes": [] })))]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = fake.command("volume list").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&format!("completions {shell}"));
        assert!(ran.status == 0 && ran.stdout.contains("cloudsnap"), "{shell}");
    }
    assert_eq!(run("-j completions fish").json()["shell"], "fish");
    assert!(run("man").stdout.contains(".SH"));
    assert!(run("man -j").json()["page"].as_str().unwrap().contains(".TH"));
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    let ran = Ran::of(blockctl("man --dir").arg(&pages).output().unwrap());
    assert_eq!(ran.status, 0);
    let page = std::fs::read_to_string(pages.join("blockctl-cloudsnap-backup.1")).unwrap();
    assert!(page.contains("Force a full backup"));
    assert_eq!(ran.stdout.lines().count(), std::fs::read_dir(&pages).unwrap().count());
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let ran = Ran::of(blockctl("man --dir").arg(&file).output().unwrap());
    assert!(ran.status == 1 && ran.stderr.contains("file"), "{ran:?}");
}
