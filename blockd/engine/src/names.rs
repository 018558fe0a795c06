//! Resolution of unique id prefixes, and refusal of prefixes for destructive requests.

use crate::{
    error::ServiceError, repositories::Repositories, snapshots::Snapshots, volumes::registry::Registry,
};
use blockd_api::{CredentialRef, ErrorCode, SnapshotRef, VolumeRef};
use std::{fmt::Display, sync::Arc};

/// Resolves abbreviated ids.
pub struct Names {
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) snapshots: Arc<Snapshots>,
}

/// Returns the refusal of a prefix where a complete id is required.
fn full_id_required(
    code: ErrorCode,
    what: &str,
    given: &dyn Display,
    found: &dyn Display,
    id: &dyn Display,
) -> ServiceError {
    let message = format!(
        "no {what} {given}: delete, rollback and rekey require the name or the complete id, which is {id} for {found}"
    );
    ServiceError::refused(code, message)
}

/// Lookups for destructive requests. They require complete names and ids: when the matching object is
/// deleted, a prefix may match another one a moment later.
impl Names {
    /// Looks up a volume by its name or complete id.
    ///
    /// # Errors
    /// There is no such volume.
    pub fn whole_volume(&self, wanted: &VolumeRef) -> Result<VolumeRef, ServiceError> {
        let entry = self.registry.find(wanted)?;
        match wanted {
            VolumeRef::Id(id) if *id != entry.id => {
                Err(full_id_required(ErrorCode::VolumeNotFound, "volume", wanted, &entry.name, &entry.id))
            }
            _ => Ok(wanted.clone()),
        }
    }

    /// Looks up a snapshot by its complete id, or by its name and its volume's name or complete id.
    ///
    /// # Errors
    /// There is no such snapshot or volume.
    pub async fn whole_snapshot(&self, wanted: &SnapshotRef) -> Result<SnapshotRef, ServiceError> {
        let id = match wanted {
            SnapshotRef::Named { volume, name } => {
                return Ok(SnapshotRef::Named { volume: self.whole_volume(volume)?, name: name.clone() });
            }
            SnapshotRef::Id(id) => *id,
        };
        let row = self.snapshots.find_snapshot(wanted).await?;
        if row.id == id {
            return Ok(wanted.clone());
        }
        Err(full_id_required(ErrorCode::SnapshotNotFound, "snapshot", wanted, &row.name, &row.id))
    }

    /// Looks up a credential by its name or complete UUID.
    ///
    /// # Errors
    /// There is no such credential.
    pub async fn whole_credential(&self, wanted: &CredentialRef) -> Result<CredentialRef, ServiceError> {
        let row = self.repositories.credential(Some(wanted)).await?;
        match wanted {
            CredentialRef::Name(name) if *name != row.name => Err(full_id_required(
                ErrorCode::CredentialNotFound,
                "credential",
                wanted,
                &row.name,
                &row.uuid,
            )),
            _ => Ok(CredentialRef::Id(row.uuid)),
        }
    }
}
