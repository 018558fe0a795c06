//! Proxy of `tools/bench lazy` that delays each request to a store, as a distant network does.
//!
//! `delay_proxy TARGET_PORT` prints its own port on 127.0.0.1 and reads commands from its standard input:
//! `delay MS`, and `count`, which prints the number of forwarded requests. A separate program keeps its CPU
//! time low. It ends with its input.

#![allow(clippy::unwrap_used, reason = "a bench that cannot measure ends with a panic")]

use std::{
    io::{self, BufRead, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

const BUFFER_BYTES: usize = 256 << 10;
const METHODS: [&[u8]; 5] = [b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE "];

#[derive(Default)]
struct Shared {
    delay_ms: AtomicU64,
    requests: AtomicU64,
}

/// Forwards data. The method at the start of a read identifies a request: clients send no request before the
/// previous reply.
fn pump(mut from: TcpStream, mut to: TcpStream, requests: Option<&Shared>) -> io::Result<()> {
    let mut buf = vec![0; BUFFER_BYTES];
    loop {
        let len = from.read(&mut buf)?;
        if len == 0 {
            return to.shutdown(Shutdown::Write);
        }
        if let Some(shared) = requests
            && METHODS.iter().any(|method| buf[..len].starts_with(method))
        {
            shared.requests.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(shared.delay_ms.load(Relaxed)));
        }
        to.write_all(&buf[..len])?;
    }
}

fn serve(client: TcpStream, target_port: u16, shared: &Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, target_port))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (replies, reader) = (server.try_clone()?, client.try_clone()?);
    let shared = shared.clone();
    thread::spawn(move || drop(pump(reader, server, Some(&shared))));
    // The client detects a broken connection.
    thread::spawn(move || drop(pump(replies, client, None)));
    Ok(())
}

fn main() {
    let target_port = std::env::args().nth(1).unwrap().parse().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    let shared = Arc::new(Shared::default());
    let accepting = shared.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            drop(client.and_then(|client| serve(client, target_port, &accepting)));
        }
    });
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        match line.strip_prefix("delay ") {
            Some(ms) => shared.delay_ms.store(ms.parse().unwrap(), Relaxed),
            None => println!("{}", shared.requests.load(Relaxed)),
        }
    }
}
