//! In which store a cloud snapshot is, where nobody says it.

use crate::{core::Core, db::CredentialRow, error::ServiceError};
use blockd_api::{CredentialRef, ErrorCode};
use blockd_cloud::{CloudError, CloudsnapId};

/// What is to be done with a cloud snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// It is read: any place that has it will do.
    Read,
    /// It goes: there must be no doubt which one is meant.
    Delete,
}

impl Core {
    /// The credential of a request about a cloud snapshot: the named one, the only one, or the one whose store has it.
    ///
    /// # Errors
    /// There is none of that name, no store has the cloud snapshot, or several have what is to be deleted.
    pub(crate) async fn credential_with(
        &self,
        id: &CloudsnapId,
        wanted: Option<&CredentialRef>,
        purpose: Purpose,
    ) -> Result<CredentialRow, ServiceError> {
        let rows = self.credential_rows().await?;
        if wanted.is_some() || rows.len() < 2 {
            return self.credential(wanted).await;
        }
        let (mut found, mut failed) = (Vec::new(), None);
        for row in rows {
            match self.is_in(&row, id, purpose).await {
                Ok(true) => found.push(row),
                Ok(false) => continue,
                Err(error) => {
                    failed.get_or_insert((row.name, error));
                    continue;
                }
            }
            if purpose == Purpose::Read {
                break;
            }
        }
        let names: Vec<String> = found.iter().map(|row| row.name.to_string()).collect();
        let unclear = |what: String| {
            let message = format!("{what}: say which one is meant with --cred-id");
            Err(ServiceError::refused(ErrorCode::CredentialRequired, message))
        };
        match (found.pop(), found.is_empty(), failed) {
            (Some(_), false, _) => unclear(format!("cloud snapshot {id} is under {}", names.join(" and "))),
            (Some(_), true, Some((name, error))) if purpose == Purpose::Delete => unclear(format!(
                "cloud snapshot {id} is under {}, and may be under {name} as well, which cannot be asked ({error})",
                names.join("")
            )),
            (Some(only), true, _) => Ok(only),
            (None, _, Some((_, error))) => Err(error),
            (None, _, None) => Err(ServiceError::refused(
                ErrorCode::CloudsnapNotFound,
                format!("there is no cloud snapshot {id} under any of the credentials"),
            )),
        }
    }

    /// Whether a cloud snapshot is in the store of a credential, whatever it looks like.
    async fn is_in(
        &self,
        row: &CredentialRow,
        id: &CloudsnapId,
        purpose: Purpose,
    ) -> Result<bool, ServiceError> {
        let (repository, _) = self.task_repository(row.uuid).await?;
        match Box::pin(repository.manifest(id)).await {
            Ok(_) | Err(CloudError::Damaged { .. }) => Ok(true),
            Err(CloudError::SnapshotNotFound { .. }) => {
                // The directory of a disk that is not mounted is empty, and says that nothing is there.
                if purpose == Purpose::Delete {
                    repository.prove_key_slot().await?;
                }
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}
