//! One attempt to tell a receiver of an event.
//!
//! Deliveries are signed as the Standard Webhooks say, for which there are libraries in most languages: the headers `webhook-id`,
//! `webhook-timestamp` and `webhook-signature`, the latter `v1,` and the HMAC-SHA256 of `ID.TIMESTAMP.BODY` in base64.

use crate::config::WebhookConfig;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use reqwest::{
    Client, StatusCode,
    header::{self, HeaderValue},
    redirect::Policy,
    tls::Certificate,
};
use sha2::Sha256;
use std::{
    fs::File,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

/// What a secret begins with that is written in base64.
const SECRET_PREFIX: &str = "whsec_";
/// The shortest secret.
const SECRET_LEAST_BYTES: usize = 16;
/// The longest file with a secret.
const SECRET_FILE_MOST_BYTES: u64 = 4096;
/// The longest file with authorities.
const CA_FILE_MOST_BYTES: u64 = 1 << 20;

/// Why an event was not delivered. No message has the address, the secret, or what the receiver wrote.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// Others can read the secret.
    #[error("{} has mode {mode:04o}, so others may read the secret: chmod 600 it", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    /// The secret cannot be used.
    #[error("the secret in {} {what}", path.display())]
    Secret { path: PathBuf, what: &'static str },
    /// The authorities cannot be used.
    #[error("{} holds no certificates in PEM: {what}", path.display())]
    Ca { path: PathBuf, what: String },
    /// There is no client.
    #[error("the HTTP client cannot be made: {what}")]
    Client { what: String },
    /// It took too long.
    #[error("no answer within {timeout_ms} ms")]
    Timeout { timeout_ms: u64 },
    /// Nobody answers.
    #[error("no answer: {what}")]
    Unreachable { what: String },
    /// The receiver says no.
    #[error("the receiver answers {status}{}", if status.is_redirection() { ", but redirections are not followed" } else { "" })]
    Refused { status: StatusCode, retry_after: Option<Duration> },
}

impl DeliveryError {
    /// Whether the same event may be taken later. One that the receiver does not understand would hold up all others.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { status, .. } => !matches!(
                *status,
                StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY
            ),
            _ => true,
        }
    }

    /// For how long the receiver wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What files hold that the configuration names.
struct Files {
    secret: Option<Zeroizing<Vec<u8>>>,
    ca: Option<Vec<u8>>,
}

impl Files {
    /// Reads them; blocks.
    fn read(config: &WebhookConfig) -> Result<Self, DeliveryError> {
        let secret = config.secret_file.as_deref().map(read_secret).transpose()?;
        let ca = config.ca.as_deref().map(|path| read(path, CA_FILE_MOST_BYTES).map(|(bytes, _)| bytes));
        Ok(Self { secret, ca: ca.transpose()? })
    }
}

/// The content and the mode of a file.
fn read(path: &Path, most_bytes: u64) -> Result<(Vec<u8>, u32), DeliveryError> {
    let failed = |source| DeliveryError::File { path: path.to_owned(), source };
    let other = |what: &str| failed(std::io::Error::other(what.to_owned()));
    // A pipe would keep this thread waiting for somebody who writes.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(other("it is no regular file"));
    }
    let file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if found.len() > most_bytes {
        return Err(other("it is too long"));
    }
    // Not moved as it grows: it may be a secret.
    let mut bytes = Vec::with_capacity(found.len() as usize + 1);
    file.take(most_bytes).read_to_end(&mut bytes).map_err(failed)?;
    Ok((bytes, found.mode() & 0o7777))
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, DeliveryError> {
    let (bytes, mode) = read(path, SECRET_FILE_MOST_BYTES)?;
    let bytes = Zeroizing::new(bytes);
    if mode & 0o007 != 0 {
        return Err(DeliveryError::Exposed { path: path.to_owned(), mode });
    }
    let wrong = |what| DeliveryError::Secret { path: path.to_owned(), what };
    let text = bytes.trim_ascii();
    let secret = match text.strip_prefix(SECRET_PREFIX.as_bytes()) {
        Some(encoded) => {
            Zeroizing::new(BASE64_STANDARD.decode(encoded).map_err(|_| wrong("is no base64 after whsec_"))?)
        }
        None => Zeroizing::new(text.to_vec()),
    };
    if secret.len() < SECRET_LEAST_BYTES {
        return Err(wrong("is shorter than 16 bytes"));
    }
    Ok(secret)
}

/// What `webhook-signature` is.
fn signature(secret: &[u8], id: &str, timestamp_s: i64, body: &[u8]) -> Result<String, DeliveryError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret)
        .map_err(|error| DeliveryError::Client { what: error.to_string() })?;
    mac.update(format!("{id}.{timestamp_s}.").as_bytes());
    mac.update(body);
    Ok(format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes())))
}

/// What does the attempts.
pub(super) struct Sender {
    config: WebhookConfig,
    node: String,
    /// The client, and the authorities that it was made with.
    client: Option<(Option<Vec<u8>>, Client)>,
}

impl Sender {
    pub(super) fn new(config: WebhookConfig, node: String) -> Self {
        Self { config, node, client: None }
    }

    /// Delivers a body once. `id` is the same at each attempt, so that the receiver can tell what it has seen.
    ///
    /// # Errors
    /// The receiver did not take it, or it is not known whether it did.
    pub(super) async fn send(&mut self, id: &str, body: Bytes, now: Timestamp) -> Result<(), DeliveryError> {
        let timeout_ms = self.config.timeout_ms;
        match tokio::time::timeout(Duration::from_millis(timeout_ms), self.attempt(id, body, now)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(DeliveryError::Timeout { timeout_ms }),
        }
    }

    async fn attempt(&mut self, id: &str, body: Bytes, now: Timestamp) -> Result<(), DeliveryError> {
        let config = self.config.clone();
        // Each time, so that a new secret counts at once.
        let files = match tokio::task::spawn_blocking(move || Files::read(&config)).await {
            Ok(files) => files?,
            Err(error) => return Err(DeliveryError::Client { what: error.to_string() }),
        };
        let timestamp_s = now.as_second();
        let mut request = self
            .client(files.ca)?
            .post(self.config.url.url().clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp_s);
        // A host can have a name that no header can.
        if let Ok(node) = HeaderValue::from_str(&self.node) {
            request = request.header("blockd-node", node);
        }
        if let Some(secret) = &files.secret {
            request = request.header("webhook-signature", signature(secret, id, timestamp_s, &body)?);
        }
        let answer = request
            .body(body)
            .send()
            .await
            .map_err(|error| DeliveryError::Unreachable { what: with_causes(error) })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
        Err(DeliveryError::Refused { status, retry_after })
    }

    fn client(&mut self, ca: Option<Vec<u8>>) -> Result<Client, DeliveryError> {
        if let Some((with, client)) = &self.client
            && *with == ca
        {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .user_agent(concat!("blockd/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            // A redirection would carry events elsewhere.
            .redirect(Policy::none());
        if self.config.url.is_loopback() {
            builder = builder.no_proxy();
        }
        if let (Some(pem), Some(path)) = (&ca, &self.config.ca) {
            let wrong = |what: String| DeliveryError::Ca { path: path.clone(), what };
            let certificates =
                Certificate::from_pem_bundle(pem).map_err(|error| wrong(with_causes(error)))?;
            if certificates.is_empty() {
                return Err(wrong("it has none".into()));
            }
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().map_err(|error| DeliveryError::Client { what: with_causes(error) })?;
        self.client = Some((ca, client.clone()));
        Ok(client)
    }
}

/// An error with its causes, without the address.
fn with_causes(error: reqwest::Error) -> String {
    crate::daemon::with_sources(&error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// The example of the Standard Webhooks.
    #[test]
    fn signatures_are_those_of_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let secret = read_secret(&path).unwrap();
        let body = br#"{"test": 2432232314}"#;
        let signed = signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body).unwrap();
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn secrets_that_cannot_be_are_named_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let told = |content: &[u8], mode: u32| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            read_secret(&path).map(|secret| secret.to_vec()).map_err(|error| error.to_string())
        };
        assert_eq!(told(b"planted-planted-\n", 0o640).unwrap(), b"planted-planted-");
        let most = SECRET_FILE_MOST_BYTES as usize;
        for (content, mode, word) in [
            (b"planted-planted-".as_slice(), 0o644, "chmod 600"),
            (b"planted", 0o600, "shorter than 16"),
            (b"whsec_planted!", 0o600, "no base64"),
            (b"", 0o600, "shorter"),
            (vec![b'p'; most + 1].as_slice(), 0o600, "too long"),
        ] {
            let error = told(content, mode).unwrap_err();
            assert!(error.contains(word) && error.contains("/secret"), "{error}");
            assert!(!error.contains("planted"), "{error}");
        }
        let gone = read_secret(&dir.path().join("gone")).unwrap_err().to_string();
        assert!(gone.contains("/gone"), "{gone}");
        assert!(read_secret(dir.path()).unwrap_err().to_string().contains("no regular file"));
    }
}
