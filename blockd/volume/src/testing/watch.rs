//! Lookup of the simulated disk of a directory.

use super::disk::Disk;
use crate::io::storage::Op;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// File or name, and its attached disk, if any.
#[derive(Clone)]
pub(crate) struct Watch(Option<Watched>);

#[derive(Clone)]
struct Watched {
    disk: Arc<Disk>,
    path: PathBuf,
    /// Node of an open file; independent of later renames.
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

    /// Runs a call without visible effects: recorded, but not executed.
    pub(crate) fn costly(&self, op: Op<'_>, real: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match &self.0 {
            None => real(),
            Some(watched) => watched.disk.run(&watched.path, watched.node, op, || Ok(())),
        }
    }

    /// Runs a call that only some filesystems support: the disk copies, or refuses.
    pub(crate) fn share(&self, op: Op<'_>, real: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match &self.0 {
            None => real(),
            Some(watched) => watched.disk.share(&watched.path, watched.node, op),
        }
    }
}
