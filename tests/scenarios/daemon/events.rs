//! Events of a running daemon.

use super::*;
use blockd_api::{
    MAX_WAIT_MILLIS,
    events::{Event, ListEvents, Severity},
};

impl Host {
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

    host.engine().registry.by_name("v").unwrap().note_fault("the disk was removed");
    host.engine().scheduler.wake();
    let degraded = host.event("volume-degraded").await;
    assert!(degraded.message.contains("the disk was removed"), "{degraded:?}");
    let before = host.events_since(0, 0).await;
    host.restart().await;
    assert_eq!(host.events_since(0, 0).await, before);
    host.stop().await;
}
