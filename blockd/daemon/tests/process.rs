//! Tests of the program: command line, signals, sockets, and sudden death.
use blockd_api::{
    Client,
    cloudsnaps::{StartBackup, StartRestore},
    credentials::{CreateCredential, StoreConfig},
    operations::*,
    tasks::{BackupType, Task, TaskStage, WaitTask},
    volumes::CreateVolume,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};
use uuid::Uuid;

fn blockd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockd"));
    command.env_remove("BLOCKD_LOG").env_remove("NOTIFY_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
    command
}

fn run(args: &[&str]) -> Output {
    blockd().args(args).output().unwrap()
}

/// Returns the message of a refused start: exactly one line.
fn refusal(output: &Output, status: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(text.starts_with("blockd: ") && text.trim_end().lines().count() == 1, "{text}");
    text
}

/// Daemon that is killed when the test ends.
struct Running {
    child: Child,
    dir: PathBuf,
    client: Client,
}

impl Running {
    /// Starts a daemon and waits for its readiness notification.
    fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_as(blockd(), dir, args)
    }

    fn start_as(mut program: Command, dir: &Path, args: &[&str]) -> Self {
        let socket = dir.join("notify");
        let _ = std::fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).unwrap();
        let data = dir.join("data");
        let child = program
            .arg("--data-dir")
            .arg(&data)
            .args(args)
            .env("NOTIFY_SOCKET", &socket)
            .stderr(Stdio::from(
                std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap(),
            ))
            .spawn()
            .unwrap();
        let mut this = Self { child, client: Client::new(data.join("blockd.sock")), dir: data };
        // A daemon that exits before it is ready fails the test at once, with its log.
        notify.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();
        let mut message = [0; 256];
        let len = loop {
            match notify.recv(&mut message) {
                Ok(len) => break len,
                Err(_) => {
                    if let Some(status) = this.child.try_wait().unwrap() {
                        panic!("{status}: {}", std::fs::read_to_string(dir.join("log")).unwrap());
                    }
                }
            }
        };
        assert_eq!(&message[..len], b"READY=1\n".get(..len).unwrap());
        this
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn terminate(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        for socket in ["blockd.sock", "nbd.sock"] {
            assert!(!self.dir.join(socket).exists(), "{socket} is left");
        }
    }

    async fn create_volume(&self, name: &str, size_bytes: u64) {
        let request =
            CreateVolume { name: name.parse().unwrap(), size_bytes, labels: Default::default(), group: None };
        self.client.call(CREATE_VOLUME, &request).await.unwrap();
    }

    async fn create_credential(&self, store: &Path) {
        std::fs::create_dir_all(store).unwrap();
        let request = CreateCredential {
            name: "nas".parse().unwrap(),
            provider: StoreConfig::Local { path: store.to_owned() },
            connection: blockd_api::credentials::Connection::default(),
            encryption_passphrase: Some(blockd_api::Secret::new("correct horse".into()).into()),
            labels: Default::default(),
        };
        self.client.call(CREATE_CREDENTIAL, &request).await.unwrap();
    }

    async fn start_backup(&self, volume: &str) -> Uuid {
        let request = StartBackup::of(volume.parse().unwrap());
        self.client.call(START_BACKUP, &request).await.unwrap().items[0].task_id
    }

    async fn done(&self, task: Uuid) -> Task {
        let mut version = 0;
        loop {
            let wait = WaitTask { wait_millis: Some(10_000), since_version: Some(version) };
            let seen = self.client.call_at(GET_TASK, &task, &wait).await.unwrap();
            if seen.state.stage.is_over() {
                assert_eq!(seen.state.stage, TaskStage::Done, "{seen:?}");
                return seen;
            }
            version = seen.version;
        }
    }

    async fn restore(&self, id: &str, name: &str) {
        let request = StartRestore {
            volume_name: Some(name.parse().unwrap()),
            ..StartRestore::of(id.parse().unwrap())
        };
        let task = self.client.call(START_RESTORE, &request).await.unwrap().task_id;
        self.done(task).await;
    }

    fn nbd(&self, name: &str) -> Nbd {
        Nbd::connect(&self.dir.join("nbd.sock"), name)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Minimal NBD client.
struct Nbd {
    stream: UnixStream,
    size_bytes: u64,
}

impl Nbd {
    fn connect(socket: &Path, name: &str) -> Self {
        let mut stream = UnixStream::connect(socket).unwrap();
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).unwrap();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream.write_all(b"IHAVEOPT").unwrap();
        stream.write_all(&1u32.to_be_bytes()).unwrap();
        stream.write_all(&(name.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(name.as_bytes()).unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        Self { stream, size_bytes: u64::from_be_bytes(export[..8].try_into().unwrap()) }
    }

    fn request(&mut self, kind: u16, offset: u64, len: u32, payload: &[u8]) {
        let mut header = Vec::with_capacity(28);
        header.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        header.extend_from_slice(&0u16.to_be_bytes());
        header.extend_from_slice(&kind.to_be_bytes());
        header.extend_from_slice(&7u64.to_be_bytes());
        header.extend_from_slice(&offset.to_be_bytes());
        header.extend_from_slice(&len.to_be_bytes());
        self.stream.write_all(&header).unwrap();
        self.stream.write_all(payload).unwrap();
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..8], [0; 4], "the request failed");
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (n, chunk) in (0..).zip(data.chunks(8 << 20)) {
            self.request(1, offset + n * (8 << 20), chunk.len() as u32, chunk);
        }
    }

    fn read_all(&mut self) -> Vec<u8> {
        let mut content = vec![0; self.size_bytes as usize];
        for (n, chunk) in (0..).zip(content.chunks_mut(8 << 20)) {
            self.request(0, n * (8 << 20), chunk.len() as u32, &[]);
            self.stream.read_exact(chunk).unwrap();
        }
        content
    }

    fn assert_is(&mut self, expected: &[u8]) {
        let differs = self.read_all().iter().zip(expected).position(|(a, b)| a != b);
        assert_eq!((self.size_bytes, differs), (expected.len() as u64, None), "the first byte that differs");
    }
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}

#[test]
fn invalid_command_line_or_configuration_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    let config_text = config.to_str().unwrap();
    assert_eq!(run(&["--nonsense"]).status.code(), Some(2));
    assert_eq!(run(&["--nbd-listen", "localhost:1"]).status.code(), Some(2));
    assert!(refusal(&run(&["--config", config_text]), 2).contains(config_text));
    std::fs::write(&config, "full_evry = 3\n").unwrap();
    assert!(refusal(&run(&["--config", config_text]), 2).contains("full_evry"));
    std::fs::write(&config, "full_every = 3\n").unwrap();
    let shown = run(&["--config", config_text, "--check-config", "--data-dir", "/x"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("full_every = 3\n") && shown.contains("data_dir = \"/x\"\n"), "{shown}");
    assert!(refusal(&run(&["--log-level", "loud", "--data-dir", "/nonexistent/x"]), 2).contains("loud"));
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for flag in
        ["--data-dir", "--config", "--nbd-listen", "--log-format", "--log-level", "--after-power-loss"]
    {
        assert!(help.contains(flag), "{flag} is not in the help");
    }
}

/// Runs a program without `CAP_SYS_PTRACE`, so that even root is an ordinary user in this respect.
fn without_ptrace(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", "--"]).arg(program);
    command
}

#[test]
fn memory_is_hidden_from_other_processes_unless_configured() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("blockd.toml");
    for core_dumps in [false, true] {
        std::fs::write(&config, format!("core_dumps = {core_dumps}\n")).unwrap();
        let program = without_ptrace(Path::new(env!("CARGO_BIN_EXE_blockd")));
        let running = Running::start_as(program, dir.path(), &["--config", config.to_str().unwrap()]);
        // Opening it requires the permission to trace the process.
        let open = format!(": < /proc/{}/mem", running.child.id());
        let opened = without_ptrace(Path::new("sh")).args(["-c", &open]).output().unwrap();
        assert_eq!(opened.status.success(), core_dumps, "{opened:?}");
        running.terminate();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_checked_only_without_a_running_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), &[]);
    running.create_volume("data", 1 << 20).await;
    let data_dir = running.dir.clone();
    let check = |volumes: &[&str]| {
        run(&[&["--data-dir", data_dir.to_str().unwrap(), "--check-volumes"][..], volumes].concat())
    };
    assert!(refusal(&check(&[]), 3).contains("in use"));
    running.kill();
    let sound = "Volume data is sound: 1 layer, 0 kept block sets.\n";
    for volumes in [vec![], vec!["data"]] {
        let output = check(&volumes);
        assert_eq!(
            (output.status.code(), String::from_utf8(output.stdout).unwrap()),
            (Some(0), sound.into())
        );
    }
    assert!(refusal(&check(&["other"]), 3).contains("no volume other"));
    let id = std::fs::read_dir(data_dir.join("volumes")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(id.join("volume.meta"), b"nothing").unwrap();
    let output = check(&["data"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && text.contains("volume.meta is damaged"), "{text}");
    let output = check(&["data", "--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && found["volumes"][0]["sound"] == false, "{found}");
    assert_eq!(run(&["--json"]).status.code(), Some(2), "--json requires --check-volumes");
}

#[test]
fn impossible_start_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let quiet = ["--log-level", "off", "--data-dir"];
    let with = |dir: &Path| run(&[&quiet[..], &[dir.to_str().unwrap()]].concat());

    let long = dir.path().join("x".repeat(100));
    assert!(refusal(&with(&long), 1).contains("limit of 107"));
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(refusal(&with(&file.join("below")), 1).contains("file"));

    let running = Running::start(dir.path(), &[]);
    let refused = refusal(&with(&running.dir), 1);
    assert!(refused.contains(running.dir.to_str().unwrap()), "{refused}");
    assert!(refused.contains(&format!("process {}", running.child.id())), "{refused}");
    running.terminate();

    let connection = rusqlite::Connection::open(dir.path().join("data/blockd.db")).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    assert!(refusal(&with(&dir.path().join("data")), 1).contains("version 99"));
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_without_ca_certificates_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (config, none) = (dir.path().join("blockd.toml"), dir.path().join("none"));
    let hook = |name: &str, url: &str| format!("[[webhook]]\nname = \"{name}\"\nurl = \"{url}\"\n");
    let text = hook("plain", "http://127.0.0.1:9/") + &hook("tls", "https://127.0.0.1:9/");
    std::fs::write(&config, text).unwrap();
    let mut program = blockd();
    program.env("SSL_CERT_FILE", &none).env("SSL_CERT_DIR", &none);
    let running = Running::start_as(program, dir.path(), &["--config", config.to_str().unwrap()]);
    running.create_volume("data", 1 << 20).await;
    let webhooks = running.client.call(GET_STATUS, &()).await.unwrap().webhooks;
    let error = |name: &str| webhooks.iter().find(|hook| hook.name == name).unwrap().error.clone();
    let tls = error("tls").unwrap();
    assert!(tls.contains("the HTTP client cannot be created: ") && tls.contains("certificates"), "{tls}");
    assert!(!error("plain").unwrap_or_default().contains("HTTP client"), "{webhooks:?}");
    running.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn clean_stop_keeps_all_writes_and_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(dir.path(), &["--nbd-listen", "tcp://127.0.0.1:0", "--log-format", "json"]);
    let mode = |name: &str| std::fs::metadata(running.dir.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(""), mode("blockd.sock"), mode("nbd.sock")), (0o700, 0o600, 0o600));
    running.create_volume("data", 8 << 20).await;
    let content = pattern(1, 8 << 20);
    running.nbd("data").write(0, &content);
    assert_eq!(
        running.client.call_at(GET_VOLUME, &"data".parse().unwrap(), &()).await.unwrap().dirty_bytes,
        8 << 20
    );
    running.terminate();

    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    for line in log.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line}");
    }
    let running = Running::start(dir.path(), &[]);
    // The empty name selects the only volume.
    running.nbd("").assert_is(&content);
    running.signal(Signal::INT);
    let mut running = running;
    assert_eq!(running.child.wait().unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_writes_survive_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let running = Running::start(dir.path(), &[]);
    running.create_volume("data", 16 << 20).await;
    running.create_credential(&store).await;
    let mut content = pattern(1, 16 << 20);
    running.nbd("data").write(0, &content);
    running.done(running.start_backup("data").await).await;
    let change = pattern(2, 100_000);
    content[5_000_001..5_100_001].copy_from_slice(&change);
    let mut client = running.nbd("data");
    client.write(5_000_001, &change);
    running.kill();

    let running = Running::start(dir.path(), &[]);
    running.nbd("data").assert_is(&content);
    let task = running.done(running.start_backup("data").await).await;
    assert_eq!(task.backup_type, Some(BackupType::Incremental));
    assert!(task.dirty_bytes <= 110_592, "{}", task.dirty_bytes);
    running.restore(&task.cloud_snapshot_id.unwrap(), "copy").await;
    running.nbd("copy").assert_is(&content);
    running.kill();

    let running = Running::start(dir.path(), &["--after-power-loss"]);
    running.nbd("data").assert_is(&content);
    running.nbd("copy").assert_is(&content);
    running.terminate();
}

/// Returns the packs in the store with their inode numbers, which identify an upload.
fn packs(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            let is_pack = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pack-"));
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => packs(&path),
                Ok(meta) if is_pack => BTreeMap::from([(path, meta.ino())]),
                _ => BTreeMap::new(),
            }
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_backup_resumes_without_sending_committed_packs() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let config = dir.path().join("c.toml");
    // One pack at a time, so that the kill happens between packs.
    std::fs::write(&config, "upload_concurrency = 1\n").unwrap();
    let args = ["--config", config.to_str().unwrap()];
    let running = Running::start(dir.path(), &args);
    running.create_volume("data", 192 << 20).await;
    running.create_credential(&store).await;
    let content = pattern(1, 192 << 20);
    running.nbd("data").write(0, &content);
    let task = running.start_backup("data").await;
    // With two packs stored, the first one is in the journal.
    let data = store.join("blockd/data");
    let before = loop {
        let found = packs(&data);
        if found.len() >= 2 {
            break found;
        }
        tokio::task::yield_now().await;
    };
    running.kill();
    assert!(!store.join("blockd/manifests").exists(), "the backup was complete before it was killed");

    let running = Running::start(dir.path(), &args);
    let task = running.done(task).await;
    assert_eq!((task.resumed, task.backup_type), (1, Some(BackupType::Full)));
    let after = packs(&data);
    assert_eq!(after.len(), 6);
    let kept = before.iter().filter(|(path, inode)| after.get(*path) == Some(inode)).count();
    assert!(kept >= 1, "all packs were sent again");
    running.restore(&task.cloud_snapshot_id.unwrap(), "copy").await;
    running.nbd("copy").assert_is(&content);
    running.terminate();
}
