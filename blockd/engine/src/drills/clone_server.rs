//! NBD server of a drill's clones, and their devices of the kernel.
//!
//! Both end with the drill. After a crash of the daemon, requests of the device fail after a short timeout,
//! and the next drill disconnects it: it has the backend identifier of drills.

use super::clone::{CloneExports, DrillClone};
use crate::{error::ServiceError, host::Host, volumes::attachments::Attachments};
use blockd_api::{ApiError, ErrorCode, with_sources};
use blockd_extent::NbdDevice;
use blockd_nbd::{Server, ServerConfig};
use blockd_nbd_kernel::{AttachOptions, DialError, KernelError, System, dial};
use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use uuid::Uuid;

/// Block size of the device, in bytes: filesystems with any block size can be mounted.
const BLOCK_SIZE_BYTES: u32 = 512;
/// Timeout of a request of the device, longer than that of a read from the store.
const REQUEST_TIMEOUT_S: u64 = 120;
/// Time that requests wait for a dead daemon.
const DEAD_TIMEOUT_S: u64 = 5;
/// Timeout for the unmount at the end of the command's namespaces.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);
const RELEASE_PAUSE: Duration = Duration::from_millis(20);
/// Threads for requests, which may wait for the store.
const WORKERS: usize = 8;
/// Maximum number of connections, besides those of devices.
const CONNECTIONS: usize = 16;

/// Place of a drill's clones on this host.
#[derive(Clone, Debug)]
pub(super) struct CloneHost {
    /// Directory of drills.
    pub dir: PathBuf,
    /// Kernel devices.
    pub system: System,
    /// Cluster id of this host.
    pub cluster: Uuid,
}

impl CloneHost {
    pub fn new(host: &Host, attachments: &Attachments) -> Self {
        Self { dir: host.data_dir.drill_dir(), system: attachments.system().clone(), cluster: host.cluster }
    }

    fn backend(&self) -> String {
        format!("blockd-drill:{}", self.cluster)
    }

    /// Discards the devices and the files of an interrupted drill. Blocks.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn discard(&self) -> Result<(), ServiceError> {
        let left = self.system.backends().remove(&self.backend()).unwrap_or_default();
        for device in left {
            tracing::info!(%device, "disconnecting the device of an interrupted drill");
            let disconnected =
                self.system.open_driver().and_then(|mut kernel| kernel.disconnect(device.index()));
            if let Err(error) = disconnected {
                tracing::warn!(%device, error = with_sources(&error), "disconnecting the device failed");
            }
        }
        match std::fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed("remove", error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> ServiceError {
        ServiceError::File { action, path: self.dir.clone(), source }
    }

    /// Creates the directory of drills, for this user only.
    fn create(&self) -> io::Result<()> {
        std::fs::DirBuilder::new().mode(0o700).create(&self.dir)?;
        std::fs::create_dir(self.private_dir())
    }

    /// Returns the directory for private files of the command.
    pub fn private_dir(&self) -> PathBuf {
        self.dir.join("private")
    }

    /// Removes the directory.
    fn remove(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "removing the directory of a drill failed");
        }
    }
}

/// Served clones.
pub(super) struct ServedClones {
    host: CloneHost,
    server: Server,
    clones: Vec<Arc<DrillClone>>,
    devices: Vec<NbdDevice>,
}

impl ServedClones {
    /// Serves clones of images, by the names of their exports, on a Unix socket. Its threads have the
    /// priority of this one.
    ///
    /// # Errors
    /// The server cannot start.
    pub fn start(
        host: &CloneHost,
        images: Vec<(String, Arc<dyn blockd_extent::BlockSource>)>,
    ) -> Result<Self, ServiceError> {
        let file = |source| host.failed("create a clone in", source);
        host.discard()?;
        host.create().map_err(file)?;
        let clone = |(name, image)| Ok((name, Arc::new(DrillClone::new(image, &host.dir)?)));
        let clones: BTreeMap<_, _> =
            images.into_iter().map(clone).collect::<io::Result<_>>().map_err(file)?;
        let socket = host.dir.join("nbd.sock");
        let config = ServerConfig {
            unix_path: Some(socket.clone()),
            ring_threads: 1,
            worker_threads: WORKERS,
            max_connections: CONNECTIONS + clones.len(),
            shutdown_timeout: Duration::from_secs(2),
            ..ServerConfig::default()
        };
        let served = clones.values().cloned().collect();
        let server = Server::start(config, Arc::new(CloneExports(clones)))
            .map_err(|error| ServiceError::Internal(with_sources(&error)))?;
        // Only this user can reach the directory. The command gets the socket itself.
        std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).map_err(file)?;
        Ok(Self { host: host.clone(), server, clones: served, devices: Vec::new() })
    }

    /// Refuses the failure of a command whose writes had no space on this host.
    ///
    /// # Errors
    /// A clone had no space for a write.
    pub fn check_space(&self, command: &str) -> Result<(), ServiceError> {
        if !self.clones.iter().any(|clone| clone.is_full()) {
            return Ok(());
        }
        let message = format!(
            "{command} has no result: its clone had no space in {}, or reached its limit of 8 GiB",
            self.host.dir.display()
        );
        let error = ApiError::new(ErrorCode::NoSpace, message);
        Err(ServiceError::Refused(error.with_hint("free space in the data directory, or write less")))
    }

    /// Returns the path of the socket.
    pub fn socket(&self) -> PathBuf {
        self.host.dir.join("nbd.sock")
    }

    /// Attaches the clone of an export as a device of the kernel, and returns its path.
    ///
    /// # Errors
    /// The kernel has no nbd driver, or refuses.
    pub fn attach(&mut self, export: &str) -> Result<PathBuf, ServiceError> {
        let failed = |code, what: String| {
            ServiceError::refused(code, format!("attach failed on the clone of the drill: {what}"))
        };
        let of_kernel = |error: KernelError| failed(kernel_code(&error), with_sources(&error));
        let mut kernel = self.host.system.open_driver().map_err(of_kernel)?;
        let mut dialed = dial(&self.socket(), export, 1)
            .map_err(|error: DialError| failed(ErrorCode::DeviceFailed, with_sources(&error)))?;
        // Kernel devices have no partial block at the end.
        dialed.size_bytes -= dialed.size_bytes % u64::from(BLOCK_SIZE_BYTES);
        let options = AttachOptions {
            block_size_bytes: BLOCK_SIZE_BYTES,
            request_timeout_s: REQUEST_TIMEOUT_S,
            dead_timeout_s: DEAD_TIMEOUT_S,
            backend: self.host.backend(),
        };
        let index = kernel.connect(None, &dialed, false, &options).map_err(of_kernel)?;
        let device = NbdDevice::new(index);
        self.devices.push(device);
        tracing::debug!(%device, "clone attached");
        Ok(Path::new("/dev").join(device.name()))
    }

    /// Waits until the device is unmounted, and disconnects it.
    fn detach(&self, device: NbdDevice) {
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        let claim = loop {
            match self.host.system.claim(device) {
                Ok(Some(claim)) => break Some(claim),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(RELEASE_PAUSE),
                Ok(None) | Err(_) => break None,
            }
        };
        if claim.is_none() {
            tracing::warn!(%device, "the device of a drill is still in use: disconnecting it nevertheless");
        }
        let disconnected =
            self.host.system.open_driver().and_then(|mut kernel| kernel.disconnect(device.index()));
        if let Err(error) = disconnected {
            tracing::warn!(%device, error = with_sources(&error), "disconnecting the device of a drill failed");
        }
    }
}

impl Drop for ServedClones {
    fn drop(&mut self) {
        for device in std::mem::take(&mut self.devices) {
            self.detach(device);
        }
        if let Err(error) = self.server.shutdown() {
            tracing::warn!(error = with_sources(&error), "the NBD server of a drill did not end in time");
        }
        self.host.remove();
    }
}

/// Returns the code of a failure of the kernel's driver.
pub(super) fn kernel_code(error: &KernelError) -> ErrorCode {
    match error {
        KernelError::NoModule => ErrorCode::NbdModuleMissing,
        KernelError::Denied { .. } => ErrorCode::NotPermitted,
        KernelError::Busy { .. } => ErrorCode::DeviceInUse,
        _ => ErrorCode::DeviceFailed,
    }
}
