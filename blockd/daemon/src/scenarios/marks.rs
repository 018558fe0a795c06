//! Pins, and dates on which cloud snapshots expire.

use super::{Host, api_code};
use crate::marks::Looks;
use blockd_api::{
    ErrorCode,
    cloudsnaps::{CloudsnapId, CloudsnapMark, MarkCloudsnap, StartBackup, StartDelete},
    schedules::RunState,
};
use blockd_schedule::{KeepReason, Verdict};
use jiff::{SignedDuration, Timestamp};

fn mark(snap: &str) -> MarkCloudsnap {
    MarkCloudsnap {
        snap: snap.parse().unwrap(),
        cred_id: None,
        pinned: None,
        expires: None,
        never_expires: false,
    }
}

impl Host {
    async fn pin(&self, snap: &str, pinned: bool) -> CloudsnapMark {
        self.client.mark_cloudsnap(&MarkCloudsnap { pinned: Some(pinned), ..mark(snap) }).await.unwrap()
    }

    async fn ids(&self) -> Vec<String> {
        self.list().await.iter().map(|entry| entry.id.to_string()).collect()
    }

    /// What would be done at another time, until the deletions have ended.
    async fn expire_at(&self, now: Timestamp) {
        self.core().delete_expired(now, &mut Looks::default()).await.unwrap();
        for task in self.core().unfinished_tasks().await.unwrap() {
            self.done(task.id).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pinned_is_deleted_only_by_force() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let snap = host.backup("v", false).await.source_volume.unwrap();
    let pinned = host.pin(&snap, true).await;
    assert_eq!((pinned.id.to_string(), pinned.pinned, pinned.expires), (snap.clone(), true, None));
    host.stop().await;
    host.start().await;
    let listed = host.list().await;
    assert_eq!((listed[0].metadata.pinned.as_deref(), &listed[0].metadata.expires), (Some("true"), &None));
    let delete = StartDelete::of(snap.parse().unwrap());
    assert_eq!(api_code(host.client.start_delete(&delete).await), ErrorCode::CloudsnapPinned);

    // A date beside it changes nothing while it is there.
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    let dated = MarkCloudsnap { expires: Some(tomorrow), ..mark(&snap) };
    let dated = host.client.mark_cloudsnap(&dated).await.unwrap();
    assert_eq!((dated.pinned, dated.expires), (true, Some(tomorrow)));
    host.backup("v", false).await;
    host.expire_at(tomorrow + SignedDuration::from_hours(1)).await;
    assert_eq!(host.ids().await.len(), 2);
    let never = MarkCloudsnap { never_expires: true, pinned: Some(true), ..mark(&snap) };
    assert_eq!(host.client.mark_cloudsnap(&never).await.unwrap().expires, None);

    for wrong in [
        mark(&snap),
        MarkCloudsnap { expires: Some(Timestamp::now()), ..mark(&snap) },
        MarkCloudsnap { expires: Some(tomorrow), never_expires: true, ..mark(&snap) },
    ] {
        assert_eq!(api_code(host.client.mark_cloudsnap(&wrong).await), ErrorCode::InvalidRequest);
    }
    let nothing: CloudsnapId = CloudsnapId { snapshot: "7".parse().unwrap(), ..snap.parse().unwrap() };
    let unknown = MarkCloudsnap { pinned: Some(true), ..mark(&nothing.to_string()) };
    assert_eq!(api_code(host.client.mark_cloudsnap(&unknown).await), ErrorCode::CloudsnapNotFound);

    let by_force = StartDelete { force: true, ..delete.clone() };
    host.done(host.client.start_delete(&by_force).await.unwrap().task).await;
    let left = host
        .core()
        .db
        .transaction(|tx| crate::db::Mark::find(tx, &crate::cloudsnaps::from_api_id(&delete.snap)));
    assert_eq!(left.unwrap(), None, "the mark goes with what it was for");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_go_by_pins_and_dates() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let schedule = host.schedule(1).await;
    let mut snaps = Vec::new();
    for round in 0..3u64 {
        host.volume("v").write(round << 20, &[7; 4096], false).unwrap();
        host.client.run_schedule(schedule.uuid).await.unwrap();
        let runs = host.settled().await;
        snaps.push(runs[0].cloudsnap.unwrap().to_string());
        if round == 0 {
            host.pin(&snaps[0], true).await;
        }
    }
    // The second one goes, the first one stays.
    while host.runs().await.iter().filter(|run| run.state == RunState::Expired).count() < 1 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(host.ids().await, [snaps[0].clone(), snaps[2].clone()]);
    let plan = host.client.plan_retention(schedule.uuid).await.unwrap().cloudsnaps;
    assert_eq!(plan[1].verdict, Verdict::Keep(vec![KeepReason::Pinned]));
    host.expire_at(Timestamp::now() + SignedDuration::from_hours(9000)).await;
    assert_eq!(host.ids().await.len(), 2);

    // Without the pin it goes as well.
    host.pin(&snaps[0], false).await;
    while host.ids().await.len() > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(host.ids().await, [snaps[2].clone()]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_made_by_hand_expires_but_never_the_last_good_one() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await.write(0, &[7; 4096], false).unwrap();
    let tomorrow = Timestamp::now() + SignedDuration::from_hours(24);
    let later = tomorrow + SignedDuration::from_hours(1);
    let mut snaps = Vec::new();
    for _ in 0..2 {
        let request = StartBackup { expires: Some(tomorrow), ..StartBackup::of("v".parse().unwrap()) };
        let task = host.client.start_backup(&request).await.unwrap().task;
        snaps.push(host.done(task).await.source_volume.unwrap());
    }
    let listed = host.list().await;
    assert!(listed.iter().all(|entry| entry.metadata.expires.is_some()), "{listed:?}");
    host.expire_at(tomorrow - SignedDuration::from_secs(1)).await;
    assert_eq!(host.ids().await, snaps);
    host.expire_at(later).await;
    assert_eq!(host.ids().await, snaps[1..], "the newest good one stays");
    host.expire_at(later).await;
    assert_eq!(host.ids().await, snaps[1..]);

    // A newer one takes its place.
    let newer = host.backup("v", false).await.source_volume.unwrap();
    host.expire_at(later).await;
    assert_eq!(host.ids().await, [newer.as_str()]);

    // Somebody else deletes one whose date is known here: the date is forgotten.
    let dated = MarkCloudsnap { expires: Some(tomorrow), ..mark(&newer) };
    host.client.mark_cloudsnap(&dated).await.unwrap();
    let id = crate::cloudsnaps::from_api_id(&newer.parse().unwrap());
    std::fs::remove_file(host.store.path().join(id.manifest_key())).unwrap();
    host.expire_at(later).await;
    let marks = host.core().db.transaction(crate::db::Mark::all).unwrap();
    assert!(marks.of(&id).is_none());
    let past = StartBackup { expires: Some(Timestamp::now()), ..StartBackup::of("v".parse().unwrap()) };
    assert_eq!(api_code(host.client.start_backup(&past).await), ErrorCode::InvalidRequest);
    host.stop().await;
}
