//! Many clients: the cost of each is bounded, and others are not affected.

use crate::harness::{
    Bed, KIB, MIB, Nbd, Rng, assert_same, ports,
    process::{memory_bytes, raise_open_files},
    wait_for,
};
use std::io::ErrorKind;

fn limit_of_open_files(pid: u32) -> (String, String) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let fields: Vec<&str> = line.split_whitespace().collect();
    (fields[3].to_owned(), fields[4].to_owned())
}

#[test]
fn thousand_idle_connections_do_not_block_others() {
    const CONNECTIONS: usize = 1000;
    raise_open_files();
    let bed = Bed::new();
    let setup = bed.daemon("a").open_files(256).config("nbd_connections = 1100");
    let daemon = setup.config("nbd_connections_per_volume = 1100").start();
    let (soft, hard) = limit_of_open_files(daemon.pid());
    assert_eq!(soft, hard, "the daemon did not raise its soft limit");
    daemon.ctl().create_volume("vol", "16MiB");
    let mut active = daemon.nbd("vol");
    let content = Rng::fixed(4).bytes(16 * MIB);
    active.write_long(0, &content);
    let before = memory_bytes(daemon.pid(), "VmRSS");
    let idle: Vec<Nbd> = (0..CONNECTIONS).map(|_| daemon.nbd("vol")).collect();
    assert_eq!(daemon.ctl().volume("vol")["connections"], CONNECTIONS + 1);
    assert_same("content during idle connections", &active.read_all(), &content);
    active.write_long(0, &content);
    active.flush();
    let after = memory_bytes(daemon.pid(), "VmRSS");
    let each = after.saturating_sub(before) / CONNECTIONS as u64;
    eprintln!(
        "{CONNECTIONS} idle connections take {} KiB, {each} bytes each",
        after.saturating_sub(before) / KIB
    );
    assert!(each <= 64 * KIB, "an idle connection takes {each} bytes");
    drop(idle);
    daemon.ctl().wait_for_connections("vol", 1);
    assert_same("content after idle connections", &active.read_all(), &content);
    active.close();
    let _ = daemon.stop();
}

#[test]
fn connection_limits_per_volume_and_in_total_are_enforced() {
    let bed = Bed::new();
    let address = ports::local(ports::free(0));
    let setup = bed.daemon("a").config("nbd_connections = 8").config("nbd_connections_per_volume = 3");
    let daemon = setup.arg("--nbd-listen").arg(&format!("tcp://{address}")).start();
    daemon.ctl().create_volume("vol", "4MiB");
    daemon.ctl().create_volume("other", "4MiB");
    let by_tcp = |name: &str| Nbd::try_open_tcp(address, name);
    let mut of_one: Vec<Nbd> = (0..3).map(|_| by_tcp("vol").unwrap()).collect();
    let refused = by_tcp("vol").err().expect("a connection beyond the limit per volume").to_string();
    assert!(
        refused.contains("refuses with 0x80000002") && refused.contains("nbd_connections_per_volume"),
        "{refused}"
    );
    // The daemon frees a slot when it has seen the end of a connection, so retry here and below.
    let open = |what: &str, open: &dyn Fn() -> std::io::Result<Nbd>| wait_for(what, || open().ok());
    let further: Vec<Nbd> = (0..3).map(|_| open("a slot for another volume", &|| by_tcp("other"))).collect();
    // A quarter of all slots is for unix sockets, without a limit per volume.
    let closed = by_tcp("other").err().expect("a connection beyond the limit of TCP");
    let ends = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    assert!(ends.contains(&closed.kind()), "{closed}");
    let by_unix = || Nbd::try_open(&daemon.nbd_socket(), "vol");
    let local: Vec<Nbd> = (0..2).map(|_| open("a slot for unix sockets", &by_unix)).collect();
    let closed = by_unix().err().expect("a connection beyond the limit in total");
    assert!(ends.contains(&closed.kind()), "{closed}");
    assert_eq!(daemon.ctl().volume("vol")["connections"], 5);
    // A closed connection frees its slot, also that of its volume.
    drop(local);
    of_one.pop().unwrap().close();
    of_one.push(open("the slot of the closed connection", &|| by_tcp("vol")));
    for mut client in of_one.into_iter().chain(further) {
        client.write(0, &[7; 4096]);
        assert_same("content below the limits", &client.read(0, 4096), &[7; 4096]);
        client.close();
    }
    let _ = daemon.stop();
}

#[test]
fn low_open_file_limit_is_reported() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").max_open_files(2000).config("nbd_connections = 1000").start();
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the limit of open files is too low"));
    assert!(line.is_some_and(|line| line.contains("WARN") && line.contains("LimitNOFILE")), "{log}");
    let _ = daemon.stop();
}
