//! `blockctl top` in pipes and on a terminal.

use crate::support::{Fake, Ran, Reply, blockctl, ok, task};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Command, Stdio},
};

fn activity(at_s: u64) -> Reply {
    let requests = |count: u64| json!({ "requests": count, "latencyMicros": count * 250, "inFlight": 0 });
    let none = requests(0);
    ok(json!({
        "daemonRunId": "3f4f0a67-e12a-4d35-81ad-985657757352", "monotonicMicros": at_s * 1_000_000,
        "volumes": [{
            "volumeId": "59", "name": "db", "up": true, "connections": 1, "dirtyBytes": 4096, "readBytes": at_s << 20,
            "writtenBytes": 0, "read": requests(at_s * 100), "write": none, "flush": none, "discard": none,
        }],
        "tasks": [task("Backup-Active", 1)],
    }))
}

fn fake() -> Fake {
    let answers = (1..=5).map(|at_s| ("GET /v1/activity", activity(at_s)));
    Fake::start(answers.collect())
}

#[test]
fn once_prints_the_rates_between_two_samples() {
    let ran = fake().run("top --once --interval 0.1");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.starts_with("1 volume, 1 task, in 1s: 100 requests/s, read 1.0, write 0.0 MiB/s\n"));
    assert!(ran.stdout.contains("250 µs") && ran.stdout.contains("Backup-Active"), "{}", ran.stdout);
    assert!(!ran.stdout.contains('\u{1b}'));
    let told = fake().run("-j top --once -i 0.1").json();
    assert_eq!(
        told["volumes"][0]["read"],
        json!({"perSecond": 100.0, "latencyMicros": 250.0, "inFlight": 0})
    );
    assert_eq!((&told["tasks"][0]["volumeName"], &told["intervalSeconds"]), (&json!("vol"), &json!(1.0)));
    assert_eq!(fake().run("top --interval 0").status, 2);
    assert_eq!(Ran::of(blockctl("top --once").output().unwrap()).status, 3);
}

#[test]
fn top_in_a_pipe_prints_until_it_is_closed() {
    let fake = fake();
    let mut child = fake.command("-j top -i 0.1").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line["volumes"][0]["name"], "db");
    }
    drop(lines);
    assert!(child.wait().unwrap().success());
}

#[test]
fn top_restores_terminal() {
    let fake = fake();
    for (how, status) in [("ctrl-c", 0), ("terminated", 0)] {
        // Runs the program on a terminal; returns its status.
        let line = format!("exec {} top -i 0.1 --color=never", env!("CARGO_BIN_EXE_blockctl"));
        let mut script = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &format!("echo $$; {line}"), "/dev/null"])
            .env("BLOCKD_SOCKET", fake.socket())
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = script.stdin.take().unwrap();
        let mut stdout = script.stdout.take().unwrap();
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("Backup-Active") {
            let mut bytes = [0; 4096];
            let len = stdout.read(&mut bytes).unwrap();
            assert!(len > 0 && seen.len() < 1 << 20, "{}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&bytes[..len]);
        }
        if how == "ctrl-c" {
            stdin.write_all(b"\x03").unwrap();
        } else {
            let text = String::from_utf8_lossy(&seen);
            let pid = text.lines().next().unwrap().trim().parse().unwrap();
            kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        }
        stdout.read_to_end(&mut seen).unwrap();
        assert_eq!(script.wait().unwrap().code(), Some(status), "{how}");
        let text = String::from_utf8_lossy(&seen);
        let (drawn, after) = text.split_once("\u{1b}[?1049h").unwrap();
        assert!(!drawn.contains("VOLUME") && after.contains("VOLUME"), "{how}: {text:?}");
        let (_, after) = after.split_once("\u{1b}[?25h\u{1b}[?7h\u{1b}[?1049l").expect(how);
        assert!(!after.contains('\u{1b}'), "{how}: {after:?}");
    }
}
