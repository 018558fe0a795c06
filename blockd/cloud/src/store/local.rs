//! A directory as an object store.
//!
//! An object is written to a file that has no name yet, made durable, and then linked under its key, so that it is
//! there as a whole or not at all, whatever is killed when. Where the filesystem knows no nameless files, a hidden
//! temporary name does the same; names that begin with a dot are never listed.

use super::{
    LIST_MAX_OBJECTS, ObjectInfo, ObjectStore, PART_LEN_BYTES, PutMode, StoreError, StoreErrorKind,
    StoreFuture, blocking, check_key, check_prefix, direct::write_file,
};
use crate::Work;
use bytes::Bytes;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, linkat, openat},
    io::Errno,
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

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
    /// [`StoreErrorKind::BucketMissing`] if there is no such directory, [`StoreErrorKind::Unauthorized`] if it
    /// cannot be looked at.
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

    /// The same, whose objects are written that way: nobody waits for those but tasks.
    #[must_use]
    pub fn with_work(self, work: Work) -> Self {
        Self { work: Some(work), ..self }
    }

    fn place(&self, operation: &'static str, key: &str) -> Result<Place, StoreError> {
        let place = Place {
            root: self.root.clone(),
            path: self.root.join(key),
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

/// What an I/O error means for a store; `root` says whether it happened at the directory itself.
fn kind_of(error: &io::Error, root: bool) -> StoreErrorKind {
    use io::ErrorKind as Io;
    match error.kind() {
        Io::NotFound | Io::NotADirectory if root => StoreErrorKind::BucketMissing,
        Io::NotFound | Io::NotADirectory | Io::IsADirectory => StoreErrorKind::NotFound,
        Io::AlreadyExists => StoreErrorKind::AlreadyExists,
        Io::PermissionDenied | Io::ReadOnlyFilesystem => StoreErrorKind::Unauthorized,
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => StoreErrorKind::NoSpace,
        Io::TimedOut => StoreErrorKind::Timeout,
        _ => StoreErrorKind::Other,
    }
}

/// One object's place, and what its errors are named after.
struct Place {
    root: Arc<PathBuf>,
    path: PathBuf,
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
        let mut out = self.error(kind).with_detail(error.to_string());
        out.source = Some(Arc::new(error));
        out
    }

    fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(&self.root)
    }

    /// Makes the directories between the root and the object, durably; never the root.
    fn make_parents(&self) -> io::Result<()> {
        if self.parent().is_dir() {
            return Ok(());
        }
        let relative = self.parent().strip_prefix(&*self.root).map_err(io::Error::other)?;
        let mut at = self.root.to_path_buf();
        for name in relative {
            let above = at.clone();
            at.push(name);
            match fs::create_dir(&at) {
                // A directory that somebody else is making may not be durable yet: sync in either case.
                Ok(()) => sync_dir(&above)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => sync_dir(&above)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn put(&self, body: &[u8], mode: PutMode) -> Result<(), StoreError> {
        self.try_put(body, mode).map_err(|e| self.io(e))
    }

    fn try_put(&self, body: &[u8], mode: PutMode) -> io::Result<()> {
        self.make_parents()?;
        if mode == PutMode::CreateIfAbsent && self.path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let linked = match nameless(self.parent()) {
            Ok(file) => {
                write_file(&file, body)?;
                file.sync_all()?;
                link_nameless(&file, &self.path, mode)
            }
            Err(error) => Err(error),
        };
        match linked {
            Err(error) if !is_final(&error) => {
                let temporary = Temporary::create(self.parent())?;
                write_file(&temporary.file, body)?;
                temporary.file.sync_all()?;
                temporary.publish(&self.path, mode)?;
            }
            other => other?,
        }
        sync_dir(self.parent())
    }
}

/// Whether an error says something about the put itself, not about the filesystem's lack of nameless files.
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

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn nameless(dir: &Path) -> io::Result<File> {
    let mode = Mode::from_raw_mode(0o600);
    Ok(openat(CWD, dir, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode)?.into())
}

/// Gives a nameless file its name.
fn link_nameless(file: &File, path: &Path, mode: PutMode) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |to: &Path| linkat(CWD, source.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW);
    match (link(path), mode) {
        (Ok(()), _) => Ok(()),
        (Err(Errno::EXIST), PutMode::Overwrite) => {
            let between = hidden_name(path.parent().unwrap_or(Path::new("/")));
            link(&between)?;
            fs::rename(&between, path).inspect_err(|_| {
                let _ = fs::remove_file(&between);
            })
        }
        (Err(errno), _) => Err(errno.into()),
    }
}

fn hidden_name(dir: &Path) -> PathBuf {
    dir.join(format!(".tmp-{}", Uuid::new_v4()))
}

/// A file under a hidden name, which goes when it is not published.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    fn create(dir: &Path) -> io::Result<Self> {
        let path = hidden_name(dir);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }

    fn publish(self, to: &Path, mode: PutMode) -> io::Result<()> {
        match mode {
            // Drop then takes the hidden name away.
            PutMode::CreateIfAbsent => fs::hard_link(&self.path, to),
            PutMode::Overwrite => fs::rename(&self.path, to),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The file in which the parts of an upload gather.
fn parts_file(place: &Place, upload_id: &str) -> Result<PathBuf, StoreError> {
    let id: Uuid = upload_id
        .parse()
        .map_err(|_| place.error(StoreErrorKind::Other).with_detail("the upload id is not one of ours"))?;
    Ok(place.parent().join(format!(".parts-{id}")))
}

impl ObjectStore for LocalStore {
    fn describe(&self) -> &str {
        &self.description
    }

    fn put<'a>(&'a self, key: &'a str, body: Bytes, mode: PutMode) -> StoreFuture<'a, ()> {
        self.write("PUT", key, move |place| place.put(&body, mode))
    }

    fn get<'a>(&'a self, key: &'a str, max_len_bytes: u64) -> StoreFuture<'a, Bytes> {
        self.run("GET", key, move |place| {
            let file = File::open(&place.path).map_err(|e| place.io(e))?;
            let found = file.metadata().map_err(|e| place.io(e))?;
            if !found.is_file() {
                return Err(place.error(StoreErrorKind::NotFound));
            }
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
            let file = File::open(&place.path).map_err(|e| place.io(e))?;
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
        self.run("DELETE", key, |place| match fs::remove_file(&place.path) {
            Ok(()) => {
                sync_dir(place.parent()).map_err(|e| place.io(e))?;
                Ok(true)
            }
            Err(error) => match place.io(error) {
                error if error.kind == StoreErrorKind::NotFound => Ok(false),
                error => Err(error),
            },
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> StoreFuture<'a, Vec<ObjectInfo>> {
        Box::pin(async move {
            let place = Place {
                root: self.root.clone(),
                path: self.root.to_path_buf(),
                operation: "LIST",
                key: prefix.to_owned(),
                store: self.description.clone(),
            };
            if !check_prefix(prefix) {
                return Err(place.error(StoreErrorKind::BadKey));
            }
            blocking("LIST", prefix, &self.description, move || list(&place)).await
        })
    }

    fn multipart_start<'a>(&'a self, key: &'a str) -> StoreFuture<'a, String> {
        self.run("MULTIPART", key, |place| {
            let id = Uuid::new_v4().to_string();
            place.make_parents().map_err(|e| place.io(e))?;
            let path = parts_file(&place, &id)?;
            OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| place.io(e))?;
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
            let file = OpenOptions::new()
                .write(true)
                .open(parts_file(&place, &upload_id)?)
                .map_err(|e| place.io(e))?;
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
            let path = parts_file(&place, &upload_id)?;
            let file = File::open(&path).map_err(|e| place.io(e))?;
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
                .and_then(|()| fs::rename(&path, &place.path))
                .and_then(|()| sync_dir(place.parent()))
                .map_err(|e| place.io(e))
        })
    }

    fn multipart_abort<'a>(&'a self, key: &'a str, upload_id: &'a str) -> StoreFuture<'a, ()> {
        let upload_id = upload_id.to_owned();
        self.run("MULTIPART", key, move |place| match fs::remove_file(parts_file(&place, &upload_id)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(place.io(error)),
            _ => Ok(()),
        })
    }
}

fn list(place: &Place) -> Result<Vec<ObjectInfo>, StoreError> {
    let prefix = place.key.as_str();
    let mut objects = Vec::new();
    // Below the last '/' of the prefix begins what has to be looked at.
    let first = prefix.rfind('/').map_or("", |at| &prefix[..at]);
    let mut pending = vec![first.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(place.root.join(&directory)) {
            Ok(entries) => entries,
            Err(error) => match place.io(error) {
                // Nothing was ever put there, or it was removed meanwhile.
                error if error.kind == StoreErrorKind::NotFound => continue,
                error => return Err(error),
            },
        };
        for entry in entries {
            let entry = entry.map_err(|e| place.io(e))?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let key = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            if !check_key(&key) {
                continue;
            }
            let kind = entry.file_type().map_err(|e| place.io(e))?;
            if kind.is_dir() {
                if key.starts_with(prefix) || prefix.starts_with(&key) {
                    pending.push(key);
                }
            } else if kind.is_file() && key.starts_with(prefix) {
                match entry.metadata() {
                    Ok(found) => {
                        let version = format!(
                            "{}-{}-{}.{:09}",
                            found.ino(),
                            found.len(),
                            found.ctime(),
                            found.ctime_nsec()
                        );
                        // Not the time of the last write: copies of a file keep that of the original.
                        let modified_unix_s = Some(found.ctime());
                        objects.push(ObjectInfo { key, size_bytes: found.len(), version, modified_unix_s });
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(place.io(error)),
                }
                if objects.len() > LIST_MAX_OBJECTS {
                    return Err(place
                        .error(StoreErrorKind::TooLarge)
                        .with_detail(format!("more than {LIST_MAX_OBJECTS} objects")));
                }
            }
        }
    }
    objects.sort();
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn behaves_like_a_store() {
        let dir = tempfile::tempdir().unwrap();
        crate::testing::store_suite(&LocalStore::open(dir.path()).unwrap()).await;
        let found = crate::store::probe(&LocalStore::open(dir.path()).unwrap()).await.unwrap();
        assert!(found.conditional_put);
        let left = walk(dir.path());
        assert!(left.iter().all(|name| !name.starts_with('.')), "left behind: {left:?}");
    }

    fn walk(dir: &Path) -> Vec<String> {
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
    fn a_missing_directory_is_named() {
        let error = LocalStore::open("/nonexistent/backups").unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::BucketMissing);
        assert!(error.to_string().contains("/nonexistent/backups"), "{error}");
    }

    #[tokio::test]
    async fn a_directory_that_vanishes_is_not_made_again() {
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
    async fn temporary_files_are_never_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        store.multipart_start("d/object").await.unwrap();
        fs::write(dir.path().join("d/.tmp-1"), b"x").unwrap();
        assert_eq!(store.list("").await.unwrap(), []);
    }

    #[test]
    fn the_fallback_for_filesystems_without_nameless_files_publishes_once() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("object");
        for (content, mode, works) in [
            (&b"one"[..], PutMode::CreateIfAbsent, true),
            (b"two", PutMode::CreateIfAbsent, false),
            (b"three", PutMode::Overwrite, true),
        ] {
            let temporary = Temporary::create(dir.path()).unwrap();
            write_file(&temporary.file, content).unwrap();
            assert_eq!(temporary.publish(&to, mode).is_ok(), works);
        }
        assert_eq!(fs::read(&to).unwrap(), b"three");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
