//! Addresses that this daemon serves, and the outcome of its last reload.

use crate::config::{Config, NbdAddress};
use blockd_api::status::ReloadFailure;
use parking_lot::Mutex;
use std::{net::SocketAddr, path::PathBuf, sync::OnceLock};

/// Served addresses other than the sockets in the data directory.
#[derive(Debug)]
pub(crate) struct Served {
    /// TCP addresses of NBD.
    pub(crate) nbd_tcp: Vec<SocketAddr>,
    /// Further Unix sockets of NBD.
    pub(crate) nbd_unix: Vec<PathBuf>,
    /// Address of the metrics endpoint, once it is bound.
    pub(crate) metrics_tcp: OnceLock<SocketAddr>,
    /// TCP address of the control API, once it is bound.
    pub(crate) control_tcp: OnceLock<SocketAddr>,
    /// Failure of the last configuration reload, if it failed.
    pub(crate) reload_failure: Mutex<Option<ReloadFailure>>,
}

impl Served {
    /// Creates the state after NBD was bound to these TCP addresses.
    pub(crate) fn new(config: &Config, nbd_tcp: Vec<SocketAddr>) -> Self {
        let unix = config.nbd_listen.iter().filter_map(|address| match address {
            NbdAddress::Unix(path) => Some(path.clone()),
            NbdAddress::Tcp(_) => None,
        });
        Self {
            nbd_tcp,
            nbd_unix: unix.collect(),
            metrics_tcp: OnceLock::new(),
            control_tcp: OnceLock::new(),
            reload_failure: Mutex::default(),
        }
    }
}
