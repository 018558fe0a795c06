//! Restores that are usable at once: volumes that begin as a cloud snapshot and fetch what is read.
//!
//! A row says what a lazy volume needs, from before its files are made until all of it is there. As long as
//! there is such a row, its cloud snapshot and its credential are not deleted by this daemon.

pub mod fetcher;
pub mod hydrate;
pub mod in_place;
mod metadata;
pub mod source;

pub use fetcher::Fetcher;
pub use source::{CloudSource, SharedSource};

use crate::credentials::Repositories;
use crate::host::Host;
use crate::registry::Registry;
use crate::restores::Restores;
use crate::{
    error::{ServiceError, blocking},
    locate::Purpose,
    preflight::check_cancelled,
    registry::{EntryState, VolumeEntry},
    tasks::doubts::is_in_doubt,
};
use blockd_api::{
    ErrorCode,
    lazy::{Hydration, LazyRestored, StartLazyRestore},
};
use blockd_catalog::Db;
use blockd_catalog::{
    Catalog, Chain, DbError, LazyRow, TaskDetail, TaskKind, TaskRow, TaskState, VolumeRow, VolumeState,
};
use blockd_cloud::{CloudSnapshotId, Manifest, ManifestKey};
use blockd_extent::VolumeId;
use blockd_volume::Volume;
use jiff::Timestamp;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

/// Lazy volumes and the sources of their blocks.
pub struct LazyVolumes {
    pub(crate) db: Arc<Db>,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) host: Arc<Host>,
    pub(crate) lazy_sources: Mutex<HashMap<VolumeId, Arc<CloudSource>>>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
}

impl std::fmt::Debug for LazyVolumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LazyVolumes").finish_non_exhaustive()
    }
}

impl LazyVolumes {
    /// Attaches the sources of lazy volumes, before the first client is served.
    ///
    /// # Errors
    /// The database fails.
    pub async fn resume_lazy_volumes(self: &Arc<Self>) -> Result<(), ServiceError> {
        for row in self.db.run(LazyRow::all).await? {
            let Some(entry) = self.registry.by_id(row.volume) else { continue };
            let EntryState::Up(volume) = entry.view().state else { continue };
            if volume.is_lazy() {
                self.give_source(&volume, row);
            } else {
                // It ended right before the daemon did.
                self.db.run(move |tx| LazyRow::remove(tx, row.volume)).await?;
            }
        }
        Ok(())
    }

    fn give_source(self: &Arc<Self>, volume: &Volume, row: LazyRow) -> SharedSource {
        let source = SharedSource(CloudSource::new(self, row));
        self.lazy_sources.lock().insert(row.volume, Arc::clone(&source.0));
        volume.set_lazy_source(Arc::new(source.clone()));
        source
    }
}

impl Restores {
    /// Makes a volume that is a cloud snapshot, without fetching it: it is durable and served when this
    /// returns.
    ///
    /// # Errors
    /// There is no such cloud snapshot, the volume's name is taken, or its files cannot be made.
    pub async fn start_lazy_restore(
        self: &Arc<Self>,
        request: &StartLazyRestore,
    ) -> Result<LazyRestored, ServiceError> {
        let id = request.snap;
        let credential =
            self.repositories.credential_with(&id, request.cred_id.as_ref(), Purpose::Read).await?;
        let manifest = self.repositories.manifest_to_begin_with(credential.uuid, &id).await?;
        blockd_api::check_volume_size(manifest.size_bytes).map_err(blockd_api::ApiError::from)?;

        let _admission = self.admission.lock().await;
        check_cancelled()?;
        self.tasks.refuse_if_deleting(&id).await?;
        let row = self.lazy.row_of_restored(
            &manifest,
            request.volume.as_ref(),
            request.labels.as_ref(),
            VolumeState::Creating,
        )?;
        let schedules = self.lazy.schedules_of(&row.labels).await?;
        let lazy = LazyRow {
            volume: row.id,
            credential: credential.uuid,
            cloudsnap: id,
            hydrate: request.hydrate,
            on_store_loss: request.on_store_loss,
        };
        let entry = VolumeEntry::new(&row, EntryState::Creating);
        self.registry.reserve(&entry)?;
        match self.lazy.make_lazy_volume(row, lazy, manifest).await {
            Ok(volume) => entry.set_state(EntryState::Up(volume)),
            Err(error) => {
                self.registry.remove(&entry);
                return Err(error);
            }
        }
        tracing::info!(volume = %entry.id, name = %entry.name, cloudsnap = %id, "lazy volume made");
        // If the row of the task is not stored, the next start makes one.
        let task = match request.hydrate {
            true => Some(self.launch_hydration(&entry, lazy).await?),
            false => None,
        };
        Ok(LazyRestored { task, volume_id: entry.id, volume: entry.name.clone(), schedules })
    }
}

impl LazyVolumes {
    /// Rows, then files, then the row: a crash between leaves rows that say what to undo.
    async fn make_lazy_volume(
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
            incrementals: 0,
            finished: manifest.created,
        };
        self.db
            .run(move |tx| -> Result<(), DbError> {
                row.insert(tx)?;
                lazy.insert(tx)?;
                // What may vanish, or may not be whole, is nothing to build on: the first backup is a full
                // one then.
                if !is_in_doubt(tx, &chain.cloudsnap)? {
                    chain.put(tx)?;
                }
                Catalog::put(tx, lazy.credential, &lazy.cloudsnap.manifest_key(), &manifest)
            })
            .await?;
        let source = SharedSource(CloudSource::new(self, lazy));
        self.lazy_sources.lock().insert(id, Arc::clone(&source.0));
        let made = blocking(move || Volume::create_lazy(&dir, id, size_bytes, Arc::new(source))).await;
        let volume = match made {
            Ok(volume) => volume,
            Err(error) => {
                self.unmake_volume(id, None).await;
                return Err(error);
            }
        };
        if let Err(error) = self.db.run(move |tx| VolumeRow::set_state(tx, id, VolumeState::Up)).await {
            self.unmake_volume(id, Some(volume)).await;
            return Err(error.into());
        }
        Ok(volume)
    }
}

impl Restores {
    /// Gives a clone of a lazy volume its own source, and a task of its own if its parent has one.
    ///
    /// # Errors
    /// The database fails.
    pub async fn take_up_lazy_clone(
        self: &Arc<Self>,
        entry: &VolumeEntry,
        row: LazyRow,
    ) -> Result<(), ServiceError> {
        let volume = entry.volume()?;
        if !volume.is_lazy() {
            // The parent was hydrated meanwhile.
            return Ok(self.db.run(move |tx| LazyRow::remove(tx, row.volume)).await?);
        }
        self.lazy.give_source(&volume, row);
        if row.hydrate {
            self.launch_hydration(entry, row).await?;
        }
        Ok(())
    }

    /// Starts the task that fetches the rest of a lazy volume.
    ///
    /// # Errors
    /// The database fails.
    pub async fn launch_hydration(
        self: &Arc<Self>,
        entry: &VolumeEntry,
        lazy: LazyRow,
    ) -> Result<Uuid, ServiceError> {
        let credentials = self.repositories.credential_rows().await?;
        let credential = credentials.into_iter().find(|row| row.uuid == lazy.credential);
        let row = TaskRow {
            id: Uuid::new_v4(),
            kind: TaskKind::Restore,
            state: TaskState::Pending,
            volume: Some(entry.id),
            snapshot: None,
            credential: lazy.credential,
            cloudsnap: lazy.cloudsnap,
            base: None,
            created: Timestamp::now(),
            owner: crate::owner::current(),
            detail: TaskDetail {
                volume_name: Some(entry.name.clone()),
                credential_name: credential.map(|row| row.name.to_string()).unwrap_or_default(),
                phase: "pending".into(),
                bytes_total: entry.size_bytes(),
                lazy: true,
                ..TaskDetail::default()
            },
        };
        let (task, stored) = (row.id, row.clone());
        self.db.run(move |tx| stored.put(tx)).await?;
        self.runner.launch(row);
        Ok(task)
    }

    /// Starts hydrations without a task in the database, because the daemon ended in between, and failed
    /// ones. Stopped ones wait for a resume by a user.
    ///
    /// # Errors
    /// The database fails.
    pub async fn resume_hydrations(self: &Arc<Self>) -> Result<(), ServiceError> {
        let _admission = self.admission.lock().await;
        let (tasks, kept) = (self.tasks.unfinished_tasks().await?, self.tasks.kept_tasks().await?);
        for row in self.db.run(LazyRow::all).await?.into_iter().filter(|row| row.hydrate) {
            let is_its_task = |task: &TaskRow| task.volume == Some(row.volume) && task.detail.lazy;
            let has_task = tasks.iter().any(is_its_task);
            let is_stopped = kept.iter().any(|task| is_its_task(task) && task.state == TaskState::Stopped);
            let Some(entry) = self.registry.by_id(row.volume).filter(|_| !has_task && !is_stopped) else {
                continue;
            };
            if entry.volume().is_ok_and(|volume| volume.is_lazy()) {
                // The new one takes the place of one that failed.
                self.runner.give_up_kept(is_its_task).await?;
                self.launch_hydration(&entry, row).await?;
            }
        }
        Ok(())
    }
}

impl LazyVolumes {
    /// Refuses to take a cloud snapshot away that a lazy volume needs.
    pub async fn refuse_if_needed(&self, id: &CloudSnapshotId) -> Result<(), ServiceError> {
        let needs = |row: &LazyRow| row.cloudsnap == *id;
        let Some(row) = self.db.run(LazyRow::all).await?.into_iter().find(needs) else { return Ok(()) };
        let name = self.volume_name(row.volume);
        let how = match row.hydrate {
            true => "wait until it is hydrated, or delete the volume",
            false => {
                "it is a clone, which fetches what is read and needs the cloud snapshot as long as it exists: delete the volume first"
            }
        };
        let message =
            format!("cloud snapshot {id} is needed by volume {name}, which has not fetched all of it: {how}");
        Err(ServiceError::refused(ErrorCode::CloudsnapInUse, message))
    }

    /// Refuses to forget a credential that a lazy volume needs.
    pub async fn refuse_if_credential_needed(
        &self,
        credential: Uuid,
        name: &str,
    ) -> Result<(), ServiceError> {
        let needs = |row: &LazyRow| row.credential == credential;
        let Some(row) = self.db.run(LazyRow::all).await?.into_iter().find(needs) else { return Ok(()) };
        let volume = self.volume_name(row.volume);
        let message = format!(
            "credential {name} is needed by volume {volume}, which has not fetched all of its cloud snapshot"
        );
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
            cloudsnap: row.cloudsnap.to_string(),
            credential: row.credential,
            done_bytes: found.done_bytes,
            total_bytes: found.total_bytes,
            in_background: row.hydrate,
            on_store_loss: row.on_store_loss,
            waiting: found.waiting,
        })
    }
}
