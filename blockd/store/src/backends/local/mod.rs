//! Directory as an object store.
//!
//! An object is written to an unnamed file (`O_TMPFILE`), synced, and then linked under its key, so that it
//! exists completely or not at all after a kill. On filesystems without unnamed files, a hidden temporary
//! name does the same; names that start with a dot are never listed.

mod listing;
mod open_at;

use super::direct::write_file;
use crate::Work;
use crate::{
    BlobStore, ListPage, PART_LEN_BYTES, PutMode, StoreError, StoreErrorKind, StoreFuture, blocking,
    check_key, check_prefix,
};
use bytes::Bytes;
use rustix::{
    fs::{
        AtFlags, CWD, OFlags, Timespec, Timestamps, UTIME_NOW, futimens, linkat, openat, renameat, unlinkat,
    },
    io::Errno,
};
use std::{
    fs::{self, File},
    io::{self, Read},
    num::NonZero,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
    sync::Arc,
};
use uuid::Uuid;

/// The beginning of the hidden name of an object that is being written.
const TEMPORARY: &str = ".tmp-";
/// The beginning of the hidden name of the file in which the parts of an upload gather.
const PARTS: &str = ".parts-";
/// Attempts of a put whose directory a collection of garbage removes meanwhile.
const PUT_ATTEMPTS: u32 = 3;

/// Objects as files below a directory.
#[derive(Debug)]
pub struct LocalStore {
    root: Arc<PathBuf>,
    description: Arc<str>,
    work: Option<Work>,
}

impl LocalStore {
    /// Uses a directory, which must be there: a missing one may be a disk that is not mounted.
    ///
    /// # Errors
    /// [`StoreErrorKind::BucketMissing`] if there is no such directory, [`StoreErrorKind::Unauthorized`] if
    /// it cannot be looked at.
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

    /// Returns the store with background writes of objects, for which only tasks wait.
    #[must_use]
    pub fn with_work(self, work: Work) -> Self {
        Self { work: Some(work), ..self }
    }

    fn place(&self, operation: &'static str, key: &str) -> Result<Place, StoreError> {
        let place = Place {
            root: self.root.clone(),
            operation,
            key: key.to_owned(),
            store: self.description.clone(),
        };
        if check_key(key) { Ok(place) } else { Err(place.error(StoreErrorKind::BadKey)) }
    }

    fn run<'a, T: Send + 'static>(
        &'a self,
        operation: &'static str,
        key: &'a str,
        work: impl FnOnce(Place) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let place = self.place(operation, key)?;
            blocking(operation, key, &self.description, move || work(place)).await
        })
    }

    /// The same for a prefix.
    fn walk<'a, T: Send + 'static>(
        &'a self,
        operation: &'static str,
        prefix: &'a str,
        work: impl FnOnce(&Place) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let (root, store) = (self.root.clone(), self.description.clone());
            let place = Place { root, operation, key: prefix.to_owned(), store };
            if !check_prefix(prefix) {
                return Err(place.error(StoreErrorKind::BadKey));
            }
            blocking(operation, prefix, &self.description, move || work(&place)).await
        })
    }

    /// The same for what writes much.
    fn write<'a, T: Send + 'static>(
        &'a self,
        operation: &'static str,
        key: &'a str,
        work: impl FnOnce(Place) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'a, T> {
        Box::pin(async move {
            let place = self.place(operation, key)?;
            let work = move || work(place);
            let made_way = match &self.work {
                Some(how) => how.make_way(work).await,
                None => Err(work),
            };
            match made_way {
                Ok(written) => written.map_err(|lost| {
                    let failed = StoreError::new(StoreErrorKind::Other, operation, key, &self.description);
                    failed.with_detail(lost.to_string())
                })?,
                Err(work) => blocking(operation, key, &self.description, work).await,
            }
        })
    }
}

/// Classifies an I/O error; `root` is true for an error of the directory itself.
fn kind_of(error: &io::Error, root: bool) -> StoreErrorKind {
    use io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound | Io::NotADirectory if root => StoreErrorKind::BucketMissing,
        Io::NotFound | Io::NotADirectory | Io::IsADirectory => StoreErrorKind::NotFound,
        Io::AlreadyExists => StoreErrorKind::AlreadyExists,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => StoreErrorKind::Unauthorized,
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => StoreErrorKind::NoSpace,
        Io::TimedOut => StoreErrorKind::Timeout,
        Io::ArgumentListTooLong => StoreErrorKind::TooLarge,
        _ => StoreErrorKind::Other,
    }
}

/// One object's place, and what its errors are named after.
struct Place {
    root: Arc<PathBuf>,
    operation: &'static str,
    key: String,
    store: Arc<str>,
}

impl Place {
    fn error(&self, kind: StoreErrorKind) -> StoreError {
        StoreError::new(kind, self.operation, &self.key, &self.store)
    }

    fn io(&self, error: io::Error) -> StoreError {
        let mut kind = kind_of(&error, false);
        if kind == StoreErrorKind::NotFound && !self.root.is_dir() {
            kind = StoreErrorKind::BucketMissing;
        }
        let is_link = error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
        let mut out = if is_link {
            let detail = "a symbolic link is in its place: below the directory of a store, none is followed";
            self.error(StoreErrorKind::Misconfigured).with_detail(detail)
        } else {
            self.error(kind).with_detail(error.to_string())
        };
        out.source = Some(Arc::new(error));
        out
    }

    fn open_root(&self) -> Result<OwnedFd, StoreError> {
        open_at::open_root(&self.root).map_err(|error| {
            let kind = kind_of(&error, true);
            self.error(kind).with_detail(error.to_string())
        })
    }

    /// The path of the directory, and the name in it.
    fn parts(&self) -> (&str, &str) {
        self.key.rsplit_once('/').unwrap_or(("", &self.key))
    }

    /// The name in the directory.
    fn name(&self) -> &str {
        self.parts().1
    }

    fn open_parent(&self) -> Result<OwnedFd, StoreError> {
        let root = self.open_root()?;
        open_at::open_dir(&root, self.parts().0).map_err(|error| self.io(error))
    }

    /// Opens the object's directory and makes what is missing of it; never the root.
    fn make_parent(&self) -> Result<OwnedFd, StoreError> {
        let root = self.open_root()?;
        open_at::make_dir(&root, self.parts().0).map_err(|error| self.io(error))
    }

    fn open_object(&self) -> Result<File, StoreError> {
        let root = self.open_root()?;
        open_at::open_file(&root, &self.key).map_err(|error| self.io(error))
    }

    fn put(&self, body: &[u8], mode: PutMode) -> Result<(), StoreError> {
        self.try_put(body, mode).map_err(|error| self.with_time_if_full(error))
    }

    /// Adds the filesystem's time to the error of a full one. To set the times of the root takes no room, and
    /// the server of a network filesystem sets them by its own clock.
    fn with_time_if_full(&self, error: StoreError) -> StoreError {
        if error.kind != StoreErrorKind::NoSpace {
            return error;
        }
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        let touched = self.open_root().ok().and_then(|root| {
            futimens(&root, &times).ok()?;
            Some(open_at::stat(&root, ".").ok()??.stx_ctime.tv_sec)
        });
        StoreError { store_time_unix_s: touched.and_then(NonZero::new), ..error }
    }

    fn try_put(&self, body: &[u8], mode: PutMode) -> Result<(), StoreError> {
        let mut attempt = 1;
        loop {
            let dir = self.make_parent()?;
            match self.put_in(&dir, body, mode) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < PUT_ATTEMPTS => {
                    attempt += 1;
                }
                done => return done.map_err(|error| self.io(error)),
            }
        }
    }

    fn put_in(&self, dir: &OwnedFd, body: &[u8], mode: PutMode) -> io::Result<()> {
        let name = self.name();
        if mode == PutMode::CreateIfAbsent && open_at::stat(dir, name)?.is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let linked = match nameless(dir) {
            Ok(file) => {
                write_file(&file, body)?;
                file.sync_all()?;
                link_nameless(&file, dir, name, mode)
            }
            Err(error) => Err(error),
        };
        match linked {
            Err(error) if !is_final(&error) => {
                let temporary = Temporary::create(dir)?;
                write_file(&temporary.file, body)?;
                temporary.file.sync_all()?;
                temporary.publish(name, mode)?;
            }
            other => other?,
        }
        sync_dir(dir)
    }
}

/// Returns true for an error of the put itself, not of missing unnamed files.
fn is_final(error: &io::Error) -> bool {
    use io::ErrorKind as Io;
    matches!(
        error.kind(),
        Io::AlreadyExists
            | Io::StorageFull
            | Io::QuotaExceeded
            | Io::FileTooLarge
            | Io::PermissionDenied
            | Io::ReadOnlyFilesystem
    )
}

fn sync_dir(dir: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsync(dir)?)
}

fn nameless(dir: &OwnedFd) -> io::Result<File> {
    Ok(openat(dir, ".", OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, open_at::FILE_MODE)?.into())
}

/// Gives a nameless file its name.
fn link_nameless(file: &File, dir: &OwnedFd, name: &str, mode: PutMode) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |to: &str| linkat(CWD, source.as_str(), dir, to, AtFlags::SYMLINK_FOLLOW);
    match (link(name), mode) {
        (Ok(()), _) => Ok(()),
        (Err(Errno::EXIST), PutMode::Overwrite) => {
            let between = hidden_name();
            link(&between)?;
            Ok(renameat(dir, &between, dir, name).inspect_err(|_| {
                let _ = unlinkat(dir, &between, AtFlags::empty());
            })?)
        }
        (Err(errno), _) => Err(errno.into()),
    }
}

fn hidden_name() -> String {
    format!("{TEMPORARY}{}", Uuid::new_v4())
}

/// A file under a hidden name, which goes when it is not published.
struct Temporary<'a> {
    file: File,
    dir: &'a OwnedFd,
    name: String,
}

impl<'a> Temporary<'a> {
    fn create(dir: &'a OwnedFd) -> io::Result<Self> {
        let name = hidden_name();
        Ok(Self { file: open_at::create_file(dir, &name)?, dir, name })
    }

    fn publish(self, to: &str, mode: PutMode) -> io::Result<()> {
        let published = match mode {
            // Drop then takes the hidden name away.
            PutMode::CreateIfAbsent => linkat(self.dir, &self.name, self.dir, to, AtFlags::empty()),
            PutMode::Overwrite => renameat(self.dir, &self.name, self.dir, to),
        };
        published.map_err(Into::into)
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = unlinkat(self.dir, &self.name, AtFlags::empty());
    }
}

/// The name of the file in which the parts of an upload gather.
fn parts_file(place: &Place, upload_id: &str) -> Result<String, StoreError> {
    let id: Uuid = upload_id
        .parse()
        .map_err(|_| place.error(StoreErrorKind::Other).with_detail("the upload id is not one of ours"))?;
    Ok(format!("{PARTS}{id}"))
}

impl BlobStore for LocalStore {
    fn describe(&self) -> &str {
        &self.description
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        self.write("PUT", key, move |place| place.put(&body, mode))
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.run("GET", key, move |place| {
            let file = place.open_object()?;
            let found = file.metadata().map_err(|e| place.io(e))?;
            if found.len() > max_len_bytes {
                return Err(place
                    .error(StoreErrorKind::TooLarge)
                    .with_detail(format!("{} bytes, at most {max_len_bytes} are expected", found.len())));
            }
            let mut body = Vec::with_capacity(found.len() as usize);
            file.take(max_len_bytes).read_to_end(&mut body).map_err(|e| place.io(e))?;
            Ok(body.into())
        })
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.run("GET", key, move |place| {
            let file = place.open_object()?;
            let found_bytes = file.metadata().map_err(|e| place.io(e))?.len();
            let beyond = || {
                let wanted = format!(
                    "{len_bytes} bytes from byte {offset_bytes} on were expected, the object has {found_bytes}"
                );
                place.error(StoreErrorKind::RangeBeyondEnd).with_detail(wanted)
            };
            if offset_bytes.checked_add(len_bytes).is_none_or(|end| end > found_bytes) {
                return Err(beyond());
            }
            let mut body = vec![0; len_bytes as usize];
            file.read_exact_at(&mut body, offset_bytes).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => beyond(),
                _ => place.io(error),
            })?;
            Ok(body.into())
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> StoreFuture<'a, bool> {
        self.run("DELETE", key, |place| {
            let remove = || {
                let dir = place.open_parent()?;
                unlinkat(&dir, place.name(), AtFlags::empty()).map_err(|error| place.io(error.into()))?;
                sync_dir(&dir).map_err(|error| place.io(error))
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
        self.walk("LIST", prefix, move |place| listing::list_page(place, after.as_deref()))
    }

    fn remove_unfinished<'a>(
        &'a self,
        prefix: &'a str,
        before_unix_s: i64,
        dry_run: bool,
    ) -> StoreFuture<'a, u64> {
        self.walk("DELETE", prefix, move |place| listing::remove_unfinished(place, before_unix_s, dry_run))
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        self.run("MULTIPART", key, |place| {
            let id = Uuid::new_v4().to_string();
            let dir = place.make_parent()?;
            open_at::create_file(&dir, &parts_file(&place, &id)?).map_err(|e| place.io(e))?;
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
        self.write("MULTIPART", key, move |place| {
            let dir = place.open_parent()?;
            let name = parts_file(&place, &upload_id)?;
            let file = open_at::open_file_to_write(&dir, &name).map_err(|e| place.io(e))?;
            let offset = u64::from(part_no) * PART_LEN_BYTES as u64;
            file.write_all_at(&body, offset).map_err(|e| place.io(e))?;
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
        self.write("MULTIPART", key, move |place| {
            let dir = place.open_parent()?;
            let name = parts_file(&place, &upload_id)?;
            let file = open_at::open_file_to_write(&dir, &name).map_err(|e| place.io(e))?;
            let mut expected_bytes = 0;
            for (no, tag) in tags.iter().enumerate() {
                let len = tag.strip_prefix(&format!("{no}:")).and_then(|len| len.parse::<u64>().ok());
                expected_bytes += len.ok_or_else(|| {
                    place.error(StoreErrorKind::Other).with_detail("the parts' tags are out of order")
                })?;
            }
            let found_bytes = file.metadata().map_err(|e| place.io(e))?.len();
            if found_bytes != expected_bytes {
                return Err(place
                    .error(StoreErrorKind::Other)
                    .with_detail(format!("{found_bytes} bytes arrived where {expected_bytes} were sent")));
            }
            file.sync_all()
                .and_then(|()| Ok(renameat(&dir, &name, &dir, place.name())?))
                .and_then(|()| sync_dir(&dir))
                .map_err(|e| place.io(e))
        })
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        let upload_id = upload_id.to_owned();
        self.run("MULTIPART", key, move |place| {
            let remove = || {
                let (dir, name) = (place.open_parent()?, parts_file(&place, &upload_id)?);
                unlinkat(&dir, &name, AtFlags::empty()).map_err(|error| place.io(error.into()))
            };
            match remove() {
                Err(error) if error.kind != StoreErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn behaves_like_a_store() {
        let dir = tempfile::tempdir().unwrap();
        crate::testing::store_suite(&LocalStore::open(dir.path()).unwrap()).await;
        let found = crate::probe(&LocalStore::open(dir.path()).unwrap()).await.unwrap();
        assert!(found.conditional_put);
        let left = walk(dir.path());
        assert!(left.iter().all(|name| !name.starts_with('.')), "left behind: {left:?}");
    }

    fn walk(dir: &std::path::Path) -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            names.push(entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                names.extend(walk(&entry.path()));
            }
        }
        names
    }

    #[test]
    fn error_of_a_full_directory_has_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let place = LocalStore::open(dir.path()).unwrap().place("PUT", "a/b").unwrap();
        let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::open(dir.path()).unwrap().set_times(old).unwrap();
        let failed = |errno: Errno| place.with_time_if_full(place.io(errno.into()));
        let before = jiff::Timestamp::now().as_second();
        for errno in [Errno::NOSPC, Errno::DQUOT] {
            let error = failed(errno);
            assert_eq!(error.kind, StoreErrorKind::NoSpace);
            let told = error.store_time_unix_s.unwrap().get();
            // The kernel's coarse clock may be a tick behind.
            assert!((before - 1..=jiff::Timestamp::now().as_second()).contains(&told), "{told}");
        }
        assert_eq!(failed(Errno::ACCESS).store_time_unix_s, None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn missing_store_directory_is_named_in_the_error() {
        let error = LocalStore::open("/nonexistent/backups").unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::BucketMissing);
        assert!(error.to_string().contains("/nonexistent/backups"), "{error}");
    }

    #[tokio::test]
    async fn removed_store_directory_is_not_recreated() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("disk");
        fs::create_dir(&root).unwrap();
        let store = LocalStore::open(&root).unwrap();
        fs::remove_dir(&root).unwrap();
        let error = store.put("a/b", Bytes::from_static(b"x"), PutMode::Overwrite).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::BucketMissing);
        assert!(!root.exists());
        assert_eq!(store.list("").await.unwrap_err().kind, StoreErrorKind::BucketMissing);
    }

    #[tokio::test]
    async fn symbolic_link_on_the_way_is_refused() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = LocalStore::open(dir.path()).unwrap();
        fs::write(outside.path().join("victim"), "content").unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("data")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("victim"), dir.path().join("object")).unwrap();
        let body = || Bytes::from_static(b"x");
        let failures = [
            store.put("data/new", body(), PutMode::Overwrite).await.unwrap_err(),
            store.put("data/new", body(), PutMode::CreateIfAbsent).await.unwrap_err(),
            store.multipart_start("data/new").await.unwrap_err(),
            store.get("data/victim", 100).await.unwrap_err(),
            store.get("object", 100).await.unwrap_err(),
            store.get_range("object", 0, 1).await.unwrap_err(),
            store.delete("data/victim").await.unwrap_err(),
        ];
        for error in failures {
            assert_eq!(error.kind, StoreErrorKind::Misconfigured, "{error}");
        }
        assert_eq!(store.list("").await.unwrap(), []);
        assert_eq!(store.remove_unfinished("", i64::MAX, false).await.unwrap(), 0);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        // The link itself is no object's content: it is replaced.
        store.put("object", body(), PutMode::Overwrite).await.unwrap();
        assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"content");
        assert_eq!(store.get("object", 100).await.unwrap(), b"x"[..]);
    }

    #[tokio::test]
    async fn fifo_in_the_place_of_an_object_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        let fifo = dir.path().join("object");
        rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, open_at::FILE_MODE, 0).unwrap();
        // Opening it in the usual way would wait for a writer, for ever.
        assert!(store.get("object", 100).await.unwrap_err().to_string().contains("not a regular file"));
        assert!(store.get_range("object", 0, 1).await.is_err());
        assert_eq!(store.list("").await.unwrap(), []);
    }

    #[tokio::test]
    async fn files_and_directories_are_for_their_owner_only() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        store.put("a/b/new", Bytes::from_static(b"x"), PutMode::CreateIfAbsent).await.unwrap();
        let upload = store.multipart_start("a/b/parts").await.unwrap();
        let tag = store.multipart_put("a/b/parts", &upload, 0, Bytes::from_static(b"x")).await.unwrap();
        store.multipart_complete("a/b/parts", &upload, &[tag]).await.unwrap();
        let root = open_at::open_root(dir.path()).unwrap();
        let temporary = Temporary::create(&root).unwrap();
        temporary.publish("other", PutMode::Overwrite).unwrap();
        for (name, mode) in
            [("a", 0o700), ("a/b", 0o700), ("a/b/new", 0o600), ("a/b/parts", 0o600), ("other", 0o600)]
        {
            assert_eq!(fs::metadata(dir.path().join(name)).unwrap().mode() & 0o777, mode, "{name}");
        }
    }

    #[tokio::test]
    async fn pages_of_a_listing_hold_each_object_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        // '-' sorts before '/', so that keys and paths have two orders.
        for at in ["a", "a-b", "a.b", "ab"] {
            fs::create_dir(dir.path().join(at)).unwrap();
            (0..6000).for_each(|number| fs::write(dir.path().join(format!("{at}/{number}")), "").unwrap());
        }
        fs::write(dir.path().join("a0"), "").unwrap();
        let (mut keys, mut page, mut pages) = (Vec::new(), None::<String>, 0);
        loop {
            let found = store.list_page("a", page.as_deref()).await.unwrap();
            keys.extend(found.objects.into_iter().map(|object| object.key));
            pages += 1;
            page = found.next;
            if page.is_none() {
                break;
            }
        }
        let listed = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!((listed, keys.len(), pages), (24_001, 24_001, 3));
        assert_eq!(store.list("a/").await.unwrap().len(), 6000);
        assert_eq!(store.list("a/59").await.unwrap().len(), 111);
    }

    #[tokio::test]
    async fn unfinished_uploads_and_empty_directories_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        for key in ["data/kept/object", "data/gone/deep/object", "other/gone/object"] {
            store.put(key, Bytes::from_static(b"x"), PutMode::Overwrite).await.unwrap();
        }
        for key in ["data/gone/deep/object", "other/gone/object"] {
            assert!(store.delete(key).await.unwrap());
        }
        store.multipart_start("data/kept/large").await.unwrap();
        fs::write(dir.path().join("data/kept/.tmp-1"), b"x").unwrap();
        fs::write(dir.path().join("data/kept/.other"), b"x").unwrap();
        assert_eq!(store.remove_unfinished("data/", 0, false).await.unwrap(), 0, "all of it is young");
        assert_eq!(store.remove_unfinished("data/", i64::MAX, true).await.unwrap(), 2);
        assert!(dir.path().join("data/gone/deep").is_dir(), "a dry run removed something");
        assert_eq!(store.remove_unfinished("data/", i64::MAX, false).await.unwrap(), 2);
        assert!(!dir.path().join("data/gone").exists() && dir.path().join("other/gone").is_dir());
        let mut left = walk(&dir.path().join("data"));
        left.sort();
        assert_eq!(left, [".other", "kept", "object"]);
    }

    #[tokio::test]
    async fn temporary_files_are_never_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        store.multipart_start("d/object").await.unwrap();
        fs::write(dir.path().join("d/.tmp-1"), b"x").unwrap();
        assert_eq!(store.list("").await.unwrap(), []);
    }

    #[test]
    fn fallback_without_o_tmpfile_publishes_once() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("object");
        for (content, mode, works) in [
            (&b"one"[..], PutMode::CreateIfAbsent, true),
            (b"two", PutMode::CreateIfAbsent, false),
            (b"three", PutMode::Overwrite, true),
        ] {
            let root = open_at::open_root(dir.path()).unwrap();
            let temporary = Temporary::create(&root).unwrap();
            write_file(&temporary.file, content).unwrap();
            assert_eq!(temporary.publish("object", mode).is_ok(), works);
        }
        assert_eq!(fs::read(&to).unwrap(), b"three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
