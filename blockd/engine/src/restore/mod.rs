//! Restores of cloud snapshots.

pub mod checkpoint;
mod estimate;
pub mod full;
pub mod in_place;
mod labels;
pub mod lazy;
mod start_in_place;

use crate::{
    costs::check_max_cost,
    error::ServiceError,
    host::Admission,
    ids::random_id,
    repositories::{Repositories, locate::Purpose, preflight::check_cancelled},
    restore::{in_place::InPlaceWork, lazy::LazyVolumes},
    tasks::{Tasks, requests::check_limits, runner::Runner},
    volumes::{
        attachments::Attachments,
        registry::{EntryState, Registry, VolumeEntry},
    },
};
use blockd_api::{
    CredentialRef,
    cloudsnaps::{RestoreStarted, StartRestore},
    lazy::{LazyRestored, StartLazyRestore},
    schedules::ScheduleSummary,
    tasks::{TaskStage, TaskStarted},
};
use blockd_catalog::{CredentialRow, Db, LazyRow, RestoreTask, TaskRow, TaskSpec, VolumeRow, VolumeState};
use blockd_cloud::{CloudSnapshotId, Manifest};
use blockd_extent::VolumeId;
use jiff::Timestamp;
use std::sync::Arc;
use tokio::sync::MutexGuard;
use uuid::Uuid;

/// Starts restores.
pub struct Restores {
    pub(crate) admission: Arc<Admission>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) db: Arc<Db>,
    pub(crate) in_place_work: Arc<InPlaceWork>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) tasks: Arc<Tasks>,
}

impl Restores {
    /// Locates a cloud snapshot and reads its manifest, then admits its restore until the guard is dropped.
    async fn admit(
        &self,
        id: &CloudSnapshotId,
        credential: Option<&CredentialRef>,
    ) -> Result<(CredentialRow, Manifest, MutexGuard<'_, ()>), ServiceError> {
        let credential = self.repositories.credential_with(id, credential, Purpose::Read).await?;
        let (manifest, _) = self.repositories.manifest_or_cached(credential.uuid, id).await?;
        let admission = self.admit_read_of(id).await?;
        Ok((credential, manifest, admission))
    }

    /// Admits a restore into a new volume until the guard is dropped; returns its credential and the row of
    /// the volume.
    async fn admit_new(
        &self,
        request: &StartRestore,
    ) -> Result<(CredentialRow, VolumeRow, MutexGuard<'_, ()>), ServiceError> {
        check_limits(request.limits)?;
        let id = &request.cloud_snapshot_id;
        let (credential, manifest, admission) = self.admit(id, request.credential.as_ref()).await?;
        check_max_cost(&self.runner.host.settings, &request.limits, credential.name.as_str())?;
        let (name, labels) = (request.volume_name.as_ref(), request.labels.as_ref());
        let row = self.lazy.row_of_restored(&manifest, name, labels, VolumeState::Restoring)?;
        blockd_api::check_volume_size(row.size_bytes).map_err(blockd_api::ApiError::from)?;
        self.registry.check_free(&row.name)?;
        Ok((credential, row, admission))
    }

    async fn admit_read_of(&self, id: &CloudSnapshotId) -> Result<MutexGuard<'_, ()>, ServiceError> {
        let admission = self.admission.lock().await;
        check_cancelled()?;
        self.tasks.refuse_if_deleting(id).await?;
        Ok(admission)
    }

    /// Reserves the name of a new volume; returns its entry, and the schedules that will select it.
    async fn reserve(
        &self,
        row: &VolumeRow,
        state: EntryState,
    ) -> Result<(Arc<VolumeEntry>, Vec<ScheduleSummary>), ServiceError> {
        blockd_api::check_volume_size(row.size_bytes).map_err(blockd_api::ApiError::from)?;
        let schedules = self.lazy.schedules_of(&row.labels).await?;
        let entry = VolumeEntry::new(row, state);
        self.registry.reserve(&entry)?;
        Ok((entry, schedules))
    }

    /// Starts a restore into a new volume.
    ///
    /// # Errors
    /// There is no such cloud snapshot, or the volume's name is taken.
    pub async fn start_restore(
        self: &Arc<Self>,
        request: &StartRestore,
    ) -> Result<RestoreStarted, ServiceError> {
        let (credential, row, _admission) = self.admit_new(request).await?;
        let (entry, schedules) = self.reserve(&row, EntryState::Restoring).await?;
        let spec = TaskSpec::Restore(RestoreTask::NewVolume { skip_damaged: request.skip_damaged });
        let id = request.cloud_snapshot_id;
        let mut task = TaskRow::new(spec, credential.uuid, id, crate::owner::current());
        task.volume = Some(row.id);
        task.detail.volume_name = Some(row.name.clone());
        task.detail.credential_name = credential.name.to_string();
        task.detail.limits = request.limits;
        let (volume_id, volume_name) = (row.id, row.name.clone());
        let started = self.runner.store_and_launch(task, move |tx| row.insert(tx)).await;
        match started {
            Ok(TaskStarted { task_id }) => Ok(RestoreStarted {
                task_id,
                volume_id,
                volume_name,
                previous_snapshot_id: None,
                previous_snapshot_name: None,
                schedules,
            }),
            Err(error) => {
                self.registry.remove(&entry);
                Err(error)
            }
        }
    }

    /// Creates a lazy volume backed by a cloud snapshot; it is durable and served on return.
    ///
    /// # Errors
    /// There is no such cloud snapshot, the volume's name is taken, or its files cannot be created.
    pub async fn start_lazy_restore(
        self: &Arc<Self>,
        request: &StartLazyRestore,
    ) -> Result<LazyRestored, ServiceError> {
        let id = request.cloud_snapshot_id;
        let credential =
            self.repositories.credential_with(&id, request.credential.as_ref(), Purpose::Read).await?;
        let (uuid, volume) = (credential.uuid, VolumeId::from_u64(random_id()?));
        // Before the manifest is read: another host that deletes it afterwards finds the lease.
        let leased = self.lazy.leases.take(uuid, id, volume).await;
        self.lazy.host.failpoints.reached("lease stored")?;
        let created = Box::pin(self.start_leased(request, credential, volume, leased)).await;
        if created.is_err() {
            self.lazy.leases.release(uuid, id, volume);
        }
        created
    }

    async fn start_leased(
        self: &Arc<Self>,
        request: &StartLazyRestore,
        credential: CredentialRow,
        volume: VolumeId,
        leased: Option<Timestamp>,
    ) -> Result<LazyRestored, ServiceError> {
        let id = request.cloud_snapshot_id;
        let (manifest, is_stored) = self.repositories.manifest_or_cached(credential.uuid, &id).await?;
        let _admission = self.admit_read_of(&id).await?;
        let (name, labels) = (request.volume_name.as_ref(), request.labels.as_ref());
        let row = self.lazy.row_of_restored(&manifest, name, labels, VolumeState::Creating)?;
        let row = VolumeRow { id: volume, ..row };
        let (entry, schedules) = self.reserve(&row, EntryState::Creating).await?;
        let lazy = LazyRow {
            volume: row.id,
            credential: credential.uuid,
            cloudsnap: id,
            hydrate: request.hydrate,
            on_store_loss: request.on_store_loss,
            // With a cached manifest, the maintenance checks that the cloud snapshot exists.
            leased: leased.filter(|_| is_stored),
        };
        match self.lazy.create_lazy_volume(row, lazy, manifest).await {
            Ok(volume) => entry.set_state(EntryState::Up(volume)),
            Err(error) => {
                self.registry.remove(&entry);
                return Err(error);
            }
        }
        tracing::info!(volume = %entry.id, name = %entry.name, cloudsnap = %id, "lazy volume created");
        // If the row of the task is not stored, the next start creates one.
        let task_id = match request.hydrate {
            true => Some(self.launch_hydration(&entry, lazy).await?),
            false => None,
        };
        Ok(LazyRestored { task_id, volume_id: entry.id, volume_name: entry.name.clone(), schedules })
    }

    /// Attaches a source to a clone of a lazy volume, and starts its hydration if its parent is to be
    /// hydrated.
    ///
    /// # Errors
    /// The database fails.
    pub async fn attach_lazy_clone(
        self: &Arc<Self>,
        entry: &VolumeEntry,
        row: LazyRow,
    ) -> Result<(), ServiceError> {
        let volume = entry.volume()?;
        if !volume.is_lazy() {
            // The parent was hydrated before the clone was attached.
            return Ok(self.db.run(move |tx| LazyRow::remove(tx, row.volume)).await?);
        }
        self.lazy.attach_source(&volume, row);
        if row.hydrate {
            self.launch_hydration(entry, row).await?;
        }
        Ok(())
    }

    /// Starts the hydration task of a lazy volume.
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
        let spec = TaskSpec::Restore(RestoreTask::LazyVolume);
        let mut row = TaskRow::new(spec, lazy.credential, lazy.cloudsnap, crate::owner::current());
        row.volume = Some(entry.id);
        row.detail.volume_name = Some(entry.name.clone());
        row.detail.credential_name = credential.map(|row| row.name.to_string()).unwrap_or_default();
        row.detail.bytes_total = entry.size_bytes();
        let (task, stored) = (row.id, row.clone());
        self.db.run(move |tx| stored.put(tx)).await?;
        self.runner.launch(row);
        Ok(task)
    }

    /// Starts the hydrations whose task failed, or was not stored because the daemon ended. Stopped ones wait
    /// for a resume by a user.
    ///
    /// # Errors
    /// The database fails.
    pub async fn resume_hydrations(self: &Arc<Self>) -> Result<(), ServiceError> {
        let _admission = self.admission.lock().await;
        let (tasks, kept) = (self.tasks.unfinished_tasks().await?, self.tasks.resumable_tasks().await?);
        for row in self.db.run(LazyRow::all).await?.into_iter().filter(|row| row.hydrate) {
            let is_its_task = |task: &TaskRow| task.volume == Some(row.volume) && task.spec.is_hydration();
            let has_task = tasks.iter().any(is_its_task);
            let is_stopped = kept.iter().any(|task| is_its_task(task) && task.state == TaskStage::Stopped);
            let Some(entry) = self.registry.by_id(row.volume).filter(|_| !has_task && !is_stopped) else {
                continue;
            };
            if entry.volume().is_ok_and(|volume| volume.is_lazy()) {
                // The new task replaces a failed one.
                self.runner.abandon_matching(is_its_task).await?;
                self.launch_hydration(&entry, row).await?;
            }
        }
        Ok(())
    }
}
