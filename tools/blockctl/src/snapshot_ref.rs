//! Local snapshots on the command line: an id, VOLUME@NAME, or a point of a volume.

use crate::{failure::Failure, output::Context, volume_point::VolumePoint};
use blockd_api::{
    ApiError, ErrorCode, NameError, SnapshotRef, VolumeRef, operations, snapshots::ListSnapshots,
};
use std::str::FromStr;

/// Reference to a local snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalSnapshot {
    /// Id, or volume and name.
    Exact(SnapshotRef),
    /// The snapshot of the name behind the `@`, or the one that the point in time selects.
    Point { name: String, point: VolumePoint },
}

impl FromStr for LocalSnapshot {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match (text.split_once('@'), text.parse()) {
            (Some((_, name)), Ok(point)) => Ok(Self::Point { name: name.to_owned(), point }),
            _ => text.parse().map(Self::Exact),
        }
    }
}

impl LocalSnapshot {
    /// Returns true if it names this snapshot itself: a point in time selects another one a moment later.
    pub fn is_exactly(&self, snapshot: &SnapshotRef) -> bool {
        match (self, snapshot) {
            (Self::Point { name, .. }, SnapshotRef::Named { name: found, .. }) => found.as_str() == name,
            _ => true,
        }
    }

    /// Resolves to one snapshot. Only a point needs a request.
    ///
    /// # Errors
    /// The volume has no such snapshot, or the snapshots cannot be listed.
    pub async fn resolve(&self, context: &Context<'_>) -> Result<SnapshotRef, Failure> {
        let (name, point) = match self {
            Self::Exact(snapshot) => return Ok(snapshot.clone()),
            Self::Point { name, point } => (name, point),
        };
        let query = ListSnapshots { volume: Some(point.volume.clone()), group: None };
        let list = context.client.call(operations::LIST_SNAPSHOTS, &query).await?.items;
        let named = list.iter().find(|one| one.name.as_str() == name);
        let selected = || list.iter().filter(|one| point.includes(one.created_at));
        match named.or_else(|| selected().max_by_key(|one| one.created_at)) {
            Some(one) => Ok(SnapshotRef::Named {
                volume: VolumeRef::Name(one.volume_name.clone()),
                name: one.name.clone(),
            }),
            None => {
                let message = format!("there is no snapshot {}@{name}", point.volume);
                let hint = format!("`blockctl snapshot list {}` shows the snapshots", point.volume);
                Err(ApiError::new(ErrorCode::SnapshotNotFound, message).with_hint(hint).into())
            }
        }
    }
}

/// Returns the volume of a snapshot.
///
/// # Errors
/// There is no snapshot with this id.
pub async fn volume_of(context: &Context<'_>, snapshot: &SnapshotRef) -> Result<VolumeRef, Failure> {
    match snapshot {
        SnapshotRef::Named { volume, .. } => Ok(volume.clone()),
        SnapshotRef::Id(_) => {
            let found = context.client.call_at(operations::GET_SNAPSHOT, snapshot, &()).await?;
            Ok(VolumeRef::Id(found.volume_id))
        }
    }
}

/// Volume or snapshot export.
#[derive(Clone, Debug)]
pub enum ExportRef {
    /// Current content of a volume.
    Volume(VolumeRef),
    /// Local snapshot.
    Snapshot(LocalSnapshot),
}

impl FromStr for ExportRef {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        // A bare id is that of a volume, unless there is none with it.
        if text.contains('@') { text.parse().map(Self::Snapshot) } else { text.parse().map(Self::Volume) }
    }
}
