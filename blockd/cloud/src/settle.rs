//! What becomes of a snapshot whose backup was given up after it may have been committed.

use crate::{
    CloudError, CloudsnapId, Repository,
    store::{ObjectStore, StoreErrorKind},
};

/// What was found of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settled {
    /// It is not there.
    Absent,
    /// It is whole, and stays.
    Whole,
    /// Something that it needs may be gone: its manifest was deleted.
    TakenBack,
}

/// Asks what the backup of a snapshot did not come to ask, or got no answer to: whether its objects and its base are there. If
/// something is gone, the manifest is deleted.
///
/// The arguments are those of the backup itself: whoever deletes the base later lists the manifests after that, and whoever
/// deletes the snapshot deletes its manifest once more at the end. A place where nothing is has to prove that it is the right one before
/// anything is believed of it.
///
/// # Errors
/// [`CloudError::Damaged`] if the manifest cannot be read: it stays; [`CloudError::KeySlotMissing`]; whatever the store
/// reports. Nothing is settled then.
pub async fn settle(repo: &Repository, id: &CloudsnapId) -> Result<Settled, CloudError> {
    let manifest = match repo.manifest(id).await {
        Ok(manifest) => manifest,
        Err(CloudError::SnapshotNotFound { .. }) => {
            repo.prove_key_slot().await?;
            return Ok(Settled::Absent);
        }
        Err(error) => return Err(error),
    };
    let store = repo.store().as_ref();
    let own = store.list(&manifest.delta.id().prefix()).await?;
    let own_bytes: u64 = own.iter().map(|object| object.size_bytes).sum();
    let is_whole = own_bytes >= manifest.delta.stored_bytes
        && match &manifest.base {
            Some(base) => is_there(store, &base.manifest_key()).await?,
            None => true,
        };
    if is_whole {
        return Ok(Settled::Whole);
    }
    repo.prove_key_slot().await?;
    store.delete(&id.manifest_key()).await?;
    Ok(Settled::TakenBack)
}

async fn is_there(store: &dyn ObjectStore, key: &str) -> Result<bool, CloudError> {
    match store.get_range(key, 0, 1).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}
