//! Existing backup locations under the options of `blockctl init`.

use super::args::InitArgs;
use crate::{failure::Failure, output::Context, secrets::read_file};
use blockd_api::{
    ClientError, CredentialRef,
    credentials::{Credential, RekeyCredential},
    operations,
};
use std::path::PathBuf;

/// Returns the file of a requested recovery key if it opens the existing location: an earlier `init` wrote it.
///
/// # Errors
/// There is no such file, or it does not open the location: an existing location takes no new key.
pub async fn recovery_key(
    context: &Context<'_>,
    args: &InitArgs,
    found: &Credential,
) -> Result<Option<PathBuf>, Failure> {
    let Some(file) = &args.new_recovery_key else { return Ok(None) };
    let refused = |cause: String| Failure::Usage {
        message: format!("backup location {} exists, {cause}", found.name),
        hint: Some("omit --new-recovery-key, or name another location".to_owned()),
    };
    if !found.encrypted {
        return Err(refused("and stores backups unencrypted: it has no recovery key".to_owned()));
    }
    if !file.exists() {
        return Err(refused("and keeps its recovery key".to_owned()));
    }
    let request = RekeyCredential {
        passphrase: Some(read_file("recovery key", file)?),
        new_passphrase: None,
        new_data_key: false,
        accept_key: None,
    };
    let location = CredentialRef::Id(found.credential_id);
    match context.client.call_at(operations::REKEY_CREDENTIAL, &location, &request).await {
        Ok(_) => Ok(Some(file.clone())),
        Err(ClientError::Api(error)) => {
            Err(refused(format!("and {} does not open it: {}", file.display(), error.message)))
        }
        Err(error) => Err(error.into()),
    }
}
