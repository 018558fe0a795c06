//! Limit on concurrent listings of large directories: each takes hundreds of megabytes.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::{
    io,
    time::{Duration, Instant},
};

/// Size from which a directory counts as large, in bytes.
pub(super) const LARGE_DIR_BYTES: u64 = 4 << 20;
/// Limit of the process. Each image has at most one listing, so that one with a slow store does not delay the
/// others.
static LISTINGS: LargeListings = LargeListings::new(2);
/// Timeout of the wait for another listing.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Number of active listings, and its limit.
struct LargeListings {
    active: Mutex<usize>,
    ended: Condvar,
    max: usize,
}

/// Active listing. Drop admits the next one.
pub(super) struct LargeListing<'a> {
    all: &'a LargeListings,
    _of_image: MutexGuard<'a, ()>,
}

impl LargeListings {
    const fn new(max: usize) -> Self {
        Self { active: Mutex::new(0), ended: Condvar::new(), max }
    }

    /// Waits for a free slot; `None` after the deadline.
    fn begin<'a>(&'a self, of_image: &'a Mutex<()>, deadline: Instant) -> Option<LargeListing<'a>> {
        let of_image = of_image.try_lock_until(deadline)?;
        let mut active = self.active.lock();
        let left = deadline.saturating_duration_since(Instant::now());
        self.ended.wait_while_for(&mut active, |active| *active >= self.max, left);
        if *active >= self.max {
            return None;
        }
        *active += 1;
        Some(LargeListing { all: self, _of_image: of_image })
    }
}

impl Drop for LargeListing<'_> {
    fn drop(&mut self) {
        *self.all.active.lock() -= 1;
        self.all.ended.notify_one();
    }
}

/// Waits until a large directory of an image may be listed.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] after the timeout.
pub(super) fn begin(of_image: &Mutex<()>) -> io::Result<LargeListing<'_>> {
    LISTINGS.begin(of_image, Instant::now() + TIMEOUT).ok_or_else(|| {
        let message = "too many concurrent listings of large directories; try again later";
        io::Error::new(io::ErrorKind::ResourceBusy, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_image_does_not_delay_listings_of_other_images() {
        let listings = LargeListings::new(2);
        let [slow, other, third] = [(); 3].map(|()| Mutex::new(()));
        let begin = |image| listings.begin(image, Instant::now());
        let of_slow = begin(&slow).unwrap();
        assert!(begin(&slow).is_none(), "two listings of one image");
        let of_other = begin(&other).unwrap();
        assert!(begin(&third).is_none(), "more listings than the limit");
        drop(of_other);
        let of_third = begin(&third).unwrap();
        drop((of_slow, of_third));
        assert!(begin(&slow).is_some() && *listings.active.lock() == 0);
    }

    #[test]
    fn queued_listing_starts_when_another_one_ends() {
        let (listings, one, other) = (LargeListings::new(1), Mutex::new(()), Mutex::new(()));
        let deadline = Instant::now() + Duration::from_secs(600);
        std::thread::scope(|scope| {
            let first = listings.begin(&one, deadline).unwrap();
            let second = scope.spawn(|| listings.begin(&other, deadline).is_some());
            drop(first);
            assert!(second.join().unwrap());
        });
    }
}
