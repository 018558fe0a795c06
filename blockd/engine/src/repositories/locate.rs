//! Locates the repository that holds a cloud snapshot.

use crate::{error::ServiceError, repositories::Repositories};
use blockd_api::{CredentialRef, ErrorCode};
use blockd_catalog::CredentialRow;
use blockd_cloud::{CloudError, CloudSnapshotId};
use futures::StreamExt;
use std::collections::BTreeSet;

/// Purpose of the lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Read: any repository that holds it is suitable.
    Read,
    /// Deletion: the repository must be unambiguous.
    Delete,
}

impl Repositories {
    /// Returns the credential of a cloud snapshot: the named one, the only one, or one whose store has it.
    ///
    /// # Errors
    /// There is none of that name, no store has the cloud snapshot, or several have one to delete.
    pub async fn credential_with(
        &self,
        id: &CloudSnapshotId,
        wanted: Option<&CredentialRef>,
        purpose: Purpose,
    ) -> Result<CredentialRow, ServiceError> {
        let rows = self.credential_rows().await?;
        if wanted.is_some() || rows.len() < 2 {
            return self.credential(wanted).await;
        }
        let (mut found, mut failed) = (Vec::new(), None);
        // Concurrently, so that several silent stores take no longer than one.
        let asked = rows.into_iter().map(|row| {
            Box::pin(async move {
                let answer = self.is_in(&row, id, purpose).await;
                (row, answer)
            })
        });
        let mut answers = futures::stream::iter(asked).buffer_unordered(MAX_CONCURRENT_LOOKUPS);
        while let Some((row, answer)) = answers.next().await {
            match answer {
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
        if found.len() > 1 {
            found = self.one_of_each_location(found).await;
        }
        // Sorted, because the order of the responses varies.
        let mut names: Vec<String> = found.iter().map(|row| row.name.to_string()).collect();
        names.sort_unstable();
        let unclear = |what: String| {
            let message = format!("{what}: select one with --cred-id");
            Err(ServiceError::refused(ErrorCode::CredentialRequired, message))
        };
        match (found.pop(), found.is_empty(), failed) {
            (Some(_), false, _) => {
                unclear(format!("cloud snapshot {id} is in the stores of {}", names.join(" and ")))
            }
            (Some(_), true, Some((name, error))) if purpose == Purpose::Delete => unclear(format!(
                "cloud snapshot {id} is in the store of {}, and may be in that of {name}, whose lookup failed ({error})",
                names.join("")
            )),
            (Some(only), true, _) => Ok(only),
            (None, _, Some((_, error))) => Err(error),
            (None, _, None) => Err(ServiceError::refused(
                ErrorCode::CloudsnapNotFound,
                format!("no cloud snapshot {id} in the stores of any credential"),
            )),
        }
    }

    /// Returns one credential of each location: several of one location reach the same cloud snapshot.
    async fn one_of_each_location(&self, rows: Vec<CredentialRow>) -> Vec<CredentialRow> {
        let (mut seen, mut kept) = (BTreeSet::new(), Vec::new());
        for row in rows {
            if seen.insert(self.location_id(&row).await.unwrap_or(row.uuid)) {
                kept.push(row);
            }
        }
        kept
    }

    /// Returns true if the store of a credential has the cloud snapshot, intact or not.
    async fn is_in(
        &self,
        row: &CredentialRow,
        id: &CloudSnapshotId,
        purpose: Purpose,
    ) -> Result<bool, ServiceError> {
        match self.preflight_manifest(row.uuid, id).await {
            Ok(_) => Ok(true),
            Err(ServiceError::Cloud(error)) if matches!(*error, CloudError::Damaged { .. }) => Ok(true),
            Err(ServiceError::Cloud(error)) if matches!(*error, CloudError::SnapshotNotFound { .. }) => {
                // The directory of an unmounted disk is empty.
                if purpose == Purpose::Delete {
                    let proof = Box::pin(async {
                        let repository = self.repository_for_client(row.uuid).await?;
                        Ok(repository.prove_key_slot().await?)
                    });
                    self.preflight(row.uuid, proof).await?;
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Maximum number of stores that are searched concurrently for one cloud snapshot.
pub const MAX_CONCURRENT_LOOKUPS: usize = 8;
