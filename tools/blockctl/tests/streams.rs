//! Sockets, pipes and files.

use crate::support::{Fake, Ran, blockctl, list, ok, volume};
use serde_json::json;
use std::os::unix::net::UnixListener;

fn run(line: &str) -> Ran {
    Ran::of(blockctl(line).output().unwrap())
}

#[test]
fn dead_daemon_exits_with_3() {
    let dir = tempfile::tempdir().unwrap();
    let refused = dir.path().join("refused.sock");
    drop(UnixListener::bind(&refused).unwrap());
    let ran = Ran::of(blockctl("volume list --socket").arg(&refused).output().unwrap());
    assert_eq!((ran.status, ran.stdout.as_str()), (3, ""));
    assert!(
        ran.stderr.contains("the daemon is not running") && ran.stderr.contains("refused.sock"),
        "{ran:?}"
    );
}

#[test]
fn closed_pipe_is_no_error() {
    let fake = Fake::start(vec![("GET /v1/volumes", ok(list(json!([volume("1", "a")]))))]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = fake.command("volume list").stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn support_bundle_goes_to_stdout_or_new_file() {
    let fake = Fake::start(Vec::new());
    let ran = fake.run("support-bundle --output - --log-lines 0");
    assert!(ran.status == 0 && ran.json()["blockctlVersion"].is_string(), "{ran:?}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle");
    std::fs::write(&path, "mine").unwrap();
    let ran = fake.run(&format!("support-bundle --log-lines 0 --output {}", path.display()));
    assert!(ran.status == 1 && ran.stderr.contains("hint: the existing file is kept"), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&format!("completions {shell}"));
        assert!(ran.status == 0 && ran.stdout.contains("BLOCKCTL_COMPLETE"), "{shell}");
        assert!(ran.stdout.len() < 4096, "{shell}: {} bytes", ran.stdout.len());
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
