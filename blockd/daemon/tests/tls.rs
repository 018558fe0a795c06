//! NBD over TCP with TLS, access lists and renewed certificates, tested with the program and libnbd's tools.
use crate::certs::Authority;
use blockd_api::{Client, operations::*, volumes::CreateVolume};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn blockd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockd"));
    command.env_remove("BLOCKD_LOG").env_remove("NOTIFY_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
    command
}

/// Daemon that is killed when the test ends.
struct Running {
    child: Child,
    data: PathBuf,
    log: PathBuf,
    port: u16,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    async fn start(dir: &Path, config: &str) -> Self {
        // No other process here takes loopback ports between the probe and the start.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = dir.join("blockd.toml");
        std::fs::write(&path, format!("nbd_listen = [\"tcp://127.0.0.1:{port}\"]\n{config}")).unwrap();
        let notify = UnixDatagram::bind(dir.join("notify")).unwrap();
        notify.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let (data, log) = (dir.join("data"), dir.join("log"));
        let mut child = blockd()
            .args(["--data-dir".as_ref(), data.as_os_str(), "--config".as_ref(), path.as_os_str()])
            .env("NOTIFY_SOCKET", dir.join("notify"))
            .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
            .spawn()
            .unwrap();
        while notify.recv(&mut [0; 64]).is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("{status}: {}", std::fs::read_to_string(&log).unwrap());
            }
        }
        let client = Client::new(data.join("blockd.sock"));
        for name in ["one", "two"] {
            let request = CreateVolume {
                name: name.parse().unwrap(),
                size_bytes: 8 << 20,
                labels: Default::default(),
                group: None,
            };
            client.call(CREATE_VOLUME, &request).await.unwrap();
        }
        Self { child, data, log, port }
    }

    fn uri(&self, volume: &str, dir: &Path) -> String {
        format!("nbds://localhost:{}/{volume}?tls-certificates={}", self.port, dir.display())
    }

    fn wait_for_log(&self, wanted: &str) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !std::fs::read_to_string(&self.log).unwrap().contains(wanted) {
            assert!(Instant::now() < deadline, "{wanted} is never logged");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn nbdinfo(args: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } =
        Command::new("nbdinfo").args(args).output().expect("nbdinfo is among the tests' packages");
    (status.success(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

#[tokio::test]
async fn volume_access_follows_client_certificates() {
    let authority = Authority::new();
    let (certificate, key) = authority.server();
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "nbd_tls_certificate = {certificate:?}\nnbd_tls_key = {key:?}\nnbd_tls_client_ca = {:?}\n\
         nbd_connections_per_volume = 2\n[nbd_access]\none = [\"ali*\"]\n",
        authority.ca()
    );
    let daemon = Running::start(dir.path(), &config).await;
    let (alice, bob) = (authority.client_dir("alice", false), authority.client_dir("bob", false));
    let (good, text) = nbdinfo(&["--size", &daemon.uri("one", &alice)]);
    assert!(good && text.trim() == "8388608", "{text}");
    let (good, text) = nbdinfo(&["--size", &daemon.uri("one", &bob)]);
    assert!(!good && text.contains("policy"), "{text}");
    daemon.wait_for_log("NBD access denied");
    assert!(nbdinfo(&["--size", &daemon.uri("two", &bob)]).0, "a volume without a list is open");
    let (_, list) = nbdinfo(&["--list", &daemon.uri("", &bob)]);
    assert!(list.contains("export=\"two\"") && !list.contains("export=\"one\""), "{list}");
    let local = format!("nbd+unix:///one?socket={}", daemon.data.join("nbd.sock").display());
    assert!(nbdinfo(&["--size", &local]).0, "local clients may use all volumes");
    let (good, _) = nbdinfo(&["--size", &format!("nbd://localhost:{}/two", daemon.port)]);
    assert!(!good, "TLS is required once there is a certificate");

    // Another CA replaces the first one without a restart.
    let next = Authority::new();
    let (new_certificate, new_key) = next.server();
    std::fs::copy(new_certificate, certificate).unwrap();
    std::fs::copy(new_key, key).unwrap();
    std::fs::copy(next.ca(), authority.ca()).unwrap();
    kill_process(Pid::from_child(&daemon.child), Signal::HUP).unwrap();
    daemon.wait_for_log("TLS certificates reloaded");
    assert!(!nbdinfo(&["--size", &daemon.uri("one", &alice)]).0, "the old CA is no longer trusted");
    let (good, text) = nbdinfo(&["--size", &daemon.uri("one", &next.client_dir("alice", false))]);
    assert!(good, "{text}");
    std::fs::write(authority.ca(), "nonsense").unwrap();
    kill_process(Pid::from_child(&daemon.child), Signal::HUP).unwrap();
    daemon.wait_for_log("no setting was changed");
    assert!(nbdinfo(&["--size", &daemon.uri("one", &next.client_dir("alice", false))]).0);
}

#[test]
fn unsafe_or_broken_tls_configuration_is_refused() {
    let authority = Authority::new();
    let (certificate, key) = authority.server();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let refused = |args: &[&str], config: &str, status: i32| {
        let path = dir.path().join("blockd.toml");
        std::fs::write(&path, config).unwrap();
        let args =
            [&["--data-dir", data.to_str().unwrap(), "--config", path.to_str().unwrap()], args].concat();
        let output = blockd().args(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{text}");
        text
    };
    let text = refused(&["--nbd-listen", "tcp://0.0.0.0:0"], "", 2);
    assert!(text.contains("nbd_allow_plaintext") && text.trim_end().lines().count() == 1, "{text}");
    let config = format!("nbd_tls_certificate = {certificate:?}\nnbd_tls_key = {key:?}\n");
    std::fs::write(&key, "nonsense").unwrap();
    // Also by the checks.
    let text = refused(&["--nbd-listen", "tcp://0.0.0.0:0", "--check-config"], &config, 2);
    assert!(
        text.starts_with("blockd: TLS of NBD: load failed on private key") && text.lines().count() == 1,
        "{text}"
    );
    let text = refused(&["--nbd-listen", "tcp://0.0.0.0:0", "--check-start"], &config, 1);
    assert!(text.starts_with("blockd: TLS of NBD: load failed on private key"), "{text}");
    let control = format!(
        "[control]\nlisten = \"127.0.0.1:0\"\ncertificate = {certificate:?}\nkey = {key:?}\nclient_ca = {:?}\n[control.roles]\na = \"admin\"\n",
        dir.path().join("missing.pem")
    );
    let text = refused(&["--check-config"], &control, 2);
    assert!(text.contains("TLS of the control API: ") && text.contains("missing.pem"), "{text}");
    let text = refused(&["--nbd-listen", "tcp://0.0.0.0:0"], &config, 1);
    let last = text.trim_end().lines().last().unwrap();
    assert!(last.starts_with("blockd: cannot serve NBD: load failed on private key"), "{text}");
}
