//! `blockctl cloudsnap restore` and `clone`: restores in full, lazy and in place.

use super::snapshots::source_volume;
use crate::{
    cloudsnap_ref::SnapRef,
    commands::{
        arguments::{CredentialArg, WaitArg},
        costs,
        limits::TaskLimitArgs,
    },
    confirm::YesArg,
    failure::{Exit, Failure},
    output::Context,
    times::Period,
    volume_point::VolumePoint,
    wait::report_start,
};
use blockd_api::{
    ByteSize, Labels, VolumeId, VolumeName, VolumeRef,
    cloudsnaps::{CloudSnapshotId, InspectCloudsnap, RestoreStarted, StartRestore},
    format_time,
    lazy::{StartInPlace, StartLazyRestore, StoreLoss},
    operations,
    schedules::ScheduleSummary,
};
use clap::Args;
use uuid::Uuid;

pub const RESTORE_HELP: &str = "\
The restore creates a volume with the size and labels of the original; it is served when the \
restore is done. Schedules by labels include it from then on; --label and --no-labels set other \
labels. With --lazy the volume is served and writable at once: reads are \
fetched first, the rest in the background. Until hydration is done, no host of the location deletes \
the cloud snapshot without --force: a lease there names this host. With --in-place, a \
backup of another volume needs --yes in scripts.

Examples:
  blockctl cloudsnap restore db --latest --volume db-restored --wait
  blockctl cs restore db --at 2026-11-20T21:00 --cred-id nas
  blockctl cs restore --snap ID -v db-restored --no-labels
  blockctl cs restore db@latest -v db-now --lazy --on-store-loss error
  blockctl cs restore ID --in-place db --wait
  blockctl cs restore db@latest --dry-run
  blockctl cs restore db@latest --volume db-now --max-egress 20GiB --wait";

/// Help of `cloudsnap clone`.
pub const CLONE_HELP: &str = "\
The clone exists at once, independent of its size: it fetches data on read, and keeps it. It needs the \
cloud snapshot as long as it exists: this daemon refuses to delete that, and a lease makes other \
hosts of the location refuse it, unless this host does not renew the lease for 7 days. `cloudsnap \
restore --lazy` fetches all data.

Examples:
  blockctl cloudsnap clone db@latest --volume db-test
  blockctl cs clone -s ID -v db-test --on-store-loss error";

/// Cloud snapshot to restore: by itself, or as a volume and a point in time.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Cloud snapshot: id, id prefix, name, VOLUME@latest or VOLUME@TIME; or the volume of --latest or --at
    #[arg(value_name = "ID|VOLUME")]
    snap: SnapRef,
    /// Newest cloud snapshot of the volume
    #[arg(long, conflicts_with = "at")]
    latest: bool,
    /// Newest cloud snapshot of the volume at or before a time in UTC, such as 2026-11-20T21:00
    #[arg(long, value_name = "TIME")]
    at: Option<Period>,
}

impl SourceArgs {
    /// Returns the cloud snapshot.
    ///
    /// # Errors
    /// `--latest` or `--at` are given with a cloud snapshot instead of a volume.
    fn snap(&self) -> Result<SnapRef, Failure> {
        let given = &self.snap;
        if !self.latest && self.at.is_none() {
            return Ok(given.clone());
        }
        let volume = given.volume().ok_or_else(|| {
            Failure::usage(format!("--latest and --at need the name or id of a volume, not {given}"))
        })?;
        Ok(SnapRef::Point(VolumePoint { volume, until: self.at.as_ref().map(|at| at.end) }))
    }
}

/// `cloudsnap restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Cloud snapshot.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Name of the new volume [default: generated]
    #[arg(short, long, value_name = "NAME")]
    pub volume: Option<VolumeName>,
    /// Skip damaged extents; they read as zeroes and are listed
    #[arg(long)]
    pub skip_damaged: bool,
    /// Estimate requests, bytes and costs, and change nothing
    #[arg(long, conflicts_with_all = ["lazy", "wait"])]
    pub dry_run: bool,
    /// Labels of the new volume.
    #[command(flatten)]
    pub labels: NewLabelsArgs,
    /// Restore mode.
    #[command(flatten)]
    pub how: LazyArgs,
    /// Bandwidth limits.
    #[command(flatten)]
    pub limits: TaskLimitArgs,
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

/// Restore mode.
#[derive(Debug, Args)]
pub struct LazyArgs {
    /// Create the volume at once; fetch data on read and in the background
    #[arg(long, conflicts_with_all = ["limit_upload", "limit_download", "max_requests", "max_egress", "max_cost"])]
    pub lazy: bool,
    /// Reads of missing data while the store is unreachable
    #[arg(long, value_name = "stall|error", requires = "lazy")]
    pub on_store_loss: Option<StoreLoss>,
    /// Restore into this unused volume, fetching only the difference
    #[arg(long, value_name = "VOLUME", conflicts_with_all = ["volume", "lazy", "label", "no_labels"])]
    pub in_place: Option<VolumeRef>,
    /// Keep no snapshot of the previous state
    #[arg(long, requires = "in_place")]
    pub discard: bool,
}

/// Labels of a new volume.
#[derive(Debug, Default, Args)]
pub struct NewLabelsArgs {
    /// Labels of the new volume [default: those of the original]
    #[arg(long, value_name = "K=V,…")]
    label: Option<Labels>,
    /// Create the new volume without labels
    #[arg(long, conflicts_with = "label")]
    no_labels: bool,
}

impl NewLabelsArgs {
    /// Returns the given labels; `None` for those of the original.
    pub fn labels(self) -> Option<Labels> {
        if self.no_labels { Some(Labels::default()) } else { self.label }
    }
}

/// `cloudsnap clone`
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// Cloud snapshot.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Name of the new volume [default: generated]
    #[arg(short, long, value_name = "NAME")]
    pub volume: Option<VolumeName>,
    /// Reads of missing data while the store is unreachable
    #[arg(long, value_name = "stall|error", default_value = "stall")]
    pub on_store_loss: StoreLoss,
    /// Labels of the new volume.
    #[command(flatten)]
    pub labels: NewLabelsArgs,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}

/// Refuses to overwrite a volume with another one's backup without a confirmation, and asks for one on a
/// terminal.
async fn confirm_in_place(
    context: &Context<'_>,
    args: &RestoreArgs,
    volume: &VolumeRef,
    cloud_snapshot_id: CloudSnapshotId,
) -> Result<(), Failure> {
    if args.yes.is_given() {
        return Ok(());
    }
    let (client, credential) = (&context.client, args.credential.cred_id.clone());
    let query = InspectCloudsnap { cloud_snapshot_id, credential };
    let entry = client.call(operations::INSPECT_CLOUDSNAP, &query).await?.entry;
    let target = client.call_at(operations::GET_VOLUME, volume, &()).await?;
    let here = client.call(operations::GET_STATUS, &()).await?.cluster_id;
    let size = |len_bytes| ByteSize::from_bytes(len_bytes);
    let is_own = cloud_snapshot_id.cluster == here && entry.volume_id == target.volume_id;
    let source = format!("{} ({})", source_volume(&entry, here), size(entry.volume_size_bytes));
    let name = &target.name;
    if !is_own && !args.yes.must_ask() {
        let size = size(target.size_bytes);
        return Err(Failure::usage(format!(
            "cloud snapshot {cloud_snapshot_id} is of another volume, {source}, not of {name} ({size})"
        ))
        .with_hint(format!("--yes replaces the content of {name}; --volume restores to a new volume")));
    }
    let of = if is_own { String::new() } else { format!("another volume, {source}, ") };
    let (time, location) = (format_time(entry.created_at), &entry.credential_name);
    let fate = if args.how.discard { "discarded" } else { "kept as a local snapshot" };
    let consequence = format!(
        "Volume {name} becomes cloud snapshot {cloud_snapshot_id} of {of}{time}, at {location}; its current content is {fate}."
    );
    args.yes.confirm(context.output, &consequence)
}

async fn restore_in_place(context: &Context<'_>, args: RestoreArgs, volume: VolumeRef) -> Exit {
    let snap = args.source.snap()?;
    let cloud_snapshot_id = snap.resolve_own(context, args.credential.cred_id.as_ref()).await?;
    if !args.dry_run {
        confirm_in_place(context, &args, &volume, cloud_snapshot_id).await?;
    }
    let request = StartInPlace {
        cloud_snapshot_id,
        volume,
        credential: args.credential.cred_id,
        discard: args.how.discard,
        labels: Labels::default(),
        limits: args.limits.limits(),
    };
    if args.dry_run {
        let estimated = context.client.call(operations::ESTIMATE_IN_PLACE, &request).await?;
        return costs::report(context.output, &estimated);
    }
    let reply = context.client.call(operations::START_IN_PLACE, &request).await?;
    if let Some(note) = note_on_previous(&reply).filter(|_| !context.output.is_json()) {
        context.output.note(note);
    }
    let line = started(reply.volume_id, reply.task_id);
    report_start(context, reply.task_id, &reply, &line, args.wait.report()).await
}

/// Returns a note on the snapshot of the previous content.
pub fn note_on_previous(started: &RestoreStarted) -> Option<String> {
    let (volume, previous) = (&started.volume_name, started.previous_snapshot_name.as_ref()?);
    Some(format!("note: the previous content of {volume} is kept as snapshot {volume}@{previous}"))
}

fn started(volume: VolumeId, task: Uuid) -> String {
    format!("Cloudsnap restore started successfully on volume: {volume} with task name:{task}")
}

pub async fn restore(context: &Context<'_>, mut args: RestoreArgs) -> Exit {
    if let Some(volume) = args.how.in_place.take() {
        return restore_in_place(context, args, volume).await;
    }
    let (credential, limits, client) = (args.credential.cred_id, args.limits.limits(), &context.client);
    let cloud_snapshot_id = args.source.snap()?.resolve(context, credential.as_ref()).await?;
    let labels = args.labels.labels();
    if !args.how.lazy {
        let skip_damaged = args.skip_damaged;
        let request = StartRestore {
            cloud_snapshot_id,
            volume_name: args.volume,
            skip_damaged,
            credential,
            limits,
            labels,
        };
        if args.dry_run {
            return costs::report(
                context.output,
                &client.call(operations::ESTIMATE_RESTORE, &request).await?,
            );
        }
        let reply = client.call(operations::START_RESTORE, &request).await?;
        tell_schedules(context, &reply.volume_name, &reply.schedules).await?;
        let line = started(reply.volume_id, reply.task_id);
        return report_start(context, reply.task_id, &reply, &line, args.wait.report()).await;
    }
    let on_store_loss = args.how.on_store_loss.unwrap_or_default();
    let request = StartLazyRestore {
        cloud_snapshot_id,
        volume_name: args.volume,
        credential,
        hydrate: true,
        on_store_loss,
        labels,
    };
    let reply = client.call(operations::START_LAZY_RESTORE, &request).await?;
    tell_schedules(context, &reply.volume_name, &reply.schedules).await?;
    let Some(task) = reply.task_id else {
        return Err(Failure::usage("blockd created the volume, but no task that hydrates it"));
    };
    let line = format!(
        "Volume successfully created: {} ({}); hydrated by task name:{task}",
        reply.volume_id, reply.volume_name
    );
    report_start(context, task, &reply, &line, args.wait.report()).await
}

/// Prints the schedules that include a new volume, and how to avoid those by labels.
async fn tell_schedules(
    context: &Context<'_>,
    volume: &VolumeName,
    schedules: &[ScheduleSummary],
) -> Result<(), Failure> {
    let Some(note) = note_on_schedules(volume, schedules).filter(|_| !context.output.is_json()) else {
        return Ok(());
    };
    let all = context.client.call(operations::LIST_SCHEDULES, &()).await?.list.items;
    let mut by_label = all.iter().filter(|one| one.selector.label.is_some()).map(|one| one.schedule_id);
    let advice = match by_label.any(|id| schedules.iter().any(|one| one.schedule_id == id)) {
        true => "; a restore with --no-labels or --label avoids schedules by labels",
        false => "",
    };
    context.output.note(note + advice);
    Ok(())
}

/// Returns a note on the schedules that include a new volume.
pub fn note_on_schedules(volume: &VolumeName, schedules: &[ScheduleSummary]) -> Option<String> {
    let plural = if schedules.len() == 1 { "" } else { "s" };
    let names = schedules.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    (!schedules.is_empty())
        .then(|| format!("note: {volume} is backed up by the schedule{plural} {names} from now on"))
}

/// `cloudsnap clone`.
pub async fn clone(context: &Context<'_>, args: CloneArgs) -> Exit {
    let request = StartLazyRestore {
        cloud_snapshot_id: args.source.snap()?.resolve(context, args.credential.cred_id.as_ref()).await?,
        volume_name: args.volume,
        credential: args.credential.cred_id,
        hydrate: false,
        on_store_loss: args.on_store_loss,
        labels: args.labels.labels(),
    };
    let restored = context.client.call(operations::START_LAZY_RESTORE, &request).await?;
    tell_schedules(context, &restored.volume_name, &restored.schedules).await?;
    context.output.tell(&restored, || {
        format!("Volume successfully cloned: {} ({})", restored.volume_id, restored.volume_name)
    })
}
