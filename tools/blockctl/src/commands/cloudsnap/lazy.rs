//! Lazy restores, clones of cloud snapshots, and in-place restores.

use super::{
    args::{CredentialArg, RestoreArgs},
    report_start,
};
use crate::{
    cloudsnap_ref::SnapRef,
    commands::Context,
    failure::{EXIT_DONE, Failure},
};
use blockd_api::{
    ByteSize, Labels, VolumeName, VolumeRef,
    lazy::{GoingBack, Hydration, StartInPlace, StartLazyRestore, StoreLoss},
    operations,
};
use clap::Args;

/// Help of `cloudsnap clone`.
pub const CLONE_HELP: &str = "\
The clone exists at once, independent of its size: it fetches data on read, and keeps it. It needs the \
cloud snapshot as long as it exists, so this daemon refuses to delete that. Another host does not \
know of the clone; if it deletes the cloud snapshot, reads of missing data fail. `cloudsnap \
restore --lazy` fetches all data.

Examples:
  blockctl cloudsnap clone --snap ID --volume db-test
  blockctl cs clone -s ID -v db-test --on-store-loss error";

/// Restore mode.
#[derive(Debug, Args)]
pub struct LazyArgs {
    /// Create the volume at once; fetch data on read and in the background
    #[arg(long, conflicts_with_all = ["limit_upload", "limit_download"])]
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
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
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

/// `cloudsnap restore --lazy` and `--in-place`.
pub async fn restore(context: &Context<'_>, args: RestoreArgs) -> Result<u8, Failure> {
    let (cred_id, wait) = (args.credential.cred_id, args.wait.wait);
    let snap = args.snap.resolve(context, cred_id.as_ref()).await?;
    if let Some(volume) = args.how.in_place {
        let request =
            StartInPlace { snap, volume, cred_id, discard: args.how.discard, limits: args.limits.limits() };
        let started = context.client.call(operations::START_IN_PLACE, &request).await?;
        let line = format!(
            "Cloudsnap restore started successfully on volume: {} with task name:{}",
            started.volume_id, started.task
        );
        return report_start(context, started.task, &started, &line, wait).await;
    }
    let request = StartLazyRestore {
        snap,
        volume: args.volume,
        cred_id,
        hydrate: true,
        on_store_loss: args.how.on_store_loss.unwrap_or_default(),
        labels: args.labels.labels(),
    };
    let restored = context.client.call(operations::START_LAZY_RESTORE, &request).await?;
    tell_schedules(context, &restored.volume, &restored.schedules);
    let Some(task) = restored.task else {
        return Err(Failure::usage("blockd made the volume, but no task that fetches the rest of it"));
    };
    let line = format!(
        "Volume successfully created: {} ({}); the rest of it is fetched by task name:{task}",
        restored.volume_id, restored.volume
    );
    report_start(context, task, &restored, &line, wait).await
}

/// Prints the schedules that include a new volume.
pub fn tell_schedules(context: &Context<'_>, volume: &VolumeName, schedules: &[String]) {
    if !schedules.is_empty() && !context.output.is_json() {
        context.output.note(format!(
            "note: by its labels, {volume} is backed up by the {} {} from now on; --no-labels or --label keep a restored volume out of that",
            if schedules.len() == 1 { "schedule" } else { "schedules" },
            schedules.join(", ")
        ));
    }
}

/// `cloudsnap clone`.
pub async fn clone(context: &Context<'_>, args: CloneArgs) -> Result<u8, Failure> {
    let request = StartLazyRestore {
        snap: args.snap.resolve(context, args.credential.cred_id.as_ref()).await?,
        volume: args.volume,
        cred_id: args.credential.cred_id,
        hydrate: false,
        on_store_loss: args.on_store_loss,
        labels: args.labels.labels(),
    };
    let restored = context.client.call(operations::START_LAZY_RESTORE, &request).await?;
    tell_schedules(context, &restored.volume, &restored.schedules);
    match context.output.is_json() {
        true => context.output.document(&restored)?,
        false => {
            let line = format!("Volume successfully cloned: {} ({})", restored.volume_id, restored.volume);
            context.output.line(line)?;
        }
    }
    Ok(EXIT_DONE)
}

/// Formats the progress of an in-place restore.
pub fn going_back(going_back: &GoingBack) -> String {
    let GoingBack { task, done_bytes, total_bytes, in_part, .. } = going_back;
    match in_part {
        true => format!("restored in part: resume it, `blockctl cloudsnap resume --name {task}`"),
        false if *total_bytes == 0 => "restoring".to_owned(),
        false => format!("restoring, {}%", u128::from(*done_bytes) * 100 / u128::from(*total_bytes)),
    }
}

/// Formats the hydrated share of a volume.
pub fn percent(hydration: &Hydration) -> String {
    let percent = hydration.done_bytes * 100 / hydration.total_bytes.max(1);
    match hydration.in_background {
        true => format!("hydrating, {percent}%"),
        false => format!("lazy, {percent}%"),
    }
}

/// Formats the hydration state in one line.
pub fn line(hydration: Option<&Hydration>) -> String {
    let Some(hydration) = hydration else { return "-".to_owned() };
    let size = |bytes| ByteSize::from_bytes(bytes).to_string();
    format!(
        "{} of {}, {} of {}, {} on loss of the store, {} waiting",
        if hydration.in_background { "hydrating" } else { "lazy" },
        hydration.cloudsnap,
        size(hydration.done_bytes),
        size(hydration.total_bytes),
        hydration.on_store_loss,
        hydration.waiting
    )
}
