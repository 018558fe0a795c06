//! Settings of OpenStack Swift, whose variables depend on the version of the auth service.

use super::{Defaults, Settings, needs, variable};
use crate::{failure::Failure, secrets::Sources};
use blockd_api::{
    SecretInput,
    credentials::{SwiftAccess, SwiftAuth, SwiftConfig},
};

impl Settings {
    pub(super) fn swift_config(&self) -> Result<SwiftConfig, Failure> {
        let container = self.bucket.clone().filter(|bucket| !bucket.is_empty());
        let container = container
            .ok_or_else(|| needs("swift", "--bucket BUCKET: blockd creates no containers of Swift"))?;
        let has_token_flag = self.swift_token.is_some()
            || self.swift_token_file.is_some()
            || self.swift_token_from.is_some()
            || self.swift_storage_url.is_some();
        let has_user_flag = self.swift_auth_url.is_some() || self.swift_user.is_some();
        if has_token_flag && has_user_flag {
            return Err(Failure::usage(
                "--swift-token excludes --swift-auth-url and --swift-user: drop one of them",
            ));
        }
        let env_token = variable(&["OS_AUTH_TOKEN"]).is_some() && variable(&["OS_STORAGE_URL"]).is_some();
        let (auth, access) = match has_token_flag || (env_token && !has_user_flag) {
            true => self.swift_token()?,
            false => self.swift_user()?,
        };
        Ok(SwiftConfig { container, auth, access })
    }

    /// Returns the given secrets; the daemon refuses the one that the credential does not use.
    pub(super) fn swift_access(&self) -> Result<Option<SwiftAccess>, Failure> {
        let access = SwiftAccess { key: self.swift_key_of("")?, token: self.swift_token_of("")? };
        Ok(Some(access).filter(|access| *access != SwiftAccess::default()))
    }

    fn swift_key_of(&self, variable: &'static str) -> Result<Option<SecretInput>, Failure> {
        Sources::new("Swift key", &self.swift_key, &self.swift_key_file, &self.swift_key_from, variable)
            .input()
    }

    fn swift_token_of(&self, variable: &'static str) -> Result<Option<SecretInput>, Failure> {
        Sources::new(
            "Swift token",
            &self.swift_token,
            &self.swift_token_file,
            &self.swift_token_from,
            variable,
        )
        .input()
    }

    fn swift_token(&self) -> Result<(SwiftAuth, SwiftAccess), Failure> {
        let needs = |what: &str| needs("swift", what);
        let url = given_or(&self.swift_storage_url, &["OS_STORAGE_URL"]);
        let storage_url = url.ok_or_else(|| needs("--swift-storage-url URL, or OS_STORAGE_URL"))?;
        let token = self.swift_token_of("OS_AUTH_TOKEN")?;
        let token = token.ok_or_else(|| needs("--swift-token-file FILE, or OS_AUTH_TOKEN"))?;
        Ok((SwiftAuth::Token { storage_url }, SwiftAccess { token: Some(token), key: None }))
    }

    fn swift_user(&self) -> Result<(SwiftAuth, SwiftAccess), Failure> {
        let needs = |what: &str| needs("swift", what);
        let version = self.swift_auth_version.or_else(|| self.guess_swift_version());
        let version = version.ok_or_else(|| {
            needs("--swift-auth-version 1, 2 or 3: the given options (or ST_… and OS_… in the environment) do not determine it")
        })?;
        let v1 = version == 1;
        let url = given_or(&self.swift_auth_url, if v1 { &["ST_AUTH"] } else { &["OS_AUTH_URL"] });
        let auth_url = url.ok_or_else(|| needs("--swift-auth-url URL, or ST_AUTH or OS_AUTH_URL"))?;
        let user = given_or(&self.swift_user, if v1 { &["ST_USER"] } else { &["OS_USERNAME"] });
        let user = user.ok_or_else(|| needs("--swift-user USER, or ST_USER or OS_USERNAME"))?;
        let key = self.swift_key_of(if v1 { "ST_KEY" } else { "OS_PASSWORD" })?;
        let key = key.ok_or_else(|| needs("--swift-key-file FILE, or ST_KEY or OS_PASSWORD"))?;
        let region = given_or(&self.swift_region, &["OS_REGION_NAME"]);
        let auth = match version {
            1 => SwiftAuth::V1 { auth_url, user },
            2 => SwiftAuth::V2 {
                auth_url,
                user,
                tenant_name: given_or(&self.swift_tenant_name, &["OS_TENANT_NAME"]),
                tenant_id: given_or(&self.swift_tenant_id, &["OS_TENANT_ID"]),
                region,
            },
            _ => {
                let domain = |given, variable: &str| {
                    given_or(given, &[variable]).unwrap_or_else(|| "Default".to_owned())
                };
                let project = given_or(&self.swift_project_name, &["OS_PROJECT_NAME", "OS_TENANT_NAME"]);
                SwiftAuth::V3 {
                    auth_url,
                    user,
                    user_domain: domain(&self.swift_user_domain_name, "OS_USER_DOMAIN_NAME"),
                    project: project.ok_or_else(|| needs("--swift-project-name NAME, or OS_PROJECT_NAME"))?,
                    project_domain: domain(&self.swift_project_domain_name, "OS_PROJECT_DOMAIN_NAME"),
                    region,
                }
            }
        };
        Ok((auth, SwiftAccess { key: Some(key), token: None }))
    }

    /// Guesses the version of the auth service by its URL or by settings of one version.
    fn guess_swift_version(&self) -> Option<u8> {
        let os_url = variable(&["OS_AUTH_URL"]);
        let url = match &self.swift_auth_url {
            Some(url) => url.clone(),
            None if variable(&["ST_AUTH"]).is_some() => return Some(1),
            None => os_url?,
        };
        let url = url.trim_end_matches('/');
        for (ends, version) in [("/v3", 3), ("/v2.0", 2), ("/v1.0", 1), ("/v1", 1)] {
            if url.ends_with(ends) {
                return Some(version);
            }
        }
        let given = |flag: &Option<String>, name: &str| flag.is_some() || variable(&[name]).is_some();
        if given(&self.swift_user_domain_name, "OS_USER_DOMAIN_NAME")
            || given(&self.swift_project_domain_name, "OS_PROJECT_DOMAIN_NAME")
            || given(&self.swift_project_name, "OS_PROJECT_NAME")
        {
            return Some(3);
        }
        (given(&self.swift_tenant_name, "OS_TENANT_NAME") || given(&self.swift_tenant_id, "OS_TENANT_ID"))
            .then_some(2)
    }
}

fn given_or(given: &Option<String>, names: &[&str]) -> Option<String> {
    Defaults::Environment.or_variable(given, names)
}
