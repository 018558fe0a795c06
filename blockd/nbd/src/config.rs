//! Server settings and their validation.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::NbdError;
use crate::tls::identity::{TlsIdentity, TlsMode};

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Path of a Unix socket with mode 0600, if any.
    pub unix_path: Option<PathBuf>,
    /// TCP addresses to listen on; port 0 takes a free one.
    pub tcp: Vec<SocketAddr>,
    /// Threads that serve sockets. Default: one per core.
    pub ring_threads: usize,
    /// Threads for requests that may block. The same number of further threads serves flushes and FUA
    /// requests. Default 8.
    pub worker_threads: usize,
    /// Maximum number of connections; further ones are closed at once. A quarter, at most 64, is reserved for
    /// the Unix socket. Default 1024.
    pub max_connections: usize,
    /// Timeout of the negotiation, from accept to the transmission phase. Default 10 s.
    pub handshake_timeout: Duration,
    /// Idle timeout of a TCP connection in the transmission phase. Unix socket connections have none: kernel
    /// devices of this host may be idle. Default: no limit.
    pub idle_timeout: Option<Duration>,
    /// Timeout for the requests in flight of an ending connection and their replies. Default 30 s.
    pub drain_timeout: Duration,
    /// Timeout for a client to read 1 MiB of its replies, or the rest, while other connections wait for
    /// memory. Default 60 s.
    pub stalled_send_timeout: Duration,
    /// Timeout for a client to send 1 MiB of an announced payload, or the rest, while other connections wait
    /// for memory. Default 10 s.
    pub stalled_receive_timeout: Duration,
    /// Timeout for requests in flight at [`Server::shutdown`](crate::Server::shutdown). Default 10 s.
    pub shutdown_timeout: Duration,
    /// Limit of payload bytes in flight, plus 4 KiB for each request, of one connection; at the limit the
    /// server stops receiving from it. A single larger request is admitted alone. Default 64 MiB.
    pub in_flight_bytes_per_connection: u64,
    /// Limit of bytes in flight of all connections; the first 256 KiB of each connection are not counted.
    /// Connections to remote-backed devices have at most half of it, those to one source an eighth. Default
    /// 512 MiB.
    pub in_flight_bytes_total: u64,
    /// TLS identity; required unless both TLS modes are [`TlsMode::Off`].
    pub tls: Option<Arc<TlsIdentity>>,
    /// TLS mode of TCP. Default: off, so each client that can connect has full access.
    pub tcp_tls: TlsMode,
    /// TLS mode of the Unix socket. Default: off.
    pub unix_tls: TlsMode,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            unix_path: None,
            tcp: Vec::new(),
            ring_threads: std::thread::available_parallelism().map_or(1, usize::from),
            worker_threads: 8,
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: None,
            drain_timeout: Duration::from_secs(30),
            stalled_send_timeout: Duration::from_secs(60),
            stalled_receive_timeout: Duration::from_secs(10),
            shutdown_timeout: Duration::from_secs(10),
            in_flight_bytes_per_connection: 64 << 20,
            in_flight_bytes_total: 512 << 20,
            tls: None,
            tcp_tls: TlsMode::Off,
            unix_tls: TlsMode::Off,
        }
    }
}

impl ServerConfig {
    pub(crate) fn check(&self) -> Result<(), NbdError> {
        let counts = [
            ("ring_threads", self.ring_threads, 1024),
            ("worker_threads", self.worker_threads, 1024),
            ("max_connections", self.max_connections, 1 << 20),
        ];
        for (setting, value, max) in counts {
            if value == 0 || value > max {
                return Err(NbdError::InvalidConfig {
                    setting,
                    value: value.to_string(),
                    wanted: if max == 1024 { "the range is 1 to 1024" } else { "the range is 1 to 1048576" },
                });
            }
        }
        if self.unix_path.is_none() && self.tcp.is_empty() {
            return Err(NbdError::InvalidConfig {
                setting: "unix_path",
                value: "not set".to_owned(),
                wanted: "set unix_path or tcp",
            });
        }
        for (setting, mode) in [("tcp_tls", self.tcp_tls), ("unix_tls", self.unix_tls)] {
            if mode != TlsMode::Off && self.tls.is_none() {
                return Err(NbdError::InvalidConfig {
                    setting,
                    value: format!("{mode:?}"),
                    wanted: "set tls",
                });
            }
        }
        Ok(())
    }
}
