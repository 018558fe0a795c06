//! Lazy restores, clones of cloud snapshots, and in-place restores.

use super::{Context, cloudsnap::report_start};
use crate::{
    cli::{cloudsnap::RestoreArgs, lazy::CloneArgs},
    failure::{EXIT_DONE, Failure},
};
use blockd_api::{
    ByteSize, VolumeName,
    lazy::{GoingBack, Hydration, StartInPlace, StartLazyRestore},
    operations,
};

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
pub(super) fn tell_schedules(context: &Context<'_>, volume: &VolumeName, schedules: &[String]) {
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
