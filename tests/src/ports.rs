//! Ports of loopback for servers that must be told theirs before they start, and ports at which nobody
//! answers.
//!
//! A port that the kernel gave out and that was let go can be given to somebody else before the server takes
//! it: to another test that asks for one, or to a connection as its own end. So they come from below those
//! that the kernel gives out.

use rustix::net::{AddressFamily, SocketType, bind, socket};
use std::{
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::atomic::{AtomicU32, Ordering},
};

/// Where the search begins, and how many ports there are from there on.
const FIRST: u16 = 10_240;
const COUNT: u16 = 12_000;

/// How many were looked at in this process.
static LOOKED_AT: AtomicU32 = AtomicU32::new(0);

/// A port that nobody listens on, and no other caller in this process gets; with `above`, the port so many
/// above is free as well.
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

    /// Where nobody answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
