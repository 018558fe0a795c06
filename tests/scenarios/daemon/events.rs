//! Events of a running daemon.

use super::*;
use blockd_api::{
    MAX_WAIT_MILLIS,
    events::{Event, ListEvents, Severity},
    volumes::VolumeState,
};
use blockd_volume::{Op, Storage, attach_storage, detach_storage};
use jiff::Timestamp;
use std::{
    io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

/// Disk that can be removed: its files can no longer be synced.
#[derive(Default)]
struct RemovableDisk {
    is_removed: AtomicBool,
}

impl Storage for RemovableDisk {
    fn file_at(&self, _: &Path) -> Option<usize> {
        None
    }

    fn perform(
        &self,
        _: &Path,
        _: Option<usize>,
        op: Op<'_>,
        kernel: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        match op {
            Op::Sync if self.is_removed.load(Relaxed) => Err(io::Error::other("the disk was removed")),
            _ => kernel(),
        }
    }
}

impl Host {
    /// Lets the database refuse or store events.
    pub(super) async fn refuse_events(&self, refuse: bool) {
        let sql = match refuse {
            true => "CREATE TRIGGER t BEFORE INSERT ON events BEGIN SELECT RAISE(ABORT, 'disk error'); END",
            false => "DROP TRIGGER t",
        };
        self.engine().db.run(|tx| -> Result<_, DbError> { Ok(tx.execute_batch(sql)?) }).await.unwrap();
    }

    pub(super) async fn events_since(&self, since: u64, wait_millis: u64) -> Vec<Event> {
        let query = ListEvents { since: Some(since), max: None, wait_millis: Some(wait_millis) };
        self.call(LIST_EVENTS, &query).await.items
    }

    /// Returns the stored events of a kind.
    pub(super) async fn events_of(&self, kind: &str) -> Vec<Event> {
        let mut events = self.events_since(0, 0).await;
        events.retain(|event| event.kind == kind);
        events
    }

    /// Waits for events of a kind; returns the last of them.
    pub(super) async fn nth_event(&self, kind: &str, count: usize) -> Event {
        let (mut since, mut seen) = (0, 0);
        let waiting = async {
            loop {
                for event in self.events_since(since, MAX_WAIT_MILLIS).await {
                    since = event.event_id;
                    seen += usize::from(event.kind == kind);
                    if seen == count {
                        return event;
                    }
                }
            }
        };
        let found = tokio::time::timeout(TIMEOUT, waiting).await;
        found.unwrap_or_else(|_| panic!("fewer than {count} {kind} within {TIMEOUT:?}"))
    }

    /// Waits for an event of a kind.
    pub(super) async fn event(&self, kind: &str) -> Event {
        self.nth_event(kind, 1).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_reach_waiting_clients_and_survive_a_restart() {
    let mut host = Host::new().await;
    assert_eq!(host.events_since(0, 0).await, []);
    host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let waiting = {
        let client = host.client.clone();
        let query = ListEvents { since: Some(0), max: None, wait_millis: Some(60_000) };
        tokio::spawn(async move { client.call(LIST_EVENTS, &query).await.unwrap().items })
    };
    let done = host.backup("v", false).await;
    let events = waiting.await.unwrap();
    assert_eq!(
        (events.len(), events[0].kind.as_str(), events[0].severity),
        (1, "backup-done", Severity::Info)
    );
    assert_eq!((events[0].task_id, events[0].credential_name.as_deref()), (Some(done.task_id), Some("nas")));
    assert_eq!(events[0].volume_name.as_ref().map(ToString::to_string).as_deref(), Some("v"));
    assert_eq!(events[0].cloud_snapshot_id, done.cloud_snapshot_id);

    let pack = host.packs().remove(0);
    let length = fs::metadata(&pack).unwrap().len() as usize;
    fs::write(pack, vec![0; length]).unwrap();
    let verify = host.verify(&StartVerify::default()).await;
    let damage = host.event("damage-found").await;
    assert_eq!((damage.severity, damage.task_id), (Severity::Error, Some(verify.task_id)));

    let away = host.hide_store();
    let failed = host.start_backup("v", false).await;
    host.wait(failed).await;
    let event = host.event("backup-failed").await;
    assert_eq!((event.severity, event.task_id), (Severity::Error, Some(failed)));
    host.show_store(&away);

    let before = host.events_since(0, 0).await;
    host.restart().await;
    assert_eq!(host.events_since(0, 0).await, before);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volume_that_fails_without_a_request_is_reported() {
    let host = Host::new().await;
    let dir = host.dir.path().join("data");
    let disk = Arc::new(RemovableDisk::default());
    attach_storage(&dir, disk.clone());
    let volume = host.create_volume("v").await;
    volume.write(0, &[7; 4096], false).unwrap();
    disk.is_removed.store(true, Relaxed);
    volume.sync_maps().unwrap_err();
    assert!(host.metrics_text().await.contains("blockd_volume_up{volume=\"v\"} 0"));
    assert_eq!(host.call(GET_STATUS, &()).await.counts.volumes_failed, 1);
    let shown = host.inspect_volume("v").await;
    assert_eq!(shown.state, VolumeState::Failed);
    assert!(shown.state_reason.unwrap().contains("the disk was removed"));
    let runner = host.engine().schedule_runner.clone();
    host.refuse_events(true).await;
    runner.scheduler_pass(Timestamp::now()).await.unwrap_err();
    host.refuse_events(false).await;
    for _ in 0..2 {
        runner.scheduler_pass(Timestamp::now()).await.unwrap();
    }
    let degraded = host.events_of("volume-degraded").await;
    assert!(
        matches!(&degraded[..], [event] if event.message.contains("the disk was removed")),
        "{degraded:?}"
    );
    assert_eq!(degraded[0].volume_id, Some(shown.volume_id));
    detach_storage(&dir);
}
