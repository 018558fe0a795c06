//! `blockctl cloudsnap list`, `inspect` and `delete`

use super::{marks::kept, pxctl};
use crate::{
    cloudsnap_ref::SnapRef,
    commands::arguments::{CredentialArg, WaitArg},
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure},
    output::Context,
    table::{Facts, Table, counted, or_dash},
    wait::report_start,
};
use blockd_api::{
    ApiError, ByteSize, ErrorCode, LabelSelector, Labels, ObjectName, VolumeId, VolumeRef,
    cloudsnaps::{
        CloudSnapshotId, Cloudsnap, CloudsnapDetail, CloudsnapList, CloudsnapStatus, DamagedCloudsnap,
        InspectCloudsnap, ListCloudsnaps, StartDelete, Verification,
    },
    format_time, operations,
};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use uuid::Uuid;

pub const LIST_HELP: &str = "\
Examples:
  blockctl cloudsnap list
  blockctl cs list --src db --max 3
  blockctl cs list --label app=web
  blockctl cs list --name before-upgrade
  blockctl -j cs list --cloudsnap-id ID";

pub const INSPECT_HELP: &str = "\
Examples:
  blockctl cloudsnap inspect ID
  blockctl -j cs inspect --snap ID";

pub const DELETE_HELP: &str = "\
No cloud snapshot depends on another one: any of them can be deleted, and shared data stays. A \
pinned one needs --force, as does one that another host made, or whose manifest, or that of another \
one of its volume, is unreadable. One that a clone, a lazy volume or a \
resumable task of this host needs is never deleted. Needs of other hosts are unknown here: their \
lazy volumes would fail to read.

Examples:
  blockctl cloudsnap delete --snap ID
  blockctl cs delete --snap ID --cred-id nas --wait
  blockctl cs delete --snap ID --force";

/// `cloudsnap list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// List snapshots of all clusters (default)
    #[arg(short, long, conflicts_with = "cluster")]
    pub all: bool,
    /// Only snapshots of this volume, by its name or id at backup time
    #[arg(short, long, value_name = "VOLUME")]
    pub src: Option<VolumeRef>,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Only snapshots of this cluster
    #[arg(short, long, value_name = "UUID")]
    pub cluster: Option<Uuid>,
    /// Only snapshots in this state [default: Done and Damaged]
    #[arg(short = 't', long, ignore_case = true, value_parser = status_parser())]
    pub status: Option<CloudsnapStatus>,
    /// Only snapshots with all these labels, their own or of their volume
    #[arg(long, value_name = "K=V,…")]
    pub label: Option<LabelSelector>,
    /// Only backups of this name
    #[arg(long, value_name = "NAME")]
    pub name: Option<ObjectName>,
    /// Only this snapshot
    #[arg(short = 'i', long, value_name = "ID")]
    pub cloudsnap_id: Option<SnapRef>,
    /// Only the newest N
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
    /// Only migrations between clusters: none, since any host restores the cloud snapshots of the others
    #[arg(short, long, hide = true)]
    pub migration: bool,
}

/// `cloudsnap inspect`
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Id of the cloud snapshot
    #[arg(value_name = "ID", required_unless_present = "snap", conflicts_with = "snap")]
    id: Option<SnapRef>,
    /// The same, as an option
    #[arg(short, long, value_name = "ID", alias = "cloudsnap-id", short_alias = 'i')]
    snap: Option<SnapRef>,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}

impl InspectArgs {
    /// Returns the id, from the argument or the option; the parser requires one.
    pub fn id(&self) -> Option<&SnapRef> {
        self.id.as_ref().or(self.snap.as_ref())
    }
}

/// `cloudsnap delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: CloudSnapshotId,
    /// Delete it although it is pinned, of another host, or it or another one of its volume is unreadable
    #[arg(short, long)]
    pub force: bool,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
}

fn status_parser() -> impl TypedValueParser<Value = CloudsnapStatus> {
    const ABORTED: &str = "aborted";
    let values = CloudsnapStatus::ALL.map(|status| {
        let value = PossibleValue::new(status.as_str());
        if status == CloudsnapStatus::Stopped { value.alias(ABORTED) } else { value }
    });
    PossibleValuesParser::new(values).map(|text| {
        if ABORTED.eq_ignore_ascii_case(&text) {
            return CloudsnapStatus::Stopped;
        }
        // The parser has accepted only these values, upper or lower case.
        let same = |status: &CloudsnapStatus| status.as_str().eq_ignore_ascii_case(&text);
        CloudsnapStatus::ALL.into_iter().find(same).unwrap_or_default()
    })
}

pub async fn list(context: &Context<'_>, args: ListArgs) -> Exit {
    if args.migration {
        context.output.note("There are no migrations: any host with the bucket and the passphrase lists and restores the cloud snapshots of others.");
        let none = CloudsnapList::default();
        return context.output.show(&none, || list_table(&none));
    }
    let cloudsnap_id = match &args.cloudsnap_id {
        Some(id) => Some(id.resolve(context, args.credential.cred_id.as_ref()).await?),
        None => None,
    };
    let query = ListCloudsnaps {
        credential: args.credential.cred_id,
        volume: args.src,
        cluster_id: args.cluster,
        all: args.all,
        status: args.status,
        label: args.label,
        name: args.name,
        cloud_snapshot_id: cloudsnap_id,
        max: args.max,
    };
    let list = context.client.call(operations::LIST_CLOUDSNAPS, &query).await?;
    let is_whole = list.failed_credentials.is_empty();
    if let (Some(id), true) =
        (&query.cloud_snapshot_id, is_whole && list.list.items.is_empty() && list.damaged.is_empty())
    {
        return Err(unknown(id, &query));
    }
    let output = context.output;
    if output.is_json() {
        match query.cloud_snapshot_id {
            Some(_) => output.foreign_document(&pxctl::entries(&list))?,
            None => output.document(&list)?,
        };
    } else {
        output.table(&list_table(&list))?;
    }
    for damaged in &list.damaged {
        let (id, reason) = (&damaged.cloud_snapshot_id, &damaged.reason);
        output.note(format!("warning: {id} is damaged and cannot be restored: {reason}"));
    }
    for failed in &list.failed_credentials {
        output.note(format!(
            "warning: the list lacks the snapshots of credentials {}: {}",
            failed.credential_name, failed.error
        ));
    }
    let shown = list.list.items.len() as u64;
    if shown < list.total && !output.is_json() {
        output.note(format!("The newest {shown} of {} are shown.", list.total));
    }
    // The list is correct but incomplete.
    Ok(if is_whole { EXIT_DONE } else { EXIT_FAILED })
}

/// A named snapshot that does not exist is an error, not an empty list.
fn unknown(id: &CloudSnapshotId, query: &ListCloudsnaps) -> Failure {
    let status = query.status.map(|status| format!(" that is {status}")).unwrap_or_default();
    let place = query.credential.as_ref().map(|place| format!(" at {place}")).unwrap_or_default();
    let message = format!("there is no cloud snapshot {id}{status}{place}");
    ApiError::new(ErrorCode::CloudsnapNotFound, message).into()
}

/// Returns the volume id of a damaged entry, if its name is complete.
pub(super) fn volume_id(damaged: &DamagedCloudsnap) -> Option<VolumeId> {
    damaged.cloud_snapshot_id.parse::<CloudSnapshotId>().ok().map(|id| id.volume)
}

fn list_table(list: &CloudsnapList) -> Table {
    const COLUMNS: &str = "SOURCEVOLUME|SOURCEVOLUMEID|CLOUD-SNAP-ID|CREATED-TIME|TYPE|STATUS|VERIFIED|KEPT";
    // The first columns are stable for scripts; the last ones appear with verified, pinned or expiring
    // entries.
    let has = |of: fn(&Cloudsnap) -> bool| list.list.items.iter().any(of);
    let shown = match has(|of| of.pinned || of.expires_at.is_some()) {
        true => 8,
        false => 6 + usize::from(has(|of| of.verification.is_some())),
    };
    let mut table = Table::new(COLUMNS.split('|').take(shown));
    for entry in &list.list.items {
        let row = [
            entry.volume_name.clone(),
            entry.volume_id.to_string(),
            entry.cloud_snapshot_id.to_string(),
            format_time(entry.created_at),
            entry.trigger.clone(),
            entry.status.to_string(),
            verified(entry),
            kept(entry),
        ];
        table.row(row.into_iter().take(shown));
    }
    for damaged in &list.damaged {
        let mut row: [String; 8] = std::array::from_fn(|_| "-".to_owned());
        (row[1], row[2]) = (or_dash(volume_id(damaged)), damaged.cloud_snapshot_id.clone());
        row[5] = CloudsnapStatus::Damaged.to_string();
        table.row(row.into_iter().take(shown));
    }
    table
}

/// Describes the last verification on this host.
fn verified(entry: &Cloudsnap) -> String {
    let Some(Verification { verified_at, depth, sound }) = entry.verification else { return "-".to_owned() };
    let result = if sound { "Sound" } else { "Damaged" };
    format!("{result} ({depth}, {})", format_time(verified_at))
}

pub async fn inspect(context: &Context<'_>, args: InspectArgs) -> Exit {
    let id = args.id().ok_or_else(|| Failure::usage("name the cloud snapshot to inspect"))?;
    let id = id.resolve(context, args.credential.cred_id.as_ref()).await?;
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
        .add("Status", entry.status)
        .add("Started", format_time(entry.started_at))
        .add("Completed", or_dash(entry.completed_at.map(format_time)))
        .add("Credentials", format!("{} ({})", entry.credential_name, entry.credential_id))
        .add("Format", format!("V{}.00, {}", entry.format_version, entry.compression))
        .add("Encrypted", entry.encrypted)
        .add("Dirty", size(entry.dirty_bytes))
        .add("Data", format!("{} in {}", size(entry.size_bytes), counted(detail.data_blocks, "block")))
        .add("Zeroed", counted(detail.zero_blocks, "block"))
        .add("Stored", format!("{} in {}", size(entry.stored_bytes), counted(detail.packs, "pack")))
        .add("Freeze", format!("{} µs", entry.freeze_stall_micros))
        .add("Verified", verified(entry))
        .add("Restore reads", size(detail.chain_stored_bytes));
    for (nth, id) in detail.chain.iter().enumerate() {
        facts.add(if nth == 0 { "Shares data of" } else { "" }, id);
    }
    facts
}

pub async fn delete(context: &Context<'_>, args: DeleteArgs) -> Exit {
    let request =
        StartDelete { cloud_snapshot_id: args.snap, credential: args.credential.cred_id, force: args.force };
    let started = context.client.call(operations::START_DELETE, &request).await?;
    let line = format!("Cloudsnap delete started successfully with task name:{}", started.task_id);
    report_start(context, started.task_id, &started, &line, args.wait.wait).await
}
