//! Clocks that deletions and commits rest on: the store's beside this host's, and the time that a run really took.

use crate::{
    CloudError,
    names::PROBE_PREFIX,
    store::{ObjectStore, PutMode},
};
use bytes::Bytes;
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use uuid::Uuid;

/// Difference between the clocks of this host and of a store beyond which nothing is deleted.
pub const MAX_CLOCK_DIFFERENCE_S: i64 = 3600;

/// A run that took longer checks its objects after the commit: they were young enough for every collector, but none of the
/// clocks that say so was this run's own.
const LONG_RUN: Duration = Duration::from_secs(3600);
/// Boot time that passed while the monotonic clock stood still: the host slept.
const MAX_SUSPENSION: Duration = Duration::from_secs(60);

/// Refuses to go on where the clocks of this host and of the store differ by more than [`MAX_CLOCK_DIFFERENCE_S`]: the ages
/// and dates that a deletion goes by would be wrong. Puts, lists and deletes one small object.
///
/// # Errors
/// [`CloudError::ClockDiffers`]; [`CloudError::ClockUnknown`] if the store does not say when an object was stored; whatever
/// the store reports.
pub async fn check_clock(store: &dyn ObjectStore, now: impl Fn() -> Timestamp) -> Result<(), CloudError> {
    let prefix = format!("{PROBE_PREFIX}{}/", Uuid::new_v4());
    let key = format!("{prefix}clock");
    let before = now();
    store.put(&key, Bytes::from_static(b"clock"), PutMode::Overwrite).await?;
    let after = now();
    let listed = store.list(&prefix).await;
    if let Err(error) = store.delete(&key).await {
        tracing::debug!(%error, key, "a probe object is left to the next collection");
    }
    let stored =
        listed?.into_iter().find(|object| object.key == key).and_then(|object| object.modified_unix_s);
    let Some(stored_s) = stored else {
        return Err(CloudError::ClockUnknown { store: store.describe().to_owned() });
    };
    // The object was stored between the two.
    let ahead_s = after.as_second().saturating_sub(stored_s).min(0)
        + before.as_second().saturating_sub(stored_s).max(0);
    match ahead_s.saturating_abs() > MAX_CLOCK_DIFFERENCE_S {
        true => Err(CloudError::ClockDiffers { store: store.describe().to_owned(), ahead_s }),
        false => Ok(()),
    }
}

/// Beginning of a run on the two clocks that nobody sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunClock {
    monotonic: Duration,
    boot: Duration,
}

impl RunClock {
    pub(crate) fn start() -> Self {
        Self { monotonic: read(ClockId::Monotonic), boot: read(ClockId::Boottime) }
    }

    /// Returns whether the run took so long, or the host slept for so long meanwhile, that its objects are to be checked.
    pub(crate) fn is_long(&self) -> bool {
        self.is_long_at(read(ClockId::Monotonic), read(ClockId::Boottime))
    }

    fn is_long_at(&self, monotonic: Duration, boot: Duration) -> bool {
        let (awake, passed) = (monotonic.saturating_sub(self.monotonic), boot.saturating_sub(self.boot));
        passed > LONG_RUN || passed.saturating_sub(awake) > MAX_SUSPENSION
    }
}

fn read(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::MemoryStore;

    #[tokio::test]
    async fn clocks_that_differ_by_hours_are_refused() {
        let store = MemoryStore::default();
        let now = Timestamp::now();
        for offset_s in [0, 3000, -3000] {
            store.set_clock(now.as_second() - offset_s);
            check_clock(&store, || now).await.unwrap();
        }
        for offset_s in [3700, -3700, 9 * 24 * 3600] {
            store.set_clock(now.as_second() - offset_s);
            let refused = check_clock(&store, || now).await.unwrap_err();
            let CloudError::ClockDiffers { ahead_s, .. } = refused else { panic!("{refused}") };
            assert_eq!(ahead_s, offset_s);
        }
        assert_eq!(store.list(PROBE_PREFIX).await.unwrap().len(), 0, "a probe object is left");
    }

    #[test]
    fn run_is_long_after_an_hour_or_a_suspension() {
        let seconds = Duration::from_secs;
        let clock = RunClock { monotonic: seconds(1000), boot: seconds(5000) };
        assert!(!clock.is_long_at(seconds(1000), seconds(5000)));
        assert!(!clock.is_long_at(seconds(4000), seconds(8000)));
        assert!(clock.is_long_at(seconds(4700), seconds(8700)), "an hour");
        assert!(clock.is_long_at(seconds(1010), seconds(5100)), "suspended for 90 s");
    }
}
