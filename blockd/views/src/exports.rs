//! Volumes and their snapshots as NBD exports.
//!
//! A volume's export has the volume's name; the empty name selects the only volume if there is exactly one.
//! `VOLUME@SNAPSHOT` is a read-only snapshot: by name, by id, or `latest` for the newest. Each volume has a
//! metadata context `qemu:dirty-bitmap:NAME` for each of its snapshots, and a snapshot has one for each older
//! one.
//!
//! `cloud:ID` is a read-only cloud snapshot. Cloud snapshots are not listed, which would need store requests.

use crate::{
    access::Access,
    browse::CloudExports,
    devices::{SnapshotDevice, VolumeDevice},
};
use blockd_api::{ApiError, ErrorCode, format_time};
use blockd_engine::volumes::{
    discarded::UnreportedLoss,
    registry::{ClientGuard, EntryState, Registry, SnapshotPoint, VolumeEntry},
};
use blockd_nbd::{BlockDevice, Client, ExportCatalog, ExportError, ExportInfo};
use blockd_volume::{Volume, VolumeErrorKind};
use std::sync::Arc;

/// Alias of the newest snapshot, unless a snapshot has this name.
pub const LATEST: &str = "latest";

/// Export catalog of the NBD server, backed by the registry.
#[derive(Debug, Clone)]
pub struct Exports {
    registry: Arc<Registry>,
    access: Arc<Access>,
    cloud: Option<CloudExports>,
}

impl Exports {
    /// Creates a catalog of all volumes without access control.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, access: Arc::default(), cloud: None }
    }

    /// Adds access control.
    pub fn with_access(self, access: Arc<Access>) -> Self {
        Self { access, ..self }
    }

    /// Adds the exports of cloud snapshots.
    pub fn with_cloud(self, cloud: CloudExports) -> Self {
        Self { cloud: Some(cloud), ..self }
    }

    /// Returns the cloud exports if the name has their prefix.
    fn cloud(&self, name: &str) -> Option<&CloudExports> {
        self.cloud.as_ref().filter(|_| CloudExports::has_prefix(name))
    }

    fn volume_entry(&self, name: &str) -> Option<Arc<VolumeEntry>> {
        if !name.is_empty() {
            return self.registry.by_name(name);
        }
        let mut all = self.registry.all();
        match (all.pop(), all.is_empty()) {
            (Some(only), true) => Some(only),
            _ => None,
        }
    }

    /// Returns true if a volume is served and the client may access it.
    fn is_visible(&self, entry: &VolumeEntry, client: &Client) -> bool {
        entry.view().is_served() && self.access.allows(entry.name.as_str(), client)
    }
}

fn unavailable(error: ApiError) -> ExportError {
    ExportError::Unavailable { reason: error.message }
}

impl ExportCatalog for Exports {
    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        if let Some(cloud) = self.cloud(name) {
            return cloud.open(name, &self.access, client);
        }
        let (volume_name, snapshot) = split_name(name);
        let entry = self.volume_entry(volume_name).ok_or(ExportError::Unknown)?;
        self.access.check(entry.name.as_str(), client)?;
        let max_connections = self.access.max_connections(client);
        let (volume, guard) = entry.connect_up_to(max_connections).map_err(unavailable)?;
        match snapshot {
            None => {
                let loss = UnreportedLoss::of(&volume, client);
                let points = guard.entry().snapshots();
                Ok(Arc::new(VolumeDevice { volume, points, guard, loss }))
            }
            Some(wanted) => open_snapshot(&volume, guard, wanted),
        }
    }

    fn is_remote(&self, name: &str) -> bool {
        let is_closed = |entry: Arc<VolumeEntry>| matches!(entry.view().state, EntryState::Closed(_));
        self.cloud(name).is_some() || self.volume_entry(split_name(name).0).is_some_and(is_closed)
    }

    fn list(&self, client: &Client) -> Vec<ExportInfo> {
        self.list_part(client, 0, usize::MAX)
    }

    fn list_part(&self, client: &Client, skip: usize, max: usize) -> Vec<ExportInfo> {
        let entries = self.registry.all().into_iter();
        let visible: Vec<_> = entries.filter(|entry| self.is_visible(entry, client)).collect();
        let mut part: Vec<_> = visible.iter().skip(skip).take(max).map(|entry| volume_info(entry)).collect();
        let mut skip = skip.saturating_sub(visible.len());
        for entry in &visible {
            if part.len() >= max {
                break;
            }
            let count = entry.snapshot_count();
            if count <= skip {
                skip -= count;
                continue;
            }
            let points = entry.snapshots();
            let wanted = points.iter().skip(skip).take(max - part.len());
            part.extend(wanted.map(|point| snapshot_info(entry, point)));
            skip = 0;
        }
        part
    }

    fn describe(&self, name: &str, client: &Client) -> Option<ExportInfo> {
        if let Some(cloud) = self.cloud(name) {
            return cloud.describe(name, &self.access, client);
        }
        let (volume_name, snapshot) = split_name(name);
        let entry = self.volume_entry(volume_name).filter(|entry| self.is_visible(entry, client))?;
        match snapshot {
            None => Some(volume_info(&entry)),
            Some(wanted) => find_point(&entry.snapshots(), wanted).map(|point| snapshot_info(&entry, point)),
        }
    }
}

/// Splits an export name into the names of the volume and, if present, the snapshot.
pub fn split_name(name: &str) -> (&str, Option<&str>) {
    match name.split_once('@') {
        Some((volume, snapshot)) => (volume, Some(snapshot)),
        None => (name, None),
    }
}

fn volume_info(entry: &VolumeEntry) -> ExportInfo {
    ExportInfo {
        name: entry.name.to_string(),
        description: format!("volume {}", entry.id),
        size_bytes: entry.size_bytes(),
        read_only: entry.is_read_only(),
    }
}

fn snapshot_info(entry: &VolumeEntry, point: &SnapshotPoint) -> ExportInfo {
    let taken = format_time(point.created);
    ExportInfo {
        name: format!("{}@{}", entry.name, point.name),
        description: format!("snapshot {} of volume {}, taken {taken}", point.id, entry.name),
        size_bytes: point.size_bytes,
        read_only: true,
    }
}

/// Finds a snapshot by name, id or alias.
fn find_point<'a>(points: &'a [SnapshotPoint], wanted: &str) -> Option<&'a SnapshotPoint> {
    let named = points.iter().find(|point| point.name.as_str() == wanted || point.id.to_string() == wanted);
    named.or_else(|| points.last().filter(|_| wanted == LATEST))
}

fn open_snapshot(
    volume: &Volume,
    guard: ClientGuard,
    wanted: &str,
) -> Result<Arc<dyn BlockDevice>, ExportError> {
    let points = guard.entry().snapshots();
    let point = find_point(&points, wanted).ok_or(ExportError::Unknown)?;
    let view = volume.view(point.id).map_err(|error| match error.kind() {
        // Deleted since the lookup.
        VolumeErrorKind::NotFound => ExportError::Unknown,
        _ => unavailable(ApiError::new(ErrorCode::VolumeFailed, error.to_string())),
    })?;
    let older = points.iter().filter(|older| older.epoch < point.epoch).cloned().collect();
    Ok(Arc::new(SnapshotDevice { view, older, guard }))
}

#[cfg(test)]
mod tests;
