//! Metrics of restore drills.

use super::{Monitor, metrics::Rows};
use crate::metrics::exposition::Exposition;
use blockd_catalog::DrillRow;
use blockd_cloud::DrillStage;

impl Monitor {
    pub(super) fn of_drills(&self, text: &mut Exposition, rows: &Rows) {
        let own = self.host.cluster;
        let drills: Vec<_> = rows
            .drills
            .iter()
            .filter(|drill| drill.cloudsnap.cluster == own)
            .filter_map(|drill| {
                let labels = vec![
                    ("volume", self.registry.by_id(drill.cloudsnap.volume)?.name.to_string()),
                    ("credential", rows.credential(drill.credential)?.name.to_string()),
                ];
                Some((labels, drill))
            })
            .collect();
        let of = |value: fn(&DrillRow) -> f64| {
            drills.iter().map(move |(labels, drill)| (labels.clone(), value(drill)))
        };
        text.gauge(
            "blockd_drill_passed",
            "1 if the last restore drill of the volume at the credential passed, 0 if it failed; a failed one stays the last one until a drill of the same or a newer backup.",
            of(|drill| f64::from(u8::from(drill.passed))),
        );
        text.gauge(
            "blockd_drill_checked",
            "1 if that drill checked a filesystem or ran a probe, 0 if it only read blocks.",
            of(|drill| f64::from(u8::from(drill.report.unchecked().is_none()))),
        );
        text.gauge(
            "blockd_drill_last_timestamp_seconds",
            "End of the last restore drill of the volume at the credential.",
            of(|drill| drill.ended.as_second() as f64),
        );
        text.gauge(
            "blockd_drill_fetched_bytes",
            "Bytes that the last restore drill of the volume fetched from the credential.",
            of(|drill| drill.report.fetched_bytes as f64),
        );
        text.gauge(
            "blockd_drill_requests",
            "Store requests of the last restore drill of the volume at the credential.",
            of(|drill| drill.report.requests as f64),
        );
        let times = drills.iter().flat_map(|(labels, drill)| {
            let passed = DrillStage::ALL.into_iter().filter_map(|stage| {
                let mut labels = labels.clone();
                labels.push(("step", stage.to_string()));
                Some((labels, drill.report.passed_after_ms(stage)? as f64 / 1000.0))
            });
            passed.collect::<Vec<_>>()
        });
        text.gauge(
            "blockd_drill_step_seconds",
            "Time from the start of the last restore drill to the end of the step, if it passed: first-byte and mount are recovery times (RTO).",
            times,
        );
    }
}
