//! Cost of dirty tracking: the same server and volume with and without tracking.
//!
//! Both serve a new volume over NBD in this process to fio, 4 KiB random writes that touch each block once,
//! and then once more; passes alternate. The result is this process's CPU time per write, which other load
//! disturbs least, next to the writes per second. `cargo bench -p blockd-benches --bench tracking -- ROUNDS`

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use blockd_extent::VolumeId;
use blockd_nbd::{
    BlockDevice, Client, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, Progress,
    Server, ServerConfig, ZeroFlags,
};
use blockd_volume::{Content, Volume, VolumeError};
use rustix::time::{ClockId, clock_gettime};
use std::{path::Path, process::Command, sync::Arc, time::Duration};

const SIZE_BYTES: u64 = 256 << 20;
const WRITES: u64 = SIZE_BYTES / 4096;
const ROUNDS: usize = 9;

struct Served(Arc<Volume>);

fn failed(error: &VolumeError) -> DeviceError {
    DeviceError::new(DeviceErrorKind::Io, error.to_string())
}

fn progress(content: Content) -> Progress {
    match content {
        Content::Data => Progress::Done,
        Content::Zeroes => Progress::Zeroes,
    }
}

impl BlockDevice for Served {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.0.read_or_zeroes(offset_bytes, buf).map(progress).map_err(|error| failed(&error))
    }

    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), DeviceError> {
        self.0.write(offset_bytes, data, fua).map_err(|error| failed(&error))
    }

    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        let done = self.0.try_write(offset_bytes, data).map_err(|error| failed(&error))?;
        Ok(if done { Progress::Done } else { Progress::WouldBlock })
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush().map_err(|error| failed(&error))
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.0.trim(offset_bytes, len_bytes, fua).map_err(|error| failed(&error))
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        self.0.write_zeroes(offset_bytes, len_bytes, flags.no_hole, flags.fua).map_err(|error| failed(&error))
    }
}

impl ExportCatalog for Served {
    fn open(&self, _: &str, _: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        Ok(Arc::new(Self(self.0.clone())))
    }

    fn list(&self, _: &Client) -> Vec<ExportInfo> {
        Vec::new()
    }
}

/// Result of a pass.
#[derive(Clone, Copy)]
struct Pass {
    cpu_ns: f64,
    writes_per_s: f64,
}

/// Returns the CPU time of this process, without fio.
fn cpu() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

/// Writes each block once in random order.
fn pass(socket: &Path) -> Pass {
    let before = cpu();
    let output = Command::new("fio")
        .args(["--name=w", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=32"])
        .args(["--output-format=terse", "--randseed=7"])
        .arg(format!("--size={SIZE_BYTES}"))
        .arg(format!("--uri=nbd+unix:///v?socket={}", socket.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let used = cpu() - before;
    let text = String::from_utf8_lossy(&output.stdout);
    // Field 49 of fio's terse output, version 3, is the writes a second.
    let writes_per_s = text.trim().split(';').nth(48).unwrap().parse().unwrap();
    Pass { cpu_ns: used.as_nanos() as f64 / WRITES as f64, writes_per_s }
}

/// A new volume's first and second pass.
fn passes(dir: &Path, tracked: bool) -> [Pass; 2] {
    let dir = tempfile::tempdir_in(dir).unwrap();
    let volume = Volume::create(&dir.path().join("v"), VolumeId::from_u64(1), SIZE_BYTES).unwrap();
    volume.set_tracking(tracked);
    let socket = dir.path().join("socket");
    let config = ServerConfig { unix_path: Some(socket.clone()), ..ServerConfig::default() };
    let mut server = Server::start(config, Arc::new(Served(volume.clone()))).unwrap();
    let passes = [pass(&socket), pass(&socket)];
    server.shutdown().unwrap();
    assert_eq!(volume.stats().head_dirty_bytes, if tracked { SIZE_BYTES } else { 0 });
    passes
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(ROUNDS);
    let dir = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or("/var/tmp".into())).unwrap();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // The first pass of a round waits for the writeback of the previous one.
        let order = if round % 2 == 0 { [true, false] } else { [false, true] };
        for tracked in order {
            let passes = passes(dir.path(), tracked);
            if tracked { with.push(passes) } else { without.push(passes) }
        }
    }
    println!("4 KiB random writes over NBD, depth 32, {rounds} rounds, medians");
    println!(
        "{:<22}{:>14}{:>14}{:>9}{:>14}{:>14}{:>9}",
        "", "tracked", "untracked", "CPU", "tracked", "untracked", "writes"
    );
    for (index, name) in ["first write", "second write"].into_iter().enumerate() {
        let of = |passes: &[[Pass; 2]], figure: fn(&Pass) -> f64| {
            median(passes.iter().map(|p| figure(&p[index])).collect())
        };
        let (cpu_with, cpu_without) = (of(&with, |p| p.cpu_ns), of(&without, |p| p.cpu_ns));
        let (rate_with, rate_without) = (of(&with, |p| p.writes_per_s), of(&without, |p| p.writes_per_s));
        println!(
            "{name:<22}{cpu_with:>11.0} ns{cpu_without:>11.0} ns{:>9.3}{rate_with:>12.0}/s{rate_without:>12.0}/s{:>9.3}",
            cpu_with / cpu_without,
            rate_with / rate_without,
        );
    }
    println!("goal: at most 3 % of throughput");
}
