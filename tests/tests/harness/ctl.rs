//! `blockctl` as scripts use it: arguments in, one JSON document and an exit status out.

use crate::harness::{
    process::{die_with_parent, program, tool},
    schemas, wait_until,
};
use serde_json::Value;
use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A `blockctl` for one daemon.
#[derive(Clone, Debug)]
pub struct Ctl {
    socket: PathBuf,
    env: Vec<(String, String)>,
    user: Option<(u32, u32)>,
}

/// Result of a run.
#[derive(Debug)]
pub struct Run {
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Creates a command without the environment variables that `blockd` and `blockctl` read.
pub fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in [
        "BLOCKD_SOCKET",
        "BLOCKD_ENDPOINT",
        "BLOCKD_LOG",
        "BLOCKD_ENCRYPTION_PASSPHRASE",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_ACCOUNT",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "ST_AUTH",
        "ST_USER",
        "ST_KEY",
        "OS_AUTH_URL",
        "OS_USERNAME",
        "OS_PASSWORD",
        "OS_AUTH_TOKEN",
        "OS_STORAGE_URL",
        "NOTIFY_SOCKET",
        "CREDENTIALS_DIRECTORY",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    // The user's contexts must not apply.
    command.env("XDG_CONFIG_HOME", "/nonexistent");
    command
}

impl Ctl {
    /// Creates a `blockctl` for the daemon at this socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), env: Vec::new(), user: None }
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs `blockctl` as another user in one group. Requires root.
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// Runs `blockctl` with these arguments.
    pub fn run(&self, args: &[&str]) -> Run {
        let mut command = match self.user {
            None => clean(program("blockctl")),
            Some((uid, gid)) => {
                let mut command = clean(tool("setpriv"));
                command.args([format!("--reuid={uid}"), format!("--regid={gid}")]);
                command.args(["--clear-groups", "--"]).arg(program("blockctl"));
                command
            }
        };
        command
            .env("BLOCKD_SOCKET", &self.socket)
            .envs(self.env.iter().cloned())
            .args(args)
            .stdin(Stdio::null());
        let output = die_with_parent(&mut command).output().expect("blockctl");
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("UTF-8 on stdout"),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs `blockctl --json`. Returns the exit status and the document without its version.
    pub fn document(&self, args: &[&str]) -> (i32, Value) {
        let mut all = vec!["--json"];
        all.extend(args);
        let run = self.run(&all);
        let mut document: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| {
            panic!("blockctl {all:?}: stdout is not one JSON document ({error}): {run:?}")
        });
        schemas::check(clean(program("blockctl")), args, &document);
        // Only documents in the form of pxctl are arrays.
        if let Some(fields) = document.as_object_mut() {
            assert_eq!(fields.remove("schemaVersion"), Some(1.into()), "blockctl {all:?}: {run:?}");
        }
        (run.code, document)
    }

    /// Runs `blockctl --json`, which must succeed. Returns the document.
    pub fn json(&self, args: &[&str]) -> Value {
        let (code, document) = self.document(args);
        assert_eq!(code, 0, "blockctl {args:?} failed: {document:#}");
        document
    }

    /// Runs `blockctl --json`, which must fail with this status. Returns the error.
    pub fn fails(&self, args: &[&str], code: i32) -> Value {
        let (got, document) = self.document(args);
        assert_eq!(got, code, "blockctl {args:?}: {document:#}");
        let error = &document["error"];
        let message = error["message"].as_str().unwrap_or_else(|| panic!("no error.message in {document:#}"));
        assert!(!message.is_empty() && !message.contains('\n'), "error message is not one line: {message:?}");
        error.clone()
    }

    /// As [`fails`](Self::fails); the error message must contain `part`.
    pub fn fails_with(&self, args: &[&str], code: i32, part: &str) -> Value {
        let error = self.fails(args, code);
        assert!(
            error["message"].as_str().is_some_and(|message| message.contains(part)),
            "no {part:?}: {error:#}"
        );
        error
    }

    /// Creates a volume.
    pub fn create_volume(&self, name: &str, size: &str) -> Value {
        self.json(&["volume", "create", name, "--size", size])
    }

    /// Returns the document of a volume.
    pub fn volume(&self, name: &str) -> Value {
        self.json(&["volume", "inspect", name])
    }

    /// Returns the id of a volume.
    pub fn volume_id(&self, name: &str) -> String {
        self.volume(name)["volumeId"].as_str().expect("the id of a volume").to_owned()
    }

    /// Waits until a volume has this number of NBD connections.
    pub fn wait_for_connections(&self, volume: &str, count: usize) {
        wait_until(&format!("{count} connections of {volume}"), || {
            self.volume(volume)["connections"] == count
        });
    }

    /// Adds a directory as a backup location, encrypted if there is a passphrase.
    pub fn add_local(&self, name: &str, dir: &Path, passphrase: Option<&str>) -> Value {
        let dir = dir.to_str().expect("UTF-8");
        let mut args = vec!["credentials", "create", name, "--provider", "local", "--path", dir];
        args.extend(passphrase.map(|text| ["--encryption-passphrase", text]).into_iter().flatten());
        self.json(&args)
    }

    /// Backs up a volume and waits; the backup must succeed.
    pub fn backup(&self, volume: &str) -> Task {
        self.backup_with(volume, &[])
    }

    /// As [`backup`](Self::backup), with further flags.
    pub fn backup_with(&self, volume: &str, flags: &[&str]) -> Task {
        let mut args = vec!["cloudsnap", "backup", volume, "--wait"];
        args.extend(flags);
        let task = Task(self.json(&args)["items"][0].clone());
        assert_eq!(task.state(), "Backup-Done", "{task:?}");
        task
    }

    /// Starts a backup. Returns the id of its task.
    pub fn start_backup(&self, volume: &str) -> String {
        self.start_backup_with(volume, &[])
    }

    /// As [`start_backup`](Self::start_backup), with further flags.
    pub fn start_backup_with(&self, volume: &str, flags: &[&str]) -> String {
        let started = self.json(&[&["cloudsnap", "backup", volume], flags].concat());
        started["items"][0]["taskId"].as_str().expect("the id of the task").to_owned()
    }

    /// Returns the current state of a task.
    pub fn task(&self, id: &str) -> Task {
        let list = items(self.json(&["cloudsnap", "status", "--name", id]));
        assert_eq!(list.len(), 1, "{list:#?}");
        Task(list[0].clone())
    }

    /// Waits for the end of a task, successful or not.
    pub fn wait_task(&self, id: &str) -> Task {
        let (code, document) = self.document(&["cloudsnap", "status", "--name", id, "--wait"]);
        let task = Task(document);
        assert_eq!(
            code == 0,
            task.state().ends_with("-Done"),
            "exit status {code} contradicts the state of the task: {task:?}"
        );
        task
    }

    /// Restores into a new volume and waits; the restore must succeed.
    pub fn restore(&self, snap: &str, volume: &str) -> Task {
        let task = Task(self.json(&["cloudsnap", "restore", "--snap", snap, "--volume", volume, "--wait"]));
        assert_eq!(task.state(), "Restore-Done", "{task:?}");
        task
    }

    /// Restores into a new volume, which must fail and leave no volume. Returns the error.
    pub fn restore_fails(&self, snap: &str, volume: &str) -> Value {
        let (code, document) =
            self.document(&["cloudsnap", "restore", "--snap", snap, "--volume", volume, "--wait"]);
        assert_ne!(code, 0, "a restore succeeded: {document:#}");
        self.fails(&["volume", "inspect", volume], 4);
        let error = &document["error"];
        assert!(error["message"].is_string(), "no error in {document:#}");
        error.clone()
    }

    /// Returns the Done cloud snapshots of all hosts, oldest first.
    pub fn done_cloudsnaps(&self) -> Vec<String> {
        let list = items(self.json(&["cloudsnap", "list"]));
        let done = list.iter().filter(|entry| entry["status"] == "Done");
        done.map(|entry| entry["cloudSnapshotId"].as_str().expect("an id").to_owned()).collect()
    }
}

/// Returns the entries of a list.
pub fn items(mut list: Value) -> Vec<Value> {
    match list["items"].take() {
        Value::Array(items) => items,
        other => panic!("no list but {other:#}"),
    }
}

/// JSON document of a task.
#[derive(Clone, Debug)]
pub struct Task(pub Value);

impl Task {
    /// The state, such as `Backup-Done`.
    pub fn state(&self) -> &str {
        self.text("state")
    }

    /// The cloud snapshot of the task.
    pub fn snap(&self) -> &str {
        self.text("cloudSnapshotId")
    }

    /// Returns true for an incremental backup.
    pub fn is_incremental(&self) -> bool {
        self.text("backupType") == "incremental"
    }

    /// Returns a text field.
    pub fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_else(|| panic!("no text {field} in {:#}", self.0))
    }

    /// Returns a number field.
    pub fn number(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {:#}", self.0))
    }

    /// Returns the number of store requests of one kind.
    pub fn requests(&self, kind: &str) -> u64 {
        self.0["requests"][kind].as_u64().unwrap_or_else(|| panic!("no requests.{kind} in {:#}", self.0))
    }

    /// Returns true after the freeze.
    pub fn is_frozen(&self) -> bool {
        self.0["freezeStallMicros"].is_u64()
    }

    /// Returns true for an ended task.
    pub fn is_over(&self) -> bool {
        self.state().ends_with("-Done") || self.state().ends_with("-Failed")
    }
}
