//! Tests with a socket in place of the journal.

use super::*;
use blockd_api::events::{EventKind, Severity};
use blockd_engine::events::log_event;
use std::{collections::BTreeMap, time::Duration};
use tracing_subscriber::{layer::SubscriberExt, registry};

struct Journal {
    dir: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Journal {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("socket")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { dir, socket }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Runs `work` with the layer installed. The first, empty datagram is the check of `open`.
    fn during(&self, work: impl FnOnce()) {
        let layer = JournalLayer::open(&self.path()).unwrap();
        assert_eq!(self.socket.recv(&mut [0; 16]).unwrap(), 0);
        tracing::subscriber::with_default(registry().with(layer), work);
    }

    fn datagram(&self) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let len = self.socket.recv(&mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    }

    /// Parses the next record as the protocol's documentation describes it.
    fn record(&self) -> BTreeMap<String, String> {
        let bytes = self.datagram();
        let (mut rest, mut fields) = (bytes.as_slice(), BTreeMap::new());
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let line = std::str::from_utf8(&rest[..end]).unwrap();
            let (name, value) = match line.split_once('=') {
                Some((name, value)) => {
                    rest = &rest[end + 1..];
                    (name, value.to_owned())
                }
                None => {
                    let from = end + 1 + 8;
                    let len = u64::from_le_bytes(rest[end + 1..from].try_into().unwrap()) as usize;
                    let value = String::from_utf8(rest[from..from + len].to_vec()).unwrap();
                    assert_eq!(rest[from + len], b'\n');
                    rest = &rest[from + len + 1..];
                    (line, value)
                }
            };
            let is_taken = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            assert!(name.len() <= 64 && name.chars().all(is_taken) && !name.starts_with('_'), "{name}");
            fields.insert(name.to_owned(), value);
        }
        fields
    }
}

fn has(record: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(record.get(*name).map(String::as_str), Some(*value), "{name} in {record:?}");
    }
}

#[test]
fn record_has_the_fields_of_its_spans() {
    let journal = Journal::new();
    journal.during(|| {
        let span = tracing::info_span!("task", task = "t1", kind = "backup", volume = tracing::field::Empty);
        span.record("volume", 59);
        let _entered = span.enter();
        tracing::warn!(error = %"two\nlines", priority = 0, "not yet");
        tracing::debug!("plain");
        tracing::error!(cloudsnap = "c/1", "");
    });
    let record = journal.record();
    has(
        &record,
        &[
            ("MESSAGE", "not yet error=two\nlines priority=0"),
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "blockd"),
            ("SPAN_NAME", "task"),
            ("TASK", "t1"),
            ("VOLUME_ID", "59"),
            ("BLOCKD_KIND", "backup"),
            ("BLOCKD_ERROR", "two\nlines"),
            ("BLOCKD_PRIORITY", "0"),
            ("TARGET", module_path!()),
        ],
    );
    assert!(record["CODE_FILE"].ends_with("tests.rs"));
    has(&journal.record(), &[("MESSAGE", "plain"), ("PRIORITY", "7")]);
    has(&journal.record(), &[("MESSAGE", "cloudsnap=c/1"), ("PRIORITY", "3"), ("SNAPSHOT", "c/1")]);
}

#[test]
fn event_record_has_its_message_id_and_object_fields() {
    let journal = Journal::new();
    let event = |kind: &str, severity| blockd_api::events::Event {
        event_id: 7,
        occurred_at: jiff::Timestamp::UNIX_EPOCH,
        severity,
        kind: kind.into(),
        volume_id: None,
        volume_name: Some("db".parse().unwrap()),
        credential_id: None,
        credential_name: Some("nas".into()),
        task_id: Some(uuid::Uuid::from_u128(5)),
        cloud_snapshot_id: Some("c/1-2".into()),
        failed_step: None,
        message: "backup failed: the store is full".into(),
    };
    journal.during(|| {
        log_event(&event("backup-failed", Severity::Error));
        log_event(&event("backup-done", Severity::Info));
        let bare = event("of-another-version", Severity::Warning);
        log_event(&blockd_api::events::Event {
            volume_name: None,
            credential_name: None,
            task_id: None,
            cloud_snapshot_id: None,
            ..bare
        });
    });
    has(
        &journal.record(),
        &[
            ("MESSAGE", "backup failed: the store is full"),
            ("MESSAGE_ID", "a803d1e73cfd426d9dc1d0e8487c25e6"),
            ("PRIORITY", "3"),
            ("EVENT", "backup-failed"),
            ("VOLUME", "db"),
            ("CREDENTIAL", "nas"),
            ("TASK", "00000000-0000-0000-0000-000000000005"),
            ("SNAPSHOT", "c/1-2"),
            ("BLOCKD_EVENT_ID", "7"),
        ],
    );
    let done = EventKind::BackupDone.message_id().simple().to_string();
    has(&journal.record(), &[("MESSAGE_ID", &done), ("PRIORITY", "6")]);
    let bare = journal.record();
    has(&bare, &[("EVENT", "of-another-version"), ("PRIORITY", "4")]);
    for name in ["MESSAGE_ID", "VOLUME", "TASK", "SNAPSHOT", "CREDENTIAL"] {
        assert!(!bare.contains_key(name), "{name} in {bare:?}");
    }
}

#[test]
fn full_journal_drops_records_and_reports_their_number() {
    let journal = Journal::new();
    let mut sent = 0;
    journal.during(|| {
        // Without a reader the queue fills up. The test ends, because no call blocks.
        for number in 0..10_000 {
            tracing::info!(number, "x");
        }
        journal.socket.set_nonblocking(true).unwrap();
        while journal.socket.recv(&mut [0; 4096]).is_ok() {
            sent += 1;
        }
        journal.socket.set_nonblocking(false).unwrap();
        tracing::info!("there is room again");
        // The journal restarts with another socket.
        let _ = std::fs::remove_file(journal.path());
        tracing::info!("no listener");
    });
    assert!(sent > 0 && sent < 10_000, "{sent} were taken");
    has(&journal.record(), &[("MESSAGE", "there is room again")]);
    has(&journal.record(), &[("BLOCKD_LOST", &(10_000 - sent).to_string()), ("PRIORITY", "4")]);
    assert!(JournalLayer::open(&journal.path()).is_err(), "the socket was removed");
}

#[test]
fn oversized_record_is_truncated() {
    let journal = Journal::new();
    let long = "ä".repeat(1 << 20);
    journal.during(|| {
        tracing::info!(long, "short");
        // More than a datagram can hold, even truncated.
        let l = long.as_str();
        tracing::info!(
            a = l,
            b = l,
            c = l,
            d = l,
            e = l,
            f = l,
            g = l,
            h = l,
            i = l,
            j = l,
            k = l,
            m = l,
            n = l,
            o = l,
            p = l,
            "many"
        );
    });
    let record = journal.record();
    assert!(record["MESSAGE"].starts_with("short long=ää") && record["MESSAGE"].len() <= MAX_VALUE_BYTES);
    assert!(record["BLOCKD_LONG"].len() <= MAX_VALUE_BYTES && record["BLOCKD_LONG"].starts_with("ää"));
    let record = journal.record();
    assert!(record["MESSAGE"].starts_with("many a=ää"));
    assert!(!record.contains_key("BLOCKD_A") && record["PRIORITY"] == "6", "the fields are left out");
}
