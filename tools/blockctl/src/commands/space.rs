//! Space of volumes and backup locations in `status`.

use super::protection::span;
use crate::table::{Table, or_dash};
use blockd_api::{ByteSize, status::LocationSpace, volumes::Volume};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

/// Space of a volume on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSpace {
    /// Name of the volume.
    pub volume_name: String,
    /// Size.
    pub size_bytes: u64,
    /// Bytes on disk, with those shared with clones or the source volume.
    pub used_bytes: u64,
    /// Size of the next incremental backup.
    pub dirty_bytes: u64,
    /// Number of local snapshots.
    pub snapshot_count: u64,
}

impl VolumeSpace {
    /// Returns the space of a volume.
    pub fn of(volume: &Volume) -> Self {
        Self {
            volume_name: volume.name.to_string(),
            size_bytes: volume.size_bytes,
            used_bytes: volume.allocated_bytes + volume.shared_bytes,
            dirty_bytes: volume.dirty_bytes,
            snapshot_count: volume.snapshot_count,
        }
    }
}

fn size(bytes: u64) -> String {
    ByteSize::from_bytes(bytes).to_string()
}

/// Formats the space of volumes.
pub fn volume_table(volumes: &[VolumeSpace]) -> Table {
    let rows = volumes.iter().map(|one| {
        [
            one.volume_name.clone(),
            size(one.size_bytes),
            size(one.used_bytes),
            size(one.dirty_bytes),
            one.snapshot_count.to_string(),
        ]
    });
    Table::of("VOLUME|SIZE|USED|DIRTY|SNAPSHOTS", rows).fit("VOLUME")
}

/// Formats the space of backup locations.
pub fn location_table(locations: &[LocationSpace], now: Timestamp) -> Table {
    let rows = locations.iter().map(|one| {
        let age = one.listed_at.map(|at| format!("{} ago", span(now.duration_since(at))));
        [
            one.credential_name.clone(),
            one.cloud_snapshot_count.to_string(),
            size(one.stored_bytes),
            or_dash(age),
        ]
    });
    Table::of("LOCATION|CLOUD-SNAPSHOTS|STORED|LISTED", rows).fit("LOCATION")
}
