//! Tests of id prefixes: deletions need a complete name or id, lookups accept a prefix.

use super::*;
use blockd_api::{
    SnapshotRef, VolumeRef, credentials::RekeyCredential, lazy::StartInPlace, snapshots::RestoreSnapshot,
    tasks::TaskLimits,
};

#[tokio::test(flavor = "multi_thread")]
async fn id_prefix_is_refused_for_deletion() {
    let host = Host::new().await;
    let credential = host.create_credential().await.to_string();
    host.create_volume("data").await;
    let snap = host.backup("data", true).await.source_volume.unwrap();
    let request = CreateSnapshot { name: Some("before".parse().unwrap()), ..Default::default() };
    let data: VolumeRef = "data".parse().unwrap();
    let snapshot = host.client.create_snapshot(&data, &request).await.unwrap();
    let id = host.client.volume(&data).await.unwrap().id.to_string();
    let told = |error: ClientError, code, whole: &str| match error {
        ClientError::Api(error) => {
            assert_eq!(error.code, code, "{error:?}");
            assert!(
                error.message.contains(whole) && error.message.contains("complete id"),
                "{}",
                error.message
            );
        }
        other => panic!("{other:?}"),
    };

    let short: VolumeRef = id[..8].parse().unwrap();
    assert_eq!(host.client.volume(&short).await.unwrap().id.to_string(), id);
    told(host.client.delete_volume(&short).await.unwrap_err(), ErrorCode::VolumeNotFound, &id);
    let named = |text: &str| RestoreSnapshot { snapshot: text.parse().unwrap(), discard: false };
    let refused = host.client.restore_snapshot(&short, &named("data@before")).await.unwrap_err();
    told(refused, ErrorCode::VolumeNotFound, &id);
    let refused = host.client.restore_snapshot(&data, &named(&format!("{short}@before"))).await.unwrap_err();
    told(refused, ErrorCode::VolumeNotFound, &id);
    let request = StartInPlace {
        snap: snap.parse().unwrap(),
        volume: short.clone(),
        cred_id: None,
        discard: false,
        limits: TaskLimits::default(),
    };
    told(host.client.start_in_place(&request).await.unwrap_err(), ErrorCode::VolumeNotFound, &id);

    let (whole, of_volume) =
        (snapshot.id.to_string(), format!("{short}@before").parse::<SnapshotRef>().unwrap());
    let short: SnapshotRef = whole[..8].parse().unwrap();
    assert_eq!(host.client.snapshot(&short).await.unwrap().id, snapshot.id);
    told(host.client.delete_snapshot(&short).await.unwrap_err(), ErrorCode::SnapshotNotFound, &whole);
    told(host.client.delete_snapshot(&of_volume).await.unwrap_err(), ErrorCode::VolumeNotFound, &id);

    let short = credential[..8].parse().unwrap();
    assert_eq!(host.client.credential(&short).await.unwrap().uuid.to_string(), credential);
    let refused = host.client.delete_credential(&short).await.unwrap_err();
    told(refused, ErrorCode::CredentialNotFound, &credential);
    let rekey =
        RekeyCredential { passphrase: None, new_passphrase: None, new_data_key: true, accept_key: None };
    let refused = host.client.rekey_credential(&short, &rekey).await.unwrap_err();
    told(refused, ErrorCode::CredentialNotFound, &credential);

    host.client.delete_snapshot(&whole.parse().unwrap()).await.unwrap();
    host.client.delete_volume(&id.parse().unwrap()).await.unwrap();
    host.client.delete_credential(&credential.parse().unwrap()).await.unwrap();
}
