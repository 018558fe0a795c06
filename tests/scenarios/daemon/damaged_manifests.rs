//! Deletions of damaged manifests.

use super::Host;
use super::retention::*;
use blockd_api::{ClientError, ErrorCode, cloudsnaps::StartDelete, operations::*};
use blockd_cloud::ManifestKey;
use std::path::Path;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_manifest_is_deleted_by_force_only() {
    for step in [None, Some("delete accepted"), Some("delete removed objects")] {
        let mut host = Host::new().await;
        let (snaps, schedule) = host.two_kept().await;
        damage(&host.manifest_path(&snaps[1]));
        host.keep(schedule, 1).await;
        let command = format!("blockctl cloudsnap delete --snap {} --force", snaps[1]);
        let event = host.event("retention-stopped").await;
        assert!(event.message.contains(&command), "{event:?}");
        let delete = StartDelete::of(snaps[1].parse().unwrap());
        match host.client.call(START_DELETE, &delete).await.unwrap_err() {
            ClientError::Api(error) => {
                assert_eq!(error.code, ErrorCode::CloudsnapDamaged);
                assert!(error.hint.is_some_and(|hint| hint.contains(&command)));
            }
            error => panic!("{error}"),
        }
        step.iter().for_each(|step| host.die_at(step));
        let task = host.delete_by_force(&snaps[1]).await;
        if step.is_some() {
            host.die_and_start().await;
        }
        host.done(task).await;
        assert_eq!(host.ids().await, snaps[..1]);
        let left = host.stored(&snaps[1]).snapshot.to_string();
        assert!(!super::walk(host.store.path()).iter().any(|path| path.contains(&left)), "{step:?}");
        host.restore(&snaps[0], "copy").await;
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_manifest_deleted_beside_another_leaves_all_data() {
    let mut host = Host::new().await;
    let (snaps, _) = host.two_kept().await;
    snaps.iter().for_each(|snap| damage(&host.manifest_path(snap)));
    let packs =
        |host: &Host| super::walk(host.store.path()).iter().filter(|path| path.contains("/pack-")).count();
    let before = packs(&host);
    host.done(host.delete_by_force(&snaps[1]).await).await;
    assert!(!Path::new(&host.store.path().join(host.stored(&snaps[1]).manifest_key())).exists());
    assert_eq!(packs(&host), before);
    host.stop().await;
}
