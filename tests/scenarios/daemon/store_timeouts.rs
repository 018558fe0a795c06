//! Unresponsive store: requests time out, and no task starts.

use super::*;
use blockd_api::{
    cloudsnaps::{CollectGarbage, InspectCloudsnap},
    credentials::CredentialLimits,
};
use blockd_engine::error::ServiceError;
use blockd_testkit::store::{Fault, FaultStore};

/// Starts a host with a short store timeout, and a backup in a store with fault injection.
async fn faulty_host() -> (Host, Arc<FaultStore>, Uuid, Cloudsnap) {
    let mut host = Host::new().await;
    host.stop().await;
    let config = Config { store_answer_ms: 2_000, ..config(host.dir.path()) };
    host.daemon = Some(Daemon::start(config, false).await.unwrap());
    let credential = host.create_credential().await;
    host.create_volume("data").await;
    host.backup("data", true).await;
    let snap = host.list().await.remove(0);
    let faults = {
        let mut opened = host.engine().repositories.opened.lock();
        let (repository, _) = opened.get_mut(&credential).unwrap();
        let faults = Arc::new(FaultStore::new(Arc::clone(repository.store())));
        *repository = repository.with_store(faults.clone());
        faults
    };
    (host, faults, credential, snap)
}

/// Returns the error of a request, which must not hang.
async fn error_of<T>(request: impl Future<Output = Result<T, ServiceError>>) -> Option<ErrorCode> {
    let result = tokio::time::timeout(TIMEOUT, request).await;
    result.expect("the request has a timeout").err().map(|error| error.to_api().code)
}

#[tokio::test(flavor = "multi_thread")]
async fn unresponsive_store_times_out_and_starts_no_change() {
    let (host, faults, credential, snap) = faulty_host().await;
    let engine = host.engine();
    let id = snap.cloud_snapshot_id.to_string();
    let lazy = StartLazyRestore { volume_name: Some("lazy".parse().unwrap()), ..lazy_restore(&id) };
    let inspect = InspectCloudsnap { cloud_snapshot_id: snap.cloud_snapshot_id, credential: None };
    faults.fail_all(Fault::Hang);
    let timeout = Some(ErrorCode::StoreTimeout);
    assert_eq!(error_of(engine.cloud_snapshots.inspect_cloudsnap(&inspect)).await, timeout);
    assert_eq!(error_of(engine.deletions.start_delete(&delete_of(&id))).await, timeout);
    // With a cached manifest, a lazy restore needs no request.
    assert_eq!(error_of(engine.restores.start_lazy_restore(&lazy)).await, None);
    assert!(engine.registry.by_name("lazy").is_some());
    let lazy = StartLazyRestore { volume_name: Some("other".parse().unwrap()), ..lazy };
    let key = snap.cloud_snapshot_id.manifest_key();
    engine.db.run(move |tx| blockd_catalog::DbManifestCache::remove(tx, credential, &key)).await.unwrap();
    assert_eq!(error_of(engine.restores.start_lazy_restore(&lazy)).await, timeout);
    assert_eq!(error_of(engine.restores.start_restore(&restore_as(&id, "plain"))).await, timeout);
    assert_eq!(error_of(engine.restores.start_in_place(&in_place_restore(&id, "data"))).await, timeout);
    faults.heal();
    assert!(["other", "plain"].iter().all(|name| engine.registry.by_name(name).is_none()));
    assert_eq!(engine.tasks.unfinished_tasks().await.unwrap().len(), 0);
    assert_eq!(error_of(engine.cloud_snapshots.inspect_cloudsnap(&inspect)).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_an_unresponsive_store_end_and_name_its_location() {
    let (host, faults, credential, snap) = faulty_host().await;
    let engine = host.engine();
    let nas = blockd_api::CredentialRef::Id(credential);
    let list = ListCloudsnaps { credential: Some(nas.clone()), ..ListCloudsnaps::default() };
    let inspect = InspectCloudsnap { cloud_snapshot_id: snap.cloud_snapshot_id, credential: None };
    let collect = CollectGarbage { dry_run: true, ..CollectGarbage::default() };
    faults.fail_all(Fault::Hang);
    let failed = tokio::time::timeout(TIMEOUT, async {
        tokio::join!(
            engine.cloud_snapshots.list_cloudsnaps(&list),
            engine.cloud_snapshots.inspect_cloudsnap(&inspect),
            engine.maintenance.collect_garbage(&collect),
            engine.credentials.validate_credential(&nas),
        )
    });
    let (list, inspect, collect, validate) = failed.await.expect("each request has a timeout");
    for error in [list.err(), inspect.err(), collect.err(), validate.err()] {
        let error = error.expect("the store is silent").to_api();
        assert_eq!(error.code, ErrorCode::StoreTimeout, "{error:?}");
        assert!(error.message.contains("backup location nas did not respond"), "{error:?}");
    }
    let problems = host.call(GET_STATUS, &()).await.problems;
    assert!(problems.iter().any(|problem| problem.cause.contains("nas")), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_do_not_take_a_bandwidth_limit_for_silence() {
    let (host, _, credential, snap) = faulty_host().await;
    let id = snap.cloud_snapshot_id.to_string();
    let nas = "nas".parse().unwrap();
    let slow = CredentialLimits { download: "1KiB".parse().unwrap(), ..CredentialLimits::default() };
    host.call_at(LIMIT_CREDENTIAL, &nas, &slow).await;
    // It waits for hours, and what is limited after it, too.
    let task = host.call(START_RESTORE, &restore_as(&id, "copy")).await.task_id;
    host.until_active(task, |seen| seen.state.stage == TaskStage::Active).await;
    let key = snap.cloud_snapshot_id.manifest_key();
    let remove = blockd_catalog::DbManifestCache::remove;
    host.engine().db.run(move |tx| remove(tx, credential, &key)).await.unwrap();
    for dry_run in [true, false] {
        let collect = CollectGarbage { dry_run, ..CollectGarbage::default() };
        assert_eq!(error_of(host.engine().maintenance.collect_garbage(&collect)).await, None);
    }
    assert_eq!(error_of(host.engine().credentials.validate_credential(&nas)).await, None);
    assert_eq!(host.list().await.len(), 1);
    host.call_at(LIMIT_CREDENTIAL, &nas, &CredentialLimits::default()).await;
    host.done(task).await;
}

/// Another host deletes the cloud snapshot before the lease of a lazy volume from a cached manifest.
#[tokio::test(flavor = "multi_thread")]
async fn deletion_before_a_lazy_restore_from_a_cache_is_reported() {
    let (host, faults, _, snap) = faulty_host().await;
    let (engine, id) = (host.engine(), snap.cloud_snapshot_id.to_string());
    let kept = tempfile::tempdir().unwrap();
    let moved = host.store.path().join("blockd/manifests");
    let away = kept.path().join("manifests");
    // The store accepts the lease, and does not respond to the request for the manifest.
    fs::rename(&moved, &away).unwrap();
    let silent = Arc::clone(&faults);
    host.act_at("lease stored", move |_| silent.fail_all(Fault::Hang));
    host.restore_lazily(&id, "lazy", false).await;
    assert!(engine.host.failpoints.are_over());
    faults.heal();
    let is_noted = || engine.health.problems().iter().any(|problem| problem.kind == "backing-snapshot");
    assert!(!is_noted());
    engine.lazy.renew_leases(jiff::Timestamp::now()).await.unwrap();
    assert!(is_noted(), "{:?}", engine.health.problems());
    assert_eq!(host.events_of("backing-snapshot-deleted").await.len(), 1);
    // It is brought back.
    fs::rename(&away, &moved).unwrap();
    engine.leases.forget_failures();
    engine.lazy.renew_leases(jiff::Timestamp::now()).await.unwrap();
    assert!(!is_noted());
    // A lease that has expired does not show that the cloud snapshot exists either.
    fs::rename(&moved, &away).unwrap();
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(8 * 24);
    engine.lazy.renew_leases(later).await.unwrap();
    assert!(is_noted());
}
