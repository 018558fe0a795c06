//! Shared layers, block sets, and snapshots in use.

use super::*;
use blockd_api::volumes::CloneVolume;

impl Host {
    /// Waits until the volumes have at most two layers.
    pub(super) async fn until_merged(&self, volumes: &[&Volume]) {
        eventually(async || {
            let layers: Vec<_> = volumes.iter().map(|volume| volume.stats().layers).collect();
            if layers.iter().all(|layers| *layers <= 2) { Ok(()) } else { Err(layers) }
        })
        .await;
    }
}

/// Shared layers are merged once one of two volumes releases them.
#[tokio::test(flavor = "multi_thread")]
async fn layers_released_by_a_clone_are_merged_by_its_parent() {
    let host = Host::new().await;
    // The merge thread visits the parent before the clone.
    let parent = host.create_volume("a").await;
    for (block, name) in [(0, "old"), (1, "new")] {
        parent.write(block * BLOCK, &[7; BLOCK as usize], false).unwrap();
        host.take_snapshot("a", &new_snapshot(name)).await;
    }
    let (name, snapshot) = ("b".parse().unwrap(), "a@new".parse().unwrap());
    let request = CloneVolume { name, snapshot, labels: Default::default() };
    host.call_at(CLONE_VOLUME, &"a".parse().unwrap(), &request).await;
    host.delete_snapshot("a@old").await;
    let clone = host.volume("b");
    assert_eq!(
        (parent.stats().merge.layers, clone.stats().merge.layers),
        (0, 0),
        "shared layers are not merged"
    );
    assert_eq!(parent.stats().layers, 3);
    for name in ["first", "second"] {
        clone.write(2 * BLOCK, &[8; BLOCK as usize], false).unwrap();
        host.take_snapshot("b", &new_snapshot(name)).await;
    }
    host.delete_snapshot("b@first").await;
    host.until_merged(&[&parent, &clone]).await;
    // Files are removed after their layers.
    eventually(async || match (parent.stats().shared_bytes, clone.stats().shared_bytes) {
        (0, 0) => Ok(()),
        shared => Err(shared),
    })
    .await;
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
        epochs.push(host.take_snapshot("data", &CreateSnapshot::default()).await.epoch);
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
    host.take_snapshot("data", &new_snapshot("monday")).await;
    drop(volume);
    host.restart().await;
    let exports = blockd_views::exports::Exports::new(Arc::clone(&host.engine().registry));
    let open = || exports.open("data@monday", &NbdClient::default());
    let device = open().unwrap();
    let monday = "data@monday".parse().unwrap();
    host.refused_at(ErrorCode::SnapshotInUse, DELETE_SNAPSHOT, &monday, &Default::default()).await;
    // Other clients can still open it; it can be deleted after the last one disconnects.
    drop(open().unwrap());
    drop(device);
    host.delete_snapshot("data@monday").await;
    assert!(open().is_err());
}
