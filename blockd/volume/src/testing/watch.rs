//! How the calls of the crate find the disk that is attached to their folder.

use super::disk::Disk;
use crate::storage::{Bug, Op};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// One file or name, and the disk that it lies on, if one is attached.
#[derive(Clone)]
pub(crate) struct Watch(Option<Watched>);

#[derive(Clone)]
struct Watched {
    disk: Arc<Disk>,
    path: PathBuf,
    /// Of an open file: it stays the same when the name changes.
    node: Option<usize>,
}

impl Watch {
    pub(crate) fn of(path: &Path) -> Self {
        Self(Disk::of(path).map(|disk| Watched { disk, path: path.to_owned(), node: None }))
    }

    pub(crate) fn opened(mut self) -> Self {
        if let Some(watched) = &mut self.0 {
            watched.node = watched.disk.node_at(&watched.path);
        }
        self
    }

    pub(crate) fn run<T>(&self, op: Op<'_>, real: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.0 {
            None => real(),
            Some(watched) => watched.disk.run(&watched.path, watched.node, op, real),
        }
    }

    /// For calls that change nothing that can be read: the disk notes them, and the real one is spared.
    pub(crate) fn costly(&self, op: Op<'_>, real: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match &self.0 {
            None => real(),
            Some(watched) => watched.disk.run(&watched.path, watched.node, op, || Ok(())),
        }
    }

    /// For a call that only some filesystems have: a disk does it by copying, or does not have it.
    pub(crate) fn share(&self, op: Op<'_>, real: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match &self.0 {
            None => real(),
            Some(watched) => watched.disk.share(&watched.path, watched.node, op),
        }
    }

    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.0.as_ref().is_some_and(|watched| watched.disk.has(bug))
    }
}
