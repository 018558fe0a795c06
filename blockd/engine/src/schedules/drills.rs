//! Runs of schedules of drills: each drills the newest cloud snapshot of its volume at its location.

use crate::{
    error::ServiceError,
    schedules::{
        runner::ScheduleRunner,
        transactions::{self, Batch},
    },
};
use blockd_api::drills::DrillOptions;
use blockd_catalog::RunRow;
use jiff::Timestamp;
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

impl ScheduleRunner {
    /// Starts the drills of a batch: for each location, the newest point in time of its volumes there.
    pub(super) async fn begin_drills(
        self: &Arc<Self>,
        batch: Batch,
        options: &DrillOptions,
        now: Timestamp,
    ) -> Result<bool, ServiceError> {
        let mut locations: BTreeMap<Uuid, Vec<RunRow>> = BTreeMap::new();
        for run in batch.runs {
            locations.entry(run.credential.unwrap_or_default()).or_default().push(run);
        }
        let is_group = batch.is_group;
        let mut any_started = false;
        for (credential, runs) in locations {
            let record = transactions::record_start;
            match self.drills.start_scheduled(&runs, credential, options, is_group, record).await {
                Ok(()) => any_started = true,
                Err(error) => self.not_started(runs, error, now).await?,
            }
        }
        Ok(any_started)
    }
}
