//! Host part of support bundles, read without the daemon.

use super::clean::REMOVED;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// Maximum bytes read of a file.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Maximum bytes read of the journal.
const MAX_JOURNAL_BYTES: u64 = 16 << 20;
/// Timeout for the journal.
const JOURNAL_TIMEOUT: Duration = Duration::from_secs(15);
/// Journal fields about a command of a rule; they can contain secrets.
const COMMAND_FIELDS: [&str; 3] = ["BLOCKD_COMMAND", "BLOCKD_OUTPUT", "BLOCKD_ERROR"];

/// Files about kernel, memory, disks and mounts. The parameter exists while the module is loaded.
const FILES: [&str; 10] = [
    "/etc/os-release",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/pressure/io",
    "/proc/pressure/memory",
    "/proc/self/mounts",
    "/proc/sys/kernel/osrelease",
    "/proc/uptime",
    "/sys/devices/system/cpu/online",
    "/sys/module/nbd/parameters/nbds_max",
];
/// Files of an NBD device below `/sys/block`.
const DEVICE_FILES: [&str; 5] = ["backend", "inflight", "pid", "ro", "size"];

/// Configuration of the daemon.
#[derive(Debug, Serialize, JsonSchema)]
pub struct BundledConfig {
    path: PathBuf,
    /// Settings by name, without paths of URLs.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Value>,
    /// Cause without content.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Reads the files that describe the host, by path, and describes the filesystem of the data directory.
pub fn describe(data_dir: &Path) -> BTreeMap<String, String> {
    let devices = devices(Path::new("/sys/block"));
    let device_files = devices.iter().flat_map(|device| DEVICE_FILES.map(|name| device.join(name)));
    let files = FILES.map(PathBuf::from).into_iter().chain(device_files);
    let mut found: BTreeMap<String, String> =
        files.filter_map(|path| Some((path.display().to_string(), text(&path)?))).collect();
    found.insert("dataDir".to_owned(), filesystem(data_dir));
    found
}

/// Returns the daemon's configuration with URL paths removed: webhook paths are often secret.
pub fn config(path: &Path) -> BundledConfig {
    // A FIFO without a writer would block.
    let is_file = fs::metadata(path).map(|meta| meta.is_file());
    let read = match is_file {
        Ok(true) => read_bounded(path),
        Ok(false) => Err(io::Error::other("it is not a regular file")),
        Err(error) => Err(error),
    };
    let read = read.map_err(|error| error.to_string());
    let parsed = read.and_then(|text| {
        // The error omits the line, which may contain a secret.
        let table = text.parse::<toml::Table>().map_err(|error| error.message().to_owned())?;
        let mut content = serde_json::to_value(table).map_err(|error| error.to_string())?;
        without_paths(&mut content);
        Ok(content)
    });
    BundledConfig { path: path.to_owned(), error: parsed.as_ref().err().cloned(), content: parsed.ok() }
}

/// Returns the newest lines of the daemon's log from the journal.
pub fn journal(lines: u32) -> Option<Result<Vec<Map<String, Value>>, String>> {
    let read = || run_journal(lines).map_err(|error| format!("cannot read the journal: {error}"));
    (lines > 0).then(read)
}

fn run_journal(lines: u32) -> io::Result<Vec<Map<String, Value>>> {
    let mut command = Command::new("journalctl");
    command.args(["--unit", "blockd.service", "--no-pager", "--quiet", "--output", "json", "--lines"]);
    command.arg(lines.to_string()).stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let Some(stdout) = child.stdout.take() else { return Ok(vec![]) };
    let (send, read) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(stdout.take(MAX_JOURNAL_BYTES)).lines();
        let entries = lines.map_while(Result::ok).filter_map(|line| entry(&line));
        // The receiver is gone after a timeout.
        let _ = send.send(entries.collect());
    });
    let entries = read.recv_timeout(JOURNAL_TIMEOUT);
    if entries.is_err() {
        let _ = child.kill();
    }
    let status = child.wait()?;
    let entries: Vec<Map<String, Value>> =
        entries.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "journalctl does not come to an end"))?;
    match entries.is_empty() && !status.success() {
        true => Err(io::Error::other(format!("journalctl ended with {status}"))),
        false => Ok(entries),
    }
}

/// Returns a journal entry with the fields of blockd and systemd only, without output of commands.
fn entry(line: &str) -> Option<Map<String, Value>> {
    let Value::Object(fields) = serde_json::from_str(line).ok()? else { return None };
    let mut kept = Map::new();
    let is_of_command = fields.contains_key(COMMAND_FIELDS[0]);
    for (name, value) in fields {
        match name.as_str() {
            "__REALTIME_TIMESTAMP" => kept.insert("atMicros".into(), value),
            name if is_of_command && COMMAND_FIELDS.contains(&name) => {
                kept.insert(name.into(), REMOVED.into())
            }
            name if name.starts_with('_') || name.starts_with("SYSLOG_") || name.starts_with("CODE_") => None,
            name => kept.insert(name.into(), value),
        };
    }
    // A text or JSON log has all fields in the message.
    if let Some(Value::String(message)) = kept.get_mut("MESSAGE")
        && let Some((told, _)) = message.split_once("command run ")
    {
        *message = format!("{told}command run {REMOVED}");
    }
    Some(kept)
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn text(path: &Path) -> Option<String> {
    read_bounded(path).ok().map(|text| text.trim_end().to_owned())
}

/// Lists the directories of NBD devices in use or left behind.
fn devices(sys_block: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir(sys_block).into_iter().flatten().flatten().map(|device| device.path());
    let is_used = |device: &PathBuf| {
        let has_size = text(&device.join("size")).is_some_and(|size| size != "0");
        let is_nbd = device.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"nbd"));
        is_nbd && (has_size || device.join("pid").exists())
    };
    devices.filter(is_used).collect()
}

/// Describes a directory and its filesystem.
fn filesystem(path: &Path) -> String {
    let state = rustix::fs::statvfs(path).map_or_else(
        |error| error.to_string(),
        |stat| {
            let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
            let (total, free, files) = (bytes(stat.f_blocks), bytes(stat.f_bavail), stat.f_favail);
            format!("{free} of {total} bytes and {files} files are available")
        },
    );
    format!("{}: {state}", path.display())
}

/// Removes path and query from URLs.
fn without_paths(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(without_paths),
        Value::Array(values) => values.iter_mut().for_each(without_paths),
        Value::String(text) => {
            if let Some((scheme, rest)) = text.trim().split_once("://") {
                let host = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
                let host = host.rsplit('@').next().unwrap_or_default();
                *text = format!("{scheme}://{host}/{REMOVED}");
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configuration_in_bundle_has_no_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blockd.toml");
        fs::write(
            &path,
            "full_every = 3\n[[webhook]]\nurl = \"https://me:planted@hooks.example/services/planted\"\n",
        )
        .unwrap();
        let config = |path: &Path| json!(config(path));
        let told = config(&path);
        assert_eq!(told["content"]["full_every"], 3);
        assert_eq!(told["content"]["webhook"][0]["url"], "https://hooks.example/(removed)");
        fs::write(&path, "[[webhook]]\nurl = \" HTTPS://hooks.example/planted?planted\"\n").unwrap();
        let told = config(&path);
        assert_eq!(told["content"]["webhook"][0]["url"], "HTTPS://hooks.example/(removed)");
        fs::write(&path, "full_every = planted planted\n").unwrap();
        let told = config(&path);
        assert!(told["error"].is_string() && !told.to_string().contains("planted"), "{told}");
        assert!(config(&dir.path().join("none"))["error"].is_string());
    }

    #[test]
    fn journal_entries_are_reduced_to_their_message() {
        let line = r#"{"__REALTIME_TIMESTAMP":"17","_PID":"3","SYSLOG_IDENTIFIER":"blockd","PRIORITY":"6","MESSAGE":"command run","BLOCKD_COMMAND":"planted","BLOCKD_ERROR":"planted","VOLUME_ID":"7"}"#;
        let kept = entry(line).unwrap();
        let wanted = json!({ "atMicros": "17", "PRIORITY": "6", "MESSAGE": "command run", "BLOCKD_COMMAND": REMOVED, "BLOCKD_ERROR": REMOVED, "VOLUME_ID": "7" });
        assert_eq!(json!(kept), wanted);
        let line = r#"{"MESSAGE":"not sent","BLOCKD_ERROR":"timed out"}"#;
        assert_eq!(json!(entry(line)), json!({ "MESSAGE": "not sent", "BLOCKD_ERROR": "timed out" }));
        let line = r#"{"MESSAGE":"INFO blockd::quiesce::command: command run kind=pre-command command=\"planted\" error=Some(\"planted\")"}"#;
        assert_eq!(entry(line).unwrap()["MESSAGE"], "INFO blockd::quiesce::command: command run (removed)");
        assert_eq!(entry("no entry"), None);
    }

    #[test]
    fn devices_in_use_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        for (name, size) in [("nbd0", "0"), ("nbd1", "131072"), ("sda", "9")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("size"), format!("{size}\n")).unwrap();
        }
        assert_eq!(devices(dir.path()), [dir.path().join("nbd1")]);
    }
}
