//! Access control of volumes over NBD: by the names in client certificates, and by connection count.

use blockd_api::matches_wildcard;
use blockd_nbd::{Client, ExportError};
use parking_lot::RwLock;
use std::collections::BTreeMap;

/// Access lists of the configuration.
#[derive(Debug)]
pub struct Access {
    lists: RwLock<BTreeMap<String, Vec<String>>>,
    max_connections: u64,
}

impl Default for Access {
    fn default() -> Self {
        Self::new(BTreeMap::new(), u64::MAX)
    }
}

impl Access {
    /// Creates the access control from lists of certificate names by volume, where `*` in either stands for
    /// any characters, and the maximum number of connections per volume.
    pub fn new(lists: BTreeMap<String, Vec<String>>, max_connections: u64) -> Self {
        Self { lists: RwLock::new(lists), max_connections }
    }

    /// Replaces the lists for future connections.
    pub fn replace(&self, lists: BTreeMap<String, Vec<String>>) {
        *self.lists.write() = lists;
    }

    /// Returns the maximum number of connections of a volume for this client. Clients of Unix sockets are
    /// unlimited: remote clients, which may need no privilege, must not lock out this host's own devices.
    pub fn max_connections(&self, client: &Client) -> u64 {
        if client.is_local { u64::MAX } else { self.max_connections }
    }

    /// Returns true if a client may use a volume. A volume without a list is open to every client; several
    /// lists for one volume add up. Clients of Unix sockets belong to this host's administrator and may use
    /// every volume.
    pub fn allows(&self, volume: &str, client: &Client) -> bool {
        client.is_local || self.listed(volume, client).unwrap_or(true)
    }

    /// Returns true if the lists for a name contain the client; `None` if there is no list for it.
    fn listed(&self, name: &str, client: &Client) -> Option<bool> {
        let lists = self.lists.read();
        let mut lists = lists
            .iter()
            .filter(|(pattern, _)| matches_wildcard(pattern, name))
            .map(|(_, names)| names)
            .peekable();
        lists.peek()?;
        let contains =
            |wanted: &String| client.certificate_names.iter().any(|name| matches_wildcard(wanted, name));
        Some(lists.flatten().any(contains))
    }

    /// Checks access to a volume; see [`allows`](Self::allows).
    ///
    /// # Errors
    /// Access is denied.
    pub fn check(&self, volume: &str, client: &Client) -> Result<(), ExportError> {
        if self.allows(volume, client) { Ok(()) } else { Err(denied(volume, client)) }
    }

    /// Checks access to an export that is closed to remote clients unless a list for its name contains them.
    ///
    /// # Errors
    /// Access is denied.
    pub fn check_listed(&self, name: &str, client: &Client) -> Result<(), ExportError> {
        if client.is_local || self.listed(name, client) == Some(true) {
            return Ok(());
        }
        Err(denied(name, client))
    }
}

fn denied(export: &str, client: &Client) -> ExportError {
    tracing::warn!(export, peer = client.peer, names = ?client.certificate_names, "NBD access denied");
    let reason = if client.certificate_names.is_empty() {
        "access requires a client certificate".to_owned()
    } else {
        format!("access denied for {}", client.certificate_names.join(", "))
    };
    ExportError::Denied { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(names: &[&str]) -> Client {
        let certificate_names = names.iter().map(|name| (*name).to_owned()).collect();
        Client { peer: "tcp://192.0.2.1:5".into(), certificate_names, is_local: false }
    }

    #[test]
    fn access_list_restricts_its_volumes_only() {
        let list = |volume: &str, names: &[&str]| {
            (volume.to_owned(), names.iter().map(|name| (*name).to_owned()).collect())
        };
        let lists =
            [list("db*", &["db-client", "*.db.example"]), list("*-shared", &["web"]), list("closed", &[])];
        let access = Access::new(lists.into(), 64);
        assert!(access.allows("other", &client(&[])));
        assert!(access.allows("db", &client(&["x", "db-client"])));
        assert!(access.allows("db", &client(&["a.db.example"])));
        assert!(!access.allows("db", &client(&["web"])));
        assert!(access.allows("db-shared", &client(&["web"])), "any matching list is sufficient");
        assert!(access.allows("db-shared", &client(&["db-client"])));
        assert!(!access.allows("closed", &client(&["db-client"])));
        assert!(access.allows("closed", &Client { is_local: true, ..client(&[]) }));
        let Err(ExportError::Denied { reason }) = access.check("db", &client(&["web"])) else {
            panic!("access was not denied")
        };
        assert_eq!(reason, "access denied for web");
        assert!(!access.allows("db", &client(&[])));
        // A star in a certificate is not a wildcard.
        assert!(!access.allows("db", &client(&["*"])));
        access.replace([list("db", &["web"])].into());
        assert!(access.allows("db", &client(&["web"])) && !access.allows("db", &client(&["db-client"])));
    }

    #[test]
    fn unlisted_cloud_export_is_denied_to_remote_clients() {
        let access = Access::new([("db".to_owned(), vec!["web".to_owned()])].into(), 64);
        let denied = |client: &Client| access.check_listed("cloud:1/2-3", client).is_err();
        assert!(denied(&client(&["web"])) && denied(&client(&[])));
        assert!(!denied(&Client { is_local: true, ..client(&[]) }));
        access.replace([("cloud:*".to_owned(), vec!["auditor".to_owned()])].into());
        assert!(!denied(&client(&["auditor"])) && denied(&client(&["web"])));
    }
}
