//! Plan of a schedule's retention.

use crate::{
    error::ServiceError,
    schedules::{
        judgement,
        requests::{Schedules, no_schedule},
    },
};
use blockd_api::schedules::{Judged, JudgedSnapshot, RetentionPlan};
use blockd_catalog::{CredentialRow, ScheduleRow};
use jiff::Timestamp;
use uuid::Uuid;

impl Schedules {
    /// Returns what a schedule's retention would keep and delete now, with reasons. Changes nothing.
    ///
    /// # Errors
    /// There is no such schedule.
    pub async fn plan_retention(&self, uuid: Uuid) -> Result<RetentionPlan, ServiceError> {
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
        let snapshots = local.into_iter().map(|judgement| JudgedSnapshot {
            run_id: judgement.run.id,
            snapshot_id: judgement.snapshot,
            snapshot_name: judgement.name,
            volume_name: judgement.run.volume_name.clone(),
            created_at: judgement.run.started,
            verdict: judgement.verdict,
        });
        let snapshots = snapshots.collect();
        let cloudsnaps = judged.into_iter().map(|judgement| Judged {
            former_rule: judgement
                .is_of_gone_rule
                .then(|| judgement.run.rule.as_ref().map(ToString::to_string))
                .flatten(),
            run_id: judgement.run.id,
            cloud_snapshot_id: judgement.cloudsnap,
            volume_name: judgement.run.volume_name.clone(),
            credential_id: judgement.credential,
            credential_name: credentials.get(&judgement.credential).cloned(),
            created_at: judgement.run.started,
            verdict: judgement.verdict,
        });
        Ok(RetentionPlan { cloud_snapshots: cloudsnaps.collect(), snapshots })
    }
}
