//! Window of requests in flight: follows the latency and the bandwidth of a store.
//!
//! More requests raise the rate until they fill latency × bandwidth, then only the time of each. The window
//! therefore grows while the rate grows with it, and shrinks while the rate does not fall with it. The rate
//! is that of all bodies together, which depends less on single slow requests than their times do. It also
//! falls when a store throttles, because the pauses of retries are part of the times.

use parking_lot::Mutex;
use std::{pin::pin, time::Duration};
use tokio::{sync::Notify, time::Instant};

/// First limit at a store without latency.
const START: usize = 4;
/// Latency that one more request fills from the start: growth takes many requests.
const LATENCY_OF_ONE: Duration = Duration::from_millis(10);
/// Growth of the rate from which a larger window stays: much less than that of the window.
const MIN_GAIN: f64 = 1.03;
/// Share of the rate above which a smaller window stays.
const MAX_LOSS: f64 = 0.98;
/// Measurements between two attempts to change the limit.
const HOLD: u32 = 4;

/// Attempt that is being measured.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Attempt {
    None { left: u32 },
    Larger { than: usize },
    Smaller { than: usize },
}

/// Controller of the limit: a function of the completed requests.
#[derive(Debug)]
struct Controller {
    limit: usize,
    max: usize,
    attempt: Attempt,
    /// Rate with the limit before the attempt, in bytes per second.
    rate: f64,
    /// The next attempt is a larger limit.
    grows_next: bool,
    /// Requests that began with another limit, and are not measured.
    ignored: usize,
    /// Start of the measurement; `None` before the first request.
    began: Option<Duration>,
    completed: usize,
    bytes: u64,
    /// A request waited for the window: otherwise the limit has no effect on the rate.
    was_full: bool,
}

impl Controller {
    fn new(max: usize, latency: Duration) -> Self {
        let max = max.max(1);
        let start = START + (latency.as_nanos() / LATENCY_OF_ONE.as_nanos()).min(max as u128) as usize;
        Self {
            limit: start.min(max),
            max,
            attempt: Attempt::None { left: 0 },
            rate: 0.,
            grows_next: true,
            ignored: 0,
            began: None,
            completed: 0,
            bytes: 0,
            was_full: false,
        }
    }

    /// Counts a completed request.
    fn complete(&mut self, now: Duration, bytes: u64) {
        if self.ignored > 0 {
            self.ignored -= 1;
            if self.ignored == 0 {
                self.begin(now);
            }
            return;
        }
        self.completed += 1;
        self.bytes += bytes;
        if self.completed < self.limit {
            return;
        }
        let elapsed = now.saturating_sub(self.began.unwrap_or(now));
        let (rate, was_full) = (self.bytes as f64 / elapsed.as_secs_f64().max(1e-6), self.was_full);
        self.begin(now);
        if was_full {
            self.measured(rate);
        }
    }

    fn begin(&mut self, now: Duration) {
        (self.began, self.completed, self.bytes, self.was_full) = (Some(now), 0, 0, false);
    }

    /// Decides after a measurement of a full window.
    fn measured(&mut self, rate: f64) {
        match self.attempt {
            Attempt::None { left: 0 } => {
                self.rate = if self.rate > 0. { (self.rate + rate) / 2. } else { rate };
                self.try_other();
            }
            Attempt::None { left } => {
                self.rate = (self.rate * 3. + rate) / 4.;
                self.attempt = Attempt::None { left: left - 1 };
            }
            Attempt::Larger { .. } if rate >= self.rate * MIN_GAIN => {
                self.rate = rate;
                self.grow();
            }
            Attempt::Smaller { .. } if rate >= self.rate * MAX_LOSS => {
                self.rate = rate;
                self.attempt = Attempt::None { left: HOLD };
            }
            Attempt::Larger { than } | Attempt::Smaller { than } => {
                self.set(than);
                self.attempt = Attempt::None { left: HOLD };
            }
        }
    }

    fn try_other(&mut self) {
        let grows = self.grows_next;
        self.grows_next = !grows;
        if grows { self.grow() } else { self.shrink() }
    }

    fn grow(&mut self) {
        let than = self.limit;
        self.set((than + (than / 2).max(1)).min(self.max));
        self.attempt =
            if self.limit > than { Attempt::Larger { than } } else { Attempt::None { left: HOLD } };
    }

    fn shrink(&mut self) {
        let than = self.limit;
        self.set((than - than / 4).min(than - 1).max(1));
        self.attempt =
            if self.limit < than { Attempt::Smaller { than } } else { Attempt::None { left: HOLD } };
    }

    fn set(&mut self, limit: usize) {
        debug_assert!((1..=self.max).contains(&limit), "{limit} of {}", self.max);
        if limit != self.limit {
            tracing::debug!(from = self.limit, to = limit, "requests in flight");
            (self.ignored, self.limit) = (self.limit, limit);
        }
    }
}

/// Window of requests in flight.
#[derive(Debug)]
pub(crate) struct Window {
    state: Mutex<State>,
    changed: Notify,
    /// Start of the time of the controller.
    created: Instant,
}

#[derive(Debug)]
struct State {
    controller: Controller,
    in_flight: usize,
}

impl Window {
    /// Creates a window of at most `max` requests, for a store whose latency is at least `latency`.
    pub fn new(max: usize, latency: Option<Duration>) -> Self {
        let state = State { controller: Controller::new(max, latency.unwrap_or_default()), in_flight: 0 };
        Self { state: Mutex::new(state), changed: Notify::new(), created: Instant::now() }
    }

    /// Waits until a request may be sent.
    pub async fn enter(&self) -> InFlight<'_> {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Registered before the check, so that no change is missed.
            changed.as_mut().enable();
            if let Some(in_flight) = self.try_enter() {
                return in_flight;
            }
            changed.await;
        }
    }

    fn try_enter(&self) -> Option<InFlight<'_>> {
        let mut state = self.state.lock();
        if state.in_flight >= state.controller.limit {
            state.controller.was_full = true;
            return None;
        }
        state.in_flight += 1;
        if state.controller.began.is_none() {
            state.controller.begin(self.created.elapsed());
        }
        Some(InFlight { window: self })
    }
}

/// Request in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight<'a> {
    window: &'a Window,
}

impl InFlight<'_> {
    /// Ends a successful request with a body of this length.
    pub fn complete(self, bytes: u64) {
        let now = self.window.created.elapsed();
        self.window.state.lock().controller.complete(now, bytes);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.window.state.lock().in_flight -= 1;
        self.window.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// Store with a latency, up to half longer at random, whose bodies in transfer share a bandwidth.
    struct Model {
        latency_s: f64,
        mib_per_s: f64,
        pack_mib: f64,
        now_s: f64,
        random: u32,
        /// Latency and MiB that are left of each request.
        requests: Vec<(f64, f64)>,
    }

    impl Model {
        fn new(latency_s: f64, mib_per_s: f64, pack_mib: f64) -> Self {
            Self { latency_s, mib_per_s, pack_mib, now_s: 0., random: 1, requests: Vec::new() }
        }

        fn send(&mut self) {
            self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let longer = 1. + f64::from(self.random >> 8) / f64::from(1 << 25);
            self.requests.push((self.latency_s.max(1e-9) * longer, self.pack_mib));
        }

        /// Passes time until a request is complete.
        fn step(&mut self) {
            loop {
                let bodies = self.requests.iter().filter(|(latency, _)| *latency <= 0.).count();
                let rate = self.mib_per_s / bodies.max(1) as f64;
                let left = |(latency, mib): &(f64, f64)| if *latency > 0. { *latency } else { *mib / rate };
                let left = self.requests.iter().map(left).enumerate();
                let (at, passed) = left.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
                let is_body = self.requests[at].0 <= 0.;
                self.now_s += passed;
                for (nth, (latency, mib)) in self.requests.iter_mut().enumerate() {
                    match *latency > 0. {
                        true if nth == at => *latency = 0.,
                        true => *latency = (*latency - passed).max(1e-12),
                        false => *mib -= passed * rate,
                    }
                }
                if is_body {
                    self.requests.swap_remove(at);
                    return;
                }
            }
        }

        /// Transfers packs with the windows that `complete` returns, which are always full; returns the rate
        /// of the second half.
        fn run(
            &mut self,
            packs: usize,
            mut window: usize,
            mut complete: impl FnMut(Duration) -> usize,
        ) -> f64 {
            let mut half = 0.;
            for nth in 0..packs {
                while self.requests.len() < window {
                    self.send();
                }
                self.step();
                window = complete(Duration::from_secs_f64(self.now_s));
                if nth + 1 == packs / 2 {
                    half = self.now_s;
                }
            }
            self.pack_mib * (packs - packs / 2) as f64 / (self.now_s - half)
        }

        /// Transfers packs with the controller; returns the rate and the largest window.
        fn control(&mut self, controller: &mut Controller, packs: usize) -> (f64, usize) {
            let (bytes, mut largest) = ((self.pack_mib * MIB as f64) as u64, 0);
            controller.began.get_or_insert_default();
            let first = controller.limit;
            let rate = self.run(packs, first, |now| {
                controller.was_full = true;
                controller.complete(now, bytes);
                largest = largest.max(controller.limit);
                controller.limit
            });
            (rate, largest)
        }
    }

    #[test]
    fn window_rises_with_the_latency() {
        let limit = |latency_s| {
            let mut controller = Controller::new(32, Duration::ZERO);
            let (rate, largest) = Model::new(latency_s, 200., 10.).control(&mut controller, 300);
            assert!(largest <= 32 && rate > 0.85 * 200., "{latency_s} s: {rate} MiB/s");
            largest
        };
        let limits = [0., 0.1, 0.3].map(limit);
        assert!(limits[0] <= 6 && limits[0] < limits[1] && limits[1] < limits[2], "{limits:?}");
    }

    #[test]
    fn window_starts_larger_with_latency() {
        let start = |ms| Controller::new(32, Duration::from_millis(ms)).limit;
        assert_eq!([0, 9, 20, 100, 100_000].map(start), [4, 4, 6, 14, 32]);
        assert_eq!(Controller::new(3, Duration::from_secs(1)).limit, 3);
    }

    #[test]
    fn window_falls_when_the_latency_does() {
        let mut controller = Controller::new(32, Duration::ZERO);
        let mut model = Model::new(0.5, 400., 10.);
        model.control(&mut controller, 300);
        let far = controller.limit;
        assert!(far > 16, "{far}");
        model.latency_s = 0.;
        model.control(&mut controller, 1500);
        assert!(controller.limit < far / 2, "{} of {far}", controller.limit);
    }

    #[test]
    fn window_that_is_not_full_stays() {
        let mut controller = Controller::new(32, Duration::ZERO);
        for nth in 1..100 {
            controller.complete(Duration::from_millis(nth), MIB);
        }
        assert_eq!(controller.limit, START);
    }

    #[tokio::test]
    async fn requests_in_flight_stay_within_the_window() {
        let window = Window::new(2, None);
        let (first, second) = (window.enter().await, window.enter().await);
        let mut third = pin!(window.enter());
        assert!(futures::poll!(third.as_mut()).is_pending());
        // A failed request.
        drop(first);
        let third = third.await;
        second.complete(MIB);
        third.complete(MIB);
        assert_eq!(window.state.lock().in_flight, 0);
    }

    proptest! {
        /// For every latency and bandwidth, the window is within its bound, and reaches most of the rate of
        /// the best constant one.
        #[test]
        fn window_reaches_most_of_the_rate(
            latency_s in 0f64..0.3, mib_per_s in 5f64..1000., pack_mib in 1f64..33., max in 1usize..64
        ) {
            let model = || Model::new(latency_s, mib_per_s, pack_mib);
            let mut controller = Controller::new(max, Duration::ZERO);
            let (rate, largest) = model().control(&mut controller, 600);
            prop_assert!(largest <= max);
            let best = [1, 2, 4, 8, 16, 32, 64].map(|window: usize| {
                let window = window.min(max);
                model().run(200, window, |_| window)
            });
            let best = best.into_iter().fold(0., f64::max).min(mib_per_s);
            prop_assert!(rate >= 0.75 * best, "{} of {}, {}", rate, best, controller.limit);
        }
    }
}
