//! Update of a schedule.

use crate::{
    error::ServiceError,
    schedules::plausibility::{self, check_rules, invalid},
};
use blockd_api::schedules::UpdateSchedule;
use blockd_catalog::ScheduleRow;
use blockd_schedule::Retention;
use jiff::Timestamp;
use rusqlite::Transaction;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Returns the updated schedule; `retain_at` has the ids of its credentials.
///
/// # Errors
/// The result would be invalid, or the database fails.
pub(super) fn updated(
    tx: &Transaction<'_>,
    mut row: ScheduleRow,
    request: UpdateSchedule,
    retain_at: Option<BTreeMap<Uuid, Retention>>,
    now: Timestamp,
) -> Result<ScheduleRow, ServiceError> {
    // Each field is named, so that the compiler finds a new one that is not applied.
    let UpdateSchedule {
        rules,
        policy_name,
        retain,
        local,
        retain_at: _,
        full,
        reupload,
        compression,
        jitter_seconds,
        priority,
        rule_name,
        labels,
        drill,
        paused,
    } = request;
    // A problem of the policy must not prevent a pause.
    let must_check = rules.is_some() || policy_name.is_some();
    let must_fit = must_check || jitter_seconds.is_some();
    if let Some(rules) = &rules {
        plausibility::refuse_never(rules, now)?;
    }
    if let Some(paused) = paused {
        if row.paused && !paused {
            // Runs skipped during a pause are not made up for.
            ScheduleRow::clear_cursors(tx, row.uuid)?;
        }
        row.paused = paused;
    }
    if let Some(rules) = rules {
        row.spec.rules = rules;
    }
    row.policy = policy_name.or(row.policy);
    row.spec.retain = retain.unwrap_or(row.spec.retain);
    row.spec.full = full.unwrap_or(row.spec.full);
    row.spec.reupload = reupload.unwrap_or(row.spec.reupload && row.spec.full);
    plausibility::check_reupload(&row.spec)?;
    row.spec.compression = compression.unwrap_or(row.spec.compression);
    row.spec.jitter = jitter_seconds.unwrap_or(row.spec.jitter);
    row.spec.priority = priority.unwrap_or(row.spec.priority);
    row.spec.local = local.unwrap_or(row.spec.local);
    if row.spec.local.is_none() && row.spec.credentials.is_empty() {
        return Err(invalid(
            "the schedule would have neither local snapshots nor a credential: delete or pause it",
        ));
    }
    row.spec.retain_at = retain_at.unwrap_or(row.spec.retain_at);
    row.spec.rule = rule_name.unwrap_or(row.spec.rule);
    row.spec.labels = labels.unwrap_or(row.spec.labels);
    if drill.is_some() && row.spec.drill.is_none() {
        return Err(invalid("the schedule makes backups: create another one for drills"));
    }
    row.spec.drill = drill.or(row.spec.drill);
    if must_check {
        check_rules(&row.rules(tx)?)?;
        row.retain_cursors(tx)?;
    }
    if must_fit {
        plausibility::refuse_long_jitter(&row.rules(tx)?, row.spec.jitter, now)?;
    }
    Ok(row)
}
