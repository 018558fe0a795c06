//! Random workload on volumes of a real daemon with its data directory on a recorded disk.

use super::{
    filesystem::{ExportFile, Filesystem, Mount},
    history::{SECTOR_BYTES, SnapshotHistory, Span, VolumeHistory, sector_content, versions_in},
    image::Image,
    recorder::{Recorder, Recording},
};
use crate::harness::{
    Ctl, Daemon, KIB, Nbd, Rng, Setup,
    fault::FailingDisk,
    nbd::{command, flag},
};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

const FIRST_SECTORS: u64 = (3 << 20) / SECTOR_BYTES;
const MAX_SECTORS: u64 = (5 << 20) / SECTOR_BYTES;
const SECTORS_PER_BLOCK: u64 = 8;
/// Number of volumes in the consistency group; they come first.
pub(super) const MEMBERS: usize = 2;
pub(super) const GROUP: &str = "pair";
const PEER_SECTORS: u64 = (256 << 10) / SECTOR_BYTES;
pub(super) const MAX_SNAPSHOTS: usize = 4;
const BATCH: u64 = 8;

/// A recorded workload.
pub struct Workload {
    /// Recorded requests of the disk.
    pub recording: Recording,
    /// Histories of the volumes.
    pub volumes: Vec<VolumeHistory>,
    /// Number of steps of each kind.
    pub steps: Vec<(&'static str, u64)>,
    /// Positions after a write-back of a live map before its data.
    pub early_maps: Vec<usize>,
}

/// System calls that do nothing and report success.
#[derive(Clone, Copy, Debug)]
pub struct Omission {
    /// The system call: `fdatasync` or `fsync`.
    pub operation: &'static str,
    /// The affected files.
    pub files: Files,
}

/// Files of a data directory.
#[derive(Clone, Copy, Debug)]
pub enum Files {
    /// Files whose path contains this text.
    With(&'static str),
    /// Files of the group's second member, after its creation.
    OfPeer,
}

struct Request {
    volume: usize,
    from: u64,
    to: u64,
    cookie: u64,
    fua: bool,
}

pub(super) struct Load<'a> {
    pub(super) recorder: &'a Recorder,
    pub(super) rng: Rng,
    daemon: Option<Daemon>,
    data_dir: PathBuf,
    /// The members of the group, then clones.
    pub(super) volumes: Vec<VolumeHistory>,
    /// Open connections by volume.
    pub(super) clients: Vec<Option<Nbd>>,
    pub(super) last_version: u64,
    last_name: u64,
    steps: Vec<(&'static str, u64)>,
    early_maps: Vec<usize>,
}

/// Starts a recorded disk with an empty filesystem in the empty directory `dir`.
pub fn start_recorder(filesystem: Filesystem, dir: &Path) -> Recorder {
    let base = dir.join("base");
    filesystem.make(&base);
    let image = Image::of_file(&base).expect("the image of an empty filesystem");
    std::fs::remove_file(&base).expect("remove the image");
    Recorder::start(image, &dir.join("recorder.sock")).expect("the recorded disk")
}

/// Records a workload of random steps in the empty directory `dir`. The thread must have its own mount
/// namespace.
pub fn record(
    filesystem: Filesystem,
    dir: &Path,
    steps: u64,
    seed: u64,
    omission: Option<Omission>,
) -> Workload {
    let recorder = start_recorder(filesystem, dir);
    let file = ExportFile::of(&recorder.uri(), &dir.join("fuse"));
    let setup = Setup::new(&dir.join("live"));
    let data_dir = setup.data_dir();
    let mount = Mount::of(&file.path(), &data_dir).expect("the filesystem on the recorded disk");
    let disk = omission.map(|omission| (FailingDisk::build(dir), omission));
    let setup = match &disk {
        None => setup,
        Some((disk, omission)) => {
            if let Files::With(part) = omission.files {
                disk.omit(omission.operation, part);
            }
            disk.under(setup)
        }
    };
    let mut load = Load {
        recorder: &recorder,
        rng: Rng::fixed(seed),
        daemon: Some(setup.start()),
        data_dir,
        volumes: Vec::new(),
        clients: Vec::new(),
        last_version: 0,
        last_name: 0,
        steps: Vec::new(),
        early_maps: Vec::new(),
    };
    load.create();
    if let Some((disk, Omission { operation, files: Files::OfPeer })) = &disk {
        disk.omit(operation, &format!("volumes/{}", load.peer_id()));
    }
    for nth in 1..=steps {
        match nth % 20 {
            0 | 10 => load.write_maps_early(),
            15 => load.group_snapshot(),
            _ => load.step(),
        }
    }
    let Load { volumes, steps, early_maps, daemon, clients, .. } = load;
    drop((clients, daemon));
    mount.end().expect("unmount the recorded disk");
    drop(file);
    Workload { recording: recorder.end(), volumes, steps, early_maps }
}

impl Load<'_> {
    pub(super) fn ctl(&self) -> Ctl {
        self.daemon().ctl()
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("no restart is in progress")
    }

    pub(super) fn count(&mut self, what: &'static str) {
        match self.steps.iter_mut().find(|step| step.0 == what) {
            Some(step) => step.1 += 1,
            None => self.steps.push((what, 1)),
        }
    }

    /// Runs an operation and returns its span.
    pub(super) fn span<T>(&self, act: impl FnOnce() -> T) -> (T, Span) {
        let asked = self.recorder.position();
        let done = act();
        (done, Span { asked, answered: self.recorder.position() })
    }

    pub(super) fn new_name(&mut self, kind: &str) -> String {
        self.last_name += 1;
        format!("{kind}{}", self.last_name)
    }

    fn create(&mut self) {
        for (name, sectors) in [("vol", FIRST_SECTORS), ("peer", PEER_SECTORS)] {
            let size = format!("{}KiB", sectors * SECTOR_BYTES / KIB);
            let args = ["volume", "create", name, "--size", &size, "--group", GROUP];
            let (_, span) = self.span(|| self.ctl().json(&args));
            self.volumes.push(VolumeHistory::new(name, span, &vec![0; sectors as usize]));
            self.clients.push(None);
        }
    }

    fn step(&mut self) {
        let clone = self.clone_in_use();
        let snapshots = self.volumes[0].present_snapshots();
        match self.rng.below(100) {
            0..=40 => {
                self.count("batches of writes");
                let batch = self.send_batch();
                self.collect(batch);
            }
            41..=44 => self.group_snapshot(),
            45..=59 => self.flush(),
            60..=69 if snapshots.len() < MAX_SNAPSHOTS => self.snapshot(),
            60..=77 if snapshots.len() > 1 => self.delete_snapshot(0, &snapshots),
            78..=81 if clone.is_none() && !snapshots.is_empty() => self.clone_volume(&snapshots),
            82..=83 => {
                if let Some(clone) = clone {
                    self.delete_volume(clone);
                }
            }
            84..=86 if !snapshots.is_empty() => self.roll_back(&snapshots),
            87..=88 => self.grow(),
            89..=90 => self.restart(false),
            91..=92 => self.restart(true),
            _ => self.write_back(),
        }
    }

    fn clone_in_use(&self) -> Option<usize> {
        (MEMBERS..self.volumes.len()).find(|&nth| self.volumes[nth].deleted.is_none())
    }

    pub(super) fn client(&mut self, volume: usize) -> &mut Nbd {
        if self.clients[volume].is_none() {
            self.clients[volume] = Some(self.daemon().nbd(&self.volumes[volume].name));
        }
        self.clients[volume].as_mut().expect("it was just opened")
    }

    /// Selects the volume of a request, mostly the first one.
    fn pick_volume(&mut self) -> usize {
        match self.clone_in_use() {
            Some(clone) if self.rng.one_in(4) => clone,
            _ => usize::from(self.rng.one_in(5)),
        }
    }

    /// Sends requests that do not overlap.
    fn send_batch(&mut self) -> Vec<Request> {
        let volume = self.pick_volume();
        let mut batch: Vec<Request> = Vec::new();
        let sectors = self.volumes[volume].len();
        for _ in 0..self.rng.between(1, BATCH) {
            let is_whole = self.rng.one_in(2);
            let (unit, most) = if is_whole { (SECTORS_PER_BLOCK, 12) } else { (1, 20) };
            let len = unit * self.rng.between(1, most);
            // Half of the writes go to the first sectors, so that writes overlap earlier ones.
            let reach = if self.rng.one_in(2) { 256 } else { sectors };
            let from = self.rng.below(reach - len) / unit * unit;
            let to = from + len;
            if batch.iter().any(|other| from < other.to && other.from < to) {
                continue;
            }
            let is_zero = is_whole && self.rng.one_in(5);
            self.last_version += 1;
            let version = if is_zero { 0 } else { self.last_version };
            let fua = self.rng.one_in(16);
            let (offset, len_bytes, flags) =
                (from * SECTOR_BYTES, len * SECTOR_BYTES, if fua { flag::FUA } else { 0 });
            let kind = match is_zero {
                false => command::WRITE,
                true if self.rng.one_in(2) => command::TRIM,
                true => command::WRITE_ZEROES,
            };
            let data: Vec<u8> = match is_zero {
                true => Vec::new(),
                false => (from..to).flat_map(|sector| sector_content(sector, version)).collect(),
            };
            let sent = self.recorder.position();
            self.volumes[volume].write(from, to, version, sent);
            let cookie = self.client(volume).start(kind, flags, offset, len_bytes, &data).expect("send");
            batch.push(Request { volume, from, to, cookie, fua });
        }
        batch
    }

    fn collect(&mut self, mut batch: Vec<Request>) {
        while let Some(first) = batch.first() {
            let volume = first.volume;
            let (errno, cookie) = self.client(volume).reply().expect("a reply");
            let now = self.recorder.position();
            assert_eq!(errno, 0, "a request failed");
            let at = batch.iter().position(|request| request.cookie == cookie).expect("a reply to a request");
            let request = batch.swap_remove(at);
            if request.fua {
                self.volumes[volume].flushed_range(request.from, request.to, now);
            }
        }
    }

    fn flush(&mut self) {
        self.count("flushes");
        let volume = self.pick_volume();
        self.client(volume).flush();
        let written = self.volumes[volume].written();
        self.volumes[volume].flushed(written, self.recorder.position());
    }

    /// Returns the versions of an export's sectors.
    fn versions_of(&self, export: &str) -> Vec<u64> {
        versions_in(&self.daemon().content(export)).unwrap_or_else(|what| panic!("{export}: {what}"))
    }

    /// Notes a new snapshot. Each sector must have one of its last `last(sector)` contents: more than one if
    /// requests were in flight.
    pub(super) fn note_snapshot(
        &mut self,
        volume: usize,
        name: &str,
        made: Span,
        last: impl Fn(u64) -> usize,
    ) {
        let versions = self.versions_of(&format!("{}@{name}", self.volumes[volume].name));
        for (number, version) in versions.iter().enumerate() {
            let contents = &self.volumes[volume].sectors[number];
            let fits =
                contents.iter().rev().take(last(number as u64)).any(|content| content.version == *version);
            assert!(fits, "sector {number} of snapshot {name} has version {version}: {contents:?}");
        }
        let name = name.to_owned();
        self.volumes[volume].snapshots.push(SnapshotHistory { name, made, deleted: None, versions });
    }

    fn snapshot(&mut self) {
        self.count("snapshots");
        let name = self.new_name("s");
        let written = self.volumes[0].written();
        // Requests are in flight during the freeze.
        let batch = self.send_batch();
        let (_, made) = self.span(|| self.ctl().json(&["snapshot", "create", "vol", "--name", &name]));
        self.volumes[0].flushed(written, made.answered);
        self.collect(batch);
        self.note_snapshot(0, &name, made, |_| 2);
    }

    fn pick_snapshot(&mut self, volume: usize, snapshots: &[usize]) -> (usize, String) {
        let nth = snapshots[self.rng.below(snapshots.len() as u64) as usize];
        (nth, self.volumes[volume].snapshots[nth].name.clone())
    }

    pub(super) fn delete_snapshot(&mut self, volume: usize, snapshots: &[usize]) {
        self.count("snapshots deleted");
        let (nth, name) = self.pick_snapshot(volume, snapshots);
        let full_name = format!("{}@{name}", self.volumes[volume].name);
        let (_, span) = self.span(|| self.ctl().json(&["snapshot", "delete", &full_name]));
        self.volumes[volume].snapshots[nth].deleted = Some(span);
    }

    fn clone_volume(&mut self, snapshots: &[usize]) {
        self.count("clones");
        let (nth, snapshot) = self.pick_snapshot(0, snapshots);
        let name = self.new_name("copy");
        let from = format!("vol@{snapshot}");
        let (_, made) = self.span(|| self.ctl().json(&["volume", "clone", &name, "--from", &from]));
        let versions = self.volumes[0].snapshots[nth].versions.clone();
        self.volumes.push(VolumeHistory::new(&name, made, &versions));
        self.clients.push(None);
    }

    /// Closes the connection to a volume and waits for its end.
    fn disconnect(&mut self, volume: usize) {
        if let Some(client) = self.clients[volume].take() {
            client.close();
        }
        self.ctl().wait_for_connections(&self.volumes[volume].name, 0);
    }

    fn delete_volume(&mut self, volume: usize) {
        self.count("volumes deleted");
        self.disconnect(volume);
        let name = self.volumes[volume].name.clone();
        let (_, span) = self.span(|| self.ctl().json(&["volume", "delete", &name]));
        self.volumes[volume].deleted = Some(span);
    }

    fn roll_back(&mut self, snapshots: &[usize]) {
        self.count("rollbacks");
        self.disconnect(0);
        let (nth, name) = self.pick_snapshot(0, snapshots);
        let mut args = vec!["snapshot", "restore", "vol", "--snapshot", &name];
        if self.rng.one_in(2) {
            args.push("--discard");
        }
        let (done, span) = self.span(|| self.ctl().json(&args));
        if let Some(kept) = done["keptSnapshot"]["name"].as_str() {
            self.note_snapshot(0, kept, span, |_| 2);
        }
        let versions = self.volumes[0].snapshots[nth].versions.clone();
        self.volumes[0].rolled_back(&versions, span);
    }

    fn grow(&mut self) {
        let old = self.volumes[0].len();
        let new = (old + SECTORS_PER_BLOCK * self.rng.between(1, 100)).min(MAX_SECTORS);
        if new == old {
            return;
        }
        self.count("growths");
        let size = format!("{}KiB", new * SECTOR_BYTES / KIB);
        let (_, span) = self.span(|| self.ctl().json(&["volume", "resize", "vol", "--size", &size]));
        self.volumes[0].grown(new, span);
    }

    /// Stops or kills the daemon and starts it again on the same mount: no acknowledged write may be lost.
    fn restart(&mut self, kill: bool) {
        self.count(if kill { "kills" } else { "stops" });
        self.clients.iter_mut().for_each(|client| *client = None);
        let daemon = self.daemon.take().expect("no restart is in progress");
        let setup = match kill {
            true => daemon.kill(),
            false => {
                let setup = daemon.stop();
                let now = self.recorder.position();
                for volume in self.volumes.iter_mut().filter(|volume| volume.deleted.is_none()) {
                    let written = volume.written();
                    volume.flushed(written, now);
                }
                setup
            }
        };
        self.daemon = Some(setup.start());
        for nth in 0..self.volumes.len() {
            if self.volumes[nth].deleted.is_some() {
                continue;
            }
            let versions = self.versions_of(&self.volumes[nth].name);
            let last =
                self.volumes[nth].sectors.iter().map(|contents| contents.last().map(|last| last.version));
            let wrong = last.zip(&versions).position(|(expected, found)| expected != Some(*found));
            assert_eq!(wrong, None, "a sector of {} after a restart", self.volumes[nth].name);
        }
    }

    /// Returns the files of all volumes.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for volume in std::fs::read_dir(self.data_dir.join("volumes")).expect("the volumes").flatten() {
            let entries = std::fs::read_dir(volume.path()).into_iter().flatten().flatten();
            files.extend(entries.map(|entry| entry.path()));
        }
        files.sort();
        files
    }

    /// Writes back one file or all of them, as the kernel may at any time.
    fn write_back(&mut self) {
        self.count("write-backs");
        if self.rng.one_in(4) {
            let dir = File::open(&self.data_dir).expect("the data directory");
            return rustix::fs::syncfs(&dir).expect("syncfs");
        }
        let files = self.files();
        let path = &files[self.rng.below(files.len() as u64) as usize];
        // A merge may have removed the file.
        if let Ok(file) = File::open(path) {
            file.sync_all().expect("sync");
        }
    }

    /// Writes back the most dangerous way: the map bits of new blocks before their data.
    fn write_maps_early(&mut self) {
        self.count("maps written early");
        let batch = self.send_batch();
        self.collect(batch);
        for path in self.files().iter().filter(|path| path.extension().is_some_and(|end| end == "map")) {
            if let Ok(file) = File::open(path) {
                file.sync_all().expect("sync");
                self.early_maps.push(self.recorder.position());
            }
        }
    }
}
