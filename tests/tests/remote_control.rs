//! Remote control: certificates, roles, and group sockets.

use crate::harness::{Bed, Ctl, Daemon, certs::Authority, wait_for, wait_until};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Returns a path as text.
fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Returns a `blockctl` without a local daemon.
fn remote_ctl() -> Ctl {
    Ctl::new(Path::new("/nonexistent/blockd.sock"))
}

/// Returns the flags of a remote client with a certificate and its key.
fn client_flags(address: &str, ca: &Path, (cert, key): &(PathBuf, PathBuf)) -> Vec<String> {
    let flags = [
        ("--endpoint", address.to_owned()),
        ("--ca", text(ca)),
        ("--cert", text(cert)),
        ("--key", text(key)),
    ];
    flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
}

/// Runs `blockctl` with flags of a client. Returns the exit status and the document.
fn run_remote(flags: &[String], args: &[&str]) -> (i32, serde_json::Value) {
    let all: Vec<&str> = flags.iter().map(String::as_str).chain(args.iter().copied()).collect();
    remote_ctl().document(&all)
}

/// A daemon that serves over TCP, with the authority of its clients.
struct Remote {
    daemon: Daemon,
    authority: Authority,
    address: String,
}

impl Remote {
    fn new(bed: &Bed, roles: &str) -> Self {
        let authority = Authority::new(&bed.path("certs"));
        let (certificate, key) = authority.sign("server", &["localhost"]);
        let (certificate, key, ca) = (text(&certificate), text(&key), text(&authority.ca()));
        let daemon = bed
            .daemon("a")
            .config("[control]")
            .config("listen = \"127.0.0.1:0\"")
            .config(&format!("certificate = {certificate:?}\nkey = {key:?}\nclient_ca = {ca:?}"))
            .config(&format!("[control.roles]\n{roles}"))
            .start();
        let status = daemon.ctl().json(&["status"]);
        let port = status["control"].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        Self { daemon, authority, address: format!("localhost:{port}") }
    }

    /// Runs `blockctl` as a client with a certificate of this name, expects an exit status, and returns the
    /// error message.
    fn run_as(&self, name: &str, args: &[&str], code: i32) -> String {
        let flags = client_flags(&self.address, &self.authority.ca(), &self.authority.sign(name, &[]));
        let (got, document) = run_remote(&flags, args);
        assert_eq!(got, code, "{name}: {args:?}: {document:#}");
        document["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn certificate_name_sets_the_role() {
    let bed = Bed::new();
    let remote = Remote::new(&bed, "alice = \"admin\"\nbackup = \"operator\"\nmonitor = \"read-only\"");
    let store = bed.store("store");
    remote.run_as("alice", &["volume", "create", "db", "--size", "1MiB"], 0);
    let dir = store.dir().to_str().unwrap();
    remote.run_as("alice", &["credentials", "create", "nas", "--provider", "local", "--path", dir], 0);
    // TCP carries no file descriptors.
    let mount = bed.path("mnt");
    let message = remote.run_as("alice", &["browse", "mount", mount.to_str().unwrap()], 2);
    assert!(message.contains("on the daemon's own host") && !mount.exists(), "{message}");

    remote.run_as("monitor", &["volume", "list"], 0);
    remote.run_as("monitor", &["cloudsnap", "list"], 0);
    let message = remote.run_as("monitor", &["snapshot", "create", "db"], 1);
    assert!(message.contains("is for operators, but monitor is read-only"), "{message}");

    remote.run_as("backup", &["cloudsnap", "backup", "db", "--wait"], 0);
    remote.run_as("backup", &["snapshot", "create", "db", "--name", "one"], 0);
    for refused in [
        vec!["volume", "delete", "db"],
        vec!["snapshot", "delete", "db@one"],
        vec!["credentials", "delete", "nas"],
        vec!["volume", "update", "db", "--read-only", "on"],
        // Hooks run as the daemon's user.
        vec!["snapshot", "create", "db", "--name", "two", "--pre-command", "id >/tmp/x"],
        vec!["snapshot", "create-group", "--volumes", "db", "--name", "two", "--post-command", "id"],
    ] {
        let message = remote.run_as("backup", &refused, 1);
        assert!(message.contains("is for admins, but backup is operator"), "{refused:?}: {message}");
    }
    let message = remote.run_as("stranger", &["status"], 1);
    assert!(message.contains("stranger has no role"), "{message}");
    assert_eq!(remote.daemon.ctl().json(&["snapshot", "list", "db"])["items"].as_array().unwrap().len(), 1);
    // A caller who may not start a deletion may neither resume nor stop one.
    let list = remote.daemon.ctl().json(&["cloudsnap", "list"]);
    let snap = list["items"][0]["cloudSnapshotId"].as_str().unwrap_or_else(|| panic!("{list:#}")).to_owned();
    remote.run_as("alice", &["cloudsnap", "delete", "--snap", &snap], 0);
    // The newest task is first.
    let tasks = remote.daemon.ctl().json(&["cloudsnap", "status"]);
    let task = tasks["items"][0]["taskId"].as_str().unwrap_or_else(|| panic!("{tasks:#}"));
    for what in ["stop", "resume"] {
        let message = remote.run_as("backup", &["cloudsnap", what, "--name", task], 1);
        assert!(message.contains("is for admins, but backup is operator"), "{message}");
    }
    remote.run_as("alice", &["volume", "delete", "db"], 0);
    let _ = remote.daemon.stop();
}

#[test]
fn client_without_a_valid_certificate_is_refused() {
    let bed = Bed::new();
    let remote = Remote::new(&bed, "\"*\" = \"admin\"");
    remote.run_as("stranger", &["status"], 0);
    // Certificates of another authority, for another name, or expired are refused.
    let valid = remote.authority.sign("stranger", &[]);
    let other = Authority::new(&bed.path("other"));
    let foreign = other.sign("stranger", &[]);
    let expired = remote.authority.sign_until(2021, "late", &[]);
    let by_number = remote.address.replace("localhost", "127.0.0.1");
    let (ca, other_ca) = (remote.authority.ca(), other.ca());
    for (address, ca, certificate, flag) in [
        (&remote.address, &other_ca, &valid, "--ca"),
        (&by_number, &ca, &valid, "--endpoint"),
        (&remote.address, &ca, &foreign, "--cert and --key"),
        (&remote.address, &ca, &expired, "--cert and --key"),
    ] {
        let task = "00000000-0000-4000-8000-000000000000";
        let flags = client_flags(address, ca, certificate);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let began = Instant::now();
        let args = [&flags[..], &["cloudsnap", "status", "--name", task, "--wait"]].concat();
        let error = remote_ctl().fails(&args, 3);
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains(flag)), "{flag}: {error:#}");
        // `--wait` would retry for a minute.
        assert!(began.elapsed() < Duration::from_secs(55), "{flag}: the client retried");
    }

    // Plaintext is refused, and a silent client delays no other.
    let silent: Vec<_> = (0..300).map(|_| TcpStream::connect(&remote.address).unwrap()).collect();
    let mut clear = TcpStream::connect(&remote.address).unwrap();
    clear.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut reply = Vec::new();
    let _ = clear.read_to_end(&mut reply);
    assert!(!String::from_utf8_lossy(&reply).contains("HTTP"), "{}", String::from_utf8_lossy(&reply));
    remote.run_as("stranger", &["status"], 0);
    // A stop does not wait for silent clients.
    let _ = remote.daemon.stop();
    drop(silent);
}

/// Configuration file that a test changes.
struct Reload {
    config: PathBuf,
    text: String,
}

impl Reload {
    const DONE: &str = "configuration reloaded";

    fn of(bed: &Bed) -> Self {
        let config = bed.path("a/blockd.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        Self { config, text }
    }

    /// Returns the line of a setting.
    fn line(&self, setting: &str) -> &str {
        let is_it = |line: &&str| line.starts_with(&format!("{setting} = "));
        self.text.lines().find(is_it).unwrap()
    }

    /// Reloads the daemon with a configuration and waits for a new log message.
    fn to(&self, remote: &Remote, text: &str, message: &str) {
        let seen = || remote.daemon.log().matches(message).count();
        let before = seen();
        std::fs::write(&self.config, text).unwrap();
        remote.daemon.hang_up();
        wait_until("the log message", || seen() > before);
    }
}

fn reload_failure(remote: &Remote) -> Option<String> {
    remote.daemon.ctl().json(&["status"])["reloadFailure"]["cause"].as_str().map(str::to_owned)
}

#[test]
fn reload_replaces_roles_or_changes_nothing() {
    let bed = Bed::new();
    let readers = bed.path("readers.sock");
    let group = rustix::process::getegid().as_raw();
    let socket = |role: &str| {
        format!("[[control.sockets]]\npath = {readers:?}\ngroup = \"{group}\"\nrole = \"{role}\"\n")
    };
    let both = "alice = \"admin\"\nbackup = \"operator\"\n";
    let remote = Remote::new(&bed, &format!("{both}{}", socket("operator")));
    let reload = Reload::of(&bed);
    let text = &reload.text;
    remote.run_as("backup", &["volume", "list"], 0);
    Ctl::new(&readers).create_volume("one", "1MiB");

    // One role is removed, one reduced, and one of a group reduced.
    let less =
        text.replace("backup = \"operator\"\n", "").replace("alice = \"admin\"", "alice = \"read-only\"");
    reload.to(&remote, &less.replace("role = \"operator\"", "role = \"read-only\""), Reload::DONE);
    let message = remote.run_as("backup", &["volume", "list"], 1);
    assert!(message.contains("backup has no role"), "{message}");
    let message = remote.run_as("alice", &["volume", "delete", "one"], 1);
    assert!(message.contains("alice is read-only"), "{message}");
    assert_eq!(
        Ctl::new(&readers).fails(&["volume", "create", "two", "--size", "1MiB"], 1)["code"],
        "forbidden"
    );
    reload.to(&remote, text, Reload::DONE);
    remote.run_as("backup", &["volume", "list"], 0);

    // An invalid configuration changes no setting.
    reload.to(&remote, &format!("{less}\n[secrets]\nnonsense = 1\n"), "reload failed on configuration");
    remote.run_as("backup", &["volume", "list"], 0);
    let failure = wait_for("the failure in the status", || reload_failure(&remote));
    assert!(failure.contains("nonsense") && !failure.contains('\n'), "{failure}");
    let nowhere = bed.path("nowhere.pem");
    let line = reload.line("certificate");
    reload.to(
        &remote,
        &less.replace(line, &format!("certificate = {nowhere:?}")),
        "reload failed on configuration",
    );
    remote.run_as("backup", &["volume", "list"], 0);
    let is_last = |text: &String| text.contains("nowhere.pem");
    wait_for("the last failure in the status", || reload_failure(&remote).filter(is_last));
    let status = remote.daemon.ctl().json(&["status"]);
    let problems = status["problems"].as_array().unwrap();
    assert!(problems.len() == 1 && problems[0]["cause"].to_string().contains("nowhere.pem"), "{problems:?}");
    wait_until("two events", || {
        let events = remote.daemon.ctl().json(&["events"]);
        let failures =
            events["items"].as_array().unwrap().iter().filter(|one| one["kind"] == "reload-failed");
        failures.count() == 2
    });
    let _ = remote.daemon.stop();
}

#[test]
fn reload_replaces_the_certificate_and_names_restart_settings() {
    let bed = Bed::new();
    let remote = Remote::new(&bed, "alice = \"admin\"\n");
    let reload = Reload::of(&bed);
    // The new certificate is of another authority; the log names settings that require a restart.
    let other = Authority::new(&bed.path("other"));
    let (certificate, key) = other.sign("server", &["localhost"]);
    let renewed = reload.text.replace(reload.line("certificate"), &format!("certificate = {certificate:?}"));
    let renewed = renewed.replace(reload.line("key"), &format!("key = {key:?}"));
    reload.to(&remote, &format!("task_history = 7\nlog_level = \"debug\"\n{renewed}"), "after a restart");
    assert!(remote.daemon.log().contains("task_history"), "{}", remote.daemon.log());
    assert_eq!(reload_failure(&remote), None);
    let flags = client_flags(&remote.address, &other.ca(), &remote.authority.sign("alice", &[]));
    assert_eq!(run_remote(&flags, &["volume", "list"]).0, 0);
    assert!(remote.daemon.log().contains("a control connection"), "the log level is not debug");
    let _ = remote.daemon.stop();
}

#[test]
fn group_socket_has_the_role_of_its_group() {
    let bed = Bed::new();
    let path = bed.path("readers.sock");
    let group = rustix::process::getegid().as_raw();
    let socket = format!("[[control.sockets]]\npath = {path:?}\ngroup = \"{group}\"\nrole = \"read-only\"");
    let daemon = bed.daemon("a").config(&socket).start();
    let readers = Ctl::new(&path);
    daemon.ctl().create_volume("db", "1MiB");
    let command = ["--pre-command", "echo the-secret"];
    daemon.ctl().json(&[&["snapshot", "create", "db", "--name", "one"], &command[..]].concat());
    assert!(daemon.ctl().run(&["--json", "snapshot", "list"]).stdout.contains("the-secret"));
    for args in [&["snapshot", "list"][..], &["snapshot", "inspect", "db@one"]] {
        let run = readers.run(&[&["--json"], args].concat());
        assert!(run.code == 0 && run.stdout.contains("pre-command"), "{run:?}");
        assert!(!run.stdout.contains("the-secret"), "{run:?}");
    }
    assert_eq!(readers.json(&["volume", "list"])["items"].as_array().unwrap().len(), 1);
    let error = readers.fails(&["volume", "create", "other", "--size", "1MiB"], 1);
    assert_eq!(error["code"], "forbidden");
    assert!(error["message"].as_str().unwrap().contains(&format!("group {group} is read-only")), "{error}");
    // Readers cannot browse snapshots, and no mount is left.
    let mount = bed.path("mnt");
    let error = readers.fails(&["browse", "mount", mount.to_str().unwrap()], 1);
    assert_eq!(error["code"], "forbidden");
    assert!(std::fs::read_dir(&mount).unwrap().next().is_none());
    let _ = daemon.stop();
    assert!(!path.exists(), "the socket is left");
}
