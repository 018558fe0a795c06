//! Deletions of cloud snapshots by other hosts and on stores with stale listings, and resumed backups whose
//! base was deleted.

use super::*;
use blockd_store::{BlobStore, ListPage, Middleware, ObjectInfo, Request, Response, StoreFuture};
use jiff::{SignedDuration, Timestamp};

impl Host {
    /// Makes a full backup and an incremental one of this content.
    async fn two_backups(&self) -> (String, String, Model) {
        let (full, _, model) = self.one_backup().await;
        let incremental = self.backup("data", false).await;
        assert_eq!(incremental.backup_type, Some(BackupType::Incremental));
        (full, incremental.cloud_snapshot_id.unwrap(), model)
    }
}

/// Store with stale listings: they omit a key, or include deleted objects.
struct StaleStore {
    inner: Arc<dyn BlobStore>,
    hidden: String,
    stale: Vec<ObjectInfo>,
    /// Difference of its clock to this host's.
    behind_s: i64,
}

impl Middleware for StaleStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(Arc::clone(&self.inner))
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            let mut listed = self.inner.list_page(prefix, page).await?;
            listed.objects.retain(|object| object.key != self.hidden);
            listed.objects.extend(self.stale.iter().filter(|object| object.key.starts_with(prefix)).cloned());
            for object in &mut listed.objects {
                object.modified_unix_s = object.modified_unix_s.map(|seconds| seconds - self.behind_s);
            }
            Ok(listed)
        })
    }
}

impl Host {
    /// Omits a manifest from the listings of the only store; returns a function that reverts it.
    fn hide_from_listings(&self, snap: &str) -> impl FnOnce(&Self) + use<> {
        self.make_stale(snap_id(snap).manifest_key(), Vec::new(), 0)
    }

    /// Removes a manifest that the listings of the only store still include.
    pub(super) async fn lose_listed_manifest(&self, snap: &str) {
        let key = snap_id(snap).manifest_key();
        let store = Arc::clone(self.engine().repositories.opened.lock().values().next().unwrap().0.store());
        let stale = store.list(&key).await.unwrap().into_iter().filter(|object| object.key == key).collect();
        fs::remove_file(self.manifest(snap)).unwrap();
        drop(self.make_stale(String::new(), stale, 0));
    }

    /// Makes the only store a [`StaleStore`]; returns a function that reverts it.
    fn make_stale(
        &self,
        hidden: String,
        stale: Vec<ObjectInfo>,
        behind_s: i64,
    ) -> impl FnOnce(&Self) + use<> {
        let set = |host: &Self, store: Arc<dyn BlobStore>| {
            let mut opened = host.engine().repositories.opened.lock();
            let (repository, _) = opened.values_mut().next().unwrap();
            let before = Arc::clone(repository.store());
            *repository = repository.with_store(store);
            before
        };
        let inner = Arc::clone(self.engine().repositories.opened.lock().values().next().unwrap().0.store());
        let before = set(self, Arc::new(StaleStore { inner, hidden, stale, behind_s }));
        move |host| drop(set(host, before))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_keeps_deltas_of_an_unlisted_snapshot() {
    for (case, forget) in
        [("catalog", "DELETE FROM chains"), ("tip of the chain", "DELETE FROM catalog"), ("both", "SELECT 1")]
    {
        let host = Host::new().await;
        let (full, incremental, model) = host.two_backups().await;
        let restore = host.hide_from_listings(&incremental);
        host.sql(forget);
        host.delete_cloudsnap(&delete_of(&full)).await;
        restore(&host);
        assert_eq!(host.ids().await, [incremental.as_str()], "{case}");
        model.assert_is(&*host.restore(&incremental, "copy").await);
        host.assert_tidy();
        // Records of deleted cloud snapshots protect no objects.
        host.delete_cloudsnap(&delete_of(&incremental)).await;
        assert_eq!(walk(&host.store.path().join("blockd/data")), Vec::<String>::new(), "{case}");
    }
}

/// The daemon died after the commit, and the base of the backup was deleted before its restart.
#[tokio::test(flavor = "multi_thread")]
async fn stored_backup_whose_base_was_deleted_becomes_full() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    host.disable_conditional_put();
    let (base, model) = host.back_up_and_write(&volume).await;
    host.die_at("backup stored");
    let task = host.start_backup("data", false).await;
    host.crashed().await;
    drop(volume);
    host.stop().await;
    fs::remove_file(host.manifest(&base)).unwrap();
    host.start().await;
    let full = host.done(task).await;
    assert_eq!((full.backup_type, full.resumed), (Some(BackupType::Full), 1), "{full:?}");
    let full = full.cloud_snapshot_id.unwrap();
    assert_eq!(host.ids().await, [full.as_str()], "the incomplete backup is not listed");
    model.assert_is(&*host.restore(&full, "copy").await);
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));
    host.assert_tidy();
}

/// The chain is only the base of the next backup.
#[tokio::test(flavor = "multi_thread")]
async fn newest_backup_is_reported_without_a_chain() {
    let host = Host::new().await;
    let (base, volume, mut model) = host.one_backup().await;
    model.write(&volume, 0, 9, 4096);
    let tip = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let reported = async || {
        let last = host.inspect_volume("data").await.last_backups;
        last.into_iter().map(|backup| backup.cloud_snapshot_id).collect::<Vec<_>>()
    };
    assert_eq!(reported().await, [tip.as_str()]);
    // The commit of the last backup is in doubt, so that the chain ends before it.
    host.sql(&format!(
        "INSERT INTO doubts (credential, cloudsnap, since, is_abandoned, is_checked)
         SELECT credential, cloudsnap, point_in_time, 0, 0 FROM chains;
         UPDATE chains SET cloudsnap = '{base}', point_in_time = '1970-01-01T00:00:00Z', incrementals = 0"
    ));
    assert_eq!(reported().await, [tip.as_str()]);
    // The deletion of a tip removes its chain.
    host.sql(&format!("DELETE FROM doubts; UPDATE chains SET cloudsnap = '{tip}', incrementals = 1"));
    host.delete_cloudsnap(&delete_of(&tip)).await;
    assert_eq!(reported().await, [base.as_str()]);
    host.delete_cloudsnap(&delete_of(&base)).await;
    assert_eq!(reported().await, [""; 0]);
}

/// The base exists or was deleted by another host, and the store fails while the backup checks it.
#[tokio::test(flavor = "multi_thread")]
async fn backup_with_an_unchecked_base_resumes_and_checks_it() {
    for is_deleted in [false, true] {
        let host = Host::new().await;
        let (base, _volume, model) = host.one_backup().await;
        let away = host.make_unreadable(&base);
        let task = host.start_backup("data", false).await;
        let failed = host.wait(task).await;
        assert_eq!((failed.state.stage, failed.resumable), (TaskStage::Failed, true), "{failed:?}");
        let message = failed.error.unwrap().message;
        assert!(message.contains("could not be checked yet"), "{message}");
        let made = failed.cloud_snapshot_id.unwrap();
        assert!(host.manifest(&made).is_file(), "the manifest is in the store");
        let seen = host.inspect_volume("data").await;
        assert_eq!(seen.last_backups[0].cloud_snapshot_id, base, "it is not the base of the next backup");

        if is_deleted {
            fs::remove_file(host.manifest(&base)).unwrap();
        } else {
            fs::rename(&away, host.manifest(&base)).unwrap();
        }
        host.call_at(RESUME_TASK, &task, &()).await;
        let done = host.done(task).await;
        let kind = if is_deleted { BackupType::Full } else { BackupType::Incremental };
        assert_eq!(done.backup_type, Some(kind), "{done:?}");
        let id = done.cloud_snapshot_id.unwrap();
        assert_eq!(id == made, !is_deleted);
        assert_eq!(host.manifest(&made).exists(), !is_deleted, "an incomplete backup is not listed");
        model.assert_is(&*host.restore(&id, "copy").await);
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_clock_abandons_no_resumable_backup() {
    let host = Host::new().await;
    host.stopped_backup().await;
    let resumable_after = async |days: i64| {
        let now = Timestamp::now() + SignedDuration::from_hours(24 * days);
        host.engine().runner.abandon_expired(now).await.unwrap();
        host.engine().tasks.resumable_tasks().await.unwrap().len()
    };
    let (store, away) = (host.store.path(), host.dir.path().join("away"));
    let forget = || host.engine().repositories.forget_all();

    // The clocks were not compared.
    fs::rename(store, &away).unwrap();
    assert_eq!(resumable_after(8).await, 1);
    fs::rename(&away, store).unwrap();
    forget();
    host.call_at(VALIDATE_CREDENTIAL, &"nas".parse().unwrap(), &()).await;
    let restore = host.make_stale(String::new(), Vec::new(), 2 * 3600);
    assert_eq!(resumable_after(8).await, 1);
    let is_noted = || host.engine().health.problems().iter().any(|problem| problem.kind == "clock");
    assert!(is_noted());
    // The store is unreachable, and its clock differed.
    fs::rename(store, &away).unwrap();
    assert_eq!(resumable_after(15).await, 1);
    fs::rename(&away, store).unwrap();
    assert!(is_noted(), "the clocks were not compared again");
    restore(&host);
    assert_eq!(resumable_after(8).await, 0);
    assert!(!is_noted());
}
