//! Properties of the NBD server for arbitrary input of a client.
//!
//! The client connects to a running server over TCP. An independent parser, written from the protocol
//! document and `PROTOCOL.md` of `blockd-nbd`, checks the replies: each request has one well-formed reply
//! with an allowed error, and reads return content that the device held at some time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a violated property must be found"
)]

mod device;
mod negotiation;
mod replies;
mod requests;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use blockd_nbd::constants::*;
use blockd_nbd::{Server, ServerConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::device::{Clients, Exports};
use self::negotiation::{Next, go_data, meta_data, put_option};
use self::requests::ReplyMode;

/// Timeout of any step of the server.
const TIMEOUT: Duration = Duration::from_secs(120);

struct Fixture {
    server: Server,
    clients: Arc<Clients>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let clients = Arc::<Clients>::default();
    let config = ServerConfig {
        tcp: vec!["127.0.0.1:0".parse().unwrap()],
        ring_threads: 1,
        worker_threads: 2,
        // Small enough to be reached by inputs.
        in_flight_bytes_per_connection: 256 << 10,
        ..ServerConfig::default()
    };
    Fixture { server: Server::start(config, Arc::clone(&clients) as _).unwrap(), clients }
});

/// Flow control of a connection.
struct Plan<'a> {
    /// Bits that select the kind of input.
    choice: u8,
    /// The client disconnects after half of its input; otherwise it closes its side and receives all replies.
    disconnects: bool,
    /// Sizes of receives and sends.
    steps: Vec<usize>,
    /// Rest of the input.
    rest: &'a [u8],
}

impl<'a> Plan<'a> {
    /// Parses a byte of choices, one with the end and the number of steps, and two bytes for each step.
    fn of(data: &'a [u8]) -> Option<Self> {
        let [choice, shape, rest @ ..] = data else {
            return None;
        };
        let (raw, rest) = rest.split_at_checked(2 * (usize::from(shape % 16) + 1))?;
        let size = |raw: &[u8]| match u16::from_le_bytes([raw[0], raw[1]]) {
            // All.
            0xff00.. => 1 << 20,
            size => usize::from(size) + 1,
        };
        let steps = raw.chunks_exact(2).map(size).collect();
        Some(Self { choice: *choice, disconnects: shape >> 5 < 3, steps, rest })
    }

    /// Returns the bytes of the client.
    fn stream(&self) -> Vec<u8> {
        match (self.choice & 0x80 != 0, self.choice & 1 != 0) {
            (false, _) => self.transmission(),
            (true, false) => self.rest.to_vec(),
            (true, true) => negotiation::compose(self.rest),
        }
    }

    /// Returns a valid negotiation, and requests.
    fn transmission(&self) -> Vec<u8> {
        let mode = match self.choice % 4 {
            0 => ReplyMode::Simple,
            1 => ReplyMode::Structured,
            _ => ReplyMode::Extended,
        };
        let name = if self.choice & 4 == 0 { "a" } else { "ro" };
        let queries = ["qemu:dirty-bitmap:odd", "base:allocation", "qemu:dirty-bitmap:none"];
        let queries = &queries[..usize::from(self.choice >> 4 & 3)];
        let mut stream = 3_u32.to_be_bytes().to_vec();
        match mode {
            ReplyMode::Simple => {}
            ReplyMode::Structured => put_option(&mut stream, NBD_OPT_STRUCTURED_REPLY, &[]),
            ReplyMode::Extended => put_option(&mut stream, NBD_OPT_EXTENDED_HEADERS, &[]),
        }
        if mode != ReplyMode::Simple {
            put_option(&mut stream, NBD_OPT_SET_META_CONTEXT, &meta_data(name, queries));
        }
        put_option(&mut stream, NBD_OPT_GO, &go_data(name, &[]));
        if self.choice & 8 == 0 {
            stream.extend(requests::compose(self.rest, mode));
        } else {
            stream.extend(self.rest);
        }
        stream
    }
}

/// Runs a client from the greeting to its end, and checks the replies and the changes of its device.
///
/// # Panics
/// If a property is violated.
pub fn nbd(data: &[u8]) {
    let Some(plan) = Plan::of(data) else {
        return;
    };
    let mut stream = plan.stream();
    let negotiation = negotiation::read(&stream);
    let mut asked = Vec::new();
    if let Next::Transmission { at, terms } = &negotiation.next {
        let mut tail = stream.split_off(*at);
        asked = requests::number_requests(&mut tail, terms);
        stream.extend(tail);
    }

    let Fixture { server, clients } = &*FIXTURE;
    let socket = TcpStream::connect(server.local_addrs()[0]).unwrap();
    let peer = socket.local_addr().unwrap();
    let (exports, released) = Exports::new();
    clients.add(peer, exports);
    let input = if plan.disconnects { &stream[..stream.len() / 2] } else { &stream };
    let sent = converse(socket, input, &plan);
    let changes = clients.remove(peer, &released);

    let complete = !plan.disconnects;
    match (negotiation.check(&sent), &negotiation.next) {
        (Some(len), Next::Transmission { terms, .. }) => {
            replies::check(&sent[len..], &asked, terms, &changes, complete);
        }
        (Some(len), Next::Nothing) => assert_eq!(sent.len(), len, "unrequested bytes"),
        (None, _) => assert!(!complete, "incomplete negotiation"),
    }
}

/// Sends `input` and receives alternately, in the steps of the plan; returns the received bytes.
fn converse(mut socket: TcpStream, mut input: &[u8], plan: &Plan<'_>) -> Vec<u8> {
    socket.set_nodelay(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    let (mut received, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    let mut is_closed = false;
    for step in plan.steps.iter().cycle() {
        if input.is_empty() && !std::mem::replace(&mut is_closed, true) {
            if plan.disconnects {
                return received;
            }
            // The server may have closed the connection.
            let _ = socket.shutdown(Shutdown::Write);
        }
        let mut is_blocked = true;
        match socket.write(&input[..input.len().min(*step)]) {
            Ok(len) => {
                input = &input[len..];
                is_blocked = len == 0;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => input = &[],
        }
        match socket.read(&mut buffer[..*step]) {
            Ok(0) => return received,
            Ok(len) => received.extend(&buffer[..len]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if is_blocked {
                    wait(&socket, !input.is_empty());
                }
            }
            // A reset: the check finds missing replies.
            Err(_) => return received,
        }
    }
    received
}

/// Waits until the socket can be read, or written.
fn wait(socket: &TcpStream, wants_to_write: bool) {
    let events = if wants_to_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let timeout = Timespec { tv_sec: TIMEOUT.as_secs().cast_signed(), tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(socket, events)], Some(&timeout)).unwrap();
    assert!(ready > 0, "the server neither answers nor ends the connection");
}
