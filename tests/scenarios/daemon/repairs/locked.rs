//! Locations that refuse deletions: a retention lock, or missing permissions.

use super::*;
use blockd_store::{
    BlobStore, Deletions, Middleware, Request, Response, StoreError, StoreErrorKind, StoreFuture,
};
use parking_lot::Mutex;

/// Part of the keys of objects whose deletion is refused; `None` for none.
type Refused = Arc<Mutex<Option<&'static str>>>;

/// Store that refuses to delete objects.
struct LockedStore {
    store: Arc<dyn BlobStore>,
    refused: Refused,
}

impl Middleware for LockedStore {
    fn describe(&self) -> &str {
        "locked store"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(self.store.clone())
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        let is_refused = self.refused.lock().is_some_and(|part| key.contains(part));
        Box::pin(async move {
            match is_refused {
                true => Err(StoreError::new(StoreErrorKind::Unauthorized, "delete", key, "locked store")),
                false => self.store.delete(key).await,
            }
        })
    }

    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Deletions> {
        Box::pin(async move {
            let Some(first) = keys.first() else { return Ok(Vec::new()) };
            Ok(vec![Middleware::delete(self, first).await])
        })
    }
}

impl Host {
    /// Refuses deletions of manifests from now on.
    fn lock_store(&self) -> Refused {
        let refused = Refused::new(Mutex::new(Some("/manifests/")));
        for (repository, _) in self.engine().repositories.opened.lock().values_mut() {
            let (store, refused) = (Arc::clone(repository.store()), Arc::clone(&refused));
            *repository = repository.with_store(Arc::new(LockedStore { store, refused }));
        }
        refused
    }

    /// Returns all deletions.
    async fn deletions(&self) -> Vec<Task> {
        let tasks = self.call(LIST_TASKS, &ListTasks::default()).await.items.into_iter();
        tasks.filter(|task| task.kind == blockd_api::tasks::TaskKind::Delete).collect()
    }
}

/// The original stays until the lock ends, and its deletion is not tried in each pass.
#[tokio::test(flavor = "multi_thread")]
async fn repair_under_a_retention_lock_keeps_the_original() {
    let host = Host::new().await;
    let (full, _, _) = host.one_backup().await;
    flip_bit(host.packs().remove(0), IN_SECOND_FRAME);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await.len(), 1);
    host.lock_store();
    assert_eq!(host.run_repair(&repair_of(&full)).await.state.to_string(), "Repair-Done");
    let repaired = host.repaired(&full).await;
    host.damaged_snapshots(VerifyDepth::Full).await;
    for _ in 0..3 {
        host.engine().repairs.delete_repaired().await.unwrap();
        for task in host.deletions().await {
            host.wait(task.task_id).await;
        }
    }
    let refused = host.deletions().await;
    assert_eq!(refused.len(), 1, "{refused:?}");
    let hint = refused[0].error.as_ref().unwrap().hint.clone().unwrap();
    assert!(
        hint.contains("retention lock")
            && hint.ends_with("stays until the lock ends; the daemon tries again"),
        "{hint}"
    );
    assert_eq!(host.manifests().len(), 2);
    first_backup().assert_is(&*host.restore(&repaired, "copy").await);
}

/// The command can be repeated until the manifest is deleted; then only the task knows the objects.
#[tokio::test(flavor = "multi_thread")]
async fn refused_deletion_can_be_completed_later() {
    let host = Host::new().await;
    let (full, volume, _) = host.one_backup().await;
    drop(volume);
    let refused = host.lock_store();
    let delete = StartDelete::of(snap_id(&full));
    let task = host.wait(host.call(START_DELETE, &delete).await.task_id).await;
    assert_eq!((task.state.to_string().as_str(), task.resumable), ("Delete-Failed", false), "{task:?}");
    let hint = task.error.unwrap().hint.unwrap();
    assert!(hint.ends_with(&format!("then repeat `blockctl cloudsnap delete {full}`")), "{hint}");
    assert_eq!(host.ids().await, std::slice::from_ref(&full));
    *refused.lock() = Some("/pack-");
    let task = host.wait(host.call(START_DELETE, &delete).await.task_id).await;
    assert_eq!((task.state.to_string().as_str(), task.resumable), ("Delete-Failed", true), "{task:?}");
    assert_eq!((host.manifests().len(), host.packs().len()), (0, 1));
    *refused.lock() = None;
    host.call_at(RESUME_TASK, &task.task_id, &()).await;
    host.done(task.task_id).await;
    assert_eq!(host.packs(), Vec::<String>::new());
}
