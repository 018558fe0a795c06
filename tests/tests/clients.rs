//! libnbd's tools and fio on a daemon, over unix sockets and TCP.

use crate::harness::{
    Bed, Daemon, MIB, Nbd, Rng, assert_same, fio::fio, nbd::Failure, nbd::errno, ports, process::must_run,
};
use serde_json::Value;

const SIZE: u64 = 32 * MIB;

fn daemon_with_volume(bed: &Bed) -> Daemon {
    let daemon = bed.daemon("a").start();
    daemon.ctl().create_volume("vol", "32MiB");
    daemon
}

#[test]
fn nbdinfo_shows_exports_and_flags() {
    let bed = Bed::new();
    let daemon = daemon_with_volume(&bed);
    let printed = daemon.ctl().run(&["volume", "uri", "vol"]).stdout;
    let info: Value = serde_json::from_str(&must_run("nbdinfo", &["--json", printed.trim_end()])).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    let export = &info["exports"][0];
    assert_eq!((&export["export-name"], &export["export-size"]), (&"vol".into(), &SIZE.into()), "{info:#}");
    for field in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[field], true, "{field}: {info:#}");
    }
    assert_eq!(export["is_read_only"], false);
    // The empty name selects the volume while there is only one.
    let nameless = daemon.uri("");
    let info: Value = serde_json::from_str(&must_run("nbdinfo", &["--json", &nameless])).unwrap();
    assert_eq!(info["exports"][0]["export-size"], SIZE);
    daemon.ctl().create_volume("other", "1MiB");
    let failure = Nbd::try_open(&daemon.nbd_socket(), "").err().expect("no default export among two");
    assert!(failure.to_string().contains("refuses"), "{failure}");
    let list: Value = serde_json::from_str(&must_run("nbdinfo", &["--json", "--list", &nameless])).unwrap();
    let names: Vec<&str> =
        list["exports"].as_array().unwrap().iter().filter_map(|e| e["export-name"].as_str()).collect();
    assert_eq!(names, ["other", "vol"], "{list:#}");
}

#[test]
fn fio_writes_verify() {
    let bed = Bed::new();
    let daemon = daemon_with_volume(&bed);
    let uri = daemon.uri("vol");
    let common = ["--size=32M", "--verify=crc32c", "--do_verify=1", "--randseed=5"];
    let run = |more: &[&str]| fio(bed.dir(), &uri, &[&common[..], more].concat());
    run(&["--rw=randwrite", "--bsrange=4k-128k", "--iodepth=32", "--verify_backlog=256", "--fsync=64"]);
    run(&["--rw=randwrite", "--bs=512", "--iodepth=16", "--io_size=4M"]);
    // With more requests in flight, fio reorders a trim and a write of the same block.
    run(&["--rw=trimwrite", "--bs=4k", "--iodepth=1", "--io_size=8M"]);
    run(&["--rw=write", "--bs=1M", "--iodepth=8"]);
}

#[test]
fn acknowledged_write_is_visible_on_every_connection() {
    let mut rng = Rng::of_test("acknowledged_write_is_visible_on_every_connection");
    let bed = Bed::new();
    let address = ports::local(ports::free(0));
    let further = bed.path("further.sock");
    let daemon = bed
        .daemon("a")
        .arg("--nbd-listen")
        .arg(&format!("tcp://{address}"))
        .arg("--nbd-listen")
        .arg(&format!("unix://{}", further.display()))
        .start();
    daemon.ctl().create_volume("vol", "32MiB");
    let mut by_tcp = Nbd::try_open_tcp(address, "vol").unwrap();
    let mut by_socket = daemon.nbd("vol");
    let mut by_further = Nbd::open(&further, "vol");
    // Unix sockets and TCP show the same data.
    for nth in 0..200 {
        let data = rng.bytes(4096);
        let offset = rng.below(SIZE - 4096);
        let [writer, one, other] = match nth % 3 {
            0 => [&mut by_tcp, &mut by_socket, &mut by_further],
            1 => [&mut by_socket, &mut by_further, &mut by_tcp],
            _ => [&mut by_further, &mut by_tcp, &mut by_socket],
        };
        writer.write(offset, &data);
        assert_same("on another connection", &one.read(offset, 4096), &data);
        assert_same("on the third connection", &other.read(offset, 4096), &data);
    }
    assert_eq!(daemon.ctl().volume("vol")["connections"], 3);
    let copy = bed.path("copy");
    must_run("nbdcopy", &["--connections=4", &format!("nbd://{address}/vol"), copy.to_str().unwrap()]);
    assert_same("copied over TCP", &std::fs::read(&copy).unwrap(), &by_socket.read_all());
    // The longest request, and a longer one.
    let data = rng.bytes(32 * MIB);
    by_tcp.write(0, &data);
    assert_same("32 MiB at once", &by_socket.try_read(0, 32 * MIB).unwrap(), &data);
    let refused = by_socket.try_read(0, 32 * MIB + 1);
    assert!(
        matches!(refused, Err(Failure::Refused(errno::EINVAL | errno::EOVERFLOW))),
        "{:?}",
        refused.map(|_| ())
    );
}
