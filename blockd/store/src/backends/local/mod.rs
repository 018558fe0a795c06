//! Directory as an object store.
//!
//! An object is written to an unnamed file (`O_TMPFILE`), synced, and then linked under its key, so that it
//! exists completely or not at all after a kill. On filesystems without unnamed files, a hidden temporary
//! name does the same; names that start with a dot are never listed.

mod listing;
mod location;
mod open_at;

use crate::Work;
use crate::{
    BlobStore, ListPage, PART_LEN_BYTES, Pieces, PutMode, Received, StoreError, StoreErrorKind, StoreFuture,
    blocking, check_key, check_prefix,
};
use bytes::Bytes;
use location::{ObjectLocation, kind_of, parts_file, sync_dir};
use rustix::fs::{AtFlags, renameat, unlinkat};
use std::{
    fs::{self},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
};
use uuid::Uuid;

/// Store of objects as files below a directory.
#[derive(Debug)]
pub struct LocalStore {
    root: Arc<PathBuf>,
    description: Arc<str>,
    work: Option<Work>,
}

impl LocalStore {
    /// Opens a directory, which must exist: a missing one may be an unmounted disk.
    ///
    /// # Errors
    /// [`StoreErrorKind::BucketMissing`] if there is no such directory, [`StoreErrorKind::Unauthorized`] if
    /// it is not accessible.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path: PathBuf = path.into();
        let description: Arc<str> = format!("directory {}", path.display()).into();
        let fail = |kind, detail: String| {
            StoreError::new(kind, "OPEN", &path.display().to_string(), &description).with_detail(detail)
        };
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(fail(StoreErrorKind::BucketMissing, "it is not a directory".into())),
            Err(error) => return Err(fail(kind_of(&error, true), error.to_string())),
        }
        let root = fs::canonicalize(&path).map_err(|e| fail(kind_of(&e, true), e.to_string()))?;
        Ok(Self { root: Arc::new(root), description, work: None })
    }

    /// Returns the store with low-priority writes of objects.
    #[must_use]
    pub fn with_work(self, work: Work) -> Self {
        Self { work: Some(work), ..self }
    }

    fn location(&self, operation: &'static str, key: &str) -> Result<ObjectLocation, StoreError> {
        let location = ObjectLocation {
            root: self.root.clone(),
            operation,
            key: key.to_owned(),
            store: self.description.clone(),
        };
        if check_key(key) { Ok(location) } else { Err(location.error(StoreErrorKind::BadKey)) }
    }

    fn run<'a, T: Send + 'static>(
        &'a self,
        operation: &'static str,
        key: &'a str,
        work: impl FnOnce(ObjectLocation) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let location = self.location(operation, key)?;
            blocking(operation, key, &self.description, move || work(location)).await
        })
    }

    /// Runs work on a prefix.
    fn walk<'a, T: Send + 'static>(
        &'a self,
        operation: &'static str,
        prefix: &'a str,
        work: impl FnOnce(&ObjectLocation) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let (root, store) = (self.root.clone(), self.description.clone());
            let location = ObjectLocation { root, operation, key: prefix.to_owned(), store };
            if !check_prefix(prefix) {
                return Err(location.error(StoreErrorKind::BadKey));
            }
            blocking(operation, prefix, &self.description, move || work(&location)).await
        })
    }

    /// Runs a large write, which may yield to other work.
    fn write<'a, T: Send + 'static>(
        &'a self,
        operation: &'static str,
        key: &'a str,
        work: impl FnOnce(ObjectLocation) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let location = self.location(operation, key)?;
            let work = move || work(location);
            let done = match &self.work {
                Some(how) => how.run_yielding(work).await,
                None => Err(work),
            };
            match done {
                Ok(written) => written.map_err(|lost| {
                    let failed = StoreError::new(StoreErrorKind::Other, operation, key, &self.description);
                    failed.with_detail(lost.to_string())
                })?,
                Err(work) => blocking(operation, key, &self.description, work).await,
            }
        })
    }
}

impl BlobStore for LocalStore {
    fn describe(&self) -> &str {
        &self.description
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        self.write("PUT", key, move |location| location.put(&body, mode))
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.run("GET", key, move |location| {
            let file = location.open_object()?;
            let found = file.metadata().map_err(|e| location.io(e))?;
            if found.len() > max_len_bytes {
                return Err(location
                    .error(StoreErrorKind::TooLarge)
                    .with_detail(format!("{} bytes, at most {max_len_bytes} are expected", found.len())));
            }
            let mut body = Vec::with_capacity(found.len() as usize);
            file.take(max_len_bytes).read_to_end(&mut body).map_err(|e| location.io(e))?;
            Ok(body.into())
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.run("GET", key, move |location| {
            let file = location.open_object()?;
            let found_bytes = file.metadata().map_err(|e| location.io(e))?.len();
            let beyond = || {
                let wanted = format!(
                    "{len_bytes} bytes from offset {offset_bytes} on were requested, the object has {found_bytes}"
                );
                location.error(StoreErrorKind::RangeBeyondEnd).with_detail(wanted)
            };
            if offset_bytes.checked_add(len_bytes).is_none_or(|end| end > found_bytes) {
                return Err(beyond());
            }
            let mut body = vec![0; len_bytes as usize];
            file.read_exact_at(&mut body, offset_bytes).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => beyond(),
                _ => location.io(error),
            })?;
            Ok(body.into())
        })
    }

    fn get_pieces<'a>(
        &'a self,
        key: &'a str,
        offset_bytes: u64,
        pieces: &'a Pieces,
    ) -> StoreFuture<'a, Received> {
        let read = move |start, len_bytes| self.get_range(key, offset_bytes.saturating_add(start), len_bytes);
        Box::pin(pieces.read_each(read))
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.run("DELETE", key, |location| {
            let remove = || {
                let dir = location.open_parent()?;
                unlinkat(&dir, location.name(), AtFlags::empty())
                    .map_err(|error| location.io(error.into()))?;
                sync_dir(&dir).map_err(|error| location.io(error))
            };
            match remove() {
                Ok(()) => Ok(true),
                Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn list_page<'a>(&'a self, prefix: &'a str, page: Option<&'a str>) -> StoreFuture<'a, ListPage> {
        let after = page.map(str::to_owned);
        self.walk("LIST", prefix, move |location| listing::list_page(location, after.as_deref()))
    }

    fn remove_unfinished<'a>(
        &'a self,
        prefix: &'a str,
        before_unix_s: i64,
        dry_run: bool,
    ) -> StoreFuture<'a, u64> {
        self.walk("DELETE", prefix, move |location| {
            listing::remove_unfinished(location, before_unix_s, dry_run)
        })
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        self.run("MULTIPART", key, |location| {
            let id = Uuid::new_v4().to_string();
            let dir = location.make_parent()?;
            open_at::create_file(&dir, &parts_file(&location, &id)?).map_err(|e| location.io(e))?;
            Ok(id)
        })
    }

    fn multipart_put<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        part_no: u32,
        body: Bytes,
    ) -> StoreFuture<'a, String> {
        let upload_id = upload_id.to_owned();
        self.write("MULTIPART", key, move |location| {
            let dir = location.open_parent()?;
            let name = parts_file(&location, &upload_id)?;
            let file = open_at::open_file_to_write(&dir, &name).map_err(|e| location.io(e))?;
            let offset = u64::from(part_no) * PART_LEN_BYTES as u64;
            file.write_all_at(&body, offset).map_err(|e| location.io(e))?;
            Ok(format!("{part_no}:{}", body.len()))
        })
    }

    fn multipart_complete<'a>(
        &'a self,
        key: &'a str,
        upload_id: &'a str,
        tags: &'a [String],
    ) -> StoreFuture<'a, ()> {
        let upload_id = upload_id.to_owned();
        let tags = tags.to_vec();
        self.write("MULTIPART", key, move |location| {
            let dir = location.open_parent()?;
            let name = parts_file(&location, &upload_id)?;
            let file = open_at::open_file_to_write(&dir, &name).map_err(|e| location.io(e))?;
            let mut expected_bytes = 0;
            for (no, tag) in tags.iter().enumerate() {
                let len = tag.strip_prefix(&format!("{no}:")).and_then(|len| len.parse::<u64>().ok());
                expected_bytes += len.ok_or_else(|| {
                    location.error(StoreErrorKind::Other).with_detail("the parts' tags are out of order")
                })?;
            }
            let found_bytes = file.metadata().map_err(|e| location.io(e))?.len();
            if found_bytes != expected_bytes {
                return Err(location
                    .error(StoreErrorKind::Other)
                    .with_detail(format!("{found_bytes} bytes were stored, {expected_bytes} were sent")));
            }
            file.sync_all()
                .and_then(|()| Ok(renameat(&dir, &name, &dir, location.name())?))
                .and_then(|()| sync_dir(&dir))
                .map_err(|e| location.io(e))
        })
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        let upload_id = upload_id.to_owned();
        self.run("MULTIPART", key, move |location| {
            let remove = || {
                let (dir, name) = (location.open_parent()?, parts_file(&location, &upload_id)?);
                unlinkat(&dir, &name, AtFlags::empty()).map_err(|error| location.io(error.into()))
            };
            match remove() {
                Err(error) if error.kind != StoreErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
    }
}

#[cfg(test)]
mod tests;
