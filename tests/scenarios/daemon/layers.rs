//! Layers that several volumes share.

use super::*;
use blockd_api::volumes::CloneVolume;

impl Host {
    async fn take(&self, volume: &str, name: &str) {
        let request = CreateSnapshot { name: Some(name.parse().unwrap()), ..Default::default() };
        self.call_at(CREATE_SNAPSHOT, &volume.parse().unwrap(), &request).await;
    }

    async fn drop_snapshot(&self, snapshot: &str) {
        self.call_at(DELETE_SNAPSHOT, &snapshot.parse().unwrap(), &Default::default()).await;
    }
}

/// Shared layers are merged once one of two volumes releases them.
#[tokio::test(flavor = "multi_thread")]
async fn layers_released_by_a_clone_are_merged_by_its_parent() {
    let host = Host::new().await;
    // The merger looks at it before it looks at the clone.
    let parent = host.create_volume("a").await;
    for (block, name) in [(0, "old"), (1, "new")] {
        parent.write(block * BLOCK, &[7; BLOCK as usize], false).unwrap();
        host.take("a", name).await;
    }
    let (name, snapshot) = ("b".parse().unwrap(), "a@new".parse().unwrap());
    let request = CloneVolume { name, snapshot, labels: Default::default() };
    host.call_at(CLONE_VOLUME, &"a".parse().unwrap(), &request).await;
    host.drop_snapshot("a@old").await;
    let clone = host.volume("b");
    assert_eq!((parent.stats().merge.layers, clone.stats().merge.layers), (0, 0), "both need both files");
    assert_eq!(parent.stats().layers, 3);
    for name in ["first", "second"] {
        clone.write(2 * BLOCK, &[8; BLOCK as usize], false).unwrap();
        host.take("b", name).await;
    }
    host.drop_snapshot("b@first").await;
    let merged = async {
        while parent.stats().layers > 2 || clone.stats().layers > 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), merged).await.unwrap();
    assert_eq!((parent.stats().shared_bytes, clone.stats().shared_bytes), (0, 0));
    for (volume, expected) in [(&parent, [7, 7, 0]), (&clone, [7, 7, 8])] {
        let mut found = vec![0; 3 * BLOCK as usize];
        volume.read(0, &mut found).unwrap();
        let firsts: Vec<u8> = found.chunks(BLOCK as usize).map(|block| block[0]).collect();
        assert_eq!(firsts, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_without_backups_leave_no_block_sets() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let mut epochs = Vec::new();
    for block in 0..2 {
        Model::new().write(&volume, block * BLOCK, 1, 10);
        let taken =
            host.client.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &CreateSnapshot::default()).await;
        epochs.push(taken.unwrap().epoch);
    }
    let error = volume.changes(Some(epochs[0]), epochs[1]).unwrap_err();
    assert_eq!(error.kind(), VolumeErrorKind::IntervalsGone, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_read_over_nbd_is_not_deleted() {
    use blockd_nbd::{Client as NbdClient, ExportCatalog};
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    volume.write(0, &[7; 4096], false).unwrap();
    let request = CreateSnapshot { name: Some("monday".parse().unwrap()), ..Default::default() };
    host.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &request).await;
    drop(volume);
    host.stop().await;
    host.start().await;
    let exports = blockd_views::exports::Exports::new(Arc::clone(&host.engine().registry));
    let open = || exports.open("data@monday", &NbdClient::default());
    let device = open().unwrap();
    let monday = "data@monday".parse().unwrap();
    let refused = host.client.call_at(DELETE_SNAPSHOT, &monday, &Default::default()).await;
    assert_eq!(api_code(refused), ErrorCode::SnapshotInUse);
    // It is still there for others, and goes when the last one has gone.
    drop(open().unwrap());
    drop(device);
    host.call_at(DELETE_SNAPSHOT, &monday, &Default::default()).await;
    assert!(open().is_err());
}
