//! Probe of a drill: a command of the configuration that uses writable clones of cloud snapshots.

use super::{
    clone_server::{CloneHost, ServedClones, kernel_code},
    image::DrillImage,
    probe_config::{ProbeAccess, ProbeConfig},
};
use crate::{
    error::{ServiceError, blocking},
    host::Host,
};
use blockd_api::{ApiError, ErrorCode, ProbeName, with_sources};
use blockd_cloud::DrillOutcome;
use blockd_extent::BlockSource;
use blockd_fuse::inside::{self, FoundFilesystem};
use blockd_quiesce::{Isolated, IsolatedCommand, IsolatedDevice, IsolationError, PRIVATE_DIR};
use std::{io, path::Path, sync::Arc, time::Duration};
use uuid::Uuid;

/// Next action for a daemon that cannot isolate commands.
const ROOT_HINT: &str = "run blockd as root, with util-linux installed; for blockd.service, the drop-in /usr/share/doc/blockd/examples/systemd/blockd-drill-probes.conf does it";
/// Next action for a daemon of root whose namespaces fail.
const ISOLATION_HINT: &str =
    "see the cause; in a container, blockd needs CAP_SYS_ADMIN to create namespaces and to mount";
/// Next action for a missing driver.
const DRIVER_HINT: &str =
    "run `modprobe nbd`, or set access = \"socket\" for the probe, which needs no driver";

/// Name of the socket, in the private directory of the command.
const SOCKET: &str = "nbd.sock";

/// Maximum number of the last lines of a failed probe's output that are findings.
const MAX_OUTPUT_LINES: usize = 12;

/// Reason why a filesystem is neither checked nor mounted.
pub(super) const EXTERNAL_JOURNAL: &str = "it cannot be used alone, as its journal is on another device";

/// Returns a probe of the configuration.
///
/// # Errors
/// There is none of this name.
pub(crate) fn find<'a>(host: &'a Host, name: &ProbeName) -> Result<&'a ProbeConfig, ServiceError> {
    let probes = &host.settings.drill_probes;
    probes.get(name).ok_or_else(|| {
        let known: Vec<_> = probes.keys().map(ProbeName::as_str).collect();
        let message = match known.is_empty() {
            true => format!("there is no probe {name}: the configuration has none"),
            false => format!("there is no probe {name}: the configuration has {}", known.join(", ")),
        };
        let hint =
            format!("add [drill_probes.{name}] to the configuration of the daemon, and restart blockd");
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
        IsolationError::NotRoot(_) | IsolationError::Missing(_) => (ErrorCode::NotPermitted, ROOT_HINT),
        IsolationError::Start(error) if error.kind() == io::ErrorKind::StorageFull => {
            (ErrorCode::NoSpace, "free space in the data directory")
        }
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

/// Cloud snapshot to clone for a probe.
#[derive(Clone)]
pub(super) struct ProbedImage {
    /// Name of the volume, or its id.
    pub volume: String,
    pub image: Arc<DrillImage>,
}

/// Probe to run.
pub(super) struct DrillProbe {
    pub name: ProbeName,
    pub config: ProbeConfig,
    /// Variables that name the drill.
    pub env: Vec<(&'static str, String)>,
    /// The clones are named by their volumes.
    pub is_of_group: bool,
    pub images: Vec<ProbedImage>,
    pub host: CloneHost,
}

/// Result of a probe.
pub(super) struct ProbeResult {
    pub outcome: DrillOutcome,
    pub note: String,
    pub findings: Vec<String>,
}

impl ProbeResult {
    pub fn skipped(reason: &str) -> Self {
        Self { outcome: DrillOutcome::Skipped, note: reason.to_owned(), findings: Vec::new() }
    }

    /// Returns the result of a probe whose clones could not be read.
    pub fn unreadable(findings: Vec<String>) -> Self {
        Self { outcome: DrillOutcome::Failed, note: String::new(), findings }
    }
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

/// Content of a clone, and its type for `mount -t`.
type Content = (Arc<dyn BlockSource>, &'static str);

impl DrillProbe {
    /// Runs the command on clones, which are removed afterwards. Blocks.
    ///
    /// # Errors
    /// The command was not started.
    pub fn run(&self) -> Result<ProbeResult, ServiceError> {
        let contents: Result<Vec<Content>, _> = self.images.iter().map(|one| self.content(one)).collect();
        let contents = match contents {
            Ok(contents) => contents,
            Err(unsuitable) => return Ok(unsuitable),
        };
        let names = self.images.iter().map(|one| if self.is_of_group { &*one.volume } else { "" });
        let exports = names.clone().zip(&contents);
        let exports = exports.map(|(name, (content, _))| (name.to_owned(), Arc::clone(content)));
        let mut served = ServedClones::start(&self.host, exports.collect())?;
        let (alone, variable, value) = match self.config.access {
            ProbeAccess::Mount => ("mount", "BLOCKD_DRILL_MOUNT", format!("{PRIVATE_DIR}/mount")),
            ProbeAccess::Device => ("device", "BLOCKD_DRILL_DEVICE", format!("{PRIVATE_DIR}/device")),
            ProbeAccess::Socket => {
                (SOCKET, "BLOCKD_DRILL_URI", format!("nbd+unix:///?socket={PRIVATE_DIR}/{SOCKET}"))
            }
        };
        let of_clones = match self.config.access {
            ProbeAccess::Socket => vec![(SOCKET, served.socket(), "")],
            ProbeAccess::Mount | ProbeAccess::Device => {
                let attached = names.zip(&contents).map(|(name, (_, filesystem))| {
                    let file = if self.is_of_group { name } else { alone };
                    Ok((file, served.attach(name)?, *filesystem))
                });
                attached.collect::<Result<Vec<_>, ServiceError>>()?
            }
        };
        let devices =
            of_clones.iter().map(|(file, source, filesystem)| (*file, self.device(source, filesystem)));
        let mut env = self.env.clone();
        env.push(match self.is_of_group {
            true => ("BLOCKD_DRILL_DIR", PRIVATE_DIR.to_owned()),
            false => (variable, value),
        });
        let command = IsolatedCommand {
            command: &self.config.command,
            user: &self.config.user,
            timeout: Duration::from_secs(self.config.timeout_s.into()),
            memory_bytes: Some(self.config.memory_limit_bytes),
            env: &env,
            dir: &self.host.private_dir(),
            devices: &devices.collect::<Vec<_>>(),
            is_stopping: &|| self.images.iter().any(|one| one.image.is_over()),
        };
        let ended = command.run();
        let is_failed = ended.as_ref().map_or(true, |ended| ended.error.is_some());
        let space = if is_failed { served.check_space(&format!("probe {}", self.name)) } else { Ok(()) };
        // Disconnects the devices, which the end of the command has unmounted.
        drop(served);
        space?;
        ended.map(|ended| self.result(&ended)).map_err(|error| refusal(self.name.as_str(), &error))
    }

    fn device<'a>(&self, source: &'a Path, filesystem: &'a str) -> IsolatedDevice<'a> {
        match self.config.access {
            ProbeAccess::Mount => {
                IsolatedDevice::Mounted { device: source, filesystem, options: mount_options(filesystem) }
            }
            ProbeAccess::Device => IsolatedDevice::Device(source),
            ProbeAccess::Socket => IsolatedDevice::Socket(source),
        }
    }

    /// Returns the content of a clone, or the result of a probe that it does not suit.
    fn content(&self, of: &ProbedImage) -> Result<Content, ProbeResult> {
        let image: Arc<dyn BlockSource> = Arc::clone(&of.image) as _;
        if self.config.access != ProbeAccess::Mount {
            return Ok((image, ""));
        }
        let failed = |error: String| match self.is_of_group {
            true => self.failed(&format!("{}: {error}", of.volume), &[]),
            false => self.failed(&error, &[]),
        };
        let found = inside::filesystems(&image).map_err(|error| failed(error.to_string()))?;
        if found.iter().any(|one| one.has_external_journal) {
            return Err(ProbeResult::skipped(EXTERNAL_JOURNAL));
        }
        let (one, filesystem) = mountable(&found).map_err(failed)?;
        Ok((Arc::clone(one.image()), filesystem))
    }

    fn failed(&self, error: &str, output: &[&str]) -> ProbeResult {
        let first = format!("probe {} failed: {error}", self.name);
        let last = output[output.len().saturating_sub(MAX_OUTPUT_LINES)..].iter();
        let findings = std::iter::once(first).chain(last.map(|line| format!("output: {line}")));
        ProbeResult {
            outcome: DrillOutcome::Failed,
            note: self.name.to_string(),
            findings: findings.collect(),
        }
    }

    fn result(&self, ended: &Isolated) -> ProbeResult {
        let lines = ended.output.lines().map(str::trim_end).filter(|line| !line.is_empty());
        let lines: Vec<_> = lines.collect();
        if let Some(error) = &ended.error {
            // The error of a command has its last line.
            let others = lines.split_last().filter(|(last, _)| error.ends_with(last.trim_start()));
            return self.failed(error, others.map_or(&lines, |(_, others)| others));
        }
        let note =
            lines.last().map_or_else(|| self.name.to_string(), |line| format!("{}: {line}", self.name));
        ProbeResult { outcome: DrillOutcome::Passed, note, findings: Vec::new() }
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
