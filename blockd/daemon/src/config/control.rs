//! Access to the control API: listeners, client certificates and roles.

use super::error::ConfigError;
use blockd_api::roles::Role;
use blockd_nbd::TlsFiles;
use nix::unistd::{Gid, Group};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

/// Control API listeners besides the daemon's own socket, which only the daemon's user and root can use.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// TCP address served with TLS to clients with a certificate of `client_ca`. Not set: none.
    pub listen: Option<SocketAddr>,
    /// Server certificate chain, PEM.
    pub certificate: Option<PathBuf>,
    /// Server private key, PEM.
    pub key: Option<PathBuf>,
    /// CA certificates for client certificates, PEM.
    pub client_ca: Option<PathBuf>,
    /// Revocation lists of these CAs, PEM; if set, revoked client certificates are refused.
    pub client_crl: Option<PathBuf>,
    /// Additional Unix sockets, each for one group.
    pub sockets: Vec<ControlSocket>,
    /// Role by name in the client certificate. `*` matches every other name.
    pub roles: BTreeMap<String, Role>,
}

/// A control socket for a group.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSocket {
    /// Path of the socket. Its directory must exist, be accessible to the group, and be writable by its owner
    /// only.
    pub path: PathBuf,
    /// Group, by name or number, whose members may use the socket.
    pub group: String,
    /// Role of the members.
    pub role: Role,
}

impl ControlConfig {
    /// Returns the TLS files if the API is served over TCP.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        self.listen?;
        Some(TlsFiles {
            certificate: self.certificate.clone()?,
            key: self.key.clone()?,
            client_ca: Some(self.client_ca.clone()?),
            client_crl: self.client_crl.clone(),
        })
    }

    /// Returns the role of a client with these certificate names: the highest role of any of them.
    pub fn role_of(&self, names: &[String]) -> Option<Role> {
        let named = names.iter().filter(|name| *name != "*").filter_map(|name| self.roles.get(name)).max();
        named.or_else(|| self.roles.get("*")).copied()
    }

    /// Returns the current role of a socket's group; `None` if the socket is no longer configured.
    pub fn role_of_socket(&self, socket: &ControlSocket) -> Option<Role> {
        let is_it = |other: &&ControlSocket| other.path == socket.path && other.group == socket.group;
        self.sockets.iter().find(is_it).map(|socket| socket.role)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, given: &str, wanted: &str| {
            Err(ConfigError::Range { key, given: given.to_owned(), wanted: wanted.to_owned() })
        };
        if self.listen.is_some() {
            for (key, path) in [
                ("control.certificate", &self.certificate),
                ("control.key", &self.key),
                ("control.client_ca", &self.client_ca),
            ] {
                if path.is_none() {
                    return wrong(
                        key,
                        "not set",
                        "set: the control API over TCP requires server and client certificates",
                    );
                }
            }
            if self.roles.is_empty() {
                return wrong(
                    "control.roles",
                    "empty",
                    "a role for at least one name: without roles no client has access",
                );
            }
        } else if self.certificate.is_some()
            || self.key.is_some()
            || self.client_ca.is_some()
            || self.client_crl.is_some()
            || !self.roles.is_empty()
        {
            return wrong("control.listen", "not set", "set if certificates or roles are set");
        }
        for (at, socket) in self.sockets.iter().enumerate() {
            if !socket.path.is_absolute() {
                return wrong("control.sockets.path", &socket.path.display().to_string(), "an absolute path");
            }
            if self.sockets[..at].iter().any(|other| other.path == socket.path) {
                return wrong(
                    "control.sockets.path",
                    &socket.path.display().to_string(),
                    "a different path for each socket",
                );
            }
            if socket.group.is_empty() {
                return wrong("control.sockets.group", "empty", "the group whose members may use the socket");
            }
        }
        Ok(())
    }
}

/// Looks up a group by name or number.
pub(crate) fn find_group(group: &str) -> std::io::Result<Gid> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(group).map_err(std::io::Error::from)?;
    let missing = || std::io::Error::other(format!("no group {group} on this host"));
    found.map(|found| found.gid).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<ControlConfig, String> {
        let config: ControlConfig = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    const WHOLE: &str =
        "listen = \"0.0.0.0:9440\"\ncertificate = \"/c\"\nkey = \"/k\"\nclient_ca = \"/ca\"\n";

    #[test]
    fn tcp_listener_requires_certificates_and_roles() {
        let roles = "[roles]\nalice = \"admin\"\n\"*\" = \"read-only\"\n";
        let config = checked(&format!("{WHOLE}{roles}")).unwrap();
        assert!(config.tls_files().is_some_and(|files| files.client_ca.is_some()));
        for left_out in ["certificate", "key", "client_ca"] {
            let text: Vec<_> = WHOLE.lines().filter(|line| !line.starts_with(left_out)).collect();
            let error = checked(&format!("{}\n{roles}", text.join("\n"))).unwrap_err();
            assert!(error.starts_with(&format!("control.{left_out} is not set")), "{error}");
        }
        assert!(checked(WHOLE).unwrap_err().starts_with("control.roles is empty"));
        assert!(checked(roles).unwrap_err().starts_with("control.listen is not set"));
        assert!(checked("[roles]\nalice = \"root\"").unwrap_err().contains("read-only"));
        assert_eq!(checked("").unwrap().tls_files(), None);
    }

    #[test]
    fn client_with_several_names_has_the_highest_role() {
        let roles = "[roles]\nalice = \"admin\"\nhost = \"read-only\"\n";
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let config = checked(&format!("{WHOLE}{roles}")).unwrap();
        assert_eq!(config.role_of(&names(&["host", "alice"])), Some(Role::Admin));
        assert_eq!(config.role_of(&names(&["bob", "host"])), Some(Role::ReadOnly));
        assert_eq!(config.role_of(&names(&["bob"])), None);
        assert_eq!(config.role_of(&[]), None);
        let config = checked(&format!("{WHOLE}{roles}\"*\" = \"operator\"\n")).unwrap();
        assert_eq!(config.role_of(&names(&["bob"])), Some(Role::Operator));
        assert_eq!(config.role_of(&names(&["host"])), Some(Role::ReadOnly), "a name overrides the wildcard");
        // A certificate cannot select the wildcard by the name `*`.
        assert_eq!(config.role_of(&names(&["*", "host"])), Some(Role::ReadOnly));
    }

    #[test]
    fn removed_or_reassigned_socket_has_no_role() {
        let socket = |group: &str| {
            let text = format!("[[sockets]]\npath = \"/run/x\"\ngroup = \"{group}\"\nrole = \"operator\"\n");
            checked(&text).unwrap()
        };
        let made = socket("ops").sockets[0].clone();
        assert_eq!(socket("ops").role_of_socket(&made), Some(Role::Operator));
        assert_eq!(socket("others").role_of_socket(&made), None);
        assert_eq!(checked("").unwrap().role_of_socket(&made), None);
    }

    #[test]
    fn socket_needs_an_own_path_and_a_group() {
        let socket = |path: &str, group: &str| {
            format!("[[sockets]]\npath = \"{path}\"\ngroup = \"{group}\"\nrole = \"operator\"\n")
        };
        assert_eq!(checked(&socket("/run/x", "ops")).unwrap().sockets[0].role, Role::Operator);
        assert!(checked(&socket("x", "ops")).unwrap_err().contains("an absolute path"));
        assert!(checked(&socket("/run/x", "")).unwrap_err().contains("control.sockets.group"));
        let twice = format!("{}{}", socket("/run/x", "a"), socket("/run/x", "b"));
        assert!(checked(&twice).unwrap_err().contains("a different path"));
    }
}
