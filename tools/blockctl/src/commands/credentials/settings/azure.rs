//! Settings of Azure Blob Storage.

use super::{Defaults, Settings, needs, own_endpoint};
use crate::{failure::Failure, secrets::Sources};
use blockd_api::credentials::{AzureAccess, AzureAuth, AzureConfig};

impl Settings {
    pub(super) fn azure_config(&self) -> Result<AzureConfig, Failure> {
        let needs = |what: &str| needs("azure", what);
        let defaults = Defaults::Environment;
        let account = defaults.or_variable(&self.azure_account_name, &["AZURE_STORAGE_ACCOUNT"]);
        let account = account.ok_or_else(|| needs("--azure-account-name NAME, or AZURE_STORAGE_ACCOUNT"))?;
        let (endpoint, disable_ssl) = own_endpoint("--azure-endpoint", self.azure_endpoint.as_ref())?;
        // Without a name, the daemon creates one named after its cluster.
        let container = self.bucket.clone().unwrap_or_default();
        let access = self.azure_access(defaults)?.ok_or_else(|| {
            needs(
                "--azure-account-key-file FILE, --azure-sas-token-file FILE, AZURE_STORAGE_KEY in the environment, or --use-iam",
            )
        })?;
        Ok(AzureConfig { account, container, endpoint, disable_ssl, access })
    }

    pub(super) fn azure_access(&self, defaults: Defaults) -> Result<Option<AzureAccess>, Failure> {
        let key = Sources::new(
            "Azure account key",
            &self.azure_account_key,
            &self.azure_account_key_file,
            &self.azure_account_key_from,
            defaults.variable("AZURE_STORAGE_KEY"),
        );
        let sas = Sources::new(
            "Azure shared access signature",
            &self.azure_sas_token,
            &self.azure_sas_token_file,
            &self.azure_sas_token_from,
            defaults.variable("AZURE_STORAGE_SAS_TOKEN"),
        );
        if u8::from(key.is_given()) + u8::from(sas.is_given()) + u8::from(self.use_iam) > 1 {
            let message =
                "--azure-account-key, --azure-sas-token and --use-iam exclude each other: give one of them";
            return Err(Failure::usage(message));
        }
        if self.azure_client_id.is_some() && !self.use_iam {
            return Err(Failure::usage("--azure-client-id belongs to --use-iam"));
        }
        let auth = if self.use_iam {
            AzureAuth::ManagedIdentity { client_id: self.azure_client_id.clone() }
        } else if sas.is_given() {
            AzureAuth::Sas { token: sas.input()? }
        } else if let Some(key) = key.input()? {
            AzureAuth::AccountKey { key: Some(key) }
        } else if let Some(token) = sas.input()? {
            AzureAuth::Sas { token: Some(token) }
        } else {
            return Ok(None);
        };
        Ok(Some(AzureAccess { auth }))
    }
}
