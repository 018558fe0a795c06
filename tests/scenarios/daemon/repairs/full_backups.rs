//! Repairs of cloud snapshots before a later full backup, which does not record what changed.

use super::*;
use blockd_api::cloudsnaps::InspectCloudsnap;

#[tokio::test(flavor = "multi_thread")]
async fn failed_repair_names_the_later_full_backup() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    Model::new().write(&volume, 0, 1, 1 << 20);
    let first = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    let pack = host.packs().remove(0);
    Model::new().write(&volume, 2 << 20, 2, 4096);
    let second = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let full = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    flip_bit(pack, IN_SECOND_FRAME);
    let task =
        host.verify(&StartVerify { cloud_snapshot_id: Some(snap_id(&first)), ..Default::default() }).await;
    let hint = task.error.unwrap().hint.unwrap();
    assert_eq!(hint, format!("blockctl cloudsnap repair {first} --cred-id nas"));
    let failed = host.run_repair(&repair_of(&first)).await.error.unwrap();
    assert!(failed.hint.unwrap().contains(&format!("later full backup {full}")));
    // The later one of the chain lacks the same blocks.
    for id in [&first, &second] {
        let action = host.action(id).await;
        assert!(!action.starts_with("blockctl cloudsnap repair"), "{action}");
        let query = InspectCloudsnap { cloud_snapshot_id: snap_id(id), credential: None };
        assert_eq!(host.call(INSPECT_CLOUDSNAP, &query).await.detail.action, Some(action));
    }
}
