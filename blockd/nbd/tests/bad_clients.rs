//! Clients that violate the protocol or disconnect: they get an error or are dropped, and the server serves
//! others.
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::common::*;
use blockd_nbd::constants::*;

const MIB: usize = 1 << 20;

/// Encodes a session with all kinds of requests.
fn session(mode: ReplyMode) -> Vec<u8> {
    let request = |command, flags, offset_bytes, len_bytes: u64| {
        let request = Request { flags, command, cookie: 1, offset_bytes, len_bytes };
        if mode != ReplyMode::Extended {
            return request.encode().to_vec();
        }
        let payload = if command == NBD_CMD_WRITE { NBD_CMD_FLAG_PAYLOAD_LEN } else { 0 };
        Request { flags: flags | payload, ..request }.encode_extended().to_vec()
    };
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(option_request(NBD_OPT_LIST, b""));
    bytes.extend(option_request(NBD_OPT_INFO, &info_request(b"vol", &[1, 2, 3])));
    match mode {
        ReplyMode::Simple => {}
        ReplyMode::Structured => bytes.extend(option_request(NBD_OPT_STRUCTURED_REPLY, b"")),
        ReplyMode::Extended => bytes.extend(option_request(NBD_OPT_EXTENDED_HEADERS, b"")),
    }
    bytes.extend(option_request(NBD_OPT_LIST_META_CONTEXT, &meta_request(b"vol", &["base:", "qemu:"])));
    bytes.extend(option_request(NBD_OPT_SET_META_CONTEXT, &meta_request(b"vol", &["base:allocation"])));
    bytes.extend(option_request(NBD_OPT_GO, &info_request(b"vol", &[])));
    bytes.extend(request(NBD_CMD_WRITE, 0, 10, 100));
    bytes.extend([7; 100]);
    bytes.extend(request(NBD_CMD_READ, 0, 0, 200));
    bytes.extend(request(NBD_CMD_WRITE, 0, 1 << 40, 50));
    bytes.extend([7; 50]);
    bytes.extend(request(NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 10, 100));
    bytes.extend([8; 100]);
    bytes.extend(request(NBD_CMD_FLUSH, 0, 0, 0));
    bytes.extend(request(NBD_CMD_CACHE, 0, 0, 100_000));
    bytes.extend(request(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, 100_000));
    bytes.extend(request(NBD_CMD_READ, 0, 0, 300_000));
    if mode == ReplyMode::Extended {
        bytes.extend(request(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_PAYLOAD_LEN, 0, 12));
        bytes.extend([0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 1]);
    }
    bytes.extend(request(NBD_CMD_WRITE, 0, 1000, 40_000));
    bytes.extend([9; 40_000]);
    bytes.extend(request(NBD_CMD_DISC, 0, 0, 0));
    bytes
}

#[test]
fn session_cut_at_any_byte_releases_the_device() {
    let server = TestServer::start(MemDevice::new(MIB, Behaviour::Mixed));
    for mode in [ReplyMode::Simple, ReplyMode::Structured, ReplyMode::Extended] {
        cut_at_every_byte(&server, &session(mode));
    }
    server.assert_serves();
    server.wait_until_detached();
}

/// Cuts a session at every byte, and at samples within the long payload.
fn cut_at_every_byte(server: &TestServer, session: &[u8]) {
    let (long, end) = (session.len() - 40_000, session.len() - 40);
    let cuts = (0..long).chain((long..end).step_by(997)).chain(end..=session.len());
    for (index, cut) in cuts.enumerate() {
        let mut stream = UnixStream::connect(&server.socket).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(&session[..cut.min(session.len())]).unwrap();
        if index % 2 == 0 {
            // Closes its side and receives until the end.
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            assert!(rest.starts_with(b"NBDMAGICIHAVEOPT"));
        }
        // Otherwise the client closes the socket.
    }
}

#[test]
fn pipelined_session_is_answered_completely() {
    let server = TestServer::start(MemDevice::new(MIB, Behaviour::Mixed));
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(&session(ReplyMode::Simple)).unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).unwrap();
    let replies = answers.windows(4).filter(|bytes| *bytes == SIMPLE_REPLY_MAGIC.to_be_bytes()).count();
    assert_eq!(replies, 9, "DISC comes after nine answered requests");
    assert!(server.device.data.lock().unwrap()[1000..41_000].iter().all(|byte| *byte == 9));
}

#[test]
fn disconnect_with_requests_in_flight_is_cleaned_up() {
    let server = TestServer::start(MemDevice::new(8 * MIB, Behaviour::Blocking));
    server.device.gate.close();
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = server.attach();
        for _ in 0..30 {
            client.request(NBD_CMD_READ, 0, 0, 1 << 20);
        }
        client.request(NBD_CMD_WRITE, 0, 0, 1 << 20);
        client.send(&[1; 1000]);
        clients.push(client);
    }
    server.device.gate.wait_for(4);
    drop(clients);
    server.device.gate.open();
    server.wait_until_detached();
    server.assert_serves();
}

#[test]
fn stalled_partial_header_holds_no_budget() {
    let server = TestServer::with(MemDevice::new(MIB, Behaviour::Instant), |config| config.ring_threads = 1);
    let mut silent: Vec<Client> = (0..20).map(|_| server.attach()).collect();
    for (index, client) in silent.iter_mut().enumerate() {
        let request = Request { flags: 0, command: 1, cookie: 9, offset_bytes: 0, len_bytes: 100_000 };
        client.send(&request.encode()[..index + 1]);
    }
    server.assert_serves();
    for (index, client) in silent.iter_mut().enumerate() {
        let request = Request { flags: 0, command: 1, cookie: 9, offset_bytes: 0, len_bytes: 100_000 };
        client.send(&request.encode()[index + 1..]);
        client.send(&vec![3; 100_000]);
        assert_eq!(client.reply(), (0, 9));
    }
}
