//! Task of a restore drill.

use super::{
    clone_server::CloneHost,
    image::DrillImage,
    probe::{self, DrillProbe},
    steps::{Examined, Steps},
};
use crate::{
    cloud_snapshots::is_not_found,
    error::{ServiceError, blocking},
    host::Host,
    proofs::Proofs,
    repositories::{Repositories, limits::limited},
    tasks::{
        LiveTask, Tasks,
        priority::{on_thread, set_background_reader},
        secrets,
    },
    volumes::attachments::Attachments,
};
use blockd_api::ErrorCode;
use blockd_catalog::{Db, DbError, DrillRow, DrillTask, KnownProofs, ProofRow, TaskRow};
use blockd_cloud::{
    CacheOptions, CloudError, DrillOutcome, DrillReport, DrillStage, DrillStep, Manifest, Progress,
    Repository, SnapshotCache, SnapshotReader, VerifyDepth, drill_text,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet};
use blockd_store::{Bandwidth, Requests};
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
    pub(crate) host: Arc<Host>,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) tasks: Arc<Tasks>,
    /// Held by the running drill.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

/// Runs a drill. Its error is the result of a failed one; a drill without a result, such as of an unreachable
/// store or a missing key, makes no proof.
pub(crate) async fn run(
    work: &Arc<DrillWork>,
    live: &Arc<LiveTask>,
    asked: DrillTask,
) -> Result<TaskRow, ServiceError> {
    let _turn = tokio::select! {
        turn = work.turn.lock() => turn,
        () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
    };
    let clone_host = CloneHost::new(&work.host, &work.attachments);
    let left = clone_host.clone();
    blocking(move || left.discard()).await?;
    let (repository, requests) = secrets::repository(&work.tasks, live).await?;
    let mut repository = live.limited(&repository);
    let requests_per_s = work.host.settings.drill_limit_requests_per_s;
    if requests_per_s > 0 {
        repository = limited(&repository, Arc::new(Bandwidth::of_requests(requests_per_s)));
    }
    live.begin(Arc::new(Progress::new(Arc::clone(&requests))));
    work.tasks.store_progress(live).await;
    let opened = tokio::select! {
        opened = Opened::open(work, live, &repository) => opened,
        () = live.cancel.cancelled() => Err(ServiceError::Stopping),
    };
    let (manifest, opened) = opened?;
    let id = live.view().cloudsnap;
    let mut examined = match opened {
        Ok(opened) => {
            let probe = match &asked.probe {
                Some(name) => Some(DrillProbe {
                    name: name.clone(),
                    config: probe::find(&work.host, name)?.clone(),
                    drill: live.id,
                    cloudsnap: id,
                    volume_name: manifest.description.volume_name.clone(),
                    host: clone_host,
                }),
                None => None,
            };
            opened.examine(work, live, &asked, probe).await?
        }
        Err(unreadable) => unreadable,
    };
    examined.report.seed = asked.seed;
    count(&mut examined.report, &requests);
    if !examined.report.is_passed() {
        refuse_if_deleted(work, live, &repository).await?;
    }
    tracing::info!(cloudsnap = %id, passed = examined.report.is_passed(), "restore drill has a result");
    let drill = DrillRow {
        id: live.id,
        credential: live.view().credential,
        cloudsnap: id,
        volume_name: manifest.description.volume_name,
        host: None,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ended: Timestamp::now(),
        passed: examined.report.is_passed(),
        report: examined.report,
    };
    record(work, live, &repository, drill, examined.damage).await
}

fn count(report: &mut DrillReport, requests: &Requests) {
    let counts = requests.snapshot();
    (report.fetched_bytes, report.requests) = (counts.bytes_down, counts.total());
}

/// Opened cloud snapshot.
struct Opened {
    started: Instant,
    data_bytes: u64,
    reader: SnapshotReader,
    report: DrillReport,
}

impl Opened {
    /// Opens the manifest and the indexes, without those that this host knows: a host that recovers knows
    /// none.
    async fn open(
        work: &DrillWork,
        live: &LiveTask,
        repository: &Repository,
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
        report.steps.push(DrillStep {
            stage: DrillStage::Open,
            outcome: if reader.is_ok() { DrillOutcome::Passed } else { DrillOutcome::Failed },
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            note: String::new(),
        });
        let reader = match reader {
            Ok(reader) => reader,
            Err(error @ CloudError::Damaged { .. }) => {
                report.findings.push(drill_text(&error.to_string()));
                report.findings_total = 1;
                return Ok((manifest, Err(Examined { report, damage: Some(BlockSet::new()) })));
            }
            Err(error) => return Err(error.into()),
        };
        let blocks: u64 = manifest.deltas().map(|delta| delta.data_blocks).sum();
        let data_bytes = blocks.saturating_mul(BLOCK_SIZE_BYTES);
        work.host.failpoints.reached("drill opened")?;
        Ok((manifest, Ok(Self { started, data_bytes, reader, report })))
    }

    /// Makes the other steps, on a thread of its own with the lowest priority.
    async fn examine(
        self,
        work: &Arc<DrillWork>,
        live: &LiveTask,
        asked: &DrillTask,
        probe: Option<DrillProbe>,
    ) -> Result<Examined, ServiceError> {
        let deadline = self.started + Duration::from_secs(asked.timeout_s.into());
        let host = Arc::clone(&work.host);
        let steps = Steps {
            image: Arc::new(DrillImage::new(self.reader, live.cancel.clone(), deadline)),
            started: self.started,
            report: DrillReport { seed: asked.seed, ..self.report },
            files: asked.files,
            clone_host: CloneHost::new(&work.host, &work.attachments),
            probe,
            files_bytes: (self.data_bytes / SAMPLE_SHARE).clamp(MIN_SAMPLE_BYTES, MAX_SAMPLE_BYTES),
            before: move |stage| match stage {
                DrillStage::FirstByte => host.failpoints.reached("drill first byte"),
                DrillStage::Layout => host.failpoints.reached("drill layout"),
                DrillStage::Mount => host.failpoints.reached("drill mount"),
                DrillStage::Check => host.failpoints.reached("drill check"),
                DrillStage::Files => host.failpoints.reached("drill files"),
                DrillStage::Probe => host.failpoints.reached("drill probe"),
                DrillStage::Open => Ok(()),
            },
        };
        on_thread("drill", set_background_reader, || steps.run()).await?
    }
}

/// Refuses the result of a cloud snapshot whose objects are missing because it was deleted.
async fn refuse_if_deleted(
    work: &DrillWork,
    live: &LiveTask,
    repository: &Repository,
) -> Result<(), ServiceError> {
    let row = live.view();
    match repository.manifest(&row.cloudsnap).await.map_err(ServiceError::from) {
        Err(error) if is_not_found(&error) => {
            // The mount point of an unmounted disk is empty, too.
            work.repositories.prove_location(row.credential, repository).await?;
            let message = format!("cloud snapshot {} was deleted during the drill", row.cloudsnap);
            Err(ServiceError::refused(ErrorCode::CloudsnapNotFound, message))
        }
        Err(ServiceError::Cloud(error)) if matches!(*error, CloudError::Damaged { .. }) => Ok(()),
        found => found.map(drop),
    }
}

/// Stores and publishes the result, and ends the task.
async fn record(
    work: &DrillWork,
    live: &LiveTask,
    repository: &Repository,
    drill: DrillRow,
    damage: Option<BlockSet>,
) -> Result<TaskRow, ServiceError> {
    let (stored, now) = (drill.clone(), drill.ended);
    let damage = damage.map(|damaged| ProofRow {
        credential: drill.credential,
        cloudsnap: drill.cloudsnap,
        verified: now,
        // Only a verification that reads all frames ends it.
        depth: VerifyDepth::Full,
        sound: false,
        damaged,
        digest: None,
        version: drill.version.clone(),
    });
    let is_damaged = damage.is_some();
    work.host.failpoints.reached("drill examined")?;
    let put = move |tx: &rusqlite::Transaction<'_>| -> Result<(), DbError> {
        stored.put(tx)?;
        let Some(damage) = damage else { return Ok(()) };
        let known = KnownProofs::of_location(tx, damage.credential, now)?;
        let before = known.own(&damage.cloudsnap).cloned();
        damage.after(before.as_ref()).map_or(Ok(()), |proof| proof.put(tx))
    };
    work.tasks
        .until_stored("the result of the drill", || {
            let put = put.clone();
            async move { Ok(work.db.run(put).await?) }
        })
        .await?;
    work.host.failpoints.reached("drill stored")?;
    publish(work, live, repository, drill.clone()).await;
    if drill.passed {
        return work.tasks.finish(live, |_| Ok(())).await;
    }
    let code = if is_damaged { ErrorCode::CloudsnapDamaged } else { ErrorCode::DrillFailed };
    Err(ServiceError::refused(code, summary(&drill)))
}

/// Publishes the result, unless the task is stopped: the maintenance publishes it then, and what the location
/// does not take now.
async fn publish(work: &DrillWork, live: &LiveTask, repository: &Repository, drill: DrillRow) {
    tokio::select! {
        published = work.proofs.publish_drills(repository, vec![drill]) => {
            if let Err(error) = published {
                tracing::warn!(%error, "publishing the proof of the drill failed; maintenance tries again");
            }
        }
        () = live.cancel.cancelled() => {}
    }
}

fn summary(drill: &DrillRow) -> String {
    let failed = drill.report.steps.iter().find(|step| step.outcome == DrillOutcome::Failed);
    let stage = failed.map_or(DrillStage::Open, |step| step.stage);
    let first = drill.report.findings.first().map_or("no cause is known", String::as_str);
    let more = match drill.report.findings_total {
        0 | 1 => String::new(),
        total => format!(" (and {} more findings)", total - 1),
    };
    format!("drill of {} failed at step {stage}: {first}{more}", drill.cloudsnap)
}
