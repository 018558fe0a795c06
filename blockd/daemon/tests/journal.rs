//! Log and events of the program in the journal, with fields. A socket stands for the journal.
use blockd_api::{
    Client,
    cloudsnaps::StartBackup,
    credentials::{Connection, CreateCredential, StoreConfig},
    operations::*,
    volumes::CreateVolume,
};
use std::{
    fs::File,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

/// Mounts the journal's directory at its usual path in a private mount namespace.
const SCRIPT: &str = r#"
    mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal &&
    mount --bind "$1" /run/systemd/journal && shift && exec "$@""#;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path, args: &[&str]) -> Running {
    let log = File::create(dir.join("log")).unwrap();
    let found = log.metadata().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", SCRIPT, "sh"]).arg(dir.join("journal"));
    command.arg(env!("CARGO_BIN_EXE_blockd")).arg("--data-dir").arg(dir.join("data"));
    command.args(["--config", "/dev/null"]).args(args).stdin(Stdio::null()).stderr(log);
    for name in ["BLOCKD_LOG", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"] {
        command.env_remove(name);
    }
    command.env("JOURNAL_STREAM", format!("{}:{}", found.dev(), found.ino()));
    Running(command.spawn().unwrap())
}

/// Timeout of all waits.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Returns the records sent to the journal. A thread reads the socket continuously: with a full queue the
/// daemon would drop records.
fn drained(journal: UnixDatagram) -> Receiver<String> {
    let (sender, records) = channel();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(len) = journal.recv(&mut bytes) {
            // The test has ended.
            if sender.send(String::from_utf8_lossy(&bytes[..len]).into_owned()).is_err() {
                break;
            }
        }
    });
    records
}

/// Returns the next record that contains `part`.
fn record(records: &Receiver<String>, part: &str, log: &Path) -> String {
    let until = Instant::now() + TIMEOUT;
    while let Ok(text) = records.recv_timeout(until.saturating_duration_since(Instant::now())) {
        if text.contains(part) {
            return text;
        }
    }
    panic!("no record has {part}: {}", std::fs::read_to_string(log).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_events_go_to_the_journal_behind_stderr() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("journal")).unwrap();
    let journal = UnixDatagram::bind(dir.path().join("journal/socket")).unwrap();
    let records = drained(journal);
    let log = dir.path().join("log");
    let running = start(dir.path(), &[]);
    let ready = record(&records, "MESSAGE=ready ", &log);
    assert!(ready.contains("\nPRIORITY=6\n") && ready.contains("\nSYSLOG_IDENTIFIER=blockd\n"), "{ready}");
    assert!(ready.contains("\nBLOCKD_VOLUMES=0\n"), "{ready}");

    let client = Client::new(dir.path().join("data/blockd.sock"));
    let size_bytes = 8 << 20;
    let volume =
        CreateVolume { name: "db".parse().unwrap(), size_bytes, labels: Default::default(), group: None };
    client.call(CREATE_VOLUME, &volume).await.unwrap();
    let path = dir.path().join("store");
    std::fs::create_dir(&path).unwrap();
    let credential = CreateCredential {
        name: "nas".parse().unwrap(),
        provider: StoreConfig::Local { path },
        connection: Connection::default(),
        encryption_passphrase: None,
        labels: Default::default(),
    };
    client.call(CREATE_CREDENTIAL, &credential).await.unwrap();
    let started = client.call(START_BACKUP, &StartBackup::of("db".parse().unwrap())).await.unwrap();
    let done = record(&records, "\nEVENT=backup-done\n", &log);
    for field in [
        "MESSAGE_ID=7093a1b723a24469bc3beaea9d45105f".to_owned(),
        "VOLUME=db".to_owned(),
        "CREDENTIAL=nas".to_owned(),
        format!("TASK={}", started.items[0].task_id),
    ] {
        assert!(done.lines().any(|line| line == field), "{field} in {done}");
    }
    assert!(done.contains("\nSNAPSHOT="), "{done}");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "", "no record is written twice");
    drop(running);

    // The option overrides the detection.
    let running = start(dir.path(), &["--log-format", "json"]);
    let until = Instant::now() + Duration::from_secs(60);
    while !std::fs::read_to_string(&log).unwrap().contains("\"message\":\"ready\"") {
        assert!(Instant::now() < until, "{}", std::fs::read_to_string(&log).unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(running);
}
