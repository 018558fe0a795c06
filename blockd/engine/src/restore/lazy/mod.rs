//! Lazy volumes: usable at once, backed by a cloud snapshot, with blocks fetched on read.
//!
//! A row records the backing snapshot and the credential of a lazy volume, from before its files are created
//! until it is hydrated. While the row exists, this daemon deletes neither of them.

pub mod fetcher;
pub mod hydrate;
mod metadata;
pub mod source;

pub use crate::restore::lazy::fetcher::Fetcher;
pub use crate::restore::lazy::source::{CloudSource, SharedSource};

use crate::{
    error::{ServiceError, blocking},
    health::BACKING_SNAPSHOT,
    host::Host,
    ids::random_id,
    leases::{Leases, Renewal},
    repositories::Repositories,
    schedules::selection::selects_labels,
    tasks::findings::is_in_doubt,
    volumes::registry::Registry,
};
use blockd_api::{
    ErrorCode, Labels, VolumeName,
    anomalies::AnomalyPolicy,
    events::{EventKind, Severity},
    lazy::Hydration,
    schedules::ScheduleSummary,
};
use blockd_catalog::{
    Chain, Db, DbError, DbManifestCache, LazyRow, NewEvent, ScheduleRow, VolumeRow, VolumeState,
};
use blockd_cloud::{CloudSnapshotId, ListedManifest, Manifest, ManifestKey};
use blockd_extent::VolumeId;
use blockd_volume::Volume;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use uuid::Uuid;

/// Lazy volumes and the sources of their blocks.
pub struct LazyVolumes {
    pub(crate) db: Arc<Db>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) host: Arc<Host>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) lazy_sources: Mutex<HashMap<VolumeId, Arc<CloudSource>>>,
    /// Held while a deleted backing snapshot is reported.
    pub(crate) reporting: tokio::sync::Mutex<()>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
}

impl LazyVolumes {
    /// Attaches the sources of lazy volumes, before the first client is served.
    ///
    /// # Errors
    /// The database fails.
    pub async fn resume_lazy_volumes(self: &Arc<Self>) -> Result<(), ServiceError> {
        for row in self.db.run(LazyRow::all).await? {
            let Some(entry) = self.registry.by_id(row.volume) else { continue };
            let Ok(volume) = entry.volume() else { continue };
            if volume.is_lazy() {
                self.attach_source(&volume, row);
            } else {
                // Its hydration ended right before the daemon did.
                self.db.run(move |tx| LazyRow::remove(tx, row.volume)).await?;
                self.leases.release(row.credential, row.cloudsnap, row.volume);
            }
        }
        Ok(())
    }

    pub(crate) fn attach_source(self: &Arc<Self>, volume: &Volume, row: LazyRow) -> SharedSource {
        let source = SharedSource(CloudSource::new(self, row));
        self.lazy_sources.lock().insert(row.volume, Arc::clone(&source.0));
        volume.set_lazy_source(Arc::new(source.clone()));
        source
    }

    /// Drops the source of a volume that is hydrated or gone.
    pub(crate) fn drop_source(&self, id: VolumeId) {
        self.lazy_sources.lock().remove(&id);
        self.end_deleted_backing(id);
    }

    /// Ends the problem of a deleted backing snapshot, which the next read reports again.
    pub(crate) fn end_deleted_backing(&self, id: VolumeId) {
        self.repositories.health.clear(BACKING_SNAPSHOT, &id.to_string());
    }

    /// Ends the problems of deleted backing snapshots that a location lists again.
    pub(crate) fn end_relisted_backings(&self, credential: Uuid, listed: &[ListedManifest]) {
        let sources: Vec<_> = self.lazy_sources.lock().values().map(Arc::clone).collect();
        for source in sources.iter().filter(|source| source.deleted().is_some()) {
            let (at, id) = source.origin();
            if at == credential && listed.iter().any(|item| item.id == Some(id) && item.manifest.is_ok()) {
                source.recheck();
                self.end_deleted_backing(source.volume());
            }
        }
    }

    /// Renews the leases that are due, and reports the volumes whose backing snapshot another host deleted.
    ///
    /// # Errors
    /// The database fails.
    pub async fn renew_leases(&self, now: Timestamp) -> Result<(), ServiceError> {
        for (volume, renewal) in self.leases.renew_due(now).await? {
            let Some(source) = self.lazy_sources.lock().get(&volume).cloned() else { continue };
            match renewal {
                Renewal::Gone(store) => drop(source.note_deleted(self, &store).await),
                Renewal::Leased if source.deleted().is_some() => {
                    source.recheck();
                    self.end_deleted_backing(volume);
                }
                Renewal::Leased => {}
            }
        }
        Ok(())
    }

    /// Reports a backing snapshot that another host deleted; returns false if its event was not stored.
    pub(crate) async fn note_deleted_backing(&self, id: VolumeId, cause: &str) -> bool {
        let name = self.volume_name(id);
        let message = format!("volume {name} is incomplete: {cause}");
        let todo = format!(
            "bring its objects back if the store keeps deleted versions, then run blockctl cloudsnap list; otherwise \
             copy what can be read of {name}, and restore another cloud snapshot"
        );
        let health = &self.repositories.health;
        // Of reads that fail at the same time only one stores the event.
        let _one = self.reporting.lock().await;
        if health.has(BACKING_SNAPSHOT, &id.to_string()) || !self.lazy_sources.lock().contains_key(&id) {
            return true;
        }
        let event = NewEvent::new(
            Timestamp::now(),
            Severity::Error,
            EventKind::BackingSnapshotDeleted,
            message.clone(),
        );
        let event = event.of_volume(id, name.parse().ok());
        let stored = self.db.run(move |tx| event.insert(tx)).await;
        // A volume that is deleted meanwhile has no problem: its source is dropped first.
        let sources = self.lazy_sources.lock();
        if let Err(error) = stored {
            tracing::warn!(volume = %id, %error, "storing the event of a deleted backing snapshot failed");
            return false;
        }
        if sources.contains_key(&id) {
            health.note(BACKING_SNAPSHOT, &id.to_string(), message, todo);
        }
        self.repositories.events.wake();
        true
    }

    /// Creates a lazy volume: rows, then files, then the state of the row. A crash in between leaves rows
    /// that tell what to undo.
    pub(crate) async fn create_lazy_volume(
        self: &Arc<Self>,
        row: VolumeRow,
        lazy: LazyRow,
        manifest: Manifest,
    ) -> Result<Arc<Volume>, ServiceError> {
        let (id, size_bytes, dir) = (row.id, row.size_bytes, self.host.data_dir.volume_dir(row.id));
        let chain = Chain {
            volume: id,
            credential: lazy.credential,
            epoch: Volume::LAZY_BASE_EPOCH,
            cloudsnap: lazy.cloudsnap,
            // The first backup is based on the backing snapshot.
            incrementals: manifest.chain.len() as u64,
            point_in_time: manifest.description.created,
        };
        self.db
            .run(move |tx| -> Result<(), DbError> {
                row.insert(tx)?;
                lazy.insert(tx)?;
                // A cloud snapshot in doubt is no base: the first backup is full then.
                if !is_in_doubt(tx, &chain.cloudsnap)? {
                    chain.put(tx)?;
                }
                DbManifestCache::put(tx, lazy.credential, &lazy.cloudsnap.manifest_key(), &manifest)
            })
            .await?;
        let source = SharedSource(CloudSource::new(self, lazy));
        self.lazy_sources.lock().insert(id, Arc::clone(&source.0));
        let made = blocking(move || Volume::create_lazy(&dir, id, size_bytes, Arc::new(source))).await;
        let volume = match made {
            Ok(volume) => volume,
            Err(error) => {
                self.undo_create(id, None).await;
                return Err(error);
            }
        };
        if let Err(error) = self.db.run(move |tx| VolumeRow::set_state(tx, id, VolumeState::Up)).await {
            self.undo_create(id, Some(volume)).await;
            return Err(error.into());
        }
        Ok(volume)
    }

    /// Refuses to delete the backing snapshot of a lazy volume.
    pub async fn refuse_if_needed(&self, id: &CloudSnapshotId) -> Result<(), ServiceError> {
        let needs = |row: &LazyRow| row.cloudsnap == *id;
        let Some(row) = self.db.run(LazyRow::all).await?.into_iter().find(needs) else { return Ok(()) };
        let name = self.volume_name(row.volume);
        let how = match row.hydrate {
            true => "wait until it is hydrated, or delete the volume",
            false => {
                "it fetches blocks on read only, and needs the cloud snapshot as long as it exists: delete the volume first"
            }
        };
        let message = format!("cloud snapshot {id} is needed by lazy volume {name}: {how}");
        Err(ServiceError::refused(ErrorCode::CloudsnapInUse, message))
    }

    /// Refuses to delete the credential of a lazy volume.
    pub async fn refuse_if_credential_needed(
        &self,
        credential: Uuid,
        name: &str,
    ) -> Result<(), ServiceError> {
        let needs = |row: &LazyRow| row.credential == credential;
        let Some(row) = self.db.run(LazyRow::all).await?.into_iter().find(needs) else { return Ok(()) };
        let volume = self.volume_name(row.volume);
        let message =
            format!("credential {name} is needed by volume {volume}, which is not completely hydrated");
        Err(ServiceError::refused(ErrorCode::CredentialInUse, message))
    }

    fn volume_name(&self, id: VolumeId) -> String {
        self.registry.by_id(id).map_or_else(|| id.to_string(), |entry| entry.name.to_string())
    }

    /// Returns the hydration state for a reply; `None` for a complete volume.
    pub fn hydration(&self, volume: &Volume, rows: &[LazyRow]) -> Option<Hydration> {
        let found = volume.hydration()?;
        let row = rows.iter().find(|row| row.volume == volume.id())?;
        Some(Hydration {
            cloud_snapshot_id: row.cloudsnap.to_string(),
            credential_id: row.credential,
            done_bytes: found.done_bytes,
            total_bytes: found.total_bytes,
            in_background: row.hydrate,
            on_store_loss: row.on_store_loss,
            waiting_requests: found.waiting,
        })
    }

    /// Removes the remains of a failed creation. The next start removes the rest.
    pub async fn undo_create(&self, id: VolumeId, volume: Option<Arc<Volume>>) {
        let dir = self.host.data_dir.volume_dir(id);
        self.drop_source(id);
        let removed = blocking(move || -> Result<(), blockd_volume::VolumeError> {
            if let Some(volume) = volume
                && let Err(error) = volume.close()
            {
                // It has no writes: errors of its close do not matter.
                tracing::debug!(volume = %id, %error, "closing the volume before its removal failed");
            }
            Volume::delete_files(&dir)
        });
        if let Err(error) = removed.await {
            tracing::warn!(volume = %id, %error, "removing the files of a failed volume creation failed");
        }
        if let Err(error) = self.db.run(move |tx| VolumeRow::remove(tx, id)).await {
            tracing::warn!(volume = %id, %error, "removing the row of a failed volume creation failed");
        }
    }

    /// Creates the row of a restored volume. Requires the admission lock, since it may choose a name.
    pub fn row_of_restored(
        &self,
        manifest: &Manifest,
        name: Option<&VolumeName>,
        own_labels: Option<&Labels>,
        state: VolumeState,
    ) -> Result<VolumeRow, ServiceError> {
        // Labels of the backup may be older than the check.
        own_labels.map_or(Ok(()), AnomalyPolicy::check)?;
        let id = VolumeId::from_u64(random_id()?);
        let name = name.map_or_else(|| self.free_name(manifest), |name| Ok(name.clone()))?;
        Ok(VolumeRow {
            labels: own_labels.cloned().unwrap_or_else(|| labels(&manifest.description.labels)),
            state,
            ..VolumeRow::new(id, name, manifest.size_bytes)
        })
    }

    /// Returns the schedules that will select a new volume with these labels.
    pub async fn schedules_of(&self, labels: &Labels) -> Result<Vec<ScheduleSummary>, ServiceError> {
        let labels = labels.clone();
        let found = self.db.run(move |tx| -> Result<_, DbError> {
            let is_meant = |row: &ScheduleRow| selects_labels(&row.spec.selector, &labels);
            let rows = ScheduleRow::all(tx)?.into_iter().filter(is_meant);
            Ok(rows.map(|row| row.summary()).collect())
        });
        Ok(found.await?)
    }

    /// Returns the first free name of the form `<source>-restored-<n>`.
    fn free_name(&self, manifest: &Manifest) -> Result<VolumeName, ServiceError> {
        let stem = sanitize_name(&manifest.description.volume_name);
        for n in 1..=u32::MAX {
            let name: VolumeName = format!("{stem}-restored-{n}").parse()?;
            if self.registry.by_name(name.as_str()).is_none() {
                return Ok(name);
            }
        }
        Err(ServiceError::Internal("no free volume name".into()))
    }
}

/// Reduces a volume name from a store to valid characters and a length that leaves room for a suffix.
pub(crate) fn sanitize_name(name: &str) -> String {
    const ROOM_BYTES: usize = 100;
    let fit: String =
        name.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(ROOM_BYTES).collect();
    let fit = fit.trim_start_matches(['.', '_', '-']);
    if fit.is_empty() { "volume".into() } else { fit.to_owned() }
}

/// Returns the labels of a manifest; invalid ones are dropped.
pub(crate) fn labels(map: &std::collections::BTreeMap<String, String>) -> Labels {
    Labels::try_from(map.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_api::VolumeName;

    #[test]
    fn volume_name_from_store_is_sanitized() {
        for (given, fit) in [("data", "data"), ("../x y", "xy"), ("", "volume"), ("ä", "volume"), ("-1", "1")]
        {
            assert_eq!(sanitize_name(given), fit);
            let name = format!("{}-restored-1", sanitize_name(given));
            assert!(name.parse::<VolumeName>().is_ok(), "{name}");
        }
        assert!(
            format!("{}-restored-4294967295", sanitize_name(&"x".repeat(500))).parse::<VolumeName>().is_ok()
        );
    }
}
