//! Local snapshots on the command line: an id, VOLUME@NAME, or a point of a volume.

use crate::{failure::Failure, output::Context, times::Period};
use blockd_api::{
    ApiError, ErrorCode, NameError, SnapshotRef, VolumeRef, operations, snapshots::ListSnapshots,
};
use jiff::Timestamp;
use std::str::FromStr;

/// Word for the newest snapshot of a volume.
const LATEST: &str = "latest";

/// Reference to a local snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalSnapshot {
    /// Id, or volume and name.
    Exact(SnapshotRef),
    /// The snapshot of this name, or the newest one at or before a time; the newest of all without a time.
    Point { volume: VolumeRef, point: String, at: Option<Timestamp> },
}

impl FromStr for LocalSnapshot {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((volume, point)) = text.split_once('@') else { return text.parse().map(Self::Exact) };
        let at = match point {
            LATEST => None,
            point => match point.parse::<Period>() {
                Ok(period) => Some(period.end),
                Err(_) => return text.parse().map(Self::Exact),
            },
        };
        Ok(Self::Point { volume: volume.parse()?, point: point.to_owned(), at })
    }
}

impl LocalSnapshot {
    /// Returns true if it names this snapshot itself: a point in time selects another one a moment later.
    pub fn is_exactly(&self, snapshot: &SnapshotRef) -> bool {
        match (self, snapshot) {
            (Self::Point { point, .. }, SnapshotRef::Named { name, .. }) => name.as_str() == point,
            _ => true,
        }
    }

    /// Resolves to one snapshot. Only a point needs a request.
    ///
    /// # Errors
    /// The volume has no such snapshot, or the snapshots cannot be listed.
    pub async fn resolve(&self, context: &Context<'_>) -> Result<SnapshotRef, Failure> {
        let (volume, point, at) = match self {
            Self::Exact(snapshot) => return Ok(snapshot.clone()),
            Self::Point { volume, point, at } => (volume, point, at),
        };
        let query = ListSnapshots { volume: Some(volume.clone()), group: None };
        let list = context.client.call(operations::LIST_SNAPSHOTS, &query).await?.items;
        let before = || list.iter().filter(|one| at.is_none_or(|at| one.created_at <= at));
        let named = list.iter().find(|one| one.name.as_str() == point);
        match named.or_else(|| before().max_by_key(|one| one.created_at)) {
            Some(one) => Ok(SnapshotRef::Named {
                volume: VolumeRef::Name(one.volume_name.clone()),
                name: one.name.clone(),
            }),
            None => {
                let message = format!("there is no snapshot {volume}@{point}");
                let hint = format!("`blockctl snapshot list {volume}` shows the snapshots");
                Err(ApiError::new(ErrorCode::SnapshotNotFound, message).with_hint(hint).into())
            }
        }
    }
}
