//! Changing the passphrase and the data key of what is stored under a credential.

use crate::{
    cloud,
    core::Core,
    credentials::encode_keys,
    db::{CredentialRow, TaskKind},
    error::ServiceError,
    secrets::Purpose,
};
use blockd_api::{
    CredentialRef, ErrorCode,
    credentials::{CredentialRekeyed, RekeyCredential},
};
use blockd_cloud::{KdfParams, Rekey, store::task_store};
use std::sync::Arc;
use zeroize::Zeroizing;

impl Core {
    /// Changes the passphrase, the data key of new backups, or both; with neither, finds the data keys that other hosts
    /// made.
    ///
    /// # Errors
    /// The passphrase opens nothing, or a backup to this place is under way and its data key would change.
    pub async fn rekey_credential(
        self: &Arc<Self>,
        wanted: &CredentialRef,
        request: RekeyCredential,
    ) -> Result<CredentialRekeyed, ServiceError> {
        let _admission = self.admission.lock().await;
        let row = self.credential(Some(wanted)).await?;
        let uuid = row.uuid;
        if request.new_data_key {
            let is_backup = |kind, credential| kind == TaskKind::Backup && credential == uuid;
            let tasks = self.unfinished_tasks().await?;
            if let Some(task) = tasks.into_iter().find(|task| is_backup(task.kind, task.credential)) {
                let message =
                    format!("credential {} is used by backup task {}: wait for it to end", row.name, task.id);
                return Err(ServiceError::refused(ErrorCode::CredentialInUse, message));
            }
            // What they stored is sealed under the key of before.
            self.give_up_kept(|task| is_backup(task.kind, task.credential)).await?;
        }
        let (repository, bandwidth) = self.opened_repository(uuid).await?;
        let base = Arc::clone(repository.store());
        let (store, _) = task_store(Arc::clone(&base), self.retry_policy());
        let text = |secret: &blockd_api::Secret| Zeroizing::new(secret.expose().to_owned());
        let rekey = Rekey {
            passphrase: text(&request.passphrase),
            new_passphrase: request.new_passphrase.as_ref().map(text),
            new_data_key: request.new_data_key,
            kdf: KdfParams::default(),
        };
        let (repository, done) = cloud::rekey(store, rekey).await?;
        let keys = self.secrets.seal(uuid, Purpose::DataKeys, &encode_keys(repository.keys())?)?;
        self.db.run(move |tx| CredentialRow::set_data_keys(tx, uuid, &keys)).await?;
        let data_keys = repository.keys().len() as u64;
        self.repositories.opened.lock().insert(uuid, (repository.with_store(base), bandwidth));
        tracing::info!(credential = %uuid, name = %row.name, rewrapped = done.rewrapped, new_data_key = done.new_data_key, "keys changed");
        Ok(CredentialRekeyed {
            uuid,
            name: row.name,
            rewrapped: done.rewrapped as u64,
            foreign: done.foreign as u64,
            new_data_key: done.new_data_key,
            data_keys,
        })
    }
}
