//! The clients that people use, against a server on a unix socket: they must be installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod common;

use std::process::Command;

use common::*;

const MIB: usize = 1 << 20;

/// Runs a program to its end; what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): install the tests' packages"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?} failed: {text}");
    text
}

fn servers() -> impl Iterator<Item = TestServer> {
    [Mood::Instant, Mood::Blocking, Mood::Mixed]
        .into_iter()
        .map(|mood| TestServer::start(MemDevice::new(64 * MIB, mood)))
}

#[test]
fn nbdinfo_sees_the_export() {
    let server = TestServer::instant(64 * MIB);
    let text = run("nbdinfo", &["--json", &server.uri()]);
    for expected in [
        "\"export-size\": 67108864",
        "\"description\": \"the volume vol\"",
        "\"is_read_only\": false",
        "\"can_multi_conn\": true",
        "\"can_fua\": true",
        "\"can_flush\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"block_size_preferred\": 4096",
        "\"block_size_maximum\": 33554432",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    let list = run("nbdinfo", &["--list", &server.uri()]);
    assert!(list.contains("export=\"vol\""), "{list}");
}

#[test]
fn qemu_io_reads_what_it_wrote() {
    for server in servers() {
        let commands = [
            "write -P 0xa5 1000 3000",
            "read -P 0xa5 1000 3000",
            "read -P 0 0 1000",
            "write -f -P 7 1M 20M",
            "read -P 7 1M 20M",
            "write -z 2M 1M",
            "write -z -u 4M 1M",
            "read -P 0 2M 1M",
            "read -P 0 4M 1M",
            "read -P 7 3M 1M",
            "discard 8M 2M",
            "flush",
            "aio_write -P 1 32M 1M",
            "aio_write -P 2 33M 1M",
            "aio_flush",
            "read -P 1 32M 1M",
            "read -P 2 33M 1M",
        ];
        let uri = server.uri();
        let mut args = vec!["-f", "raw"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(&uri);
        let text = run("qemu-io", &args);
        assert!(!text.contains("failed") && !text.contains("error"), "{text}");
    }
}

#[test]
fn nbdcopy_there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
    // A hole in the middle, so that it also writes zeroes.
    let mut data = pattern(3, 64 * MIB);
    data[20 * MIB..40 * MIB].fill(0);
    std::fs::write(&image, &data).unwrap();
    for server in servers() {
        let uri = server.uri();
        run("nbdcopy", &["--flush", "--connections=3", image.to_str().unwrap(), &uri]);
        assert!(*server.device.data.lock().unwrap() == data);
        run("nbdcopy", &["--connections=3", &uri, copy.to_str().unwrap()]);
        assert!(std::fs::read(&copy).unwrap() == data);
    }
}

#[test]
fn fio_verifies_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    for server in servers() {
        let output = Command::new("fio")
            .current_dir(dir.path())
            .args(["--name=v", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-128k", "--size=48M"])
            .args(["--iodepth=32", "--verify=crc32c", "--verify_backlog=256", "--do_verify=1"])
            .args(["--verify_fatal=1", "--fsync=64", "--verify_state_save=0"])
            .arg(format!("--uri={}", server.uri()))
            .output()
            .expect("fio cannot be run: install the tests' packages");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
    }
}
