//! Single-flight memory cache of decrypted frames.

use super::lru::Lru;
use crate::{CloudError, frame::OwnedFrame};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::watch;

/// Approximate overhead of a frame in addition to its blocks.
const FRAME_OVERHEAD_BYTES: u64 = 256;

/// Key of a frame: number of its delta in the cache, and number of the frame in the delta.
pub(crate) type FrameKey = (u64, u64);

/// Result of a fetch, shared by all waiters.
pub(crate) type FrameResult = Result<Arc<OwnedFrame>, Arc<CloudError>>;

#[derive(Default)]
struct FetchState(Option<FrameResult>);

/// Handle to wait for a frame in flight.
pub(crate) struct Wait(watch::Receiver<FetchState>);

impl Wait {
    /// Waits for the result.
    pub async fn done(mut self) -> FrameResult {
        match self.0.wait_for(|progress| progress.0.is_some()).await {
            Ok(progress) => progress.0.clone().unwrap_or_else(|| Err(gone())),
            Err(_) => Err(gone()),
        }
    }
}

fn gone() -> Arc<CloudError> {
    Arc::new(CloudError::Internal { what: "fetching a frame", detail: "the fetch was cancelled".into() })
}

/// State of a requested frame.
pub(crate) enum Claim {
    /// In memory.
    Ready(Arc<OwnedFrame>),
    /// In flight.
    Wait(Wait),
    /// Missing: the caller fetches it.
    Mine(Obligation, Wait),
}

struct FrameTable {
    ready: Lru<FrameKey, Arc<OwnedFrame>>,
    in_flight: HashMap<FrameKey, watch::Receiver<FetchState>>,
}

/// Frames of a cache.
pub(crate) struct Frames {
    inner: Mutex<FrameTable>,
}

impl Frames {
    /// Creates a cache of at most `max_bytes`.
    pub fn new(max_bytes: u64) -> Self {
        Self { inner: Mutex::new(FrameTable { ready: Lru::new(max_bytes), in_flight: HashMap::new() }) }
    }

    /// Returns the state of a frame. If it is missing, the caller must fetch it.
    pub fn claim(self: &Arc<Self>, key: FrameKey) -> Claim {
        let mut inner = self.inner.lock();
        if let Some(frame) = inner.ready.get(&key) {
            return Claim::Ready(frame.clone());
        }
        if let Some(fetch) = inner.in_flight.get(&key) {
            return Claim::Wait(Wait(fetch.clone()));
        }
        let (send, receive) = watch::channel(FetchState::default());
        let before = inner.in_flight.insert(key, receive.clone());
        debug_assert!(before.is_none(), "frame {key:?} is in flight twice");
        Claim::Mine(Obligation { frames: self.clone(), key, send, over: false }, Wait(receive))
    }

    /// Returns the frame if it is in memory.
    pub fn ready(&self, key: FrameKey) -> Option<Arc<OwnedFrame>> {
        self.inner.lock().ready.get(&key).cloned()
    }

    /// Returns the size of the frames in memory in bytes.
    pub fn bytes(&self) -> u64 {
        self.inner.lock().ready.bytes()
    }
}

/// Obligation to fetch a frame. Dropping it fails all waiters; the next request tries again.
pub(crate) struct Obligation {
    frames: Arc<Frames>,
    key: FrameKey,
    send: watch::Sender<FetchState>,
    over: bool,
}

impl Obligation {
    /// Passes the result to all waiters; caches a frame, but not an error.
    pub fn complete(mut self, result: FrameResult) {
        let gone = {
            let mut inner = self.frames.inner.lock();
            let fetch = inner.in_flight.remove(&self.key);
            debug_assert!(fetch.is_some(), "frame {:?} was fetched twice", self.key);
            let frame = result.as_ref().ok();
            frame.map(|frame| {
                inner.ready.insert(self.key, frame.clone(), frame.heap_bytes() + FRAME_OVERHEAD_BYTES)
            })
        };
        // Dropped outside of the lock.
        drop(gone);
        self.over = true;
        self.send.send_replace(FetchState(Some(result)));
    }
}

impl Drop for Obligation {
    fn drop(&mut self) {
        if !self.over {
            self.frames.inner.lock().in_flight.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn fetch_is_shared_and_passed_on_if_the_fetcher_gives_up() {
        let frames = Arc::new(Frames::new(1 << 20));
        let Claim::Mine(obligation, wait) = frames.claim((1, 2)) else { panic!("it is nowhere yet") };
        let Claim::Wait(other) = frames.claim((1, 2)) else { panic!("it is on its way") };
        drop(obligation);
        assert!(wait.done().await.is_err() && other.done().await.is_err());
        let Claim::Mine(obligation, _) = frames.claim((1, 2)) else { panic!("no fetch is running") };
        let Claim::Wait(other) = frames.claim((1, 2)) else { panic!("it is on its way") };
        obligation.complete(Err(gone()));
        assert!(other.done().await.is_err());
        assert!(matches!(frames.claim((1, 2)), Claim::Mine(..)), "a failure is not remembered");
    }
}
