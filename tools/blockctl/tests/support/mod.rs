//! Fake daemon with scripted replies, and a runner of `blockctl`.

#![allow(dead_code, reason = "each test file uses its part")]

use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
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

    /// Runs a command line to its end.
    pub fn run(&self, line: &str) -> Ran {
        Ran::of(self.command(line).output().unwrap())
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
        None => (404, error("no_such_address", &format!("the test has no answer to {line}"))),
    };
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

fn error(code: &str, message: &str) -> Value {
    json!({ "error": { "code": code, "message": message, "hint": null } })
}

pub const CLUSTER: &str = "2e4d4b67-95d7-481e-aec5-14223ac55170";
pub const TASK: &str = "3f4f0a67-e12a-4d35-81ad-985657757352";
pub const CREDENTIAL: &str = "af563a4d-afd7-48df-90f7-8e8f9414ff77";

pub fn snap(suffix: &str) -> String {
    format!("{CLUSTER}/{suffix}")
}

pub fn volume(id: &str, name: &str) -> Value {
    json!({
        "id": id, "name": name, "sizeBytes": 4u64 << 30, "labels": {"app": "mysql"}, "created": "2019-01-16T21:51:53Z",
        "state": "up", "stateReason": null, "uri": format!("nbd+unix:///{name}?socket=/d/nbd.sock"), "connections": 1,
        "dirtyBytes": 40u64 << 20, "allocatedBytes": 3u64 << 29, "snapshotCount": 2, "layers": 3,
        "io": {"reads": 1, "writes": 2, "bytesRead": 4096, "bytesWritten": 8192, "flushes": 3},
        "lastBackups": [{
            "credential": CREDENTIAL, "credentialName": "nas", "cloudsnapId": snap("59-61-incr"),
            "time": "2019-01-16T22:27:13Z", "incrementalsSinceFull": 1
        }]
    })
}

pub fn task(state: &str, version: u64) -> Value {
    let kind = state.split('-').next().unwrap().to_ascii_lowercase();
    let over = state.ends_with("Done") || state.ends_with("Failed");
    json!({
        "name": TASK, "type": kind, "sourceVolume": snap("59-61-incr"), "volume": "vol", "state": state, "node": "host", "owner": {"kind": "daemon"},
        "credential": CREDENTIAL, "credentialName": "nas", "phase": "uploading", "bytesTotal": 420_044_800,
        "bytesProcessed": if over { 420_044_800 } else { 105_011_200 }, "bytesUploaded": 1 << 20, "bytesDownloaded": 0,
        "bytesDirty": 420_044_800, "requests": {"put": 8, "get": 1, "list": 0, "delete": 0, "head": 0},
        "freezeStallMicros": 42, "started": "2019-01-16T22:27:13Z",
        "completed": if over { json!("2019-01-16T22:27:30Z") } else { Value::Null }, "timeElapsed": 17.460186585,
        "backupType": "incremental", "resumed": 0, "version": version,
        "error": if state.ends_with("Failed") {
            json!({"code": "store_full", "message": "the directory /srv is full", "hint": "make room there"})
        } else {
            Value::Null
        }
    })
}

pub fn cloudsnap(suffix: &str) -> Value {
    json!({
        "ID": snap(suffix), "SrcVolumeID": "59", "SrcVolumeName": "vol", "Timestamp": "2019-01-16T21:51:53Z",
        "Metadata": {
            "cloudsnapType": "Manual", "compression": "lz4", "sizeBytes": "2152751104",
            "starttime": "Wed, 16 Jan 2019 21:51:53 UTC", "status": "Done", "updatetime": "Wed, 16 Jan 2019 21:52:10 UTC",
            "version": "V1.00", "volume": "{\"DevSpec\":{\"size\":4294967296,\"block_size\":4096,\"volume_labels\":{}}}",
            "volumename": "vol", "backupType": "full", "credential": CREDENTIAL, "credentialName": "nas",
            "encrypted": "true", "storedBytes": "1048576", "dirtyBytes": "4096", "freezeStallMicros": "42"
        },
        "Status": "Done"
    })
}

pub fn credential(name: &str, provider: &str) -> Value {
    let s3 = provider == "s3";
    let only_s3 = |value: Value| if s3 { value } else { Value::Null };
    json!({
        "uuid": CREDENTIAL, "name": name, "provider": provider, "path": if s3 { Value::Null } else { json!("/srv/backup") },
        "endpoint": only_s3(json!("70.0.99.121:9010")), "region": only_s3(json!("us-east-1")),
        "bucket": only_s3(json!("bkt")), "accessKey": only_s3(json!("AB6R80F3SY0VW9NS6HYQ")),
        "sslEnabled": only_s3(json!(false)), "pathStyle": only_s3(json!(true)), "encryption": s3, "conditionalPut": true,
        "created": "2019-01-16T21:51:53Z", "writeThroughputKbps": if s3 { json!(1979) } else { Value::Null }
    })
}
