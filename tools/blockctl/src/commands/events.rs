//! `blockctl events`

use super::{Context, or_dash};
use crate::{
    cli::events::EventsArgs,
    failure::{EXIT_DONE, Failure},
    table::Table,
};
use blockd_api::{
    events::{Event, EventList, ListEvents, Severity},
    format_time, operations,
};

/// Long-poll timeout.
const WAIT_MS: u64 = 30_000;

pub async fn run(context: &Context<'_>, args: EventsArgs) -> Result<u8, Failure> {
    let query = ListEvents { since: None, max: Some(args.max.max(1)), wait_ms: None };
    let EventList { mut events } = context.client.call(operations::LIST_EVENTS, &query).await?;
    let mut last = events.last().map_or(0, |event| event.id);
    events.drain(..events.len().saturating_sub(args.max as usize));
    let is_shown = |event: &Event| !args.errors || event.severity == Severity::Error;
    events.retain(is_shown);
    if !args.follow {
        if context.output.is_json() {
            context.output.document(&EventList { events })?;
        } else {
            context.output.table(&table(&events))?;
        }
        return Ok(EXIT_DONE);
    }
    loop {
        events.iter().filter(|event| is_shown(event)).try_for_each(|event| tell(context, event))?;
        let query = ListEvents { since: Some(last), max: None, wait_ms: Some(WAIT_MS) };
        events = context.client.call(operations::LIST_EVENTS, &query).await?.events;
        last = events.last().map_or(last, |event| event.id);
    }
}

fn table(events: &[Event]) -> Table {
    let mut table = Table::new(&["TIME", "SEVERITY", "EVENT", "VOLUME", "CREDENTIAL", "MESSAGE"]);
    for event in events {
        table.row([
            format_time(event.at),
            event.severity.to_string(),
            event.kind.clone(),
            or_dash(event.volume.as_ref()),
            or_dash(event.credential.as_ref()),
            event.message.clone(),
        ]);
    }
    table
}

/// Prints an event on a line.
fn tell(context: &Context<'_>, event: &Event) -> Result<(), Failure> {
    if context.output.is_json() {
        let text = serde_json::to_string(event).map_err(|error| Failure::Stdout { source: error.into() })?;
        return context.output.raw(format!("{text}\n").as_bytes());
    }
    let of = event.volume.as_ref().map(|volume| format!(" {volume}")).unwrap_or_default();
    context.output.line(format!(
        "{}  {}  {}{of}  {}",
        format_time(event.at),
        event.severity,
        event.kind,
        event.message
    ))
}
