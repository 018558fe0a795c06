//! HTTP proxy in front of a store that records requests and injects network faults.
//!
//! Each connection carries one request: forwarded requests have `Connection: close`, so that the end of the
//! stream is the end of the reply.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
};

/// Fault to inject into a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The proxy replies with 503 and does not forward the request.
    Unavailable,
    /// The request is forwarded, but its reply is dropped.
    LostReply,
    /// The reply ends in the middle of its body.
    CutReply,
    /// The request is held until the proxy releases it.
    Hold,
}

/// Method and path of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
}

type FaultPlan = dyn Fn(&Request, usize) -> Option<Fault> + Send + Sync;

struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    seen: Vec<Request>,
    held: usize,
    released: bool,
    closed: bool,
    plan: Arc<FaultPlan>,
}

/// A running proxy.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Proxy {
    /// Starts a proxy in front of `target`.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        let state =
            State { seen: Vec::new(), held: 0, released: false, closed: false, plan: Arc::new(|_, _| None) };
        let shared = Arc::new(Shared { target, state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.lock().closed {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = Arc::clone(&accepting);
                // An I/O error closes the connection, which the client must survive.
                std::thread::spawn(move || drop(shared.serve(&stream)));
            }
        });
        Self { shared, address }
    }

    /// Returns the listening address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the plan that selects the fault of each request. Its second argument is the number of earlier
    /// requests since this call with the same method and `blockd/` in the path.
    pub fn inject(&self, plan: impl Fn(&Request, usize) -> Option<Fault> + Send + Sync + 'static) {
        let mut state = self.shared.lock();
        state.plan = Arc::new(plan);
        state.seen.clear();
    }

    /// Waits until this number of requests is held.
    pub fn wait_for_held(&self, count: usize) {
        let state = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, crate::harness::TIMEOUT, |state| state.held < count);
        assert!(!waited.expect("the lock").1.timed_out(), "timeout while waiting for {count} held requests");
    }

    /// Releases held requests and holds no more.
    pub fn release(&self) {
        self.shared.lock().released = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.release();
        // Wakes the accepting thread; this fails only if the thread has ended.
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
            let same = |known: &&Request| known.method == seen.method && known.path.contains("blockd/");
            let before = state.seen.iter().filter(same).count();
            let plan = Arc::clone(&state.plan);
            let fault = plan(&seen, before);
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
        while !state.released {
            state = self.changed.wait(state).expect("no thread panics with the lock");
        }
    }
}

/// Reads the head of a request: the bytes to forward, method and path, and the length of the body.
fn read_head(from: &mut impl BufRead) -> io::Result<(Vec<u8>, Request, usize)> {
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
    Ok((head, Request { method, path }, body_bytes))
}
