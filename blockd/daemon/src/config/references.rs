//! Where secrets lie that the daemon fetches itself when it needs them.

use super::ConfigError;
use blockd_api::SecretRef;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How secrets are kept in memory, and where files with some are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecretsConfig {
    /// For how long a fetched secret is used at most when it cannot be fetched again.
    pub cache_s: u64,
    /// For how long after its last use a secret of a Vault is fetched anew in time, so that the next use finds it.
    pub warm_s: u64,
    /// For how long a task waits, before it does anything, for a secret that cannot be had for now.
    pub wait_s: u64,
    /// The directory below which files are taken from.
    pub file_dir: PathBuf,
}

impl Default for SecretsConfig {
    fn default() -> Self {
        // A little more than a day: most backups come every day.
        Self { cache_s: 3600, warm_s: 90_000, wait_s: 120, file_dir: "/etc/blockd/secrets".into() }
    }
}

/// A Vault, or what speaks like it. What proves who asks is in files or credentials of systemd, never here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultConfig {
    /// Where it is, such as `https://vault.example:8200`.
    pub address: VaultAddress,
    /// The namespace that is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Further authorities of its certificate, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_certificate: Option<PathBuf>,
    /// Whether it may be another host that is reached without TLS.
    #[serde(default)]
    pub allow_http: bool,
    /// A file with a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The credential of systemd that is a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_credential: Option<String>,
    /// The role to log in as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_id: Option<String>,
    /// A file with the secret id of that role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_id_file: Option<PathBuf>,
    /// The credential of systemd that is the secret id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_id_credential: Option<String>,
    /// Where `AppRole` is mounted.
    #[serde(default = "approle")]
    pub approle_mount: String,
    /// How long one attempt may take.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
    /// How often it is asked before it counts as unreachable.
    #[serde(default = "attempts")]
    pub attempts: u32,
}

fn approle() -> String {
    "approle".to_owned()
}

fn timeout_ms() -> u64 {
    10_000
}

fn attempts() -> u32 {
    3
}

/// Where something lies that proves who asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Proof {
    /// In a file.
    File(PathBuf),
    /// In a credential of systemd.
    Credential(String),
}

impl VaultConfig {
    /// The token, if it is one that proves who asks.
    pub fn token(&self) -> Option<Proof> {
        let file = self.token_file.clone().map(Proof::File);
        file.or_else(|| self.token_credential.clone().map(Proof::Credential))
    }

    /// The secret id, if there is one.
    pub fn secret_id(&self) -> Option<Proof> {
        let file = self.secret_id_file.clone().map(Proof::File);
        file.or_else(|| self.secret_id_credential.clone().map(Proof::Credential))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong =
            |key, given: &str, wanted| Err(ConfigError::Range { key, given: given.to_owned(), wanted });
        if self.address.0.scheme() == "http" && !self.allow_http && !self.address.is_loopback() {
            return Err(ConfigError::PlainVault { address: self.address.to_string() });
        }
        let given = [self.token_file.is_some(), self.token_credential.is_some(), self.role_id.is_some()];
        let count = given.into_iter().filter(|is_given| *is_given).count();
        if count != 1 {
            let given = if count == 0 { "without a token and a role" } else { "with several ways in" };
            return wrong("vault", given, "given one of token_file, token_credential and role_id");
        }
        let has_secret_id = [self.secret_id_file.is_some(), self.secret_id_credential.is_some()];
        match has_secret_id {
            [true, true] => {
                return wrong("vault.secret_id_credential", "set", "left out beside secret_id_file");
            }
            [false, false] => {}
            _ if self.role_id.is_none() => {
                return wrong("vault.role_id", "not set", "set for a secret id to mean anything");
            }
            _ => {}
        }
        for (key, path) in [
            ("vault.ca_certificate", &self.ca_certificate),
            ("vault.token_file", &self.token_file),
            ("vault.secret_id_file", &self.secret_id_file),
        ] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return wrong(key, "a relative path", "an absolute path");
            }
        }
        for (key, name) in [
            ("vault.token_credential", &self.token_credential),
            ("vault.secret_id_credential", &self.secret_id_credential),
        ] {
            if name.as_ref().is_some_and(|name| SecretRef::systemd(name).is_err()) {
                return wrong(
                    key,
                    "no name",
                    "the name of a credential: letters, digits, dots, dashes and underscores",
                );
            }
        }
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        let mount = &self.approle_mount;
        if mount.split('/').any(|one| matches!(one, "" | "." | "..")) || !mount.chars().all(is_plain) {
            return wrong("vault.approle_mount", "no path", "where AppRole is mounted, such as \"approle\"");
        }
        let is_header = |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if self.namespace.as_ref().is_some_and(|name| !is_header(name)) {
            return wrong("vault.namespace", "no namespace", "a path such as \"team/backup\"");
        }
        if self.role_id.as_ref().is_some_and(|role| role.trim().is_empty()) {
            return wrong("vault.role_id", "empty", "the id of a role");
        }
        if !(100..=300_000).contains(&self.timeout_ms) {
            return wrong("vault.timeout_ms", &self.timeout_ms.to_string(), "100 to 300000");
        }
        if !(1..=10).contains(&self.attempts) {
            return wrong("vault.attempts", &self.attempts.to_string(), "1 to 10");
        }
        Ok(())
    }
}

impl SecretsConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(1..=604_800).contains(&self.cache_s) {
            let given = self.cache_s.to_string();
            return Err(ConfigError::Range { key: "secrets.cache_s", given, wanted: "1 to 604800 (a week)" });
        }
        if self.warm_s > 604_800 {
            let given = self.warm_s.to_string();
            return Err(ConfigError::Range { key: "secrets.warm_s", given, wanted: "0 to 604800 (a week)" });
        }
        if self.wait_s > 86_400 {
            let given = self.wait_s.to_string();
            return Err(ConfigError::Range { key: "secrets.wait_s", given, wanted: "0 to 86400 (a day)" });
        }
        if !self.file_dir.is_absolute() {
            let given = "a relative path".into();
            return Err(ConfigError::Range { key: "secrets.file_dir", given, wanted: "an absolute path" });
        }
        Ok(())
    }
}

/// The address of a Vault: scheme, host and port, and a path if it is behind one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VaultAddress(Url);

impl VaultAddress {
    /// The address of something there, by the segments of its path.
    pub(crate) fn at<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.0.clone();
        // Only addresses without a host have no segments, and none of them was taken.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// Whether it is on this host.
    pub(crate) fn is_loopback(&self) -> bool {
        super::webhook::is_loopback(&self.0)
    }
}

impl std::fmt::Display for VaultAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl TryFrom<String> for VaultAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || "the address of a Vault must look like https://HOST:8200".to_owned();
        let url = Url::parse(&text).map_err(|_| wrong())?;
        let has_host = url.host_str().is_some_and(|host| !host.is_empty());
        if !matches!(url.scheme(), "http" | "https") || !has_host {
            return Err(wrong());
        }
        if !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err("the address of a Vault must hold nothing but a host, a port and a path: tokens are in token_file".into());
        }
        Ok(Self(url))
    }
}

impl From<VaultAddress> for String {
    fn from(address: VaultAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use std::path::Path;

    fn parse(text: &str) -> Result<Config, String> {
        let config = Config::parse(text, Path::new("/etc/x.toml")).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_vault_is_read_back_as_it_was() {
        let text = "[vault]\naddress = \"https://vault.example:8200/\"\nnamespace = \"team/a\"\nrole_id = \"r\"\n\
            secret_id_credential = \"vault-secret-id\"\n[secrets]\ncache_s = 60\n";
        let config = parse(text).unwrap();
        assert_eq!(parse(&config.to_toml()).unwrap(), config);
        let vault = config.vault.unwrap();
        assert_eq!((vault.address.to_string().as_str(), vault.attempts), ("https://vault.example:8200", 3));
        let url = vault.address.at(["v1", "sec ret", "a?b"]);
        assert_eq!(url.as_str(), "https://vault.example:8200/v1/sec%20ret/a%3Fb");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let vault = |address: &str, rest: &str| format!("[vault]\naddress = \"{address}\"\n{rest}\n");
        let token = "token_file = \"/t\"";
        for (text, word) in [
            (vault("http://vault.example:8200", token), "vault.allow_http"),
            (vault("vault.example", token), "https://HOST:8200"),
            (vault("https://u:planted@vault.example", token), "token_file"),
            (vault("https://v/?token=planted", token), "token_file"),
            (vault("https://v", ""), "vault is without a token"),
            (vault("https://v", &format!("{token}\nrole_id = \"r\"")), "several ways in"),
            (vault("https://v", "token = \"planted\""), "token_file"),
            (vault("https://v", "token_file = \"t\""), "vault.token_file is a relative path"),
            (vault("https://v", "token_credential = \"../t\""), "vault.token_credential"),
            (vault("https://v", &format!("{token}\nsecret_id_file = \"/s\"")), "vault.role_id is not set"),
            (
                vault("https://v", "role_id = \"r\"\nsecret_id_file = \"/s\"\nsecret_id_credential = \"s\""),
                "vault.secret_id_credential",
            ),
            (vault("https://v", &format!("{token}\napprole_mount = \"../x\"")), "vault.approle_mount"),
            (vault("https://v", &format!("{token}\nnamespace = \"a b\"")), "vault.namespace"),
            (vault("https://v", &format!("{token}\ntimeout_ms = 1")), "vault.timeout_ms is 1"),
            (vault("https://v", &format!("{token}\nattempts = 0")), "vault.attempts is 0"),
            ("[secrets]\ncache_s = 0".to_owned(), "secrets.cache_s is 0"),
            ("[secrets]\nwarm_s = 604801".to_owned(), "secrets.warm_s is 604801"),
            ("[secrets]\nwait_s = 86401".to_owned(), "secrets.wait_s is 86401"),
            ("[secrets]\nfile_dir = \"x\"".to_owned(), "secrets.file_dir"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(word) && !error.contains("planted"), "{text}: {error}");
        }
        for address in ["http://127.0.0.1:8200", "http://[::1]:8200", "http://localhost:1"] {
            parse(&vault(address, token)).unwrap();
        }
        parse(&vault("http://vault.example", &format!("{token}\nallow_http = true"))).unwrap();
    }
}
