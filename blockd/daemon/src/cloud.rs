//! Long operations of the cloud crate, each driven by a blocking thread.
//!
//! Their futures hold borrowed closures that the compiler cannot prove to be `Send`; a blocking thread drives
//! them in place. They end through their cancel token, not by being dropped.

use crate::error::ServiceError;
use blockd_cloud::{
    BackupJournal, BackupOptions, BackupSpec, BlockCheck, BlockReader, BlockWriter, CancelToken, CloudError,
    CloudSnapshotId, KnownKeys, Manifest, ManifestCache, OpenOptions, Progress, Rekey, Rekeyed, Repository,
    RestoreOptions, RestoreRequest, RestoreSummary, VerifyOptions, VerifyReport, restore_damaged,
};
use blockd_store::BlobStore;
use std::{future::Future, sync::Arc};
use tracing::Instrument;
use zeroize::Zeroizing;

pub(crate) async fn drive<T, F>(make: impl FnOnce() -> F + Send + 'static) -> Result<T, ServiceError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, CloudError>>,
{
    let span = tracing::Span::current();
    let thread = tokio::task::spawn_blocking(move || {
        tokio::runtime::Handle::current().block_on(make().instrument(span))
    });
    match thread.await {
        Ok(result) => Ok(result?),
        Err(error) => Err(ServiceError::Internal(error.to_string())),
    }
}

/// Opens or creates the repository in a store.
pub(crate) async fn open(
    store: Arc<dyn BlobStore>,
    passphrase: Option<Zeroizing<String>>,
) -> Result<Repository, ServiceError> {
    drive(move || async move {
        let passphrase = passphrase.as_ref().map(|text| text.as_str());
        Repository::open(store, passphrase, &OpenOptions::default()).await
    })
    .await
}

/// Opens an existing repository.
pub(crate) async fn open_existing(
    store: Arc<dyn BlobStore>,
    passphrase: Zeroizing<String>,
    known: KnownKeys,
) -> Result<Repository, ServiceError> {
    drive(move || async move { Repository::open_existing(store, Some(&passphrase), &known).await }).await
}

/// Opens an existing unencrypted repository.
pub(crate) async fn open_unencrypted(
    store: Arc<dyn BlobStore>,
    known: KnownKeys,
) -> Result<Repository, ServiceError> {
    drive(move || async move { Repository::open_existing(store, None, &known).await }).await
}

/// Changes the encryption or the passphrase of a repository.
pub(crate) async fn rekey(
    store: Arc<dyn BlobStore>,
    request: Rekey,
) -> Result<(Repository, Rekeyed), ServiceError> {
    drive(move || async move { blockd_cloud::rekey(store, &request).await }).await
}

/// Runs a backup.
pub(crate) async fn backup(
    repository: Repository,
    spec: Arc<BackupSpec>,
    reader: Arc<dyn BlockReader>,
    journal: Arc<dyn BackupJournal>,
    options: BackupOptions,
    progress: Arc<Progress>,
    cancel: CancelToken,
) -> Result<Manifest, ServiceError> {
    drive(move || async move {
        blockd_cloud::backup(&repository, spec, reader, journal, &options, progress, &cancel).await
    })
    .await
}

/// Restores a cloud snapshot to a volume.
pub(crate) async fn restore(
    repository: Repository,
    manifest: Manifest,
    writer: Arc<dyn BlockWriter>,
    request: RestoreRequest,
    options: RestoreOptions,
    progress: Arc<Progress>,
    cancel: CancelToken,
) -> Result<RestoreSummary, ServiceError> {
    drive(move || async move {
        let (repo, manifest) = (&repository, &manifest);
        restore_damaged(repo, manifest, writer, &request, &options, progress, &cancel).await
    })
    .await
}

/// Factory of the references that cloud snapshots are compared with.
pub(crate) type CheckOf = Box<dyn Fn(&CloudSnapshotId) -> Option<Arc<dyn BlockCheck>> + Send + Sync>;

/// Verifies cloud snapshots.
pub(crate) async fn verify(
    repository: Repository,
    ids: Vec<CloudSnapshotId>,
    options: VerifyOptions,
    check_of: CheckOf,
    cache: Arc<dyn ManifestCache>,
    progress: Arc<Progress>,
    cancel: CancelToken,
) -> Result<VerifyReport, ServiceError> {
    drive(move || async move {
        blockd_cloud::verify(&repository, &ids, &options, &*check_of, &*cache, progress, &cancel).await
    })
    .await
}
