//! Refusal of settings that do not belong together.

use super::Settings;
use crate::failure::Failure;
use blockd_api::credentials::ProviderKind;
use std::path::Path;

/// Options of `credentials create` that `credentials update` refuses, as other commands are for them.
const UNCHANGEABLE: &str = "provider bucket prefix path s3-endpoint s3-region s3-disable-ssl disable-path-style \
    azure-account-name azure-endpoint google-project-id google-endpoint swift-auth-version swift-auth-url swift-user \
    swift-region swift-tenant-name swift-tenant-id swift-user-domain-name swift-project-name swift-project-domain-name \
    swift-storage-url use-proxy limit-upload limit-download limit-time-zone";

/// Returns true if `credentials update` takes an option.
pub fn is_changeable(option: &str) -> bool {
    UNCHANGEABLE.split(' ').all(|unchangeable| unchangeable != option)
}

/// Returns the providers that an option belongs to; `None` for all.
fn owners(option: &str) -> Option<&'static [ProviderKind]> {
    use ProviderKind::{Azure, Google, Local, S3, Swift};
    Some(match option {
        "path" => &[Local],
        "disable-path-style" => &[S3],
        "use-iam" => &[S3, Azure, Google],
        "bucket" | "ca-certificate" | "proxy" | "use-proxy" => &[S3, Azure, Google, Swift],
        _ => match option.split_once('-')?.0 {
            "s3" => &[S3],
            "azure" => &[Azure],
            "google" => &[Google],
            "swift" => &[Swift],
            _ => return None,
        },
    })
}

impl Settings {
    /// Refuses settings of other providers; `but` names the provider in the message.
    ///
    /// # Errors
    /// One is given.
    pub fn refuse_foreign(&self, chosen: ProviderKind, but: &str) -> Result<(), Failure> {
        let is_foreign = |option: &String| owners(option).is_some_and(|owners| !owners.contains(&chosen));
        let given = self.given();
        let Some(option) = given.keys().find(|option| is_foreign(option)) else { return Ok(()) };
        let owners: Vec<&str> = owners(option).unwrap_or_default().iter().map(|kind| kind.name()).collect();
        let owner = match owners.split_last() {
            Some((last, [_, ..])) => format!("{} or {last}", owners[..owners.len() - 1].join(", ")),
            _ => owners.concat(),
        };
        Err(Failure::usage(format!("--{option} belongs to --provider {owner}, {but}")))
    }

    /// Refuses two files on stdin; `what` names them in the message.
    ///
    /// # Errors
    /// Two are given.
    pub fn refuse_two_on_stdin(&self, what: &str, file: Option<&Path>) -> Result<(), Failure> {
        let on_stdin = [
            file,
            self.ca_certificate.as_deref(),
            self.s3_secret_key_file.as_deref(),
            self.azure_account_key_file.as_deref(),
            self.azure_sas_token_file.as_deref(),
            self.google_json_key_file.as_deref(),
            self.swift_key_file.as_deref(),
            self.swift_token_file.as_deref(),
            self.encryption_passphrase_file.as_deref(),
        ];
        if on_stdin.into_iter().flatten().filter(|path| path.as_os_str() == "-").count() > 1 {
            return Err(Failure::usage(format!(
                "two {what} cannot both be read from stdin: give a file for one of them"
            )));
        }
        Ok(())
    }
}
