//! Plan of a schedule's retention.

use crate::{
    error::ServiceError,
    schedules::{
        judgement,
        requests::{Schedules, no_schedule},
    },
};
use blockd_api::{List, schedules::JudgedSnapshot};
use blockd_catalog::{CredentialRow, RunRow, ScheduleRow};
use blockd_schedule::Verdict;
use jiff::Timestamp;
use std::cmp::Reverse;
use uuid::Uuid;

impl Schedules {
    /// Returns what a schedule's retention would keep and delete now, with reasons: by volume and
    /// location, local snapshots first, the newest first. Changes nothing.
    ///
    /// # Errors
    /// There is no such schedule.
    pub async fn plan_retention(&self, uuid: Uuid) -> Result<List<JudgedSnapshot>, ServiceError> {
        let now = Timestamp::now();
        let judged = self.db.run(move |tx| -> Result<_, ServiceError> {
            let (judged, local) = match ScheduleRow::find(tx, uuid)? {
                Some(row) => (judgement::judge(tx, &row, now)?, judgement::judge_local(tx, &row, now)?),
                // Backups of a deleted schedule are listed as long as their runs are known.
                None => match judgement::judge_deleted(tx, uuid)? {
                    (judged, local) if judged.is_empty() && local.is_empty() => {
                        return Err(no_schedule(uuid));
                    }
                    both => both,
                },
            };
            Ok((judged, local, CredentialRow::names(tx)?))
        });
        let (judged, local, credentials) = judged.await?;
        let local = local.into_iter().map(|judgement| JudgedSnapshot {
            local: true,
            snapshot_id: Some(judgement.snapshot),
            snapshot_name: judgement.name,
            ..judged_run(&judgement.run, judgement.verdict)
        });
        let cloudsnaps = judged.into_iter().map(|judgement| JudgedSnapshot {
            cloud_snapshot_id: Some(judgement.cloudsnap),
            credential_id: Some(judgement.credential),
            credential_name: credentials.get(&judgement.credential).cloned(),
            former_rule: judgement
                .run
                .rule
                .as_ref()
                .filter(|_| judgement.is_of_gone_rule)
                .map(ToString::to_string),
            ..judged_run(&judgement.run, judgement.verdict)
        });
        let mut plan: Vec<_> = local.chain(cloudsnaps).collect();
        plan.sort_by(|one, other| {
            let place =
                |one: &JudgedSnapshot| (one.volume_name.clone(), one.volume_id, one.credential_name.clone());
            let newest_first =
                |one: &JudgedSnapshot| (one.credential_id, Reverse((one.created_at, one.run_id)));
            place(one).cmp(&place(other)).then_with(|| newest_first(one).cmp(&newest_first(other)))
        });
        Ok(plan.into())
    }
}

/// Returns the verdict on the snapshot of a run, without that snapshot.
fn judged_run(run: &RunRow, verdict: Verdict) -> JudgedSnapshot {
    JudgedSnapshot {
        run_id: run.id,
        volume_id: run.volume,
        volume_name: run.volume_name.clone(),
        local: false,
        cloud_snapshot_id: None,
        credential_id: None,
        credential_name: None,
        snapshot_id: None,
        snapshot_name: None,
        created_at: run.started,
        verdict,
        former_rule: None,
    }
}
