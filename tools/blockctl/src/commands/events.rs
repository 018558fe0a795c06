//! `blockctl events` and `blockctl logs`

use super::{
    arguments::TaskArg,
    cloudsnap::newest_task,
    filters::{NamePattern, TimeFilter, VolumeFilter},
    rules,
    schedules::called,
};
use crate::{
    failure::{EXIT_DONE, Exit, Failure},
    hanging::{cut, hanging},
    output::Context,
    short_ids::ShortIds,
    table::{Table, counted, micros, or_dash, printable, short_time, short_uuid},
    wait::reason,
};
use blockd_api::{
    List, VolumeRef,
    cloudsnaps::CloudSnapshotId,
    events::{Event, EventKind, ListEvents, MAX_EVENTS, Severity},
    operations,
    tasks::{Task, TaskOwner, TaskStage},
};
use clap::{
    Arg, Args, Command, Error, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
    error::ErrorKind,
};
use schemars::JsonSchema;
use serde::Serialize;
use std::{ffi::OsStr, path::PathBuf};

pub const EVENTS_HELP: &str = "\
Events report failed backups, missed and skipped schedule runs, damage found by verification, \
unreachable stores, and volumes that failed; docs/monitoring.md lists the kinds. The daemon keeps \
the newest 10000. A filter searches all of them. With --follow and --json each event is a document on its own line.

Examples:
  blockctl events
  blockctl events --max 20 --errors
  blockctl events --volume db --kind 'backup-*,run-skipped' --since 7d
  blockctl events --severity warning --follow
  blockctl -j events --follow";

/// Help of `logs`.
pub const LOGS_HELP: &str = "\
Shows start, hooks and filesystem freezes, events, and the end of a task with its cause and hint.

Examples:
  blockctl logs 3f4f0a67
  blockctl -j logs 3f4f0a67-e12a-4d35-81ad-985657757352";

pub const BUNDLE_HELP: &str = "\
The file is one JSON document with status, volumes, snapshots, credentials, tasks, schedules, \
rules, events and metrics of the daemon and, on its host, kernel, memory, NBD devices, disk, \
configuration and the newest part of the journal. It is also written if the daemon does not \
answer. It contains no secrets, and neither commands of rules nor their output; text that \
resembles a secret is removed. It contains names, labels and addresses: review it before you pass \
it on. A missing part is listed with the reason.

Examples:
  blockctl support-bundle --output blockd-support.json";

/// `events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Follow new events until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// Start with the newest N
    #[arg(short = 'x', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub max: u32,
    /// Only errors: --severity error
    #[arg(short, long, conflicts_with = "severity")]
    pub errors: bool,
    /// Only events of at least this severity
    #[arg(long, value_enum)]
    pub severity: Option<SeverityArg>,
    /// Only events of this volume, by name or id
    #[arg(short, long, value_name = "VOLUME")]
    pub volume: Option<VolumeRef>,
    /// Only events of these kinds; * matches any characters
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', hide_possible_values = true, value_parser = KindParser)]
    pub kind: Vec<NamePattern>,
    /// Time filter.
    #[command(flatten)]
    pub time: TimeFilter,
}

/// Severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeverityArg {
    /// All events
    Info,
    /// Warnings and errors
    Warning,
    /// Errors
    Error,
}

impl From<SeverityArg> for Severity {
    fn from(arg: SeverityArg) -> Self {
        match arg {
            SeverityArg::Info => Self::Info,
            SeverityArg::Warning => Self::Warning,
            SeverityArg::Error => Self::Error,
        }
    }
}

/// Parser of the kinds of events, and of patterns of them.
#[derive(Clone)]
struct KindParser;

impl TypedValueParser for KindParser {
    type Value = NamePattern;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<NamePattern, Error> {
        let kinds = || EventKind::ALL.iter().map(|kind| kind.as_str());
        let pattern = value.to_str().and_then(|text| text.parse::<NamePattern>().ok());
        match pattern.filter(|pattern| kinds().any(|kind| pattern.matches(kind))) {
            Some(pattern) => Ok(pattern),
            None => Err(PossibleValuesParser::new(kinds())
                .parse_ref(command, arg, value)
                .err()
                .unwrap_or_else(|| Error::new(ErrorKind::InvalidValue))),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(EventKind::ALL.iter().map(|kind| PossibleValue::new(kind.as_str()))))
    }
}

impl EventsArgs {
    fn is_filtered(&self) -> bool {
        self.volume.is_some()
            || !self.kind.is_empty()
            || !self.time.is_empty()
            || self.least() > Severity::Info
    }

    fn least(&self) -> Severity {
        if self.errors { Severity::Error } else { self.severity.map_or(Severity::Info, Into::into) }
    }

    fn includes(&self, volume: Option<&VolumeFilter>, event: &Event) -> bool {
        event.severity >= self.least()
            && volume.is_none_or(|volume| volume.includes(event.volume_id, event.volume_name.as_ref()))
            && (self.kind.is_empty() || self.kind.iter().any(|kind| kind.matches(&event.kind)))
            && self.time.includes(event.occurred_at)
    }
}

/// `support-bundle`
#[derive(Debug, Args)]
pub struct BundleArgs {
    /// New file to write; - for stdout
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Configuration file of the daemon
    #[arg(long, value_name = "FILE", default_value = "/etc/blockd/blockd.toml")]
    pub config: PathBuf,
    /// Lines of the daemon's log from the journal; 0 for none
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub log_lines: u32,
}

/// Long-poll timeout.
const WAIT_MS: u64 = 30_000;

/// Least width of a cut name.
const MIN_NAME: usize = 8;
/// Columns of a table of events, and the least width of each in a list that grows.
const COLUMNS: [(&str, usize); 6] =
    [("TIME", 17), ("SEVERITY", 8), ("EVENT", 17), ("VOLUME", 8), ("LOCATION", 8), ("MESSAGE", 0)];

/// Returns all stored events, oldest first.
async fn all_events(context: &Context<'_>) -> Result<Vec<Event>, Failure> {
    let mut all: Vec<Event> = Vec::new();
    loop {
        let since = Some(all.last().map_or(0, |event| event.event_id));
        let query = ListEvents { since, max: Some(MAX_EVENTS), wait_millis: None };
        let mut page = context.client.call(operations::LIST_EVENTS, &query).await?.items;
        // Only later events continue the list.
        page.retain(|event| Some(event.event_id) > since);
        if page.is_empty() {
            return Ok(all);
        }
        all.append(&mut page);
    }
}

pub async fn run(context: &Context<'_>, args: EventsArgs) -> Exit {
    let volume = VolumeFilter::load(context, args.volume.as_ref()).await?;
    let includes = |event: &Event| args.includes(volume.as_ref(), event);
    let mut events = match args.is_filtered() {
        true => all_events(context).await?,
        false => {
            let query = ListEvents { since: None, max: Some(args.max.max(1)), wait_millis: None };
            context.client.call(operations::LIST_EVENTS, &query).await?.items
        }
    };
    let mut last = events.last().map_or(0, |event| event.event_id);
    events.retain(includes);
    events.drain(..events.len().saturating_sub(args.max as usize));
    if !args.follow {
        let list = List { items: events, next: (last > 0).then_some(last) };
        return context.output.list(&list, "events", || table(&list.items));
    }
    let output = context.output;
    if !output.is_json() {
        output.raw(lines(&COLUMNS.map(|(title, _)| title.to_owned()), output.columns()).as_bytes())?;
    }
    loop {
        events.retain(includes);
        for (event, message) in events.iter().zip(messages(&events)) {
            if output.is_json() {
                output.document_line(event)?;
                continue;
            }
            let mut row = row(event);
            row[5] = message;
            output.raw(lines(&row, output.columns()).as_bytes())?;
        }
        let query = ListEvents { since: Some(last), max: None, wait_millis: Some(WAIT_MS) };
        events = context.client.call(operations::LIST_EVENTS, &query).await?.items;
        last = events.last().map_or(last, |event| event.event_id);
    }
}

fn row(event: &Event) -> [String; 6] {
    [
        short_time(event.occurred_at),
        event.severity.to_string(),
        event.kind.clone(),
        or_dash(event.volume_name.as_ref()),
        or_dash(event.credential_name.as_ref()),
        event.message.clone(),
    ]
}

fn table(events: &[Event]) -> Table {
    let mut table = Table::new(COLUMNS.iter().map(|(title, _)| *title));
    for (event, message) in events.iter().zip(messages(events)) {
        let [time, severity, kind, volume, location, _] = row(event);
        table.row([time, severity, kind, volume, location, message]);
    }
    table.fit("VOLUME|LOCATION").with_text()
}

/// Returns the messages of events with short ids of cloud snapshots: a complete one is as long as a line.
fn messages(events: &[Event]) -> Vec<String> {
    let own = |event: &Event| event.cloud_snapshot_id.as_ref()?.parse::<CloudSnapshotId>().ok();
    let named = events.iter().flat_map(|event| event.message.split(' ').filter_map(named_id));
    let ids: Vec<_> = events.iter().filter_map(own).chain(named.map(|(_, id)| id)).collect();
    let short = ShortIds::new(ids.iter().copied());
    let shortened = |word: &str| match named_id(word) {
        Some((text, id)) => word.replace(text, &short.of(&id)),
        None => word.to_owned(),
    };
    let message = |event: &Event| {
        let message = event.message.split(' ').map(shortened).collect::<Vec<_>>().join(" ");
        // That of an object has its id, too.
        own(event).map_or_else(|| message.clone(), |id| message.replace(&id.to_string(), &short.of(&id)))
    };
    events.iter().map(message).collect()
}

/// Returns the id of a cloud snapshot in a word of a message.
fn named_id(word: &str) -> Option<(&str, CloudSnapshotId)> {
    let text = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    Some((text, text.parse().ok()?))
}

/// Formats a row of a list that grows: columns cannot follow the widest cell. On a terminal, long names are
/// cut, and a long message is below the row.
fn lines(cells: &[String; 6], columns: Option<usize>) -> String {
    let columns = columns.unwrap_or(usize::MAX);
    let [time, severity, kind, volume, location, message] = cells.each_ref().map(|cell| printable(cell));
    let mut widths = COLUMNS.iter().map(|(_, width)| *width);
    let mut padded = |cell: String| format!("{cell:<0$}  ", widths.next().unwrap_or_default());
    let head = padded(time) + &padded(severity) + &padded(kind);
    let room = (columns.saturating_sub(head.len()) / 2).saturating_sub(2).max(MIN_NAME);
    let head = head + &padded(cut(&volume, room)) + &padded(cut(&location, room));
    let line = format!("{head}{message}");
    match line.chars().count() > columns {
        true => format!("{}\n{}\n", head.trim_end(), hanging("  ", &message, 2, columns)),
        false => format!("{}\n", line.trim_end()),
    }
}

/// Document of `logs`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TaskLog {
    /// Task.
    task: Task,
    /// Its events, oldest first.
    events: Vec<Event>,
}

/// `logs`
pub async fn logs(context: &Context<'_>, args: TaskArg) -> Exit {
    let task = newest_task(context, &args.task).await?;
    let mut events = all_events(context).await?;
    events.retain(|event| event.task_id == Some(task.task_id));
    if context.output.is_json() {
        return context.output.document(&TaskLog { task, events });
    }
    let owner = owner(context, &task).await?;
    context.output.table(&log_table(&task, &owner, &events))?;
    if task.state.stage == TaskStage::Failed {
        let (cause, hint) = reason(&task);
        context.output.error(cause, hint.as_deref());
    }
    Ok(EXIT_DONE)
}

/// Returns the owner of a task; a schedule by its name, if it has one.
async fn owner(context: &Context<'_>, task: &Task) -> Result<String, Failure> {
    let TaskOwner::Schedule { schedule_id } = &task.owner else { return Ok(task.owner.to_string()) };
    let schedules = context.client.call(operations::LIST_SCHEDULES, &()).await?.list.items;
    let schedule = schedules.iter().find(|one| one.schedule_id == *schedule_id);
    Ok(format!("schedule {}", schedule.map_or_else(|| short_uuid(*schedule_id), called)))
}

fn log_table(task: &Task, owner: &str, events: &[Event]) -> Table {
    let started =
        [short_time(task.started_at), "started".to_owned(), format!("{}, by {owner}", task.state.kind)];
    let steps = task.quiesce.iter().flat_map(|report| &report.steps).map(|step| {
        let result = step.error.clone().unwrap_or_else(|| "ok".to_owned());
        let output = step.output.as_deref().map(rules::one_line).map(|text| format!(": {text}"));
        let took = micros(step.duration_micros);
        let message = format!("{} ({took}, {result}){}", step.target, output.unwrap_or_default());
        [or_dash(step.started_at.map(short_time)), step.kind.to_string(), message]
    });
    let resumed = (task.resumed > 0).then(|| {
        let times = counted(task.resumed, "time");
        [
            "-".to_owned(),
            "resumed".to_owned(),
            format!("{times}, after a stop, a failure or a restart of blockd"),
        ]
    });
    let note = task.note.as_ref().map(|note| {
        let what = task.backup_type.map_or_else(String::new, |backup_type| format!("{backup_type}: "));
        ["-".to_owned(), "note".to_owned(), format!("{what}{note}")]
    });
    let is_end = |event: &Event| event.kind.eq_ignore_ascii_case(&task.state.to_string());
    let end = events.iter().rposition(is_end);
    let mut events: Vec<_> = events
        .iter()
        .zip(messages(events))
        .map(|(event, message)| [short_time(event.occurred_at), event.kind.clone(), message])
        .collect();
    // The time of a resumption is not known: it follows the last stop or failure before the end.
    let is_break = |row: &[String; 3]| row[1].ends_with("-stopped") || row[1].ends_with("-failed");
    let at = events[..end.unwrap_or(events.len())].iter().rposition(is_break).map_or(0, |nth| nth + 1);
    let later = events.split_off(at);
    // The event of its end tells more than the state.
    let state = end.is_none().then(|| {
        let now = task.completed_at.map_or_else(|| "-".to_owned(), short_time);
        let phase = if task.state.stage.is_over() { String::new() } else { task.phase.clone() };
        [now, task.state.to_string(), phase]
    });
    let rows = std::iter::once(started).chain(note).chain(steps).chain(events).chain(resumed);
    let rows = rows.chain(later).chain(state);
    Table::of("TIME|STEP|MESSAGE", rows).with_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn log_shows_resumption_note_times_and_one_end() {
        let at = "2026-11-22T12:00:00Z";
        let task: Task = serde_json::from_value(json!({
            "taskId": uuid::Uuid::nil(), "type": "backup", "cloudSnapshotId": null, "volumeName": "vol",
            "state": "Backup-Done", "node": "host", "owner": {"kind": "daemon"}, "credentialId": uuid::Uuid::nil(), "credentialName": "nas",
            "phase": "pending", "totalBytes": 0, "processedBytes": 0, "uploadedBytes": 0, "downloadedBytes": 0, "dirtyBytes": 0,
            "requests": {"put": 0, "get": 0, "list": 0, "delete": 0, "head": 0}, "freezeStallMicros": null, "startedAt": at,
            "completedAt": at, "elapsedSeconds": 1.0, "backupType": "full", "error": null, "resumed": 2, "version": 1,
            "note": "the last backup is gone from the store or cannot be read",
            "quiesce": {"steps": [{"kind": "pre-command", "target": "sync", "startedAt": "2026-11-22T12:34:00Z", "durationMicros": 7}]}
        }))
        .unwrap();
        let event: Event = serde_json::from_value(json!({
            "eventId": 1, "occurredAt": at, "severity": "info", "kind": "backup-done",
            "volumeName": "vol", "credentialName": "nas", "taskId": null, "message": "backup done"
        }))
        .unwrap();
        let text = log_table(&task, "daemon", std::slice::from_ref(&event)).render(false);
        assert!(text.contains("2 times") && text.contains("full: the last backup is gone"), "{text}");
        assert!(text.contains("2026-11-22T12:34Z  pre-command"), "{text}");
        assert_eq!(text.to_lowercase().matches("backup-done").count(), 1, "{text}");
        // The task was stopped and resumed before its end.
        let mut stopped = event.clone();
        stopped.kind = "backup-stopped".to_owned();
        let text = log_table(&task, "daemon", &[stopped, event]).render(false);
        let at = |step: &str| text.find(step).unwrap();
        assert!(at("backup-stopped") < at("resumed") && at("resumed") < at("backup-done"), "{text}");
        // Without the event, the state is the last line, without the phase at its end.
        let text = log_table(&task, "daemon", &[]).render(false);
        assert!(text.contains("Backup-Done") && !text.contains("pending"), "{text}");
    }

    #[test]
    fn messages_of_lists_have_short_ids() {
        let id = "2e4d4b67-95d7-481e-aec5-14223ac55170/590114184663672482-951325819047337066-incr";
        let event: Event = serde_json::from_value(json!({
            "eventId": 1, "occurredAt": "2026-11-22T12:00:00Z", "severity": "info", "kind": "backup-done", "volumeName": "db",
            "credentialName": "nas", "taskId": null, "cloudSnapshotId": id, "message": format!("backup of {id} done")
        }))
        .unwrap();
        assert_eq!(messages(std::slice::from_ref(&event)), ["backup of 95132581 done"]);
        let before = "2e4d4b67-95d7-481e-aec5-14223ac55170/590114184663672482-951325819047337000-incr";
        let event = Event { message: format!("the last before {id} is ({before});"), ..event };
        assert_eq!(
            messages(&[event]),
            ["the last before 95132581904733706 is (95132581904733700);"],
            "ids of others as well"
        );
    }

    #[test]
    fn kinds_are_selected_by_patterns() {
        let parse = |kind: &str| {
            let line = ["blockctl", "events", "--kind", kind].map(std::ffi::OsString::from);
            crate::cli::parse(&line, crate::output::ColorChoice::Never)
        };
        for kind in ["backup-failed", "backup-*", "*-failed,run-skipped"] {
            assert!(parse(kind).is_ok(), "{kind}");
        }
        for kind in ["backup-fialed", "nosuch-*", ""] {
            assert!(parse(kind).is_err(), "{kind}");
        }
    }

    #[test]
    fn followed_rows_have_the_columns_of_the_list() {
        let event: Event = serde_json::from_value(json!({
            "eventId": 1, "occurredAt": "2026-11-22T12:00:00Z", "severity": "error", "kind": "damage-found",
            "volumeName": "db", "credentialName": null, "taskId": null, "message": "a block is damaged"
        }))
        .unwrap();
        let header = lines(&COLUMNS.map(|(title, _)| title.to_owned()), None);
        let row = lines(&self::row(&event), None);
        for (title, cell) in
            [("SEVERITY", "error"), ("EVENT", "damage"), ("VOLUME", "db"), ("MESSAGE", "a block")]
        {
            assert_eq!(header.find(title), row.find(cell), "{header}\n{row}");
        }
        let mut cells = self::row(&event);
        (cells[3], cells[4], cells[5]) = ("n".repeat(60), "m".repeat(60), ["word"; 20].join(" "));
        let shown = lines(&cells, Some(80));
        assert!(
            shown.lines().all(|line| line.chars().count() <= 80) && shown.lines().count() == 3,
            "{shown}"
        );
        assert_eq!(lines(&cells, None).lines().count(), 1);
    }
}
