//! Bucket store over a client of `object_store`.
//!
//! Credentials are always explicit unless instance identity is configured: the library would otherwise query
//! the metadata service. The library does not retry; [`RetryStore`](crate::RetryStore) does, so that all
//! attempts are counted. Response headers that the library drops (`Retry-After`, checksums) come from the
//! HTTP client.

mod deletions;
mod reads;

use self::deletions::Batches;
use super::{
    classify::{classify, is_about_access},
    http::{Hints, with_hints},
};
use crate::pieces::Body;
use crate::{
    BlobStore, Deletions, ListPage, ObjectInfo, Pieces, PutMode, Received, StoreError, StoreErrorKind,
    StoreFuture, blocking, check_key, check_prefix,
};
use bytes::Bytes;
use md5::{Digest, Md5};
use object_store::{
    Attribute, Attributes, BackoffConfig, PutMultipartOptions, PutOptions, PutPayload, RetryConfig,
    list::{PaginatedListOptions, PaginatedListStore},
    multipart::{MultipartStore, PartId},
    path::Path,
};
use std::{future::Future, num::NonZero, sync::Arc, time::Duration};

/// Common interface of the library's clients.
pub(super) trait BucketClient:
    object_store::ObjectStore + MultipartStore + PaginatedListStore
{
}

impl<T: object_store::ObjectStore + MultipartStore + PaginatedListStore> BucketClient for T {}

/// Returns a configuration without retries by the library.
pub(super) fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::from_secs(1) }
}

/// S3 or Google bucket, or Azure container.
pub struct BucketStore {
    client: Arc<dyn BucketClient>,
    /// Requests that delete several objects.
    batches: Option<Batches>,
    description: String,
    attributes: Attributes,
    stall_timeout: Duration,
}

impl BucketStore {
    pub(super) fn new(
        client: impl BucketClient,
        description: String,
        storage_class: Option<&str>,
        stall_timeout: Duration,
    ) -> Self {
        let mut attributes = Attributes::new();
        if let Some(class) = storage_class {
            attributes.insert(Attribute::StorageClass, class.to_owned().into());
        }
        Self { client: Arc::new(client), batches: None, description, attributes, stall_timeout }
    }

    fn path(&self, operation: &'static str, key: &str) -> Result<Path, StoreError> {
        let bad = || StoreError::new(StoreErrorKind::BadKey, operation, key, &self.description);
        if !check_key(key) {
            return Err(bad());
        }
        Path::parse(key).map_err(|_| bad())
    }

    fn error(&self, operation: &'static str, key: &str, error: object_store::Error) -> StoreError {
        let (kind, detail) = classify(operation, &error);
        let mut out = StoreError::new(kind, operation, key, &self.description).with_detail(detail);
        // The response text is dropped: some servers include the request's signature.
        if !is_about_access(kind) {
            out.source = Some(Arc::new(error));
        }
        out
    }

    /// Runs one operation of the client; adds the hints of its responses to the error or returns them.
    async fn ask<T>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<(T, Hints), StoreError> {
        let (result, hints) = with_hints(work).await;
        match result {
            Ok(value) => Ok((value, hints)),
            Err(error) => {
                let mut error = self.error(operation, key, error);
                error.retry_after_s = hints.retry_after_s;
                if error.kind == StoreErrorKind::NoSpace {
                    error.store_time_unix_s = hints.date_unix_s.and_then(NonZero::new);
                }
                if let (StoreErrorKind::WrongRegion, Some(host)) = (error.kind, hints.redirects_to) {
                    error = error.with_detail(format!("redirects to {host}"));
                }
                Err(error)
            }
        }
    }

    /// Compares the checksum reported by the store with the sent data, if there is one.
    async fn check_stored(
        &self,
        operation: &'static str,
        key: &str,
        sent: Bytes,
        hints: Hints,
    ) -> Result<(), StoreError> {
        let Some(stored) = hints.stored_md5 else { return Ok(()) };
        let sent: [u8; 16] =
            blocking(operation, key, &self.description, move || Ok(Md5::digest(&sent).into())).await?;
        if sent == stored {
            return Ok(());
        }
        Err(StoreError::new(StoreErrorKind::Altered, operation, key, &self.description)
            .with_detail("the MD5 reported by the store differs from that of the sent data"))
    }
}

impl BlobStore for BucketStore {
    fn describe(&self) -> &str {
        &self.description
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let path = self.path("PUT", key)?;
            let mode = match mode {
                PutMode::CreateIfAbsent => object_store::PutMode::Create,
                PutMode::Overwrite => object_store::PutMode::Overwrite,
            };
            let options = PutOptions { mode, attributes: self.attributes.clone(), ..PutOptions::default() };
            let put = self.client.put_opts(&path, PutPayload::from(body.clone()), options);
            match self.ask("PUT", key, put).await {
                Ok((_, hints)) => self.check_stored("PUT", key, body, hints).await,
                // Only a missing bucket causes "not found" for a put.
                Err(mut error) if error.kind == StoreErrorKind::NotFound => {
                    error.kind = StoreErrorKind::BucketMissing;
                    Err(error)
                }
                Err(error) => Err(error),
            }
        })
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(self.fetch_whole(key, None, max_len_bytes))
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            if len_bytes == 0 {
                return Ok(Bytes::new());
            }
            let range = offset_bytes..offset_bytes.saturating_add(len_bytes);
            self.fetch_whole(key, Some(range), len_bytes).await
        })
    }

    fn get_pieces<'a>(
        &'a self,
        key: &'a str,
        offset_bytes: u64,
        pieces: &'a Pieces,
    ) -> StoreFuture<'a, Received> {
        Box::pin(async move {
            let (done, len_bytes) = (pieces.offset_bytes(), pieces.len_bytes());
            if done == len_bytes {
                return Ok(Received(0));
            }
            let range = offset_bytes.saturating_add(done)..offset_bytes.saturating_add(len_bytes);
            let fetched = self.fetch(key, Some(range), len_bytes, Body::Pieces(pieces.begin())).await;
            fetched.map(|body| Received(body.len_bytes))
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        Box::pin(self.delete_one(key))
    }

    fn delete_many<'a>(&'a self, keys: &'a [String]) -> StoreFuture<'a, Deletions> {
        Box::pin(self.delete_first(keys))
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        Box::pin(async move {
            if !check_prefix(prefix) {
                return Err(StoreError::new(StoreErrorKind::BadKey, "LIST", prefix, &self.description));
            }
            let options = PaginatedListOptions {
                page_token: page.map(str::to_owned),
                ..PaginatedListOptions::default()
            };
            // One character shorter: for Azure, the client omits an object whose key equals the prefix.
            let mut shorter = prefix.chars();
            if !prefix.ends_with('/') {
                shorter.next_back();
            }
            let shorter = Some(shorter.as_str()).filter(|prefix| !prefix.is_empty());
            let listed = self.client.list_paginated(shorter, options);
            let listed = match self.ask("LIST", prefix, listed).await {
                Ok((listed, _)) => listed,
                Err(mut error) => {
                    if error.kind == StoreErrorKind::NotFound {
                        error.kind = StoreErrorKind::BucketMissing;
                    }
                    return Err(error);
                }
            };
            let objects = listed.result.objects.into_iter().filter_map(|found| {
                let key = found.location.to_string();
                let tag = found.e_tag.unwrap_or_default();
                let version = format!("{tag}-{}-{}", found.size, found.last_modified.timestamp_millis());
                let modified_unix_s = Some(found.last_modified.timestamp());
                let is_key = key.starts_with(prefix) && check_key(&key);
                is_key.then_some(ObjectInfo { key, size_bytes: found.size, version, modified_unix_s })
            });
            Ok(ListPage { objects: objects.collect(), next: listed.page_token })
        })
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        Box::pin(async move {
            let path = self.path("MULTIPART", key)?;
            let options =
                PutMultipartOptions { attributes: self.attributes.clone(), ..PutMultipartOptions::default() };
            let start = self.client.create_multipart_opts(&path, options);
            Ok(self.ask("MULTIPART", key, start).await?.0)
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
            let path = self.path("MULTIPART", key)?;
            let upload_id = upload_id.to_owned();
            let payload = PutPayload::from(body.clone());
            let put = self.client.put_part(&path, &upload_id, part_no as usize, payload);
            let (part, hints) = self.ask("MULTIPART", key, put).await?;
            self.check_stored("MULTIPART", key, body, hints).await?;
            Ok(part.content_id)
        })
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let path = self.path("MULTIPART", key)?;
            let parts = tags.iter().map(|tag| PartId { content_id: tag.clone() }).collect();
            let upload_id = upload_id.to_owned();
            let complete = self.client.complete_multipart(&path, &upload_id, parts);
            self.ask("MULTIPART", key, complete).await.map(drop)
        })
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let path = self.path("MULTIPART", key)?;
            let upload_id = upload_id.to_owned();
            self.ask("MULTIPART", key, self.client.abort_multipart(&path, &upload_id)).await.map(drop)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HttpOptions, backends::s3};
    use blockd_testkit::store::{FakeHttpServer, HttpReply};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn store_at(endpoint: &str) -> BucketStore {
        store_through(endpoint, None)
    }

    fn store_through(endpoint: &str, proxy: Option<String>) -> BucketStore {
        let mut config = s3::tests::config(endpoint);
        config.access.storage_class = Some("STANDARD_IA".into());
        // Longer than a busy machine delays a response.
        let http = HttpOptions { stall_timeout: Duration::from_secs(10), proxy, ..HttpOptions::default() };
        s3::open(&config, &http).unwrap()
    }

    fn object() -> HttpReply {
        HttpReply::status(200)
            .header("ETag", "\"tag\"")
            .header("Last-Modified", "Sat, 21 Nov 2026 12:00:00 GMT")
            .body("hello")
    }

    async fn put(reply: HttpReply) -> (Result<(), StoreError>, FakeHttpServer) {
        let server = FakeHttpServer::start(move |_| reply.clone()).await;
        let store = store_at(&server.url());
        (store.put("a/b", Bytes::from_static(b"hello"), PutMode::Overwrite).await, server)
    }

    #[tokio::test]
    async fn stored_checksum_is_compared_with_the_sent_one() {
        let stored = |name, value: &str| HttpReply::status(200).header("ETag", "\"t\"").header(name, value);
        let (result, server) = put(stored("Content-MD5", "XUFAKrxLKna5cZ2REBfFkg==")).await;
        result.unwrap();
        assert_eq!(server.seen()[0].header("x-amz-storage-class"), "STANDARD_IA");
        put(stored("x-goog-hash", "crc32c=mnG7TA==,md5=XUFAKrxLKna5cZ2REBfFkg==")).await.0.unwrap();
        put(stored("x-other", "")).await.0.unwrap();
        for (name, value) in [
            ("Content-MD5", "1B2M2Y8AsgTpgAmY7PhCfg=="),
            ("x-goog-hash", "crc32c=mnG7TA==, md5=1B2M2Y8AsgTpgAmY7PhCfg=="),
        ] {
            let error = put(stored(name, value)).await.0.unwrap_err();
            assert_eq!(error.kind, StoreErrorKind::Altered, "{error}");
            assert!(error.is_retryable());
        }
    }

    #[tokio::test]
    async fn retry_after_header_is_in_the_error() {
        for (status, pause) in [(503, Some(7)), (429, Some(7)), (500, None), (403, None)] {
            let (result, _) = put(HttpReply::status(status).header("Retry-After", "7")).await;
            assert_eq!(result.unwrap_err().retry_after_s, pause, "{status}");
        }
    }

    #[tokio::test]
    async fn refusal_of_a_full_store_has_its_date() {
        let date = "Sat, 21 Nov 2026 12:00:00 GMT";
        let full = HttpReply::status(507).body("<Error><Code>XMinioStorageFull</Code></Error>");
        for (reply, expected) in
            [(full.clone().header("Date", date), Some(1_795_262_400)), (full.header("Date", "soon"), None)]
        {
            let error = put(reply).await.0.unwrap_err();
            let told = error.store_time_unix_s.map(NonZero::get);
            assert_eq!((error.kind, told), (StoreErrorKind::NoSpace, expected));
        }
    }

    #[tokio::test]
    async fn setting_errors_are_distinguished() {
        let xml = |status, code: &str, more: &str| {
            HttpReply::status(status)
                .body(format!("<Error><Code>{code}</Code><Message>planted-signature</Message>{more}</Error>"))
        };
        let plain = "<title>400 The plain HTTP request was sent to HTTPS port</title>";
        for (reply, kind, words) in [
            (xml(403, "RequestTimeTooSkewed", ""), StoreErrorKind::WrongClock, "clock"),
            (xml(403, "SecondLevelDomainForbidden", ""), StoreErrorKind::WrongStyle, "in the host name"),
            (
                xml(400, "AuthorizationHeaderMalformed", "<Region>eu-central-1</Region>"),
                StoreErrorKind::WrongRegion,
                "eu-central-1 is expected",
            ),
            (xml(400, "AuthorizationHeaderMalformed", ""), StoreErrorKind::Unauthorized, "access denied"),
            (xml(301, "PermanentRedirect", ""), StoreErrorKind::WrongRegion, "another region"),
            (xml(400, "InvalidStorageClass", ""), StoreErrorKind::Misconfigured, "settings"),
            (xml(403, "InvalidObjectState", ""), StoreErrorKind::Archived, "archive class"),
            (HttpReply::status(400).body(plain), StoreErrorKind::WrongScheme, "TLS"),
            (HttpReply::status(407).body("who are you"), StoreErrorKind::Unreachable, "407"),
        ] {
            let error = put(reply).await.0.unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
            let told = format!("{error} {:?}", error.source);
            assert!(told.contains(words), "{told}");
            if is_about_access(kind) {
                assert!(!told.contains("planted"), "{told}");
            }
        }
    }

    #[tokio::test]
    async fn error_response_without_code_is_classified_by_status() {
        for status in [401, 403] {
            let server =
                FakeHttpServer::start(move |_| HttpReply::status(status).body("<html>no</html>")).await;
            let store = store_at(&server.url());
            for error in [store.get("a", 100).await.unwrap_err(), store.list("a/").await.unwrap_err()] {
                assert_eq!(error.kind, StoreErrorKind::Unauthorized, "{status} {error}");
                assert!(!error.is_retryable());
            }
        }
        for status in [301, 302, 307, 308] {
            let server = FakeHttpServer::start(move |_| {
                HttpReply::status(status)
                    .header("Location", "https://eu.example:8443/b/a?X-Signature=planted")
            });
            let server = server.await;
            let store = store_at(&server.url());
            for error in [store.get("a", 100).await.unwrap_err(), store.list("a/").await.unwrap_err()] {
                assert_eq!(error.kind, StoreErrorKind::WrongRegion, "{status} {error}");
                assert!(!error.is_retryable());
                let told = format!("{error} {:?}", error.source);
                assert!(
                    told.contains("redirects to eu.example:8443)") && !told.contains("planted"),
                    "{told}"
                );
            }
        }
    }

    #[tokio::test]
    async fn plain_http_server_is_distinguished_from_an_absent_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://{}", listener.local_addr().unwrap());
        // The response of a plain HTTP server to a TLS greeting.
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut greeting = [0; 1];
                if stream.read_exact(&mut greeting).await.is_ok() {
                    let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
                }
            }
        });
        let error = store_at(&endpoint).get("a", 100).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::WrongScheme, "{error}");
    }

    #[tokio::test]
    async fn stalled_or_truncated_bodies_are_errors() {
        for (reply, kind) in [
            (HttpReply { stall: Duration::from_secs(60), ..object() }, StoreErrorKind::Timeout),
            (HttpReply { cut_bytes: 2, ..object() }, StoreErrorKind::ShortBody),
        ] {
            let server = FakeHttpServer::start(move |_| reply.clone()).await;
            let error = store_at(&server.url()).get("a", 100).await.unwrap_err();
            assert_eq!(error.kind, kind, "{error}");
        }
    }

    #[tokio::test]
    async fn requests_go_through_the_proxy() {
        let proxy = FakeHttpServer::start(|_| object()).await;
        let store = store_through("http://store.example:9000", Some(proxy.url()));
        assert_eq!(store.get("a/b", 100).await.unwrap(), b"hello"[..]);
        assert_eq!(proxy.seen()[0].path, "http://store.example:9000/bkt/a/b");
    }

    #[tokio::test]
    async fn redirections_are_not_followed() {
        // They would send credentials to another host.
        let other = FakeHttpServer::start(|_| object()).await;
        let to = format!("{}/bkt/a/b", other.url());
        let server =
            FakeHttpServer::start(move |_| HttpReply::status(307).header("Location", to.clone())).await;
        assert!(store_at(&server.url()).get("a/b", 100).await.is_err());
        assert!(other.seen().is_empty());
    }
}
