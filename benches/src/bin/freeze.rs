//! Engine of `tools/bench freeze`: freezes a group of volumes repeatedly under random writes, and prints the
//! cost of each freeze as a JSON document.
//!
//! For each freeze it reports the longest write in progress during its barrier, and the same for as many
//! times without a freeze, as the noise of the machine. It reports the latencies of writes separately:
//! outside of freezes, during a freeze, from its first file to its last commit, and near its barrier.
//!
//! A writer may wait for a CPU in the middle of a write. So long writes are also reported without the wait of
//! their thread for a CPU, as the kernel measures it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark fails by panicking")]

use blockd_benches::histogram::Histogram;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::{GroupError, Volume, freeze_group_with};
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Number of written blocks per volume, spread over all of it.
const BLOCKS: u64 = 1024;
/// Minimum latency of individually recorded writes.
const SHORT: Duration = Duration::from_micros(20);
/// Time after a barrier that counts as near: the files of the new heads have no pages yet.
const NEAR: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_millis(20);
/// Maximum number of freezes per volume.
const MAX_FREEZES: u64 = 500;
/// Number of volumes created concurrently.
const MAKERS: u64 = 8;

/// Start and end, in nanoseconds since the origin.
type Span = (u64, u64);

/// State shared by the writers and the freezing thread.
struct Load {
    volumes: Vec<Arc<Volume>>,
    origin: Instant,
    stop: AtomicBool,
    freezing: AtomicBool,
    /// Time of the last request for a barrier, in nanoseconds since the origin; 0 before the first one.
    barrier_ns: AtomicU64,
}

struct Long {
    span: Span,
    /// Time the thread waited for a CPU.
    waited_ns: u64,
}

#[derive(Default)]
struct Written {
    long: Vec<Long>,
    /// Writes outside of freezes.
    quiet: Histogram,
    /// Writes that overlapped a freeze.
    during: Histogram,
    /// Writes in flight at a barrier or started soon after it.
    near: Histogram,
}

struct Frozen {
    hold_ns: u64,
    stall_ns: u64,
    barrier: Span,
    call: Span,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap()
}

/// Time a thread waited for a CPU.
struct CpuWaits {
    file: File,
    last_ns: u64,
}

impl CpuWaits {
    fn of_this_thread() -> Self {
        Self { file: File::open("/proc/thread-self/schedstat").unwrap(), last_ns: 0 }
    }

    /// Returns the wait since the last call.
    fn since_last_ns(&mut self) -> u64 {
        let mut text = [0; 64];
        let len = self.file.read_at(&mut text, 0).unwrap();
        let text = std::str::from_utf8(&text[..len]).unwrap();
        let all_ns: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        all_ns - std::mem::replace(&mut self.last_ns, all_ns)
    }
}

fn write_at_random(load: &Load, seed: u64) -> Written {
    let mut written = Written::default();
    let mut waits = CpuWaits::of_this_thread();
    let mut random = seed;
    let data = vec![seed as u8; 4096];
    while !load.stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let volume = &load.volumes[(random >> 33) as usize % load.volumes.len()];
        let stride = volume.size_bytes() / 4096 / BLOCKS;
        let offset = (random >> 40) % BLOCKS * stride * 4096;
        let freezing = load.freezing.load(Ordering::Relaxed);
        let began = Instant::now();
        volume.write(offset, &data, false).unwrap();
        let took = began.elapsed();
        if took >= SHORT {
            let start = nanos(began - load.origin);
            // The wait includes that of shorter writes before.
            let waited_ns = waits.since_last_ns().min(nanos(took));
            written.long.push(Long { span: (start, start + nanos(took)), waited_ns });
        }
        match freezing || load.freezing.load(Ordering::Relaxed) {
            true => written.during.add(nanos(took)),
            false => written.quiet.add(nanos(took)),
        }
        let (barrier_ns, began_ns) = (load.barrier_ns.load(Ordering::Relaxed), nanos(began - load.origin));
        if barrier_ns > 0 && began_ns + nanos(took) >= barrier_ns && began_ns < barrier_ns + nanos(NEAR) {
            written.near.add(nanos(took));
        }
    }
    written
}

fn freeze(load: &Load, number: u64) -> Frozen {
    let id = SnapshotId::from_u64(number);
    let members: Vec<_> = load.volumes.iter().map(|volume| (&**volume, id)).collect();
    let mut barrier = (0, 0);
    load.freezing.store(true, Ordering::Relaxed);
    let began = nanos(load.origin.elapsed());
    let frozen = freeze_group_with::<GroupError>(
        &members,
        || {
            barrier.0 = nanos(load.origin.elapsed());
            load.barrier_ns.store(barrier.0, Ordering::Relaxed);
            Ok(())
        },
        || (),
    )
    .unwrap();
    let call = (began, nanos(load.origin.elapsed()));
    load.freezing.store(false, Ordering::Relaxed);
    barrier.1 = barrier.0 + nanos(frozen.stall);
    let longest = frozen.members.iter().map(|member| member.stall).max().unwrap();
    Frozen { hold_ns: nanos(frozen.stall), stall_ns: nanos(longest), barrier, call }
}

/// Returns the longest write in flight in a span, and the longest one without its wait for a CPU; unrecorded
/// writes count as 0.
fn worst(written: &[Written], (from, to): Span) -> (u64, u64) {
    let long = written.iter().flat_map(|written| &written.long);
    let overlapping = long.filter(|long| long.span.0 <= to && long.span.1 >= from);
    overlapping.fold((0, 0), |(took, running), long| {
        let len = long.span.1 - long.span.0;
        (took.max(len), running.max(len - long.waited_ns))
    })
}

fn make_volumes(dir: &Path, count: u64, size_bytes: u64) -> Vec<Arc<Volume>> {
    let make =
        |at: u64| Volume::create(&dir.join(at.to_string()), VolumeId::from_u64(at + 1), size_bytes).unwrap();
    thread::scope(|scope| {
        let makers: Vec<_> = (0..MAKERS)
            .map(|maker| {
                scope.spawn(move || (maker..count).step_by(MAKERS as usize).map(make).collect::<Vec<_>>())
            })
            .collect();
        makers.into_iter().flat_map(|maker| maker.join().unwrap()).collect()
    })
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, count, size_bytes, seconds, writers] = args.as_slice() else {
        eprintln!("usage: freeze DIR VOLUMES SIZE-BYTES SECONDS WRITERS");
        std::process::exit(2);
    };
    let number = |text: &String| text.parse::<u64>().unwrap();
    let (count, size_bytes, writers) = (number(count), number(size_bytes), number(writers));
    let lasts = Duration::from_secs(number(seconds));
    let made = Instant::now();
    let volumes = make_volumes(Path::new(dir), count, size_bytes);
    let making_seconds = made.elapsed().as_secs_f64();
    let origin = Instant::now();
    let load = Arc::new(Load {
        volumes,
        origin,
        stop: AtomicBool::new(false),
        freezing: AtomicBool::new(false),
        barrier_ns: AtomicU64::new(0),
    });
    let threads: Vec<_> = (0..writers)
        .map(|seed| {
            let load = load.clone();
            thread::spawn(move || write_at_random(&load, seed + 1))
        })
        .collect();
    // The first freeze of each volume is not measured.
    freeze(&load, 1);
    let (mut frozen, mut controls) = (Vec::new(), Vec::new());
    while origin.elapsed() < lasts && (frozen.len() as u64) < MAX_FREEZES {
        thread::sleep(PAUSE);
        let now = nanos(origin.elapsed());
        controls.push((now, now));
        thread::sleep(PAUSE);
        frozen.push(freeze(&load, frozen.len() as u64 + 2));
    }
    load.stop.store(true, Ordering::Relaxed);
    let written: Vec<Written> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let seconds = origin.elapsed().as_secs_f64();
    let [mut quiet, mut during, mut near] = std::array::from_fn(|_| Histogram::default());
    for one in &written {
        quiet.merge(&one.quiet);
        during.merge(&one.during);
        near.merge(&one.near);
    }
    let rows: Vec<String> = frozen
        .iter()
        .map(|one| {
            let (took, running) = worst(&written, one.barrier);
            format!(
                r#"{{"holdNs":{},"stallNs":{},"callNs":{},"worstWriteNs":{took},"worstWithoutWaitNs":{running}}}"#,
                one.hold_ns,
                one.stall_ns,
                one.call.1 - one.call.0,
            )
        })
        .collect();
    let controls: Vec<String> = controls.iter().map(|span| worst(&written, *span).0.to_string()).collect();
    println!(
        r#"{{"volumes":{count},"sizeBytes":{size_bytes},"writers":{writers},"makingSeconds":{making_seconds:.2},"writesPerSecond":{:.0},"quietWriteNs":{},"duringWriteNs":{},"nearWriteNs":{},"controlWorstWriteNs":[{}],"freezes":[{}]}}"#,
        (quiet.count() + during.count()) as f64 / seconds,
        quiet.to_json(),
        during.to_json(),
        near.to_json(),
        controls.join(","),
        rows.join(",")
    );
}
