//! Compression level that follows the bottleneck of a backup.
//!
//! While packs wait for the store and nothing is sealed, a higher level costs no time and shortens the
//! upload; while the store waits for packs, a lower one is faster. A backup that yields to guests does not
//! use the highest levels: its threads are idle ones, but caches and memory bandwidth are shared.

use blockd_store_config::CompressionLevel;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Levels from the fastest to the one that stores least. On files of an operating system zstd 1, 4, 6 and 9
/// take 0.6, 1.3, 2.5 and 3.5 times the CPU time of zstd 3, and store 109, 99, 95 and 94 % of its bytes.
const LADDER: [CompressionLevel; 6] = [
    CompressionLevel::Lz4,
    CompressionLevel::Zstd(1),
    CompressionLevel::Zstd(3),
    CompressionLevel::Zstd(4),
    CompressionLevel::Zstd(6),
    CompressionLevel::Zstd(9),
];
/// Position of the first level: most backups are too short for a second one.
const START: usize = 3;
/// Lowest position while guests are idle: their backups have time to store less.
const MIN_IDLE: usize = START;
/// Highest position while guests are active.
const MAX_ACTIVE: usize = 2;
/// Share of the time in which only the store works, in percent, from which the level rises. A step takes at
/// most twice the CPU time, so that sealing does not become the bottleneck.
const RISE_FROM_PERCENT: u128 = 70;
/// Share of the time in which the store waits for packs, in percent, from which the level falls.
const FALL_FROM_PERCENT: u128 = 30;
/// Number of successive equal observations before a step.
const CONFIRMATIONS: i32 = 2;
/// Minimum time of an observation.
const MIN_OBSERVED: Duration = Duration::from_millis(20);

/// Time between two packs, by the stages at work.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Occupancy {
    /// Total.
    pub total: Duration,
    /// Packs were sealed, and none was sent.
    pub only_sealing: Duration,
    /// Packs were sent, and none was sealed.
    pub only_sending: Duration,
}

/// Controller of the level: a function of the observations before each pack.
#[derive(Debug)]
pub(crate) struct LevelController {
    position: usize,
    /// Number of successive observations in favour of a higher level; negative for a lower one.
    tendency: i32,
}

impl Default for LevelController {
    fn default() -> Self {
        Self { position: START, tendency: 0 }
    }
}

impl LevelController {
    /// Returns the level of the next pack.
    pub fn next(&mut self, observed: &Occupancy, guests_are_active: bool) -> CompressionLevel {
        let percent = |part: Duration| part.as_nanos() * 100 / observed.total.as_nanos().max(1);
        if observed.total >= MIN_OBSERVED {
            let step = if percent(observed.only_sealing) >= FALL_FROM_PERCENT {
                -1
            } else {
                i32::from(percent(observed.only_sending) >= RISE_FROM_PERCENT)
            };
            // A tendency ends with an observation of another one.
            let is_same = self.tendency.signum() == step;
            self.tendency = if is_same { self.tendency + step } else { step };
        }
        if self.tendency.abs() >= CONFIRMATIONS {
            let up = self.position + 1;
            self.position = if self.tendency > 0 { up } else { self.position.saturating_sub(1) };
            self.tendency = 0;
        }
        let bounds = if guests_are_active { (0, MAX_ACTIVE) } else { (MIN_IDLE, LADDER.len() - 1) };
        self.position = self.position.clamp(bounds.0, bounds.1);
        LADDER[self.position]
    }
}

/// Stage of a pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    Sealing,
    Sending,
}

/// Clock of the stages at work, and the level that follows from it.
#[derive(Debug)]
pub(crate) struct AdaptiveLevel {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    controller: LevelController,
    observed: Occupancy,
    counted: Instant,
    sealing: usize,
    sending: usize,
}

impl Default for AdaptiveLevel {
    fn default() -> Self {
        let (controller, observed) = (LevelController::default(), Occupancy::default());
        let state = State { controller, observed, counted: Instant::now(), sealing: 0, sending: 0 };
        Self { state: Mutex::new(state) }
    }
}

impl State {
    /// Adds the time since the last call.
    fn count(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted);
        self.counted = now;
        self.observed.total += passed;
        match (self.sealing, self.sending) {
            (1.., 0) => self.observed.only_sealing += passed,
            (0, 1..) => self.observed.only_sending += passed,
            _ => {}
        }
    }

    fn at_work(&mut self, stage: Stage) -> &mut usize {
        match stage {
            Stage::Sealing => &mut self.sealing,
            Stage::Sending => &mut self.sending,
        }
    }
}

impl AdaptiveLevel {
    /// Returns the level of the next pack, from the time since the last one.
    pub fn next(&self, guests_are_active: bool) -> CompressionLevel {
        let mut state = self.state.lock();
        state.count(Instant::now());
        let observed = state.observed;
        // Packs that start together share an observation.
        if observed.total >= MIN_OBSERVED {
            state.observed = Occupancy::default();
        }
        state.controller.next(&observed, guests_are_active)
    }

    /// Counts a stage as at work until the guard is dropped.
    pub fn enter(&self, stage: Stage) -> AtWork<'_> {
        let mut state = self.state.lock();
        state.count(Instant::now());
        *state.at_work(stage) += 1;
        AtWork { level: self, stage }
    }
}

/// Guard of a stage at work.
#[derive(Debug)]
pub(crate) struct AtWork<'a> {
    level: &'a AdaptiveLevel,
    stage: Stage,
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        let mut state = self.level.state.lock();
        state.count(Instant::now());
        *state.at_work(self.stage) -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// MiB of blocks that two cores seal in a second, and the stored share, per level of the ladder.
    const MEASURED: [(f64, f64); LADDER.len()] =
        [(1200., 0.455), (1000., 0.339), (790., 0.322), (590., 0.319), (260., 0.303), (165., 0.3)];

    /// Model of a backup: sealing and sending overlap, and the slower one works all the time.
    struct Model {
        controller: LevelController,
        level: CompressionLevel,
        seconds: f64,
        steps: usize,
    }

    impl Model {
        fn new() -> Self {
            Self { controller: LevelController::default(), level: LADDER[START], seconds: 0., steps: 0 }
        }

        /// Backs up packs to a store that takes `link` MiB in a second.
        fn run(&mut self, packs: usize, link: f64, guests_are_active: bool) -> CompressionLevel {
            for _ in 0..packs {
                let position = LADDER.iter().position(|level| *level == self.level).unwrap();
                let (sealing, sending) = (32. / MEASURED[position].0, 32. * MEASURED[position].1 / link);
                let total = sealing.max(sending);
                self.seconds += total;
                let time = Duration::from_secs_f64;
                let observed = Occupancy {
                    total: time(total),
                    only_sealing: time(total - sending),
                    only_sending: time(total - sealing),
                };
                let next = self.controller.next(&observed, guests_are_active);
                self.steps += usize::from(next != self.level);
                self.level = next;
            }
            self.level
        }
    }

    #[test]
    fn level_follows_the_bottleneck() {
        for (link, expected) in [
            (2000., CompressionLevel::Zstd(4)),
            (400., CompressionLevel::Zstd(4)),
            (150., CompressionLevel::Zstd(4)),
            (40., CompressionLevel::Zstd(6)),
            (5., CompressionLevel::Zstd(9)),
        ] {
            assert_eq!(Model::new().run(100, link, false), expected, "{link} MiB/s");
        }
        // A link that changes.
        let mut model = Model::new();
        assert_eq!(model.run(100, 5., false), CompressionLevel::Zstd(9));
        assert_eq!(model.run(100, 2000., false), CompressionLevel::Zstd(4));
        assert_eq!(model.run(100, 5., false), CompressionLevel::Zstd(9));
    }

    #[test]
    fn active_guests_bound_the_level() {
        let mut model = Model::new();
        assert_eq!(model.run(100, 5., false), CompressionLevel::Zstd(9));
        assert_eq!(model.run(1, 5., true), CompressionLevel::Zstd(3), "at once");
        assert_eq!(model.run(100, 5., true), CompressionLevel::Zstd(3));
        assert_eq!(model.run(100, 2000., true), CompressionLevel::Lz4);
        assert_eq!(model.run(1, 2000., false), CompressionLevel::Zstd(4));
    }

    #[test]
    fn single_observations_change_nothing() {
        let second = Duration::from_secs(1);
        let sending = Occupancy { total: second, only_sending: second, ..Occupancy::default() };
        let sealing = Occupancy { total: second, only_sealing: second, ..Occupancy::default() };
        let both = Occupancy { total: second, ..Occupancy::default() };
        let mut controller = LevelController::default();
        for other in [sealing, both] {
            for _ in 0..10 {
                assert_eq!(controller.next(&sending, false), LADDER[START]);
                assert_eq!(controller.next(&other, false), LADDER[START]);
            }
        }
        // Packs that start together.
        let instant = Duration::from_micros(1);
        let short = Occupancy { total: instant, only_sending: instant, ..Occupancy::default() };
        assert!((0..10).all(|_| controller.next(&short, false) == LADDER[START]));
    }

    #[test]
    fn level_steps_from_its_thresholds() {
        let second = Duration::from_secs(1);
        let after_two = |position, observed| {
            let mut controller = LevelController { position, tendency: 0 };
            controller.next(&observed, false);
            controller.next(&observed, false)
        };
        let top = LADDER.len() - 1;
        for (percent, position) in [(29, top), (30, top - 1)] {
            let only_sealing = second * percent / 100;
            let observed = Occupancy { total: second, only_sealing, ..Occupancy::default() };
            assert_eq!(after_two(top, observed), LADDER[position], "{percent} % of sealing");
        }
        for (percent, position) in [(69, START), (70, START + 1)] {
            let only_sending = second * percent / 100;
            let observed = Occupancy { total: second, only_sending, ..Occupancy::default() };
            assert_eq!(after_two(START, observed), LADDER[position], "{percent} % of sending");
        }
    }

    proptest! {
        /// At every rate of the link, the level settles, and costs at most half of the link's time.
        #[test]
        fn level_settles(link in 1f64..3000., start in 1f64..3000.) {
            let mut model = Model::new();
            model.run(50, start, false);
            model.run(20, link, false);
            let (settled, steps, seconds) = (model.level, model.steps, model.seconds);
            prop_assert_eq!(model.run(200, link, false), settled);
            prop_assert_eq!(model.steps, steps);
            let fastest = MEASURED[MIN_IDLE..].iter().map(|(seal, ratio)| (32. / seal).max(32. * ratio / link));
            let fastest = fastest.fold(f64::INFINITY, f64::min);
            prop_assert!((model.seconds - seconds) / 200. <= 1.5 * fastest);
        }
    }

    #[test]
    fn stages_at_work_are_timed() {
        let level = AdaptiveLevel::default();
        let observed = |level: &AdaptiveLevel| level.state.lock().observed;
        let pause = Duration::from_millis(5);
        let sealing = level.enter(Stage::Sealing);
        std::thread::sleep(pause);
        let sending = level.enter(Stage::Sending);
        let before = observed(&level);
        assert!(before.only_sealing >= pause && before.only_sending.is_zero());
        std::thread::sleep(pause);
        drop(sealing);
        assert_eq!(observed(&level).only_sealing, before.only_sealing);
        assert!(observed(&level).only_sending.is_zero(), "both were at work");
        std::thread::sleep(pause);
        drop(sending);
        let after = observed(&level);
        assert!(after.only_sending >= pause);
        std::thread::sleep(pause * 4);
        assert_eq!(level.next(false), LADDER[START]);
        assert_eq!(observed(&level), Occupancy::default());
    }
}
