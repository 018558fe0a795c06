//! Cloud snapshots: listing and inspection of repositories, deletions, pins and expiry dates.

pub mod delete_requests;
pub mod delete_task;
pub mod retention_overrides;

use crate::{
    backup::task::trigger_of,
    error::{ServiceError, blocking},
    host::Host,
    repositories::{Repositories, locate::MAX_CONCURRENT_LOOKUPS, preflight::in_reader_time},
    restore::lazy::labels,
    tasks::backup_type,
    volumes::registry::Registry,
};
use blockd_api::{
    CredentialRef, ErrorCode, Labels, VolumeRef,
    cloudsnaps::{
        self as api, Cloudsnap, CloudsnapDetail, CloudsnapList, CloudsnapMetadata, CloudsnapStatus,
        DamagedCloudsnap, FailedCredential, InspectCloudsnap, ListCloudsnaps, ManifestDetail,
        volume_spec_json,
    },
    format_time,
    tasks::{BackupType, TaskStage},
};
use blockd_catalog::{CredentialRow, Db, DbError, DbManifestCache, Proof, RetentionOverride, TaskRow};
use blockd_cloud::{CloudError, CloudSnapshotId, Manifest, ManifestFilter};
use futures::StreamExt;
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Listing and inspection of cloud snapshots.
pub struct CloudSnapshots {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
}

fn entry(manifest: &Manifest, credential: &CredentialRow) -> Cloudsnap {
    Cloudsnap {
        id: manifest.id(),
        src_volume_id: manifest.volume,
        src_volume_name: manifest.description.volume_name.clone(),
        timestamp: manifest.description.created,
        metadata: CloudsnapMetadata {
            cloudsnap_type: manifest.description.trigger.clone(),
            compression: manifest.compression.clone(),
            size_bytes: manifest.delta.data_blocks * blockd_extent::BLOCK_SIZE_BYTES,
            starttime: format_time(manifest.started),
            status: CloudsnapStatus::Done,
            updatetime: format_time(manifest.finished),
            version: format!("V{}.00", manifest.format_version),
            volume: volume_spec_json(manifest.size_bytes, &labels(&manifest.description.labels)),
            volumename: manifest.description.volume_name.clone(),
            backup_type: backup_type(manifest.backup_type),
            credential: credential.uuid,
            credential_name: credential.name.to_string(),
            encrypted: credential.encrypted,
            stored_bytes: manifest.stored_bytes,
            dirty_bytes: manifest.dirty_bytes,
            freeze_stall_micros: manifest.description.freeze_stall_micros,
            snapshot_name: Some(manifest.description.snapshot_name.clone()),
            pinned: None,
            expires: None,
            verified: None,
            verify_depth: None,
            verify_result: None,
        },
        status: CloudsnapStatus::Done,
    }
}

/// Fills in the time and result of the last verification, which decides the status.
fn show_proof(entry: &mut Cloudsnap, proof: Option<&Proof>) {
    let Some(proof) = proof else { return };
    let metadata = &mut entry.metadata;
    if !proof.sound {
        (entry.status, metadata.status) = (CloudsnapStatus::Damaged, CloudsnapStatus::Damaged);
    }
    metadata.verified = Some(format_time(proof.verified));
    metadata.verify_depth = Some(proof.depth.to_string());
    metadata.verify_result = Some(if proof.sound { "Sound" } else { "Damaged" }.to_owned());
}

/// Fills in the retention override.
fn show_mark(metadata: &mut CloudsnapMetadata, mark: Option<&RetentionOverride>) {
    let Some(mark) = mark else { return };
    metadata.pinned = mark.pinned.then(|| "true".to_owned());
    metadata.expires = mark.expires.map(format_time);
}

/// Listed cloud snapshots of all stores.
#[derive(Default)]
struct ListedCloudsnaps {
    entries: Vec<Cloudsnap>,
    damaged: Vec<DamagedCloudsnap>,
}

/// Part of a store that is listed.
struct ListScope {
    filter: ManifestFilter,
    whole_store: bool,
}

impl CloudSnapshots {
    /// Lists the cloud snapshots of one or all credentials.
    ///
    /// # Errors
    /// The only store of the query cannot be listed.
    pub async fn list_cloudsnaps(&self, query: &ListCloudsnaps) -> Result<CloudsnapList, ServiceError> {
        let credentials = match &query.cred_id {
            Some(wanted) => vec![self.repositories.credential(Some(wanted)).await?],
            None => self.repositories.credential_rows().await?,
        };
        let scope = self.scope_of(query)?;
        let ManifestFilter { cluster, volume } = scope.filter;
        let mut list = CloudsnapList::default();
        let mut found = ListedCloudsnaps::default();
        match query.status {
            Some(status @ (CloudsnapStatus::Active | CloudsnapStatus::Failed)) => {
                for credential in &credentials {
                    self.tasks_as_entries(credential, status, &mut found).await?;
                }
            }
            _ => list.failed_credentials = self.list_stores(&credentials, &scope, &mut found).await?,
        }
        if query.status == Some(CloudsnapStatus::Done) {
            found.damaged.clear();
        }
        let src_name = match &query.src {
            Some(VolumeRef::Name(name)) => Some(name.as_str()),
            _ => None,
        };
        found.entries.retain(|entry| {
            query.status.is_none_or(|status| status == entry.status)
                && query.cloudsnap_id.is_none_or(|id| id == entry.id)
                && cluster.is_none_or(|cluster| cluster == entry.id.cluster)
                && volume.is_none_or(|volume| volume == entry.src_volume_id)
                && src_name.is_none_or(|name| name == entry.src_volume_name)
                && query.label.as_ref().is_none_or(|label| entry_labels(entry).matches(label))
        });
        if let Some(id) = &query.cloudsnap_id {
            found.damaged.retain(|damaged| damaged.id == id.to_string());
        }
        // Two credentials may reach the same repository.
        let mut seen = BTreeSet::new();
        found.entries.retain(|entry| seen.insert(entry.id));
        found.entries.sort_by_key(|entry| (entry.timestamp, entry.id));
        list.total = found.entries.len() as u64;
        if let Some(max) = query.max {
            let surplus = found.entries.len().saturating_sub(max as usize);
            found.entries.drain(..surplus);
        }
        list.cloudsnaps = found.entries;
        list.damaged = found.damaged;
        Ok(list)
    }

    fn scope_of(&self, query: &ListCloudsnaps) -> Result<ListScope, ServiceError> {
        let cluster = match (&query.cloudsnap_id, query.cluster) {
            (Some(id), _) => Some(id.cluster),
            // No cluster: the bucket and the passphrase are sufficient to list all of it.
            (None, cluster) => cluster,
        };
        let volume = match (&query.cloudsnap_id, &query.src) {
            (Some(id), _) => Some(id.volume),
            (None, Some(wanted @ VolumeRef::Id(id))) => match self.registry.find(wanted) {
                Ok(entry) => Some(entry.id),
                // A deleted volume.
                Err(error) if error.to_api().code == ErrorCode::VolumeNotFound => Some(*id),
                Err(error) => return Err(error),
            },
            _ => None,
        };
        Ok(ListScope {
            filter: ManifestFilter { cluster, volume },
            whole_store: cluster.is_none() && volume.is_none(),
        })
    }

    /// Lists the stores concurrently: with several credentials, an unresponsive store does not hide the
    /// others. Returns those that cannot be listed.
    async fn list_stores(
        &self,
        credentials: &[CredentialRow],
        scope: &ListScope,
        found: &mut ListedCloudsnaps,
    ) -> Result<Vec<FailedCredential>, ServiceError> {
        let alone = credentials.len() == 1;
        let mut each = Vec::new();
        for credential in credentials {
            each.push(async move {
                let mut found = ListedCloudsnaps::default();
                let work = Box::pin(self.list_store(credential, scope, &mut found));
                let listed = if alone { work.await } else { in_reader_time(&self.host.settings, work).await };
                (credential, listed.map(|()| found))
            });
        }
        let mut failed = Vec::new();
        for (credential, listed) in futures::future::join_all(each).await {
            match listed {
                Ok(one) => {
                    found.entries.extend(one.entries);
                    found.damaged.extend(one.damaged);
                }
                Err(error) if alone => return Err(error),
                Err(error) => failed.push(FailedCredential {
                    credential: credential.uuid,
                    name: credential.name.to_string(),
                    error: error.to_api(),
                }),
            }
        }
        Ok(failed)
    }

    async fn list_store(
        &self,
        credential: &CredentialRow,
        scope: &ListScope,
        found: &mut ListedCloudsnaps,
    ) -> Result<(), ServiceError> {
        let (repository, _) = self.repositories.task_repository(credential.uuid).await?;
        let catalog = DbManifestCache::new(Arc::clone(&self.db), credential.uuid);
        let listed = Box::pin(repository.list_manifests(&scope.filter, &catalog)).await?;
        if scope.whole_store {
            let keys: BTreeSet<String> = listed.iter().map(|item| item.key.clone()).collect();
            blocking(move || catalog.keep_only(&keys)).await?;
        }
        let uuid = credential.uuid;
        let known = self.db.run(move |tx| -> Result<_, DbError> {
            Ok((Proof::of_repository(tx, uuid)?, RetentionOverride::all(tx)?))
        });
        let (proofs, marks) = known.await?;
        let now = Timestamp::now();
        let proofs: BTreeMap<CloudSnapshotId, Proof> =
            proofs.into_iter().map(|proof| (proof.cloudsnap, proof)).collect();
        for item in listed {
            match item.manifest {
                Ok(manifest) => {
                    let mut entry = entry(&manifest, credential);
                    show_proof(&mut entry, proofs.get(&manifest.id()));
                    show_mark(&mut entry.metadata, marks.of(&manifest.id(), uuid, now).as_ref());
                    found.entries.push(entry);
                }
                // Deleted after it was listed.
                Err(CloudError::SnapshotNotFound { .. }) => {}
                Err(error) => found.damaged.push(DamagedCloudsnap {
                    id: item.id.map_or(item.key, |id| id.to_string()),
                    credential: credential.uuid,
                    reason: error.to_string(),
                }),
            }
        }
        Ok(())
    }

    /// Adds running and failed backups of this daemon as list entries.
    async fn tasks_as_entries(
        &self,
        credential: &CredentialRow,
        status: CloudsnapStatus,
        found: &mut ListedCloudsnaps,
    ) -> Result<(), ServiceError> {
        for row in self.db.run(TaskRow::all).await? {
            let matches = match row.state {
                TaskStage::Pending | TaskStage::Active => status == CloudsnapStatus::Active,
                TaskStage::Failed | TaskStage::Stopped => status == CloudsnapStatus::Failed,
                TaskStage::Done => false,
            };
            let Some(asked) = row.spec.backup().filter(|_| row.credential == credential.uuid && matches)
            else {
                continue;
            };
            let name = row.detail.volume_name.as_ref().map(ToString::to_string).unwrap_or_default();
            let volume = row.volume.and_then(|id| self.registry.by_id(id));
            let (size_bytes, labels) =
                volume.map_or((0, Labels::default()), |volume| (volume.size_bytes(), volume.tags().labels));
            found.entries.push(Cloudsnap {
                id: row.cloudsnap,
                src_volume_id: row.cloudsnap.volume,
                src_volume_name: name.clone(),
                timestamp: row.created,
                metadata: CloudsnapMetadata {
                    cloudsnap_type: trigger_of(asked).into(),
                    compression: "lz4".into(),
                    size_bytes: row.detail.bytes_total,
                    starttime: format_time(row.created),
                    status,
                    updatetime: format_time(row.detail.completed.unwrap_or_else(Timestamp::now)),
                    version: format!("V{}.00", blockd_cloud::FORMAT_VERSION),
                    volume: volume_spec_json(size_bytes, &labels),
                    volumename: name,
                    backup_type: row.detail.backup_type.map_or(BackupType::Full, backup_type),
                    credential: credential.uuid,
                    credential_name: credential.name.to_string(),
                    encrypted: credential.encrypted,
                    stored_bytes: row.detail.bytes_uploaded,
                    dirty_bytes: row.detail.bytes_dirty,
                    freeze_stall_micros: row.detail.freeze_stall_micros,
                    snapshot_name: asked.options.name.as_ref().map(ToString::to_string),
                    pinned: None,
                    expires: None,
                    verified: None,
                    verify_depth: None,
                    verify_result: None,
                },
                status,
            });
        }
        Ok(())
    }

    /// Returns the details of a cloud snapshot from its manifest.
    ///
    /// # Errors
    /// No store has it, or it is damaged.
    pub async fn inspect_cloudsnap(&self, query: &InspectCloudsnap) -> Result<CloudsnapDetail, ServiceError> {
        let id = query.id;
        let (credential, manifest) = self.find_manifest(&id, query.cred_id.as_ref()).await?;
        let chain = manifest.chain.iter();
        let stored = |delta: &blockd_cloud::Delta| delta.stored_bytes;
        let detail = ManifestDetail {
            volume_size_bytes: manifest.size_bytes,
            labels: labels(&manifest.description.labels),
            snapshot_name: manifest.description.snapshot_name.clone(),
            packs: manifest.pack_count.into(),
            data_blocks: manifest.delta.data_blocks,
            zero_blocks: manifest.delta.zero_blocks,
            chain: chain.map(|delta| self.delta_id(delta, &manifest)).collect(),
            chain_stored_bytes: manifest.deltas().map(stored).sum(),
        };
        let mut entry = entry(&manifest, &credential);
        let uuid = credential.uuid;
        let known = self.db.run(move |tx| -> Result<_, DbError> {
            Ok((Proof::of_repository(tx, uuid)?, RetentionOverride::all(tx)?))
        });
        let (proofs, marks) = known.await?;
        show_proof(&mut entry, proofs.iter().rfind(|proof| proof.cloudsnap == id));
        show_mark(&mut entry.metadata, marks.of(&id, uuid, Timestamp::now()).as_ref());
        Ok(CloudsnapDetail { entry, detail })
    }

    /// Returns the id of the cloud snapshot of a delta: only the last one of a chain is full.
    fn delta_id(&self, delta: &blockd_cloud::Delta, manifest: &Manifest) -> api::CloudSnapshotId {
        let bottom = manifest.chain.last().is_some_and(|last| last.snapshot == delta.snapshot);
        api::CloudSnapshotId {
            cluster: delta.cluster,
            volume: delta.volume,
            snapshot: delta.snapshot,
            incremental: !bottom,
        }
    }

    /// Finds a manifest and its credential: the named one, or the first one whose repository holds it.
    pub async fn find_manifest(
        &self,
        id: &CloudSnapshotId,
        wanted: Option<&CredentialRef>,
    ) -> Result<(CredentialRow, Manifest), ServiceError> {
        let credentials = match wanted {
            Some(wanted) => vec![self.repositories.credential(Some(wanted)).await?],
            None => self.repositories.credential_rows().await?,
        };
        if credentials.is_empty() {
            self.repositories.credential(None).await?;
        }
        let names: Vec<String> = credentials.iter().map(|credential| credential.name.to_string()).collect();
        let mut first_error = None;
        // Concurrently, so that several silent stores take no longer than one.
        let asked = credentials.into_iter().map(|credential| async move {
            let answer = self.repositories.preflight_manifest(credential.uuid, id).await;
            (credential, answer)
        });
        let mut answers = futures::stream::iter(asked).buffered(MAX_CONCURRENT_LOOKUPS);
        while let Some((credential, found)) = answers.next().await {
            match found {
                Ok(manifest) => return Ok((credential, manifest)),
                // "Not found" in one store is less informative than any other error.
                Err(error) => match &first_error {
                    Some(first) if !is_not_found(first) => {}
                    _ => first_error = Some(error),
                },
            }
        }
        Err(match first_error {
            Some(error) if names.len() == 1 || !is_not_found(&error) => error,
            _ => {
                let message = format!("no cloud snapshot {id} in any of the stores of {}", names.join(", "));
                ServiceError::refused(ErrorCode::CloudsnapNotFound, message)
            }
        })
    }
}

/// Returns true if a store does not hold the cloud snapshot.
pub fn is_not_found(error: &ServiceError) -> bool {
    matches!(error, ServiceError::Cloud(error) if matches!(**error, CloudError::SnapshotNotFound { .. }))
}

fn entry_labels(entry: &Cloudsnap) -> Labels {
    let spec: serde_json::Value = serde_json::from_str(&entry.metadata.volume).unwrap_or_default();
    spec.pointer("/DevSpec/volume_labels")
        .and_then(|labels| serde_json::from_value(labels.clone()).ok())
        .unwrap_or_default()
}
