//! OpenBao in its development mode, on a free port of loopback: it speaks as Vault does, and keeps everything in memory.
//!
//! `tools/test-stores vault` installs it. `BLOCKD_TEST_WITHOUT_VAULT=1` switches its tests off.

use crate::{
    ports,
    process::{die_with_parent, repository},
    wait_for,
};
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The token that may do everything.
const ROOT: &str = "planted-root-token";
/// What the tokens of the daemon may do.
const POLICY: &str = "blockd";

/// A running OpenBao; it dies with this value.
pub struct Vault {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
}

impl Drop for Vault {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Vault {
    /// Starts one whose key-value store, version 2, is mounted at `secret`, and whose policy `blockd` may read what is below
    /// `secret/blockd`.
    ///
    /// # Panics
    /// If it is not installed, or does not come up.
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("a directory for OpenBao");
        // OpenBao takes the one above for itself.
        let address = ports::local(ports::free(1));
        let vault = Self { child: Self::serve(dir, address), address, dir: dir.to_owned() };
        vault.set_up();
        vault
    }

    fn serve(dir: &Path, address: SocketAddr) -> Child {
        let program = repository().join("target/venv/bin/bao");
        assert!(
            program.exists(),
            "{} is missing: run tools/test-stores vault, or set BLOCKD_TEST_WITHOUT_VAULT=1",
            program.display()
        );
        let log = File::create(dir.join("log")).expect("the log of OpenBao");
        // The script runs the program in its own place, so that what is killed is the server.
        let mut command = Command::new(program);
        command.args(["server", "-dev", "-dev-no-store-token"]).arg(format!("-dev-listen-address={address}"));
        command.env("BAO_DEV_ROOT_TOKEN_ID", ROOT).env("HOME", dir).current_dir(dir);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
        die_with_parent(&mut command).spawn().expect("OpenBao")
    }

    fn set_up(&self) {
        wait_for("OpenBao to serve", || {
            self.ask("GET", "sys/health", &Value::Null).filter(|(status, _)| *status == 200)
        });
        let rules = r#"path "secret/data/blockd/*" { capabilities = ["read"] }"#;
        self.done("PUT", &format!("sys/policies/acl/{POLICY}"), &json!({ "policy": rules }));
    }

    /// Kills it; all that it knew is gone.
    ///
    /// # Panics
    /// If it cannot be waited for.
    pub fn kill(&mut self) {
        // It fails only if it is gone already.
        let _ = self.child.kill();
        self.child.wait().expect("the end of OpenBao");
    }

    /// Starts one anew that knows nothing but [`Self::lasting_token`], at the same address.
    pub fn start_again(&mut self) {
        self.child = Self::serve(&self.dir, self.address);
        self.set_up();
    }

    /// The token that is good after a start anew as well, and may do everything.
    pub fn lasting_token(&self) -> &'static str {
        ROOT
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// One request with the token that may do everything.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let head =
            format!("{method} /v1/{path} HTTP/1.0\r\nHost: {}\r\nX-Vault-Token: {ROOT}\r\n", self.address);
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        let status = reply.split(' ').nth(1)?.parse().ok()?;
        let content = reply.split_once("\r\n\r\n").map_or("", |(_, content)| content);
        Some((status, serde_json::from_str(content).unwrap_or_default()))
    }

    fn done(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, reply) = self.ask(method, path, body).unwrap_or_else(|| panic!("OpenBao is gone"));
        assert!((200..300).contains(&status), "{method} {path}: {status} {reply:#}");
        reply
    }

    /// Keeps a secret, such as `blockd/s3`.
    pub fn put(&self, path: &str, fields: &Value) {
        self.done("POST", &format!("secret/data/{path}"), &json!({ "data": fields }));
    }

    /// A token that may read what the daemon needs.
    pub fn token(&self, ttl: &str) -> String {
        let wanted = json!({ "policies": [POLICY], "ttl": ttl, "renewable": true });
        let made = self.done("POST", "auth/token/create", &wanted);
        made["auth"]["client_token"].as_str().expect("a token").to_owned()
    }

    /// Takes a token back.
    pub fn revoke(&self, token: &str) {
        self.done("POST", "auth/token/revoke", &json!({ "token": token }));
    }

    /// A role whose tokens last so long, once renewed at most twice as long: its id, and its secret id.
    pub fn role(&self, ttl: &str, most: &str) -> (String, String) {
        self.done("POST", "sys/auth/approle", &json!({ "type": "approle" }));
        let wanted = json!({ "token_policies": [POLICY], "token_ttl": ttl, "token_max_ttl": most });
        self.done("POST", "auth/approle/role/blockd", &wanted);
        let role = self.done("GET", "auth/approle/role/blockd/role-id", &Value::Null);
        let secret = self.done("POST", "auth/approle/role/blockd/secret-id", &json!({}));
        let text = |value: &Value| value.as_str().expect("an id").to_owned();
        (text(&role["data"]["role_id"]), text(&secret["data"]["secret_id"]))
    }

    /// Seals it, for good: nobody has the keys.
    pub fn seal(&self) {
        self.done("PUT", "sys/seal", &Value::Null);
    }
}

/// Writes what nobody else may read.
///
/// # Panics
/// If it cannot be written.
pub fn put_secret(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file with a secret");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
}
