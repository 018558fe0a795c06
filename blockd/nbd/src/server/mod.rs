//! Start and shutdown of a server.

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
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::config::ServerConfig;
use crate::connection::budget::Budget;
use crate::connection::remote_budgets::RemoteBudgets;
use crate::device::ExportCatalog;
use crate::error::NbdError;
use crate::server::connection_count::Connections;
use crate::server::listener::{Listener, UnixSocketFile};
use crate::server::mailbox::{Mailbox, Message};
use crate::server::queues::{Queues, SyncQueue};
use crate::server::ring_thread::{RingThread, ServerState};
use crate::server::spin::SpinPermit;
use crate::server::thread_end::{Failure, FailureListener, ThreadEnd};
use crate::server::worker::Job;

/// Maximum size of the buffer pool of a ring thread, in bytes.
const MAX_POOL_BYTES: u64 = 64 << 20;
/// Number of threads that query the export catalog.
const LOOKUP_THREADS: usize = 2;
/// Number of threads that open the exports that wait: most of them sleep.
const REMOTE_LOOKUP_THREADS: usize = 8;
/// Number of threads that compute TLS handshakes: it bounds the processor time of clients that only connect.
const HANDSHAKE_THREADS: usize = 1;
/// Time after the shutdown timeout in which threads drop aborted connections.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// A running server. Dropping it shuts it down.
pub struct Server {
    tcp_addrs: Vec<SocketAddr>,
    config: Arc<ServerConfig>,
    socket_file: Option<UnixSocketFile>,
    running: Option<Running>,
    failure: Arc<Failure>,
}

struct Running {
    mailboxes: Vec<Arc<Mailbox<Message>>>,
    queues: Queues,
    threads: Vec<JoinHandle<()>>,
    /// Each thread holds a sender; the receiver disconnects when all threads have ended.
    alive: (Sender<Infallible>, Receiver<Infallible>),
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("tcp_addrs", &self.tcp_addrs)
            .field("unix_path", &self.config.unix_path)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Starts listening and serving.
    ///
    /// # Errors
    /// A setting is invalid, an address is not available, or the system refuses an io_uring or a thread.
    pub fn start(config: ServerConfig, catalog: Arc<dyn ExportCatalog>) -> Result<Self, NbdError> {
        config.check()?;
        let config = Arc::new(config);
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
        let mailbox = |index| match Mailbox::new() {
            Ok(mailbox) => Ok(Arc::new(mailbox)),
            Err(source) => Err(NbdError::Thread { name: format!("nbd-ring-{index}"), source }),
        };
        let mailboxes = (0..config.ring_threads).map(mailbox).collect::<Result<Vec<_>, _>>()?;
        let (requests, request_queue) = unbounded();
        let (lookups, lookup_queue) = unbounded();
        let (remote_lookups, remote_lookup_queue) = unbounded();
        let (handshakes, handshake_queue) = unbounded();
        let syncs = Arc::<SyncQueue>::default();
        let sync_items = syncs.items();
        let shared_catalog = Arc::clone(&catalog);
        let queues = Queues { requests, syncs, lookups, remote_lookups, handshakes, catalog: shared_catalog };
        let mut server = Self {
            tcp_addrs,
            config: Arc::clone(&config),
            socket_file,
            running: Some(Running {
                mailboxes: mailboxes.clone(),
                queues,
                threads: Vec::new(),
                alive: bounded(0),
            }),
            failure: Arc::default(),
        };
        // From here on, a drop of the server ends the started threads.
        let work = |jobs: Receiver<Job>| {
            let catalog = Arc::clone(&catalog);
            move || worker::work(&jobs, &*catalog)
        };
        let handshake_threads = if config.tls.is_some() { HANDSHAKE_THREADS } else { 0 };
        server.spawn_many("nbd-worker", config.worker_threads, &work(request_queue))?;
        server.spawn_many("nbd-lookup", LOOKUP_THREADS, &work(lookup_queue))?;
        server.spawn_many("nbd-remote", REMOTE_LOOKUP_THREADS, &work(remote_lookup_queue))?;
        server.spawn_many("nbd-tls", handshake_threads, &work(handshake_queue))?;
        server.spawn_many("nbd-sync", config.worker_threads, &move || sync_items.serve(&*catalog))?;
        server.start_rings(&Arc::new(server_state(config, mailboxes)), listeners)?;
        for addr in &server.tcp_addrs {
            tracing::info!(%addr, "serving NBD over TCP");
        }
        if let Some(path) = &server.config.unix_path {
            tracing::info!(path = %path.display(), "serving NBD on a Unix socket");
        }
        Ok(server)
    }

    fn start_rings(&mut self, shared: &Arc<ServerState>, listeners: Vec<Listener>) -> Result<(), NbdError> {
        // Only the server has other senders, so its drop after an error ends the worker threads.
        let Some(queues) = self.running.as_ref().map(|running| running.queues.clone()) else { return Ok(()) };
        assert!(!shared.mailboxes.is_empty(), "a server has ring threads");
        let (ready_sender, ready) = bounded(shared.mailboxes.len());
        // The first thread accepts the connections of all threads.
        let mut listeners = Some(listeners);
        for (index, mailbox) in shared.mailboxes.iter().enumerate() {
            let (shared, mailbox, queues) = (Arc::clone(shared), Arc::clone(mailbox), queues.clone());
            let ready = ready_sender.clone();
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
                        // The receiver is gone if the start has failed.
                        let _ = ready.send(Ok(()));
                        drop(ready);
                        end.is_expected = false;
                        match thread.run() {
                            Ok(()) => end.is_expected = true,
                            Err(error) => tracing::error!(thread = index, %error, "a server thread failed"),
                        }
                    }
                    Err(source) => {
                        let _ = ready.send(Err(source));
                    }
                }
                drop(end);
            })?;
        }
        drop(ready_sender);
        for index in 0..shared.mailboxes.len() {
            match ready.recv() {
                Ok(Ok(())) => {}
                Ok(Err(source)) => return Err(NbdError::RingSetup { source }),
                Err(_) => {
                    let source = std::io::Error::other("the thread ended during its start");
                    return Err(NbdError::Thread { name: format!("nbd-ring-{index}"), source });
                }
            }
        }
        Ok(())
    }

    fn spawn_many(
        &mut self,
        name: &str,
        count: usize,
        act: &(impl Fn() + Clone + Send + 'static),
    ) -> Result<(), NbdError> {
        (0..count).try_for_each(|index| self.spawn(format!("{name}-{index}"), act.clone()))
    }

    fn spawn(&mut self, name: String, act: impl FnOnce() + Send + 'static) -> Result<(), NbdError> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let alive = running.alive.0.clone();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            act();
            drop(alive);
        });
        running.threads.push(thread.map_err(|source| NbdError::Thread { name, source })?);
        Ok(())
    }

    /// Returns the bound TCP addresses with their ports, in the order of [`ServerConfig::tcp`].
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.tcp_addrs
    }

    /// Registers a callback for a failure of the thread that accepts connections; calls it at once if the
    /// thread has failed. The server then serves existing connections of other threads only and should be
    /// shut down.
    pub fn on_failure(&self, listener: FailureListener) {
        self.failure.listen(listener);
    }

    /// Shuts the server down: removes the Unix socket, stops accepting connections and requests, answers the
    /// requests in flight within the shutdown timeout, closes the connections and ends the threads. A second
    /// call has no effect.
    ///
    /// # Errors
    /// A thread still runs after the timeout, usually in a call of a device; it ends when the call returns.
    pub fn shutdown(&mut self) -> Result<(), NbdError> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        // Precedes the close of the listening sockets, after which another process may replace the file.
        self.socket_file = None;
        let started = Instant::now();
        let stop_at = started.checked_add(self.config.shutdown_timeout).unwrap_or(started);
        for mailbox in &running.mailboxes {
            mailbox.post(Message::Stop(stop_at));
        }
        drop(running.queues);
        let (alive_sender, alive) = running.alive;
        drop(alive_sender);
        let wait = self.config.shutdown_timeout.saturating_add(SHUTDOWN_GRACE);
        let all_ended = alive.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
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
            tracing::error!(%error, "shutdown of a dropped NBD server failed");
        }
    }
}

fn server_state(config: Arc<ServerConfig>, mailboxes: Vec<Arc<Mailbox<Message>>>) -> ServerState {
    assert!(
        mailboxes.len() == config.ring_threads && !mailboxes.is_empty(),
        "each ring thread has a mailbox"
    );
    let per_thread = config.in_flight_bytes_total / mailboxes.len() as u64;
    ServerState {
        budget: Budget::new(config.in_flight_bytes_total),
        remote_budgets: RemoteBudgets::new(config.in_flight_bytes_total),
        mailboxes,
        connections: Arc::new(Connections::new(config.max_connections)),
        next_id: AtomicUsize::new(1),
        pool_bytes: usize::try_from(per_thread.min(MAX_POOL_BYTES)).unwrap_or(0),
        spin_permit: SpinPermit::default(),
        config,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::protocol::constants::GREETING_LEN_BYTES;
    use crate::test_device::{Catalog, TIMEOUT};

    #[test]
    fn failed_ring_thread_gets_no_connections() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let config =
            ServerConfig { unix_path: Some(path.clone()), ring_threads: 3, ..ServerConfig::default() };
        let mut server = Server::start(config, Arc::new(Catalog(Vec::new()))).unwrap();
        let mailboxes = server.running.as_ref().unwrap().mailboxes.clone();
        let (sender, failed) = bounded(1);
        server.on_failure(Box::new(move || sender.send(()).unwrap()));
        mailboxes[1].post(Message::Die);
        let deadline = Instant::now() + TIMEOUT;
        while !mailboxes[1].is_dead() {
            assert!(Instant::now() < deadline, "the thread still runs");
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
        // A later registration is called at once.
        let (sender, failed) = bounded(1);
        server.on_failure(Box::new(move || sender.send(()).unwrap()));
        failed.recv_timeout(TIMEOUT).unwrap();
        server.shutdown().unwrap();
    }
}
