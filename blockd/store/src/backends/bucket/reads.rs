//! Reads of a bucket.

use super::BucketStore;
use crate::{StoreError, StoreErrorKind, TransferBuffer, TransferMemory, middleware::note_received};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::{GetOptions, GetRange};

/// Body of a response while it is received.
enum Body {
    Own(BytesMut),
    Reserved(TransferBuffer),
}

impl Body {
    /// Waits for room in `memory`. The request is in flight meanwhile: its latency needs no memory.
    async fn new(len_bytes: usize, memory: Option<&TransferMemory>) -> Self {
        match memory {
            Some(memory) => Self::Reserved(memory.reserve(len_bytes).await),
            None => Self::Own(BytesMut::with_capacity(len_bytes)),
        }
    }

    fn append(&mut self, piece: &[u8]) {
        match self {
            Self::Own(body) => body.extend_from_slice(piece),
            Self::Reserved(body) => body.appendable().extend_from_slice(piece),
        }
    }

    fn len_bytes(&self) -> usize {
        match self {
            Self::Own(body) => body.len(),
            Self::Reserved(body) => body.len_bytes(),
        }
    }

    fn freeze(self) -> Bytes {
        match self {
            Self::Own(body) => body.freeze(),
            Self::Reserved(body) => body.freeze(),
        }
    }
}

impl BucketStore {
    /// Reads an object or a range of it.
    pub(super) async fn fetch(
        &self,
        key: &str,
        range: Option<std::ops::Range<u64>>,
        max_len_bytes: u64,
        memory: Option<&TransferMemory>,
    ) -> Result<Bytes, StoreError> {
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
        let mut body = Body::new(len_bytes as usize, memory).await;
        let mut stream = answer.into_stream();
        loop {
            let Ok(next) = tokio::time::timeout(self.stall_timeout, stream.next()).await else {
                let waited = self.stall_timeout.as_secs();
                let detail = format!(
                    "no data received for {waited} s after {} of {len_bytes} bytes",
                    body.len_bytes()
                );
                return Err(fail(StoreErrorKind::Timeout, detail));
            };
            let Some(piece) = next else { break };
            let piece = piece.map_err(|error| self.error("GET", key, error))?;
            note_received(piece.len());
            if (body.len_bytes() + piece.len()) as u64 > len_bytes {
                return Err(fail(
                    StoreErrorKind::Other,
                    "the body is longer than its announced length".into(),
                ));
            }
            body.append(&piece);
        }
        if body.len_bytes() as u64 != len_bytes {
            return Err(fail(
                StoreErrorKind::ShortBody,
                format!("{} of {len_bytes} bytes received", body.len_bytes()),
            ));
        }
        Ok(body.freeze())
    }
}
