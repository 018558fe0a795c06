//! Selection of the daemon: by options, environment, a context, or the default of this host.
//!
//! Contexts are named daemons in `blockctl/contexts.toml` of the user's configuration directory; one of them
//! can be the current one.

use crate::{failure::Failure, output::ColorChoice};
use blockd_api::{Endpoint, TlsFiles};
use clap::Args;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

const GLOBAL: &str = "Global options";

/// Default control socket.
pub const DEFAULT_SOCKET: &str = "/var/lib/blockd/blockd.sock";
/// Environment variable of the socket.
pub const SOCKET_VARIABLE: &str = "BLOCKD_SOCKET";
/// Environment variable of the address.
pub const ENDPOINT_VARIABLE: &str = "BLOCKD_ENDPOINT";

/// Options of every command.
#[derive(Clone, Debug, Default, Args)]
pub struct Global {
    /// Control socket of blockd [default: BLOCKD_SOCKET, the current context, or /var/lib/blockd/blockd.sock]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "PATH", conflicts_with_all = ["endpoint", "context"])]
    pub socket: Option<PathBuf>,
    /// Address of a remote daemon; needs --ca, --cert and --key
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "HOST[:PORT]", conflicts_with = "context")]
    pub endpoint: Option<String>,
    /// Use TLS; implied by --endpoint
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub ssl: bool,
    /// CA certificates of the daemon, PEM
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Your certificate, PEM
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Your private key, PEM
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Context made with `blockctl context create`
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "NAME")]
    pub context: Option<String>,
    /// Print one JSON document to stdout
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// Colours in tables; auto: on a terminal unless NO_COLOR is set; always without WHEN
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "WHEN", value_enum, default_value_t = ColorChoice::Auto, num_args = 0..=1, require_equals = true, default_missing_value = "always")]
    pub color: ColorChoice,
}

/// Address of a daemon: a socket, or host and certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextEntry {
    /// Control socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// `HOST` or `HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// CA certificates of the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// Private key of the client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// All stored contexts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// Current context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Contexts by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, ContextEntry>,
}

/// Returns the path of the contexts file.
pub fn contexts_path(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let named = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = named("XDG_CONFIG_HOME").or_else(|| Some(named("HOME")?.join(".config")))?;
    Some(dir.join("blockctl/contexts.toml"))
}

impl Contexts {
    /// Loads the contexts; a missing file is an empty set.
    pub fn load(path: &Path) -> Result<Self, Failure> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(Failure::usage(format!(
                    "cannot read the contexts in {}: {error}",
                    path.display()
                )));
            }
        };
        toml::from_str(&text).map_err(|error| {
            let what = error.message().replace('\n', " ");
            Failure::usage(format!("invalid contexts file {}: {what}", path.display()))
        })
    }

    /// Writes the contexts atomically.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let failed = |source| Failure::write(path, source);
        let text = toml::to_string(self).map_err(|error| failed(std::io::Error::other(error)))?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let new = path.with_extension(format!("new{}", std::process::id()));
        let mut file = std::fs::OpenOptions::new();
        let mut file = file.write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(failed)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.and_then(|()| std::fs::rename(&new, path)).map_err(failed)
    }

    /// Returns the context of this name.
    pub fn named(&self, name: &str) -> Result<&ContextEntry, Failure> {
        let missing = || {
            let names: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            let there = if names.is_empty() {
                "there is none".to_owned()
            } else {
                format!("there are: {}", names.join(", "))
            };
            Failure::usage(format!("there is no context {name}: {there}"))
                .with_hint("create one with `blockctl context create`")
        };
        self.contexts.get(name).ok_or_else(missing)
    }
}

impl ContextEntry {
    /// Checks the entry.
    pub fn check(&self) -> Result<(), Failure> {
        let files = [("--ca", &self.ca), ("--cert", &self.cert), ("--key", &self.key)];
        match (&self.socket, &self.endpoint) {
            (Some(_), Some(_)) => {
                Err(Failure::usage("--socket and --endpoint are both given: drop one of them"))
            }
            (None, Some(_)) => match files.iter().find(|(_, file)| file.is_none()) {
                Some((flag, _)) => Err(Failure::usage(format!(
                    "{flag} is missing: with --endpoint go --ca, --cert and --key"
                ))),
                None => Ok(()),
            },
            (_, None) => match files.iter().find(|(_, file)| file.is_some()) {
                Some((flag, _)) => {
                    Err(Failure::usage(format!("{flag} is for --endpoint, and none is named")))
                }
                None => Ok(()),
            },
        }
    }

    fn endpoint(&self) -> Result<Endpoint, Failure> {
        self.check()?;
        match (&self.endpoint, &self.ca, &self.cert, &self.key) {
            (Some(address), Some(ca), Some(cert), Some(key)) => {
                let files = TlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
                Endpoint::tls(address, &files).map_err(|error| Failure::usage(error.to_string()))
            }
            _ => Ok(Endpoint::unix(self.socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into()))),
        }
    }
}

/// Selects the daemon, in this order: options, named context, environment, current context, default socket.
pub fn resolve(global: &Global, variable: impl Fn(&str) -> Option<OsString>) -> Result<Endpoint, Failure> {
    entry(global, variable)?.endpoint()
}

fn entry(global: &Global, variable: impl Fn(&str) -> Option<OsString>) -> Result<ContextEntry, Failure> {
    let Global { socket, endpoint, ca, cert, key, ssl, context, .. } = global;
    let files = |entry: ContextEntry| ContextEntry {
        ca: ca.clone().or(entry.ca),
        cert: cert.clone().or(entry.cert),
        key: key.clone().or(entry.key),
        ..entry
    };
    let path = contexts_path(&variable);
    let load = || path.as_deref().map_or_else(|| Ok(Contexts::default()), Contexts::load);
    let said = if socket.is_some() || endpoint.is_some() {
        ContextEntry { socket: socket.clone(), endpoint: endpoint.clone(), ..ContextEntry::default() }
    } else if let Some(name) = context {
        load()?.named(name)?.clone()
    } else if let Some(socket) = variable(SOCKET_VARIABLE).filter(|value| !value.is_empty()) {
        ContextEntry { socket: Some(socket.into()), ..ContextEntry::default() }
    } else if let Some(endpoint) = variable(ENDPOINT_VARIABLE).filter(|value| !value.is_empty()) {
        let endpoint = endpoint
            .into_string()
            .map_err(|_| Failure::usage(format!("{ENDPOINT_VARIABLE} is not an address")))?;
        ContextEntry { endpoint: Some(endpoint), ..ContextEntry::default() }
    } else {
        let contexts = load()?;
        match &contexts.current {
            Some(name) => contexts.named(name)?.clone(),
            None => ContextEntry::default(),
        }
    };
    let found = files(said);
    if *ssl && found.endpoint.is_none() {
        return Err(Failure::usage(
            "--ssl needs an --endpoint: over its socket the daemon is reached without TLS",
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    /// Resolves a command line with a contexts directory and an environment.
    fn meant(line: &str, config: &Path, environment: &[(&str, &str)]) -> Result<ContextEntry, String> {
        let line = std::iter::once("blockctl").chain(line.split_whitespace()).chain(["status"]);
        let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
        let variable = |name: &str| match name {
            "XDG_CONFIG_HOME" => Some(config.into()),
            name => environment.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)),
        };
        entry(&cli.global, variable).map_err(|failure| failure.to_string())
    }

    fn by_socket(path: &str) -> ContextEntry {
        ContextEntry { socket: Some(path.into()), ..ContextEntry::default() }
    }

    #[test]
    fn context_precedence_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let nothing: [(&str, &str); 0] = [];
        let here = |line: &str, environment: &[(&str, &str)]| meant(line, dir.path(), environment);
        assert_eq!(here("", &nothing), Ok(ContextEntry::default()));
        assert_eq!(here("", &[(SOCKET_VARIABLE, "")]), Ok(ContextEntry::default()));
        let far = ContextEntry {
            endpoint: Some("vault:1".to_owned()),
            ca: Some("/ca".into()),
            cert: Some("/c".into()),
            key: Some("/k".into()),
            ..ContextEntry::default()
        };
        let contexts = Contexts {
            current: Some("near".to_owned()),
            contexts: [("near".to_owned(), by_socket("/near")), ("far".to_owned(), far.clone())].into(),
        };
        let path = dir.path().join("blockctl/contexts.toml");
        contexts.save(&path).unwrap();
        assert_eq!(Contexts::load(&path).unwrap(), contexts);
        assert_eq!(here("", &nothing), Ok(by_socket("/near")));
        assert_eq!(here("", &[(SOCKET_VARIABLE, "/env")]), Ok(by_socket("/env")));
        assert_eq!(here("--context far", &[(SOCKET_VARIABLE, "/env")]), Ok(far));
        assert_eq!(here("--context far --key /other", &nothing).unwrap().key, Some("/other".into()));
        assert_eq!(here("--socket /flag", &[(SOCKET_VARIABLE, "/env")]), Ok(by_socket("/flag")));
        let error = here("--context nowhere", &nothing).unwrap_err();
        assert_eq!(error, "there is no context nowhere: there are: far, near");
        assert!(here("--socket /flag --endpoint x", &nothing).unwrap_err().contains("cannot be used with"));
        assert!(here("--ssl", &nothing).unwrap_err().contains("--endpoint"));
    }

    #[test]
    fn contradicting_context_fields_are_refused() {
        let told = |entry: ContextEntry| entry.check().map_err(|failure| failure.to_string());
        assert_eq!(told(by_socket("/s")), Ok(()));
        let far = ContextEntry {
            endpoint: Some("x".to_owned()),
            ca: Some("/ca".into()),
            ..ContextEntry::default()
        };
        assert!(told(far).unwrap_err().starts_with("--cert is missing"));
        let odd = ContextEntry { key: Some("/k".into()), ..by_socket("/s") };
        assert!(told(odd).unwrap_err().starts_with("--key is for --endpoint"));
    }

    #[test]
    fn contexts_file_with_bad_syntax_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("contexts.toml");
        std::fs::write(&path, "curent = \"x\"").unwrap();
        let error = Contexts::load(&path).unwrap_err().to_string();
        assert!(error.contains("contexts.toml") && error.contains("curent"), "{error}");
    }
}
