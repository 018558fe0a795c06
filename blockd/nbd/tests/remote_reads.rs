//! Tests of requests with remote data: they wait without a thread and delay no other.
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use crate::common::{Client, TIMEOUT};
use blockd_nbd::constants::*;
use blockd_nbd::{
    Access, BlockDevice, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, OnFetched,
    Progress, Server, ServerConfig,
};

const SIZE_BYTES: u64 = 64 << 20;
/// From here on the data is far away.
const FAR_BYTES: u64 = 32 << 20;
/// The source of a device that has nothing far away.
const NEAR: u128 = u128::MAX;
/// So many reads of so many bytes are more than the tests let be in flight.
const MUCH: u64 = 32;
const PIECE_BYTES: u32 = 512 << 10;

/// Reads of its second half wait until the test lets them go; in the first half everything is near.
#[derive(Default)]
struct FarDevice {
    source: u128,
    waiting: Mutex<Vec<OnFetched>>,
    /// Number of connections that released it.
    left: Mutex<usize>,
    changed: Condvar,
}

impl FarDevice {
    fn take_waiting(&self, count: usize) -> Vec<OnFetched> {
        let waiting = self.waiting.lock().unwrap();
        let (mut waiting, timeout) =
            self.changed.wait_timeout_while(waiting, TIMEOUT, |waiting| waiting.len() < count).unwrap();
        assert!(!timeout.timed_out(), "{count} requests never came");
        std::mem::take(&mut *waiting)
    }

    fn wait_until_left(&self) {
        let left = self.left.lock().unwrap();
        let (_left, timeout) = self.changed.wait_timeout_while(left, TIMEOUT, |left| *left == 0).unwrap();
        assert!(!timeout.timed_out(), "a connection that is gone keeps its device");
    }
}

/// Handle of a connection.
struct Opened(Arc<FarDevice>);

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
        self.0.source != NEAR
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
        if access == Access::Write || offset_bytes < FAR_BYTES {
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

/// Devices by the names of their exports.
struct Named(Vec<(&'static str, Arc<FarDevice>)>);

impl ExportCatalog for Named {
    fn open(&self, name: &str, _: &blockd_nbd::Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        let found = self.0.iter().find(|(known, _)| *known == name).ok_or(ExportError::Unknown)?;
        Ok(Arc::new(Opened(Arc::clone(&found.1))))
    }

    fn list(&self, _: &blockd_nbd::Client) -> Vec<ExportInfo> {
        vec![]
    }
}

fn device(source: u128) -> Arc<FarDevice> {
    Arc::new(FarDevice { source, ..FarDevice::default() })
}

fn serve(dir: &Path, in_flight_bytes_total: u64, devices: Vec<(&'static str, Arc<FarDevice>)>) -> Server {
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

fn start(dir: &Path) -> (Server, Arc<FarDevice>, Client) {
    let device = device(1);
    let server = serve(dir, 512 << 20, vec![("vol", Arc::clone(&device))]);
    (server, device, connect(dir, "vol"))
}

/// Asks for more of what is far than may be in flight.
fn ask_for_much(client: &mut Client) {
    for n in 0..MUCH {
        client.request(NBD_CMD_READ, 0, FAR_BYTES + n * u64::from(PIECE_BYTES), PIECE_BYTES);
    }
}

#[test]
fn silent_source_is_limited_to_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let (silent, other, near) = (device(1), device(2), device(NEAR));
    let devices = vec![("silent", silent.clone()), ("other", other.clone()), ("near", near)];
    let _server = serve(dir.path(), 8 << 20, devices);
    let mut client = connect(dir.path(), "silent");
    ask_for_much(&mut client);
    let mut waiting = silent.take_waiting(2);
    // Most of the budget is free for requests that do not need that source.
    assert_eq!(connect(dir.path(), "near").read(0, 6 << 20).0, 0);
    let mut elsewhere = connect(dir.path(), "other");
    elsewhere.request(NBD_CMD_READ, 0, FAR_BYTES, PIECE_BYTES);
    other.take_waiting(1).into_iter().for_each(|then| then(Ok(())));
    assert_eq!(elsewhere.reply().0, 0);
    elsewhere.receive(PIECE_BYTES as usize);
    // When it speaks again, all of it comes.
    let mut answered = 0;
    loop {
        for then in waiting {
            then(Ok(()));
            assert_eq!(client.reply().0, 0);
            client.receive(PIECE_BYTES as usize);
            answered += 1;
        }
        if answered == MUCH {
            break;
        }
        waiting = silent.take_waiting(1);
    }
    // It was watched for its end while nothing was received; it ends all the same, and its place is another
    // one's.
    client.disconnect();
    silent.wait_until_left();
    assert_eq!(connect(dir.path(), "silent").read(0, 4096).0, 0);
}

#[test]
fn leaving_client_returns_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let silent = device(1);
    let _server = serve(dir.path(), 8 << 20, vec![("silent", silent.clone())]);
    let mut gone = connect(dir.path(), "silent");
    ask_for_much(&mut gone);
    let kept = silent.take_waiting(2);
    drop(gone);
    // Though nothing has come that its requests wait for.
    silent.wait_until_left();
    let mut client = connect(dir.path(), "silent");
    ask_for_much(&mut client);
    let waiting = silent.take_waiting(2);
    kept.into_iter().for_each(|then| then(Ok(())));
    waiting.into_iter().for_each(|then| then(Ok(())));
    assert_eq!(client.reply().0, 0);
}

#[test]
fn half_closed_client_gets_early_remote_errors() {
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
        ask_for_much(&mut client);
        let kept = silent.take_waiting(2);
        // The end is behind requests that are not received as long as these wait.
        close_writing();
        // One of this host that closes its side is gone.
        let answers = if name == "unix" { 0 } else { MUCH };
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
        (0..READS).map(|n| client.request(NBD_CMD_READ, 0, FAR_BYTES + n * 4096, 4096)).collect();
    let waiting = device.take_waiting(READS as usize);
    // Both workers would be kept long since.
    assert_eq!(client.write(NBD_CMD_FLAG_FUA, 0, &[1; 4096]), 0);
    assert_eq!(client.command(NBD_CMD_FLUSH, 0, 0, 0), 0);
    assert_eq!(client.read(0, 4096).0, 0);
    // They come in any order; half of them not at all.
    for (n, then) in waiting.into_iter().enumerate().rev() {
        match n % 2 {
            0 => then(Ok(())),
            _ => then(Err(DeviceError::new(DeviceErrorKind::Io, "it cannot be had"))),
        }
    }
    let mut answered = [0, 0];
    for _ in 0..READS {
        let (errno, cookie) = client.reply();
        let n = cookies.iter().position(|known| *known == cookie).unwrap() as u64;
        if errno == 0 {
            assert_eq!(client.receive(4096), vec![((FAR_BYTES >> 12) + n) as u8; 4096]);
            answered[0] += 1;
        } else {
            assert_eq!(errno, NBD_EIO);
            answered[1] += 1;
        }
    }
    // Two workers may have left their first requests in either order, so that it is not known which failed.
    assert_eq!(answered, [READS / 2; 2]);
    client.disconnect();
}

#[test]
fn disconnected_client_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (mut server, device, mut client) = start(dir.path());
    client.request(NBD_CMD_READ, 0, FAR_BYTES, 4096);
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
