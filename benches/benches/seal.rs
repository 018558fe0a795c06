//! Rate of a backup of a file from memory to nowhere, by all cores: the upper bound of a backup to a store.
//!
//! `cargo bench -p blockd-benches --bench seal -- FILE` prints JSON; `tools/bench backup` compares with it.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use blockd_cloud::{EncryptionMode, KnownKeys, Repository};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet, Extent};
use blockd_store::{BlobStore, Middleware, PutMode, Request, Response, StoreFuture};
use blockd_testkit::{
    Image,
    cloud::{back_up, data_key, spec},
    store::MemoryStore,
};
use bytes::Bytes;
use std::{
    fs::File,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

/// As much of the file as is read, in bytes.
const MAX_BYTES: u64 = 1 << 30;
const ROUNDS: usize = 3;

/// Fake store that counts what is put, and drops it.
#[derive(Default)]
struct Sink {
    inner: Arc<MemoryStore>,
    stored: AtomicUsize,
}

impl Middleware for Sink {
    fn describe(&self) -> &str {
        "sink"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(self.inner.clone())
    }

    fn put<'a>(&'a self, _: &'a str, body: Bytes, _: PutMode) -> StoreFuture<'a, ()> {
        self.stored.fetch_add(body.len(), Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Backs the volume up on all cores; returns how long that took in seconds, and the stored bytes.
fn seal_all(mode: EncryptionMode, raw: &Arc<Image>) -> (f64, usize) {
    let sink = Arc::new(Sink::default());
    let key = data_key(4, mode, [9; 32]);
    let repo = Repository::from_saved_keys(sink.clone(), vec![key], &KnownKeys::default()).unwrap();
    let data = BlockSet::from_iter([Extent::whole(raw.0.len() as u64)]);
    let spec = spec(1, raw.0.len() as u64, data, BlockSet::new(), None);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let began = Instant::now();
    runtime.block_on(back_up(&repo, spec, raw.clone())).unwrap();
    (began.elapsed().as_secs_f64(), sink.stored.load(Relaxed))
}

fn main() {
    let path = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let mut raw = Vec::new();
    match path {
        Some(path) => {
            File::open(path).unwrap().take(MAX_BYTES).read_to_end(&mut raw).unwrap();
        }
        None => raw = include_bytes!("seal.rs").repeat(20_000),
    }
    raw.truncate(raw.len() / BLOCK_SIZE_BYTES as usize * BLOCK_SIZE_BYTES as usize);
    let raw = Arc::new(Image(raw));
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    for (name, mode) in
        [("aes-256-gcm-siv", EncryptionMode::Aes256GcmSiv), ("none", EncryptionMode::Checksummed)]
    {
        let rounds = (0..ROUNDS).map(|_| seal_all(mode, &raw));
        let (seconds, stored) = rounds.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        let rate = raw.0.len() as f64 / seconds / f64::from(1 << 20);
        let ratio = stored as f64 / raw.0.len() as f64;
        println!(
            r#"{{"encryption": "{name}", "threads": {threads}, "mib_per_s": {rate:.0}, "stored_ratio": {ratio:.3}}}"#
        );
    }
}
