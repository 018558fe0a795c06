//! Credentials whose secrets cannot be unsealed.

use crate::{
    error::ServiceError,
    health::CREDENTIAL,
    repositories::{Repositories, opening::cannot_be_opened},
};
use blockd_catalog::CredentialRow;

impl Repositories {
    /// Records a problem for each credential whose secrets cannot be unsealed: its backups will fail.
    pub async fn check_credentials(&self) -> Result<(), ServiceError> {
        let rows = self.credential_rows().await?;
        rows.iter().for_each(|row| self.check_credential(row));
        let is_there = |of: &String| rows.iter().any(|row| row.uuid.to_string() == *of);
        self.health.problems.lock().retain(|(kind, of), _| *kind != CREDENTIAL || is_there(of));
        Ok(())
    }

    fn check_credential(&self, row: &CredentialRow) {
        let of = row.uuid.to_string();
        match cannot_be_opened(&self.secrets, row) {
            None => drop(self.health.clear(CREDENTIAL, &of)),
            Some(error) => {
                let what = format!("credential {} cannot be used: {error}", row.name);
                let todo = format!(
                    "restore the key and restart blockd, or run blockctl credentials update {}",
                    row.name
                );
                if self.health.note(CREDENTIAL, &of, what, todo) {
                    tracing::error!(credential = %row.name, %error, "unsealing the secrets of a credential failed: its backups fail");
                }
            }
        }
    }
}
