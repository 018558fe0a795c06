//! Host part of support bundles, read without the daemon.

use super::clean::REMOVED;
use serde_json::{Map, Value, json};
use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    path::Path,
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

/// Describes kernel, memory, NBD devices, and the filesystem of the data.
pub fn describe(data_dir: &Path) -> Value {
    let root = Path::new("/");
    json!({
        "kernel": text(&root.join("proc/sys/kernel/osrelease")),
        "system": text(&root.join("etc/os-release")).and_then(|text| field(&text, "PRETTY_NAME=")),
        "processors": std::thread::available_parallelism().ok().map(usize::from),
        "loadAverage": text(&root.join("proc/loadavg")),
        "uptime": text(&root.join("proc/uptime")),
        "memory": text(&root.join("proc/meminfo")).map(|text| memory(&text)),
        "waitsForDisks": text(&root.join("proc/pressure/io")),
        "waitsForMemory": text(&root.join("proc/pressure/memory")),
        "nbdModule": root.join("sys/module/nbd").exists(),
        "nbdDevices": devices(&root.join("sys/block")),
        "dataDir": directory(data_dir),
    })
}

/// Returns the daemon's configuration with URL paths removed: webhook paths are often secret.
pub fn config(path: &Path) -> Value {
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
        serde_json::to_value(table).map_err(|error| error.to_string())
    });
    let mut shown = match parsed {
        Ok(value) => json!({ "path": path, "content": value }),
        Err(error) => json!({ "path": path, "error": error }),
    };
    without_paths(&mut shown["content"]);
    shown
}

/// Returns the newest lines of the daemon's log from the journal.
pub fn journal(lines: u32) -> Value {
    if lines == 0 {
        return Value::Null;
    }
    match run_journal(lines) {
        Ok(entries) => Value::Array(entries),
        Err(error) => json!({ "error": format!("cannot read the journal: {error}") }),
    }
}

fn run_journal(lines: u32) -> io::Result<Vec<Value>> {
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
    let entries: Vec<Value> =
        entries.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "journalctl does not come to an end"))?;
    match entries.is_empty() && !status.success() {
        true => Err(io::Error::other(format!("journalctl ended with {status}"))),
        false => Ok(entries),
    }
}

/// Returns a journal entry with the fields of blockd and systemd only, without output of commands.
fn entry(line: &str) -> Option<Value> {
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
    Some(Value::Object(kept))
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn text(path: &Path) -> Option<String> {
    read_bounded(path).ok().map(|text| text.trim_end().to_owned())
}

/// Returns the unquoted value of the line that starts with a name.
fn field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().trim_matches('"').to_owned())
}

fn memory(text: &str) -> Value {
    let field = |name| field(text, name);
    json!({ "total": field("MemTotal:"), "available": field("MemAvailable:"), "dirty": field("Dirty:") })
}

/// Lists NBD devices in use or left behind.
fn devices(sys_block: &Path) -> Value {
    let mut found = Map::new();
    for device in fs::read_dir(sys_block).into_iter().flatten().flatten() {
        let Some(name) = device.file_name().to_str().map(str::to_owned) else { continue };
        let file = |name: &str| text(&device.path().join(name));
        let (size, pid) = (file("size"), file("pid"));
        if name.starts_with("nbd") && (pid.is_some() || size.as_deref().is_some_and(|size| size != "0")) {
            let told = json!({ "sectors": size, "pid": pid, "backend": file("backend"), "readOnly": file("ro"), "inFlight": file("inflight") });
            found.insert(name, told);
        }
    }
    Value::Object(found)
}

/// Describes a directory and its filesystem.
fn directory(path: &Path) -> Value {
    match rustix::fs::statvfs(path) {
        Ok(stat) => json!({
            "path": path,
            "totalBytes": stat.f_blocks.saturating_mul(stat.f_frsize),
            "availableBytes": stat.f_bavail.saturating_mul(stat.f_frsize),
            "availableFiles": stat.f_favail,
            "isReadOnly": stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
            "mount": text(Path::new("/proc/self/mounts")).and_then(|mounts| mount_of(&mounts, path)),
        }),
        Err(error) => json!({ "path": path, "error": error.to_string() }),
    }
}

/// Returns the mount of a path: the last one with the longest matching mount point.
fn mount_of(mounts: &str, path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    let mut found: Option<(usize, String)> = None;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(place), Some(kind), Some(options)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        if path.starts_with(place) && found.as_ref().is_none_or(|(len, _)| *len <= place.len()) {
            found = Some((place.len(), format!("{device} {place} {kind} {options}")));
        }
    }
    found.map(|(_, line)| line)
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

    #[test]
    fn configuration_in_bundle_has_no_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blockd.toml");
        fs::write(
            &path,
            "full_every = 3\n[[webhook]]\nurl = \"https://me:planted@hooks.example/services/planted\"\n",
        )
        .unwrap();
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
        assert_eq!(kept, wanted);
        let line = r#"{"MESSAGE":"not sent","BLOCKD_ERROR":"timed out"}"#;
        assert_eq!(entry(line).unwrap(), json!({ "MESSAGE": "not sent", "BLOCKD_ERROR": "timed out" }));
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
        let told = devices(dir.path());
        assert_eq!(told.as_object().unwrap().len(), 1);
        assert_eq!(told["nbd1"]["sectors"], "131072");
    }

    #[test]
    fn mount_of_path_is_the_last_one() {
        let dir = fs::canonicalize(std::env::temp_dir()).unwrap();
        let mounts = format!(
            "/dev/a / ext4 rw\n/dev/b {0} xfs rw\n/dev/c {0} tmpfs rw\n/dev/d {0}x ext4 rw\n",
            dir.display()
        );
        assert_eq!(mount_of(&mounts, &dir), Some(format!("/dev/c {} tmpfs rw", dir.display())));
    }
}
