//! Discrete events: jobs of hosts that send requests over a number of lanes, with the retries of the product.

use crate::{
    bucket::{Answer, Bucket},
    costs::Step,
};
use blockd_store::RetryPolicy;
use blockd_testkit::Rng;
use std::{cmp::Reverse, collections::BinaryHeap};

/// Pauses of a hydration after a failed round, in milliseconds (`PAUSE` and `LONGEST_PAUSE` in
/// `blockd/engine/src/restore/lazy/hydrate.rs`).
const PERSISTENT_PAUSES_MS: (u64, u64) = (200, 15_000);

/// Equal requests of a job.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub step: Step,
    pub times: u64,
    /// Requests in flight.
    pub lanes: u32,
    /// Duration of one, in milliseconds.
    pub ms: i64,
}

/// Job of a host.
pub struct Job<T> {
    pub host: u32,
    pub tag: T,
    work: Vec<Work>,
    position: usize,
    issued: u64,
    done: u64,
    /// Continues after failed requests.
    is_persistent: bool,
}

/// Time, sequence number, job with its generation, failed attempts of the next request.
type Lane = Reverse<(i64, u64, usize, u32, u32)>;

/// Event of the simulation.
pub enum Event<T> {
    /// Timer of a host.
    Timer(u32),
    /// End of a job; false if a request failed.
    Ended(Job<T>, bool),
}

/// Queue of events, and the jobs that run.
pub struct Engine<T> {
    pub now_ms: i64,
    pub bucket: Bucket,
    random: Rng,
    policy: RetryPolicy,
    lanes: BinaryHeap<Lane>,
    timers: BinaryHeap<Reverse<(i64, u32)>>,
    jobs: Vec<(u32, Option<Job<T>>)>,
    free: Vec<usize>,
    sequence: u64,
}

impl<T> Engine<T> {
    pub fn new(bucket: Bucket, seed: u64) -> Self {
        Self {
            now_ms: 0,
            bucket,
            random: Rng::fixed(seed),
            policy: RetryPolicy::default(),
            lanes: BinaryHeap::new(),
            timers: BinaryHeap::new(),
            jobs: Vec::new(),
            free: Vec::new(),
            sequence: 0,
        }
    }

    pub fn timer(&mut self, at_ms: i64, host: u32) {
        self.timers.push(Reverse((at_ms, host)));
    }

    /// Starts a job, which has at least one request.
    pub fn start(&mut self, host: u32, tag: T, mut work: Vec<Work>, is_persistent: bool) {
        work.retain(|work| work.times > 0);
        let job = Job { host, tag, work, position: 0, issued: 0, done: 0, is_persistent };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.jobs[slot] = (self.jobs[slot].0 + 1, Some(job));
                slot
            }
            None => {
                self.jobs.push((0, Some(job)));
                self.jobs.len() - 1
            }
        };
        self.open_lanes(slot);
    }

    fn open_lanes(&mut self, slot: usize) {
        let (generation, Some(job)) = &mut self.jobs[slot] else { return };
        let (generation, work) = (*generation, job.work[job.position]);
        let lanes = u64::from(work.lanes).min(work.times);
        job.issued = lanes;
        for _ in 0..lanes {
            self.push(self.now_ms, slot, generation, 0);
        }
    }

    fn push(&mut self, at_ms: i64, slot: usize, generation: u32, failed: u32) {
        self.sequence += 1;
        self.lanes.push(Reverse((at_ms, self.sequence, slot, generation, failed)));
    }

    /// Returns the next event, up to a time.
    pub fn next(&mut self, until_ms: i64) -> Option<Event<T>> {
        loop {
            let timer = self.timers.peek().map(|Reverse((at, _))| *at);
            let lane = self.lanes.peek().map(|Reverse((at, ..))| *at);
            if timer.into_iter().chain(lane).min().is_none_or(|at| at > until_ms) {
                return None;
            }
            if timer.is_some_and(|timer| lane.is_none_or(|lane| timer <= lane)) {
                let Reverse((at, host)) = self.timers.pop()?;
                self.now_ms = at;
                return Some(Event::Timer(host));
            }
            let Reverse((at, _, slot, generation, failed)) = self.lanes.pop()?;
            self.now_ms = at;
            if let Some(ended) = self.step(slot, generation, failed) {
                return Some(ended);
            }
        }
    }

    /// Continues a lane: a sent request ended (`failed` has [`SENT`]), or one is to be sent.
    fn step(&mut self, slot: usize, generation: u32, failed: u32) -> Option<Event<T>> {
        let (current, Some(job)) = &mut self.jobs[slot] else { return None };
        if *current != generation {
            return None;
        }
        let work = job.work[job.position];
        if failed == SENT {
            job.done += 1;
            if job.done == work.times {
                job.position += 1;
                (job.issued, job.done) = (0, 0);
                if job.position == job.work.len() {
                    return self.end(slot, true);
                }
                self.open_lanes(slot);
                return None;
            }
            if job.issued == work.times {
                return None;
            }
            job.issued += 1;
        }
        let (host, is_persistent) = (job.host, job.is_persistent);
        let failed = if failed == SENT { 0 } else { failed };
        match self.bucket.request(self.now_ms, host, work.step) {
            Answer::Served => self.push(self.now_ms + work.ms, slot, generation, SENT),
            Answer::Throttled | Answer::Unreachable => {
                let attempts = failed + 1;
                if !is_persistent && attempts >= self.policy.attempts {
                    return self.end(slot, false);
                }
                let pause_ms = self.pause_ms(attempts);
                self.push(self.now_ms + pause_ms as i64, slot, generation, attempts);
            }
        }
        None
    }

    /// Returns the pause after failed attempts: half of it is fixed and half random, as in `RetryPolicy`. A
    /// persistent job repeats rounds of attempts with its own pauses between them.
    fn pause_ms(&mut self, failed: u32) -> u64 {
        let (round, nth) = (failed / self.policy.attempts, failed % self.policy.attempts);
        let full = match nth {
            0 => PERSISTENT_PAUSES_MS.0.saturating_mul(1 << round.min(16)).min(PERSISTENT_PAUSES_MS.1),
            nth => self.policy.base_ms.saturating_mul(1 << (nth - 1).min(16)).min(self.policy.max_ms),
        };
        full / 2 + self.random.below(full / 2 + 1)
    }

    fn end(&mut self, slot: usize, is_done: bool) -> Option<Event<T>> {
        let job = self.jobs[slot].1.take()?;
        self.free.push(slot);
        Some(Event::Ended(job, is_done))
    }
}

/// Number of failed attempts that marks a served request.
const SENT: u32 = u32::MAX;
