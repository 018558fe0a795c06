//! Waiting for tasks, and reports of their results.
//!
//! The wait survives a restart of the daemon: tasks continue afterwards.

use crate::{
    failure::{EXIT_DONE, EXIT_FAILED, Exit, Failure, next_action},
    output::{Context, Output},
    progress::Progress,
    short_ids::ShortIds,
    table::{Table, Width, counted, or_dash},
};
use blockd_api::{
    ByteSize, Client, ClientError, List,
    cloudsnaps::CloudSnapshotId,
    format_duration, operations,
    quiesce::QuiesceReport,
    tasks::{DamageFinding, Findings, Task, TaskKind, TaskStage, WaitTask},
};
use schemars::JsonSchema;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use uuid::Uuid;

/// Long-poll timeout.
const POLL_WAIT_MS: u64 = 2_000;
/// Minimum interval of polls.
const POLL_PAUSE: Duration = Duration::from_millis(50);
/// Maximum absence of the daemon.
const AWAY_LIMIT: Duration = Duration::from_secs(60);
/// Maximum number of damaged ranges in a table.
const MAX_RANGES: usize = 4;
/// Maximum number of files of a damage in a table.
const MAX_FILES: usize = 5;
/// Retry interval for an absent daemon.
const AWAY_PAUSE: Duration = Duration::from_millis(250);

/// Absence of the daemon, from the first failed call on.
#[derive(Default)]
pub struct Away(Option<Instant>);

impl Away {
    /// Waits for a retry; notes the first failure.
    ///
    /// # Errors
    /// The daemon is away for too long.
    pub async fn retry(&mut self, error: ClientError, note: impl FnOnce(&str)) -> Result<(), ClientError> {
        let since = *self.0.get_or_insert_with(|| {
            note(&format!("{error}; waiting for the daemon"));
            Instant::now()
        });
        if since.elapsed() >= AWAY_LIMIT {
            return Err(error);
        }
        sleep(AWAY_PAUSE).await;
        Ok(())
    }
}

/// Waits until a task has ended and returns it; Ctrl-C ends the wait, not the task.
pub async fn follow(client: &Client, task: Uuid, output: &Output) -> Result<Task, Failure> {
    follow_before(client, task, &[], output).await
}

/// Waits as [`follow`], before a wait for other tasks, which Ctrl-C ends as well.
pub async fn follow_before(
    client: &Client,
    task: Uuid,
    others: &[Uuid],
    output: &Output,
) -> Result<Task, Failure> {
    let mut progress = Progress::new(output.is_json());
    let ended = tokio::select! {
        biased;
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::interrupted(task, others)),
        ended = poll(client, task, &mut progress) => ended,
    };
    progress.finish();
    ended
}

async fn poll(client: &Client, task: Uuid, progress: &mut Progress) -> Result<Task, Failure> {
    let mut since_version = None;
    let mut away = Away::default();
    loop {
        let wait = WaitTask { wait_millis: since_version.map(|_| POLL_WAIT_MS), since_version };
        match client.call_at(operations::GET_TASK, &task, &wait).await {
            Ok(now) if now.state.stage.is_over() => return Ok(now),
            Ok(now) => {
                away = Away::default();
                since_version = Some(now.version);
                progress.update(&now);
                sleep(POLL_PAUSE).await;
            }
            Err(error) if error.is_retryable() => {
                let retried = away.retry(error, |note| progress.note(note)).await;
                retried.map_err(|error| Failure::lost(task, &error))?;
                // Versions restart with the daemon.
                since_version = None;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reports started tasks, and waits for them if a width of the reported damage is given. Results of several
/// tasks have the location.
pub async fn report_group_start<T: Serialize + JsonSchema>(
    context: &Context<'_>,
    tasks: Vec<Uuid>,
    started: &T,
    lines: &[String],
    wait: Option<Width>,
) -> Exit {
    let output = context.output;
    match (output.is_json(), wait.is_some()) {
        (true, false) => return output.document(started),
        (true, true) => {}
        (false, _) => {
            for line in lines {
                output.line(line)?;
            }
        }
    }
    let at = |task: &Task| match &task.credential_name {
        Some(location) if tasks.len() > 1 => format!(" at {location}"),
        _ => String::new(),
    };
    // Tasks are independent; any failure decides the exit status.
    let (mut exit, mut ended) = (EXIT_DONE, Vec::new());
    let waits = wait.into_iter().flat_map(|width| tasks.iter().enumerate().map(move |one| (one, width)));
    for ((index, task), width) in waits {
        let task = follow_before(&context.client, *task, &tasks[index + 1..], output).await?;
        exit = exit.max(exit_status(&task));
        match output.is_json() {
            true => ended.push(task),
            false => tell_at(context, &task, &at(&task), width)?,
        }
    }
    if output.is_json() {
        output.document(&List::from(ended))?;
    }
    Ok(exit)
}

/// Reports a started task, and waits for it if a width of the reported damage is given.
pub async fn report_start<T: Serialize + JsonSchema>(
    context: &Context<'_>,
    task: Uuid,
    started: &T,
    line: &str,
    wait: Option<Width>,
) -> Exit {
    let Some(width) = wait else { return context.output.tell(started, || line) };
    if !context.output.is_json() {
        context.output.line(line)?;
    }
    follow_to_end(context, task, width).await
}

/// Waits for a task, reports its result, and returns its exit status.
pub async fn follow_to_end(context: &Context<'_>, task: Uuid, width: Width) -> Exit {
    let task = follow(&context.client, task, context.output).await?;
    if context.output.is_json() {
        context.output.document(&task)?;
    } else {
        tell(context, &task, width)?;
    }
    Ok(exit_status(&task))
}

/// Returns the exit status of a task.
pub fn exit_status(task: &Task) -> u8 {
    if task.state.stage == TaskStage::Done { EXIT_DONE } else { EXIT_FAILED }
}

/// Reports the result of a task.
pub fn tell(context: &Context<'_>, task: &Task, width: Width) -> Result<(), Failure> {
    tell_at(context, task, "", width)
}

fn tell_at(context: &Context<'_>, task: &Task, at: &str, width: Width) -> Result<(), Failure> {
    let output = context.output;
    if let Some(findings) = &task.findings {
        show_findings(output, task.kind, findings, width)?;
    }
    for failure in task.quiesce.iter().flat_map(QuiesceReport::failures) {
        output.note(format!("warning: {failure}"));
    }
    let ways = task.ways_to_end();
    match task.state.stage {
        TaskStage::Done => {
            if let Some(warning) = damage_of_others(task) {
                output.note(format!("warning: {warning}"));
            }
            output.line(ending(task, at))?;
        }
        TaskStage::Stopped => output.error(&format!("{}{at} was stopped", title(task)), Some(&ways)),
        _ => {
            let (reason, hint) = reason(task);
            output.error(&format!("{}{at} failed: {reason}", title(task)), hint.as_deref());
            if task.resumable {
                output.note(format!("hint: {ways}"));
            }
        }
    }
    Ok(())
}

/// Returns the begin of a sentence about a task.
fn title(task: &Task) -> String {
    match task.kind {
        TaskKind::Scrub => "Scrub".to_owned(),
        _ => format!("Cloudsnap {}", noun(task)),
    }
}

pub fn noun(task: &Task) -> &'static str {
    task.kind.as_str()
}

pub fn reason(task: &Task) -> (&str, Option<String>) {
    match &task.error {
        Some(error) => (&error.message, next_action(error)),
        None => ("blockd gave no reason", None),
    }
}

/// Describes the result and cost of a completed task.
fn ending(task: &Task, at: &str) -> String {
    let size = |len_bytes| ByteSize::from_bytes(len_bytes).to_string();
    let snap = task.cloud_snapshot_id.as_deref().unwrap_or("-");
    let elapsed = format_duration(task.elapsed_seconds);
    let requests = task.requests;
    let requests =
        counted(requests.put + requests.get + requests.list + requests.delete + requests.head, "request");
    let freeze = task.freeze_stall_micros.map(|stall| format!(", freeze {stall} µs")).unwrap_or_default();
    match task.kind {
        TaskKind::Backup => format!(
            "Cloudsnap backup{at} completed: {snap} ({}, {} processed, {} uploaded, {requests}{freeze}, {elapsed})",
            or_dash(task.backup_type),
            size(task.processed_bytes),
            size(task.uploaded_bytes),
        ),
        TaskKind::Restore => format!(
            "Cloudsnap restore{at} completed: volume {} ({} processed, {} downloaded, {requests}, {elapsed})",
            or_dash(task.volume_name.as_ref()),
            size(task.processed_bytes),
            size(task.downloaded_bytes),
        ),
        TaskKind::Verify => {
            let found = task.findings.clone().unwrap_or_default();
            let compared = match found.compared_bytes {
                0 => String::new(),
                bytes => format!(", {} compared", size(bytes)),
            };
            format!(
                "Cloudsnap verify{at} completed: {} verified ({} checked, {} read{compared}, {requests}, {elapsed})",
                counted(found.snapshots, "cloud snapshot"),
                counted(found.objects, "object"),
                size(found.block_bytes),
            )
        }
        TaskKind::Repair => format!(
            "Cloudsnap repair{at} completed: {} ({} uploaded, {} downloaded, {requests}, {elapsed})",
            or_dash(task.note.as_ref()),
            size(task.uploaded_bytes),
            size(task.downloaded_bytes),
        ),
        TaskKind::Drill => format!(
            "Restore drill passed{}: {snap}{} ({} downloaded, {requests}, {elapsed})",
            task.note.as_ref().map_or_else(String::new, |note| format!(", {note}")),
            task.credential_name.as_ref().map_or_else(String::new, |name| format!(" at {name}")),
            size(task.downloaded_bytes),
        ),
        TaskKind::Scrub => {
            let found = task.findings.clone().unwrap_or_default();
            format!(
                "Scrub completed: {} read, {}, {} found and repaired{}, {elapsed}",
                size(found.block_bytes),
                counted(found.damage_total, "damaged extent"),
                size(found.repaired_bytes),
                task.note.as_ref().map_or_else(String::new, |note| format!(" ({note})")),
            )
        }
        TaskKind::Delete => format!("Cloudsnap deleted successfully: {snap} ({requests}, {elapsed})"),
    }
}

/// Returns the warning of a verification of sound cloud snapshots that found damage which only others, or
/// replaced ones, have.
fn damage_of_others(task: &Task) -> Option<String> {
    let findings = task.findings.as_ref().filter(|_| task.kind == TaskKind::Verify)?;
    if task.note.is_some() {
        return task.note.clone();
    }
    let damage = findings.damage.first()?;
    let ids = findings.damage.iter().flat_map(|damage| &damage.affects);
    let mut ids: Vec<_> = ids.map(|affected| affected.cloud_snapshot_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    let whose = match ids.as_slice() {
        [] => "which no cloud snapshot needs".to_owned(),
        [id] => format!("which cloud snapshot {id} needs"),
        [id, others @ ..] => {
            format!("which cloud snapshot {id} and {} need", counted(others.len() as u64, "other"))
        }
    };
    let object = &damage.object;
    Some(format!(
        "object {object} is damaged, {whose}; the verified cloud snapshots do not need the damaged part"
    ))
}

/// Prints the damage found by a verification or a scrub.
fn show_findings(output: &Output, kind: TaskKind, findings: &Findings, width: Width) -> Result<(), Failure> {
    if findings.damage.is_empty() {
        return Ok(());
    }
    output.table(&match kind {
        TaskKind::Scrub => local_damage_table(findings),
        _ => damage_table(findings, width),
    })?;
    let listed = findings.damage.len() as u64;
    if listed < findings.damage_total {
        output.note(format!("{listed} of {} are shown.", findings.damage_total));
    }
    Ok(())
}

/// Formats damage of volumes on the disk.
fn local_damage_table(findings: &Findings) -> Table {
    let row =
        |damage: &DamageFinding| [damage.object.clone(), damage.offset_bytes.to_string(), cause(damage)];
    Table::of("OBJECT|OFFSET|CAUSE", findings.damage.iter().map(row)).fit("OBJECT").with_text()
}

/// Returns the cause of damage, and its first files where the filesystem is known.
fn cause(damage: &DamageFinding) -> String {
    let first: Vec<_> = damage.files.iter().take(MAX_FILES).map(ToString::to_string).collect();
    match damage.files.len().saturating_sub(MAX_FILES) {
        _ if first.is_empty() => damage.cause.clone(),
        0 => format!("{}; files: {}", damage.cause, first.join(", ")),
        more => format!("{}; files: {} and {more} more", damage.cause, first.join(", ")),
    }
}

/// Formats damage by object and affected cloud snapshot; a wide table has the damaged ranges of the volume.
fn damage_table(findings: &Findings, width: Width) -> Table {
    let size = |len_bytes| ByteSize::from_bytes(len_bytes).to_string();
    let affected = findings.damage.iter().flat_map(|damage| &damage.affects);
    let ids = affected.filter_map(|one| one.cloud_snapshot_id.parse::<CloudSnapshotId>().ok());
    let short = ShortIds::new(ids.collect::<Vec<_>>().into_iter());
    let id = |full: &String| match (width, full.parse()) {
        (Width::Narrow, Ok(id)) => short.of(&id),
        _ => full.clone(),
    };
    let mut rows = Vec::new();
    for damage in &findings.damage {
        let mut row = |cloudsnap, lost, ranges| {
            let offset = damage.offset_bytes.to_string();
            rows.push([damage.object.clone(), offset, cloudsnap, lost, ranges, cause(damage)]);
        };
        if damage.affects.is_empty() {
            row("-".to_owned(), "-".to_owned(), "-".to_owned());
        }
        for affected in &damage.affects {
            let ranges = affected.ranges.iter().take(MAX_RANGES);
            let ranges: Vec<_> =
                ranges.map(|range| format!("{}+{}", range.offset_bytes, range.len_bytes)).collect();
            let more = if affected.ranges.len() > MAX_RANGES { " …" } else { "" };
            let lost = (affected.lost_bytes > 0).then(|| size(affected.lost_bytes));
            let ranges = (!ranges.is_empty()).then(|| format!("{}{more}", ranges.join(",")));
            row(id(&affected.cloud_snapshot_id), or_dash(lost), or_dash(ranges));
        }
    }
    if width == Width::Wide {
        return Table::of("OBJECT|OFFSET|CLOUD-SNAP-ID|LOST|RANGES|CAUSE", rows);
    }
    let rows = rows.into_iter().map(|[object, offset, id, lost, _, cause]| [id, lost, object, offset, cause]);
    Table::of("ID|LOST|OBJECT|OFFSET|CAUSE", rows).fit("OBJECT").with_text()
}
