//! Step of the probe. The last drill of a group makes it for all of them, with the clones of all volumes: an
//! application may need several of them.

use super::{
    clone_server::CloneHost,
    image::DrillImage,
    probe::{self, DrillProbe, ProbeResult, ProbedImage},
    task::{DrillWork, Drilled, Opened},
};
use crate::{
    error::ServiceError,
    tasks::{
        LiveTask,
        priority::{on_thread, set_background_reader},
    },
};
use blockd_api::ProbeName;
use blockd_catalog::{DbError, DrillRow, DrillTask, MemberDrill, TaskRow};
use blockd_cloud::{CloudError, CloudSnapshotId, Repository};
use blockd_extent::BlockSet;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Note of the step until the last drill of the group has made it.
const WAITS: &str = "it runs after the drills of the group's other volumes, if they pass";

impl Drilled {
    fn add(&mut self, result: &ProbeResult, elapsed: Duration) {
        let report = &mut self.row.report;
        let before = report.steps.last().map_or(0, |step| step.elapsed_ms);
        result.findings.iter().for_each(|finding| report.find(finding));
        let ended = Duration::from_millis(before) + elapsed;
        report.end(blockd_cloud::DrillStage::Probe, result.outcome, ended, &result.note);
    }
}

impl Opened {
    /// Makes the step of the probe for the drill, which is the only one of `drills`. The last drill of a
    /// group adds the other ones, with this step. Returns false if a later drill of the group makes it.
    ///
    /// # Errors
    /// The probe was not started, or has no result.
    pub async fn probe(
        &self,
        work: &Arc<DrillWork>,
        live: &LiveTask,
        repository: &Repository,
        asked: &DrillTask,
        name: &ProbeName,
        drills: &mut Vec<Drilled>,
    ) -> Result<bool, ServiceError> {
        let started = Instant::now();
        work.host.failpoints.reached("drill probe")?;
        probe::find(&work.host, name)?;
        let Some(own) = drills.first_mut() else { return Ok(true) };
        if !own.row.report.is_passed() {
            own.add(&ProbeResult::skipped("an earlier step failed"), Duration::ZERO);
            return Ok(true);
        }
        let (volume, image) = (volume_of(&live.view()), Arc::clone(&self.image));
        let (mut images, mut unreadable) = (vec![ProbedImage { volume, image }], Vec::new());
        if asked.group.is_some() {
            let Some(others) = others(work, asked.others.clone()).await? else {
                own.add(&ProbeResult::skipped(WAITS), Duration::ZERO);
                return Ok(false);
            };
            for (volume, row) in others {
                let cloudsnap = row.cloudsnap;
                let opened = tokio::select! {
                    opened = self.open_other(live, repository, &cloudsnap) => opened?,
                    () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
                };
                let damage = opened.as_ref().err().map(|error| {
                    unreadable.push(format!("cloud snapshot {cloudsnap} of volume {volume}: {error}"));
                    BlockSet::new()
                });
                drills.push(Drilled { row, damage });
                images.extend(opened.ok().map(|image| ProbedImage { volume, image }));
            }
        }
        let result = match unreadable.is_empty() {
            true => self.run_probe(work, live, asked, name, drills, images).await?,
            false => ProbeResult::unreadable(unreadable),
        };
        drills.iter_mut().for_each(|drill| drill.add(&result, started.elapsed()));
        Ok(true)
    }

    /// Runs the probe on the images of the drills, and adds the damage that it reads.
    async fn run_probe(
        &self,
        work: &Arc<DrillWork>,
        live: &LiveTask,
        asked: &DrillTask,
        name: &ProbeName,
        drills: &mut [Drilled],
        images: Vec<ProbedImage>,
    ) -> Result<ProbeResult, ServiceError> {
        let env = match (asked.group, drills.first()) {
            (None, Some(own)) => vec![
                ("BLOCKD_DRILL_ID", live.id.to_string()),
                ("BLOCKD_DRILL_CLOUDSNAP", own.row.cloudsnap.to_string()),
                ("BLOCKD_DRILL_VOLUME", own.row.volume_name.clone()),
            ],
            (group, _) => vec![("BLOCKD_DRILL_ID", group.unwrap_or(live.id).to_string())],
        };
        let probe = DrillProbe {
            name: name.clone(),
            config: probe::find(&work.host, name)?.clone(),
            env,
            is_of_group: asked.group.is_some(),
            images: images.clone(),
            host: CloneHost::new(&work.host, &work.attachments),
        };
        // A thread that the background starts could not leave its priority: a probe writes.
        let probed = on_thread("drill", set_background_reader, move || probe.run());
        let mut result = work.repositories.task_workers.in_foreground(probed).await???;
        let mut unreadable = Vec::new();
        for (drill, one) in drills.iter_mut().zip(&images) {
            if let Some(failure) = one.image.failure() {
                failure.forget_damaged(&work.host.data_dir);
                let (finding, damage) = failure.finding()?;
                drill.damage = damage;
                unreadable.push(finding);
            }
        }
        if !unreadable.is_empty() {
            unreadable.dedup();
            result = ProbeResult::unreadable(unreadable);
        }
        work.host.failpoints.reached("drill probed")?;
        Ok(result)
    }

    /// Opens the cloud snapshot of another drill; returns an error inside if it is damaged or missing.
    async fn open_other(
        &self,
        live: &LiveTask,
        repository: &Repository,
        cloudsnap: &CloudSnapshotId,
    ) -> Result<Result<Arc<DrillImage>, CloudError>, ServiceError> {
        let opened = async {
            let manifest = Box::pin(repository.manifest(cloudsnap)).await?;
            Box::pin(self.cache.snapshot(repository, &manifest)).await
        };
        match opened.await {
            Ok(reader) => Ok(Ok(Arc::new(DrillImage::new(reader, live.cancel.clone(), self.deadline)))),
            Err(error @ (CloudError::Damaged { .. } | CloudError::SnapshotNotFound { .. })) => Ok(Err(error)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns the present name of the volume of a drill, unique in its group, or the id of a deleted one.
pub(super) fn volume_of(task: &TaskRow) -> String {
    let name = task.detail.volume_name.as_ref();
    name.map_or_else(|| task.cloudsnap.volume.to_string(), ToString::to_string)
}

/// Ends the step of the probe without a result, because cloud snapshots of other drills were deleted.
/// Removes those drills: they keep their own steps.
pub(super) fn skip_without(drills: &mut Vec<Drilled>, deleted: &[CloudSnapshotId]) {
    let [first, ..] = deleted else { return };
    let reason = format!("cloud snapshot {first}, which the probe needs, was deleted during the drill");
    drills.retain(|drill| !deleted.contains(&drill.row.cloudsnap));
    for drill in drills.iter_mut().filter(|drill| drill.damage.is_none()) {
        if drill.row.report.remove_probe() {
            drill.add(&ProbeResult::skipped(&reason), Duration::ZERO);
            drill.row.passed = true;
        }
    }
}

/// Returns the other drills of a group without their probe, with the names of the volumes; `None` unless all
/// have passed.
async fn others(
    work: &DrillWork,
    members: Vec<MemberDrill>,
) -> Result<Option<Vec<(String, DrillRow)>>, ServiceError> {
    let found = work.db.run(move |tx| -> Result<_, DbError> {
        let mut found = Vec::new();
        for member in members {
            let Some(mut drill) = DrillRow::find(tx, member.id)? else { return Ok(None) };
            if !drill.report.remove_probe() {
                return Ok(None);
            }
            found.push((member.volume, drill));
        }
        Ok(Some(found))
    });
    Ok(found.await?)
}
