//! OpenStack Swift, with its native API.
//!
//! Swift has no reliable create-if-absent: it evaluates `If-None-Match: *` before it receives the body, so
//! two concurrent creators both succeed. This store reports create-if-absent as unsupported, and the writer
//! works without it (see `FORMAT.md`, "Two writers").
//!
//! A multipart upload becomes a static large object. Its segments are below `blockd-parts/`, outside of the
//! format's keys, and are deleted with the object; garbage collection deletes those of unfinished uploads.

mod auth;
mod listing;

use self::auth::Authority;
use super::{
    endpoint::secret_value,
    http::{HttpOptions, chain, date_unix_s, misconfigured, retry_after_s},
};
use crate::{
    BlobStore, ListPage, Pieces, PutMode, Received, StoreError, StoreErrorKind, StoreFuture, blocking,
    check_key, check_prefix, middleware::note_received, pieces::Body,
};
use blockd_store_config::{Secret, SwiftAuth, SwiftConfig};
use bytes::{Bytes, BytesMut};
use md5::{Digest, Md5};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url, header::CONTENT_LENGTH};
use serde::Deserialize;
use serde_json::json;
use std::{fmt::Write, num::NonZero, time::Duration};
use uuid::Uuid;

/// Prefix of segments.
const SEGMENTS_PREFIX: &str = "blockd-parts/";

/// Swift container.
pub struct SwiftStore {
    client: reqwest::Client,
    authority: Authority,
    container: String,
    description: String,
    stall_timeout: Duration,
}

/// Creates a client, without a request to the server.
///
/// # Errors
/// [`StoreErrorKind::Misconfigured`], which names the invalid setting.
pub(super) fn open(config: &SwiftConfig, http: &HttpOptions) -> Result<SwiftStore, StoreError> {
    let SwiftConfig { container, auth, access } = config;
    let wrong = |detail: String| misconfigured("Swift", container, detail);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if container.is_empty() || container.len() > 256 || !container.bytes().all(plain) {
        return Err(wrong("the container's name has letters, digits, '-', '.' and '_' only".into()));
    }
    let mut auth = auth.clone();
    let url = auth.url_mut();
    *url = url.trim().trim_end_matches('/').to_owned();
    let parsed = Url::parse(url)
        .map_err(|error| wrong(format!("the address is not a URL like https://HOST/PATH: {error}")))?;
    let allow_http = match parsed.scheme() {
        "https" => false,
        "http" => true,
        scheme => return Err(wrong(format!("the URL's scheme {scheme} is neither http nor https"))),
    };
    if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some() {
        return Err(wrong("the URL has a user, a password or a query: expected https://HOST/PATH".into()));
    }
    let description = format!("container {container} of Swift at {url}");
    let client = http.client(allow_http).map_err(wrong)?;
    let secret = match auth {
        SwiftAuth::Token { .. } => &access.token,
        _ => &access.key,
    };
    let secret = Secret::new(secret_value(secret.as_ref()).to_owned());
    Ok(SwiftStore {
        authority: Authority::new(client.clone(), auth, secret, allow_http),
        client,
        container: container.clone(),
        description,
        stall_timeout: http.stall_timeout,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn text_of<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

impl SwiftStore {
    fn fail(&self, kind: StoreErrorKind, operation: &'static str, key: &str, detail: String) -> StoreError {
        StoreError::new(kind, operation, key, &self.description).with_detail(detail)
    }

    fn check(&self, operation: &'static str, key: &str) -> Result<(), StoreError> {
        match check_key(key) {
            true => Ok(()),
            false => Err(StoreError::new(StoreErrorKind::BadKey, operation, key, &self.description)),
        }
    }

    /// Makes a request with a token; repeats it with a new one if the token is refused.
    async fn ask(
        &self,
        operation: &'static str,
        key: &str,
        method: &Method,
        query: &str,
        with: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, StoreError> {
        let mut session =
            self.authority.session(None).await.map_err(|error| self.of_auth(operation, key, error))?;
        let mut first = true;
        loop {
            let object = if operation == "LIST" { String::new() } else { format!("/{key}") };
            let url = format!("{}/{}{object}{query}", session.storage_url, self.container);
            let request = self.client.request(method.clone(), url);
            let answer = with(request.header("X-Auth-Token", session.token.as_str())).send().await;
            let response = answer.map_err(|error| self.of_client(operation, key, &error))?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && first {
                first = false;
                let again = self.authority.session(Some(&session.token)).await;
                session = again.map_err(|error| self.of_auth(operation, key, error))?;
                continue;
            }
            if status.is_success() {
                return Ok(response);
            }
            return Err(self.of_status(operation, key, &response));
        }
    }

    fn of_auth(&self, operation: &'static str, key: &str, error: StoreError) -> StoreError {
        StoreError { operation, key: key.to_owned(), store: self.description.clone(), ..error }
    }

    fn of_client(&self, operation: &'static str, key: &str, error: &reqwest::Error) -> StoreError {
        let kind = if error.is_timeout() {
            StoreErrorKind::Timeout
        } else if error.is_body() || error.is_decode() {
            StoreErrorKind::ShortBody
        } else {
            StoreErrorKind::Unreachable
        };
        self.fail(kind, operation, key, chain(error))
    }

    fn of_status(&self, operation: &'static str, key: &str, answer: &Response) -> StoreError {
        use StoreErrorKind as Kind;
        let status = answer.status();
        let kind = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Unauthorized,
            // Only a missing container causes this for puts and listings.
            StatusCode::NOT_FOUND if matches!(operation, "PUT" | "LIST" | "MULTIPART") => Kind::BucketMissing,
            StatusCode::NOT_FOUND => Kind::NotFound,
            StatusCode::RANGE_NOT_SATISFIABLE => Kind::RangeBeyondEnd,
            StatusCode::UNPROCESSABLE_ENTITY => Kind::Altered,
            StatusCode::INSUFFICIENT_STORAGE | StatusCode::PAYLOAD_TOO_LARGE => Kind::NoSpace,
            StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Kind::Throttled
            }
            // Response of Swift to a client above its rate limit.
            _ if status.as_u16() == 498 || status.is_server_error() => Kind::Throttled,
            _ => Kind::Other,
        };
        let detail = if kind == Kind::Unauthorized { String::new() } else { status.to_string() };
        let mut error = self.fail(kind, operation, key, detail);
        error.retry_after_s = retry_after_s(answer.headers());
        if kind == Kind::NoSpace {
            error.store_time_unix_s = date_unix_s(answer.headers()).and_then(NonZero::new);
        }
        error
    }

    /// Reads the body of a response and checks its announced length. Returns its length.
    async fn body(
        &self,
        operation: &'static str,
        key: &str,
        mut answer: Response,
        max_len_bytes: u64,
        body: &mut Body<'_>,
    ) -> Result<u64, StoreError> {
        let announced = answer.content_length();
        if announced.is_some_and(|len| len > max_len_bytes) {
            let detail =
                format!("{} bytes, at most {max_len_bytes} are expected", announced.unwrap_or_default());
            return Err(self.fail(StoreErrorKind::TooLarge, operation, key, detail));
        }
        if let Body::Whole(content) = body {
            content.reserve(announced.unwrap_or(1 << 16) as usize);
        }
        let mut received = 0;
        loop {
            let Ok(next) = tokio::time::timeout(self.stall_timeout, answer.chunk()).await else {
                let detail =
                    format!("no data received for {} s after {received} bytes", self.stall_timeout.as_secs());
                return Err(self.fail(StoreErrorKind::Timeout, operation, key, detail));
            };
            let next = next.map_err(|error| {
                let cut = self.fail(StoreErrorKind::ShortBody, operation, key, chain(&error));
                if error.is_timeout() { self.of_client(operation, key, &error) } else { cut }
            })?;
            let Some(piece) = next else { break };
            note_received(piece.len());
            received += piece.len() as u64;
            if received > max_len_bytes {
                let detail = format!("more than the expected {max_len_bytes} bytes");
                return Err(self.fail(StoreErrorKind::TooLarge, operation, key, detail));
            }
            body.append(&piece).await;
        }
        match announced.filter(|announced| *announced != received) {
            Some(announced) => {
                let detail = format!("{received} of {announced} bytes received");
                Err(self.fail(StoreErrorKind::ShortBody, operation, key, detail))
            }
            None => Ok(received),
        }
    }

    /// Reads a body of at most `max_len_bytes` bytes into memory.
    async fn whole_body(
        &self,
        operation: &'static str,
        key: &str,
        answer: Response,
        max_len_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let mut body = Body::Whole(BytesMut::new());
        self.body(operation, key, answer, max_len_bytes, &mut body).await?;
        Ok(body.content())
    }

    /// Reads a range, at least one byte, into a body.
    async fn range(
        &self,
        key: &str,
        offset_bytes: u64,
        len_bytes: u64,
        body: &mut Body<'_>,
    ) -> Result<(), StoreError> {
        let last = offset_bytes.saturating_add(len_bytes) - 1;
        let range = format!("bytes={offset_bytes}-{last}");
        let with = |request: RequestBuilder| request.header("Range", &range);
        let answer = self.ask("GET", key, &Method::GET, "", with).await?;
        let beyond = |len: u64| {
            let detail = format!("{len} bytes from {offset_bytes} on exist");
            self.fail(StoreErrorKind::RangeBeyondEnd, "GET", key, detail)
        };
        match answer.content_length() {
            Some(len) if answer.status() == StatusCode::PARTIAL_CONTENT && len < len_bytes => {
                return Err(beyond(len));
            }
            _ if answer.status() == StatusCode::PARTIAL_CONTENT => {}
            // For an empty object Swift ignores the range and responds with the whole object.
            Some(0) => return Err(beyond(0)),
            _ => {
                let detail = "the server ignores the range".to_owned();
                return Err(self.fail(StoreErrorKind::Unsupported, "GET", key, detail));
            }
        }
        match self.body("GET", key, answer, len_bytes, body).await? {
            received if received == len_bytes => Ok(()),
            received => Err(beyond(received)),
        }
    }

    async fn md5(&self, operation: &'static str, key: &str, body: &Bytes) -> Result<String, StoreError> {
        let body = body.clone();
        blocking(operation, key, &self.description, move || Ok(hex(&Md5::digest(&body)))).await
    }

    async fn put_object(
        &self,
        operation: &'static str,
        key: &str,
        body: Bytes,
    ) -> Result<String, StoreError> {
        let md5 = self.md5(operation, key, &body).await?;
        // With the MD5 the server refuses an altered body (422). The length is set explicitly, because the
        // client omits that of an empty body and Swift then refuses the request.
        let with = |request: RequestBuilder| {
            request.header("ETag", &md5).header(CONTENT_LENGTH, body.len()).body(body.clone())
        };
        self.ask(operation, key, &Method::PUT, "", with).await?;
        Ok(md5)
    }

    fn segments(key: &str, upload_id: &str) -> String {
        format!("{SEGMENTS_PREFIX}{key}/{upload_id}/")
    }

    async fn delete_object(&self, key: &str) -> Result<bool, StoreError> {
        // Segments are deleted only with a query, which Swift refuses for a plain object.
        let head = self.ask("DELETE", key, &Method::HEAD, "", |request| request).await;
        let in_parts = match head {
            Ok(answer) => text_of(&answer, "x-static-large-object").is_some_and(|text| text == "True"),
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let query = if in_parts { "?multipart-manifest=delete" } else { "" };
        let answer = match self
            .ask("DELETE", key, &Method::DELETE, query, |request| {
                request.header("Accept", "application/json")
            })
            .await
        {
            Ok(answer) => answer,
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if in_parts {
            #[derive(Deserialize)]
            struct Deleted {
                #[serde(rename = "Response Status")]
                status: String,
            }
            let body = self.whole_body("DELETE", key, answer, 1 << 20).await?;
            let status = serde_json::from_slice(&body)
                .map_or_else(|_| "invalid response".to_owned(), |deleted: Deleted| deleted.status);
            if !status.starts_with("200") {
                let detail = format!("some segments could not be deleted: {status}");
                return Err(self.fail(StoreErrorKind::Other, "DELETE", key, detail));
            }
        }
        Ok(true)
    }
}

impl BlobStore for SwiftStore {
    fn describe(&self) -> &str {
        &self.description
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.check("PUT", key)?;
            if mode == PutMode::CreateIfAbsent {
                let detail = "Swift has no reliable create-if-absent".to_owned();
                return Err(self.fail(StoreErrorKind::Unsupported, "PUT", key, detail));
            }
            self.put_object("PUT", key, body).await.map(drop)
        })
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            self.check("GET", key)?;
            let answer = self.ask("GET", key, &Method::GET, "", |request| request).await?;
            // The tag of a segmented object is not the MD5 of its content.
            let in_parts = text_of(&answer, "x-static-large-object").is_some();
            let tag = text_of(&answer, "etag").map(|tag| tag.trim_matches('"').to_owned());
            let body = self.whole_body("GET", key, answer, max_len_bytes).await?;
            if let Some(tag) = tag.filter(|tag| !in_parts && tag.len() == 32)
                && self.md5("GET", key, &body).await? != tag
            {
                let detail = "the MD5 of the received data differs from that of the store".to_owned();
                return Err(self.fail(StoreErrorKind::Altered, "GET", key, detail));
            }
            Ok(body)
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            self.check("GET", key)?;
            let mut body = Body::Whole(BytesMut::new());
            if len_bytes > 0 {
                self.range(key, offset_bytes, len_bytes, &mut body).await?;
            }
            Ok(body.content())
        })
    }

    fn get_pieces<'a>(
        &'a self,
        key: &'a str,
        offset_bytes: u64,
        pieces: &'a Pieces,
    ) -> StoreFuture<'a, Received> {
        Box::pin(async move {
            self.check("GET", key)?;
            let done_bytes = pieces.offset_bytes();
            let len_bytes = pieces.len_bytes() - done_bytes;
            if len_bytes > 0 {
                let offset_bytes = offset_bytes.saturating_add(done_bytes);
                self.range(key, offset_bytes, len_bytes, &mut Body::Pieces(pieces.begin())).await?;
            }
            Ok(Received(len_bytes))
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            self.check("DELETE", key)?;
            self.delete_object(key).await
        })
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            if !check_prefix(prefix) {
                return Err(StoreError::new(StoreErrorKind::BadKey, "LIST", prefix, &self.description));
            }
            self.page_of(prefix, page.unwrap_or_default()).await
        })
    }

    fn remove_unfinished<'a>(
        &'a self,
        prefix: &'a str,
        before_unix_s: i64,
        dry_run: bool,
    ) -> StoreFuture<'a, u64> {
        Box::pin(self.remove_unused_segments(prefix, before_unix_s, dry_run))
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        Box::pin(async move {
            self.check("MULTIPART", key)?;
            Ok(Uuid::new_v4().to_string())
        })
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        Box::pin(async move {
            self.check("MULTIPART", key)?;
            let segment = format!("{}{part_no:08}", Self::segments(key, upload_id));
            let len = body.len();
            let md5 = self.put_object("MULTIPART", &segment, body).await?;
            Ok(format!("{md5}-{len}"))
        })
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.check("MULTIPART", key)?;
            let segments = Self::segments(key, upload_id);
            let list = tags.iter().enumerate().map(|(part_no, tag)| {
                let (md5, len) = tag.split_once('-')?;
                let path = format!("/{}/{segments}{part_no:08}", self.container);
                Some(json!({"path": path, "etag": md5, "size_bytes": len.parse::<u64>().ok()?}))
            });
            let list: Option<Vec<_>> = list.collect();
            let list = list.ok_or_else(|| {
                self.fail(StoreErrorKind::Other, "MULTIPART", key, "a part has an invalid tag".into())
            })?;
            let body = serde_json::Value::Array(list).to_string();
            let with = |request: RequestBuilder| request.body(body.clone());
            self.ask("MULTIPART", key, &Method::PUT, "?multipart-manifest=put", with).await.map(drop)
        })
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            self.check("MULTIPART", key)?;
            for segment in self.list(&Self::segments(key, upload_id)).await? {
                self.delete_object(&segment.key).await?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
