//! Tests of id prefixes: deletions need a complete name or id, lookups accept a prefix.

use super::*;
use blockd_api::{SnapshotRef, snapshots::RestoreSnapshot};

/// Asserts that a request with an id prefix was refused and that the error names the complete id.
fn assert_prefix_refused<T: Debug>(result: Result<T, ClientError>, code: ErrorCode, id: &str) {
    let error = api_error(result);
    assert_eq!(error.code, code, "{error:?}");
    assert!(error.message.contains(id) && error.message.contains("complete id"), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn id_prefix_is_refused_for_deletion() {
    let host = Host::new().await;
    let credential = host.create_credential().await.to_string();
    host.create_volume("data").await;
    let snap = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    let data: VolumeRef = "data".parse().unwrap();
    let snapshot = host.take_snapshot("data", &new_snapshot("before")).await;
    let id = host.inspect_volume("data").await.volume_id.to_string();
    let (client, delete) = (&host.client, Default::default());

    let short: VolumeRef = id[..8].parse().unwrap();
    assert_eq!(host.call_at(GET_VOLUME, &short, &()).await.volume_id.to_string(), id);
    let not_found = ErrorCode::VolumeNotFound;
    assert_prefix_refused(client.call_at(DELETE_VOLUME, &short, &Default::default()).await, not_found, &id);
    let named = |text: &str| RestoreSnapshot { snapshot: text.parse().unwrap(), discard: false };
    let refused = client.call_at(RESTORE_SNAPSHOT, &short, &named("data@before")).await;
    assert_prefix_refused(refused, not_found, &id);
    let of_short = format!("{short}@before");
    let refused = client.call_at(RESTORE_SNAPSHOT, &data, &named(&of_short)).await;
    assert_prefix_refused(refused, not_found, &id);
    let request = in_place_restore(&snap, &short.to_string());
    assert_prefix_refused(client.call(START_IN_PLACE, &request).await, not_found, &id);

    let (complete, of_volume) = (snapshot.snapshot_id.to_string(), of_short.parse::<SnapshotRef>().unwrap());
    let short: SnapshotRef = complete[..8].parse().unwrap();
    assert_eq!(host.call_at(GET_SNAPSHOT, &short, &()).await.snapshot_id, snapshot.snapshot_id);
    let refused = client.call_at(DELETE_SNAPSHOT, &short, &delete).await;
    assert_prefix_refused(refused, ErrorCode::SnapshotNotFound, &complete);
    assert_prefix_refused(client.call_at(DELETE_SNAPSHOT, &of_volume, &delete).await, not_found, &id);

    // With the hyphen: eight digits alone are not a name.
    let short = credential[..9].parse().unwrap();
    assert_eq!(host.call_at(GET_CREDENTIAL, &short, &()).await.credential_id.to_string(), credential);
    let not_found = ErrorCode::CredentialNotFound;
    assert_prefix_refused(client.call_at(DELETE_CREDENTIAL, &short, &()).await, not_found, &credential);
    let refused = client.call_at(REKEY_CREDENTIAL, &short, &new_data_key()).await;
    assert_prefix_refused(refused, not_found, &credential);

    host.delete_snapshot(&complete).await;
    host.delete_volume(&id).await;
    host.call_at(DELETE_CREDENTIAL, &credential.parse().unwrap(), &()).await;
}
