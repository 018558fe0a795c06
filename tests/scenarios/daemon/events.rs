//! Events of a running daemon.

use super::*;
use blockd_api::{
    cloudsnaps::StartVerify,
    events::{Event, ListEvents, Severity},
};

impl Host {
    pub(super) async fn events_since(&self, since: u64, wait_ms: u64) -> Vec<Event> {
        let query = ListEvents { since: Some(since), max: None, wait_ms: Some(wait_ms) };
        self.call(LIST_EVENTS, &query).await.events
    }

    /// Waits for an event of this kind.
    pub(super) async fn event(&self, kind: &str) -> Event {
        let mut since = 0;
        for _ in 0..30 {
            for event in self.events_since(since, 5_000).await {
                since = event.id;
                if event.kind == kind {
                    return event;
                }
            }
        }
        panic!("there is no {kind}: {:?}", self.events_since(0, 0).await);
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
        let query = ListEvents { since: Some(0), max: None, wait_ms: Some(60_000) };
        tokio::spawn(async move { client.call(LIST_EVENTS, &query).await.unwrap().events })
    };
    let done = host.backup("v", false).await;
    let events = waiting.await.unwrap();
    assert_eq!(
        (events.len(), events[0].kind.as_str(), events[0].severity),
        (1, "backup-done", Severity::Info)
    );
    assert_eq!((events[0].task, events[0].credential.as_deref()), (Some(done.name), Some("nas")));
    assert_eq!(events[0].volume.as_ref().map(ToString::to_string).as_deref(), Some("v"));
    assert_eq!(events[0].cloudsnap, done.source_volume);

    // A pack of the backup is not what it was.
    let pack = walk(host.store.path()).into_iter().find(|path| path.contains("/pack-")).unwrap();
    let length = std::fs::metadata(&pack).unwrap().len() as usize;
    std::fs::write(pack, vec![0; length]).unwrap();
    let verify = host.call(START_VERIFY, &StartVerify::default()).await;
    host.wait(verify.task).await;
    let damage = host.event("damage-found").await;
    assert_eq!((damage.severity, damage.task), (Severity::Error, Some(verify.task)));

    let (place, away) = (host.store.path().to_owned(), host.store.path().with_extension("away"));
    std::fs::rename(&place, &away).unwrap();
    let failed = host.start_backup("v", false).await;
    host.wait(failed).await;
    let told = host.event("backup-failed").await;
    assert_eq!((told.severity, told.task), (Severity::Error, Some(failed)));
    std::fs::rename(&away, &place).unwrap();

    host.engine().registry.by_name("v").unwrap().note_fault("the disk is gone");
    host.engine().scheduler.wake();
    let degraded = host.event("volume-degraded").await;
    assert!(degraded.message.contains("the disk is gone"), "{degraded:?}");
    let before = host.events_since(0, 0).await;
    host.stop().await;
    host.start().await;
    assert_eq!(host.events_since(0, 0).await, before);
    host.stop().await;
}
