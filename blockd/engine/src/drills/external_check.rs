//! Checks of XFS and btrfs by the programs of the host, on a clone of the image: the journal of XFS is
//! replayed first, as `xfs_repair -n` ignores it.

use super::{
    clone_server::{CloneHost, ServedClones},
    image::DrillImage,
    probe::{EXTERNAL_JOURNAL, mount_options},
};
use crate::error::ServiceError;
use blockd_api::ErrorCode;
use blockd_fuse::inside::FoundFilesystem;
use blockd_quiesce::{Isolated, IsolatedCommand, IsolatedDevice, IsolationError, PRIVATE_DIR, has_program};
use std::{sync::Arc, time::Duration};

/// Timeout of a program.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// User of the programs, which need no privileges.
const USER: &str = "nobody";
/// Name of their device.
const DEVICE: &str = "device";
/// Failure of a program that the kernel killed, as the shell reports it.
const OUT_OF_MEMORY: &str = "exit status 137";
/// Maximum number of the last lines of their output that are findings.
const MAX_LINES: usize = 8;

/// Result of a check.
pub(super) enum Checked {
    /// It found nothing.
    Sound(String),
    /// Its findings.
    Unsound(Vec<String>),
    /// The host cannot make it, with the reason.
    Skipped(String),
}

/// Program that checks a filesystem.
struct Checker {
    program: &'static str,
    arguments: &'static str,
    /// Type for `mount -t`, to replay the journal.
    replayed: Option<&'static str>,
}

fn checker(kind: &str) -> Option<Checker> {
    match kind {
        "an XFS filesystem" => {
            Some(Checker { program: "xfs_repair", arguments: "-n", replayed: Some("xfs") })
        }
        "a btrfs filesystem" => {
            Some(Checker { program: "btrfs", arguments: "check --readonly", replayed: None })
        }
        _ => None,
    }
}

/// Checks a filesystem, if it has a known program. Blocks.
pub(super) fn check(host: &CloneHost, image: &Arc<DrillImage>, found: &FoundFilesystem) -> Option<Checked> {
    let checker = checker(found.other?)?;
    if found.has_external_journal {
        return Some(Checked::Skipped(EXTERNAL_JOURNAL.to_owned()));
    }
    if !has_program(checker.program) {
        return Some(Checked::Skipped(format!("{} is not installed", checker.program)));
    }
    let run = checker.run(host, image, found);
    Some(run.unwrap_or_else(|error| {
        let reason = match error.to_api() {
            // Its complete message is longer than a note.
            error if error.code == ErrorCode::NbdModuleMissing => {
                "it needs the kernel's nbd module".to_owned()
            }
            error => error.message,
        };
        Checked::Skipped(format!("{} cannot run: {reason}", checker.program))
    }))
}

impl Checker {
    fn run(
        &self,
        host: &CloneHost,
        image: &Arc<DrillImage>,
        found: &FoundFilesystem,
    ) -> Result<Checked, ServiceError> {
        let not_isolated = |error: IsolationError| ServiceError::Internal(error.to_string());
        IsolatedCommand::check_host(USER).map_err(not_isolated)?;
        let mut served = ServedClones::start(host, vec![(String::new(), Arc::clone(found.image()))])?;
        let device = served.attach("")?;
        let isolated = match self.replayed {
            Some(filesystem) => {
                let options = mount_options(filesystem);
                IsolatedDevice::Replayed { device: &device, filesystem, options }
            }
            None => IsolatedDevice::Device(&device),
        };
        let command = IsolatedCommand {
            command: &format!("exec {} {} {PRIVATE_DIR}/{DEVICE}", self.program, self.arguments),
            user: USER,
            timeout: TIMEOUT,
            // It depends on the size of the filesystem.
            memory_bytes: None,
            env: &[],
            dir: &host.private_dir(),
            devices: &[(DEVICE, isolated)],
            is_stopping: &|| image.is_over(),
        };
        let ended = command.run().map_err(not_isolated)?;
        if ended.error.is_some() {
            served.check_space(self.program)?;
        }
        Ok(self.result(ended))
    }

    fn result(&self, ended: Isolated) -> Checked {
        let program = format!("{} {}", self.program, self.arguments);
        match ended.error {
            None => Checked::Sound(format!("{program} found no inconsistency")),
            Some(error) if ended.output.contains("unknown filesystem type") => {
                Checked::Skipped(format!("the kernel does not support it: {error}"))
            }
            // It ran out of time or memory, which says nothing about the content.
            Some(error) if error.starts_with("killed") || error.starts_with(OUT_OF_MEMORY) => {
                Checked::Skipped(format!("{program} did not end: {error}"))
            }
            Some(error) => {
                let lines: Vec<_> = ended.output.lines().filter(|line| !line.trim().is_empty()).collect();
                let last = lines[lines.len().saturating_sub(MAX_LINES)..].iter();
                let first = format!("{program} failed: {error}");
                Checked::Unsound(std::iter::once(first).chain(last.map(|line| (*line).to_owned())).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killed_check_is_no_finding() {
        let checker = checker("an XFS filesystem").unwrap();
        let ended = |error: &str| {
            checker.result(Isolated { error: Some(error.into()), output: "Phase 1 - find superblock".into() })
        };
        for killed in ["killed after 1800 s", "exit status 137: Phase 1 - find superblock"] {
            let checked = ended(killed);
            assert!(matches!(&checked, Checked::Skipped(reason) if reason.ends_with(killed)));
        }
        assert!(matches!(ended("exit status 1: bad magic number"), Checked::Unsound(_)));
    }
}
