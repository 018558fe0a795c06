//! Commit of a backup: the manifest, and the checks that a deletion on another host did not overtake it.

use crate::{
    CloudError, CloudSnapshotId, CompressionLevel, FORMAT_VERSION, ManifestKey, Repository,
    compression_report::{CompressionReport, LevelUse},
    error::random,
    index_writer::StoredIndex,
    job::Job,
    manifest::{BackupType, Delta, Manifest},
    names::ObjectKind,
    pack::OBJECT_HEADER_LEN,
    repository::run_blocking,
};
use blockd_extent::BLOCK_SIZE_BYTES;
use blockd_store::{BlobStore, StoreErrorKind};
use futures::StreamExt;
use jiff::Timestamp;
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

/// Concurrent object checks after a commit that may be a repetition.
const CHECK_CONCURRENCY: usize = 8;
/// Attempts of each check, over some 40 seconds, in addition to the retries of each request. The snapshot is
/// listed by then, and no other task checks its completeness; afterwards the backup fails, and its resumption
/// checks again.
const CHECK_ATTEMPTS: u32 = 10;
const CHECK_PAUSE: Duration = Duration::from_millis(200);
const MAX_CHECK_PAUSE: Duration = Duration::from_secs(10);

impl Job {
    fn manifest(&self, index: StoredIndex, compression: CompressionReport) -> Manifest {
        let spec = &self.spec;
        let stored_bytes = index.packs_len_bytes + index.reference.len_bytes;
        let delta = Delta {
            cluster: spec.cluster,
            volume: spec.volume,
            snapshot: spec.snapshot,
            key_id: self.key.key_id(),
            salt: spec.delta_salt,
            index: index.reference,
            pack_count: self.layout.pack_count,
            frames: self.layout.frames,
            data_blocks: self.layout.data_blocks,
            zero_blocks: spec.zero.len_blocks(),
            reference_blocks: self.layout.reference_blocks,
            stored_bytes,
        };
        let chain: Vec<Delta> = spec.chain().cloned().collect();
        Manifest {
            format_version: FORMAT_VERSION,
            cluster: spec.cluster,
            volume: spec.volume,
            snapshot: spec.snapshot,
            description: spec.description.clone(),
            size_bytes: spec.size_bytes,
            backup_type: if chain.is_empty() { BackupType::Full } else { BackupType::Incremental },
            started: spec.started,
            finished: Timestamp::now(),
            dirty_bytes: spec.dirty_bytes(),
            stored_bytes,
            pack_count: self.layout.pack_count,
            requests: self.progress.snapshot().requests,
            encryption: self.key.mode().name().to_owned(),
            compression,
            base: match &spec.repair {
                Some(repair) => repair.base,
                None => spec.base.as_ref().filter(|_| !spec.synthetic).map(Manifest::id),
            },
            repairs: spec.repair.as_ref().map(|repair| repair.id),
            delta,
            chain,
            sources: spec.sources(),
        }
    }

    /// Returns the use of each level, from the journal.
    fn compression_report(&self) -> Result<CompressionReport, CloudError> {
        let mut levels: BTreeMap<CompressionLevel, LevelUse> = BTreeMap::new();
        let journal = self.recorder.journal();
        for pack_no in 0..self.layout.pack_count {
            let level = journal.level(pack_no).unwrap_or(CompressionLevel::None);
            let empty = LevelUse { level, packs: 0, data_bytes: 0, stored_bytes: 0 };
            let used = levels.entry(level).or_insert(empty);
            used.packs += 1;
            used.data_bytes +=
                self.layout.frame_sizes(pack_no).iter().sum::<usize>() as u64 * BLOCK_SIZE_BYTES;
            let lens = journal.frame_lens(pack_no)?.unwrap_or_default();
            used.stored_bytes += lens.iter().map(|len| u64::from(*len)).sum::<u64>();
        }
        Ok(CompressionReport { mode: Some(self.levels.compression), levels: levels.into_values().collect() })
    }

    /// Puts the manifest and returns the one that is stored.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        repo: &Repository,
        index: StoredIndex,
    ) -> Result<Manifest, CloudError> {
        let spec = &self.spec;
        let job = self.clone();
        let compression = run_blocking(move || job.compression_report()).await?;
        let manifest = self.manifest(index, compression);
        assert_eq!(manifest.id(), spec.id(), "the manifest is that of the backup");
        assert!(spec.base.as_ref().is_none_or(|base| spec.synthetic || manifest.needs(base.snapshot)));
        assert!(manifest.stored_bytes >= OBJECT_HEADER_LEN as u64 + manifest.delta.index.root_len_bytes);
        let object = manifest.encode(&self.key, &random()?)?;
        let decoded =
            Manifest::decode(&object, &spec.id(), |id| (id == self.key.key_id()).then(|| self.key.clone()));
        // Not an assertion: a damaged catalog may supply an invalid base.
        let decoded = decoded.map_err(|error| CloudError::Internal {
            what: "checking the manifest before the commit",
            detail: error.to_string(),
        })?;
        assert!(decoded == manifest, "the manifest does not decode to itself");
        // As late as possible: garbage collection relies on it.
        spec.check_age(Timestamp::now())?;
        self.recorder.write(|journal| journal.record_commit()).await?;
        let puts = || self.progress.snapshot().requests.put;
        let (own, salt) = (manifest.id(), spec.delta_salt);
        let (manifest, at_once) = repo.put_manifest(manifest, object.into(), puts).await?;
        assert!((manifest.id(), manifest.delta.salt) == (own, salt), "the commit is of another backup");
        let in_doubt = self.was_committing || !at_once;
        if in_doubt {
            self.progress.set_in_doubt();
        }
        // The clock may have been wrong before the put, or the host may have been suspended during it.
        if let Err(expired) = spec.check_age(Timestamp::now()) {
            self.delete_manifest(&manifest).await?;
            return Err(expired);
        }
        if in_doubt || self.is_resumed || self.clock.is_long() || spec.is_old(Timestamp::now()) {
            self.check_own(&manifest).await?;
        }
        for owner in spec.owners() {
            check_base(self.store.as_ref(), &manifest, owner).await?;
        }
        Ok(manifest)
    }

    /// Checks that no other host is deleting the committed snapshot.
    ///
    /// An earlier attempt may have committed the snapshot, and another host may have deleted it since. A
    /// deletion removes the manifest again after the objects. So if all objects exist now, that second
    /// removal is still to come, and removes this manifest too.
    async fn check_own(self: &Arc<Self>, manifest: &Manifest) -> Result<(), CloudError> {
        let delta = self.spec.delta_id();
        let checks = ObjectKind::all(self.layout.pack_count).map(|object| async move {
            let key = delta.key(object);
            let is_stored = match object {
                ObjectKind::Pack(pack_no) => retry(|| self.is_stored(pack_no)).await?,
                ObjectKind::Index => retry(|| self.exists(&key)).await?,
            };
            Ok::<_, CloudError>((!is_stored).then_some(key))
        });
        let mut checks = futures::stream::iter(checks).buffer_unordered(CHECK_CONCURRENCY);
        let mut gone: Option<String> = None;
        while let Some(missing) = checks.next().await {
            gone = gone.or(missing?);
        }
        let Some(object) = gone else { return Ok(()) };
        self.delete_manifest(manifest).await?;
        Err(CloudError::DeletedConcurrently { id: manifest.id(), object })
    }

    /// Deletes the manifest of a committed snapshot that must not stay.
    async fn delete_manifest(&self, manifest: &Manifest) -> Result<(), CloudError> {
        let manifest_key = manifest.id().manifest_key();
        retry(|| async { Ok(self.store.delete(&manifest_key).await?) }).await.map(drop)
    }
}

/// Retries a request while it fails with a retryable error.
async fn retry<T, F>(ask: impl Fn() -> F) -> Result<T, CloudError>
where
    F: Future<Output = Result<T, CloudError>>,
{
    let mut pause = CHECK_PAUSE;
    for _ in 1..CHECK_ATTEMPTS {
        match ask().await {
            Err(error) if error.is_retryable() => {
                tracing::debug!(%error, "retrying the check of the committed snapshot");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_CHECK_PAUSE);
            }
            result => return result,
        }
    }
    ask().await
}

/// Checks that the base of a committed snapshot, or another one that names its deltas, was not deleted before
/// the commit.
///
/// A deletion removes the manifest first, then lists the remaining manifests, then removes deltas that none
/// of them names. If the base's manifest exists now, that listing is still to come and will show this
/// snapshot; if it is gone, the listing may have preceded the commit. Until one of the two is certain, the
/// backup is not done: its resumption checks again.
///
/// # Errors
/// [`CloudError::NeededDeleted`]; the snapshot's manifest is then deleted. [`CloudError::BaseUnknown`] if the
/// store does not reply, [`CloudError::CommitNotUndone`] if it does not delete the manifest: the snapshot is
/// listed, but does not count yet.
pub async fn check_base(
    store: &dyn BlobStore,
    manifest: &Manifest,
    base: CloudSnapshotId,
) -> Result<(), CloudError> {
    let id = manifest.id();
    debug_assert!(id != base, "{base} is not the base of {id}");
    let base_key = base.manifest_key();
    let looked = retry(|| async {
        match store.get_range(&base_key, 0, 1).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    });
    match looked.await {
        Ok(true) => Ok(()),
        Ok(false) => {
            let own_key = id.manifest_key();
            match retry(|| async { Ok(store.delete(&own_key).await?) }).await {
                Ok(_) => Err(CloudError::NeededDeleted { needed: base }),
                Err(source) => Err(CloudError::CommitNotUndone { id, base, source: Box::new(source) }),
            }
        }
        Err(source) => Err(CloudError::BaseUnknown { id, base, source: Box::new(source) }),
    }
}
