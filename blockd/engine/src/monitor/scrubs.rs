//! Metrics of scrubs.

use super::Monitor;
use crate::{
    metrics::exposition::Exposition,
    scrub::task::{ScrubTotals, damaged_bytes},
};
use blockd_catalog::ScrubRow;
use std::sync::atomic::{AtomicU64, Ordering};

impl Monitor {
    pub(super) fn of_scrubs(&self, text: &mut Exposition, rows: &[ScrubRow]) {
        text.gauge(
            "blockd_scrub_damaged_bytes",
            "Bytes of the volume that are damaged on the disk and not repaired: reads of them fail.",
            self.registry.all().iter().filter_map(|entry| {
                let bytes = entry.known(damaged_bytes, |content| content.damaged_bytes)?;
                Some((vec![("volume", entry.name.to_string())], bytes))
            }),
        );
        text.gauge(
            "blockd_scrub_completed_timestamp_seconds",
            "End of the last complete scrub of the volume.",
            rows.iter().filter_map(|row| {
                let name = self.registry.by_id(row.volume)?.name.to_string();
                Some((vec![("volume", name)], row.completed?.as_second().max(0)))
            }),
        );
        let ScrubTotals { read, damaged, repaired } = &self.scrub_work.totals;
        let mut total = |name: &'static str, help: &'static str, bytes: &AtomicU64| {
            text.counter(name, help, [(vec![], bytes.load(Ordering::Relaxed))]);
        };
        total("blockd_scrub_read_bytes_total", "Bytes of local data that scrubs read.", read);
        total("blockd_scrub_found_bytes_total", "Damaged bytes that scrubs found on the disk.", damaged);
        total("blockd_scrub_repaired_bytes_total", "Damaged bytes repaired from cloud snapshots.", repaired);
    }
}
