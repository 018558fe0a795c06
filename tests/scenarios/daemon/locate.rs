//! Tests of locating cloud snapshots: prefixes as separate repositories, requests without a credential, and
//! labels of restored volumes.

use super::*;
use blockd_api::schedules::{CreateSchedule, Rule, Selector};
use std::path::Path;

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

    let backup = |places: &'static [&'static str]| StartBackup {
        cred_id: Some(places[0].parse().unwrap()),
        also: places[1..].iter().map(|place| place.parse().unwrap()).collect(),
        ..StartBackup::of("data".parse().unwrap())
    };
    let started = host.call(START_BACKUP, &backup(&["two"])).await;
    let alone = host.done(started.task).await.source_volume.unwrap();
    let started = host.call(START_BACKUP, &backup(&["one", "two"])).await;
    let both = host.done(started.task).await.source_volume.unwrap();
    host.done(started.also[0]).await;

    // After a start each place is opened again from what is kept of it.
    host.stop().await;
    host.start().await;
    // The first backup to a place is full: one point in time has another id there.
    let in_two = host.list().await.into_iter().filter(|one| one.metadata.credential_name == "two").count();
    assert_eq!(in_two, 2);
    for id in [&alone, &both] {
        let request = StartRestore::of(id.parse().unwrap());
        let restored = host.call(START_RESTORE, &request).await;
        host.done(restored.task).await;
        model.assert_is(&host.volume(restored.volume.as_str()));
    }
    let deleted = host.call(START_DELETE, &StartDelete::of(alone.parse().unwrap())).await;
    host.done(deleted.task).await;
    let gone = host.client.call(START_DELETE, &StartDelete::of(alone.parse().unwrap())).await;
    assert_eq!(api_code(gone), ErrorCode::CloudsnapNotFound);
    host.stop().await;
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_all(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
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
    let started = host.call(START_BACKUP, &StartBackup::of("data".parse().unwrap())).await;
    let id = host.done(started.task).await.source_volume.unwrap();
    // The whole repository was copied.
    copy_all(&host.store.path().join("one"), &host.store.path().join("two"));
    host.call(CREATE_CREDENTIAL, &located("two")).await;
    let request = StartDelete::of(id.parse().unwrap());
    let Err(ClientError::Api(error)) = host.client.call(START_DELETE, &request).await else {
        panic!("deleted")
    };
    assert_eq!(error.code, ErrorCode::CredentialRequired);
    assert!(error.message.contains("one and two") && error.message.contains("--cred-id"), "{error}");
    // If one is unreachable, the snapshot may be in both.
    let named = StartDelete { cred_id: Some("one".parse().unwrap()), ..request.clone() };
    let deleted = host.call(START_DELETE, &named).await;
    host.done(deleted.task).await;
    let keys = host.store.path().join("one");
    std::fs::rename(&keys, host.store.path().join("away")).unwrap();
    std::fs::write(&keys, "no directory").unwrap();
    let tried = host.client.call(START_DELETE, &request).await;
    std::fs::remove_file(&keys).unwrap();
    std::fs::rename(host.store.path().join("away"), &keys).unwrap();
    assert_eq!(api_code(tried), ErrorCode::CredentialRequired);
    let started = host.call(START_DELETE, &request).await;
    host.done(started.task).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_volume_has_given_labels_and_reports_schedules() {
    let mut host = Host::new().await;
    host.create_volume("data").await;
    host.create_credential().await;
    let id = host.backup("data", false).await.source_volume.unwrap();
    let schedule = |name: Option<&str>, label: &str| CreateSchedule {
        name: name.map(|name| name.parse().unwrap()),
        selector: Selector { label: Some(label.parse().unwrap()), ..Selector::default() },
        rules: vec![Rule { when: "calendar 2199-01-01 00:00".parse().unwrap(), retain: None }],
        ..CreateSchedule::default()
    };
    host.call(CREATE_SCHEDULE, &schedule(Some("nightly"), "app=mysql")).await;
    let nameless = host.call(CREATE_SCHEDULE, &schedule(None, "tier=db")).await.uuid.to_string();
    host.call(CREATE_SCHEDULE, &schedule(Some("other"), "app=web")).await;

    let restore = |labels: Option<&str>| StartRestore {
        labels: labels.map(|labels| labels.parse().unwrap()),
        ..StartRestore::of(id.parse().unwrap())
    };
    for (labels, has, schedules) in [
        (None, "app=mysql,tier=db", vec!["nightly".to_owned(), nameless]),
        (Some("app=web"), "app=web", vec!["other".to_owned()]),
        (Some(""), "", Vec::new()),
    ] {
        let started = host.call(START_RESTORE, &restore(labels)).await;
        let mut told = started.schedules.clone();
        told.sort_by_key(|name| name != "nightly");
        assert_eq!(told, schedules, "{labels:?}");
        host.done(started.task).await;
        let volume = host.call_at(GET_VOLUME, &started.volume.as_str().parse().unwrap(), &()).await;
        assert_eq!(volume.labels.to_string(), has);
    }
    let lazy = StartLazyRestore {
        snap: id.parse().unwrap(),
        volume: None,
        cred_id: None,
        hydrate: false,
        on_store_loss: Default::default(),
        labels: Some("app=web".parse().unwrap()),
    };
    assert_eq!(host.call(START_LAZY_RESTORE, &lazy).await.schedules, ["other"]);
    host.stop().await;
}
