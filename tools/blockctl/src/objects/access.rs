//! Access to a location, which can change while its place stays: keys, references, roles and the proxy.

use super::location::Location;
use crate::{
    cli::credential_update::{Place, UpdateArgs},
    commands::credential_update,
    failure::Failure,
};
use blockd_api::{
    CredentialRef,
    credential_update::UpdateCredential,
    credentials::{Credential, ProviderKind},
};

/// Fields of a location that describe access.
const FIELDS: [&str; 16] = [
    "location.s3Config.accessKeyID",
    "location.s3Config.secretAccessKey",
    "location.s3Config.storageClass",
    "location.s3Config.useIAM",
    "location.s3Config.roleARN",
    "location.s3Config.externalID",
    "location.azureConfig.storageAccountKey",
    "location.azureConfig.sasToken",
    "location.azureConfig.useManagedIdentity",
    "location.googleConfig.accountKey",
    "location.googleConfig.useIAM",
    "location.swiftConfig.key",
    "location.swiftConfig.token",
    "location.proxy",
    "location.encryptionKey",
    STORE_KEY,
];

/// Stands for a given secret, which is not shown.
const STORE_KEY: &str = "location.secretConfig";

/// Returns true for the path of a field that describes access.
pub fn is_access(path: &str) -> bool {
    FIELDS
        .iter()
        .any(|field| path.strip_prefix(field).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// Secret that replaces a reference or identity, and is stored by the daemon.
#[derive(Debug, PartialEq, Eq)]
pub struct MovedField {
    /// Path of the field.
    pub path: &'static str,
    /// Replaced reference or identity.
    pub was: String,
}

impl Location {
    /// Returns true if the file gives a secret of the store, which cannot be compared with the stored one.
    pub fn gives_store_key(&self) -> bool {
        let one = &self.settings;
        one.s3_secret_key.is_some()
            || one.s3_secret_key_file.is_some()
            || one.azure_account_key.is_some()
            || one.azure_account_key_file.is_some()
            || one.azure_sas_token.is_some()
            || one.azure_sas_token_file.is_some()
            || one.google_json_key_file.is_some()
            || one.swift_key.is_some()
            || one.swift_key_file.is_some()
            || one.swift_token.is_some()
            || one.swift_token_file.is_some()
    }

    /// Returns the secrets of the file for which the daemon has a reference or identity.
    pub fn moved(&self, is: &Credential) -> Vec<MovedField> {
        let one = &self.settings;
        let is_identity = is.auth.as_deref().is_some_and(|auth| auth.ends_with(" identity"));
        let key = is.store_key_from.as_ref().map(ToString::to_string);
        let key = key.or_else(|| is_identity.then(|| "the identity of the machine".to_owned()));
        let passphrase = is.encryption_key_from.as_ref().map(ToString::to_string);
        let gives_passphrase =
            one.encryption_passphrase.is_some() || one.encryption_passphrase_file.is_some();
        let key = key.filter(|_| self.gives_store_key()).map(|was| MovedField { path: STORE_KEY, was });
        let passphrase = passphrase.filter(|_| gives_passphrase);
        let passphrase = passphrase.map(|was| MovedField { path: "location.encryptionKey", was });
        key.into_iter().chain(passphrase).collect()
    }

    /// Returns the request that sets the access of this location, with its secrets; unset fields stay.
    ///
    /// # Errors
    /// A secret cannot be read, or belongs to another kind of store.
    pub fn update(&self, of: CredentialRef, kept: ProviderKind) -> Result<UpdateCredential, Failure> {
        let one = self.settings.clone();
        let args = UpdateArgs {
            credential: of,
            use_iam: one.use_iam,
            s3_access_key: one.s3_access_key,
            s3_secret_key: one.s3_secret_key,
            s3_secret_key_file: one.s3_secret_key_file,
            s3_secret_key_from: one.s3_secret_key_from,
            s3_role_arn: one.s3_role_arn,
            s3_external_id: one.s3_external_id,
            s3_sts_endpoint: one.s3_sts_endpoint,
            s3_storage_class: one.s3_storage_class,
            azure_account_key: one.azure_account_key,
            azure_account_key_file: one.azure_account_key_file,
            azure_account_key_from: one.azure_account_key_from,
            azure_sas_token: one.azure_sas_token,
            azure_sas_token_file: one.azure_sas_token_file,
            azure_sas_token_from: one.azure_sas_token_from,
            azure_client_id: one.azure_client_id,
            google_json_key_file: one.google_json_key_file,
            google_json_key_from: one.google_json_key_from,
            swift_key: one.swift_key,
            swift_key_file: one.swift_key_file,
            swift_key_from: one.swift_key_from,
            swift_token: one.swift_token,
            swift_token_file: one.swift_token_file,
            swift_token_from: one.swift_token_from,
            ca_certificate: one.ca_certificate.map(|path| path.to_string_lossy().into_owned()),
            proxy: one.proxy,
            encryption_passphrase: one.encryption_passphrase,
            encryption_passphrase_file: one.encryption_passphrase_file,
            encryption_passphrase_from: one.encryption_passphrase_from,
            place: Place::default(),
        };
        credential_update::request(&args, kept)
    }
}
