//! Simulation of garbage collections and hourly exchanges after the starts of all daemons.

use crate::{
    backups::works,
    bucket::{Bucket, Settings},
    costs::Scripts,
    engine::{Engine, Event},
    size::Size,
};
use blockd_schedule::Jitter;
use blockd_testkit::Rng;

/// Interval of exchanges (`EXCHANGE_INTERVAL` in `blockd/engine/src/maintenance/mod.rs`).
const EXCHANGE_S: i64 = 3600;
/// Interval of maintenance passes (`PASS_INTERVAL`).
const PASS_S: i64 = 60;
/// Simulated time: two hours after the last start.
const SIMULATED_S: i64 = 3 * 3600;

/// Results.
pub struct Outcome {
    pub bucket: Bucket,
    /// Collections and exchanges that failed.
    pub failed: u64,
    /// From the first to the last collection's end, in seconds.
    pub duration_s: i64,
}

/// Simulates the hours after the starts of all daemons within `spread_s` seconds, with repositories of one
/// host each. The first collection follows an hour and the delay of a host after its start, the first
/// exchange the delay (`first_delays`); `jitter` limits it. Without jitter, the exchange follows an hour
/// after the start.
pub fn simulate(
    scripts: &Scripts,
    settings: &Settings,
    size: &Size,
    (spread_s, jitter): (u64, Jitter),
    seed: u64,
) -> Outcome {
    let mut random = Rng::fixed(seed);
    let hosts = settings.hosts;
    let mut engine = Engine::new(Bucket::new(settings.clone()), random.next_u64());
    // Timers of collections have the numbers of hosts, those of exchanges the following ones.
    for host in 0..hosts {
        let start_ms = random.below(spread_s * 1000 + 1) as i64;
        let id = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
        let delay_s = i64::from(jitter.delay_s(id));
        let exchange_s = if jitter.max_s == 0 { EXCHANGE_S } else { delay_s };
        for (timer, after_s) in [(host, EXCHANGE_S + delay_s), (hosts + host, exchange_s)] {
            // The loop sleeps before each pass.
            let passes = ((after_s + PASS_S - 1) / PASS_S).max(1);
            engine.timer(start_ms + passes * PASS_S * 1000, timer);
        }
    }
    let (mut failed, mut first_ms, mut last_ms) = (0, i64::MAX, 0);
    while let Some(event) = engine.next((SIMULATED_S + spread_s as i64) * 1000) {
        match event {
            Event::Timer(timer) if timer < hosts => {
                first_ms = first_ms.min(engine.now_ms);
                engine.start(timer, true, works(&scripts.collection, size), false);
            }
            Event::Timer(timer) => {
                engine.timer(engine.now_ms + EXCHANGE_S * 1000, timer);
                engine.start(timer - hosts, false, works(&scripts.exchange, size), false);
            }
            Event::Ended(job, is_done) => {
                failed += u64::from(!is_done);
                if job.tag {
                    last_ms = engine.now_ms;
                }
            }
        }
    }
    Outcome { bucket: engine.bucket, failed, duration_s: (last_ms - first_ms) / 1000 }
}
