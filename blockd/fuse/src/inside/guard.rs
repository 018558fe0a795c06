//! Bounds for what reads untrusted filesystems: how much one question may read, and how long it may think.

use crate::Image;
use parking_lot::Mutex;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What a read counts for at least, so that many small ones are bounded too.
const READ_COST_LEAST_BYTES: u64 = 64;

/// What one question has used so far.
struct Used {
    began: Instant,
    /// Time in reads that are over: waiting for a store is not thinking.
    reading: Duration,
    in_read_since: Option<Instant>,
}

/// Watches over one reader of one filesystem.
pub(super) struct Guard {
    left_bytes: AtomicU64,
    stopped: AtomicBool,
    used: Mutex<Used>,
}

impl Guard {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            left_bytes: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            used: Mutex::new(Used { began: Instant::now(), reading: Duration::ZERO, in_read_since: None }),
        })
    }

    /// A new question begins, which may read so much.
    pub fn begin(&self, most_bytes: u64) {
        self.left_bytes.store(most_bytes, Relaxed);
        *self.used.lock() = Used { began: Instant::now(), reading: Duration::ZERO, in_read_since: None };
    }

    /// How long the question has been thought about, without the time in reads.
    pub fn thinking(&self) -> Duration {
        let used = self.used.lock();
        let reading = used.reading + used.in_read_since.map_or(Duration::ZERO, |since| since.elapsed());
        used.began.elapsed().saturating_sub(reading)
    }

    /// From now on every read fails, so that whoever reads comes to an end.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }
}

/// An image that is read under guard.
pub(super) struct GuardedImage {
    image: Arc<dyn Image>,
    guard: Arc<Guard>,
}

impl GuardedImage {
    pub fn new(image: Arc<dyn Image>, guard: Arc<Guard>) -> Self {
        Self { image, guard }
    }

    /// Fills `buf` from `offset_bytes` on.
    ///
    /// # Errors
    /// It does not lie inside, the bounds are reached, or the image cannot be read.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let guard = &self.guard;
        if guard.stopped.load(Relaxed) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it took too long to make sense of it"));
        }
        let cost = (buf.len() as u64).max(READ_COST_LEAST_BYTES);
        let left = guard.left_bytes.load(Relaxed).checked_sub(cost).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "too much of it would have to be read to make sense of it",
            )
        })?;
        guard.left_bytes.store(left, Relaxed);
        let end = offset_bytes.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.image.size_bytes()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it refers to what lies behind the end"));
        }
        guard.used.lock().in_read_since = Some(Instant::now());
        let result = self.image.read_at(offset_bytes, buf);
        let mut used = guard.used.lock();
        if let Some(since) = used.in_read_since.take() {
            used.reading += since.elapsed();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryImage;

    #[test]
    fn bounds_are_kept_and_renewed() {
        let guard = Guard::new();
        let image = GuardedImage::new(Arc::new(MemoryImage::new(vec![7; 1000])), guard.clone());
        assert!(image.read(0, &mut [0; 10]).is_err(), "no question was asked");
        guard.begin(200);
        let mut buf = [0; 100];
        assert!(image.read(0, &mut buf).is_ok() && buf == [7; 100]);
        assert!(image.read(0, &mut [0; 1]).is_ok());
        assert!(image.read(0, &mut [0; 1]).is_err(), "many small reads are bounded too");
        guard.begin(10_000);
        assert!(image.read(990, &mut [0; 11]).is_err() && image.read(u64::MAX, &mut [0; 2]).is_err());
        assert!(image.read(990, &mut [0; 10]).is_ok());
        assert!(guard.thinking() < Duration::from_secs(60));
        guard.stop();
        assert!(image.read(0, &mut [0; 1]).is_err());
    }
}
