//! Loopback ports for servers that need a fixed port, and ports without a listener.
//!
//! A released ephemeral port can be reused before the server binds it: by another test, or by a connection.
//! So these ports are below the ephemeral range.

use rustix::net::{AddressFamily, SocketType, bind, socket};
use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
};

/// Start of the search, and number of ports.
const FIRST: u16 = 10_240;
const COUNT: u16 = 12_000;

/// Number of ports tried in this process.
static LOOKED_AT: AtomicU32 = AtomicU32::new(0);

/// Returns a free port, unique in this process; with `above`, the port at this distance is free as well.
///
/// # Panics
/// If there is none.
pub fn free(above: u16) -> u16 {
    // Processes that run beside this one begin elsewhere.
    let begin = std::process::id().wrapping_mul(61);
    for _ in 0..COUNT {
        let nth = begin.wrapping_add(LOOKED_AT.fetch_add(1, Ordering::Relaxed)) % u32::from(COUNT);
        let port = FIRST + nth as u16;
        let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + above) {
            return port;
        }
    }
    panic!("no port of {FIRST} to {} is free", FIRST + COUNT);
}

/// As [`free`], several.
pub fn several<const N: usize>() -> [u16; N] {
    [(); N].map(|()| free(0))
}

/// An address of loopback.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A port at which connections are refused as long as this is there.
pub struct Refusing {
    address: SocketAddr,
    _socket: OwnedFd,
}

impl Refusing {
    /// Has one.
    ///
    /// # Panics
    /// If there is none.
    #[expect(clippy::new_without_default, reason = "it takes something of the system")]
    pub fn new() -> Self {
        // Bound, and never listening.
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&socket, &local(0)).expect("a free port");
        let name = rustix::net::getsockname(&socket).expect("its address");
        let address = SocketAddr::try_from(name).expect("an address of the internet");
        Self { address, _socket: socket }
    }

    /// Returns an address without a listener.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
