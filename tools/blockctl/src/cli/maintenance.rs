//! `blockctl cloudsnap stop`, `resume`, `verify` and `gc`

use super::cloudsnap::{CredentialArg, WaitArg, parse_task};
use crate::cloudsnap_ref::SnapRef;
use blockd_api::{ByteSize, cloudsnaps::VerifyDepth};
use clap::Args;

/// Help of `cloudsnap stop`.
pub const STOP_HELP: &str = "\
The task keeps its checkpoint: `cloudsnap resume` continues it within 7 days, until a newer backup \
of the volume to the same location starts. --discard drops the checkpoint, also that of a task \
that was stopped or failed before.

Examples:
  blockctl cloudsnap stop --name 3f4f0a67-e12a-4d35-81ad-985657757352
  blockctl cs stop 3f4f --discard";

/// Help of `cloudsnap resume`.
pub const RESUME_HELP: &str = "\
A backup continues with its frozen point in time and uploads no data twice; a restore continues \
with the missing blocks.

Examples:
  blockctl cloudsnap resume --name 3f4f0a67-e12a-4d35-81ad-985657757352 --wait";

/// Help of `cloudsnap limit`.
pub const LIMIT_HELP: &str = "\
The limits apply at once, in addition to those of the credential; an omitted limit is removed.

Examples:
  blockctl cloudsnap limit --name 3f4f --limit-upload 20MiB
  blockctl cs limit 3f4f";

/// Help of `cloudsnap verify`.
pub const VERIFY_HELP: &str = "\
Without --quick and --deep, all stored data is read and decrypted. Damage is listed by object and \
position, with the affected cloud snapshots, and the task fails. The next backup that builds on a \
damaged one uploads the lost blocks again. `cloudsnap list` shows the time of the last \
verification.

Examples:
  blockctl cloudsnap verify --wait
  blockctl cs verify --snap ID --deep --wait
  blockctl -j cs verify --quick --cred-id nas --wait";

/// Help of `cloudsnap gc`.
pub const GC_HELP: &str = "\
Orphaned objects are deleted 8 days after their backup started: until then, it may be running on \
another host. The daemon does the same once a day (gc_every_hours).

Examples:
  blockctl cloudsnap gc --dry-run
  blockctl cs gc --cred-id nas";

/// Task argument.
#[derive(Debug, Args)]
pub struct TaskArg {
    /// Task, by an id prefix
    #[arg(value_name = "TASK", required_unless_present = "name", conflicts_with = "name", value_parser = parse_task)]
    task: Option<String>,
    /// The same, as an option
    #[arg(short, long, value_name = "TASK", value_parser = parse_task)]
    name: Option<String>,
}

impl TaskArg {
    /// Returns the id prefix, from the argument or the option; the parser requires one.
    pub fn name(&self) -> Option<&str> {
        self.task.as_deref().or(self.name.as_deref())
    }
}

/// `cloudsnap stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Target.
    #[command(flatten)]
    pub task: TaskArg,
    /// Discard its checkpoint; it cannot be resumed
    #[arg(long)]
    pub discard: bool,
}

/// `cloudsnap resume`
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Target.
    #[command(flatten)]
    pub task: TaskArg,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

/// `cloudsnap limit`
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Target.
    #[command(flatten)]
    pub task: TaskArg,
    /// Upload limit in bytes per second [default: none]
    #[arg(long, value_name = "SIZE")]
    pub limit_upload: Option<ByteSize>,
    /// Download limit in bytes per second [default: none]
    #[arg(long, value_name = "SIZE")]
    pub limit_download: Option<ByteSize>,
}

/// `cloudsnap verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Id of the cloud snapshot [default: all]
    #[arg(value_name = "ID", conflicts_with = "snap")]
    id: Option<SnapRef>,
    /// The same, as an option
    #[arg(short, long, value_name = "ID")]
    snap: Option<SnapRef>,
    /// Check manifests, and existence and length of objects only
    #[arg(long, conflicts_with = "deep")]
    quick: bool,
    /// Read all content and compare it with unchanged volume data
    #[arg(long)]
    deep: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

impl VerifyArgs {
    /// Returns the cloud snapshot, from the argument or the option.
    pub fn id(&self) -> Option<&SnapRef> {
        self.id.as_ref().or(self.snap.as_ref())
    }

    /// Returns the depth of the verification.
    pub fn depth(&self) -> VerifyDepth {
        match (self.quick, self.deep) {
            (true, _) => VerifyDepth::Quick,
            (_, true) => VerifyDepth::Deep,
            _ => VerifyDepth::Frames,
        }
    }
}

/// `cloudsnap gc`
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Report without deleting
    #[arg(long)]
    pub dry_run: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}
