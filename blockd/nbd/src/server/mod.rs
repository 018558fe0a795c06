//! Starting and stopping a server.

mod connection_count;
mod linger;
mod listener;
mod mailbox;
mod queues;
pub(crate) mod ring;
mod ring_thread;
mod sparse_read;
mod spin;
pub(crate) mod thread_end;
pub(crate) mod worker;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::connection::budget::Budget;
use crate::connection::remote_budgets::RemoteBudgets;
use crate::connection::{ConnectionLimits, TlsOffer};
use crate::device::ExportCatalog;
use crate::error::NbdError;
use crate::server::connection_count::Connections;
use crate::server::listener::{Listener, UnixSocketFile};
use crate::server::mailbox::{Mailbox, Message};
use crate::server::queues::{Queues, SyncQueue};
use crate::server::ring_thread::{RingThread, Shared};
use crate::server::spin::SpinPermit;
use crate::server::thread_end::{Failure, FailureListener, ThreadEnd};
use crate::server::worker::Job;
use crate::tls::identity::{TlsIdentity, TlsMode};

/// The most that buffer pools keep for reuse on one ring thread, in bytes.
const MAX_POOL_BYTES: u64 = 64 << 20;
/// Threads that look exports up.
const LOOKUP_THREADS: usize = 2;
/// Threads that compute TLS handshakes: what clients that only connect can take from the others.
const HANDSHAKE_THREADS: usize = 1;
/// Time beyond the shutdown timeout in which threads drop aborted connections.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

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
    /// Time for requests in flight at [`Server::shutdown`]. Default 10 s.
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
    fn check(&self) -> Result<(), NbdError> {
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

    fn offer(&self, mode: TlsMode) -> TlsOffer {
        match (mode, &self.tls) {
            (TlsMode::Require, Some(identity)) => TlsOffer::Require(Arc::clone(identity)),
            (TlsMode::Allow, Some(identity)) => TlsOffer::Allow(Arc::clone(identity)),
            _ => TlsOffer::Off,
        }
    }
}

/// A running server. Dropping it shuts it down.
pub struct Server {
    tcp_addrs: Vec<SocketAddr>,
    unix_path: Option<PathBuf>,
    shutdown_timeout: Duration,
    socket_file: Option<UnixSocketFile>,
    running: Option<Running>,
    failure: Arc<Failure>,
}

struct Running {
    mailboxes: Vec<Arc<Mailbox<Message>>>,
    queues: Queues,
    threads: Vec<JoinHandle<()>>,
    /// Each thread holds a sender: the receiver reports the end of all.
    alive: Receiver<Infallible>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("tcp_addrs", &self.tcp_addrs)
            .field("unix_path", &self.unix_path)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Server {
    /// Starts listening and serving.
    ///
    /// # Errors
    /// When a setting makes no sense, an address cannot be listened on, or the system gives no io_uring or
    /// threads.
    #[allow(clippy::needless_pass_by_value, reason = "the server takes its settings and catalog over")]
    pub fn start(config: ServerConfig, catalog: Arc<dyn ExportCatalog>) -> Result<Self, NbdError> {
        config.check()?;
        let mut listeners = Vec::new();
        let mut tcp_addrs = Vec::new();
        let mut socket_file = None;
        for addr in &config.tcp {
            let (listener, local_addr) = Listener::tcp(*addr)?;
            listeners.push(listener);
            tcp_addrs.push(local_addr);
        }
        if let Some(path) = &config.unix_path {
            let (listener, file) = Listener::unix(path)?;
            listeners.push(listener);
            socket_file = Some(file);
        }
        let mut mailboxes = Vec::with_capacity(config.ring_threads);
        for index in 0..config.ring_threads {
            let mailbox = Mailbox::new()
                .map_err(|source| NbdError::Thread { name: format!("nbd-ring-{index}"), source })?;
            mailboxes.push(Arc::new(mailbox));
        }
        let (requests, request_queue) = unbounded();
        let (lookups, lookup_queue) = unbounded();
        let (handshakes, handshake_queue) = unbounded();
        let syncs = Arc::<SyncQueue>::default();
        let sync_items = syncs.items();
        let queues = Queues { requests, syncs, lookups, handshakes };
        let (alive_sender, alive) = bounded(0);
        let mut server = Self {
            tcp_addrs,
            unix_path: config.unix_path.clone(),
            shutdown_timeout: config.shutdown_timeout,
            socket_file,
            running: Some(Running { mailboxes: mailboxes.clone(), queues, threads: Vec::new(), alive }),
            failure: Arc::default(),
        };
        // From here on, dropping the server ends the threads that were started.
        server.start_workers("nbd-worker", config.worker_threads, &catalog, &request_queue, &alive_sender)?;
        for index in 0..config.worker_threads {
            let (items, catalog) = (Arc::clone(&sync_items), Arc::clone(&catalog));
            let alive = alive_sender.clone();
            server.spawn(format!("nbd-sync-{index}"), move || {
                items.serve(&*catalog);
                drop(alive);
            })?;
        }
        server.start_workers("nbd-lookup", LOOKUP_THREADS, &catalog, &lookup_queue, &alive_sender)?;
        let handshake_threads = if config.tls.is_some() { HANDSHAKE_THREADS } else { 0 };
        server.start_workers("nbd-tls", handshake_threads, &catalog, &handshake_queue, &alive_sender)?;
        let shared = Arc::new(share(&config, mailboxes));
        server.start_rings(&shared, listeners, &alive_sender)?;
        for addr in &server.tcp_addrs {
            tracing::info!(%addr, "serving NBD over TCP");
        }
        if let Some(path) = &server.unix_path {
            tracing::info!(path = %path.display(), "serving NBD on a unix socket");
        }
        Ok(server)
    }

    fn start_workers(
        &mut self,
        name: &str,
        count: usize,
        catalog: &Arc<dyn ExportCatalog>,
        jobs: &Receiver<Job>,
        alive: &Sender<Infallible>,
    ) -> Result<(), NbdError> {
        for index in 0..count {
            let (jobs, catalog, alive) = (jobs.clone(), Arc::clone(catalog), alive.clone());
            self.spawn(format!("{name}-{index}"), move || {
                worker::work(&jobs, &*catalog);
                drop(alive);
            })?;
        }
        Ok(())
    }

    fn start_rings(
        &mut self,
        shared: &Arc<Shared>,
        listeners: Vec<Listener>,
        alive: &Sender<Infallible>,
    ) -> Result<(), NbdError> {
        let Some(queues) = self.running.as_ref().map(|running| running.queues.clone()) else {
            return Ok(());
        };
        assert!(!shared.mailboxes.is_empty(), "a server has a ring thread");
        let (ready_sender, ready) = bounded(shared.mailboxes.len());
        // The first thread accepts for all.
        let mut listeners = Some(listeners);
        for (index, mailbox) in shared.mailboxes.iter().enumerate() {
            let (shared, mailbox, queues) = (Arc::clone(shared), Arc::clone(mailbox), queues.clone());
            let (ready, alive) = (ready_sender.clone(), alive.clone());
            let listeners = listeners.take().unwrap_or_default();
            let mut end = ThreadEnd {
                thread: index,
                mailbox: Arc::clone(&mailbox),
                failure: Arc::clone(&self.failure),
                is_expected: true,
            };
            self.spawn(format!("nbd-ring-{index}"), move || {
                match RingThread::new(index, shared, mailbox, queues, listeners) {
                    Ok(mut thread) => {
                        // The starting thread waits for this, or has given up.
                        let _ = ready.send(Ok(()));
                        drop(ready);
                        end.is_expected = false;
                        match thread.run() {
                            Ok(()) => end.is_expected = true,
                            Err(error) => tracing::error!(thread = index, %error, "the ring failed"),
                        }
                    }
                    Err(source) => {
                        let _ = ready.send(Err(source));
                    }
                }
                drop(end);
                drop(alive);
            })?;
        }
        drop(ready_sender);
        for index in 0..shared.mailboxes.len() {
            match ready.recv() {
                Ok(Ok(())) => {}
                Ok(Err(source)) => return Err(NbdError::RingSetup { source }),
                Err(_) => {
                    return Err(NbdError::Thread {
                        name: format!("nbd-ring-{index}"),
                        source: std::io::Error::other("it died while starting"),
                    });
                }
            }
        }
        Ok(())
    }

    fn spawn(&mut self, name: String, act: impl FnOnce() + Send + 'static) -> Result<(), NbdError> {
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(act)
            .map_err(|source| NbdError::Thread { name, source })?;
        if let Some(running) = &mut self.running {
            running.threads.push(thread);
        }
        Ok(())
    }

    /// The TCP addresses that are listened on, in the order of the settings, with the ports that were taken.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.tcp_addrs
    }

    /// Returns the path of the Unix socket, if any.
    #[must_use]
    pub fn unix_path(&self) -> Option<&std::path::Path> {
        self.unix_path.as_deref()
    }

    /// Registers a callback for an unexpected end of accepts; it is called at once if that has happened. The
    /// server should be shut down then: it only serves its remaining connections.
    pub fn on_failure(&self, listener: FailureListener) {
        self.failure.listen(listener);
    }

    /// Stops: accepts no more connections and takes no more requests, lets those in flight finish and be
    /// answered until the shutdown timeout, closes the connections, ends the threads and removes the unix
    /// socket. Does nothing when called again.
    ///
    /// # Errors
    /// When a device still keeps a thread busy after the timeout; the thread ends by itself once the device
    /// lets it.
    pub fn shutdown(&mut self) -> Result<(), NbdError> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        // Before the listening sockets are closed, so that no other process can have taken the path.
        self.socket_file = None;
        let started = Instant::now();
        let stop_at = started.checked_add(self.shutdown_timeout).unwrap_or(started);
        for mailbox in &running.mailboxes {
            mailbox.post(Message::Stop(stop_at));
        }
        drop(running.queues);
        let wait = self.shutdown_timeout.saturating_add(SHUTDOWN_GRACE);
        let all_ended = running.alive.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
        let mut left = 0;
        for thread in running.threads {
            if !all_ended && !thread.is_finished() {
                left += 1;
            } else if thread.join().is_err() {
                tracing::error!("a server thread panicked");
            }
        }
        if left > 0 {
            return Err(NbdError::ShutdownTimeout { timeout: wait, running: left });
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown() {
            tracing::error!(%error, "the NBD server was dropped");
        }
    }
}

fn share(config: &ServerConfig, mailboxes: Vec<Arc<Mailbox<Message>>>) -> Shared {
    let per_thread = config.in_flight_bytes_total / mailboxes.len() as u64;
    Shared {
        budget: Budget::new(config.in_flight_bytes_total),
        remote_budgets: RemoteBudgets::new(config.in_flight_bytes_total),
        limits: ConnectionLimits {
            handshake_timeout: config.handshake_timeout,
            drain_timeout: config.drain_timeout,
            stalled_send_timeout: config.stalled_send_timeout,
            stalled_receive_timeout: config.stalled_receive_timeout,
            in_flight_bytes: config.in_flight_bytes_per_connection,
            idle_timeout: config.idle_timeout,
        },
        mailboxes,
        connections: Arc::new(Connections::new(config.max_connections)),
        next_id: AtomicUsize::new(1),
        tcp_tls: config.offer(config.tcp_tls),
        unix_tls: config.offer(config.unix_tls),
        pool_bytes: usize::try_from(per_thread.min(MAX_POOL_BYTES)).unwrap_or(0),
        spin_permit: SpinPermit::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::device::{BlockDevice, Client, ExportError, ExportInfo};
    use crate::protocol::constants::GREETING_LEN_BYTES;

    const TIMEOUT: Duration = Duration::from_secs(60);

    struct Nothing;

    impl ExportCatalog for Nothing {
        fn open(&self, _: &str, _: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
            Err(ExportError::Unknown)
        }
        fn list(&self, _: &Client) -> Vec<ExportInfo> {
            Vec::new()
        }
    }

    #[test]
    fn dead_thread_gets_no_connections() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let config =
            ServerConfig { unix_path: Some(path.clone()), ring_threads: 3, ..ServerConfig::default() };
        let mut server = Server::start(config, Arc::new(Nothing)).unwrap();
        let mailboxes = server.running.as_ref().unwrap().mailboxes.clone();
        let (sender, failed) = bounded(1);
        server.on_failure(Box::new(move || sender.send(()).unwrap()));
        mailboxes[1].post(Message::Die);
        let deadline = Instant::now() + TIMEOUT;
        while !mailboxes[1].is_dead() {
            assert!(Instant::now() < deadline, "it lives");
            std::thread::yield_now();
        }
        for _ in 0..6 {
            let mut client = UnixStream::connect(&path).unwrap();
            client.set_read_timeout(Some(TIMEOUT)).unwrap();
            client.read_exact(&mut [0; GREETING_LEN_BYTES]).unwrap();
        }
        assert!(failed.try_recv().is_err());
        mailboxes[0].post(Message::Die);
        failed.recv_timeout(TIMEOUT).unwrap();
        // A late registration is called as well.
        let (sender, failed) = bounded(1);
        server.on_failure(Box::new(move || sender.send(()).unwrap()));
        failed.recv_timeout(TIMEOUT).unwrap();
        server.shutdown().unwrap();
    }
}
