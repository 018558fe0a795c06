//! Flushes, FUA writes, and requests of disconnected clients, on a device that blocks until the test releases
//! it.
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use crate::common::{Client, TIMEOUT};
use blockd_nbd::constants::*;
use blockd_nbd::{
    BlockDevice, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, Progress, Server,
    ServerConfig,
};

const FLUSHES: usize = 10;

#[derive(Default)]
struct State {
    /// Number of started flushes and FUA writes.
    syncs_started: usize,
    /// Number of syncs that may complete.
    syncs_allowed: usize,
    sync_fails: bool,
    writes_started: usize,
    writes_held: bool,
    connections: usize,
}

/// Gate of a device: syncs and writes wait at it.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn wait(&self, failure: &str, mut is_met: impl FnMut(&State) -> bool) {
        let state = self.state.lock().unwrap();
        let (_state, waited) =
            self.changed.wait_timeout_while(state, TIMEOUT, |state| !is_met(state)).unwrap();
        assert!(!waited.timed_out(), "timeout: {failure}");
    }

    fn syncs_started(&self) -> usize {
        self.state.lock().unwrap().syncs_started
    }

    fn sync(&self) -> Result<(), DeviceError> {
        let mut number = 0;
        self.change(|state| {
            state.syncs_started += 1;
            number = state.syncs_started;
        });
        self.wait("a sync was not released", |state| state.syncs_allowed >= number);
        match self.state.lock().unwrap().sync_fails {
            true => Err(DeviceError::new(DeviceErrorKind::NoSpace, "injected failure")),
            false => Ok(()),
        }
    }
}

/// Device of a connection; all devices share the gate.
struct Opened(Arc<Gate>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.change(|state| state.connections -= 1);
    }
}

impl BlockDevice for Opened {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn try_read(&self, _: u64, _: &mut [u8]) -> Result<Progress, DeviceError> {
        Ok(Progress::Zeroes)
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<Progress, DeviceError> {
        Ok(Progress::Zeroes)
    }

    fn write(&self, _: u64, _: &[u8], fua: bool) -> Result<(), DeviceError> {
        self.0.change(|state| state.writes_started += 1);
        self.0.wait("a write was not released", |state| !state.writes_held);
        if fua { self.0.sync() } else { Ok(()) }
    }

    fn flush_key(&self) -> Option<u128> {
        Some(Arc::as_ptr(&self.0) as usize as u128)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.0.sync()
    }
}

struct One(Arc<Gate>);

impl ExportCatalog for One {
    fn open(&self, _: &str, _: &blockd_nbd::Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        self.0.change(|state| state.connections += 1);
        Ok(Arc::new(Opened(Arc::clone(&self.0))))
    }

    fn list(&self, _: &blockd_nbd::Client) -> Vec<ExportInfo> {
        vec![]
    }
}

/// Starts a server with one sync thread and one request thread.
fn start(dir: &Path) -> (Server, Arc<Gate>) {
    let gate = Arc::<Gate>::default();
    let config = ServerConfig {
        unix_path: Some(dir.join("nbd.sock")),
        ring_threads: 1,
        worker_threads: 1,
        ..ServerConfig::default()
    };
    (Server::start(config, Arc::new(One(Arc::clone(&gate)))).unwrap(), gate)
}

fn connect(dir: &Path) -> Client {
    let mut client = Client::unix(&dir.join("nbd.sock"));
    client.go("vol");
    client
}

/// Waits until the server has queued the client's requests: it then replies to a read on the ring thread, and
/// to no other request.
fn wait_until_queued(client: &mut Client) {
    let cookie = client.request(NBD_CMD_READ, 0, 0, 512);
    assert_eq!(client.reply(), (0, cookie), "a queued request was answered");
    client.receive(512);
}

fn start_flush(client: &mut Client, gate: &Gate) -> u64 {
    let cookie = client.request(NBD_CMD_FLUSH, 0, 0, 0);
    gate.wait("the flush did not start", |state| state.syncs_started == 1);
    cookie
}

#[test]
fn queued_flushes_share_one_that_starts_later() {
    for fails in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (_server, gate) = start(dir.path());
        let (mut one, mut other) = (connect(dir.path()), connect(dir.path()));
        let first = start_flush(&mut one, &gate);
        for client in [&mut one, &mut other] {
            for _ in 0..FLUSHES {
                client.request(NBD_CMD_FLUSH, 0, 0, 0);
            }
            wait_until_queued(client);
        }
        gate.change(|state| state.syncs_allowed = 1);
        assert_eq!(one.reply(), (0, first));
        gate.wait("the second flush did not start", |state| state.syncs_started == 2);
        // The first flush started earlier and has not answered them.
        wait_until_queued(&mut one);
        wait_until_queued(&mut other);
        gate.change(|state| {
            state.syncs_allowed = 2;
            state.sync_fails = fails;
        });
        let expected = if fails { NBD_ENOSPC } else { 0 };
        for client in [&mut one, &mut other] {
            for _ in 0..FLUSHES {
                assert_eq!(client.reply().0, expected);
            }
        }
        assert_eq!(gate.syncs_started(), 2);
    }
}

#[test]
fn blocked_syncs_do_not_delay_writes() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, gate) = start(dir.path());
    let (mut one, mut other) = (connect(dir.path()), connect(dir.path()));
    let flush = start_flush(&mut one, &gate);
    let fua = other.request(NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 0, 512);
    other.send(&[1; 512]);
    for client in [&mut one, &mut other] {
        assert_eq!(client.write(0, 4096, &[2; 512]), 0);
    }
    assert_eq!(gate.syncs_started(), 1);
    gate.change(|state| state.syncs_allowed = 2);
    assert_eq!((one.reply(), other.reply()), ((0, flush), (0, fua)));
}

#[test]
fn queued_writes_of_a_disconnected_client_are_dropped() {
    // More than the job limit of a connection, at which the server stops receiving.
    const WRITES: usize = 100;
    let dir = tempfile::tempdir().unwrap();
    let (_server, gate) = start(dir.path());
    gate.change(|state| state.writes_held = true);
    let mut client = connect(dir.path());
    for _ in 0..WRITES {
        client.request(NBD_CMD_WRITE, 0, 0, 512);
        client.send(&[1; 512]);
    }
    gate.wait("the first write did not start", |state| state.writes_started == 1);
    drop(client);
    // The server checks only requests above a minimum age for a disconnect.
    std::thread::sleep(std::time::Duration::from_millis(1));
    gate.change(|state| state.writes_held = false);
    gate.wait("the connection did not end", |state| state.connections == 0);
    assert_eq!(gate.state.lock().unwrap().writes_started, 1);
    assert_eq!(connect(dir.path()).write(0, 0, &[1; 512]), 0);
}

#[test]
fn queued_writes_before_a_disc_are_executed() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, gate) = start(dir.path());
    gate.change(|state| state.writes_held = true);
    let mut client = connect(dir.path());
    for _ in 0..FLUSHES {
        client.request(NBD_CMD_WRITE, 0, 0, 512);
        client.send(&[1; 512]);
    }
    wait_until_queued(&mut client);
    client.request(NBD_CMD_DISC, 0, 0, 0);
    gate.wait("the first write did not start", |state| state.writes_started == 1);
    // DISC has no reply. The server processes it before the later input of another client.
    drop(connect(dir.path()));
    drop(client);
    gate.change(|state| state.writes_held = false);
    gate.wait("the connection did not end", |state| state.connections == 0);
    assert_eq!(gate.state.lock().unwrap().writes_started, FLUSHES);
}
