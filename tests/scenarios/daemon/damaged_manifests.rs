//! Deletions of cloud snapshots with damaged manifests, and of those that other hosts made.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_manifest_is_deleted_by_force_only() {
    for step in [None, Some("delete accepted"), Some("delete removed objects")] {
        let mut host = Host::new().await;
        let (snaps, schedule) = host.two_kept().await;
        damage(host.manifest(&snaps[1]));
        host.keep(schedule, 1).await;
        let command = format!("blockctl cloudsnap delete --snap {} --force", snaps[1]);
        let event = host.event("retention-stopped").await;
        assert!(event.message.contains(&command), "{event:?}");
        let error = api_error(host.client.call(START_DELETE, &delete_of(&snaps[1])).await);
        assert_eq!(error.code, ErrorCode::CloudsnapDamaged);
        assert!(error.hint.is_some_and(|hint| hint.contains(&command)));
        step.iter().for_each(|step| host.die_at(step));
        let task = host.delete_by_force(&snaps[1]).await;
        if step.is_some() {
            host.die_and_start().await;
        }
        host.done(task).await;
        assert_eq!(host.ids().await, snaps[..1]);
        let deleted = snap_id(&snaps[1]).snapshot.to_string();
        assert!(!walk(host.store.path()).iter().any(|path| path.contains(&deleted)), "{step:?}");
        host.restore(&snaps[0], "copy").await;
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_manifest_deleted_beside_another_keeps_all_packs() {
    let mut host = Host::new().await;
    let (snaps, _) = host.two_kept().await;
    snaps.iter().for_each(|snap| damage(host.manifest(snap)));
    let packs = host.packs();
    host.done(host.delete_by_force(&snaps[1]).await).await;
    assert!(!host.manifest(&snaps[1]).exists());
    assert_eq!(host.packs(), packs);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cloud_snapshot_of_another_host_is_deleted_by_force_only() {
    let (host, other) = (Host::new().await, Host::new().await);
    host.one_backup().await;
    let snap = host.list().await[0].cloud_snapshot_id.to_string();
    other.create_credential_at("nas", host.store.path()).await;
    let mut request = delete_of(&snap);
    other.refused(ErrorCode::CloudsnapOfOtherHost, START_DELETE, &request).await;
    assert_eq!(host.ids().await, [snap]);
    request.force = true;
    other.done(other.call(START_DELETE, &request).await.task_id).await;
    assert_eq!(host.ids().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_listed_under_the_name_of_its_volume() {
    let host = Host::new().await;
    host.create_credential().await;
    for name in ["a", "b"] {
        host.create_volume(name).await;
        let id = host.backup(name, false).await.cloud_snapshot_id.unwrap();
        if name == "a" {
            damage(host.manifest(&id));
        }
    }
    for (name, count) in [("a", 1), ("b", 0), ("nothing", 0)] {
        let query = ListCloudsnaps { volume: Some(name.parse().unwrap()), ..ListCloudsnaps::default() };
        let listed = host.call(LIST_CLOUDSNAPS, &query).await;
        assert_eq!(listed.damaged.len(), count, "{name}");
    }
}
