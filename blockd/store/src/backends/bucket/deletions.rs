//! Deletions in a bucket: of one object, or of several with one request.

use super::{BucketClient, BucketStore, with_hints};
use crate::{Deletions, StoreError, StoreErrorKind};
use futures::{FutureExt, StreamExt};
use object_store::{ObjectStoreExt as _, path::Path};
use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Requests that delete several objects.
pub(super) struct Batches {
    client: Arc<dyn BucketClient>,
    max_keys: usize,
    /// The server refused one.
    are_refused: AtomicBool,
}

impl BucketStore {
    /// Deletes up to `max_keys` objects with one request of `client`.
    pub(in super::super) fn with_batches(self, client: impl BucketClient, max_keys: usize) -> Self {
        let are_refused = AtomicBool::new(false);
        Self { batches: Some(Batches { client: Arc::new(client), max_keys, are_refused }), ..self }
    }

    pub(super) async fn delete_one(&self, key: &str) -> Result<bool, StoreError> {
        let path = self.path("DELETE", key)?;
        match self.ask("DELETE", key, self.client.delete(&path)).await {
            // S3 does not report whether the object existed.
            Ok(_) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes the first objects with one request. After a response that is neither a result nor an error
    /// with a known cause, all later requests delete one object.
    pub(super) async fn delete_first(&self, keys: &[String]) -> Result<Deletions, StoreError> {
        let Some(first) = keys.first() else { return Ok(Vec::new()) };
        let Some(batches) = self.batches.as_ref().filter(|batches| !batches.are_refused.load(Relaxed)) else {
            return Ok(vec![Ok(self.delete_one(first).await?)]);
        };
        let deleted = self.delete_batch(batches, first, &keys[..keys.len().min(batches.max_keys)]).await;
        deleted.map_err(|error| match error.kind {
            StoreErrorKind::Other | StoreErrorKind::Unsupported => {
                batches.are_refused.store(true, Relaxed);
                StoreError { kind: StoreErrorKind::Unsupported, ..error }
            }
            _ => error,
        })
    }

    async fn delete_batch(
        &self,
        batches: &Batches,
        first: &str,
        keys: &[String],
    ) -> Result<Deletions, StoreError> {
        let paths: Vec<Path> = keys.iter().map(|key| self.path("DELETE", key)).collect::<Result<_, _>>()?;
        let results = batches.client.delete_stream(futures::stream::iter(paths.into_iter().map(Ok)).boxed());
        // The library panics if a server names an object that was not requested.
        let results = AssertUnwindSafe(results.collect::<Vec<_>>()).catch_unwind();
        let (answer, hints) = with_hints(results).await;
        let failed = |detail| {
            StoreError::new(StoreErrorKind::Other, "DELETE", first, &self.description).with_detail(detail)
        };
        let results = answer.map_err(|_| failed("the response names an unexpected object"))?;
        // The library reports a failed request once, not for each object.
        if results.len() != keys.len() {
            let error = results.into_iter().find_map(Result::err);
            let error = error.map_or_else(
                || failed("the response is incomplete"),
                |error| self.error("DELETE", first, error),
            );
            return Err(StoreError { retry_after_s: hints.retry_after_s, ..error });
        }
        let result = |(key, result): (&String, object_store::Result<Path>)| match result {
            Ok(_) => Ok(true),
            Err(error) => match self.error("DELETE", key, error) {
                error if error.kind == StoreErrorKind::NotFound => Ok(false),
                error => Err(StoreError { retry_after_s: hints.retry_after_s, ..error }),
            },
        };
        let mut results: Deletions = keys.iter().zip(results).map(result).collect();
        let is_throttled = |result: &Result<bool, StoreError>| {
            result.as_ref().is_err_and(|error| error.kind == StoreErrorKind::Throttled)
        };
        // Without a success the request fails, and is repeated after a pause. Otherwise the results count.
        match results.iter().position(is_throttled) {
            Some(first) if !results.iter().any(Result::is_ok) => {
                results.swap_remove(first).map(|_| Vec::new())
            }
            _ => Ok(results),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlobStore, HttpOptions, RetryPolicy, RetryStore, backends::s3, delete_objects};
    use blockd_testkit::store::{FakeHttpServer, HttpReply, HttpRequest};

    fn keys(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("k{number}")).collect()
    }

    async fn server(
        answer: impl Fn(&HttpRequest) -> HttpReply + Send + Sync + 'static,
    ) -> (FakeHttpServer, BucketStore) {
        let server = FakeHttpServer::start(answer).await;
        let store = s3::open(&s3::tests::config(&server.url()), &HttpOptions::default()).unwrap();
        (server, store)
    }

    fn reply(content: &str) -> HttpReply {
        HttpReply::status(200).body(format!("<DeleteResult>{content}</DeleteResult>"))
    }

    #[tokio::test]
    async fn s3_reports_each_object_of_one_request() {
        let failed = "<Error><Key>k1</Key><Code>AccessDenied</Code><Message>no</Message></Error>";
        let (server, store) = server(move |_| reply(failed)).await;
        let results = store.delete_many(&keys(1500)).await.unwrap();
        assert_eq!(results.len(), 1000);
        assert!(results.iter().enumerate().all(|(number, result)| result.is_ok() == (number != 1)));
        // A single request finds the exact cause.
        assert!(results[1].as_ref().unwrap_err().is_retryable());
        let seen = server.seen();
        assert_eq!((seen.len(), seen[0].method.as_str()), (1, "POST"));
    }

    #[tokio::test]
    async fn throttled_object_throttles_its_request() {
        let failed = "<Error><Key>k1</Key><Code>SlowDown</Code><Message>busy</Message></Error>";
        let (_server, store) = server(move |_| reply(failed)).await;
        assert_eq!(store.delete_many(&keys(3)).await.unwrap_err().kind, StoreErrorKind::Throttled);
    }

    #[tokio::test]
    async fn unexpected_object_in_a_response_is_an_error() {
        let (_server, store) =
            server(|_| reply("<Error><Key>other</Key><Code>X</Code><Message>y</Message></Error>")).await;
        let error = store.delete_many(&keys(2)).await.unwrap_err();
        assert!(error.to_string().contains("unexpected object"), "{error}");
    }

    #[tokio::test]
    async fn server_without_batches_is_asked_for_one_once() {
        for status in [400, 405, 501] {
            let (server, store) = server(move |request| match request.method.as_str() {
                "POST" => HttpReply::status(status),
                _ => HttpReply::status(204),
            })
            .await;
            let store = RetryStore::new(Arc::new(store), RetryPolicy::default());
            for _ in 0..2 {
                assert_eq!(delete_objects(&store, keys(3).into_iter()).await.unwrap(), 3);
            }
            let methods: Vec<_> = server.seen().into_iter().map(|request| request.method).collect();
            assert_eq!(methods[..2], ["POST", "DELETE"], "{status}");
            assert!(
                methods.len() == 7 && methods[1..].iter().all(|method| method == "DELETE"),
                "{methods:?}"
            );
        }
    }
}
