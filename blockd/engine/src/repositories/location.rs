//! Identity of the location of a credential. A copy of a bucket has another one.

use crate::{
    error::{ServiceError, blocking},
    repositories::Repositories,
};
use blockd_api::{CredentialRef, ErrorCode, credentials::StoreConfig};
use blockd_catalog::CredentialRow;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::path::Path;
use uuid::Uuid;

/// Returns the identity of a credential's location, which all hosts of the location compute.
///
/// # Errors
/// The directory is not accessible.
pub async fn location_of(row: CredentialRow, host: Uuid) -> Result<Uuid, ServiceError> {
    blocking(move || {
        let directory = match &row.store.config {
            StoreConfig::Local { path } => {
                let prefix = row.store.connection.prefix.as_deref().unwrap_or_default();
                let directory = path.join(prefix.trim_matches('/')).join("blockd");
                identity(&directory).map_err(|error| {
                    let message = format!("status failed on directory {}: {error}", directory.display());
                    ServiceError::refused(ErrorCode::StoreFailed, message)
                })?
            }
            _ => None,
        };
        Ok::<_, ServiceError>(row.location_id(host, directory.as_deref()))
    })
    .await
}

impl Repositories {
    /// Returns the identity of a credential's location; `None` if its directory is not accessible.
    pub async fn location_id(&self, row: &CredentialRow) -> Option<Uuid> {
        location_of(row.clone(), self.host.cluster).await.ok()
    }

    /// Returns the identity of the location that a credential has now, as [`location_id`](Self::location_id).
    pub async fn location_now(&self, credential: Uuid) -> Option<Uuid> {
        let row = self.credential(Some(&CredentialRef::Id(credential))).await.ok()?;
        self.location_id(&row).await
    }
}

/// Returns the inode and the creation time of a directory. Both stay when its disk is mounted elsewhere or on
/// another host, and no copy by files has both. `None` if the filesystem does not record creation times.
fn identity(directory: &Path) -> rustix::io::Result<Option<String>> {
    let flags = StatxFlags::INO | StatxFlags::BTIME;
    let found = statx(CWD, directory, AtFlags::empty(), flags)?;
    let has = |flag: StatxFlags| found.stx_mask & flag.bits() != 0;
    let created = found.stx_btime;
    let is_known = has(StatxFlags::INO) && has(StatxFlags::BTIME);
    Ok(is_known.then(|| format!("{}/{}.{:09}", found.stx_ino, created.tv_sec, created.tv_nsec)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn copied_directory_is_another_location() {
        let dir = tempfile::tempdir().unwrap();
        let [original, copy, moved] = ["original", "copy", "moved"].map(|name| dir.path().join(name));
        fs::create_dir(&original).unwrap();
        fs::create_dir(&copy).unwrap();
        let before = identity(&original);
        assert_ne!(before, identity(&copy));
        fs::write(original.join("file"), "x").unwrap();
        fs::rename(&original, &moved).unwrap();
        assert_eq!(before, identity(&moved));
        assert_eq!(identity(&original).unwrap_err(), rustix::io::Errno::NOENT);
    }
}
