//! Native protocol of the systemd journal: records with fields, one datagram each.
//!
//! `tracing-journald` is not used, since its socket blocks: the journal may be stored on a filesystem of one
//! of this daemon's volumes, which would be a deadlock. Here a record that the journal does not accept at
//! once is dropped, and the next accepted record is followed by the number of dropped ones.

use blockd_engine::events::EVENT_TARGET;
use std::{
    fmt::{self, Write as _},
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

/// Socket of the journal.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// Maximum length of a value; longer ones are truncated.
const MAX_VALUE_BYTES: usize = 16 << 10;

/// Recorded fields.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => {
                self.others.retain(|(known, _)| *known != name);
                self.others.push((name, value));
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// Record in the journal's format.
struct Entry(Vec<u8>);

impl Entry {
    fn new(meta: &Metadata<'_>, message: &str) -> Self {
        let mut entry = Self(Vec::with_capacity(512));
        // Syslog priorities; `info` is 6, not 5 (notice).
        let priority = match *meta.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        entry.put("MESSAGE", message);
        entry.put("PRIORITY", priority);
        entry.put("SYSLOG_IDENTIFIER", "blockd");
        entry
    }

    fn put(&mut self, name: &str, value: &str) {
        let mut end = value.len().min(MAX_VALUE_BYTES);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        let value = &value[..end];
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
    }

    fn put_fields(&mut self, target: &str, fields: &[(&'static str, String)]) {
        for (name, value) in fields {
            self.put(&name_of(target, name), value);
        }
    }
}

/// Returns the journal's name of a field. Fields for searches have names of their own; the others have the
/// prefix `BLOCKD_`, so that none collides with a field of the journal itself.
fn name_of(target: &str, name: &str) -> String {
    match name {
        "task" => "TASK".into(),
        "credential" => "CREDENTIAL".into(),
        "message_id" | "event" | "volume" | "snapshot" if target == EVENT_TARGET => name.to_ascii_uppercase(),
        // In other records these are ids of this host.
        "volume" => "VOLUME_ID".into(),
        "snapshot" => "SNAPSHOT_ID".into(),
        "cloudsnap" => "SNAPSHOT".into(),
        _ => {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            // Names have at most 64 characters.
            "BLOCKD_".chars().chain(name.chars().map(plain)).take(64).collect()
        }
    }
}

/// Layer that sends records to the journal.
#[derive(Debug)]
pub(super) struct JournalLayer {
    socket: UnixDatagram,
    // Not connected: a restarted journal has another socket at this path.
    path: PathBuf,
    lost: AtomicU64,
}

impl JournalLayer {
    /// Opens a socket and checks that the journal listens at the path.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        match socket.send_to(&[], path) {
            // `WouldBlock` means that the journal exists and is busy.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(Self { socket, path: path.to_owned(), lost: AtomicU64::new(0) }),
        }
    }

    fn send(&self, entry: &Entry, without_fields: &Entry) {
        let sent = match self.socket.send_to(&entry.0, &self.path) {
            // Too large for one datagram.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                self.socket.send_to(&without_fields.0, &self.path)
            }
            sent => sent,
        };
        if sent.is_err() {
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        let lost = self.lost.swap(0, Relaxed);
        if lost > 0 {
            let mut entry = Entry(Vec::new());
            entry
                .put("MESSAGE", &format!("{lost} log records were dropped: the journal did not accept them"));
            entry.put("PRIORITY", "4");
            entry.put("SYSLOG_IDENTIFIER", "blockd");
            entry.put("BLOCKD_LOST", &lost.to_string());
            if self.socket.send_to(&entry.0, &self.path).is_err() {
                self.lost.fetch_add(lost, Relaxed);
            }
        }
    }
}

impl<S> Layer<S> for JournalLayer
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        span.extensions_mut().replace(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Fields>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let (meta, mut fields) = (event.metadata(), Fields::default());
        event.record(&mut fields);
        let target = meta.target();
        let mut message = std::mem::take(&mut fields.message);
        if target != EVENT_TARGET {
            // By default `journalctl` shows the message only.
            for (name, value) in &fields.others {
                // Writing to a String cannot fail.
                let _ = write!(message, "{}{name}={value}", if message.is_empty() { "" } else { " " });
            }
        }
        let (mut entry, without_fields) = (Entry::new(meta, &message), Entry::new(meta, &message));
        entry.put("TARGET", target);
        if let (Some(file), Some(line)) = (meta.file(), meta.line()) {
            entry.put("CODE_FILE", file);
            entry.put("CODE_LINE", &line.to_string());
        }
        for span in context.event_scope(event).into_iter().flatten() {
            entry.put("SPAN_NAME", span.name());
            if let Some(fields) = span.extensions().get::<Fields>() {
                entry.put_fields(span.metadata().target(), &fields.others);
            }
        }
        entry.put_fields(target, &fields.others);
        self.send(&entry, &without_fields);
    }
}

#[cfg(test)]
mod tests;
