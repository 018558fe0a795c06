//! Tests of NBD clients that break the protocol: they get an error or are disconnected; all others are
//! served.

use crate::harness::{
    Bed, Daemon, MIB, Nbd, Rng, TIMEOUT, assert_same,
    nbd::{Failure, command, errno, flag, info_data, option_request, request},
    wait_for,
};
use std::{io::Write, net::Shutdown, os::unix::net::UnixStream};

const SIZE: u64 = 4 * MIB;

struct Served {
    _bed: Bed,
    daemon: Daemon,
    content: Vec<u8>,
}

impl Served {
    fn start() -> Self {
        let bed = Bed::new();
        let daemon = bed.daemon("a").start();
        daemon.ctl().create_volume("vol", "4MiB");
        let content = Rng::fixed(1).bytes(SIZE);
        daemon.nbd("vol").write_long(0, &content);
        Self { _bed: bed, daemon, content }
    }

    fn connect(&self) -> Nbd {
        Nbd::raw(&self.daemon.nbd_socket()).unwrap()
    }

    /// A good client finds everything as it was, and the bad ones are gone.
    fn assert_unharmed(self) {
        assert_same("the volume", &self.daemon.content("vol"), &self.content);
        wait_for("the bad clients to be gone", || {
            (self.daemon.ctl().volume("vol")["connections"] == 0).then_some(())
        });
        let log = self.daemon.log();
        assert!(!log.contains("panicked"), "{log}");
        let _ = self.daemon.stop();
    }
}

fn refused_with(client: &mut Nbd, command: u16, flags: u16, offset: u64, len: u32) -> u32 {
    let done = client.call(command, flags, offset, u64::from(len), &[]);
    match done {
        Err(Failure::Refused(errno)) => errno,
        other => panic!("command {command} flags {flags:#x} offset {offset} length {len}: {other:?}"),
    }
}

#[test]
fn sessions_cut_anywhere() {
    let served = Served::start();
    let mut session = 3u32.to_be_bytes().to_vec();
    session.extend(option_request(7, &info_data("vol")));
    session.extend(request(command::READ, 0, 1, 0, 4096));
    session.extend(request(command::WRITE, 0, 2, 0, 64));
    // The payload of the write is what is there already, so that it may be carried out or not.
    session.extend(&served.content[..64]);
    session.extend(request(command::FLUSH, 0, 3, 0, 0));
    for cut in 0..=session.len() {
        let mut stream = UnixStream::connect(served.daemon.nbd_socket()).unwrap();
        stream.write_all(&session[..cut]).unwrap();
        match cut % 3 {
            0 => drop(stream),
            1 => stream.shutdown(Shutdown::Write).unwrap(),
            _ => stream.shutdown(Shutdown::Both).unwrap(),
        }
    }
    served.assert_unharmed();
}

#[test]
fn stalled_handshakes_are_closed() {
    let served = Served::start();
    let half: Vec<Nbd> = (0..100)
        .map(|nth| {
            let mut client = served.connect();
            let bytes = [3u32.to_be_bytes().to_vec(), option_request(7, &info_data("vol"))].concat();
            client.send(&bytes[..nth % bytes.len()]).unwrap();
            client
        })
        .collect();
    assert_same("beside them", &served.daemon.content("vol"), &served.content);
    drop(half);
    served.assert_unharmed();
}

#[test]
fn garbage() {
    let mut rng = Rng::of_test("garbage");
    let served = Served::start();
    for nth in 0..200 {
        let mut client = served.connect();
        // The server may have hung up before all of it is sent.
        if nth % 2 == 0 {
            client.hello().unwrap();
        }
        let len = rng.between(1, 4000);
        let _ = client.send(&rng.bytes(len));
    }
    for _ in 0..100 {
        let mut client = served.daemon.nbd("vol");
        let len = rng.between(28, 4000);
        let _ = client.send(&rng.bytes(len));
    }
    let mut client = served.connect();
    client.hello().unwrap();
    client.send(b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").unwrap();
    client.send(&[0; 1000]).unwrap_or_default();
    drop(client);
    let mut client = served.daemon.nbd("vol");
    client.send(&[0x55; 28]).unwrap();
    assert_eq!(client.drain(), b"", "garbage in place of a request is answered");
    served.assert_unharmed();
}

#[test]
fn options_that_cannot_be() {
    let served = Served::start();
    const ERR_UNSUP: u32 = 0x8000_0001;
    const ERR_UNKNOWN: u32 = 0x8000_0006;
    let mut client = served.connect();
    client.hello().unwrap();
    let mut ask = |option: u32, data: &[u8]| {
        client.send(&option_request(option, data)).unwrap();
        client.option_reply().unwrap()
    };
    for option in [5, 9, 10, 77, u32::MAX] {
        let (kind, _) = ask(option, &[]);
        assert!(kind >= ERR_UNSUP, "option {option} is answered with {kind:#x}");
    }
    for option in [5, 8, 9, 10, 11] {
        let (kind, _) = ask(option, &[1, 2, 3]);
        assert!(kind >= ERR_UNSUP, "option {option} with wrong data is answered with {kind:#x}");
    }
    assert_eq!(ask(0x1234_5678, &[1, 2, 3]).0, ERR_UNSUP);
    let (kind, message) = ask(7, &info_data("nobody"));
    assert_eq!(kind, ERR_UNKNOWN);
    assert!(
        String::from_utf8_lossy(&message).contains("nobody"),
        "the message does not name the export: {message:?}"
    );
    for data in [&b""[..], &[0, 0, 0, 9], &[0xff; 6], &[0, 0, 0, 0, 0, 9], &info_data(&"x".repeat(5000))] {
        let (kind, _) = ask(7, data);
        assert!(kind >= ERR_UNSUP, "GO with {data:?} is answered with {kind:#x}");
    }
    // After all that the same connection can still be used.
    assert_eq!(ask(7, &info_data("vol")).0, 3);
    drop(client);
    served.assert_unharmed();
}

#[test]
fn requests_that_cannot_be() {
    let served = Served::start();
    let mut client = served.daemon.nbd("vol");
    for offset in [SIZE, SIZE - 1, 1 << 32, 1 << 62, 1 << 63, u64::MAX, u64::MAX - 4095] {
        assert_eq!(
            refused_with(&mut client, command::READ, 0, offset, 4096),
            errno::EINVAL,
            "read at {offset}"
        );
        for command in [command::TRIM, command::WRITE_ZEROES] {
            let got = refused_with(&mut client, command, 0, offset, 4096);
            assert!([errno::EINVAL, errno::ENOSPC].contains(&got), "command {command} at {offset}: {got}");
        }
        let done = client.call(command::WRITE, 0, offset, 4096, &[7; 4096]);
        assert!(
            matches!(done, Err(Failure::Refused(errno::ENOSPC | errno::EINVAL))),
            "write at {offset}: {done:?}"
        );
    }
    for unknown in [8, 9, 100, 0x7fff, u16::MAX] {
        assert_eq!(refused_with(&mut client, unknown, 0, 0, 0), errno::EINVAL, "command {unknown}");
    }
    for flags in [1 << 4, 1 << 15, 0xfff0] {
        assert_eq!(
            refused_with(&mut client, command::READ, flags, 0, 512),
            errno::EINVAL,
            "flags {flags:#x}"
        );
        assert_eq!(refused_with(&mut client, command::FLUSH, flags, 0, 0), errno::EINVAL, "flags {flags:#x}");
        let done = client.call(command::WRITE, flags, 0, 512, &[7; 512]);
        assert!(
            matches!(done, Err(Failure::Refused(errno::EINVAL))),
            "a write with flags {flags:#x}: {done:?}"
        );
    }
    assert_eq!(
        refused_with(&mut client, command::TRIM, flag::NO_HOLE, 0, 4096),
        errno::EINVAL,
        "a trim without hole"
    );
    let got = refused_with(&mut client, command::READ, 0, 0, u32::MAX);
    assert!([errno::EINVAL, errno::EOVERFLOW].contains(&got), "a read of 4 GiB: {got}");
    // The connection goes on.
    assert_same("on the same connection", &client.read(0, SIZE), &served.content);
    // Four gigabytes of payload cannot be waited for: this connection may be dropped.
    client.send(&request(command::WRITE, 0, 99, 0, u32::MAX)).unwrap();
    let answered = client.reply();
    assert!(answered.is_err() || answered.as_ref().is_ok_and(|(errno, _)| *errno != 0), "{answered:?}");
    drop(client);
    served.assert_unharmed();
}

#[test]
fn clients_that_read_no_replies() {
    let served = Served::start();
    let deadline = std::time::Instant::now() + TIMEOUT;
    let stuck: Vec<UnixStream> = (0..4)
        .map(|_| {
            let mut stream = UnixStream::connect(served.daemon.nbd_socket()).unwrap();
            stream
                .write_all(&[3u32.to_be_bytes().to_vec(), option_request(7, &info_data("vol"))].concat())
                .unwrap();
            stream.set_nonblocking(true).unwrap();
            let ask = request(command::READ, 0, 1, 0, 1 << 20);
            // Until the server takes no more of this client: then there is a bound.
            for _ in 0..100_000 {
                assert!(std::time::Instant::now() < deadline, "the server takes requests without end");
                match stream.write(&ask) {
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
            stream
        })
        .collect();
    assert_same("beside them", &served.daemon.content("vol"), &served.content);
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.daemon.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 1 << 20, "the daemon took {peak_kib} KiB for unread replies");
    drop(stuck);
    served.assert_unharmed();
}
