//! Creation of buckets and containers.

use super::{classify::classify, http::chain, sts::element};
use crate::{StoreError, StoreErrorKind};
use bytes::Bytes;
use object_store::client::HttpRequest;
use std::time::Duration;

/// Error codes of a bucket that exists. Some servers report the caller's own bucket like any other; the first
/// request to that of another account is refused.
const EXISTING: [&str; 3] = ["BucketAlreadyOwnedByYou", "BucketAlreadyExists", "ContainerAlreadyExists"];

/// Server that creates a bucket.
pub(super) struct BucketCreation<'a> {
    /// Provider, as in messages.
    pub provider: &'static str,
    pub bucket: &'a str,
    /// Bucket and server, as in messages.
    pub store: &'a str,
    pub client: reqwest::Client,
    pub timeout: Duration,
}

impl BucketCreation<'_> {
    /// Sends the authorized request; returns false if the bucket exists already.
    ///
    /// # Errors
    /// The store cannot be reached, or refuses the creation.
    pub(super) async fn send(&self, request: HttpRequest, body: Bytes) -> Result<bool, StoreError> {
        let failed = |kind| StoreError::new(kind, "CREATE", self.bucket, self.store);
        let put = self.client.put(request.uri().to_string()).headers(request.headers().clone());
        let answer = put.body(body).timeout(self.timeout).send().await.map_err(|error| {
            let kind = if error.is_timeout() { StoreErrorKind::Timeout } else { StoreErrorKind::Unreachable };
            failed(kind).with_detail(chain(&error))
        })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(true);
        }
        let text = answer.text().await.unwrap_or_default();
        let code = element(&text, "Code").unwrap_or_default();
        if EXISTING.contains(&code) {
            return Ok(false);
        }
        let message = element(&text, "Message").unwrap_or_default();
        // In the format that `classify` parses.
        let what =
            format!("status code: {} <Code>{code}</Code><Message>{message}</Message>", status.as_u16());
        Err(self.failed(&object_store::Error::Generic { store: self.provider, source: what.into() }))
    }

    /// Converts an error of the client library.
    pub(super) fn failed(&self, error: &object_store::Error) -> StoreError {
        let (kind, detail) = classify("CREATE", error);
        StoreError::new(kind, "CREATE", self.bucket, self.store).with_detail(detail)
    }
}
