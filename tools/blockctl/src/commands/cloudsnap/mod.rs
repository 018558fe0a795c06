//! `blockctl cloudsnap …`

pub mod args;
mod backup_group;
pub mod lazy;
mod maintenance;
pub mod pins;
mod status;

use super::{
    Context, counted,
    files::{self, copy},
    or_dash,
};
use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Failure},
    table::{Facts, Table},
    wait,
};
use args::{BackupArgs, CloudsnapCommand, DeleteArgs, InspectArgs, ListArgs, RestoreArgs};
use blockd_api::{
    ApiError, ByteSize, ClientError, ErrorCode,
    cloudsnaps::{
        CloudSnapshotId, CloudsnapDetail, CloudsnapList, CloudsnapMetadata, CloudsnapStatus,
        DamagedCloudsnap, InspectCloudsnap, ListCloudsnaps, StartBackup, StartDelete, StartRestore,
    },
    format_duration, format_time, operations,
    quiesce::QuiesceReport,
    tasks::{Task, TaskKind, TaskStage},
};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

pub async fn run(context: &Context<'_>, command: CloudsnapCommand) -> Result<u8, Failure> {
    match command {
        CloudsnapCommand::Backup(args) => backup(context, *args).await,
        CloudsnapCommand::BackupGroup(args) => backup_group::run(context, *args).await,
        CloudsnapCommand::List(args) => list(context, *args).await,
        CloudsnapCommand::Inspect(args) => inspect(context, args).await,
        CloudsnapCommand::Status(args) => status::run(context, args).await,
        CloudsnapCommand::Restore(args) => restore(context, args).await,
        CloudsnapCommand::Clone(args) => lazy::clone(context, args).await,
        CloudsnapCommand::Delete(args) => delete(context, args).await,
        CloudsnapCommand::Stop(args) => maintenance::stop(context, args).await,
        CloudsnapCommand::Resume(args) => maintenance::resume(context, args).await,
        CloudsnapCommand::Limit(args) => maintenance::limit(context, args).await,
        CloudsnapCommand::Pin(args) => pins::pin(context, args, true).await,
        CloudsnapCommand::Unpin(args) => pins::pin(context, args, false).await,
        CloudsnapCommand::Expire(args) => pins::expire(context, args).await,
        CloudsnapCommand::Verify(args) => maintenance::verify(context, args).await,
        CloudsnapCommand::Gc(args) => maintenance::gc(context, args).await,
        CloudsnapCommand::Catalog(args) => files::catalog(context, args).await,
        CloudsnapCommand::Cat(args) => files::cat(context, args).await,
        CloudsnapCommand::Cp(args) => copy::run(context, args).await,
        CloudsnapCommand::Diff(args) => files::diff(context, args).await,
        CloudsnapCommand::Schedules(command) => super::schedules::run(context, command).await,
        CloudsnapCommand::Credentials(command) => super::credentials::run(context, command).await,
        CloudsnapCommand::History(args) => super::schedules::history(context, args).await,
    }
}

async fn backup(context: &Context<'_>, args: BackupArgs) -> Result<u8, Failure> {
    let volume = args.volume().cloned().ok_or_else(|| Failure::usage("name the volume to back up"))?;
    let start = args.start;
    let mut places = start.cred_id.into_iter();
    let (cred_id, also) = (places.next(), places.collect());
    let request = StartBackup {
        volume,
        cred_id,
        also,
        limits: start.limits.limits(),
        options: start.backup.options(),
        hooks: start.hooks.options()?,
    };
    let started = context.client.call(operations::START_BACKUP, &request).await?;
    let line = |task: &Uuid| format!("Cloudsnap backup started successfully with id: {task}");
    if started.also.is_empty() {
        return report_start(context, started.task, &started, &line(&started.task), start.wait.wait).await;
    }
    let tasks: Vec<Uuid> = std::iter::once(started.task).chain(started.also.iter().copied()).collect();
    let lines: Vec<String> = tasks.iter().map(line).collect();
    report_group_start(context, tasks, &started, &lines, start.wait.wait).await
}

/// Reports started tasks, and waits for them with `--wait`.
pub(super) async fn report_group_start<T: Serialize>(
    context: &Context<'_>,
    tasks: Vec<Uuid>,
    started: &T,
    lines: &[String],
    wait: bool,
) -> Result<u8, Failure> {
    let output = context.output;
    if output.is_json() && !wait {
        output.document(started)?;
    } else if !output.is_json() {
        lines.iter().try_for_each(|line| output.line(line))?;
    }
    if !wait {
        return Ok(EXIT_DONE);
    }
    // Tasks are independent; any failure decides the exit status.
    let (mut exit, mut ended) = (EXIT_DONE, Vec::new());
    for task in tasks {
        let task = wait::follow(&context.client, task, output).await?;
        exit = exit.max(if task.state.stage == TaskStage::Done { EXIT_DONE } else { EXIT_FAILED });
        match output.is_json() {
            true => ended.push(task),
            false => tell(context, &task)?,
        }
    }
    if output.is_json() {
        output.document(&ended)?;
    }
    Ok(exit)
}

async fn restore(context: &Context<'_>, args: RestoreArgs) -> Result<u8, Failure> {
    if args.how.lazy || args.how.in_place.is_some() {
        return lazy::restore(context, args).await;
    }
    let request = StartRestore {
        snap: args.snap.resolve(context, args.credential.cred_id.as_ref()).await?,
        volume: args.volume,
        skip_damaged: args.skip_damaged,
        cred_id: args.credential.cred_id,
        limits: args.limits.limits(),
        labels: args.labels.labels(),
    };
    let started = context.client.call(operations::START_RESTORE, &request).await?;
    lazy::tell_schedules(context, &started.volume, &started.schedules);
    let line = format!(
        "Cloudsnap restore started successfully on volume: {} with task name:{}",
        started.volume_id, started.task
    );
    report_start(context, started.task, &started, &line, args.wait.wait).await
}

async fn delete(context: &Context<'_>, args: DeleteArgs) -> Result<u8, Failure> {
    let request = StartDelete { snap: args.snap, cred_id: args.credential.cred_id, force: args.force };
    let started = context.client.call(operations::START_DELETE, &request).await?;
    let line = format!("Cloudsnap delete started successfully with task name:{}", started.task);
    report_start(context, started.task, &started, &line, args.wait.wait).await
}

/// Reports a started task, and waits for it with `--wait`.
pub(super) async fn report_start<T: Serialize>(
    context: &Context<'_>,
    task: Uuid,
    started: &T,
    line: &str,
    wait: bool,
) -> Result<u8, Failure> {
    let output = context.output;
    match (output.is_json(), wait) {
        (true, false) => output.document(started)?,
        (false, _) => output.line(line)?,
        (true, true) => {}
    }
    if wait { follow(context, task).await } else { Ok(EXIT_DONE) }
}

/// Waits for a task, reports its result, and returns its exit status.
pub(super) async fn follow(context: &Context<'_>, task: Uuid) -> Result<u8, Failure> {
    let output = context.output;
    let task = wait::follow(&context.client, task, output).await?;
    match output.is_json() {
        true => output.document(&task)?,
        false => tell(context, &task)?,
    }
    Ok(if task.state.stage == TaskStage::Done { EXIT_DONE } else { EXIT_FAILED })
}

/// Reports the result of a task.
fn tell(context: &Context<'_>, task: &Task) -> Result<(), Failure> {
    let output = context.output;
    if let Some(findings) = &task.findings {
        maintenance::show_findings(output, findings)?;
    }
    for failure in task.quiesce.iter().flat_map(QuiesceReport::failures) {
        output.note(format!("warning: {failure}"));
    }
    let resume = format!("`blockctl cloudsnap resume --name {}` takes it up again where it was", task.name);
    match task.state.stage {
        TaskStage::Done => output.line(ending(task))?,
        TaskStage::Stopped => output.error(&format!("Cloudsnap {} was stopped", noun(task)), Some(&resume)),
        _ => {
            let (reason, hint) = reason(task);
            output.error(&format!("Cloudsnap {} failed: {reason}", noun(task)), hint);
            if task.resumable {
                output.note(format!("hint: {resume}"));
            }
        }
    }
    Ok(())
}

pub(super) fn noun(task: &Task) -> &'static str {
    task.kind.as_str()
}

pub(super) fn reason(task: &Task) -> (&str, Option<&str>) {
    match &task.error {
        Some(error) => (&error.message, error.hint.as_deref()),
        None => ("blockd gave no reason", None),
    }
}

/// Describes the result and cost of a completed task.
fn ending(task: &Task) -> String {
    let size = |len_bytes| ByteSize::from_bytes(len_bytes).to_string();
    let snap = task.source_volume.as_deref().unwrap_or("-");
    let elapsed = format_duration(task.time_elapsed);
    let requests = task.requests;
    let requests =
        counted(requests.put + requests.get + requests.list + requests.delete + requests.head, "request");
    let freeze = task.freeze_stall_micros.map(|stall| format!(", freeze {stall} µs")).unwrap_or_default();
    match task.kind {
        TaskKind::Backup => format!(
            "Cloudsnap backup completed: {snap} ({}, {} processed, {} uploaded, {requests}{freeze}, {elapsed})",
            or_dash(task.backup_type),
            size(task.bytes_processed),
            size(task.bytes_uploaded),
        ),
        TaskKind::Restore => format!(
            "Cloudsnap restore completed: volume {} ({} processed, {} downloaded, {requests}, {elapsed})",
            or_dash(task.volume.as_ref()),
            size(task.bytes_processed),
            size(task.bytes_downloaded),
        ),
        TaskKind::Verify => {
            let found = task.findings.clone().unwrap_or_default();
            let compared = match found.compared_bytes {
                0 => String::new(),
                bytes => format!(", {} compared", size(bytes)),
            };
            format!(
                "Cloudsnap verify completed: {} sound ({} looked at, {} read{compared}, {requests}, {elapsed})",
                counted(found.snapshots, "cloud snapshot"),
                counted(found.objects, "object"),
                size(found.block_bytes),
            )
        }
        TaskKind::Delete => format!("Cloudsnap deleted successfully: {snap} ({requests}, {elapsed})"),
    }
}

async fn list(context: &Context<'_>, args: ListArgs) -> Result<u8, Failure> {
    let cloudsnap_id = match &args.cloudsnap_id {
        Some(id) => Some(id.resolve(context, args.credential.cred_id.as_ref()).await?),
        None => None,
    };
    let query = ListCloudsnaps {
        cred_id: args.credential.cred_id,
        src: args.src,
        cluster: args.cluster,
        all: args.all,
        status: args.status,
        label: args.label,
        cloudsnap_id,
        max: args.max,
    };
    let list = context.client.call(operations::LIST_CLOUDSNAPS, &query).await?;
    let is_whole = list.failed_credentials.is_empty();
    if let (Some(id), true) =
        (&query.cloudsnap_id, is_whole && list.cloudsnaps.is_empty() && list.damaged.is_empty())
    {
        return Err(unknown(id, &query).into());
    }
    let output = context.output;
    if output.is_json() {
        output.document(&entries(&list)?)?;
    } else {
        output.table(&list_table(&list))?;
    }
    for damaged in &list.damaged {
        output.note(format!("warning: {} is damaged and cannot be restored: {}", damaged.id, damaged.reason));
    }
    for failed in &list.failed_credentials {
        output.note(format!(
            "warning: the list lacks what is under credentials {}: {}",
            failed.name, failed.error
        ));
    }
    let shown = list.cloudsnaps.len() as u64;
    if shown < list.total && !output.is_json() {
        output.note(format!("The newest {shown} of {} are shown.", list.total));
    }
    // The list is correct but incomplete.
    Ok(if is_whole { EXIT_DONE } else { EXIT_FAILED })
}

/// A named snapshot that does not exist is an error, not an empty list.
fn unknown(id: &CloudSnapshotId, query: &ListCloudsnaps) -> ClientError {
    let status = query.status.map(|status| format!(" that is {status}")).unwrap_or_default();
    let place = query.cred_id.as_ref().map(|place| format!(" at {place}")).unwrap_or_default();
    let message = format!("there is no cloud snapshot {id}{status}{place}");
    ClientError::Api(ApiError::new(ErrorCode::CloudsnapNotFound, message))
}

/// Returns all entries, damaged ones in the same form.
fn entries(list: &CloudsnapList) -> Result<Vec<Value>, Failure> {
    let entry = |entry| serde_json::to_value(entry).map_err(|error| Failure::Stdout { source: error.into() });
    let mut entries = list.cloudsnaps.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    entries.extend(list.damaged.iter().map(|damaged| {
        let status = CloudsnapStatus::Damaged;
        json!({
            "ID": damaged.id,
            "SrcVolumeID": volume_id(damaged).unwrap_or_default(),
            "SrcVolumeName": "",
            "Timestamp": null,
            "Metadata": { "status": status, "reason": damaged.reason, "credential": damaged.credential },
            "Status": status,
        })
    }));
    Ok(entries)
}

/// Returns the volume id of a damaged entry, if its name is complete.
fn volume_id(damaged: &DamagedCloudsnap) -> Option<String> {
    damaged.id.parse::<CloudSnapshotId>().ok().map(|id| id.volume.to_string())
}

fn list_table(list: &CloudsnapList) -> Table {
    // The first columns are stable for scripts; the last ones appear with verified, pinned or expiring
    // entries.
    const PLAIN: &[&str] =
        &["SOURCEVOLUME", "SOURCEVOLUMEID", "CLOUD-SNAP-ID", "CREATED-TIME", "TYPE", "STATUS"];
    const VERIFIED: &[&str] =
        &["SOURCEVOLUME", "SOURCEVOLUMEID", "CLOUD-SNAP-ID", "CREATED-TIME", "TYPE", "STATUS", "VERIFIED"];
    const MARKED: &[&str] = &[
        "SOURCEVOLUME",
        "SOURCEVOLUMEID",
        "CLOUD-SNAP-ID",
        "CREATED-TIME",
        "TYPE",
        "STATUS",
        "VERIFIED",
        "KEPT",
    ];
    let has = |of: fn(&CloudsnapMetadata) -> bool| list.cloudsnaps.iter().any(|entry| of(&entry.metadata));
    let columns = if has(|of| of.pinned.is_some() || of.expires.is_some()) {
        MARKED
    } else if has(|of| of.verified.is_some()) {
        VERIFIED
    } else {
        PLAIN
    };
    let shown = columns.len();
    let mut table = Table::new(columns.iter().copied());
    for entry in &list.cloudsnaps {
        let row = [
            entry.src_volume_name.clone(),
            entry.src_volume_id.to_string(),
            entry.id.to_string(),
            format_time(entry.timestamp),
            entry.metadata.cloudsnap_type.clone(),
            entry.status.to_string(),
            verified(&entry.metadata),
            pins::kept(&entry.metadata),
        ];
        table.row(row.into_iter().take(shown));
    }
    for damaged in &list.damaged {
        let dash = || "-".to_owned();
        let volume = volume_id(damaged);
        let row = [
            dash(),
            or_dash(volume),
            damaged.id.clone(),
            dash(),
            dash(),
            CloudsnapStatus::Damaged.to_string(),
            dash(),
            dash(),
        ];
        table.row(row.into_iter().take(shown));
    }
    table
}

/// Describes the last verification on this host.
fn verified(metadata: &CloudsnapMetadata) -> String {
    match (&metadata.verified, &metadata.verify_depth, &metadata.verify_result) {
        (Some(when), Some(depth), Some(result)) => format!("{result} ({depth}, {when})"),
        _ => "-".to_owned(),
    }
}

async fn inspect(context: &Context<'_>, args: InspectArgs) -> Result<u8, Failure> {
    let id = args.id().ok_or_else(|| Failure::usage("name the cloud snapshot to inspect"))?;
    let id = id.resolve(context, args.credential.cred_id.as_ref()).await?;
    let query = InspectCloudsnap { id, cred_id: args.credential.cred_id };
    let detail = context.client.call(operations::INSPECT_CLOUDSNAP, &query).await?;
    context.output.describe(&detail, || facts(&detail))?;
    Ok(EXIT_DONE)
}

fn facts(CloudsnapDetail { entry, detail }: &CloudsnapDetail) -> Facts {
    let size = |len_bytes| ByteSize::from_bytes(len_bytes).to_string();
    let metadata = &entry.metadata;
    let mut facts = Facts::default();
    facts
        .add("Cloud snapshot", entry.id)
        .add("Source volume", format!("{} ({})", entry.src_volume_name, entry.src_volume_id))
        .add("Volume size", size(detail.volume_size_bytes))
        .add("Labels", if detail.labels.is_empty() { "-".to_owned() } else { detail.labels.to_string() })
        .add("Snapshot", &detail.snapshot_name)
        .add("Created", format_time(entry.timestamp))
        .add("Type", format!("{}, {}", metadata.cloudsnap_type, metadata.backup_type))
        .add("Status", entry.status)
        .add("Started", &metadata.starttime)
        .add("Completed", &metadata.updatetime)
        .add("Credentials", format!("{} ({})", metadata.credential_name, metadata.credential))
        .add("Format", format!("{}, {}", metadata.version, metadata.compression))
        .add("Encrypted", metadata.encrypted)
        .add("Dirty", size(metadata.dirty_bytes))
        .add("Data", format!("{} in {}", size(metadata.size_bytes), counted(detail.data_blocks, "block")))
        .add("Zeroed", counted(detail.zero_blocks, "block"))
        .add("Stored", format!("{} in {}", size(metadata.stored_bytes), counted(detail.packs, "pack")))
        .add("Freeze", format!("{} µs", metadata.freeze_stall_micros))
        .add("Verified", verified(metadata))
        .add("Restore reads", size(detail.chain_stored_bytes));
    for (nth, id) in detail.chain.iter().enumerate() {
        facts.add(if nth == 0 { "Shares data of" } else { "" }, id);
    }
    facts
}
