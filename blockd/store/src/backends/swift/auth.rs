//! OpenStack authentication: tokens and the URL of the object store.

use crate::{
    StoreError, StoreErrorKind,
    backends::http::{chain, retry_after_s},
};
use blockd_store_config::{Secret, SwiftAuth};
use jiff::Timestamp;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// Remaining lifetime from which a token is replaced.
const MARGIN: Duration = Duration::from_secs(30);
/// Timeout of the identity service.
const AUTH_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum length of a response of the identity service.
const MAX_RESPONSE_LEN: usize = 4 << 20;

/// Token and the account that it is valid for.
#[derive(Clone)]
pub(super) struct Session {
    pub token: Zeroizing<String>,
    /// URL of the account, without a slash at its end.
    pub storage_url: String,
    until: Option<Instant>,
}

/// Source of tokens, which caches the newest one.
pub(super) struct Authority {
    client: Client,
    auth: SwiftAuth,
    /// Key, password or token.
    secret: Secret,
    allow_http: bool,
    /// Locked during a login, so that concurrent requests share it.
    session: Mutex<Option<Session>>,
}

fn fail(kind: StoreErrorKind, at: &str, detail: impl Into<String>) -> StoreError {
    StoreError::new(kind, "AUTH", "", at).with_detail(detail)
}

impl Authority {
    pub(super) fn new(client: Client, auth: SwiftAuth, secret: Secret, allow_http: bool) -> Self {
        Self { client, auth, secret, allow_http, session: Mutex::new(None) }
    }

    /// Returns a token that is presumably valid. `spent` is a refused token, which is not returned again.
    pub(super) async fn session(&self, spent: Option<&str>) -> Result<Session, StoreError> {
        let mut kept = self.session.lock().await;
        if let Some(session) = &*kept
            && spent != Some(session.token.as_str())
            && session.until.is_none_or(|until| Instant::now() < until)
        {
            return Ok(session.clone());
        }
        let session = self.fetch(spent).await?;
        *kept = Some(session.clone());
        Ok(session)
    }

    async fn fetch(&self, spent: Option<&str>) -> Result<Session, StoreError> {
        let (at, secret) = (self.auth.url(), self.secret.expose());
        let session = match &self.auth {
            SwiftAuth::Token { storage_url } => {
                if spent.is_some() {
                    let detail = "the token was refused: it expired or is not valid for this account; set a new one, or a user and a password";
                    return Err(fail(StoreErrorKind::Unauthorized, at, detail));
                }
                Session {
                    token: Zeroizing::new(secret.to_owned()),
                    storage_url: storage_url.clone(),
                    until: None,
                }
            }
            SwiftAuth::V1 { auth_url, user } => {
                let request = self.client.get(auth_url).header("X-Auth-User", user);
                v1(&self.ask(request.header("X-Auth-Key", secret)).await?, at)?
            }
            SwiftAuth::V2 { auth_url, user, tenant_name, tenant_id, region } => {
                let mut auth = json!({
                    "passwordCredentials": {"username": user, "password": secret},
                });
                for (name, value) in [("tenantName", tenant_name), ("tenantId", tenant_id)] {
                    if let Some(value) = value {
                        auth[name] = json!(value);
                    }
                }
                let answer = self.post(&format!("{auth_url}/tokens"), &json!({ "auth": auth })).await?;
                v2(&body(answer, at).await?, region.as_deref(), at)?
            }
            SwiftAuth::V3 { auth_url, user, user_domain, project, project_domain, region } => {
                let auth = json!({"auth": {
                    "identity": {"methods": ["password"], "password": {"user": {
                        "name": user, "domain": {"name": user_domain}, "password": secret,
                    }}},
                    "scope": {"project": {"name": project, "domain": {"name": project_domain}}},
                }});
                let answer = self.post(&format!("{auth_url}/auth/tokens"), &auth).await?;
                let token = header(&answer, "x-subject-token").map(Zeroizing::new);
                let token = token.ok_or_else(|| invalid_response(at, "it has no X-Subject-Token"))?;
                v3(&body(answer, at).await?, token, region.as_deref(), at)?
            }
        };
        self.check_url(&session.storage_url)?;
        Ok(session)
    }

    /// The catalog must not direct the token to an unexpected host or to plain HTTP.
    fn check_url(&self, url: &str) -> Result<(), StoreError> {
        let at = self.auth.url();
        let parsed =
            Url::parse(url).map_err(|_| invalid_response(at, "the object store's address is not a URL"))?;
        match parsed.scheme() {
            "https" => Ok(()),
            "http" if self.allow_http => Ok(()),
            _ => Err(fail(
                StoreErrorKind::Misconfigured,
                at,
                format!("the URL of the object store, {url}, is not https like that of the identity service"),
            )),
        }
    }

    async fn post(&self, url: &str, body: &Value) -> Result<Response, StoreError> {
        let request = self.client.post(url).header("Content-Type", "application/json");
        self.ask(request.header("Accept", "application/json").body(body.to_string())).await
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Response, StoreError> {
        let at = self.auth.url();
        let answer = request.timeout(AUTH_TIMEOUT).send().await.map_err(|error| {
            let kind = if error.is_timeout() { StoreErrorKind::Timeout } else { StoreErrorKind::Unreachable };
            fail(kind, at, chain(&error))
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let kind = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => StoreErrorKind::Unauthorized,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
                StoreErrorKind::Misconfigured
            }
            _ if status.is_redirection() => StoreErrorKind::Misconfigured,
            _ => StoreErrorKind::Throttled,
        };
        let mut error = fail(kind, at, format!("the identity service responded {status}"));
        error.retry_after_s = retry_after_s(answer.headers());
        Err(error)
    }
}

fn invalid_response(at: &str, what: &str) -> StoreError {
    fail(StoreErrorKind::Misconfigured, at, format!("invalid response of the identity service: {what}"))
}

fn header(answer: &Response, name: &str) -> Option<String> {
    answer.headers().get(name)?.to_str().ok().map(str::to_owned)
}

async fn body(mut answer: Response, at: &str) -> Result<Vec<u8>, StoreError> {
    let mut out = Vec::new();
    while let Some(piece) =
        answer.chunk().await.map_err(|error| fail(StoreErrorKind::ShortBody, at, chain(&error)))?
    {
        out.extend_from_slice(&piece);
        if out.len() > MAX_RESPONSE_LEN {
            return Err(invalid_response(at, "it is too long"));
        }
    }
    Ok(out)
}

fn session(token: Zeroizing<String>, url: &str, lasts: Option<Duration>) -> Session {
    let lasts = lasts.map(|lasts| lasts.saturating_sub(MARGIN).max(lasts / 2));
    Session {
        token,
        storage_url: url.trim_end_matches('/').to_owned(),
        until: lasts.and_then(|lasts| Instant::now().checked_add(lasts)),
    }
}

fn v1(answer: &Response, at: &str) -> Result<Session, StoreError> {
    let token = header(answer, "x-auth-token").or_else(|| header(answer, "x-storage-token"));
    let token = token.map(Zeroizing::new).ok_or_else(|| invalid_response(at, "it has no X-Auth-Token"))?;
    let url =
        header(answer, "x-storage-url").ok_or_else(|| invalid_response(at, "it has no X-Storage-Url"))?;
    let lasts = header(answer, "x-auth-token-expires").and_then(|text| text.parse().ok());
    Ok(session(token, &url, lasts.map(Duration::from_secs)))
}

/// Returns the time until a date; `None` if it is unreadable.
fn time_until(text: &str) -> Option<Duration> {
    let until: Timestamp = text.parse().ok()?;
    until.duration_since(Timestamp::now()).try_into().ok()
}

/// Returns the first URL of the object store in a region.
fn pick<'a>(
    endpoints: impl Iterator<Item = (Option<&'a str>, &'a str)>,
    region: Option<&str>,
    at: &str,
) -> Result<String, StoreError> {
    let mut others = Vec::new();
    for (found, url) in endpoints {
        if region.is_none() || region == found {
            return Ok(url.to_owned());
        }
        others.extend(found);
    }
    let detail = match region {
        Some(region) if !others.is_empty() => {
            format!("its catalog has no object store in region {region}, only in {}", others.join(", "))
        }
        _ => "its catalog has no object store for this user and project".to_owned(),
    };
    Err(fail(StoreErrorKind::Misconfigured, at, detail))
}

fn v2(body: &[u8], region: Option<&str>, at: &str) -> Result<Session, StoreError> {
    #[derive(Deserialize)]
    struct Answer {
        access: Access,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Access {
        token: Token,
        #[serde(default)]
        service_catalog: Vec<Service>,
    }
    #[derive(Deserialize)]
    struct Token {
        id: String,
        expires: Option<String>,
    }
    #[derive(Deserialize)]
    struct Service {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        endpoints: Vec<Endpoint>,
    }
    #[derive(Deserialize)]
    struct Endpoint {
        region: Option<String>,
        #[serde(rename = "publicURL")]
        public_url: String,
    }
    let Answer { access } =
        serde_json::from_slice(body).map_err(|_| invalid_response(at, "it is not a Keystone v2 response"))?;
    let stores = access.service_catalog.iter().filter(|service| service.kind == "object-store");
    let endpoints = stores.flat_map(|service| &service.endpoints);
    let url = pick(endpoints.map(|one| (one.region.as_deref(), one.public_url.as_str())), region, at)?;
    let lasts = access.token.expires.as_deref().and_then(time_until);
    Ok(session(access.token.id.into(), &url, lasts))
}

fn v3(body: &[u8], token: Zeroizing<String>, region: Option<&str>, at: &str) -> Result<Session, StoreError> {
    #[derive(Deserialize)]
    struct Answer {
        token: Token,
    }
    #[derive(Deserialize)]
    struct Token {
        expires_at: Option<String>,
        #[serde(default)]
        catalog: Vec<Service>,
    }
    #[derive(Deserialize)]
    struct Service {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        endpoints: Vec<Endpoint>,
    }
    #[derive(Deserialize)]
    struct Endpoint {
        interface: String,
        region_id: Option<String>,
        region: Option<String>,
        url: String,
    }
    let Answer { token: found } =
        serde_json::from_slice(body).map_err(|_| invalid_response(at, "it is not a Keystone v3 response"))?;
    let stores = found.catalog.iter().filter(|service| service.kind == "object-store");
    let public = stores.flat_map(|service| &service.endpoints).filter(|one| one.interface == "public");
    let named = public.map(|one| (one.region_id.as_deref().or(one.region.as_deref()), one.url.as_str()));
    let url = pick(named, region, at)?;
    Ok(session(token, &url, found.expires_at.as_deref().and_then(time_until)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = r#"{"access":{"token":{"id":"planted","expires":"2999-01-01T00:00:00Z"},"serviceCatalog":[
        {"type":"compute","endpoints":[{"region":"one","publicURL":"https://compute"}]},
        {"type":"object-store","endpoints":[{"region":"one","publicURL":"https://one/v1/a/"},
                                            {"region":"two","publicURL":"https://two/v1/a"}]}]}}"#;
    const V3: &str = r#"{"token":{"expires_at":"2999-01-01T00:00:00.000000Z","catalog":[
        {"type":"object-store","endpoints":[
            {"interface":"internal","region_id":"one","region":"one","url":"http://inside/v1/a"},
            {"interface":"public","region_id":"one","region":"one","url":"https://one/v1/a"},
            {"interface":"public","region":"two","url":"https://two/v1/a"}]}]}}"#;

    #[test]
    fn catalogs_give_the_public_address_in_the_region() {
        let two = v2(V2.as_bytes(), Some("two"), "k").unwrap();
        assert_eq!((two.storage_url.as_str(), two.token.as_str()), ("https://two/v1/a", "planted"));
        assert!(two.until.is_some());
        assert_eq!(v2(V2.as_bytes(), None, "k").unwrap().storage_url, "https://one/v1/a");
        let token = Zeroizing::new("t".to_owned());
        assert_eq!(v3(V3.as_bytes(), token.clone(), None, "k").unwrap().storage_url, "https://one/v1/a");
        assert_eq!(
            v3(V3.as_bytes(), token.clone(), Some("two"), "k").unwrap().storage_url,
            "https://two/v1/a"
        );
        for result in
            [v2(V2.as_bytes(), Some("three"), "k"), v3(V3.as_bytes(), token.clone(), Some("three"), "k")]
        {
            let error = result.err().unwrap().to_string();
            assert!(error.contains("three") && error.contains("one, two"), "{error}");
        }
        let none = v3(br#"{"token":{"catalog":[]}}"#, token, None, "k").err().unwrap();
        assert!(none.to_string().contains("no object store"), "{none}");
        let error = v2(b"planted", None, "k").err().unwrap();
        assert!(!error.to_string().contains("planted") && error.kind == StoreErrorKind::Misconfigured);
    }

    #[test]
    fn swift_token_is_renewed_before_it_expires() {
        let of = |seconds| {
            session(Zeroizing::new(String::new()), "https://x/", Some(Duration::from_secs(seconds)))
        };
        let left = |session: Session| session.until.unwrap().duration_since(Instant::now()).as_secs();
        assert!((3565..=3570).contains(&left(of(3600))));
        assert!((8..=10).contains(&left(of(20))), "even of a short one half is used");
        assert_eq!(of(20).storage_url, "https://x");
    }
}
