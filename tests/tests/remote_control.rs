//! Tests of remote control: certificates, roles, and group sockets.

use crate::harness::{Bed, Ctl, certs::Authority, wait_for};
use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

/// A daemon that is served over TCP, and what its clients need.
struct Far {
    daemon: crate::harness::Daemon,
    authority: Authority,
    address: String,
}

impl Far {
    fn new(bed: &Bed, roles: &str) -> Self {
        let authority = Authority::new(&bed.path("certs"));
        let (certificate, key) = authority.sign("server", &["localhost"]);
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let (certificate, key, ca) = (path(&certificate), path(&key), path(&authority.ca()));
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

    /// Returns the flags of a client with a certificate of this name.
    fn flags(&self, name: &str) -> Vec<String> {
        let (cert, key) = self.authority.sign(name, &[]);
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let flags = [
            ("--endpoint", self.address.clone()),
            ("--ca", path(&self.authority.ca())),
            ("--cert", path(&cert)),
        ];
        let flags = flags.into_iter().chain([("--key", path(&key))]);
        flags.flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// Runs `blockctl` as a client, expects an exit status, and returns the error.
    fn as_whom(&self, name: &str, args: &[&str], code: i32) -> String {
        let flags = self.flags(name);
        let all: Vec<&str> = flags.iter().map(String::as_str).chain(args.iter().copied()).collect();
        // The socket of the variable has no server: the address answers.
        let ctl = Ctl::new(Path::new("/nonexistent/blockd.sock"));
        let (got, document) = ctl.document(&all);
        assert_eq!(got, code, "{name}: {args:?}: {document:#}");
        document["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

#[test]
fn certificate_name_sets_the_role() {
    let bed = Bed::new();
    let far = Far::new(&bed, "alice = \"admin\"\nbackup = \"operator\"\nmonitor = \"read-only\"");
    let store = bed.store("store");
    far.as_whom("alice", &["volume", "create", "db", "--size", "1MiB"], 0);
    let place = store.dir().to_str().unwrap();
    far.as_whom("alice", &["credentials", "create", "nas", "--provider", "local", "--path", place], 0);
    // No descriptor goes through TCP.
    let mount = bed.path("mnt");
    let said = far.as_whom("alice", &["browse", "mount", mount.to_str().unwrap()], 2);
    assert!(said.contains("on the daemon's own host") && !mount.exists(), "{said}");

    far.as_whom("monitor", &["volume", "list"], 0);
    far.as_whom("monitor", &["cloudsnap", "list"], 0);
    let said = far.as_whom("monitor", &["snapshot", "create", "db"], 1);
    assert!(said.contains("is for operators, but monitor is read-only"), "{said}");

    far.as_whom("backup", &["cloudsnap", "backup", "db", "--wait"], 0);
    far.as_whom("backup", &["snapshot", "create", "db", "--name", "one"], 0);
    for refused in [
        vec!["volume", "delete", "db"],
        vec!["snapshot", "delete", "db@one"],
        vec!["credentials", "delete", "nas"],
        vec!["volume", "update", "db", "--read-only", "on"],
        // It would run as the daemon's user.
        vec!["snapshot", "create", "db", "--name", "two", "--pre-command", "id >/tmp/x"],
        vec!["snapshot", "create-group", "--volumes", "db", "--name", "two", "--post-command", "id"],
    ] {
        let said = far.as_whom("backup", &refused, 1);
        assert!(said.contains("is for admins, but backup is operator"), "{refused:?}: {said}");
    }
    let said = far.as_whom("stranger", &["status"], 1);
    assert!(said.contains("stranger has no role"), "{said}");
    assert_eq!(far.daemon.ctl().json(&["snapshot", "list", "db"]).as_array().unwrap().len(), 1);
    // A caller who may not start a deletion may neither resume nor stop one.
    let list = far.daemon.ctl().json(&["cloudsnap", "list"]);
    let snap = list[0]["ID"].as_str().unwrap_or_else(|| panic!("{list:#}")).to_owned();
    far.as_whom("alice", &["cloudsnap", "delete", "--snap", &snap], 0);
    // The newest one is the first.
    let tasks = far.daemon.ctl().json(&["cloudsnap", "status"]);
    let task = tasks[0]["name"].as_str().unwrap_or_else(|| panic!("{tasks:#}"));
    for what in ["stop", "resume"] {
        let said = far.as_whom("backup", &["cloudsnap", what, "--name", task], 1);
        assert!(said.contains("is for admins, but backup is operator"), "{said}");
    }
    far.as_whom("alice", &["volume", "delete", "db"], 0);
    let _ = far.daemon.stop();
}

#[test]
fn client_without_a_valid_certificate_is_refused() {
    let bed = Bed::new();
    let far = Far::new(&bed, "\"*\" = \"admin\"");
    far.as_whom("stranger", &["status"], 0);
    // Nor does a client talk to a daemon that its authority does not vouch for, or that has another name.
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert, key) = far.authority.sign("stranger", &[]);
    let other = Authority::new(&bed.path("other"));
    let (foreign_cert, foreign_key) = other.sign("stranger", &[]);
    let (late_cert, late_key) = far.authority.sign_until(2021, "late", &[]);
    let by_number = far.address.replace("localhost", "127.0.0.1");
    let (ca, other_ca) = (far.authority.ca(), other.ca());
    let ctl = Ctl::new(Path::new("/nonexistent/blockd.sock"));
    for (address, ca, cert, key, flag) in [
        (&far.address, &other_ca, &cert, &key, "--ca"),
        (&by_number, &ca, &cert, &key, "--endpoint"),
        (&far.address, &ca, &foreign_cert, &foreign_key, "--cert and --key"),
        (&far.address, &ca, &late_cert, &late_key, "--cert and --key"),
    ] {
        let (ca, cert, key) = (path(ca), path(cert), path(key));
        let task = "00000000-0000-4000-8000-000000000000";
        let flags = ["--endpoint", address.as_str(), "--ca", &ca, "--cert", &cert, "--key", &key];
        let began = Instant::now();
        let error = ctl.fails(&[&flags[..], &["cloudsnap", "status", "--name", task, "--wait"]].concat(), 3);
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains(flag)), "{flag}: {error:#}");
        // Who waits does so for a minute.
        assert!(began.elapsed() < Duration::from_secs(55), "{flag}: it was waited for");
    }

    // Plaintext is refused, and a silent client delays no other.
    let silent: Vec<_> = (0..300).map(|_| TcpStream::connect(&far.address).unwrap()).collect();
    let mut clear = TcpStream::connect(&far.address).unwrap();
    clear.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{}", String::from_utf8_lossy(&answer));
    far.as_whom("stranger", &["status"], 0);
    // A stop does not wait for it either.
    let _ = far.daemon.stop();
    drop(silent);
}

/// Configuration that a test changes.
struct Reload {
    config: std::path::PathBuf,
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

    /// Reloads a configuration until the log has another message of this text.
    fn to(&self, far: &Far, text: &str, message: &str) {
        let seen = || far.daemon.log().matches(message).count();
        let before = seen();
        std::fs::write(&self.config, text).unwrap();
        far.daemon.hang_up();
        wait_for("the log message", || (seen() > before).then_some(()));
    }
}

fn reload_failure(far: &Far) -> Option<String> {
    far.daemon.ctl().json(&["status"])["reloadFailed"]["error"].as_str().map(str::to_owned)
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
    let far = Far::new(&bed, &format!("{both}{}", socket("operator")));
    let reload = Reload::of(&bed);
    let text = &reload.text;
    far.as_whom("backup", &["volume", "list"], 0);
    Ctl::new(&readers).create_volume("one", "1MiB");

    // A role that is taken away, one that is less, and one of a group.
    let less =
        text.replace("backup = \"operator\"\n", "").replace("alice = \"admin\"", "alice = \"read-only\"");
    reload.to(&far, &less.replace("role = \"operator\"", "role = \"read-only\""), Reload::DONE);
    let said = far.as_whom("backup", &["volume", "list"], 1);
    assert!(said.contains("backup has no role"), "{said}");
    let said = far.as_whom("alice", &["volume", "delete", "one"], 1);
    assert!(said.contains("alice is read-only"), "{said}");
    assert_eq!(
        Ctl::new(&readers).fails(&["volume", "create", "two", "--size", "1MiB"], 1)["code"],
        "forbidden"
    );
    reload.to(&far, text, Reload::DONE);
    far.as_whom("backup", &["volume", "list"], 0);

    // An invalid configuration changes no setting.
    reload.to(&far, &format!("{less}\n[secrets]\nnonsense = 1\n"), "reload failed on configuration");
    far.as_whom("backup", &["volume", "list"], 0);
    let told = wait_for("the problem in the status", || reload_failure(&far));
    assert!(told.contains("nonsense") && !told.contains('\n'), "{told}");
    let nowhere = bed.path("nowhere.pem");
    let line = reload.line("certificate");
    reload.to(
        &far,
        &less.replace(line, &format!("certificate = {nowhere:?}")),
        "reload failed on configuration",
    );
    far.as_whom("backup", &["volume", "list"], 0);
    let is_told = |text: &String| text.contains("nowhere.pem");
    wait_for("the status to say what failed last", || reload_failure(&far).filter(is_told));
    let status = far.daemon.ctl().json(&["status"]);
    let troubles = status["troubles"].as_array().unwrap();
    assert!(troubles.len() == 1 && troubles[0]["what"].to_string().contains("nowhere.pem"), "{troubles:?}");
    wait_for("events that tell of both", || {
        let events = far.daemon.ctl().json(&["events"]);
        let told = events["events"].as_array().unwrap().iter().filter(|one| one["kind"] == "reload-failed");
        (told.count() == 2).then_some(())
    });
    let _ = far.daemon.stop();
}

#[test]
fn reload_replaces_the_certificate_and_names_what_waits() {
    let bed = Bed::new();
    let far = Far::new(&bed, "alice = \"admin\"\n");
    let reload = Reload::of(&bed);
    // Another certificate in another file, of an authority that clients do not know yet; and what takes a
    // restart is named.
    let other = Authority::new(&bed.path("other"));
    let (certificate, key) = other.sign("server", &["localhost"]);
    let renewed = reload.text.replace(reload.line("certificate"), &format!("certificate = {certificate:?}"));
    let renewed = renewed.replace(reload.line("key"), &format!("key = {key:?}"));
    reload.to(&far, &format!("task_history = 7\nlog_level = \"debug\"\n{renewed}"), "after a restart");
    assert!(far.daemon.log().contains("task_history"), "{}", far.daemon.log());
    assert_eq!(reload_failure(&far), None);
    let (cert, key) = far.authority.sign("alice", &[]);
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let flags = [path(&other.ca()), path(&cert), path(&key)];
    let ctl = Ctl::new(Path::new("/nonexistent/blockd.sock"));
    let flags = ["--endpoint", &far.address, "--ca", &flags[0], "--cert", &flags[1], "--key", &flags[2]];
    assert_eq!(ctl.document(&[&flags[..], &["volume", "list"]].concat()).0, 0);
    assert!(far.daemon.log().contains("a control connection"), "the level of the log is not debug");
    let _ = far.daemon.stop();
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
    for asked in [&["snapshot", "list"][..], &["snapshot", "inspect", "db@one"]] {
        let seen = readers.run(&[&["--json"], asked].concat());
        assert!(seen.code == 0 && seen.stdout.contains("pre-command"), "{seen:?}");
        assert!(!seen.stdout.contains("the-secret"), "{seen:?}");
    }
    assert_eq!(readers.json(&["volume", "list"]).as_array().unwrap().len(), 1);
    let error = readers.fails(&["volume", "create", "other", "--size", "1MiB"], 1);
    assert_eq!(error["code"], "forbidden");
    assert!(error["message"].as_str().unwrap().contains(&format!("group {group} is read-only")), "{error}");
    // Nor do they see what is in snapshots, and no mount is left behind.
    let mount = bed.path("mnt");
    let error = readers.fails(&["browse", "mount", mount.to_str().unwrap()], 1);
    assert_eq!(error["code"], "forbidden");
    assert!(std::fs::read_dir(&mount).unwrap().next().is_none());
    let _ = daemon.stop();
    assert!(!path.exists(), "the socket is left");
}
