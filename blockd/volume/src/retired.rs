//! The map and the log of a head that was frozen: no longer needed.
//!
//! A removed file gives its space back when its last handle is closed, and that can take long: a filesystem that is
//! mounted with `discard` and has no journal tells the disk of each extent at once. Neither a freeze nor a write that
//! happens to hold the last reference may wait for that, so a thread of its own closes them.

use crate::{
    data_files::remove_if_there, error::VolumeError, files, head::Head, head_log::HeadLog, live_map::LiveMap,
    volume::Volume,
};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

/// Heads whose files wait to be closed. Beyond that, the last holder closes them itself.
const MAX_CLOSING: usize = 64;
/// Interval at which the thread checks whether a reader still holds a map or a log.
const CLOSING_PAUSE: Duration = Duration::from_millis(100);

/// The files of a head that was frozen; they have no name any more.
struct Retired {
    map: Arc<LiveMap>,
    log: Arc<Mutex<HeadLog>>,
}

impl Retired {
    fn is_held_elsewhere(&self) -> bool {
        Arc::strong_count(&self.map) > 1 || Arc::strong_count(&self.log) > 1
    }
}

impl Volume {
    /// Removes the map and the log of a frozen head. The caller holds `admin`.
    pub(crate) fn retire(&self, head: &Head) {
        let warn = |error: VolumeError| {
            tracing::warn!(volume = %self.id, %error, "files of an old head stay until the next start");
        };
        remove_if_there(&files::map_path(&self.dir, head.epoch)).unwrap_or_else(warn);
        remove_if_there(&files::log_path(&self.dir, head.epoch)).unwrap_or_else(warn);
        close_later(Retired { map: head.map.clone(), log: head.log().clone() });
    }
}

/// Hands files without a name to a thread that closes them once no other holder is left.
fn close_later(retired: Retired) {
    static QUEUE: OnceLock<Option<SyncSender<Retired>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (sender, receiver) = sync_channel(MAX_CLOSING);
        let started = thread::Builder::new().name("close-maps".into()).spawn(move || close_all(&receiver));
        started.is_ok().then_some(sender)
    });
    if let Some(queue) = queue {
        // A full queue drops it here: the last holder closes it.
        let _ = queue.try_send(retired);
    }
}

/// Closes files as they come in, each once no other holder is left.
fn close_all(receiver: &Receiver<Retired>) {
    let mut waiting: Vec<Retired> = Vec::new();
    loop {
        let next = match waiting.is_empty() {
            true => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => receiver.recv_timeout(CLOSING_PAUSE),
        };
        match next {
            Ok(retired) if waiting.len() < MAX_CLOSING => waiting.push(retired),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        waiting.retain(Retired::is_held_elsewhere);
    }
}
