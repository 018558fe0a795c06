//! Failed probes: a later drill without the probe does not show that the application starts.

use crate::{
    error::ServiceError,
    health::{self, ComponentHealth},
    host::Host,
    maintenance::Maintenance,
    volumes::registry::Registry,
};
use blockd_api::format_time;
use blockd_catalog::{Db, DrillRow};
use blockd_cloud::{DrillOutcome, DrillStage};
use std::{collections::BTreeSet, sync::Arc};

impl Maintenance {
    /// Reports failed probes.
    ///
    /// # Errors
    /// The database fails.
    pub async fn check_probes(&self) -> Result<(), ServiceError> {
        check(&self.db, &self.host, &self.registry, &self.health).await
    }
}

/// Compares the newest result of each configured probe on each volume. A failed one is a problem until a
/// drill with the probe passes.
///
/// # Errors
/// The database fails.
pub(super) async fn check(
    db: &Arc<Db>,
    host: &Host,
    registry: &Registry,
    health: &ComponentHealth,
) -> Result<(), ServiceError> {
    let (mut seen, mut noted) = (BTreeSet::new(), BTreeSet::new());
    let drills = match host.settings.drill_probes.is_empty() {
        true => Vec::new(),
        false => db.run(DrillRow::all).await?,
    };
    for drill in drills.iter().filter(|drill| drill.cloudsnap.cluster == host.cluster) {
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
