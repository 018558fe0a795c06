//! Settings of a server.

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
    /// Threads for requests that may block, and as many again for those that make data durable. Default 8.
    pub worker_threads: usize,
    /// Connections beyond this many are closed at once; a quarter of them, at most 64, is kept for the unix
    /// socket. Default 1024.
    pub max_connections: usize,
    /// Timeout from connect to transmission. Default 10 s.
    pub handshake_timeout: Duration,
    /// Idle time after which a connection in transmission is closed, except on Unix sockets, which may be
    /// this host's devices. Default: no limit.
    pub idle_timeout: Option<Duration>,
    /// Time for a disconnecting client's last requests and replies. Default 30 s.
    pub drain_timeout: Duration,
    /// Time for a client to read 1 MiB of its replies, or the rest, while others wait for the memory. Default
    /// 60 s.
    pub stalled_send_timeout: Duration,
    /// Time for a client to send 1 MiB of an announced payload, or the rest, while others wait for the
    /// memory. Default 10 s.
    pub stalled_receive_timeout: Duration,
    /// Time for requests in flight at [`Server::shutdown`](crate::Server::shutdown). Default 10 s.
    pub shutdown_timeout: Duration,
    /// Payload bytes, plus 4 KiB a request, that one connection may have in flight; it is not received from
    /// beyond that. A single request of any size is always taken. Default 64 MiB.
    pub in_flight_bytes_per_connection: u64,
    /// The same for all connections together; each may have 256 KiB beyond it. Those to devices that may be
    /// far away have at most half of it, and those to one source an eighth. Default 512 MiB.
    pub in_flight_bytes_total: u64,
    /// Certificates for TLS.
    pub tls: Option<Arc<TlsIdentity>>,
    /// TLS mode of TCP. Default: none, so each client that can connect has full access.
    pub tcp_tls: TlsMode,
    /// TLS mode of the Unix socket. Default: none.
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
                    wanted: if max == 1024 { "set it to 1 to 1024" } else { "set it to 1 to 1048576" },
                });
            }
        }
        if self.unix_path.is_none() && self.tcp.is_empty() {
            return Err(NbdError::InvalidConfig {
                setting: "unix_path",
                value: "not set, and neither is tcp".to_owned(),
                wanted: "set at least one of them",
            });
        }
        for (setting, mode) in [("tcp_tls", self.tcp_tls), ("unix_tls", self.unix_tls)] {
            if mode != TlsMode::Off && self.tls.is_none() {
                return Err(NbdError::InvalidConfig {
                    setting,
                    value: format!("{mode:?}"),
                    wanted: "give it a certificate",
                });
            }
        }
        Ok(())
    }
}
