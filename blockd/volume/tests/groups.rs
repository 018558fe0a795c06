//! Volumes that are frozen together: causes come with their effects, and a group is frozen whole or not at
//! all.

use blockd_extent::{BlockIndex, Epoch, Extent, SnapshotId, VolumeId};
use blockd_volume::{
    GroupError, GroupFrozen, OpenOptions, Volume, VolumeErrorKind, freeze_group, freeze_group_with,
};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// In memory where possible: a freeze then takes microseconds instead of a disk's syncs, and the races come
/// close.
fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn make(dir: &Path, count: u64, blocks: u64) -> Vec<Arc<Volume>> {
    // The ids run against the order in which the volumes are given.
    (0..count)
        .map(|n| {
            Volume::create(&dir.join(n.to_string()), VolumeId::from_u64(1000 - n), blocks * 4096).unwrap()
        })
        .collect()
}

fn with_id(volumes: &[Arc<Volume>], id: u64) -> Vec<(&Volume, SnapshotId)> {
    volumes.iter().map(|volume| (&**volume, SnapshotId::from_u64(id))).collect()
}

const VOLUMES: u64 = 6;
const CHAINS: u64 = 6;
const LANE_BYTES: u64 = 512;

/// A chain of writes over all volumes: each is issued after the one before was answered. Write number n goes
/// to the volume whose turn it is and says n.
struct Chain {
    number: u64,
    issued: AtomicU64,
    answered: AtomicU64,
}

impl Chain {
    fn volume_of(&self, write: u64) -> usize {
        // Up and down, in steps of different lengths, so that no order of freezing is right by luck.
        let place = (write * [1, VOLUMES - 1][(self.number % 2) as usize] + self.number) % VOLUMES;
        place as usize
    }

    /// Half of the chains have a block of their own; the others share one, whose parts are copied up by each
    /// other.
    fn offset_bytes(&self) -> u64 {
        match self.number % 2 {
            0 => (1 + self.number) * 4096,
            _ => self.number * LANE_BYTES,
        }
    }

    fn write(&self, volumes: &[Arc<Volume>], number: u64) {
        let data = number.to_le_bytes().repeat(LANE_BYTES as usize / 8);
        self.issued.store(number, Ordering::SeqCst);
        let volume = &volumes[self.volume_of(number)];
        if !volume.try_write(self.offset_bytes(), &data).unwrap() {
            volume.write(self.offset_bytes(), &data, false).unwrap();
        }
        self.answered.store(number, Ordering::SeqCst);
    }

    /// Checks the cells of a chain, one of each volume: they must be those of a prefix of its writes.
    fn check(&self, cells: &[u64], at_least: u64, at_most: u64) -> Option<String> {
        let last = cells.iter().copied().max().unwrap_or(0);
        let mut expected = vec![0; cells.len()];
        for write in last.saturating_sub(VOLUMES - 1).max(1)..=last {
            expected[self.volume_of(write)] = write;
        }
        let number = self.number;
        if cells != expected {
            return Some(format!(
                "chain {number} has an effect without its cause: {cells:?}, not {expected:?}"
            ));
        }
        if !(at_least..=at_most).contains(&last) {
            return Some(format!("chain {number} ends with {last}, not with {at_least} to {at_most}"));
        }
        None
    }
}

/// Starts the chains; two threads alternate in every third.
fn start(
    chains: &[Arc<Chain>],
    volumes: &Arc<Vec<Arc<Volume>>>,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    for chain in chains {
        let people = if chain.number % 3 == 2 { 2 } else { 1 };
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..people).map(|_| mpsc::channel()).unzip();
        senders[0].send(1).unwrap();
        for (person, turns) in receivers.into_iter().enumerate() {
            let next: mpsc::Sender<u64> = senders[(person + 1) % people].clone();
            let (chain, volumes, stop) = (chain.clone(), volumes.clone(), stop.clone());
            threads.push(thread::spawn(move || {
                while let Ok(number) = turns.recv() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    chain.write(&volumes, number);
                    let _ = next.send(number + 1);
                }
                // A waiting thread learns that there is no turn.
                let _ = next.send(0);
            }));
        }
    }
    threads
}

/// Freezes the volumes and returns the epochs of the snapshots.
type Freeze = fn(&[(&Volume, SnapshotId)]) -> Vec<Epoch>;

fn freeze_together(members: &[(&Volume, SnapshotId)]) -> Vec<Epoch> {
    freeze_group(members).unwrap().members.iter().map(|member| member.epoch).collect()
}

fn content_at(volume: &Volume, id: SnapshotId) -> Vec<u8> {
    let mut content = vec![0; volume.size_bytes() as usize];
    let view = volume.view(id).unwrap();
    view.read_extents(&[Extent::whole(volume.size_bytes())], &mut content).unwrap();
    content
}

/// Freezes the volumes again and again under the chains and looks into every snapshot; what was wrong in the
/// first one in which something was.
fn find_torn_chain(freeze: Freeze, freezes: u64) -> Option<String> {
    let dir = fast_dir();
    let volumes = Arc::new(make(dir.path(), VOLUMES, 1 + CHAINS));
    let stop = Arc::new(AtomicBool::new(false));
    let chains: Vec<_> = (0..CHAINS)
        .map(|number| Arc::new(Chain { number, issued: AtomicU64::new(0), answered: AtomicU64::new(0) }))
        .collect();
    let mut threads = start(&chains, &volumes, &stop);
    // Layers are merged under the freezes, as the daemon does.
    let (merge, merges) = mpsc::channel::<usize>();
    threads.push({
        let volumes = volumes.clone();
        thread::spawn(move || {
            for volume in merges {
                while volumes[volume].merge_next(&|_| true).unwrap() {}
            }
        })
    });

    let mut before: Option<Vec<(Epoch, Vec<u8>)>> = None;
    let mut wrong = None;
    for number in 1..=freezes {
        let at_least: Vec<u64> = chains.iter().map(|chain| chain.answered.load(Ordering::SeqCst)).collect();
        let frozen = freeze(&with_id(&volumes, number));
        let at_most: Vec<u64> = chains.iter().map(|chain| chain.issued.load(Ordering::SeqCst)).collect();
        let id = SnapshotId::from_u64(number);
        let contents: Vec<Vec<u8>> = volumes.iter().map(|volume| content_at(volume, id)).collect();
        for (at, chain) in chains.iter().enumerate() {
            let cells: Vec<u64> =
                contents.iter().map(|content| cell(content, chain.offset_bytes())).collect();
            wrong = wrong.or(chain.check(&cells, at_least[at], at_most[at]));
        }
        let now: Vec<_> = frozen.into_iter().zip(contents).collect();
        for (volume, (old, new)) in volumes.iter().zip(before.iter().flatten().zip(&now)) {
            wrong = wrong.or(check_changes(volume, old, new));
        }
        before = Some(now);
        for (at, volume) in volumes.iter().enumerate() {
            volume.delete_snapshot(id).unwrap();
            merge.send(at).unwrap();
        }
        if wrong.is_some() {
            break;
        }
    }
    stop.store(true, Ordering::SeqCst);
    drop(merge);
    for thread in threads {
        thread.join().unwrap();
    }
    for chain in &chains {
        let answered = chain.answered.load(Ordering::SeqCst);
        let cells = volumes.iter().map(|volume| {
            let mut lane = [0; LANE_BYTES as usize];
            volume.read(chain.offset_bytes(), &mut lane).unwrap();
            cell(&lane, 0)
        });
        wrong = wrong.or(chain.check(&cells.collect::<Vec<_>>(), answered, answered));
        assert!(
            wrong.is_some() || answered > freezes,
            "chain {} hardly ran: {answered} writes",
            chain.number
        );
    }
    wrong
}

fn cell(content: &[u8], offset_bytes: u64) -> u64 {
    let lane = &content[offset_bytes as usize..][..LANE_BYTES as usize];
    let number = u64::from_le_bytes(lane[..8].try_into().unwrap());
    assert!(lane.chunks_exact(8).all(|word| word == number.to_le_bytes()), "a torn write");
    number
}

/// Every block that differs between two snapshots must be among those that changed in between.
fn check_changes(
    volume: &Volume,
    (since, old): &(Epoch, Vec<u8>),
    (until, new): &(Epoch, Vec<u8>),
) -> Option<String> {
    let changes = volume.changes(Some(*since), *until).unwrap();
    let differ = old.chunks_exact(4096).zip(new.chunks_exact(4096)).map(|(old, new)| old != new);
    let missed =
        differ.zip(0..).find(|(differ, block)| *differ && !changes.data.contains(BlockIndex(*block)));
    missed.map(|(_, block)| format!("block {block} of volume {} changed and is not in the set", volume.id()))
}

#[test]
fn no_snapshot_of_a_group_has_an_effect_without_its_cause() {
    assert_eq!(find_torn_chain(freeze_together, 500), None);
}

/// The test above is worth something only if it finds a group whose volumes are frozen one after the other.
#[test]
fn separate_barriers_are_detected() {
    let one_by_one: Freeze = |members| members.chunks(1).flat_map(freeze_together).collect();
    let found = find_torn_chain(one_by_one, 5000).unwrap();
    assert!(found.contains("an effect without its cause"), "{found}");
}

fn files(volume: &Volume) -> Vec<PathBuf> {
    let mut all: Vec<_> =
        std::fs::read_dir(volume.dir()).unwrap().map(|entry| entry.unwrap().path()).collect();
    // Kept for the next head, should there be one; belongs to nothing.
    all.sort_unstable();
    all
}

/// State of a volume that a failed freeze must preserve.
fn state(volume: &Volume) -> (Vec<PathBuf>, Vec<u8>, u64, u64) {
    let meta = std::fs::read(volume.dir().join("volume.meta")).unwrap();
    let stats = volume.stats();
    (files(volume), meta, stats.layers, stats.snapshots)
}

fn write_some(volumes: &[Arc<Volume>], block: u64, byte: u8) {
    for volume in volumes {
        volume.write(block * 4096, &[byte; 4096], false).unwrap();
    }
}

/// The writes since snapshot 1, block 1 and later, must be in the next incremental of each volume, and the
/// volumes must reopen unchanged.
fn check_nothing_forgotten(mut volumes: Vec<Arc<Volume>>, base: &GroupFrozen, blocks: &[u64]) {
    // As if the process had died: nothing is closed.
    let dirs: Vec<_> = volumes.drain(..).map(|volume| volume.dir().to_owned()).collect();
    volumes.extend(dirs.iter().map(|dir| Volume::open(dir, &OpenOptions::default()).unwrap()));
    let frozen = freeze_group(&with_id(&volumes, 99)).unwrap();
    for (at, volume) in volumes.iter().enumerate() {
        let changes = volume.changes(Some(base.members[at].epoch), frozen.members[at].epoch).unwrap();
        let changed: Vec<u64> = (0..8).filter(|block| changes.data.contains(BlockIndex(*block))).collect();
        assert_eq!(changed, blocks);
        let ids: Vec<_> = volume.snapshots().iter().map(|info| info.id.as_u64()).collect();
        assert_eq!(ids, [1, 99]);
    }
    for volume in &volumes {
        while volume.merge_next(&|_| true).unwrap() {}
        volume.close().unwrap();
    }
    drop(volumes);
    for dir in dirs {
        let volume = Volume::open(&dir, &OpenOptions::default()).unwrap();
        let mut content = vec![0; 8 * 4096];
        volume.read(0, &mut content).unwrap();
        for block in blocks {
            assert!(content[*block as usize * 4096..][..4096].iter().all(|byte| *byte == *block as u8));
        }
        assert_eq!(volume.snapshots().len(), 2);
    }
}

#[test]
fn failure_before_barrier_changes_no_volume() {
    let dir = fast_dir();
    let volumes = make(dir.path(), 4, 8);
    let base = freeze_group(&with_id(&volumes, 1)).unwrap();
    write_some(&volumes, 1, 1);
    // The files of the next head of one of them cannot be made.
    let in_the_way = volumes[2].dir().join("layer-0000000000000003.data");
    std::fs::create_dir(&in_the_way).unwrap();
    let before: Vec<_> = volumes.iter().map(|volume| state(volume)).collect();
    let error = freeze_group(&with_id(&volumes, 2)).unwrap_err();
    assert_eq!((error.volume, error.source.kind()), (volumes[2].id(), VolumeErrorKind::Io));
    assert!(error.to_string().contains("volume 998: create failed on"), "{error}");
    let after: Vec<_> = volumes.iter().map(|volume| state(volume)).collect();
    assert_eq!(before, after);
    write_some(&volumes, 2, 2);
    std::fs::remove_dir(in_the_way).unwrap();
    check_nothing_forgotten(volumes, &base, &[1, 2]);
}

#[test]
fn failed_pre_callback_skips_post_callback() {
    let dir = fast_dir();
    let volumes = make(dir.path(), 3, 8);
    let base = freeze_group(&with_id(&volumes, 1)).unwrap();
    write_some(&volumes, 1, 1);
    let before: Vec<_> = volumes.iter().map(|volume| state(volume)).collect();
    let stopped = freeze_group_with(
        &with_id(&volumes, 2),
        || Err(Stopped(None)),
        || panic!("what comes after was done without what goes before"),
    );
    assert!(matches!(stopped, Err(Stopped(None))));
    assert_eq!(before, volumes.iter().map(|volume| state(volume)).collect::<Vec<_>>());

    // What is written between the two is in the snapshot if it was answered before the barrier, and not after
    // it.
    let write = |byte| write_some(&volumes, 2, byte);
    let frozen = freeze_group_with(
        &with_id(&volumes, 2),
        || {
            write(2);
            Ok::<_, Stopped>(())
        },
        || write(3),
    );
    assert_eq!(frozen.unwrap().members.len(), 3);
    for volume in &volumes {
        let mut content = vec![0; 4096];
        let block = [Extent::new(BlockIndex(2), 1)];
        volume.view(SnapshotId::from_u64(2)).unwrap().read_extents(&block, &mut content).unwrap();
        assert_eq!(content, [2; 4096]);
        volume.delete_snapshot(SnapshotId::from_u64(2)).unwrap();
    }
    write(2);
    check_nothing_forgotten(volumes, &base, &[1, 2]);
}

#[derive(Debug)]
struct Stopped(Option<GroupError>);

impl From<GroupError> for Stopped {
    fn from(error: GroupError) -> Self {
        Self(Some(error))
    }
}

#[test]
fn failure_after_barrier_undoes_other_snapshots() {
    let dir = fast_dir();
    let volumes = make(dir.path(), 4, 8);
    let base = freeze_group(&with_id(&volumes, 1)).unwrap();
    write_some(&volumes, 1, 1);
    // The set of the old head of one of them cannot be put in place.
    let in_the_way = volumes[1].dir().join("layer-0000000000000002.g0.set");
    std::fs::create_dir(&in_the_way).unwrap();
    let error = freeze_group(&with_id(&volumes, 2)).unwrap_err();
    assert_eq!(error.volume, volumes[1].id());
    for volume in &volumes {
        let ids: Vec<_> = volume.snapshots().iter().map(|info| info.id.as_u64()).collect();
        assert_eq!((ids, volume.stats().snapshots), (vec![1], 1), "volume {}", volume.id());
    }
    write_some(&volumes, 2, 2);
    std::fs::remove_dir(in_the_way).unwrap();
    check_nothing_forgotten(volumes, &base, &[1, 2]);
}

#[test]
fn invalid_group_is_refused_without_changes() {
    let dir = fast_dir();
    let volumes = make(dir.path(), 3, 8);
    let before: Vec<_> = volumes.iter().map(|volume| state(volume)).collect();
    let twice = [(&*volumes[0], SnapshotId::from_u64(1)), (&*volumes[0], SnapshotId::from_u64(2))];
    let error = freeze_group(&twice).unwrap_err();
    assert_eq!(error.source.kind(), VolumeErrorKind::InvalidInput);
    assert!(error.to_string().contains("listed twice"), "{error}");
    assert_eq!(before, volumes.iter().map(|volume| state(volume)).collect::<Vec<_>>());

    volumes[1].freeze(SnapshotId::from_u64(1)).unwrap();
    let before: Vec<_> = volumes.iter().map(|volume| state(volume)).collect();
    assert_eq!(freeze_group(&with_id(&volumes, 1)).unwrap_err().source.kind(), VolumeErrorKind::Busy);
    volumes[2].close().unwrap();
    let error = freeze_group(&with_id(&volumes, 2)).unwrap_err();
    assert_eq!((error.volume, error.source.kind()), (volumes[2].id(), VolumeErrorKind::Closed));
    assert_eq!(before, volumes.iter().map(|volume| state(volume)).collect::<Vec<_>>());

    let empty = freeze_group(&[]).unwrap();
    assert!(empty.members.is_empty());
}

#[test]
fn freeze_reports_stall_of_volumes_and_group() {
    let dir = fast_dir();
    let volumes = make(dir.path(), 5, 8);
    for (at, volume) in volumes.iter().enumerate() {
        for block in 0..=at {
            volume.write(block as u64 * 4096, &[1; 4096], false).unwrap();
        }
    }
    let frozen = freeze_group(&with_id(&volumes, 1)).unwrap();
    for (at, (member, volume)) in frozen.members.iter().zip(&volumes).enumerate() {
        // In the order in which they were given.
        assert_eq!(member.dirty_blocks, at as u64 + 1);
        assert!(Duration::ZERO < member.stall && member.stall <= frozen.stall);
        let info = volume.snapshots()[0];
        assert_eq!((info.stall, info.created_unix_ms), (member.stall, frozen.created_unix_ms));
    }
}

/// Groups that overlap, given in opposite orders, with merges, growth, single freezes, deletions and in the
/// end a close between them: all of it comes to an end.
#[test]
fn groups_that_overlap_do_not_wait_for_each_other_for_ever() {
    const ROUNDS: u64 = 150;
    let dir = fast_dir();
    let volumes = Arc::new(make(dir.path(), 4, 8));
    let next_id = Arc::new(AtomicU64::new(1));
    let (ended, ends) = mpsc::channel();
    for worker in 0..4usize {
        let (volumes, next_id, ended) = (volumes.clone(), next_id.clone(), ended.clone());
        thread::spawn(move || {
            for round in 0..ROUNDS {
                let id = SnapshotId::from_u64(next_id.fetch_add(1, Ordering::Relaxed));
                let mut group: Vec<_> = volumes.iter().map(|volume| (&**volume, id)).collect();
                group.rotate_left(worker);
                if worker % 2 == 1 {
                    group.reverse();
                }
                group.truncate(3);
                freeze_group(&group).unwrap();
                for (volume, id) in &group {
                    volume.write(round % 8 * 4096, &[1; 4096], false).unwrap();
                    volume.delete_snapshot(*id).unwrap();
                    volume.merge_next(&|_| true).unwrap();
                }
                let alone = &volumes[worker];
                alone.grow(alone.size_bytes() + 4096).unwrap();
            }
            ended.send(()).unwrap();
        });
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    for _ in 0..4 {
        ends.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap();
    }
    // A close in between leaves no waiter.
    let closer = {
        let volumes = volumes.clone();
        thread::spawn(move || volumes[1].close().unwrap())
    };
    let closed = loop {
        let id = next_id.fetch_add(1, Ordering::Relaxed);
        match freeze_group(&with_id(&volumes, id)) {
            Ok(_) => assert!(Instant::now() < deadline, "the close never came through"),
            Err(error) => break error,
        }
    };
    assert_eq!(closed.source.kind(), VolumeErrorKind::Closed);
    closer.join().unwrap();
}
