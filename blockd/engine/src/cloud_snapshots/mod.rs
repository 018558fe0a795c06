//! Cloud snapshots: listing and inspection of repositories, deletions, pins and expiry dates.

pub mod damage;
pub mod delete_requests;
pub mod delete_task;
mod of_tasks;
pub mod retention_overrides;
pub mod space;

use crate::{
    error::{ServiceError, blocking},
    host::Host,
    leases::{self, Leases},
    proofs::{self, Proofs},
    repositories::{Repositories, locate::MAX_CONCURRENT_LOOKUPS},
    restore::lazy::{LazyVolumes, labels},
    tasks::{backup_type, findings::affected},
    volumes::registry::Registry,
};
use blockd_api::{
    CredentialRef, ErrorCode, VolumeId, VolumeName, VolumeRef,
    cloudsnaps::{
        self as api, Cloudsnap, CloudsnapDetail, CloudsnapList, CloudsnapStatus, DamagedCloudsnap,
        FailedCredential, InspectCloudsnap, ListCloudsnaps, ManifestDetail, PinOrigin,
    },
};
use blockd_catalog::{
    CredentialRow, Db, DbError, DbManifestCache, DrillRow, KnownProofs, RetentionOverride, RetentionOverrides,
};
use blockd_cloud::{
    CloudError, CloudSnapshotId, CompressionReport, LevelUse, Manifest, ManifestCache, ManifestFilter,
};
use futures::StreamExt;
use jiff::Timestamp;
use std::{collections::BTreeSet, sync::Arc};
use uuid::Uuid;

/// Listing and inspection of cloud snapshots.
pub struct CloudSnapshots {
    pub(crate) db: Arc<Db>,
    pub(crate) host: Arc<Host>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
}

fn entry(manifest: &Manifest, credential: &CredentialRow, location_id: Option<Uuid>) -> Cloudsnap {
    let description = &manifest.description;
    Cloudsnap {
        cloud_snapshot_id: manifest.id(),
        name: Some(description.snapshot_name.clone()),
        volume_id: manifest.volume,
        volume_name: description.volume_name.clone(),
        volume_size_bytes: manifest.size_bytes,
        labels: labels(&description.labels),
        backup_labels: labels(&description.backup_labels),
        created_at: description.created,
        status: CloudsnapStatus::Done,
        trigger: description.trigger.clone(),
        backup_type: backup_type(manifest.backup_type),
        repairs: manifest.repairs,
        started_at: manifest.started,
        completed_at: Some(manifest.finished),
        credential_id: credential.uuid,
        credential_name: credential.name.to_string(),
        location_id,
        format_version: manifest.format_version,
        compression: compression(&manifest.compression),
        encrypted: credential.encrypted,
        size_bytes: manifest.delta.data_blocks * blockd_extent::BLOCK_SIZE_BYTES,
        stored_bytes: manifest.stored_bytes,
        referenced_bytes: manifest.delta.reference_blocks * blockd_extent::BLOCK_SIZE_BYTES,
        dirty_bytes: manifest.dirty_bytes,
        freeze_stall_micros: description.freeze_stall_micros,
        pinned: false,
        leases: Vec::new(),
        pinned_by: None,
        expires_at: None,
        last_proof: None,
        last_drill: None,
    }
}

fn compression(report: &CompressionReport) -> api::CompressionReport {
    let used = |of: &LevelUse| api::LevelUse {
        level: of.level,
        packs: of.packs,
        data_bytes: of.data_bytes,
        stored_bytes: of.stored_bytes,
    };
    api::CompressionReport { mode: report.mode, levels: report.levels.iter().map(used).collect() }
}

/// Returns the entry of a cloud snapshot whose manifest cannot be read. The copy is that of this host.
fn unreadable(
    credential: &CredentialRow,
    key: &str,
    id: Option<CloudSnapshotId>,
    stored_at: Option<Timestamp>,
    copy: Option<&Manifest>,
    error: CloudError,
) -> DamagedCloudsnap {
    let is_intact = matches!(error, CloudError::UnknownKey { .. } | CloudError::UnsupportedVersion { .. });
    let error = ServiceError::from(error).to_api();
    let hint = match (is_intact, id.filter(|_| copy.is_some())) {
        (true, _) => error.hint,
        (false, id) => id.map(|id| {
            let location = &credential.name;
            format!("blockctl cloudsnap verify {id} --cred-id {location}, then blockctl cloudsnap repair {id} --cred-id {location}")
        }),
    };
    DamagedCloudsnap {
        cloud_snapshot_id: id.map_or_else(|| key.to_owned(), |id| id.to_string()),
        status: if is_intact { CloudsnapStatus::Unreadable } else { CloudsnapStatus::Damaged },
        credential_id: credential.uuid,
        credential_name: credential.name.to_string(),
        location_id: None,
        created_at: copy.map(|copy| copy.description.created),
        stored_at,
        reason: error.message,
        hint,
    }
}

/// Fills in the last proof, which decides the status.
fn show_proof(entry: &mut Cloudsnap, proof: Option<api::LastProof>) {
    if proof.as_ref().is_some_and(|proof| !proof.sound) {
        entry.status = CloudsnapStatus::Damaged;
    }
    entry.last_proof = proof;
}

fn last_drill(drill: &DrillRow, host: &Host) -> api::LastDrill {
    api::LastDrill {
        drill_id: drill.id,
        ended_at: drill.ended,
        passed: drill.passed,
        unchecked: drill.report.unchecked().is_some(),
        host: drill.host.clone().unwrap_or_else(|| host.node.clone()),
        version: drill.version.clone(),
    }
}

/// Fills in the retention override.
fn show_mark(entry: &mut Cloudsnap, marks: &RetentionOverrides, now: Timestamp) {
    let id = entry.cloud_snapshot_id;
    let Some(mark) = marks.of(&id, entry.credential_id, now) else { return };
    (entry.pinned, entry.expires_at) = (mark.pinned, mark.expires);
    // Two credentials of one location have the same leases.
    let mut seen = BTreeSet::new();
    let leases = marks.leases(&id, entry.credential_id, now).filter(|lease| seen.insert(lease.id()));
    entry.leases = leases.map(leases::shown).collect();
    entry.pinned_by = mark.pinned.then(|| match marks.pinned_under(&id, entry.credential_id) {
        _ if marks.is_pinned_by_anomaly(&id) => PinOrigin::Anomaly,
        None => PinOrigin::Lease,
        Some(_) => PinOrigin::User,
    });
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
    name: Option<ScopeName>,
    whole_store: bool,
}

/// Name of a volume.
struct ScopeName {
    name: VolumeName,
    /// Cluster and id of the volume that has the name on this host now.
    present: Option<(Uuid, VolumeId)>,
}

impl ScopeName {
    /// Returns true for a backup of the volume that has the name, and for one that was made under the name.
    fn selects(&self, entry: &Cloudsnap) -> bool {
        self.present == Some((entry.cloud_snapshot_id.cluster, entry.volume_id))
            || self.name.as_str() == entry.volume_name
    }
}

impl CloudSnapshots {
    /// Lists the cloud snapshots of one or all credentials.
    ///
    /// # Errors
    /// The only store of the query cannot be listed.
    pub async fn list_cloudsnaps(&self, query: &ListCloudsnaps) -> Result<CloudsnapList, ServiceError> {
        let credentials = match &query.credential {
            Some(wanted) => vec![self.repositories.credential(Some(wanted)).await?],
            None => self.repositories.credential_rows().await?,
        };
        let scope = self.scope_of(query)?;
        let ManifestFilter { cluster, volume } = scope.filter;
        let mut list = CloudsnapList::default();
        let mut found = ListedCloudsnaps::default();
        match query.status {
            Some(status @ (CloudsnapStatus::Active | CloudsnapStatus::Failed | CloudsnapStatus::Stopped)) => {
                for credential in &credentials {
                    self.tasks_as_entries(credential, status, &mut found).await?;
                }
            }
            _ => list.failed_credentials = self.list_stores(&credentials, &scope, &mut found).await?,
        }
        if let Some(status) = query.status {
            found.damaged.retain(|damaged| damaged.status == status);
        }
        if let Some(name) = &scope.name {
            // A damaged manifest has no name: its volume is known by other backups.
            let source = |id: &CloudSnapshotId| (id.cluster, id.volume);
            let named = found.entries.iter().filter(|entry| name.selects(entry));
            let mut volumes: BTreeSet<_> = named.map(|entry| source(&entry.cloud_snapshot_id)).collect();
            volumes.extend(name.present);
            found.damaged.retain(|damaged| {
                damaged.cloud_snapshot_id.parse().is_ok_and(|id| volumes.contains(&source(&id)))
            });
        }
        found.entries.retain(|entry| {
            query.status.is_none_or(|status| status == entry.status)
                && query.cloud_snapshot_id.is_none_or(|id| id == entry.cloud_snapshot_id)
                && cluster.is_none_or(|cluster| cluster == entry.cloud_snapshot_id.cluster)
                && volume.is_none_or(|volume| volume == entry.volume_id)
                && scope.name.as_ref().is_none_or(|name| name.selects(entry))
                && query
                    .label
                    .as_ref()
                    .is_none_or(|label| entry.labels.clone().overlaid_by(&entry.backup_labels).matches(label))
                && query.name.as_ref().is_none_or(|name| entry.name.as_deref() == Some(name.as_str()))
        });
        if let Some(id) = &query.cloud_snapshot_id {
            found.damaged.retain(|damaged| damaged.cloud_snapshot_id == id.to_string());
        }
        // Two credentials may reach the same location; copies at others are listed, too.
        let mut seen = BTreeSet::new();
        found.entries.retain(|entry| seen.insert((entry.cloud_snapshot_id, entry.location())));
        found.entries.sort_by_key(|entry| (entry.created_at, entry.cloud_snapshot_id));
        list.total = found.entries.len() as u64;
        if let Some(max) = query.max {
            let surplus = found.entries.len().saturating_sub(max as usize);
            found.entries.drain(..surplus);
        }
        list.list = found.entries.into();
        list.damaged = found.damaged;
        Ok(list)
    }

    /// Resolves the volume of a query. An id of a volume of this host selects its backups by this host; a
    /// name needs the manifests, which record the name at backup time. Keys do not have names, so a query by
    /// name lists all manifests of a store and reads those of all hosts that are not cached: one request for
    /// each, once. A further query costs the listing. With a cluster, only its manifests count.
    fn scope_of(&self, query: &ListCloudsnaps) -> Result<ListScope, ServiceError> {
        let own = self.host.cluster;
        let is_own = query.cluster_id.is_none_or(|cluster| cluster == own);
        let present = match query.volume.as_ref().filter(|_| is_own).map(|wanted| self.registry.find(wanted))
        {
            Some(Err(error)) if error.to_api().code != ErrorCode::VolumeNotFound => return Err(error),
            Some(Ok(entry)) => Some(entry.id),
            Some(Err(_)) | None => None,
        };
        let (cluster, volume, name) = match &query.volume {
            Some(VolumeRef::Id(id)) => {
                (query.cluster_id.or(present.map(|_| own)), Some(present.unwrap_or(*id)), None)
            }
            Some(VolumeRef::Name(name)) => {
                let present = present.map(|id| (own, id));
                (query.cluster_id, None, Some(ScopeName { name: name.clone(), present }))
            }
            // No cluster: the bucket and the passphrase are sufficient to list all of it.
            None => (query.cluster_id, None, None),
        };
        let filter = match &query.cloud_snapshot_id {
            Some(id) => ManifestFilter { cluster: Some(id.cluster), volume: volume.or(Some(id.volume)) },
            None => ManifestFilter { cluster, volume },
        };
        let whole_store = filter.cluster.is_none() && filter.volume.is_none();
        Ok(ListScope { filter, name, whole_store })
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
                let listed = self.repositories.while_store_answers(credential, work).await;
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
                    credential_id: credential.uuid,
                    credential_name: credential.name.to_string(),
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
        let repository = self.repositories.repository_for_client(credential.uuid).await?;
        let catalog = DbManifestCache::new(Arc::clone(&self.db), credential.uuid);
        let listed_at = Timestamp::now();
        let known = self.repositories.known_before(credential.uuid, &scope.filter).await?;
        let listed = Box::pin(repository.list_manifests(&scope.filter, &catalog)).await?;
        // The mount point of an unmounted disk is an empty directory, in which no cloud snapshot is missing.
        if listed.is_empty() || self.repositories.is_location_in_doubt(credential.uuid) {
            self.repositories.prove_location(credential.uuid, &repository).await?;
        }
        self.lazy.end_relisted_backings(credential.uuid, &listed);
        let keys = listed.iter().map(|item| item.key.clone()).collect();
        self.repositories.forget_deleted_backups(credential.uuid, &repository, known, &keys, false).await?;
        self.proofs.import_after_listing(credential, &repository, &scope.filter, &listed).await;
        self.leases.import_after_listing(credential, &repository, &scope.filter).await;
        let now = Timestamp::now();
        let uuid = credential.uuid;
        if scope.whole_store
            && let Err(error) = self.db.run(move |tx| DbManifestCache::set_listed(tx, uuid, listed_at)).await
        {
            // Such as on a full disk: the listing needs no local space.
            tracing::warn!(credential = %credential.name, %error, "noting the time of a listing failed");
        }
        let known = self.db.run(move |tx| -> Result<_, DbError> {
            let drills = DrillRow::newest_of_location(tx, uuid, now)?;
            Ok((KnownProofs::of_repository(tx, uuid, now)?, drills, RetentionOverride::all(tx)?))
        });
        let (proofs, drills, marks) = known.await?;
        let location_id = self.repositories.location_id(credential).await;
        let repaired: BTreeSet<_> =
            listed.iter().filter_map(|item| item.manifest.as_ref().ok()?.repairs).collect();
        // A repaired one stays until nothing uses it.
        for item in listed.into_iter().filter(|item| item.id.is_none_or(|id| !repaired.contains(&id))) {
            match item.manifest {
                Ok(manifest) => {
                    let mut entry = entry(&manifest, credential, location_id);
                    show_proof(
                        &mut entry,
                        proofs.last(&manifest.id()).map(|last| proofs::shown(last, &self.host)),
                    );
                    entry.last_drill = drills.get(&manifest.id()).map(|drill| last_drill(drill, &self.host));
                    show_mark(&mut entry, &marks, now);
                    found.entries.push(entry);
                }
                // Deleted after it was listed.
                Err(CloudError::SnapshotNotFound { .. }) => {}
                Err(error) => {
                    let (cache, key) = (catalog.clone(), item.key.clone());
                    let copy = blocking(move || Ok::<_, ServiceError>(cache.load(&key))).await?;
                    found.damaged.push(DamagedCloudsnap {
                        location_id,
                        ..unreadable(credential, &item.key, item.id, item.stored, copy.as_ref(), error)
                    });
                }
            }
        }
        Ok(())
    }

    /// Returns the details of a cloud snapshot from its manifest.
    ///
    /// # Errors
    /// No store has it, or it is damaged.
    pub async fn inspect_cloudsnap(&self, query: &InspectCloudsnap) -> Result<CloudsnapDetail, ServiceError> {
        let id = query.cloud_snapshot_id;
        let (credential, manifest) = match self.find_manifest(&id, query.credential.as_ref()).await {
            Err(error) => return Err(self.with_replacement(error, id).await),
            Ok(found) => found,
        };
        let mut detail = ManifestDetail {
            packs: manifest.pack_count.into(),
            data_blocks: manifest.delta.data_blocks,
            zero_blocks: manifest.delta.zero_blocks,
            chain: manifest.chain.iter().map(|delta| self.delta_id(delta, &manifest)).collect(),
            reference_sources: manifest.sources.len() as u64,
            chain_stored_bytes: manifest.deltas().map(|delta| delta.stored_bytes).sum(),
            lost_bytes: 0,
            lost_ranges: Vec::new(),
            action: None,
        };
        let mut entry = entry(&manifest, &credential, self.repositories.location_id(&credential).await);
        let (uuid, now) = (credential.uuid, Timestamp::now());
        let known = self.db.run(move |tx| -> Result<_, DbError> {
            let drills = DrillRow::newest_of_location(tx, uuid, now)?;
            Ok((KnownProofs::of_repository(tx, uuid, now)?, drills, RetentionOverride::all(tx)?))
        });
        let (proofs, drills, marks) = known.await?;
        if let Some(damage) = proofs.own(&id).filter(|own| !own.sound) {
            let lost = affected(&id.to_string(), &damage.damaged);
            (detail.lost_bytes, detail.lost_ranges) = (lost.lost_bytes, lost.ranges);
        }
        entry.last_drill = drills.get(&id).map(|drill| last_drill(drill, &self.host));
        show_proof(&mut entry, proofs.last(&id).map(|last| proofs::shown(last, &self.host)));
        show_mark(&mut entry, &marks, now);
        if entry.status == CloudsnapStatus::Damaged {
            detail.action = self.action_for(&entry).await?;
        }
        Ok(CloudsnapDetail { entry, detail })
    }

    /// Returns the id of the cloud snapshot of a delta: only the last one of a chain is full.
    fn delta_id(&self, delta: &blockd_cloud::Delta, manifest: &Manifest) -> api::CloudSnapshotId {
        api::CloudSnapshotId {
            cluster: delta.cluster,
            volume: delta.volume,
            snapshot: delta.snapshot,
            incremental: manifest.chain.last().is_none_or(|last| last.snapshot != delta.snapshot),
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
