//! Failed drills and probes: a later drill of an older point in time, or without the probe, does not show
//! that a restore works.

use super::task::failed_stage;
use crate::{
    error::ServiceError,
    health::{self, ComponentHealth},
    host::Host,
    maintenance::Maintenance,
    volumes::registry::Registry,
};
use blockd_api::format_time;
use blockd_catalog::{CredentialRow, Db, DbError, DrillRow, KnownProofs};
use blockd_cloud::{DrillOutcome, DrillStage};
use jiff::Timestamp;
use std::{collections::BTreeSet, sync::Arc};

impl Maintenance {
    /// Reports failed drills and probes.
    ///
    /// # Errors
    /// The database fails.
    pub async fn check_drills(&self) -> Result<(), ServiceError> {
        check(&self.db, &self.host, &self.registry, &self.health).await
    }
}

/// Reports the failed ones among the last drills of the volumes, and among the newest results of each
/// configured probe on each volume. The latter is a problem until a drill with the probe passes.
///
/// # Errors
/// The database fails.
pub(super) async fn check(
    db: &Arc<Db>,
    host: &Host,
    registry: &Registry,
    health: &ComponentHealth,
) -> Result<(), ServiceError> {
    let now = Timestamp::now();
    check_last(db, host, registry, health, now).await?;
    let (mut seen, mut noted) = (BTreeSet::new(), BTreeSet::new());
    let drills = match host.settings.drill_probes.is_empty() {
        true => Vec::new(),
        false => db.run(DrillRow::all).await?,
    };
    let is_own = |drill: &&DrillRow| drill.cloudsnap.cluster == host.cluster && !drill.is_ahead(now);
    for drill in drills.iter().filter(is_own) {
        let is_result = |outcome| outcome != DrillOutcome::Skipped;
        let mut steps = drill.report.steps.iter();
        let Some(step) = steps.find(|step| step.stage == DrillStage::Probe && is_result(step.outcome)) else {
            continue;
        };
        // The note begins with the name.
        let name = step.note.split(": ").next().unwrap_or_default();
        let is_configured = host.settings.drill_probes.keys().any(|known| known.as_str() == name);
        let Some(volume) = registry.by_id(drill.cloudsnap.volume).filter(|_| is_configured) else { continue };
        let of = format!("{name} {}", volume.id);
        if !seen.insert(of.clone()) || step.outcome == DrillOutcome::Passed {
            continue;
        }
        let finding = drill.report.findings.first().map_or("", String::as_str);
        let finding = finding.strip_prefix(&format!("probe {name} failed")).unwrap_or_default();
        let at = format_time(drill.ended);
        let cause =
            format!("the probe {name} failed on volume {} at the drill of {at}{finding}", volume.name);
        let action = format!(
            "blockctl cloudsnap drill inspect {}; a drill with --probe {name} that passes ends the problem",
            drill.id
        );
        health.note(health::PROBE, &of, cause, action);
        noted.insert(of);
    }
    health.retain(health::PROBE, |of| noted.contains(of));
    Ok(())
}

/// Reports the failed ones among the last drills of the volumes. Damage, and a failed probe, are problems of
/// their own.
async fn check_last(
    db: &Arc<Db>,
    host: &Host,
    registry: &Registry,
    health: &ComponentHealth,
    now: Timestamp,
) -> Result<(), ServiceError> {
    let own = host.cluster;
    let failed = db.run(move |tx| -> Result<_, DbError> {
        let credentials = CredentialRow::all(tx)?;
        let mut failed = Vec::new();
        for drill in DrillRow::last_of_volumes(tx, now)? {
            if drill.passed || drill.cloudsnap.cluster != own || failed_stage(&drill) == DrillStage::Probe {
                continue;
            }
            let known = KnownProofs::of_location(tx, drill.credential, now)?;
            let location = credentials.iter().find(|row| row.uuid == drill.credential);
            if let (None, Some(location)) = (known.damage(&drill.cloudsnap), location) {
                failed.push((drill, location.name.clone()));
            }
        }
        Ok(failed)
    });
    let mut noted = BTreeSet::new();
    for (drill, location) in failed.await? {
        let Some(volume) = registry.by_id(drill.cloudsnap.volume) else { continue };
        let of = format!("{} {}", volume.id, drill.credential);
        let finding = drill.report.findings.first().map_or("no cause is known", String::as_str);
        let cause = format!(
            "the restore drill of {} failed on volume {} at {location}, step {}: {finding}",
            format_time(drill.ended),
            volume.name,
            failed_stage(&drill),
        );
        let action = format!(
            "blockctl cloudsnap drill inspect {}; a drill of this or a newer backup that passes ends the problem",
            drill.id
        );
        health.note(health::DRILL, &of, cause, action);
        noted.insert(of);
    }
    health.retain(health::DRILL, |of| noted.contains(of));
    Ok(())
}
