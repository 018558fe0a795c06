//! Snapshots that others delete, and that other snapshots need: on stores whose listings lag behind, and when
//! a daemon comes back to a backup that is in the store already.

use super::*;
use blockd_api::tasks::StopTask;
use blockd_cloud::ManifestKey;
use blockd_store::{BlobStore, ListPage, Middleware, ObjectInfo, Request, Response, StoreFuture};
use jiff::{SignedDuration, Timestamp};
use std::path::PathBuf;

impl Host {
    /// The file of a snapshot's manifest in the store.
    fn manifest(&self, snap: &str) -> PathBuf {
        let id: blockd_cloud::CloudSnapshotId = snap.parse().unwrap();
        self.store.path().join(id.manifest_key())
    }

    /// A full backup, an incremental one that needs it, and what the latter holds.
    async fn two_backups(&self) -> (String, String, Model) {
        let (full, _, model) = self.one_backup().await;
        let incremental = self.backup("data", false).await;
        assert_eq!(incremental.backup_type, Some(BackupType::Incremental));
        (full, incremental.source_volume.unwrap(), model)
    }

    async fn delete_cloudsnap(&self, snap: &str) {
        let request = StartDelete::of(snap.parse().unwrap());
        self.done(self.call(START_DELETE, &request).await.task).await;
    }
}

/// A store whose listings lag behind: they leave a key out, or still have objects that are gone.
struct Lagging {
    inner: Arc<dyn BlobStore>,
    hidden: String,
    stale: Vec<ObjectInfo>,
    /// Seconds by which its clock is behind this host's.
    behind_s: i64,
}

impl Middleware for Lagging {
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
    /// Leaves a manifest out of the listings of the only store; returns what ends that.
    fn hide_from_listings(&self, snap: &str) -> impl FnOnce(&Self) + use<> {
        let id: blockd_cloud::CloudSnapshotId = snap.parse().unwrap();
        self.lag(id.manifest_key(), Vec::new(), 0)
    }

    /// Removes the manifest of a snapshot, which the listings of the only store show all the same.
    pub(super) async fn lose_listed_manifest(&self, snap: &str) {
        let id: blockd_cloud::CloudSnapshotId = snap.parse().unwrap();
        let key = id.manifest_key();
        let store = Arc::clone(self.engine().repositories.opened.lock().values().next().unwrap().0.store());
        let stale = store.list(&key).await.unwrap().into_iter().filter(|object| object.key == key).collect();
        std::fs::remove_file(self.manifest(snap)).unwrap();
        drop(self.lag(String::new(), stale, 0));
    }

    fn lag(&self, hidden: String, stale: Vec<ObjectInfo>, behind_s: i64) -> impl FnOnce(&Self) + use<> {
        let set = |host: &Self, store: Arc<dyn BlobStore>| {
            let mut opened = host.engine().repositories.opened.lock();
            let (repository, _) = opened.values_mut().next().unwrap();
            let before = Arc::clone(repository.store());
            *repository = repository.with_store(store);
            before
        };
        let inner = Arc::clone(self.engine().repositories.opened.lock().values().next().unwrap().0.store());
        let before = set(self, Arc::new(Lagging { inner, hidden, stale, behind_s }));
        move |host| drop(set(host, before))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_keeps_deltas_of_an_unlisted_snapshot() {
    for (what, forgotten) in [
        ("in the catalog", "DELETE FROM chains"),
        ("the tip of the chain", "DELETE FROM catalog"),
        ("both", "SELECT 1"),
    ] {
        let host = Host::new().await;
        let (full, incremental, model) = host.two_backups().await;
        let restore = host.hide_from_listings(&incremental);
        host.sql(forgotten);
        host.delete_cloudsnap(&full).await;
        restore(&host);
        let left: Vec<_> = host.list().await.iter().map(|entry| entry.id.to_string()).collect();
        assert_eq!(left, [incremental.as_str()], "{what}");
        model.assert_is(&*host.restore(&incremental, "copy").await);
        host.assert_tidy();
        // Records of deleted snapshots keep no objects.
        host.delete_cloudsnap(&incremental).await;
        assert_eq!(walk(&host.store.path().join("blockd/data")), Vec::<String>::new(), "{what}");
    }
}

/// The daemon died after the commit, and the base of the backup was deleted before its restart.
#[tokio::test(flavor = "multi_thread")]
async fn stored_backup_without_its_base_is_not_done() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    host.store_replaces_objects();
    let mut model = Model::new();
    model.write(&volume, 0, 1, 3 << 20);
    let base = host.backup("data", false).await.source_volume.unwrap();
    model.write(&volume, 1 << 20, 2, 1 << 20);

    host.die_at("backup stored");
    let task = host.start_backup("data", false).await;
    host.engine().host.stopping.cancelled().await;
    drop(volume);
    host.stop().await;
    std::fs::remove_file(host.manifest(&base)).unwrap();
    host.start().await;
    let full = host.done(task).await;
    assert_eq!((full.backup_type, full.resumed), (Some(BackupType::Full), 1), "{full:?}");
    let full = full.source_volume.unwrap();
    let listed: Vec<_> = host.list().await.iter().map(|entry| entry.id.to_string()).collect();
    assert_eq!(listed, [full.as_str()], "a backup that cannot be restored is not listed");
    model.assert_is(&*host.restore(&full, "copy").await);
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));
    host.assert_tidy();
}

/// The base is there, or was deleted by another host, and the store does not tell while the backup asks for
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn backup_with_an_unchecked_base_counts_after_its_resume() {
    for is_gone in [false, true] {
        let host = Host::new().await;
        let (base, _volume, model) = host.one_backup().await;
        let (place, away) = (host.manifest(&base), host.store.path().join("away"));
        std::fs::rename(&place, &away).unwrap();
        // Reading its first byte fails, but not because it is gone.
        std::fs::write(&place, []).unwrap();

        let task = host.start_backup("data", false).await;
        let failed = host.wait(task).await;
        assert_eq!((failed.state.stage, failed.resumable), (TaskStage::Failed, true), "{failed:?}");
        let message = failed.error.unwrap().message;
        assert!(message.contains("could not be checked yet"), "{message}");
        let made = failed.source_volume.unwrap();
        assert!(host.manifest(&made).is_file(), "it is in the store");
        let seen = host.call_at(GET_VOLUME, &"data".parse().unwrap(), &()).await;
        assert_eq!(seen.last_backups[0].cloudsnap_id, base, "nothing is built on it");

        std::fs::remove_file(&place).unwrap();
        if !is_gone {
            std::fs::rename(&away, &place).unwrap();
        }
        host.call_at(RESUME_TASK, &task, &()).await;
        let done = host.done(task).await;
        let kind = if is_gone { BackupType::Full } else { BackupType::Incremental };
        assert_eq!(done.backup_type, Some(kind), "{done:?}");
        let id = done.source_volume.unwrap();
        assert_eq!(id == made, !is_gone);
        assert_eq!(host.manifest(&made).exists(), !is_gone, "what is broken is not listed");
        model.assert_is(&*host.restore(&id, "copy").await);
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_clock_abandons_no_resumable_backup() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, SIZE_BYTES as usize);
    let mut credential = host.credential("nas", None);
    credential.connection.limit_upload_bytes_per_s = Some(8 << 20);
    host.call(CREATE_CREDENTIAL, &credential).await;
    let request = StartBackup::of("data".parse().unwrap());
    let task = host.call(START_BACKUP, &request).await.task;
    host.until_processed(task, 1).await;
    host.call_at(STOP_TASK, &task, &StopTask { discard: false }).await;
    let kept_after = async |days: i64| {
        let now = Timestamp::now() + SignedDuration::from_hours(24 * days);
        host.engine().runner.abandon_expired(now).await.unwrap();
        host.engine().tasks.resumable_tasks().await.unwrap().len()
    };
    let (store, away) = (host.store.path(), host.dir.path().join("away"));
    let forget = || host.engine().repositories.forget_all();

    // Nothing is known of the clocks.
    std::fs::rename(store, &away).unwrap();
    assert_eq!(kept_after(8).await, 1);
    std::fs::rename(&away, store).unwrap();
    forget();
    host.call_at(VALIDATE_CREDENTIAL, &"nas".parse().unwrap(), &()).await;
    let restore = host.lag(String::new(), Vec::new(), 2 * 3600);
    assert_eq!(kept_after(8).await, 1);
    // The store does not answer, but its clock differed.
    std::fs::rename(store, &away).unwrap();
    assert_eq!(kept_after(15).await, 1);
    std::fs::rename(&away, store).unwrap();
    restore(&host);
    assert_eq!(kept_after(8).await, 0);
}
