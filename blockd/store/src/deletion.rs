//! Deletion of many objects with few requests.

use crate::{BlobStore, DELETE_MAX_KEYS, StoreError, StoreErrorKind};
use futures::{StreamExt, TryStreamExt};

/// Concurrent deletions of single objects.
const CONCURRENCY: usize = 8;
/// Maximum number of throttled requests for many objects, each followed by a successful one for a single
/// object; then the server counts as one that has none.
const MAX_THROTTLED: u32 = 2;

/// Deletes objects in no particular order, with as few requests as the store accepts; returns the number of
/// those that existed, as far as the store reports.
///
/// Single requests repeat deletions that failed for causes that may pass, and replace those for many objects
/// where the server has none. A throttled request for many objects is repeated, not replaced by as many
/// requests.
///
/// # Errors
/// Those of [`BlobStore::delete`], after which any of the objects may be deleted.
pub async fn delete_objects(
    store: &dyn BlobStore,
    objects: impl Iterator<Item = String> + Send,
) -> Result<u64, StoreError> {
    let (mut objects, mut deleted, mut takes_many) = (objects, 0, true);
    loop {
        let keys: Vec<String> = objects.by_ref().take(DELETE_MAX_KEYS).collect();
        if keys.is_empty() {
            return Ok(deleted);
        }
        deleted += delete_keys(store, &keys, &mut takes_many).await?;
    }
}

/// Returns false for errors that single requests would have as well. A server or gateway may lack requests
/// for many objects, or be too slow for one: it may answer with any status, or not in time.
const fn is_about_request(kind: StoreErrorKind) -> bool {
    !matches!(
        kind,
        StoreErrorKind::Unreachable
            | StoreErrorKind::BucketMissing
            | StoreErrorKind::WrongScheme
            | StoreErrorKind::BudgetExhausted
    )
}

async fn delete_keys(
    store: &dyn BlobStore,
    keys: &[String],
    takes_many: &mut bool,
) -> Result<u64, StoreError> {
    let (mut rest, mut deleted) = (keys, 0);
    let (mut single, mut refused, mut throttled) = (Vec::new(), None, 0);
    while *takes_many && rest.len() > 1 {
        match store.delete_many(rest).await {
            Ok(results) => {
                let (these, others) = rest.split_at(results.len().min(rest.len()));
                rest = others;
                *takes_many = these.len() > 1;
                for (key, result) in these.iter().zip(results) {
                    match result {
                        Ok(there) => deleted += u64::from(there),
                        Err(error) if error.is_retryable() => single.push(key.clone()),
                        Err(error) => refused = Some(error),
                    }
                }
            }
            Err(error) if error.kind == StoreErrorKind::Throttled && throttled < MAX_THROTTLED => {
                // Some gateways answer each request for many objects with an internal error.
                let Some((first, others)) = rest.split_first() else { break };
                deleted += u64::from(store.delete(first).await?);
                (rest, throttled) = (others, throttled + 1);
            }
            Err(error) if is_about_request(error.kind) => {
                tracing::debug!(%error, "deleting several objects with one request failed: one request for each");
                *takes_many = false;
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(error) = refused {
        return Err(error);
    }
    single.extend(rest.iter().cloned());
    let singly = futures::stream::iter(single)
        .map(|key| async move { store.delete(&key).await.map(u64::from) })
        .buffer_unordered(CONCURRENCY)
        .try_fold(deleted, |sum, one| async move { Ok(sum + one) });
    singly.await
}
