//! The engine of `tools/bench freeze`: freezes a group of volumes again and again under random writes, and prints one
//! JSON document with what each freeze cost.
//!
//! Writers note every write that took long. Of each freeze, the longest write that was under way during its barrier (and
//! during the whole call) is told; so is that of as many instants at which nothing was frozen, which is what the machine
//! does by itself.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench that cannot measure ends with a panic")]

use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::{GroupError, Volume, freeze_group_around};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// How many blocks of each volume are written, spread over all of it.
const BLOCKS: u64 = 4096;
/// Writes that take less are not remembered one by one.
const SHORT: Duration = Duration::from_micros(20);
const PAUSE: Duration = Duration::from_millis(20);

/// From the start of the bench, in nanoseconds.
type Span = (u64, u64);

struct Written {
    long: Vec<Span>,
    /// One of every 64.
    sample: Vec<u64>,
    count: u64,
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

fn write_at_random(volumes: &[Arc<Volume>], seed: u64, origin: Instant, stop: &AtomicBool) -> Written {
    let mut written = Written { long: Vec::new(), sample: Vec::new(), count: 0 };
    let mut random = seed;
    let data = vec![seed as u8; 4096];
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let volume = &volumes[(random >> 33) as usize % volumes.len()];
        let stride = volume.size_bytes() / 4096 / BLOCKS;
        let offset = (random >> 40) % BLOCKS * stride * 4096;
        let began = Instant::now();
        volume.write(offset, &data, false).unwrap();
        let took = began.elapsed();
        if took >= SHORT {
            let start = nanos(began - origin);
            written.long.push((start, start + nanos(took)));
        }
        if written.count.is_multiple_of(64) {
            written.sample.push(nanos(took));
        }
        written.count += 1;
    }
    written
}

fn freeze(volumes: &[Arc<Volume>], number: u64, origin: Instant) -> Frozen {
    let id = SnapshotId::from_u64(number);
    let members: Vec<_> = volumes.iter().map(|volume| (&**volume, id)).collect();
    let mut barrier = (0, 0);
    let began = nanos(origin.elapsed());
    let frozen = freeze_group_around::<GroupError>(
        &members,
        || {
            barrier.0 = nanos(origin.elapsed());
            Ok(())
        },
        || (),
    )
    .unwrap();
    let call = (began, nanos(origin.elapsed()));
    barrier.1 = barrier.0 + nanos(frozen.stall);
    for volume in volumes {
        volume.delete_snapshot(id).unwrap();
        while volume.merge_next(&AtomicBool::new(false)).unwrap() {}
    }
    let longest = frozen.members.iter().map(|member| member.stall).max().unwrap();
    Frozen { hold_ns: nanos(frozen.stall), stall_ns: nanos(longest), barrier, call }
}

/// The longest write that was under way in a span; one that is not remembered took no time.
fn worst(written: &[Written], (from, to): Span) -> u64 {
    let long = written.iter().flat_map(|written| &written.long);
    let overlapping = long.filter(|(start, end)| *start <= to && *end >= from);
    overlapping.map(|(start, end)| end - start).max().unwrap_or(0)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, dir, count, size_bytes, freezes, writers] = args.as_slice() else {
        eprintln!("usage: freeze DIR VOLUMES SIZE-BYTES FREEZES WRITERS");
        std::process::exit(2);
    };
    let number = |text: &String| text.parse::<u64>().unwrap();
    let (count, size_bytes) = (number(count), number(size_bytes));
    let (freezes, writers) = (number(freezes), number(writers));
    let volumes: Arc<Vec<_>> = Arc::new(
        (0..count)
            .map(|at| {
                Volume::create(&Path::new(dir).join(at.to_string()), VolumeId::from_u64(at + 1), size_bytes)
                    .unwrap()
            })
            .collect(),
    );
    let origin = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..writers)
        .map(|seed| {
            let (volumes, stop) = (volumes.clone(), stop.clone());
            thread::spawn(move || write_at_random(&volumes, seed + 1, origin, &stop))
        })
        .collect();
    // The first freeze of each volume finds everything new.
    freeze(&volumes, 1, origin);
    let (mut frozen, mut controls) = (Vec::new(), Vec::new());
    for at in 0..freezes {
        thread::sleep(PAUSE);
        let now = nanos(origin.elapsed());
        controls.push((now, now));
        thread::sleep(PAUSE);
        frozen.push(freeze(&volumes, at + 2, origin));
    }
    stop.store(true, Ordering::Relaxed);
    let written: Vec<Written> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let mut sample: Vec<u64> = written.iter().flat_map(|written| written.sample.iter().copied()).collect();
    sample.sort_unstable();
    let median = sample.get(sample.len() / 2).copied().unwrap_or(0);
    let rows: Vec<String> = frozen
        .iter()
        .map(|one| {
            format!(
                r#"{{"holdNs":{},"stallNs":{},"callNs":{},"worstWriteNs":{},"worstDuringCallNs":{}}}"#,
                one.hold_ns,
                one.stall_ns,
                one.call.1 - one.call.0,
                worst(&written, one.barrier),
                worst(&written, one.call)
            )
        })
        .collect();
    let controls: Vec<String> = controls.iter().map(|span| worst(&written, *span).to_string()).collect();
    let writes: u64 = written.iter().map(|written| written.count).sum();
    let seconds = origin.elapsed().as_secs_f64();
    println!(
        r#"{{"volumes":{count},"sizeBytes":{size_bytes},"writers":{writers},"writesPerSecond":{:.0},"medianWriteNs":{median},"controlWorstWriteNs":[{}],"freezes":[{}]}}"#,
        writes as f64 / seconds,
        controls.join(","),
        rows.join(",")
    );
}
