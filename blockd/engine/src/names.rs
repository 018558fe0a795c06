//! Resolution of unique id prefixes, and refusal of prefixes for destructive requests.

use crate::{
    error::ServiceError, repositories::Repositories, snapshots::Snapshots, volumes::registry::Registry,
};
use blockd_api::{CredentialRef, ErrorCode, SnapshotRef, VolumeRef};
use std::{fmt::Display, sync::Arc};

/// Minimum length of a prefix: shorter ones match by accident.
const MIN_LEN: usize = 4;
/// Maximum length of a numeric prefix: longer numbers are complete ids, so that an id never matches a longer
/// one by chance.
const MAX_DIGITS: usize = 15;

/// Resolves abbreviated ids.
pub struct Names {
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) snapshots: Arc<Snapshots>,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

/// Returns the entry whose id starts with `text`; `None` if there is none or the prefix is too short.
///
/// # Errors
/// Several ids start with `text`.
pub fn only_one<T>(
    what: &str,
    text: &str,
    all: impl Iterator<Item = (String, T)>,
) -> Result<Option<T>, ServiceError> {
    let text = text.to_ascii_lowercase();
    let is_number = text.bytes().all(|b| b.is_ascii_digit());
    if text.len() < MIN_LEN || (is_number && text.len() > MAX_DIGITS) {
        return Ok(None);
    }
    let mut found = all.filter(|(id, _)| id.starts_with(&text)).map(|(_, one)| one);
    let first = found.next();
    match found.count() {
        0 => Ok(first),
        others => {
            let message = format!(
                "id prefix {text} is ambiguous: it matches {} {what}; give more characters",
                others + 1
            );
            Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_prefix_must_be_long_enough_and_unique() {
        let ids = ["2724748349674290844", "2724000000000000001", "af563a4d-afd7-48df-90f7-8e8f9414ff77"];
        let found = |text: &str| only_one("volumes", text, ids.into_iter().map(|id| (id.to_owned(), id)));
        assert_eq!(found("27247").unwrap(), Some(ids[0]));
        assert_eq!(found("AF56").unwrap(), Some(ids[2]));
        for none in ["", "272", "af5", "9999", "27247483496742908", "nas-1"] {
            assert_eq!(found(none).unwrap(), None, "{none}");
        }
        let error = found("2724").unwrap_err().to_api();
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        assert!(
            error.message.contains("prefix 2724 is ambiguous: it matches 2 volumes"),
            "{}",
            error.message
        );
    }
}
