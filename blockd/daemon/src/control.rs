//! Control API listeners: the daemon's own Unix socket, one socket for each group, and TCP with TLS.
//!
//! The listeners besides the own socket are optional: a failure of one is logged, and volumes are served
//! nevertheless.

use crate::{
    activation::Passed,
    config::{Config, ControlConfig, ControlSocket, find_group},
    error::{DaemonError, file_error},
    http::{self, Api, caller::Caller, connections::serve, remote::Remote},
    nbd::load_identity,
    served::Served,
    sockets::{check_socket_path, remove_socket},
};
use axum::Router;
use blockd_engine::{engine::Engine, health};
use blockd_nbd::{TlsFiles, TlsIdentity};
use parking_lot::RwLock;
use std::{
    net::SocketAddr,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Running control API listeners.
#[derive(Debug)]
pub(crate) struct Control {
    servers: JoinSet<()>,
    /// Paths of the sockets, with device and inode number.
    sockets: Vec<(PathBuf, (u64, u64))>,
    /// Current roles, of each request on a Unix socket and of new TLS connections.
    pub(crate) roles: Arc<RwLock<ControlConfig>>,
    /// TLS identity of the TCP listener; can be renewed.
    pub(crate) identity: Option<Arc<TlsIdentity>>,
}

impl Control {
    /// Starts the listeners, which run until `stop`.
    ///
    /// # Errors
    /// The daemon's own socket cannot be created.
    pub(crate) async fn start(
        api: &Api,
        config: &Config,
        stop: &CancellationToken,
        mut passed: Passed,
    ) -> Result<Self, DaemonError> {
        let config = &config.control;
        let Api { engine, served, .. } = api;
        let router = http::router(api.clone());
        let roles = Arc::new(RwLock::new(config.clone()));
        let mut this = Self { servers: JoinSet::new(), sockets: Vec::new(), roles, identity: None };
        for socket in &config.sockets {
            match this.listen_for_group(engine, served, socket, &mut passed) {
                Ok(listener) => {
                    let (roles, socket) = (Arc::clone(&this.roles), socket.clone());
                    let name = format!("group {}", socket.group);
                    let caller = move || {
                        let role = roles.read().role_of_socket(&socket);
                        Caller { role, name: name.clone(), user: None }
                    };
                    this.servers.spawn(serve(listener, caller, router.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::error!(path = %socket.path.display(), %error, "serving a group's control socket failed");
                    let what =
                        format!("the control socket for group {} is not served: {error}", socket.group);
                    let path = socket.path.display().to_string();
                    engine.health.note(
                        health::CONTROL_SOCKET,
                        &path,
                        what,
                        "fix the cause, or control.sockets in the configuration, and restart blockd",
                    );
                }
            }
        }
        if let (Some(address), Some(files)) = (config.listen, config.tls_files())
            && let Err(error) = this.listen_on_tcp(served, config, address, files, &router, stop).await
        {
            tracing::error!(%address, %error, "serving the control API over TCP failed");
            let what = format!("the control API is not served over TCP: {error}");
            engine.health.note(
                health::CONTROL_ADDRESS,
                "",
                what,
                "fix the cause, or [control] in the configuration, and restart blockd",
            );
        }
        // Last, so that the other listeners exist when a client finds this socket.
        let own = engine.host.data_dir.control_socket();
        let listener = match passed.at(&own) {
            Some(listener) => UnixListener::from_std(listener).map_err(file_error("listen at", &own))?,
            None => {
                let listener = listen(&own)?;
                this.record_socket(&own);
                listener
            }
        };
        this.servers.spawn(serve(listener, Caller::owner, router, stop.clone()));
        for problem in passed.into_problems() {
            tracing::warn!(%problem, "ignoring a socket passed by systemd");
        }
        Ok(this)
    }

    /// Listens for the members of a group, at the socket from systemd if there is one.
    fn listen_for_group(
        &mut self,
        engine: &Engine,
        served: &Served,
        socket: &ControlSocket,
        passed: &mut Passed,
    ) -> Result<UnixListener, DaemonError> {
        let path = &socket.path;
        if let Some(listener) = passed.at(path) {
            check_socket_owner(socket).map_err(file_error("listen at", path))?;
            return UnixListener::from_std(listener).map_err(file_error("listen at", path));
        }
        let listener = listen_for_group(engine, served, socket)?;
        self.record_socket(path);
        Ok(listener)
    }

    async fn listen_on_tcp(
        &mut self,
        served: &Served,
        config: &ControlConfig,
        address: SocketAddr,
        files: TlsFiles,
        router: &Router,
        stop: &CancellationToken,
    ) -> Result<(), DaemonError> {
        let identity = load_identity(files).await.map_err(DaemonError::ControlTls)?;
        let listener = bind(served, address).await?;
        if let Some(role) = config.roles.get("*") {
            tracing::info!(%role, "every client certificate of the configured CA has this role");
        }
        let roles = Arc::clone(&self.roles);
        let remote = Remote::new(router.clone(), Arc::clone(&identity), roles, stop.clone());
        self.servers.spawn(Arc::new(remote).serve(listener));
        self.identity = Some(identity);
        Ok(())
    }

    /// Records a socket for removal at shutdown.
    fn record_socket(&mut self, path: &Path) {
        if let Ok(found) = std::fs::symlink_metadata(path) {
            self.sockets.push((path.to_owned(), (found.dev(), found.ino())));
        }
    }

    /// Waits until all requests are answered.
    pub(crate) async fn ended(&mut self) {
        while self.servers.join_next().await.is_some() {}
    }

    /// Aborts the remaining requests.
    pub(crate) fn abort(&mut self) {
        self.servers.abort_all();
    }

    /// Removes the sockets.
    pub(crate) fn remove_sockets(&self) {
        for (path, file) in &self.sockets {
            // Another program may have replaced the socket.
            let is_ours = |found: std::fs::Metadata| (found.dev(), found.ino()) == *file;
            if std::fs::symlink_metadata(path).is_ok_and(is_ours)
                && let Err(error) = std::fs::remove_file(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "removing a control socket failed");
            }
        }
    }
}

async fn bind(served: &Served, address: SocketAddr) -> Result<TcpListener, DaemonError> {
    let failed = |source| DaemonError::Control { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let _ = served.control_tcp.set(listener.local_addr().map_err(failed)?);
    Ok(listener)
}

/// Creates the daemon's own socket. The data directory is locked, so an existing socket is stale.
fn listen(path: &Path) -> Result<UnixListener, DaemonError> {
    remove_socket(path)?;
    // The directory has mode 0700: other users have no access before the socket's mode is set.
    let listener = UnixListener::bind(path).map_err(file_error("listen at", path))?;
    set_mode(path, 0o600)?;
    Ok(listener)
}

/// Creates a group's socket.
fn listen_for_group(
    engine: &Engine,
    served: &Served,
    socket: &ControlSocket,
) -> Result<UnixListener, DaemonError> {
    let taken = [engine.host.data_dir.control_socket(), engine.host.data_dir.nbd_socket()];
    if taken.iter().chain(&served.nbd_unix).any(|path| *path == socket.path) {
        let taken = std::io::Error::other("another listener of this daemon uses this path");
        return Err(file_error("listen at", &socket.path)(taken));
    }
    make_group_socket(socket)
}

fn make_group_socket(socket: &ControlSocket) -> Result<UnixListener, DaemonError> {
    let ControlSocket { path, group, .. } = socket;
    check_socket_path(path)?;
    let gid = find_group(group).map_err(file_error("find the group of", path))?;
    check_socket_directory(path).map_err(file_error("listen at", path))?;
    check_socket_unused(path).map_err(file_error("listen at", path))?;
    remove_socket(path)?;
    let listener = UnixListener::bind(path).map_err(file_error("listen at", path))?;
    // Owner only at first, so that the mode never applies to another group. The directory is writable by its
    // owner only, so no other user can replace the socket.
    set_mode(path, 0o600)?;
    let found = std::fs::symlink_metadata(path).map_err(file_error("inspect", path))?;
    // Without the privilege to change the group, a setgid directory may have set it already.
    if found.gid() != gid.as_raw() {
        std::os::unix::fs::lchown(path, None, Some(gid.as_raw()))
            .map_err(file_error("give to its group", path))?;
    }
    set_mode(path, 0o660)?;
    Ok(listener)
}

/// Refuses a socket from systemd that is accessible to users outside of the group with the role.
fn check_socket_owner(socket: &ControlSocket) -> std::io::Result<()> {
    let gid = find_group(&socket.group)?;
    let found = std::fs::symlink_metadata(&socket.path)?;
    if found.gid() != gid.as_raw() || found.mode() & 0o007 != 0 {
        let group = &socket.group;
        return Err(std::io::Error::other(format!(
            "the socket passed by systemd is not restricted to group {group}: set SocketGroup={group} and SocketMode=0660 in its unit"
        )));
    }
    Ok(())
}

/// Refuses a directory in which other users could replace the socket.
fn check_socket_directory(path: &Path) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    let found = std::fs::metadata(dir)?;
    let own = nix::unistd::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != own {
        return Err(std::io::Error::other(format!("{} belongs to another user", dir.display())));
    }
    if found.mode() & 0o022 != 0 {
        return Err(std::io::Error::other(format!(
            "others may write to {}: run chmod go-w on it",
            dir.display()
        )));
    }
    Ok(())
}

/// Refuses a path at which another process listens.
fn check_socket_unused(path: &Path) -> std::io::Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(std::io::Error::other("another process is listening there")),
        Err(_) => Ok(()),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), DaemonError> {
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).map_err(file_error("restrict the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Gid;
    #[test]
    fn group_is_found_by_name_or_number() {
        assert_eq!(find_group("root").unwrap(), Gid::from_raw(0));
        assert_eq!(find_group("4711").unwrap(), Gid::from_raw(4711));
        let error = find_group("no-such-group").unwrap_err().to_string();
        assert_eq!(error, "no group no-such-group on this host");
    }

    #[tokio::test]
    async fn group_socket_is_restricted_to_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ops.sock");
        // The test's own group: only root may assign another one.
        let group = nix::unistd::getegid().as_raw();
        let socket = ControlSocket {
            path: path.clone(),
            group: group.to_string(),
            role: blockd_api::roles::Role::Operator,
        };
        let listener = make_group_socket(&socket).unwrap();
        let found = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o660, group));
        assert!(
            make_group_socket(&socket)
                .unwrap_err()
                .to_string()
                .ends_with("another process is listening there")
        );
        drop(listener);
        // A stale socket is replaced, any other file is not.
        make_group_socket(&socket).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert!(make_group_socket(&socket).unwrap_err().to_string().starts_with("cannot listen at"));
        assert_eq!(std::fs::read(&path).unwrap(), b"a file");
        std::fs::remove_file(&path).unwrap();
        set_mode(dir.path(), 0o770).unwrap();
        let error = make_group_socket(&socket).unwrap_err().to_string();
        assert!(error.contains("others may write to"), "{error}");
        set_mode(dir.path(), 0o700).unwrap();
    }
}
