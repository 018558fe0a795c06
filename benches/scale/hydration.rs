//! Simulation of lazy restores of many hosts at once, with a bandwidth limit for each.

use crate::{
    backups::works,
    bucket::{Bucket, Settings},
    costs::{HYDRATION_STEP_BYTES, Scripts},
    engine::{Engine, Event},
    fleet::{FETCHES, STORED_PERCENT, TASKS, VOLUME_BYTES, VOLUMES},
    size::Size,
};
use blockd_benches::histogram::Histogram;

/// Longest simulated time.
const LIMIT_S: i64 = 7 * 24 * 3600;

/// Results.
pub struct Outcome {
    pub bucket: Bucket,
    /// From the start to the end of the hydration of a volume, in milliseconds.
    pub hydrated_ms: Histogram,
    /// From the start until a volume is open, in milliseconds.
    pub opened_ms: Histogram,
    pub last_s: i64,
}

#[derive(Clone, Copy)]
enum Tag {
    Opening,
    Hydration,
}

/// Simulates the lazy restore of all volumes of some hosts, which start together. Each host downloads at most
/// `bytes_per_s`.
pub fn simulate(
    scripts: &Scripts,
    settings: &Settings,
    restored_hosts: u32,
    bytes_per_s: u64,
    seed: u64,
) -> Outcome {
    let mut engine = Engine::new(Bucket::new(settings.clone()), seed);
    let step_ms =
        HYDRATION_STEP_BYTES * STORED_PERCENT / 100 * 1000 * u64::from(TASKS * FETCHES) / bytes_per_s;
    let mut hydration = works(&scripts.hydration, &Size::default());
    let requests = hydration.len().max(1) as i64;
    for work in &mut hydration {
        (work.times, work.lanes) = (VOLUME_BYTES / HYDRATION_STEP_BYTES, FETCHES);
        work.ms = step_ms as i64 / requests;
    }
    // The lost hosts are those of a zone: their prefixes are anywhere among those of all hosts.
    let stride = settings.hosts / restored_hosts.max(1);
    for host in (0..restored_hosts).map(|nth| nth * stride) {
        for _ in 0..VOLUMES {
            engine.start(host, Tag::Opening, works(&scripts.lazy, &Size::default()), true);
        }
    }
    let mut waiting = vec![0; settings.hosts as usize];
    let mut running = vec![0; settings.hosts as usize];
    let (mut hydrated_ms, mut opened_ms) = (Histogram::default(), Histogram::default());
    while let Some(event) = engine.next(LIMIT_S * 1000) {
        let Event::Ended(job, _) = event else { continue };
        let host = job.host as usize;
        match job.tag {
            Tag::Opening => {
                opened_ms.add(engine.now_ms.unsigned_abs());
                waiting[host] += 1;
            }
            Tag::Hydration => {
                hydrated_ms.add(engine.now_ms.unsigned_abs());
                running[host] -= 1;
            }
        }
        // A hydration holds a slot of `task_concurrency` while it fetches (`fetch_some`).
        while running[host] < TASKS && waiting[host] > 0 {
            (waiting[host], running[host]) = (waiting[host] - 1, running[host] + 1);
            engine.start(job.host, Tag::Hydration, hydration.clone(), true);
        }
    }
    let last_s = engine.now_ms / 1000;
    Outcome { bucket: engine.bucket, hydrated_ms, opened_ms, last_s }
}
