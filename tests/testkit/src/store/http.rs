//! Fake HTTP server with one request per connection.

use parking_lot::Mutex;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Received request.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// Method.
    pub method: String,
    /// Path with the query.
    pub path: String,
    /// Headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl HttpRequest {
    /// Returns the value of a header; empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }
}

/// Response.
#[derive(Clone, Default, Debug)]
pub struct HttpReply {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Number of bytes at the end of the body that are not sent before the connection is closed.
    pub cut_bytes: usize,
    /// Delay of the last byte of the body.
    pub stall: Duration,
}

impl HttpReply {
    /// Creates a response without a body.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

type Answer = dyn Fn(&HttpRequest) -> HttpReply + Send + Sync;

/// Running server; it ends with the runtime of its test.
pub struct FakeHttpServer {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<HttpRequest>>>,
}

impl FakeHttpServer {
    /// Starts a server on a free loopback port.
    ///
    /// # Panics
    /// If no port is free.
    #[allow(clippy::expect_used, reason = "a failed test panics")]
    pub async fn start(answer: impl Fn(&HttpRequest) -> HttpReply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("free port");
        let address = listener.local_addr().expect("local address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, log): (Arc<Answer>, _) = (Arc::new(answer), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                tokio::spawn(async move {
                    // The client may disconnect.
                    let _ = serve(stream, &*answer, &log).await;
                });
            }
        });
        Self { address, seen }
    }

    /// Returns `http://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns all requests so far.
    pub fn seen(&self) -> Vec<HttpRequest> {
        self.seen.lock().clone()
    }
}

async fn serve(mut stream: TcpStream, answer: &Answer, log: &Mutex<Vec<HttpRequest>>) -> std::io::Result<()> {
    let Some(request) = read(&mut stream).await? else { return Ok(()) };
    let reply = answer(&request);
    let head = request.method == "HEAD";
    log.lock().push(request);
    let mut out = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
    if !matches!(reply.status, 204 | 304) {
        out.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    out.push_str("\r\n");
    stream.write_all(out.as_bytes()).await?;
    if !head {
        let (now, late) = reply.body.split_at(reply.body.len().saturating_sub(1));
        let sent = now.len().min(reply.body.len() - reply.cut_bytes);
        stream.write_all(&now[..sent]).await?;
        stream.flush().await?;
        if reply.cut_bytes == 0 {
            if !reply.stall.is_zero() {
                tokio::time::sleep(reply.stall).await;
            }
            stream.write_all(late).await?;
        }
    }
    stream.shutdown().await
}

async fn read(stream: &mut TcpStream) -> std::io::Result<Option<HttpRequest>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    let mut head_len = None;
    loop {
        if head_len.is_none() {
            head_len = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        }
        if let Some(head_len) = head_len {
            let head = String::from_utf8_lossy(&bytes[..head_len]).into_owned();
            let mut lines = head.lines();
            let mut first = lines.next().unwrap_or_default().split(' ');
            let mut next = || first.next().unwrap_or_default().to_owned();
            let (method, path) = (next(), next());
            let headers: Vec<(String, String)> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let len = headers.iter().find(|(name, _)| name == "content-length");
            let len: usize = len.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
            if bytes.len() >= head_len + len {
                let body = bytes[head_len..head_len + len].to_vec();
                return Ok(Some(HttpRequest { method, path, headers, body }));
            }
        }
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}
