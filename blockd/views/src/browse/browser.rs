//! Open cloud snapshots, images and mounts of the daemon, and its cache of cloud snapshots.

use super::{
    images::{self, LocalImage},
    listing::SharedListing,
    mount_table::Mounts,
    request_limit::RequestLimit,
};
use blockd_catalog::{CredentialRow, Db, DbManifestCache};
use blockd_cloud::{
    CacheCounters, CacheOptions, CloudSnapshotId, Manifest, ManifestKey, SnapshotCache, SnapshotReader,
};
use blockd_engine::{
    engine::Engine,
    error::ServiceError,
    host::Host,
    readers::SnapshotReaders,
    repositories::{Repositories, preflight::in_reader_time},
    volumes::registry::Registry,
};
use blockd_extent::VolumeId;
use parking_lot::Mutex;
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::runtime::Handle;
use uuid::Uuid;

/// Maximum number of cloud snapshots kept open for reuse.
const MAX_OPEN: usize = 64;

/// Browse mounts and images of snapshots.
pub struct Browser {
    /// Open snapshots, images and mounts.
    pub browse: Arc<Browse>,
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
}

impl std::fmt::Debug for Browser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Browser").finish_non_exhaustive()
    }
}

type OpenSnapshot = ((Uuid, CloudSnapshotId), SnapshotReader, Arc<Manifest>);

/// Open snapshots, images and mounts, and the cache of cloud snapshots.
#[derive(Default)]
pub struct Browse {
    cache: Mutex<Option<SnapshotCache>>,
    open: Mutex<Vec<OpenSnapshot>>,
    pub(super) files: Mutex<Vec<(CloudSnapshotId, Arc<blockd_fuse::inside::ImageFiles>)>>,
    pub(super) local: Mutex<Vec<Weak<LocalImage>>>,
    pub(super) mounts: Mounts,
    /// Listings shown in the mounts.
    pub(super) listings: Mutex<Vec<Weak<SharedListing>>>,
    /// Limit of blocking requests.
    pub requests: RequestLimit,
}

impl std::fmt::Debug for Browse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Browse").finish_non_exhaustive()
    }
}

impl Browse {
    /// Closes idle local snapshots.
    pub(super) fn tidy(&self) {
        self.local.lock().retain(|image| match image.upgrade() {
            Some(image) => {
                image.close(images::IDLE);
                true
            }
            None => false,
        });
    }

    /// Closes all snapshots and images, at the stop of the daemon.
    pub(super) fn clear(&self) {
        self.files.lock().clear();
        self.open.lock().clear();
        self.local.lock().clear();
    }
}

impl SnapshotReaders for Browse {
    fn release(&self, volume: VolumeId) {
        self.local.lock().retain(|image| match image.upgrade() {
            Some(image) => {
                if image.volume() == volume {
                    image.close(Duration::ZERO);
                }
                true
            }
            None => false,
        });
    }

    fn renew(&self, credential: Uuid) {
        self.listings.lock().retain(|listing| match listing.upgrade() {
            Some(listing) => {
                listing.renew(credential);
                true
            }
            None => false,
        });
    }

    fn cache_counters(&self) -> Option<CacheCounters> {
        self.cache.lock().as_ref().map(SnapshotCache::counters)
    }

    fn forget(&self, credential: Uuid) {
        self.open.lock().retain(|((of, _), ..)| *of != credential);
        self.files.lock().clear();
    }
}

impl Browser {
    /// Creates the browser of an engine whose snapshot readers are `browse`.
    pub fn new(browse: Arc<Browse>, engine: &Engine) -> Arc<Self> {
        Arc::new(Self {
            browse,
            db: Arc::clone(&engine.db),
            host: Arc::clone(&engine.host),
            registry: Arc::clone(&engine.registry),
            repositories: Arc::clone(&engine.repositories),
        })
    }

    /// Returns the cache of cloud snapshots. The first call blocks while the cache directory is listed.
    fn snapshot_cache(&self) -> Result<SnapshotCache, ServiceError> {
        let mut cache = self.browse.cache.lock();
        if let Some(cache) = &*cache {
            return Ok(cache.clone());
        }
        let config = &self.host.settings.browse;
        let dir = config.cache_dir.clone().unwrap_or_else(|| self.host.data_dir.join("cache"));
        let options = CacheOptions {
            dir: Some(dir),
            disk_bytes: config.cache_bytes,
            stall_timeout: Duration::from_millis(config.stall_timeout_ms),
            ..CacheOptions::default()
        };
        let opened = SnapshotCache::open(options)?;
        *cache = Some(opened.clone());
        Ok(opened)
    }

    /// Opens a cloud snapshot of a credential for random reads. Blocks.
    pub(super) fn open_of_credential(
        &self,
        runtime: &Handle,
        credential: Uuid,
        id: &CloudSnapshotId,
    ) -> Result<(SnapshotReader, Arc<Manifest>), ServiceError> {
        let key = (credential, *id);
        {
            let mut open = self.browse.open.lock();
            if let Some(at) = open.iter().position(|(other, ..)| *other == key) {
                let found = open.remove(at);
                let result = (found.1.clone(), Arc::clone(&found.2));
                open.push(found);
                return Ok(result);
            }
        }
        let cache = self.snapshot_cache()?;
        let opened = in_reader_time(&self.host.settings, self.repositories.guest_repository(credential));
        let (repository, _) = runtime.block_on(opened)?;
        let catalog = DbManifestCache::new(Arc::clone(&self.db), credential);
        // Manifests never change: a cached one is valid.
        let known = blockd_cloud::ManifestCache::load(&catalog, &id.manifest_key());
        let manifest = match known.filter(|manifest| manifest.id() == *id) {
            Some(manifest) => manifest,
            None => runtime.block_on(in_reader_time(&self.host.settings, repository.manifest(id)))?,
        };
        let snapshot = runtime.block_on(cache.snapshot(&repository, &manifest))?;
        let manifest = Arc::new(manifest);
        let mut open = self.browse.open.lock();
        if open.len() >= MAX_OPEN {
            open.remove(0);
        }
        open.push((key, snapshot.clone(), Arc::clone(&manifest)));
        Ok((snapshot, manifest))
    }

    /// Opens a cloud snapshot through the named credential, or the first one whose repository holds it.
    /// Blocks.
    pub fn open_cloudsnap(
        &self,
        runtime: &Handle,
        id: &CloudSnapshotId,
        wanted: Option<&blockd_api::CredentialRef>,
    ) -> Result<(SnapshotReader, Arc<Manifest>), ServiceError> {
        let credentials: Vec<CredentialRow> = match wanted {
            Some(_) => vec![runtime.block_on(self.repositories.credential(wanted))?],
            None => runtime.block_on(self.repositories.credential_rows())?,
        };
        if credentials.is_empty() {
            runtime.block_on(self.repositories.credential(None))?;
        }
        let mut first_error = None;
        for credential in credentials {
            match self.open_of_credential(runtime, credential.uuid, id) {
                Ok(found) => return Ok(found),
                // Any other error is more informative than "not found" in one store.
                Err(error) => match &first_error {
                    Some(first) if !blockd_engine::cloud_snapshots::is_not_found(first) => {}
                    _ => first_error = Some(error),
                },
            }
        }
        Err(first_error.unwrap_or_else(|| {
            let message = format!("open failed on cloud snapshot {id}: not found");
            ServiceError::refused(blockd_api::ErrorCode::CloudsnapNotFound, message)
        }))
    }
}
