//! Backups in a recorded life: the power is cut between freeze, upload, commit and clean-up, while the store
//! keeps all that it was given. The daemon that comes back must bring what it had begun to its end, every
//! backup that is listed then must hold what was written up to one instant while it was being started, byte
//! for byte, and the next incrementals what the volume holds.

use super::{
    filesystem::{ExportFile, Filesystem, Mount},
    history::{SECTOR_BYTES, Span, sector_content},
    image::Image,
    load::{Files, Omission},
    recorder::{Recorder, Recording},
    store::StoreHistory,
    verify::{finding, on},
};
use crate::harness::{BLOCK, Ctl, Daemon, KIB, Nbd, Rng, Setup, Task, fault::FailingDisk, wait_for};
use std::{ops::Range, path::Path};

const VOLUME: &str = "vol";
const SECTORS: u64 = (2 << 20) / SECTOR_BYTES;
/// Findings that say that a backup holds something else than what was written.
pub const WRONG: &str = "holds what the volume never held while it was made";
/// The same of one that was made after a power cut.
pub const DIFFERS: &str = "differs first";
/// Finding of lost change tracking.
pub const FORGOTTEN: &str = "what changed since the last backup was forgotten";
/// Writes between two backups, at most.
const MAX_WRITES: u64 = 12;

/// A recorded life.
pub struct BackupLife {
    /// Recorded requests of the disk.
    pub recording: Recording,
    /// Recorded states of the store.
    pub store: StoreHistory,
    /// From this position on there are a volume and a place to back it up to.
    pub ready: usize,
    backups: Vec<Backup>,
}

struct Backup {
    span: Span,
    snap: String,
    /// Acknowledged content at the request.
    before: Vec<u8>,
    /// Writes until its end, in order.
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
            // One that is done wholly is what the next one begins with.
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
    /// Since the last backup was asked for.
    changes: Vec<Change>,
}

/// Leads a life of so many backups, in `dir`, which is empty. The mounts of this thread must be its own. What
/// is omitted is so from the end of the first backup on, and cuts before the end of the second one are not
/// ready.
pub fn record(
    filesystem: Filesystem,
    dir: &Path,
    backups: u64,
    seed: u64,
    omission: Option<Omission>,
) -> BackupLife {
    let base = dir.join("base");
    filesystem.make(&base);
    let image = Image::of_file(&base).expect("the image of an empty filesystem");
    std::fs::remove_file(&base).expect("remove the image");
    let recorder = Recorder::start(image, &dir.join("recorder.sock")).expect("the recording disk");
    let store = StoreHistory::new(dir);
    let observer = store.clone();
    recorder.observe(Box::new(move |position| observer.look(position)));
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
        // The first fills the volume, so that what is forgotten later shows.
        if nth == 0 {
            load.write(0, SECTORS);
        }
        load.write_some();
        let (asked, before) = (recorder.position(), load.content.clone());
        load.changes.clear();
        let task = load.daemon.ctl().start_backup(VOLUME);
        load.write_some();
        if load.rng.one_in(3) {
            load = load.killed();
        }
        let task = load.daemon.ctl().wait_task(&task);
        let span = Span { asked, answered: recorder.position() };
        assert_eq!(task.state(), "Backup-Done", "{task:?}");
        let changes = std::mem::take(&mut load.changes);
        made.push(Backup { span, snap: task.snap().to_owned(), before, changes });
        if let Some((disk, omission)) = &disk {
            // From the first one on, where there is something to forget; the second one forgets.
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
    store.look(recorder.position());
    BackupLife { recording: recorder.end(), store, ready, backups: made }
}

/// No backup is full but the first one.
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

    /// It was answered.
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

    /// As the daemon is killed and started again on the same disk.
    fn killed(self) -> Self {
        let Self { daemon, client, .. } = self;
        drop(client);
        Self { daemon: daemon.kill().start(), client: None, ..self }
    }
}

impl BackupLife {
    /// Checks what a power cut at `cut` left; the first thing that is wrong. `dir` is used for mount points.
    pub fn verify(&self, cut: usize, image: &Image, dir: &Path) -> Result<(), String> {
        finding(|| {
            self.store.lay_down(cut);
            on(setup(&dir.join("after")), image, dir, |daemon| self.verify_daemon(cut, daemon))
        })
    }

    fn verify_daemon(&self, cut: usize, daemon: &Daemon) -> Result<(), String> {
        let ctl = daemon.ctl();
        wait_for("the tasks that were cut off to end", || {
            let tasks = ctl.json(&["cloudsnap", "status"]);
            let mut tasks = tasks.as_array().expect("a list of tasks").iter().cloned().map(Task);
            tasks.all(|task| task.is_over()).then_some(())
        });
        for task in ctl.json(&["cloudsnap", "status"]).as_array().into_iter().flatten() {
            if task["state"] != "Backup-Done" {
                return Err(format!("a task did not come to its end: {task:#}"));
            }
        }
        let listed = ctl.done_cloudsnaps();
        let certain = self.backups.iter().filter(|backup| backup.span.is_certain(cut));
        if let Some(lost) = certain.clone().find(|backup| !listed.contains(&backup.snap)) {
            return Err(format!("backup {} was answered and is not listed", lost.snap));
        }
        let mut now = daemon.content(VOLUME);
        for (nth, snap) in listed.iter().enumerate() {
            let content = content_of(daemon, &ctl, snap, nth);
            let of_life = self.backups.iter().find(|backup| backup.snap == *snap);
            let was_there = self.store.has(snap, cut);
            let is_known = match of_life {
                Some(backup) => backup.may_hold(&content),
                // Another name belongs to a running backup that restarted.
                None => self
                    .backups
                    .iter()
                    .any(|backup| !backup.span.is_certain(cut) && backup.may_hold(&content)),
            };
            // A backup missing in the store by then may have been frozen after the power cut, without later
            // writes.
            if !is_known && (was_there || content != now) {
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
