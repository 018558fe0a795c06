//! Group snapshots: of all members or of none, also after a crash.

use super::*;
use blockd_api::snapshots::{CreateGroupSnapshot, GroupSnapshot};

impl Host {
    /// Creates volumes a, b and c with data in one group.
    async fn create_group(&self) -> [Arc<Volume>; 3] {
        self.grouped_volumes().await;
        let volumes = ["a", "b", "c"].map(|name| self.volume(name));
        volumes.iter().for_each(|volume| volume.write(0, &[7; 4096], false).unwrap());
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
    assert_eq!((first.list.items.len(), first.group.members), (3, 3));
    // All volumes have their snapshot, but no row records it yet.
    host.die_at("group frozen");
    assert!(host.freeze_group("second").await.is_err());
    for entry in host.engine().registry.all() {
        assert_eq!(entry.volume().unwrap().snapshots().len(), 2, "{}", entry.name);
    }
    host.die_and_start().await;
    let list = host.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.items;
    assert_eq!(as_made(list), as_made(first.list.items));
    for entry in host.engine().registry.all() {
        assert_eq!(entry.volume().unwrap().snapshots().len(), 1, "{}", entry.name);
    }
    // The name is available again.
    host.freeze_group("second").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_member_leaves_no_snapshot_of_the_group() {
    let host = Host::new().await;
    let volumes = host.create_group().await;
    for (file, name) in
        [("layer-0000000000000002.data", "before"), ("layer-0000000000000001.g0.set", "after")]
    {
        let blocker = volumes[1].dir().join(file);
        fs::create_dir(&blocker).unwrap();
        let error = api_error(host.freeze_group(name).await);
        assert_eq!(error.code, ErrorCode::VolumeFailed);
        assert!(error.message.starts_with("group freeze failed on volume b: "), "{error}");
        host.assert_tidy();
        fs::remove_dir(blocker).unwrap();
    }
    volumes[2].close().unwrap();
    assert_eq!(api_code(host.freeze_group("closed").await), ErrorCode::ShuttingDown);
    host.assert_tidy();
}

/// On a full disk, the rows of a failed freeze may remain. Snapshots of other volumes must not wait for a
/// volume whose disk hangs.
#[tokio::test(flavor = "multi_thread")]
async fn failed_snapshot_is_removed_from_its_own_volume_only() {
    let host = Host::new().await;
    let volumes = host.create_group().await;
    let blocker = volumes[1].dir().join("layer-0000000000000002.data");
    fs::create_dir(&blocker).unwrap();
    host.sql("CREATE TRIGGER full BEFORE DELETE ON snapshots BEGIN SELECT RAISE(ABORT, 'full'); END");
    assert_eq!(api_code(host.freeze_group("failed").await), ErrorCode::VolumeFailed);
    fs::remove_dir(blocker).unwrap();
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
        host.take_snapshot(volume, &new_snapshot("taken")).await;
        assert_eq!(left(), rest, "after a snapshot of {volume}");
    }
    // The name is available again.
    assert_eq!(host.freeze_group("failed").await.unwrap().list.items.len(), 3);
}
