//! Identity of the repository of a credential, regardless of the access to it.

use crate::{CredentialRow, DbError};
use blockd_api::credentials::{ProviderKind, StoreConfig};
use rusqlite::Transaction;
use std::{
    collections::{BTreeSet, HashMap},
    path::{Component, Path, PathBuf},
};
use uuid::Uuid;

/// Server, bucket and prefix of a repository. Credentials with the same location have the same cloud
/// snapshots, regardless of keys, roles and spellings of the endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RepositoryLocation {
    kind: ProviderKind,
    server: String,
    container: String,
    prefix: String,
}

impl RepositoryLocation {
    /// Returns the location of a credential.
    pub(crate) fn of(row: &CredentialRow) -> Self {
        let host = |endpoint: Option<&str>| endpoint.map_or_else(String::new, server_of);
        let (server, container) = match &row.store.config {
            StoreConfig::Local { path } => (String::new(), normal_path(path)),
            StoreConfig::S3(s3) => (server_of(&s3.endpoint), s3.bucket.clone()),
            StoreConfig::Azure(azure) => {
                (format!("{}/{}", host(azure.endpoint.as_deref()), azure.account), azure.container.clone())
            }
            StoreConfig::Google(google) => (host(google.endpoint.as_deref()), google.bucket.clone()),
            // The account follows from the user; without it, different accounts count as the same location,
            // which is the safe side.
            StoreConfig::Swift(swift) => (host_of(swift.auth.url()), swift.container.clone()),
        };
        let prefix = row.store.connection.prefix.as_deref().unwrap_or_default();
        Self { kind: row.store.config.kind(), server, container, prefix: prefix.trim_matches('/').to_owned() }
    }
}

impl CredentialRow {
    /// Returns the identity of the location in proofs, which all of its hosts compute. A directory has the
    /// given identity; without one, or on a server that only this host reaches, `host` is part of it.
    #[must_use]
    pub fn location_id(&self, host: Uuid, directory: Option<&str>) -> Uuid {
        let RepositoryLocation { kind, server, container, prefix } = RepositoryLocation::of(self);
        let (kind, host) = (kind.to_string(), host.to_string());
        if let (StoreConfig::Local { .. }, Some(directory)) = (&self.store.config, directory) {
            return blockd_cloud::location_id(&[&kind, directory]);
        }
        let is_local = matches!(self.store.config, StoreConfig::Local { .. }) || is_loopback(&server);
        let host = if is_local { host.as_str() } else { "" };
        blockd_cloud::location_id(&[&kind, &server, &container, &prefix, host])
    }
}

/// Returns true for a server that is another one on each host.
fn is_loopback(server: &str) -> bool {
    let host = server.split('/').next().unwrap_or_default();
    let host = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(host, |(host, _)| host);
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|address| match address {
            std::net::IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
            std::net::IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
        })
}

/// Another credential of the same repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Alias {
    /// The credential.
    pub credential: Uuid,
    /// Server, bucket and prefix are equal. Otherwise only a key id is: the location has another spelling, or
    /// is a copy.
    pub is_same_location: bool,
}

/// Credentials of the same repository: their locations are equal, or they share a key id. Key ids are random
/// for each repository, so they also identify one that is reached through a symbolic link, another host name
/// or another provider.
#[derive(Clone, Default, Debug)]
pub struct Aliases(HashMap<Uuid, Vec<Alias>>);

impl Aliases {
    /// Returns the aliases of all credentials.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Self, DbError> {
        let known: Vec<(Uuid, RepositoryLocation, BTreeSet<Uuid>)> = CredentialRow::all(tx)?
            .iter()
            .map(|row| {
                let keys = row.known_keys().key_ids().filter(|key_id| !key_id.is_nil()).collect();
                (row.uuid, RepositoryLocation::of(row), keys)
            })
            .collect();
        let aliases_of = |(own, own_location, own_keys): &(Uuid, RepositoryLocation, BTreeSet<Uuid>)| {
            let others =
                known.iter().filter(|(other, ..)| other != own).filter_map(|(other, location, keys)| {
                    let is_same_location = location == own_location;
                    let is_same = is_same_location || !keys.is_disjoint(own_keys);
                    is_same.then_some(Alias { credential: *other, is_same_location })
                });
            (*own, others.collect())
        };
        Ok(Self(known.iter().map(aliases_of).collect()))
    }

    /// Returns the other credentials of a repository.
    pub fn of(&self, credential: Uuid) -> &[Alias] {
        self.0.get(&credential).map_or(&[], Vec::as_slice)
    }

    /// Returns the credentials with the location of a credential, including that one.
    pub fn of_location(&self, credential: Uuid) -> BTreeSet<Uuid> {
        let same = self.of(credential).iter().filter(|alias| alias.is_same_location);
        same.map(|alias| alias.credential).chain([credential]).collect()
    }

    /// Returns all credentials of a repository, the given one first.
    pub fn credentials(&self, credential: Uuid) -> impl Iterator<Item = Uuid> {
        std::iter::once(credential).chain(self.of(credential).iter().map(|alias| alias.credential))
    }
}

/// Returns an endpoint without scheme, default port and trailing slashes, in lower case.
fn server_of(endpoint: &str) -> String {
    let lower = endpoint.trim().to_ascii_lowercase();
    let (default_port, rest) = match lower.split_once("://") {
        Some(("http", rest)) => (Some(":80"), rest),
        Some((_, rest)) => (Some(":443"), rest),
        None => (None, lower.as_str()),
    };
    let rest = rest.trim_end_matches('/');
    let ports = default_port.map_or_else(|| vec![":443", ":80"], |port| vec![port]);
    ports.iter().find_map(|port| rest.strip_suffix(port)).unwrap_or(rest).to_owned()
}

fn host_of(url: &str) -> String {
    let server = server_of(url);
    server.split('/').next().unwrap_or_default().to_owned()
}

/// Returns a path without `.`, doubled and trailing slashes. Symbolic links are not resolved: the directory
/// may be unmounted.
fn normal_path(path: &Path) -> String {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.collect::<PathBuf>().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_of_a_directory_is_its_identity() {
        let [host, other] = [1, 2].map(Uuid::from_u128);
        let at = |path: &str| CredentialRow::sample(Uuid::from_u128(7), path, Uuid::from_u128(8));
        let id = |path: &str, host, directory| at(path).location_id(host, directory);
        assert_eq!(id("/a", host, Some("1/2.3")), id("/b", other, Some("1/2.3")));
        assert_ne!(id("/a", host, Some("1/2.3")), id("/a", host, Some("1/2.4")));
        assert_eq!(id("/a", host, None), id("/a/.", host, None));
        assert_ne!(id("/a", host, None), id("/a", other, None), "each host may mean another disk");
        for server in ["localhost", "127.0.0.1:9000", "[::1]:9000", "169.254.1.1", "s3.localhost:80/x"] {
            assert!(is_loopback(server), "{server}");
        }
        for server in
            ["s3.example.org", "10.0.0.1:9000", "localhost.example.org:9000", "[2001:db8::1]:80", ""]
        {
            assert!(!is_loopback(server), "{server}");
        }
    }

    #[test]
    fn endpoints_in_other_spellings_are_one_server() {
        for same in ["s3.example.org", "S3.Example.org", "https://s3.example.org:443/", "s3.example.org:443"]
        {
            assert_eq!(server_of(same), "s3.example.org", "{same}");
        }
        assert_eq!(server_of("http://s3.example.org:80"), "s3.example.org");
        assert_eq!(server_of("http://s3.example.org:443"), "s3.example.org:443");
        assert_eq!(server_of("s3.example.org:9000/"), "s3.example.org:9000");
        assert_eq!(host_of("http://Swift:8080/auth/v1.0"), "swift:8080");
        assert_eq!(normal_path(Path::new("/backup/./a//b/")), "/backup/a/b");
    }
}
