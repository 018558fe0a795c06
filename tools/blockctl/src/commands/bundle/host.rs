//! Host part of support bundles, read without the daemon.

use super::{Part, clean::REMOVED};
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

/// Kernel, memory, NBD devices, and the filesystem of the data.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostReport {
    /// Release of the kernel.
    kernel: Option<String>,
    /// Name of the distribution.
    system: Option<String>,
    processors: Option<usize>,
    /// `/proc/loadavg`.
    load_average: Option<String>,
    /// `/proc/uptime`.
    uptime: Option<String>,
    memory: Option<Memory>,
    /// Pressure stall information of I/O.
    waits_for_disks: Option<String>,
    /// Pressure stall information of memory.
    waits_for_memory: Option<String>,
    /// The module is loaded.
    nbd_module: bool,
    /// NBD devices in use or left behind, by name.
    nbd_devices: BTreeMap<String, KernelDevice>,
    /// Data directory of the daemon.
    data_dir: Directory,
}

/// Lines of `/proc/meminfo`.
#[derive(Debug, Serialize, JsonSchema)]
struct Memory {
    total: Option<String>,
    available: Option<String>,
    dirty: Option<String>,
}

/// NBD device as the kernel describes it.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct KernelDevice {
    sectors: Option<String>,
    pid: Option<String>,
    backend: Option<String>,
    read_only: Option<String>,
    in_flight: Option<String>,
}

/// Directory with its filesystem.
#[derive(Debug, Serialize, JsonSchema)]
struct Directory {
    path: PathBuf,
    #[serde(flatten)]
    filesystem: Option<Filesystem>,
    /// Cause without a filesystem.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Filesystem of a directory.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Filesystem {
    total_bytes: u64,
    available_bytes: u64,
    available_files: u64,
    is_read_only: bool,
    /// Device, mount point, type and options.
    mount: Option<String>,
}

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

/// Describes the host.
pub fn describe(data_dir: &Path) -> HostReport {
    let root = Path::new("/");
    HostReport {
        kernel: text(&root.join("proc/sys/kernel/osrelease")),
        system: text(&root.join("etc/os-release")).and_then(|text| field(&text, "PRETTY_NAME=")),
        processors: std::thread::available_parallelism().ok().map(usize::from),
        load_average: text(&root.join("proc/loadavg")),
        uptime: text(&root.join("proc/uptime")),
        memory: text(&root.join("proc/meminfo")).map(|text| memory(&text)),
        waits_for_disks: text(&root.join("proc/pressure/io")),
        waits_for_memory: text(&root.join("proc/pressure/memory")),
        nbd_module: root.join("sys/module/nbd").exists(),
        nbd_devices: devices(&root.join("sys/block")),
        data_dir: directory(data_dir),
    }
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
pub fn journal(lines: u32) -> Option<Part<Vec<Map<String, Value>>>> {
    let read = || run_journal(lines).map_err(|error| format!("cannot read the journal: {error}"));
    (lines > 0).then(|| read().into())
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

/// Returns the unquoted value of the line that starts with a name.
fn field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim().trim_matches('"').to_owned())
}

fn memory(text: &str) -> Memory {
    let field = |name| field(text, name);
    Memory { total: field("MemTotal:"), available: field("MemAvailable:"), dirty: field("Dirty:") }
}

/// Lists NBD devices in use or left behind.
fn devices(sys_block: &Path) -> BTreeMap<String, KernelDevice> {
    let mut found = BTreeMap::new();
    for device in fs::read_dir(sys_block).into_iter().flatten().flatten() {
        let Some(name) = device.file_name().to_str().map(str::to_owned) else { continue };
        let file = |name: &str| text(&device.path().join(name));
        let (sectors, pid) = (file("size"), file("pid"));
        if name.starts_with("nbd") && (pid.is_some() || sectors.as_deref().is_some_and(|size| size != "0")) {
            let (backend, read_only, in_flight) = (file("backend"), file("ro"), file("inflight"));
            found.insert(name, KernelDevice { sectors, pid, backend, read_only, in_flight });
        }
    }
    found
}

/// Describes a directory and its filesystem.
fn directory(path: &Path) -> Directory {
    let stat = rustix::fs::statvfs(path).map(|stat| Filesystem {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        available_files: stat.f_favail,
        is_read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        mount: text(Path::new("/proc/self/mounts")).and_then(|mounts| mount_of(&mounts, path)),
    });
    let error = stat.as_ref().err().map(ToString::to_string);
    Directory { path: path.to_owned(), filesystem: stat.ok(), error }
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
        let told = devices(dir.path());
        assert_eq!(told.len(), 1);
        assert_eq!(told["nbd1"].sectors.as_deref(), Some("131072"));
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
