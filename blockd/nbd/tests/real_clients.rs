//! Common NBD clients with a server on a Unix socket. The clients must be installed.
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::common::*;

const MIB: usize = 1 << 20;

/// Runs a program to a successful end; returns its output.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("running {program} failed ({error}): install the tests' packages"));
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?} failed: {text}");
    text
}

fn servers() -> impl Iterator<Item = TestServer> {
    [Behaviour::Instant, Behaviour::Blocking, Behaviour::Mixed]
        .into_iter()
        .map(|behaviour| TestServer::start(MemDevice::new(64 * MIB, behaviour)))
}

#[test]
fn nbdinfo_shows_the_export_properties() {
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
        "\"block_size_maximum\": 67108864",
    ] {
        assert!(text.contains(expected), "{expected} is not in {text}");
    }
    let list = run("nbdinfo", &["--list", &server.uri()]);
    assert!(list.contains("export=\"vol\""), "{list}");
}

#[test]
fn qemu_io_reads_back_its_writes() {
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
fn libnbd_receives_block_status_and_holes() {
    let server = TestServer::instant(4 * MIB);
    server.device.data.lock().unwrap()[MIB..MIB + 8192].fill(7);
    let map = run("nbdinfo", &["--map", &server.uri()]);
    let lines: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines,
        [
            vec!["0", "1048576", "3", "hole,zero"],
            vec!["1048576", "8192", "0", "data"],
            vec!["1056768", "3137536", "3", "hole,zero"]
        ]
    );
    let dirty = run("nbdinfo", &["--map=qemu:dirty-bitmap:7", &server.uri()]);
    assert_eq!(dirty.lines().count(), 342 + 341, "every third block");
    assert!(dirty.contains("dirty") && dirty.contains("clean"), "{dirty}");
    let script = "
import nbd
h = nbd.NBD()
h.add_meta_context('base:allocation')
h.set_export_name('vol')
h.connect_unix(SOCKET)
assert h.get_structured_replies_negotiated() and h.can_df() and h.can_cache() and h.can_fast_zero()
assert h.can_meta_context('base:allocation') and h.get_block_size(nbd.SIZE_MAXIMUM) == 64 << 20
chunks = []
def seen(data, offset, kind, error):
    chunks.append((offset, len(data), kind))
h.pread_structured(2 << 20, 512 << 10, seen)
kinds = {nbd.READ_DATA: 'data', nbd.READ_HOLE: 'hole'}
got = [(offset, kinds[kind]) for offset, length, kind in chunks]
assert got == [(512 << 10, 'hole'), (1 << 20, 'data'), ((1 << 20) + 8192, 'hole')], got
chunks.clear()
h.pread_structured(2 << 20, 512 << 10, seen, nbd.CMD_FLAG_DF)
assert len(chunks) == 1 and chunks[0][1] == 2 << 20, chunks
extents = []
h.block_status(2 << 20, 0, lambda name, offset, entries, error: extents.extend(entries), nbd.CMD_FLAG_REQ_ONE)
assert extents == [1 << 20, 3], extents
h.cache(1 << 20, 0)
h.zero(8192, 1 << 20, nbd.CMD_FLAG_FAST_ZERO)
try:
    h.zero(8192, 1, nbd.CMD_FLAG_FAST_ZERO)
    assert False, 'a slow fast-zero request succeeded'
except nbd.Error as error:
    assert error.errno == 'ENOTSUP', error
assert h.pread(8192, 1 << 20) == bytearray(8192)
h.shutdown()
";
    let script = script.replace("SOCKET", &format!("{:?}", server.socket));
    // Debian's interpreter: another one on the path does not have the module.
    run("/usr/bin/python3", &["-c", &script]);
}

#[test]
fn nbdsh_requests_with_flags_succeed() {
    let server = TestServer::instant(4 * MIB);
    let script = "
h.set_opt_mode(True)
h.connect_unix(SOCKET)
names = []
h.opt_list(lambda name, description: names.append((name, description)))
assert names == [('vol', 'the volume vol')], names
h.set_export_name('vol')
contexts = []
h.add_meta_context('qemu:dirty-bitmap:')
h.opt_list_meta_context(contexts.append)
assert 'qemu:dirty-bitmap:7' in contexts and 'base:allocation' not in contexts, contexts
h.clear_meta_contexts()
h.set_full_info(True)
h.opt_info()
assert h.get_export_description() == 'the volume vol' and h.get_canonical_export_name() == 'vol'
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096 and h.get_block_size(nbd.SIZE_MINIMUM) == 1
h.opt_go()
h.pwrite(b'x' * 12288, 0, nbd.CMD_FLAG_FUA)
h.trim(4096, 0, nbd.CMD_FLAG_FUA)
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(12288, 0) == bytearray(8192) + b'x' * 4096
h.flush()
h.shutdown()
";
    let script = script.replace("SOCKET", &format!("{:?}", server.socket));
    // With Debian's interpreter: another one on the path does not have the module.
    run("env", &["PATH=/usr/bin:/bin", "nbdsh", "-c", &script]);
    server.wait_until_detached();
}

/// The client's trace shows the negotiation.
#[test]
fn qemu_negotiates_extended_headers() {
    let server = TestServer::instant(4 * MIB);
    let uri = server.uri();
    let commands = ["-c", "write -P 3 0 1M", "-c", "read -P 3 0 1M", "-c", "write -z 0 4M"];
    let trace = ["-T", "nbd_send_option_request", "-T", "nbd_receive_*", "-f", "raw"];
    let text = run("qemu-io", &[&trace[..], &commands, &[&uri]].concat());
    let requested = text.lines().find(|line| line.contains("Sending option request 11 (extended headers)"));
    let replied = text.lines().find(|line| line.contains("option reply 11 (extended headers)"));
    assert!(requested.is_some() && replied.is_some_and(|line| line.contains("type 1 (ack)")), "{text}");
    assert!(text.contains("read 1048576/1048576 bytes") && !text.contains("failed"), "{text}");
}

#[test]
fn qemu_img_maps_and_copies() {
    let server = TestServer::instant(4 * MIB);
    server.device.data.lock().unwrap()[MIB..MIB + 65536].fill(7);
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", &server.uri()]);
    assert!(
        map.contains("\"start\": 1048576, \"length\": 65536") && map.contains("\"data\": false"),
        "{map}"
    );
    // With x-dirty-bitmap, qemu maps the dirty bitmap and shows dirty extents as holes.
    let options = format!(
        "driver=nbd,export=vol,server.type=unix,server.path={},x-dirty-bitmap=qemu:dirty-bitmap:7",
        server.socket.display()
    );
    let map = run("qemu-img", &["map", "--output=json", "--image-opts", &options]);
    assert!(map.contains("\"start\": 4096, \"length\": 8192"), "{map}");
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &server.uri(), copy.to_str().unwrap()]);
    assert!(std::fs::read(&copy).unwrap() == *server.device.data.lock().unwrap());
}

#[test]
fn nbdcopy_round_trip_preserves_data() {
    let dir = tempfile::tempdir().unwrap();
    let (image, copy) = (dir.path().join("image"), dir.path().join("copy"));
    // A hole, so that nbdcopy sends WRITE_ZEROES too.
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
fn nbd_crate_client_reads_back_writes() {
    let server = TestServer::instant(4 * MIB);
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    let export = nbd::client::handshake(&mut stream, b"vol").unwrap();
    assert_eq!(export.size, 4 << 20);
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let data = pattern(5, 100_000);
    client.seek(SeekFrom::Start(12_345)).unwrap();
    client.write_all(&data).unwrap();
    client.seek(SeekFrom::Start(12_345)).unwrap();
    let mut read = vec![0; data.len()];
    client.read_exact(&mut read).unwrap();
    assert!(read == data);
}

#[test]
fn fio_verification_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    for server in servers() {
        let output = Command::new("fio")
            .current_dir(dir.path())
            .args(["--name=v", "--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-128k", "--size=48M"])
            .args(["--iodepth=32", "--verify=crc32c", "--verify_backlog=256", "--do_verify=1"])
            .args(["--verify_fatal=1", "--fsync=64", "--verify_state_save=0"])
            .arg(format!("--uri={}", server.uri()))
            .output()
            .expect("running fio failed: install the tests' packages");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
    }
}
