//! Probe of a drill: a command of the configuration that uses a writable clone of the cloud snapshot.

use super::{
    clone_server::{CloneHost, ServedClone, kernel_code},
    image::DrillImage,
    probe_config::{ProbeAccess, ProbeConfig},
};
use crate::{
    error::{ServiceError, blocking},
    host::Host,
};
use blockd_api::{ApiError, ErrorCode, ProbeName, with_sources};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::BlockSource;
use blockd_fuse::inside::FoundFilesystem;
use blockd_quiesce::{Isolated, IsolatedCommand, IsolatedDevice, IsolationError, PRIVATE_DIR};
use std::{sync::Arc, time::Duration};
use uuid::Uuid;

/// Next action for a daemon that cannot isolate commands.
const ISOLATION_HINT: &str = "run blockd as root, with util-linux installed; for blockd.service, the drop-in /usr/share/doc/blockd/examples/systemd/blockd-drill-probes.conf does it";
/// Next action for a missing driver.
const DRIVER_HINT: &str =
    "run `modprobe nbd`, or set access = \"socket\" for the probe, which needs no driver";

/// Reason why a filesystem is neither checked nor mounted.
pub(super) const EXTERNAL_JOURNAL: &str = "it cannot be used alone, as its journal is on another device";

/// Returns a probe of the configuration.
///
/// # Errors
/// There is none of this name.
pub(super) fn find<'a>(host: &'a Host, name: &ProbeName) -> Result<&'a ProbeConfig, ServiceError> {
    let probes = &host.settings.drill_probes;
    probes.get(name).ok_or_else(|| {
        let known: Vec<_> = probes.keys().map(ProbeName::as_str).collect();
        let message = match known.is_empty() {
            true => format!("there is no probe {name}: the configuration has none"),
            false => format!("there is no probe {name}: the configuration has {}", known.join(", ")),
        };
        let hint = format!("add [drill_probes.{name}] to /etc/blockd/blockd.toml, and restart blockd");
        ServiceError::Refused(ApiError::new(ErrorCode::InvalidRequest, message).with_hint(hint))
    })
}

/// Converts the reason why commands cannot run.
fn refusal(name: &str, error: &IsolationError) -> ServiceError {
    let (code, hint) = match error {
        IsolationError::UnknownUser(_) | IsolationError::Root(_) => (
            ErrorCode::InvalidRequest,
            "change the user in its table of the configuration, and restart blockd",
        ),
        _ => (ErrorCode::NotPermitted, ISOLATION_HINT),
    };
    let message = format!("probe {name} cannot run: {error}");
    ServiceError::Refused(ApiError::new(code, message).with_hint(hint))
}

/// Refuses a probe that this daemon cannot run. The test has a directory of its own, since a drill may run.
///
/// # Errors
/// There is no such probe, the daemon is not root, a program, the user or the kernel's driver is missing.
pub(super) async fn check(host: &Host, at: &CloneHost, name: &ProbeName) -> Result<(), ServiceError> {
    let probe = find(host, name)?;
    if probe.access != ProbeAccess::Socket {
        at.system.open_driver().map(drop).map_err(|error| {
            let error = ApiError::new(
                kernel_code(&error),
                format!("probe {name} cannot run: {}", with_sources(&error)),
            );
            ServiceError::Refused(error.with_hint(DRIVER_HINT))
        })?;
    }
    let dir = at.dir.with_extension(format!("check-{}", Uuid::new_v4()));
    let (user, name) = (probe.user.clone(), name.clone());
    blocking(move || {
        let file = |source| ServiceError::File { action: "create", path: dir.clone(), source };
        std::fs::create_dir(&dir).map_err(file)?;
        let checked = IsolatedCommand::check(&user, &dir);
        let _ = std::fs::remove_dir(&dir);
        checked.map_err(|error| refusal(name.as_str(), &error))
    })
    .await
}

/// Probe to run.
pub(super) struct DrillProbe {
    pub name: ProbeName,
    pub config: ProbeConfig,
    pub drill: Uuid,
    pub cloudsnap: CloudSnapshotId,
    pub volume_name: String,
    pub host: CloneHost,
}

/// Mount options of a filesystem. The clone has the UUID of its origin, and must not be filled by the
/// background initialization of its inode tables.
pub(super) fn mount_options(filesystem: &str) -> &'static [&'static str] {
    match filesystem {
        "xfs" => &["nouuid"],
        // The superblock may ask for a panic of the host.
        _ => &["noinit_itable", "errors=remount-ro"],
    }
}

impl DrillProbe {
    /// Returns the reason why the content must not be mounted.
    pub fn skipped(&self, found: &[FoundFilesystem]) -> Option<&'static str> {
        let is_mounted = self.config.access == ProbeAccess::Mount;
        (is_mounted && found.iter().any(|one| one.has_external_journal)).then_some(EXTERNAL_JOURNAL)
    }

    /// Runs the command on a clone, which is removed afterwards. Returns its end, or the reason why the
    /// content does not suit it. Blocks.
    ///
    /// # Errors
    /// The command was not started.
    pub fn run(&self, image: &Arc<DrillImage>, found: &[FoundFilesystem]) -> Result<Isolated, ServiceError> {
        let access = self.config.access;
        let (content, filesystem): (Arc<dyn BlockSource>, _) = match access {
            ProbeAccess::Mount => match mountable(found) {
                Ok((one, filesystem)) => (Arc::clone(one.image()), filesystem),
                Err(error) => return Ok(Isolated { error: Some(error), output: String::new() }),
            },
            ProbeAccess::Device | ProbeAccess::Socket => (Arc::clone(image) as _, ""),
        };
        let mut served = ServedClone::start(&self.host, content, false)?;
        let source = match access {
            ProbeAccess::Socket => served.socket(),
            ProbeAccess::Mount | ProbeAccess::Device => served.attach()?,
        };
        let (variable, value, device) = match access {
            ProbeAccess::Mount => {
                let options = mount_options(filesystem);
                let device = IsolatedDevice::Mounted { device: &source, filesystem, options };
                ("BLOCKD_DRILL_MOUNT", format!("{PRIVATE_DIR}/mount"), device)
            }
            ProbeAccess::Device => {
                ("BLOCKD_DRILL_DEVICE", format!("{PRIVATE_DIR}/device"), IsolatedDevice::Device(&source))
            }
            ProbeAccess::Socket => {
                let uri = format!("nbd+unix:///?socket={PRIVATE_DIR}/nbd.sock");
                ("BLOCKD_DRILL_URI", uri, IsolatedDevice::Socket(&source))
            }
        };
        let env = [
            ("BLOCKD_DRILL_ID", self.drill.to_string()),
            ("BLOCKD_DRILL_CLOUDSNAP", self.cloudsnap.to_string()),
            ("BLOCKD_DRILL_VOLUME", self.volume_name.clone()),
            (variable, value),
        ];
        let command = IsolatedCommand {
            command: &self.config.command,
            user: &self.config.user,
            timeout: Duration::from_secs(self.config.timeout_s.into()),
            memory_bytes: Some(self.config.memory_limit_bytes),
            env: &env,
            dir: &self.host.private_dir(),
            device,
            is_stopping: &|| image.is_over(),
        };
        let ended = command.run();
        // Disconnects the device, which the end of the command has unmounted.
        drop(served);
        ended.map_err(|error| refusal(self.name.as_str(), &error))
    }
}

/// Returns the only filesystem that can be mounted, and its type.
fn mountable(found: &[FoundFilesystem]) -> Result<(&FoundFilesystem, &'static str), String> {
    let mut suitable = found.iter().filter_map(|one| Some((one, one.mount_type()?)));
    match (suitable.next(), suitable.count()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err("there is no ext2, ext3, ext4 or XFS filesystem to mount".into()),
        (Some(_), others) => {
            Err(format!("{} filesystems can be mounted: a probe needs one, or another access", others + 1))
        }
    }
}
