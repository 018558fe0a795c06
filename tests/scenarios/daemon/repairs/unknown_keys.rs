//! Manifests under a data key that this host does not have.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn manifest_under_an_unknown_key_is_not_repaired() {
    let host = Host::new().await;
    let (full, ..) = host.one_backup().await;
    let next = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    host.backup("data", false).await;
    flip_bit(
        host.packs().iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap(),
        IN_SECOND_FRAME,
    );
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await.len(), 3);
    // Bytes 16 to 31 are the id of the key.
    flip_bit(host.manifest(&next), 16);
    let done = host.run_repair(&repair_of(&full)).await;
    assert_eq!(done.state.to_string(), "Repair-Done", "{done:?}");
    assert_eq!(host.manifests().len(), 5, "the first and the last one have a repaired one: {done:?}");
    let error = api_error(host.client.call(START_REPAIR, &repair_of(&next)).await);
    assert_eq!(error.code, ErrorCode::WrongPassphrase, "{error:?}");
}
