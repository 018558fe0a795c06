//! Volumes: creation, description, update and deletion.

pub mod attachments;
mod deletion;
pub mod discarded;
mod losses;
pub mod map_sync;
pub mod merger;
pub mod reconcile;
pub mod registry;
mod rename;
pub mod startup_check;

use crate::{
    error::{ServiceError, blocking},
    events::EventLog,
    health::ComponentHealth,
    host::{Admission, Host},
    ids::random_id,
    proofs,
    readers::SnapshotReaders,
    restore::{Restores, in_place::InPlaceWork, lazy::LazyVolumes},
    schedules::requests::Schedules,
    snapshots::Snapshots,
    tasks::{Tasks, runner::Runner},
    volumes::{
        attachments::Attachments,
        merger::Wake,
        registry::{EntryState, EntryView, Registry, Tags, VolumeEntry},
    },
};
use blockd_api::{
    ByteSize, ErrorCode, GroupName, Labels, List, RuleName, VolumeRef,
    anomalies::{ANOMALY_POLICY, AnomalyPolicy, LEARNING_DAYS},
    check_volume_size, cloudsnaps,
    lazy::InPlaceProgress,
    tasks::{TaskKind, TaskStage, ways_to_end},
    volumes::{self as api, CloneVolume, CreateVolume, LastBackup, ListVolumes, UpdateVolume, VolumeIo},
};
use blockd_catalog::{
    ActivityRow, CredentialRow, Db, DbError, LastProof, LazyRow, NewestBackup, RuleUses, ScrubRow,
    SnapshotRow, TaskRow, VolumeRow, VolumeState,
};
use blockd_extent::VolumeId;
use blockd_volume::{MergeStats, Volume, VolumeError};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};
use uuid::Uuid;

/// Volumes.
pub struct Volumes {
    pub(crate) admission: Arc<Admission>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) readers: Arc<dyn SnapshotReaders>,
    pub(crate) db: Arc<Db>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) in_place_work: Arc<InPlaceWork>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) merger: Arc<Wake>,
    pub(crate) registry: Arc<Registry>,
    /// Volumes whose discarded writes this process has reported.
    pub(crate) reported_losses: Mutex<HashSet<VolumeId>>,
    pub(crate) restores: Arc<Restores>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) schedules: Arc<Schedules>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) tasks: Arc<Tasks>,
}

impl Volumes {
    /// Creates a volume; it is durable and served on return.
    ///
    /// # Errors
    /// The name is taken, the size or a label is invalid, or the files cannot be created.
    pub async fn create_volume(&self, request: CreateVolume) -> Result<api::Volume, ServiceError> {
        check_volume_size(request.size_bytes).map_err(blockd_api::ApiError::from)?;
        AnomalyPolicy::check(&request.labels)?;
        let id = VolumeId::from_u64(random_id()?);
        let row = VolumeRow {
            labels: request.labels,
            group: request.group,
            ..VolumeRow::new(id, request.name, request.size_bytes)
        };
        let (size_bytes, dir) = (row.size_bytes, self.host.data_dir.volume_dir(id));
        let entry = self.add_volume(row, None, move || Volume::create(&dir, id, size_bytes)).await?;
        tracing::info!(volume = %entry.id, name = %entry.name, size_bytes = entry.size_bytes(), "volume created");
        self.describe(&entry).await
    }

    /// Creates a clone of a snapshot; it is durable and served on return.
    ///
    /// # Errors
    /// The name is taken, a label is invalid, there is no such snapshot, or the files cannot be shared or
    /// created.
    pub async fn clone_volume(
        self: &Arc<Self>,
        wanted: &VolumeRef,
        request: CloneVolume,
    ) -> Result<api::Volume, ServiceError> {
        AnomalyPolicy::check(&request.labels)?;
        let parent = self.registry.find(wanted)?;
        let snapshot = self.snapshots.snapshot_of(&parent, &request.snapshot).await?.id;
        let volume = parent.volume()?;
        let size_bytes =
            volume.snapshots().iter().find(|info| info.id == snapshot).map(|info| info.size_bytes);
        let size_bytes = size_bytes.unwrap_or_else(|| volume.size_bytes());
        let id = VolumeId::from_u64(random_id()?);
        let row = VolumeRow { labels: request.labels, ..VolumeRow::new(id, request.name, size_bytes) };
        let dir = self.host.data_dir.volume_dir(id);
        let rows = self.db.run(LazyRow::all).await?;
        let lazy = rows.into_iter().find(|lazy| lazy.volume == parent.id);
        let lazy = lazy.map(|lazy| LazyRow { volume: id, leased: None, ..lazy });
        let made = self.add_volume(row, lazy, move || volume.clone_to(snapshot, &dir, id)).await;
        // Merges of the parent were blocked during the clone.
        self.merger.wake();
        let entry = made?;
        if let Some(lazy) = lazy {
            self.restores.attach_lazy_clone(&entry, lazy).await?;
        }
        tracing::info!(volume = %entry.id, name = %entry.name, parent = %parent.id, %snapshot, "volume cloned");
        self.describe(&entry).await
    }

    /// Checks that a volume's directory matches its metadata.
    ///
    /// # Errors
    /// The volume is not open.
    pub async fn check_volume(&self, wanted: &VolumeRef) -> Result<api::VolumeCheck, ServiceError> {
        let entry = self.registry.find(wanted)?;
        let volume = entry.volume()?;
        let found = blocking(move || Ok::<_, VolumeError>(volume.check())).await?;
        // A merge may have yielded to the check.
        self.merger.wake();
        Ok(api::VolumeCheck {
            volume_name: entry.name.clone(),
            sound: found.findings.is_empty(),
            layers: found.layers,
            shared_layers: found.shared_layers,
            intervals: found.intervals,
            findings: found.findings,
        })
    }

    /// Adds a volume, perhaps a lazy one, whose files `make` creates. The name is reserved at once; the
    /// volume is usable when it is up.
    async fn add_volume(
        &self,
        row: VolumeRow,
        lazy: Option<LazyRow>,
        make: impl FnOnce() -> Result<Arc<Volume>, VolumeError> + Send + 'static,
    ) -> Result<Arc<VolumeEntry>, ServiceError> {
        let entry = VolumeEntry::new(&row, EntryState::Creating);
        self.registry.reserve(&entry)?;
        match self.make_volume(row, lazy, make).await {
            Ok(volume) => entry.set_state(EntryState::Up(volume)),
            Err(error) => {
                self.registry.remove(&entry);
                return Err(error);
            }
        }
        Ok(entry)
    }

    /// Creates a volume: row, then files, then the state of the row. A crash in between leaves a row that
    /// tells what to undo.
    async fn make_volume(
        &self,
        row: VolumeRow,
        lazy: Option<LazyRow>,
        make: impl FnOnce() -> Result<Arc<Volume>, VolumeError> + Send + 'static,
    ) -> Result<Arc<Volume>, ServiceError> {
        let id = row.id;
        self.db
            .run(move |tx| -> Result<(), DbError> {
                row.insert(tx)?;
                lazy.map_or(Ok(()), |lazy| lazy.insert(tx))
            })
            .await?;
        let volume = match blocking(make).await {
            Ok(volume) => volume,
            Err(error) => {
                self.lazy.undo_create(id, None).await;
                return Err(error);
            }
        };
        if let Err(error) = self.db.run(move |tx| VolumeRow::set_state(tx, id, VolumeState::Up)).await {
            self.lazy.undo_create(id, Some(volume)).await;
            return Err(error.into());
        }
        Ok(volume)
    }

    /// Lists the volumes with these labels and this group.
    ///
    /// # Errors
    /// The database fails.
    pub async fn list_volumes(&self, query: &ListVolumes) -> Result<List<api::Volume>, ServiceError> {
        let facts = self.facts(None).await?;
        let wanted = |entry: &Arc<VolumeEntry>| {
            let tags = entry.tags();
            query.label.as_ref().is_none_or(|label| tags.labels.matches(label))
                && (query.group.is_none() || query.group == tags.group)
        };
        let entries = self.registry.all().into_iter().filter(wanted);
        Ok(entries.map(|entry| self.to_api(&entry, &facts)).collect())
    }

    /// Returns a volume.
    ///
    /// # Errors
    /// There is no such volume.
    pub async fn inspect_volume(&self, wanted: &VolumeRef) -> Result<api::Volume, ServiceError> {
        let entry = self.registry.find(wanted)?;
        self.describe(&entry).await
    }

    async fn describe(&self, entry: &VolumeEntry) -> Result<api::Volume, ServiceError> {
        let facts = self.facts(Some(entry.id)).await?;
        Ok(self.to_api(entry, &facts))
    }

    async fn facts(&self, volume: Option<VolumeId>) -> Result<VolumeFacts, ServiceError> {
        let mut restores = Vec::new();
        let is_restoring = |entry: &Arc<VolumeEntry>| matches!(entry.view().state, EntryState::Restoring);
        if !self.in_place_work.fences.lock().is_empty() || self.registry.all().iter().any(is_restoring) {
            let tasks =
                self.tasks.unfinished_tasks().await?.into_iter().chain(self.tasks.resumable_tasks().await?);
            restores.extend(tasks.filter(|task| task.spec.kind() == TaskKind::Restore));
        }
        let (cluster, now) = (self.host.cluster, Timestamp::now());
        let volumes = match volume {
            Some(volume) => BTreeSet::from([volume]),
            None => self.registry.all().iter().map(|entry| entry.id).collect(),
        };
        let host = Arc::clone(&self.host);
        let facts = self.db.run(move |tx| -> Result<VolumeFacts, DbError> {
            let proofs = LastProof::of_content(tx, volume, now)?.into_iter();
            let scrubs = ScrubRow::all(tx)?.into_iter();
            Ok(VolumeFacts {
                restores,
                snapshots: SnapshotRow::all(tx, volume)?,
                backups: NewestBackup::all(tx, cluster, &volumes)?,
                credentials: CredentialRow::all(tx)?,
                lazy: LazyRow::all(tx)?,
                rules: RuleUses::all(tx)?.volumes,
                scrubs: scrubs.filter_map(|row| Some((row.volume, row.completed?))).collect(),
                observed: ActivityRow::starts_of_volumes(tx)?,
                proofs: proofs.map(|(of, last)| (of, proofs::shown(last, &host))).collect(),
            })
        });
        Ok(facts.await?)
    }

    fn to_api(&self, entry: &VolumeEntry, facts: &VolumeFacts) -> api::Volume {
        // Before the view, which has the cause if the volume cannot be opened.
        let content = entry.content();
        let (view, tags) = (entry.view(), entry.tags());
        let hydration = view.volume().and_then(|volume| self.lazy.hydration(volume, &facts.lazy));
        let stats = content.map(|content| content.stats);
        let policy = AnomalyPolicy::of(&tags.labels, self.host.settings.anomaly_policy);
        let (state, mut state_reason) = state_of(&view);
        if state == api::VolumeState::Restoring {
            state_reason = facts.stopped_restore_of(entry.id);
        }
        let shown = |row: &&SnapshotRow| row.volume == entry.id && !row.internal;
        let snapshots = facts.snapshots.iter().filter(shown);
        let (snapshot_count, last_snapshot_at) =
            (snapshots.clone().count() as u64, snapshots.map(|row| row.created).max());
        api::Volume {
            volume_id: entry.id,
            name: entry.name.clone(),
            size_bytes: entry.size_bytes(),
            read_only: entry.is_read_only(),
            labels: tags.labels,
            group: tags.group,
            rule_name: facts.rules.get(&entry.id).cloned(),
            created_at: entry.created,
            state,
            state_reason,
            discarded_writes: view.volume().and_then(|volume| crate::volumes::discarded::shown(volume)),
            uri: blockd_api::nbd_unix_uri(entry.name.as_str(), &self.host.data_dir.nbd_socket()),
            damaged_bytes: content.map_or(0, |content| content.damaged_bytes),
            last_scrub_at: facts.scrubs.get(&entry.id).copied(),
            anomaly_policy: policy,
            anomaly_learning_day: (policy != AnomalyPolicy::Off)
                .then(|| facts.learning_day(entry.id))
                .flatten(),
            connections: view.connections,
            attachment: self.attachments.describe(entry.id),
            dirty_bytes: stats.as_ref().map_or(0, |stats| stats.head_dirty_bytes),
            shared_bytes: stats.as_ref().map_or(0, |stats| stats.shared_bytes),
            allocated_bytes: stats.as_ref().map_or(0, |stats| stats.allocated_bytes),
            snapshot_count,
            last_snapshot_at,
            layers: stats.as_ref().map_or(0, |stats| stats.layers),
            merge: stats.as_ref().map(|stats| stats.merge).filter(|merge| merge.layers > 0).map(|merge| {
                let MergeStats { layers, done_bytes, total_bytes, .. } = merge;
                api::MergeProgress { layers, done_bytes, total_bytes }
            }),
            rollback: stats.as_ref().filter(|stats| stats.rollback_total_bytes > 0).map(|stats| {
                let (done_bytes, total_bytes) = (stats.rollback_done_bytes, stats.rollback_total_bytes);
                api::RollbackProgress { done_bytes, total_bytes }
            }),
            in_place_restore: facts.in_place_restore_of(entry.id),
            hydration,
            io: stats.as_ref().map_or_else(VolumeIo::default, |stats| VolumeIo {
                reads: stats.reads,
                writes: stats.writes,
                read_bytes: stats.bytes_read,
                written_bytes: stats.bytes_written,
                flushes: stats.flushes,
            }),
            last_backups: facts.last_backups_of(entry.id),
        }
    }

    /// Applies the requested changes, name and size first: a growth is durable on return.
    ///
    /// # Errors
    /// There is nothing to change, a label is invalid, the volume is unusable or cannot be renamed, the size
    /// is smaller than the current one, or the disk fails.
    pub async fn update_volume(
        self: &Arc<Self>,
        wanted: &VolumeRef,
        request: UpdateVolume,
    ) -> Result<api::Volume, ServiceError> {
        if request == UpdateVolume::default() {
            let message = "no change requested: give name, sizeBytes, readOnly, labels, group or acknowledgeDiscardedWrites";
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        }
        if let Some(labels) = &request.labels {
            let present = self.registry.find(wanted)?.tags().labels;
            // A restored volume may keep an invalid one.
            if labels.as_map().get(ANOMALY_POLICY) != present.as_map().get(ANOMALY_POLICY) {
                AnomalyPolicy::check(labels)?;
            }
        }
        let entry = match request.name {
            Some(name) => self.rename_volume(wanted, name).await?,
            None => self.registry.find(wanted)?,
        };
        if let Some(size_bytes) = request.size_bytes {
            self.grow_volume(&entry, size_bytes).await?;
        }
        if request.acknowledge_discarded_writes {
            let volume = entry.volume()?;
            let (this, entry) = (Arc::clone(self), Arc::clone(&entry));
            blocking(move || this.acknowledge_discarded_writes(&entry, &volume)).await?;
        }
        if let Some(read_only) = request.read_only {
            let id = entry.id;
            self.db.run(move |tx| VolumeRow::set_read_only(tx, id, read_only)).await?;
            entry.set_read_only(read_only);
            tracing::info!(volume = %entry.id, name = %entry.name, read_only, "volume updated");
        }
        if request.labels.is_some() || request.group.is_some() {
            self.update_tags(&entry, request.labels, request.group).await?;
        }
        self.describe(&entry).await
    }

    async fn update_tags(
        &self,
        entry: &VolumeEntry,
        labels: Option<Labels>,
        group: Option<Option<GroupName>>,
    ) -> Result<(), ServiceError> {
        let admission = self.admission.lock().await;
        let changed =
            |tags: Tags| Tags { labels: labels.unwrap_or(tags.labels), group: group.unwrap_or(tags.group) };
        entry.change_tags(&self.db, &admission, changed).await?;
        tracing::info!(volume = %entry.id, name = %entry.name, "labels and group updated");
        Ok(())
    }

    /// Grows a volume, then its row: if the daemon dies in between, the next start updates the row.
    async fn grow_volume(&self, entry: &Arc<VolumeEntry>, size_bytes: u64) -> Result<(), ServiceError> {
        check_volume_size(size_bytes).map_err(blockd_api::ApiError::from)?;
        let volume = entry.volume()?;
        let present = volume.size_bytes();
        if size_bytes < present {
            let message = format!(
                "volume {} has {} and cannot shrink to {}: a volume only grows",
                entry.name,
                ByteSize::from_bytes(present),
                ByteSize::from_bytes(size_bytes)
            );
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        }
        if size_bytes == present {
            // The size is announced again, so that a repeated request reaches clients that missed it.
            self.registry.announce_size(entry);
            return Ok(());
        }
        let grown = blocking(move || volume.grow(size_bytes)).await;
        // Also after a failure, which may follow the commit.
        let (id, now) = (entry.id, entry.size_bytes());
        if now > present {
            // The volume has that size regardless of its row.
            self.registry.announce_size(entry);
            // The previous head is a layer without a snapshot now.
            self.merger.wake();
            self.db.run(move |tx| VolumeRow::grow(tx, id, now)).await?;
            tracing::info!(volume = %entry.id, name = %entry.name, size_bytes = now, "volume grown");
        }
        grown
    }
}

/// Facts about volumes, read in one transaction.
struct VolumeFacts {
    /// Tasks of restores that run or can be resumed, if they are needed.
    restores: Vec<TaskRow>,
    snapshots: Vec<SnapshotRow>,
    backups: Vec<NewestBackup>,
    credentials: Vec<CredentialRow>,
    lazy: Vec<LazyRow>,
    rules: BTreeMap<VolumeId, RuleName>,
    /// Ends of the last complete scrubs.
    scrubs: BTreeMap<VolumeId, Timestamp>,
    /// Starts of the histories that the activity is compared with.
    observed: BTreeMap<VolumeId, Timestamp>,
    /// Last proofs that read a backup and found it sound.
    proofs: BTreeMap<(Uuid, VolumeId), cloudsnaps::LastProof>,
}

impl VolumeFacts {
    /// Returns the day of the learning period of anomalies; `None` after its end.
    fn learning_day(&self, volume: VolumeId) -> Option<u64> {
        let Some(first) = self.observed.get(&volume) else { return Some(0) };
        let days = Timestamp::now().duration_since(*first).as_hours().unsigned_abs() / 24;
        (days < LEARNING_DAYS).then_some(days + 1)
    }

    /// Returns the newest backup of a volume in each repository.
    fn last_backups_of(&self, volume: VolumeId) -> Vec<LastBackup> {
        let newest = self.backups.iter().filter(|backup| backup.volume == volume).map(|backup| LastBackup {
            credential_id: backup.credential,
            credential_name: self.credential_name(backup.credential),
            cloud_snapshot_id: backup.cloudsnap.to_string(),
            created_at: backup.created,
            incrementals_since_full: backup.incrementals,
            last_proof: self.proofs.get(&(backup.credential, volume)).cloned(),
        });
        newest.collect()
    }

    /// Returns the in-place restore of a volume, if there is one.
    fn in_place_restore_of(&self, volume: VolumeId) -> Option<InPlaceProgress> {
        let is_it = |task: &&TaskRow| task.volume == Some(volume) && task.spec.is_in_place();
        let task = self.restores.iter().find(is_it)?;
        Some(InPlaceProgress {
            task_id: task.id,
            cloud_snapshot_id: task.cloudsnap.to_string(),
            done_bytes: task.detail.bytes_processed,
            total_bytes: task.detail.bytes_total,
            is_partial: matches!(task.state, TaskStage::Failed | TaskStage::Stopped),
        })
    }

    /// Describes the ended restore of a new volume that is not complete, if there is one.
    fn stopped_restore_of(&self, volume: VolumeId) -> Option<String> {
        let is_it = |task: &&TaskRow| task.volume == Some(volume) && task.state.is_over();
        let task = self.restores.iter().find(is_it)?;
        Some(format!("{}: {}", task.state.as_str(), ways_to_end(task.id)))
    }

    fn credential_name(&self, uuid: Uuid) -> String {
        let found = self.credentials.iter().find(|row| row.uuid == uuid);
        found.map_or_else(|| uuid.to_string(), |row| row.name.to_string())
    }
}

/// Returns the state of a volume for the API, and its cause.
fn state_of(view: &EntryView) -> (api::VolumeState, Option<String>) {
    let reason = match &view.state {
        EntryState::Restoring => return (api::VolumeState::Restoring, None),
        EntryState::Creating => Some("it is being created"),
        EntryState::Deleting => Some("it is being deleted"),
        EntryState::Stopping => Some("the daemon is stopping"),
        EntryState::Up(_) | EntryState::Closed(_) | EntryState::Failed(_) => view.failure(),
    };
    let state = if reason.is_some() { api::VolumeState::Failed } else { api::VolumeState::Up };
    (state, reason.map(str::to_owned))
}
