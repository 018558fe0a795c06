//! Requests whose data has to come from afar wait without a thread, and nobody waits along.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod common;

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};

use blockd_nbd::constants::*;
use blockd_nbd::{
    Access, BlockDevice, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, Progress,
    Server, ServerConfig, WhenNear, ZeroFlags,
};
use common::{Client, PATIENCE};

const SIZE_BYTES: u64 = 64 << 20;
/// From here on the data is far away.
const FAR_BYTES: u64 = 32 << 20;

/// Reads of its second half wait until the test lets them go; in the first half everything is near.
#[derive(Default)]
struct FarDevice {
    waiting: Mutex<Vec<WhenNear>>,
    changed: Condvar,
}

impl FarDevice {
    fn take_waiting(&self, count: usize) -> Vec<WhenNear> {
        let waiting = self.waiting.lock().unwrap();
        let (mut waiting, timeout) =
            self.changed.wait_timeout_while(waiting, PATIENCE, |waiting| waiting.len() < count).unwrap();
        assert!(!timeout.timed_out(), "{count} requests never came");
        std::mem::take(&mut *waiting)
    }
}

impl BlockDevice for FarDevice {
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn may_be_far(&self) -> bool {
        true
    }

    fn bring_near(&self, access: Access, offset_bytes: u64, _: u64, then: WhenNear) -> Option<WhenNear> {
        if access == Access::Write || offset_bytes < FAR_BYTES {
            return Some(then);
        }
        self.waiting.lock().unwrap().push(then);
        self.changed.notify_all();
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

    fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: ZeroFlags) -> Result<(), DeviceError> {
        Ok(())
    }
}

struct Only(Arc<FarDevice>);

impl ExportCatalog for Only {
    fn open(&self, _: &str, _: &blockd_nbd::Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        Ok(self.0.clone())
    }

    fn list(&self, _: &blockd_nbd::Client) -> Vec<ExportInfo> {
        vec![]
    }
}

fn start(dir: &std::path::Path) -> (Server, Arc<FarDevice>, Client) {
    let socket = dir.join("nbd.sock");
    let config = ServerConfig {
        unix_path: Some(socket.clone()),
        ring_threads: 1,
        worker_threads: 2,
        ..ServerConfig::default()
    };
    let device = Arc::new(FarDevice::default());
    let server = Server::start(config, Arc::new(Only(device.clone()))).unwrap();
    let mut client = Client::unix(&socket);
    client.go("vol");
    (server, device, client)
}

#[test]
fn many_wait_for_what_is_far_and_everything_else_goes_on() {
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
fn who_is_gone_is_not_waited_for() {
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
