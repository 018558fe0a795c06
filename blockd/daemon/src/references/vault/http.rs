//! Requests to a Vault: bounded in time, in number, and in what is taken of an answer.

use super::super::error::Trouble;
use crate::config::VaultConfig;
use parking_lot::Mutex;
use reqwest::{
    Client, Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
    redirect::Policy,
    tls::Certificate,
};
use serde::de::DeserializeOwned;
use std::{fs::File, io::Read, time::Duration};
use zeroize::Zeroizing;

/// The longest answer that is taken.
pub(super) const ANSWER_MOST_BYTES: usize = 1 << 20;
/// The longest file with authorities.
const CA_FILE_MOST_BYTES: u64 = 1 << 20;
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after the first attempt that failed; twice as long each time.
const PAUSE: Duration = Duration::from_millis(200);

const TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");
/// Listeners may be set up to want it, against requests that others are tricked into.
const REQUEST: HeaderName = HeaderName::from_static("x-vault-request");

/// An answer, whatever it is.
pub(super) struct Answer {
    pub status: StatusCode,
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// What it says.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Trouble> {
        // The error might quote what it does not understand.
        serde_json::from_slice(&self.body).map_err(|_| Trouble::NotUnderstood)
    }
}

/// Whether a request may be made twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// However it failed.
    Always,
    /// If it was not made: a secret id may be good for a number of logins only.
    Unsent,
}

/// What makes requests.
pub(super) struct Http {
    config: VaultConfig,
    /// The client, and the authorities that it was made with.
    client: Mutex<Option<(Option<Vec<u8>>, Client)>>,
}

impl Http {
    pub fn new(config: VaultConfig) -> Self {
        Self { config, client: Mutex::default() }
    }

    /// Asks, and asks again where that can help.
    pub async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: Option<&str>,
        token: Option<&str>,
        body: Option<Zeroizing<Vec<u8>>>,
        again: Again,
    ) -> Result<Answer, Trouble> {
        let client = self.client().await?;
        let mut failures = 0;
        loop {
            let attempt = self.attempt(&client, method.clone(), path, query, token, body.as_ref());
            let timeout_ms = self.config.timeout_ms;
            let (trouble, sent) = match tokio::time::timeout(Duration::from_millis(timeout_ms), attempt).await
            {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(failed)) => failed,
                Err(_) => (Trouble::Timeout { timeout_ms }, true),
            };
            failures += 1;
            let is_settled = matches!(trouble, Trouble::Sealed | Trouble::Redirects { .. });
            let may_help = !is_settled && trouble.passes();
            if failures >= self.config.attempts || !may_help || (sent && again == Again::Unsent) {
                return Err(trouble);
            }
            tokio::time::sleep(PAUSE * 2_u32.saturating_pow(failures - 1)).await;
        }
    }

    /// One attempt; beside what went wrong, whether the request may have been carried out.
    async fn attempt(
        &self,
        client: &Client,
        method: Method,
        path: &[&str],
        query: Option<&str>,
        token: Option<&str>,
        body: Option<&Zeroizing<Vec<u8>>>,
    ) -> Result<Answer, (Trouble, bool)> {
        let segments = path.iter().flat_map(|part| part.split('/'));
        let mut url = self.config.address.at(segments);
        url.set_query(query);
        let mut request = client.request(method, url).header(REQUEST, "true");
        if let Some(namespace) = &self.config.namespace {
            request = request.header(NAMESPACE, namespace);
        }
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(token).map_err(|_| {
                (Trouble::Client { what: "the token has characters that none can have".into() }, false)
            })?;
            value.set_sensitive(true);
            request = request.header(TOKEN, value);
        }
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body.to_vec());
        }
        let mut answer = request.send().await.map_err(|error| {
            let sent = !error.is_connect();
            (Trouble::Unreachable { what: with_causes(error) }, sent)
        })?;
        let status = answer.status();
        // Its capacity is there from the start: what is moved would leave copies.
        let mut body = Zeroizing::new(Vec::with_capacity(ANSWER_MOST_BYTES));
        loop {
            let chunk = answer.chunk().await;
            let chunk = chunk.map_err(|error| (Trouble::Unreachable { what: with_causes(error) }, true))?;
            let Some(chunk) = chunk else { break };
            if body.len() + chunk.len() > ANSWER_MOST_BYTES {
                return Err((Trouble::TooLarge { most_bytes: ANSWER_MOST_BYTES }, true));
            }
            body.extend_from_slice(&chunk);
        }
        let answer = Answer { status, body };
        match trouble_of(&answer) {
            Some(trouble) => Err((trouble, true)),
            None => Ok(answer),
        }
    }

    async fn client(&self) -> Result<Client, Trouble> {
        let path = self.config.ca_certificate.clone();
        // Each time, so that a new authority counts at once.
        let read = tokio::task::spawn_blocking(move || path.map(|path| read_ca(&path)).transpose());
        let ca = read.await.map_err(|error| Trouble::Client { what: error.to_string() })??;
        let mut kept = self.client.lock();
        if let Some((with, client)) = &*kept
            && *with == ca
        {
            return Ok(client.clone());
        }
        let failed = |what: String| Trouble::Client { what };
        let mut builder = Client::builder()
            .user_agent(concat!("blockd/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            // A redirection would carry the token elsewhere.
            .redirect(Policy::none());
        if self.config.address.is_loopback() {
            builder = builder.no_proxy();
        }
        if let (Some(pem), Some(path)) = (&ca, &self.config.ca_certificate) {
            let wrong =
                |what: &str| failed(format!("{} holds no certificates in PEM: {what}", path.display()));
            let certificates =
                Certificate::from_pem_bundle(pem).map_err(|error| wrong(&with_causes(error)))?;
            if certificates.is_empty() {
                return Err(wrong("it has none"));
            }
            builder = builder.tls_certs_merge(certificates);
        }
        let client = builder.build().map_err(|error| failed(with_causes(error)))?;
        *kept = Some((ca, client.clone()));
        Ok(client)
    }
}

/// Answers that mean the same whatever was asked for.
fn trouble_of(answer: &Answer) -> Option<Trouble> {
    let status = answer.status.as_u16();
    let is_sealed = || {
        let said: super::wire::Errors = answer.read().unwrap_or_default();
        said.errors.iter().any(|error| error.to_lowercase().contains("sealed"))
    };
    match answer.status {
        StatusCode::SERVICE_UNAVAILABLE if is_sealed() => Some(Trouble::Sealed),
        found if found.is_redirection() => Some(Trouble::Redirects { status }),
        // 412: it has not heard yet of what it was told at another node. 429: too much was asked, or it is a standby.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PRECONDITION_FAILED => Some(Trouble::Failing { status }),
        found if found.is_server_error() => Some(Trouble::Failing { status }),
        _ => None,
    }
}

fn read_ca(path: &std::path::Path) -> Result<Vec<u8>, Trouble> {
    let failed =
        |error: std::io::Error| Trouble::Client { what: format!("cannot read {}: {error}", path.display()) };
    let file = File::open(path).map_err(failed)?;
    let mut pem = Vec::new();
    file.take(CA_FILE_MOST_BYTES).read_to_end(&mut pem).map_err(failed)?;
    Ok(pem)
}

/// An error with its causes, without the address.
fn with_causes(error: reqwest::Error) -> String {
    crate::daemon::with_sources(&error.without_url()).replace('\n', " ")
}
