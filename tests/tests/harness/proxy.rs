//! An HTTP proxy in front of a store that counts requests and plays the faults of networks.
//!
//! One request a connection: what it forwards asks both sides to close after the reply, so that the end of a
//! reply is the end of its stream.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
};

/// Fault of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with 503 and not forwarded.
    Unavailable,
    /// It is carried out, but the reply is lost.
    LostReply,
    /// The reply breaks off in the middle of its body.
    CutReply,
    /// Neither forwarded nor answered until the proxy releases it.
    Hold,
}

/// A request as it went by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
}

type Judge = dyn Fn(&Seen, usize) -> Option<Fault> + Send + Sync;

struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    seen: Vec<Seen>,
    held: usize,
    letting_go: bool,
    closed: bool,
    judge: Arc<Judge>,
}

/// A running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// Starts one in front of `target`.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        let state = State {
            seen: Vec::new(),
            held: 0,
            letting_go: false,
            closed: false,
            judge: Arc::new(|_, _| None),
        };
        let shared = Arc::new(Shared { target, state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.lock().closed {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = Arc::clone(&accepting);
                // A broken connection is what the other side is tested against.
                std::thread::spawn(move || drop(shared.serve(&stream)));
            }
        });
        Self { shared, address }
    }

    /// Returns the listening address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `judge` is asked what to do with each request; its second argument counts the requests of
    /// that method on paths that contain `blockd/` since then, this one not counted.
    pub fn judge(&self, judge: impl Fn(&Seen, usize) -> Option<Fault> + Send + Sync + 'static) {
        let mut state = self.shared.lock();
        state.judge = Arc::new(judge);
        state.seen.clear();
    }

    /// Waits until so many requests are held.
    pub fn wait_for_held(&self, count: usize) {
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, crate::harness::TIMEOUT, |state| state.held < count);
        assert!(!waited.expect("the lock").1.timed_out(), "{count} requests never came to be held");
    }

    /// Lets those that are held go on, and holds no more.
    pub fn release(&self) {
        self.shared.lock().letting_go = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.release();
        // Wakes the thread that accepts; if that fails it is gone already.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with the lock")
    }

    fn serve(&self, client: &TcpStream) -> io::Result<()> {
        let mut from_client = BufReader::new(client);
        let (head, seen, body_bytes) = read_head(&mut from_client)?;
        let fault = {
            let mut state = self.lock();
            let same = |known: &&Seen| known.method == seen.method && known.path.contains("blockd/");
            let before = state.seen.iter().filter(same).count();
            let judge = Arc::clone(&state.judge);
            let fault = judge(&seen, before);
            state.seen.push(seen);
            fault
        };
        let mut body = vec![0; body_bytes];
        from_client.read_exact(&mut body)?;
        let mut to_client = client;
        match fault {
            Some(Fault::Unavailable) => {
                return to_client.write_all(
                    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                );
            }
            Some(Fault::Hold) => self.hold(),
            Some(Fault::LostReply | Fault::CutReply) | None => {}
        }
        let mut target = TcpStream::connect(self.target)?;
        target.write_all(&head)?;
        target.write_all(&body)?;
        let mut reply = Vec::new();
        target.read_to_end(&mut reply)?;
        match fault {
            Some(Fault::LostReply) => {}
            Some(Fault::CutReply) => {
                let body_at = reply.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
                to_client.write_all(&reply[..body_at + (reply.len() - body_at) / 2])?;
            }
            _ => to_client.write_all(&reply)?,
        }
        client.shutdown(Shutdown::Both)
    }

    fn hold(&self) {
        let mut state = self.lock();
        state.held += 1;
        self.changed.notify_all();
        while !state.letting_go {
            state = self.changed.wait(state).expect("no thread panics with the lock");
        }
    }
}

/// The head of a request as it is forwarded, what it asks for, and the length of its body.
fn read_head(from: &mut impl BufRead) -> io::Result<(Vec<u8>, Seen, usize)> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let mut head = line.into_bytes();
    let mut body_bytes = 0;
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim().is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        if name.eq_ignore_ascii_case("content-length") {
            body_bytes = value.trim().parse().map_err(io::Error::other)?;
        }
        if !name.eq_ignore_ascii_case("connection") {
            head.extend_from_slice(line.as_bytes());
        }
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    Ok((head, Seen { method, path }, body_bytes))
}
