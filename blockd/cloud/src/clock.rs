//! Clock checks for deletions and commits: the store's clock against this host's, and the duration of a run.

use crate::{ClockUnknownCause, CloudError, names::PROBE_PREFIX};
use blockd_store::{BlobStore, PutMode, RequestCounts, StoreErrorKind};
use bytes::Bytes;
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use uuid::Uuid;

/// Difference between the clocks of this host and of a store beyond which nothing is deleted.
pub const MAX_CLOCK_DIFFERENCE_S: i64 = 3600;

/// Requests of [`check_clock`] on a store whose listings do not lag.
pub const CLOCK_CHECK: RequestCounts = RequestCounts {
    put: 1,
    get: 0,
    list: 1,
    delete: 1,
    multipart: 0,
    bytes_up: PROBE_BODY.len() as u64,
    bytes_down: 0,
};
const PROBE_BODY: &[u8] = b"clock";

/// Pauses between listings of a probe object: listings may lag.
const LISTING_PAUSES_MS: [u64; 5] = [250, 500, 1000, 2000, 4000];

/// Duration from which a run checks its objects after the commit: a garbage collection with another clock may
/// have considered them expired.
const LONG_RUN: Duration = Duration::from_secs(3600);
/// Difference of boot time and monotonic time that indicates a suspended host.
const MAX_SUSPENSION: Duration = Duration::from_secs(60);

/// Fails if the clocks of this host and of the store differ by more than [`MAX_CLOCK_DIFFERENCE_S`]: the ages
/// and dates of deletions would be wrong. Puts, lists and deletes one small object; if the store has no space
/// for it, the date of the error response is the store's time.
///
/// # Errors
/// [`CloudError::ClockDiffers`]; [`CloudError::ClockUnknown`] if the store's time is unknown; errors of the
/// store.
pub async fn check_clock(store: &dyn BlobStore, now: impl Fn() -> Timestamp) -> Result<(), CloudError> {
    let (before, stored_s, after) = probe(store, now).await?;
    // The store read its clock between `before` and `after`.
    let ahead_s = after.as_second().saturating_sub(stored_s).min(0)
        + before.as_second().saturating_sub(stored_s).max(0);
    match ahead_s.saturating_abs() > MAX_CLOCK_DIFFERENCE_S {
        true => Err(CloudError::ClockDiffers { store: store.describe().to_owned(), ahead_s }),
        false => Ok(()),
    }
}

/// Returns the store's time.
///
/// # Errors
/// [`CloudError::ClockUnknown`]; errors of the store.
pub(crate) async fn store_time(store: &dyn BlobStore) -> Result<Timestamp, CloudError> {
    let (_, stored_s, _) = probe(store, || Timestamp::UNIX_EPOCH).await?;
    Timestamp::from_second(stored_s).map_err(|_| unknown(store, ClockUnknownCause::NoTime))
}

/// Puts, lists and deletes an object; returns its time by the store's clock, in seconds since 1970, between
/// the times before and after the put.
async fn probe(
    store: &dyn BlobStore,
    now: impl Fn() -> Timestamp,
) -> Result<(Timestamp, i64, Timestamp), CloudError> {
    let prefix = format!("{PROBE_PREFIX}{}/", Uuid::new_v4());
    let key = format!("{prefix}clock");
    let before = now();
    let put = store.put(&key, Bytes::from_static(PROBE_BODY), PutMode::Overwrite).await;
    let after = now();
    let stored_s = match put {
        Ok(()) => {
            let listed = listed_time(store, &prefix, &key).await;
            if let Err(error) = store.delete(&key).await {
                tracing::debug!(%error, key, "deletion failed on probe object: left to the next garbage collection");
            }
            listed?
        }
        // A full store must not prevent deletions, which free space.
        Err(error) if error.kind == StoreErrorKind::NoSpace => {
            error.store_time_unix_s.ok_or_else(|| unknown(store, ClockUnknownCause::NoRoom))?.get()
        }
        Err(error) => return Err(error.into()),
    };
    Ok((before, stored_s, after))
}

/// Returns the modification time of an object by the store's clock; waits some seconds until a listing has
/// it.
async fn listed_time(store: &dyn BlobStore, prefix: &str, key: &str) -> Result<i64, CloudError> {
    let mut pauses = LISTING_PAUSES_MS.into_iter();
    loop {
        if let Some(found) = store.list(prefix).await?.into_iter().find(|object| object.key == key) {
            return found.modified_unix_s.ok_or_else(|| unknown(store, ClockUnknownCause::NoTime));
        }
        let Some(pause_ms) = pauses.next() else {
            return Err(unknown(store, ClockUnknownCause::NotListed));
        };
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
}

fn unknown(store: &dyn BlobStore, cause: ClockUnknownCause) -> CloudError {
    CloudError::ClockUnknown { store: store.describe().to_owned(), cause }
}

/// Start of a run on the monotonic and the boot-time clock, which cannot be set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunClock {
    monotonic: Duration,
    boot: Duration,
}

impl RunClock {
    pub(crate) fn start() -> Self {
        Self { monotonic: read(ClockId::Monotonic), boot: read(ClockId::Boottime) }
    }

    /// Returns true if the run took, or the host was suspended, so long that the objects must be checked.
    pub(crate) fn is_long(&self) -> bool {
        self.is_long_at(read(ClockId::Monotonic), read(ClockId::Boottime))
    }

    /// Returns true if the run may be long at its commit, which starts in less than half an hour.
    pub(crate) fn may_become_long(&self) -> bool {
        let later = |clock| read(clock) + LONG_RUN / 2;
        self.is_long_at(later(ClockId::Monotonic), later(ClockId::Boottime))
    }

    fn is_long_at(&self, monotonic: Duration, boot: Duration) -> bool {
        let (awake, passed) = (monotonic.saturating_sub(self.monotonic), boot.saturating_sub(self.boot));
        passed > LONG_RUN || passed.saturating_sub(awake) > MAX_SUSPENSION
    }
}

fn read(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_store::{ListPage, Middleware, Request, Response, StoreFuture};
    use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    /// Fake store with delayed listings, possibly without times.
    struct Lagging {
        inner: Arc<MemoryStore>,
        empty: AtomicU32,
        has_times: bool,
    }

    impl Middleware for Lagging {
        fn describe(&self) -> &str {
            "lagging"
        }

        fn wrap<'a, T: Response + 'a>(
            &'a self,
            _: Request<'a>,
            ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
        ) -> StoreFuture<'a, T> {
            ask(self.inner.clone())
        }

        fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
            Box::pin(async move {
                if self.empty.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                    return Ok(ListPage::default());
                }
                let mut page = self.inner.list_page(prefix, page).await?;
                if !self.has_times {
                    page.objects.iter_mut().for_each(|object| object.modified_unix_s = None);
                }
                Ok(page)
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn probe_that_is_listed_late_is_waited_for() {
        for (empty, has_times, cause) in [
            (5, true, None),
            (6, true, Some(ClockUnknownCause::NotListed)),
            (0, false, Some(ClockUnknownCause::NoTime)),
        ] {
            let store = Lagging { inner: Arc::default(), empty: empty.into(), has_times };
            let checked = check_clock(&store, || Timestamp::UNIX_EPOCH).await;
            let found = checked.map_err(|error| match error {
                CloudError::ClockUnknown { cause, .. } => cause,
                other => panic!("{other}"),
            });
            assert_eq!(found.err(), cause);
            assert_eq!(store.inner.objects().len(), 0, "a probe object is left");
        }
    }

    #[tokio::test]
    async fn full_store_is_checked_by_the_date_of_its_refusal() {
        let store = FaultStore::new(Arc::new(MemoryStore::default()));
        let now = Timestamp::now();
        for offset_s in [0, 3000, -3000] {
            store.fail_writes(Fault::NoSpaceAt(now.as_second() - offset_s));
            check_clock(&store, || now).await.unwrap();
        }
        store.fail_writes(Fault::NoSpaceAt(now.as_second() - 3700));
        let refused = check_clock(&store, || now).await.unwrap_err();
        assert!(matches!(refused, CloudError::ClockDiffers { ahead_s: 3700, .. }), "{refused}");
        store.fail_writes(Fault::NoSpace);
        let refused = check_clock(&store, || now).await.unwrap_err();
        let CloudError::ClockUnknown { cause, .. } = refused else { panic!("{refused}") };
        assert_eq!(cause, ClockUnknownCause::NoRoom);
    }

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
    fn run_may_become_long_after_half_an_hour() {
        let minutes = |clock, minutes: u64| read(clock) - Duration::from_secs(minutes * 60);
        for (age, expected) in [(0, false), (29, false), (31, true)] {
            let [monotonic, boot] = [ClockId::Monotonic, ClockId::Boottime].map(|clock| minutes(clock, age));
            assert_eq!(RunClock { monotonic, boot }.may_become_long(), expected, "{age} minutes");
        }
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
