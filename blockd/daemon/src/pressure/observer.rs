//! What guests' requests were like since the last look, from counters that are there anyway.

use super::governor::Seen;
use crate::{
    metrics::Operation,
    registry::{EntryState, Registry},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

/// What takes longer than that is slow.
const SLOW_FROM: Duration = Duration::from_micros(1_024);
/// Where the kernel tells of this process's threads.
const THREADS: &str = "/proc/self/task";
/// The names of the threads that serve guests begin so.
const SERVING: &str = "nbd-ring";

/// Sums since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    requests: u64,
    nanos: u64,
    slow: u64,
    /// How long the threads that serve guests waited for a processor.
    waited_nanos: u64,
}

/// Remembers the look before.
pub(super) struct Observer {
    threads: Vec<PathBuf>,
    before: Sums,
    at: Instant,
}

impl Observer {
    pub(super) fn new(registry: &Registry) -> Self {
        let threads = serving_threads(Path::new(THREADS));
        let before = sums(registry, &threads);
        Self { threads, before, at: Instant::now() }
    }

    pub(super) fn look(&mut self, registry: &Registry) -> Seen {
        let (now, at) = (sums(registry, &self.threads), Instant::now());
        let (before, since) = (std::mem::replace(&mut self.before, now), std::mem::replace(&mut self.at, at));
        // A volume may be gone since, with its sums.
        let more = |now: u64, before: u64| now.saturating_sub(before);
        let waited_nanos = more(now.waited_nanos, before.waited_nanos);
        Seen {
            requests: more(now.requests, before.requests),
            nanos: more(now.nanos, before.nanos) + waited_nanos,
            slow: more(now.slow, before.slow),
            during: at.duration_since(since),
        }
    }
}

fn sums(registry: &Registry, threads: &[PathBuf]) -> Sums {
    let mut sums =
        Sums { waited_nanos: threads.iter().map(|path| waited_nanos(path)).sum(), ..Sums::default() };
    for entry in registry.all() {
        // Requests to a lazy volume wait for a store, not for the tasks of this host.
        let EntryState::Up(volume) = entry.view().state else { continue };
        if volume.is_lazy() {
            continue;
        }
        for operation in [Operation::Read, Operation::Write] {
            let counted = entry.traffic.counted(operation);
            sums.requests += counted.total();
            sums.nanos = sums.nanos.wrapping_add(counted.nanos());
            sums.slow += counted.above(SLOW_FROM);
        }
    }
    sums
}

/// The kernel's files on the threads that serve guests; none where it has none.
fn serving_threads(tasks: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(tasks) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let serves =
        |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|name| name.starts_with(SERVING));
    paths.filter(serves).map(|path| path.join("schedstat")).collect()
}

/// How long a thread waited for a processor: the second number.
fn waited_nanos(schedstat: &Path) -> u64 {
    let text = fs::read_to_string(schedstat).unwrap_or_default();
    text.split_ascii_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::{VolumeRow, VolumeState},
        registry::VolumeEntry,
    };
    use blockd_extent::VolumeId;
    use blockd_volume::Volume;

    #[test]
    fn what_was_counted_since_the_last_look_is_seen_once() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::default();
        let id = VolumeId::from_u64(1);
        let row = VolumeRow {
            id,
            name: "one".parse().unwrap(),
            size_bytes: 1 << 20,
            labels: Default::default(),
            created: jiff::Timestamp::UNIX_EPOCH,
            state: VolumeState::Up,
            read_only: false,
            group: None,
        };
        let volume = Volume::create(&dir.path().join("1"), id, 1 << 20).unwrap();
        let entry = VolumeEntry::new(&row, EntryState::Up(volume));
        registry.insert(std::sync::Arc::clone(&entry));
        let note = |operation, ago: Duration| {
            entry.traffic.note(operation, std::time::Instant::now().checked_sub(ago).unwrap());
        };
        note(Operation::Write, Duration::ZERO);
        let mut observer = Observer::new(&registry);
        assert_eq!(observer.look(&registry).requests, 0);
        note(Operation::Write, Duration::from_millis(20));
        note(Operation::Read, Duration::ZERO);
        note(Operation::Flush, Duration::from_millis(20));
        let seen = observer.look(&registry);
        assert_eq!((seen.requests, seen.slow), (2, 1));
        assert!(seen.nanos >= 20_000_000, "{seen:?}");
        assert_eq!(observer.look(&registry).requests, 0);
        entry.set_state(EntryState::Deleting);
        assert_eq!(observer.look(&registry).requests, 0);
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
        let threads = serving_threads(dir.path());
        assert_eq!(threads.iter().map(|path| waited_nanos(path)).sum::<u64>(), 34);
        assert_eq!(waited_nanos(Path::new("/nowhere")), 0);
        assert!(serving_threads(Path::new("/nowhere")).is_empty());
    }
}
