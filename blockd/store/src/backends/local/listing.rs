//! Directory walks of a store: listings, and removal of unfinished uploads.

use super::{
    location::{ObjectLocation, PARTS, TEMPORARY},
    open_at,
};
use crate::{ListPage, ObjectInfo, StoreError, StoreErrorKind, check_key};
use rustix::fs::{AtFlags, FileType, Statx, unlinkat};
use std::{cmp::Ordering, os::fd::OwnedFd};

/// Maximum number of objects in a page of a listing.
const MAX_PAGE_OBJECTS: usize = 10_000;

/// Directory of a walk.
struct Level {
    dir: OwnedFd,
    /// Path below the root, with a trailing slash; empty for the root.
    path: String,
    names: std::vec::IntoIter<String>,
}

impl Level {
    /// Opens a directory; `None` if it does not exist.
    fn open(
        location: &ObjectLocation,
        dir: &OwnedFd,
        name: &str,
        path: String,
    ) -> Result<Option<Self>, StoreError> {
        let opened = open_at::open_dir(dir, name)
            .and_then(|dir| Ok((open_at::names(&dir, open_at::MAX_NAMES_BYTES)?, dir)));
        match opened {
            Ok((names, dir)) => Ok(Some(Self { dir, path, names: names.into_iter() })),
            Err(error) => match location.io(error) {
                error if error.kind == StoreErrorKind::NotFound => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Opens the directory of all keys with this prefix.
    fn of_prefix(location: &ObjectLocation, prefix: &str) -> Result<Option<Self>, StoreError> {
        let root = location.open_root()?;
        let above = prefix.rfind('/').map_or("", |at| &prefix[..at]);
        let path = if above.is_empty() { String::new() } else { format!("{above}/") };
        Self::open(location, &root, above, path)
    }
}

/// Order of the walk: compares paths component by component.
fn order(key: &str, other: &str) -> Ordering {
    key.split('/').cmp(other.split('/'))
}

fn object(key: String, found: &Statx) -> ObjectInfo {
    let (ctime, size_bytes) = (found.stx_ctime, found.stx_size);
    let version = format!("{}-{size_bytes}-{}.{:09}", found.stx_ino, ctime.tv_sec, ctime.tv_nsec);
    // Not the modification time, which copies of a file preserve.
    ObjectInfo { key, size_bytes, version, modified_unix_s: Some(ctime.tv_sec) }
}

/// Returns the objects after a key, in the [order](order) of the walk.
pub(super) fn list_page(location: &ObjectLocation, after: Option<&str>) -> Result<ListPage, StoreError> {
    let prefix = location.key.as_str();
    let mut page = ListPage::default();
    let mut levels: Vec<Level> = Level::of_prefix(location, prefix)?.into_iter().collect();
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            levels.pop();
            continue;
        };
        let key = format!("{}{name}", level.path);
        let is_before = after.is_some_and(|after| order(&key, after) != Ordering::Greater);
        let is_above =
            after.is_some_and(|after| after.strip_prefix(&key).is_some_and(|rest| rest.starts_with('/')));
        if !key.starts_with(prefix) || !check_key(&key) || (is_before && !is_above) {
            continue;
        }
        let Some(found) = open_at::stat(&level.dir, &name).map_err(|error| location.io(error))? else {
            continue;
        };
        match open_at::type_of(&found) {
            FileType::Directory => {
                let path = format!("{key}/");
                let below = Level::open(location, &level.dir, &name, path)?;
                levels.extend(below);
            }
            FileType::RegularFile if !is_before => {
                page.objects.push(object(key, &found));
                if page.objects.len() == MAX_PAGE_OBJECTS {
                    page.next = page.objects.last().map(|last| last.key.clone());
                    break;
                }
            }
            _ => {}
        }
    }
    Ok(page)
}

/// Returns true for the hidden name of an unpublished file.
fn is_unfinished(name: &str) -> bool {
    [TEMPORARY, PARTS].iter().any(|prefix| name.starts_with(prefix))
}

/// Removes hidden files and empty directories below a prefix that were last changed before a time; returns
/// the number of files.
pub(super) fn remove_unfinished(
    location: &ObjectLocation,
    before_unix_s: i64,
    dry_run: bool,
) -> Result<u64, StoreError> {
    let prefix = location.key.as_str();
    let mut removed = 0;
    let mut levels: Vec<Level> = Level::of_prefix(location, prefix)?.into_iter().collect();
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.next() else {
            let done = levels.pop();
            if let (Some(above), Some(done), false) = (levels.last(), done, dry_run) {
                remove_if_empty(&above.dir, &done, before_unix_s);
            }
            continue;
        };
        let Some(found) = open_at::stat(&level.dir, &name).map_err(|error| location.io(error))? else {
            continue;
        };
        match open_at::type_of(&found) {
            FileType::Directory => {
                let path = format!("{}{name}/", level.path);
                if check_key(path.trim_end_matches('/')) && path.starts_with(prefix) {
                    let below = Level::open(location, &level.dir, &name, path)?;
                    levels.extend(below);
                }
            }
            FileType::RegularFile if is_unfinished(&name) && found.stx_ctime.tv_sec < before_unix_s => {
                removed += 1;
                if !dry_run {
                    unlinkat(&level.dir, &name, AtFlags::empty())
                        .map_err(|error| location.io(error.into()))?;
                }
            }
            _ => {}
        }
    }
    Ok(removed)
}

/// Removes an empty directory that was last changed before a time. A concurrent put recreates it.
fn remove_if_empty(above: &OwnedFd, done: &Level, before_unix_s: i64) {
    let name = done.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let found = open_at::stat(above, name);
    if found.is_ok_and(|found| found.is_some_and(|found| found.stx_mtime.tv_sec < before_unix_s)) {
        // Best effort: most directories are not empty.
        let _ = unlinkat(above, name, AtFlags::REMOVEDIR);
    }
}
