//! Store with fault injection.

use blockd_store::{
    BlobStore, Middleware, Operation, Pieces, Received, Request, RequestKind, Response, StoreError,
    StoreErrorKind, StoreFuture,
};
use bytes::Bytes;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    future::Future,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

/// Injected fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The operation fails without effect.
    BeforeApply,
    /// The operation fails after it took effect.
    AfterApply,
    /// The operation fails as with a truncated body.
    ShortBody,
    /// A returned body has a flipped bit in the middle.
    FlipBit,
    /// The store is full.
    NoSpace,
    /// The store is full, and its reply has this time, in seconds since 1970.
    NoSpaceAt(i64),
    /// The credentials are invalid.
    Unauthorized,
    /// The store never replies.
    Hang,
    /// The store throttles the request and asks for a pause, in seconds.
    RetryAfter(u16),
}

/// Store that injects faults into the operations of another store, which it counts from 0.
pub struct FaultStore {
    inner: Arc<dyn BlobStore>,
    operations: AtomicU64,
    planned: Mutex<Plan>,
}

#[derive(Default)]
struct Plan {
    at: BTreeMap<u64, Fault>,
    always: Option<Fault>,
    from: Option<(u64, Fault)>,
    writes: Option<Fault>,
}

impl FaultStore {
    /// Creates a store without faults.
    pub fn new(inner: Arc<dyn BlobStore>) -> Self {
        Self { inner, operations: AtomicU64::new(0), planned: Mutex::default() }
    }

    /// Returns the number of operations.
    pub fn operations(&self) -> u64 {
        self.operations.load(SeqCst)
    }

    /// Fails at one operation.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        self.planned.lock().at.insert(operation, fault);
    }

    /// Fails at one operation and at all later ones, as after a network failure.
    pub fn fail_from(&self, operation: u64, fault: Fault) {
        self.planned.lock().from = Some((operation, fault));
    }

    /// Fails at all operations.
    pub fn fail_all(&self, fault: Fault) {
        self.planned.lock().always = Some(fault);
    }

    /// Fails at all PUTs and multipart operations.
    pub fn fail_writes(&self, fault: Fault) {
        self.planned.lock().writes = Some(fault);
    }

    /// Removes all faults.
    pub fn heal(&self) {
        *self.planned.lock() = Plan::default();
    }

    fn next(&self, writes: bool) -> Option<Fault> {
        let operation = self.operations.fetch_add(1, SeqCst);
        let planned = self.planned.lock();
        let from = planned.from.filter(|(first, _)| operation >= *first).map(|(_, fault)| fault);
        let write = planned.writes.filter(|_| writes);
        planned.at.get(&operation).copied().or(planned.always).or(from).or(write)
    }

    fn run<'a, T: Send + 'a>(
        &self,
        request: Request<'a>,
        spoil: impl FnOnce(T) -> T + Send + 'a,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let fault = self.next(matches!(request.operation.kind(), RequestKind::Put | RequestKind::Multipart));
        Box::pin(async move {
            let error = |kind| Err(request.failed(kind, "faulty store"));
            match fault {
                None => work.await,
                Some(Fault::BeforeApply) => error(StoreErrorKind::Unreachable),
                Some(Fault::NoSpace) => error(StoreErrorKind::NoSpace),
                Some(Fault::NoSpaceAt(unix_s)) => {
                    let full = request.failed(StoreErrorKind::NoSpace, "faulty store");
                    Err(StoreError { store_time_unix_s: NonZero::new(unix_s), ..full })
                }
                Some(Fault::Unauthorized) => error(StoreErrorKind::Unauthorized),
                Some(Fault::AfterApply) => {
                    work.await?;
                    error(StoreErrorKind::Unreachable)
                }
                Some(Fault::ShortBody) => {
                    work.await?;
                    error(StoreErrorKind::ShortBody)
                }
                Some(Fault::FlipBit) => work.await.map(spoil),
                Some(Fault::RetryAfter(pause)) => {
                    let throttled = request.failed(StoreErrorKind::Throttled, "faulty store");
                    Err(StoreError { retry_after_s: Some(pause), ..throttled })
                }
                Some(Fault::Hang) => std::future::pending().await,
            }
        })
    }
}

fn flip(body: &Bytes) -> Bytes {
    let mut body = body.to_vec();
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 0x10;
    }
    body.into()
}

impl Middleware for FaultStore {
    fn describe(&self) -> &str {
        "faulty store"
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        self.run(request, |response| response, ask(self.inner.clone()))
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        let request = Request::new(Operation::Get, key);
        self.run(request, |body| flip(&body), self.inner.get(key, max_len_bytes))
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        let request = Request::new(Operation::GetRange, key);
        self.run(request, |body| flip(&body), self.inner.get_range(key, offset_bytes, len_bytes))
    }

    fn get_pieces<'a>(
        &'a self,
        key: &'a str,
        offset_bytes: u64,
        pieces: &'a Pieces,
    ) -> StoreFuture<'a, Received> {
        let done = pieces.offset_bytes();
        let body = Middleware::get_range(self, key, offset_bytes + done, pieces.len_bytes() - done);
        Box::pin(async move { pieces.receive(key, "faulty store", &body.await?) })
    }
}
