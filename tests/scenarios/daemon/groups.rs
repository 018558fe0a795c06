//! Snapshots of groups: of all members or of none, whenever the daemon dies.

use super::*;
use blockd_api::snapshots::{CreateGroupSnapshot, GroupSnapshot};

impl Host {
    /// Volumes a, b and c in one group, with something in each.
    async fn create_group(&self) -> Vec<Arc<Volume>> {
        let mut volumes = Vec::new();
        for name in ["a", "b", "c"] {
            let group = Some("shop".parse().unwrap());
            let labels = Default::default();
            let request = CreateVolume { name: name.parse().unwrap(), size_bytes: SIZE_BYTES, labels, group };
            self.call(CREATE_VOLUME, &request).await;
            volumes.push(self.volume(name));
            volumes[volumes.len() - 1].write(0, &[7; 4096], false).unwrap();
        }
        volumes
    }

    async fn freeze_group(&self, name: &str) -> Result<GroupSnapshot, ClientError> {
        let request = CreateGroupSnapshot {
            group: Some("shop".parse().unwrap()),
            name: Some(name.parse().unwrap()),
            ..Default::default()
        };
        self.client.call(CREATE_GROUP_SNAPSHOT, &request).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn group_freeze_is_atomic_across_a_crash() {
    let mut host = Host::new().await;
    drop(host.create_group().await);
    let first = host.freeze_group("first").await.unwrap();
    assert_eq!((first.snapshots.len(), first.group.members), (3, 3));
    // All volumes have their snapshot, but no row has it yet.
    host.die_at("group frozen");
    assert!(host.freeze_group("second").await.is_err());
    for entry in host.engine().registry.all() {
        assert_eq!(entry.volume().unwrap().snapshots().len(), 2, "{}", entry.name);
    }
    host.die_and_start().await;
    let list = host.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.snapshots;
    assert_eq!(as_made(list), as_made(first.snapshots));
    for entry in host.engine().registry.all() {
        assert_eq!(entry.volume().unwrap().snapshots().len(), 1, "{}", entry.name);
    }
    // The name is free again.
    host.freeze_group("second").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_member_leaves_no_snapshot_of_the_group() {
    let host = Host::new().await;
    let volumes = host.create_group().await;
    for (file, name) in
        [("layer-0000000000000002.data", "before"), ("layer-0000000000000001.g0.set", "after")]
    {
        let in_the_way = volumes[1].dir().join(file);
        std::fs::create_dir(&in_the_way).unwrap();
        let Err(ClientError::Api(error)) = host.freeze_group(name).await else { panic!("it was frozen") };
        assert_eq!(error.code, ErrorCode::VolumeFailed);
        assert!(error.message.starts_with("group freeze failed on volume b: "), "{error}");
        host.assert_tidy();
        std::fs::remove_dir(in_the_way).unwrap();
    }
    volumes[2].close().unwrap();
    assert_eq!(api_code(host.freeze_group("closed").await), ErrorCode::ShuttingDown);
    host.assert_tidy();
}

/// A disk that is full when a freeze fails may keep its rows from being removed, too; and a volume whose disk
/// hangs must not be waited for by the snapshots of the others.
#[tokio::test(flavor = "multi_thread")]
async fn failed_snapshot_is_removed_from_its_own_volume_only() {
    let host = Host::new().await;
    let volumes = host.create_group().await;
    let in_the_way = volumes[1].dir().join("layer-0000000000000002.data");
    std::fs::create_dir(&in_the_way).unwrap();
    host.sql("CREATE TRIGGER full BEFORE DELETE ON snapshots BEGIN SELECT RAISE(ABORT, 'full'); END");
    assert_eq!(api_code(host.freeze_group("failed").await), ErrorCode::VolumeFailed);
    std::fs::remove_dir(in_the_way).unwrap();
    assert_eq!(api_code(host.freeze_group("failed").await), ErrorCode::SnapshotExists);
    host.sql("DROP TRIGGER full");
    let left = || {
        let rows = host.engine().db.transaction(|tx| SnapshotRow::all(tx, None)).unwrap();
        let left = rows.iter().filter(|row| row.name.as_str() == "failed").map(|row| row.volume);
        volumes.iter().map(|volume| left.clone().any(|id| id == volume.id())).collect::<Vec<_>>()
    };
    host.create_volume("other").await;
    let taken = [("other", [true, true, true]), ("b", [true, false, true]), ("a", [false, false, true])];
    for (volume, rest) in taken {
        let request = CreateSnapshot { name: Some("taken".parse().unwrap()), ..Default::default() };
        host.call_at(CREATE_SNAPSHOT, &volume.parse().unwrap(), &request).await;
        assert_eq!(left(), rest, "after a snapshot of {volume}");
    }
    // The name is free again.
    assert_eq!(host.freeze_group("failed").await.unwrap().snapshots.len(), 3);
}
