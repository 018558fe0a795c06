//! `blockctl cloudsnap status`

use super::task_ref::{cloudsnaps, of_cloudsnaps};
use crate::{
    commands::{
        arguments::{WaitArg, WideArg, parse_task},
        filters::{NamePattern, VolumeFilter},
        limits::limit_wait_seconds,
        list_filter::{LabelOption, ListFilter, Listed, Sort},
        rules,
        top::screen::Screen,
    },
    failure::{EXIT_DONE, EXIT_INTERRUPTED, Exit, Failure},
    output::Context,
    signals::Signals,
    table::{Table, Width, counted, or_dash, short_uuid},
    wait::{Away, follow_to_end, noun, reason},
};
use blockd_api::{
    ByteSize, LabelSelector, List, VolumeId, VolumeRef,
    cloudsnaps::CloudSnapshotId,
    format_duration, format_time, operations,
    tasks::{ListTasks, Task, TaskStage},
};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use std::{
    cmp::Ordering,
    collections::BTreeSet,
    io::{self, IsTerminal, Stdout, Write},
    time::Duration,
};
use tokio::{
    signal::unix::SignalKind,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use uuid::Uuid;

/// Refresh interval of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Period after its end in which a task's failure is explained.
const TOLD_FOR: SignedDuration = SignedDuration::from_hours(1);
/// Maximum number of explained failures.
const MAX_TOLD: usize = 3;
/// Timeout of the last write after an interrupt.
const LAST_WRITE_LIMIT: Duration = Duration::from_millis(250);

pub const STATUS_HELP: &str = "\
NAME is an id prefix that commands accept. ETA is the remaining time of an active task at its \
average rate; --wide shows that as RATE, and the elapsed time. \
The cause of a failure is shown for the newest three tasks that ended within the last hour, and \
with --name for any. -o wide shows the name of a backup too.

Examples:
  blockctl cloudsnap status
  blockctl cs status --active
  blockctl cs status --volume db --since 24h
  blockctl cs status --name 'before-*' --label app=web
  blockctl cs status --name 3f4f0a67-e12a-4d35-81ad-985657757352
  blockctl cs status 3f4f --wait
  blockctl cs status --watch
  blockctl cs status -o wide";

/// `cloudsnap status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this task, by an id prefix, or tasks of a backup or volume of this name, where * matches any
    /// characters, or of a cloud snapshot, such as VOLUME@latest
    #[arg(value_name = "TASK", conflicts_with = "name")]
    task: Option<NamePattern>,
    /// Filters and order.
    #[command(flatten)]
    filter: ListFilter<Task>,
    /// Only active tasks
    #[arg(long, conflicts_with_all = ["task", "name"])]
    pub active: bool,
    /// Only tasks of this volume, by name or id
    #[arg(short, long, value_name = "VOLUME")]
    pub volume: Option<VolumeRef>,
    /// Only the newest N
    #[arg(short = 'x', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max: Option<u32>,
    /// Refresh until no task is active
    #[arg(long, conflicts_with = "wait")]
    pub watch: bool,
    /// Wait option.
    #[command(flatten)]
    pub wait: WaitArg,
    /// Width option.
    #[command(flatten)]
    pub width: WideArg,
}

impl StatusArgs {
    /// Returns the task, from the argument or the option.
    fn name(&self) -> Option<&NamePattern> {
        self.task.as_ref().or(self.filter.name.as_ref())
    }
}

impl Listed for Task {
    const NAME_HELP: &'static str = "The same as TASK";
    const NAME_SHORT: Option<char> = Some('n');
    const LABEL: LabelOption = LabelOption::OfVolume("Only tasks of volumes with all these labels");
    const SORTS: &'static [Sort] = &[Sort::Started, Sort::Name, Sort::Volume, Sort::Status, Sort::Size];

    fn is_named(&self, pattern: &NamePattern) -> bool {
        let is_of =
            |id: Uuid| parse_task(pattern.as_str()).is_ok_and(|prefix| id.to_string().starts_with(&prefix));
        is_of(self.task_id)
            || self.group_id.is_some_and(is_of)
            || self.name.as_ref().is_some_and(|name| pattern.matches(name.as_str()))
            || self.volume_name.as_ref().is_some_and(|name| pattern.matches(name.as_str()))
    }

    fn at(&self) -> Option<Timestamp> {
        Some(self.started_at)
    }

    fn is_labelled(&self, _label: &LabelSelector, volumes: &BTreeSet<VolumeId>) -> bool {
        self.volume_id.is_some_and(|id| volumes.contains(&id))
    }

    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        match sort {
            Sort::Name => self.name.cmp(&other.name),
            Sort::Volume => self.volume_name.cmp(&other.volume_name),
            Sort::Status => self.state.to_string().cmp(&other.state.to_string()),
            Sort::Size => self.processed_bytes.cmp(&other.processed_bytes),
            // The order of the daemon: newest first.
            _ => Ordering::Equal,
        }
    }
}

pub(super) async fn run(context: &Context<'_>, args: StatusArgs) -> Exit {
    if args.watch {
        return watch(context, &args).await;
    }
    let tasks = tasks(context, &args, &mut Vec::new()).await?;
    if args.wait.wait {
        return match (args.name(), tasks.as_slice()) {
            (Some(_), [task]) => follow_to_end(context, task.task_id, args.width.width()).await,
            (Some(name), _) => Err(Failure::usage(format!(
                "{} begin with {name}: give a longer prefix to wait for one",
                counted(tasks.len() as u64, "task")
            ))),
            (None, _) => Err(Failure::usage("--wait needs --name TASK: one task is waited for")),
        };
    }
    let output = context.output;
    if output.is_json() {
        return output.document(&List::from(tasks));
    }
    let here = match tasks.iter().any(|task| task.volume_name.is_none()) {
        true => Some(context.client.call(operations::GET_STATUS, &()).await?.cluster_id),
        false => None,
    };
    output.list(&(), "tasks", || table(&tasks, args.width.width(), here))?;
    if args.name().is_some() {
        for task in &tasks {
            let Some(report) = &task.quiesce else { continue };
            output.line("")?;
            output.line(format!("Around the freeze of task {}:", task.task_id))?;
            output.table(&rules::steps_table(report, args.width.width()))?;
        }
    }
    print_failures(context, &args, &tasks);
    Ok(EXIT_DONE)
}

/// Fetches the tasks. `resolved` are the cloud snapshots of a name that no task has: their list may need slow
/// stores, so that repeated calls use that of the first one.
async fn tasks(
    context: &Context<'_>,
    args: &StatusArgs,
    resolved: &mut Vec<CloudSnapshotId>,
) -> Result<Vec<Task>, Failure> {
    let id_prefix = args.name().and_then(|name| parse_task(name.as_str()).ok());
    let mut tasks = match id_prefix {
        Some(_) => context.client.call(operations::LIST_TASKS, &ListTasks { id_prefix }).await?.items,
        None => Vec::new(),
    };
    // The daemon finds tasks by their id alone.
    if tasks.is_empty() {
        let all = context.client.call(operations::LIST_TASKS, &ListTasks::default()).await?.items;
        tasks =
            all.iter().filter(|task| args.name().is_none_or(|name| task.is_named(name))).cloned().collect();
        if let (Some(name), true) = (args.name(), tasks.is_empty()) {
            if resolved.is_empty() {
                *resolved = cloudsnaps(context, name.as_str()).await?;
            }
            tasks = of_cloudsnaps(name.as_str(), resolved, all)?;
        }
    }
    let volume = VolumeFilter::load(context, args.volume.as_ref()).await?;
    tasks.retain(|task| {
        (!args.active || !task.state.stage.is_over())
            && volume.as_ref().is_none_or(|volume| volume.includes(task.volume_id, task.volume_name.as_ref()))
    });
    args.filter.apply(context, &mut tasks, args.max).await?;
    Ok(tasks)
}

/// Selects the failed tasks to explain, and the number of others.
fn shown_tasks(tasks: &[Task], is_asked: bool, now: Timestamp) -> (Vec<&Task>, usize) {
    let is_told = |task: &&Task| {
        let is_new = task.completed_at.is_none_or(|at| now.duration_since(at) < TOLD_FOR);
        task.state.stage == TaskStage::Failed && (is_asked || is_new)
    };
    let mut failed: Vec<&Task> = tasks.iter().filter(is_told).collect();
    let more = if is_asked { 0 } else { failed.len().saturating_sub(MAX_TOLD) };
    failed.truncate(failed.len() - more);
    (failed, more)
}

fn print_failures(context: &Context<'_>, args: &StatusArgs, tasks: &[Task]) {
    let (failed, more) = shown_tasks(tasks, args.name().is_some(), Timestamp::now());
    for task in failed {
        let (reason, hint) = reason(task);
        let resumable = if task.resumable { " (can be resumed)" } else { "" };
        context
            .output
            .error(&format!("{} {} failed{resumable}: {reason}", noun(task), task.task_id), hint.as_deref());
    }
    if more > 0 {
        let line =
            format!("{more} more failed within the last hour: `cloudsnap status --name TASK` says why");
        context.output.note(line);
    }
}

/// Output of `--watch`.
struct Shown {
    /// Screen of a terminal; `None` appends tables.
    screen: Option<Screen<Stdout>>,
    between: &'static str,
}

impl Shown {
    fn show(&mut self, text: &str) -> io::Result<()> {
        let between = std::mem::replace(&mut self.between, "\n");
        match &mut self.screen {
            Some(screen) => screen.show(text),
            None => {
                let mut stdout = io::stdout().lock();
                write!(stdout, "{between}{text}").and_then(|()| stdout.flush())
            }
        }
    }
}

/// Fetches the tasks. Waits for a daemon that restarts.
async fn poll_status(
    context: &Context<'_>,
    args: &StatusArgs,
    resolved: &mut Vec<CloudSnapshotId>,
    shown: &mut Shown,
    last: &str,
) -> Result<Vec<Task>, Failure> {
    let mut away = Away::default();
    loop {
        let error = match tasks(context, args, resolved).await {
            Err(Failure::Client(error)) if error.is_retryable() && !last.is_empty() => error,
            other => return other,
        };
        let tell = |note: &str| match &mut shown.screen {
            // A failed draw is repaired by the next refresh.
            Some(screen) => drop(screen.show(&format!("{last}\n{note}\n"))),
            None => context.output.note(note),
        };
        away.retry(error, tell).await?;
    }
}

/// Refreshes tasks until all have ended or an interrupt: in place on a terminal, else appended.
async fn watch(context: &Context<'_>, args: &StatusArgs) -> Exit {
    if context.output.is_json() {
        return Err(Failure::usage(
            "--watch has no JSON form: use `top -j`, which prints a JSON document per interval",
        ));
    }
    let failed = Failure::stdout;
    let ends = [SignalKind::interrupt(), SignalKind::terminate()];
    let mut ends = Signals::listen(&ends).map_err(Failure::runtime)?;
    let screen = match io::stdout().is_terminal() {
        true => Some(Screen::<Stdout>::enter(io::stdout()).map_err(failed)?),
        false => None,
    };
    let mut shown = Shown { screen, between: "" };
    let (mut last, mut resolved) = (String::new(), Vec::new());
    loop {
        let seen = tokio::select! {
            biased;
            () = ends.received() => None,
            seen = poll_status(context, args, &mut resolved, &mut shown, &last) => Some(seen?),
        };
        let Some(tasks) = seen else { return end_early(context, shown, &last) };
        last = table(&tasks, args.width.width(), None).render(context.output.is_colored());
        let text = last.clone();
        // A slow reader can block the write.
        let mut writing = spawn_blocking(move || {
            let written = shown.show(&text);
            (shown, written)
        });
        let written = tokio::select! {
            written = &mut writing => written,
            () = ends.received() => {
                // Dropping the screen restores the terminal.
                let _ = timeout(LAST_WRITE_LIMIT, writing).await;
                return Ok(EXIT_INTERRUPTED);
            }
        };
        let (back, written) = written.map_err(|error| failed(io::Error::other(error)))?;
        shown = back;
        match written {
            // The reader closed the pipe, as `head` does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(EXIT_DONE),
            written => written.map_err(failed)?,
        }
        if tasks.iter().all(|task| task.state.stage.is_over()) {
            keep_last(context, shown, &last)?;
            print_failures(context, args, &tasks);
            return Ok(EXIT_DONE);
        }
        let is_ended = tokio::select! {
            () = ends.received() => true,
            () = sleep(WATCH_INTERVAL) => false,
        };
        if is_ended {
            return end_early(context, shown, &last);
        }
    }
}

/// Prints the last state after the screen is gone.
fn keep_last(context: &Context<'_>, shown: Shown, last: &str) -> Exit {
    match shown.screen {
        Some(screen) => {
            drop(screen);
            context.output.raw(last.as_bytes())
        }
        None => Ok(EXIT_DONE),
    }
}

fn end_early(context: &Context<'_>, shown: Shown, last: &str) -> Exit {
    keep_last(context, shown, last)?;
    context.output.note("stopped watching: the tasks continue");
    Ok(EXIT_INTERRUPTED)
}

/// Returns the average rate of a task in bytes per second, and the remaining seconds at that rate and by its
/// own limits; `None` if only the end of the task is left.
fn pace(task: &Task) -> (Option<f64>, Option<f64>) {
    let is_active = task.state.stage == TaskStage::Active && task.elapsed_seconds > 0.0;
    // Earlier runs of a resumed task do not count.
    let rate = (is_active && task.resumed == 0).then(|| task.processed_bytes as f64 / task.elapsed_seconds);
    let rate = rate.filter(|rate| *rate >= 1.0);
    let left = task.total_bytes.saturating_sub(task.processed_bytes) as f64;
    let eta_s = rate.filter(|_| task.total_bytes > 0).map(|rate| (left / rate).max(limit_wait_seconds(task)));
    (rate, eta_s.filter(|eta_s| *eta_s > 0.0))
}

/// Returns the volume of a task, or the id of the volume whose cloud snapshot it deletes or verifies; of that
/// of another host than `here`, the host.
fn subject(task: &Task, here: Option<Uuid>) -> String {
    let snap = || task.cloud_snapshot_id.as_ref()?.parse::<CloudSnapshotId>().ok();
    let of_snap = |id: CloudSnapshotId| match here.is_some_and(|here| here != id.cluster) {
        true => format!("host {}", short_uuid(id.cluster)),
        false => id.volume.to_string(),
    };
    let volume = task.volume_name.as_ref().map(ToString::to_string);
    or_dash(volume.or_else(|| snap().map(of_snap)))
}

fn table(tasks: &[Task], width: Width, here: Option<Uuid>) -> Table {
    let size = ByteSize::from_bytes;
    let volume = |task: &Task| task.volume_name.as_ref().map(ToString::to_string);
    Table::list(tasks, width)
        .narrow("NAME", |task| short_uuid(task.task_id))
        .narrow("VOLUME", |task| subject(task, here))
        .wide("NAME", |task| task.task_id)
        // Without a cloud snapshot, the volume tells what failed.
        .wide("SOURCEVOLUME", |task| or_dash(task.cloud_snapshot_id.clone().or_else(|| volume(task))))
        .both("STATE", |task| &task.state)
        .narrow("STARTED", |task| width.time(task.started_at))
        .narrow("PROCESSED", |task| size(task.processed_bytes))
        .wide("NODE", |task| &task.node)
        .wide("BYTES-PROCESSED", |task| task.processed_bytes)
        .wide("TIME-ELAPSED", |task| format_duration(task.elapsed_seconds))
        .wide("COMPLETED", |task| or_dash(task.completed_at.map(format_time)))
        .wide("RATE", |task| or_dash(pace(task).0.map(|rate| format!("{}/s", size(rate as u64)))))
        .both("ETA", |task| or_dash(pace(task).1.map(|eta_s| format_duration(eta_s.round()))))
        .wide("LOCATION", |task| or_dash(task.credential_name.as_ref()))
        .wide("BACKUP-NAME", |task| or_dash(task.name.as_ref()))
        .wide("GROUP", |task| or_dash(task.group_id))
        .fit("VOLUME")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: &str = "2026-11-22T12:00:00Z";

    fn task(stage: &str, minutes_ago: i64) -> Task {
        let at = NOW.parse::<Timestamp>().unwrap() - SignedDuration::from_mins(minutes_ago);
        serde_json::from_value(json!({
                "taskId": Uuid::new_v4(), "type": "backup", "cloudSnapshotId": null, "volumeName": "vol",
                "state": format!("Backup-{stage}"), "node": "host", "owner": {"kind": "daemon"}, "credentialId": Uuid::nil(), "credentialName": "nas",
                "phase": "", "totalBytes": 0, "processedBytes": 0, "uploadedBytes": 0, "downloadedBytes": 0, "dirtyBytes": 0,
                "requests": {"put": 0, "get": 0, "list": 0, "delete": 0, "head": 0}, "freezeStallMicros": null,
                "startedAt": at, "completedAt": at, "elapsedSeconds": 1.0, "backupType": null, "error": null, "resumed": 0, "version": 1
            }))
            .unwrap()
    }

    #[test]
    fn verification_for_another_host_names_the_host() {
        let [here, other] = [1, 2].map(Uuid::from_u128);
        let mut task = task("Done", 1);
        task.volume_name = None;
        task.cloud_snapshot_id = Some(format!("{other}/59-61"));
        assert_eq!(subject(&task, Some(here)), "host 00000000");
        assert_eq!(subject(&task, Some(other)), "59");
    }

    #[test]
    fn task_that_waits_for_its_limit_has_an_eta() {
        let mut task = task("Active", 0);
        (task.total_bytes, task.processed_bytes, task.uploaded_bytes) = (12 << 20, 12 << 20, 12 << 20);
        task.elapsed_seconds = 2.0;
        assert_eq!(pace(&task).1, None, "only its end is left");
        task.limits.limit_upload_bytes_per_second = Some(1 << 20);
        assert_eq!(pace(&task).1, Some(10.0));
        task.elapsed_seconds = 13.0;
        assert_eq!(pace(&task).1, None);
    }

    #[test]
    fn newest_and_named_failures_are_explained() {
        let now: Timestamp = NOW.parse().unwrap();
        let mut tasks = vec![task("Done", 1)];
        tasks.extend((2..22).map(|minutes| task("Failed", minutes)));
        tasks.push(task("Failed", 61));
        let (failed, more) = shown_tasks(&tasks, false, now);
        assert_eq!((failed.len(), more), (3, 17));
        assert_eq!(failed[0].completed_at, tasks[1].completed_at);
        let (failed, more) = shown_tasks(&tasks[tasks.len() - 1..], false, now);
        assert_eq!((failed.len(), more), (0, 0));
        let (failed, more) = shown_tasks(&tasks, true, now);
        assert_eq!((failed.len(), more), (21, 0));
    }
}
