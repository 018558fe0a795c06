//! Reads of a bucket.

use super::BucketStore;
use crate::{StoreError, StoreErrorKind, middleware::note_received, pieces::Body};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::{GetOptions, GetRange};

/// Received body.
pub(super) struct Fetched {
    pub len_bytes: u64,
    /// Content, unless pieces received it.
    pub content: Bytes,
}

impl BucketStore {
    /// Reads an object or a range of it.
    pub(super) async fn fetch_whole(
        &self,
        key: &str,
        range: Option<std::ops::Range<u64>>,
        max_len_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        let body = Body::Whole(BytesMut::new());
        Ok(self.fetch(key, range, max_len_bytes, body).await?.content)
    }

    /// Reads an object or a range of it into a body.
    pub(super) async fn fetch(
        &self,
        key: &str,
        range: Option<std::ops::Range<u64>>,
        max_len_bytes: u64,
        mut body: Body<'_>,
    ) -> Result<Fetched, StoreError> {
        let path = self.path("GET", key)?;
        let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
        let (answer, _) = self.ask("GET", key, self.client.get_opts(&path, options)).await?;
        let len_bytes = answer.range.end.saturating_sub(answer.range.start);
        let fail =
            |kind, detail: String| StoreError::new(kind, "GET", key, &self.description).with_detail(detail);
        if range.is_some_and(|range| range != answer.range) {
            return Err(fail(
                StoreErrorKind::RangeBeyondEnd,
                format!("the object has {} bytes", answer.meta.size),
            ));
        }
        if len_bytes > max_len_bytes {
            return Err(fail(
                StoreErrorKind::TooLarge,
                format!("{len_bytes} bytes, at most {max_len_bytes} are expected"),
            ));
        }
        if let Body::Whole(content) = &mut body {
            content.reserve(len_bytes as usize);
        }
        let mut received = 0;
        let mut stream = answer.into_stream();
        loop {
            let Ok(next) = tokio::time::timeout(self.stall_timeout, stream.next()).await else {
                let waited = self.stall_timeout.as_secs();
                let detail = format!("no data received for {waited} s after {received} of {len_bytes} bytes");
                return Err(fail(StoreErrorKind::Timeout, detail));
            };
            let Some(part) = next else { break };
            let part = part.map_err(|error| self.error("GET", key, error))?;
            note_received(part.len());
            received += part.len() as u64;
            if received > len_bytes {
                return Err(fail(
                    StoreErrorKind::Other,
                    "the body is longer than its announced length".into(),
                ));
            }
            body.append(&part).await;
        }
        if received != len_bytes {
            return Err(fail(StoreErrorKind::ShortBody, format!("{received} of {len_bytes} bytes received")));
        }
        Ok(Fetched { len_bytes, content: body.content() })
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        BlobStore, HttpOptions, Pieces, Received, RetryPolicy, TransferMemory, backends::s3, task_store,
    };
    use blockd_testkit::store::{FakeHttpServer, HttpReply, HttpRequest};
    use futures::future::try_join_all;
    use parking_lot::Mutex;
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };
    use tokio::sync::mpsc::unbounded_channel;

    /// Returns the requested part of an object of 100 bytes; each one is its position.
    fn ranged(request: &HttpRequest, cut_bytes: usize) -> HttpReply {
        let range = request.header("range").trim_start_matches("bytes=");
        let (from, to) = range.split_once('-').unwrap();
        let (from, to) = (from.parse::<u8>().unwrap(), to.parse::<u8>().unwrap());
        let reply = HttpReply::status(206)
            .header("ETag", "\"tag\"")
            .header("Last-Modified", "Sat, 21 Nov 2026 12:00:00 GMT")
            .header("Content-Range", format!("bytes {from}-{to}/100"));
        HttpReply { cut_bytes, ..reply.body((from..=to).collect::<Vec<_>>()) }
    }

    #[tokio::test]
    async fn repeated_read_continues_after_the_last_piece() {
        let requests = AtomicUsize::new(0);
        let server = FakeHttpServer::start(move |request| {
            // Ends within the second piece, then within the fourth.
            ranged(request, [45, 3, 0][requests.fetch_add(1, SeqCst)])
        });
        let server = server.await;
        let store = s3::open(&s3::tests::config(&server.url()), &HttpOptions::default()).unwrap();
        let policy = RetryPolicy { base_ms: 0, max_ms: 0, ..RetryPolicy::default() };
        let (store, counts) = task_store(Arc::new(store), policy);
        let (memory, passed) = (TransferMemory::new(1 << 20), Arc::<Mutex<Vec<_>>>::default());
        let pieces = {
            let passed = passed.clone();
            Pieces::new(memory.clone(), vec![10, 40, 60, 80], move |at, content| {
                passed.lock().push((at, content));
            })
        };
        assert_eq!(store.get_pieces("a", 5, &pieces).await.unwrap(), Received(20));
        let ranges: Vec<_> = server.seen().iter().map(|request| request.header("range").to_owned()).collect();
        assert_eq!(ranges, ["bytes=5-84", "bytes=15-84", "bytes=65-84"]);
        let passed = std::mem::take(&mut *passed.lock());
        let found: Vec<_> = passed.iter().map(|(at, content)| (*at, content.to_vec())).collect();
        let part = |from: u8, to: u8| (u64::from(from), (from + 5..to + 5).collect::<Vec<_>>());
        assert_eq!(found, [part(0, 10), part(10, 40), part(40, 60), part(60, 80)]);
        // The lost bytes are egress, too.
        assert_eq!(counts.snapshot().bytes_down, 35 + 67 + 20);
        assert_eq!(memory.reserved_bytes(), 4 * (256 << 10), "each piece has its memory");
        drop(passed);
        assert_eq!(memory.reserved_bytes(), 0);
    }

    #[tokio::test]
    async fn reads_take_turns_in_the_room_of_one_piece() {
        let server = FakeHttpServer::start(|request| ranged(request, 0)).await;
        let store = s3::open(&s3::tests::config(&server.url()), &HttpOptions::default()).unwrap();
        let memory = TransferMemory::new(1);
        let all = [(); 4].map(|()| Pieces::new(memory.clone(), vec![10, 40, 80], |_, content| drop(content)));
        let reads = all.iter().map(|pieces| store.get_pieces("a", 5, pieces));
        assert_eq!(try_join_all(reads).await.unwrap(), [Received(80); 4]);
        // Cancelled while it waits for the room of its second piece.
        let (send, mut passed) = unbounded_channel();
        let pieces = Pieces::new(memory.clone(), vec![10, 40, 80], move |_, content| {
            send.send(content).unwrap();
        });
        let read = store.get_pieces("a", 5, &pieces);
        let first = tokio::select! {
            _ = read => None,
            first = passed.recv() => first,
        };
        assert_eq!(first.unwrap().len(), 10);
        assert!(passed.try_recv().is_err());
        drop((pieces, passed));
        assert_eq!(memory.reserved_bytes(), 0);
    }
}
