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
    let snapshot = host.call_at(CREATE_SNAPSHOT, &data, &request).await;
    let id = host.call_at(GET_VOLUME, &data, &()).await.id.to_string();
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
    assert_eq!(host.call_at(GET_VOLUME, &short, &()).await.id.to_string(), id);
    told(
        host.client.call_at(DELETE_VOLUME, &short, &Default::default()).await.unwrap_err(),
        ErrorCode::VolumeNotFound,
        &id,
    );
    let named = |text: &str| RestoreSnapshot { snapshot: text.parse().unwrap(), discard: false };
    let refused = host.client.call_at(RESTORE_SNAPSHOT, &short, &named("data@before")).await.unwrap_err();
    told(refused, ErrorCode::VolumeNotFound, &id);
    let refused =
        host.client.call_at(RESTORE_SNAPSHOT, &data, &named(&format!("{short}@before"))).await.unwrap_err();
    told(refused, ErrorCode::VolumeNotFound, &id);
    let request = StartInPlace {
        snap: snap.parse().unwrap(),
        volume: short.clone(),
        cred_id: None,
        discard: false,
        limits: TaskLimits::default(),
    };
    told(host.client.call(START_IN_PLACE, &request).await.unwrap_err(), ErrorCode::VolumeNotFound, &id);

    let (whole, of_volume) =
        (snapshot.id.to_string(), format!("{short}@before").parse::<SnapshotRef>().unwrap());
    let short: SnapshotRef = whole[..8].parse().unwrap();
    assert_eq!(host.call_at(GET_SNAPSHOT, &short, &()).await.id, snapshot.id);
    told(
        host.client.call_at(DELETE_SNAPSHOT, &short, &Default::default()).await.unwrap_err(),
        ErrorCode::SnapshotNotFound,
        &whole,
    );
    told(
        host.client.call_at(DELETE_SNAPSHOT, &of_volume, &Default::default()).await.unwrap_err(),
        ErrorCode::VolumeNotFound,
        &id,
    );

    // With the hyphen: eight digits alone would be no name.
    let short = credential[..9].parse().unwrap();
    assert_eq!(host.call_at(GET_CREDENTIAL, &short, &()).await.uuid.to_string(), credential);
    let refused = host.client.call_at(DELETE_CREDENTIAL, &short, &()).await.unwrap_err();
    told(refused, ErrorCode::CredentialNotFound, &credential);
    let rekey =
        RekeyCredential { passphrase: None, new_passphrase: None, new_data_key: true, accept_key: None };
    let refused = host.client.call_at(REKEY_CREDENTIAL, &short, &rekey).await.unwrap_err();
    told(refused, ErrorCode::CredentialNotFound, &credential);

    host.call_at(DELETE_SNAPSHOT, &whole.parse().unwrap(), &Default::default()).await;
    host.call_at(DELETE_VOLUME, &id.parse().unwrap(), &Default::default()).await;
    host.call_at(DELETE_CREDENTIAL, &credential.parse().unwrap(), &()).await;
}
