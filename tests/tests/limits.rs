//! Many clients, slow clients and clients that stall: each costs a bounded amount, and the others do not
//! notice.

use crate::harness::{
    Bed, KIB, MIB, Nbd, Rng, TIMEOUT, assert_same,
    nbd::{command, info_data, option_request, request},
    ports,
    process::{memory_bytes, open_files, raise_open_files},
    wait_for,
};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

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
    assert_eq!(soft, hard, "the daemon has raised its own limit");
    daemon.ctl().create_volume("vol", "16MiB");
    let mut active = daemon.nbd("vol");
    let content = Rng::fixed(4).bytes(16 * MIB);
    active.write_long(0, &content);
    let before = memory_bytes(daemon.pid(), "VmRSS");
    let idle: Vec<Nbd> = (0..CONNECTIONS).map(|_| daemon.nbd("vol")).collect();
    assert_eq!(daemon.ctl().volume("vol")["connections"], CONNECTIONS + 1);
    assert_same("beside them", &active.read_all(), &content);
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
    wait_for("the idle ones to be gone", || (daemon.ctl().volume("vol")["connections"] == 1).then_some(()));
    assert_same("after them", &active.read_all(), &content);
    active.close();
    let _ = daemon.stop();
}

#[test]
fn connections_of_one_volume_and_in_all_have_their_limits() {
    let bed = Bed::new();
    let address = ports::local(ports::free(0));
    let setup = bed.daemon("a").config("nbd_connections = 8").config("nbd_connections_per_volume = 3");
    let daemon = setup.arg("--nbd-listen").arg(&format!("tcp://{address}")).start();
    daemon.ctl().create_volume("vol", "4MiB");
    daemon.ctl().create_volume("other", "4MiB");
    let by_tcp = |name: &str| Nbd::try_open_tcp(address, name);
    let mut of_one: Vec<Nbd> = (0..3).map(|_| by_tcp("vol").unwrap()).collect();
    let refused = by_tcp("vol").err().expect("more than one volume may have").to_string();
    assert!(
        refused.contains("refuses with 0x80000002") && refused.contains("nbd_connections_per_volume"),
        "{refused}"
    );
    // The place of who was refused is free when its end has been seen, here and below.
    let open = |what: &str, open: &dyn Fn() -> std::io::Result<Nbd>| wait_for(what, || open().ok());
    let further: Vec<Nbd> = (0..3).map(|_| open("another volume's place", &|| by_tcp("other"))).collect();
    // A quarter of all is for unix sockets, which may have as many of one volume as they like.
    let closed = by_tcp("other").err().expect("more than TCP may have");
    let ends = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    assert!(ends.contains(&closed.kind()), "{closed}");
    let by_unix = || Nbd::try_open(&daemon.nbd_socket(), "vol");
    let local: Vec<Nbd> = (0..2).map(|_| open("a place for unix sockets", &by_unix)).collect();
    let closed = by_unix().err().expect("more than all may be");
    assert!(ends.contains(&closed.kind()), "{closed}");
    assert_eq!(daemon.ctl().volume("vol")["connections"], 5);
    // Who goes makes room, for its volume as well.
    drop(local);
    of_one.pop().unwrap().close();
    of_one.push(open("the place of who went", &|| by_tcp("vol")));
    for mut client in of_one.into_iter().chain(further) {
        client.write(0, &[7; 4096]);
        assert_same("behind the limits", &client.read(0, 4096), &[7; 4096]);
        client.close();
    }
    let _ = daemon.stop();
}

#[test]
fn low_open_file_limit_is_reported() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").max_open_files(2000).config("nbd_connections = 1000").start();
    let log = daemon.log();
    let said = log.lines().find(|line| line.contains("too few files may be open"));
    assert!(said.is_some_and(|line| line.contains("WARN") && line.contains("LimitNOFILE")), "{log}");
    let _ = daemon.stop();
}

#[test]
fn slow_reader_does_not_block_a_fast_writer() {
    const SIZE: u64 = 64 * MIB;
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    daemon.ctl().create_volume("vol", "64MiB");
    let content = Rng::fixed(5).bytes(SIZE);
    daemon.nbd("vol").write_long(0, &content);
    let before = memory_bytes(daemon.pid(), "VmRSS");

    let mut slow = UnixStream::connect(daemon.nbd_socket()).unwrap();
    slow.write_all(&[3u32.to_be_bytes().to_vec(), option_request(7, &info_data("vol"))].concat()).unwrap();
    slow.set_nonblocking(true).unwrap();
    // Until the server takes no more: many gigabytes could be asked for.
    let deadline = Instant::now() + TIMEOUT;
    let (mut asked, mut refused) = (0_u64, 0);
    while refused < 20 {
        assert!(Instant::now() < deadline && asked < 100_000, "the server takes requests without end");
        let ask = request(command::READ, 0, asked, asked % 32 * MIB, MIB as u32);
        match slow.write(&ask) {
            Ok(len) if len == ask.len() => asked += 1,
            Ok(_) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(asked > 64, "only {asked} requests were taken");

    // It writes behind what the slow one reads.
    let began = Instant::now();
    let mut writer = daemon.nbd("vol");
    for _ in 0..4 {
        writer.write_long(32 * MIB, &content[..32 << 20]);
    }
    writer.flush();
    assert_same("the writer's", &writer.read(32 * MIB, 32 * MIB), &content[..32 << 20]);
    let grown = memory_bytes(daemon.pid(), "VmHWM").saturating_sub(before);
    eprintln!(
        "beside {asked} unread MiB: 128 MiB written in {:?}, the daemon grew by {} MiB",
        began.elapsed(),
        grown / MIB
    );
    // 64 MiB may be in flight for each of the two, and buffers that are kept for the next ones.
    assert!(grown <= 320 * MIB, "the daemon grew by {} MiB", grown / MIB);

    // The slow one was not forgotten.
    slow.set_nonblocking(false).unwrap();
    slow.set_read_timeout(Some(TIMEOUT)).unwrap();
    skip_negotiation(&mut slow);
    for _ in 0..64 {
        let mut reply = vec![0; 16 + MIB as usize];
        slow.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..8], [0; 4], "an error");
        let cookie = u64::from_be_bytes(reply[8..16].try_into().unwrap());
        let at = (cookie % 32 * MIB) as usize;
        assert_same("the slow reader's", &reply[16..], &content[at..][..MIB as usize]);
    }
    drop(slow);
    writer.close();
    let _ = daemon.stop();
}

/// Reads the greeting and the replies to GO.
fn skip_negotiation(stream: &mut UnixStream) {
    stream.read_exact(&mut [0; 18]).unwrap();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
        stream.read_exact(&mut vec![0; number(16) as usize]).unwrap();
        if number(12) == 1 {
            return;
        }
    }
}

#[test]
fn stalled_handshakes_are_dropped_in_time() {
    const STALLED: usize = 200;
    const TIMEOUT: Duration = Duration::from_millis(1500);
    let bed = Bed::new();
    let daemon = bed.daemon("a").config("nbd_handshake_timeout_ms = 1500").start();
    daemon.ctl().create_volume("vol", "4MiB");
    // It is in time in the end.
    let mut active = wait_for("a handshake in time", || Nbd::try_open(&daemon.nbd_socket(), "vol").ok());
    let files = open_files(daemon.pid());
    let talk = [3u32.to_be_bytes().to_vec(), option_request(7, &info_data("vol"))].concat();
    let began = Instant::now();
    let stalled: Vec<(UnixStream, Instant)> = (0..STALLED)
        .map(|nth| {
            let mut stream = UnixStream::connect(daemon.nbd_socket()).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            // It may have been dropped before.
            let _ = stream.write_all(&talk[..nth % talk.len()]);
            (stream, Instant::now())
        })
        .collect();
    active.write(0, &[7; 4096]);
    for (mut stream, connected) in stalled {
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        // The server's clock began when it accepted, which was not before the connection was made.
        let lasted = connected.elapsed();
        assert!(began.elapsed() >= TIMEOUT, "dropped after {lasted:?}");
        assert!(lasted < TIMEOUT + TIMEOUT, "dropped after {lasted:?}");
    }
    eprintln!("{STALLED} stalled handshakes were dropped within {:?}", began.elapsed());
    wait_for("their sockets to be closed", || (open_files(daemon.pid()) <= files).then_some(()));
    assert_same("the client that came in time", &active.read(0, 4096), &[7; 4096]);
    active.close();
    let _ = daemon.stop();
}
