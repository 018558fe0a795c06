//! `blockctl cloudsnap stop`, `resume`, `verify` and `gc`

use super::cloudsnap::{CredentialArg, WaitArg, parse_task};
use crate::snap::SnapRef;
use blockd_api::{ByteSize, cloudsnaps::VerifyDepth};
use clap::Args;

/// What `cloudsnap stop --help` says besides.
pub const STOP_HELP: &str = "\
What the task needs to go on is kept: `cloudsnap resume` takes it up again within 7 days, until a newer \
backup of the volume to the same place begins. --discard gives it up, also one that was stopped \
or failed before.

Examples:
  blockctl cloudsnap stop --name 3f4f0a67-e12a-4d35-81ad-985657757352
  blockctl cs stop 3f4f --discard";

/// What `cloudsnap resume --help` says besides.
pub const RESUME_HELP: &str = "\
A backup goes on with the point in time that it froze, and sends nothing again that is in the store; \
a restore goes on with the blocks that are not in place yet.

Examples:
  blockctl cloudsnap resume --name 3f4f0a67-e12a-4d35-81ad-985657757352 --wait";

/// What `cloudsnap limit --help` says besides.
pub const LIMIT_HELP: &str = "\
The limits hold at once, for this task beside those of its credentials; one that is left out is lifted.

Examples:
  blockctl cloudsnap limit --name 3f4f --limit-upload 20MiB
  blockctl cs limit 3f4f";

/// What `cloudsnap verify --help` says besides.
pub const VERIFY_HELP: &str = "\
Without --quick and --deep, everything that is stored is read and opened. Damage is listed by object \
and place, with what each cloud snapshot loses; the task fails then. The next backup that \
builds on a damaged one carries the lost blocks again. `cloudsnap list` shows when each was \
verified last.

Examples:
  blockctl cloudsnap verify --wait
  blockctl cs verify --snap ID --deep --wait
  blockctl -j cs verify --quick --cred-id nas --wait";

/// What `cloudsnap gc --help` says besides.
pub const GC_HELP: &str = "\
What an abandoned backup left is deleted 8 days after it began: until then it may be one under way on another \
host. blockd does the same by itself once a day (gc_every_hours).

Examples:
  blockctl cloudsnap gc --dry-run
  blockctl cs gc --cred-id nas";

/// Which task.
#[derive(Debug, Args)]
pub struct TaskArg {
    /// The task, by its id or the beginning of it
    #[arg(value_name = "TASK", required_unless_present = "name", conflicts_with = "name", value_parser = parse_task)]
    task: Option<String>,
    /// The same as a flag
    #[arg(short, long, value_name = "TASK", value_parser = parse_task)]
    name: Option<String>,
}

impl TaskArg {
    /// The id or its beginning, however it was given; the parser sees to it that there is one.
    pub fn name(&self) -> Option<&str> {
        self.task.as_deref().or(self.name.as_deref())
    }
}

/// `cloudsnap stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Which one.
    #[command(flatten)]
    pub task: TaskArg,
    /// Give it up: keep nothing that it could go on with
    #[arg(long)]
    pub discard: bool,
}

/// `cloudsnap resume`
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Which one.
    #[command(flatten)]
    pub task: TaskArg,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArg,
}

/// `cloudsnap limit`
#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Which one.
    #[command(flatten)]
    pub task: TaskArg,
    /// Send at most so much a second; as much as it can without it
    #[arg(long, value_name = "SIZE")]
    pub limit_upload: Option<ByteSize>,
    /// Fetch at most so much a second; as much as it can without it
    #[arg(long, value_name = "SIZE")]
    pub limit_download: Option<ByteSize>,
}

/// `cloudsnap verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Id of the cloud snapshot; all without it
    #[arg(value_name = "ID", conflicts_with = "snap")]
    id: Option<SnapRef>,
    /// The same as a flag
    #[arg(short, long, value_name = "ID")]
    snap: Option<SnapRef>,
    /// Only look whether manifests open and objects are there with the right lengths
    #[arg(long, conflicts_with = "deep")]
    quick: bool,
    /// Bring all content back, to nowhere, and compare it with the volume where that has not changed
    #[arg(long)]
    deep: bool,
    /// Where it is kept.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Whether to wait.
    #[command(flatten)]
    pub wait: WaitArg,
}

impl VerifyArgs {
    /// The cloud snapshot, however it was given.
    pub fn id(&self) -> Option<&SnapRef> {
        self.id.as_ref().or(self.snap.as_ref())
    }

    /// How thoroughly.
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
    /// Only say what would be deleted
    #[arg(long)]
    pub dry_run: bool,
    /// Where.
    #[command(flatten)]
    pub credential: CredentialArg,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, cloudsnap::CloudsnapCommand, tests::parse};

    const ID: &str = "2e4d4b67-95d7-481e-aec5-14223ac55170/59-61-incr";

    fn cloudsnap(line: &str) -> CloudsnapCommand {
        match parse(&line.replace("ID", ID)).map(|Cli { command, .. }| command) {
            Ok(Command::Cloudsnap(command)) => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn they_are_taken_as_people_type_them() {
        assert!(
            matches!(cloudsnap("cs stop -n 3F4F --discard"), CloudsnapCommand::Stop(args) if args.discard && args.task.name() == Some("3f4f"))
        );
        assert!(
            matches!(cloudsnap("cs stop 3F4F"), CloudsnapCommand::Stop(args) if args.task.name() == Some("3f4f"))
        );
        assert!(
            matches!(cloudsnap("cs resume 3f --wait"), CloudsnapCommand::Resume(args) if args.task.name() == Some("3f"))
        );
        assert!(
            matches!(cloudsnap("cs limit 3f"), CloudsnapCommand::Limit(args) if args.task.name() == Some("3f"))
        );
        assert!(
            matches!(cloudsnap("cs resume --name 3f4f --wait"), CloudsnapCommand::Resume(args) if args.wait.wait)
        );
        for (line, depth, named) in [
            ("cs verify", VerifyDepth::Frames, false),
            ("cs verify ID --quick", VerifyDepth::Quick, true),
            ("cs verify -s ID --deep --wait --cr nas", VerifyDepth::Deep, true),
        ] {
            let CloudsnapCommand::Verify(args) = cloudsnap(line) else { panic!("{line}") };
            assert_eq!((args.depth(), args.id().is_some()), (depth, named), "{line}");
        }
        assert!(matches!(cloudsnap("cs gc --dry-run"), CloudsnapCommand::Gc(args) if args.dry_run));
        assert!(
            matches!(cloudsnap("cs limit -n 3f4f --limit-upload 20MiB"), CloudsnapCommand::Limit(args) if args.limit_upload.is_some() && args.limit_download.is_none())
        );
        for line in [
            "cs stop",
            "cs limit",
            "cs resume",
            "cs stop -n nonsense",
            "cs stop nonsense",
            "cs stop 3f -n 3f",
            "cs limit 3f 4f",
            "cs verify --quick --deep",
            "cs verify 7",
        ] {
            assert_eq!(parse(line).map(drop).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
