//! Simulation of a host whose volumes share blocks: backups, deletions by this host and another one,
//! retention, collections, damage with repairs, and interruptions of all of these, in random order. After
//! each step each listed cloud snapshot must restore to its content; after the deletion of all, no data may
//! stay.
//!
//! `BLOCKD_SIMULATION_SEEDS` is the number of runs (6); `BLOCKD_SIMULATION_FIRST` is the first seed.

use super::*;
use blockd_cloud::{ManifestFilter, Repair, RepairSource, delete_with_manifest};
use blockd_extent::SnapshotId;
use jiff::SignedDuration;

const VOLUMES: usize = 3;
const VOLUME_BLOCKS: u64 = 700;
const VOLUME_BYTES: u64 = VOLUME_BLOCKS * BLOCK as u64;
const IMAGE_BLOCKS: u64 = 300;
const STEPS: u64 = 40;
const DAY_S: i64 = 24 * 3600;
/// Days after which an interrupted backup cannot be resumed.
const MAX_AGE_S: i64 = 6 * DAY_S;

/// Planted bugs, which the simulation must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    Nothing,
    /// Backups do not check after the commit that their donors exist.
    DonorsUnchecked,
    /// The fingerprints of damaged deltas stay.
    DamageIgnored,
}

/// Planned backup, which may have been interrupted.
struct Kept {
    spec: BackupSpec,
    began_s: i64,
    frozen: MemoryVolume,
    journal: Arc<MemoryJournal>,
}

/// Volume of the host.
#[derive(Default)]
struct Source {
    live: MemoryVolume,
    /// Blocks changed since the last freeze.
    data: BlockSet,
    zero: BlockSet,
    newest: Option<CloudSnapshotId>,
    kept: Option<Kept>,
}

struct Simulation {
    planted: Planted,
    host: Host,
    faults: Arc<FaultStore>,
    /// The repository through the faults.
    faulty: Repository,
    images: Vec<MemoryVolume>,
    sources: Vec<Source>,
    /// Cloud snapshots that must be listed.
    made: BTreeMap<CloudSnapshotId, Manifest>,
    /// Cloud snapshots that the host believes to exist.
    known: BTreeMap<CloudSnapshotId, Manifest>,
    /// Interrupted deletions.
    deleting: Vec<Manifest>,
    contents: BTreeMap<CloudSnapshotId, Content>,
    dice: Noise,
    next: u64,
    now_s: i64,
    /// Backups with donors.
    shared: u64,
}

impl Simulation {
    fn new(seed: u64, planted: Planted) -> Self {
        let host = Host::new(EncryptionMode::Aes256GcmSiv);
        let faults = Arc::new(FaultStore::new(host.store.clone()));
        let faulty = host.repo.with_store(faults.clone());
        Self {
            planted,
            host,
            faults,
            faulty,
            images: (1..4).map(|image| noise_volume(seed * 31 + image, 0..IMAGE_BLOCKS)).collect(),
            sources: (0..VOLUMES).map(|_| Source::default()).collect(),
            made: BTreeMap::new(),
            known: BTreeMap::new(),
            deleting: Vec::new(),
            contents: BTreeMap::new(),
            dice: Noise(seed * 7919 + 17),
            next: 1,
            now_s: 1_000_000,
            shared: 0,
        }
    }

    fn dice(&mut self, sides: u64) -> u64 {
        (self.dice.next() >> 20) % sides
    }

    /// Fails the next requests from a random one on; returns true if so.
    fn interrupt(&mut self, one_in: u64, requests: u64) -> bool {
        if self.dice(one_in) > 0 {
            return false;
        }
        let fault = if self.dice(2) == 0 { Fault::BeforeApply } else { Fault::AfterApply };
        let at = self.faults.operations() + self.dice(requests);
        self.faults.fail_from(at, fault);
        true
    }

    /// Changes a volume: new content, that of an image, another volume or an earlier backup, or none.
    fn write(&mut self, volume: usize) {
        for _ in 0..=self.dice(3) {
            let (kind, len) = (self.dice(6), 1 + self.dice(180));
            let start = self.dice(VOLUME_BLOCKS - len);
            let from = if self.dice(2) == 0 { start } else { self.dice(VOLUME_BLOCKS - len) };
            let (image, other) = (self.dice(3) as usize, self.dice(VOLUMES as u64) as usize);
            let earlier = match self.contents.len() as u64 {
                0 => None,
                count => {
                    let at = self.dice(count) as usize;
                    self.contents.values().nth(at).cloned()
                }
            };
            let (images, sources) = (&self.images, &mut self.sources);
            for n in 0..len {
                let content = match kind {
                    0 => Some(self.dice.block()),
                    1 | 2 => Some(images[image].block(from + n).to_vec()),
                    3 => Some(sources[other].live.block(from + n).to_vec()),
                    4 => earlier.as_ref().and_then(|old| old.get(&(from + n))).map(|block| block.to_vec()),
                    _ => None,
                };
                let (source, block) = (&mut sources[volume], BlockIndex(start + n));
                match content.filter(|content| content.iter().any(|byte| *byte != 0)) {
                    Some(content) => {
                        source.live.set(block.0, &content);
                        source.zero.remove_extent(Extent::new(block, 1));
                        source.data.insert(block);
                    }
                    None => {
                        source.live.clear(block.0);
                        source.data.remove_extent(Extent::new(block, 1));
                        source.zero.insert(block);
                    }
                }
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Freezes a volume and plans its backup: full, synthetic or incremental, with all known cloud snapshots
    /// as possible donors.
    async fn plan(&mut self, volume: usize) -> Kept {
        let (n, kind) = (self.number(), self.dice(6));
        let source = &mut self.sources[volume];
        let frozen = source.live.fork();
        let (mut data, zero) = (std::mem::take(&mut source.data), std::mem::take(&mut source.zero));
        let base = source.newest.and_then(|id| self.known.get(&id)).filter(|_| kind > 0);
        let unchanged = match base {
            Some(base) if kind == 1 => {
                let mut changed = data.clone();
                changed.union_with(&zero);
                // Another host may have deleted the base.
                unchanged_since(&self.host.repo, base, &changed, |_| false).await.ok()
            }
            _ => None,
        };
        let (spec, again) = match (base, unchanged) {
            (Some(base), Some(Unchanged { references, again })) => {
                data.union_with(&again);
                let spec = spec(n, VOLUME_BYTES, data, zero, Some(base));
                (BackupSpec { references, synthetic: true, ..spec }, again)
            }
            (Some(base), None) if kind > 1 => {
                (spec(n, VOLUME_BYTES, data, zero, Some(base)), BlockSet::new())
            }
            _ => (full(n, &frozen), BlockSet::new()),
        };
        let donors: Vec<Manifest> = self.known.values().rev().take(12).cloned().collect();
        let spec = of_volume(volume as u64 + 1, spec);
        let mut spec = self.host.deduplicated_but(spec, &frozen, &donors, &again);
        self.shared += u64::from(!spec.donors.is_empty());
        if self.planted == Planted::DonorsUnchecked {
            spec.donors.clear();
        }
        self.contents.insert(spec.id(), frozen.content());
        Kept { spec, began_s: self.now_s, frozen, journal: Arc::default() }
    }

    /// Makes a backup, or resumes an interrupted one.
    async fn back_up(&mut self, volume: usize) -> Result<(), String> {
        let kept = match self.sources[volume].kept.take() {
            Some(kept) => kept,
            None => {
                self.write(volume);
                self.plan(volume).await
            }
        };
        let needed: Vec<_> = kept.spec.owners().filter(|id| self.made.contains_key(id)).collect();
        if self.dice(4) == 0 && !needed.is_empty() {
            let gone = needed[self.dice(needed.len() as u64) as usize];
            self.delete(gone, true).await;
        }
        let is_interrupted = self.interrupt(3, 8);
        let age = SignedDuration::from_secs(self.now_s - kept.began_s);
        let spec = BackupSpec { started: Timestamp::now() - age, ..kept.spec.clone() };
        let (reader, journal) = (Arc::new(kept.frozen.fork()), kept.journal.clone());
        let done = run_with(&self.faulty, spec, reader, journal, &CancelToken::new()).await;
        self.faults.heal();
        match done {
            Ok(run) => self.committed(volume, run.manifest),
            Err(CloudError::NeededDeleted { needed }) => {
                self.known.remove(&needed);
                let spec = of_volume(volume as u64 + 1, full(self.number(), &kept.frozen));
                self.contents.insert(spec.id(), kept.frozen.content());
                let run =
                    run(&self.host.repo, spec, &kept.frozen).await.map_err(|error| error.to_string())?;
                self.committed(volume, run.manifest);
            }
            Err(_) if is_interrupted => self.sources[volume].kept = Some(kept),
            Err(error) => return Err(format!("backup {}: {error}", kept.spec.id())),
        }
        Ok(())
    }

    fn committed(&mut self, volume: usize, manifest: Manifest) {
        self.sources[volume].newest = Some(manifest.id());
        self.known.insert(manifest.id(), manifest.clone());
        self.made.insert(manifest.id(), manifest);
    }

    /// Abandons an interrupted backup, which may be committed.
    fn abandon(&mut self, volume: usize) {
        if let Some(kept) = self.sources[volume].kept.take() {
            self.host.store.remove(&kept.spec.id().manifest_key());
            self.sources[volume].newest = None;
        }
    }

    /// Deletes a cloud snapshot; this host does not if one of its interrupted backups needs it.
    async fn delete(&mut self, id: CloudSnapshotId, by_other: bool) {
        let kept = || self.sources.iter().filter_map(|source| source.kept.as_ref());
        let mut protected = Vec::new();
        if !by_other {
            if kept().any(|kept| kept.spec.owners().any(|owner| owner == id)) {
                return;
            }
            protected = kept().flat_map(|kept| kept.spec.owners().chain([kept.spec.id()])).collect();
            self.known.remove(&id);
        }
        let protected: Vec<SnapshotId> = protected.into_iter().map(|id| id.snapshot).collect();
        let Some(manifest) = self.made.remove(&id) else { return };
        let is_interrupted = self.interrupt(3, 10);
        let done = delete_with_manifest(&self.faulty, &manifest, &protected, &NoCache, CHECKED).await;
        self.faults.heal();
        if let Err(error) = done {
            assert!(is_interrupted, "{error}");
            self.deleting.push(manifest);
        }
    }

    async fn complete_deletions(&mut self) {
        for manifest in std::mem::take(&mut self.deleting) {
            let kept = self.sources.iter().filter_map(|source| source.kept.as_ref());
            let protected: Vec<SnapshotId> = kept.map(|kept| kept.spec.snapshot).collect();
            delete_with_manifest(&self.host.repo, &manifest, &protected, &NoCache, CHECKED).await.unwrap();
        }
    }

    /// Keeps the last backups of a volume.
    async fn retain(&mut self, volume: usize, last: usize) {
        let of_volume = |id: &&CloudSnapshotId| id.volume == VolumeId::from_u64(volume as u64 + 1);
        let mut old: Vec<_> = self.made.keys().filter(of_volume).copied().collect();
        old.sort_by_key(|id| id.snapshot.as_u64());
        old.truncate(old.len().saturating_sub(last));
        for id in old {
            self.delete(id, false).await;
        }
    }

    async fn collect(&mut self, by_other: bool) {
        let kept = self.sources.iter().filter_map(|source| source.kept.as_ref()).filter(|_| !by_other);
        let protected = kept.map(|kept| kept.spec.snapshot).collect();
        let now = Timestamp::from_second(self.now_s).unwrap();
        let options = GarbageOptions { now, protected, ..GarbageOptions::default() };
        let is_interrupted = self.interrupt(4, 20);
        let done = collect_garbage(&self.faulty, &options, &NoCache).await;
        self.faults.heal();
        assert!(is_interrupted || done.is_ok());
    }

    /// Damages a pack, repairs all cloud snapshots that lose blocks, and deletes the damaged ones.
    async fn damage_and_repair(&mut self) -> Result<(), String> {
        (0..VOLUMES).for_each(|volume| self.abandon(volume));
        self.complete_deletions().await;
        let packs: Vec<_> =
            self.host.store.objects().into_iter().filter(|(key, _)| key.contains("/pack-")).collect();
        if packs.is_empty() {
            return Ok(());
        }
        let (key, body) = &packs[self.dice(packs.len() as u64) as usize];
        let mut body = body.to_vec();
        let at = 64 + self.dice(body.len() as u64 - 64) as usize;
        body[at] ^= 1;
        self.host.store.insert(key, body);
        let ids: Vec<_> = self.made.keys().copied().collect();
        let options = VerifyOptions { depth: VerifyDepth::Full, ..VerifyOptions::default() };
        let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
        let report =
            verify(&self.host.repo, &ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
        if self.planted != Planted::DamageIgnored {
            for file in report.damaged_objects.iter().filter_map(|object| fingerprint_file_of(object)) {
                let _ = std::fs::remove_file(self.host.dir.path().join(file));
            }
        }
        let mut damaged: Vec<_> =
            report.snapshots.into_iter().filter(|one| !one.damaged.is_empty()).collect();
        damaged.sort_by_key(|one| one.id.snapshot.as_u64());
        let mut repaired = Vec::new();
        for one in &damaged {
            repaired.extend(self.repair(one.id, &one.damaged, &repaired).await?);
        }
        for one in damaged {
            self.delete(one.id, false).await;
        }
        self.complete_deletions().await;
        Ok(())
    }

    async fn repair(
        &mut self,
        id: CloudSnapshotId,
        damaged: &BlockSet,
        others: &[Manifest],
    ) -> Result<Option<Manifest>, String> {
        let failed = |error: CloudError| format!("repair of {id}: {error}");
        let content = self.contents[&id].clone();
        let reader = MemoryVolume::default();
        content.iter().for_each(|(block, content)| reader.set(*block, content));
        let mut repair =
            Repair::plan(&self.host.repo, &self.made[&id], damaged, others).await.map_err(failed)?;
        let blocks = repair.wanted().clone();
        let mut data = blocks.clone();
        data.intersect_with(&set(content.keys().copied()));
        repair.add_source(RepairSource { blocks, data, reader: Arc::new(reader.fork()) });
        let n = self.number();
        let planned = repair.into_backup(SnapshotId::from_u64(n), Timestamp::now(), [n as u8; 32]);
        let (spec, _) = planned.map_err(failed)?;
        self.contents.insert(spec.id(), content);
        let manifest = run(&self.host.repo, spec, &reader).await.map_err(failed)?.manifest;
        let is_newest = |source: &&mut Source| source.newest == Some(id);
        self.sources.iter_mut().filter(is_newest).for_each(|source| source.newest = Some(manifest.id()));
        self.known.insert(manifest.id(), manifest.clone());
        self.made.insert(manifest.id(), manifest.clone());
        Ok(Some(manifest))
    }

    /// Checks that the listed cloud snapshots have their content, and that none is missing.
    async fn check(&self) -> Result<(), String> {
        let kept = self.sources.iter().filter_map(|source| source.kept.as_ref());
        // Committed ones that miss a donor are deleted when they are resumed.
        let unconfirmed: Vec<_> = kept.map(|kept| kept.spec.id()).collect();
        let mut listed = Vec::new();
        for found in self.host.repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap() {
            let manifest = found.manifest.map_err(|error| error.to_string())?;
            let id = manifest.id();
            listed.push(id);
            if unconfirmed.contains(&id) {
                continue;
            }
            let content = restored(&self.host.repo, &manifest).await;
            if content.map_err(|error| format!("{id}: {error}"))? != self.contents[&id] {
                return Err(format!("{id} restores to other content"));
            }
        }
        match self.made.keys().find(|id| !listed.contains(id)) {
            Some(missing) => Err(format!("{missing} is not listed")),
            None => Ok(()),
        }
    }

    async fn step(&mut self) -> Result<(), String> {
        self.now_s += self.dice(2 * DAY_S as u64) as i64;
        self.host.store.set_clock(self.now_s);
        let volume = self.dice(VOLUMES as u64) as usize;
        let is_old = |kept: &Kept| self.now_s - kept.began_s > MAX_AGE_S;
        let old: Vec<_> =
            (0..VOLUMES).filter(|volume| self.sources[*volume].kept.as_ref().is_some_and(is_old)).collect();
        old.into_iter().for_each(|volume| self.abandon(volume));
        match self.dice(16) {
            0..9 => self.back_up(volume).await?,
            9 | 10 if !self.made.is_empty() => {
                let at = self.dice(self.made.len() as u64) as usize;
                let (id, by_other) = (self.made.keys().nth(at).copied(), self.dice(2) == 0);
                self.delete(id.unwrap(), by_other).await;
            }
            11 => self.retain(volume, 1 + volume).await,
            12 => self.complete_deletions().await,
            13 => {
                let by_other = self.dice(2) == 0;
                self.collect(by_other).await;
            }
            14 => self.damage_and_repair().await?,
            _ => self.abandon(volume),
        }
        self.check().await
    }

    /// Deletes everything; returns the keys that stay, except those of the repository.
    async fn empty(mut self) -> Vec<String> {
        (0..VOLUMES).for_each(|volume| self.abandon(volume));
        self.complete_deletions().await;
        for manifest in self.made.values() {
            delete_snapshot(&self.host.repo, &manifest.id(), &[], &NoCache, CHECKED).await.unwrap();
        }
        let now = Timestamp::from_second(self.now_s + 9 * DAY_S).unwrap();
        let options = GarbageOptions { now, ..GarbageOptions::default() };
        collect_garbage(&self.host.repo, &options, &NoCache).await.unwrap();
        self.host.store.objects().into_keys().filter(|key| !key.starts_with("blockd/keys")).collect()
    }
}

fn full(n: u64, frozen: &MemoryVolume) -> BackupSpec {
    spec(n, VOLUME_BYTES, set(frozen.content().keys().copied()), BlockSet::new(), None)
}

/// Runs a simulation; returns the number of its backups with donors.
async fn live(seed: u64, planted: Planted) -> Result<u64, String> {
    let mut simulation = Simulation::new(seed, planted);
    for step in 0..STEPS {
        simulation.step().await.map_err(|what| format!("seed {seed}, step {step}: {what}"))?;
    }
    let shared = simulation.shared;
    match simulation.empty().await.first() {
        Some(key) => Err(format!("seed {seed}: {key} stays")),
        None => Ok(shared),
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test(start_paused = true)]
async fn shared_blocks_stay_as_long_as_they_are_needed() {
    let (first, mut shared) = (number("BLOCKD_SIMULATION_FIRST", 1), 0);
    for seed in first..first + number("BLOCKD_SIMULATION_SEEDS", 6) {
        shared += live(seed, Planted::Nothing).await.unwrap();
    }
    assert!(shared > 0, "no backup had a donor");
}

#[tokio::test(start_paused = true)]
async fn simulation_of_shared_blocks_finds_planted_bugs() {
    for planted in [Planted::DonorsUnchecked, Planted::DamageIgnored] {
        let mut found = None;
        for seed in 1..300 {
            if let Err(what) = live(seed, planted).await {
                found = Some(what);
                break;
            }
        }
        assert!(found.is_some(), "not detected: {planted:?}");
    }
}
