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
use blockd_catalog::{DbError, DrillRow, DrillTask, TaskRow, TaskSpec};
use blockd_cloud::{CloudSnapshotId, Repository};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

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
        let config = probe::find(&work.host, name)?.clone();
        let Some(own) = drills.first_mut() else { return Ok(true) };
        if !own.row.report.is_passed() {
            own.add(&ProbeResult::skipped("an earlier step failed"), Duration::ZERO);
            return Ok(true);
        }
        let row = live.view();
        let mut images = vec![ProbedImage { volume: volume_of(&row), image: Arc::clone(&self.image) }];
        if let Some(group) = asked.group {
            let Some(others) = others(work, live.id, group).await? else {
                own.add(&ProbeResult::skipped(WAITS), Duration::ZERO);
                return Ok(false);
            };
            for (volume, row) in others {
                let image = tokio::select! {
                    image = self.open_other(live, repository, &row.cloudsnap) => image?,
                    () = live.cancel.cancelled() => return Err(ServiceError::Stopping),
                };
                images.push(ProbedImage { volume, image });
                drills.push(Drilled { row, damage: None });
            }
        }
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
            config,
            env,
            is_of_group: asked.group.is_some(),
            images: images.clone(),
            host: CloneHost::new(&work.host, &work.attachments),
        };
        let mut result = on_thread("drill", set_background_reader, move || probe.run()).await??;
        let mut unreadable = Vec::new();
        for (drill, one) in drills.iter_mut().zip(&images) {
            if let Some(failure) = one.image.failure() {
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
        drills.iter_mut().for_each(|drill| drill.add(&result, started.elapsed()));
        Ok(true)
    }

    async fn open_other(
        &self,
        live: &LiveTask,
        repository: &Repository,
        cloudsnap: &CloudSnapshotId,
    ) -> Result<Arc<DrillImage>, ServiceError> {
        let manifest = Box::pin(repository.manifest(cloudsnap)).await?;
        let reader = Box::pin(self.cache.snapshot(repository, &manifest)).await?;
        Ok(Arc::new(DrillImage::new(reader, live.cancel.clone(), self.deadline)))
    }
}

/// Returns the present name of the volume of a drill, unique in its group, or the id of a deleted one.
fn volume_of(task: &TaskRow) -> String {
    let name = task.detail.volume_name.as_ref();
    name.map_or_else(|| task.cloudsnap.volume.to_string(), ToString::to_string)
}

/// Returns the other drills of a group without their probe, with the names of the volumes; `None` unless all
/// have passed.
async fn others(
    work: &DrillWork,
    own: Uuid,
    group: Uuid,
) -> Result<Option<Vec<(String, DrillRow)>>, ServiceError> {
    let is_other = move |task: &TaskRow| {
        task.id != own && matches!(&task.spec, TaskSpec::Drill(drill) if drill.group == Some(group))
    };
    let found = work.db.run(move |tx| -> Result<_, DbError> {
        let mut found = Vec::new();
        for task in TaskRow::all(tx)?.into_iter().filter(is_other) {
            let Some(mut drill) = DrillRow::find(tx, task.id)? else { return Ok(None) };
            if !drill.report.remove_probe() {
                return Ok(None);
            }
            found.push((volume_of(&task), drill));
        }
        Ok(Some(found))
    });
    Ok(found.await?)
}
