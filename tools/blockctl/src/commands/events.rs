//! `blockctl events`

use crate::{
    failure::Exit,
    output::Context,
    table::{Table, or_dash},
};
use blockd_api::{
    List,
    events::{Event, ListEvents, Severity},
    format_time, operations,
};
use clap::Args;
use std::path::PathBuf;

pub const EVENTS_HELP: &str = "\
Events report failed backups, missed and skipped schedule runs, damage found by verification, \
unreachable stores, and volumes that failed. The daemon keeps the newest 10000. With --follow and \
--json each event is a document on its own line.

Examples:
  blockctl events
  blockctl events --max 20 --errors
  blockctl -j events --follow";

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
    /// Only errors
    #[arg(short, long)]
    pub errors: bool,
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

pub async fn run(context: &Context<'_>, args: EventsArgs) -> Exit {
    let query = ListEvents { since: None, max: Some(args.max.max(1)), wait_millis: None };
    let List { items: mut events, next: mut last } =
        context.client.call(operations::LIST_EVENTS, &query).await?;
    events.drain(..events.len().saturating_sub(args.max as usize));
    let is_shown = |event: &Event| !args.errors || event.severity == Severity::Error;
    events.retain(is_shown);
    if !args.follow {
        let list = List { items: events, next: last };
        return context.output.show(&list, || table(&list.items));
    }
    loop {
        for event in events.iter().filter(|event| is_shown(event)) {
            tell(context, event)?;
        }
        let query = ListEvents { since: Some(last.unwrap_or(0)), max: None, wait_millis: Some(WAIT_MS) };
        List { items: events, next: last } = context.client.call(operations::LIST_EVENTS, &query).await?;
    }
}

fn table(events: &[Event]) -> Table {
    Table::of(
        "TIME|SEVERITY|EVENT|VOLUME|CREDENTIAL|MESSAGE",
        events.iter().map(|event| {
            [
                format_time(event.occurred_at),
                event.severity.to_string(),
                event.kind.clone(),
                or_dash(event.volume_name.as_ref()),
                or_dash(event.credential_name.as_ref()),
                event.message.clone(),
            ]
        }),
    )
}

/// Prints an event on a line.
fn tell(context: &Context<'_>, event: &Event) -> Exit {
    if context.output.is_json() {
        return context.output.document_line(event);
    }
    let Event { occurred_at: at, severity, kind, volume_name: volume, message, .. } = event;
    let of = volume.as_ref().map(|volume| format!(" {volume}")).unwrap_or_default();
    context.output.line(format!("{}  {severity}  {kind}{of}  {message}", format_time(*at)))
}
