//! `blockctl cloudsnap repair`

use crate::{
    cloudsnap_ref::{SnapRef, points::State},
    commands::arguments::{CredentialArg, WaitArg, WideArg},
    failure::Exit,
    output::Context,
    wait::report_start,
};
use blockd_api::{CredentialRef, cloudsnaps::StartRepair, operations};
use clap::Args;

pub const REPAIR_HELP: &str = "\
The lost blocks are stored again from the volume, if they are unchanged since, from a local snapshot of the same \
point in time, or from another location with a backup of it. The new cloud snapshot of the same point in \
time replaces the damaged one; later ones that need the damaged blocks are repaired, too. If a block has no \
source, nothing is stored, and the report names it.

Examples:
  blockctl cloudsnap repair db@latest --dry-run --wait
  blockctl cs repair ID --wait
  blockctl cs repair ID --cred-id nas --from s3 --wait";

/// `cloudsnap repair`
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// Cloud snapshot: id, id prefix, name, VOLUME@latest or VOLUME@TIME
    #[arg(value_name = "ID")]
    snap: SnapRef,
    /// Take lost blocks only from the location of this credential
    #[arg(long, value_name = "CREDENTIALS")]
    from: Option<CredentialRef>,
    /// Report without storing
    #[arg(long)]
    dry_run: bool,
    /// Credential option.
    #[command(flatten)]
    credential: CredentialArg,
    /// Wait option.
    #[command(flatten)]
    wait: WaitArg,
    /// Width of the table of losses.
    #[command(flatten)]
    width: WideArg,
}

pub(super) async fn repair(context: &Context<'_>, args: RepairArgs) -> Exit {
    let cred_id = args.credential.cred_id.as_ref();
    let request = StartRepair {
        cloud_snapshot_id: args.snap.resolve_in(State::DamagedFirst, context, cred_id).await?,
        credential: args.credential.cred_id,
        from: args.from,
        dry_run: args.dry_run,
    };
    let started = context.client.call(operations::START_REPAIR, &request).await?;
    let line = format!("Cloudsnap repair started successfully with id: {}", started.task_id);
    let report = args.wait.wait.then(|| args.width.width());
    report_start(context, started.task_id, &started, &line, report).await
}
