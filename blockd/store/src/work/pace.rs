//! Time share of background work.

use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// All of the time.
const WHOLE_PERMILLE: u32 = 1000;
/// The longest rest after one piece of work, however long that took: it may have waited for a disk.
const MAX_REST: Duration = Duration::from_secs(2);
/// A thread that made way and waited so long for a processor hardly gets one: the next piece of work does not
/// make way.
const STARVED_FROM: Duration = Duration::from_secs(2);

/// Share of time that each worker thread may work, set by the load monitor.
#[derive(Debug)]
pub struct Pace {
    share_permille: Mutex<u32>,
    changed: Notify,
    makes_way: AtomicBool,
    is_starved: AtomicBool,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            share_permille: Mutex::new(WHOLE_PERMILLE),
            changed: Notify::new(),
            makes_way: AtomicBool::new(false),
            is_starved: AtomicBool::new(false),
        }
    }
}

impl Pace {
    /// From now on, work takes this share of the time, in thousandths: at least 1, at most 1000. Holds for
    /// those who rest already.
    pub fn set_permille(&self, share_permille: u32) {
        let share_permille = share_permille.clamp(1, WHOLE_PERMILLE);
        let before = std::mem::replace(&mut *self.share_permille.lock(), share_permille);
        if before != share_permille {
            self.changed.notify_waiters();
        }
    }

    /// The share, in thousandths.
    pub fn permille(&self) -> u32 {
        *self.share_permille.lock()
    }

    /// From now on, work makes way for everything else, or takes its turn like everything else.
    pub fn set_making_way(&self, makes_way: bool) {
        self.makes_way.store(makes_way, Relaxed);
    }

    /// Returns true if the next work item yields. On a fully loaded machine some items do not yield, so that
    /// a task makes progress.
    pub(crate) fn makes_way(&self) -> bool {
        self.makes_way.load(Relaxed) && !self.is_starved.swap(false, Relaxed)
    }

    /// Notes how long a thread that makes way waited for a processor, for one piece of work.
    pub(crate) fn note_made_way(&self, waited: Duration) {
        if waited >= STARVED_FROM {
            self.is_starved.store(true, Relaxed);
        }
    }

    /// Returns the rest after an amount of work.
    fn rest_for(&self, worked: Duration) -> Duration {
        let share = self.permille();
        (worked * (WHOLE_PERMILLE - share) / share).min(MAX_REST)
    }

    /// Rests after a piece of work that took so long.
    pub(crate) async fn rest(&self, worked: Duration) {
        let began = Instant::now();
        loop {
            // Registered before the look, so that a change in between is not missed.
            let changed = self.changed.notified();
            let left = self.rest_for(worked).saturating_sub(began.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = changed => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    async fn rested(pace: &Pace, worked_ms: u64) -> u64 {
        let began = Instant::now();
        pace.rest(Duration::from_millis(worked_ms)).await;
        began.elapsed().as_millis() as u64
    }

    #[test]
    fn work_makes_way_but_not_for_ever() {
        let pace = Pace::default();
        assert!(!pace.makes_way());
        pace.set_making_way(true);
        pace.note_made_way(Duration::from_millis(1_999));
        assert!(pace.makes_way() && pace.makes_way());
        pace.note_made_way(Duration::from_secs(2));
        assert!(!pace.makes_way(), "it got hardly any time");
        assert!(pace.makes_way(), "the one after it makes way again");
        pace.set_making_way(false);
        assert!(!pace.makes_way());
    }

    #[tokio::test(start_paused = true)]
    async fn work_takes_its_share_of_the_time() {
        let pace = Pace::default();
        assert_eq!(rested(&pace, 100).await, 0);
        pace.set_permille(500);
        assert_eq!(rested(&pace, 100).await, 100);
        pace.set_permille(100);
        assert_eq!(rested(&pace, 10).await, 90);
        assert_eq!(rested(&pace, 60_000).await, 2_000, "what waited for a disk does not rest for minutes");
        for (given, kept) in [(0, 1), (1001, 1000)] {
            pace.set_permille(given);
            assert_eq!(pace.permille(), kept);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn changed_share_applies_to_a_sleeping_worker() {
        let pace = Arc::new(Pace::default());
        pace.set_permille(100);
        let (took, ()) = futures::join!(rested(&pace, 100), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            pace.set_permille(1000);
        });
        assert_eq!(took, 50);
        pace.set_permille(500);
        let (took, ()) = futures::join!(rested(&pace, 100), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            pace.set_permille(200);
        });
        assert_eq!(took, 400, "the whole rest counts from its beginning");
    }
}
