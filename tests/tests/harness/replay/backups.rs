//! Recorded backups: the power is cut between freeze, upload, commit and clean-up, while the store keeps its
//! objects. The restarted daemon must complete its tasks. Every listed backup must equal the volume at one
//! point in time between its request and its end, and the next incremental backups the current volume.

use super::{
    filesystem::{ExportFile, Filesystem, Mount},
    history::{SECTOR_BYTES, Span, sector_content},
    image::Image,
    load::{Files, Omission, start_recorder},
    recorder::Recording,
    store::StoreHistory,
    verify::{finding, on},
};
use crate::harness::{BLOCK, Ctl, Daemon, KIB, Nbd, Rng, Setup, Task, fault::FailingDisk, items, wait_until};
use std::{ops::Range, path::Path};

const VOLUME: &str = "vol";
const SECTORS: u64 = (2 << 20) / SECTOR_BYTES;
/// Finding of a backup that equals no content of the volume between its request and its end.
pub const WRONG: &str = "equals no content of the volume while it was made";
/// Finding of a wrong backup after a power cut.
pub const DIFFERS: &str = "differs first";
/// Finding of lost changed-block tracking.
pub const FORGOTTEN: &str = "changed-block tracking was lost: the next backup is full";
/// Maximum number of writes between two backups.
const MAX_WRITES: u64 = 12;

/// A recorded workload of backups.
pub struct BackupWorkload {
    /// Recorded requests of the disk.
    pub recording: Recording,
    /// Recorded states of the store.
    pub store: StoreHistory,
    /// Position from which on the volume and its backup location exist.
    pub ready: usize,
    backups: Vec<Backup>,
}

struct Backup {
    span: Span,
    snap: String,
    /// Acknowledged content at the request.
    before: Vec<u8>,
    /// Writes until the end of the backup, in order.
    changes: Vec<Change>,
}

struct Change {
    offset: usize,
    data: Vec<u8>,
}

impl Change {
    fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.data.len()
    }

    fn apply(&self, content: &mut [u8]) {
        content[self.range()].copy_from_slice(&self.data);
    }

    /// Returns true for `before` with some blocks of the change, which was in flight at the freeze.
    fn is_half_done(&self, before: &[u8], content: &[u8]) -> bool {
        let Range { start, end } = self.range();
        let mut after = before.to_vec();
        self.apply(&mut after);
        let first = start - start % BLOCK as usize;
        let is_either = |at: usize| {
            let block = at..(at + BLOCK as usize).min(content.len());
            content[block.clone()] == before[block.clone()] || content[block.clone()] == after[block]
        };
        content[..first] == before[..first]
            && (first..end).step_by(BLOCK as usize).all(is_either)
            && content.get(end.next_multiple_of(BLOCK as usize)..)
                == before.get(end.next_multiple_of(BLOCK as usize)..)
    }
}

impl Backup {
    /// Returns true if the volume had this content at some time between request and end.
    fn may_hold(&self, content: &[u8]) -> bool {
        let mut state = self.before.clone();
        if content.len() != state.len() {
            return false;
        }
        for change in &self.changes {
            // A complete change is the base of the next one.
            if change.is_half_done(&state, content) {
                return true;
            }
            change.apply(&mut state);
        }
        content == state
    }
}

struct Load {
    rng: Rng,
    daemon: Daemon,
    client: Option<Nbd>,
    last_version: u64,
    /// Acknowledged content.
    content: Vec<u8>,
    /// Writes since the request of the last backup.
    changes: Vec<Change>,
}

/// Records a workload of backups in the empty directory `dir`. The thread must have its own mount namespace.
/// An omission starts at the end of the first backup; then cuts before the end of the second one are not
/// ready.
pub fn record(
    filesystem: Filesystem,
    dir: &Path,
    backups: u64,
    seed: u64,
    omission: Option<Omission>,
) -> BackupWorkload {
    let recorder = start_recorder(filesystem, dir);
    let store = StoreHistory::new(dir);
    let observer = store.clone();
    recorder.observe(Box::new(move |position| observer.observe(position)));
    let file = ExportFile::of(&recorder.uri(), &dir.join("fuse"));
    let setup = setup(&dir.join("live"));
    let mount = Mount::of(&file.path(), &setup.data_dir()).expect("the filesystem on the recorded disk");
    let disk = omission.map(|omission| (FailingDisk::build(dir), omission));
    let setup = if let Some((disk, _)) = &disk { disk.under(setup) } else { setup };
    let mut load = Load {
        rng: Rng::fixed(seed),
        daemon: setup.start(),
        client: None,
        last_version: 0,
        content: vec![0; (SECTORS * SECTOR_BYTES) as usize],
        changes: Vec::new(),
    };
    let ctl = load.daemon.ctl();
    ctl.add_local("nas", store.store().dir(), None);
    ctl.create_volume(VOLUME, &format!("{}KiB", SECTORS * SECTOR_BYTES / KIB));
    let mut ready = recorder.position();
    let mut made = Vec::new();
    for nth in 0..backups {
        // The volume is full of data, so that untracked changes show.
        if nth == 0 {
            load.write(0, SECTORS);
        }
        load.write_some();
        let (asked, before) = (recorder.position(), load.content.clone());
        load.changes.clear();
        let task = load.daemon.ctl().start_backup(VOLUME);
        load.write_some();
        if load.rng.one_in(3) {
            load = load.restarted();
        }
        let task = load.daemon.ctl().wait_task(&task);
        let span = Span { asked, answered: recorder.position() };
        assert_eq!(task.state(), "Backup-Done", "{task:?}");
        let changes = std::mem::take(&mut load.changes);
        made.push(Backup { span, snap: task.snap().to_owned(), before, changes });
        if let Some((disk, omission)) = &disk {
            // The first backup has no earlier state to lose.
            match (nth, omission.files) {
                (0, Files::With(part)) => disk.omit(omission.operation, part),
                (0, files) => panic!("{files:?}: there is one volume"),
                (1, _) => ready = recorder.position(),
                _ => {}
            }
        }
    }
    let Load { daemon, client, .. } = load;
    drop((client, daemon));
    mount.end().expect("unmount the recorded disk");
    drop(file);
    store.observe(recorder.position());
    BackupWorkload { recording: recorder.end(), store, ready, backups: made }
}

/// Only the first backup is full.
fn setup(home: &Path) -> Setup {
    Setup::new(home).config("full_every = 1000")
}

fn content_of(daemon: &Daemon, ctl: &Ctl, snap: &str, nth: usize) -> Vec<u8> {
    let name = format!("restored-{nth}");
    ctl.restore(snap, &name);
    daemon.content(&name)
}

impl Load {
    fn client(&mut self) -> &mut Nbd {
        let daemon = &self.daemon;
        self.client.get_or_insert_with(|| daemon.nbd(VOLUME))
    }

    fn write(&mut self, from: u64, to: u64) {
        self.last_version += 1;
        let version = self.last_version;
        let data: Vec<u8> = (from..to).flat_map(|sector| sector_content(sector, version)).collect();
        self.client().write_long(from * SECTOR_BYTES, &data);
        self.note(from * SECTOR_BYTES, data);
    }

    fn zero(&mut self, offset: u64, len: u64) {
        self.client().zero(offset, len);
        self.note(offset, vec![0; len as usize]);
    }

    /// Notes an acknowledged write.
    fn note(&mut self, offset: u64, data: Vec<u8>) {
        let change = Change { offset: offset as usize, data };
        change.apply(&mut self.content);
        self.changes.push(change);
    }

    fn write_some(&mut self) {
        for _ in 0..self.rng.between(1, MAX_WRITES) {
            let from = self.rng.below(SECTORS - 16);
            let to = from + self.rng.between(1, 16);
            match self.rng.below(6) {
                0 => self.client().flush(),
                1 => self.zero(from / 8 * BLOCK, BLOCK),
                _ => self.write(from, to),
            }
        }
    }

    /// Kills the daemon and starts it again on the same disk.
    fn restarted(self) -> Self {
        let Self { daemon, client, .. } = self;
        drop(client);
        Self { daemon: daemon.kill().start(), client: None, ..self }
    }
}

impl BackupWorkload {
    /// Checks the state after a power cut at `cut`; returns the first finding. `dir` holds the mount points.
    pub fn verify(&self, cut: usize, image: &Image, dir: &Path) -> Result<(), String> {
        finding(|| {
            self.store.restore_at(cut);
            on(setup(&dir.join("after")), image, dir, |daemon| self.verify_daemon(cut, daemon))
        })
    }

    fn verify_daemon(&self, cut: usize, daemon: &Daemon) -> Result<(), String> {
        let ctl = daemon.ctl();
        wait_until("the interrupted tasks to end", || {
            let tasks = ctl.json(&["cloudsnap", "status"]);
            let mut tasks = items(tasks).into_iter().map(Task);
            tasks.all(|task| task.is_over())
        });
        for task in ctl.json(&["cloudsnap", "status"])["items"].as_array().into_iter().flatten() {
            if task["state"] != "Backup-Done" {
                return Err(format!("a task failed: {task:#}"));
            }
        }
        let listed = ctl.done_cloudsnaps();
        let certain = self.backups.iter().filter(|backup| backup.span.is_certain(cut));
        if let Some(lost) = certain.clone().find(|backup| !listed.contains(&backup.snap)) {
            return Err(format!("backup {} was done and is not listed", lost.snap));
        }
        let mut now = daemon.content(VOLUME);
        for (nth, snap) in listed.iter().enumerate() {
            let content = content_of(daemon, &ctl, snap, nth);
            let recorded = self.backups.iter().find(|backup| backup.snap == *snap);
            let was_stored = self.store.has(snap, cut);
            let is_known = match recorded {
                Some(backup) => backup.may_hold(&content),
                // An unknown id belongs to an interrupted backup that restarted.
                None => self
                    .backups
                    .iter()
                    .any(|backup| !backup.span.is_certain(cut) && backup.may_hold(&content)),
            };
            // A backup without a manifest at the power cut may have been frozen after it, without later
            // writes.
            if !is_known && (was_stored || content != now) {
                return Err(format!("backup {snap} {WRONG}"));
            }
        }
        for nth in 1..=2 {
            let (offset, data) = (nth * 40_960, sector_content(nth * 80, u64::MAX - nth));
            let mut client = daemon.nbd(VOLUME);
            client.write(offset, &data);
            client.close();
            now[offset as usize..][..data.len()].copy_from_slice(&data);
            let task = ctl.backup(VOLUME);
            if certain.clone().next().is_some() && !task.is_incremental() {
                return Err(format!("{FORGOTTEN}: {task:?}"));
            }
            let restored = content_of(daemon, &ctl, task.snap(), listed.len() + nth as usize);
            same(&format!("backup {nth} after the power cut"), &restored, &now)?;
        }
        Ok(())
    }
}

fn same(what: &str, got: &[u8], wanted: &[u8]) -> Result<(), String> {
    if got.len() != wanted.len() {
        return Err(format!("{what} has {} bytes instead of {}", got.len(), wanted.len()));
    }
    let sector = SECTOR_BYTES as usize;
    let differs = got.chunks(sector).zip(wanted.chunks(sector)).position(|(got, wanted)| got != wanted);
    match differs {
        None => Ok(()),
        Some(number) => Err(format!(
            "{what} {DIFFERS} in sector {number}: {:02x?}… instead of {:02x?}…",
            &got[number * sector..][..16],
            &wanted[number * sector..][..16]
        )),
    }
}
