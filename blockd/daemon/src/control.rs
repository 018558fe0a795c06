//! Serving the control API: the daemon's own socket, one for each group, and TCP with certificates.
//!
//! What is served beside the own socket is there for convenience: where it cannot be, that is an error in the
//! log, and volumes are served all the same.

use crate::{
    activation::Passed,
    config::{ControlConfig, ControlSocket, NbdAddress},
    core::Core,
    daemon::{DaemonError, check_socket_path, file_error, remove_socket, with_sources},
    health,
    http::{self, caller::Caller, connections::serve, remote::Remote},
    nbd::load_identity,
};
use axum::Router;
use blockd_cloud::CancelToken;
use blockd_nbd::{TlsFiles, TlsIdentity};
use nix::unistd::{Gid, Group};
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

/// What serves the control API.
#[derive(Debug)]
pub(crate) struct Control {
    servers: JoinSet<()>,
    /// With the device and the number of each.
    sockets: Vec<(PathBuf, (u64, u64))>,
    /// Who may do what, as it holds for connections from now on.
    pub(crate) roles: Arc<RwLock<ControlConfig>>,
    /// The certificates of the TCP address, which can be renewed.
    pub(crate) identity: Option<Arc<TlsIdentity>>,
}

impl Control {
    /// Serves until `stop`.
    ///
    /// # Errors
    /// The daemon's own socket cannot be made.
    pub(crate) async fn start(
        core: &Arc<Core>,
        stop: &CancelToken,
        mut passed: Passed,
    ) -> Result<Self, DaemonError> {
        let config = &core.config.control;
        let router = http::router(Arc::clone(core));
        let roles = Arc::new(RwLock::new(config.clone()));
        let mut this = Self { servers: JoinSet::new(), sockets: Vec::new(), roles, identity: None };
        for socket in &config.sockets {
            match this.listen_for_group(core, socket, &mut passed) {
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
                    let error = with_sources(&error);
                    tracing::error!(path = %socket.path.display(), %error, "a control socket for a group is not served");
                    let what =
                        format!("the control socket for group {} is not served: {error}", socket.group);
                    let path = socket.path.display().to_string();
                    core.health.note(
                        health::CONTROL_SOCKET,
                        &path,
                        what,
                        "mend that, or control.sockets in the configuration, and restart blockd",
                    );
                }
            }
        }
        if let (Some(address), Some(files)) = (config.listen, config.tls_files())
            && let Err(error) = this.listen_to_others(core, address, files, &router, stop).await
        {
            let error = with_sources(&error);
            tracing::error!(%address, %error, "the control API is not served over TCP");
            let what = format!("the control API is not served over TCP: {error}");
            core.health.note(
                health::CONTROL_ADDRESS,
                "",
                what,
                "mend that, or [control] in the configuration, and restart blockd",
            );
        }
        // Last: whoever finds it finds all the others, too.
        let own = core.control_socket();
        let listener = match passed.at(&own) {
            Some(listener) => UnixListener::from_std(listener).map_err(file_error("listen at", &own))?,
            None => {
                let listener = listen(&own)?;
                this.note_socket(&own);
                listener
            }
        };
        this.servers.spawn(serve(listener, Caller::owner, router, stop.clone()));
        for problem in passed.into_problems() {
            tracing::warn!(%problem, "a socket that systemd passed is not served");
        }
        Ok(this)
    }

    /// Listens for the members of a group; at the socket that systemd made for them, if there is one.
    fn listen_for_group(
        &mut self,
        core: &Core,
        socket: &ControlSocket,
        passed: &mut Passed,
    ) -> Result<UnixListener, DaemonError> {
        let path = &socket.path;
        if let Some(listener) = passed.at(path) {
            refuse_wrong_owner(socket).map_err(file_error("listen at", path))?;
            return UnixListener::from_std(listener).map_err(file_error("listen at", path));
        }
        let listener = listen_for_group(core, socket)?;
        self.note_socket(path);
        Ok(listener)
    }

    async fn listen_to_others(
        &mut self,
        core: &Arc<Core>,
        address: SocketAddr,
        files: TlsFiles,
        router: &Router,
        stop: &CancelToken,
    ) -> Result<(), DaemonError> {
        let identity = load_identity(files).await.map_err(DaemonError::ControlTls)?;
        let listener = bind(core, address).await?;
        let config = &core.config.control;
        if let Some(role) = config.roles.get("*") {
            tracing::info!(%role, "whoever has a certificate of the clients' authority has this role");
        }
        let roles = Arc::clone(&self.roles);
        let remote = Remote::new(router.clone(), Arc::clone(&identity), roles, stop.clone());
        self.servers.spawn(Arc::new(remote).serve(listener));
        self.identity = Some(identity);
        Ok(())
    }

    /// Remembers which file is to be taken away at the end.
    fn note_socket(&mut self, path: &Path) {
        if let Ok(found) = std::fs::symlink_metadata(path) {
            self.sockets.push((path.to_owned(), (found.dev(), found.ino())));
        }
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
        for (path, file) in &self.sockets {
            // Somebody may have put something of their own there since.
            let is_ours = |found: std::fs::Metadata| (found.dev(), found.ino()) == *file;
            if std::fs::symlink_metadata(path).is_ok_and(is_ours)
                && let Err(error) = std::fs::remove_file(path)
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

/// Listens for control requests. The directory is locked by this process, so a socket that is there is a dead
/// one.
fn listen(path: &Path) -> Result<UnixListener, DaemonError> {
    remove_socket(path)?;
    // Nobody else gets into the directory (mode 0700) before the socket's own mode is set.
    let listener = UnixListener::bind(path).map_err(file_error("listen at", path))?;
    set_mode(path, 0o600)?;
    Ok(listener)
}

/// Listens for the members of a group.
fn listen_for_group(core: &Core, socket: &ControlSocket) -> Result<UnixListener, DaemonError> {
    let taken = [core.control_socket(), core.nbd_socket()];
    let nbd = core.config.nbd_listen.iter().filter_map(|address| match address {
        NbdAddress::Unix(path) => Some(path),
        NbdAddress::Tcp(_) => None,
    });
    if taken.iter().chain(nbd).any(|path| *path == socket.path) {
        let taken = std::io::Error::other("something else of this daemon is served there");
        return Err(file_error("listen at", &socket.path)(taken));
    }
    make_group_socket(socket)
}

fn make_group_socket(socket: &ControlSocket) -> Result<UnixListener, DaemonError> {
    let ControlSocket { path, group, .. } = socket;
    check_socket_path(path)?;
    let gid = find_group(group).map_err(file_error("find the group of", path))?;
    refuse_open_directory(path).map_err(file_error("listen at", path))?;
    refuse_live_socket(path).map_err(file_error("listen at", path))?;
    remove_socket(path)?;
    let listener = UnixListener::bind(path).map_err(file_error("listen at", path))?;
    // First nobody, so that the group's rights are never another group's. Nobody else can put anything else
    // in its place.
    set_mode(path, 0o600)?;
    let found = std::fs::symlink_metadata(path).map_err(file_error("look at", path))?;
    // Who has no right to give files away may still be given the right one by its directory.
    if found.gid() != gid.as_raw() {
        std::os::unix::fs::lchown(path, None, Some(gid.as_raw()))
            .map_err(file_error("give to its group", path))?;
    }
    set_mode(path, 0o660)?;
    Ok(listener)
}

/// A role is given to a group, and to nobody else whom systemd may have made the socket for.
fn refuse_wrong_owner(socket: &ControlSocket) -> std::io::Result<()> {
    let gid = find_group(&socket.group)?;
    let found = std::fs::symlink_metadata(&socket.path)?;
    if found.gid() != gid.as_raw() || found.mode() & 0o007 != 0 {
        let group = &socket.group;
        return Err(std::io::Error::other(format!(
            "systemd passed a socket that is not for group {group} only: SocketGroup={group} and SocketMode=0660 belong into its unit"
        )));
    }
    Ok(())
}

/// Whoever can write to the directory of a socket could put something else in its place.
fn refuse_open_directory(path: &Path) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    let found = std::fs::metadata(dir)?;
    let own = nix::unistd::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != own {
        return Err(std::io::Error::other(format!("{} belongs to somebody else", dir.display())));
    }
    if found.mode() & 0o022 != 0 {
        return Err(std::io::Error::other(format!("others may write to {}: chmod go-w it", dir.display())));
    }
    Ok(())
}

/// What is served already is somebody's.
fn refuse_live_socket(path: &Path) -> std::io::Result<()> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(std::io::Error::other("somebody else is served there")),
        Err(_) => Ok(()),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), DaemonError> {
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).map_err(file_error("restrict the mode of", path))
}

/// The group of this name or number.
pub(crate) fn find_group(group: &str) -> std::io::Result<Gid> {
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
        let listener = make_group_socket(&socket).unwrap();
        let found = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.gid()), (0o660, group));
        assert!(
            make_group_socket(&socket).unwrap_err().to_string().ends_with("somebody else is served there")
        );
        drop(listener);
        // What an earlier daemon left is replaced, anything else is not.
        make_group_socket(&socket).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "somebody's").unwrap();
        assert!(make_group_socket(&socket).unwrap_err().to_string().starts_with("cannot listen at"));
        assert_eq!(std::fs::read(&path).unwrap(), b"somebody's");
        std::fs::remove_file(&path).unwrap();
        set_mode(dir.path(), 0o770).unwrap();
        let error = make_group_socket(&socket).unwrap_err().to_string();
        assert!(error.contains("others may write to"), "{error}");
        set_mode(dir.path(), 0o700).unwrap();
    }
}
