//! `blockctl volume …`

pub mod args;
mod create;
mod image;
mod labels;
mod list;
mod state;

use super::snapshot::refuse_pinned;
use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure},
    output::Context,
    snapshot_ref::{ExportRef, volume_of},
    table::{Facts, counted, or_dash},
    wait::report_start,
};
use args::{
    AttachArgs, CloneArgs, DeleteArgs, DetachArgs, DetachTarget, RenameArgs, ResizeArgs, ScrubArgs,
    UpdateArgs, VolumeCommand,
};
use blockd_api::{
    ApiError, ByteSize, ErrorCode, ORIGIN_LABELS, SnapshotRef, VolumeRef,
    anomalies::LEARNING_DAYS,
    attachments::{AttachVolume, Attachment, DetachVolume, NbdDevice},
    format_time, operations,
    snapshots::{ListSnapshots, Snapshot},
    tasks::StartScrub,
    volumes::{
        CloneVolume, DeleteVolume, DiscardedWrites, ListVolumes, MergeProgress, SurvivingClients,
        UpdateVolume, Volume,
    },
};
use labels::{LabelChanges, merged, refuse_second_policy, with_policy};
use schemars::JsonSchema;
use serde::Serialize;
use state::{hydration_line, status};

pub async fn run(context: &Context<'_>, command: VolumeCommand) -> Exit {
    match command {
        VolumeCommand::Create(args) => create::run(context, args).await,
        VolumeCommand::Check(args) => check(context, &args.volume).await,
        VolumeCommand::Clone(args) => clone(context, args).await,
        VolumeCommand::Scrub(args) => scrub(context, args).await,
        VolumeCommand::List(args) => list::list(context, args).await,
        VolumeCommand::Inspect(args) => inspect(context, &args.volume).await,
        VolumeCommand::Resize(args) => resize(context, args).await,
        VolumeCommand::Rename(args) => rename(context, args).await,
        VolumeCommand::Update(args) => update(context, args).await,
        VolumeCommand::Delete(args) => delete(context, &args).await,
        VolumeCommand::Attach(args) => attach(context, args).await,
        VolumeCommand::Detach(args) => detach(context, args).await,
        VolumeCommand::Uri(args) => uri(context, &args.export).await,
    }
}

async fn check(context: &Context<'_>, volume: &VolumeRef) -> Exit {
    let check = context.client.call_at(operations::CHECK_VOLUME, volume, &()).await?;
    if context.output.is_json() {
        context.output.document(&check)?;
    } else if check.sound {
        let (layers, sets) = (counted(check.layers, "layer"), counted(check.intervals, "kept block set"));
        context.output.line(format!("Volume {} is sound: {layers}, {sets}.", check.volume_name))?;
    } else {
        for finding in &check.findings {
            context.output.line(finding)?;
        }
    }
    Ok(if check.sound { EXIT_DONE } else { EXIT_FAILED })
}

async fn scrub(context: &Context<'_>, args: ScrubArgs) -> Exit {
    let request = StartScrub {
        volume: args.volume,
        budget_bytes: args.budget.map(ByteSize::as_bytes),
        repair: args.repair,
        limit_bytes_per_second: args.limit.map(ByteSize::as_bytes),
    };
    let started = context.client.call(operations::START_SCRUB, &request).await?;
    let line = format!("Scrub started successfully with id: {}", started.task_id);
    report_start(context, started.task_id, &started, &line, args.wait.report()).await
}

async fn clone(context: &Context<'_>, args: CloneArgs) -> Exit {
    let snapshot = args.snapshot.resolve(context).await?;
    let parent = volume_of(context, &snapshot).await?;
    let request = CloneVolume { name: args.name, snapshot, labels: merged(&args.label)? };
    let volume = context.client.call_at(operations::CLONE_VOLUME, &parent, &request).await?;
    context
        .output
        .tell(&volume, || format!("Volume successfully cloned: {} ({})", volume.volume_id, volume.name))
}

/// Document of `volume inspect`: the volume, and the space of its snapshots.
#[derive(Serialize, JsonSchema)]
pub struct Inspected<'a> {
    #[serde(flatten)]
    volume: &'a Volume,
    /// Local snapshots.
    snapshots: &'a [Snapshot],
}

async fn inspect(context: &Context<'_>, volume: &VolumeRef) -> Exit {
    let volume = context.client.call_at(operations::GET_VOLUME, volume, &()).await?;
    let query = ListSnapshots { volume: Some(VolumeRef::Id(volume.volume_id)), group: None };
    let snapshots = context.client.call(operations::LIST_SNAPSHOTS, &query).await?.items;
    if context.output.is_json() {
        return context.output.document(&Inspected { volume: &volume, snapshots: &snapshots });
    }
    let mut facts = facts(&volume);
    for snapshot in &snapshots {
        let size = |len_bytes: Option<u64>| or_dash(len_bytes.map(ByteSize::from_bytes));
        let (exclusive, shared) = (size(snapshot.exclusive_bytes), size(snapshot.shared_bytes));
        facts.add("Snapshot", format!("{}, {exclusive} exclusive, {shared} shared", snapshot.name));
    }
    context.output.facts(&facts)
}

fn anomaly_policy(volume: &Volume) -> String {
    let policy = volume.anomaly_policy;
    match volume.anomaly_learning_day {
        None => policy.to_string(),
        Some(0) => format!("{policy} (learning: no backup was observed yet)"),
        Some(day) => format!("{policy} (learning, day {day} of {LEARNING_DAYS})"),
    }
}

fn discarded(loss: &DiscardedWrites) -> String {
    let clients = match loss.clients {
        SurvivingClients::All => "all clients",
        SurvivingClients::Remote => "remote clients",
    };
    format!("possible, of {clients}, found {}: {}", format_time(loss.found_at), loss.cause)
}

fn facts(volume: &Volume) -> Facts {
    let size = |len_bytes| ByteSize::from_bytes(len_bytes).to_string();
    let io = &volume.io;
    let mut facts = Facts::default();
    facts
        .add("Volume", volume.volume_id)
        .add("Name", &volume.name)
        .add("Size", size(volume.size_bytes))
        .add("Read-only", if volume.read_only { "yes" } else { "no" })
        .add("Labels", if volume.labels.is_empty() { "-".to_owned() } else { volume.labels.to_string() })
        .add("Group", or_dash(volume.group.as_ref()))
        .add("Rule", or_dash(volume.rule_name.as_ref()))
        .add("Created", format_time(volume.created_at))
        .add("Status", status(volume));
    if let Some(loss) = &volume.discarded_writes {
        facts.add("Discarded writes", discarded(loss));
    }
    if volume.damaged_bytes > 0 {
        let name = &volume.name;
        facts.add(
            "Damaged",
            format!("{}: `blockctl volume scrub {name} --repair --wait`", size(volume.damaged_bytes)),
        );
    }
    facts
        .add("URI", &volume.uri)
        .add("Connections", volume.connections)
        .add("Device", volume.attachment.as_ref().map_or_else(|| "-".to_owned(), device))
        .add(
            "Used on disk",
            format!("{} in {}", size(volume.allocated_bytes), counted(volume.layers, "layer")),
        )
        .add("Merging", volume.merge.as_ref().map_or_else(|| "-".to_owned(), merging))
        .add("Hydration", hydration_line(volume.hydration.as_ref()))
        .add("Shared", size(volume.shared_bytes))
        .add("Dirty", size(volume.dirty_bytes))
        .add("Anomaly policy", anomaly_policy(volume))
        .add("Last scrub", or_dash(volume.last_scrub_at.map(format_time)))
        .add("Snapshots", volume.snapshot_count)
        .add("Reads", format!("{}, {}", io.reads, size(io.read_bytes)))
        .add("Writes", format!("{}, {}", io.writes, size(io.written_bytes)))
        .add("Flushes", io.flushes);
    if volume.last_backups.is_empty() {
        facts.add("Last backup", or_dash(None::<&str>));
    }
    for backup in &volume.last_backups {
        let since = match backup.incrementals_since_full {
            0 => "full".to_owned(),
            count => format!("{} since the last full", counted(count, "incremental")),
        };
        let place = &backup.credential_name;
        let when = format_time(backup.created_at);
        facts.add("Last backup", format!("{} to {place}, {when}, {since}", backup.cloud_snapshot_id));
    }
    facts
}

/// Formats running merges in one line.
fn merging(merging: &MergeProgress) -> String {
    let layers = counted(merging.layers, "layer");
    if merging.total_bytes == 0 {
        return layers;
    }
    let (done, total) = (ByteSize::from_bytes(merging.done_bytes), ByteSize::from_bytes(merging.total_bytes));
    format!("{layers}, {done} of {total} of the first one done")
}

/// Formats a device and its attachment in one line.
fn device(attachment: &Attachment) -> String {
    let mut parts = vec![or_dash(attachment.device)];
    if let Some(problem) = &attachment.problem {
        parts.push(format!("not connected: {problem}"));
    }
    if attachment.read_only {
        parts.push("read-only".to_owned());
    }
    if attachment.persistent {
        parts.push("persistent".to_owned());
    }
    parts.push(counted(attachment.connections.into(), "connection"));
    parts.push(format!("blocks of {} bytes", attachment.block_size_bytes));
    parts.push(format!(
        "timeout {} s, dead timeout {} s",
        attachment.timeout_seconds, attachment.dead_timeout_seconds
    ));
    parts.join(", ")
}

async fn attach(context: &Context<'_>, args: AttachArgs) -> Exit {
    let request = AttachVolume {
        device: args.device,
        read_only: args.read_only,
        persistent: args.persistent,
        timeout_seconds: args.timeout,
        dead_timeout_seconds: args.dead_timeout,
        connections: args.connections,
        block_size_bytes: args.block_size,
    };
    request.check().map_err(Failure::usage)?;
    let attachment = context.client.call_at(operations::ATTACH_VOLUME, &args.volume, &request).await?;
    context.output.tell(&attachment, || {
        format!("Volume {} successfully attached at {}.", args.volume, or_dash(attachment.device))
    })
}

async fn detach(context: &Context<'_>, args: DetachArgs) -> Exit {
    let volume = match args.target {
        DetachTarget::Volume(volume) => volume,
        DetachTarget::Device(device) => volume_at(context, device).await?,
    };
    let detached = context
        .client
        .call_at(operations::DETACH_VOLUME, &volume, &DetachVolume { force: args.force })
        .await?;
    let place = detached.device.map_or_else(String::new, |device| format!(" from {device}"));
    context
        .output
        .tell(&detached, || format!("Volume {} successfully detached{place}.", detached.volume_name))
}

/// Returns the volume attached to a device.
async fn volume_at(context: &Context<'_>, device: NbdDevice) -> Result<VolumeRef, Failure> {
    let list = context.client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await?;
    let found = list.items.into_iter().find(|volume| {
        volume.attachment.as_ref().is_some_and(|attachment| attachment.device == Some(device))
    });
    found.map(|volume| VolumeRef::Id(volume.volume_id)).ok_or_else(|| {
        ApiError::new(ErrorCode::VolumeNotAttached, format!("no volume is attached at {device}")).into()
    })
}

async fn resize(context: &Context<'_>, args: ResizeArgs) -> Exit {
    let request = UpdateVolume { size_bytes: Some(args.size.as_bytes()), ..UpdateVolume::default() };
    let volume = context.client.call_at(operations::UPDATE_VOLUME, &args.volume, &request).await?;
    let size = ByteSize::from_bytes(volume.size_bytes);
    context.output.tell(&volume, || format!("Volume {} successfully resized to {size}.", volume.name))
}

async fn rename(context: &Context<'_>, args: RenameArgs) -> Exit {
    let request = UpdateVolume { name: Some(args.name), ..UpdateVolume::default() };
    let volume = context.client.call_at(operations::UPDATE_VOLUME, &args.volume, &request).await?;
    context
        .output
        .tell(&volume, || format!("Volume successfully renamed: {} ({})", volume.volume_id, volume.name))
}

async fn update(context: &Context<'_>, args: UpdateArgs) -> Exit {
    let changes = args.changes;
    refuse_second_policy(changes.label.iter().flat_map(LabelChanges::keys), changes.anomaly_policy)?;
    let group = if changes.no_group { Some(None) } else { changes.group.map(Some) };
    let labels = match changes.no_labels || !changes.label.is_empty() || changes.anomaly_policy.is_some() {
        true => {
            let labels = context.client.call_at(operations::GET_VOLUME, &args.volume, &()).await?.labels;
            // Without them, a restore or clone would happen again.
            let is_other = |key: &&str| changes.no_labels && !ORIGIN_LABELS.contains(key);
            let removed: Vec<&str> = labels.as_map().keys().map(String::as_str).filter(is_other).collect();
            let kept = labels.clone().without(&removed);
            let changed = changes.label.iter().try_fold(kept, |labels, change| change.applied_to(&labels));
            let changed = changed.map_err(|error| Failure::usage(error.to_string()))?;
            Some(with_policy(changed, changes.anomaly_policy)?)
        }
        false => None,
    };
    let request = UpdateVolume {
        name: None,
        size_bytes: None,
        read_only: changes.read_only,
        acknowledge_discarded_writes: changes.acknowledge_discarded_writes,
        labels,
        group,
    };
    let volume = context.client.call_at(operations::UPDATE_VOLUME, &args.volume, &request).await?;
    if context.output.is_json() {
        return context.output.document(&volume);
    }
    let mut now = Vec::new();
    if request.read_only.is_some() {
        now.push(if volume.read_only { "is now read-only" } else { "is now writable" }.to_owned());
    }
    if request.acknowledge_discarded_writes {
        now.push("has all discarded writes acknowledged".to_owned());
    }
    if request.labels.is_some() {
        now.push(match volume.labels.is_empty() {
            true => "has no labels now".to_owned(),
            false => format!("has the labels {} now", volume.labels),
        });
    }
    if request.group.is_some() {
        now.push(match &volume.group {
            None => "is in no group now".to_owned(),
            Some(group) => format!("is in group {group} now"),
        });
    }
    context.output.line(format!("Volume {} {}.", volume.name, now.join(", ")))
}

async fn delete(context: &Context<'_>, args: &DeleteArgs) -> Exit {
    if args.yes.must_ask() {
        let volume = context.client.call_at(operations::GET_VOLUME, &args.volume, &()).await?;
        let used = ByteSize::from_bytes(volume.allocated_bytes);
        let query = ListSnapshots { volume: Some(args.volume.clone()), ..ListSnapshots::default() };
        let list = context.client.call(operations::LIST_SNAPSHOTS, &query).await?.items;
        if !args.force {
            refuse_pinned(&list)?;
        }
        let mut snapshots = counted(volume.snapshot_count, "local snapshot");
        match list.iter().filter(|one| one.pinned).count() {
            0 => {}
            pinned => snapshots += &format!(", {pinned} pinned"),
        }
        let also = match volume.last_backups.is_empty() {
            true => String::new(),
            false => format!(" (`blockctl cloudsnap delete --src {}` deletes them)", volume.volume_id),
        };
        args.yes.confirm(
            context.output,
            &format!(
                "Volume {} ({used} on disk, {snapshots}) is deleted permanently; its cloud snapshots stay{also}.",
                volume.name
            ),
        )?;
    }
    let query = DeleteVolume { force: args.force };
    let deleted = context.client.call_at(operations::DELETE_VOLUME, &args.volume, &query).await?;
    deleted.warnings.iter().for_each(|warning| context.output.note(format!("warning: {warning}")));
    context
        .output
        .tell(&deleted, || format!("Volume {} successfully deleted.", or_dash(deleted.name.as_ref())))
}

/// Returns a URI that this host can use: Unix sockets of other hosts are useless here.
async fn reachable(context: &Context<'_>, uri: String) -> Result<String, Failure> {
    let export = uri.strip_prefix("nbd+unix:///").and_then(|rest| rest.split('?').next());
    let Some(export) = export.filter(|_| context.client.endpoint().socket().is_none()) else {
        return Ok(uri);
    };
    let served = context.client.call(operations::GET_STATUS, &()).await?.nbd;
    let tcp_uris: Vec<String> =
        served.iter().filter(|one| one.starts_with("nbd://")).map(|one| format!("{one}{export}")).collect();
    let hint = match tcp_uris.as_slice() {
        [] => "it serves NBD to no other host: set nbd_listen in its configuration, with TLS".to_owned(),
        _ => format!(
            "it serves {} as well: give the address by which this host reaches it, and nbds:// if it wants TLS (nbdinfo, nbdcopy and qemu take certificates)",
            tcp_uris.join(" and ")
        ),
    };
    Err(Failure::usage(format!("{uri} can be used on the host of that blockd only")).with_hint(hint))
}

/// Document of `volume uri`.
#[derive(Serialize, JsonSchema)]
pub struct ExportUri {
    /// URI of the export.
    uri: String,
}

async fn uri(context: &Context<'_>, export: &ExportRef) -> Exit {
    let snapshot_uri = async |snapshot: SnapshotRef| {
        context.client.call_at(operations::GET_SNAPSHOT, &snapshot, &()).await.map(|found| found.uri)
    };
    let uri = match export {
        ExportRef::Snapshot(snapshot) => snapshot_uri(snapshot.resolve(context).await?).await?,
        ExportRef::Volume(volume) => {
            let found = context.client.call_at(operations::GET_VOLUME, volume, &()).await;
            let snapshot = volume.to_string().parse::<SnapshotRef>();
            match (found, snapshot) {
                (Ok(found), _) => found.uri,
                // The error about the volume is that of most mistakes.
                (Err(error), Ok(snapshot)) => snapshot_uri(snapshot).await.map_err(|_| error)?,
                (Err(error), Err(_)) => return Err(error.into()),
            }
        }
    };
    let uri = reachable(context, uri).await?;
    let document = ExportUri { uri };
    context.output.tell(&document, || &document.uri)
}
