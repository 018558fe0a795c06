//! `blockctl cloudsnap inspect` and `delete`

use super::retire::delete_all;
use crate::{
    cloudsnap_ref::{SnapRef, points::State},
    commands::arguments::{CredentialArg, SnapArg, WaitArg},
    confirm::YesArg,
    failure::{Exit, Failure},
    output::Context,
    table::{Facts, counted, or_dash, short_uuid},
    wait::report_start,
};
use blockd_api::{
    ApiError, ByteSize, ErrorCode, Labels, VolumeRef,
    cloudsnaps::{
        CloudSnapshotId, Cloudsnap, CloudsnapDetail, CloudsnapStatus, CompressionReport, InspectCloudsnap,
        LastDrill, LastProof, LevelUse, PinOrigin, StartDelete,
    },
    format_time, operations,
};
use clap::Args;
use uuid::Uuid;

pub const INSPECT_HELP: &str = "\
Examples:
  blockctl cloudsnap inspect ID
  blockctl cs inspect db@latest
  blockctl -j cs inspect --snap ID";

pub const DELETE_HELP: &str = "\
No cloud snapshot depends on another one: any of them can be deleted, and shared data stays. A \
pinned one needs --force, as does one that another host made or leases for a lazy volume, or whose \
manifest, or that of another one of its volume, is unreadable. One that a clone, a lazy volume or a \
resumable task of this host needs is never deleted. With --force, lazy volumes of other hosts fail \
to read what they have not fetched. Scripts need --yes for other forms than a complete id.

Examples:
  blockctl cloudsnap delete ID
  blockctl cs delete db@2026-11-20 --yes
  blockctl cs delete ID --cred-id nas --wait
  blockctl cs delete --snap ID --force
  blockctl cs delete --src db --yes";

/// `cloudsnap inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Cloud snapshot.
    #[command(flatten)]
    pub snap: SnapArg,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// `cloudsnap delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Cloud snapshot: id, id prefix, name, VOLUME@latest or VOLUME@TIME
    #[arg(value_name = "ID", required_unless_present = "src")]
    snap: Option<SnapRef>,
    /// Delete all that this host made of this volume, by its name or id, and wait
    #[arg(long, value_name = "VOLUME", conflicts_with = "snap")]
    src: Option<VolumeRef>,
    /// Delete it although it is pinned, leased, of another host, or it or one of its volume is unreadable
    #[arg(short, long)]
    pub force: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

/// Returns the levels of a backup and its compression ratio; `None` before it is done.
pub fn compression_in_brief(report: &CompressionReport) -> Option<String> {
    let levels = report.levels.iter().map(|used| used.level.to_string()).collect::<Vec<_>>().join(" ");
    Some(format!("{levels} {}", ratio(&report.levels)?))
}

/// Describes the references of a backup.
fn referenced_text(bytes: u64, sources: u64) -> String {
    match sources {
        0 => ByteSize::from_bytes(bytes).to_string(),
        _ => format!("{} in {}", ByteSize::from_bytes(bytes), counted(sources, "cloud snapshot")),
    }
}

/// Describes the compression of a backup.
fn compression_text(report: &CompressionReport) -> String {
    let level = |used: &LevelUse| {
        let packs = counted(u64::from(used.packs), "pack");
        format!("{} {} ({packs})", used.level, or_dash(ratio(std::slice::from_ref(used))))
    };
    let levels: Vec<String> = report.levels.iter().map(level).collect();
    let mode = or_dash(report.mode);
    if levels.is_empty() { mode } else { format!("{mode}: {}", levels.join(", ")) }
}

/// Returns the compression ratio; `None` without stored bytes.
fn ratio(levels: &[LevelUse]) -> Option<String> {
    let data_bytes: u64 = levels.iter().map(|used| used.data_bytes).fold(0, u64::saturating_add);
    let stored_bytes: u64 = levels.iter().map(|used| used.stored_bytes).fold(0, u64::saturating_add);
    (stored_bytes > 0).then(|| format!("{:.1}x", data_bytes as f64 / stored_bytes as f64))
}

/// Maximum number of lost ranges in the details.
const MAX_LOST_RANGES: usize = 8;

/// Describes the last proof.
pub fn proof_text(entry: &Cloudsnap) -> String {
    let Some(LastProof { proven_at, kind, sound, host, version }) = &entry.last_proof else {
        return "-".to_owned();
    };
    let result = if *sound { "ok" } else { "damaged" };
    format!("{result} ({kind}, {}, host {host}, blockd {version})", format_time(*proven_at))
}

/// Describes the origins of the pin; `None` without one.
pub fn pin_text(entry: &Cloudsnap) -> Option<String> {
    let origin = match entry.pinned_by? {
        PinOrigin::User => Some("user".to_owned()),
        PinOrigin::Anomaly => Some("anomaly".to_owned()),
        PinOrigin::Lease => None,
    };
    let leases = entry.leases.iter().map(|lease| {
        let until = lease
            .expires_at
            .map_or_else(String::new, |at| format!(", until {} unless renewed", format_time(at)));
        format!("lease (host {}, volume {}{until})", lease.host, lease.volume_id)
    });
    Some(origin.into_iter().chain(leases).collect::<Vec<_>>().join("; "))
}

/// Describes the last restore drill.
pub fn drill_text(entry: &Cloudsnap) -> String {
    let Some(LastDrill { drill_id, ended_at, passed, unchecked, host, version }) = &entry.last_drill else {
        return "-".to_owned();
    };
    let result = match (passed, unchecked) {
        (false, _) => "failed",
        (true, false) => "passed",
        (true, true) => "passed, not checked",
    };
    format!("{result} ({}, host {host}, blockd {version}, id {drill_id})", format_time(*ended_at))
}

pub async fn inspect(context: &Context<'_>, args: InspectArgs) -> Exit {
    let cred_id = args.credential.cred_id.as_ref();
    let id = args.snap.snap.resolve_in(State::Any, context, cred_id).await?;
    let query = InspectCloudsnap { cloud_snapshot_id: id, credential: args.credential.cred_id };
    let detail = context.client.call(operations::INSPECT_CLOUDSNAP, &query).await?;
    context.output.describe(&detail, || facts(&detail))
}

fn facts(CloudsnapDetail { entry, detail }: &CloudsnapDetail) -> Facts {
    let size = |len_bytes| ByteSize::from_bytes(len_bytes).to_string();
    let labels = |labels: &Labels| or_dash((!labels.is_empty()).then_some(labels));
    let mut facts = Facts::default();
    facts
        .add("Cloud snapshot", entry.cloud_snapshot_id)
        .add("Source volume", format!("{} ({})", entry.volume_name, entry.volume_id))
        .add("Volume size", size(entry.volume_size_bytes))
        .add("Volume labels", labels(&entry.labels))
        .add("Name", or_dash(entry.name.as_ref()))
        .add("Labels", labels(&entry.backup_labels))
        .add("Created", format_time(entry.created_at))
        .add("Type", format!("{}, {}", entry.trigger, entry.backup_type))
        .add("Status", entry.status);
    if entry.status == CloudsnapStatus::Damaged {
        let ranges = detail.lost_ranges.iter().take(MAX_LOST_RANGES);
        let ranges: Vec<_> =
            ranges.map(|range| format!("{}+{}", range.offset_bytes, range.len_bytes)).collect();
        if !ranges.is_empty() {
            facts.add("Lost", format!("{} ({})", size(detail.lost_bytes), ranges.join(", ")));
        }
        if let Some(action) = &detail.action {
            facts.add("Next action", action);
        }
    }
    if let Some(damaged) = &entry.repairs {
        facts.add("Repairs", damaged);
    }
    facts
        .add("Started", format_time(entry.started_at))
        .add("Completed", or_dash(entry.completed_at.map(format_time)))
        .add("Credentials", format!("{} ({})", entry.credential_name, entry.credential_id))
        .add("Format", format!("V{}.00", entry.format_version))
        .add("Compression", compression_text(&entry.compression))
        .add("Encrypted", entry.encrypted)
        .add("Dirty", size(entry.dirty_bytes))
        .add("Data", format!("{} in {}", size(entry.size_bytes), counted(detail.data_blocks, "block")))
        .add("Zeroed", counted(detail.zero_blocks, "block"))
        .add("Stored", format!("{} in {}", size(entry.stored_bytes), counted(detail.packs, "pack")))
        .add("Referenced", referenced_text(entry.referenced_bytes, detail.reference_sources))
        .add("Freeze", format!("{} µs", entry.freeze_stall_micros))
        .add("Last verification", proof_text(entry))
        .add("Last drill", drill_text(entry))
        .add("Pinned by", or_dash(pin_text(entry)))
        .add("Expires", or_dash(entry.expires_at.map(format_time)))
        .add("Holds", format!("{} of stored data", size(detail.chain_stored_bytes)));
    for (nth, id) in detail.chain.iter().enumerate() {
        facts.add(if nth == 0 { "Shares data of" } else { "" }, id);
    }
    facts
}

/// Returns the cloud snapshot to delete. Without a confirmation, only a complete id is accepted: a prefix may
/// match another one a moment later.
async fn to_delete(
    context: &Context<'_>,
    args: &DeleteArgs,
    snap: &SnapRef,
) -> Result<CloudSnapshotId, Failure> {
    let cred_id = args.credential.cred_id.as_ref();
    let id = match snap.as_id() {
        Some(id) => id,
        None if args.yes.is_deliberate() || snap.is_whole_but_cluster() => {
            snap.resolve_only(context, cred_id).await?
        }
        None => {
            return Err(Failure::usage(format!(
                "without --yes, delete requires the complete id of a cloud snapshot, not {snap}"
            ))
            .with_hint(format!("blockctl cloudsnap inspect {snap}")));
        }
    };
    if args.yes.must_ask() {
        let query = InspectCloudsnap { cloud_snapshot_id: id, credential: cred_id.cloned() };
        // The manifest of a damaged one cannot be read.
        let of = match context.client.call(operations::INSPECT_CLOUDSNAP, &query).await {
            Ok(CloudsnapDetail { entry, .. }) => {
                let here = context.client.call(operations::GET_STATUS, &()).await?.cluster_id;
                if !args.force {
                    refuse_kept(&entry, here)?;
                }
                let (volume, time) = (source_volume(&entry, here), format_time(entry.created_at));
                let pinned = if entry.pinned { ", pinned" } else { "" };
                format!(" (volume {volume}, {time}, at {}{pinned})", entry.credential_name)
            }
            Err(_) => String::new(),
        };
        args.yes.confirm(context.output, &format!("Cloud snapshot {id}{of} is deleted permanently."))?;
    }
    Ok(id)
}

/// Names the volume of a cloud snapshot, and its host if that is another one than `here`.
pub fn source_volume(entry: &Cloudsnap, here: Uuid) -> String {
    let (name, cluster) = (&entry.volume_name, entry.cloud_snapshot_id.cluster);
    match cluster == here {
        true => name.clone(),
        false => format!("{name} of host {}", short_uuid(cluster)),
    }
}

/// Refuses, before a question, a cloud snapshot that the daemon deletes only by force.
pub fn refuse_kept(entry: &Cloudsnap, here: Uuid) -> Result<(), Failure> {
    let id = entry.cloud_snapshot_id;
    let (code, cause, unpin) = match (entry.pinned, id.cluster == here) {
        (true, _) if entry.pinned_by == Some(PinOrigin::Lease) => {
            let holders = pin_text(entry).unwrap_or_default();
            (
                ErrorCode::CloudsnapInUse,
                format!("is pinned by {holders}"),
                "wait until its lazy volume is hydrated or deleted, or ",
            )
        }
        (true, _) => (ErrorCode::CloudsnapPinned, "is pinned".to_owned(), "unpin it, or "),
        (false, false) => {
            (ErrorCode::CloudsnapOfOtherHost, format!("was made by host {}", short_uuid(id.cluster)), "")
        }
        (false, true) => return Ok(()),
    };
    let hint = format!("{unpin}`blockctl cloudsnap delete {id} --force`");
    Err(ApiError::new(code, format!("cloud snapshot {id} {cause}")).with_hint(hint).into())
}

pub async fn delete(context: &Context<'_>, args: DeleteArgs) -> Exit {
    let cloud_snapshot_id = match (&args.snap, &args.src) {
        (Some(snap), _) => to_delete(context, &args, snap).await?,
        (None, Some(volume)) => return delete_all(context, &args, volume).await,
        (None, None) => return Err(Failure::usage("name a cloud snapshot, or --src VOLUME")),
    };
    let request = StartDelete { cloud_snapshot_id, credential: args.credential.cred_id, force: args.force };
    let started = context.client.call(operations::START_DELETE, &request).await?;
    context.output.warn(&started.warnings);
    let line = format!("Cloudsnap delete started successfully with task name:{}", started.task_id);
    report_start(context, started.task_id, &started, &line, args.wait.report()).await
}
