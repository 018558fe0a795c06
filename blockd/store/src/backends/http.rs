//! HTTP client of all network stores: TLS, proxies, timeouts and hints from response headers.

use crate::StoreError;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use object_store::{
    ClientOptions,
    client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService},
};
use reqwest::{
    Proxy, StatusCode,
    dns::{Addrs, Name, Resolve, Resolving},
    header,
    redirect::Policy,
    tls::Certificate,
};
use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime},
};

/// Timeout of a connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Lifetime of an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Idle time before a TCP keepalive.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Instance metadata services, which are never reached through a proxy.
const METADATA_HOSTS: [&str; 4] =
    ["169.254.169.254", "169.254.170.2", "metadata", "metadata.google.internal"];

/// HTTP options of a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpOptions {
    /// Additional trusted CA certificates in PEM.
    pub ca_certificates_pem: Option<String>,
    /// URL of a proxy, without a password, for all requests except those to a metadata service; by default
    /// that of the environment.
    pub proxy: Option<String>,
    /// Timeout of a transfer without progress.
    pub stall_timeout: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self { ca_certificates_pem: None, proxy: None, stall_timeout: Duration::from_secs(30) }
    }
}

impl HttpOptions {
    /// Creates a client. It follows no redirects, which could send tokens to other hosts.
    ///
    /// # Errors
    /// One line that names the invalid option.
    pub(super) fn client(&self, allow_http: bool) -> Result<reqwest::Client, String> {
        let mut builder = self.builder(allow_http)?;
        if let Some(url) = &self.proxy {
            builder = builder.proxy(proxy(url)?);
        }
        build(builder)
    }

    fn builder(&self, allow_http: bool) -> Result<reqwest::ClientBuilder, String> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("blockd/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .https_only(!allow_http)
            .redirect(Policy::none())
            .dns_resolver(Resolver)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            // Unacknowledged data for this time ends the connection: the stall limit of uploads.
            .tcp_user_timeout(self.stall_timeout);
        if let Some(pem) = &self.ca_certificates_pem {
            let certificates = Certificate::from_pem_bundle(pem.as_bytes())
                .map_err(|error| format!("the CA certificate cannot be read as PEM: {error}"))?;
            if certificates.is_empty() {
                return Err("the CA certificate's PEM text contains no certificate".into());
            }
            builder = builder.tls_certs_merge(certificates);
        }
        Ok(builder)
    }

    /// Creates the connector for clients of `object_store`.
    pub(super) fn connector(&self, allow_http: bool) -> Result<Connector, String> {
        // Metadata services speak plain HTTP; the environment may name proxies too.
        Ok(Connector { client: self.client(allow_http)?, direct: build(self.builder(true)?.no_proxy())? })
    }
}

/// Resolver whose threads are started as those of [`blocking`](crate::blocking).
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let found = tokio::spawn(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok::<_, std::io::Error>(found.collect::<Vec<_>>())
        });
        Box::pin(async move { Ok(Box::new(found.await??.into_iter()) as Addrs) })
    }
}

fn build(builder: reqwest::ClientBuilder) -> Result<reqwest::Client, String> {
    builder.build().map_err(|error| format!("creating the HTTP client failed: {}", chain(&error)))
}

fn proxy(url: &str) -> Result<Proxy, String> {
    let shown = |why: &str| format!("the proxy is not a URL like http://HOST:PORT: {why}");
    let parsed = reqwest::Url::parse(url).map_err(|error| shown(&error.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(shown("its scheme is neither http nor https"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("the proxy's URL has a user or password, which is not supported".into());
    }
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err(shown("it has no host"));
    }
    Proxy::all(parsed).map_err(|error| shown(&error.to_string()))
}

/// Returns an error with its causes on one line, without URLs, which may contain signatures.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut out = match error.url() {
        Some(url) => error.to_string().replace(url.as_str(), url.host_str().unwrap_or_default()),
        None => error.to_string(),
    };
    let mut at = std::error::Error::source(error);
    while let Some(source) = at {
        out = format!("{out}: {source}");
        at = source.source();
    }
    out
}

/// Hints from response headers for the running operation.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Hints {
    /// Pause that the store requests, in seconds.
    pub retry_after_s: Option<u16>,
    /// Time of the response by the store's clock, in seconds since 1970.
    pub date_unix_s: Option<i64>,
    /// MD5 of the stored data, as reported by the store.
    pub stored_md5: Option<[u8; 16]>,
    /// Target host of a redirect, without the rest of the URL, which may be signed.
    pub redirects_to: Option<String>,
}

tokio::task_local! {
    static HINTS: Cell<Hints>;
}

/// Runs one operation of a client; returns its result and the hints of its responses.
pub(super) async fn with_hints<T>(work: impl Future<Output = T>) -> (T, Hints) {
    let both = async {
        let result = work.await;
        (result, HINTS.with(Cell::take))
    };
    HINTS.scope(Cell::new(Hints::default()), both).await
}

/// Connector that makes `object_store` use the client of this module.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    client: reqwest::Client,
    /// Client for metadata services.
    direct: reqwest::Client,
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Watched { client: self.client.clone(), direct: self.direct.clone() }))
    }
}

/// HTTP client that records response headers that `object_store` drops.
#[derive(Debug)]
struct Watched {
    client: reqwest::Client,
    direct: reqwest::Client,
}

impl Watched {
    fn client_for(&self, host: Option<&str>) -> &reqwest::Client {
        match host {
            Some(host) if METADATA_HOSTS.contains(&host) => &self.direct,
            _ => &self.client,
        }
    }
}

impl HttpService for Watched {
    fn call<'life, 'run>(
        &'life self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'run>>
    where
        'life: 'run,
        Self: 'run,
    {
        Box::pin(async move {
            let answer = self.client_for(request.uri().host()).call(request).await?;
            let hints = read_hints(answer.status(), answer.headers());
            // Fails outside of an operation, such as a token request, where nothing needs the hints.
            let _ = HINTS.try_with(|cell| cell.set(hints));
            Ok(answer)
        })
    }
}

/// Reads the hints of a response head.
fn read_hints(status: StatusCode, headers: &header::HeaderMap) -> Hints {
    let mut hints = Hints { date_unix_s: date_unix_s(headers), ..Hints::default() };
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        hints.retry_after_s = retry_after_s(headers);
    }
    if status.is_redirection() {
        hints.redirects_to = headers.get(header::LOCATION).and_then(host_of);
    }
    if status.is_success() {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // The checksums are in one header line or in separate ones.
        let google = || {
            let lines = headers.get_all("x-goog-hash").iter().filter_map(|line| line.to_str().ok());
            lines.flat_map(|line| line.split(',')).find_map(|part| part.trim().strip_prefix("md5="))
        };
        let sum = text("content-md5").or_else(google);
        hints.stored_md5 = sum.and_then(|sum| BASE64_STANDARD.decode(sum).ok()?.try_into().ok());
    }
    hints
}

/// Returns the host of a URL, with a port other than the default; `None` for a URL without a host.
fn host_of(location: &header::HeaderValue) -> Option<String> {
    let url = reqwest::Url::parse(location.to_str().ok()?).ok()?;
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Returns the `Date` of a response in seconds since 1970 (RFC 9110, section 6.6.1).
pub(super) fn date_unix_s(headers: &header::HeaderMap) -> Option<i64> {
    let date = jiff::fmt::rfc2822::parse(headers.get(header::DATE)?.to_str().ok()?.trim()).ok()?;
    Some(date.timestamp().as_second())
}

/// Returns the pause of a `Retry-After` header, in seconds or as a date, limited to a maximum.
pub(super) fn retry_after_s(headers: &header::HeaderMap) -> Option<u16> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds.try_into().unwrap_or(u16::MAX));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let until: SystemTime = date.timestamp().into();
    let pause = until.duration_since(SystemTime::now()).unwrap_or_default();
    Some(pause.as_secs().try_into().unwrap_or(u16::MAX))
}

/// Returns an error for an invalid setting.
pub(super) fn misconfigured(kind: &str, what: &str, detail: String) -> StoreError {
    StoreError::new(crate::StoreErrorKind::Misconfigured, "OPEN", what, kind).with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlobStore, PutMode, ReloadStore, backends::s3};
    use blockd_testkit::store::{FakeHttpServer, HttpReply};
    use rustix::process::{getpriority_process, setpriority_process};
    use std::sync::Arc;

    /// Returns the nice values of the threads with a name: field 19 of their `stat` (proc_pid_stat(5)).
    fn nice_values(name: &str) -> Vec<i32> {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
        let stats = threads.filter_map(|thread| std::fs::read_to_string(thread.join("stat")).ok());
        let named = stats.filter(|stat| stat.contains(&format!("({name}) ")));
        let of =
            |stat: String| stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap();
        named.map(of).collect()
    }

    #[test]
    fn threads_of_connections_have_no_priority_of_callers() {
        let runtime = |name: &str| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).thread_name(name).enable_all();
            builder
        };
        let lower = || setpriority_process(None, 19).unwrap();
        let caller = runtime("caller").on_thread_start(lower).build().unwrap();
        let own = getpriority_process(None).unwrap();
        // A name to resolve, and only the sum of the data.
        for (host, name) in [("localhost", "resolving"), ("127.0.0.1", "summing")] {
            let owner = runtime(name).build().unwrap();
            let stored = HttpReply::status(200).header("ETag", "\"t\"");
            let stored = stored.header("Content-MD5", "XUFAKrxLKna5cZ2REBfFkg==");
            let server = owner.block_on(FakeHttpServer::start(move |_| stored.clone()));
            let config = s3::tests::config(&server.url().replace("127.0.0.1", host));
            let client = s3::open(&config, &HttpOptions::default()).unwrap();
            let store = ReloadStore::new(Arc::new(client), None).with_runtime(owner.handle().clone());
            let put = async move { store.put("a", "hello".into(), PutMode::Overwrite).await };
            caller.block_on(caller.spawn(put)).unwrap().unwrap();
            let found = nice_values(name);
            assert!(found.len() > 1 && found.iter().all(|nice| *nice == own), "{name}: {found:?}");
        }
    }

    #[test]
    fn pauses_are_read_as_seconds_and_as_dates() {
        let mut headers = header::HeaderMap::new();
        assert_eq!(retry_after_s(&headers), None);
        headers.insert(header::RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(retry_after_s(&headers), Some(7));
        headers.insert(header::RETRY_AFTER, "Wed, 21 Oct 2015 07:28:00 GMT".parse().unwrap());
        assert_eq!(retry_after_s(&headers), Some(0), "that time is over");
        headers.insert(header::RETRY_AFTER, "Fri, 21 Oct 2089 07:28:00 GMT".parse().unwrap());
        assert_eq!(retry_after_s(&headers), Some(u16::MAX));
        headers.insert(header::RETRY_AFTER, "soon".parse().unwrap());
        assert_eq!(retry_after_s(&headers), None);
        let hints = read_hints(StatusCode::OK, &headers);
        assert_eq!(hints.retry_after_s, None);
    }

    #[test]
    fn googles_sums_are_read_from_one_line_and_from_two() {
        let empty = Some(*b"\xd4\x1d\x8c\xd9\x8f\x00\xb2\x04\xe9\x80\x09\x98\xec\xf8\x42\x7e");
        for lines in [
            &["crc32c=AAAAAA==,md5=1B2M2Y8AsgTpgAmY7PhCfg=="][..],
            &["crc32c=AAAAAA==", "md5=1B2M2Y8AsgTpgAmY7PhCfg=="],
        ] {
            let mut headers = header::HeaderMap::new();
            for line in lines {
                headers.append("x-goog-hash", line.parse().unwrap());
            }
            assert_eq!(read_hints(StatusCode::OK, &headers).stored_md5, empty, "{lines:?}");
        }
    }

    #[test]
    fn metadata_services_are_asked_directly() {
        let options = HttpOptions { proxy: Some("http://127.0.0.1:1".into()), ..HttpOptions::default() };
        let Connector { client, direct } = options.connector(false).unwrap();
        let watched = Watched { client, direct };
        assert!(std::ptr::eq(watched.client_for(Some("169.254.169.254")), &watched.direct));
        assert!(std::ptr::eq(watched.client_for(Some("storage.googleapis.com")), &watched.client));
        assert!(std::ptr::eq(watched.client_for(None), &watched.client));
    }

    #[test]
    fn proxies_and_certificates_that_cannot_work_are_refused() {
        for (proxy, word) in
            [("nonsense", "URL"), ("socks5://h:1", "scheme"), ("http://user:planted@h:1", "password")]
        {
            let options = HttpOptions { proxy: Some(proxy.into()), ..HttpOptions::default() };
            let error = options.client(false).unwrap_err();
            assert!(error.contains(word) && !error.contains("planted"), "{error}");
        }
        for pem in ["", "no pem at all"] {
            let options = HttpOptions { ca_certificates_pem: Some(pem.into()), ..HttpOptions::default() };
            assert!(options.client(false).unwrap_err().contains("certificate"));
        }
        let options =
            HttpOptions { proxy: Some("http://proxy.example:3128".into()), ..HttpOptions::default() };
        assert!(options.client(true).is_ok());
    }
}
