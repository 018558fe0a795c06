//! Leases: lazy volumes of one host, and deletions by another one.

use super::*;
use blockd_api::{
    cloudsnaps::{InspectCloudsnap, PinOrigin},
    events::ListEvents,
    volumes::CloneVolume,
};
use blockd_catalog::{LazyRow, LeaseRow};
use blockd_engine::schedules::runner::Delays;
use blockd_store::{BlobStore, ListPage, Middleware, Request, Response, StoreFuture};
use jiff::{SignedDuration, Timestamp};

/// A lease holds its cloud snapshot for so long.
const LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A host that makes backups, and one that restores from them lazily.
async fn two_hosts() -> (Host, Host, String, Model) {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let snap = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    let other = Host::with_store(host.store.clone()).await;
    other.create_credential().await;
    (host, other, snap, model)
}

/// Store whose leases were stored earlier, by its clock.
struct OldLeases {
    inner: Arc<dyn BlobStore>,
    by_s: i64,
}

impl Middleware for OldLeases {
    fn describe(&self) -> &str {
        "store with old leases"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(self.inner.clone())
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            let mut listed = self.inner.list_page(prefix, page).await?;
            for object in &mut listed.objects {
                let by_s = if object.key.starts_with("blockd/leases/") { self.by_s } else { 0 };
                object.modified_unix_s = object.modified_unix_s.map(|seconds| seconds - by_s);
            }
            Ok(listed)
        })
    }
}

impl Host {
    pub(super) fn leases(&self) -> Vec<String> {
        walk(&self.store.path().join("blockd/leases"))
    }

    async fn no_leases(&self) {
        eventually(async || match self.leases() {
            leases if leases.is_empty() => Ok(()),
            leases => Err(leases),
        })
        .await;
    }

    /// Makes all leases older in the listings of this host.
    async fn age_leases(&self, by: SignedDuration) {
        // Opens the repository.
        self.list().await;
        for (repository, _) in self.engine().repositories.opened.lock().values_mut() {
            let inner = Arc::clone(repository.store());
            *repository = repository.with_store(Arc::new(OldLeases { inner, by_s: by.as_secs() }));
        }
    }

    async fn renew_leases(&self, now: Timestamp) {
        self.engine().lazy.renew_leases(now).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_is_refused_while_another_host_leases() {
    let (host, other, snap, model) = two_hosts().await;
    let lazy = other.restore_lazily(&snap, "lazy", false).await;
    assert_eq!(other.leases().len(), 1);
    let refused = api_error(host.client.call(START_DELETE, &delete_of(&snap)).await);
    assert_eq!(refused.code, ErrorCode::CloudsnapInUse);
    let (name, id) = (&other.engine().host.node, lazy.volume_id);
    assert!(refused.message.ends_with(&format!("lazy volume {id} of host {name}")), "{}", refused.message);
    model.assert_is(&other.volume("lazy"));

    // The pin is shown by both requests; the own host has none.
    let list = host.list().await;
    assert_eq!((list[0].pinned, list[0].pinned_by), (true, Some(PinOrigin::Lease)));
    assert_eq!((&list[0].leases[0].host, list[0].leases[0].volume_id), (name, id));
    let query = InspectCloudsnap { cloud_snapshot_id: snap_id(&snap), credential: None };
    assert_eq!(host.call(INSPECT_CLOUDSNAP, &query).await.entry.leases, list[0].leases);
    assert_eq!(other.list().await[0].pinned_by, None);
    let own =
        api_error(other.client.call(START_DELETE, &StartDelete { force: true, ..delete_of(&snap) }).await);
    assert!(own.message.contains("needed by lazy volume lazy"), "{}", own.message);

    // Without a renewal the lease expires.
    host.age_leases(LIFETIME + SignedDuration::from_mins(1)).await;
    assert_eq!(host.list().await[0].pinned_by, None);
    host.delete_cloudsnap(&delete_of(&snap)).await;
    assert_eq!(host.ids().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_deletion_warns_and_names_the_host() {
    let (host, other, snap, _) = two_hosts().await;
    let lazy = other.restore_lazily(&snap, "lazy", false).await;
    let request = StartDelete { force: true, ..delete_of(&snap) };
    let started = host.call(START_DELETE, &request).await;
    let holder = format!("lazy volume {} of host {} needs", lazy.volume_id, other.engine().host.node);
    assert!(started.warnings.len() == 1 && started.warnings[0].starts_with(&holder), "{started:?}");
    host.done(started.task_id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_ends_with_hydration_and_deletion() {
    let (host, other, snap, _) = two_hosts().await;
    let lazy = other.restore_lazily(&snap, "hydrated", true).await;
    other.done(lazy.task_id.unwrap()).await;
    host.no_leases().await;
    other.restore_lazily(&snap, "deleted", false).await;
    assert_eq!(host.leases().len(), 1);
    other.delete_volume("deleted").await;
    host.no_leases().await;
    // A refused creation leaves none either.
    let request = StartLazyRestore { volume_name: Some("hydrated".parse().unwrap()), ..lazy_restore(&snap) };
    other.refused(ErrorCode::VolumeExists, START_LAZY_RESTORE, &request).await;
    host.no_leases().await;
    host.delete_cloudsnap(&delete_of(&snap)).await;
}

/// The lease of the parent ends before the maintenance stores that of the clone.
#[tokio::test(flavor = "multi_thread")]
async fn clone_of_a_lazy_volume_has_its_own_lease() {
    let (host, other, snap, model) = two_hosts().await;
    other.restore_lazily(&snap, "lazy", false).await;
    other.take_snapshot("lazy", &new_snapshot("point")).await;
    let request = CloneVolume {
        name: "clone".parse().unwrap(),
        snapshot: "lazy@point".parse().unwrap(),
        labels: Default::default(),
    };
    let clone = other.call_at(CLONE_VOLUME, &"lazy".parse().unwrap(), &request).await;
    other.delete_volume("lazy").await;
    let of_clone = format!("-{}", clone.volume_id);
    eventually(async || match host.leases() {
        leases if leases.len() == 1 && leases[0].ends_with(&of_clone) => Ok(()),
        leases => Err(leases),
    })
    .await;
    host.refused(ErrorCode::CloudsnapInUse, START_DELETE, &delete_of(&snap)).await;
    model.assert_is(&other.volume("clone"));
}

/// The crash is after the lease: neither the volume nor its row exists.
#[tokio::test(flavor = "multi_thread")]
async fn lease_of_a_crashed_creation_is_collected() {
    let (host, mut other, snap, _) = two_hosts().await;
    other.die_at("lease stored");
    let request = lazy_restore(&snap);
    tokio::select! {
        _ = other.client.call(START_LAZY_RESTORE, &request) => {}
        () = other.crashed() => {}
    }
    other.restart().await;
    assert_eq!((other.engine().registry.all().len(), host.leases().len()), (0, 1));
    host.refused(ErrorCode::CloudsnapInUse, START_DELETE, &delete_of(&snap)).await;
    host.age_leases(SignedDuration::from_hours(25)).await;
    other.age_leases(SignedDuration::from_hours(25)).await;
    let collect = async |of: &Host| {
        let credential = of.engine().repositories.credential_rows().await.unwrap().remove(0);
        of.engine().maintenance.collect_garbage_of(&credential, false, Timestamp::now).await.unwrap().leases
    };
    assert_eq!((collect(&host).await, collect(&other).await), (0, 1), "the host of the lease removes it");
    host.delete_cloudsnap(&delete_of(&snap)).await;
}

/// A hydration that ended right before a crash leaves the lease to the next start.
#[tokio::test(flavor = "multi_thread")]
async fn lease_ends_after_a_crash_at_the_end_of_a_hydration() {
    let (host, mut other, snap, _) = two_hosts().await;
    other.die_at("hydration ended");
    other.restore_lazily(&snap, "lazy", true).await;
    other.die_and_start().await;
    host.no_leases().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_keeps_a_leased_backup_until_the_lease_expires() {
    let host = Host::new().await;
    let (snaps, schedule) = host.two_kept().await;
    let other = Host::with_store(host.store.clone()).await;
    other.create_credential().await;
    other.restore_lazily(&snaps[0], "lazy", false).await;
    host.keep(schedule, 1).await;
    let pass = async || {
        let runner = &host.engine().schedule_runner;
        runner.delete_surplus(Timestamp::now, &mut Delays::new()).await.unwrap();
    };
    pass().await;
    let list = host.list().await;
    assert_eq!((list.len(), list[0].pinned_by), (2, Some(PinOrigin::Lease)), "{list:?}");
    let tasks = host.call(LIST_TASKS, &ListTasks::default()).await.items;
    assert!(tasks.iter().all(|task| task.state.stage == TaskStage::Done), "no deletion was tried: {tasks:?}");
    host.age_leases(LIFETIME + SignedDuration::from_mins(1)).await;
    pass().await;
    eventually(async || match host.ids().await {
        ids if ids == snaps[1..] => Ok(()),
        ids => Err(ids),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_that_is_not_renewed_is_reported_before_it_expires() {
    let (_host, other, snap, _) = two_hosts().await;
    other.restore_lazily(&snap, "lazy", false).await;
    let events = async || {
        let events = other.call(LIST_EVENTS, &ListEvents::default()).await.items;
        events.iter().filter(|event| event.kind == "lease-not-renewed").count()
    };
    let is_noted = || other.engine().health.problems().iter().any(|problem| problem.kind == "lease");
    let in_hours = |hours| Timestamp::now() + SignedDuration::from_hours(hours);
    // Renewed each half day.
    let leased = || other.engine().db.transaction(LazyRow::all).unwrap()[0].leased.unwrap();
    let before = leased();
    other.renew_leases(in_hours(11)).await;
    assert_eq!(leased(), before);
    other.renew_leases(in_hours(13)).await;
    assert!(leased() > before);
    let away = other.hide_store();
    other.renew_leases(in_hours(50)).await;
    assert!(events().await == 0 && !is_noted());
    for _ in 0..2 {
        other.engine().leases.forget_failures();
        other.renew_leases(in_hours(80)).await;
        assert!(events().await == 1 && is_noted());
    }
    other.show_store(&away);
    other.engine().leases.forget_failures();
    other.renew_leases(in_hours(80)).await;
    assert!(!is_noted());

    // A lease that was never stored is reported after a day.
    other.sql("UPDATE lazy_volumes SET leased = NULL");
    let away = other.hide_store();
    for (hours, expected) in [(0, false), (23, false), (25, true)] {
        other.engine().leases.forget_failures();
        other.renew_leases(in_hours(hours)).await;
        assert_eq!(is_noted(), expected, "after {hours} hours");
    }
    other.show_store(&away);
}

/// A restore from a location that accepts no lease succeeds, and the lease follows.
#[tokio::test(flavor = "multi_thread")]
async fn refused_lease_does_not_prevent_a_restore() {
    let (host, other, snap, model) = two_hosts().await;
    let blocked = host.store.path().join("blockd/leases");
    fs::write(&blocked, b"no directory").unwrap();
    other.restore_lazily(&snap, "lazy", false).await;
    model.assert_is(&other.volume("lazy"));
    let leased = || other.engine().db.transaction(LazyRow::all).unwrap()[0].leased;
    assert_eq!(leased(), None);
    fs::remove_file(&blocked).unwrap();
    other.renew_leases(Timestamp::now()).await;
    assert!(leased().is_some() && host.leases().len() == 1);
    host.engine().leases.import_all().await.unwrap();
    assert_eq!(host.engine().db.transaction(LeaseRow::all).unwrap().len(), 1);
}
