//! Backups in a recorded life: the power is cut between freeze, upload, commit and clean-up, while the store keeps all that it
//! was given. The daemon that comes back must bring what it had begun to its end, and its next incremental must hold what the
//! volume holds, byte for byte.

use super::{
    filesystem::{ExportFile, Filesystem, Mount},
    history::{SECTOR_BYTES, Span, sector_content},
    image::Image,
    load::{Files, Omission},
    recorder::{Recorder, Recording},
    store::StoreHistory,
    verify::{finding, on},
};
use crate::{Ctl, Daemon, KIB, Nbd, Rng, Setup, Task, fault::FailingDisk, wait_for};
use std::path::Path;

const VOLUME: &str = "vol";
const SECTORS: u64 = (2 << 20) / SECTOR_BYTES;
/// Writes between two backups, at most.
const MOST_WRITES: u64 = 12;

/// A recorded life.
pub struct BackupLife {
    /// What the disk was asked for.
    pub recording: Recording,
    /// What the store held meanwhile.
    pub store: StoreHistory,
    /// From this position on there are a volume and a place to back it up to.
    pub ready: usize,
    backups: Vec<Backup>,
}

struct Backup {
    span: Span,
    snap: String,
    /// What it holds.
    content: Vec<u8>,
}

struct Load<'a> {
    recorder: &'a Recorder,
    rng: Rng,
    daemon: Daemon,
    client: Option<Nbd>,
    last_version: u64,
}

/// Leads a life of so many backups, in `dir`, which is empty. The mounts of this thread must be its own. What is omitted is so
/// from the end of the first backup on, and cuts before the end of the second one are not ready.
///
/// # Panics
/// If a backup fails.
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
    let setup = match &disk {
        None => setup,
        Some((disk, _)) => disk.under(setup),
    };
    let mut load = Load {
        recorder: &recorder,
        rng: Rng::fixed(seed),
        daemon: setup.start(),
        client: None,
        last_version: 0,
    };
    let ctl = load.daemon.ctl();
    ctl.add_local("nas", store.store().dir(), None);
    ctl.create_volume(VOLUME, &format!("{}KiB", SECTORS * SECTOR_BYTES / KIB));
    let mut ready = recorder.position();
    let mut done = Vec::new();
    for nth in 0..backups {
        // The first fills the volume, so that what is forgotten later shows.
        if nth == 0 {
            load.write(0, SECTORS);
        }
        load.write_some();
        let asked = recorder.position();
        let task = load.daemon.ctl().start_backup(VOLUME);
        load.write_some();
        if load.rng.one_in(3) {
            load = load.killed();
        }
        let task = load.daemon.ctl().wait_task(&task);
        let span = Span { asked, answered: recorder.position() };
        assert_eq!(task.state(), "Backup-Done", "{task:?}");
        done.push((span, task.snap().to_owned()));
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
    let contents = contents(&dir.join("reader"), &store, &done);
    let backups = done.into_iter().zip(contents);
    let backups = backups.map(|((span, snap), content)| Backup { span, snap, content }).collect();
    BackupLife { recording: recorder.end(), store, ready, backups }
}

/// No backup is full but the first one.
fn setup(home: &Path) -> Setup {
    Setup::new(home).config("full_every = 1000")
}

/// What the cloud snapshots hold, as a host restores them that never lost anything.
fn contents(home: &Path, store: &StoreHistory, snaps: &[(Span, String)]) -> Vec<Vec<u8>> {
    let daemon = Setup::new(home).start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.store().dir(), None);
    let restored = snaps.iter().enumerate().map(|(nth, (_, snap))| content_of(&daemon, &ctl, snap, nth));
    restored.collect()
}

fn content_of(daemon: &Daemon, ctl: &Ctl, snap: &str, nth: usize) -> Vec<u8> {
    let name = format!("restored-{nth}");
    ctl.restore(snap, &name);
    daemon.content(&name)
}

impl Load<'_> {
    fn client(&mut self) -> &mut Nbd {
        let daemon = &self.daemon;
        self.client.get_or_insert_with(|| daemon.nbd(VOLUME))
    }

    fn write(&mut self, from: u64, to: u64) {
        self.last_version += 1;
        let version = self.last_version;
        let data: Vec<u8> = (from..to).flat_map(|sector| sector_content(sector, version)).collect();
        self.client().write_long(from * SECTOR_BYTES, &data);
    }

    fn write_some(&mut self) {
        for _ in 0..self.rng.between(1, MOST_WRITES) {
            let from = self.rng.below(SECTORS - 16);
            let to = from + self.rng.between(1, 16);
            match self.rng.below(6) {
                0 => self.client().flush(),
                1 => self.client().zero(from / 8 * 4096, 4096),
                _ => self.write(from, to),
            }
        }
    }

    /// As the daemon is killed and started again on the same disk.
    fn killed(self) -> Self {
        let Self { recorder, rng, daemon, client, last_version } = self;
        drop(client);
        Self { recorder, rng, daemon: daemon.kill().start(), client: None, last_version }
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
        // What was in the store by then holds what it held for ever after.
        let known = self.backups.iter().rev().find(|backup| self.store.has(&backup.snap, cut));
        if let Some(backup) = known {
            same(
                &format!("backup {}", backup.snap),
                &content_of(daemon, &ctl, &backup.snap, 0),
                &backup.content,
            )?;
        }
        for nth in 1..=2 {
            let mut client = daemon.nbd(VOLUME);
            client.write(nth * 40_960, &sector_content(nth * 80, u64::MAX - nth));
            client.close();
            let task = ctl.backup(VOLUME);
            if certain.clone().next().is_some() && !task.is_incremental() {
                return Err(format!("what changed since the last backup was forgotten: {task:?}"));
            }
            let restored = content_of(daemon, &ctl, task.snap(), nth as usize);
            same(&format!("backup {nth} after the power cut"), &restored, &daemon.content(VOLUME))?;
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
            "{what} differs first in sector {number}: {:02x?}… instead of {:02x?}…",
            &got[number * sector..][..16],
            &wanted[number * sector..][..16]
        )),
    }
}
