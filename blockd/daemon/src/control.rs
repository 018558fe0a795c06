//! Serving the control API: the daemon's own socket, one for each group, and TCP with certificates.

use crate::{
    config::{ControlConfig, ControlSocket},
    core::Core,
    daemon::{DaemonError, check_socket_path, file_error, remove_socket},
    http::{self, caller::Caller, remote::Remote},
    nbd::load_identity,
};
use blockd_cloud::CancelToken;
use blockd_nbd::TlsIdentity;
use nix::unistd::{Gid, Group};
use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinSet,
};

/// What serves the control API.
#[derive(Debug)]
pub(crate) struct Control {
    servers: JoinSet<()>,
    sockets: Vec<PathBuf>,
    /// The certificates of the TCP address, which can be renewed.
    pub(crate) identity: Option<Arc<TlsIdentity>>,
}

impl Control {
    /// Serves until `stop`.
    ///
    /// # Errors
    /// A socket cannot be made or given to its group, certificates cannot be used, or the address not be listened on.
    pub(crate) async fn start(core: &Arc<Core>, stop: &CancelToken) -> Result<Self, DaemonError> {
        let config = &core.config.control;
        let mut servers = JoinSet::new();
        let mut sockets = Vec::new();
        for socket in &config.sockets {
            let listener = listen_for_group(socket)?;
            sockets.push(socket.path.clone());
            let caller = Caller { role: Some(socket.role), name: format!("group {}", socket.group) };
            servers.spawn(http::serve(listener, caller, Arc::clone(core), stop.clone()));
        }
        let identity = match (config.listen, config.tls_files()) {
            (Some(address), Some(files)) => {
                let identity = load_identity(files).await.map_err(DaemonError::ControlTls)?;
                let listener = bind(core, address).await?;
                warn_of_names(config);
                let remote =
                    Remote::new(Arc::clone(core), Arc::clone(&identity), config.clone(), stop.clone());
                servers.spawn(Arc::new(remote).serve(listener));
                Some(identity)
            }
            _ => None,
        };
        // Last: whoever finds it finds all the others, too.
        let own = core.control_socket();
        servers.spawn(http::serve(listen(&own)?, Caller::owner(), Arc::clone(core), stop.clone()));
        sockets.push(own);
        Ok(Self { servers, sockets, identity })
    }

    /// Waits until all requests under way are answered.
    pub(crate) async fn ended(&mut self) {
        while self.servers.join_next().await.is_some() {}
    }

    /// Cuts off what goes on.
    pub(crate) fn abort(&mut self) {
        self.servers.abort_all();
    }

    /// Takes the sockets away.
    pub(crate) fn remove_sockets(&self) {
        for path in &self.sockets {
            if let Err(error) = std::fs::remove_file(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "a control socket is left");
            }
        }
    }
}

async fn bind(core: &Core, address: SocketAddr) -> Result<TcpListener, DaemonError> {
    let failed = |source| DaemonError::Control { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let _ = core.control_tcp.set(listener.local_addr().map_err(failed)?);
    Ok(listener)
}

fn warn_of_names(config: &ControlConfig) {
    if let Some(role) = config.roles.get("*") {
        tracing::info!(%role, "whoever has a certificate of the clients' authority has this role");
    }
}

/// Listens for control requests. The directory is locked by this process, so a socket that is there is a dead one.
fn listen(path: &Path) -> Result<UnixListener, DaemonError> {
    remove_socket(path)?;
    // Nobody else gets into the directory (mode 0700) before the socket's own mode is set.
    let listener = UnixListener::bind(path).map_err(file_error("listen at", path))?;
    set_mode(path, 0o600)?;
    Ok(listener)
}

/// Listens for the members of a group.
fn listen_for_group(socket: &ControlSocket) -> Result<UnixListener, DaemonError> {
    let ControlSocket { path, group, .. } = socket;
    check_socket_path(path)?;
    let gid = find_group(group).map_err(file_error("find the group of", path))?;
    remove_socket(path)?;
    let listener = UnixListener::bind(path).map_err(file_error("listen at", path))?;
    // First nobody, so that the group's rights are never another group's.
    set_mode(path, 0o600)?;
    std::os::unix::fs::chown(path, None, Some(gid.as_raw()))
        .map_err(file_error("give to its group", path))?;
    set_mode(path, 0o660)?;
    Ok(listener)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), DaemonError> {
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).map_err(file_error("restrict the mode of", path))
}

/// The group of this name or number.
fn find_group(group: &str) -> std::io::Result<Gid> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(group).map_err(std::io::Error::from)?;
    let missing = || std::io::Error::other(format!("there is no group {group} on this host"));
    found.map(|found| found.gid).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn groups_have_names_and_numbers() {
        assert_eq!(find_group("root").unwrap(), Gid::from_raw(0));
        assert_eq!(find_group("4711").unwrap(), Gid::from_raw(4711));
        let error = find_group("no-such-group").unwrap_err().to_string();
        assert_eq!(error, "there is no group no-such-group on this host");
    }

    #[tokio::test]
    async fn a_socket_is_its_groups_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ops.sock");
        // The test's own group: any other one only root can give it to.
        let group = nix::unistd::getegid().as_raw();
        let socket = ControlSocket {
            path: path.clone(),
            group: group.to_string(),
            role: blockd_api::roles::Role::Operator,
        };
        let listener = listen_for_group(&socket).unwrap();
        let found = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o660, group));
        drop(listener);
        // What an earlier daemon left is replaced, anything else is not.
        listen_for_group(&socket).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody's").unwrap();
        assert!(listen_for_group(&socket).unwrap_err().to_string().starts_with("cannot listen at"));
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
    }
}
