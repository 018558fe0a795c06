//! Probe of a store's behavior.
//!
//! Servers that accept and ignore a condition on a put are common, so only observed behavior counts: objects
//! are read as they were written, whole and by range, are listed and deleted, and create-if-absent has one
//! winner, also among two concurrent writers.

use crate::{BlobStore, PutMode, StoreError, StoreErrorKind};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::time::Instant;
use uuid::Uuid;

/// Number of create-if-absent races.
const RACES: u32 = 4;
/// Size of the object for rate measurements in bytes.
const SAMPLE_LEN_BYTES: usize = 4 << 20;

/// Observed capabilities of a store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreCapabilities {
    /// Create-if-absent keeps an existing object and has one winner among concurrent writers.
    pub conditional_put: bool,
    /// Write rate of one object of 4 MiB, in bytes per second.
    pub write_bytes_per_s: u64,
    /// Read rate of this object, in bytes per second.
    pub read_bytes_per_s: u64,
}

/// Error of a probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// An operation failed.
    #[error("store probe failed to {step}: {source}")]
    Failed {
        /// Step.
        step: &'static str,
        /// Error.
        source: StoreError,
    },
    /// An operation reported success without effect.
    #[error("the store {store} does not {step}: {what}")]
    Wrong {
        /// Store.
        store: String,
        /// Step.
        step: &'static str,
        /// Observation.
        what: String,
    },
}

impl ProbeError {
    /// Returns the store's error, if it reported one.
    pub fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Failed { source, .. } => Some(source),
            Self::Wrong { .. } => None,
        }
    }

    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        self.store_error().is_some_and(StoreError::is_retryable)
    }
}

struct Probe<'a> {
    store: &'a dyn BlobStore,
    prefix: String,
}

/// Tests the operations that backups need, below `blockd/probe/`, and cleans up.
///
/// # Errors
/// [`ProbeError`], which names the step that failed.
pub async fn probe(store: &dyn BlobStore) -> Result<StoreCapabilities, ProbeError> {
    let probe = Probe { store, prefix: format!("blockd/probe/{}/", Uuid::new_v4()) };
    // The listing comes first, because some servers create a missing bucket on a put.
    let failed = |source| ProbeError::Failed { step: "list objects", source };
    store.list(&probe.prefix).await.map_err(failed)?;
    let result = probe.run().await;
    if result.is_err() {
        probe.clean_up().await;
    }
    result
}

impl Probe<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn wrong(&self, step: &'static str, what: impl Into<String>) -> ProbeError {
        ProbeError::Wrong { store: self.store.describe().to_owned(), step, what: what.into() }
    }

    async fn run(&self) -> Result<StoreCapabilities, ProbeError> {
        let failed = |step| move |source| ProbeError::Failed { step, source };
        let sample = self.key("sample");
        let body = sample_body();

        let step = "store an object";
        let start = Instant::now();
        self.store.put(&sample, body.clone(), PutMode::Overwrite).await.map_err(failed(step))?;
        let write_bytes_per_s = rate(start);

        let step = "return an object as it was stored";
        let start = Instant::now();
        let back = self.store.get(&sample, SAMPLE_LEN_BYTES as u64).await.map_err(failed(step))?;
        let read_bytes_per_s = rate(start);
        if back != body {
            return Err(self.wrong(step, "other content was returned"));
        }

        let step = "return a range of an object";
        let range = self.store.get_range(&sample, 4097, 70_000).await.map_err(failed(step))?;
        if range != body.slice(4097..74_097) {
            return Err(self.wrong(step, "other content was returned"));
        }

        let step = "replace an object";
        let small = Bytes::from_static(b"second");
        self.store.put(&sample, small.clone(), PutMode::Overwrite).await.map_err(failed(step))?;
        if self.store.get(&sample, SAMPLE_LEN_BYTES as u64).await.map_err(failed(step))? != small {
            return Err(self.wrong(step, "the old content was returned"));
        }

        let conditional_put = self.conditional_put().await?;

        let step = "list objects";
        let listed = self.store.list(&self.prefix).await.map_err(failed(step))?;
        if !listed.iter().any(|object| object.key == sample && object.size_bytes == small.len() as u64) {
            return Err(self.wrong(step, "a stored object is missing from the listing or has another length"));
        }

        let step = "delete objects";
        for object in &listed {
            self.store.delete(&object.key).await.map_err(failed(step))?;
        }
        match self.store.get(&sample, SAMPLE_LEN_BYTES as u64).await {
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            Err(error) => return Err(failed(step)(error)),
            Ok(_) => return Err(self.wrong(step, "a deleted object still exists")),
        }
        Ok(StoreCapabilities { conditional_put, write_bytes_per_s, read_bytes_per_s })
    }

    /// Returns true if create-if-absent is reliable.
    async fn conditional_put(&self) -> Result<bool, ProbeError> {
        let step = "create an object";
        let failed = |source| ProbeError::Failed { step, source };
        let create = async |key: &str, body: &'static [u8]| {
            match self.store.put(key, Bytes::from_static(body), PutMode::CreateIfAbsent).await {
                Ok(()) => Ok(true),
                Err(error) if error.kind == StoreErrorKind::AlreadyExists => Ok(false),
                // A store may not support conditions.
                Err(error) if error.kind == StoreErrorKind::Unsupported => Ok(false),
                Err(error) => Err(failed(error)),
            }
        };
        let mut key = self.key("once");
        if !create(&key, b"first").await? {
            // An earlier attempt of the same request may have created the object although its response was
            // lost.
            key = self.key("once-more");
            if !create(&key, b"first").await? {
                return Ok(false);
            }
        }
        if create(&key, b"again").await? {
            return Ok(false);
        }
        if self.store.get(&key, 64).await.map_err(failed)? != b"first"[..] {
            return Ok(false);
        }
        for race in 0..RACES {
            let key = self.key(&format!("race-{race}"));
            let (left, right) = futures::join!(create(&key, b"left"), create(&key, b"right"));
            let winner: &[u8] = match (left?, right?) {
                (true, false) => b"left",
                (false, true) => b"right",
                _ => return Ok(false),
            };
            if self.store.get(&key, 64).await.map_err(failed)? != winner {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn clean_up(&self) {
        for object in self.store.list(&self.prefix).await.unwrap_or_default() {
            let _ = self.store.delete(&object.key).await;
        }
    }
}

/// Returns incompressible bytes, so that a compressing store does not appear faster.
fn sample_body() -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = (0..SAMPLE_LEN_BYTES / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect::<Vec<u8>>().into()
}

fn rate(start: Instant) -> u64 {
    let micros = start.elapsed().as_micros().max(1) as u64;
    (SAMPLE_LEN_BYTES as u64).saturating_mul(1_000_000) / micros
}
