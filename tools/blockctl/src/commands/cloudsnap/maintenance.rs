//! `blockctl cloudsnap stop`, `resume`, `verify` and `gc`

use super::task_ref::{fitting_task, tasks};
use crate::{
    cloudsnap_ref::SnapRef,
    commands::{
        arguments::{CredentialArg, TaskArg, WaitArg, WideArg},
        costs,
        limits::{BudgetArgs, ChangedLimitArgs},
    },
    confirm::YesArg,
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure, hint_of},
    output::{Context, Output},
    short_ids::ShortIds,
    table::{Table, Width, counted, or_dash},
    wait::{report_group_start, report_start},
};
use blockd_api::{
    ApiError, ByteSize, ClientError, CredentialRef, ErrorCode, List,
    cloudsnaps::{CloudSnapshotId, CollectGarbage, GarbageCollected, StartVerify, VerifyDepth},
    operations,
    tasks::{StopTask, Task, TaskStage, ways_to_end},
    volumes::{ListVolumes, Volume},
};
use clap::Args;

/// Help of `cloudsnap stop`.
pub const STOP_HELP: &str = "\
The task keeps its checkpoint: `cloudsnap resume` continues it within 7 days, until a newer backup \
of the volume to the same location starts. The id of a group stops all its backups. --discard drops the checkpoint, also that of a task \
that was stopped or failed before; the volume of an in-place restore is rolled back to its previous content.

Examples:
  blockctl cloudsnap stop --name 3f4f0a67-e12a-4d35-81ad-985657757352
  blockctl cs stop db
  blockctl cs stop 3f4f --discard";

/// Help of `cloudsnap resume`.
pub const RESUME_HELP: &str = "\
A backup continues with its frozen point in time and uploads no data twice; a restore continues \
with the missing blocks. A task that ended at its budget needs a higher one; the requests of all its \
runs count.

Examples:
  blockctl cloudsnap resume --name 3f4f0a67-e12a-4d35-81ad-985657757352 --wait
  blockctl cs resume 3f4f --max-requests 20000 --max-cost 2";

/// Help of `cloudsnap limit`.
pub const LIMIT_HELP: &str = "\
The limits apply at once, in addition to those of the credential; omitted limits stay, and `none` \
removes one.

Examples:
  blockctl cloudsnap limit --name 3f4f --limit-upload 20MiB
  blockctl cs limit 3f4f --limit-upload none --limit-download none
  blockctl cs limit 3f4f --max-requests 5000 --max-cost none";

/// Help of `cloudsnap verify`.
pub const VERIFY_HELP: &str = "\
Without --quick and --deep, all stored data is read and decrypted. Damage is listed by object and \
position, with the affected cloud snapshots, and the task fails. The next backup that builds on a \
damaged one uploads the lost blocks again. `cloudsnap list` shows age and kind of the last \
verification by any host.

Examples:
  blockctl cloudsnap verify --all --wait
  blockctl cs verify db@latest --deep --wait
  blockctl -j cs verify --quick --cred-id nas --wait";

/// Help of `cloudsnap gc`.
pub const GC_HELP: &str = "\
Orphaned objects are deleted 8 days after their backup started: until then, it may be running on \
another host. The daemon does the same once a day (gc_every_hours).

Examples:
  blockctl cloudsnap gc --dry-run
  blockctl cloudsnap gc --all
  blockctl cs gc --max-requests 10000
  blockctl cs gc --cred-id nas";

/// `cloudsnap stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Target.
    #[command(flatten)]
    pub task: TaskArg,
    /// Discard its checkpoint; it cannot be resumed
    #[arg(long)]
    pub discard: bool,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

/// `cloudsnap resume`
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// Target.
    #[command(flatten)]
    pub task: TaskArg,
    /// Higher budget.
    #[command(flatten)]
    pub budget: BudgetArgs,
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
    /// Limits.
    #[command(flatten)]
    pub limits: ChangedLimitArgs,
}

/// `cloudsnap verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Cloud snapshot: id, id prefix, name, VOLUME@latest or VOLUME@TIME [default: all of the credential]
    #[arg(value_name = "ID")]
    snap: Option<SnapRef>,
    /// Verify all cloud snapshots of all credentials
    #[arg(long, conflicts_with_all = ["snap", "cred_id"])]
    all: bool,
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
    /// Width of the table of damage.
    #[command(flatten)]
    pub width: WideArg,
}

impl VerifyArgs {
    /// Returns the width of the reported damage, with `--wait`.
    fn report(&self) -> Option<Width> {
        self.wait.wait.then(|| self.width.width())
    }

    /// Returns the depth of the verification.
    pub fn depth(&self) -> VerifyDepth {
        match (self.quick, self.deep) {
            (true, _) => VerifyDepth::Quick,
            (_, true) => VerifyDepth::Deep,
            _ => VerifyDepth::Full,
        }
    }
}

/// `cloudsnap gc`
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Report without deleting
    #[arg(long)]
    pub dry_run: bool,
    /// Budget of each collection; a repeated one continues.
    #[command(flatten)]
    pub budget: BudgetArgs,
    /// Collect the garbage of all credentials
    #[arg(long, conflicts_with = "cred_id")]
    pub all: bool,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
    /// Width option.
    #[command(flatten)]
    pub width: WideArg,
}

pub(super) async fn stop(context: &Context<'_>, args: StopArgs) -> Exit {
    let can_stop = |task: &Task| !task.state.stage.is_over() || (args.discard && task.resumable);
    let (found, is_group) = tasks(context, &args.task.task, can_stop).await?;
    if args.discard && args.yes.must_ask() {
        let volumes = context.client.call(operations::LIST_VOLUMES, &ListVolumes::default()).await?.items;
        args.yes.confirm(context.output, &discarding(&found, &volumes))?;
    }
    let (request, mut stopped) = (StopTask { discard: args.discard }, Vec::new());
    for task in &found {
        // Of a group, the others may have ended.
        if is_group && !can_stop(task) {
            continue;
        }
        stopped.push(context.client.call_at(operations::STOP_TASK, &task.task_id, &request).await?);
    }
    let output = context.output;
    match stopped.as_slice() {
        [one] if !is_group => output.tell(one, || stopped_line(one, args.discard)),
        all if output.is_json() => output.document(&List::from(all.to_vec())),
        [] => output.line("All backups of the group had ended before they could be stopped."),
        all => {
            for one in all {
                output.line(stopped_line(one, args.discard))?;
            }
            Ok(EXIT_DONE)
        }
    }
}

/// Returns the present name of the volume of a task: the recorded one may be that of another volume now.
fn present_name(task: &Task, volumes: &[Volume]) -> Option<String> {
    let is_it = |volume: &&Volume| Some(volume.volume_id) == task.volume_id;
    let recorded = task.volume_name.as_ref();
    match (volumes.iter().find(is_it), task.volume_id) {
        (Some(volume), _) => Some(volume.name.to_string()),
        (None, Some(id)) if volumes.iter().any(|volume| Some(&volume.name) == recorded) => {
            Some(id.to_string())
        }
        _ => recorded.map(ToString::to_string),
    }
}

/// Describes the loss of checkpoints.
fn discarding(tasks: &[Task], volumes: &[Volume]) -> String {
    let line = |task: &Task| {
        let volume = present_name(task, volumes);
        let of = volume.as_ref().map_or_else(String::new, |volume| format!(" of volume {volume}"));
        let undone = match (task.labels.is_some(), &volume) {
            (true, Some(volume)) => format!(" Volume {volume} is rolled back to its content before it."),
            _ => String::new(),
        };
        format!(
            "The checkpoint of {} {}{of} is discarded; it cannot be resumed.{undone}",
            task.kind, task.task_id
        )
    };
    tasks.iter().map(line).collect::<Vec<_>>().join(" ")
}

fn stopped_line(task: &Task, is_discarded: bool) -> String {
    let (noun, id) = (task.kind, task.task_id);
    match task.state.stage {
        TaskStage::Done => format!("Cloudsnap {noun} {id} was done before it could be stopped."),
        TaskStage::Failed if !is_discarded => {
            format!("Cloudsnap {noun} {id} failed before it could be stopped.")
        }
        _ if task.resumable => {
            format!("Cloudsnap {noun} stopped successfully: {id} ({})", ways_to_end(id))
        }
        _ => format!("Cloudsnap {noun} discarded successfully: {id}"),
    }
}

pub(super) async fn resume(context: &Context<'_>, args: ResumeArgs) -> Exit {
    let (found, is_group) = tasks(context, &args.task.task, |task| task.resumable).await?;
    let mut resumed = Vec::new();
    for task in found.iter().filter(|task| !is_group || task.resumable) {
        // The daemon refuses to resume a task that has ended for good.
        if let Some(limits) = args.budget.changed(task.limits).filter(|_| task.resumable) {
            context.client.call_at(operations::LIMIT_TASK, &task.task_id, &limits).await?;
        }
        resumed.push(context.client.call_at(operations::RESUME_TASK, &task.task_id, &()).await?);
    }
    let line =
        |task: &Task| format!("Cloudsnap {} resumed successfully with id: {}", task.kind, task.task_id);
    match resumed.as_slice() {
        [task] if !is_group => {
            report_start(context, task.task_id, task, &line(task), args.wait.report()).await
        }
        // As the daemon refuses a single task.
        [] => {
            let message = "no backup of the group can be resumed: each one runs, or has ended for good";
            let hint = "`blockctl cloudsnap status -o wide` shows them by GROUP";
            Err(ApiError::new(ErrorCode::TaskEnded, message).with_hint(hint).into())
        }
        all => {
            let (ids, lines) = (all.iter().map(|task| task.task_id).collect(), all.iter().map(line));
            let lines: Vec<String> = lines.collect();
            report_group_start(context, ids, &List::from(all.to_vec()), &lines, args.wait.report()).await
        }
    }
}

pub(super) async fn limit(context: &Context<'_>, args: LimitArgs) -> Exit {
    let task = fitting_task(context, &args.task.task, |task| !task.state.stage.is_over()).await?;
    let (id, limits) = (task.task_id, args.limits.limits(task.limits));
    let task = context.client.call_at(operations::LIMIT_TASK, &id, &limits).await?;
    let output = context.output;
    let shown = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{}/s", ByteSize::from_bytes(bytes)),
        None => "no limit".to_owned(),
    };
    output.tell(&task, || {
        let mut parts = vec![
            format!("upload {}", shown(limits.limit_upload_bytes_per_second)),
            format!("download {}", shown(limits.limit_download_bytes_per_second)),
        ];
        parts.extend(limits.max_requests.map(|max| format!("at most {}", counted(max, "request"))));
        let egress = limits.max_egress_bytes.map(ByteSize::from_bytes);
        parts.extend(egress.map(|max| format!("at most {max} received")));
        parts.extend(limits.max_cost.map(|max| format!("cost at most {max}")));
        format!("Cloudsnap task limited successfully: {id} ({})", parts.join(", "))
    })
}

/// Returns all credentials by name.
async fn all_credentials(context: &Context<'_>) -> Result<Vec<CredentialRef>, Failure> {
    let list = context.client.call(operations::LIST_CREDENTIALS, &()).await?.items;
    match list.is_empty() {
        true => Err(Failure::usage("there are no credentials: `blockctl credentials create` makes one")),
        false => Ok(list.into_iter().map(|one| CredentialRef::Name(one.name)).collect()),
    }
}

/// Reports a location that fails, so that the others follow.
///
/// # Errors
/// The daemon itself is gone.
fn passed_over(output: &Output, credential: &CredentialRef, error: ClientError) -> Exit {
    if !matches!(error, ClientError::Api(_)) {
        return Err(error.into());
    }
    output.error(&format!("{credential}: {error}"), hint_of(&error).as_deref());
    Ok(EXIT_FAILED)
}

async fn verify_all(context: &Context<'_>, args: &VerifyArgs) -> Exit {
    let (mut tasks, mut lines, mut all, mut exit) = (Vec::new(), Vec::new(), Vec::new(), EXIT_DONE);
    for credential in all_credentials(context).await? {
        let line = format!("Cloudsnap verify of {credential} started successfully with id:");
        let (cloud_snapshot_id, depth) = (None, args.depth());
        let request = StartVerify { cloud_snapshot_id, depth, credential: Some(credential.clone()) };
        match context.client.call(operations::START_VERIFY, &request).await {
            Ok(started) => {
                lines.push(format!("{line} {}", started.task_id));
                tasks.push(started.task_id);
                all.push(started);
            }
            Err(error) => exit = passed_over(context.output, &credential, error)?,
        }
    }
    let ended = report_group_start(context, tasks, &List::from(all), &lines, args.report()).await?;
    Ok(exit.max(ended))
}

pub(super) async fn verify(context: &Context<'_>, args: VerifyArgs) -> Exit {
    if args.all {
        return verify_all(context, &args).await;
    }
    let snap = match &args.snap {
        Some(snap) => Some(snap.resolve(context, args.credential.cred_id.as_ref()).await?),
        None => None,
    };
    let report = args.report();
    let request =
        StartVerify { cloud_snapshot_id: snap, depth: args.depth(), credential: args.credential.cred_id };
    let started = context.client.call(operations::START_VERIFY, &request).await?;
    let line = format!("Cloudsnap verify started successfully with id: {}", started.task_id);
    report_start(context, started.task_id, &started, &line, report).await
}

pub(super) async fn gc(context: &Context<'_>, args: GcArgs) -> Exit {
    let (output, width) = (context.output, args.width.width());
    if !args.dry_run {
        let consequence = "Objects of interrupted backups that are older than their grace period are deleted; \
            --dry-run lists them.";
        args.yes.confirm(output, consequence)?;
    }
    let collect = async |credential: Option<CredentialRef>| {
        let request = CollectGarbage { dry_run: args.dry_run, credential, limits: args.budget.limits() };
        context.client.call(operations::COLLECT_GARBAGE, &request).await
    };
    if !args.all {
        let collected = collect(args.credential.cred_id.clone()).await?;
        if output.is_json() {
            output.document(&collected)?;
        } else {
            show_garbage(output, &collected, width)?;
        }
        return Ok(garbage_status(output, &collected));
    }
    let (mut exit, mut all) = (EXIT_DONE, Vec::new());
    for credential in all_credentials(context).await? {
        match collect(Some(credential.clone())).await {
            Ok(collected) => {
                if !output.is_json() {
                    output.line(format!("{credential}:"))?;
                    show_garbage(output, &collected, width)?;
                }
                exit = exit.max(garbage_status(output, &collected));
                all.push(collected);
            }
            Err(error) => exit = passed_over(output, &credential, error)?,
        }
    }
    if output.is_json() {
        output.document(&List::from(all))?;
    }
    Ok(exit)
}

/// Reports unreadable manifests and returns the exit status: part of the garbage was not examined.
fn garbage_status(output: &Output, collected: &GarbageCollected) -> u8 {
    for reason in &collected.unreadable_manifests {
        output.note(format!(
            "warning: no orphaned objects were deleted, because a manifest cannot be read: {reason}"
        ));
    }
    if collected.unreadable_manifests.is_empty() { EXIT_DONE } else { EXIT_FAILED }
}

/// Formats the objects of interrupted backups.
fn garbage_table(collected: &GarbageCollected, width: Width) -> Table {
    let status = if collected.dry_run { "would be deleted" } else { "deleted" };
    let garbage = collected.garbage.iter().map(|leftover| (leftover, status.to_owned()));
    let young = collected.in_grace_period.iter().map(|leftover| {
        let until = leftover.deletable_at.map(|at| format!("kept until {}", width.time(at)));
        (leftover, until.unwrap_or_else(|| "kept: its age is not known".to_owned()))
    });
    let all = collected.garbage.iter().chain(&collected.in_grace_period);
    let ids = all.filter_map(|leftover| leftover.cloud_snapshot_id.parse::<CloudSnapshotId>().ok());
    let short = ShortIds::new(ids.collect::<Vec<_>>().into_iter());
    let rows = garbage.chain(young).map(|(leftover, status)| {
        let id = match (width, leftover.cloud_snapshot_id.parse()) {
            (Width::Narrow, Ok(id)) => short.of(&id),
            _ => leftover.cloud_snapshot_id.clone(),
        };
        [
            id,
            leftover.objects.to_string(),
            ByteSize::from_bytes(leftover.len_bytes).to_string(),
            or_dash(leftover.first_object_at.map(|at| width.time(at))),
            status,
        ]
    });
    match width {
        Width::Narrow => Table::of("ID|OBJECTS|SIZE|SINCE|STATUS", rows),
        Width::Wide => Table::of("CLOUD-SNAP-ID|OBJECTS|SIZE|SINCE|STATUS", rows),
    }
}

fn show_garbage(output: &Output, collected: &GarbageCollected, width: Width) -> Result<(), Failure> {
    let table = garbage_table(collected, width);
    if !table.is_empty() {
        output.table(&table)?;
    }
    let total: u64 = collected.garbage.iter().map(|leftover| leftover.len_bytes).sum();
    let size = ByteSize::from_bytes(total);
    let objects = collected.garbage.iter().map(|leftover| leftover.objects).sum();
    output.line(match collected.dry_run {
        true => format!("{} would be deleted ({size}).", counted(objects, "orphaned object")),
        false => format!("{} deleted ({size}).", counted(collected.objects_deleted, "orphaned object")),
    })?;
    let done = if collected.dry_run { "would be removed" } else { "removed" };
    for (count, noun) in
        [(collected.unfinished_uploads, "incomplete upload"), (collected.leases, "expired lease")]
    {
        if count > 0 {
            output.line(format!("{} {done}.", counted(count, noun)))?;
        }
    }
    if collected.dry_run {
        costs::show(output, std::slice::from_ref(&collected.costs))?;
    }
    Ok(())
}
