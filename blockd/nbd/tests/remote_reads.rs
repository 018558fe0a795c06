//! Requests that wait for remote data: they occupy no thread and delay no others.
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use crate::common::{Client, TIMEOUT, info_request, meta_request};
use blockd_nbd::constants::*;
use blockd_nbd::{
    Access, BlockDevice, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, OnFetched,
    Progress, Server, ServerConfig,
};

const SIZE_BYTES: u64 = 64 << 20;
/// Offset from which the data is remote.
const REMOTE_OFFSET_BYTES: u64 = 32 << 20;
/// Source key of a device without remote data.
const LOCAL_SOURCE: u128 = u128::MAX;
/// Number of reads whose bytes exceed the in-flight limits of the tests.
const READS_ABOVE_LIMIT: u64 = 32;
/// Length of these reads, in bytes.
const READ_BYTES: u32 = 512 << 10;

/// Device whose second half is remote: the test completes its reads.
#[derive(Default)]
struct RemoteDevice {
    source: u128,
    waiting: Mutex<Vec<OnFetched>>,
    /// Number of connections that have dropped the device.
    left: Mutex<usize>,
    changed: Condvar,
}

impl RemoteDevice {
    fn take_waiting(&self, count: usize) -> Vec<OnFetched> {
        let waiting = self.waiting.lock().unwrap();
        let (mut waiting, timeout) =
            self.changed.wait_timeout_while(waiting, TIMEOUT, |waiting| waiting.len() < count).unwrap();
        assert!(!timeout.timed_out(), "timeout: fewer than {count} requests wait");
        std::mem::take(&mut *waiting)
    }

    fn wait_until_left(&self) {
        let left = self.left.lock().unwrap();
        let (_left, timeout) = self.changed.wait_timeout_while(left, TIMEOUT, |left| *left == 0).unwrap();
        assert!(!timeout.timed_out(), "timeout: an ended connection keeps its device");
    }
}

/// Device of a connection.
struct Opened(Arc<RemoteDevice>);

impl Drop for Opened {
    fn drop(&mut self) {
        *self.0.left.lock().unwrap() += 1;
        self.0.changed.notify_all();
    }
}

impl BlockDevice for Opened {
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn may_be_remote(&self) -> bool {
        self.0.source != LOCAL_SOURCE
    }

    fn source_key(&self) -> u128 {
        self.0.source
    }

    fn prefetch_async(
        &self,
        access: Access,
        offset_bytes: u64,
        _: u64,
        then: OnFetched,
    ) -> Option<OnFetched> {
        if access == Access::Write || offset_bytes < REMOTE_OFFSET_BYTES {
            return Some(then);
        }
        self.0.waiting.lock().unwrap().push(then);
        self.0.changed.notify_all();
        None
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        buf.fill((offset_bytes >> 12) as u8);
        Ok(Progress::Done)
    }

    fn write(&self, _: u64, _: &[u8], _: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Catalog of devices by export name.
struct Named(Vec<(&'static str, Arc<RemoteDevice>)>);

impl ExportCatalog for Named {
    fn open(&self, name: &str, _: &blockd_nbd::Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        let found = self.0.iter().find(|(known, _)| *known == name).ok_or(ExportError::Unknown)?;
        Ok(Arc::new(Opened(Arc::clone(&found.1))))
    }

    fn list(&self, _: &blockd_nbd::Client) -> Vec<ExportInfo> {
        vec![]
    }
}

fn device(source: u128) -> Arc<RemoteDevice> {
    Arc::new(RemoteDevice { source, ..RemoteDevice::default() })
}

fn serve(dir: &Path, in_flight_bytes_total: u64, devices: Vec<(&'static str, Arc<RemoteDevice>)>) -> Server {
    let config = ServerConfig {
        unix_path: Some(dir.join("nbd.sock")),
        tcp: vec!["127.0.0.1:0".parse().unwrap()],
        ring_threads: 1,
        worker_threads: 2,
        in_flight_bytes_total,
        ..ServerConfig::default()
    };
    Server::start(config, Arc::new(Named(devices))).unwrap()
}

fn connect(dir: &Path, name: &str) -> Client {
    let mut client = Client::unix(&dir.join("nbd.sock"));
    client.go(name);
    client
}

fn start(dir: &Path) -> (Server, Arc<RemoteDevice>, Client) {
    let device = device(1);
    let server = serve(dir, 512 << 20, vec![("vol", Arc::clone(&device))]);
    (server, device, connect(dir, "vol"))
}

/// Requests more remote data than the in-flight limits.
fn exceed_limit(client: &mut Client) {
    for n in 0..READS_ABOVE_LIMIT {
        client.request(NBD_CMD_READ, 0, REMOTE_OFFSET_BYTES + n * u64::from(READ_BYTES), READ_BYTES);
    }
}

#[test]
fn silent_source_is_limited_to_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let (silent, other, local) = (device(1), device(2), device(LOCAL_SOURCE));
    let devices = vec![("silent", silent.clone()), ("other", other.clone()), ("local", local)];
    let _server = serve(dir.path(), 8 << 20, devices);
    let mut client = connect(dir.path(), "silent");
    exceed_limit(&mut client);
    let mut waiting = silent.take_waiting(2);
    // Other devices have the rest of the budget.
    assert_eq!(connect(dir.path(), "local").read(0, 6 << 20).0, 0);
    let mut other_client = connect(dir.path(), "other");
    other_client.request(NBD_CMD_READ, 0, REMOTE_OFFSET_BYTES, READ_BYTES);
    other.take_waiting(1).into_iter().for_each(|then| then(Ok(())));
    assert_eq!(other_client.reply().0, 0);
    other_client.receive(READ_BYTES as usize);
    // All reads complete once the source responds.
    let mut answered = 0;
    loop {
        for then in waiting {
            then(Ok(()));
            assert_eq!(client.reply().0, 0);
            client.receive(READ_BYTES as usize);
            answered += 1;
        }
        if answered == READS_ABOVE_LIMIT {
            break;
        }
        waiting = silent.take_waiting(1);
    }
    // The connection ends after its hang-up poll, and another one can use its index.
    client.disconnect();
    silent.wait_until_left();
    assert_eq!(connect(dir.path(), "silent").read(0, 4096).0, 0);
}

#[test]
fn disconnected_client_releases_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let silent = device(1);
    let _server = serve(dir.path(), 8 << 20, vec![("silent", silent.clone())]);
    let mut disconnected = connect(dir.path(), "silent");
    exceed_limit(&mut disconnected);
    let kept = silent.take_waiting(2);
    drop(disconnected);
    // The remote data has not arrived.
    silent.wait_until_left();
    let mut client = connect(dir.path(), "silent");
    exceed_limit(&mut client);
    let waiting = silent.take_waiting(2);
    kept.into_iter().for_each(|then| then(Ok(())));
    waiting.into_iter().for_each(|then| then(Ok(())));
    assert_eq!(client.reply().0, 0);
}

#[test]
fn half_closed_client_gets_errors_for_remote_reads() {
    let dir = tempfile::tempdir().unwrap();
    let (by_unix, by_tcp) = (device(1), device(2));
    let server = serve(dir.path(), 8 << 20, vec![("unix", by_unix.clone()), ("tcp", by_tcp.clone())]);
    let unix = UnixStream::connect(dir.path().join("nbd.sock")).unwrap();
    let tcp = TcpStream::connect(server.local_addrs()[0]).unwrap();
    let (unix_end, tcp_end) = (unix.try_clone().unwrap(), tcp.try_clone().unwrap());
    let end_unix = || unix_end.shutdown(Shutdown::Write).unwrap();
    let end_tcp = || tcp_end.shutdown(Shutdown::Write).unwrap();
    let clients: [(_, _, _, &dyn Fn()); 2] = [
        (Client::over_unix(unix), "unix", by_unix, &end_unix),
        (Client::over_tcp(tcp), "tcp", by_tcp, &end_tcp),
    ];
    for (mut client, name, silent, close_writing) in clients {
        client.go(name);
        exceed_limit(&mut client);
        let kept = silent.take_waiting(2);
        // The end of the stream follows requests that the server does not receive yet.
        close_writing();
        // A local client that closes its side has disconnected.
        let answers = if name == "unix" { 0 } else { READS_ABOVE_LIMIT };
        for _ in 0..answers {
            assert_eq!(client.reply().0, NBD_ESHUTDOWN);
        }
        client.assert_closed();
        silent.wait_until_left();
        drop(kept);
    }
}

#[test]
fn remote_reads_do_not_block_local_requests() {
    const READS: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let (_server, device, mut client) = start(dir.path());
    let cookies: Vec<u64> =
        (0..READS).map(|n| client.request(NBD_CMD_READ, 0, REMOTE_OFFSET_BYTES + n * 4096, 4096)).collect();
    let waiting = device.take_waiting(READS as usize);
    // More requests wait than there are workers.
    assert_eq!(client.write(NBD_CMD_FLAG_FUA, 0, &[1; 4096]), 0);
    assert_eq!(client.command(NBD_CMD_FLUSH, 0, 0, 0), 0);
    assert_eq!(client.read(0, 4096).0, 0);
    // Half of the reads fail; they complete in reverse order.
    for (n, then) in waiting.into_iter().enumerate().rev() {
        match n % 2 {
            0 => then(Ok(())),
            _ => then(Err(DeviceError::new(DeviceErrorKind::Io, "injected failure"))),
        }
    }
    let mut answered = [0, 0];
    for _ in 0..READS {
        let (errno, cookie) = client.reply();
        let n = cookies.iter().position(|known| *known == cookie).unwrap() as u64;
        if errno == 0 {
            assert_eq!(client.receive(4096), vec![((REMOTE_OFFSET_BYTES >> 12) + n) as u8; 4096]);
            answered[0] += 1;
        } else {
            assert_eq!(errno, NBD_EIO);
            answered[1] += 1;
        }
    }
    // Two workers may have started the prefetches in any order, so the failed cookies are unknown.
    assert_eq!(answered, [READS / 2; 2]);
    client.disconnect();
}

#[test]
fn block_status_of_remote_data_occupies_no_worker() {
    const REQUESTS: usize = 5;
    let dir = tempfile::tempdir().unwrap();
    let (_server, device, mut other) = start(dir.path());
    let mut client = Client::unix(&dir.path().join("nbd.sock"));
    client.hello(3);
    let options = [
        (NBD_OPT_STRUCTURED_REPLY, Vec::new()),
        (NBD_OPT_SET_META_CONTEXT, meta_request(b"vol", &["base:allocation"])),
        (NBD_OPT_GO, info_request(b"vol", &[])),
    ];
    for (option, data) in options {
        assert_eq!(client.option(option, &data).last().unwrap().0, NBD_REP_ACK);
    }
    for _ in 0..REQUESTS {
        client.request(NBD_CMD_BLOCK_STATUS, 0, REMOTE_OFFSET_BYTES, 4096);
    }
    let waiting = device.take_waiting(REQUESTS);
    // More requests wait than there are workers.
    assert_eq!(other.read(0, 4096).0, 0);
    waiting.into_iter().for_each(|then| then(Ok(())));
    for _ in 0..REQUESTS {
        // The header of the chunk, the id of the context and one extent.
        let chunk = client.receive(20 + 4 + 8);
        assert_eq!(chunk[6..8], NBD_REPLY_TYPE_BLOCK_STATUS.to_be_bytes());
    }
}

#[test]
fn fetch_after_a_disconnect_has_no_effect() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, device, mut client) = start(dir.path());
    client.request(NBD_CMD_READ, 0, REMOTE_OFFSET_BYTES, 4096);
    let waiting = device.take_waiting(1);
    drop(client);
    drop(UnixStream::connect(dir.path().join("nbd.sock")).unwrap());
    for then in waiting {
        then(Ok(()));
    }
    let mut client = Client::unix(&dir.path().join("nbd.sock"));
    client.go("vol");
    assert_eq!(client.read(0, 4096).0, 0);
    client.disconnect();
    server.shutdown().unwrap();
}
