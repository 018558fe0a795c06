//! Deletion of many objects with few requests.

use crate::{BlobStore, DELETE_MAX_KEYS, StoreError, StoreErrorKind};
use futures::{StreamExt, TryStreamExt};

/// Concurrent deletions of single objects.
const CONCURRENCY: usize = 8;
/// Maximum number of throttled requests for many objects, each followed by a successful one for a single
/// object and by smaller requests; then the server counts as one that has none.
const MAX_THROTTLED: u32 = 4;
/// Smallest limit of the objects of one request after throttled ones.
const MIN_KEYS: usize = DELETE_MAX_KEYS >> MAX_THROTTLED;

/// Deletes objects in no particular order, with as few requests as the store accepts; returns the number of
/// those that existed, as far as the store reports.
///
/// Single requests repeat deletions that failed for causes that may pass, and replace those for many objects
/// where the server has none. A throttled request for many objects is repeated for half as many, because the
/// store may count objects; it is not replaced by a request for each.
///
/// # Errors
/// Those of [`BlobStore::delete`], after which any of the objects may be deleted.
pub async fn delete_objects(
    store: &dyn BlobStore,
    objects: impl Iterator<Item = String> + Send,
) -> Result<u64, StoreError> {
    let (mut objects, mut deleted, mut max_keys) = (objects, 0, DELETE_MAX_KEYS);
    loop {
        let keys: Vec<String> = objects.by_ref().take(DELETE_MAX_KEYS).collect();
        if keys.is_empty() {
            return Ok(deleted);
        }
        deleted += delete_keys(store, &keys, &mut max_keys).await?;
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

/// Deletes objects, up to `max_keys` with one request.
async fn delete_keys(
    store: &dyn BlobStore,
    keys: &[String],
    max_keys: &mut usize,
) -> Result<u64, StoreError> {
    let (mut rest, mut deleted) = (keys, 0);
    let (mut single, mut refused, mut throttled) = (Vec::new(), None, 0);
    while *max_keys > 1 && rest.len() > 1 {
        match store.delete_many(&rest[..rest.len().min(*max_keys)]).await {
            Ok(results) => {
                let (these, others) = rest.split_at(results.len().min(rest.len()));
                rest = others;
                if these.len() <= 1 {
                    *max_keys = 1;
                }
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
                *max_keys = (*max_keys / 2).max(MIN_KEYS);
            }
            Err(error) if is_about_request(error.kind) => {
                tracing::debug!(%error, "deleting several objects with one request failed: one request for each");
                *max_keys = 1;
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
