//! Freezes of consistency groups: they preserve the order of dependent writes, and apply to all members or
//! none.

use crate::support::{content, memory_dir, merge_all, open, paths_in};
use blockd_extent::{BlockIndex, Epoch, Extent, SnapshotId, VolumeId};
use blockd_volume::{GroupError, GroupFrozen, Volume, VolumeErrorKind, freeze_group, freeze_group_with};
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

fn make(dir: &Path, count: u64, blocks: u64) -> Vec<Arc<Volume>> {
    // The ids descend, so that the lock order differs from the given order.
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

/// Chain of writes over all volumes: each is issued after the previous one was answered, and contains its
/// number.
struct Chain {
    number: u64,
    issued: AtomicU64,
    answered: AtomicU64,
}

impl Chain {
    fn volume_of(&self, write: u64) -> usize {
        // Ascending or descending, so that no order of separate freezes preserves all chains.
        ((write * [1, VOLUMES - 1][(self.number % 2) as usize] + self.number) % VOLUMES) as usize
    }

    /// Half of the chains have separate blocks; the others share one, which each of their writes may copy up.
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

    /// Checks the cells of a chain, one per volume: they must be those of a prefix of its writes.
    fn check(&self, cells: &[u64], at_least: u64, at_most: u64) -> Option<String> {
        let last = cells.iter().copied().max().unwrap_or(0);
        let mut expected = vec![0; cells.len()];
        for write in last.saturating_sub(VOLUMES - 1).max(1)..=last {
            expected[self.volume_of(write)] = write;
        }
        let number = self.number;
        if cells != expected {
            return Some(format!(
                "chain {number} has a write without the previous one: {cells:?}, expected {expected:?}"
            ));
        }
        if !(at_least..=at_most).contains(&last) {
            return Some(format!("chain {number} ends with {last}, expected {at_least} to {at_most}"));
        }
        None
    }
}

/// Starts the chains; in every third one, two threads alternate.
fn start(
    chains: &[Arc<Chain>],
    volumes: &Arc<Vec<Arc<Volume>>>,
    stop: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    for chain in chains {
        let workers = if chain.number % 3 == 2 { 2 } else { 1 };
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::channel()).unzip();
        senders[0].send(1).unwrap();
        for (worker, numbers) in receivers.into_iter().enumerate() {
            let next: mpsc::Sender<u64> = senders[(worker + 1) % workers].clone();
            let (chain, volumes, stop) = (chain.clone(), volumes.clone(), stop.clone());
            threads.push(thread::spawn(move || {
                while let Ok(number) = numbers.recv() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    chain.write(&volumes, number);
                    let _ = next.send(number + 1);
                }
                // Wakes the other thread, which then finds `stop` set.
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

/// Freezes the volumes repeatedly during the chains and checks each snapshot; returns the first violation.
fn find_torn_chain(freeze: Freeze, freezes: u64) -> Option<String> {
    let dir = memory_dir();
    let volumes = Arc::new(make(dir.path(), VOLUMES, 1 + CHAINS));
    let stop = Arc::new(AtomicBool::new(false));
    let chains: Vec<_> = (0..CHAINS)
        .map(|number| Arc::new(Chain { number, issued: AtomicU64::new(0), answered: AtomicU64::new(0) }))
        .collect();
    let mut threads = start(&chains, &volumes, &stop);
    // Merges run during the freezes, as in the daemon.
    let (merge, merges) = mpsc::channel::<usize>();
    threads.push({
        let volumes = volumes.clone();
        thread::spawn(move || {
            for volume in merges {
                merge_all(&volumes[volume]);
            }
        })
    });

    let mut before: Option<Vec<(Epoch, Vec<u8>)>> = None;
    let mut violation = None;
    for number in 1..=freezes {
        let at_least: Vec<u64> = chains.iter().map(|chain| chain.answered.load(Ordering::SeqCst)).collect();
        let frozen = freeze(&with_id(&volumes, number));
        let at_most: Vec<u64> = chains.iter().map(|chain| chain.issued.load(Ordering::SeqCst)).collect();
        let id = SnapshotId::from_u64(number);
        let contents: Vec<Vec<u8>> = volumes.iter().map(|volume| content_at(volume, id)).collect();
        for (at, chain) in chains.iter().enumerate() {
            let cells: Vec<u64> =
                contents.iter().map(|content| cell(content, chain.offset_bytes())).collect();
            violation = violation.or(chain.check(&cells, at_least[at], at_most[at]));
        }
        let now: Vec<_> = frozen.into_iter().zip(contents).collect();
        for (volume, (old, new)) in volumes.iter().zip(before.iter().flatten().zip(&now)) {
            violation = violation.or(check_changes(volume, old, new));
        }
        before = Some(now);
        for (at, volume) in volumes.iter().enumerate() {
            volume.delete_snapshot(id).unwrap();
            merge.send(at).unwrap();
        }
        if violation.is_some() {
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
        violation = violation.or(chain.check(&cells.collect::<Vec<_>>(), answered, answered));
        assert!(
            violation.is_some() || answered > freezes,
            "chain {} answered only {answered} writes",
            chain.number
        );
    }
    violation
}

fn cell(content: &[u8], offset_bytes: u64) -> u64 {
    let lane = &content[offset_bytes as usize..][..LANE_BYTES as usize];
    let number = u64::from_le_bytes(lane[..8].try_into().unwrap());
    assert!(lane.chunks_exact(8).all(|word| word == number.to_le_bytes()), "torn write");
    number
}

/// Checks that the interval between two snapshots has each block that differs.
fn check_changes(
    volume: &Volume,
    (since, old): &(Epoch, Vec<u8>),
    (until, new): &(Epoch, Vec<u8>),
) -> Option<String> {
    let changes = volume.changes(Some(*since), *until).unwrap();
    let differ = old.chunks_exact(4096).zip(new.chunks_exact(4096)).map(|(old, new)| old != new);
    let missed =
        differ.zip(0..).find(|(differ, block)| *differ && !changes.data.contains(BlockIndex(*block)));
    missed.map(|(_, block)| {
        format!("block {block} of volume {} changed and is not in the interval", volume.id())
    })
}

#[test]
fn group_snapshot_preserves_order_of_dependent_writes() {
    assert_eq!(find_torn_chain(freeze_together, 500), None);
}

/// Proves that the test above detects volumes that are frozen one after the other.
#[test]
fn separate_barriers_are_detected() {
    let one_by_one: Freeze = |members| members.chunks(1).flat_map(freeze_together).collect();
    let found = find_torn_chain(one_by_one, 5000).unwrap();
    assert!(found.contains("without the previous one"), "{found}");
}

/// State of a volume that a failed freeze must preserve.
fn state(volume: &Volume) -> (Vec<PathBuf>, Vec<u8>, u64, u64) {
    let meta = std::fs::read(volume.dir().join("volume.meta")).unwrap();
    let stats = volume.stats();
    (paths_in(volume.dir()), meta, stats.layers, stats.snapshots)
}

fn states(volumes: &[Arc<Volume>]) -> Vec<(Vec<PathBuf>, Vec<u8>, u64, u64)> {
    volumes.iter().map(|volume| state(volume)).collect()
}

fn write_some(volumes: &[Arc<Volume>], block: u64, byte: u8) {
    for volume in volumes {
        volume.write(block * 4096, &[byte; 4096], false).unwrap();
    }
}

/// Checks that the next interval of each volume has exactly these blocks, written since snapshot 1, and
/// that the volumes have them after a reopen.
fn check_interval(mut volumes: Vec<Arc<Volume>>, base: &GroupFrozen, blocks: &[u64]) {
    // A process crash: no volume is closed.
    let dirs: Vec<_> = volumes.drain(..).map(|volume| volume.dir().to_owned()).collect();
    volumes.extend(dirs.iter().map(|dir| open(dir)));
    let frozen = freeze_group(&with_id(&volumes, 99)).unwrap();
    for (at, volume) in volumes.iter().enumerate() {
        let changes = volume.changes(Some(base.members[at].epoch), frozen.members[at].epoch).unwrap();
        let changed: Vec<u64> = (0..8).filter(|block| changes.data.contains(BlockIndex(*block))).collect();
        assert_eq!(changed, blocks);
        let ids: Vec<_> = volume.snapshots().iter().map(|info| info.id.as_u64()).collect();
        assert_eq!(ids, [1, 99]);
    }
    for volume in &volumes {
        merge_all(volume);
        volume.close().unwrap();
    }
    drop(volumes);
    for dir in dirs {
        let volume = open(&dir);
        let found = content(&volume);
        for block in blocks {
            assert!(found[*block as usize * 4096..][..4096].iter().all(|byte| *byte == *block as u8));
        }
        assert_eq!(volume.snapshots().len(), 2);
    }
}

#[test]
fn failure_before_barrier_changes_no_volume() {
    let dir = memory_dir();
    let volumes = make(dir.path(), 4, 8);
    let base = freeze_group(&with_id(&volumes, 1)).unwrap();
    write_some(&volumes, 1, 1);
    // A directory in place of a file of the next head.
    let in_the_way = volumes[2].dir().join("layer-0000000000000003.data");
    std::fs::create_dir(&in_the_way).unwrap();
    let before = states(&volumes);
    let error = freeze_group(&with_id(&volumes, 2)).unwrap_err();
    assert_eq!((error.volume, error.source.kind()), (volumes[2].id(), VolumeErrorKind::Io));
    assert!(error.to_string().contains("volume 998: create failed on"), "{error}");
    assert_eq!(before, states(&volumes));
    write_some(&volumes, 2, 2);
    std::fs::remove_dir(in_the_way).unwrap();
    check_interval(volumes, &base, &[1, 2]);
}

#[test]
fn failed_pre_callback_skips_post_callback() {
    let dir = memory_dir();
    let volumes = make(dir.path(), 3, 8);
    let base = freeze_group(&with_id(&volumes, 1)).unwrap();
    write_some(&volumes, 1, 1);
    let before = states(&volumes);
    let failed = freeze_group_with(
        &with_id(&volumes, 2),
        || Err(CallbackError(None)),
        || panic!("the post-callback ran after a failed pre-callback"),
    );
    assert!(matches!(failed, Err(CallbackError(None))));
    assert_eq!(before, states(&volumes));

    // The snapshot has the writes of the pre-callback and none of the post-callback.
    let write = |byte| write_some(&volumes, 2, byte);
    let frozen = freeze_group_with(
        &with_id(&volumes, 2),
        || {
            write(2);
            Ok::<_, CallbackError>(())
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
    check_interval(volumes, &base, &[1, 2]);
}

#[derive(Debug)]
struct CallbackError(Option<GroupError>);

impl From<GroupError> for CallbackError {
    fn from(error: GroupError) -> Self {
        Self(Some(error))
    }
}

#[test]
fn failure_after_barrier_undoes_other_snapshots() {
    let dir = memory_dir();
    let volumes = make(dir.path(), 4, 8);
    let base = freeze_group(&with_id(&volumes, 1)).unwrap();
    write_some(&volumes, 1, 1);
    // A directory in place of the set of an old head.
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
    check_interval(volumes, &base, &[1, 2]);
}

#[test]
fn invalid_group_is_refused_without_changes() {
    let dir = memory_dir();
    let volumes = make(dir.path(), 3, 8);
    let before = states(&volumes);
    let twice = [(&*volumes[0], SnapshotId::from_u64(1)), (&*volumes[0], SnapshotId::from_u64(2))];
    let error = freeze_group(&twice).unwrap_err();
    assert_eq!(error.source.kind(), VolumeErrorKind::InvalidInput);
    assert!(error.to_string().contains("listed twice"), "{error}");
    assert_eq!(before, states(&volumes));

    volumes[1].freeze(SnapshotId::from_u64(1)).unwrap();
    let before = states(&volumes);
    assert_eq!(freeze_group(&with_id(&volumes, 1)).unwrap_err().source.kind(), VolumeErrorKind::Busy);
    volumes[2].close().unwrap();
    let error = freeze_group(&with_id(&volumes, 2)).unwrap_err();
    assert_eq!((error.volume, error.source.kind()), (volumes[2].id(), VolumeErrorKind::Closed));
    assert_eq!(before, states(&volumes));

    let empty = freeze_group(&[]).unwrap();
    assert!(empty.members.is_empty());
}

#[test]
fn freeze_reports_stall_of_volumes_and_group() {
    let dir = memory_dir();
    let volumes = make(dir.path(), 5, 8);
    for (at, volume) in volumes.iter().enumerate() {
        for block in 0..=at {
            volume.write(block as u64 * 4096, &[1; 4096], false).unwrap();
        }
    }
    let frozen = freeze_group(&with_id(&volumes, 1)).unwrap();
    for (at, (member, volume)) in frozen.members.iter().zip(&volumes).enumerate() {
        // The results have the given order.
        assert_eq!(member.dirty_blocks, at as u64 + 1);
        assert!(Duration::ZERO < member.stall && member.stall <= frozen.stall);
        let info = volume.snapshots()[0];
        assert_eq!((info.stall, info.created_unix_ms), (member.stall, frozen.created_unix_ms));
    }
}

/// Freezes overlapping groups in opposite orders, with merges, growth, deletions and finally a close in
/// between.
#[test]
fn overlapping_groups_do_not_deadlock() {
    const ROUNDS: u64 = 150;
    let dir = memory_dir();
    let volumes = Arc::new(make(dir.path(), 4, 8));
    let next_id = Arc::new(AtomicU64::new(1));
    let (end_sender, ends) = mpsc::channel();
    for worker in 0..4usize {
        let (volumes, next_id, end_sender) = (volumes.clone(), next_id.clone(), end_sender.clone());
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
            end_sender.send(()).unwrap();
        });
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    for _ in 0..4 {
        ends.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap();
    }
    // A concurrent close ends the freezes with an error.
    let closer = {
        let volumes = volumes.clone();
        thread::spawn(move || volumes[1].close().unwrap())
    };
    let closed = loop {
        let id = next_id.fetch_add(1, Ordering::Relaxed);
        match freeze_group(&with_id(&volumes, id)) {
            Ok(_) => assert!(Instant::now() < deadline, "the close did not finish"),
            Err(error) => break error,
        }
    };
    assert_eq!(closed.source.kind(), VolumeErrorKind::Closed);
    closer.join().unwrap();
}
