//! Simulated disk: counts and fails calls, and tracks their effects.

use super::{
    DiskBug, Fault, FaultError, OpKind, Rng, kind_of,
    node::{Change, FileNode, Node},
};
use blockd_volume::{Op, Storage, attach_storage, detach_storage};
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    fs, io,
    ops::Deref,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

const PAGE_BYTES: u64 = 4096;

/// Recorded call.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Kind.
    pub kind: OpKind,
    /// Path.
    pub path: PathBuf,
}

/// Simulated disk under a directory.
pub struct Disk {
    pub(super) root: PathBuf,
    pub(super) state: Mutex<State>,
}

pub(super) struct State {
    operations: Vec<Operation>,
    faults: Vec<Fault>,
    failed_calls: Vec<Operation>,
    cut_at: Option<u64>,
    is_off: bool,
    is_bypassed: bool,
    shares_extents: bool,
    bugs: Vec<DiskBug>,
    /// Files with delayed syncs.
    late: Vec<(PathBuf, usize)>,
    /// The first one is the root.
    pub(super) nodes: Vec<Node>,
    rng: Rng,
}

/// Attached disk; detached on drop.
pub struct Attached(Arc<Disk>);

impl Deref for Attached {
    type Target = Disk;
    fn deref(&self) -> &Disk {
        &self.0
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        detach_storage(&self.0.root);
    }
}

impl Disk {
    /// Attaches a disk to a directory, whose content is durable. The seed decides the effects of failed
    /// syncs.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn attach(root: &Path, seed: u64) -> io::Result<Attached> {
        let mut nodes = vec![Node::Dir(BTreeMap::new())];
        scan(root, 0, &mut nodes)?;
        let state = State {
            operations: vec![],
            faults: vec![],
            failed_calls: vec![],
            cut_at: None,
            is_off: false,
            is_bypassed: false,
            shares_extents: false,
            bugs: vec![],
            late: vec![],
            nodes,
            rng: Rng::fixed(seed),
        };
        let disk = Arc::new(Self { root: root.to_owned(), state: Mutex::new(state) });
        attach_storage(root, disk.clone());
        Ok(Attached(disk))
    }

    /// Returns all calls since the attachment.
    pub fn operations(&self) -> Vec<Operation> {
        self.state.lock().operations.clone()
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// Removes all faults and returns the failed calls.
    pub fn clear_faults(&self) -> Vec<Operation> {
        let mut state = self.state.lock();
        state.faults.clear();
        std::mem::take(&mut state.failed_calls)
    }

    /// Returns the calls that failed since the last [`clear_faults`](Self::clear_faults).
    pub fn failed(&self) -> Vec<Operation> {
        self.state.lock().failed_calls.clone()
    }

    /// Runs an inspection by the test: its calls neither fail nor count.
    pub fn bypass<T>(&self, inspect: impl FnOnce() -> T) -> T {
        self.state.lock().is_bypassed = true;
        let found = inspect();
        self.state.lock().is_bypassed = false;
        found
    }

    /// Cuts the power right before a call, counted from 0 since the attachment: that call and all later ones
    /// fail without effect.
    pub fn cut_power_before(&self, number: u64) {
        self.state.lock().cut_at = Some(number);
    }

    /// Turns a cut at [`cut_power_before`](Self::cut_power_before) into a crash of the process: the power is
    /// on and the page cache is kept. Files of the crashed process must be closed.
    pub fn restart_process(&self) {
        let mut state = self.state.lock();
        (state.cut_at, state.is_off) = (None, false);
    }

    /// Returns true if the power is cut.
    pub fn is_off(&self) -> bool {
        self.state.lock().is_off
    }

    /// Sets support for shared extents: on as on XFS; off by default, as on ext4.
    pub fn set_shares_extents(&self, shares_extents: bool) {
        self.state.lock().shares_extents = shares_extents;
    }

    /// Adds a bug.
    pub fn add_bug(&self, bug: DiskBug) {
        self.state.lock().bugs.push(bug);
    }

    /// Evicts all clean pages: data that a failed sync dropped is then lost for readers, too.
    ///
    /// # Errors
    /// The underlying filesystem fails.
    pub fn evict(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let mut files = Vec::new();
        state.stale_files(0, &self.root, &mut files);
        for (path, number) in files {
            let file = fs::OpenOptions::new().write(true).open(path)?;
            state.evict(number, &file)?;
        }
        Ok(())
    }
}

impl Storage for Disk {
    fn file_at(&self, path: &Path) -> Option<usize> {
        self.state.lock().find(path.strip_prefix(&self.root).ok()?)
    }

    /// Runs or fails a call. Syncs and space reservations do not reach the kernel.
    fn perform(
        &self,
        path: &Path,
        file: Option<usize>,
        op: Op<'_>,
        kernel: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        match op {
            Op::Sync | Op::SyncDir | Op::Reserve => self.run(path, file, op, &mut || Ok(())),
            Op::Share { .. } if !self.state.lock().shares_extents => Err(rustix::io::Errno::OPNOTSUPP.into()),
            // A copy, so that the tests run on any filesystem.
            Op::Share { from, to, offset_bytes, len_bytes } => self.run(path, file, op, &mut || {
                let mut data = vec![0; len_bytes as usize];
                from.read_exact_at(&mut data, offset_bytes)?;
                to.write_all_at(&data, offset_bytes)
            }),
            _ => self.run(path, file, op, kernel),
        }
    }
}

impl Disk {
    fn run(
        &self,
        path: &Path,
        node: Option<usize>,
        op: Op<'_>,
        real: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let relative = |path: &Path| path.strip_prefix(&self.root).map(Path::to_owned).ok();
        let name = relative(path).unwrap_or_default();
        let mut state = self.state.lock();
        let node = node.or_else(|| state.find(&name));
        if let Some(kind) = kind_of(&op).filter(|_| !state.is_bypassed) {
            state.count(kind, path)?;
            if !clears_page(&op)
                && let Some(fault) = state.fault(kind, path)
            {
                state.fail(node, &op, &fault)?;
                let is_hidden =
                    |bug: &DiskBug| matches!(bug, DiskBug::HidesFailedSync(file) if is_in(path, file));
                return match kind == OpKind::Sync && state.bugs.iter().any(is_hidden) {
                    true => real(),
                    false => Err(fault.error.error()),
                };
            }
        } else if state.is_off {
            return real();
        }
        real()?;
        let to = match op {
            Op::Rename(to) | Op::Link(to) => relative(to),
            _ => None,
        };
        if state.skips_sync(&op, path, node) {
            return Ok(());
        }
        state.record(&name, node, &op, to.as_deref())?;
        state.run_late_syncs(&op, path)
    }
}

impl State {
    /// Counts a call; fails it if the power is cut.
    fn count(&mut self, kind: OpKind, path: &Path) -> io::Result<()> {
        let number = self.operations.len() as u64;
        self.operations.push(Operation { kind, path: path.to_owned() });
        self.is_off |= self.cut_at == Some(number);
        if self.is_off { Err(FaultError::Io.error()) } else { Ok(()) }
    }

    /// Returns true if a bug skips or delays a sync.
    fn skips_sync(&mut self, op: &Op<'_>, path: &Path, node: Option<usize>) -> bool {
        let bug = self.bugs.iter().find(|bug| match (bug, op) {
            (DiskBug::IgnoresDirSync, Op::SyncDir) => true,
            (DiskBug::IgnoresSync(file) | DiskBug::SyncsLate { late: file, .. }, Op::Sync) => {
                is_in(path, file)
            }
            _ => false,
        });
        if let (Some(DiskBug::SyncsLate { .. }), Some(node)) = (bug, node) {
            self.late.push((path.to_owned(), node));
        }
        bug.is_some()
    }

    /// Runs delayed syncs, each as a separate call.
    fn run_late_syncs(&mut self, op: &Op<'_>, path: &Path) -> io::Result<()> {
        let path = match op {
            Op::Sync => path,
            Op::Rename(to) => to,
            _ => return Ok(()),
        };
        if self.bugs.iter().any(|bug| matches!(bug, DiskBug::SyncsLate { after, .. } if is_in(path, after))) {
            for (path, node) in std::mem::take(&mut self.late) {
                self.count(OpKind::Sync, &path)?;
                if let Some(file) = self.file(Some(node)) {
                    file.sync();
                }
            }
        }
        Ok(())
    }

    /// Returns the fault that hits a call.
    fn fault(&mut self, kind: OpKind, path: &Path) -> Option<Fault> {
        let mut hit = None;
        for (number, fault) in self.faults.iter_mut().enumerate() {
            if fault.matches(kind, path) {
                match fault.skip.checked_sub(1) {
                    Some(left) => fault.skip = left,
                    None => hit = hit.or(Some(number)),
                }
            }
        }
        let number = hit?;
        self.failed_calls.push(Operation { kind, path: path.to_owned() });
        Some(match self.faults[number].persistent {
            true => self.faults[number].clone(),
            false => self.faults.remove(number),
        })
    }

    /// Applies the effects of a failing call.
    fn fail(&mut self, node: Option<usize>, op: &Op<'_>, fault: &Fault) -> io::Result<()> {
        match *op {
            // The page cache accepts a write within one page completely or not at all.
            Op::Write { offset_bytes, data, .. }
                if offset_bytes % PAGE_BYTES + data.len() as u64 <= PAGE_BYTES =>
            {
                Ok(())
            }
            Op::Write { file, offset_bytes, data } => {
                let data = &data[..fault.partial_bytes.min(data.len())];
                file.write_all_at(data, offset_bytes)?;
                self.record(Path::new(""), node, &Op::Write { file, offset_bytes, data }, None)
            }
            Op::Sync => {
                let mut rng = self.rng.clone();
                if let Some(file) = self.file(node) {
                    file.lose(&mut rng);
                }
                self.rng = rng;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Records the effects of a call.
    fn record(&mut self, name: &Path, node: Option<usize>, op: &Op<'_>, to: Option<&Path>) -> io::Result<()> {
        match *op {
            Op::Open | Op::Read | Op::Reserve => {}
            Op::CreateDir => self.add_node(name, Node::Dir(BTreeMap::new())),
            Op::Create => match self.file(node) {
                Some(file) => file.push(Change::SetLen(0)),
                None => self.add_node(name, Node::File(FileNode::new(vec![]))),
            },
            Op::Write { file, offset_bytes, data } => {
                if let Some(node) = self.file(node) {
                    let (offset, data) = match node.is_stale {
                        // The kernel writes whole pages, including data that it wrongly treats as clean.
                        true => pages_around(file, offset_bytes, data.len() as u64)?,
                        false => (offset_bytes, data.to_vec()),
                    };
                    node.push(Change::Write { offset_bytes: offset as usize, data });
                }
            }
            // Until the next sync, each sector may be old.
            Op::Share { to, offset_bytes, len_bytes, .. } => {
                if let Some(file) = self.file(node) {
                    let mut data = vec![0; len_bytes as usize];
                    to.read_exact_at(&mut data, offset_bytes)?;
                    file.push(Change::Write { offset_bytes: offset_bytes as usize, data });
                }
            }
            Op::SetLen(len) => {
                if let Some(file) = self.file(node) {
                    file.push(Change::SetLen(len as usize));
                }
            }
            Op::Zero { offset_bytes, len_bytes } => {
                if let Some(file) = self.file(node) {
                    let (offset_bytes, len_bytes) = (offset_bytes as usize, len_bytes as usize);
                    file.push(Change::Zero { offset_bytes, len_bytes });
                }
            }
            Op::Sync => {
                if let Some(file) = self.file(node) {
                    file.sync();
                }
            }
            Op::SyncDir => {
                if let Some(Node::Dir(names)) = node.and_then(|node| self.nodes.get_mut(node)) {
                    for history in names.values_mut() {
                        history.drain(..history.len() - 1);
                    }
                    names.retain(|_, history| history != &[None]);
                }
            }
            Op::Rename(_) => {
                if let Some(to) = to {
                    self.bind(to, node);
                }
                self.bind(name, None);
            }
            Op::Link(_) => {
                if let Some(to) = to {
                    self.bind(to, node);
                }
            }
            Op::Remove | Op::RemoveTree => self.bind(name, None),
            Op::DropCache(file) => {
                if let Some(node) = node {
                    self.evict(node, file)?;
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, node: Option<usize>) -> Option<&mut FileNode> {
        match self.nodes.get_mut(node?)? {
            Node::File(file) => Some(file),
            Node::Dir(_) => None,
        }
    }

    fn add_node(&mut self, name: &Path, node: Node) {
        self.nodes.push(node);
        self.bind(name, Some(self.nodes.len() - 1));
    }

    /// Binds a name to another node.
    fn bind(&mut self, name: &Path, node: Option<usize>) {
        let dir = name.parent().and_then(|parent| self.find(parent));
        if let (Some(Node::Dir(names)), Some(last)) =
            (dir.and_then(|dir| self.nodes.get_mut(dir)), name.file_name())
        {
            names.entry(last.to_owned()).or_insert_with(|| vec![None]).push(node);
        }
    }

    /// Returns the node of a path below the root.
    fn find(&self, name: &Path) -> Option<usize> {
        name.components().try_fold(0, |dir, part| match self.nodes.get(dir)? {
            Node::Dir(names) => names.get(part.as_os_str()).and_then(|history| history.last().copied())?,
            Node::File(_) => None,
        })
    }

    fn stale_files(&self, dir: usize, path: &Path, found: &mut Vec<(PathBuf, usize)>) {
        let Some(Node::Dir(names)) = self.nodes.get(dir) else { return };
        for (name, history) in names {
            let Some(Some(node)) = history.last() else { continue };
            match &self.nodes[*node] {
                Node::Dir(_) => self.stale_files(*node, &path.join(name), found),
                Node::File(file) if file.is_stale => found.push((path.join(name), *node)),
                Node::File(_) => {}
            }
        }
    }

    fn evict(&mut self, node: usize, real: &fs::File) -> io::Result<()> {
        let Some(file) = self.file(Some(node)).filter(|file| file.is_stale) else {
            return Ok(());
        };
        let content = file.newest();
        real.set_len(content.len() as u64)?;
        real.write_all_at(&content, 0)?;
        file.is_stale = false;
        Ok(())
    }
}

/// Returns true if a write clears the first page of a file. It never fails here: it needs only the page
/// cache, and a filesystem that refuses it was shut down and is mounted again before the next read.
fn clears_page(op: &Op<'_>) -> bool {
    matches!(op, Op::Write { offset_bytes: 0, data, .. }
        if data.len() as u64 == PAGE_BYTES && data.iter().all(|&byte| byte == 0))
}

fn is_in(path: &Path, text: &str) -> bool {
    path.to_string_lossy().contains(text)
}

fn pages_around(file: &fs::File, offset_bytes: u64, len_bytes: u64) -> io::Result<(u64, Vec<u8>)> {
    let start = offset_bytes / PAGE_BYTES * PAGE_BYTES;
    let end = ((offset_bytes + len_bytes).div_ceil(PAGE_BYTES) * PAGE_BYTES).min(file.metadata()?.len());
    let mut data = vec![0; end.saturating_sub(start) as usize];
    file.read_exact_at(&mut data, start)?;
    Ok((start, data))
}

/// Records the content of a directory as durable.
fn scan(path: &Path, dir: usize, nodes: &mut Vec<Node>) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let path = entry.path();
        let number = nodes.len();
        if entry.file_type()?.is_dir() {
            nodes.push(Node::Dir(BTreeMap::new()));
            scan(&path, number, nodes)?;
        } else {
            nodes.push(Node::File(FileNode::new(fs::read(&path)?)));
        }
        if let Some(Node::Dir(names)) = nodes.get_mut(dir) {
            names.insert(entry.file_name(), vec![Some(number)]);
        }
    }
    Ok(())
}
