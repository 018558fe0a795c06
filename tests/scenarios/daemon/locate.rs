//! Cloud snapshots in several locations: prefixes as separate repositories, requests without a credential,
//! and labels of restored volumes.

use super::*;
use blockd_api::{cloudsnaps::VerifyDepth, schedules::CreateSchedule};
use blockd_cloud::ManifestFilter;
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn locations_with_different_prefixes_are_distinct() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 2 << 20);
    drop(volume);
    for (name, prefix) in [("one", "/hosts/a/"), ("two", "hosts/b")] {
        let mut request = host.credential(name, None);
        request.connection.prefix = Some(prefix.to_owned());
        let made = host.call(CREATE_CREDENTIAL, &request).await;
        assert_eq!(made.prefix.as_deref(), Some(prefix.trim_matches('/')));
    }
    let mut wrong = host.credential("three", None);
    wrong.connection.prefix = Some("a/../b".to_owned());
    host.refused(ErrorCode::InvalidRequest, CREATE_CREDENTIAL, &wrong).await;
    assert!(host.store.path().join("hosts/a/blockd").is_dir() && !host.store.path().join("blockd").exists());

    let alone = host.run_backup(&backup_to("data", &["two"])).await.cloud_snapshot_id.unwrap();
    let started = host.call(START_BACKUP, &backup_to("data", &["one", "two"])).await;
    let both = host.done(started.items[0].task_id).await.cloud_snapshot_id.unwrap();
    host.done(started.items[1].task_id).await;

    // After a restart each location is opened from its stored credential.
    host.restart().await;
    // The first backup to a location is full: a point in time has another id there.
    let in_two = host.list().await.into_iter().filter(|one| one.credential_name == "two").count();
    assert_eq!(in_two, 2);
    for id in [&alone, &both] {
        model.assert_is(&*host.run_restore(&restore_of(id)).await);
    }
    host.delete_cloudsnap(&delete_of(&alone)).await;
    host.refused(ErrorCode::CloudsnapNotFound, START_DELETE, &delete_of(&alone)).await;
    host.stop().await;
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_all(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_in_several_locations_needs_a_credential_to_delete() {
    let mut host = Host::new().await;
    host.create_volume("data").await;
    let located = |name: &str| {
        let mut request = host.credential(name, None);
        request.connection.prefix = Some(name.to_owned());
        request
    };
    host.call(CREATE_CREDENTIAL, &located("one")).await;
    let id = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    // The complete repository is copied.
    copy_all(&host.store.path().join("one"), &host.store.path().join("two"));
    host.call(CREATE_CREDENTIAL, &located("two")).await;
    let request = delete_of(&id);
    let error = api_error(host.client.call(START_DELETE, &request).await);
    assert_eq!(error.code, ErrorCode::CredentialRequired);
    assert!(error.message.contains("one and two") && error.message.contains("--cred-id"), "{error}");
    let named = StartDelete { credential: Some("one".parse().unwrap()), ..request.clone() };
    host.delete_cloudsnap(&named).await;
    // If one location is unreachable, the snapshot may be in both.
    let one = host.store.path().join("one");
    let away = move_away(&one);
    fs::write(&one, "no directory").unwrap();
    host.refused(ErrorCode::CredentialRequired, START_DELETE, &request).await;
    fs::remove_file(&one).unwrap();
    fs::rename(away, &one).unwrap();
    host.delete_cloudsnap(&request).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_one_location_have_one_copy() {
    let mut host = Host::new().await;
    host.create_volume("data").await;
    let located = |name: &str, prefix: &str| {
        let mut request = host.credential(name, None);
        request.connection.prefix = Some(prefix.to_owned());
        request
    };
    host.call(CREATE_CREDENTIAL, &located("one", "one")).await;
    let id = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    copy_all(&host.store.path().join("one"), &host.store.path().join("two"));
    host.call(CREATE_CREDENTIAL, &located("alias", "one")).await;
    host.call(CREATE_CREDENTIAL, &located("copy", "two")).await;
    let mut locations = Vec::new();
    for name in ["one", "alias", "copy"] {
        let query = ListCloudsnaps { credential: Some(name.parse().unwrap()), ..ListCloudsnaps::default() };
        let list = host.call(LIST_CLOUDSNAPS, &query).await;
        locations.push(list.list.items[0].location_id.unwrap());
    }
    assert!(locations[0] == locations[1] && locations[0] != locations[2], "{locations:?}");
    let all = host.call(LIST_CLOUDSNAPS, &ListCloudsnaps::default()).await;
    let listed: BTreeSet<_> = all.list.items.iter().map(|one| one.location_id.unwrap()).collect();
    assert_eq!((all.total, listed), (2, locations.into_iter().collect()));
    host.refused(ErrorCode::CredentialRequired, START_DELETE, &delete_of(&id)).await;
    let copy = StartDelete { credential: Some("copy".parse().unwrap()), ..delete_of(&id) };
    host.delete_cloudsnap(&copy).await;
    // The others are one copy.
    host.delete_cloudsnap(&delete_of(&id)).await;
    assert!(host.list().await.is_empty());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_volume_has_given_labels_and_reports_schedules() {
    let mut host = Host::new().await;
    host.create_volume("data").await;
    host.create_credential().await;
    let id = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let schedule = |name: Option<&str>, label: &str| CreateSchedule {
        name: name.map(|name| name.parse().unwrap()),
        selector: select_label(label),
        rules: vec![rule(NEVER)],
        ..CreateSchedule::default()
    };
    host.call(CREATE_SCHEDULE, &schedule(Some("nightly"), "app=mysql")).await;
    let nameless = host.call(CREATE_SCHEDULE, &schedule(None, "tier=db")).await.schedule_id.to_string();
    host.call(CREATE_SCHEDULE, &schedule(Some("other"), "app=web")).await;

    let restore = |labels: Option<&str>| StartRestore {
        labels: labels.map(|labels| labels.parse().unwrap()),
        ..restore_of(&id)
    };
    for (labels, expected, schedules) in [
        (None, "app=mysql,tier=db", vec!["nightly".to_owned(), nameless]),
        (Some("app=web"), "app=web", vec!["other".to_owned()]),
        (Some(""), "", Vec::new()),
    ] {
        let started = host.call(START_RESTORE, &restore(labels)).await;
        let mut reported: Vec<_> = started.schedules.iter().map(ToString::to_string).collect();
        reported.sort_by_key(|name| name != "nightly");
        assert_eq!(reported, schedules, "{labels:?}");
        host.done(started.task_id).await;
        let volume = host.inspect_volume(started.volume_name.as_str()).await;
        assert_eq!(volume.labels.to_string(), expected);
    }
    let lazy = StartLazyRestore { labels: Some("app=web".parse().unwrap()), ..lazy_restore(&id) };
    assert_eq!(host.call(START_LAZY_RESTORE, &lazy).await.schedules[0].to_string(), "other");
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unmounted_location_is_an_error_until_it_is_back() {
    let host = Host::new().await;
    host.encrypted_backup().await;
    let problems = async || {
        let problems = host.call(GET_STATUS, &()).await.problems;
        problems.into_iter().filter(|one| one.kind == "location").map(|one| one.cause).collect::<Vec<_>>()
    };
    // The mount point of an unmounted disk is an empty directory.
    let away = host.hide_store();
    fs::create_dir(host.store.path()).unwrap();
    let volume = Some("data".parse().unwrap());
    for query in [ListCloudsnaps::default(), ListCloudsnaps { volume, ..ListCloudsnaps::default() }] {
        let error = api_error(host.client.call(LIST_CLOUDSNAPS, &query).await);
        assert!(error.message.contains("is not the repository of these credentials"), "{error}");
    }
    let verify = StartVerify { depth: VerifyDepth::Quick, ..StartVerify::default() };
    let failed = host.verify(&verify).await;
    assert_eq!(failed.error.as_ref().unwrap().code, ErrorCode::StoreFailed, "{failed:?}");
    let found = problems().await;
    assert!(found.len() == 1 && found[0].contains("location nas"), "{found:?}");
    assert!(host.events_of("key-slot-damaged").await.is_empty());
    assert_eq!(host.inspect_volume("data").await.last_backups.len(), 1);
    fs::remove_dir(host.store.path()).unwrap();
    host.show_store(&away);
    assert_eq!(host.list().await.len(), 1);
    assert!(problems().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_that_a_listing_omits_is_asked_for() {
    let host = Host::new().await;
    host.encrypted_backup().await;
    let repositories = &host.engine().repositories;
    let credential = repositories.credential_rows().await.unwrap()[0].uuid;
    let (repository, _) = repositories.task_repository(credential).await.unwrap();
    let known = async || repositories.known_before(credential, &ManifestFilter::default()).await.unwrap();
    let forget = async |known| {
        repositories
            .forget_deleted_backups(credential, &repository, known, &BTreeSet::new(), false)
            .await
            .unwrap();
    };
    let last = async || host.inspect_volume("data").await.last_backups.pop();
    // A listing that lags behind.
    forget(known().await).await;
    assert!(last().await.is_some());
    fs::remove_file(host.manifest(&last().await.unwrap().cloud_snapshot_id)).unwrap();
    // Cached during the listing.
    let before = known().await;
    let next = host.backup("data", false).await.cloud_snapshot_id;
    forget(before).await;
    assert_eq!(last().await.map(|backup| backup.cloud_snapshot_id), next);
    forget(known().await).await;
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_deleted_by_another_host_is_no_last_backup() {
    let host = Host::new().await;
    host.encrypted_backup().await;
    host.create_volume("kept").await;
    host.backup("kept", true).await;
    let last = async |volume: &str| host.inspect_volume(volume).await.last_backups.pop();
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("first"))).await;
    for by_verification in [false, true] {
        let id = last("data").await.unwrap().cloud_snapshot_id;
        other.delete_cloudsnap(&StartDelete { force: true, ..delete_of(&id) }).await;
        assert!(last("data").await.is_some());
        match by_verification {
            true => drop(host.verify(&StartVerify::default()).await),
            false => drop(host.list().await),
        }
        assert!(last("data").await.is_none() && last("kept").await.is_some());
        assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Full));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_deleted_by_another_host_is_not_reported() {
    let unreadable = |host: &Host, id: &str| damage(host.manifest(id));
    type Damage = fn(&Host, &str);
    let damages: [Damage; 2] = [Host::lose_pack, unreadable];
    for damage in damages {
        let host = Host::new().await;
        let (id, _volume, _) = host.one_backup().await;
        host.backup("data", true).await;
        damage(&host, &id);
        // The daemon has only the proof of an unreadable manifest.
        host.sql("DELETE FROM catalog");
        host.verify(&StartVerify::default()).await;
        let damaged =
            async || host.metrics_text().await.contains("blockd_cloudsnaps_damaged{credential=\"nas\"} 1");
        assert!(damaged().await);
        fs::remove_file(host.manifest(&id)).unwrap();
        assert_eq!(host.list().await.len(), 1);
        assert!(!damaged().await);
    }
}
