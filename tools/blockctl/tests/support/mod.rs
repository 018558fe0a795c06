//! Fake daemon with scripted replies, and a runner of `blockctl`.

mod schemas;

use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Barrier, Mutex, mpsc},
    thread,
};

/// Scripted reply.
#[derive(Clone)]
pub enum Reply {
    /// Replies with this status and body.
    Json(u16, Value),
    /// Closes the connection without a reply.
    Close,
    /// Replies with this body when all requests that share the barrier have arrived.
    Together(Arc<Barrier>, Value),
    /// Never replies.
    Hold,
}

/// Received request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method and path.
    pub line: String,
    /// Body; null if absent.
    pub body: Value,
}

/// API client.
pub struct Fake {
    dir: tempfile::TempDir,
    seen: Arc<Mutex<Vec<Seen>>>,
    arrivals: mpsc::Receiver<String>,
}

impl Fake {
    /// Starts the daemon with replies by method and path without query; several replies to one are used in
    /// turn, the last repeatedly.
    pub fn start(answers: Vec<(&str, Reply)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("blockd.sock")).unwrap();
        let mut script: HashMap<String, Vec<Reply>> = HashMap::new();
        for (line, reply) in answers {
            script.entry(line.to_owned()).or_default().insert(0, reply);
        }
        let script = Arc::new(Mutex::new(script));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (arrived, arrivals) = mpsc::channel();
        let all = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, seen, arrived) = (Arc::clone(&script), Arc::clone(&all), arrived.clone());
                thread::spawn(move || serve(stream, &script, &seen, &arrived));
            }
        });
        Self { dir, seen, arrivals }
    }

    /// Returns the socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("blockd.sock")
    }

    /// Returns the received requests.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Returns the lines of the received requests that change something.
    pub fn changes(&self) -> Vec<String> {
        let lines = self.seen().into_iter().map(|seen| seen.line);
        lines.filter(|line| !line.starts_with("GET ")).collect()
    }

    /// Waits for the next request and returns its line.
    pub fn arrival(&self) -> String {
        self.arrivals.recv().unwrap()
    }

    /// Returns a command for a line, split at spaces, that uses this daemon.
    pub fn command(&self, line: &str) -> Command {
        let mut command = blockctl(line);
        command.env("BLOCKD_SOCKET", self.socket());
        command
    }

    /// Starts a daemon with a reply to each route: those of `replies.json`, or the given ones.
    pub fn with_defaults(answers: Vec<(&str, Reply)>) -> Self {
        let defaults = defaults();
        let given: Vec<&str> = answers.iter().map(|(line, _)| *line).collect();
        let rest = defaults.iter().filter(|(line, _)| !given.contains(&line.as_str()));
        let rest: Vec<_> = rest.map(|(line, body)| (line.as_str(), ok(body.clone()))).collect();
        Self::start(answers.into_iter().chain(rest).collect())
    }

    /// Runs lines of a shell and returns each with its requests, output, stderr (`!`) and exit status.
    pub fn transcript(&self, lines: &str) -> String {
        let dir = self.dir.path().to_str().unwrap();
        let bin = Path::new(env!("CARGO_BIN_EXE_blockctl")).parent().unwrap();
        let mut text = String::new();
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let before = self.seen().len();
            let mut shell = Command::new("sh");
            shell.args(["-c", line]).current_dir(dir).stdin(Stdio::null()).env_clear();
            shell.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
            shell.env("XDG_CONFIG_HOME", dir).env("BLOCKD_SOCKET", self.socket());
            let ran = Ran::of(shell.output().unwrap());
            check(line, &ran.stdout);
            text += &format!("$ {line}\n");
            for Seen { line, body } in &self.seen()[before..] {
                text += &if body.is_null() { format!("> {line}\n") } else { format!("> {line} {body}\n") };
            }
            text += &ran.stdout;
            ran.stderr.lines().for_each(|line| text += &format!("! {line}\n"));
            if ran.status != 0 {
                text += &format!("[exit status {}]\n", ran.status);
            }
            text.push('\n');
        }
        text.replace(dir, "/dir")
    }

    /// Runs a command line to its end.
    pub fn run(&self, line: &str) -> Ran {
        Ran::of(self.command(line).output().unwrap())
    }
}

/// Checks the JSON document of a simple command line against its schema.
fn check(line: &str, stdout: &str) {
    let args: Vec<&str> = line.split_whitespace().collect();
    let Some(("blockctl", args)) = args.split_first().map(|(program, args)| (*program, args)) else { return };
    if let (true, Ok(document)) = (args.first() == Some(&"-j"), serde_json::from_str(stdout)) {
        schemas::check(blockctl(""), args, &document);
    }
}

/// Returns a command in a clean environment.
pub fn blockctl(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
    command.args(line.split_whitespace()).stdin(Stdio::null());
    for name in
        ["BLOCKD_ENCRYPTION_PASSPHRASE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "NO_COLOR", "COLUMNS"]
    {
        command.env_remove(name);
    }
    command.env("BLOCKD_SOCKET", "/nonexistent/blockd.sock");
    command
}

/// Result of a run.
#[derive(Debug)]
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            status: output.status.code().expect("it exited by itself"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Parses stdout as one JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

fn serve(
    stream: UnixStream,
    script: &Mutex<HashMap<String, Vec<Reply>>>,
    seen: &Mutex<Vec<Seen>>,
    arrived: &mpsc::Sender<String>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let length =
        head.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let line = head[0].strip_suffix(" HTTP/1.1").unwrap().to_owned();
    let route = line.split('?').next().unwrap_or_default().to_owned();
    seen.lock()
        .unwrap()
        .push(Seen { line: line.clone(), body: serde_json::from_slice(&body).unwrap_or_default() });
    let reply = match script.lock().unwrap().get_mut(&route) {
        Some(replies) if replies.len() > 1 => replies.pop(),
        Some(replies) => replies.last().cloned(),
        None => None,
    };
    // The test may have ended.
    let _ = arrived.send(line.clone());
    let (status, body) = match reply {
        Some(Reply::Json(status, body)) => (status, body),
        Some(Reply::Together(barrier, body)) => {
            barrier.wait();
            (200, body)
        }
        Some(Reply::Close) => return,
        Some(Reply::Hold) => loop {
            thread::park();
        },
        None if route.starts_with("GET /v1/volumes/") => {
            (404, error("volume_not_found", "there is no such volume"))
        }
        None => (404, error("no_such_address", &format!("the test has no answer to {line}"))),
    };
    let mut body = body;
    body["schemaVersion"] = json!(1);
    let body = body.to_string();
    let mut stream = stream;
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
}

pub fn ok(body: Value) -> Reply {
    Reply::Json(200, body)
}

pub fn fail(status: u16, code: &str, message: &str) -> Reply {
    Reply::Json(status, error(code, message))
}

/// Returns a list of these entries.
pub fn list(items: impl Into<Value>) -> Value {
    json!({ "items": items.into(), "next": null })
}

fn error(code: &str, message: &str) -> Value {
    json!({ "error": { "code": code, "message": message, "hint": null } })
}

pub const CLUSTER: &str = "2e4d4b67-95d7-481e-aec5-14223ac55170";
pub const TASK: &str = "3f4f0a67-e12a-4d35-81ad-985657757352";

pub fn snap(suffix: &str) -> String {
    format!("{CLUSTER}/{suffix}")
}

/// Returns the reply to a route in `replies.json`.
pub fn reply(line: &str) -> Value {
    defaults().remove(line).unwrap()
}

/// Returns the replies of `replies.json` by route.
pub fn defaults() -> HashMap<String, Value> {
    serde_json::from_str(include_str!("replies.json")).unwrap()
}

pub fn volume(id: &str, name: &str) -> Value {
    let mut volume = reply("POST /v1/volumes");
    (volume["volumeId"], volume["name"]) = (json!(id), json!(name));
    volume
}

pub fn task(state: &str, version: u64) -> Value {
    let (kind, stage) = state.split_once('-').unwrap();
    let mut task = reply(&format!("GET /v1/tasks/{TASK}"));
    task["type"] = json!(kind.to_ascii_lowercase());
    (task["state"], task["version"]) = (json!(state), json!(version));
    match stage {
        "Done" => {}
        "Failed" => {
            task["error"] = json!({ "code": "store_full", "message": "the directory /srv is full", "hint": "make room there" });
        }
        _ => (task["processedBytes"], task["completedAt"]) = (json!(105_011_200), Value::Null),
    }
    task
}

pub fn cloudsnap(suffix: &str) -> Value {
    let mut cloudsnap = reply("GET /v1/cloudsnaps")["items"][0].take();
    cloudsnap["cloudSnapshotId"] = json!(snap(suffix));
    cloudsnap
}
