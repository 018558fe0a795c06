//! RAM disk on a Unix socket: `ram_disk SOCKET SIZE_MIB [instant|blocking]`.
//!
//! `instant` (the default) executes requests on the ring threads, `blocking` passes them to the workers. The
//! difference is the cost of a thread switch.
//!
//! ```text
//! $ cargo run --release -p blockd-nbd --example ram_disk -- /tmp/ram.sock 64 &
//! $ nbdinfo 'nbd+unix:///?socket=/tmp/ram.sock'
//! ```

use std::error::Error;
use std::sync::Arc;

use blockd_nbd::{
    BlockDevice, Client, DeviceError, ExportCatalog, ExportError, ExportInfo, Progress, Server, ServerConfig,
    ZeroFlags,
};

const STRIPE_BYTES: usize = 1 << 20;

/// RAM disk in stripes, each with its own lock.
struct RamDisk {
    stripes: Vec<parking_lot::RwLock<Vec<u8>>>,
    instant: bool,
}

impl RamDisk {
    fn new(size_mib: usize, instant: bool) -> Self {
        let stripes = (0..size_mib).map(|_| parking_lot::RwLock::new(vec![0; STRIPE_BYTES])).collect();
        Self { stripes, instant }
    }

    /// Calls `act` for each stripe of a byte range: its index, the offset in it, the offset in the request,
    /// and the length.
    fn for_each_stripe(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        mut act: impl FnMut(usize, usize, usize, usize),
    ) {
        let (mut at, mut done, len) = (offset_bytes as usize, 0, len_bytes as usize);
        while done < len {
            let count = (STRIPE_BYTES - at % STRIPE_BYTES).min(len - done);
            act(at / STRIPE_BYTES, at % STRIPE_BYTES, done, count);
            at += count;
            done += count;
        }
    }
}

impl BlockDevice for RamDisk {
    fn size_bytes(&self) -> u64 {
        (self.stripes.len() * STRIPE_BYTES) as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        if !self.instant {
            return Ok(Progress::WouldBlock);
        }
        self.read(offset_bytes, buf)
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.for_each_stripe(offset_bytes, buf.len() as u64, |stripe, from, to, len| {
            buf[to..to + len].copy_from_slice(&self.stripes[stripe].read()[from..from + len]);
        });
        Ok(Progress::Done)
    }

    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        if !self.instant {
            return Ok(Progress::WouldBlock);
        }
        self.write(offset_bytes, data, false).map(|()| Progress::Done)
    }

    fn write(&self, offset_bytes: u64, data: &[u8], _fua: bool) -> Result<(), DeviceError> {
        self.for_each_stripe(offset_bytes, data.len() as u64, |stripe, to, from, len| {
            self.stripes[stripe].write()[to..to + len].copy_from_slice(&data[from..from + len]);
        });
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.write_zeroes(offset_bytes, len_bytes, ZeroFlags { fua, ..ZeroFlags::default() })
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, _: ZeroFlags) -> Result<(), DeviceError> {
        self.for_each_stripe(offset_bytes, len_bytes, |stripe, to, _, len| {
            self.stripes[stripe].write()[to..to + len].fill(0);
        });
        Ok(())
    }
}

struct Single(Arc<RamDisk>);

impl ExportCatalog for Single {
    fn open(&self, name: &str, _: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        if name.is_empty() {
            Ok(Arc::clone(&self.0) as Arc<dyn BlockDevice>)
        } else {
            Err(ExportError::Unknown)
        }
    }

    fn list(&self, _: &Client) -> Vec<ExportInfo> {
        let size_bytes = self.0.size_bytes();
        vec![ExportInfo {
            name: String::new(),
            description: "RAM disk".to_owned(),
            size_bytes,
            read_only: false,
        }]
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: ram_disk SOCKET SIZE_MIB [instant|blocking]";
    let path = args.next().ok_or(usage)?;
    let size_mib = args.next().ok_or(usage)?.parse()?;
    let instant = args.next().is_none_or(|mode| mode != "blocking");
    let config = ServerConfig { unix_path: Some(path.into()), ..ServerConfig::default() };
    let _server = Server::start(config, Arc::new(Single(Arc::new(RamDisk::new(size_mib, instant)))))?;
    loop {
        std::thread::park();
    }
}
