//! Opened frames: those in memory, and those that somebody is already fetching.

use super::lru::Lru;
use crate::{CloudError, frame::OwnedFrame};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::sync::watch;

/// What a frame takes besides its blocks, about.
const FRAME_OVERHEAD_BYTES: u64 = 256;

/// Names a frame among all that a cache knows: its delta's number in the cache, and its own in the delta.
pub(crate) type FrameKey = (u64, u64);

/// What came of a frame, for everybody who waits for it.
pub(crate) type FrameResult = Result<Arc<OwnedFrame>, Arc<CloudError>>;

#[derive(Default)]
struct Progress(Option<FrameResult>);

/// Somebody's wait for a frame that is on its way.
pub(crate) struct Wait(watch::Receiver<Progress>);

impl Wait {
    /// Waits for it.
    pub async fn done(mut self) -> FrameResult {
        match self.0.wait_for(|progress| progress.0.is_some()).await {
            Ok(progress) => progress.0.clone().unwrap_or_else(|| Err(gone())),
            Err(_) => Err(gone()),
        }
    }
}

fn gone() -> Arc<CloudError> {
    Arc::new(CloudError::Internal {
        what: "fetching a frame",
        detail: "whoever fetched it was stopped".into(),
    })
}

/// Where a frame is.
pub(crate) enum Claim {
    /// In memory.
    Ready(Arc<OwnedFrame>),
    /// On its way.
    Wait(Wait),
    /// Nowhere: whoever got this brings it.
    Mine(Flight, Wait),
}

struct Inner {
    ready: Lru<FrameKey, Arc<OwnedFrame>>,
    flights: HashMap<FrameKey, watch::Receiver<Progress>>,
}

/// All frames of a cache.
pub(crate) struct Frames {
    inner: Mutex<Inner>,
}

impl Frames {
    /// Keeps up to so many bytes of them.
    pub fn new(most_bytes: u64) -> Self {
        Self { inner: Mutex::new(Inner { ready: Lru::new(most_bytes), flights: HashMap::new() }) }
    }

    /// Where a frame is; if it is nowhere, the caller is the one who brings it.
    pub fn claim(self: &Arc<Self>, key: FrameKey) -> Claim {
        let mut inner = self.inner.lock();
        if let Some(frame) = inner.ready.get(&key) {
            return Claim::Ready(frame.clone());
        }
        if let Some(flight) = inner.flights.get(&key) {
            return Claim::Wait(Wait(flight.clone()));
        }
        let (send, receive) = watch::channel(Progress::default());
        inner.flights.insert(key, receive.clone());
        Claim::Mine(Flight { frames: self.clone(), key, send, over: false }, Wait(receive))
    }

    /// The frame, if it is in memory.
    pub fn ready(&self, key: FrameKey) -> Option<Arc<OwnedFrame>> {
        self.inner.lock().ready.get(&key).cloned()
    }

    /// Bytes of the frames in memory.
    pub fn bytes(&self) -> u64 {
        self.inner.lock().ready.bytes()
    }
}

/// The duty to bring a frame. Dropped, it fails for all who wait, and the next one who asks tries again.
pub(crate) struct Flight {
    frames: Arc<Frames>,
    key: FrameKey,
    send: watch::Sender<Progress>,
    over: bool,
}

impl Flight {
    /// Gives the result to all who wait; a frame stays in memory for a while, a failure does not.
    pub fn land(mut self, result: FrameResult) {
        let gone = {
            let mut inner = self.frames.inner.lock();
            inner.flights.remove(&self.key);
            let frame = result.as_ref().ok();
            frame.map(|frame| {
                inner.ready.insert(self.key, frame.clone(), frame.heap_bytes() + FRAME_OVERHEAD_BYTES)
            })
        };
        // Given back where nobody has to wait for it.
        drop(gone);
        self.over = true;
        self.send.send_replace(Progress(Some(result)));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.over {
            self.frames.inner.lock().flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_brings_it_for_all_and_who_gives_up_makes_room_for_the_next() {
        let frames = Arc::new(Frames::new(1 << 20));
        let Claim::Mine(flight, wait) = frames.claim((1, 2)) else { panic!("it is nowhere yet") };
        let Claim::Wait(other) = frames.claim((1, 2)) else { panic!("it is on its way") };
        drop(flight);
        assert!(wait.done().await.is_err() && other.done().await.is_err());
        let Claim::Mine(flight, _) = frames.claim((1, 2)) else { panic!("nobody brings it") };
        let Claim::Wait(other) = frames.claim((1, 2)) else { panic!("it is on its way") };
        flight.land(Err(gone()));
        assert!(other.done().await.is_err());
        assert!(matches!(frames.claim((1, 2)), Claim::Mine(..)), "a failure is not remembered");
    }
}
