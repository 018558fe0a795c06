//! Limit of open files: each connection is one, and the default of a login or container is often too low for
//! the configured connections. The soft limit is raised.

use crate::config::{Config, NbdAddress};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files other than connections: volumes, databases, rings and store requests.
const OTHERS: u64 = 1024;

/// Raises the soft limit of open files to the hard one, and warns if that is too low for the configuration.
pub fn raise(config: &Config) {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => before.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files could not be raised");
            before.current
        }
    };
    let needed = needed(config);
    // Unlimited has no number.
    let limit_text = limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
    if limit.is_some_and(|limit| limit < needed) {
        tracing::warn!(
            limit = limit_text,
            needed,
            "the limit of open files is too low for nbd_connections: raise the hard limit (LimitNOFILE=), or allow fewer connections"
        );
    } else {
        tracing::info!(limit = limit_text, needed, "open files");
    }
}

/// Returns the maximum number of open files with this configuration. Further Unix sockets have separate
/// connection limits.
fn needed(config: &Config) -> u64 {
    let further = config.nbd_listen.iter().filter(|address| matches!(address, NbdAddress::Unix(_))).count();
    let connections = u64::try_from(config.nbd_connections).unwrap_or(u64::MAX);
    connections.saturating_mul(1 + further as u64).saturating_add(OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_sockets_raise_the_needed_limit() {
        let mut config = Config { nbd_connections: 500, ..Config::default() };
        assert_eq!(needed(&config), 500 + OTHERS);
        config.nbd_listen =
            ["tcp://127.0.0.1:1", "unix:///a", "unix:///b"].map(|a| a.parse().unwrap()).to_vec();
        assert_eq!(needed(&config), 1500 + OTHERS);
    }

    #[test]
    fn open_files_limit_is_raised() {
        raise(&Config::default());
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
