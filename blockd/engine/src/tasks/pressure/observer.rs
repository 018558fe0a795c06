//! Sampling of guest requests from counters that exist for other purposes.

use crate::{
    metrics::Operation,
    tasks::pressure::governor::{Requests, Sample},
    volumes::registry::{EntryState, Registry, VolumeEntry},
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

/// Duration from which a request is slow.
const SLOW_FROM: Duration = Duration::from_micros(1_024);
/// Directory of this process's threads.
const THREADS_DIR: &str = "/proc/self/task";
/// Name prefix of the threads that serve guests.
const SERVING_PREFIX: &str = "nbd-ring";
/// Name prefix of the threads that block on disks for guests.
const WORKER_PREFIX: &str = "nbd-worker";

/// Requests of a volume since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CounterSums {
    data: Requests,
    flushes: Requests,
}

/// Counters by volume, so that volumes added or removed since the previous sample are excluded.
type Volumes = HashMap<VolumeId, CounterSums>;

/// Sampler with the previous counters.
pub(crate) struct Observer {
    serving: Vec<PathBuf>,
    working: Vec<PathBuf>,
    before: Volumes,
    /// Time that the serving threads have waited for a processor.
    waited_nanos: u64,
    at: Instant,
}

impl Observer {
    pub(crate) fn new(registry: &Registry) -> Self {
        let serving = threads(Path::new(THREADS_DIR), SERVING_PREFIX);
        let working = threads(Path::new(THREADS_DIR), WORKER_PREFIX);
        let waited_nanos = serving.iter().map(|thread| waited_nanos(thread)).sum();
        Self { serving, working, before: sums(registry), waited_nanos, at: Instant::now() }
    }

    pub(crate) fn sample(&mut self, registry: &Registry) -> Sample {
        let (now, at) = (sums(registry), Instant::now());
        let waited_nanos = self.serving.iter().map(|thread| waited_nanos(thread)).sum::<u64>();
        let (before, since) = (std::mem::replace(&mut self.before, now), std::mem::replace(&mut self.at, at));
        let mut seen = Sample { during: at.duration_since(since), ..Sample::default() };
        for (id, now) in &self.before {
            let Some(before) = before.get(id) else { continue };
            add_increase(&mut seen.data, &now.data, &before.data);
            add_increase(&mut seen.flushes, &now.flushes, &before.flushes);
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

/// Adds the increase of the counters.
fn add_increase(sum: &mut Requests, now: &Requests, before: &Requests) {
    // A volume may have been reopened under its id, with smaller counters.
    sum.count += now.count.saturating_sub(before.count);
    sum.nanos += now.nanos.saturating_sub(before.nanos);
    sum.slow += now.slow.saturating_sub(before.slow);
}

/// Returns the volumes with local data: requests of lazy volumes may wait for a store.
fn local_volumes(registry: &Registry) -> impl Iterator<Item = Arc<VolumeEntry>> {
    let is_local = |entry: &Arc<VolumeEntry>| match entry.view().state {
        EntryState::Up(volume) => !volume.is_lazy(),
        _ => false,
    };
    registry.all().into_iter().filter(is_local)
}

fn of_kind(sums: &mut CounterSums, operation: Operation) -> &mut Requests {
    if operation == Operation::Flush { &mut sums.flushes } else { &mut sums.data }
}

/// Sampled operations.
const OPERATIONS: [Operation; 3] = [Operation::Read, Operation::Write, Operation::Flush];

fn sums(registry: &Registry) -> Volumes {
    let sums_of = |entry: Arc<VolumeEntry>| {
        let mut sums = CounterSums::default();
        for operation in OPERATIONS {
            let counted = entry.traffic.counted(operation);
            let sum = of_kind(&mut sums, operation);
            sum.count += counted.total();
            sum.nanos = sum.nanos.wrapping_add(counted.nanos());
            sum.slow += counted.above(SLOW_FROM);
        }
        (entry.id, sums)
    };
    local_volumes(registry).map(sums_of).collect()
}

/// Returns the requests in flight.
fn waiting(registry: &Registry) -> CounterSums {
    let mut sums = CounterSums::default();
    for entry in local_volumes(registry) {
        for operation in OPERATIONS {
            let (count, age) = entry.traffic.under_way(operation);
            let sum = of_kind(&mut sums, operation);
            sum.waiting += count;
            sum.waiting_nanos =
                sum.waiting_nanos.saturating_add(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        }
    }
    sums
}

/// Returns the `/proc` directories of the threads with this name prefix; none without `/proc`.
fn threads(tasks: &Path, name: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(tasks) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_named =
        |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.starts_with(name));
    paths.filter(is_named).collect()
}

/// Returns the time that a thread has waited for a processor: the second field of `schedstat`.
fn waited_nanos(thread: &Path) -> u64 {
    let text = fs::read_to_string(thread.join("schedstat")).unwrap_or_default();
    text.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Returns true if a thread is in uninterruptible sleep: the state after its name in parentheses.
fn waits_for_disk(thread: &Path) -> bool {
    let text = fs::read_to_string(thread.join("stat")).unwrap_or_default();
    text.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('D'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_catalog::{VolumeRow, VolumeState};
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
    fn completed_requests_are_sampled_once() {
        let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::default());
        let entry = entry_in(&registry, dir.path(), 1);
        note(&entry, Operation::Write, Duration::ZERO);
        let mut observer = Observer::new(&registry);
        assert_eq!(observer.sample(&registry).data.count, 0);
        note(&entry, Operation::Write, Duration::from_millis(20));
        note(&entry, Operation::Read, Duration::ZERO);
        note(&entry, Operation::Flush, Duration::from_millis(30));
        let seen = observer.sample(&registry);
        assert_eq!((seen.data.count, seen.data.slow), (2, 1));
        assert_eq!((seen.flushes.count, seen.flushes.slow), (1, 1));
        assert!(seen.data.nanos >= 20_000_000 && seen.flushes.nanos >= 30_000_000, "{seen:?}");
        let seen = observer.sample(&registry);
        assert_eq!((seen.data.count, seen.flushes), (0, Requests::default()));
    }

    #[test]
    fn requests_in_flight_are_in_every_sample() {
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
            let seen = observer.sample(&registry);
            assert_eq!((seen.data.waiting, seen.flushes.waiting), (1, 1));
            assert!(seen.data.waiting_nanos >= 1_900_000 && seen.data.count == 0, "{seen:?}");
        }
        drop((write, flush));
        let seen = observer.sample(&registry);
        assert_eq!((seen.data, seen.flushes), (Requests::default(), Requests::default()));
    }

    #[test]
    fn added_or_removed_volume_is_excluded_from_the_sample() {
        let (dir, registry) = (tempfile::tempdir().unwrap(), Registry::default());
        let (stays, goes) = (entry_in(&registry, dir.path(), 1), entry_in(&registry, dir.path(), 2));
        (0..50).for_each(|_| note(&goes, Operation::Write, Duration::from_millis(20)));
        let mut observer = Observer::new(&registry);
        let up = goes.view().state;
        for state in [EntryState::Deleting, up] {
            goes.set_state(state);
            note(&stays, Operation::Write, Duration::ZERO);
            let seen = observer.sample(&registry);
            assert_eq!((seen.data.count, seen.data.slow), (1, 0), "{seen:?}");
            assert!(seen.data.nanos < 900_000_000, "{seen:?}");
        }
        note(&goes, Operation::Write, Duration::from_millis(20));
        assert_eq!(observer.sample(&registry).data.count, 1);
    }

    #[test]
    fn serving_threads_are_found_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (number, name, waited) in
            [("1", "blockd\n", "9"), ("2", "nbd-ring-0\n", "30"), ("3", "nbd-ring-1\n", "4")]
        {
            let thread = dir.path().join(number);
            fs::create_dir(&thread).unwrap();
            fs::write(thread.join("comm"), name).unwrap();
            fs::write(thread.join("schedstat"), format!("7 {waited} 1\n")).unwrap();
        }
        let found = threads(dir.path(), SERVING_PREFIX);
        assert_eq!(found.iter().map(|thread| waited_nanos(thread)).sum::<u64>(), 34);
        assert_eq!(waited_nanos(Path::new("/nowhere")), 0);
        assert!(threads(Path::new("/nowhere"), SERVING_PREFIX).is_empty());
    }

    #[test]
    fn thread_blocked_on_a_disk_is_detected() {
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
