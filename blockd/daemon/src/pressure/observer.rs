//! What guests' requests were like since the last look, from counters that are there anyway.

use super::governor::{Requests, Seen};
use crate::{
    metrics::Operation,
    registry::{EntryState, Registry, VolumeEntry},
};
use blockd_extent::VolumeId;
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// What takes longer than that is slow.
const SLOW_FROM: Duration = Duration::from_micros(1_024);
/// Where the kernel tells of this process's threads.
const THREADS: &str = "/proc/self/task";
/// The names of the threads that serve guests begin so.
const SERVING: &str = "nbd-ring";
/// The names of the threads that do for guests what waits for a disk begin so.
const WORKING: &str = "nbd-worker";

/// The requests of a volume since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    data: Requests,
    flushes: Requests,
}

/// By volume: those of one that comes or goes are no guest's requests since the last look.
type Volumes = HashMap<VolumeId, Sums>;

/// Remembers the look before.
pub(super) struct Observer {
    serving: Vec<PathBuf>,
    working: Vec<PathBuf>,
    before: Volumes,
    /// How long the threads that serve guests had waited for a processor.
    waited_nanos: u64,
    at: Instant,
}

impl Observer {
    pub(super) fn new(registry: &Registry) -> Self {
        let serving = threads(Path::new(THREADS), SERVING);
        let working = threads(Path::new(THREADS), WORKING);
        let waited_nanos = serving.iter().map(|thread| waited_nanos(thread)).sum();
        Self { serving, working, before: sums(registry), waited_nanos, at: Instant::now() }
    }

    pub(super) fn look(&mut self, registry: &Registry) -> Seen {
        let (now, at) = (sums(registry), Instant::now());
        let waited_nanos = self.serving.iter().map(|thread| waited_nanos(thread)).sum::<u64>();
        let (before, since) = (std::mem::replace(&mut self.before, now), std::mem::replace(&mut self.at, at));
        let mut seen = Seen { during: at.duration_since(since), ..Seen::default() };
        for (id, now) in &self.before {
            let Some(before) = before.get(id) else { continue };
            add_more(&mut seen.data, &now.data, &before.data);
            add_more(&mut seen.flushes, &now.flushes, &before.flushes);
        }
        let waited_before = std::mem::replace(&mut self.waited_nanos, waited_nanos);
        seen.data.nanos += waited_nanos.saturating_sub(waited_before);
        let waiting = waiting(registry);
        (seen.data.waiting, seen.data.waiting_nanos) = (waiting.data.waiting, waiting.data.waiting_nanos);
        (seen.flushes.waiting, seen.flushes.waiting_nanos) =
            (waiting.flushes.waiting, waiting.flushes.waiting_nanos);
        let mut threads = self.serving.iter().chain(&self.working);
        seen.is_stalled =
            seen.data.count + seen.flushes.count == 0 && threads.any(|thread| waits_for_disk(thread));
        seen
    }
}

/// Adds what there is more of now.
fn add_more(sum: &mut Requests, now: &Requests, before: &Requests) {
    // A volume may have been made anew under its id since: then there is less.
    sum.count += now.count.saturating_sub(before.count);
    sum.nanos += now.nanos.saturating_sub(before.nanos);
    sum.slow += now.slow.saturating_sub(before.slow);
}

/// The volumes whose requests wait for this host: those of a lazy one wait for a store.
fn near(registry: &Registry) -> impl Iterator<Item = Arc<VolumeEntry>> {
    let is_near = |entry: &Arc<VolumeEntry>| match entry.view().state {
        EntryState::Up(volume) => !volume.is_lazy(),
        _ => false,
    };
    registry.all().into_iter().filter(is_near)
}

fn of_kind(sums: &mut Sums, operation: Operation) -> &mut Requests {
    if operation == Operation::Flush { &mut sums.flushes } else { &mut sums.data }
}

/// What reads, writes and makes durable.
const SEEN: [Operation; 3] = [Operation::Read, Operation::Write, Operation::Flush];

fn sums(registry: &Registry) -> Volumes {
    let sums_of = |entry: Arc<VolumeEntry>| {
        let mut sums = Sums::default();
        for operation in SEEN {
            let counted = entry.traffic.counted(operation);
            let sum = of_kind(&mut sums, operation);
            sum.count += counted.total();
            sum.nanos = sum.nanos.wrapping_add(counted.nanos());
            sum.slow += counted.above(SLOW_FROM);
        }
        (entry.id, sums)
    };
    near(registry).map(sums_of).collect()
}

/// The requests that are under way now.
fn waiting(registry: &Registry) -> Sums {
    let mut sums = Sums::default();
    for entry in near(registry) {
        for operation in SEEN {
            let (count, age) = entry.traffic.under_way(operation);
            let sum = of_kind(&mut sums, operation);
            sum.waiting += count;
            sum.waiting_nanos =
                sum.waiting_nanos.saturating_add(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    sums
}

/// The kernel's directories on the threads whose names begin so; none where it has none.
fn threads(tasks: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(tasks) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_named =
        |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with(name));
    paths.filter(is_named).collect()
}

/// How long a thread waited for a processor: the second number.
fn waited_nanos(thread: &Path) -> u64 {
    let text = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    text.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Whether a thread waits for a disk now: the state after its name, which is in brackets.
fn waits_for_disk(thread: &Path) -> bool {
    let text = fs::read_to_string(thread.join("stat")).unwrap_or_default();
    text.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('D'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{VolumeRow, VolumeState};
    use blockd_volume::Volume;

    fn entry_in(registry: &Registry, dir: &Path, number: u64) -> Arc<VolumeEntry> {
        let id = VolumeId::from_u64(number);
        let row = VolumeRow {
            id,
            name: format!("volume-{number}").parse().unwrap(),
            size_bytes: 1 << 20,
            labels: Default::default(),
            created: jiff::Timestamp::UNIX_EPOCH,
            state: VolumeState::Up,
            read_only: false,
            group: None,
        };
        let volume = Volume::create(&dir.join(number.to_string()), id, 1 << 20).unwrap();
        let entry = VolumeEntry::new(&row, EntryState::Up(volume));
        registry.insert(Arc::clone(&entry));
        entry
    }

    fn note(entry: &VolumeEntry, operation: Operation, ago: Duration) {
        entry.traffic.note(operation, std::time::Instant::now().checked_sub(ago).unwrap());
    }

    #[test]
    fn what_was_counted_since_the_last_look_is_seen_once() {
        let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::default());
        let entry = entry_in(&registry, dir.path(), 1);
        note(&entry, Operation::Write, Duration::ZERO);
        let mut observer = Observer::new(&registry);
        assert_eq!(observer.look(&registry).data.count, 0);
        note(&entry, Operation::Write, Duration::from_millis(20));
        note(&entry, Operation::Read, Duration::ZERO);
        note(&entry, Operation::Flush, Duration::from_millis(30));
        let seen = observer.look(&registry);
        assert_eq!((seen.data.count, seen.data.slow), (2, 1));
        assert_eq!((seen.flushes.count, seen.flushes.slow), (1, 1));
        assert!(seen.data.nanos >= 20_000_000 && seen.flushes.nanos >= 30_000_000, "{seen:?}");
        let seen = observer.look(&registry);
        assert_eq!((seen.data.count, seen.flushes), (0, Requests::default()));
    }

    #[test]
    fn what_is_under_way_is_seen_as_often_as_it_is_looked_for() {
        let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::default());
        let entry = entry_in(&registry, dir.path(), 1);
        let mut observer = Observer::new(&registry);
        let began = std::time::Instant::now();
        let write = entry.traffic.begin(Operation::Write, began);
        let flush = entry.traffic.begin(Operation::Flush, began);
        while began.elapsed() < Duration::from_millis(2) {
            std::thread::yield_now();
        }
        for _ in 0..2 {
            let seen = observer.look(&registry);
            assert_eq!((seen.data.waiting, seen.flushes.waiting), (1, 1));
            assert!(seen.data.waiting_nanos >= 1_900_000 && seen.data.count == 0, "{seen:?}");
        }
        drop((write, flush));
        let seen = observer.look(&registry);
        assert_eq!((seen.data, seen.flushes), (Requests::default(), Requests::default()));
    }

    #[test]
    fn a_volume_that_comes_or_goes_does_not_bring_or_take_what_it_did_before() {
        let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::default());
        let (stays, goes) = (entry_in(&registry, dir.path(), 1), entry_in(&registry, dir.path(), 2));
        (0..50).for_each(|_| note(&goes, Operation::Write, Duration::from_millis(20)));
        let mut observer = Observer::new(&registry);
        let up = goes.view().state;
        for state in [EntryState::Deleting, up] {
            goes.set_state(state);
            note(&stays, Operation::Write, Duration::ZERO);
            let seen = observer.look(&registry);
            assert_eq!((seen.data.count, seen.data.slow), (1, 0), "{seen:?}");
            assert!(seen.data.nanos < 900_000_000, "{seen:?}");
        }
        note(&goes, Operation::Write, Duration::from_millis(20));
        assert_eq!(observer.look(&registry).data.count, 1);
    }

    #[test]
    fn the_threads_that_serve_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (number, name, waited) in
            [("1", "blockd\n", "9"), ("2", "nbd-ring-0\n", "30"), ("3", "nbd-ring-1\n", "4")]
        {
            let thread = dir.path().join(number);
            fs::create_dir(&thread).unwrap();
            fs::write(thread.join("comm"), name).unwrap();
            fs::write(thread.join("schedstat"), format!("7 {waited} 1\n")).unwrap();
        }
        let found = threads(dir.path(), SERVING);
        assert_eq!(found.iter().map(|thread| waited_nanos(thread)).sum::<u64>(), 34);
        assert_eq!(waited_nanos(Path::new("/nowhere")), 0);
        assert!(threads(Path::new("/nowhere"), SERVING).is_empty());
    }

    #[test]
    fn a_thread_that_waits_for_a_disk_is_told_from_one_that_sleeps() {
        let dir = tempfile::tempdir().unwrap();
        for (stat, expected) in [
            ("7 (nbd-worker-0) D 1 7", true),
            ("7 (nbd-worker-0) S 1 7", false),
            ("7 (a) D) R 1", false),
            ("", false),
        ] {
            fs::write(dir.path().join("stat"), stat).unwrap();
            assert_eq!(waits_for_disk(dir.path()), expected, "{stat}");
        }
        assert!(!waits_for_disk(Path::new("/nowhere")));
    }
}
