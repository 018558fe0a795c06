//! Settings of Google Cloud Storage.

use super::{Defaults, Settings, needs, own_endpoint};
use crate::{failure::Failure, secrets::read_file};
use blockd_api::credentials::{GoogleAccess, GoogleConfig};
use std::path::PathBuf;

impl Settings {
    pub(super) fn google_config(&self) -> Result<GoogleConfig, Failure> {
        let (endpoint, disable_ssl) = own_endpoint("--google-endpoint", self.google_endpoint.as_ref())?;
        let bucket = self.bucket.clone().unwrap_or_default();
        // Without a name, the daemon creates one named after its cluster.
        if bucket.is_empty() && self.google_project_id.is_none() {
            return Err(needs("google", "--bucket BUCKET, or --google-project-id ID for a new bucket"));
        }
        let access = self.google_access(Defaults::Environment)?;
        if access == GoogleAccess::default() {
            return Err(needs(
                "google",
                "--google-json-key-file FILE, or GOOGLE_APPLICATION_CREDENTIALS, or --use-iam",
            ));
        }
        Ok(GoogleConfig { project: self.google_project_id.clone(), bucket, endpoint, disable_ssl, access })
    }

    pub(super) fn google_access(&self, defaults: Defaults) -> Result<GoogleAccess, Failure> {
        let (file, from) = (&self.google_json_key_file, &self.google_json_key_from);
        if self.use_iam && (file.is_some() || from.is_some()) {
            return Err(Failure::usage(
                "--use-iam and --google-json-key-file are both given: drop one of them",
            ));
        }
        if let Some(key) = &self.google_json_key {
            return Ok(GoogleAccess { json_key: Some(key.clone().into()), use_iam: self.use_iam });
        }
        let json_key = match (file, from) {
            (Some(_), Some(_)) => {
                return Err(Failure::usage(
                    "--google-json-key-file and --google-json-key-from are both given: drop one of them",
                ));
            }
            (None, Some(reference)) => Some(reference.clone().into()),
            (None, None) if self.use_iam => None,
            (file, None) => {
                let variable = || defaults.or_variable(&None, &["GOOGLE_APPLICATION_CREDENTIALS"]);
                let file = file.clone().or_else(|| variable().map(PathBuf::from));
                file.map(|file| read_file("Google key file", &file)).transpose()?.map(Into::into)
            }
        };
        Ok(GoogleAccess { json_key, use_iam: self.use_iam })
    }
}
