//! Requests: verification of cloud snapshots, and garbage collection of abandoned backups.

use crate::{
    costs::{self, budget, check_max_cost, prices_of},
    error::{ServiceError, blocking},
    ids::random_id,
    maintenance::{
        Attempts, Due, Maintenance,
        plan::{SnapshotChain, chains},
    },
    repositories::locate::Purpose,
};
use blockd_api::{
    ApiError, ErrorCode,
    cloudsnaps::{CollectGarbage, GarbageCollected, Leftover, StartVerify, VerifyDepth},
    costs::CostEstimate,
    tasks::{TaskKind, TaskStarted},
};
use blockd_catalog::{
    CredentialRow, DbManifestCache, KnownProofs, LastProof, LazyRow, TaskRow, TaskSpec, VerifyTask,
};
use blockd_cloud::{
    BACKUP_LIFETIME_S, CLOCK_CHECK, CloudSnapshotId, GarbageOptions, GarbageReport, MAX_CLOCK_SKEW_S,
    MAX_PROOF_AHEAD, ManifestFilter, Repository, collect_garbage,
};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_schedule::{Turn, VerifyChain, next_chain};
use blockd_store::RequestCounts;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use std::{collections::BTreeSet, sync::Arc};

/// Placeholder id in the task row of a verification of all cloud snapshots.
const ALL: u64 = 1;

fn depth(asked: VerifyDepth) -> blockd_cloud::VerifyDepth {
    match asked {
        VerifyDepth::Quick => blockd_cloud::VerifyDepth::Quick,
        VerifyDepth::Full => blockd_cloud::VerifyDepth::Full,
        VerifyDepth::Deep => blockd_cloud::VerifyDepth::Deep,
    }
}

/// Replaces the hint of a collection that ends at its budget: it is no task that is resumed.
fn with_repetition(error: ServiceError) -> ServiceError {
    match error.to_api() {
        api if api.code == ErrorCode::BudgetExhausted => {
            let hint = "a repeated collection with a higher limit continues";
            ServiceError::Refused(ApiError { hint: Some(hint.to_owned()), ..api })
        }
        _ => error,
    }
}

fn leftover(found: &blockd_cloud::Leftover) -> Leftover {
    let age = SignedDuration::from_secs(BACKUP_LIFETIME_S + MAX_CLOCK_SKEW_S);
    Leftover {
        cloud_snapshot_id: format!("{}/{}-{}", found.cluster, found.volume, found.snapshot),
        objects: found.objects,
        len_bytes: found.len_bytes,
        first_object_at: found.since,
        deletable_at: found.since.and_then(|since| since.checked_add(age).ok()),
    }
}

impl Maintenance {
    /// Starts a verification.
    ///
    /// # Errors
    /// There is no such credential or cloud snapshot.
    pub async fn start_verify(self: &Arc<Self>, request: &StartVerify) -> Result<TaskStarted, ServiceError> {
        let snap = request.cloud_snapshot_id;
        let credential = match &snap {
            Some(id) => {
                self.repositories.credential_with(id, request.credential.as_ref(), Purpose::Read).await?
            }
            None => self.repositories.credential(request.credential.as_ref()).await?,
        };
        if let Some(id) = &snap {
            match self.repositories.preflight_manifest(credential.uuid, id).await {
                // The verification reports damage.
                Err(ServiceError::Cloud(error))
                    if matches!(*error, blockd_cloud::CloudError::Damaged { .. }) => {}
                answer => drop(answer?),
            }
        }
        let what = VerifyTask { depth: depth(request.depth), all: snap.is_none(), background: false };
        self.begin_verify(&credential, snap, what).await
    }

    /// Starts a verification of one cloud snapshot, or of all of a credential.
    pub async fn begin_verify(
        self: &Arc<Self>,
        credential: &CredentialRow,
        snap: Option<CloudSnapshotId>,
        verify: VerifyTask,
    ) -> Result<TaskStarted, ServiceError> {
        let _admission = self.admission.lock().await;
        crate::repositories::preflight::check_cancelled()?;
        let all = CloudSnapshotId {
            cluster: self.host.cluster,
            volume: VolumeId::from_u64(ALL),
            snapshot: SnapshotId::from_u64(ALL),
            incremental: false,
        };
        let cloudsnap = snap.unwrap_or(all);
        // A deep verification compares with a snapshot of the volume.
        let is_deep = verify.depth == blockd_cloud::VerifyDepth::Deep && !verify.background && !verify.all;
        let source = (cloudsnap.cluster == self.host.cluster && is_deep)
            .then(|| self.registry.by_id(cloudsnap.volume))
            .flatten();
        let snapshot = match &source {
            Some(_) => Some(SnapshotId::from_u64(random_id()?)),
            None => None,
        };
        let mut row =
            TaskRow::new(TaskSpec::Verify(verify), credential.uuid, cloudsnap, crate::owner::current());
        (row.volume, row.snapshot) = (source.map(|entry| entry.id), snapshot);
        row.detail.volume_name = self.registry.source_name(&cloudsnap, self.host.cluster);
        row.detail.credential_name = credential.name.to_string();
        self.runner.store_and_launch(row, |_| Ok(())).await
    }

    /// Deletes the garbage of abandoned backups from a store, or reports it in a dry run.
    ///
    /// # Errors
    /// There is no such credential, or a store request failed.
    pub async fn collect_garbage(
        self: &Arc<Self>,
        request: &CollectGarbage,
    ) -> Result<GarbageCollected, ServiceError> {
        self.collect_garbage_at(request, Timestamp::now).await
    }

    /// [`collect_garbage`](Self::collect_garbage) with a clock for the ages of objects.
    ///
    /// # Errors
    /// Those of [`collect_garbage`](Self::collect_garbage).
    pub async fn collect_garbage_at(
        self: &Arc<Self>,
        request: &CollectGarbage,
        now: fn() -> Timestamp,
    ) -> Result<GarbageCollected, ServiceError> {
        let credential = self.repositories.credential(request.credential.as_ref()).await?;
        let settings = &self.host.settings;
        check_max_cost(settings, &request.limits, credential.name.as_str())?;
        if request.limits.has_bandwidth() {
            let message = "a garbage collection has no bandwidth limits";
            return Err(ServiceError::refused(ErrorCode::InvalidRequest, message));
        }
        let collection = async {
            // Without bandwidth limits: waiting for one would pass for a silent store.
            let (repository, requests) =
                self.repositories.counted_repository(credential.uuid, request.dry_run).await?;
            if !request.dry_run {
                let prices = prices_of(settings, credential.name.as_str()).cloned();
                let limits = Arc::new(Mutex::new(request.limits));
                requests.set_budget(RequestCounts::default(), budget(limits, prices));
            }
            let preflight = repository.clone();
            let report =
                self.collect_garbage_in(&repository, &preflight, &credential, request.dry_run, now).await?;
            Ok((report, requests.snapshot()))
        };
        let collected = self.repositories.while_store_answers(&credential, Box::pin(collection)).await;
        let (report, requests) = collected.map_err(with_repetition)?;
        let (requests, basis) = match request.dry_run {
            true => (requests.plus(CLOCK_CHECK), "from the listings of the store"),
            false => (requests, "requests that were made"),
        };
        let costs = costs::estimate(settings, &credential, None, &requests, basis);
        let freed_bytes = report.garbage.iter().map(|leftover| leftover.len_bytes).sum();
        let unknown = report.unknown.iter();
        Ok(GarbageCollected {
            credential_id: credential.uuid,
            credential_name: credential.name.to_string(),
            dry_run: request.dry_run,
            garbage: report.garbage.iter().map(leftover).collect(),
            in_grace_period: report.young.iter().map(leftover).collect(),
            unreadable_manifests: unknown.map(|(_, volume, why)| format!("volume {volume}: {why}")).collect(),
            unfinished_uploads: report.unfinished,
            leases: report.leases,
            objects_deleted: report.objects_deleted,
            costs: CostEstimate { added_bytes: 0, freed_bytes, ..costs }
                .priced(prices_of(settings, credential.name.as_str())),
        })
    }

    /// Removes or counts the garbage of a repository, within the bandwidth limits of tasks.
    ///
    /// # Errors
    /// The store is not the one that was opened, or the store or the database fails before the end of the
    /// collection.
    pub async fn collect_garbage_of(
        self: &Arc<Self>,
        credential: &CredentialRow,
        dry_run: bool,
        now: impl Fn() -> Timestamp,
    ) -> Result<GarbageReport, ServiceError> {
        // Pre-flight requests do not wait for bandwidth limits.
        let (preflight, _) = self.repositories.counted_repository(credential.uuid, dry_run).await?;
        let repository = match dry_run {
            true => preflight.clone(),
            false => self.repositories.task_repository(credential.uuid).await?.0,
        };
        self.collect_garbage_in(&repository, &preflight, credential, dry_run, now).await
    }

    async fn collect_garbage_in(
        &self,
        repository: &Repository,
        preflight: &Repository,
        credential: &CredentialRow,
        dry_run: bool,
        now: impl Fn() -> Timestamp,
    ) -> Result<GarbageReport, ServiceError> {
        // The mount point of an unmounted disk is empty: without this proof, nothing in it would be
        // referenced.
        let proof = Box::pin(async { Ok(preflight.prove_key_slot().await?) });
        self.repositories.preflight(credential.uuid, proof).await?;
        if !dry_run {
            self.checks.check_store_clock(preflight, credential.uuid).await?;
        }
        let catalog = DbManifestCache::new(Arc::clone(&self.db), credential.uuid);
        let mut protected = BTreeSet::new();
        let tasks =
            self.tasks.unfinished_tasks().await?.into_iter().chain(self.tasks.resumable_tasks().await?);
        for task in tasks.filter(|task| task.kind() == TaskKind::Backup) {
            protected.insert(task.cloudsnap.snapshot);
        }
        let cached = catalog.clone();
        protected.extend(blocking(move || Ok::<_, ServiceError>(cached.deltas()?)).await?);
        let known = self.repositories.known_before(credential.uuid, &ManifestFilter::default()).await?;
        let listed_at = Timestamp::now();
        let lazy = self.db.run(LazyRow::all).await?;
        let backing = lazy.into_iter().map(|row| row.cloudsnap).collect();
        let host = self.host.cluster;
        let options = GarbageOptions { now: now(), protected, host, backing };
        let mut report = Box::pin(collect_garbage(repository, &options, &catalog)).await?;
        if dry_run {
            report.objects_deleted = 0;
        }
        let uuid = credential.uuid;
        let noted = async {
            let listed = &report.manifests;
            self.repositories.forget_deleted_backups(uuid, repository, known, listed, dry_run).await?;
            if !dry_run {
                self.db.run(move |tx| DbManifestCache::set_listed(tx, uuid, listed_at)).await?;
            }
            Ok::<_, ServiceError>(())
        };
        if let Err(error) = noted.await {
            // The collection is done; the next listing notes the same.
            tracing::warn!(credential = %credential.name, %error, "noting the listed cloud snapshots failed");
        }
        if report.objects_deleted > 0 {
            tracing::info!(
                credential = %credential.name,
                objects = report.objects_deleted,
                leftovers = report.garbage.len(),
                "garbage of abandoned backups deleted"
            );
        }
        Ok(report)
    }

    /// Returns the chain that is to be verified next, and the turn after it; `None` if all were proved or
    /// tried after `due.before`.
    ///
    /// # Errors
    /// The store or the database fails.
    pub async fn next_to_verify(
        &self,
        credential: &CredentialRow,
        due: &Due,
        attempts: &Attempts,
    ) -> Result<Option<(SnapshotChain, Turn)>, ServiceError> {
        let (repository, _) = self.repositories.task_repository(credential.uuid).await?;
        let catalog = DbManifestCache::new(Arc::clone(&self.db), credential.uuid);
        let scope = ManifestFilter::default();
        let listed = Box::pin(repository.list_manifests(&scope, &catalog)).await?;
        let (uuid, now) = (credential.uuid, Timestamp::now());
        let known = self.db.run(move |tx| KnownProofs::of_location(tx, uuid, now)).await?;
        let (mut manifests, mut all) = (Vec::new(), Vec::new());
        for one in listed {
            match (one.manifest, one.id) {
                (Ok(manifest), Some(_)) => manifests.push(manifest),
                // Its verification reports the damage.
                (Err(_), Some(id)) => all.push(SnapshotChain::unreadable(id)),
                (_, None) => {}
            }
        }
        all.extend(chains(&manifests));
        let read = |chain: &SnapshotChain| {
            let last = chain.ids.iter().map(|id| last_read(&known, id, now)).min().flatten();
            last.max(attempts.get(&(uuid, chain.newest)).copied())
        };
        let costs: Vec<_> =
            all.iter().map(|chain| VerifyChain { read: read(chain), ..chain.costs }).collect();
        let next = next_chain(&costs, due.turn, due.before, due.overdue);
        Ok(next.map(|(at, turn)| (all.swap_remove(at), turn)))
    }
}

/// Returns the time of the last verification that read a cloud snapshot. Damage that another host found, and
/// a result from the future, need a verification by this host.
fn last_read(known: &KnownProofs, id: &CloudSnapshotId, now: Timestamp) -> Option<Timestamp> {
    let read = match known.damage_of_others(id) {
        Some(_) => known.own(id).map(LastProof::from),
        None => known.last(id),
    };
    let reads = |last: &LastProof| last.kind > blockd_cloud::VerifyDepth::Quick;
    read.filter(reads).map(|last| last.proven).filter(|proven| *proven <= now + MAX_PROOF_AHEAD)
}
