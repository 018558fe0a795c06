//! Tests of an unresponsive store: requests time out, and no change is started.

use super::*;
use blockd_api::{
    cloudsnaps::InspectCloudsnap,
    lazy::{StartInPlace, StartLazyRestore, StoreLoss},
    tasks::TaskLimits,
};
use blockd_cloud::ManifestKey;
use blockd_testkit::store::{Fault, FaultStore};
use std::time::Duration;

/// A host that does not wait long, with a backup in a store that can be made silent.
async fn host() -> (Host, Arc<FaultStore>, Uuid, Cloudsnap) {
    let mut host = Host::new().await;
    host.stop().await;
    let config = Config { store_answer_ms: 500, ..config(host.dir.path()) };
    host.daemon = Some(Daemon::start(config, false).await.unwrap());
    let credential = host.create_credential().await;
    host.create_volume("data").await;
    host.done(host.start_backup("data", true).await).await;
    let list = host.call(LIST_CLOUDSNAPS, &ListCloudsnaps::default()).await;
    let faults = {
        let mut opened = host.engine().repositories.opened.lock();
        let (repository, _) = opened.get_mut(&credential).unwrap();
        let faults = Arc::new(FaultStore::new(Arc::clone(repository.store())));
        *repository = repository.with_store(faults.clone());
        faults
    };
    (host, faults, credential, list.cloudsnaps.into_iter().next().unwrap())
}

/// Returns the error of a request to an unresponsive store.
async fn answer<T>(
    asked: impl Future<Output = Result<T, blockd_engine::error::ServiceError>>,
) -> Option<ErrorCode> {
    let answer = tokio::time::timeout(Duration::from_secs(60), asked).await;
    answer.expect("the request has no timeout").err().map(|error| error.to_api().code)
}

#[tokio::test(flavor = "multi_thread")]
async fn unresponsive_store_times_out_and_starts_no_change() {
    let (host, faults, credential, snap) = host().await;
    let engine = host.engine();
    let restore = StartRestore { volume: Some("plain".parse().unwrap()), ..StartRestore::of(snap.id) };
    let lazy = StartLazyRestore {
        snap: snap.id,
        volume: Some("lazy".parse().unwrap()),
        cred_id: None,
        hydrate: false,
        labels: None,
        on_store_loss: StoreLoss::Error,
    };
    let in_place = StartInPlace {
        snap: snap.id,
        volume: "data".parse().unwrap(),
        cred_id: None,
        discard: false,
        limits: TaskLimits::default(),
    };
    let inspect = InspectCloudsnap { id: snap.id, cred_id: None };
    let delete = StartDelete { snap: snap.id, cred_id: None, force: false };
    faults.fail_all(Fault::Hang);
    let silent = Some(ErrorCode::StoreTimeout);
    assert_eq!(answer(engine.cloud_snapshots.inspect_cloudsnap(&inspect)).await, silent);
    assert_eq!(answer(engine.deletions.start_delete(&delete)).await, silent);
    // What the catalog knows needs no answer to begin.
    assert_eq!(answer(engine.restores.start_lazy_restore(&lazy)).await, None);
    assert!(engine.registry.by_name("lazy").is_some());
    let lazy = StartLazyRestore { volume: Some("other".parse().unwrap()), ..lazy };
    let key = snap.id.manifest_key();
    engine.db.run(move |tx| blockd_catalog::DbManifestCache::remove(tx, credential, &key)).await.unwrap();
    assert_eq!(answer(engine.restores.start_lazy_restore(&lazy)).await, silent);
    assert_eq!(answer(engine.restores.start_restore(&restore)).await, silent);
    assert_eq!(answer(engine.restores.start_in_place(&in_place)).await, silent);
    faults.heal();
    assert!(["other", "plain"].iter().all(|name| engine.registry.by_name(name).is_none()));
    assert_eq!(engine.tasks.unfinished_tasks().await.unwrap().len(), 0);
    assert_eq!(answer(engine.cloud_snapshots.inspect_cloudsnap(&inspect)).await, None);
}
