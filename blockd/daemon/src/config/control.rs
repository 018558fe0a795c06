//! Who may drive the daemon, from where, and as what.

use super::ConfigError;
use blockd_api::roles::Role;
use blockd_nbd::TlsFiles;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

/// The control API beyond its own socket, which only the daemon's user and root can use.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Where it is served over TCP with TLS, to whoever has a certificate of `client_ca`. Not set: nowhere.
    pub listen: Option<SocketAddr>,
    /// The server's certificate chain, PEM.
    pub certificate: Option<PathBuf>,
    /// The server's private key, PEM.
    pub key: Option<PathBuf>,
    /// The authorities of client certificates, PEM.
    pub client_ca: Option<PathBuf>,
    /// The authorities' revocation lists, PEM; if set, a client's certificate must not be in them.
    pub client_crl: Option<PathBuf>,
    /// Further sockets on this host, each for one group.
    pub sockets: Vec<ControlSocket>,
    /// By name in a client's certificate: what it may do. `*` stands for every other one.
    pub roles: BTreeMap<String, Role>,
}

/// A control socket for a group.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSocket {
    /// Where; its directory must exist, be open to the group, and nobody but its owner may write to it.
    pub path: PathBuf,
    /// Whose members may use it: a name or a number.
    pub group: String,
    /// What they may do.
    pub role: Role,
}

impl ControlConfig {
    /// The files for TLS, if it is served over TCP.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        self.listen?;
        Some(TlsFiles {
            certificate: self.certificate.clone()?,
            key: self.key.clone()?,
            client_ca: Some(self.client_ca.clone()?),
            client_crl: self.client_crl.clone(),
        })
    }

    /// What somebody with these names may do: the most that any of the names may.
    pub fn role_of(&self, names: &[String]) -> Option<Role> {
        let named = names.iter().filter(|name| *name != "*").filter_map(|name| self.roles.get(name)).max();
        named.or_else(|| self.roles.get("*")).copied()
    }

    /// What the members of a socket's group may do, if there still is such a socket.
    pub fn role_of_socket(&self, socket: &ControlSocket) -> Option<Role> {
        let is_it = |other: &&ControlSocket| other.path == socket.path && other.group == socket.group;
        self.sockets.iter().find(is_it).map(|socket| socket.role)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let wrong =
            |key, given: &str, wanted| Err(ConfigError::Range { key, given: given.to_owned(), wanted });
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
                        "set: over TCP the API is served only with certificates on both sides",
                    );
                }
            }
            if self.roles.is_empty() {
                return wrong(
                    "control.roles",
                    "empty",
                    "a role for at least one name: nobody could do anything",
                );
            }
        } else if self.certificate.is_some()
            || self.key.is_some()
            || self.client_ca.is_some()
            || self.client_crl.is_some()
            || !self.roles.is_empty()
        {
            return wrong("control.listen", "not set", "set for certificates and roles to mean anything");
        }
        for (at, socket) in self.sockets.iter().enumerate() {
            if !socket.path.is_absolute() {
                return wrong("control.sockets.path", &socket.path.display().to_string(), "an absolute path");
            }
            if self.sockets[..at].iter().any(|other| other.path == socket.path) {
                return wrong(
                    "control.sockets.path",
                    &socket.path.display().to_string(),
                    "another one for each socket",
                );
            }
            if socket.group.is_empty() {
                return wrong("control.sockets.group", "empty", "the group whose members may use the socket");
            }
        }
        Ok(())
    }
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
    fn over_tcp_there_are_certificates_on_both_sides_and_roles() {
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
    fn who_has_several_names_may_do_what_any_of_them_may() {
        let roles = "[roles]\nalice = \"admin\"\nhost = \"read-only\"\n";
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let config = checked(&format!("{WHOLE}{roles}")).unwrap();
        assert_eq!(config.role_of(&names(&["host", "alice"])), Some(Role::Admin));
        assert_eq!(config.role_of(&names(&["bob", "host"])), Some(Role::ReadOnly));
        assert_eq!(config.role_of(&names(&["bob"])), None);
        assert_eq!(config.role_of(&[]), None);
        let config = checked(&format!("{WHOLE}{roles}\"*\" = \"operator\"\n")).unwrap();
        assert_eq!(config.role_of(&names(&["bob"])), Some(Role::Operator));
        assert_eq!(config.role_of(&names(&["host"])), Some(Role::ReadOnly), "a name counts before the star");
        // A certificate cannot call itself everybody.
        assert_eq!(config.role_of(&names(&["*", "host"])), Some(Role::ReadOnly));
    }

    #[test]
    fn a_socket_that_is_left_out_or_another_groups_has_no_role() {
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
    fn a_socket_has_a_path_of_its_own_and_a_group() {
        let socket = |path: &str, group: &str| {
            format!("[[sockets]]\npath = \"{path}\"\ngroup = \"{group}\"\nrole = \"operator\"\n")
        };
        assert_eq!(checked(&socket("/run/x", "ops")).unwrap().sockets[0].role, Role::Operator);
        assert!(checked(&socket("x", "ops")).unwrap_err().contains("an absolute path"));
        assert!(checked(&socket("/run/x", "")).unwrap_err().contains("control.sockets.group"));
        let twice = format!("{}{}", socket("/run/x", "a"), socket("/run/x", "b"));
        assert!(checked(&twice).unwrap_err().contains("another one"));
    }
}
