//! Anomalies of backups.

use super::{
    fixtures::{
        delete_of, in_place_restore, mark_of, new_snapshot, new_volume, pattern, restore_of, snap_id,
    },
    *,
};
use blockd_api::{
    Labels,
    anomalies::{AcknowledgeAnomaly, AnomalyKind, BackupAnomaly, ListAnomalies},
    cloudsnaps::{MarkCloudsnap, PinOrigin},
    lazy::StartInPlace,
    operations::{
        ACKNOWLEDGE_ANOMALY, LIST_ANOMALIES, MARK_CLOUDSNAP, PLAN_RETENTION, RESTORE_SNAPSHOT, UPDATE_VOLUME,
    },
    snapshots::RestoreSnapshot,
    volumes::UpdateVolume,
};
use blockd_schedule::KeepReason;

const MIB: usize = 1 << 20;
const DATA: usize = 160 * MIB;

impl Host {
    async fn anomalies(&self, all: bool) -> Vec<BackupAnomaly> {
        self.call(LIST_ANOMALIES, &ListAnomalies { volume: None, all }).await.items
    }

    /// Creates a volume that is full of text.
    async fn volume_of_text(&self, labels: &str) -> Arc<Volume> {
        let request =
            CreateVolume { size_bytes: 256 << 20, labels: labels.parse().unwrap(), ..new_volume("v") };
        self.call(CREATE_VOLUME, &request).await;
        let text: Vec<u8> =
            b"the daemon serves volumes over NBD. ".iter().copied().cycle().take(DATA).collect();
        let volume = self.volume("v");
        volume.write(0, &text, false).unwrap();
        volume
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_in_place_holds_backups_until_acknowledged() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.volume_of_text("").await;
    let schedule = host.schedule(1).await;
    let mut snaps = vec![host.write_and_run(&schedule, 200).await];
    snaps.push(host.write_and_run(&schedule, 201).await);
    host.until_deleted(1).await;
    assert_eq!(host.anomalies(true).await, []);

    volume.write(0, &pattern(7, 100 * MIB), false).unwrap();
    snaps.push(host.write_and_run(&schedule, 202).await);
    let found = host.anomalies(false).await;
    let [anomaly] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(anomaly.cloud_snapshot_id, snap_id(&snaps[2]));
    assert_eq!(anomaly.last_normal_cloud_snapshot_id, Some(snap_id(&snaps[1])));
    assert_eq!(anomaly.findings[0].kind, AnomalyKind::TurnedIncompressible);
    assert!((90 * MIB as u64..110 * MIB as u64).contains(&anomaly.findings[0].observed), "{anomaly:?}");
    assert!(anomaly.protecting);
    let metric = "\nblockd_anomalies{volume=\"v\"} ";
    assert!(host.engine().monitor.metrics_text().await.unwrap().contains(&format!("{metric}1\n")));

    // Later backups are held as well; they belong to the same anomaly.
    volume.write(100 << 20, &pattern(8, 60 * MIB), false).unwrap();
    snaps.push(host.write_and_run(&schedule, 203).await);
    assert_eq!(host.ids().await, snaps[1..]);
    let found = host.anomalies(false).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].cloud_snapshot_id, snap_id(&snaps[2]));
    let plan = host.call_at(PLAN_RETENTION, &schedule.schedule_id, &()).await.items;
    assert!(plan.iter().all(|judged| judged.verdict.is_kept_as(KeepReason::Anomaly)), "{plan:?}");
    let list = host.list().await;
    let pins: Vec<_> = list.iter().map(|entry| entry.pinned_by).collect();
    assert_eq!(pins.iter().filter(|pin| **pin == Some(PinOrigin::Anomaly)).count(), 1, "{pins:?}");
    host.refused(ErrorCode::CloudsnapPinned, START_DELETE, &delete_of(&snaps[1])).await;
    let unpin = MarkCloudsnap { pinned: Some(false), ..mark_of(&snaps[1]) };
    let error = api_error(host.client.call(MARK_CLOUDSNAP, &unpin).await);
    assert_eq!(error.code, ErrorCode::CloudsnapPinned);
    assert!(error.hint.is_some_and(|hint| hint.starts_with("blockctl anomaly acknowledge ")));

    host.restart().await;
    let acknowledged = AcknowledgeAnomaly { usual: false };
    for anomaly in host.anomalies(false).await {
        assert_eq!(anomaly.last_normal_cloud_snapshot_id, Some(snap_id(&snaps[1])));
        host.call_at(ACKNOWLEDGE_ANOMALY, &anomaly.anomaly_id, &acknowledged).await;
    }
    host.until_deleted(3).await;
    assert_eq!(host.ids().await, snaps[3..]);
    assert!(host.engine().monitor.metrics_text().await.unwrap().contains(&format!("{metric}0\n")));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_of_a_volume_decides_about_anomalies() {
    for (label, count) in [("anomaly-policy=observe", 1), ("anomaly-policy=off", 0)] {
        let mut host = Host::new().await;
        host.create_credential().await;
        let volume = host.volume_of_text(label).await;
        host.backup("v", false).await;
        volume.write(0, &pattern(7, 100 * MIB), false).unwrap();
        host.backup("v", false).await;
        let found = host.anomalies(false).await;
        assert_eq!(found.len(), count, "{label}");
        let volume = host.inspect_volume("v").await;
        assert_eq!(volume.anomaly_policy.to_string(), label.split('=').nth(1).unwrap());
        assert_eq!(volume.anomaly_learning_day, (count > 0).then_some(1), "{label}");
        assert!(found.iter().all(|anomaly| !anomaly.protecting), "{label}");
        assert!(host.list().await.iter().all(|entry| !entry.pinned), "{label}");
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_policy_of_a_volume_is_refused() {
    let host = Host::new().await;
    host.create_credential().await;
    host.create_volume("v").await;
    let snap = host.backup("v", false).await.cloud_snapshot_id.unwrap();
    let unknown: Labels = "anomaly-policy=perhaps".parse().unwrap();
    let volume: VolumeRef = "v".parse().unwrap();
    let refused = ErrorCode::InvalidRequest;
    let create = CreateVolume { labels: unknown.clone(), ..new_volume("w") };
    host.refused(refused, CREATE_VOLUME, &create).await;
    let update = UpdateVolume { labels: Some(unknown.clone()), ..UpdateVolume::default() };
    host.refused_at(refused, UPDATE_VOLUME, &volume, &update).await;
    let restore = StartRestore { labels: Some(unknown.clone()), ..restore_of(&snap) };
    host.refused(refused, START_RESTORE, &restore).await;
    let restore = StartInPlace { labels: unknown, ..in_place_restore(&snap, "v") };
    host.refused(refused, START_IN_PLACE, &restore).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usual_changes_raise_no_further_anomaly() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.volume_of_text("").await;
    host.backup("v", false).await;
    volume.write(0, &pattern(7, 80 * MIB), false).unwrap();
    host.backup("v", false).await;
    let anomaly = host.anomalies(false).await.remove(0);
    host.call_at(ACKNOWLEDGE_ANOMALY, &anomaly.anomaly_id, &AcknowledgeAnomaly { usual: true }).await;
    let unknown = Uuid::nil();
    host.refused_at(ErrorCode::AnomalyNotFound, ACKNOWLEDGE_ANOMALY, &unknown, &Default::default()).await;
    volume.write(80 << 20, &pattern(8, 80 * MIB), false).unwrap();
    host.backup("v", false).await;
    assert_eq!(host.anomalies(false).await, []);
    assert_eq!(host.anomalies(true).await.len(), 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_is_no_anomaly_and_hides_none() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.volume_of_text("").await;
    host.take_snapshot("v", &new_snapshot("before")).await;
    host.backup("v", false).await;
    volume.write(0, &vec![b'x'; 100 * MIB], false).unwrap();
    host.backup("v", false).await;
    let back = RestoreSnapshot { snapshot: "v@before".parse().unwrap(), discard: true };
    host.call_at(RESTORE_SNAPSHOT, &"v".parse().unwrap(), &back).await;
    host.backup("v", false).await;
    assert_eq!(host.anomalies(false).await, []);
    volume.write(0, &pattern(7, 100 * MIB), false).unwrap();
    host.backup("v", false).await;
    assert_eq!(host.anomalies(false).await.len(), 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anomaly_is_found_after_the_clock_was_set_back() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.volume_of_text("").await;
    host.backup("v", false).await;
    host.sql(
        "UPDATE backup_activity SET point_in_time = '2126-01-01T00:00:00.000000000Z',
             activity = json_set(activity, '$.pointInTime', '2126-01-01T00:00:00Z')",
    );
    volume.write(0, &pattern(7, 100 * MIB), false).unwrap();
    host.backup("v", false).await;
    assert_eq!(host.anomalies(false).await.len(), 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unobserved_backup_is_no_reference() {
    let mut host = Host::new().await;
    host.create_credential().await;
    let volume = host.volume_of_text("").await;
    host.backup("v", false).await;
    let policy = async |label: &str| {
        let request = UpdateVolume { labels: Some(label.parse().unwrap()), ..UpdateVolume::default() };
        host.call_at(UPDATE_VOLUME, &"v".parse().unwrap(), &request).await;
    };
    policy("anomaly-policy=off").await;
    volume.write(0, &pattern(7, 100 * MIB), false).unwrap();
    host.backup("v", false).await;
    policy("anomaly-policy=protect").await;
    volume.write(0, &pattern(8, 100 * MIB), false).unwrap();
    host.backup("v", false).await;
    assert_eq!(host.anomalies(true).await, [], "random data replaced random data");
    host.stop().await;
}
