//! The beginning of an id, where it says as much as all of it, and where it does not.

use crate::{core::Core, error::ServiceError};
use blockd_api::{CredentialRef, ErrorCode, SnapshotRef, VolumeRef};
use std::fmt::Display;

/// The fewest characters: fewer are hit by mistake.
const MIN_LEN: usize = 4;
/// The most digits of a number: what is longer is taken for all of an id, so that nothing stands for a longer
/// one by chance.
const MAX_DIGITS: usize = 15;

/// The one whose id begins with `text`; none if there is none, or if it is too little to tell.
///
/// # Errors
/// There are several.
pub(crate) fn only_one<T>(
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
            let message =
                format!("{} {what} have an id that begins with {text}: give more of it", others + 1);
            Err(ServiceError::refused(ErrorCode::InvalidRequest, message))
        }
    }
}

/// What is answered where only all of an id would do.
fn whole_id_wanted(
    code: ErrorCode,
    what: &str,
    given: &dyn Display,
    found: &dyn Display,
    id: &dyn Display,
) -> ServiceError {
    let message = format!(
        "there is no {what} {given}: to delete, roll back or rekey one, give its name or its whole id, which is {id} for {found}"
    );
    ServiceError::refused(code, message)
}

/// What is meant by a request that takes something away. Of names and ids only all of it counts: a beginning
/// can be of another one a moment later, when what had it is gone.
impl Core {
    /// A volume by its name or its whole id.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn whole_volume(&self, wanted: &VolumeRef) -> Result<VolumeRef, ServiceError> {
        let entry = self.registry.find(wanted)?;
        match wanted {
            VolumeRef::Id(id) if *id != entry.id => {
                Err(whole_id_wanted(ErrorCode::VolumeNotFound, "volume", wanted, &entry.name, &entry.id))
            }
            _ => Ok(wanted.clone()),
        }
    }

    /// A snapshot by its whole id, or by its name and that of its volume or the whole id of that.
    ///
    /// # Errors
    /// There is none, or no such volume.
    pub(crate) async fn whole_snapshot(&self, wanted: &SnapshotRef) -> Result<SnapshotRef, ServiceError> {
        let id = match wanted {
            SnapshotRef::Named { volume, name } => {
                return Ok(SnapshotRef::Named { volume: self.whole_volume(volume)?, name: name.clone() });
            }
            SnapshotRef::Id(id) => *id,
        };
        let row = self.find_snapshot(wanted).await?;
        if row.id == id {
            return Ok(wanted.clone());
        }
        Err(whole_id_wanted(ErrorCode::SnapshotNotFound, "snapshot", wanted, &row.name, &row.id))
    }

    /// A credential by its name or its whole UUID.
    ///
    /// # Errors
    /// There is none.
    pub(crate) async fn whole_credential(
        &self,
        wanted: &CredentialRef,
    ) -> Result<CredentialRef, ServiceError> {
        let row = self.credential(Some(wanted)).await?;
        match wanted {
            CredentialRef::Name(name) if *name != row.name => Err(whole_id_wanted(
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
    fn a_beginning_must_be_long_enough_and_of_one_id_only() {
        let ids = ["2724748349674290844", "2724000000000000001", "af563a4d-afd7-48df-90f7-8e8f9414ff77"];
        let found = |text: &str| only_one("volumes", text, ids.into_iter().map(|id| (id.to_owned(), id)));
        assert_eq!(found("27247").unwrap(), Some(ids[0]));
        assert_eq!(found("AF56").unwrap(), Some(ids[2]));
        for none in ["", "272", "af5", "9999", "27247483496742908", "nas-1"] {
            assert_eq!(found(none).unwrap(), None, "{none}");
        }
        let error = found("2724").unwrap_err().to_api();
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        assert!(error.message.starts_with("2 volumes have an id that begins with 2724"), "{}", error.message);
    }
}
