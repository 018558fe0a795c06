//! Task of a restore drill.

use super::{
    clone_server::CloneHost,
    image::DrillImage,
    layout::{self, Reference},
    probe_step::skip_without,
    steps::{Examined, Steps},
    unresolved,
};
use crate::{
    cloud_snapshots::is_not_found,
    error::{ServiceError, blocking},
    fingerprints,
    health::ComponentHealth,
    host::Host,
    proofs::Proofs,
    repositories::{Repositories, limits::limited},
    tasks::{LiveTask, Tasks, secrets},
    volumes::{attachments::Attachments, registry::Registry},
};
use blockd_api::{
    ApiError, ErrorCode,
    events::{EventKind, Severity},
};
use blockd_catalog::{Db, DbError, DrillRow, DrillTask, KnownProofs, NewEvent, ProofRow, TaskRow};
use blockd_cloud::{
    CacheOptions, CloudError, CloudSnapshotId, DrillOutcome, DrillReport, DrillStage, Manifest, Progress,
    Repository, SnapshotCache, VerifyDepth,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet};
use blockd_store::{Bandwidth, RequestCounts, Requests, StoreError, StoreErrorKind};
use jiff::Timestamp;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Memory of decrypted frames, in bytes.
const MEMORY_BYTES: u64 = 32 << 20;
/// Maximum readahead, in bytes: a drill reads small parts.
const READAHEAD_BYTES: u64 = 1 << 20;
/// Limits of the bytes of the sampled files: a share of the data, between these numbers.
const SAMPLE_SHARE: u64 = 20;
const MIN_SAMPLE_BYTES: u64 = 1 << 20;
const MAX_SAMPLE_BYTES: u64 = 256 << 20;

/// Work of restore drills.
pub struct DrillWork {
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) db: Arc<Db>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) tasks: Arc<Tasks>,
    /// Held by the running drill.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

/// Runs a drill. Its error is the result of a failed one; a drill without a result, such as of an unreachable
/// store or a missing key, makes no proof.
pub(crate) async fn run(
    work: Arc<DrillWork>,
    live: Arc<LiveTask>,
    asked: DrillTask,
) -> Result<TaskRow, ServiceError> {
    let (work, live) = (&work, &live);
    let _turn = tokio::select! {
        turn = work.turn.lock() => turn,
        () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
    };
    let clone_host = CloneHost::new(&work.host, &work.attachments);
    let left = clone_host.clone();
    blocking(move || left.discard()).await?;
    let (tasks, of) = (Arc::clone(&work.tasks), Arc::clone(live));
    let opening = async move { secrets::repository(&tasks, &of).await };
    let (repository, requests) = work.repositories.task_workers.in_foreground(opening).await??;
    let mut repository = live.limited(&repository, &requests);
    let requests_per_s = work.host.settings.drill_limit_requests_per_s;
    if requests_per_s > 0 {
        repository = limited(&repository, Arc::new(Bandwidth::of_requests(requests_per_s)));
    }
    live.begin(Arc::new(Progress::new(Arc::clone(&requests))));
    work.tasks.store_progress(live).await;
    let refused = |limit| exhausted(live, limit);
    let publication = requests.reserve(publication_of(&asked), None).map_err(refused)?;
    // Before the first read, as the result is about no other location.
    let location = work.repositories.location_now(live.view().credential).await;
    let (manifest, opened) = tokio::select! {
        opened = Opened::open(work, live, &repository, asked.timeout_s) => opened?,
        () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
    };
    let id = live.view().cloudsnap;
    let (examined, opened) = match opened {
        Ok(opened) => (opened.examine(work, &id, &asked).await?, Some(opened)),
        Err(unreadable) => (unreadable, None),
    };
    let row = DrillRow {
        id: live.id,
        credential: live.view().credential,
        cloudsnap: id,
        volume_name: manifest.description.volume_name,
        host: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ended: Timestamp::now(),
        passed: false,
        report: DrillReport { seed: asked.seed, ..examined.report },
        location,
    };
    let mut drills = vec![Drilled { row, damage: examined.damage }];
    let is_complete = match (&asked.probe, &opened) {
        (Some(name), Some(opened)) => {
            opened.probe(work, live, &repository, &asked, name, &mut drills).await?
        }
        _ => true,
    };
    count(&mut drills[0].row.report, &requests);
    let (now, mut deleted) = (Timestamp::now(), Vec::new());
    for Drilled { row, .. } in &mut drills {
        (row.ended, row.passed) = (now, row.report.is_passed());
        if row.passed || !is_deleted(work, row, &repository).await? {
            continue;
        }
        if row.id == live.id {
            let message = format!("cloud snapshot {id} was deleted during the drill");
            return Err(ServiceError::refused(ErrorCode::CloudsnapNotFound, message));
        }
        deleted.push(row.cloudsnap);
    }
    skip_without(&mut drills, &deleted);
    for Drilled { row, .. } in &drills {
        tracing::info!(cloudsnap = %row.cloudsnap, passed = row.passed, "restore drill has a result");
    }
    publication.begin_closing(publication_of(&asked), None).map_err(refused)?;
    record(work, live, &repository, drills, is_complete).await
}

/// Adds the next action after a budget that is exhausted: a drill cannot be resumed.
pub(crate) fn with_hint(error: ServiceError) -> ServiceError {
    match error.to_api() {
        api if api.code == ErrorCode::BudgetExhausted => ServiceError::Refused(
            api.with_hint("repeat the drill with a higher --max-requests, --max-egress or --max-cost"),
        ),
        _ => error,
    }
}

fn count(report: &mut DrillReport, requests: &Requests) {
    let counts = requests.snapshot();
    (report.fetched_bytes, report.requests) = (counts.bytes_down, counts.total());
}

/// Drill with its result.
#[derive(Clone)]
pub(super) struct Drilled {
    pub row: DrillRow,
    /// Unreadable blocks, if an object is damaged; empty if all are.
    pub damage: Option<BlockSet>,
}

impl Drilled {
    fn damage(&self) -> Option<ProofRow> {
        let damaged = self.damage.clone()?;
        Some(ProofRow {
            credential: self.row.credential,
            cloudsnap: self.row.cloudsnap,
            verified: self.row.ended,
            // Only a verification that reads all frames ends it.
            depth: VerifyDepth::Full,
            sound: false,
            damaged,
            digest: None,
            version: self.row.version.clone(),
            location: self.row.location,
        })
    }
}

/// Opened cloud snapshot.
pub(super) struct Opened {
    started: Instant,
    pub deadline: Instant,
    data_bytes: u64,
    pub cache: SnapshotCache,
    pub image: Arc<DrillImage>,
    report: DrillReport,
}

impl Opened {
    /// Opens the manifest and the indexes, without those that this host knows: a host that recovers knows
    /// none. All reads use the runtime of the caller.
    async fn open(
        work: &DrillWork,
        live: &LiveTask,
        repository: &Repository,
        timeout_s: u32,
    ) -> Result<(Manifest, Result<Self, Examined>), ServiceError> {
        let row = live.view();
        let started = Instant::now();
        let manifest = Box::pin(repository.manifest(&row.cloudsnap)).await?;
        let options = CacheOptions {
            memory_bytes: MEMORY_BYTES,
            readahead_bytes: READAHEAD_BYTES,
            stall_timeout: Duration::from_millis(work.host.settings.browse.stall_timeout_ms),
            ..CacheOptions::default()
        };
        let cache = SnapshotCache::open(options)?;
        let reader = Box::pin(cache.snapshot(repository, &manifest)).await;
        let mut report = DrillReport::new(manifest.description.created, 0);
        let outcome = if reader.is_ok() { DrillOutcome::Passed } else { DrillOutcome::Failed };
        report.end(DrillStage::Open, outcome, started.elapsed(), "");
        let reader = match reader {
            Ok(reader) => reader,
            Err(error @ CloudError::Damaged { .. }) => {
                fingerprints::forget_unreadable(&work.host.data_dir, &error);
                report.find(&error.to_string());
                return Ok((manifest, Err(Examined { report, damage: Some(BlockSet::new()) })));
            }
            Err(error) => return Err(error.into()),
        };
        let blocks: u64 = manifest.deltas().map(|delta| delta.data_blocks).sum();
        let data_bytes = blocks.saturating_mul(BLOCK_SIZE_BYTES);
        work.host.failpoints.reached("drill opened")?;
        let deadline = started + Duration::from_secs(timeout_s.into());
        let image = Arc::new(DrillImage::new(reader, live.cancel.clone(), deadline));
        Ok((manifest, Ok(Self { started, deadline, data_bytes, cache, image, report })))
    }

    /// Makes the steps to the sample of files.
    async fn examine(
        &self,
        work: &Arc<DrillWork>,
        of: &CloudSnapshotId,
        asked: &DrillTask,
    ) -> Result<Examined, ServiceError> {
        let host = Arc::clone(&work.host);
        let (of, created) = (*of, self.report.created);
        let reference = work.db.run(move |tx| DrillRow::layout_reference(tx, &of, created)).await?;
        let steps = Steps {
            image: Arc::clone(&self.image),
            started: self.started,
            report: DrillReport { seed: asked.seed, ..self.report.clone() },
            files: asked.files,
            reference: reference.map(Reference::of),
            accept_layout: asked.accept_layout,
            clone_host: CloneHost::new(&work.host, &work.attachments),
            files_bytes: (self.data_bytes / SAMPLE_SHARE).clamp(MIN_SAMPLE_BYTES, MAX_SAMPLE_BYTES),
            before: move |stage| match stage {
                DrillStage::FirstByte => host.failpoints.reached("drill first byte"),
                DrillStage::Layout => host.failpoints.reached("drill layout"),
                DrillStage::Mount => host.failpoints.reached("drill mount"),
                DrillStage::Check => host.failpoints.reached("drill check"),
                DrillStage::Files => host.failpoints.reached("drill files"),
                DrillStage::Open | DrillStage::Probe => Ok(()),
            },
        };
        let examined = blocking(|| steps.run()).await;
        if let Some(failure) = self.image.failure() {
            failure.forget_damaged(&work.host.data_dir);
        }
        examined
    }
}

/// Returns the requests that publish the results of a drill. They are reserved: a drill at its budget has no
/// result.
fn publication_of(asked: &DrillTask) -> RequestCounts {
    let drills = 1 + asked.others.len() as u64;
    RequestCounts { put: drills, list: drills, ..RequestCounts::default() }
}

fn exhausted(live: &LiveTask, limit: String) -> StoreError {
    let row = live.view();
    let (key, store) = (row.cloudsnap.to_string(), row.detail.credential_name);
    StoreError::new(StoreErrorKind::BudgetExhausted, "PUT", &key, &store).with_detail(limit)
}

/// Returns true if the objects of a failed drill are missing because its cloud snapshot was deleted.
async fn is_deleted(work: &DrillWork, row: &DrillRow, repository: &Repository) -> Result<bool, ServiceError> {
    match repository.manifest(&row.cloudsnap).await.map_err(ServiceError::from) {
        Err(error) if is_not_found(&error) => {
            // The mount point of an unmounted disk is empty, too.
            work.repositories.prove_location(row.credential, repository).await?;
            Ok(true)
        }
        Err(ServiceError::Cloud(error)) if matches!(*error, CloudError::Damaged { .. }) => Ok(false),
        found => found.map(|_| false),
    }
}

/// Stores and publishes the results, and ends the task of the first one.
async fn record(
    work: &DrillWork,
    live: &LiveTask,
    repository: &Repository,
    drills: Vec<Drilled>,
    is_complete: bool,
) -> Result<TaskRow, ServiceError> {
    work.host.failpoints.reached("drill examined")?;
    let (stored, task) = (drills.clone(), live.view());
    let put = move |tx: &rusqlite::Transaction<'_>| -> Result<(), DbError> {
        for drill in &stored {
            drill.row.put(tx)?;
            let Some(damage) = drill.damage() else { continue };
            let known = KnownProofs::of_location(tx, damage.credential, drill.row.ended)?;
            let before = known.own(&damage.cloudsnap).cloned();
            // The end of the task is the event of its own cloud snapshot.
            if drill.row.id != task.id && before.as_ref().is_none_or(|known| known.sound) {
                damage_of_other(&drill.row, &task).insert(tx)?;
            }
            damage.after(before.as_ref()).map_or(Ok(()), |proof| proof.put(tx))?;
        }
        Ok(())
    };
    work.tasks
        .until_stored("the result of the drill", || {
            let put = put.clone();
            async move { Ok(work.db.run(put).await?) }
        })
        .await?;
    work.host.failpoints.reached("drill stored")?;
    if let Err(error) = unresolved::check(&work.db, &work.host, &work.registry, &work.health).await {
        tracing::warn!(%error, "checking the results of drills failed; maintenance tries again");
    }
    // A proof is not changed: the last drill of a group publishes all, or else the maintenance does.
    if is_complete {
        publish(work, live, repository, drills.iter().map(|drill| drill.row.clone()).collect()).await;
    }
    match drills.first() {
        Some(drill) if !drill.row.passed => {
            let (is_damaged, failed_step) = (drill.damage.is_some(), failed_stage(&drill.row));
            live.detail(|detail| detail.failed_step = Some(failed_step));
            let code = if is_damaged { ErrorCode::CloudsnapDamaged } else { ErrorCode::DrillFailed };
            let error = ApiError::new(code, summary(&drill.row));
            Err(ServiceError::Refused(match failed_step {
                DrillStage::Layout if !is_damaged => error.with_hint(layout::HINT),
                _ => error,
            }))
        }
        first => {
            let reason = first.and_then(|drill| drill.row.report.unchecked());
            let note = reason.map(|reason| format!("not checked: {reason}"));
            live.detail(|detail| detail.note = note);
            work.tasks.finish(live, |_| Ok(())).await
        }
    }
}

/// Returns the event of damage that the probe of a group found in the clone of another volume.
fn damage_of_other(drill: &DrillRow, task: &TaskRow) -> NewEvent {
    NewEvent {
        volume_id: Some(drill.cloudsnap.volume),
        volume: drill.volume_name.parse().ok(),
        credential_id: Some(task.credential),
        credential: Some(task.detail.credential_name.clone()),
        task: Some(task.id),
        cloudsnap: Some(drill.cloudsnap),
        failed_step: Some(failed_stage(drill)),
        ..NewEvent::new(drill.ended, Severity::Error, EventKind::DamageFound, summary(drill))
    }
}

/// Publishes results, unless the task is stopped: the maintenance publishes them then, and those that the
/// location does not take now.
async fn publish(work: &DrillWork, live: &LiveTask, repository: &Repository, drills: Vec<DrillRow>) {
    tokio::select! {
        published = work.proofs.publish_drills(repository, drills) => {
            if let Err(error) = published {
                tracing::warn!(%error, "publishing the proof of the drill failed; maintenance tries again");
            }
        }
        () = live.cancel.cancelled() => {}
    }
}

pub(super) fn failed_stage(drill: &DrillRow) -> DrillStage {
    let failed = drill.report.steps.iter().find(|step| step.outcome == DrillOutcome::Failed);
    failed.map_or(DrillStage::Open, |step| step.stage)
}

fn summary(drill: &DrillRow) -> String {
    let stage = failed_stage(drill);
    let first = drill.report.findings.first().map_or("no cause is known", String::as_str);
    let more = match drill.report.findings_total {
        0 | 1 => String::new(),
        2 => " (and 1 more finding)".to_owned(),
        total => format!(" (and {} more findings)", total - 1),
    };
    format!("drill of {} failed at step {stage}: {first}{more}", drill.cloudsnap)
}
