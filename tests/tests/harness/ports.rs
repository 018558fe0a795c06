//! Loopback ports for servers that need a fixed port, and ports without a listener.
//!
//! A released ephemeral port can be reused before the server binds it: by another test, or by a connection.
//! So these ports are below the ephemeral range.

use std::{
    net::{SocketAddr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

/// First port of the search.
const FIRST: u16 = 10_240;
/// Number of ports.
const COUNT: u16 = 12_000;

/// Number of ports tried in this process.
static TRIED: AtomicU32 = AtomicU32::new(0);

/// Returns a free port, unique in this process; with `above`, the port at this distance is free as well.
pub fn free(above: u16) -> u16 {
    // Concurrent test processes start at different ports.
    let start = std::process::id().wrapping_mul(61);
    for _ in 0..COUNT {
        let nth = start.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed)) % u32::from(COUNT);
        let port = FIRST + nth as u16;
        let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + above) {
            return port;
        }
    }
    panic!("no free port from {FIRST} to {}", FIRST + COUNT);
}

/// Returns several free ports.
pub fn several<const N: usize>() -> [u16; N] {
    [(); N].map(|()| free(0))
}

/// Returns a loopback address.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
