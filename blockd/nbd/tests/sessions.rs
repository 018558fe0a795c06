//! Complete sessions of the test client with a running server.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::common::*;
use blockd_nbd::constants::*;
use blockd_nbd::{
    BlockDevice, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, NbdError, Server, ServerConfig,
};
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

const MIB: usize = 1 << 20;
const SUCCESSFUL_BEHAVIOURS: [Behaviour; 3] = [Behaviour::Instant, Behaviour::Blocking, Behaviour::Mixed];

#[test]
fn export_name_sends_zeroes_unless_disabled() {
    let server = TestServer::instant(MIB);
    for (flags, zeroes) in [(1, 124), (3, 0), (0, 124), (2, 0)] {
        let mut client = server.connect();
        client.hello(flags);
        client.send_option(NBD_OPT_EXPORT_NAME, b"vol");
        let answer = client.receive(10 + zeroes);
        assert_eq!(answer[0..8], (MIB as u64).to_be_bytes());
        assert_eq!(answer[8..10], [0x0d, 0x6d]);
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        assert_eq!(client.write(0, 5, b"hello"), 0);
        assert_eq!(client.read(5, 5), (0, b"hello".to_vec()));
        client.disconnect();
    }
    let mut client = server.connect();
    client.hello(3);
    client.send_option(NBD_OPT_EXPORT_NAME, b"nothing");
    client.assert_closed();
}

#[test]
fn negotiation_options_get_specified_replies() {
    let server = TestServer::instant(MIB);
    let mut client = server.connect();
    client.hello(3);
    let list = client.option(NBD_OPT_LIST, b"");
    assert_eq!(list, [(NBD_REP_SERVER, b"\0\0\0\x03volthe volume vol".to_vec()), (NBD_REP_ACK, vec![])]);
    assert_eq!(client.option(NBD_OPT_LIST, b"x")[0].0, NBD_REP_ERR_INVALID);
    for option in [0, 4, 12, 0xffff_ffff] {
        let replies = client.option(option, b"payload");
        assert_eq!(replies.len(), 1);
        assert_eq!(replies[0].0, NBD_REP_ERR_UNSUP);
    }
    let infos = client.option(NBD_OPT_INFO, &info_request(b"", &[NBD_INFO_NAME, NBD_INFO_DESCRIPTION, 3]));
    let texts: Vec<&[u8]> = infos.iter().map(|(_, data)| &data[..]).collect();
    assert_eq!(
        texts,
        [
            &b"\0\0\0\0\0\0\0\x10\0\0\x0d\x6d"[..],
            b"\0\x01vol",
            b"\0\x02the volume vol",
            b"\0\x03\0\0\0\x01\0\0\x10\0\x04\0\0\0",
            b""
        ]
    );
    assert_eq!(Arc::strong_count(&server.device), 2, "INFO holds no device");
    let refused = client.option(NBD_OPT_GO, &info_request(b"no such", &[]));
    assert_eq!(refused[0].0, NBD_REP_ERR_UNKNOWN);
    assert!(String::from_utf8_lossy(&refused[0].1).contains("no such"), "{refused:?}");
    let busy = client.option(NBD_OPT_GO, &info_request(b"busy", &[]));
    assert_eq!(busy[0].0, NBD_REP_ERR_POLICY);
    assert!(String::from_utf8_lossy(&busy[0].1).contains("being restored"), "{busy:?}");
    assert_eq!(client.option(NBD_OPT_GO, &info_request(b"panic", &[]))[0].0, NBD_REP_ERR_POLICY);
    assert_eq!(client.option(NBD_OPT_INFO, &info_request(&[b'x'; 4097], &[]))[0].0, NBD_REP_ERR_TOO_BIG);
    assert_eq!(client.option(NBD_OPT_INFO, b"\0\0\0\x09vol\0\0")[0].0, NBD_REP_ERR_INVALID);
    assert_eq!(client.option(NBD_OPT_GO, &vec![0; 65_537])[0].0, NBD_REP_ERR_TOO_BIG);
    assert_eq!(client.option(NBD_OPT_ABORT, b""), [(NBD_REP_ACK, vec![])]);
    client.assert_closed();
}

#[test]
fn simple_mode_commands_succeed_on_any_thread() {
    for behaviour in SUCCESSFUL_BEHAVIOURS {
        let server = TestServer::start(MemDevice::new(64 * MIB, behaviour));
        let mut client = server.attach();
        for (index, len) in
            [1, 511, 4096, 32 << 10, (32 << 10) + 1, 100_000, 131_072, 256 << 10, MIB, 32 * MIB]
                .into_iter()
                .enumerate()
        {
            for round in 0..2 {
                let data = pattern((index * 2 + round) as u64, len);
                let offset = 3 + index as u64 * 4096;
                let flags = if round == 0 { 0 } else { NBD_CMD_FLAG_FUA };
                assert_eq!(client.write(flags, offset, &data), 0);
                let (errno, got) = client.read(offset, len as u32);
                assert_eq!(errno, 0);
                assert!(got == data, "{behaviour:?}, {len} bytes");
            }
        }
        assert_eq!(server.device.fua_writes.load(Ordering::SeqCst), 10);
        assert_eq!(client.command(NBD_CMD_FLUSH, 0, 0, 0), 0);
        assert_eq!(server.device.flushes.load(Ordering::SeqCst), 1);
        assert_eq!(client.write(0, 0, &[7; 3000]), 0);
        assert_eq!(client.command(NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 1000, 1000), 0);
        assert_eq!(client.command(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 2500, 40 << 20), 0);
        assert_eq!(server.device.no_hole_zeroes.load(Ordering::SeqCst), 1);
        assert_eq!(server.device.fua_writes.load(Ordering::SeqCst), 11);
        let expected = [&[7; 1000][..], &[0; 1000], &[7; 500], &[0; 500]].concat();
        assert!(client.read(0, 3000).1 == expected);
        for command in [NBD_CMD_READ, NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES] {
            assert_eq!(client.command(command, 0, 17, 0), 0, "length 0 succeeds");
        }
        client.disconnect();
        server.wait_until_detached();
        assert!(!server.device.misaligned.load(Ordering::SeqCst));
    }
}

#[test]
fn pipelined_requests_are_all_answered() {
    for behaviour in SUCCESSFUL_BEHAVIOURS {
        let server = TestServer::start(MemDevice::new(8 * MIB, behaviour));
        let mut client = server.attach();
        let data = pattern(1, 8 * MIB);
        *server.device.data.lock().unwrap() = data.clone();
        let lens = [1_usize, 4096, 20_000, 40_000, 300_000];
        let mut wanted = std::collections::HashMap::new();
        for index in 0..200_usize {
            let (offset, len) = (index * 4321, lens[index % lens.len()]);
            wanted.insert(client.request(NBD_CMD_READ, 0, offset as u64, len as u32), (offset, len));
        }
        while !wanted.is_empty() {
            let (errno, cookie) = client.reply();
            let (offset, len) = wanted.remove(&cookie).expect("a cookie without a pending request");
            assert_eq!(errno, 0);
            assert!(client.receive(len) == data[offset..offset + len], "{behaviour:?}");
        }
    }
}

#[test]
fn slow_request_does_not_delay_others() {
    let server = TestServer::instant(MIB);
    server.device.gate.close();
    let mut client = server.attach();
    let flush = client.request(NBD_CMD_FLUSH, 0, 0, 0);
    server.device.gate.wait_for(1);
    assert_eq!(client.write(0, 0, b"quick"), 0);
    assert_eq!(client.read(0, 5), (0, b"quick".to_vec()));
    server.device.gate.open();
    assert_eq!(client.reply(), (0, flush));
}

#[test]
fn device_failure_is_reported_with_its_errno() {
    let kinds = [
        (DeviceErrorKind::Io, NBD_EIO),
        (DeviceErrorKind::NoSpace, NBD_ENOSPC),
        (DeviceErrorKind::InvalidInput, NBD_EINVAL),
        (DeviceErrorKind::Permission, NBD_EPERM),
        (DeviceErrorKind::Shutdown, NBD_ESHUTDOWN),
    ];
    let behaviours = kinds.into_iter().flat_map(|(kind, errno)| {
        [(Behaviour::Failing(kind), errno), (Behaviour::FailingOnWorker(kind), errno)]
    });
    for (behaviour, errno) in
        behaviours.chain([(Behaviour::Panicking, NBD_EIO), (Behaviour::PanickingOnWorker, NBD_EIO)])
    {
        let server = TestServer::start(MemDevice::new(MIB, behaviour));
        let mut client = server.attach();
        for len in [1, 40_000, 300_000] {
            assert_eq!(client.read(0, len as u32).0, errno, "{behaviour:?}");
            assert_eq!(client.write(0, 0, &vec![1; len]), errno, "{behaviour:?}");
        }
        assert_eq!(client.command(NBD_CMD_FLUSH, 0, 0, 0), errno);
        assert_eq!(client.command(NBD_CMD_TRIM, 0, 0, 512), errno);
        assert_eq!(client.command(NBD_CMD_WRITE_ZEROES, 0, 0, 512), errno);
        client.disconnect();
        server.wait_until_detached();
    }
}

#[test]
fn connections_to_one_export_share_its_data() {
    let addr: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server =
        TestServer::with(MemDevice::new(MIB, Behaviour::Mixed), |config| config.tcp = vec![addr, addr]);
    let mut clients = vec![server.attach(), server.attach(), server.attach()];
    for addr in server.server.local_addrs() {
        assert_ne!(addr.port(), 0);
        let mut client = Client::tcp(*addr);
        client.go("");
        clients.push(client);
    }
    for (index, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.write(0, index as u64 * 4096, &pattern(index as u64, 4096)), 0);
    }
    for client in &mut clients {
        for index in 0..5 {
            assert!(client.read(index * 4096, 4096) == (0, pattern(index, 4096)));
        }
    }
}

#[test]
fn device_is_held_until_its_last_request_ends() {
    let server = TestServer::start(MemDevice::new(MIB, Behaviour::Blocking));
    assert_eq!(Arc::strong_count(&server.device), 2);
    let mut client = server.attach();
    assert_eq!(client.read(0, 1).0, 0);
    assert_eq!(Arc::strong_count(&server.device), 3);
    server.device.gate.close();
    client.request(NBD_CMD_READ, 0, 0, 512);
    server.device.gate.wait_for(1);
    drop(client);
    assert!(Arc::strong_count(&server.device) > 2, "a request is in flight");
    server.device.gate.open();
    server.wait_until_detached();
}

#[test]
fn connections_beyond_the_limit_are_closed() {
    let server =
        TestServer::with(MemDevice::new(MIB, Behaviour::Instant), |config| config.max_connections = 2);
    let (first, _second) = (server.attach(), server.attach());
    server.connect().assert_closed();
    first.disconnect();
    server.wait_until_count(1);
    // The connection drops its device shortly before its connection count.
    let deadline = std::time::Instant::now() + TIMEOUT;
    loop {
        let mut client = server.connect();
        let mut byte = [0];
        if std::io::Read::read(&mut client.stream, &mut byte).is_ok_and(|len| len == 1) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "timeout: the connection limit is still reached");
    }
}

#[test]
fn connections_at_the_total_limit_all_progress() {
    let server = TestServer::with(MemDevice::new(8 * MIB, Behaviour::Mixed), |config| {
        config.in_flight_bytes_total = 1 << 20;
    });
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let mut client = server.attach();
            scope.spawn(move || {
                for round in 0..20 {
                    let len = 700_000;
                    for _ in 0..4 {
                        client.request(NBD_CMD_READ, 0, thread * 1000, len);
                    }
                    assert_eq!(client.command_among(4, len), 0, "round {round}");
                }
            });
        }
    });
}

#[test]
fn client_holding_memory_is_dropped_under_pressure() {
    let server = TestServer::with(MemDevice::new(8 * MIB, Behaviour::Blocking), |config| {
        config.in_flight_bytes_total = 4 << 20;
        config.stalled_send_timeout = Duration::from_millis(300);
    });
    let mut stalled = server.attach();
    stalled.request(NBD_CMD_READ, 0, 0, 4 << 20);
    stalled.receive(16);
    let mut other = server.attach();
    assert_eq!(other.read(0, 2 << 20).0, 0);
    let mut rest = Vec::new();
    let end = stalled.stream.read_to_end(&mut rest);
    assert!(end.is_err() || rest.len() < 4 << 20, "the stalled client was not dropped");
}

#[test]
fn shutdown_answers_requests_in_flight() {
    let mut server = TestServer::start(MemDevice::new(MIB, Behaviour::Blocking));
    server.device.gate.close();
    let mut client = server.attach();
    let mut idle = server.attach();
    let mut negotiating = server.connect();
    negotiating.hello(3);
    let cookie = client.request(NBD_CMD_WRITE, 0, 0, 5);
    client.send(b"hello");
    server.device.gate.wait_for(1);
    let (mut inner, device) = (server.server, Arc::clone(&server.device));
    let stopping = std::thread::spawn(move || inner.shutdown().map(|()| inner));
    idle.assert_closed();
    negotiating.assert_closed();
    assert!(!server.socket.exists() || !stopping.is_finished());
    device.gate.open();
    assert_eq!(client.reply(), (0, cookie));
    client.assert_closed();
    let mut inner = stopping.join().unwrap().unwrap();
    assert!(!server.socket.exists());
    assert_eq!(&device.data.lock().unwrap()[..5], b"hello");
    drop(device);
    assert_eq!(Arc::strong_count(&server.device), 1, "the catalog is dropped");
    inner.shutdown().expect("a second shutdown has no effect");
    server.server = inner;
}

#[test]
fn shutdown_with_a_blocked_device_times_out() {
    let mut server = TestServer::with(MemDevice::new(MIB, Behaviour::Blocking), |config| {
        config.shutdown_timeout = Duration::from_millis(100);
    });
    server.device.gate.close();
    let mut client = server.attach();
    client.request(NBD_CMD_FLUSH, 0, 0, 0);
    server.device.gate.wait_for(1);
    let error = server.server.shutdown().unwrap_err();
    assert!(matches!(error, NbdError::ShutdownTimeout { running: 1, .. }), "{error}");
    assert!(error.is_retryable());
    client.assert_closed();
    server.device.gate.open();
}

#[test]
fn invalid_setting_or_used_address_is_refused() {
    let catalog = || Arc::new(Catalog(Vec::new()));
    let no_address = Server::start(ServerConfig::default(), catalog()).unwrap_err();
    assert!(matches!(no_address, NbdError::InvalidConfig { .. }), "{no_address}");
    let dir = tempfile::tempdir().unwrap();
    let unix_path = Some(dir.path().join("s"));
    for broken in [
        ServerConfig { ring_threads: 0, unix_path: unix_path.clone(), ..ServerConfig::default() },
        ServerConfig { worker_threads: 0, unix_path: unix_path.clone(), ..ServerConfig::default() },
        ServerConfig { max_connections: 0, unix_path: unix_path.clone(), ..ServerConfig::default() },
    ] {
        let error = Server::start(broken, catalog()).unwrap_err();
        assert!(matches!(error, NbdError::InvalidConfig { .. }), "{error}");
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = vec![taken.local_addr().unwrap()];
    let error = Server::start(ServerConfig { tcp, ..ServerConfig::default() }, catalog()).unwrap_err();
    assert!(matches!(error, NbdError::BindTcp { .. }) && error.is_retryable(), "{error}");
    let config = ServerConfig { unix_path, ..ServerConfig::default() };
    let _first = Server::start(config.clone(), catalog()).unwrap();
    let error = Server::start(config, catalog()).unwrap_err();
    assert!(matches!(error, NbdError::SocketInUse { .. }), "{error}");
}

#[test]
fn disconnect_with_unread_input_keeps_replies() {
    let server = TestServer::instant(MIB);
    let mut client = server.attach();
    client.request(NBD_CMD_READ, 0, 0, 4096);
    client.request(NBD_CMD_DISC, 0, 0, 0);
    // More than one receive, and more than the socket buffer.
    client.send(&pattern(1, MIB / 2));
    assert_eq!(client.reply().0, 0);
    client.receive(4096);
    let mut rest = [0];
    let end = std::io::Read::read(&mut client.stream, &mut rest).unwrap();
    assert_eq!(end, 0, "an orderly end, not a reset");
    server.wait_until_detached();
}

/// Catalog whose exports with names from "remote-" wait until the sender of `opened` is dropped.
struct SlowCatalog {
    volumes: Catalog,
    opening: Sender<()>,
    opened: Receiver<()>,
}

impl ExportCatalog for SlowCatalog {
    fn open(&self, name: &str, client: &blockd_nbd::Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        if self.is_remote(name) {
            self.opening.send(()).unwrap();
            let _ = self.opened.recv();
        }
        self.volumes.open(name, client)
    }

    fn is_remote(&self, name: &str) -> bool {
        name.starts_with("remote-")
    }

    fn list(&self, client: &blockd_nbd::Client) -> Vec<ExportInfo> {
        self.volumes.list(client)
    }
}

#[test]
fn opening_of_remote_exports_does_not_delay_others() {
    let device = Arc::new(MemDevice::new(MIB, Behaviour::Instant));
    let (opening, opens) = unbounded();
    let (gate, opened) = bounded(0);
    let catalog =
        SlowCatalog { volumes: Catalog(vec![("vol".to_owned(), Arc::clone(&device))]), opening, opened };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd.sock");
    let config = ServerConfig { unix_path: Some(socket.clone()), ..ServerConfig::default() };
    let _server = Server::start(config, Arc::new(catalog)).unwrap();
    let mut waiting: Vec<Client> = (0..4)
        .map(|index| {
            let mut client = Client::unix(&socket);
            client.hello(3);
            let option = [NBD_OPT_GO, NBD_OPT_INFO][index % 2];
            client.send_option(option, &info_request(format!("remote-{index}").as_bytes(), &[]));
            client
        })
        .collect();
    // All threads for remote exports wait, and further lookups are queued.
    (0..2).for_each(|_| opens.recv_timeout(TIMEOUT).unwrap());
    let mut client = Client::unix(&socket);
    client.go("vol");
    assert_eq!(client.read(0, 1).0, 0);
    client.disconnect();
    drop(gate);
    for (index, client) in waiting.iter_mut().enumerate() {
        assert_eq!(client.option_reply([NBD_OPT_GO, NBD_OPT_INFO][index % 2]).0, NBD_REP_ERR_UNKNOWN);
    }
}
