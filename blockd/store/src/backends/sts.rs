//! AWS roles: temporary credentials from the Security Token Service.

use super::{
    endpoint::ServerAddress,
    http::{HttpOptions, chain},
};
use blockd_store_config::AssumedRole;
use bytes::Bytes;
use object_store::{
    CredentialProvider, Error as ClientError,
    aws::{AwsAuthorizer, AwsCredential, AwsCredentialProvider},
    client::HttpRequest,
};
use parking_lot::Mutex;
use reqwest::{Method, Url, header};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// Requested lifetime of credentials, which all roles allow.
const LIFETIME_S: u32 = 3600;
/// Remaining lifetime from which credentials are renewed.
const RENEW_BEFORE_S: i64 = 300;
/// Remaining lifetime below which credentials are not used even if the renewal fails.
const UNUSABLE_BEFORE_S: i64 = 10;
/// Maximum length of a response in bytes.
const MAX_RESPONSE_LEN: usize = 64 << 10;
/// Timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum length of a role's ARN.
const MAX_ARN_LEN: usize = 2048;
const EXTERNAL_ID_LEN: std::ops::RangeInclusive<usize> = 2..=1224;

/// Checks a role.
fn check(role: &AssumedRole) -> Result<(), String> {
    let plain = |text: &str, more: &[u8]| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    let parts = role.arn.split(':').count();
    if !role.arn.starts_with("arn:")
        || parts < 6
        || role.arn.len() > MAX_ARN_LEN
        || !plain(&role.arn, b":/+=,.@_-")
    {
        return Err("the role is not an ARN like arn:aws:iam::123456789012:role/NAME".into());
    }
    match &role.external_id {
        Some(id) if !EXTERNAL_ID_LEN.contains(&id.len()) || !plain(id, b":/+=,.@_-\\") => {
            Err("the external id has 2 to 1224 letters, digits and +=,.@:/\\_- only".into())
        }
        _ => Ok(()),
    }
}

/// Pause after a failed renewal while valid credentials exist.
const RETRY_AFTER_S: i64 = 30;

/// Returns the URL of Amazon's service for a region.
fn amazon_url(region: &str) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://sts.{region}.{domain}")
}

/// Credentials of a role, renewed before they end.
pub(super) struct RoleCredentials {
    role: AssumedRole,
    url: String,
    region: String,
    /// Credentials that assume the role.
    base: AwsCredentialProvider,
    client: reqwest::Client,
    held: Mutex<Option<CachedCredential>>,
    /// Held during a renewal.
    renewal: tokio::sync::Mutex<()>,
    /// Time of the next renewal after a failure with valid credentials.
    retry_unix_s: AtomicI64,
}

#[derive(Clone)]
struct CachedCredential {
    credential: Arc<AwsCredential>,
    until_unix_s: i64,
}

impl std::fmt::Debug for RoleCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoleCredentials")
            .field("role", &self.role.arn)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl RoleCredentials {
    /// Returns the credentials of a role for a bucket of `server`.
    ///
    /// # Errors
    /// One line on the invalid setting of the role.
    pub(super) fn of(
        role: &AssumedRole,
        server: &ServerAddress,
        region: &str,
        base: AwsCredentialProvider,
        http: &HttpOptions,
    ) -> Result<Self, String> {
        check(role)?;
        let given = role.endpoint.as_deref().map(|given| ServerAddress::parse(given, false)).transpose()?;
        let service = given.or_else(|| (!server.is_amazon()).then(|| server.clone()));
        let client = http.client(service.as_ref().is_some_and(|service| !service.tls))?;
        let url = service.map_or_else(|| amazon_url(region), |service| service.url());
        Ok(Self::new(role.clone(), url, region, base, client))
    }

    fn new(
        role: AssumedRole,
        url: String,
        region: &str,
        base: AwsCredentialProvider,
        client: reqwest::Client,
    ) -> Self {
        Self {
            role,
            url,
            region: region.to_owned(),
            base,
            client,
            held: Mutex::default(),
            renewal: tokio::sync::Mutex::default(),
            retry_unix_s: AtomicI64::new(i64::MIN),
        }
    }

    fn failed(&self, what: &str) -> ClientError {
        let source = format!("assuming role {} failed: {what}", self.role.arn).into();
        ClientError::Generic { store: "STS", source }
    }

    /// Returns the credentials if they are valid for longer than `least_s` seconds.
    fn valid_for(&self, now_unix_s: i64, least_s: i64) -> Option<Arc<AwsCredential>> {
        let held = self.held.lock();
        let held = held.as_ref().filter(|held| held.until_unix_s.saturating_sub(now_unix_s) > least_s)?;
        Some(held.credential.clone())
    }

    async fn credential(&self, now_unix_s: i64) -> Result<Arc<AwsCredential>, ClientError> {
        if let Some(fresh) = self.valid_for(now_unix_s, RENEW_BEFORE_S) {
            return Ok(fresh);
        }
        // One request renews; others with valid credentials neither wait for it nor retry soon after a
        // failure.
        let usable = self.valid_for(now_unix_s, UNUSABLE_BEFORE_S);
        let failed_recently = now_unix_s < self.retry_unix_s.load(Ordering::Relaxed);
        let _renewal = match (usable, self.renewal.try_lock()) {
            (Some(usable), renewal) if failed_recently || renewal.is_err() => return Ok(usable),
            (_, Ok(renewal)) => renewal,
            (_, Err(_)) => self.renewal.lock().await,
        };
        if let Some(fresh) = self.valid_for(now_unix_s, RENEW_BEFORE_S) {
            return Ok(fresh);
        }
        // Set before the request, as a cancelled request counts as failed.
        self.retry_unix_s.store(now_unix_s.saturating_add(RETRY_AFTER_S), Ordering::Relaxed);
        match self.ask().await {
            Ok(given) => {
                self.retry_unix_s.store(i64::MIN, Ordering::Relaxed);
                let credential = given.credential.clone();
                *self.held.lock() = Some(given);
                Ok(credential)
            }
            Err(error) => match self.valid_for(now_unix_s, UNUSABLE_BEFORE_S) {
                Some(held) => {
                    tracing::warn!(role = %self.role.arn, %error, "renewal failed on role: its credentials are still valid");
                    Ok(held)
                }
                None => Err(error),
            },
        }
    }

    async fn ask(&self) -> Result<CachedCredential, ClientError> {
        let base = self.base.get_credential().await?;
        let wrong_url = || self.failed("the address of the token service is not a URL");
        let url = Url::parse(&format!("{}/", self.url)).map_err(|_| wrong_url())?;
        let form = self.with_fields(url.clone());
        let body = Bytes::from(form.query().unwrap_or_default().to_owned());
        let mut request = HttpRequest::new(body.clone().into());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = url.as_str().parse().map_err(|_| wrong_url())?;
        let form = header::HeaderValue::from_static("application/x-www-form-urlencoded; charset=utf-8");
        request.headers_mut().insert(header::CONTENT_TYPE, form);
        AwsAuthorizer::new(&base, "sts", &self.region).try_authorize(&mut request, None)?;
        let answer = self
            .client
            .post(url)
            .headers(request.headers().clone())
            .body(body)
            .timeout(REQUEST_TIMEOUT)
            .send()
            .await
            .map_err(|error| self.failed(&chain(&error)))?;
        let status = answer.status();
        let text = self.read(answer).await?;
        if !status.is_success() {
            // In the format that `classify` parses.
            let text_of = |tag| element(&text, tag).unwrap_or_default();
            let (code, message) = (text_of("Code"), text_of("Message"));
            return Err(self.failed(&format!(
                "status code: {} <Code>{code}</Code><Message>{message}</Message>",
                status.as_u16()
            )));
        }
        parse(&text).ok_or_else(|| self.failed("the response of the token service has no credentials"))
    }

    async fn read(&self, mut answer: reqwest::Response) -> Result<String, ClientError> {
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| self.failed(&chain(&error)))? {
            if body.len() + piece.len() > MAX_RESPONSE_LEN {
                return Err(self.failed("the response of the token service is too long"));
            }
            body.extend_from_slice(&piece);
        }
        String::from_utf8(body).map_err(|_| self.failed("the response of the token service is not UTF-8"))
    }

    /// Adds the request's fields to the query of a URL; the query is sent as a form.
    fn with_fields(&self, mut url: Url) -> Url {
        url.query_pairs_mut()
            .append_pair("Action", "AssumeRole")
            .append_pair("Version", "2011-06-15")
            .append_pair("RoleArn", &self.role.arn)
            .append_pair("RoleSessionName", "blockd")
            .append_pair("DurationSeconds", &LIFETIME_S.to_string())
            .extend_pairs(self.role.external_id.as_deref().map(|id| ("ExternalId", id)));
        url
    }
}

impl CredentialProvider for RoleCredentials {
    type Credential = AwsCredential;

    fn get_credential<'life, 'run>(
        &'life self,
    ) -> Pin<Box<dyn Future<Output = object_store::Result<Arc<AwsCredential>>> + Send + 'run>>
    where
        'life: 'run,
        Self: 'run,
    {
        Box::pin(self.credential(jiff::Timestamp::now().as_second()))
    }
}

/// Returns the text of the first element of this name.
pub(super) fn element<'a>(xml: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{tag}>"))?;
    Some(rest.split_once(&format!("</{tag}>"))?.0.trim())
}

/// Parses the credentials of a response. Refuses values that are invalid in a header.
fn parse(xml: &str) -> Option<CachedCredential> {
    let given = element(xml, "Credentials")?;
    let text = |tag| {
        let text = element(given, tag)?;
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| text.to_owned())
    };
    let until: jiff::Timestamp = element(given, "Expiration")?.parse().ok()?;
    let credential = AwsCredential {
        key_id: text("AccessKeyId")?,
        secret_key: text("SecretAccessKey")?,
        token: Some(text("SessionToken")?),
    };
    Some(CachedCredential { credential: Arc::new(credential), until_unix_s: until.as_second() })
}

#[cfg(test)]
#[path = "sts_tests.rs"]
mod tests;
