//! Adapter of [`blockd_store::BlobStore`] to the `object_store` library, to run the integration tests of that
//! library.
//!
//! The adapter emulates missing features: it filters listings for delimiters, takes metadata from listings,
//! evaluates read conditions against listed versions, copies by a read and a write, and joins parts of any
//! length to parts of equal length. It escapes special characters of keys as `_` and two hexadecimal digits.
//!
//! Not supported and not tested: attributes, pages of listings, low-level uploads, extensions of responses,
//! conditional updates of a version.

use async_trait::async_trait;
use blockd_store::{ObjectInfo, PART_LEN_BYTES, StoreError, StoreErrorKind};
use bytes::{Bytes, BytesMut};
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart, integration, path::Path,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

/// Prefix of all objects.
const ROOT: &str = "integration/";
const NAME: &str = "blockd";
const MAX_OBJECT_BYTES: u64 = 1 << 30;

/// Optional capabilities of a store.
#[derive(Clone, Copy, Debug)]
pub struct Has {
    /// Create-if-absent.
    pub create_if_absent: bool,
    /// Multipart uploads.
    pub parts: bool,
}

/// Runs the applicable integration tests of `object_store`; objects below `integration/` are deleted.
///
/// # Panics
/// If a test fails.
#[allow(clippy::expect_used, clippy::panic, reason = "a failed test panics")]
pub async fn object_store_suite(store: Arc<dyn blockd_store::BlobStore>, has: Has) {
    let adapter = Adapter { store };
    integration::put_get_delete_list(&adapter).await;
    integration::get_opts(&adapter).await;
    adapter.clear().await.expect("cleanup");
    integration::list_uses_directories_correctly(&adapter).await;
    integration::list_with_delimiter(&adapter).await;
    integration::list_with_offset_exclusivity(&adapter).await;
    integration::rename_and_copy(&adapter).await;
    integration::copy_rename_nonexistent_object(&adapter).await;
    if has.create_if_absent {
        integration::put_opts(&adapter, false).await;
        integration::copy_if_not_exists(&adapter).await;
    }
    adapter.clear().await.expect("cleanup");
    if has.parts {
        integration::stream_get(&adapter).await;
        integration::multipart_race_condition(&adapter, true).await;
        integration::multipart_out_of_order(&adapter).await;
    }
    match integration::get_nonexistent_object(&adapter, None).await {
        Err(Error::NotFound { .. }) => {}
        other => panic!("{other:?}"),
    }
    adapter.clear().await.expect("cleanup");
}

#[derive(Clone)]
struct Adapter {
    store: Arc<dyn blockd_store::BlobStore>,
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.store.describe())
    }
}

impl fmt::Debug for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn key_of(path: &Path) -> String {
    let mut key = ROOT.to_owned();
    let mut is_first = true;
    for &byte in path.as_ref().as_bytes() {
        match byte {
            b'/' => key.push('/'),
            b'-' => key.push('-'),
            b'.' if !is_first => key.push('.'),
            plain if plain.is_ascii_alphanumeric() => key.push(plain.into()),
            other => key.push_str(&format!("_{other:02X}")),
        }
        is_first = byte == b'/';
    }
    key
}

fn path_of(key: &str) -> Result<Path> {
    let mut bytes = Vec::new();
    let mut rest = key.strip_prefix(ROOT).unwrap_or(key).as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let escaped = after.first_chunk::<2>().filter(|_| *first == b'_');
        let escaped = escaped.and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => bytes.push(*first),
        }
    }
    Ok(Path::parse(String::from_utf8_lossy(&bytes))?)
}

fn error_of(path: &Path, error: StoreError) -> Error {
    let (kind, source, path) = (error.kind, Box::new(error), path.to_string());
    match kind {
        StoreErrorKind::NotFound => Error::NotFound { path, source },
        StoreErrorKind::AlreadyExists => Error::AlreadyExists { path, source },
        StoreErrorKind::Unsupported => Error::NotSupported { source },
        _ => Error::Generic { store: NAME, source },
    }
}

fn not_implemented(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: NAME.to_owned() }
}

fn meta_of(info: &ObjectInfo) -> Result<ObjectMeta> {
    // `chrono` is not a dependency: the type of the time cannot be named.
    let mut last_modified = empty_meta().last_modified;
    let since_1970_s = info.modified_unix_s.and_then(|seconds| u64::try_from(seconds).ok());
    last_modified += Duration::from_secs(since_1970_s.unwrap_or(0));
    Ok(ObjectMeta {
        location: path_of(&info.key)?,
        last_modified,
        size: info.size_bytes,
        e_tag: Some(info.version.clone()),
        version: None,
    })
}

fn empty_meta() -> ObjectMeta {
    ObjectMeta {
        location: Path::default(),
        last_modified: Default::default(),
        size: 0,
        e_tag: None,
        version: None,
    }
}

impl Adapter {
    async fn meta(&self, path: &Path) -> Result<ObjectMeta> {
        let key = key_of(path);
        let listed = self.store.list(&key).await.map_err(|error| error_of(path, error))?;
        match listed.iter().find(|info| info.key == key) {
            Some(info) => meta_of(info),
            None => Err(Error::NotFound { path: path.to_string(), source: "not listed".into() }),
        }
    }

    async fn all(self, prefix: Option<Path>) -> Result<Vec<ObjectMeta>> {
        let prefix = prefix.unwrap_or_default();
        let mut key = key_of(&prefix);
        if !key.ends_with('/') {
            key.push('/');
        }
        let listed = self.store.list(&key).await.map_err(|error| error_of(&prefix, error))?;
        listed.iter().map(meta_of).collect()
    }

    async fn clear(&self) -> Result<()> {
        for info in self.store.list(ROOT).await.map_err(|error| error_of(&Path::default(), error))? {
            self.store.delete(&info.key).await.map_err(|error| error_of(&Path::default(), error))?;
        }
        Ok(())
    }

    async fn put_as(&self, path: &Path, body: Bytes, mode: blockd_store::PutMode) -> Result<PutResult> {
        let put = self.store.put(&key_of(path), body, mode).await;
        put.map_err(|error| error_of(path, error))?;
        let e_tag = self.meta(path).await?.e_tag;
        Ok(PutResult { e_tag, version: None, extensions: Default::default() })
    }
}

#[async_trait]
impl ObjectStore for Adapter {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let mode = match opts.mode {
            PutMode::Overwrite => blockd_store::PutMode::Overwrite,
            PutMode::Create => blockd_store::PutMode::CreateIfAbsent,
            PutMode::Update(_) => return Err(not_implemented("an update of a version")),
        };
        if !opts.attributes.is_empty() {
            return Err(not_implemented("attributes"));
        }
        self.put_as(location, payload.into(), mode).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if !opts.attributes.is_empty() {
            return Err(not_implemented("attributes"));
        }
        let started = self.store.multipart_start(&key_of(location)).await;
        let id = started.map_err(|error| error_of(location, error))?;
        Ok(Box::new(Upload {
            adapter: self.clone(),
            path: location.clone(),
            id,
            parts: Arc::default(),
            next: 0,
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let failed = |error| error_of(location, error);
        let key = key_of(location);
        if options.version.is_some() {
            return Err(not_implemented("versions"));
        }
        // Both kinds of reads must report a missing object.
        let body = self.store.get(&key, MAX_OBJECT_BYTES).await.map_err(failed)?;
        let meta = self.meta(location).await?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            None => 0..meta.size,
            Some(range) => range
                .as_range(meta.size)
                .map_err(|error| Error::Generic { store: NAME, source: Box::new(error) })?,
        };
        let bytes = match range.is_empty() {
            true => body,
            false => {
                self.store.get_range(&key, range.start, range.end - range.start).await.map_err(failed)?
            }
        };
        let payload = GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.store.clone();
        let deleted = locations.and_then(move |path| {
            let store = store.clone();
            async move {
                store.delete(&key_of(&path)).await.map_err(|error| error_of(&path, error))?;
                Ok(path)
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.clone().all(prefix.cloned());
        stream::once(listed).map_ok(|found| stream::iter(found.into_iter().map(Ok))).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let above = prefix.cloned().unwrap_or_default();
        let mut common_prefixes = BTreeSet::new();
        let mut objects = Vec::new();
        for meta in self.clone().all(prefix.cloned()).await? {
            let Some(rest) = meta.location.prefix_match(&above) else { continue };
            let mut rest: Vec<_> = rest.map(|part| part.as_ref().to_owned()).collect();
            match rest.len() {
                0 => {}
                1 => objects.push(meta),
                _ => {
                    rest.truncate(1);
                    let begin = if above.is_root() { String::new() } else { format!("{above}/") };
                    common_prefixes.insert(Path::parse(begin + &rest.concat())?);
                }
            }
        }
        let common_prefixes = common_prefixes.into_iter().collect();
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let mode = match options.mode {
            CopyMode::Overwrite => blockd_store::PutMode::Overwrite,
            CopyMode::Create => blockd_store::PutMode::CreateIfAbsent,
        };
        let read = self.store.get(&key_of(from), MAX_OBJECT_BYTES).await;
        self.put_as(to, read.map_err(|error| error_of(from, error))?, mode).await?;
        Ok(())
    }
}

/// Multipart upload that buffers parts of any length until it is completed.
#[derive(Debug)]
struct Upload {
    adapter: Adapter,
    path: Path,
    id: String,
    parts: Arc<Mutex<BTreeMap<u32, Bytes>>>,
    next: u32,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (number, parts) = (self.next, self.parts.clone());
        self.next += 1;
        async move {
            parts.lock().insert(number, data.into());
            Ok(())
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let parts = std::mem::take(&mut *self.parts.lock());
        let mut rest: BytesMut = parts.into_values().flatten().collect();
        let (key, store) = (key_of(&self.path), self.adapter.store.clone());
        let failed = |error| error_of(&self.path, error);
        let mut tags = Vec::new();
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(PART_LEN_BYTES)).freeze();
            let put = store.multipart_put(&key, &self.id, tags.len() as u32, part).await;
            tags.push(put.map_err(failed)?);
        }
        store.multipart_complete(&key, &self.id, &tags).await.map_err(failed)?;
        let e_tag = self.adapter.meta(&self.path).await?.e_tag;
        Ok(PutResult { e_tag, version: None, extensions: Default::default() })
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.lock().clear();
        let aborted = self.adapter.store.multipart_abort(&key_of(&self.path), &self.id).await;
        aborted.map_err(|error| error_of(&self.path, error))
    }
}
